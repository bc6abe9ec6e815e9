//! The gradient of a linear layer made whole for one customer, entry by entry: for a customer with many factor rows less
//! work than the dot products of all pairs of them.
//!
//! `G = sum over rows r of g_r a_r^T` is made in floats from float factors, and with the customer's scale `s` each entry adds
//! `trunc(fl(s G))` to the sum: an integer, of magnitude at most `s |G| (1 + 2^-24)`. So whatever `G` is, the squared norm
//! of what is added is at most `s^2 |G|^2 (1 + 2^-22)`, and `|G|^2` is known within [`SQUARES_ERROR`] of it, however small or large the
//! entries are. Nothing else is to be proved of it: sums over customers are of these integers, and exact (`narrow`).

use std::ops::Range;

use super::narrow::{NarrowSum, add_truncated};
use super::{gradients, values};
use crate::model::{
    Aligned, MAX_LINEAR_TAPS, Packing, SQUARES_ERROR, Size, Slot, Tap, Workspace, add_rows, dot, vectorised,
    write_outer_products,
};

/// Entries of a gradient that stay in the cache from when they are made to when they are added.
const CACHED_ENTRIES: usize = 1 << 18;

/// Whether a layer's gradient costs less whole than its norm from dot products of rows, in units of one multiplication of
/// a matrix product. What both need, `rows` multiplications an entry, is not in it.
fn is_cheaper(rows: usize, inputs: usize, outputs: usize) -> bool {
    // Once for the activations, for the gradients before and after rounding; short dot products run at a quarter.
    let dots = 2 * rows * (rows + 1) * (inputs + 2 * outputs);
    // Written, squared, read and added to the sum.
    let entry = if inputs * outputs <= CACHED_ENTRIES { 12 } else { 100 };
    rows > 1 && dots > entry * inputs * outputs
}

/// At which of the linear taps, by their order among these, a customer's gradient is made whole. A function of how many
/// factor rows it has there and of the layer's public size alone.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct WholeTaps(u64);

const _: () = assert!(MAX_LINEAR_TAPS <= u64::BITS as usize);

impl WholeTaps {
    /// Of one customer of a batch.
    #[inline(always)]
    pub(super) fn of(factors: &Workspace, customer: usize) -> Self {
        let (mut bits, mut linear) = (0, 0);
        for tap in factors.taps() {
            if let Tap::Linear { input, output, .. } = *tap {
                let starts = factors.starts(output);
                let rows = (starts[customer + 1] - starts[customer]) as usize;
                let whole = is_cheaper(rows, factors.width(input), factors.width(output));
                bits |= u64::from(whole) << linear;
                linear += 1;
            }
        }
        Self(bits)
    }

    /// Whether there are any.
    #[inline(always)]
    pub(super) fn any(self) -> bool {
        self != Self::default()
    }

    /// Those of a network's taps that are not among them.
    #[inline(always)]
    pub(super) fn others(self, taps: &[Tap]) -> impl Iterator<Item = &Tap> {
        let mut linear = 0;
        taps.iter().filter(move |tap| {
            let is_linear = matches!(tap, Tap::Linear { .. });
            linear += usize::from(is_linear);
            !(is_linear && self.has(linear - 1))
        })
    }

    /// Theirs: the number of the linear tap, its place among all parameters, and its input and its output.
    fn places(self, factors: &Workspace) -> impl Iterator<Item = (usize, Range<usize>, [Slot; 2])> {
        let (mut first, mut linear) = (0, 0);
        factors.taps().iter().filter_map(move |tap| {
            let place = first..first + tap.parameters(|slot| factors.width(slot));
            first = place.end;
            let Tap::Linear { input, output, .. } = *tap else { return None };
            linear += 1;
            self.has(linear - 1).then_some((linear - 1, place, [input, output]))
        })
    }

    /// Whether the linear tap of this number is among them.
    #[inline(always)]
    pub(super) fn has(self, linear: usize) -> bool {
        self.0 >> linear & 1 == 1
    }
}

/// One customer's, of all taps where it is made whole, and what is still to be added of those before; kept between customers.
#[derive(Clone, Default)]
pub(super) struct WholeGradients {
    /// Tap after tap the weight, `[outputs, inputs]`, and the bias, `[outputs]`, if there is one.
    entries: Aligned<f32>,
    /// In this order.
    taps: Vec<WholeTap>,
    packing: Packing<f32>,
    /// By linear tap, of the weight.
    sums: Vec<NarrowSum>,
}

