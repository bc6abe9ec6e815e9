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
//! 1. `|v_i| <= S` in L2 norm over all layers together, checked in integers, for any rows and finite parameters;
//! 2. `v_i` a function of customer `i`'s own rows and labels alone, to the last bit;
//! 3. [`clipped_sum`] adds exactly the sum of the `v_i` of the batch's customers, whatever their order, and however
//!    they are split over several calls.
//!
//! So adding or removing one customer changes the sum by exactly that customer's `v_i`: by at most `S`. No float
//! rounding is left to argue about between the clipped vectors and the integers that the noise is added to.
//!
//! # How
//!
//! Rounding each finished gradient needs every gradient in memory, and a float sum of clipped gradients has an
//! error of its own. Instead the *factors* are rounded. The gradient of a linear layer's weight is a sum of outer
//! products of output gradients `g_r` and input activations `a_r` over the customer's rows `r`, so with
//!
//! - `a_int = round(a / alpha)`, saturated: `alpha = 2^-10`, `|a_int| <= 2^15` (activations past 32 count as 32),
//! - the bias as one more input whose activation is the constant 1, that is `2^10`,
//! - `g_int = round(c g / gamma)`: `gamma = C 2^-14`, `c` the customer's clip factor for clip norm `C`,
//!
//! the customer's gradient is an integer matrix in units of `alpha gamma = C 2^-24` ([`Grid::unit`]), and the clip
//! norm is `S = 2^24` units. An embedding table is a linear layer without bias on the one-hot encoding of an id,
//! whose one activation is the constant 1, that is `2^10`: row `r` adds `2^10 g_r` to the vector of its id, and a
//! customer's rows with one id add up to one vector. The sum over all customers is one product of integer-valued
//! f64 matrices, exact because no partial sum reaches 2^53, so the order of summing does not matter.
//!
//! **Clip factor.** With `n` the norm of the gradient with rounded activations, computed in floats,
//! `c = min(1, (1 - 2^-10) C / n)`, or `(1 - 2^-10) C / (n + 0.01)` with [`Clipping::Automatic`]. Rounding `g` moves
//! the norm a little; the margin `2^-10` makes it rare that it ends past `S`. **Check.** `|v_i|^2` is a sum in integers: over linear layers and rows r, s of
//! `(a_r . a_s + 2^20)(g_r . g_s)`, without the `2^20` where there is no bias; and over embedding tables and the
//! customer's different ids of `|2^10 (sum of g_r over its rows r with that id)|^2`. These *taps* ([`Workspace`]) own
//! every parameter once: what is added to the sum is laid out by the same taps, and [`clipped_sum`] panics before any
//! noise is drawn if they do not fill it. If the squared norm is more than `S^2`, `c` shrinks by `S / |v_i|` and the
//! margin, and `g` is rounded again; after four times it is rounded towards zero; if that does not do either, the
//! customer counts as zero. A customer whose gradient is not finite (the parameters may be a hostile coordinator's)
//! counts as zero as well: a refusal would tell.
//!
//! **No overflow.** A network has at most 2^16 inputs to a linear layer, 2^12 outputs, 10 such layers, and 2^17
//! embedding tables of at most 2^8 entries a vector; a customer at most 2^16 rows. Dot products:
//! `|a_r . a_s| <= 2^16 2^30 = 2^46` and `|g_r . g_s| <= 2^42`, exact in f64; an entry of a customer's table:
//! `2^16 2^15 2^10 = 2^41`, exact in f64. Squared norm: below `2^47 2^42 (2^16)^2 10` for the linear layers, and for
//! each table below `(2^16 2^15 2^10)^2 2^8 = 2^90`, as a sum of `2^16` vectors of entries of at most `2^25`; in all
//! below 2^125, in i128. Products over a block of 2^20 rows: `2^20 2^15 2^15 = 2^50 < 2^53`, exact in f64. The i64
//! sum: each entry grows by at most `S = 2^24` a customer, so 2^38 customers fit.
//!
//! Point 2 rests on the row independence of [`Network`] on one machine; a customer's floats are computed anew in each
//! call and may differ between processors, where the promise holds on each.

use pulp::{Arch, Simd, WithSimd};
use serde::{Deserialize, Serialize};

