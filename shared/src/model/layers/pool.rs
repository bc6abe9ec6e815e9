//! One row for each sequence of steps.

/// Which row a sequence becomes; zeros if it has no step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::model) enum Pooling {
    /// Its last step.
    Last,
    /// The mean of its steps.
    Mean,
    /// Of each entry the largest of its steps, of several as large the first.
    Max,
}

impl Pooling {
    /// `[steps, width]` to `[rows, width]`, zeros before; row `r` has the steps `starts[r] .. starts[r + 1]`.
    pub fn forward(self, starts: &[u32], width: usize, input: &[f32], output: &mut [f32]) {
        for (span, to) in starts.windows(2).zip(output.chunks_exact_mut(width)) {
            let steps = &input[span[0] as usize * width..span[1] as usize * width];
            if self == Self::Max {
                let mut steps = steps.chunks_exact(width);
                steps.next().into_iter().for_each(|first| to.copy_from_slice(first));
                for step in steps {
                    to.iter_mut().zip(step).for_each(|(to, &from)| *to = if from > *to { from } else { *to });
                }
                continue;
            }
            for (step, weight) in self.weighted(steps, width) {
                to.iter_mut().zip(step).for_each(|(to, from)| *to += from * weight);
            }
        }
    }

    /// Adds to `[steps, width]` the gradient by the steps, from that by the rows and the steps' values, `input`.
    pub fn backward(
        self,
        starts: &[u32],
        width: usize,
        input: &[f32],
        output_gradients: &[f32],
        input_gradients: &mut [f32],
    ) {
        for (span, from) in starts.windows(2).zip(output_gradients.chunks_exact(width)) {
            let entries = span[0] as usize * width..span[1] as usize * width;
            let (input, steps) = (&input[entries.clone()], &mut input_gradients[entries]);
            if self == Self::Max {
                if !steps.is_empty() {
                    from.iter().enumerate().for_each(|(at, from)| steps[largest(input, width, at)] += from);
                }
                continue;
            }
            let (first, weight) = self.range(steps.len() / width);
            for step in steps.chunks_exact_mut(width).skip(first) {
                step.iter_mut().zip(from).for_each(|(to, from)| *to += from * weight);
            }
        }
    }

    /// The first step that counts of so many, and the weight of each from there on.
    fn range(self, steps: usize) -> (usize, f32) {
        match self {
            Self::Last => (steps.saturating_sub(1), 1.0),
            Self::Mean | Self::Max => (0, 1.0 / steps as f32),
        }
    }

    fn weighted(self, steps: &[f32], width: usize) -> impl Iterator<Item = (&[f32], f32)> {
        let (first, weight) = self.range(steps.len() / width);
        steps.chunks_exact(width).skip(first).map(move |step| (step, weight))
    }
}

/// Where the first largest entry of column `at` of `[steps, width]` lies.
fn largest(steps: &[f32], width: usize, at: usize) -> usize {
    let places = (at..steps.len()).step_by(width);
    places.reduce(|best, place| if steps[place] > steps[best] { place } else { best }).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_entries_are_taken_and_the_first_of_equals_has_the_gradient() {
        let (starts, steps) = ([0, 3, 3], [1.0, -5.0, 2.0, -4.0, 2.0, -6.0]);
        let mut pooled = [0.0; 4];
        Pooling::Max.forward(&starts, 2, &steps, &mut pooled);
        assert_eq!(pooled, [2.0, -4.0, 0.0, 0.0]);
        let mut gradients = [0.0; 6];
        Pooling::Max.backward(&starts, 2, &steps, &[1.0, 3.0, 5.0, 7.0], &mut gradients);
        assert_eq!(gradients, [0.0, 0.0, 1.0, 3.0, 0.0, 0.0]);
    }
}
