//! One round's work at the site: debit, compute, store, release; then the bytes may leave.
//!
//! What leaves and what pays for it: the update, by the debit of (job, round, training customers); the
//! evaluation, by the debit of (job, round, held-out customers). Each is debited once; a second request
//! for the same round gets the stored bytes, or nothing.

use crate::budget::{Budget, BudgetError, Debit};
use crate::feedback::Feedback;
use crate::offer::CheckedContract;
use crate::outbox::Outbox;
use crate::payer::training_round;
use crate::payment::{Action, Event, PaidBytes, Payment};
use crate::quality::{self, QualityError};
use crate::records::Records;
use crate::secure_sum::{SumError, Sums};
use crate::train::{LocalRound, RoundBase, RoundEnd, TrainError};
use crate::update::{CompressError, histogram_bytes, histogram_counts};
use std::sync::Mutex;
use weighhouse_shared::job::{FederationSchedule, JobContract};
use weighhouse_shared::ledger::{Charge, Population, ReleaseKind};
use weighhouse_shared::model::Engine;
use weighhouse_shared::privacy::accountant::GaussianEvent;
use weighhouse_shared::privacy::grid::Clipping;
use weighhouse_shared::privacy::noise_share::SumEncodingError;
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
    /// The site's part in secure sums.
    pub sums: Sums,
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
    /// The integers of the contract's secure sum cannot be.
    #[error(transparent)]
    Encoding(#[from] SumEncodingError),
    /// Training failed.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// Scoring failed.
    #[error(transparent)]
    Quality(#[from] QualityError),
    /// The masks of a secure sum could not be made.
    #[error("the round's masks could not be made")]
    Masks(#[from] SumError),
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

        let mut contribution = Contribution { evaluation: None, update: None, charges: Vec::new() };
        let sum = contract.sum_encoding(parameters.len())?;
        for item in items(contract, parameters.len(), start)? {
            // Without masks nothing could leave: nothing is debited.
            let masked = sum.is_some() && item.kind == ReleaseKind::Update;
            if masked && !self.sums.is_prepared(start.job, start.round) {
                continue;
            }
            contribution.charges.push(item.charge);
            match item.kind {
                ReleaseKind::Evaluation => {
                    let released = self.released(start, item, |debit| {
                        let max_rows = contract.training.max_rows_per_customer as usize;
                        let bins = contract.evaluation.as_ref().map_or(0, |plan| plan.bins as usize);
                        let table = &self.records.holdout;
                        let noised = quality::measure(&network, parameters, table, max_rows, bins, debit)?;
                        Ok(histogram_bytes(noised))
                    })?;
                    contribution.evaluation = released.map(|paid| histogram_counts(&paid.bytes));
                }
                ReleaseKind::Update => {
                    contribution.update = self.released(start, item, |debit| {
                        let mut generator = Generator::from_system()?;
                        let table = &self.records.training;
                        let memory = self.outbox.memory();
                        let clip_norm = self.outbox.clip_norm(start.job);
                        let base =
                            RoundBase { round: start.round, parameters, engine: &self.engine, clip_norm };
                        if let Some(encoding) = &sum {
                            let masks = self.sums.masks(start.job, start.round)?;
                            let round = LocalRound { contract, network: &network, base, table };
                            let share = local_share(round, encoding, debit, &mut generator)?;
                            return Ok(share.masked(|values| masks.apply(values, 1), memory));
                        }
                        let RoundEnd { update, clip_norm } =
                            local_update(contract, &network, base, table, debit, &mut generator, memory)?;
                        if contract.training.clipping == Clipping::Quantile {
                            self.outbox.keep_clip_norm(start.job, clip_norm)?;
                        }
                        Ok(update.compressed(start.job, contract.federation.compression, &self.feedback)?)
                    })?;
                }
            }
        }
        Ok(contribution)
    }

    /// The bytes of an item: the stored ones if its round is debited, else new ones made with a debit.
    fn released(
        &self,
        start: &RoundStart,
        item: Item,
        make: impl FnOnce(Debit) -> Result<Vec<u8>, WorkError>,
    ) -> Result<Option<PaidBytes>, WorkError> {
        let (job, round) = (start.job, start.round);
        let Item { kind, charge, mechanism, any_model } = item;
        let debited = self.budget().is_debited(job, round, charge.population);
        let (mut payment, mut action) = Payment::begin(start.model, any_model, debited);
        let mut make = Some(make);
        loop {
            let done = match action {
                Action::Find => Event::Found(self.outbox.find(job, round, kind)?),
                Action::Debit => Event::Debited(self.budget().debit(job, round, charge, mechanism)?),
                Action::Make(debit) => match make.take() {
                    Some(make) => Event::Made(make(debit)?),
                    None => return Ok(None),
                },
                Action::Store { content, bytes } => {
                    self.outbox.store(job, round, kind, start.model, content, &bytes)?;
                    Event::Stored
                }
                Action::Bind { content, len } => {
                    self.budget().release(job, round, charge.population, kind, content, len)?;
                    Event::Bound
                }
                Action::Done(released) => return Ok(released),
            };
            action = payment.handle(done);
        }
    }
}

/// One thing that a round's task releases, and what it costs.
#[derive(Debug, Clone)]
pub struct Item {
    /// What it is.
    pub kind: ReleaseKind,
    /// What it costs whom.
    pub charge: Charge,
    /// What each of its steps draws.
    pub mechanism: Mechanism,
    /// One that is stored counts also if the model has moved on since.
    pub any_model: bool,
}

/// Whether each site goes at its own pace, so that a model may move on while its updates are made.
pub fn is_buffered(contract: &JobContract) -> bool {
    contract.federation.schedule != FederationSchedule::Synchronous
}

/// What `start` asks for by its contract, of a model of `parameters` parameters, in the order in which it is paid.
pub fn items(
    contract: &JobContract,
    parameters: usize,
    start: &RoundStart,
) -> Result<Vec<Item>, SumEncodingError> {
    let evaluation = contract.evaluation_charge().filter(|_| start.task.evaluate).map(|charge| {
        let charge = Charge { population: Population::Holdout, event: GaussianEvent { steps: 1, ..charge } };
        let mechanism = Mechanism::histogram(charge.event.noise_multiplier);
        Item { kind: ReleaseKind::Evaluation, charge, mechanism, any_model: false }
    });
    let mut items: Vec<Item> = evaluation.into_iter().collect();
    if start.task.train {
        let (charge, mechanism) = training_round(contract, parameters)?;
        let any_model = is_buffered(contract);
        items.push(Item { kind: ReleaseKind::Update, charge, mechanism, any_model });
    }
    Ok(items)
}

#[cfg(not(feature = "constant-update"))]
use crate::train::{share_round as local_share, train_round as local_update};

/// The no-training client of the round benches, in a secure sum.
#[cfg(feature = "constant-update")]
fn local_share(
    round: LocalRound<'_>,
    _encoding: &weighhouse_shared::privacy::noise_share::SumEncoding,
    _debit: Debit,
    _generator: &mut Generator,
) -> Result<crate::noise::NoisedShare, TrainError> {
    Ok(crate::noise::NoisedShare::constant(round.network.parameter_count(), 1))
}

/// The no-training client of the round benches: the debit is paid, no record is touched.
#[cfg(feature = "constant-update")]
fn local_update(
    contract: &JobContract,
    network: &weighhouse_shared::model::Network,
    _base: RoundBase<'_>,
    _table: &crate::features::FeatureTable,
    _debit: Debit,
    _generator: &mut Generator,
    memory: Vec<u8>,
) -> Result<RoundEnd, TrainError> {
    let update = crate::update::ModelUpdate::constant(network.parameter_count(), 1, memory);
    Ok(RoundEnd { update, clip_norm: contract.privacy.clip_norm })
}