use super::ClipNorm;
use crate::model::{
    Batch, ModelError, Network, Packing, View, Workspace, add_product, add_rows, add_weighted_rows, dot,
};

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
/// What a clipped norm stays below the clip norm by, so that rounding seldom pushes it past.
const MARGIN: f64 = 1.0 - 1.0 / 1024.0;
/// Times the clip factor is shrunk before rounding goes towards zero.
const ATTEMPTS: usize = 4;
/// Rows whose products are summed in f64 before they go to the i64 sum.
const BLOCK_ROWS: usize = 1 << 20;

const _: () = assert!(SENSITIVITY as f64 == ACTIVATION_STEPS as f64 * GRADIENT_STEPS);
const _: () = assert!(BLOCK_ROWS as f64 * FACTOR_LIMIT as f64 * FACTOR_LIMIT as f64 <= INTEGER_LIMIT);

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
}

/// `gamma` of [`Clipping::Automatic`], in units of the loss gradient: the paper's default. Gradients well below it
/// fade out, those above have about the clip norm.
pub const AUTOMATIC_GAMMA: f64 = 0.01;

impl Clipping {
    /// The clip factor of a gradient of norm `norm`, for a bound `clip`.
    #[inline(always)]
    fn factor(self, norm: f64, clip: f64) -> f64 {
        match self {
            Self::Fixed => {
                if norm > clip {
                    clip / norm
                } else {
                    1.0
                }
            }
            Self::Automatic => clip / (norm + AUTOMATIC_GAMMA),
        }
    }
}

/// The grid on which gradients of a clip norm are summed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    clip: ClipNorm,
    clipping: Clipping,
}

impl Grid {
    /// The grid of a clip norm, with [`Clipping::Fixed`].
    pub fn new(clip: ClipNorm) -> Self {
        Self { clip, clipping: Clipping::Fixed }
    }

    /// The same grid, gradients scaled to it in this way.
    pub fn with_clipping(self, clipping: Clipping) -> Self {
        Self { clipping, ..self }
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

/// Buffers of [`clipped_sum`]: one a thread, kept between batches. Holds un-noised data; `Debug` prints shapes.
#[derive(Clone, Default)]
pub struct SumWorkspace {
    floats: Workspace,
    taps: IntegerTaps,
    products: Vec<f64>,
    biases: Vec<f64>,
    packing: Packing<f64>,
    scratch: NormScratch,
}

impl SumWorkspace {
    /// Empty buffers.
    pub fn new() -> Self {
        Self::default()
    }
}

impl std::fmt::Debug for SumWorkspace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SumWorkspace").field(&self.floats).finish()
    }
}

/// The integer factors of every parameter of a network, in the order of the flat parameters: of the linear layers,
/// then of the embedding tables.
#[derive(Clone, Default)]
struct IntegerTaps {
    linear: Vec<IntegerFactors>,
    embeddings: Vec<IntegerEmbedding>,
}

/// The integer factors of one linear layer, as f32 that hold integers of at most [`FACTOR_LIMIT`], which f32 has
/// exactly.
#[derive(Clone, Default)]
struct IntegerFactors {
    inputs: usize,
    outputs: usize,
    biased: bool,
    /// `[rows, inputs]`, in units of `alpha`.
    activations: Vec<f32>,
    /// `[rows, outputs]`, in units of `gamma`, clipped.
    gradients: Vec<f32>,
}

/// The factors of one embedding table, the gradients integers as in [`IntegerFactors`].
#[derive(Clone, Default)]
struct IntegerEmbedding {
    vocabulary: usize,
    dim: usize,
    /// `[rows]`.
    ids: Vec<u32>,
    /// `[rows, dim]`, in units of `gamma`, clipped.
    gradients: Vec<f32>,
}

