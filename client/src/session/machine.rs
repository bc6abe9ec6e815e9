//! A site's side of its sessions with the coordinator as a pure state machine: what was said, done or lost and the
//! time in, actions out. [`crate::session`] carries them out in their order.
//!
//! A session begins with a greeting: hello and the head of the ledger out, welcome and a witness back. Then offers
//! are judged, rounds go to [`Rounds`], and whatever it wants sent follows the head of the ledger that released it.
//! What is known of jobs and rounds outlives a lost connection; pauses between tries grow while none is welcomed.

use super::Notice;
use crate::contribute::Contribution;
use crate::global_model::GlobalModel;
use crate::offer::CheckedContract;
use crate::payment::PaidBytes;
use crate::round::{self, Rounds};
use std::collections::BTreeMap;
use weighhouse_shared::ids::{ContentHash, JobId, RoundId};
use weighhouse_shared::wire::messages::{
    CoordinatorToSite, Debited, Decision, Evaluation, Hello, Holding, JobAnswer, Outcome, Receipt, Renew,
    RoundSkipped, RoundStart, SignedContract, SiteToCoordinator, SumBatch, SumQuestion, SumRoster, Witnessed,
};
use weighhouse_shared::wire::{OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION, common_version};

/// First pause before connecting anew, in milliseconds; doubled up to [`MAX_PAUSE_MS`] while no session is welcomed.
pub const MIN_PAUSE_MS: u64 = 200;
/// The longest pause, in milliseconds.
pub const MAX_PAUSE_MS: u64 = 30_000;
/// How long a coordinator may take to greet, in milliseconds.
pub const GREETING_MS: u64 = 30_000;
/// The protocol version that brought [`Renew`], [`Holding`] and [`Debited`].
const SECOND_VERSION: u16 = 2;
/// The protocol version that brought secure sums.
const SUM_VERSION: u16 = 3;

/// Something that happened.
#[derive(Debug)]
pub enum Event {
    /// The control stream is open.
    Linked,
    /// A message came.
    Heard(CoordinatorToSite),
    /// An offer was judged.
    Judged(Judged),
    /// Someone at the site decided about a job.
    Rung(JobId, SignedContract),
    /// A model has come in whole; its hash was checked.
    ModelArrived(GlobalModel),
    /// A round's work is done; None if it gave nothing.
    Worked {
        /// The job.
        job: JobId,
        /// The round.
        round: RoundId,
        /// What may leave.
        contribution: Option<Contribution>,
    },
    /// The site's certificate is about to expire.
    Expiring,
    /// There is no connection, or none any more; why, for people.
    Lost(String),
    /// Time has passed.
    Tick,
}

/// What a judged offer came to.
#[derive(Debug)]
pub struct Judged {
    /// What the coordinator is told.
    pub answer: JobAnswer,
    /// The contract, if it was accepted.
    pub contract: Option<CheckedContract>,
    /// The policy no longer allows it: what it held is free again.
    pub left: bool,
    /// For people.
    pub notice: Notice,
    /// It was judged again because of a decision at the site.
    pub rung: bool,
}