/// One tap's of a customer.
#[derive(Clone)]
struct WholeTap {
    /// Its order among the linear taps.
    linear: usize,
    /// Where in the sum its entries belong: the weight's, and the bias's behind them.
    weight: Range<usize>,
    bias: Range<usize>,
    /// What no entry of the weight's is larger than.
    largest: f32,
}

impl WholeGradients {
    /// Makes those of a customer from its float factors, in place of what was here; their squared norm, NaN or infinite if
    /// an entry is.
    pub(super) fn make(&mut self, factors: &Workspace, customer: usize, taps: WholeTaps) -> f64 {
        let Self { entries, taps: made_taps, packing, .. } = self;
        made_taps.clear();
        let mut rest = entries.resize(taps.places(factors).map(|(_, place, _)| place.len()).sum());
        let mut squares = 0.0;
        for (linear, place, [input, output]) in taps.places(factors) {
            let (own, later) = rest.split_at_mut(place.len());
            rest = later;
            let (inputs, outputs) = (factors.width(input), factors.width(output));
            let (weight, bias) = own.split_at_mut(outputs * inputs);
            let (gradients, activations) =
                (gradients(factors, output, customer), values(factors, input, customer));
            let Size { squares: of_weight, largest } =
                write_outer_products([outputs, inputs], gradients, activations, weight, packing);
            squares += of_weight;
            if !bias.is_empty() {
                bias.fill(0.0);
                add_rows(gradients, bias);
                squares += exact_squares(bias);
            }
            let middle = place.start + weight.len();
            let (weight, bias) = (place.start..middle, middle..place.end);
            made_taps.push(WholeTap { linear, weight, bias, largest });
        }
        // Where f32 may have lost a square, which it has not if there is a larger one.
        if squares > SURE && squares.is_finite() { squares } else { exact_squares(entries) }
    }

    /// Adds what was made last to `sum`, the sum of all taps, times `scale`, each entry rounded towards zero, now or with
    /// [`flush`](Self::flush). Exact where the scaled entries are at most 2^24.
    ///
    /// # Panics
    /// If the taps do not fit into `sum`.
    pub(super) fn add(&mut self, scale: f32, sum: &mut [i64]) {
        let mut rest = &self.entries[..];
        for WholeTap { linear, weight, bias, largest } in &self.taps {
            let (own, later) = rest.split_at(weight.len());
            let (own_bias, later) = later.split_at(bias.len());
            if self.sums.len() <= *linear {
                self.sums.resize_with(linear + 1, NarrowSum::default);
            }
            self.sums[*linear].add(own, *largest, scale, weight, sum);
            // Few entries, which are larger.
            add_truncated(own_bias, scale, &mut sum[bias.clone()]);
            rest = later;
        }
    }

    /// Forgets what is still to be added, which belongs to a sum that nobody finished.
    pub(super) fn forget(&mut self) {
        self.sums.iter_mut().for_each(NarrowSum::forget);
    }

    /// Adds what is not yet in `sum` to it.
    pub(super) fn flush(&mut self, sum: &mut [i64]) {
        self.sums.iter_mut().for_each(|narrow| narrow.flush(sum));
    }
}

/// A sum of squares of f32 that vanish, of however many, is far below this times [`SQUARES_ERROR`].
const SURE: f64 = 1e-20;

/// What the squared norm of the integers is at most, of gradients of squared norm `squared` times `scale`.
pub(super) fn largest_squared_norm(squared: f64, scale: f32) -> f64 {
    let scale = f64::from(scale);
    // Twice, for the rounding of each product as well.
    if squared == 0.0 { 0.0 } else { squared * scale * scale * (1.0 + 2.0 * SQUARES_ERROR) }
}

/// The sum of the squares in f64, in which they neither overflow nor vanish; infinite or NaN if an entry is.
fn exact_squares(entries: &[f32]) -> f64 {
    vectorised(
        #[inline(always)]
        || dot::<f32, f64>(entries, entries),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_are_made_whole_of_many_rows_and_small_layers() {
        assert!(!is_cheaper(1, 64, 128) && !is_cheaper(1, 1, 1));
        assert!(!is_cheaper(4, 64, 128));
        assert!(is_cheaper(30, 64, 256) && is_cheaper(30, 128, 512));
        assert!(is_cheaper(25, 64, 1));
        assert!(!is_cheaper(30, 2048, 2048) && is_cheaper(1000, 2048, 2048));
    }
}
