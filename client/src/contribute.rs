//! One round's work at the site: debit, compute, store, release; then the bytes may leave.
//!
//! What leaves and what pays for it: the update, by the debit of (job, round, training customers); the
//! evaluation, by the debit of (job, round, held-out customers). Each is debited once; a second request
//! for the same round gets the stored bytes, or nothing.

use crate::budget::{Budget, BudgetError};
use crate::feedback::Feedback;
use crate::offer::CheckedContract;
use crate::outbox::{Outbox, Stored};
use crate::quality::{self, QualityError};
use crate::records::Records;
use crate::train::{RoundBase, RoundEnd, TrainError};
use crate::update::{CompressError, histogram_bytes, histogram_counts};
use bytes::Bytes;
use std::sync::Mutex;
use weighhouse_shared::ids::ContentHash;
use weighhouse_shared::job::FederationSchedule;
use weighhouse_shared::ledger::{Charge, Population, ReleaseKind};
use weighhouse_shared::model::Engine;
use weighhouse_shared::privacy::accountant::GaussianEvent;
use weighhouse_shared::privacy::grid::Clipping;
use weighhouse_shared::privacy::{Generator, GeneratorError, Mechanism};
use weighhouse_shared::wire::messages::RoundStart;

/// Everything of a site that a round's work needs.
#[derive(Debug)]
pub struct Workplace {
    /// The site's customers.
    pub records: Records,
    /// The budget; locked for each ledger entry, not for the whole work.
    pub budget: Mutex<Budget>,
    /// What was paid for.
    pub outbox: Outbox,
    /// What compression left out of updates.
    pub feedback: Feedback,
    /// What models learn on.
    pub engine: Engine,
}

/// What may leave for one round: noised, paid and released.
#[derive(Debug, Clone, PartialEq)]
pub struct Contribution {
    /// Counts of held-out customers' scores.
    pub evaluation: Option<Vec<i64>>,
    /// The update.
    pub update: Option<PaidBytes>,
    /// What the ledger debited for them.
    pub charges: Vec<Charge>,
}

/// Bytes that were noised, paid for and stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PaidBytes {
    /// The model they were made from.
    pub base: ContentHash,
    /// Their hash.
    pub content: ContentHash,
    /// What leaves.
    pub bytes: Bytes,
}

