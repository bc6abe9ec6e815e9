//! From a noised gradient to the next parameters: what a site's local steps and the plan's simulation share.
//!
//! Everything here is post-processing: it sees parameters that are public or were made of noised sums, and
//! gradients that are noised already. The state of a rule lives for one round and is never stored: a round
//! starts anew from the global model at every site, with whoever takes part, so state of an earlier round would be
//! of other parameters, and a site that was away or killed would train by another rule than the rest. State
//! over rounds is kept in one place, at the coordinator: [`ServerState`](super::ServerState).

use serde::{Deserialize, Serialize};

use super::vectors::{all_finite, vectorised};

/// How a noised gradient `g` moves the parameters `w`, at step size `rate`. In all rules, the proximal term
/// `mu (w - w_global)` (FedProx: Li et al. 2020, "Federated optimization in heterogeneous networks") is added to
/// `g` first.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Optimizer {
    /// `v <- momentum v + g + weight_decay w`, then `w <- w - rate v` (Polyak 1964; in the form of Sutskever et al.
    /// 2013 that libraries use).
    Sgd {
        /// What is kept of the step before: 0 for none.
        momentum: f64,
        /// L2 penalty.
        weight_decay: f64,
    },
    /// Adam (Kingma and Ba 2015), the penalty `weight_decay w` a part of the gradient.
    Adam {
        /// Decay of the gradients' running mean.
        beta1: f64,
        /// Decay of their squares' running mean.
        beta2: f64,
        /// Added to the root of the second.
        epsilon: f64,
        /// L2 penalty.
        weight_decay: f64,
    },
    /// Adam with the weights' decay apart from the gradient: `w <- w - rate weight_decay w` (Loshchilov and
    /// Hutter 2019).
    #[serde(rename = "adamw")]
    AdamW {
        /// Decay of the gradients' running mean.
        beta1: f64,
        /// Decay of their squares' running mean.
        beta2: f64,
        /// Added to the root of the second.
        epsilon: f64,
        /// Share of the weights that a step of size 1 takes away.
        weight_decay: f64,
    },
}

/// How the step size changes over all local steps of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Not at all.
    #[default]
    Constant,
    /// Half a cosine wave from 1 down to 0 (Loshchilov and Hutter 2017, without restarts).
    Cosine,
    /// A line from 1 down to 0.
    Linear,
}

impl Schedule {
    /// What the step size of step `step` (from 0) of `steps` is multiplied by. The first `warmup` steps rise in a line:
    /// `1/warmup, 2/warmup, .. 1`; the step after them has 1 as well, and 0 would be reached at `step = steps`, so no
    /// paid step is wasted.
    pub fn factor(self, step: u32, steps: u32, warmup: u32) -> f64 {
        if step < warmup {
            return f64::from(step + 1) / f64::from(warmup);
        }
        let progress = f64::from(step - warmup) / f64::from(steps.saturating_sub(warmup).max(1));
        match self {
            Self::Constant => 1.0,
            Self::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            Self::Linear => 1.0 - progress,
        }
    }
}

/// A rule and its state on the way through one round's local steps: at most two f32 a parameter.
#[derive(Debug, Clone)]
pub struct LocalOptimizer {
    rule: Optimizer,
    proximal: f64,
    steps: i32,
    first: Vec<f32>,
    second: Vec<f32>,
}

impl LocalOptimizer {
    /// At the start of a round on `parameters` parameters; `proximal` is FedProx's mu.
    pub fn start(rule: Optimizer, proximal: f64, parameters: usize) -> Self {
        let (first, second) = match rule {
            Optimizer::Sgd { momentum: 0.0, .. } => (0, 0),
            Optimizer::Sgd { .. } => (parameters, 0),
            Optimizer::Adam { .. } | Optimizer::AdamW { .. } => (parameters, parameters),
        };
        Self { rule, proximal, steps: 0, first: vec![0.0; first], second: vec![0.0; second] }
    }

    /// One step of size `rate` from `parameters`, on the way from `global`, along `gradient`, integers and their unit: all
    /// of one length. Computed in f64.
    pub fn step(&mut self, parameters: &mut [f32], global: &[f32], gradient: (&[i64], f64), rate: f64) {
        self.steps = self.steps.saturating_add(1);
        vectorised(
            #[inline(always)]
            || self.advance(parameters, global, gradient, rate),
        );
    }

