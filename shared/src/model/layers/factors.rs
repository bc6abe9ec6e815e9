//! A customer's factors for matrix factorisation, found anew from its history wherever they are needed: they are never
//! stored and never leave (Singhal et al. 2021, "Federated Reconstruction: Partially Local Federated Learning"). A
//! customer seen for the first time is like any other; one without history has factors of zero.
//!
//! With the factors `v_i` and biases `b_i` of the items of the history and what the customer thought of them, `t_i` (1
//! where the history holds no ratings and a bias counts as 0), they are the ridge regression
//! `argmin_u sum_i (t_i - b_i - u . v_i)^2 + ridge |u|^2`.

use super::Embedding;

/// See this module's header.
#[derive(Clone, Debug)]
pub(in crate::model) struct Factors {
    /// The items' factors, `[items, dim]`.
    pub items: Embedding,
    /// The items' biases, `[items, 1]`.
    pub biases: Embedding,
    /// Above 0.
    pub ridge: f64,
}

impl Factors {
    /// Row `r` has the items `ids[starts[r] .. starts[r + 1]]`, rated with as many `ratings`, or all with 1 if there are
    /// none; `output` is `[rows, dim]`.
    ///
    /// In f64 by Cholesky's decomposition, of the items' Gram matrix if they are fewer than the factors, else of
    /// the factors'. Overflow gives NaN, which the caller refuses or clips to nothing.
    pub fn forward(
        &self,
        parameters: &[f32],
        starts: &[u32],
        ids: &[u32],
        ratings: Option<&[f32]>,
        output: &mut [f32],
    ) {
        let dim = self.items.dim;
        let (items, biases) = (self.items.table(parameters), self.biases.table(parameters));
        let (mut matrix, mut right) = (Vec::new(), Vec::new());
        for (span, factors) in starts.windows(2).zip(output.chunks_exact_mut(dim)) {
            let span = span[0] as usize..span[1] as usize;
            let ids = &ids[span.clone()];
            let vector = |id: u32| &items[id as usize * dim..][..dim];
            let wanted = |at: usize| match ratings {
                Some(ratings) => f64::from(ratings[span.start + at]) - f64::from(biases[ids[at] as usize]),
                None => 1.0,
            };
            let size = ids.len().min(dim);
            matrix.clear();
            matrix.resize(size * size, 0.0);
            right.clear();
            if ids.len() <= dim {
                // (V V^T + ridge) x = t, u = V^T x.
                for row in 0..size {
                    for column in 0..=row {
                        let pairs = vector(ids[row]).iter().zip(vector(ids[column]));
                        let product: f64 = pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                        matrix[row * size + column] = product + if row == column { self.ridge } else { 0.0 };
                    }
                }
                right.extend((0..size).map(wanted));
                solve(&mut matrix, &mut right);
                for (&id, weight) in ids.iter().zip(&right) {
                    for (factor, entry) in factors.iter_mut().zip(vector(id)) {
                        *factor += (weight * f64::from(*entry)) as f32;
                    }
                }
            } else {
                // (V^T V + ridge) u = V^T t.
                right.resize(size, 0.0);
                for (at, &id) in ids.iter().enumerate() {
                    let (vector, wanted) = (vector(id), wanted(at));
                    for row in 0..size {
                        let entry = f64::from(vector[row]);
                        right[row] += wanted * entry;
                        for column in 0..=row {
                            matrix[row * size + column] += entry * f64::from(vector[column]);
                        }
                    }
                }
                (0..size).for_each(|row| matrix[row * size + row] += self.ridge);
                solve(&mut matrix, &mut right);
                factors.iter_mut().zip(&right).for_each(|(factor, entry)| *factor = *entry as f32);
            }
        }
    }
}

/// Solves `matrix x = right` in place, the matrix symmetric and positive definite, of which the lower half is read.
fn solve(matrix: &mut [f64], right: &mut [f64]) {
    let size = right.len();
    for row in 0..size {
        for column in 0..=row {
            let of = |line: usize| line * size..line * size + column;
            let known: f64 = matrix[of(row)].iter().zip(&matrix[of(column)]).map(|(a, b)| a * b).sum();
            let rest = matrix[row * size + column] - known;
            matrix[row * size + column] =
                if row == column { rest.sqrt() } else { rest / matrix[column * size + column] };
        }
    }
    for row in 0..size {
        let known: f64 = matrix[row * size..].iter().zip(&right[..row]).map(|(a, b)| a * b).sum();
        right[row] = (right[row] - known) / matrix[row * size + row];
    }
    for row in (0..size).rev() {
        let known: f64 = (row + 1..size).map(|below| matrix[below * size + row] * right[below]).sum();
        right[row] = (right[row] - known) / matrix[row * size + row];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The slope of the regression's loss by each factor is zero, with fewer items than factors and with more.
    #[test]
    fn the_factors_are_those_of_the_ridge_regression() {
        let dim = 4;
        let items = Embedding { vocabulary: 9, dim, offset: 0 };
        let biases = Embedding { vocabulary: 9, dim: 1, offset: 36 };
        let layer = Factors { items, biases, ridge: 0.3 };
        let parameters: Vec<f32> = (0..45).map(|at| (at as f32 * 1.7).sin()).collect();
        let (ids, starts) = ([3, 8, 0, 1, 2, 4, 5, 5, 7], [0, 2, 2, 9]);
        let ratings: Vec<f32> = (0..9).map(|at| (at as f32).cos()).collect();
        for ratings in [None, Some(ratings.as_slice())] {
            let mut factors = vec![0.0; 3 * dim];
            layer.forward(&parameters, &starts, &ids, ratings, &mut factors);
            assert_eq!(factors[dim..2 * dim], [0.0; 4], "no history");
            for (row, span) in [(0, 0..2), (2, 2..9)] {
                let factors = &factors[row * dim..][..dim];
                for entry in 0..dim {
                    let mut slope = 0.3 * factors[entry];
                    for at in span.clone() {
                        let vector = &parameters[ids[at] as usize * dim..][..dim];
                        let wanted = ratings.map_or(1.0, |r| r[at] - parameters[36 + ids[at] as usize]);
                        let dot: f32 = vector.iter().zip(factors).map(|(v, u)| v * u).sum();
                        slope -= (wanted - dot) * vector[entry];
                    }
                    assert!(slope.abs() < 1e-5, "{slope}");
                }
            }
        }
    }
}
