//! What an operator asks of the driver: invites, revocations, jobs, models.

use super::{Driver, DriverError, Job, ToSite};
use crate::global_model::GlobalModel;
use crate::job::{Event, JobMachine};
use crate::roster;
use crate::secure_sum::JobSums;
use crate::store::{InviteRecord, StandingRecord, StoreError};
use bytes::Bytes;
use rustls::pki_types::CertificateDer;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use weighhouse_shared::clock;
use weighhouse_shared::identity::{Purpose, is_signed_by};
use weighhouse_shared::ids::{ContentHash, JobId, RoundId, SiteId};
use weighhouse_shared::invite::Invite;
use weighhouse_shared::job::JobContract;
use weighhouse_shared::ledger::{Population, SignedWitness};
use weighhouse_shared::privacy::accountant::StepCurves;
use weighhouse_shared::tls;
use weighhouse_shared::wire::codec;
use weighhouse_shared::wire::messages::{
    AskRoom, CoordinatorToOperator, JobStatus, JobSummary, ModelHeader, ModelSummary, OperatorToCoordinator,
    Room, SignedContract, SiteRoom, SiteStatus, SiteSummary, WitnessesHeader,
};

/// The most jobs kept.
const MAX_JOBS: usize = 10_000;

/// The most witnesses in one answer.
const MAX_WITNESSES: usize = 1_000;

/// Why a request is not met.
pub(super) enum RequestError {
    /// For the operator to read.
    Refused(String),
    /// The state cannot be saved.
    Driver(DriverError),
}

impl From<StoreError> for RequestError {
    fn from(error: StoreError) -> Self {
        Self::Driver(error.into())
    }
}

impl From<DriverError> for RequestError {
    fn from(error: DriverError) -> Self {
        Self::Driver(error)
    }
}

impl From<roster::RosterError> for RequestError {
    fn from(error: roster::RosterError) -> Self {
        Self::Refused(error.to_string())
    }
}

type Answer = (CoordinatorToOperator, Option<Bytes>);

impl Driver {
    /// Carries out one request.
    pub(super) fn request(&mut self, request: OperatorToCoordinator) -> Result<Answer, RequestError> {
        let answer = match request {
            OperatorToCoordinator::Invite(invite) => self.invite(&invite.name, invite.valid_s)?,
            OperatorToCoordinator::ListSites(_) => {
                let online: BTreeSet<SiteId> = self.online.keys().copied().collect();
                let roster = self.parts.roster.read().unwrap_or_else(std::sync::PoisonError::into_inner);
                let mut sites = roster.summaries(&online, clock::unix_time_s());
                for site in &mut sites {
                    if site.status != SiteStatus::Revoked && site.id.is_some_and(|id| self.is_set_back(id)) {
                        site.status = SiteStatus::LedgerSetBack;
                    }
                }
                CoordinatorToOperator::Sites(sites)
            }
            OperatorToCoordinator::Revoke(revoke) => {
                let record = {
                    let mut roster =
                        self.parts.roster.write().unwrap_or_else(std::sync::PoisonError::into_inner);
                    roster.revoke(&revoke.name)?
                };
                self.parts.store.put_site(&record)?;
                self.parts.store.sync()?;
                if let Some(site) = roster::site_id(&record)
                    && let Some(connected) = self.online.remove(&site)
                {
                    connected.outbox.send(ToSite::Close);
                    self.for_all_jobs(Event::SiteOffline(site))?;
                }
                let summary = roster::summary(&record, &BTreeSet::new(), clock::unix_time_s());
                CoordinatorToOperator::Revoked(summary)
            }
            OperatorToCoordinator::SubmitJob(signed) => {
                CoordinatorToOperator::Submitted(self.submit(signed)?)
            }
            OperatorToCoordinator::ListJobs(_) => {
                let mut jobs: Vec<_> = self.jobs.iter().collect();
                jobs.sort_by_key(|(_, job)| job.number);
                CoordinatorToOperator::Jobs(jobs.into_iter().map(|(id, job)| job_summary(*id, job)).collect())
            }
            OperatorToCoordinator::StopJob(stop) => {
                self.known_job(stop.job)?;
                self.step(stop.job, Event::Stop)?;
                CoordinatorToOperator::Stopped(job_summary(stop.job, &self.jobs[&stop.job]))
            }
            OperatorToCoordinator::ListModels(_) => self.list_models()?,
            OperatorToCoordinator::ExportModel(export) => {
                self.known_job(export.job)?;
                let model = GlobalModel {
                    hash: self.jobs[&export.job].machine.model(),
                    bytes: self.parts.store.model(self.jobs[&export.job].machine.model())?,
                };
                let job = &self.jobs[&export.job];
                let header = ModelHeader {
                    contract: job.signed.contract.clone(),
                    rounds: rounds_done(job),
                    model: model.hash,
                    len: model.bytes.len() as u64,
                };
                return Ok((CoordinatorToOperator::Model(header), Some(model.bytes)));
            }
            OperatorToCoordinator::AskRoom(asked) => CoordinatorToOperator::Room(self.room(&asked)?),
            OperatorToCoordinator::ListWitnesses(list) => {
                let site = {
                    let roster = self.parts.roster.read().unwrap_or_else(std::sync::PoisonError::into_inner);
                    roster.id_of(&list.name)?
                };
                let witnesses = self.parts.store.witnesses(site, list.after, MAX_WITNESSES)?;
                let lines: String = witnesses.iter().map(SignedWitness::to_line).collect();
                let header = WitnessesHeader {
                    count: witnesses.len() as u32,
                    len: lines.len() as u64,
                    last: witnesses.last().map_or(list.after, |signed| signed.witness.head.entries),
                    certificate: self.parts.certificate.to_vec(),
                };
                return Ok((CoordinatorToOperator::Witnesses(header), Some(lines.into())));
            }
            OperatorToCoordinator::ListRefusals(_) => CoordinatorToOperator::Refusals(self.list_refusals()),
            OperatorToCoordinator::WatchJob(_) => {
                return Err(RequestError::Refused("watching is asked for on a stream of its own".into()));
            }
        };
        Ok((answer, None))
    }

