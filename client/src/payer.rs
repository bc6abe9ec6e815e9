//! What noise may be drawn for: a paid release, or a simulated site's.
//!
//! The local loop, from the clipped sum to the model's change, is the same for both, and what comes out carries the type
//! of who paid: [`ModelUpdate`](crate::update::ModelUpdate) gives its bytes away only if that is a [`Debit`], which stands
//! for an entry on disk. A simulation's ([`Simulated`]) can be read in this process and sent by nobody.

use crate::budget::Debit;
use weighhouse_shared::job::JobContract;
use weighhouse_shared::ledger::{Charge, Population};
use weighhouse_shared::privacy::Mechanism;
use weighhouse_shared::privacy::noise_share::SumEncodingError;

pub(crate) mod sealed {
    use super::{Charge, Mechanism};

    /// What noise is drawn by.
    pub trait Pay {
        /// What was paid for.
        fn charge(&self) -> &Charge;
        /// What each step draws.
        fn mechanism(&self) -> &Mechanism;
        /// Uses one step. False when none is left.
        fn use_step(&mut self) -> bool;
    }
}

/// Who may have noise drawn: [`Debit`] and [`Simulated`], nobody else.
pub trait Payer: sealed::Pay {}

impl Payer for Debit {}

impl sealed::Pay for Debit {
    fn charge(&self) -> &Charge {
        Debit::charge(self)
    }

    fn mechanism(&self) -> &Mechanism {
        Debit::mechanism(self)
    }

    fn use_step(&mut self) -> bool {
        Debit::use_step(self)
    }
}

/// Has a simulated site's noise drawn as a debit of one round would. Nothing is paid, so nothing may leave.
#[derive(Debug)]
pub struct Simulated {
    charge: Charge,
    mechanism: Mechanism,
    steps_left: u32,
}

impl Simulated {
    /// For one round of training by `contract`, of a model of `parameters` parameters.
    pub fn round_of(contract: &JobContract, parameters: usize) -> Result<Self, SumEncodingError> {
        let (charge, mechanism) = training_round(contract, parameters)?;
        Ok(Self { charge, mechanism, steps_left: charge.event.steps })
    }
}

impl Payer for Simulated {}

impl sealed::Pay for Simulated {
    fn charge(&self) -> &Charge {
        &self.charge
    }

    fn mechanism(&self) -> &Mechanism {
        &self.mechanism
    }

    fn use_step(&mut self) -> bool {
        self.steps_left.checked_sub(1).is_some_and(|left| {
            self.steps_left = left;
            true
        })
    }
}

/// What one round of training by `contract`, of a model of `parameters` parameters, costs whom, and what each of its
/// steps draws.
pub(crate) fn training_round(
    contract: &JobContract,
    parameters: usize,
) -> Result<(Charge, Mechanism), SumEncodingError> {
    let charge = Charge { population: Population::Training, event: contract.round_charge() };
    let mechanism = match contract.sum_encoding(parameters)? {
        None => Mechanism::clipped_gradient_sum(&contract.grid(), charge.event.noise_multiplier),
        Some(encoding) => encoding.mechanism(),
    };
    Ok((charge, mechanism))
}

#[cfg(test)]
mod tests {
    use super::sealed::Pay;
    use super::*;
    use weighhouse_shared::job::JobFile;

    #[test]
    fn a_simulated_site_draws_what_a_debit_of_its_round_would_and_no_step_more() {
        let schema = "name = \"x\"\ncustomer = \"id\"\nlabel = { column = \"y\", kind = \"binary\" }\n\
                      features = [{ column = \"a\", min = 0.0, max = 1.0 }]";
        let file = "name = \"x\"\nschema = \"x\"\n[training]\nlocal_steps = 2\n[privacy]\nepsilon = 1.0\ndelta = 1e-5";
        let file: JobFile = toml::from_str(file).unwrap();
        let contract = file.contract(toml::from_str(schema).unwrap(), [0; 16]).unwrap();
        let mut simulated = Simulated::round_of(&contract, 2).unwrap();
        let noise = contract.privacy.noise_multiplier;
        assert_eq!(*simulated.mechanism(), Mechanism::clipped_gradient_sum(&contract.grid(), noise));
        assert_eq!(
            (simulated.charge().population, simulated.charge().event),
            (Population::Training, contract.round_charge())
        );
        assert_eq!([(); 3].map(|()| simulated.use_step()), [true, true, false]);
    }
}
