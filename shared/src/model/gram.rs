//! Gram matrices of a few rows: in f32 with a bound of their error, or in f64, exact for integers.

use pulp::{Arch, Simd, WithSimd};

use super::product::Element;

/// f32, whose Gram matrices are near, or f64, whose are exact for integers.
pub(crate) trait GramElement: Element + From<f32> {
    /// `matrix` if it is of this type.
    fn as_it_is(matrix: &[f32]) -> Option<&[Self]>;
}

impl GramElement for f32 {
    #[inline(always)]
    fn as_it_is(matrix: &[f32]) -> Option<&[f32]> {
        Some(matrix)
    }
}

impl GramElement for f64 {
    #[inline(always)]
    fn as_it_is(_: &[f32]) -> Option<&[f64]> {
        None
    }
}

/// A bound `e`: what [`push_gram`] pushes in f32 for rows `r` and `s` of `width` entries is within `e |r| |s|` of their
/// dot product, where nothing overflows and no entry is below 2^-60 but zero.
///
/// A chain of `k` sums of products errs by at most `k u / (1 - k u)` times the sum of their magnitudes, `u = 2^-24`
/// (Higham 2002, "Accuracy and stability of numerical algorithms", section 3.1), which is at most `|r| |s|` (Cauchy and
/// Schwarz). One chain a lane, then the lanes: with one lane, the longest, it has `width` sums.
pub(crate) fn gram_error(width: usize) -> f64 {
    struct Chain {
        width: usize,
    }
    impl WithSimd for Chain {
        type Output = usize;
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> usize {
            let lanes = size_of::<S::f32s>() / size_of::<f32>();
            // Lanes are summed one by one at worst; the product and the constant are one rounding each.
            self.width.div_ceil(lanes) + lanes + 2
        }
    }
    let chain = Arch::new().dispatch(Chain { width }) as f64 * 2f64.powi(-24);
    chain / (1.0 - chain)
}

/// Pushes `row r . row s + constant` of a `[rows, width]` matrix for all `r <= s`, by rising `r` and then `s`. `padded` is
/// a buffer. In f32 within [`gram_error`]; in f64 exact for integers whose absolute products sum below 2^53.
pub(crate) fn push_gram<T: GramElement>(
    matrix: &[f32],
    width: usize,
    constant: f64,
    gram: &mut Vec<f64>,
    padded: &mut Vec<T>,
) {
    Arch::new().dispatch(PushGram { matrix, width, constant, gram, padded });
}

struct PushGram<'a, T> {
    matrix: &'a [f32],
    width: usize,
    constant: f64,
    gram: &'a mut Vec<f64>,
    padded: &'a mut Vec<T>,
}

impl<T: GramElement> WithSimd for PushGram<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { matrix, width, constant, gram, padded } = self;
        let rows = matrix.len() / width;
        // Whole vectors a row, the last filled up with zeros.
        let stride = width.next_multiple_of(size_of::<T::Vector<S>>() / size_of::<T>());
        let lines = match T::as_it_is(matrix) {
            Some(matrix) if stride == width => matrix,
            _ => {
                padded.clear();
                padded.resize(rows * stride, T::default());
                for (to, from) in padded.chunks_exact_mut(stride).zip(matrix.chunks_exact(width)) {
                    to.iter_mut().zip(from).for_each(|(to, &from)| *to = from.into());
                }
                padded.as_slice()
            }
        };
        let first = gram.len();
        gram.resize(first + rows * (rows + 1) / 2, constant);
        let gram = &mut gram[first..];
        let rows = Rows { matrix: lines, stride, rows };
        if S::REGISTER_COUNT >= 32 {
            rows.multiply::<S, 4>(simd, gram);
        } else {
            rows.multiply::<S, 3>(simd, gram);
        }
    }
}

/// Rows of whole vectors.
struct Rows<'a, T> {
    matrix: &'a [T],
    stride: usize,
    rows: usize,
}

