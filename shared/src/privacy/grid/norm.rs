//! The norm of one customer's gradient from its factors, without the gradient: in floats for the clip factor, in integers
//! for the check. What is summed, and why nothing overflows, is in [`grid`](super).

use super::{ACTIVATION_STEPS, IntegerFactors, entries, part};
use crate::model::{Slot, Tap, Workspace, dot, push_gram};

/// Buffers for norms: dot products of one customer's factor rows, its ids sorted, and one line of its gradient.
#[derive(Clone, Default)]
pub(super) struct NormScratch {
    /// For each linear tap in Gram form, `a_r . a_s` (`+ 2^20` if biased) for `r <= s`, in the order of the loops.
    grams: Vec<f64>,
    /// `g_r . g_s` of the output slot last looked at, for `r <= s`.
    gradient_gram: Vec<f64>,
    /// For each embedding tap the customer's ids with the factor row each is of, counted from its first, sorted.
    sorted_ids: Vec<(u32, u32)>,
    line: Vec<f64>,
    padded: Vec<f64>,
}

/// What a squared norm is summed in: f64 for the clip factor, i128 for the check.
pub(super) trait Total: Copy + std::ops::AddAssign {
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
pub(super) fn gram_is_cheaper(rows: usize, inputs: usize, outputs: usize) -> bool {
    rows * (rows + 1) / 2 * (inputs + outputs) <= (rows + 4) * inputs * outputs
}

/// [`push_gram`], for the usual customer of one row without leaving the loops here.
#[inline(always)]
fn push_dots(matrix: &[f32], width: usize, constant: f64, gram: &mut Vec<f64>, padded: &mut Vec<f64>) {
    if matrix.len() == width {
        gram.push(dot::<_, f64>(matrix, matrix) + constant);
    } else {
        push_gram(matrix, width, constant, gram, padded);
    }
}

impl NormScratch {
    /// Prepares [`squared_norm`](Self::squared_norm), which may be asked several times for one customer.
    #[inline(always)]
    pub(super) fn measure_inputs(&mut self, floats: &Workspace, integers: &IntegerFactors, customer: usize) {
        self.grams.clear();
        self.sorted_ids.clear();
        for tap in floats.taps() {
            match *tap {
                Tap::Linear { input, output, biased } => {
                    let (inputs, outputs) = (floats.width(input), floats.width(output));
                    let activations =
                        part(&integers.activations[input.index()], entries(floats, input, customer));
                    if gram_is_cheaper(activations.len() / inputs, inputs, outputs) {
                        let bias = if biased { f64::from(ACTIVATION_STEPS * ACTIVATION_STEPS) } else { 0.0 };
                        push_dots(activations, inputs, bias, &mut self.grams, &mut self.padded);
                    }
                }
                Tap::Embedding { ids, output, .. } => self.sort_ids(floats, ids, output, customer),
                Tap::Scale { .. } => {}
            }
        }
    }

    /// Not inlined, as [`embedding_norm`](Self::embedding_norm): within the vector loops of the linear layers it would
    /// slow them down.
    #[inline(never)]
    fn sort_ids(&mut self, floats: &Workspace, source: usize, output: Slot, customer: usize) {
        let first = self.sorted_ids.len();
        let starts = floats.starts(output);
        let own = &floats.ids(source)[starts[customer] as usize..starts[customer + 1] as usize];
        self.sorted_ids.extend(own.iter().copied().zip(0u32..));
        // No two are equal, so the order is one, whatever the algorithm.
        self.sorted_ids[first..].sort_unstable();
    }

