//! The integer grid, and the exact sum of clipped per-customer gradients on it.
//!
//! Parameters (public) and a batch of customers' rows enter; one `i64` a parameter leaves: the un-noised sum that
//! the noise is added to. It must not leave the site as it is.
//!
//! # What is promised
//!
//! Let `S` be [`SENSITIVITY`]. For any public network, parameters and grid, every customer `i` has an integer
//! vector `v_i` with
//!
//! 1. `|v_i| <= S` in L2 norm over all layers together, proved of its integers, for any rows and finite parameters;
//! 2. `v_i` a function of customer `i`'s own rows and labels alone, to the last bit;
//! 3. [`clipped_sum`] adds exactly the sum of the `v_i` of the batch's customers, whatever their order, and however
//!    they are split over several calls.
//!
//! With [`Clipping::Quantile`] `v_i` has one more entry, plus or minus [`COUNT`], and its norm is that of all entries.
//!
//! So adding or removing one customer changes the sum by exactly that customer's `v_i`: by at most `S`. No float
//! rounding is left to argue about between the clipped vectors and the integers that the noise is added to.
//!
//! # How
//!
//! A float sum of clipped gradients has an error of its own, and rounding each finished gradient takes one in memory for
//! each customer: more work than all else for customers of few rows. So for these the *factors* are rounded. The gradient of a linear layer's weight is a sum of outer
//! products of output gradients `g_r` and input activations `a_r` over the customer's rows `r`, so with
//!
//! - `a_int = round(a / alpha)`, saturated: `alpha = 2^-10`, `|a_int| <= 2^15` (activations past 32 count as 32),
//! - the bias as one more input whose activation is the constant 1, that is `2^10`,
//! - `g_int = round(c g / gamma)`: `gamma = C 2^-14`, `c` the customer's clip factor for clip norm `C`,
//!
//! the customer's gradient is an integer matrix in units of `alpha gamma = C 2^-24` ([`Grid::unit`]), and the clip
//! norm is `S = 2^24` units. An embedding table is a linear layer without bias on the one-hot encoding of an id,
//! whose one activation is the constant 1, that is `2^10`: row `r` adds `2^10 g_r` to the vector of its id, and a
//! customer's rows with one id add up to one vector. A gain is a linear layer with diagonal weight: factor row `r` adds
//! `a_r g_r`, entry by entry. The sum over all customers is a product of integer-valued float matrices, over as many rows at
//! a time as the floats sum exactly (`sum`), so the order of summing does not matter.
//!
//! A layer that is used several times a row (at each step of a sequence, for each candidate item) has that many *factor
//! rows* a row; they are summed like the rows of a customer.
//!
//! **Whole gradients.** A customer with many factor rows at a linear layer would have all pairs of them multiplied for its
//! norm, which costs more than its gradient there. So that is made, in floats, and each entry times the clip factor rounded
//! towards zero to a multiple of the unit and added to the sum (`whole`): what is added cannot be longer than what was
//! measured. Which layers these are depends on the customer's own number of rows alone. Their integers are summed in f32 as long as
//! it has them exactly (`narrow`).
//!
//! **Clip factor.** With `n` the norm of the gradient with rounded activations, computed in floats,
//! `c = min(1, (1 - 2^-10) C / n)`, or `(1 - 2^-10) C / (n + 0.01)` with [`Clipping::Automatic`]. Rounding `g` moves
//! the norm a little; the margin `2^-10` makes it rare that it ends past `S`. **Check.** `|v_i|^2` is found in floats, with a
//! proved bound of what they may be off by (`norm`, `whole`); if with it the norm could be past `S`, it is
//! found in integers, but for whole gradients, of which the bound is kept: the sum over linear layers and rows r, s of
//! `(a_r . a_s + 2^20)(g_r . g_s)`, without the `2^20` where there is no bias; over embedding tables and the
//! customer's different ids of `|2^10 (sum of g_r over its rows r with that id)|^2`; and over gains, entry by entry, of
//! `(sum of a_r g_r)^2 + (2^10 sum of g_r)^2`. These *taps* ([`Tap`](crate::model::Tap)) own
//! every parameter once: what is added to the sum is laid out by the same taps, and [`clipped_sum`] panics before any
//! noise is drawn if they do not fill it. If the squared norm is more than `S^2` (less the square of the count's entry, if
//! there is one), `c` shrinks by the root of their ratio and the
//! margin, and `g_int` is scaled by as much and rounded again; after four times it is rounded towards zero; if that does not do either, the
//! customer counts as zero. A customer whose gradient is not finite, or whose squared norm f32 does not hold (the parameters
//! may be a hostile coordinator's), counts as zero as well: a refusal would tell.
//!
//! **No overflow.** A network has at most 2^16 inputs to a linear layer, 2^12 outputs to any, 2^6 linear layers, and
//! 2^18 other taps, of embeddings and gains; a customer at most 2^16 factor rows of a tap. Dot products:
//! `|a_r . a_s| <= 2^16 2^30 = 2^46` and `|g_r . g_s| <= 2^42`, exact in f64; an entry of a customer's gradient:
//! `2^16 2^15 2^15 = 2^46`, exact in f64. Squared norm: below `(2^46 + 2^20) 2^42 (2^16)^2 2^6 < 2^126.1` for the linear
//! layers; each table below `(2^16 2^15 2^10)^2 2^12 = 2^94`, as a sum of `2^16` vectors of entries of at most
//! `2^25`; each gain below `2 (2^46)^2 2^12 = 2^105`; in all below 2^127, in i128. Products over a block of 2^20 rows:
//! `2^20 2^15 2^15 = 2^50 < 2^53`, exact in f64. The i64
//! sum: each entry grows by at most `S = 2^24` a customer, so 2^38 customers fit.
//!
//! Point 2 rests on the row independence of [`Network`](crate::model::Network) on one machine; a customer's floats are computed anew in each
//! call and may differ between processors, where the promise holds on each. On an accelerator ([`Engine`](crate::model::Engine)) it rests on the
//! device's library.

