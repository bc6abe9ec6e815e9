//! Each step of a sequence with its neighbours side by side: the input of a convolution along the sequence as a linear
//! layer.

/// Windows of `kernel` steps, an odd number, around each step; zeros past the ends of the sequence.
///
/// Entry `c * kernel + k` of a window is entry `c` of the step `k - kernel / 2` away, so that the linear layer's weight
/// `[outputs, inputs * kernel]` is that of PyTorch's `Conv1d`, `[outputs, inputs, kernel]`, with `padding="same"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::model) struct Unfold {
    pub kernel: usize,
}

impl Unfold {
    /// `[steps, width]` to `[steps, width * kernel]`, zeros before; row `r` has the steps `starts[r] .. starts[r + 1]`.
    pub fn forward(self, starts: &[u32], width: usize, input: &[f32], output: &mut [f32]) {
        for (step, place, neighbour) in self.pairs(starts) {
            let window = &mut output[step * width * self.kernel..][..width * self.kernel];
            let from = &input[neighbour * width..][..width];
            window[place..].iter_mut().step_by(self.kernel).zip(from).for_each(|(to, from)| *to = *from);
        }
    }

    /// Adds to `[steps, width]` the gradient by the steps, from that by the windows.
    pub fn backward(
        self,
        starts: &[u32],
        width: usize,
        output_gradients: &[f32],
        input_gradients: &mut [f32],
    ) {
        for (step, place, neighbour) in self.pairs(starts) {
            let window = &output_gradients[step * width * self.kernel..][..width * self.kernel];
            let to = &mut input_gradients[neighbour * width..][..width];
            to.iter_mut().zip(window[place..].iter().step_by(self.kernel)).for_each(|(to, from)| *to += from);
        }
    }

    /// Each step, place in its window, and the step that is there, in this order.
    fn pairs(self, starts: &[u32]) -> impl Iterator<Item = (usize, usize, usize)> {
        let half = self.kernel / 2;
        starts.windows(2).map(|span| span[0] as usize..span[1] as usize).flat_map(move |span| {
            span.clone().flat_map(move |step| {
                let (start, end) = (span.start, span.end);
                let places = (start + half).saturating_sub(step)..self.kernel.min(end + half - step);
                places.map(move |place| (step, place, step + place - half))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_stay_within_their_sequence() {
        let mut out = [0.0; 24];
        // Sequences of three steps, none and one; entries of two, kernel 3.
        let input = [1.0, 10.0, 2.0, 20.0, 3.0, 30.0, 4.0, 40.0];
        Unfold { kernel: 3 }.forward(&[0, 3, 3, 4], 2, &input, &mut out);
        let expected = [
            [0.0, 1.0, 2.0, 0.0, 10.0, 20.0],
            [1.0, 2.0, 3.0, 10.0, 20.0, 30.0],
            [2.0, 3.0, 0.0, 20.0, 30.0, 0.0],
            [0.0, 4.0, 0.0, 0.0, 40.0, 0.0],
        ];
        assert_eq!(out, expected.as_flattened());
    }
}