/// Something to do.
#[derive(Debug)]
pub enum Action {
    /// Connect, and open the control stream; then say [`Event::Linked`] or [`Event::Lost`].
    Connect,
    /// Send a message.
    Send(SiteToCoordinator),
    /// Send the head of the ledger, as it is on disk, before this contribution leaves.
    TellHead(Option<(JobId, RoundId)>),
    /// Send what the budget still allows.
    TellStanding,
    /// If a model of this job has come in part, send how much.
    TellPart(JobId),
    /// Keep what the coordinator saw of the ledger; the session ends if the ledger contradicts it.
    TakeWitness(Witnessed),
    /// Judge an offer, set its charges aside, then say [`Event::Judged`].
    Judge {
        /// The offer.
        offer: SignedContract,
        /// Because of a decision at the site.
        rung: bool,
    },
    /// Models of this job may come, of so many bytes; None: no more.
    Expect {
        /// The job.
        job: JobId,
        /// Bytes of its models.
        len: Option<u64>,
    },
    /// Work out a round's contribution, then say [`Event::Worked`].
    Work {
        /// The contract.
        contract: CheckedContract,
        /// The round.
        start: RoundStart,
        /// The parameters it starts from.
        model: Vec<f32>,
    },
    /// Send the site's key for the secure sums of this job, once its secret is on disk.
    TellSumKey(CheckedContract),
    /// Take the roster of a job's secure sums, then send the site's part in its next batch.
    TakeSumRoster(SumRoster),
    /// Take a batch of a job's secure sums, then send the site's part in the next one.
    TakeSumBatch(SumBatch),
    /// Send the answer to a question about a round's survivors, once it is on disk that it was given.
    AnswerSum(SumQuestion),
    /// Send an update.
    Upload {
        /// The job it is for.
        job: JobId,
        /// The round it is for.
        round: RoundId,
        /// Its bytes, and the model they were made from.
        paid: PaidBytes,
        /// The coordinator holds so many of them already.
        from: u64,
    },
    /// The coordinator says that a job is over.
    Ended {
        /// The job.
        job: JobId,
        /// Whether it took part in this daemon's life.
        known: bool,
    },
    /// Free what the job did not spend, and forget what was stored for it.
    Close(JobId),
    /// Show this certificate, in DER, from the next connection on.
    KeepCertificate(Vec<u8>),
    /// Tell others.
    Notice(Notice),
    /// End the session.
    Fail(Failure),
}

/// Why a session is ended from this side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The coordinator said something out of turn.
    Protocol,
    /// It speaks this version.
    Version(u16),
    /// It does not greet.
    Silent,
}

/// What a session begins with.
pub fn hello() -> SiteToCoordinator {
    let release = env!("CARGO_PKG_VERSION").to_owned();
    SiteToCoordinator::Hello(Hello { protocol: PROTOCOL_VERSION, release })
}

