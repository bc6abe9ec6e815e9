//! Multi-head self-attention (Vaswani et al. 2017): each step of a sequence takes the values of its row's steps, weighed
//! by how well its query goes with their keys.
//!
//! The weights of one head of one row are computed anew in the backward (as in Dao et al. 2022, "FlashAttention"), so
//! memory is that of one sequence's weights, whatever the batch.

use super::elementwise::exp;
use crate::model::product::{Lines, Packing, View, write_product};
use crate::model::vectors::vectorised;

/// `softmax(q k^T / sqrt(width / heads)) v` for each head of each row, from a slot that holds `q`, `k` and `v` of
/// `width` columns each side by side; head `h` has the columns from `h * width / heads` on of each.
#[derive(Clone, Copy, Debug)]
pub(in crate::model) struct Attention {
    pub width: usize,
    /// Divides the width.
    pub heads: usize,
    /// Whether a step sees only itself and those before it.
    pub causal: bool,
}

/// What lines of weights are filled up to: ends of lines do not vectorise.
const LANES: usize = 16;

/// Buffers of [`Attention`], kept between batches.
#[derive(Clone, Debug, Default)]
pub(in crate::model) struct AttentionScratch {
    /// `[steps, steps]` of one head of one row, rows those of the keys, so that a query's are summed lane by lane; each row
    /// filled up to whole [`LANES`] with anything.
    weights: Vec<f32>,
    /// The derivative by the weights, then by the scores.
    slopes: Vec<f32>,
    packing: Packing<f32>,
}

impl Attention {
    /// Columns of a head.
    pub fn head_width(&self) -> usize {
        self.width / self.heads
    }

    /// What a query's product with a key is multiplied by.
    pub fn scale(&self) -> f32 {
        1.0 / (self.head_width() as f32).sqrt()
    }

    /// `[steps, 3 width]` to `[steps, width]`, whatever it held; row `r` has the steps `starts[r] .. starts[r + 1]`.
    pub fn forward(&self, starts: &[u32], input: &[f32], output: &mut [f32], scratch: &mut AttentionScratch) {
        let own = self.head_width();
        for (first, steps) in spans(starts) {
            for head in 0..self.heads {
                let [_, _, value] = self.views(input, first, head);
                self.weigh(input, first, steps, head, scratch);
                let AttentionScratch { weights, packing, .. } = scratch;
                let data = &mut output[first * self.width + head * own..];
                let out = Lines { data, stride: self.width, columns: own };
                let weights = View::transpose(weights, padded(steps));
                write_product([steps, steps, own], weights, value, out, packing);
            }
        }
    }

    /// Fills the gradient by the input, `[steps, 3 width]`, from that by the output, `[steps, width]`.
    pub fn backward(
        &self,
        starts: &[u32],
        input: &[f32],
        output_gradients: &[f32],
        input_gradients: &mut [f32],
        scratch: &mut AttentionScratch,
    ) {
        let (own, columns) = (self.head_width(), 3 * self.width);
        for (first, steps) in spans(starts) {
            let line = padded(steps);
            for head in 0..self.heads {
                let [query, key, value] = self.views(input, first, head);
                self.weigh(input, first, steps, head, scratch);
                let AttentionScratch { weights, slopes, packing } = scratch;
                let from = View::rows(&output_gradients[first * self.width + head * own..], self.width);
                let across = View { transposed: true, ..from };
                write_product([steps, own, steps], value, across, weight_lines(slopes, steps), packing);
                let mut fill = |which: usize, left: View<'_, f32>, right: View<'_, f32>| {
                    let data = &mut input_gradients[first * columns + which * self.width + head * own..];
                    let out = Lines { data, stride: columns, columns: own };
                    write_product([steps, steps, own], left, right, out, packing);
                };
                fill(2, View::rows(weights, line), from);
                self.differentiate_softmax(steps, weights, slopes);
                fill(0, View::transpose(slopes, line), key);
                fill(1, View::rows(slopes, line), query);
            }
        }
    }