impl<T: GramElement> Rows<'_, T> {
    /// Adds the products of all pairs, in tiles of `TILE` rows by as many.
    #[inline(always)]
    fn multiply<S: Simd, const TILE: usize>(&self, simd: S, gram: &mut [f64]) {
        let rows = self.rows;
        for first_row in (0..rows).step_by(TILE) {
            let left = self.lines::<S, TILE>(first_row);
            for first_column in (first_row..rows).step_by(TILE) {
                let right = self.lines::<S, TILE>(first_column);
                let sums = tile::<T, S, TILE>(simd, left, right);
                for (i, sums) in sums.iter().enumerate().take(rows - first_row) {
                    let row = first_row + i;
                    // The pairs of all rows before.
                    let of_row = &mut gram[row * (2 * rows - row + 1) / 2..][..rows - row];
                    // On the diagonal a pair comes twice.
                    let known = row.saturating_sub(first_column);
                    let slots = of_row[first_column + known - row..].iter_mut();
                    slots
                        .zip(&sums[known..])
                        .for_each(|(slot, sum)| *slot += T::reduce_sum(simd, *sum).into());
                }
            }
        }
    }

    /// Some rows as vectors; past the last, the last again.
    #[inline(always)]
    fn lines<S: Simd, const TILE: usize>(&self, first: usize) -> [&[T::Vector<S>]; TILE] {
        let mut lines = [[].as_slice(); TILE];
        for (i, line) in lines.iter_mut().enumerate() {
            let row = (first + i).min(self.rows - 1);
            *line = T::vectors::<S>(&self.matrix[row * self.stride..][..self.stride]);
        }
        lines
    }
}

#[inline(always)]
fn tile<T: GramElement, S: Simd, const TILE: usize>(
    simd: S,
    left: [&[T::Vector<S>]; TILE],
    right: [&[T::Vector<S>]; TILE],
) -> [[T::Vector<S>; TILE]; TILE] {
    let mut sums = [[T::splat(simd, T::default()); TILE]; TILE];
    let vectors = left[0].len();
    // All of one length, so that none is looked at inside the loop.
    let (left, right) = (left.map(|line| &line[..vectors]), right.map(|line| &line[..vectors]));
    for at in 0..vectors {
        for (sums, left) in sums.iter_mut().zip(&left) {
            for (sum, right) in sums.iter_mut().zip(&right) {
                *sum = T::multiply_add(simd, left[at], right[at], *sum);
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gram_matrices_of_integers_are_exact_in_f64_and_within_the_bound_in_f32_for_every_shape() {
        let (mut gram, mut padded, mut near) = (vec![7.0], Vec::<f64>::new(), Vec::new());
        for [rows, width] in [[1, 1], [2, 9], [3, 8], [4, 16], [7, 5], [30, 33]] {
            let matrix: Vec<f32> =
                (0..rows * width).map(|i| ((i * 2_654_435_761) % 65_537) as f32 - 32_768.0).collect();
            gram.truncate(1);
            push_gram(&matrix, width, 0.5, &mut gram, &mut padded);
            near.clear();
            push_gram(&matrix, width, 0.5, &mut near, &mut Vec::<f32>::new());
            assert_eq!(near.len() + 1, gram.len());
            let (mut pairs, mut near) = (gram[1..].iter(), near.iter());
            let norm = |r: usize| {
                let row = &matrix[r * width..][..width];
                row.iter().map(|&entry| f64::from(entry).powi(2)).sum::<f64>().sqrt()
            };
            for r in 0..rows {
                for s in r..rows {
                    let product =
                        |k: usize| f64::from(matrix[r * width + k]) * f64::from(matrix[s * width + k]);
                    let expected = (0..width).map(product).sum::<f64>() + 0.5;
                    assert_eq!(pairs.next(), Some(&expected), "{rows} x {width}: {r} {s}");
                    let error = (near.next().unwrap() - expected).abs();
                    assert!(
                        error <= gram_error(width) * norm(r) * norm(s),
                        "{rows} x {width}: {r} {s}: {error}"
                    );
                }
            }
            assert_eq!(pairs.next(), None);
        }
    }
}
