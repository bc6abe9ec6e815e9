//! One row for each sequence of steps.

/// Which row a sequence becomes; zeros if it has no step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::model) enum Pooling {
    /// Its last step.
    Last,
    /// The mean of its steps.
    Mean,
}

impl Pooling {
    /// `[steps, width]` to `[rows, width]`, zeros before; row `r` has the steps `starts[r] .. starts[r + 1]`.
    pub fn forward(self, starts: &[u32], width: usize, input: &[f32], output: &mut [f32]) {
        for (span, to) in starts.windows(2).zip(output.chunks_exact_mut(width)) {
            let steps = &input[span[0] as usize * width..span[1] as usize * width];
            for (step, weight) in self.weighted(steps, width) {
                to.iter_mut().zip(step).for_each(|(to, from)| *to += from * weight);
            }
        }
    }

    /// Adds to `[steps, width]` the gradient by the steps, from that by the rows.
    pub fn backward(
        self,
        starts: &[u32],
        width: usize,
        output_gradients: &[f32],
        input_gradients: &mut [f32],
    ) {
        for (span, from) in starts.windows(2).zip(output_gradients.chunks_exact(width)) {
            let steps = &mut input_gradients[span[0] as usize * width..span[1] as usize * width];
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
            Self::Mean => (0, 1.0 / steps as f32),
        }
    }

    fn weighted(self, steps: &[f32], width: usize) -> impl Iterator<Item = (&[f32], f32)> {
        let (first, weight) = self.range(steps.len() / width);
        steps.chunks_exact(width).skip(first).map(move |step| (step, weight))
    }
}