    #[inline(always)]
    fn advance(&mut self, parameters: &mut [f32], global: &[f32], gradient: (&[i64], f64), rate: f64) {
        let proximal = self.proximal;
        let (gradient, unit) = gradient;
        let places = parameters.iter_mut().zip(global).zip(gradient);
        let places = places.map(|((parameter, global), gradient)| {
            let gradient = *gradient as f64 * unit;
            let weight = f64::from(*parameter);
            (parameter, weight, gradient + proximal * (weight - f64::from(*global)))
        });
        match self.rule {
            // By itself: it needs neither the global model nor what is multiplied by zero.
            Optimizer::Sgd { momentum: 0.0, weight_decay: 0.0 } if proximal == 0.0 => {
                for (parameter, gradient) in parameters.iter_mut().zip(gradient) {
                    *parameter = (f64::from(*parameter) - rate * (*gradient as f64 * unit)) as f32;
                }
            }
            Optimizer::Sgd { momentum: 0.0, weight_decay } => {
                for (parameter, weight, slope) in places {
                    *parameter = (weight - rate * (slope + weight_decay * weight)) as f32;
                }
            }
            Optimizer::Sgd { momentum, weight_decay } => {
                for ((parameter, weight, slope), velocity) in places.zip(&mut self.first) {
                    let moved = momentum * f64::from(*velocity) + slope + weight_decay * weight;
                    *velocity = moved as f32;
                    *parameter = (weight - rate * moved) as f32;
                }
            }
            Optimizer::Adam { beta1, beta2, epsilon, weight_decay } => {
                let penalised = places
                    .map(|(parameter, weight, slope)| (parameter, weight, slope + weight_decay * weight));
                adapt(
                    penalised,
                    &mut self.first,
                    &mut self.second,
                    [beta1, beta2, epsilon],
                    rate,
                    self.steps,
                );
            }
            Optimizer::AdamW { beta1, beta2, epsilon, weight_decay } => {
                let kept = 1.0 - rate * weight_decay;
                let decayed = places.map(|(parameter, weight, slope)| (parameter, kept * weight, slope));
                adapt(decayed, &mut self.first, &mut self.second, [beta1, beta2, epsilon], rate, self.steps);
            }
        }
    }

    /// Whether its state is made of numbers: a square that overflowed would only stand still.
    pub fn is_finite(&self) -> bool {
        all_finite(&self.first) && all_finite(&self.second)
    }
}

