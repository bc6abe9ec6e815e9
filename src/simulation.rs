//! A job's rounds at simulated sites, without a network: what `job plan` and `simulate` share.
//!
//! In: a contract and customers that come from a seed or from a split of one file. Out: the model, round by round. A site's
//! round is the product's own code from sampling to encoding ([`local_steps`]), the coordinator's is its admission, rule
//! and optimiser; only ledger, outbox and wire are left out, since no site's records are touched and nothing leaves.
//!
//! Noise, sampling and compression always come from the system's generator. The seed is for customers, splits and cohorts.
//!
//! **Memory** does not grow with the number of sites: each core has one site's customers and update at a time, made when
//! its turn comes and forgotten after it. What a rule needs of all sites is the sum of their updates, one a core, or a file of
//! them; what a site must keep for its next round is its clip norm (clipping by quantile) or a file (`top_k`).

mod generated;
mod holdout;
mod own;
mod split;
mod summed;

pub use generated::Generated;
pub use holdout::Holdout;
pub use own::{OwnSites, tests as own_tests};
pub use split::{Deal, Split};

use summed::PlainSums;

use anyhow::{Result, anyhow};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;
use std::num::NonZero;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use weighhouse_client::clip::Workers;
use weighhouse_client::features::FeatureTable;
use weighhouse_client::feedback::Feedback;
use weighhouse_client::payer::Simulated;
use weighhouse_client::train::{LocalRound, RoundBase, RoundEnd, Tools, local_steps};
use weighhouse_client::update::ModelUpdate;
use weighhouse_coordinator::admission::AdmittedUpdate;
use weighhouse_coordinator::aggregate::Aggregate;
use weighhouse_coordinator::global_model::GlobalModel;
use weighhouse_coordinator::spool::Spool;
use weighhouse_shared::compression::Encoding;
use weighhouse_shared::ids::{JobId, RoundId};
use weighhouse_shared::job::JobContract;
use weighhouse_shared::model::{Engine, Network, ServerState};
use weighhouse_shared::privacy::grid::Clipping;
use weighhouse_shared::privacy::{ClipNorm, Generator};

/// What a seed is used for; each has a stream of its own.
#[derive(Debug, Clone, Copy)]
enum Draw {
    /// What labels depend on.
    Law,
    /// Held-out customers.
    Holdout,
    /// Who is at which site.
    Split,
    /// Who takes part in a round.
    Cohorts,
    /// The customers of a site.
    Site(usize),
}

impl Draw {
    fn of(self, seed: u64) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(match self {
            Self::Law => 0,
            Self::Holdout => 1,
            Self::Split => 2,
            Self::Cohorts => 3,
            Self::Site(number) => 4 + number as u64,
        });
        rng
    }
}

/// The sites' customers.
#[derive(Debug)]
pub enum Customers {
    /// Made up.
    Generated(Generated),
    /// Real ones, dealt out.
    Split(Split),
    /// Real ones, where they are.
    Own(OwnSites),
}

impl Customers {
    /// Those of site `number`; the same each time.
    pub fn site(&self, number: usize) -> FeatureTable {
        match self {
            Self::Generated(generated) => generated.site(number),
            Self::Split(split) => split.site(number),
            Self::Own(own) => own.site(number),
        }
    }
}

/// So many of `sites` sites in each round, in rising order, drawn from `seed`; all of them, if they are as many.
pub struct Cohorts {
    sites: usize,
    of_round: usize,
    rng: ChaCha8Rng,
}

impl Cohorts {
    /// Draws cohorts of `of_round` of `sites` sites.
    pub fn new(sites: usize, of_round: usize, seed: u64) -> Self {
        Self { sites, of_round: of_round.min(sites), rng: Draw::Cohorts.of(seed) }
    }

    /// Of the next round.
    pub fn draw(&mut self) -> Box<dyn Iterator<Item = usize> + Send> {
        if self.of_round == self.sites {
            return Box::new(0..self.sites);
        }
        let mut cohort = rand::seq::index::sample(&mut self.rng, self.sites, self.of_round).into_vec();
        cohort.sort_unstable();
        Box::new(cohort.into_iter())
    }
}

/// What sites do in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Train as the contract says.
    Train,
    /// Return a constant, to see how fast all the rest is.
    Nothing,
}

