//! Whether this site takes part in an offered job: the operator's signature, the contract's own rules,
//! the site's columns, and last its budget. A job is judged before anything is computed, and nothing in
//! the answer depends on records.

use crate::budget::{Budget, BudgetError};
use rustls::pki_types::CertificateDer;
use std::sync::Arc;
use weighhouse_shared::identity::{Purpose, is_signed_by};
use weighhouse_shared::ids::JobId;
use weighhouse_shared::job::JobContract;
use weighhouse_shared::ledger::{Charge, Population};
use weighhouse_shared::schema::Schema;
use weighhouse_shared::tls::verified_operator_key;
use weighhouse_shared::wire::codec;
use weighhouse_shared::wire::messages::{Decision, SignedContract};

/// A contract whose signature and rules were checked.
#[derive(Debug, Clone)]
pub struct CheckedContract {
    /// Its hash.
    pub job: JobId,
    /// What it says.
    pub contract: Arc<JobContract>,
}

/// Why a job was refused, for the site's own log.
#[derive(Debug, thiserror::Error)]
pub enum OfferError {
    /// No operator of this federation signed it.
    #[error("no operator of this federation signed the job")]
    Signature,
    /// It breaks its own rules.
    #[error("the job's contract is not valid: {reason}")]
    Contract {
        /// What is wrong.
        reason: String,
    },
    /// It is for other columns.
    #[error(
        "the job is for the schema `{wanted}`, which differs from this site's `{own}`; agree on one schema file"
    )]
    Schema {
        /// The job's schema.
        wanted: String,
        /// The site's.
        own: String,
    },
    /// The budget refuses.
    #[error(transparent)]
    Budget(#[from] BudgetError),
}

impl OfferError {
    /// What the coordinator is told: a label, no figures.
    pub fn decision(&self) -> Decision {
        match self {
            Self::Signature | Self::Contract { .. } => Decision::RefusedContract,
            Self::Schema { .. } => Decision::RefusedSchema,
            Self::Budget(_) => Decision::RefusedBudget,
        }
    }
}

/// Checks signature, rules and columns of an offer.
pub fn check(
    offer: &SignedContract,
    authority: &CertificateDer<'static>,
    own: &Schema,
    now_s: u64,
) -> Result<CheckedContract, OfferError> {
    let certificate = CertificateDer::from(offer.certificate.as_slice());
    let key = verified_operator_key(authority, &certificate, now_s).map_err(|_| OfferError::Signature)?;
    if !is_signed_by(&key, Purpose::JobContract, &offer.contract, &offer.signature) {
        return Err(OfferError::Signature);
    }
    let invalid = |reason: String| OfferError::Contract { reason };
    let contract: JobContract = codec::decode(&offer.contract).map_err(|error| invalid(error.to_string()))?;
    contract.validate().map_err(|error| invalid(error.to_string()))?;
    if contract.schema.hash() != own.hash() {
        return Err(OfferError::Schema { wanted: contract.schema.name, own: own.name.clone() });
    }
    Ok(CheckedContract { job: contract.id(), contract: Arc::new(contract) })
}

/// Sets the job's worst case aside, or refuses with the figures.
pub fn reserve(checked: &CheckedContract, budget: &mut Budget) -> Result<(), OfferError> {
    let training = Charge { population: Population::Training, event: checked.contract.training_charge() };
    let holdout = checked.contract.evaluation_charge();
    let holdout = holdout.map(|event| Charge { population: Population::Holdout, event });
    let charges = std::iter::once(training).chain(holdout).collect();
    Ok(budget.reserve(checked.job, &checked.contract.name, charges)?)
}

/// A contract that holds, for tests of other modules.
#[cfg(test)]
pub(crate) fn sample_contract() -> JobContract {
    use weighhouse_shared::job::JobFile;
    let schema: Schema = toml::from_str(
        "name = \"test\"\ncustomer = \"id\"\nlabel = { column = \"y\", kind = \"binary\" }\n\
         features = [{ column = \"a\", min = 0.0, max = 1.0 }]",
    )
    .unwrap();
    let file: JobFile =
        toml::from_str("name = \"test\"\nschema = \"x\"\n[privacy]\nepsilon = 8.0\ndelta = 1e-4").unwrap();
    file.contract(schema, [0; 16]).unwrap()
}
