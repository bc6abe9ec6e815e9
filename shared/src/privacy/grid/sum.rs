//! The exact sum of the integer gradients of a batch, tap by tap: integer factors enter, i64 entries grow.
//!
//! The factors of a linear tap are multiplied as matrices of floats, a block of rows at a time. Every partial sum is an integer; as long as its
//! magnitude is within what the float type has exactly, no sum is rounded, and the order does not matter. f64 has all
//! integers up to 2^53, and [`BLOCK_ROWS`] rows of the largest factors stay below it. f32 has those up to 2^24: with
//! `a` the largest activation of the batch, so many rows of a block are summed in f32 that no output's
//! `a (sum over rows of |g_r|)` passes 2^24, which bounds every partial sum of its products. Twice as fast, and the factors of real gradients are
//! mostly small: `g` is one part of a gradient whose norm is held. Where fewer than [`FEWEST_ROWS`] rows would fit, f64
//! it is. Which of them is a matter of speed alone; the sum is the same integers.

use std::ops::Range;

use super::narrow::NARROW_LIMIT;
use super::whole::WholeTaps;
use super::{ACTIVATION_STEPS, FACTOR_LIMIT};
use crate::model::{
    DEPTH_BLOCK, INTEGER_LIMIT, Packing, Tap, Workspace, add_outer_products, add_rows, add_weighted_rows,
    integer, largest_magnitude, vectorised,
};

/// Most rows whose sums in f64 go to the i64 sum together.
const BLOCK_ROWS: usize = 1 << 20;
/// Rows whose products are worth a sum in f32 of their own.
const FEWEST_ROWS: usize = 16;

const _: () = assert!(BLOCK_ROWS as f64 * FACTOR_LIMIT as f64 * FACTOR_LIMIT as f64 <= INTEGER_LIMIT);

/// Buffers for sums of products.
#[derive(Clone, Default)]
pub(super) struct SumScratch {
    narrow: Packing<f32>,
    wide: Packing<f64>,
    /// Sums of one line.
    line: Vec<f64>,
    /// For each output, the magnitudes of its gradients so far.
    magnitudes: Vec<f32>,
}

/// So many zeros.
fn zeros(line: &mut Vec<f64>, entries: usize) -> &mut [f64] {
    line.clear();
    line.resize(entries, 0.0);
    line
}

impl SumScratch {
    /// The exact integer products of all taps, whose factors are integers, added to `sum`; but of the customers' gradients that
    /// are made whole, by their `forms`, which are in it already.
    ///
    /// # Panics
    /// If the taps do not fill `sum`: a parameter that is in none would leave without its norm counted.
    pub(super) fn add_taps(&mut self, factors: &Workspace, forms: &[WholeTaps], sum: &mut [i64]) {
        let mut rest = sum;
        let mut next =
            |entries: usize| rest.split_off_mut(..entries).expect("no more entries than the sum's");
        let mut linear = 0;
        for tap in factors.taps() {
            let width = factors.width(tap.output());
            let gradients = factors.gradients(tap.output());
            match *tap {
                Tap::Linear { input, biased, .. } => {
                    let inputs = factors.width(input);
                    let (weight, bias) = (next(width * inputs), next(if biased { width } else { 0 }));
                    let (activations, starts) = (factors.values(input), factors.starts(tap.output()));
                    for rows in rows_of_factors(forms, linear, starts) {
                        let gradients = &gradients[rows.start * width..rows.end * width];
                        let activations = &activations[rows.start * inputs..rows.end * inputs];
                        self.add_products([width, inputs], gradients, activations, weight);
                        self.add_biases(gradients, bias);
                    }
                    linear += 1;
                }
                Tap::Embedding { ids, vocabulary, .. } => {
                    add_embeddings(factors.ids(ids), gradients, next(vocabulary * width), width);
                }
                Tap::Scale { input, .. } => {
                    let (weight, bias) = (next(width), next(width));
                    let activations = factors.values(input).chunks(BLOCK_ROWS * width);
                    for (activations, gradients) in activations.zip(gradients.chunks(BLOCK_ROWS * width)) {
                        let products = zeros(&mut self.line, width);
                        add_scaled_rows(gradients, activations, products);
                        add_integers(products, weight);
                    }
                    self.add_biases(gradients, bias);
                }
            }
        }
        assert!(rest.is_empty(), "{} parameters in no tap", rest.len());
    }