mod clip;
mod clipped_sum;
mod narrow;
mod norm;
mod sum;
mod whole;

use serde::{Deserialize, Serialize};

use super::ClipNorm;
use crate::model::{Slot, Workspace};
pub use clipped_sum::{SumWorkspace, Summation, clipped_sum};

/// L2 norm of one customer's integers, at most: the clip norm in units of the grid.
pub const SENSITIVITY: u64 = 1 << 24;
/// Most rows of one customer.
pub const MAX_CUSTOMER_ROWS: usize = 1 << 16;

/// Integers per unit of activation, `1 / alpha`; also the integer of the bias's constant activation 1.
const ACTIVATION_STEPS: f32 = 1024.0;
/// Integers per clip norm of output gradient, `C / gamma`.
const GRADIENT_STEPS: f64 = 16_384.0;
/// Largest integer of a factor: activations past 32 saturate; output gradients of a customer reach it only
/// where they cancel over rows.
const FACTOR_LIMIT: f32 = 32_768.0;

const _: () = assert!(SENSITIVITY as f64 == ACTIVATION_STEPS as f64 * GRADIENT_STEPS);

/// How a customer's gradient of norm `n` is scaled to the clip norm `C`. The check in integers follows whichever it
/// is, so the sensitivity is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Clipping {
    /// By `min(1, C / n)` (Abadi et al. 2016): what is below the norm stays as it is.
    Fixed,
    /// By `C / (n + gamma)`, [`AUTOMATIC_GAMMA`] (Bu et al. 2023, "Automatic clipping"): every customer
    /// counts about alike, and `C` is but a part of the step size.
    Automatic,
    /// As fixed, but `C` follows a quantile of the norms (Andrew et al. 2021, "Differentially private learning with
    /// adaptive clipping"): of each customer, whether its norm is within `C` is released in the same sum, as one more
    /// entry of the same vector, see [`COUNT`].
    Quantile,
}