    fn known_job(&self, job: JobId) -> Result<(), RequestError> {
        let unknown = || {
            RequestError::Refused(format!("there is no job {}; `weighhouse job list` shows all", job.short()))
        };
        self.jobs.contains_key(&job).then_some(()).ok_or_else(unknown)
    }

    fn invite(&mut self, name: &str, valid_s: u32) -> Result<CoordinatorToOperator, RequestError> {
        let mut random = [0u8; 48];
        weighhouse_shared::privacy::Generator::from_system()
            .map_err(|error| RequestError::Refused(error.to_string()))?
            .fill(&mut random);
        let (id, secret) = random.split_first_chunk::<{ tls::INVITE_ID_LEN }>().expect("48 bytes hold 16");
        let secret: [u8; 32] = secret.try_into().expect("the other 32");
        let expires_s = clock::unix_time_s() + u64::from(valid_s);
        let record = {
            let mut roster = self.parts.roster.write().unwrap_or_else(std::sync::PoisonError::into_inner);
            roster.invite(name, InviteRecord { id: *id, secret, expires_s })?
        };
        self.parts.store.put_site(&record)?;
        self.parts.store.sync()?;
        let authority = ContentHash::of(&self.parts.authority);
        let invite = Invite { address: self.parts.public_address.clone(), authority, id: *id, secret };
        Ok(CoordinatorToOperator::Invited(weighhouse_shared::wire::messages::Invited {
            invite: invite.to_string(),
        }))
    }

