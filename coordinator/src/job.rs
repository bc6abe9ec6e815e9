//! A job's life as a pure state machine: events and the time in, actions out. The driver carries them
//! out, saving before it sends.
//!
//! A job waits until all sites that are there have answered and enough have agreed. A site that says it
//! waits for its own people has answered: nobody waits for it, and it comes in with the next round once it
//! agrees. Then come the rounds:
//! a round starts for every agreed site that is connected, and for each that comes before the contract's `min_time_s` are over.
//! It closes after that time as soon as `min_sites` have contributed and nobody is waited for. A site is waited for until it
//! has contributed, has said it will not, or has been gone for [`GRACE_MS`]; and all of them only while there is
//! progress: something of a site came in, or a site came back, within `max_idle_s`. At `max_time_s` a round closes in any
//! case, and one with fewer contributions than `min_sites` ends the job with a reason; when everyone has left or
//! skipped before, such a round is given up and the job goes on from the model it had. Sites that a round closes without
//! are told so; it costs them nothing, and they are in the next.

use std::collections::BTreeMap;
use std::sync::Arc;
use weighhouse_shared::ids::{ContentHash, RoundId, SiteId};
use weighhouse_shared::job::{JobContract, RoundTask};
use weighhouse_shared::wire::messages::{Decision, JobStatus, Outcome};

/// How long a site that left is waited for, in milliseconds.
pub const GRACE_MS: u64 = 10_000;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A site connected.
    SiteOnline(SiteId),
    /// A site's connection is gone.
    SiteOffline(SiteId),
    /// A site answered the offer.
    Answered(SiteId, Decision),
    /// A site will not contribute to the round.
    Skipped(SiteId, RoundId),
    /// A part of a site's contribution came in.
    Progress(SiteId),
    /// A site's admitted contribution was counted.
    Counted(SiteId, Part),
    /// The round that was closed is stored, with this model.
    Committed(ContentHash),
    /// The operator ends the job.
    Stop,
    /// Time has passed.
    Tick,
}

/// What a site contributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A model update.
    Update,
    /// A histogram of scores.
    Evaluation,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Offer the job to a site.
    Offer(SiteId),
    /// Start the round for a site.
    StartRound(SiteId, RoundId, RoundTask),
    /// Store what the round came to, then say [`Event::Committed`].
    Commit(RoundId),
    /// Store that the round came to nothing and the model is as it was, then say [`Event::Committed`].
    GiveUp(RoundId),
    /// Tell a site that the round closed without it.
    Late(SiteId, RoundId),
    /// Save the job's state: a site's answer or its status changed.
    Save,
    /// The job has all the sites it takes: this one, which accepted, is told that it is over for it.
    Dismiss(SiteId),
    /// The job is over: tell everyone.
    End(JobStatus),
}

#[derive(Debug, Clone, Default)]
struct Member {
    answer: Option<Decision>,
    online: bool,
    /// It has agreed on this connection: it knows the job and can take its rounds.
    ready: bool,
    /// It accepted when the job had all the sites it takes.
    dismissed: bool,
    gone_since: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Progress {
    updated: bool,
    evaluated: bool,
    skipped: bool,
}

impl Progress {
    fn is_done(self, task: RoundTask) -> bool {
        self.skipped || if task.train { self.updated } else { self.evaluated }
    }
}

#[derive(Debug, Clone)]
struct OpenRound {
    task: RoundTask,
    opened: u64,
    /// When something of a site came in last.
    progressed: u64,
    sites: BTreeMap<SiteId, Progress>,
}

/// When an open round may close, in milliseconds of the machine's clock.
struct Deadlines {
    /// Not before that.
    earliest: u64,
    /// Without progress until then, with enough contributions.
    idle: u64,
    /// At the latest.
    latest: u64,
}

#[derive(Debug, Clone)]
enum Phase {
    /// Until enough sites take part; since when.
    Waiting(u64),
    Open(OpenRound),
    /// Until the closed round is stored.
    Committing,
    Over,
}

/// One job.
#[derive(Debug)]
pub struct JobMachine {
    contract: Arc<JobContract>,
    status: JobStatus,
    round: RoundId,
    model: ContentHash,
    members: BTreeMap<SiteId, Member>,
    phase: Phase,
    /// When something was last handled: what was due by then has been seen to.
    seen: u64,
}

impl JobMachine {
    /// A job as it was saved: `round` comes next, from `model`. Nobody is connected yet.
    pub fn restore(
        contract: Arc<JobContract>,
        status: JobStatus,
        round: RoundId,
        model: ContentHash,
        answers: &BTreeMap<SiteId, Decision>,
        now: u64,
    ) -> Self {
        let member = |answer: &Decision| Member {
            answer: Some(*answer),
            online: false,
            ready: false,
            dismissed: false,
            gone_since: now,
        };
        let members = answers.iter().map(|(site, answer)| (*site, member(answer))).collect();
        let phase = if status.is_final() { Phase::Over } else { Phase::Waiting(now) };
        Self { contract, status, round, model, members, phase, seen: now }
    }