/// With [`Clipping::Quantile`] the sum has one more entry, to which a customer adds this if its norm is within the clip
/// norm and takes it away if not: a quarter of the sensitivity. The rest of the vector is held below
/// `S sqrt(15/16)`, so that all of it is within `S`, and the same noise on every entry pays for both.
pub const COUNT: i64 = SENSITIVITY as i64 / 4;

/// `gamma` of [`Clipping::Automatic`], in units of the loss gradient: the paper's default. Gradients well below it
/// fade out, those above have about the clip norm.
pub const AUTOMATIC_GAMMA: f64 = 0.01;

impl Clipping {
    /// The clip factor of a gradient of norm `norm`, for a bound `clip`.
    #[inline(always)]
    fn factor(self, norm: f64, clip: f64) -> f64 {
        match self {
            Self::Fixed | Self::Quantile => {
                if norm > clip {
                    clip / norm
                } else {
                    1.0
                }
            }
            Self::Automatic => clip / (norm + AUTOMATIC_GAMMA),
        }
    }

    /// Squared L2 norm of the integers of a customer's gradient, at most.
    fn squared_limit(self) -> i128 {
        let count = if self == Self::Quantile { i128::from(COUNT) } else { 0 };
        i128::from(SENSITIVITY).pow(2) - count.pow(2)
    }

    /// Entries of the sum beside the gradient's.
    pub fn counts(self) -> usize {
        usize::from(self == Self::Quantile)
    }
}

/// The grid on which gradients of a clip norm are summed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    clip: ClipNorm,
    clipping: Clipping,
    recorded: ClipNorm,
}

impl Grid {
    /// The grid of a clip norm, with [`Clipping::Fixed`].
    pub fn new(clip: ClipNorm) -> Self {
        Self { clip, clipping: Clipping::Fixed, recorded: clip }
    }

    /// The same grid, gradients scaled to it in this way.
    pub fn with_clipping(self, clipping: Clipping) -> Self {
        Self { clipping, ..self }
    }

    /// The same grid at another clip norm, which a noised sum suggested: the noise in integers is the same, so the
    /// privacy is; only the unit differs.
    pub fn with_clip(self, clip: ClipNorm) -> Self {
        Self { clip, ..self }
    }

    /// How gradients are scaled to the clip norm.
    pub fn clipping(&self) -> Clipping {
        self.clipping
    }

    /// The clip norm that stands in the contract and in the ledger, in units of the loss gradient.
    pub fn recorded_clip(&self) -> ClipNorm {
        self.recorded
    }

    /// The clip norm, in units of the loss gradient.
    pub fn clip(&self) -> ClipNorm {
        self.clip
    }

    /// Units of the loss gradient in one integer: `C 2^-24`.
    pub fn unit(&self) -> f64 {
        self.clip.value() / SENSITIVITY as f64
    }

    /// L2 sensitivity, in integers, of [`clipped_sum`] to one customer more or less: [`SENSITIVITY`].
    pub const fn sensitivity(&self) -> u64 {
        SENSITIVITY
    }
}

/// Where a customer's entries of a slot begin and end.
#[inline(always)]
fn entries(factors: &Workspace, slot: Slot, customer: usize) -> [usize; 2] {
    let (starts, width) = (factors.starts(slot), factors.width(slot));
    [starts[customer] as usize * width, starts[customer + 1] as usize * width]
}

/// A customer's values of a slot.
#[inline(always)]
fn values(factors: &Workspace, slot: Slot, customer: usize) -> &[f32] {
    let [start, end] = entries(factors, slot, customer);
    &factors.values(slot)[start..end]
}

/// A customer's gradients of a slot.
#[inline(always)]
fn gradients(factors: &Workspace, slot: Slot, customer: usize) -> &[f32] {
    let [start, end] = entries(factors, slot, customer);
    &factors.gradients(slot)[start..end]
}

#[cfg(test)]
mod tests;