/// The version that both speak, from the answer to [`hello`].
pub fn agreed(answer: &CoordinatorToSite) -> Result<u16, Failure> {
    match answer {
        CoordinatorToSite::Welcome(welcome) => common_version(welcome.protocol)
            .filter(|version| *version == welcome.protocol)
            .ok_or(Failure::Version(welcome.protocol)),
        CoordinatorToSite::VersionRefused(versions) => Err(Failure::Version(versions.coordinator)),
        _ => Err(Failure::Protocol),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The next try is due then.
    Down(u64),
    /// Under way.
    Connecting,
    /// Hello was said then.
    Greeting(u64),
    /// Welcomed; the witness is still to come.
    Welcomed(u64),
    Up,
}

/// The sessions of one site.
#[derive(Debug)]
pub struct SessionMachine {
    phase: Phase,
    /// What both speak, as of the last welcome.
    version: u16,
    pause: u64,
    rounds: Rounds,
    /// What the coordinator knows of this site's answers, in this session.
    told: BTreeMap<JobId, Decision>,
    /// What the coordinator holds of this site's updates, in this session.
    held: BTreeMap<JobId, Holding>,
    /// Updates that are sent once the evaluation of their round has its receipt: they travel on streams of their own, and
    /// one that overtook it could close the round without it.
    behind: BTreeMap<JobId, (RoundId, Vec<Action>)>,
}

impl SessionMachine {
    /// The first try is due at `now`, in milliseconds of any steady clock.
    pub fn new(now: u64) -> Self {
        Self {
            phase: Phase::Down(now),
            version: OLDEST_PROTOCOL_VERSION,
            pause: MIN_PAUSE_MS,
            rounds: Rounds::default(),
            told: BTreeMap::new(),
            held: BTreeMap::new(),
            behind: BTreeMap::new(),
        }
    }

    /// Whether the greeting is over.
    pub fn is_up(&self) -> bool {
        self.phase == Phase::Up
    }

    /// Whether the site takes part in `job`, as far as this daemon knows.
    pub fn takes_part(&self, job: &JobId) -> bool {
        self.rounds.model_len(job).is_some()
    }

    /// When [`Event::Tick`] is due, if nothing else happens first.
    pub fn next_timeout(&self) -> Option<u64> {
        match self.phase {
            Phase::Down(due) => Some(due),
            Phase::Greeting(since) | Phase::Welcomed(since) => Some(since + GREETING_MS),
            Phase::Connecting | Phase::Up => None,
        }
    }

    /// Takes what happened at `now`, returns what to do, in this order.
    pub fn handle(&mut self, event: Event, now: u64) -> Vec<Action> {
        match event {
            Event::Tick => match self.phase {
                Phase::Down(due) if now >= due => {
                    self.phase = Phase::Connecting;
                    vec![Action::Connect]
                }
                Phase::Greeting(since) | Phase::Welcomed(since) if now >= since + GREETING_MS => {
                    vec![Action::Fail(Failure::Silent)]
                }
                _ => Vec::new(),
            },
            Event::Linked => {
                self.phase = Phase::Greeting(now);
                vec![Action::Send(hello()), Action::TellHead(None)]
            }
            Event::Lost(reason) => {
                self.pause = match self.phase {
                    Phase::Up => MIN_PAUSE_MS,
                    _ => (self.pause * 2).min(MAX_PAUSE_MS),
                };
                self.phase = Phase::Down(now + self.pause);
                self.told.clear();
                self.held.clear();
                self.behind.clear();
                self.rounds.disconnected();
                vec![Action::Notice(Notice::Disconnected { reason })]
            }
            Event::Heard(message) => self.heard(message, now),
            Event::Judged(judged) => self.judged(judged),
            Event::Rung(_, offer) if self.told.contains_key(&job_of(&offer)) => {
                vec![Action::Judge { offer, rung: true }]
            }
            Event::Rung(..) => Vec::new(),
            Event::Expiring if self.is_up() && self.version >= SECOND_VERSION => {
                vec![Action::Send(SiteToCoordinator::Renew(Renew {}))]
            }
            Event::Expiring => Vec::new(),
            Event::ModelArrived(model) => self.round(round::Event::ModelArrived(model)),
            Event::Worked { job, round, contribution } => {
                self.round(round::Event::Worked { job, round, contribution })
            }
        }
    }

    fn heard(&mut self, message: CoordinatorToSite, now: u64) -> Vec<Action> {
        match (self.phase, message) {
            (Phase::Greeting(_), answer) => match agreed(&answer) {
                Ok(version) => {
                    (self.phase, self.version) = (Phase::Welcomed(now), version);
                    Vec::new()
                }
                Err(failure) => vec![Action::Fail(failure)],
            },
            (Phase::Welcomed(_), CoordinatorToSite::Witnessed(witnessed)) => {
                self.phase = Phase::Up;
                vec![Action::TakeWitness(witnessed), Action::Notice(Notice::Connected), Action::TellStanding]
            }
            (Phase::Up, CoordinatorToSite::Witnessed(witnessed)) => vec![Action::TakeWitness(witnessed)],
            (Phase::Up, CoordinatorToSite::JobOffer(offer)) => vec![Action::Judge { offer, rung: false }],
            (Phase::Up, CoordinatorToSite::RoundStart(start)) => {
                self.round(round::Event::RoundStarted(start))
            }
            (Phase::Up, CoordinatorToSite::Holding(holding)) => {
                if self.takes_part(&holding.job) {
                    self.held.insert(holding.job, holding);
                }
                Vec::new()
            }
            (Phase::Up, CoordinatorToSite::JobEnded(ended)) => {
                let job = ended.job;
                let known = self.takes_part(&job);
                self.told.remove(&job);
                self.held.remove(&job);
                self.behind.remove(&job);
                let mut actions = vec![Action::Expect { job, len: None }, Action::Ended { job, known }];
                actions.extend(self.round(round::Event::JobEnded(job)));
                actions
            }
            (Phase::Up, CoordinatorToSite::Receipt(receipt)) => {
                let Receipt { job, round, outcome } = receipt;
                tracing::debug!(job = %job.short(), round = round.0, %outcome, "receipt");
                let refused = outcome != Outcome::Admitted && self.takes_part(&job);
                let notice = refused.then_some(Action::Notice(Notice::Refused { job, round, outcome }));
                let mut actions = Vec::from_iter(notice);
                if self.behind.get(&job).is_some_and(|(of, _)| *of == round) {
                    actions.extend(self.behind.remove(&job).into_iter().flat_map(|(_, behind)| behind));
                }
                actions
            }
            (Phase::Up, CoordinatorToSite::SumRoster(told)) => {
                self.of_known_job(told.job, Action::TakeSumRoster(told))
            }
            (Phase::Up, CoordinatorToSite::SumBatch(told)) => {
                self.of_known_job(told.job, Action::TakeSumBatch(told))
            }
            (Phase::Up, CoordinatorToSite::SumQuestion(told)) => {
                self.of_known_job(told.job, Action::AnswerSum(told))
            }
            (Phase::Up, CoordinatorToSite::Renewed(renewed)) => {
                vec![Action::KeepCertificate(renewed.certificate)]
            }
            _ => vec![Action::Fail(Failure::Protocol)],
        }
    }

    fn of_known_job(&self, job: JobId, action: Action) -> Vec<Action> {
        if self.takes_part(&job) { vec![action] } else { Vec::new() }
    }

    /// An accepted job is known to the rounds before the coordinator hears of it, so that its model finds it.
    fn judged(&mut self, judged: Judged) -> Vec<Action> {
        let Judged { answer, contract, left, notice, rung } = judged;
        let (job, decision) = (answer.job, answer.decision);
        if rung && self.told.get(&job).is_none_or(|told| *told == decision) {
            return Vec::new();
        }
        self.told.insert(job, decision);
        let mut actions = vec![Action::Notice(notice)];
        let mut sums = None;
        if let Some(contract) = contract {
            let summed = contract.contract.federation.secure_sum().is_some();
            sums = Some(contract.clone()).filter(|_| summed && self.version >= SUM_VERSION);
            self.rounds.handle(round::Event::JobAccepted(contract));
        }
        let len = self.rounds.model_len(&job).filter(|_| !left);
        actions.push(Action::Expect { job, len });
        if let (Some(len), Decision::Accepted, SECOND_VERSION..) = (len, decision, self.version) {
            actions.push(match self.rounds.holds(&job) {
                Some((round, content)) => {
                    Action::Send(SiteToCoordinator::Holding(Holding { job, round, content, received: len }))
                }
                None => Action::TellPart(job),
            });
        }
        // The key first: who agrees can be on the roster.
        actions.extend(sums.map(Action::TellSumKey));
        actions.push(Action::Send(SiteToCoordinator::JobAnswer(answer)));
        if left {
            actions.extend(self.round(round::Event::JobEnded(job)));
        }
        actions
    }

    fn round(&mut self, event: round::Event) -> Vec<Action> {
        let wanted = self.rounds.handle(event);
        wanted.into_iter().flat_map(|action| self.wanted(action)).collect()
    }

    fn wanted(&mut self, action: round::Action) -> Vec<Action> {
        match action {
            round::Action::Work { contract, start, model } => vec![Action::Work { contract, start, model }],
            round::Action::Skip { job, round } => self.if_up(vec![skipped(job, round)]),
            round::Action::Send { .. } if self.phase != Phase::Up => Vec::new(),
            round::Action::Send { start, contribution } => self.sent(start, contribution),
            round::Action::Close(job) => vec![Action::Close(job), Action::TellStanding],
        }
    }

    /// What is worked out while there is no session waits until the round is started again.
    fn if_up(&self, actions: Vec<Action>) -> Vec<Action> {
        if self.phase == Phase::Up { actions } else { Vec::new() }
    }

    /// The head first: what released the contribution is on disk, so the head covers it.
    fn sent(&mut self, start: RoundStart, contribution: Contribution) -> Vec<Action> {
        let (job, round) = (start.job, start.round);
        let Contribution { evaluation, update, charges } = contribution;
        let charges = charges.into_iter().filter(|_| self.version >= SECOND_VERSION);
        let debited = |charge| Action::Send(SiteToCoordinator::Debited(Debited { job, round, charge }));
        let mut actions: Vec<Action> = charges.map(debited).collect();
        if evaluation.is_some() || update.is_some() {
            actions.push(Action::TellHead(Some((job, round))));
        }
        let evaluated = evaluation.is_some();
        match evaluation {
            Some(histogram) => {
                let evaluation = Evaluation { job, round, histogram };
                actions.push(Action::Send(SiteToCoordinator::Evaluation(evaluation)));
            }
            None if start.task.evaluate && !start.task.train => actions.push(skipped(job, round)),
            None => {}
        }
        let mut behind = Vec::new();
        match update {
            Some(paid) => {
                let held = self.held.get(&job);
                let same = held.filter(|held| (held.round, held.content) == (round, paid.content));
                let from = same.map_or(0, |held| held.received.min(paid.bytes.len() as u64));
                behind.push(Action::Upload { job, round, paid, from });
            }
            None if start.task.train => behind.push(skipped(job, round)),
            None => {}
        }
        behind.push(Action::Notice(Notice::Sent { job, round }));
        if evaluated && start.task.train {
            self.behind.insert(job, (round, behind));
        } else {
            actions.append(&mut behind);
        }
        actions
    }
}

fn skipped(job: JobId, round: RoundId) -> Action {
    Action::Send(SiteToCoordinator::RoundSkipped(RoundSkipped { job, round }))
}

/// The job that an offer is for.
pub fn job_of(offer: &SignedContract) -> JobId {
    JobId::from_bytes(*ContentHash::of(&offer.contract).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offer::sample_contract;
    use bytes::Bytes;
    use std::sync::Arc;
    use weighhouse_shared::job::RoundTask;
    use weighhouse_shared::wire::messages::{
        HeadVerdict, JobEnded, JobStatus, Renewed, VersionRefused, Welcome,
    };

    fn offer() -> SignedContract {
        let contract = weighhouse_shared::wire::codec::encode(&sample_contract());
        SignedContract { contract, certificate: Vec::new(), signature: Vec::new() }
    }

    fn judged(decision: Decision, rung: bool) -> Event {
        let contract = Arc::new(sample_contract());
        let job = contract.id();
        let accepted = (decision == Decision::Accepted).then_some(CheckedContract { job, contract });
        let left = matches!(decision, Decision::RefusedPolicy(_));
        let notice = Notice::Decided { job, name: "test".into(), decision, reason: None };
        let answer = JobAnswer { job, decision };
        Event::Judged(Judged { answer, contract: accepted, left, notice, rung })
    }

    fn hear(machine: &mut SessionMachine, message: CoordinatorToSite) -> Vec<Action> {
        machine.handle(Event::Heard(message), 10)
    }

    fn welcome(protocol: u16) -> CoordinatorToSite {
        CoordinatorToSite::Welcome(Welcome { protocol, release: "x".into() })
    }

    fn connect(machine: &mut SessionMachine) {
        connect_as(machine, PROTOCOL_VERSION);
    }

    fn connect_as(machine: &mut SessionMachine, version: u16) {
        machine.handle(Event::Tick, u64::MAX / 2);
        let hello = machine.handle(Event::Linked, 5);
        let [Action::Send(SiteToCoordinator::Hello(_)), Action::TellHead(None)] = &hello[..] else {
            panic!("{hello:?}")
        };
        assert!(hear(machine, welcome(version)).is_empty());
        let witnessed = Witnessed { verdict: HeadVerdict::Follows, witness: None };
        let greeted = hear(machine, CoordinatorToSite::Witnessed(witnessed));
        assert!(matches!(&greeted[..], [Action::TakeWitness(_), Action::Notice(_), Action::TellStanding]));
    }

    fn up() -> SessionMachine {
        let mut machine = SessionMachine::new(0);
        connect(&mut machine);
        machine
    }

    fn start(round: u32) -> RoundStart {
        let task = RoundTask { train: true, evaluate: false };
        let job = sample_contract().id();
        RoundStart { job, round: RoundId(round), task, model: ContentHash::of(&[round as u8]) }
    }

    fn contribution() -> Contribution {
        let (base, content) = (start(1).model, ContentHash::of(b"update"));
        let update = Some(PaidBytes { base, content, bytes: Bytes::from_static(b"update") });
        Contribution { evaluation: None, update, charges: Vec::new() }
    }

    /// A site that has worked round 1 out and sent it.
    fn contributed() -> SessionMachine {
        let mut machine = up();
        machine.handle(judged(Decision::Accepted, false), 10);
        let RoundStart { job, round, model, .. } = start(1);
        hear(&mut machine, CoordinatorToSite::RoundStart(start(1)));
        let model = GlobalModel { job, round, hash: model, parameters: Vec::new() };
        let work = machine.handle(Event::ModelArrived(model), 11);
        assert!(matches!(&work[..], [Action::Work { .. }]));
        let worked = Event::Worked { job, round, contribution: Some(contribution()) };
        let sent = machine.handle(worked, 12);
        let [Action::TellHead(Some(_)), Action::Upload { from: 0, .. }, Action::Notice(_)] = &sent[..] else {
            panic!("{sent:?}")
        };
        machine
    }

    #[test]
    fn pauses_grow_while_nobody_welcomes_and_are_short_after_a_session() {
        let mut machine = SessionMachine::new(7);
        assert_eq!(machine.next_timeout(), Some(7));
        let mut now = 7;
        for pause in [400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000] {
            assert!(matches!(&machine.handle(Event::Tick, now)[..], [Action::Connect]));
            machine.handle(Event::Lost("no".into()), now);
            assert_eq!(machine.next_timeout(), Some(now + pause));
            assert!(machine.handle(Event::Tick, now + pause - 1).is_empty());
            now += pause;
        }
        connect(&mut machine);
        machine.handle(Event::Lost("no".into()), now);
        assert_eq!(machine.next_timeout(), Some(now + MIN_PAUSE_MS));
    }

    #[test]
    fn a_coordinator_that_does_not_greet_in_time_or_speaks_out_of_turn_is_left() {
        let mut machine = SessionMachine::new(0);
        machine.handle(Event::Tick, 0);
        machine.handle(Event::Linked, 5);
        assert_eq!(machine.next_timeout(), Some(5 + GREETING_MS));
        let late = machine.handle(Event::Tick, 5 + GREETING_MS);
        assert!(matches!(&late[..], [Action::Fail(Failure::Silent)]));
        let offered = hear(&mut machine, CoordinatorToSite::JobOffer(offer()));
        assert!(matches!(&offered[..], [Action::Fail(Failure::Protocol)]));
    }

    #[test]
    fn a_coordinator_that_speaks_no_common_version_is_left_with_its_version() {
        let newer = VersionRefused { coordinator: 9, site: PROTOCOL_VERSION };
        for (answer, theirs) in [
            (CoordinatorToSite::VersionRefused(newer), 9),
            (welcome(PROTOCOL_VERSION + 1), PROTOCOL_VERSION + 1),
            (welcome(OLDEST_PROTOCOL_VERSION - 1), OLDEST_PROTOCOL_VERSION - 1),
        ] {
            let mut machine = SessionMachine::new(0);
            machine.handle(Event::Tick, 0);
            machine.handle(Event::Linked, 5);
            let told = hear(&mut machine, answer);
            assert!(matches!(&told[..], [Action::Fail(Failure::Version(version))] if *version == theirs));
        }
    }

    #[test]
    fn a_certificate_about_to_expire_is_renewed_where_the_coordinator_knows_how() {
        for (version, renews) in [(PROTOCOL_VERSION, true), (OLDEST_PROTOCOL_VERSION, false)] {
            let mut machine = SessionMachine::new(0);
            assert!(machine.handle(Event::Expiring, 1).is_empty(), "nobody is there to renew it");
            connect_as(&mut machine, version);
            let asked = machine.handle(Event::Expiring, 20);
            assert_eq!(matches!(&asked[..], [Action::Send(SiteToCoordinator::Renew(_))]), renews);
        }
        let renewed = Renewed { certificate: vec![7] };
        let kept = hear(&mut up(), CoordinatorToSite::Renewed(renewed));
        assert!(matches!(&kept[..], [Action::KeepCertificate(certificate)] if certificate == &[7]));
    }

    #[test]
    fn an_accepted_job_is_known_before_the_coordinator_hears_of_it() {
        let mut machine = up();
        let asked = hear(&mut machine, CoordinatorToSite::JobOffer(offer()));
        assert!(matches!(&asked[..], [Action::Judge { rung: false, .. }]));
        let told = machine.handle(judged(Decision::Accepted, false), 10);
        let [
            Action::Notice(_),
            Action::Expect { len: Some(_), .. },
            Action::TellPart(_),
            Action::Send(SiteToCoordinator::JobAnswer(_)),
        ] = &told[..]
        else {
            panic!("{told:?}")
        };
    }

    #[test]
    fn a_decision_at_the_site_is_told_if_it_changes_the_answer_of_this_session() {
        let mut machine = up();
        let job = sample_contract().id();
        assert!(machine.handle(Event::Rung(job, offer()), 9).is_empty(), "nobody asked yet");
        machine.handle(judged(Decision::Waiting, false), 10);
        let again = machine.handle(Event::Rung(job, offer()), 11);
        assert!(matches!(&again[..], [Action::Judge { rung: true, .. }]));
        assert!(machine.handle(judged(Decision::Waiting, true), 12).is_empty());
        let told = machine.handle(judged(Decision::Accepted, true), 13);
        assert!(matches!(told.last(), Some(Action::Send(SiteToCoordinator::JobAnswer(_)))));
    }

    #[test]
    fn after_a_lost_connection_the_same_bytes_are_sent_from_where_the_coordinator_has_them() {
        let mut machine = contributed();
        machine.handle(Event::Lost("cut".into()), 20);
        connect(&mut machine);
        let told = machine.handle(judged(Decision::Accepted, false), 30);
        let holds = told.iter().any(|action| {
            matches!(action, Action::Send(SiteToCoordinator::Holding(held)) if held.content == start(1).model)
        });
        assert!(holds, "the model need not come again: {told:?}");
        let RoundStart { job, round, .. } = start(1);
        let content = ContentHash::of(b"update");
        for (received, from) in [(4, 4), (99, 6)] {
            let holding = Holding { job, round, content, received };
            assert!(hear(&mut machine, CoordinatorToSite::Holding(holding)).is_empty());
            let sent = hear(&mut machine, CoordinatorToSite::RoundStart(start(1)));
            let upload = sent.iter().find_map(|action| match action {
                Action::Upload { paid, from, .. } => Some((paid.content, *from)),
                _ => None,
            });
            assert_eq!(upload, Some((content, from)));
        }
    }

    #[test]
    fn work_done_without_a_session_waits_for_its_round_to_be_started_again() {
        let mut machine = up();
        machine.handle(judged(Decision::Accepted, false), 10);
        let RoundStart { job, round, model, .. } = start(1);
        let model = GlobalModel { job, round, hash: model, parameters: Vec::new() };
        machine.handle(Event::ModelArrived(model), 11);
        hear(&mut machine, CoordinatorToSite::RoundStart(start(1)));
        machine.handle(Event::Lost("cut".into()), 12);
        let contribution = Some(contribution());
        assert!(machine.handle(Event::Worked { job, round, contribution }, 13).is_empty());
        connect(&mut machine);
        let sent = hear(&mut machine, CoordinatorToSite::RoundStart(start(1)));
        assert!(sent.iter().any(|action| matches!(action, Action::Upload { .. })));
    }

    #[test]
    fn an_ended_job_is_closed_and_no_model_of_it_may_come() {
        let mut machine = contributed();
        let job = sample_contract().id();
        let ended = JobEnded { job, status: JobStatus::Finished };
        let actions = hear(&mut machine, CoordinatorToSite::JobEnded(ended));
        let [
            Action::Expect { len: None, .. },
            Action::Ended { known: true, .. },
            Action::Close(_),
            Action::TellStanding,
        ] = &actions[..]
        else {
            panic!("{actions:?}")
        };
        assert!(!machine.takes_part(&job));
    }
}