    /// Adds to `weight`, `[outputs, inputs]`, the sum of the rows' outer products.
    fn add_products(
        &mut self,
        shape @ [outputs, inputs]: [usize; 2],
        mut gradients: &[f32],
        mut activations: &[f32],
        weight: &mut [i64],
    ) {
        if outputs == 1 {
            let blocks = gradients.chunks(BLOCK_ROWS).zip(activations.chunks(BLOCK_ROWS * inputs));
            for (gradients, activations) in blocks {
                let sums = zeros(&mut self.line, inputs);
                add_weighted_rows(gradients, activations, sums);
                add_integers(sums, weight);
            }
            return;
        }
        let largest = largest_magnitude(activations).max(1.0);
        while !gradients.is_empty() {
            let block = DEPTH_BLOCK.min(gradients.len() / outputs);
            let narrow = self.rows_within(&gradients[..block * outputs], outputs, NARROW_LIMIT / largest);
            let in_narrow = narrow >= FEWEST_ROWS.min(block);
            let rows = if in_narrow { narrow } else { block };
            let (now, later) = gradients.split_at(rows * outputs);
            let (inputs_now, inputs_later) = activations.split_at(rows * inputs);
            if in_narrow {
                add_outer_products(shape, now, inputs_now, weight, &mut self.narrow);
            } else {
                add_outer_products(shape, now, inputs_now, weight, &mut self.wide);
            }
            (gradients, activations) = (later, inputs_later);
        }
    }

    /// How many of the first rows of `gradients`, `[rows, outputs]`, have in no column magnitudes that sum to `limit`, which
    /// is at most 2^24.
    fn rows_within(&mut self, gradients: &[f32], outputs: usize, limit: f32) -> usize {
        let Self { magnitudes, .. } = self;
        magnitudes.clear();
        magnitudes.resize(outputs, 0.0);
        let magnitudes = magnitudes.as_mut_slice();
        vectorised(
            #[inline(always)]
            || {
                let within = |row: &&[f32]| {
                    // Bits of floats that are not negative are in the order of the floats. A sum that is rounded has
                    // reached 2^24.
                    let mut largest = 0;
                    for (magnitude, entry) in magnitudes.iter_mut().zip(*row) {
                        *magnitude += entry.abs();
                        largest = magnitude.to_bits().max(largest);
                    }
                    f32::from_bits(largest) < limit
                };
                gradients.chunks_exact(outputs).take_while(within).count()
            },
        )
    }

    /// Adds to `bias` the sum of the gradients' rows times the constant activation; nothing if there is no bias.
    fn add_biases(&mut self, gradients: &[f32], bias: &mut [i64]) {
        if !bias.is_empty() {
            for gradients in gradients.chunks(BLOCK_ROWS * bias.len()) {
                let sums = zeros(&mut self.line, bias.len());
                add_rows(gradients, sums);
                sums.iter_mut().for_each(|entry| *entry *= f64::from(ACTIVATION_STEPS));
                add_integers(sums, bias);
            }
        }
    }
}

/// The rows, from first to past the last, of customers next to each other whose gradients at a linear tap are not made
/// whole; customer `i` has the rows `starts[i] .. starts[i + 1]`.
fn rows_of_factors(forms: &[WholeTaps], linear: usize, starts: &[u32]) -> impl Iterator<Item = Range<usize>> {
    let runs = forms.chunk_by(move |one, next| one.has(linear) == next.has(linear));
    let mut customer = 0;
    runs.filter_map(move |run| {
        let first = starts[customer] as usize;
        customer += run.len();
        (!run[0].has(linear)).then(|| first..starts[customer] as usize)
    })
}

