//! From a round's mean update to the next global model: what the coordinator and the plan's simulation share.
//!
//! The mean of noised updates is the "pseudo-gradient" of Reddi et al. 2021 ("Adaptive federated optimization",
//! algorithm 2). All state over rounds is here; the coordinator stores it with each round.

use serde::{Deserialize, Serialize};

/// How the mean update `d` of a round moves the global model `w`. Numbers follow the cited papers: no
/// correction of the start's bias.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ServerOptimizer {
    /// Federated averaging (McMahan et al. 2017): `w <- w + d`.
    #[default]
    Plain,
    /// FedAvgM (Hsu et al. 2019): `m <- momentum m + d`, `w <- w + learning_rate m`.
    Momentum {
        /// Step size.
        learning_rate: f64,
        /// What is kept of earlier rounds' updates.
        momentum: f64,
    },
    /// FedAdagrad: `v <- v + d^2`, `w <- w + learning_rate d / (sqrt(v) + epsilon)`; `v` starts at `epsilon^2`.
    Adagrad {
        /// Step size.
        learning_rate: f64,
        /// The paper's tau: the larger, the less adaptive.
        epsilon: f64,
    },
    /// FedAdam: `m <- beta1 m + (1 - beta1) d`, `v <- beta2 v + (1 - beta2) d^2`,
    /// `w <- w + learning_rate m / (sqrt(v) + epsilon)`; `v` starts at `epsilon^2`.
    Adam {
        /// Step size.
        learning_rate: f64,
        /// Decay of the updates' running mean.
        beta1: f64,
        /// Decay of their squares' running mean.
        beta2: f64,
        /// The paper's tau: the larger, the less adaptive.
        epsilon: f64,
    },
    /// FedYogi: as FedAdam, but `v <- v - (1 - beta2) d^2 sign(v - d^2)`.
    Yogi {
        /// Step size.
        learning_rate: f64,
        /// Decay of the updates' running mean.
        beta1: f64,
        /// Decay of their squares' running mean.
        beta2: f64,
        /// The paper's tau: the larger, the less adaptive.
        epsilon: f64,
    },
}

/// What a job keeps over rounds beside its model: at most three f32 a parameter.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerState {
    rule: ServerOptimizer,
    /// Decay of the weights' average; 0 for none.
    decay: f64,
    /// Rounds in it.
    rounds: u32,
    first: Vec<f32>,
    second: Vec<f32>,
    average: Vec<f32>,
}

impl ServerState {
    /// Before the first round of a model of `parameters` parameters. `decay` is that of the average of the rounds'
    /// models (0 for none): a model k rounds old weighs `decay^k`. None if there is nothing to keep.
    pub fn start(rule: ServerOptimizer, decay: f64, parameters: usize) -> Option<Self> {
        let (first, second, floor) = match rule {
            ServerOptimizer::Plain => (0, 0, 0.0),
            ServerOptimizer::Momentum { .. } => (parameters, 0, 0.0),
            ServerOptimizer::Adagrad { epsilon, .. } => (0, parameters, epsilon * epsilon),
            ServerOptimizer::Adam { epsilon, .. } | ServerOptimizer::Yogi { epsilon, .. } => {
                (parameters, parameters, epsilon * epsilon)
            }
        };
        let average = if decay > 0.0 { parameters } else { 0 };
        let (first, second) = (vec![0.0; first], vec![floor as f32; second]);
        let state = Self { rule, decay, rounds: 0, first, second, average: vec![0.0; average] };
        (!state.arrays().iter().all(|array| array.is_empty())).then_some(state)
    }

    fn arrays(&self) -> [&Vec<f32>; 3] {
        [&self.first, &self.second, &self.average]
    }

    /// Begins a round's step; [`moved`](Self::moved) follows, once for each parameter.
    pub fn begin_round(&mut self) {
        self.rounds = self.rounds.saturating_add(1);
    }