    /// Squared norm of one customer's gradient, over all taps, from the integer activations and the ids, and the output
    /// gradients, `[factor rows, width]`, that `gradients` has of each slot.
    ///
    /// Exact in i128 if the output gradients are integers; else as good as f64 sums are.
    #[inline(always)]
    pub(super) fn squared_norm<'a, N: Total>(
        &mut self,
        floats: &Workspace,
        integers: &IntegerFactors,
        customer: usize,
        gradients: impl Fn(Slot) -> &'a [f32],
    ) -> N {
        let mut total = N::ZERO;
        let (mut grams, mut ids) = (0, 0);
        let mut gram_of = None;
        for tap in floats.taps() {
            let output = tap.output();
            let width = floats.width(output);
            let gradients = part(gradients(output), entries(floats, output, customer));
            let rows = gradients.len() / width;
            match *tap {
                Tap::Linear { input, biased, .. } => {
                    let inputs = floats.width(input);
                    if gram_is_cheaper(rows, inputs, width) {
                        if gram_of != Some(output) {
                            self.gradient_gram.clear();
                            push_dots(gradients, width, 0.0, &mut self.gradient_gram, &mut self.padded);
                            gram_of = Some(output);
                        }
                        let own = &self.grams[grams..grams + self.gradient_gram.len()];
                        grams += own.len();
                        total += gram_norm(own, &self.gradient_gram, rows);
                    } else {
                        let activations =
                            part(&integers.activations[input.index()], entries(floats, input, customer));
                        let constant = if biased { f64::from(ACTIVATION_STEPS) } else { 0.0 };
                        total += self.direct_norm(activations, gradients, [inputs, width], constant);
                    }
                }
                Tap::Embedding { .. } => {
                    total += self.embedding_norm(ids, width, gradients);
                    ids += rows;
                }
                Tap::Scale { input, .. } => {
                    let activations =
                        part(&integers.activations[input.index()], entries(floats, input, customer));
                    total += self.scale_norm(activations, gradients, width);
                }
            }
        }
        total
    }

    /// Squared norm of a linear layer's gradient from the gradient itself, line by line.
    #[inline(always)]
    fn direct_norm<N: Total>(
        &mut self,
        activations: &[f32],
        gradients: &[f32],
        [inputs, outputs]: [usize; 2],
        constant: f64,
    ) -> N {
        let mut total = N::ZERO;
        for output in 0..outputs {
            self.line.clear();
            self.line.resize(inputs, 0.0);
            let mut bias = 0.0;
            let column = gradients.get(output..).unwrap_or_default().iter().step_by(outputs);
            for (&gradient, activations) in column.zip(activations.chunks_exact(inputs)) {
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
        total
    }

    /// Squared norm of the gradient of a gain and its bias.
    #[inline(never)]
    fn scale_norm<N: Total>(&mut self, activations: &[f32], gradients: &[f32], width: usize) -> N {
        self.line.clear();
        self.line.resize(2 * width, 0.0);
        let (gains, biases) = self.line.split_at_mut(width);
        for (activations, gradients) in activations.chunks_exact(width).zip(gradients.chunks_exact(width)) {
            for (at, (&activation, &gradient)) in activations.iter().zip(gradients).enumerate() {
                gains[at] += f64::from(activation) * f64::from(gradient);
                biases[at] += f64::from(ACTIVATION_STEPS) * f64::from(gradient);
            }
        }
        let mut total = N::ZERO;
        for &entry in &self.line {
            total += N::product(entry, entry);
        }
        total
    }

    /// Squared norm of one customer's gradient of the embedding table whose sorted ids begin at `first`, from the output
    /// gradients of its factor rows, `[rows, dim]`.
    #[inline(never)]
    fn embedding_norm<N: Total>(&mut self, first: usize, dim: usize, gradients: &[f32]) -> N {
        const CONSTANT: f64 = ACTIVATION_STEPS as f64;
        let rows = gradients.len() / dim;
        let of_row = |row: u32| &gradients[row as usize * dim..][..dim];
        let mut total = N::ZERO;
        for same_id in self.sorted_ids[first..first + rows].chunk_by(|one, next| one.0 == next.0) {
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

/// `sum over rows r, s of (a_r . a_s)(g_r . g_s)`, from the products for `r <= s`.
#[inline(always)]
fn gram_norm<N: Total>(activations: &[f64], gradients: &[f64], rows: usize) -> N {
    let mut total = N::ZERO;
    let mut first = 0;
    for pairs in (1..=rows).rev() {
        let of_row = first..first + pairs;
        for (s, (&a, &g)) in activations[of_row.clone()].iter().zip(&gradients[of_row]).enumerate() {
            let term = N::product(a, g);
            total += term;
            if s > 0 {
                total += term;
            }
        }
        first += pairs;
    }
    total
}