/// Adam's step number `steps` (from 1) from each weight along its slope, with the bias of the zero start corrected.
#[inline(always)]
fn adapt<'a>(
    places: impl Iterator<Item = (&'a mut f32, f64, f64)>,
    means: &mut [f32],
    squares: &mut [f32],
    [beta1, beta2, epsilon]: [f64; 3],
    rate: f64,
    steps: i32,
) {
    let (first, second) = (1.0 - beta1.powi(steps), 1.0 - beta2.powi(steps));
    for (((parameter, weight, slope), mean), square) in places.zip(means).zip(squares) {
        let new_mean = beta1 * f64::from(*mean) + (1.0 - beta1) * slope;
        let new_square = beta2 * f64::from(*square) + (1.0 - beta2) * slope * slope;
        (*mean, *square) = (new_mean as f32, new_square as f32);
        let change = rate * (new_mean / first) / ((new_square / second).sqrt() + epsilon);
        *parameter = (weight - change) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GLOBAL: [f32; 3] = [0.5, -1.0, 2.0];
    /// Of a gradient's integers.
    const UNIT: f64 = 1.0 / (1u64 << 40) as f64;

    /// A fixed sequence of gradients.
    fn gradient(step: usize) -> [f64; 3] {
        let at = step as f64;
        [(0.7 * at).sin() + 0.3, -0.01 * (1.3 * at).cos(), 5.0 / (1.0 + at)]
    }

    fn run(rule: Optimizer, proximal: f64, steps: usize) -> Vec<f64> {
        let mut weights = GLOBAL;
        let mut optimizer = LocalOptimizer::start(rule, proximal, 3);
        for step in 0..steps {
            let integers = gradient(step).map(|slope| (slope * UNIT.recip()).round() as i64);
            optimizer.step(&mut weights, &GLOBAL, (&integers, UNIT), 0.05);
            assert!(optimizer.is_finite());
        }
        weights.map(f64::from).to_vec()
    }

    /// Where one weight comes to by `update(step, weight, gradient) -> weight`, in f64 throughout.
    fn reference(at: usize, steps: usize, mut update: impl FnMut(i32, f64, f64) -> f64) -> f64 {
        (0..steps)
            .fold(f64::from(GLOBAL[at]), |weight, step| update(step as i32 + 1, weight, gradient(step)[at]))
    }

    fn assert_close(got: &[f64], expected: impl Fn(usize) -> f64) {
        for (at, got) in got.iter().enumerate() {
            let expected = expected(at);
            assert!((got - expected).abs() < 2e-6, "{at}: {got} against {expected}");
        }
    }

    #[test]
    fn sgd_momentum_and_penalty_follow_their_update_rules() {
        for weight_decay in [0.0, 0.1] {
            let plain = run(Optimizer::Sgd { momentum: 0.0, weight_decay }, 0.0, 20);
            assert_close(&plain, |at| reference(at, 20, |_, w, g| w - 0.05 * (g + weight_decay * w)));
        }
        let with = |weight_decay| run(Optimizer::Sgd { momentum: 0.0, weight_decay }, 0.0, 20);
        assert_eq!(with(0.0), with(f64::from_bits(1)), "by itself and with a penalty too small to matter");
        let heavy = run(Optimizer::Sgd { momentum: 0.9, weight_decay: 0.1 }, 0.0, 20);
        assert_close(&heavy, |at| {
            let mut velocity = 0.0;
            reference(at, 20, |_, w, g| {
                velocity = 0.9 * velocity + (g + 0.1 * w);
                w - 0.05 * velocity
            })
        });
    }

    /// Algorithm 1 of Kingma and Ba 2015; algorithm 2 of Loshchilov and Hutter 2019 for the decay.
    fn adam_reference(at: usize, l2: f64, decoupled: f64) -> f64 {
        let (mut m, mut v) = (0.0, 0.0);
        reference(at, 20, |t, w, g| {
            let g = g + l2 * w;
            m = 0.8 * m + 0.2 * g;
            v = 0.95 * v + 0.05 * g * g;
            let (m_hat, v_hat) = (m / (1.0 - 0.8f64.powi(t)), v / (1.0 - 0.95f64.powi(t)));
            w - 0.05 * (m_hat / (v_hat.sqrt() + 1e-6) + decoupled * w)
        })
    }

    #[test]
    fn adam_and_adamw_follow_their_update_rules() {
        let (beta1, beta2, epsilon) = (0.8, 0.95, 1e-6);
        let adam = run(Optimizer::Adam { beta1, beta2, epsilon, weight_decay: 0.2 }, 0.0, 20);
        assert_close(&adam, |at| adam_reference(at, 0.2, 0.0));
        let decoupled = run(Optimizer::AdamW { beta1, beta2, epsilon, weight_decay: 0.2 }, 0.0, 20);
        assert_close(&decoupled, |at| adam_reference(at, 0.0, 0.2));
        assert!((adam[2] - decoupled[2]).abs() > 1e-3, "the two decay differently");
    }

    #[test]
    fn the_proximal_term_pulls_towards_the_global_model() {
        let rule = Optimizer::Sgd { momentum: 0.0, weight_decay: 0.0 };
        let distance = |mu: f64| {
            let weights = run(rule, mu, 20);
            weights.iter().zip(GLOBAL).map(|(w, g)| (w - f64::from(g)).powi(2)).sum::<f64>().sqrt()
        };
        assert!(distance(0.0) > 1.2 * distance(1.0) && distance(1.0) > 2.0 * distance(10.0));
        assert_close(&run(rule, 1.0, 20), |at| {
            reference(at, 20, |_, w, g| w - 0.05 * (g + (w - f64::from(GLOBAL[at]))))
        });
    }

    #[test]
    fn schedules_have_their_values_at_the_ends_and_in_the_middle() {
        let factors = |schedule: Schedule, warmup| [0, 1, 5, 9].map(|step| schedule.factor(step, 10, warmup));
        let close = |got: [f64; 4], expected: [f64; 4]| {
            assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{got:?}");
        };
        close(factors(Schedule::Constant, 0), [1.0; 4]);
        close(factors(Schedule::Linear, 0), [1.0, 0.9, 0.5, 0.1]);
        let last = 0.5 * (1.0 + (0.9 * std::f64::consts::PI).cos());
        let second = 0.5 * (1.0 + (0.1 * std::f64::consts::PI).cos());
        close(factors(Schedule::Cosine, 0), [1.0, second, 0.5, last]);
        // Four steps of warm-up, six on the way down.
        close(factors(Schedule::Linear, 4), [0.25, 0.5, 5.0 / 6.0, 1.0 / 6.0]);
        close(factors(Schedule::Constant, 4), [0.25, 0.5, 1.0, 1.0]);
        assert_eq!(Schedule::Cosine.factor(3, 10, 4), 1.0);
        assert_eq!(Schedule::Cosine.factor(4, 10, 4), 1.0);
        assert_eq!(Schedule::Linear.factor(0, 1, 0), 1.0);
    }
}
