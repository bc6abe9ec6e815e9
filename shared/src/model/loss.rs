//! The losses, one for each [`Target`], each from a row's outputs and its label.
//!
//! Binary cross-entropy from a logit; multi-class cross-entropy from logits; the Poisson deviance from the logarithm
//! of a rate; half the squared error; and to rank the cross-entropy of the right item among itself and
//! sampled negatives.

use crate::schema::Target;

/// Largest logarithm of a rate that a count's loss tells from larger ones: keeps `exp` finite.
const MAX_LOG_RATE: f32 = 30.0;

/// Derivative of "sum over customers of the mean over the customer's rows of the loss" by the outputs.
///
/// `outputs` is `[rows, outputs of the target]`, with `candidates` rows for each row if it ranks; `gradients` has the
/// same shape and is overwritten; customer `i` owns the rows `customer_starts[i] .. customer_starts[i + 1]`.
pub(super) fn differentiate(
    target: Target,
    width: usize,
    outputs: &[f32],
    labels: &[f32],
    customer_starts: &[u32],
    gradients: &mut [f32],
) {
    let mut rows = outputs.chunks_exact(width).zip(gradients.chunks_exact_mut(width)).zip(labels);
    for span in customer_starts.windows(2) {
        let count = (span[1] - span[0]) as usize;
        let share = 1.0 / count as f32;
        for ((outputs, gradients), &label) in rows.by_ref().take(count) {
            row_gradient(target, outputs, label, gradients);
            gradients.iter_mut().for_each(|gradient| *gradient *= share);
        }
    }
}

fn row_gradient(target: Target, outputs: &[f32], label: f32, gradients: &mut [f32]) {
    match target {
        Target::Binary => gradients[0] = sigmoid(outputs[0]) - label,
        Target::Count => gradients[0] = outputs[0].min(MAX_LOG_RATE).exp() - label,
        Target::Number => gradients[0] = outputs[0] - label,
        Target::Classes(_) => {
            softmax(outputs, gradients);
            gradients[label as usize] -= 1.0;
        }
        // The right item is the first candidate.
        Target::Item(_) => {
            softmax(outputs, gradients);
            gradients[0] -= 1.0;
        }
    }
}

/// The loss of one row in nats, or in units of the label squared; for [`Target::Item`] of a row's candidates, the right
/// one first.
///
/// # Panics
/// If a class is not among the outputs.
pub fn loss(target: Target, outputs: &[f32], label: f32) -> f32 {
    let cross_entropy = |right: usize| {
        let largest = outputs.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total: f32 = outputs.iter().map(|output| (output - largest).exp()).sum();
        total.ln() + largest - outputs[right]
    };
    match target {
        Target::Binary => binary_cross_entropy(outputs[0], label),
        Target::Count => outputs[0].min(MAX_LOG_RATE).exp() - label * outputs[0],
        Target::Number => (outputs[0] - label).powi(2) / 2.0,
        Target::Classes(_) => cross_entropy(label as usize),
        Target::Item(_) => cross_entropy(0),
    }
}

/// The prediction of one row, in place of its outputs: a probability, the classes' probabilities, a rate, a number; items
/// keep their scores.
pub fn predict(target: Target, outputs: &mut [f32]) {
    match target {
        Target::Binary => outputs[0] = sigmoid(outputs[0]),
        Target::Count => outputs[0] = outputs[0].min(MAX_LOG_RATE).exp(),
        Target::Classes(_) => {
            let logits = outputs.to_vec();
            softmax(&logits, outputs);
        }
        Target::Number | Target::Item(_) => {}
    }
}

/// The probabilities of logits, without overflow.
pub(super) fn softmax(logits: &[f32], probabilities: &mut [f32]) {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut total = 0.0;
    for (probability, logit) in probabilities.iter_mut().zip(logits) {
        *probability = (logit - largest).exp();
        total += *probability;
    }
    probabilities.iter_mut().for_each(|probability| *probability /= total);
}

/// `1 / (1 + exp(-logit))` without overflow.
pub(super) fn sigmoid(logit: f32) -> f32 {
    let small = (-logit.abs()).exp();
    if logit >= 0.0 { 1.0 / (1.0 + small) } else { small / (1.0 + small) }
}

/// The loss of one row from its logit, in nats: `max(z, 0) - z y + ln(1 + exp(-|z|))`, which does not overflow.
pub fn binary_cross_entropy(logit: f32, label: f32) -> f32 {
    logit.max(0.0) - logit * label + (-logit.abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_losses_do_not_overflow_at_extreme_outputs() {
        assert_eq!(binary_cross_entropy(200.0, 1.0), 0.0);
        assert_eq!(binary_cross_entropy(-200.0, 1.0), 200.0);
        assert!((binary_cross_entropy(0.0, 1.0) - std::f32::consts::LN_2).abs() < 1e-7);
        assert_eq!(loss(Target::Classes(3), &[500.0, 0.0, -500.0], 0.0), 0.0);
        assert_eq!(loss(Target::Classes(3), &[500.0, 0.0, -500.0], 2.0), 1000.0);
        assert!(loss(Target::Count, &[1e30], 3.0).is_finite());
    }

    #[test]
    fn each_gradient_is_the_slope_of_its_loss() {
        let cases: [(Target, &[f32], f32); 6] = [
            (Target::Binary, &[0.3], 1.0),
            (Target::Binary, &[-2.0], 0.0),
            (Target::Count, &[0.7], 3.0),
            (Target::Number, &[0.2], -0.6),
            (Target::Classes(3), &[0.1, -0.4, 1.2], 1.0),
            (Target::Item(9), &[0.5, -0.3, 0.9, 0.0], 7.0),
        ];
        for (target, outputs, label) in cases {
            let mut gradients = vec![0.0; outputs.len()];
            differentiate(target, outputs.len(), outputs, &[label], &[0, 1], &mut gradients);
            for (at, &gradient) in gradients.iter().enumerate() {
                let moved = |by: f32| {
                    let mut outputs = outputs.to_vec();
                    outputs[at] += by;
                    loss(target, &outputs, label)
                };
                let slope = (moved(1e-2) - moved(-1e-2)) / 2e-2;
                assert!((slope - gradient).abs() < 2e-3, "{target:?}: {slope} for {gradient}");
            }
        }
    }

    #[test]
    fn a_customers_rows_share_its_weight() {
        let mut gradients = vec![0.0; 3];
        differentiate(Target::Number, 1, &[1.0; 3], &[0.0; 3], &[0, 2, 3], &mut gradients);
        assert_eq!(gradients, [0.5, 0.5, 1.0]);
    }
}
