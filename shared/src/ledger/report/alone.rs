//! What would be left of a ledger's guarantee if the masks of secure sums protected nothing.

use super::super::balance::{Balance, Kinds};
use super::super::entry::{Charge, Population};
use crate::privacy::accountant::GaussianEvent;
use crate::privacy::{Delta, Mechanism, NoiseMultiplier};

/// What training customers paid, with the noise of each share of a secure sum by itself.
#[derive(Debug, Clone, Default)]
pub(super) struct Alone {
    events: Kinds,
    /// Whether there was a share.
    shares: bool,
    /// Whether one has less noise than any figure is given for.
    unbounded: bool,
}

impl Alone {
    /// Adds a debit.
    pub fn add(&mut self, charge: &Charge, mechanism: &Mechanism) {
        let Some(multiplier) = mechanism.local_multiplier() else {
            if charge.population == Population::Training {
                self.events.add(charge.event);
            }
            return;
        };
        self.shares = true;
        match NoiseMultiplier::new(multiplier) {
            Ok(noise_multiplier) => self.events.add(GaussianEvent { noise_multiplier, ..charge.event }),
            Err(_) => self.unbounded = true,
        }
    }

    /// The Renyi figure; None without a share.
    pub fn epsilon(&self, balance: &Balance, delta: Delta) -> Option<f64> {
        let figure =
            if self.unbounded { f64::INFINITY } else { balance.epsilon_of(&self.events.events(), delta) };
        self.shares.then_some(figure)
    }
}
