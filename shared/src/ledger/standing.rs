//! What a site's budget still allows, as the site tells the operator who plans a job: the cap and what
//! was charged. Constants of contracts, policy and ledger; nothing in it depends on records.

use super::balance::Balance;
use super::entry::Population;
use crate::privacy::accountant::{GaussianEvent, RenyiCurve, RenyiOrder, StepCurves};
use crate::privacy::{Delta, Epsilon};
use serde::{Deserialize, Serialize};

/// The most unlike charges a standing lists; a site with more says that nothing is left.
pub const MAX_STANDING_CHARGES: usize = 64;

/// The most steps a plan looks ahead.
const MAX_STEPS: u32 = 1 << 30;

/// What a site's budget still allows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Standing {
    /// The cap.
    pub cap_epsilon: Epsilon,
    /// The cap's delta.
    pub cap_delta: Delta,
    /// The most epsilon one job may ask for.
    pub job_epsilon: Epsilon,
    /// What customers that models learn from have paid or have set aside.
    pub training: Charged,
    /// The same of customers held out.
    pub holdout: Charged,
}

/// What one group of customers has paid or has set aside, over the cap's period.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Charged {
    /// Like events together.
    pub events: Vec<GaussianEvent>,
    /// The order of the site's filter, if it is fixed.
    pub order: Option<RenyiOrder>,
}

impl Balance {
    /// The standing at `time_s`; None before the ledger is opened, or with more unlike charges than
    /// can be listed.
    pub fn standing(&self, time_s: u64) -> Option<Standing> {
        let policy = self.policy()?;
        let charged = |population| {
            let (events, order) = self.charged(population, time_s);
            (events.len() <= MAX_STANDING_CHARGES).then_some(Charged { events, order })
        };
        Some(Standing {
            cap_epsilon: policy.cap.epsilon,
            cap_delta: policy.cap.delta,
            job_epsilon: policy.jobs.max_epsilon,
            training: charged(Population::Training)?,
            holdout: charged(Population::Holdout)?,
        })
    }
}

impl Standing {
    /// Renyi epsilon that was paid or set aside, by the customer who paid most.
    pub fn epsilon(&self, curves: &mut StepCurves) -> f64 {
        let mut of = |charged: &Charged| charged.learnt(curves).epsilon(self.cap_delta);
        of(&self.training).max(of(&self.holdout))
    }

    /// How many more steps like those of `event` the filter lets `population` pay. `curves` are kept
    /// between sites, which mostly paid for the same jobs.
    pub fn steps_left(&self, population: Population, event: &GaussianEvent, curves: &mut StepCurves) -> u32 {
        let charged = match population {
            Population::Training => &self.training,
            Population::Holdout => &self.holdout,
        };
        let paid = charged.learnt(curves);
        let step = curves.learn(event);
        let order =
            charged.order.unwrap_or_else(|| step.roomiest_order(&paid, self.cap_epsilon, self.cap_delta));
        let fits = |steps: u32| {
            let mut total = paid.clone();
            total.add(&step.clone().scaled(steps));
            total.epsilon_at(order, self.cap_delta) <= self.cap_epsilon.value()
        };
        let (mut fitting, mut over) = (0, MAX_STEPS);
        while over - fitting > 1 {
            let middle = fitting + (over - fitting) / 2;
            if fits(middle) { fitting = middle } else { over = middle }
        }
        fitting
    }
}

impl Charged {
    fn learnt(&self, curves: &mut StepCurves) -> RenyiCurve {
        for event in &self.events {
            curves.learn(event);
        }
        curves.total(&self.events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::JobId;
    use crate::ledger::{Body, Charge};
    use crate::policy::{PolicyText, first_policy};
    use crate::privacy::{NoiseMultiplier, SamplingRate};

    fn event(steps: u32) -> GaussianEvent {
        let (noise_multiplier, sampling_rate) =
            (NoiseMultiplier::new(4.0).unwrap(), SamplingRate::new(1.0).unwrap());
        GaussianEvent { noise_multiplier, sampling_rate, steps }
    }

    /// The budget itself is asked: one step more than the standing says is refused, as many are not.
    #[test]
    fn the_steps_left_are_those_that_the_budget_would_reserve() {
        let mut balance = Balance::default();
        let policy = first_policy(Epsilon::new(5.0).unwrap(), Delta::new(1e-5).unwrap());
        let policy = PolicyText::unsigned(policy);
        let opened = Body::Opened { public_key: String::new(), holdout_permille: 100, policy };
        balance.apply(0, 0, &opened).unwrap();
        let mut curves = StepCurves::default();
        for job in 1..4u8 {
            let standing = balance.standing(0).unwrap();
            let left = standing.steps_left(Population::Training, &event(1), &mut curves);
            let reserve = |steps| Body::Reserved {
                job: JobId::from_bytes([job; 32]),
                name: "test".into(),
                charges: vec![Charge { population: Population::Training, event: event(steps) }],
            };
            assert!(balance.clone().apply(1, 0, &reserve(left + 1)).is_err());
            assert!(balance.clone().apply(1, 0, &reserve(left)).is_ok());
            let holdout = standing.steps_left(Population::Holdout, &event(1), &mut curves);
            assert!(left > 3 && holdout >= left);
            balance.apply(1, 0, &reserve(3)).unwrap();
        }
        assert!(balance.standing(0).unwrap().epsilon(&mut curves) > 0.0);
    }
}