/// Adds to `sum` the clipped, rounded gradient of every customer of `batch`, exactly; see this module's header.
///
/// `sum` is `[network.parameter_count()]` in the network's flat layout, in units of [`Grid::unit`]; the caller
/// zeroes it before the first call. One customer more or less in all calls together changes it by at
/// most [`SENSITIVITY`] in L2 norm. Customers may be split over calls to bound memory, which is about
/// `16 bytes x rows x (inputs + hidden units)`; the result is the same.
///
/// Errors, leaving `sum` alone, if a shape does not fit, a customer has more than [`MAX_CUSTOMER_ROWS`] rows, an id is
/// outside its vocabulary, or a parameter, an input or a label is not finite, naming its row. Customers whose gradient
/// overflows count as zero.
pub fn clipped_sum(
    network: &Network,
    parameters: &[f32],
    batch: &Batch,
    grid: &Grid,
    workspace: &mut SumWorkspace,
    sum: &mut [i64],
) -> Result<(), ModelError> {
    if sum.len() != network.parameter_count() {
        let (expected, got) = (network.parameter_count(), sum.len());
        return Err(ModelError::Length { what: "entries in the sum", expected, got });
    }
    network.check(parameters, batch)?;
    for (customer, span) in batch.customer_starts.windows(2).enumerate() {
        let got = (span[1] - span[0]) as usize;
        if got > MAX_CUSTOMER_ROWS {
            return Err(ModelError::CustomerRows { customer, got, limit: MAX_CUSTOMER_ROWS });
        }
    }
    network.differentiate(parameters, batch, &mut workspace.floats);
    workspace.clip(batch.customer_starts, grid);
    workspace.add_to(sum);
    Ok(())
}

impl SumWorkspace {
    /// Float factors to integer factors of customers whose norm is at most [`SENSITIVITY`].
    fn clip(&mut self, customer_starts: &[u32], grid: &Grid) {
        let IntegerTaps { linear, embeddings } = &mut self.taps;
        linear.resize_with(self.floats.linear().len(), IntegerFactors::default);
        for (floats, integers) in self.floats.linear().iter().zip(linear) {
            (integers.inputs, integers.outputs) = (floats.inputs(), floats.outputs());
            integers.biased = floats.biased();
            integers.activations.resize(floats.activations().len(), 0.0);
            integers.gradients.resize(floats.output_gradients().len(), 0.0);
        }
        embeddings.resize_with(self.floats.embeddings().len(), IntegerEmbedding::default);
        for (floats, integers) in self.floats.embeddings().iter().zip(embeddings) {
            (integers.vocabulary, integers.dim) = (floats.vocabulary(), floats.dim());
            integers.ids.clear();
            integers.ids.extend_from_slice(floats.ids());
            integers.gradients.resize(floats.output_gradients().len(), 0.0);
        }
        Arch::new().dispatch(Clip {
            clip: grid.clip.value(),
            clipping: grid.clipping,
            customer_starts,
            floats: &self.floats,
            integers: &mut self.taps,
            scratch: &mut self.scratch,
        });
    }

    /// The exact integer products of all taps, added to `sum`.
    ///
    /// # Panics
    /// If the taps do not fill `sum`: a parameter that is in none would leave without its norm counted.
    fn add_to(&mut self, sum: &mut [i64]) {
        let Self { taps, products, biases, packing, .. } = self;
        let mut rest = sum;
        for layer in &taps.linear {
            let (inputs, outputs) = (layer.inputs, layer.outputs);
            let (weight, tail) = rest.split_at_mut(outputs * inputs);
            let (bias, tail) = tail.split_at_mut(if layer.biased { outputs } else { 0 });
            rest = tail;
            let blocks = layer.activations.chunks(BLOCK_ROWS * inputs);
            for (activations, gradients) in blocks.zip(layer.gradients.chunks(BLOCK_ROWS * outputs)) {
                products.clear();
                products.resize(weight.len(), 0.0);
                if outputs == 1 {
                    add_weighted_rows(gradients, activations, products);
                } else {
                    let rows = activations.len() / inputs;
                    let left = View::transpose(gradients, outputs);
                    add_product(
                        [outputs, rows, inputs],
                        left,
                        View::rows(activations, inputs),
                        products,
                        packing,
                    );
                }
                add_integers(products, weight);
                if layer.biased {
                    biases.clear();
                    biases.resize(outputs, 0.0);
                    add_rows(gradients, biases);
                    biases.iter_mut().for_each(|entry| *entry *= f64::from(ACTIVATION_STEPS));
                    add_integers(biases, bias);
                }
            }
        }
        for embedding in &taps.embeddings {
            let (table, tail) = rest.split_at_mut(embedding.vocabulary * embedding.dim);
            rest = tail;
            for (&id, gradient) in embedding.ids.iter().zip(embedding.gradients.chunks_exact(embedding.dim)) {
                let vector = &mut table[id as usize * embedding.dim..][..embedding.dim];
                for (slot, &entry) in vector.iter_mut().zip(gradient) {
                    *slot += entry as i64 * ACTIVATION_STEPS as i64;
                }
            }
        }
        assert!(rest.is_empty(), "{} parameters in no tap", rest.len());
    }
}