    /// Where the job stands.
    pub fn status(&self) -> &JobStatus {
        &self.status
    }

    /// The round that is open or comes next.
    pub fn round(&self) -> RoundId {
        self.round
    }

    /// The model that round starts from.
    pub fn model(&self) -> ContentHash {
        self.model
    }

    /// The contract.
    pub fn contract(&self) -> &Arc<JobContract> {
        &self.contract
    }

    /// What the sites answered.
    pub fn answers(&self) -> BTreeMap<SiteId, Decision> {
        self.members.iter().filter_map(|(site, member)| Some((*site, member.answer?))).collect()
    }

    /// Contributions in the open round, and sites in it.
    pub fn contributions(&self) -> (u32, u32) {
        match &self.phase {
            Phase::Open(open) => (count_in(open), open.sites.len() as u32),
            _ => (0, 0),
        }
    }

    /// Sites that agreed.
    pub fn accepted(&self) -> u32 {
        self.members.values().filter(|member| member.answer == Some(Decision::Accepted)).count() as u32
    }

    /// Whether `part` of `site` for `round`, made from `base`, counts now.
    pub fn verdict(
        &self,
        site: SiteId,
        round: RoundId,
        base: Option<ContentHash>,
        part: Part,
    ) -> Result<(), Outcome> {
        let open = match &self.phase {
            // The contribution of a site that was too slow.
            _ if round < self.round => return Err(Outcome::Late),
            Phase::Over => return Err(Outcome::Late),
            Phase::Committing if round == self.round => return Err(Outcome::Late),
            Phase::Open(open) if round == self.round => open,
            _ => return Err(Outcome::WrongRound),
        };
        let progress = open.sites.get(&site).ok_or(Outcome::WrongRound)?;
        if base.is_some_and(|base| base != self.model) {
            return Err(Outcome::WrongModel);
        }
        let (wanted, repeated) = match part {
            Part::Update => (open.task.train, progress.updated),
            Part::Evaluation => (open.task.evaluate, progress.evaluated),
        };
        match (wanted, repeated) {
            (false, _) => Err(Outcome::WrongRound),
            (true, true) => Err(Outcome::Repeated),
            (true, false) => Ok(()),
        }
    }

