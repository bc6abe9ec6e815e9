//! Dropout (Srivastava et al. 2014): while a model learns, entries are zeroed at random and the others scaled up.
//!
//! Which entries is the caller's draw, so a row's mask depends on its own bytes alone.

use pulp::Arch;

/// Zeroes an entry if its byte is below `dropped`, and divides the others by the probability of staying.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::model) struct Dropout {
    dropped: u8,
}

impl Dropout {
    /// With probability `rate`, from 0 to below 1, rounded to the next 256th but below 1.
    pub fn new(rate: f64) -> Self {
        Self { dropped: (rate * 256.0).round().min(255.0) as u8 }
    }

    /// What an entry with byte `draw` is multiplied by: 0 or 1 / (1 - rate).
    #[inline(always)]
    pub fn factor(self, draw: u8) -> f32 {
        if draw < self.dropped { 0.0 } else { 256.0 / (256.0 - f32::from(self.dropped)) }
    }

    /// `to[i] += from[i] * factor(draws[i])`.
    pub fn add(self, from: &[f32], draws: &[u8], to: &mut [f32]) {
        let entries = to.iter_mut().zip(from).zip(draws);
        Arch::new().dispatch(
            // Consumes `entries`: a closure that can be called but once is inlined whole, and so vectorised.
            #[inline(always)]
            move || entries.for_each(|((to, &from), &draw)| *to += from * self.factor(draw)),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_keep_their_mean_over_all_draws() {
        for rate in [0.1, 0.2, 0.5, 0.9] {
            let layer = Dropout::new(rate);
            let draws: Vec<u8> = (0..=255).collect();
            let mut out = vec![0.0; 256];
            layer.add(&[3.0; 256], &draws, &mut out);
            let mean = out.iter().sum::<f32>() / 256.0;
            assert!((mean - 3.0).abs() < 1e-4, "{rate}: {mean}");
            let dropped = out.iter().filter(|&&entry| entry == 0.0).count();
            assert_eq!(dropped, (rate * 256.0).round() as usize);
        }
    }
}