/// Magnitude up to which [`add_integers`] is exact.
const INTEGER_LIMIT: f64 = (1u64 << 51) as f64;

/// Adds integer-valued f64 of magnitude at most 2^51 to integers.
fn add_integers(values: &[f64], sum: &mut [i64]) {
    // With 1.5 * 2^52 added, the last bits of the f64 are the integer: vectorises where a cast does not.
    const SHIFT: f64 = 6_755_399_441_055_744.0;
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for (sum, &value) in sum.iter_mut().zip(values) {
                debug_assert!(value.abs() <= INTEGER_LIMIT && value.fract() == 0.0);
                *sum += (value + SHIFT).to_bits().wrapping_sub(SHIFT.to_bits()) as i64;
            }
        },
    );
}

/// The work of [`SumWorkspace::clip`], compiled for each instruction set.
struct Clip<'a> {
    clip: f64,
    clipping: Clipping,
    customer_starts: &'a [u32],
    floats: &'a Workspace,
    integers: &'a mut IntegerTaps,
    scratch: &'a mut NormScratch,
}

impl WithSimd for Clip<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (floats, integers) in self.floats.linear().iter().zip(&mut self.integers.linear) {
            round_activations(floats.activations(), &mut integers.activations);
        }
        for span in self.customer_starts.windows(2) {
            clip_customer(
                self.clip,
                self.clipping,
                [span[0] as usize, span[1] as usize],
                self.floats,
                self.integers,
                self.scratch,
            );
        }
    }
}

/// Fills the integer gradients of the customer with rows `span[0] .. span[1]`; the norm of its integer gradient is
/// at most [`SENSITIVITY`] afterwards. The integer activations are there already.
#[inline(always)]
fn clip_customer(
    clip: f64,
    clipping: Clipping,
    span: [usize; 2],
    floats: &Workspace,
    integers: &mut IntegerTaps,
    scratch: &mut NormScratch,
) {
    scratch.measure_inputs(integers, span);
    // In units of the activation's integers.
    let squared: f64 = scratch.squared_norm(integers, span, |tap| match tap {
        Tap::Linear(at) => floats.linear()[at].output_gradients(),
        Tap::Embedding(at) => floats.embeddings()[at].output_gradients(),
    });
    let norm = squared.sqrt() / f64::from(ACTIVATION_STEPS);
    if norm.is_finite() {
        let factor = clipping.factor(norm, clip * MARGIN);
        let mut scale = factor * (GRADIENT_STEPS / clip);
        for attempt in 0..=ATTEMPTS {
            let linear = floats.linear().iter().map(|tap| (tap.output_gradients(), tap.outputs()));
            let embeddings = floats.embeddings().iter().map(|tap| (tap.output_gradients(), tap.dim()));
            for ((from, width), to) in linear.chain(embeddings).zip(integers.gradients_mut(span)) {
                let from = rows_of(from, span, width);
                if attempt < ATTEMPTS {
                    round_gradients(from, scale as f32, to);
                } else {
                    truncate_gradients(from, scale as f32, to);
                }
            }
            let squared: i128 = scratch.squared_norm(integers, span, |tap| match tap {
                Tap::Linear(at) => &integers.linear[at].gradients,
                Tap::Embedding(at) => &integers.embeddings[at].gradients,
            });
            if squared <= (SENSITIVITY as i128).pow(2) {
                return;
            }
            scale *= MARGIN * SENSITIVITY as f64 / (squared as f64).sqrt();
        }
    }
    integers.gradients_mut(span).for_each(|gradients| gradients.fill(0.0));
}

