//! Layer normalisation (Ba et al. 2016): each row to mean 0 and variance 1, then a gain and a bias for each column.

use pulp::Arch;

use crate::model::vectors::{dot, sum};

/// What is added to the variance, as in PyTorch.
pub(in crate::model) const EPSILON: f32 = 1e-5;

/// `y = gain * normal + bias` with `normal = (x - mean(x)) / sqrt(variance(x) + 1e-5)`, over a row of `width` entries.
#[derive(Clone, Debug)]
pub(in crate::model) struct LayerNorm {
    pub width: usize,
    /// Offset of the gain, `[width]`, in the flat parameters; the bias, `[width]`, follows it.
    pub offset: usize,
}

impl LayerNorm {
    /// Gain and bias.
    fn parameters<'a>(&self, parameters: &'a [f32]) -> (&'a [f32], &'a [f32]) {
        parameters[self.offset..][..2 * self.width].split_at(self.width)
    }

    /// `[rows, width]` to `normal` and `output`, both `[rows, width]`.
    pub fn forward(&self, parameters: &[f32], input: &[f32], normal: &mut [f32], output: &mut [f32]) {
        let (gain, bias) = self.parameters(parameters);
        let rows = normal.chunks_exact_mut(self.width).zip(output.chunks_exact_mut(self.width));
        let rows = input.chunks_exact(self.width).zip(rows);
        Arch::new().dispatch(
            // Consumes `rows`: a closure that can be called but once is inlined whole, and so vectorised.
            #[inline(always)]
            move || {
                for (input, (normal, output)) in rows {
                    let inverse = center(input, normal);
                    normal.iter_mut().for_each(|entry| *entry *= inverse);
                    let columns = output.iter_mut().zip(&*normal).zip(gain.iter().zip(bias));
                    columns.for_each(|((to, normal), (gain, bias))| *to = normal * gain + bias);
                }
            },
        );
    }

    /// Adds the gradient by the input, `[rows, width]`, from that by the output. `normal` is the forward's; `line` is
    /// any buffer.
    pub fn backward(
        &self,
        parameters: &[f32],
        [input, normal, output_gradients]: [&[f32]; 3],
        input_gradients: &mut [f32],
        line: &mut Vec<f32>,
    ) {
        let (gain, _) = self.parameters(parameters);
        let share = 1.0 / self.width as f32;
        line.resize(2 * self.width, 0.0);
        let (centered, line) = line.split_at_mut(self.width);
        let rows = input.chunks_exact(self.width).zip(normal.chunks_exact(self.width));
        let gradients = output_gradients.chunks_exact(self.width);
        let gradients = gradients.zip(input_gradients.chunks_exact_mut(self.width));
        let rows = rows.zip(gradients);
        Arch::new().dispatch(
            // Consumes `rows`, as above.
            #[inline(always)]
            move || {
                for ((input, normal), (from, to)) in rows {
                    let inverse = center(input, centered);
                    let columns = line.iter_mut().zip(from).zip(gain);
                    columns.for_each(|((line, from), gain)| *line = from * gain);
                    let (mean, slope) = (sum(line) * share, dot::<_, f32>(line, normal) * share);
                    for ((to, line), normal) in to.iter_mut().zip(&*line).zip(normal) {
                        *to += (line - mean - normal * slope) * inverse;
                    }
                }
            },
        );
    }
}

/// Writes a row less its mean; one over its standard deviation.
#[inline(always)]
fn center(row: &[f32], centered: &mut [f32]) -> f32 {
    let share = 1.0 / row.len() as f32;
    let mean = sum(row) * share;
    centered.iter_mut().zip(row).for_each(|(to, from)| *to = from - mean);
    1.0 / (dot::<_, f32>(centered, centered) * share + EPSILON).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalised_rows_have_mean_0_and_variance_1_and_a_constant_row_becomes_the_bias() {
        let layer = LayerNorm { width: 20, offset: 0 };
        let mut input: Vec<f32> = (0..40).map(|i| 3.0 + 5.0 * (i as f32).sin()).collect();
        input[20..].fill(7.0);
        let parameters: Vec<f32> = (0..40).map(|i| if i < 20 { 2.0 } else { 0.5 }).collect();
        let (mut normal, mut output) = (vec![0.0; 40], vec![0.0; 40]);
        layer.forward(&parameters, &input, &mut normal, &mut output);
        let moment = |power: i32| normal[..20].iter().map(|x| x.powi(power)).sum::<f32>() / 20.0;
        assert!(moment(1).abs() < 1e-6 && (moment(2) - 1.0).abs() < 1e-4);
        assert!(output[..20].iter().zip(&normal).all(|(y, x)| (y - 2.0 * x - 0.5).abs() < 1e-6));
        assert!(output[20..].iter().all(|y| (y - 0.5).abs() < 1e-4));
    }
}
