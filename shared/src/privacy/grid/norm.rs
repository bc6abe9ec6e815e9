//! The norm of one customer's gradient from its factors, without the gradient: in floats with a bound of their error, for
//! the clip factor and for most checks, and in integers for the others. What is summed, and why nothing overflows, is in
//! [`grid`](super).

use super::whole::WholeTaps;
use super::{ACTIVATION_STEPS, gradients, values};
use crate::model::{GramElement, Slot, Tap, Workspace, dot, dot_error, gram_error, push_gram, vectorised};

/// Buffers for norms: dot products of one customer's factor rows, its ids sorted, and one line of its gradient.
#[derive(Clone, Default)]
pub(super) struct NormScratch {
    /// For each linear tap in Gram form, `a_r . a_s` (`+ 2^20` if biased) for `r <= s`, in the order of the loops.
    grams: Vec<f64>,
    /// `g_r . g_s` of the output slot last looked at, for `r <= s`.
    gradient_gram: Vec<f64>,
    /// For each embedding tap the customer's ids with the factor row each is of, counted from its first, sorted.
    sorted_ids: Vec<(u32, u32)>,
    /// What the Gram matrices of the norm last found in f64 may be off by.
    gram_error: f64,
    line: Vec<f64>,
    padded: Padded,
}

/// Rows filled up to whole vectors.
#[derive(Clone, Default)]
pub(super) struct Padded {
    near: Vec<f32>,
    exact: Vec<f64>,
}

/// What a squared norm is summed in: f64, within a bound, or i128, exact if the factors are integers.
pub(super) trait Total: Copy + std::ops::AddAssign {
    const ZERO: Self;
    /// What its Gram matrices are made in.
    type Gram: GramElement + std::ops::Mul<Output = Self::Gram>;
    fn padded(padded: &mut Padded) -> &mut Vec<Self::Gram>;
    /// The product of two factors, which are integers below 2^53 if `Self` is exact.
    fn product(a: f64, b: f64) -> Self;
}

impl Total for f64 {
    const ZERO: Self = 0.0;
    type Gram = f32;
    #[inline(always)]
    fn padded(padded: &mut Padded) -> &mut Vec<f32> {
        &mut padded.near
    }
    #[inline(always)]
    fn product(a: f64, b: f64) -> Self {
        a * b
    }
}

impl Total for i128 {
    const ZERO: Self = 0;
    type Gram = f64;
    #[inline(always)]
    fn padded(padded: &mut Padded) -> &mut Vec<f64> {
        &mut padded.exact
    }
    #[inline(always)]
    fn product(a: f64, b: f64) -> Self {
        i128::from(a as i64) * i128::from(b as i64)
    }
}

/// [`push_gram`], for the usual customer of one row without leaving the loops here.
#[inline(always)]
fn push_dots<N: Total>(
    matrix: &[f32],
    width: usize,
    constant: f64,
    gram: &mut Vec<f64>,
    padded: &mut Padded,
) {
    if matrix.len() == width {
        gram.push(dot::<_, N::Gram>(matrix, matrix).into() + constant);
    } else {
        push_gram::<N::Gram>(matrix, width, constant, gram, N::padded(padded));
    }
}

impl NormScratch {
    /// Prepares [`squared_norm`](Self::squared_norm) in `N`, which may be asked several times for one customer.
    #[inline(always)]
    pub(super) fn measure_inputs<N: Total>(
        &mut self,
        factors: &Workspace,
        customer: usize,
        whole: WholeTaps,
    ) {
        self.grams.clear();
        self.sorted_ids.clear();
        for tap in whole.others(factors.taps()) {
            match *tap {
                Tap::Linear { input, biased, .. } => {
                    let activations = values(factors, input, customer);
                    let bias = if biased { f64::from(ACTIVATION_STEPS * ACTIVATION_STEPS) } else { 0.0 };
                    let inputs = factors.width(input);
                    push_dots::<N>(activations, inputs, bias, &mut self.grams, &mut self.padded);
                }
                Tap::Embedding { ids, output, .. } => self.sort_ids(factors, ids, output, customer),
                Tap::Scale { .. } => {}
            }
        }
    }

    /// Not inlined, as [`embedding_norm`](Self::embedding_norm): within the vector loops of the linear layers it would
    /// slow them down.
    #[inline(never)]
    fn sort_ids(&mut self, factors: &Workspace, source: usize, output: Slot, customer: usize) {
        let first = self.sorted_ids.len();
        let starts = factors.starts(output);
        let own = &factors.ids(source)[starts[customer] as usize..starts[customer + 1] as usize];
        self.sorted_ids.extend(own.iter().copied().zip(0u32..));
        // No two are equal, so the order is one, whatever the algorithm.
        self.sorted_ids[first..].sort_unstable();
    }