impl IntegerTaps {
    /// The gradients of rows `start .. end` of each tap, the linear ones first.
    #[inline(always)]
    fn gradients_mut(&mut self, [start, end]: [usize; 2]) -> impl Iterator<Item = &mut [f32]> {
        let linear = self.linear.iter_mut().map(|tap| (&mut tap.gradients, tap.outputs));
        let embeddings = self.embeddings.iter_mut().map(|tap| (&mut tap.gradients, tap.dim));
        linear.chain(embeddings).map(move |(gradients, width)| &mut gradients[start * width..end * width])
    }
}

/// Which layer, by its place among those of its kind.
#[derive(Clone, Copy)]
enum Tap {
    Linear(usize),
    Embedding(usize),
}

#[inline(always)]
fn rows_of<T>(matrix: &[T], [start, end]: [usize; 2], columns: usize) -> &[T] {
    &matrix[start * columns..end * columns]
}

/// Saturates; NaN, which only a customer that counts as zero has, becomes an integer as well. Comparisons and not
/// `clamp`, which would let it through.
#[inline(always)]
fn saturate(value: f32) -> f32 {
    let value = if value > -FACTOR_LIMIT { value } else { -FACTOR_LIMIT };
    if value < FACTOR_LIMIT { value } else { FACTOR_LIMIT }
}

#[inline(always)]
fn round_activations(from: &[f32], to: &mut [f32]) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to = saturate((from * ACTIVATION_STEPS).round_ties_even());
    }
}

#[inline(always)]
fn round_gradients(from: &[f32], scale: f32, to: &mut [f32]) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to = saturate((from * scale).round_ties_even());
    }
}

#[inline(always)]
fn truncate_gradients(from: &[f32], scale: f32, to: &mut [f32]) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to = saturate((from * scale).trunc());
    }
}

/// Buffers for norms: dot products of one customer's activations, its ids sorted, and one line of its gradient.
#[derive(Clone, Default)]
struct NormScratch {
    /// For each linear layer in Gram form, `a_r . a_s` (`+ 2^20` if biased) for `r <= s`, in the order of the loops.
    grams: Vec<f64>,
    /// For each embedding table the customer's ids with the row each is of, counted from its first, sorted.
    sorted_ids: Vec<(u32, u32)>,
    line: Vec<f64>,
}

/// What a squared norm is summed in: f64 for the clip factor, i128 for the check.
trait Total: Copy + std::ops::AddAssign {
    const ZERO: Self;
    /// The product of two factors, which are integers below 2^53 if `Self` is exact.
    fn product(a: f64, b: f64) -> Self;
}

impl Total for f64 {
    const ZERO: Self = 0.0;
    #[inline(always)]
    fn product(a: f64, b: f64) -> Self {
        a * b
    }
}

impl Total for i128 {
    const ZERO: Self = 0;
    #[inline(always)]
    fn product(a: f64, b: f64) -> Self {
        i128::from(a as i64) * i128::from(b as i64)
    }
}

/// Whether the norm of a layer is cheaper from dot products of rows than from the gradient itself.
#[inline(always)]
fn gram_is_cheaper(rows: usize, inputs: usize, outputs: usize) -> bool {
    rows * (rows + 1) / 2 * (inputs + outputs) <= (rows + 4) * inputs * outputs
}

impl NormScratch {
    /// Prepares [`squared_norm`](Self::squared_norm), which may be asked several times for one customer.
    #[inline(always)]
    fn measure_inputs(&mut self, taps: &IntegerTaps, span: [usize; 2]) {
        let rows = span[1] - span[0];
        self.grams.clear();
        for layer in taps.linear.iter().filter(|layer| gram_is_cheaper(rows, layer.inputs, layer.outputs)) {
            let activations = rows_of(&layer.activations, span, layer.inputs);
            let bias = if layer.biased { f64::from(ACTIVATION_STEPS * ACTIVATION_STEPS) } else { 0.0 };
            for (r, a_r) in activations.chunks_exact(layer.inputs).enumerate() {
                for a_s in activations[r * layer.inputs..].chunks_exact(layer.inputs) {
                    self.grams.push(dot::<_, f64>(a_r, a_s) + bias);
                }
            }
        }
        self.sort_ids(&taps.embeddings, span);
    }