    /// Where the parameter at `at` goes from `parameter` with the round's mean update `change`. Panics past the
    /// length of the start.
    pub fn moved(&mut self, at: usize, parameter: f32, change: f64) -> f32 {
        let step = match self.rule {
            ServerOptimizer::Plain => change,
            ServerOptimizer::Momentum { learning_rate, momentum } => {
                let mean = momentum * f64::from(self.first[at]) + change;
                self.first[at] = mean as f32;
                learning_rate * mean
            }
            ServerOptimizer::Adagrad { learning_rate, epsilon } => {
                let square = f64::from(self.second[at]) + change * change;
                self.second[at] = square as f32;
                learning_rate * change / (square.sqrt() + epsilon)
            }
            ServerOptimizer::Adam { learning_rate, beta1, beta2, epsilon } => {
                let square = beta2 * f64::from(self.second[at]) + (1.0 - beta2) * change * change;
                self.adapted(at, change, square, [learning_rate, beta1, epsilon])
            }
            ServerOptimizer::Yogi { learning_rate, beta1, beta2, epsilon } => {
                let (old, new) = (f64::from(self.second[at]), change * change);
                let sign = if old > new { 1.0 } else { -1.0 };
                let square = if old == new { old } else { old - (1.0 - beta2) * new * sign };
                self.adapted(at, change, square, [learning_rate, beta1, epsilon])
            }
        };
        let moved = (f64::from(parameter) + step) as f32;
        if let Some(average) = self.average.get_mut(at) {
            // The weighted mean of the rounds so far; the start, before the first round, has no weight.
            let share = (1.0 - self.decay) / (1.0 - self.decay.powf(f64::from(self.rounds.max(1))));
            *average = (f64::from(*average) + share * (f64::from(moved) - f64::from(*average))) as f32;
        }
        moved
    }

    fn adapted(&mut self, at: usize, change: f64, square: f64, [rate, beta1, epsilon]: [f64; 3]) -> f64 {
        let mean = beta1 * f64::from(self.first[at]) + (1.0 - beta1) * change;
        (self.first[at], self.second[at]) = (mean as f32, square as f32);
        rate * mean / (square.sqrt() + epsilon)
    }

    /// The average of the models after each round so far; None if none is kept or there was no round.
    pub fn average(&self) -> Option<&[f32]> {
        (!self.average.is_empty() && self.rounds > 0).then_some(&self.average)
    }

    /// Appends the rounds in it, 4 bytes, then its arrays one after the other, 32-bit floats, all little-endian.
    pub fn append_to(&self, bytes: &mut Vec<u8>) {
        let count: usize = self.arrays().iter().map(|array| array.len()).sum();
        bytes.reserve_exact(4 + 4 * count);
        bytes.extend(self.rounds.to_le_bytes());
        for array in self.arrays() {
            bytes.extend(array.iter().flat_map(|value| value.to_le_bytes()));
        }
    }