/// Why a round's work gave nothing. Stays at the site.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    /// The coordinator's model is not one of this contract.
    #[error("the round's model does not fit its contract")]
    Model,
    /// The budget refused.
    #[error(transparent)]
    Budget(#[from] BudgetError),
    /// The outbox cannot be used.
    #[error("cannot use the outbox folder; is the disk full?")]
    Outbox(#[from] std::io::Error),
    /// Training failed.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// Scoring failed.
    #[error(transparent)]
    Quality(#[from] QualityError),
    /// Compression failed.
    #[error(transparent)]
    Compress(#[from] CompressError),
    /// The system's generator failed.
    #[error("no randomness to be had from the system")]
    Generator(#[from] GeneratorError),
}

impl Workplace {
    fn budget(&self) -> std::sync::MutexGuard<'_, Budget> {
        // A panic elsewhere cannot leave the budget half-changed: it refuses after a failed write.
        self.budget.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Works out what `start` asks for. `parameters` are the global model's.
    pub fn work(
        &self,
        checked: &CheckedContract,
        start: &RoundStart,
        parameters: &[f32],
    ) -> Result<Contribution, WorkError> {
        let contract = &checked.contract;
        let network = contract.network().map_err(|_| WorkError::Model)?;
        // Without an early end, so that the loop is one pass of wide comparisons.
        let finite = parameters.iter().fold(true, |all, parameter| all & parameter.is_finite());
        if parameters.len() != network.parameter_count() || !finite {
            return Err(WorkError::Model);
        }
        self.outbox.forget(checked.job, Some(start.round))?;

        let mut charges = Vec::new();
        let evaluation = match (start.task.evaluate, &contract.evaluation, contract.evaluation_charge()) {
            (true, Some(plan), Some(charge)) => {
                let event = GaussianEvent { steps: 1, ..charge };
                let charge = Charge { population: Population::Holdout, event };
                charges.push(charge);
                let mechanism = Mechanism::histogram(charge.event.noise_multiplier);
                self.paid(start, ReleaseKind::Evaluation, false, charge, mechanism, |debit| {
                    let max_rows = contract.training.max_rows_per_customer as usize;
                    let table = &self.records.holdout;
                    let bins = plan.bins as usize;
                    let noised = quality::measure(&network, parameters, table, max_rows, bins, debit)?;
                    Ok(histogram_bytes(noised))
                })?
            }
            _ => None,
        };
        // An update that was stored counts also if the model has moved on since.
        let buffered = contract.federation.schedule != FederationSchedule::Synchronous;
        let update = match start.task.train {
            true => {
                let charge = Charge { population: Population::Training, event: contract.round_charge() };
                charges.push(charge);
                let mechanism =
                    Mechanism::clipped_gradient_sum(&contract.grid(), charge.event.noise_multiplier);
                self.paid(start, ReleaseKind::Update, buffered, charge, mechanism, |debit| {
                    let mut generator = Generator::from_system()?;
                    let table = &self.records.training;
                    let memory = self.outbox.memory();
                    let clip_norm = self.outbox.clip_norm(start.job);
                    let base = RoundBase { round: start.round, parameters, engine: &self.engine, clip_norm };
                    let RoundEnd { update, clip_norm } =
                        local_update(contract, &network, base, table, debit, &mut generator, memory)?;
                    if contract.training.clipping == Clipping::Quantile {
                        self.outbox.keep_clip_norm(start.job, clip_norm)?;
                    }
                    Ok(update.compressed(start.job, contract.federation.compression, &self.feedback)?)
                })?
            }
            false => None,
        };
        let evaluation = evaluation.map(|paid| histogram_counts(&paid.bytes));
        Ok(Contribution { evaluation, update, charges })
    }

    /// The bytes for (job, round, kind): the stored ones if there are any, else new ones made with a
    /// debit of `charge`. None if the debit was spent on bytes that are lost, or made from another model unless
    /// `any_model` is good enough.
    fn paid(
        &self,
        start: &RoundStart,
        kind: ReleaseKind,
        any_model: bool,
        charge: Charge,
        mechanism: Mechanism,
        make: impl FnOnce(crate::budget::Debit) -> Result<Vec<u8>, WorkError>,
    ) -> Result<Option<PaidBytes>, WorkError> {
        let (job, round) = (start.job, start.round);
        let already = self.budget().is_debited(job, round, charge.population);
        let paid = if already {
            let stored = self.outbox.find(job, round, kind)?;
            match stored.filter(|stored| any_model || stored.base == start.model) {
                Some(Stored { base, content, bytes }) => PaidBytes { base, content, bytes },
                None => return Ok(None),
            }
        } else {
            let debit = self.budget().debit(job, round, charge, mechanism)?;
            let bytes = Bytes::from(make(debit)?);
            let content = ContentHash::of(&bytes);
            self.outbox.store(job, round, kind, start.model, content, &bytes)?;
            PaidBytes { base: start.model, content, bytes }
        };
        let len = paid.bytes.len() as u64;
        self.budget().release(job, round, charge.population, kind, paid.content, len)?;
        Ok(Some(paid))
    }
}

#[cfg(not(feature = "constant-update"))]
use crate::train::train_round as local_update;

/// The no-training client of the round benches: the debit is paid, no record is touched.
#[cfg(feature = "constant-update")]
fn local_update(
    contract: &weighhouse_shared::job::JobContract,
    network: &weighhouse_shared::model::Network,
    _base: RoundBase<'_>,
    _table: &crate::features::FeatureTable,
    _debit: crate::budget::Debit,
    _generator: &mut Generator,
    memory: Vec<u8>,
) -> Result<RoundEnd, TrainError> {
    let update = crate::update::ModelUpdate::constant(network.parameter_count(), 1, memory);
    Ok(RoundEnd { update, clip_norm: contract.privacy.clip_norm })
}