/// Adds to a table, `[vocabulary, width]`, the rows of gradients, each times the constant activation, at their ids.
fn add_embeddings(ids: &[u32], gradients: &[f32], table: &mut [i64], width: usize) {
    for (&id, gradients) in ids.iter().zip(gradients.chunks_exact(width)) {
        let vector = &mut table[id as usize * width..][..width];
        vectorised(
            #[inline(always)]
            || {
                for (slot, &entry) in vector.iter_mut().zip(gradients) {
                    *slot += integer(f64::from(entry) * f64::from(ACTIVATION_STEPS));
                }
            },
        );
    }
}

/// Adds `a_r g_r`, entry by entry, to `products` for all rows.
fn add_scaled_rows(gradients: &[f32], activations: &[f32], products: &mut [f64]) {
    let width = products.len();
    vectorised(
        #[inline(always)]
        || {
            for (a, g) in activations.chunks_exact(width).zip(gradients.chunks_exact(width)) {
                for ((slot, &a), &g) in products.iter_mut().zip(a).zip(g) {
                    *slot += f64::from(a) * f64::from(g);
                }
            }
        },
    );
}

/// Adds integer-valued floats of magnitude at most 2^51 to integers.
fn add_integers<T: Copy + Into<f64>>(values: &[T], sum: &mut [i64]) {
    vectorised(
        #[inline(always)]
        || sum.iter_mut().zip(values).for_each(|(sum, &value)| *sum += integer(value.into())),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Factors of up to `a` and `g`, and their sum by plain loops in integers.
    fn exact([rows, outputs, inputs]: [usize; 3], a: f32, g: f32) -> (Vec<f32>, Vec<f32>, Vec<i64>) {
        let entry = |i: usize, limit: f32| {
            (((i * 2_654_435_761) % 65_537) as f32 / 32_768.0 - 1.0).mul_add(limit, 0.0).round()
        };
        let mut activations: Vec<f32> = (0..rows * inputs).map(|i| entry(i, a)).collect();
        let mut gradients: Vec<f32> = (0..rows * outputs).map(|i| entry(i + 5, g)).collect();
        // The largest of all, in every row of one entry, all of one sign.
        (0..rows).for_each(|row| (activations[row * inputs], gradients[row * outputs]) = (a, -g));
        let mut sum = vec![3i64; outputs * inputs];
        for row in 0..rows {
            for (at, sum) in sum.iter_mut().enumerate() {
                let [o, i] = [at / inputs, at % inputs];
                *sum += gradients[row * outputs + o] as i64 * activations[row * inputs + i] as i64;
            }
        }
        (activations, gradients, sum)
    }

    #[test]
    fn sums_are_exact_however_large_the_factors_and_in_whichever_float_they_are_made() {
        let mut scratch = SumScratch::default();
        for shape @ [_, outputs, inputs] in [[1, 1, 1], [300, 2, 5], [1000, 33, 7], [70, 9, 40], [500, 1, 8]]
        {
            for (a, g) in [
                (1024.0, 16.0),
                (1024.0, 1024.0),
                (32_768.0, 32_768.0),
                (32_768.0, 1.0),
                (1.0, 32_768.0),
                (0.0, 7.0),
            ] {
                let (activations, gradients, expected) = exact(shape, a, g);
                let mut sum = vec![3; expected.len()];
                scratch.add_products([outputs, inputs], &gradients, &activations, &mut sum);
                assert_eq!(sum, expected, "{shape:?}, factors up to {a} and {g}");
            }
        }
    }

    #[test]
    fn as_many_rows_are_summed_in_f32_as_it_has_exactly() {
        let mut scratch = SumScratch::default();
        let rows = |count: usize| [2.0, -512.0].repeat(count);
        // 512 * 32767 is below 2^24, 512 * 32768 is it.
        assert_eq!(scratch.rows_within(&rows(40_000), 2, NARROW_LIMIT), 32_767);
        assert_eq!(scratch.rows_within(&rows(40_000), 2, NARROW_LIMIT / 1024.0), 31);
        assert_eq!(scratch.rows_within(&rows(10), 2, NARROW_LIMIT / 1024.0), 10);
        assert_eq!(scratch.rows_within(&[1.0, NARROW_LIMIT], 1, NARROW_LIMIT), 1);
    }
}