    /// Takes what happened at `now` (milliseconds of any steady clock), returns what to do.
    pub fn handle(&mut self, event: Event, now: u64) -> Vec<Action> {
        if matches!(self.phase, Phase::Over) {
            return Vec::new();
        }
        self.seen = now;
        let mut actions = Vec::new();
        match event {
            Event::SiteOnline(site) => {
                let member = self.members.entry(site).or_default();
                (member.online, member.ready) = (true, false);
                match member.answer {
                    _ if member.dismissed => {}
                    // An agreed site gets the offer again: it may have lost its memory, not its ledger. A
                    // waiting one may have been told what to answer.
                    None | Some(Decision::Accepted | Decision::Waiting) => {
                        actions.push(Action::Offer(site));
                    }
                    Some(_) => {}
                }
            }
            Event::SiteOffline(site) => {
                if let Some(member) = self.members.get_mut(&site) {
                    (member.online, member.ready, member.gone_since) = (false, false, now);
                }
            }
            Event::Answered(site, decision) => {
                let full = self.accepted() >= self.contract.federation.max_sites;
                let member = self.members.entry(site).or_default();
                let known = member.answer;
                if known != Some(Decision::Accepted) && decision == Decision::Accepted && full {
                    member.dismissed = true;
                    actions.push(Action::Dismiss(site));
                    self.open_or_close(now, &mut actions);
                    return actions;
                }
                member.answer = Some(decision);
                member.ready = decision == Decision::Accepted;
                if known != Some(decision) {
                    actions.push(Action::Save);
                }
                // One that leaves is not waited for.
                if let (Phase::Open(open), true) = (&mut self.phase, decision != Decision::Accepted)
                    && let Some(progress) = open.sites.get_mut(&site)
                {
                    progress.skipped = true;
                }
                // Back in the middle of a round: it may send what it has. New before its shortest time is over: it takes
                // part.
                let min_time = 1000 * u64::from(self.contract.federation.min_time_s);
                if let (Phase::Open(open), Decision::Accepted) = (&mut self.phase, decision) {
                    if now < open.opened + min_time {
                        open.sites.entry(site).or_default();
                    }
                    if open.sites.get(&site).is_some_and(|progress| !progress.is_done(open.task)) {
                        open.progressed = now;
                        actions.push(Action::StartRound(site, self.round, open.task));
                    }
                }
            }
            Event::Skipped(site, round) => {
                if let Phase::Open(open) = &mut self.phase
                    && round == self.round
                    && let Some(progress) = open.sites.get_mut(&site)
                {
                    progress.skipped = true;
                }
            }
            Event::Progress(site) => {
                if let Phase::Open(open) = &mut self.phase
                    && open.sites.get(&site).is_some_and(|progress| !progress.is_done(open.task))
                {
                    open.progressed = now;
                }
            }
            Event::Counted(site, part) => {
                if let Phase::Open(open) = &mut self.phase
                    && let Some(progress) = open.sites.get_mut(&site)
                {
                    open.progressed = now;
                    match part {
                        Part::Update => progress.updated = true,
                        Part::Evaluation => progress.evaluated = true,
                    }
                }
            }
            Event::Committed(model) => {
                self.model = model;
                self.round = self.round.next();
                if self.contract.task(self.round).is_none() {
                    self.end(JobStatus::Finished, &mut actions);
                } else {
                    self.phase = Phase::Waiting(now);
                }
            }
            Event::Stop => self.end(JobStatus::Stopped, &mut actions),
            Event::Tick => {}
        }
        self.open_or_close(now, &mut actions);
        actions
    }

    /// When [`Event::Tick`] is due, if nothing else happens first.
    pub fn next_timeout(&self) -> Option<u64> {
        let gone =
            self.members.values().filter(|member| !member.online).map(|member| member.gone_since + GRACE_MS);
        let others = match &self.phase {
            Phase::Waiting(since) => vec![since + GRACE_MS],
            Phase::Open(open) => {
                let Deadlines { earliest, idle, latest } = self.deadlines(open);
                vec![earliest, idle, latest]
            }
            Phase::Committing | Phase::Over => return None,
        };
        gone.chain(others).filter(|due| *due > self.seen).min()
    }

    fn deadlines(&self, open: &OpenRound) -> Deadlines {
        let federation = &self.contract.federation;
        Deadlines {
            earliest: open.opened + 1000 * u64::from(federation.min_time_s),
            idle: open.progressed + 1000 * u64::from(federation.max_idle_s),
            latest: open.opened + 1000 * u64::from(federation.max_time_s),
        }
    }

    fn end(&mut self, status: JobStatus, actions: &mut Vec<Action>) {
        self.status = status.clone();
        self.phase = Phase::Over;
        actions.push(Action::End(status));
    }

    fn open_or_close(&mut self, now: u64, actions: &mut Vec<Action>) {
        match &self.phase {
            Phase::Waiting(since) => {
                let patient = now < since + GRACE_MS;
                self.try_open(now, patient, actions);
            }
            Phase::Open(open) => {
                let gone = |site: &SiteId| {
                    let member = self.members.get(site);
                    member.is_none_or(|member| !member.online && now >= member.gone_since + GRACE_MS)
                };
                let waiting =
                    open.sites.iter().any(|(site, progress)| !progress.is_done(open.task) && !gone(site));
                let Deadlines { earliest, idle, latest } = self.deadlines(open);
                let (contributions, needed) = (count_in(open), self.contract.federation.min_sites);
                let enough = contributions >= needed;
                // A round that everyone skipped or left is given up; its model stays as it was.
                let all_done = open.sites.values().all(|progress| progress.is_done(open.task));
                let closes = now >= earliest && (!waiting || now >= idle);
                if enough && (closes || now >= latest) {
                    let left_out = open.sites.iter().filter(|(_, progress)| !progress.is_done(open.task));
                    actions.extend(left_out.map(|(site, _)| Action::Late(*site, self.round)));
                    self.phase = Phase::Committing;
                    actions.push(Action::Commit(self.round));
                } else if !enough && all_done && now >= earliest {
                    self.phase = Phase::Committing;
                    actions.push(Action::GiveUp(self.round));
                } else if now >= latest {
                    let reason = format!(
                        "round {} had {contributions} of at least {needed} contributions after {} s; bring more sites \
                         online and submit the job again",
                        self.round, self.contract.federation.max_time_s
                    );
                    self.end(JobStatus::Failed { reason }, actions);
                }
            }
            Phase::Committing | Phase::Over => {}
        }
    }