    /// Not inlined, as [`embedding_norm`](Self::embedding_norm): within the vector loops of the linear layers it would
    /// slow them down.
    #[inline(never)]
    fn sort_ids(&mut self, embeddings: &[IntegerEmbedding], span: [usize; 2]) {
        self.sorted_ids.clear();
        for embedding in embeddings {
            let first = self.sorted_ids.len();
            self.sorted_ids.extend(rows_of(&embedding.ids, span, 1).iter().copied().zip(0u32..));
            // No two are equal, so the order is one, whatever the algorithm.
            self.sorted_ids[first..].sort_unstable();
        }
    }

    /// Squared norm of the gradient, over all taps, of the customer with rows `span`, from the integer activations
    /// and the ids in `taps` and the output gradients, `[rows, outputs]`, that `gradients` has of each.
    ///
    /// Exact in i128 if the output gradients are integers; else as good as f64 sums are.
    #[inline(always)]
    fn squared_norm<'a, N: Total>(
        &mut self,
        taps: &IntegerTaps,
        span: [usize; 2],
        gradients: impl Fn(Tap) -> &'a [f32],
    ) -> N {
        let rows = span[1] - span[0];
        let mut total = N::ZERO;
        let mut grams = self.grams.iter();
        for (index, layer) in taps.linear.iter().enumerate() {
            let gradients = rows_of(gradients(Tap::Linear(index)), span, layer.outputs);
            if gram_is_cheaper(rows, layer.inputs, layer.outputs) {
                for (r, g_r) in gradients.chunks_exact(layer.outputs).enumerate() {
                    for (s, g_s) in gradients[r * layer.outputs..].chunks_exact(layer.outputs).enumerate() {
                        let gram = grams.next().expect("measure_inputs pushed one for each pair of rows");
                        let term = N::product(*gram, dot(g_r, g_s));
                        total += term;
                        if s > 0 {
                            total += term;
                        }
                    }
                }
            } else {
                let activations = rows_of(&layer.activations, span, layer.inputs);
                let constant = if layer.biased { f64::from(ACTIVATION_STEPS) } else { 0.0 };
                for output in 0..layer.outputs {
                    self.line.clear();
                    self.line.resize(layer.inputs, 0.0);
                    let mut bias = 0.0;
                    let column = gradients[output..].iter().step_by(layer.outputs);
                    for (&gradient, activations) in column.zip(activations.chunks_exact(layer.inputs)) {
                        let gradient = f64::from(gradient);
                        bias += gradient * constant;
                        for (slot, &activation) in self.line.iter_mut().zip(activations) {
                            *slot += gradient * f64::from(activation);
                        }
                    }
                    total += N::product(bias, bias);
                    for &entry in &self.line {
                        total += N::product(entry, entry);
                    }
                }
            }
        }
        for (index, embedding) in taps.embeddings.iter().enumerate() {
            let gradients = rows_of(gradients(Tap::Embedding(index)), span, embedding.dim);
            total += self.embedding_norm(index, embedding.dim, gradients);
        }
        total
    }

    /// Squared norm of one customer's gradient of the embedding table `index`, from the output gradients of its rows,
    /// `[rows, dim]`.
    #[inline(never)]
    fn embedding_norm<N: Total>(&mut self, index: usize, dim: usize, gradients: &[f32]) -> N {
        const CONSTANT: f64 = ACTIVATION_STEPS as f64;
        let rows = gradients.len() / dim;
        let of_row = |row: u32| &gradients[row as usize * dim..][..dim];
        let mut total = N::ZERO;
        for same_id in self.sorted_ids[index * rows..(index + 1) * rows].chunk_by(|one, next| one.0 == next.0)
        {
            if let [(_, row)] = same_id {
                total += N::product(CONSTANT * CONSTANT, dot(of_row(*row), of_row(*row)));
                continue;
            }
            self.line.clear();
            self.line.resize(dim, 0.0);
            for &(_, row) in same_id {
                for (slot, &gradient) in self.line.iter_mut().zip(of_row(row)) {
                    *slot += CONSTANT * f64::from(gradient);
                }
            }
            for &entry in &self.line {
                total += N::product(entry, entry);
            }
        }
        total
    }
}

#[cfg(test)]
mod tests;