    /// Query, key and value, `[steps, width / heads]`, of one head of the row whose steps begin at `first`.
    fn views<'a>(&self, input: &'a [f32], first: usize, head: usize) -> [View<'a, f32>; 3] {
        [0, 1, 2].map(|which| {
            let column = which * self.width + head * self.head_width();
            View::rows(&input[first * 3 * self.width + column..], 3 * self.width)
        })
    }

    /// Fills the weights of one head of one row.
    fn weigh(&self, input: &[f32], first: usize, steps: usize, head: usize, scratch: &mut AttentionScratch) {
        let AttentionScratch { weights, packing, .. } = scratch;
        let [query, key, _] = self.views(input, first, head);
        let across = View { transposed: true, ..query };
        let shape = [steps, self.head_width(), steps];
        write_product(shape, key, across, weight_lines(weights, steps), packing);
        let (scale, weights) = (self.scale(), weights.as_mut_slice());
        let unseen = |weights: &mut [f32], with: f32| {
            if self.causal {
                let lines = weights.chunks_exact_mut(padded(steps)).enumerate();
                lines.for_each(|(key, line)| line[..key].fill(with));
            }
        };
        unseen(weights, f32::NEG_INFINITY);
        vectorised(
            #[inline(always)]
            || {
                let across = padded(steps) / LANES;
                let lanes = weights.as_chunks_mut::<LANES>().0;
                for column in 0..across {
                    let mut largest = [f32::NEG_INFINITY; LANES];
                    for scores in lanes[column..].iter().step_by(across) {
                        for (largest, score) in largest.iter_mut().zip(scores) {
                            *largest = if *score > *largest { *score } else { *largest };
                        }
                    }
                    for scores in lanes[column..].iter_mut().step_by(across) {
                        let scores = scores.iter_mut().zip(largest);
                        scores.for_each(|(score, largest)| *score = (*score - largest) * scale);
                    }
                }
                weights.iter_mut().for_each(|score| *score = exp(*score));
                let lanes = weights.as_chunks_mut::<LANES>().0;
                for column in 0..across {
                    // What is not seen changes no bit: the largest adds 1.
                    let mut sums = [0.0; LANES];
                    for weights in lanes[column..].iter().step_by(across) {
                        sums.iter_mut().zip(weights).for_each(|(sum, weight)| *sum += weight);
                    }
                    let shares = sums.map(|sum| 1.0 / sum);
                    for weights in lanes[column..].iter_mut().step_by(across) {
                        weights.iter_mut().zip(shares).for_each(|(weight, share)| *weight *= share);
                    }
                }
            },
        );
        unseen(weights, 0.0);
    }

    /// From the derivative by the weights, in place, to that by the products of queries and keys.
    fn differentiate_softmax(&self, steps: usize, weights: &[f32], slopes: &mut [f32]) {
        let scale = self.scale();
        let (weights, slopes) = (weights.as_chunks::<LANES>().0, slopes.as_chunks_mut::<LANES>().0);
        let across = padded(steps) / LANES;
        vectorised(
            #[inline(always)]
            || {
                for column in 0..across {
                    let mut means = [0.0; LANES];
                    let lines = weights[column..].iter().zip(&slopes[column..]).step_by(across);
                    for (weights, slopes) in lines {
                        for ((mean, weight), slope) in means.iter_mut().zip(weights).zip(slopes) {
                            *mean += weight * slope;
                        }
                    }
                    let lines = weights[column..].iter().zip(&mut slopes[column..]).step_by(across);
                    for (weights, slopes) in lines {
                        for ((slope, weight), mean) in slopes.iter_mut().zip(weights).zip(means) {
                            *slope = weight * (*slope - mean) * scale;
                        }
                    }
                }
            },
        );
    }
}

/// Where each sequence that is not empty begins, and its steps.
fn spans(starts: &[u32]) -> impl Iterator<Item = (usize, usize)> {
    let spans = starts.windows(2).map(|span| (span[0] as usize, (span[1] - span[0]) as usize));
    spans.filter(|&(_, steps)| steps > 0)
}

/// Entries of a line of so many weights.
fn padded(steps: usize) -> usize {
    steps.next_multiple_of(LANES)
}

/// A line of weights for each step, whatever they hold.
fn weight_lines(weights: &mut Vec<f32>, steps: usize) -> Lines<'_, f32> {
    let line = padded(steps);
    weights.resize(steps * line, 0.0);
    Lines { data: weights, stride: line, columns: line }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYER: Attention = Attention { width: 6, heads: 2, causal: false };

    fn entries(steps: usize) -> Vec<f32> {
        (0..steps * 18).map(|i| (i as f32 * 0.7).sin()).collect()
    }

    fn attended(layer: Attention, starts: &[u32], input: &[f32]) -> Vec<f32> {
        let mut output = vec![0.0; input.len() / 3];
        layer.forward(starts, input, &mut output, &mut AttentionScratch::default());
        output
    }

    #[test]
    fn a_causal_step_sees_none_after_it() {
        let layer = Attention { causal: true, ..LAYER };
        let mut input = entries(5);
        let before = attended(layer, &[0, 5], &input);
        input[3 * 18..].fill(9.0);
        assert_eq!(attended(layer, &[0, 5], &input)[..18], before[..18]);
        assert_ne!(attended(LAYER, &[0, 5], &input)[..18], attended(LAYER, &[0, 5], &entries(5))[..18]);
        // The first sees its own value alone.
        assert_eq!(before[..6], input[12..18]);
    }

    #[test]
    fn steps_with_one_value_keep_it_however_they_are_weighed() {
        let mut input = entries(40);
        input.chunks_exact_mut(18).for_each(|step| step[12..].fill(0.75));
        assert!(attended(LAYER, &[0, 40], &input).iter().all(|entry| (entry - 0.75).abs() < 1e-6));
    }

    #[test]
    fn rows_see_their_own_steps_alone_and_empty_ones_change_nothing() {
        let input = entries(7);
        let together = attended(LAYER, &[0, 0, 3, 3, 7, 7], &input);
        assert_eq!(together[..18], attended(LAYER, &[0, 3], &input[..54]));
        assert_eq!(together[18..], attended(LAYER, &[0, 4], &input[54..]));
    }

    #[test]
    fn scores_past_the_range_of_exp_give_the_whole_weight_to_the_largest() {
        let mut input = entries(3);
        input.chunks_exact_mut(18).for_each(|step| step[..12].fill(0.0));
        input[..6].fill(1e3);
        input[18 + 6..18 + 12].fill(1e3);
        let output = attended(LAYER, &[0, 3], &input);
        assert!(output[..6].iter().zip(&input[18 + 12..]).all(|(a, b)| (a - b).abs() < 1e-6));
    }
}