    /// What [`append_to`](Self::append_to) made of a state with the same start as this one; None if it cannot be.
    pub fn with_bytes(mut self, bytes: &[u8]) -> Option<Self> {
        let (rounds, rest) = bytes.split_first_chunk::<4>()?;
        let (values, tail) = rest.as_chunks::<4>();
        let count: usize = self.arrays().iter().map(|array| array.len()).sum();
        if values.len() != count || !tail.is_empty() {
            return None;
        }
        self.rounds = u32::from_le_bytes(*rounds);
        let mut values = values.iter().map(|value| f32::from_le_bytes(*value));
        for array in [&mut self.first, &mut self.second, &mut self.average] {
            array.iter_mut().zip(&mut values).for_each(|(slot, value)| *slot = value);
        }
        self.arrays().iter().all(|array| array.iter().all(|value| value.is_finite())).then_some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: [f32; 3] = [0.5, -1.0, 2.0];
    const RULES: [ServerOptimizer; 5] = [
        ServerOptimizer::Adagrad { learning_rate: 0.1, epsilon: 1e-3 },
        ServerOptimizer::Plain,
        ServerOptimizer::Momentum { learning_rate: 0.5, momentum: 0.9 },
        ServerOptimizer::Adam { learning_rate: 0.1, beta1: 0.8, beta2: 0.95, epsilon: 1e-3 },
        ServerOptimizer::Yogi { learning_rate: 0.1, beta1: 0.8, beta2: 0.95, epsilon: 1e-3 },
    ];

    fn change(round: usize) -> [f64; 3] {
        let at = round as f64;
        [0.1 * (0.7 * at).sin(), -0.0017 * (1.3 * at).cos(), 0.5 / (1.0 + at)]
    }

    fn round(state: &mut ServerState, model: &mut [f32], round: usize) {
        state.begin_round();
        for (at, (parameter, change)) in model.iter_mut().zip(change(round)).enumerate() {
            *parameter = state.moved(at, *parameter, change);
        }
    }

    /// Algorithm 2 of Reddi et al. 2021 and FedAvgM, in f64 throughout.
    fn reference(rule: ServerOptimizer, at: usize, rounds: usize) -> f64 {
        let (mut w, mut m, mut v) = (f64::from(START[at]), 0.0f64, 1e-6f64);
        for round in 0..rounds {
            let d = change(round)[at];
            w += match rule {
                ServerOptimizer::Plain => d,
                ServerOptimizer::Momentum { .. } => {
                    m = 0.9 * m + d;
                    0.5 * m
                }
                ServerOptimizer::Adagrad { .. } => {
                    v += d * d;
                    0.1 * d / (v.sqrt() + 1e-3)
                }
                ServerOptimizer::Adam { .. } | ServerOptimizer::Yogi { .. } => {
                    m = 0.8 * m + 0.2 * d;
                    v = match rule {
                        ServerOptimizer::Adam { .. } => 0.95 * v + 0.05 * d * d,
                        _ => v - 0.05 * d * d * (v - d * d).signum(),
                    };
                    0.1 * m / (v.sqrt() + 1e-3)
                }
            };
        }
        w
    }

    #[test]
    fn each_rule_follows_its_paper() {
        for rule in RULES {
            let mut state = ServerState::start(rule, 0.9, 3).unwrap();
            let mut model = START;
            (0..20).for_each(|at| round(&mut state, &mut model, at));
            for (at, got) in model.iter().enumerate() {
                let expected = reference(rule, at, 20);
                assert!((f64::from(*got) - expected).abs() < 5e-6, "{rule:?} {at}: {got} against {expected}");
            }
        }
    }

    #[test]
    fn the_average_weighs_each_rounds_model_by_its_age_and_the_start_not_at_all() {
        let mut state = ServerState::start(ServerOptimizer::Plain, 0.7, 3).unwrap();
        assert_eq!(state.average(), None);
        let (mut model, mut models) = (START, Vec::new());
        for at in 0..6 {
            round(&mut state, &mut model, at);
            models.push(model);
        }
        let weights: Vec<f64> = (0..6).map(|at| 0.7f64.powi(5 - at)).collect();
        for at in 0..3 {
            let sum: f64 = models.iter().zip(&weights).map(|(model, w)| w * f64::from(model[at])).sum();
            let expected = sum / weights.iter().sum::<f64>();
            assert!((f64::from(state.average().unwrap()[at]) - expected).abs() < 1e-6);
        }
    }

    #[test]
    fn plain_averaging_keeps_nothing() {
        assert_eq!(ServerState::start(ServerOptimizer::Plain, 0.0, 3), None);
    }

    #[test]
    fn a_state_goes_on_from_its_bytes_as_if_nothing_had_been() {
        for rule in RULES {
            let start = || ServerState::start(rule, 0.5, 3).unwrap();
            let (mut whole, mut model) = (start(), START);
            (0..4).for_each(|at| round(&mut whole, &mut model, at));
            let mut bytes = Vec::new();
            whole.append_to(&mut bytes);
            let mut restored = start().with_bytes(&bytes).unwrap();
            assert_eq!(restored, whole);
            let mut again = model;
            round(&mut whole, &mut model, 4);
            round(&mut restored, &mut again, 4);
            assert_eq!(model.map(f32::to_bits), again.map(f32::to_bits));
            assert_eq!(restored, whole);
            assert_eq!(start().with_bytes(&bytes[..bytes.len() - 1]), None);
            assert_eq!(start().with_bytes(&[]), None);
            let broken = [&bytes[..4], &f32::NAN.to_le_bytes(), &bytes[8..]].concat();
            assert_eq!(start().with_bytes(&broken), None);
        }
    }
}