    /// Squared norm of one customer's gradient, over all taps, from the integer activations, the ids and the output
    /// gradients.
    ///
    /// Exact in i128 if the output gradients are integers. In f64 within what [`uncertainty`](Self::uncertainty) says
    /// afterwards.
    #[inline(always)]
    pub(super) fn squared_norm<N: Total>(
        &mut self,
        factors: &Workspace,
        customer: usize,
        whole: WholeTaps,
    ) -> N {
        let mut total = N::ZERO;
        self.gram_error = 0.0;
        let (mut grams, mut ids) = (0, 0);
        let mut gram_of = None;
        for tap in whole.others(factors.taps()) {
            let output = tap.output();
            let width = factors.width(output);
            let gradients = gradients(factors, output, customer);
            let rows = gradients.len() / width;
            match *tap {
                Tap::Linear { input, .. } => {
                    if gram_of != Some(output) {
                        self.gradient_gram.clear();
                        push_dots::<N>(gradients, width, 0.0, &mut self.gradient_gram, &mut self.padded);
                        gram_of = Some(output);
                    }
                    let own = &self.grams[grams..grams + self.gradient_gram.len()];
                    grams += own.len();
                    total += gram_norm(own, &self.gradient_gram, rows);
                    let error = if rows > 1 { gram_error } else { dot_error };
                    let [a, g] = [error(factors.width(input)), error(width)];
                    self.gram_error += (a + g + a * g) * largest_norm(own, &self.gradient_gram, rows);
                }
                Tap::Embedding { .. } => {
                    total += self.embedding_norm(ids, width, gradients);
                    ids += rows;
                }
                Tap::Scale { input, .. } => {
                    let activations = values(factors, input, customer);
                    total += self.scale_norm(activations, gradients, width);
                }
            }
        }
        total
    }

    /// What the squared norm last found in f64, `total`, may be too small by, for integer factors.
    ///
    /// Of the Gram matrices see [`gram_error`] and [`dot_error`]; with `e` of the activations' and of the gradients' the sum
    /// of their products is within `(e + e' + e e') (sum over rows of |a_r| |g_r|)^2`. The norms therein are found with
    /// relative errors of at most `2^-8`, and the sum has at most `2^31` terms, in f64 within `2^-22` of their magnitudes:
    /// below an eighth of `e`, which is at least `2^-19`. All else are sums in f64 of at most `2^28` terms that are not
    /// negative.
    #[inline(always)]
    pub(super) fn uncertainty(&self, total: f64) -> f64 {
        total.abs() * 2f64.powi(-20) + 1.5 * self.gram_error
    }

    /// The squared norm in integers; what was measured of the inputs is again for f64 afterwards. Not inlined: hardly ever
    /// called.
    #[inline(never)]
    pub(super) fn exact_squared_norm(
        &mut self,
        factors: &Workspace,
        customer: usize,
        whole: WholeTaps,
    ) -> i128 {
        self.measure_inputs::<i128>(factors, customer, whole);
        let squared = self.squared_norm(factors, customer, whole);
        self.measure_inputs::<f64>(factors, customer, whole);
        squared
    }

    /// Squared norm of the gradient of a gain and its bias.
    #[inline(never)]
    fn scale_norm<N: Total>(&mut self, activations: &[f32], gradients: &[f32], width: usize) -> N {
        self.line.clear();
        self.line.resize(2 * width, 0.0);
        let (gains, biases) = self.line.split_at_mut(width);
        vectorised(
            #[inline(always)]
            || {
                let rows = activations.chunks_exact(width).zip(gradients.chunks_exact(width));
                for (activations, gradients) in rows {
                    for ((gain, &activation), &gradient) in gains.iter_mut().zip(activations).zip(gradients) {
                        *gain += f64::from(activation) * f64::from(gradient);
                    }
                    for (bias, &gradient) in biases.iter_mut().zip(gradients) {
                        *bias += f64::from(ACTIVATION_STEPS) * f64::from(gradient);
                    }
                }
            },
        );
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
        let Self { sorted_ids, line, .. } = self;
        let mut total = N::ZERO;
        vectorised(
            #[inline(always)]
            || {
                for same_id in sorted_ids[first..first + rows].chunk_by(|one, next| one.0 == next.0) {
                    if let [(_, row)] = same_id {
                        total += N::product(CONSTANT * CONSTANT, dot(of_row(*row), of_row(*row)));
                        continue;
                    }
                    line.clear();
                    line.resize(dim, 0.0);
                    for &(_, row) in same_id {
                        for (slot, &gradient) in line.iter_mut().zip(of_row(row)) {
                            *slot += CONSTANT * f64::from(gradient);
                        }
                    }
                    for &entry in &*line {
                        total += N::product(entry, entry);
                    }
                }
            },
        );
        total
    }
}

/// `(sum over rows r of |a_r| |g_r|)^2`, from the products for `r <= s`: what the sum below is at most, whatever the signs.
#[inline(always)]
fn largest_norm(activations: &[f64], gradients: &[f64], rows: usize) -> f64 {
    let (mut total, mut diagonal) = (0.0, 0);
    for pairs in (1..=rows).rev() {
        total += (activations[diagonal] * gradients[diagonal]).sqrt();
        diagonal += pairs;
    }
    total * total
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