/// A job at simulated sites, between two rounds.
pub struct Simulation<'a> {
    contract: &'a JobContract,
    network: &'a Network,
    customers: &'a Customers,
    work: Work,
    encoding: Encoding,
    model: GlobalModel,
    state: Option<ServerState>,
    /// Of a rule that keeps updates: all of them.
    aggregate: Mutex<Aggregate>,
    /// In place of the aggregate, if the job is a secure sum.
    sums: Option<PlainSums>,
    /// What sites whose norm follows a quantile ended their last round with.
    clip_norms: Mutex<HashMap<usize, ClipNorm>>,
    feedback: Feedback,
    spool: Arc<Spool>,
    desks: Vec<Desk>,
    round: u32,
    /// Of the spool and the feedback; removed in the end.
    _folder: TempDir,
}

/// One core's buffers.
struct Desk {
    tools: Tools,
    memory: Vec<u8>,
    /// Of a rule that keeps no updates: the sum of those made here.
    aggregate: Option<Aggregate>,
}

impl<'a> Simulation<'a> {
    /// At the initial model of the job `start`.
    pub fn new(
        contract: &'a JobContract,
        network: &'a Network,
        customers: &'a Customers,
        work: Work,
        start: JobId,
    ) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let spool = Spool::new(folder.path().into());
        let parameters = network.parameter_count();
        let aggregate = || Aggregate::new(parameters, &contract.federation, &spool);
        let whole = aggregate()?;
        let desk = |_| -> Result<Desk> {
            let workers = Workers::with_threads(&Engine::Processor, 1);
            let aggregate = if whole.compares() { None } else { Some(aggregate()?) };
            Ok(Desk { tools: Tools::new(workers), memory: Vec::new(), aggregate })
        };
        let desks = (0..cores()).map(desk).collect::<Result<_>>()?;
        Ok(Self {
            contract,
            network,
            customers,
            work,
            encoding: contract.update_encoding()?,
            model: GlobalModel::initial(start, contract)?,
            state: contract.server_state(parameters),
            aggregate: Mutex::new(whole),
            sums: PlainSums::new(contract, parameters, &spool)?,
            clip_norms: Mutex::default(),
            feedback: Feedback::open(&folder.path().join("feedback"))?,
            spool,
            desks,
            round: 0,
            _folder: folder,
        })
    }

    /// Where the model is.
    pub fn parameters(&self) -> Vec<f32> {
        parameters_of(&self.model)
    }

    /// What the job would end with now: the average of its rounds' models, if it keeps one.
    pub fn concluded(&self) -> Vec<f32> {
        parameters_of(&self.model.clone().concluded(self.state.as_ref()))
    }

    /// The next round, of `cohort`; returns the time of its sites' work, added up. `generator` gives each site one of its
    /// own, in the cohort's order. `done` is told of each site that is.
    pub fn round(
        &mut self,
        cohort: impl Iterator<Item = usize> + Send,
        generator: &mut Generator,
        done: impl Fn() + Sync,
    ) -> Result<Duration> {
        let parameters = self.parameters();
        let round = SiteRounds {
            contract: self.contract,
            network: self.network,
            customers: self.customers,
            work: self.work,
            encoding: self.encoding,
            base: &parameters,
            round: RoundId(self.round),
            aggregate: &self.aggregate,
            sums: self.sums.as_ref(),
            clip_norms: &self.clip_norms,
            feedback: &self.feedback,
            spool: &self.spool,
        };
        let turns = Mutex::new(Some((cohort, generator)));
        let next = || {
            let mut turns = lock(&turns);
            let (cohort, generator) = turns.as_mut()?;
            Some((cohort.next()?, generator.fork()))
        };
        let at_desk = |desk: &mut Desk| {
            let mut spent = Duration::ZERO;
            while let Some((site, mut generator)) = next() {
                let begun = Instant::now();
                if let Err(error) = round.site(site, desk, &mut generator) {
                    // Nobody begins another site.
                    *lock(&turns) = None;
                    return Err(error.context(format!("at simulated site {site}")));
                }
                spent += begun.elapsed();
                done();
            }
            Ok(spent)
        };
        let at_desk = &at_desk;
        let spent = thread::scope(|scope| {
            let desks: Vec<_> =
                self.desks.iter_mut().map(|desk| scope.spawn(move || at_desk(desk))).collect();
            let ends: Vec<Result<Duration>> = desks
                .into_iter()
                .map(|desk| desk.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect();
            ends.into_iter().sum::<Result<Duration>>()
        })?;
        if let Some(sums) = &self.sums {
            let round = RoundId(self.round);
            self.model = sums.step(self.model.clone(), self.contract, round, self.state.as_mut())?;
            self.round += 1;
            return Ok(spent);
        }
        let mut aggregate = lock(&self.aggregate);
        for part in self.desks.iter_mut().filter_map(|desk| desk.aggregate.as_mut()) {
            aggregate.take(part)?;
        }
        self.model = self.model.clone().moved_by(aggregate.combine()?, self.state.as_mut());
        aggregate.clear()?;
        self.round += 1;
        Ok(spent)
    }
}