    fn submit(&mut self, signed: SignedContract) -> Result<JobId, RequestError> {
        let refused = |reason: String| RequestError::Refused(reason);
        let certificate = CertificateDer::from(signed.certificate.as_slice());
        let now_s = clock::unix_time_s();
        let key = tls::verified_operator_key(&self.parts.authority, &certificate, now_s)
            .map_err(|_| refused("the job's certificate is not an operator's of this federation".into()))?;
        if !is_signed_by(&key, Purpose::JobContract, &signed.contract, &signed.signature) {
            return Err(refused("the job's signature does not fit its contract".into()));
        }
        let contract: JobContract =
            codec::decode(&signed.contract).map_err(|error| refused(error.to_string()))?;
        contract.validate().map_err(|error| refused(error.to_string()))?;
        let id = contract.id();
        if self.jobs.contains_key(&id) {
            return Ok(id);
        }
        if self.jobs.len() >= MAX_JOBS {
            return Err(refused(format!("a coordinator keeps at most {MAX_JOBS} jobs")));
        }
        let model = GlobalModel::initial(id, &contract).map_err(|error| refused(error.to_string()))?;
        self.parts.store.put_model(model.hash, &model.bytes)?;
        let number = self.jobs.values().map(|job| job.number + 1).max().unwrap_or(0);
        let contract = Arc::new(contract);
        let (round, status) = (RoundId(0), JobStatus::Waiting);
        let machine = JobMachine::restore(contract, status, round, model.hash, &BTreeMap::new(), self.now);
        let sums = JobSums::of(id, machine.contract());
        let job = Job {
            number,
            signed,
            machine,
            model: Some(model),
            state: None,
            aggregate: None,
            sums,
            histogram: None,
            refused: BTreeMap::new(),
            offered: Some(BTreeSet::new()),
            watchers: Vec::new(),
        };
        self.jobs.insert(id, job);
        self.save(id)?;
        self.parts.store.sync()?;
        let online: Vec<SiteId> = self.online.keys().copied().collect();
        for site in online {
            self.step(id, Event::SiteOnline(site))?;
        }
        Ok(id)
    }

    /// What each site's budget allows of the charges asked about.
    fn room(&self, asked: &AskRoom) -> Result<Vec<SiteRoom>, RequestError> {
        let online: BTreeSet<SiteId> = self.online.keys().copied().collect();
        let summaries = {
            let roster = self.parts.roster.read().unwrap_or_else(std::sync::PoisonError::into_inner);
            roster.summaries(&online, clock::unix_time_s())
        };
        let mut curves = StepCurves::default();
        let mut rooms = Vec::new();
        for SiteSummary { name, status, id } in summaries {
            let record = id.map(|site| self.parts.store.standing(site)).transpose()?.flatten();
            let room = record.map(|StandingRecord { as_of_s, standing }| Room {
                as_of_s,
                cap_epsilon: standing.cap_epsilon.value(),
                cap_delta: standing.cap_delta.value(),
                job_epsilon: standing.job_epsilon.value(),
                epsilon: standing.epsilon(&mut curves),
                training_steps: standing.steps_left(Population::Training, &asked.training, &mut curves),
                evaluations: asked
                    .holdout
                    .map(|event| standing.steps_left(Population::Holdout, &event, &mut curves)),
            });
            rooms.push(SiteRoom { name, status, room });
        }
        Ok(rooms)
    }

    fn list_models(&self) -> Result<CoordinatorToOperator, RequestError> {
        let mut models = Vec::new();
        let mut jobs: Vec<_> = self.jobs.iter().filter(|(_, job)| rounds_done(job) > 0).collect();
        jobs.sort_by_key(|(_, job)| job.number);
        for (id, job) in jobs {
            let contract = job.machine.contract();
            let rounds = self.parts.store.rounds(*id)?;
            models.push(ModelSummary {
                job: *id,
                name: contract.name.clone(),
                rounds: rounds_done(job),
                model: job.machine.model(),
                parameters: contract
                    .network()
                    .map(|network| network.parameter_count() as u64)
                    .unwrap_or_default(),
                quality: rounds.iter().rev().find_map(|round| round.quality),
            });
        }
        Ok(CoordinatorToOperator::Models(models))
    }
}

fn rounds_done(job: &Job) -> u32 {
    job.machine.round().0.min(job.machine.contract().training.rounds)
}

fn job_summary(id: JobId, job: &Job) -> JobSummary {
    let contract = job.machine.contract();
    JobSummary {
        job: id,
        name: contract.name.clone(),
        status: job.machine.status().clone(),
        rounds_done: rounds_done(job),
        rounds: contract.training.rounds,
        sites: job.machine.accepted(),
        epsilon: contract.privacy.epsilon.value(),
        delta: contract.privacy.delta.value(),
    }
}