    fn try_open(&mut self, now: u64, patient: bool, actions: &mut Vec<Action>) {
        let Some(task) = self.contract.task(self.round) else { return };
        let agreed = |member: &Member| member.answer == Some(Decision::Accepted);
        let ready: Vec<SiteId> =
            self.members.iter().filter(|(_, member)| member.ready).map(|(site, _)| *site).collect();
        let undecided = self.members.values().any(|member| {
            let unanswered = member.answer.is_none() || agreed(member);
            member.online && !member.ready && !member.dismissed && unanswered
        });
        let awaited = self
            .members
            .values()
            .any(|member| !member.online && agreed(member) && now < member.gone_since + GRACE_MS);
        if (ready.len() as u32) < self.contract.federation.min_sites || (patient && (undecided || awaited)) {
            return;
        }
        if self.status != JobStatus::Running {
            self.status = JobStatus::Running;
            actions.push(Action::Save);
        }
        let sites = ready.iter().map(|site| (*site, Progress::default())).collect();
        self.phase = Phase::Open(OpenRound { task, opened: now, progressed: now, sites });
        actions.extend(ready.into_iter().map(|site| Action::StartRound(site, self.round, task)));
    }
}

fn count_in(open: &OpenRound) -> u32 {
    let contributed =
        |progress: &&Progress| if open.task.train { progress.updated } else { progress.evaluated };
    open.sites.values().filter(contributed).count() as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use weighhouse_shared::job::JobFile;
    use weighhouse_shared::policy::PolicyRule;

    fn site(number: u8) -> SiteId {
        SiteId::from_bytes([number; 32])
    }

    fn model(number: u8) -> ContentHash {
        ContentHash::from_bytes([number; 32])
    }

    /// A job of two rounds that is evaluated before the first and after the last.
    fn machine(min_sites: u32) -> JobMachine {
        machine_with(&format!("min_sites = {min_sites}\nmax_time_s = 60"))
    }

    fn machine_with(federation: &str) -> JobMachine {
        let schema = toml::from_str(
            "name = \"test\"\ncustomer = \"id\"\nlabel = { column = \"y\", kind = \"binary\" }\n\
             features = [{ column = \"a\", min = 0.0, max = 1.0 }]",
        )
        .unwrap();
        let file: JobFile = toml::from_str(&format!(
            "name = \"test\"\nschema = \"x\"\n[privacy]\nepsilon = 8.0\ndelta = 1e-4\n[training]\nrounds = 2\n\
             [federation]\n{federation}"
        ))
        .unwrap();
        let contract = Arc::new(file.contract(schema, [0; 16]).unwrap());
        JobMachine::restore(contract, JobStatus::Waiting, RoundId(0), model(0), &BTreeMap::new(), 0)
    }

    fn started(actions: &[Action]) -> Vec<SiteId> {
        let start = |action: &Action| match action {
            Action::StartRound(site, ..) => Some(*site),
            _ => None,
        };
        actions.iter().filter_map(start).collect()
    }

    /// Two sites agreed and are in round 0.
    fn running() -> JobMachine {
        let mut machine = machine(2);
        for number in [1, 2] {
            assert_eq!(machine.handle(Event::SiteOnline(site(number)), 0), [Action::Offer(site(number))]);
        }
        assert!(started(&machine.handle(Event::Answered(site(1), Decision::Accepted), 1)).is_empty());
        let actions = machine.handle(Event::Answered(site(2), Decision::Accepted), 2);
        assert_eq!(started(&actions), [site(1), site(2)]);
        assert_eq!(machine.status(), &JobStatus::Running);
        machine
    }

    fn contribute(machine: &mut JobMachine, number: u8, part: Part, now: u64) -> Vec<Action> {
        let base = (part == Part::Update).then(|| machine.model());
        assert_eq!(machine.verdict(site(number), machine.round(), base, part), Ok(()));
        machine.handle(Event::Counted(site(number), part), now)
    }

    #[test]
    fn a_job_runs_its_rounds_and_a_last_evaluation_and_finishes() {
        let mut machine = running();
        for round in 0..2 {
            assert!(contribute(&mut machine, 1, Part::Update, 10).is_empty());
            assert_eq!(contribute(&mut machine, 2, Part::Update, 11), [Action::Commit(RoundId(round))]);
            let actions = machine.handle(Event::Committed(model(1 + round as u8)), 12);
            assert_eq!(started(&actions).len(), 2);
        }
        contribute(&mut machine, 1, Part::Evaluation, 20);
        assert_eq!(contribute(&mut machine, 2, Part::Evaluation, 21), [Action::Commit(RoundId(2))]);
        let end = machine.handle(Event::Committed(model(2)), 22);
        assert_eq!(end, [Action::End(JobStatus::Finished)]);
        assert_eq!(machine.next_timeout(), None);
    }

    #[test]
    fn only_the_first_contribution_of_an_expected_site_to_the_open_round_counts() {
        let mut machine = running();
        let verdict = |machine: &JobMachine, number, round, base| {
            machine.verdict(site(number), RoundId(round), Some(base), Part::Update)
        };
        assert_eq!(verdict(&machine, 1, 1, model(0)), Err(Outcome::WrongRound));
        assert_eq!(verdict(&machine, 3, 0, model(0)), Err(Outcome::WrongRound));
        assert_eq!(verdict(&machine, 1, 0, model(9)), Err(Outcome::WrongModel));
        contribute(&mut machine, 1, Part::Update, 10);
        assert_eq!(verdict(&machine, 1, 0, model(0)), Err(Outcome::Repeated));
        contribute(&mut machine, 2, Part::Update, 11);
        assert_eq!(verdict(&machine, 2, 0, model(0)), Err(Outcome::Late), "the round is being stored");
        machine.handle(Event::Committed(model(1)), 12);
        assert_eq!(verdict(&machine, 2, 0, model(0)), Err(Outcome::Late), "the next round is open");
        machine.handle(Event::Stop, 13);
        assert_eq!(verdict(&machine, 2, 1, model(1)), Err(Outcome::Late), "the job is over");
    }

    #[test]
    fn a_site_that_comes_back_is_given_the_open_round_again_and_one_that_stays_away_is_not_waited_for() {
        let mut machine = machine(1);
        for number in [1, 2] {
            machine.handle(Event::SiteOnline(site(number)), 0);
        }
        machine.handle(Event::Answered(site(1), Decision::Accepted), 0);
        machine.handle(Event::Answered(site(2), Decision::Accepted), 0);
        machine.handle(Event::SiteOffline(site(2)), 5);
        assert_eq!(machine.handle(Event::SiteOnline(site(2)), 6), [Action::Offer(site(2))]);
        let back = machine.handle(Event::Answered(site(2), Decision::Accepted), 7);
        assert_eq!(started(&back), [site(2)]);
        machine.handle(Event::SiteOffline(site(2)), 8);
        assert!(contribute(&mut machine, 1, Part::Update, 9).is_empty());
        assert_eq!(machine.next_timeout(), Some(8 + GRACE_MS));
        let late = Action::Late(site(2), RoundId(0));
        assert_eq!(machine.handle(Event::Tick, 8 + GRACE_MS), [late, Action::Commit(RoundId(0))]);
    }

    #[test]
    fn a_site_that_waits_for_its_people_is_not_waited_for_and_comes_in_once_it_agrees() {
        let mut machine = machine(1);
        for number in [1, 2] {
            machine.handle(Event::SiteOnline(site(number)), 0);
        }
        machine.handle(Event::Answered(site(2), Decision::Waiting), 1);
        let first = machine.handle(Event::Answered(site(1), Decision::Accepted), 2);
        assert_eq!(started(&first), [site(1)]);
        assert_eq!(contribute(&mut machine, 1, Part::Update, 3), [Action::Commit(RoundId(0))]);
        let agreed = machine.handle(Event::Answered(site(2), Decision::Accepted), 4);
        assert_eq!(agreed, [Action::Save]);
        assert_eq!(started(&machine.handle(Event::Committed(model(1)), 5)), [site(1), site(2)]);
    }

    #[test]
    fn a_job_short_of_sites_waits_for_approvals_without_a_timer_over_restarts() {
        let mut machine = machine(1);
        machine.handle(Event::SiteOnline(site(1)), 0);
        assert_eq!(machine.handle(Event::Answered(site(1), Decision::Waiting), 1), [Action::Save]);
        assert!(machine.handle(Event::Tick, GRACE_MS).is_empty());
        assert_eq!(machine.next_timeout(), None, "nothing is due by itself");
        let (contract, answers) = (machine.contract().clone(), machine.answers());
        let mut machine =
            JobMachine::restore(contract, JobStatus::Waiting, RoundId(0), model(0), &answers, 0);
        assert_eq!(machine.handle(Event::SiteOnline(site(1)), 1), [Action::Offer(site(1))]);
        assert!(machine.handle(Event::Answered(site(1), Decision::Waiting), 2).is_empty());
        assert_eq!(started(&machine.handle(Event::Answered(site(1), Decision::Accepted), 3)), [site(1)]);
    }

    #[test]
    fn a_site_that_leaves_in_the_middle_of_a_round_is_not_waited_for() {
        let mut machine = machine(1);
        for number in [1, 2] {
            machine.handle(Event::SiteOnline(site(number)), 0);
        }
        machine.handle(Event::Answered(site(1), Decision::Accepted), 0);
        machine.handle(Event::Answered(site(2), Decision::Accepted), 0);
        assert!(contribute(&mut machine, 1, Part::Update, 1).is_empty());
        let left = machine.handle(Event::Answered(site(2), Decision::RefusedPolicy(PolicyRule::Approval)), 2);
        assert_eq!(left, [Action::Save, Action::Commit(RoundId(0))]);
        assert_eq!(started(&machine.handle(Event::Committed(model(1)), 3)), [site(1)]);
    }

    #[test]
    fn a_job_that_is_full_dismisses_a_site_that_waited() {
        let mut machine = running();
        let mut contract = (**machine.contract()).clone();
        contract.federation.max_sites = 2;
        machine.contract = contract.into();
        machine.handle(Event::SiteOnline(site(3)), 5);
        machine.handle(Event::Answered(site(3), Decision::Waiting), 6);
        let told = machine.handle(Event::Answered(site(3), Decision::Accepted), 7);
        assert_eq!((told, machine.accepted()), (vec![Action::Dismiss(site(3))], 2));
        machine.handle(Event::SiteOffline(site(3)), 8);
        assert!(machine.handle(Event::SiteOnline(site(3)), 9).is_empty(), "it is not asked again");
    }

    #[test]
    fn a_round_without_enough_sites_ends_the_job_with_a_reason_in_time() {
        let mut machine = running();
        contribute(&mut machine, 1, Part::Update, 10);
        machine.handle(Event::SiteOffline(site(2)), 11);
        assert!(machine.handle(Event::Tick, 30_000).is_empty());
        let end = machine.handle(Event::Tick, 60_002);
        let [Action::End(JobStatus::Failed { reason })] = end.as_slice() else { panic!("{end:?}") };
        assert!(reason.contains("1 of at least 2"), "{reason}");
    }

    #[test]
    fn a_round_that_everyone_skips_is_given_up_and_the_job_goes_on() {
        let mut machine = running();
        machine.handle(Event::Skipped(site(1), RoundId(0)), 10);
        assert_eq!(machine.handle(Event::Skipped(site(2), RoundId(0)), 11), [Action::GiveUp(RoundId(0))]);
        assert_eq!(started(&machine.handle(Event::Committed(model(0)), 12)).len(), 2);
    }

    #[test]
    fn a_round_with_some_contributions_but_too_few_is_given_up_once_nobody_is_left() {
        let mut machine = running();
        contribute(&mut machine, 1, Part::Update, 10);
        assert_eq!(machine.handle(Event::Skipped(site(2), RoundId(0)), 11), [Action::GiveUp(RoundId(0))]);
    }

    /// Three sites agreed and are in round 0, of which one contribution is enough.
    fn three_in(federation: &str) -> JobMachine {
        let mut machine = machine_with(federation);
        for number in [1, 2, 3] {
            machine.handle(Event::SiteOnline(site(number)), 0);
        }
        for number in [1, 2, 3] {
            machine.handle(Event::Answered(site(number), Decision::Accepted), 0);
        }
        machine
    }

    #[test]
    fn a_round_with_enough_contributions_waits_for_the_others_only_while_there_is_progress() {
        let mut machine = three_in("min_sites = 1\nmax_time_s = 60\nmax_idle_s = 5");
        assert!(machine.handle(Event::Tick, 20_000).is_empty(), "none is enough yet");
        assert!(contribute(&mut machine, 1, Part::Update, 21_000).is_empty());
        assert!(machine.handle(Event::Progress(site(2)), 25_000).is_empty());
        assert_eq!(machine.next_timeout(), Some(30_000));
        assert!(machine.handle(Event::Tick, 29_999).is_empty());
        // Who has contributed cannot hold up the round.
        assert!(machine.handle(Event::Progress(site(1)), 29_999).is_empty());
        let late = |number| Action::Late(site(number), RoundId(0));
        assert_eq!(
            machine.handle(Event::Tick, 30_000),
            [late(2), late(3), Action::Commit(RoundId(0))],
            "both are told"
        );
        let next = machine.handle(Event::Committed(model(1)), 30_001);
        assert_eq!(started(&next), [site(1), site(2), site(3)], "and both are in the next round");
    }

    #[test]
    fn progress_does_not_hold_a_round_open_beyond_its_longest_time() {
        let mut machine = three_in("min_sites = 1\nmax_time_s = 20\nmax_idle_s = 5");
        assert!(contribute(&mut machine, 1, Part::Update, 1).is_empty());
        for now in (4000..20_000).step_by(4000) {
            assert!(machine.handle(Event::Progress(site(2)), now).is_empty());
        }
        let end = machine.handle(Event::Progress(site(2)), 20_000);
        assert_eq!(end.last(), Some(&Action::Commit(RoundId(0))));
    }

    #[test]
    fn a_round_stays_open_for_its_shortest_time_and_takes_in_who_comes_until_then() {
        let mut machine = machine_with("min_sites = 1\nmin_time_s = 8\nmax_time_s = 60");
        machine.handle(Event::SiteOnline(site(1)), 0);
        assert_eq!(started(&machine.handle(Event::Answered(site(1), Decision::Accepted), 0)), [site(1)]);
        assert!(contribute(&mut machine, 1, Part::Update, 100).is_empty());
        machine.handle(Event::SiteOnline(site(2)), 7_000);
        assert_eq!(started(&machine.handle(Event::Answered(site(2), Decision::Accepted), 7_999)), [site(2)]);
        machine.handle(Event::SiteOnline(site(3)), 8_000);
        assert!(started(&machine.handle(Event::Answered(site(3), Decision::Accepted), 8_000)).is_empty());
        assert_eq!(machine.contributions(), (1, 2));
        assert_eq!(contribute(&mut machine, 2, Part::Update, 8_001), [Action::Commit(RoundId(0))]);
        // Alone in its round, a site that has contributed waits for the time to be over.
        let mut machine = machine_with("min_sites = 1\nmin_time_s = 8\nmax_time_s = 60");
        machine.handle(Event::SiteOnline(site(1)), 0);
        machine.handle(Event::Answered(site(1), Decision::Accepted), 0);
        contribute(&mut machine, 1, Part::Update, 100);
        assert_eq!(machine.next_timeout(), Some(8_000));
        assert_eq!(machine.handle(Event::Tick, 8_000), [Action::Commit(RoundId(0))]);
    }

    #[test]
    fn a_restored_job_waits_for_its_sites_before_it_goes_on() {
        let contract = running().contract().clone();
        let answers = BTreeMap::from([(site(1), Decision::Accepted), (site(2), Decision::Accepted)]);
        let mut machine =
            JobMachine::restore(contract, JobStatus::Running, RoundId(1), model(1), &answers, 100);
        assert_eq!(machine.handle(Event::SiteOnline(site(1)), 101), [Action::Offer(site(1))]);
        machine.handle(Event::Answered(site(1), Decision::Accepted), 102);
        assert_eq!(machine.handle(Event::SiteOnline(site(2)), 103), [Action::Offer(site(2))]);
        let actions = machine.handle(Event::Answered(site(2), Decision::Accepted), 104);
        assert_eq!(started(&actions), [site(1), site(2)]);
    }
}