/// What the sites of one round share.
struct SiteRounds<'a> {
    contract: &'a JobContract,
    network: &'a Network,
    customers: &'a Customers,
    work: Work,
    encoding: Encoding,
    base: &'a [f32],
    round: RoundId,
    aggregate: &'a Mutex<Aggregate>,
    sums: Option<&'a PlainSums>,
    clip_norms: &'a Mutex<HashMap<usize, ClipNorm>>,
    feedback: &'a Feedback,
    spool: &'a Arc<Spool>,
}

impl SiteRounds<'_> {
    /// The round of site `number`, up to its update in the aggregate.
    fn site(&self, number: usize, desk: &mut Desk, generator: &mut Generator) -> Result<()> {
        if let Some(sums) = self.sums {
            return self.add_share(number, desk, generator, sums);
        }
        let memory = std::mem::take(&mut desk.memory);
        let update = match self.work {
            Work::Train => self.train(number, &mut desk.tools, generator, memory)?,
            Work::Nothing => ModelUpdate::of_nothing(self.base.len(), memory),
        };
        let compression = self.contract.federation.compression;
        let update = update.simulated(leftovers_of(number), compression, self.feedback)?;
        let admitted =
            AdmittedUpdate::simulated(number as u64, update.into_bytes(), self.encoding, self.spool)?
                .map_err(|outcome| anyhow!("the update was refused: {outcome}"))?;
        desk.memory = match &mut desk.aggregate {
            Some(aggregate) => aggregate.add(admitted, 0)?,
            None => lock(self.aggregate).add(admitted, 0)?,
        };
        Ok(())
    }

    /// The round of site `number` in a secure sum.
    fn add_share(
        &self,
        number: usize,
        desk: &mut Desk,
        generator: &mut Generator,
        sums: &PlainSums,
    ) -> Result<()> {
        let Self { contract, network, base: parameters, round, .. } = *self;
        let encoding = sums.encoding();
        let share = match self.work {
            Work::Train => {
                let table = &self.customers.site(number);
                let base = RoundBase { round, parameters, engine: &Engine::Processor, clip_norm: None };
                let local = LocalRound { contract, network, base, table };
                summed::share(local, &encoding, &mut desk.tools, generator)?
            }
            Work::Nothing => vec![1; parameters.len()],
        };
        sums.add(number, &share);
        Ok(())
    }

    fn train(
        &self,
        number: usize,
        tools: &mut Tools,
        generator: &mut Generator,
        memory: Vec<u8>,
    ) -> Result<ModelUpdate<Simulated>> {
        let Self { contract, network, base: parameters, round, .. } = *self;
        let table = &self.customers.site(number);
        let clip_norm = lock(self.clip_norms).get(&number).copied();
        let base = RoundBase { round, parameters, engine: &Engine::Processor, clip_norm };
        let local = LocalRound { contract, network, base, table };
        let RoundEnd { update, clip_norm } =
            local_steps(local, Simulated::round_of(contract, parameters.len())?, tools, generator, memory)?;
        if contract.training.clipping == Clipping::Quantile {
            lock(self.clip_norms).insert(number, clip_norm);
        }
        Ok(update)
    }
}

/// The name under which a site's leftovers of compression are kept: in place of the job's, there being one job and many
/// sites.
fn leftovers_of(site: usize) -> JobId {
    let mut name = [0; 32];
    name[..8].copy_from_slice(&(site as u64).to_be_bytes());
    JobId::from_bytes(name)
}

/// Cores of this machine.
pub fn cores() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

fn parameters_of(model: &GlobalModel) -> Vec<f32> {
    let (parameters, _) = model.bytes.as_chunks::<4>();
    parameters.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere ends the simulation as well: it is passed on when its thread is joined.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
