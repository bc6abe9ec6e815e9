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
//!
//! In a secure sum a round that has enough contributions does not commit at once: its sum is opened first, by those whose
//! updates are in it: see `cohort`. If it cannot be opened the round is given up. With groups there is a sum of each, and a
//! round needs only some of them: see `groups`.
//!
//! With the buffered schedule there are no rounds that all sites go through together: see `buffered`.

mod buffered;
mod cohort;
mod events;
mod groups;
mod open_round;

use crate::secure_sum::Fixed;
use buffered::Buffered;
pub use events::{Action, Event, Part};
use groups::{Fix, Groups, Opening, Prepared};
use open_round::{Deadlines, OpenRound, Progress};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use weighhouse_shared::ids::{ContentHash, RoundId, SiteId};
use weighhouse_shared::job::{JobContract, RoundTask};
use weighhouse_shared::wire::messages::{Decision, JobStatus, Outcome};

/// How long a site that left is waited for, in milliseconds.
pub const GRACE_MS: u64 = 10_000;

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

#[derive(Debug, Clone)]
enum Phase {
    /// Until enough sites take part; since when.
    Waiting(u64),
    Open(OpenRound),
    /// With the buffered schedule, while sites train, each at its own pace; since when.
    Filling(u64),
    /// In a secure sum, while those whose updates are in it are asked; since when.
    Opening(u64),
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
    /// With the buffered schedule.
    buffered: Option<Buffered>,
    /// In a secure sum.
    groups: Option<Groups>,
    /// The round that closed last, and what had come of its sites: they may send it again after a lost link.
    closed: Option<(RoundId, BTreeMap<SiteId, Progress>)>,
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
        let buffered = Buffered::of(&contract, round, model);
        let groups = Groups::of(&contract);
        Self { contract, status, round, model, members, phase, buffered, groups, closed: None, seen: now }
    }

    /// In a secure sum: what was fixed before in each group, and the survivors of this round whose sums are being opened.
    pub fn resume_sums(&mut self, fixed: Vec<Fixed>) {
        let Some(groups) = &mut self.groups else { return };
        let opening = fixed.iter().any(|fixed| fixed.survivors.is_some());
        if let (true, Phase::Waiting(since)) = (opening, &self.phase) {
            self.phase = Phase::Opening(*since);
        }
        groups.resume(fixed);
    }

    /// Whether `site` is in the masks of the round that is open, as far as this job has any.
    fn takes_part(&self, site: SiteId) -> bool {
        let trains = self.contract.task(self.round).is_some_and(|task| task.train);
        let masked = self.groups.as_ref().filter(|_| trains);
        masked.is_none_or(|groups| groups.takes_part(site, self.round))
    }

    fn ready(&self) -> BTreeSet<SiteId> {
        self.members.iter().filter(|(_, member)| member.ready).map(|(site, _)| *site).collect()
    }

    /// With the buffered schedule: how many updates each site has released, and the models so far, from the first on.
    pub fn resume(&mut self, released: BTreeMap<SiteId, u32>, models: impl IntoIterator<Item = ContentHash>) {
        if let Some(buffered) = &mut self.buffered {
            buffered.resume(released, models);
        }
    }

    /// With the buffered schedule: how many updates each site has released, or will not.
    pub fn released(&self) -> Option<&BTreeMap<SiteId, u32>> {
        self.buffered.as_ref().map(Buffered::released)
    }

    /// How many versions ago the model `base` was the newest; 0 for one that is not known.
    pub fn staleness(&self, base: ContentHash) -> u32 {
        self.buffered.as_ref().and_then(|buffered| buffered.staleness(base, self.round)).unwrap_or(0)
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

    /// What `site` answered.
    pub fn answer(&self, site: SiteId) -> Option<Decision> {
        self.members.get(&site)?.answer
    }

    /// Whether `round` is closed and not stored yet.
    pub fn is_committing(&self, round: RoundId) -> bool {
        matches!(self.phase, Phase::Committing) && round == self.round
    }

    /// Contributions in the open round, and sites in it.
    pub fn contributions(&self) -> (u32, u32) {
        match &self.phase {
            Phase::Open(open) => (open.contributions(), open.sites.len() as u32),
            Phase::Filling(_) => self.buffered.as_ref().map_or((0, 0), Buffered::filling),
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
        if let (Phase::Filling(_), Some(buffered)) = (&self.phase, &self.buffered) {
            let ready = self.members.get(&site).is_some_and(|member| member.ready);
            return match part {
                Part::Update if ready => buffered.verdict(site, round, base, self.round),
                _ => Err(Outcome::WrongRound),
            };
        }
        let counted = |(of, sites): &(RoundId, BTreeMap<SiteId, Progress>)| {
            let progress = sites.get(&site).filter(|_| *of == round).copied().unwrap_or_default();
            if part == Part::Update { progress.updated } else { progress.evaluated }
        };
        if self.closed.as_ref().is_some_and(counted) {
            return Err(Outcome::Repeated);
        }
        let open = match &self.phase {
            // The contribution of a site that was too slow.
            _ if round < self.round => return Err(Outcome::Late),
            Phase::Over => return Err(Outcome::Late),
            Phase::Opening(_) | Phase::Committing if round == self.round => return Err(Outcome::Late),
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
                if let Some(buffered) = &mut self.buffered {
                    buffered.stopped(site);
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
                if let Some(buffered) = &mut self.buffered {
                    // An accepted one starts its turn, maybe again.
                    buffered.stopped(site);
                }
                if decision == Decision::Accepted && self.groups.is_some() {
                    actions.push(Action::Brief(site));
                }
                let takes_part = self.takes_part(site);
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
                    if takes_part && now < open.opened + min_time {
                        open.sites.entry(site).or_default();
                    }
                    if open.sites.get(&site).is_some_and(|progress| !progress.is_done(open.task)) {
                        open.progressed = now;
                        actions.push(Action::StartRound(site, self.round, open.task));
                    }
                }
            }
            Event::Skipped(site, round) if matches!(self.phase, Phase::Filling(_)) => {
                if let Some(buffered) = &mut self.buffered {
                    buffered.skipped(site, round);
                }
            }
            Event::Counted(site, Part::Update) if matches!(self.phase, Phase::Filling(_)) => {
                if let Some(buffered) = &mut self.buffered
                    && buffered.counted(site)
                {
                    self.phase = Phase::Committing;
                    actions.push(Action::Commit(self.round));
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
            Event::Keyed(site) => {
                if let Some(groups) = &mut self.groups {
                    groups.keyed(site);
                }
            }
            Event::Offered(site, batch) => {
                if let Some(groups) = &mut self.groups {
                    groups.offered(site, batch);
                }
            }
            Event::SumAnswered(site) => {
                if let Some(groups) = &mut self.groups {
                    groups.answered(site);
                }
            }
            Event::SumFaulty(group, sites) => {
                if let Some(groups) = &mut self.groups {
                    groups.faulty(group, sites);
                }
            }
            Event::SumLost(_) | Event::SumOpened(_) if !matches!(self.phase, Phase::Opening(_)) => {}
            Event::SumLost(group) => {
                if let Some(groups) = &mut self.groups {
                    groups.settled(group, false);
                }
            }
            Event::SumOpened(group) => {
                if let Some(groups) = &mut self.groups {
                    groups.settled(group, true);
                }
            }
            Event::Committed(model) => {
                self.model = model;
                self.round = self.round.next();
                if let Some(buffered) = &mut self.buffered {
                    buffered.committed(model);
                }
                match self.contract.task(self.round) {
                    None => self.end(JobStatus::Finished, &mut actions),
                    Some(task) if task.train && self.buffered.is_some() => self.phase = Phase::Filling(now),
                    Some(_) => self.phase = Phase::Waiting(now),
                }
            }
            Event::Fail(reason) => self.end(JobStatus::Failed { reason }, &mut actions),
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
                let Deadlines { earliest, idle, latest } = open.deadlines(&self.contract.federation);
                vec![earliest, idle, latest]
            }
            Phase::Filling(since) => {
                vec![since + 1000 * u64::from(self.contract.federation.max_time_s)]
            }
            Phase::Opening(since) => {
                let latest = since + 1000 * u64::from(self.contract.federation.max_time_s);
                let answers = self.groups.as_ref().and_then(Groups::answers_due);
                vec![since + GRACE_MS, latest, answers.unwrap_or(latest)]
            }
            Phase::Committing | Phase::Over => return None,
        };
        gone.chain(others).filter(|due| *due > self.seen).min()
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
                let Deadlines { earliest, idle, latest } = open.deadlines(&self.contract.federation);
                let enough = self.shortfall(open).is_none();
                // A round that everyone skipped or left is given up; its model stays as it was.
                let all_done = open.sites.values().all(|progress| progress.is_done(open.task));
                let closes = now >= earliest && (!waiting || now >= idle);
                if enough && (closes || now >= latest) {
                    let left_out = open.sites.iter().filter(|(_, progress)| !progress.is_done(open.task));
                    actions.extend(left_out.map(|(site, _)| Action::Late(*site, self.round)));
                    self.closed = Some((self.round, open.sites.clone()));
                    let survivors = open.updated();
                    match self.groups.as_mut().filter(|_| open.task.train) {
                        Some(groups) => {
                            actions.push(Action::KeepSums(self.round, groups.survived(&survivors)));
                            self.phase = Phase::Opening(now);
                            self.keep_opening(now, actions);
                        }
                        None => {
                            self.phase = Phase::Committing;
                            actions.push(Action::Commit(self.round));
                        }
                    }
                } else if !enough && all_done && now >= earliest {
                    self.phase = Phase::Committing;
                    actions.push(Action::GiveUp(self.round));
                } else if now >= latest
                    && let Some(shortfall) = self.shortfall(open)
                {
                    let reason = format!(
                        "round {} had {shortfall} after {} s; bring more sites online and submit the job again",
                        self.round, self.contract.federation.max_time_s
                    );
                    self.end(JobStatus::Failed { reason }, actions);
                }
            }
            Phase::Filling(since) => {
                let late = now >= since + 1000 * u64::from(self.contract.federation.max_time_s);
                self.keep_filling(late, actions);
            }
            Phase::Opening(_) => self.keep_opening(now, actions),
            Phase::Committing | Phase::Over => {}
        }
    }

    /// What an open round lacks to be committed; None if nothing.
    fn shortfall(&self, open: &OpenRound) -> Option<String> {
        if let Some(groups) = self.groups.as_ref().filter(|_| open.task.train) {
            return groups.shortfall(&open.updated());
        }
        let (contributions, needed) = (open.contributions(), self.contract.federation.fewest_sites());
        (contributions < needed).then(|| format!("{contributions} of at least {needed} contributions"))
    }

    /// Asks those whose updates are in the sums, until all who were asked have answered; gives the round up if that takes
    /// too long.
    fn keep_opening(&mut self, now: u64, actions: &mut Vec<Action>) {
        let ready = self.ready();
        let (Phase::Opening(since), Some(groups)) = (&self.phase, &mut self.groups) else { return };
        let late = now >= since + 1000 * u64::from(self.contract.federation.max_time_s);
        let end = match groups.open(&ready, now, now < since + GRACE_MS, late) {
            Opening::GoOn { ask, open } => {
                let ask = ask.into_iter().map(|(group, sites)| Action::Ask(group, self.round, sites));
                actions.extend(ask);
                return actions.extend(open.into_iter().map(|group| Action::OpenSum(group, self.round)));
            }
            Opening::Commit => Action::Commit(self.round),
            Opening::GiveUp => Action::GiveUp(self.round),
        };
        self.phase = Phase::Committing;
        actions.push(end);
    }

    /// Gives each site that is ready and idle its next turn; ends the job if the buffer cannot fill, or not in time.
    fn keep_filling(&mut self, late: bool, actions: &mut Vec<Action>) {
        let Some(buffered) = &mut self.buffered else { return };
        let (filled, size) = buffered.filling();
        let agreed = self.members.iter().filter(|(_, member)| member.answer == Some(Decision::Accepted));
        let spent = buffered.all_released(agreed.map(|(site, _)| *site));
        if late || spent {
            let why = match spent {
                true => "every site has released all updates that the contract allows".to_owned(),
                false => format!("after {} s", self.contract.federation.max_time_s),
            };
            let reason = format!(
                "step {} had {filled} of {size} updates: {why}; bring more sites online and submit the job again",
                self.round
            );
            return self.end(JobStatus::Failed { reason }, actions);
        }
        let ready = self.members.iter().filter(|(_, member)| member.ready);
        for (site, turn) in buffered.turns(ready.map(|(site, _)| *site)) {
            if let Some(task) = self.contract.task(turn) {
                actions.push(Action::StartRound(site, turn, task));
            }
        }
    }

    /// The sites for which the round that comes next opens now; None if it does not yet.
    fn prepared(
        &mut self,
        task: RoundTask,
        now: u64,
        patient: bool,
        actions: &mut Vec<Action>,
    ) -> Option<BTreeSet<SiteId>> {
        let ready = self.ready();
        // Online and about to say something, or gone for a moment.
        let may_come = |member: &Member| {
            let agreed = member.answer == Some(Decision::Accepted);
            let undecided = member.online && !member.ready && !member.dismissed;
            let awaited = !member.online && agreed && now < member.gone_since + GRACE_MS;
            undecided && (member.answer.is_none() || agreed) || awaited
        };
        let Some(groups) = self.groups.as_mut().filter(|_| task.train) else {
            let enough = ready.len() as u32 >= self.contract.federation.fewest_sites();
            let waits = patient && self.members.values().any(may_come);
            return (enough && !waits).then_some(ready);
        };
        let members = &self.members;
        let is_expected = |site: &SiteId| members.get(site).is_some_and(may_come);
        let is_unknown = |site: &SiteId| members.get(site).is_none_or(|member| member.answer.is_none());
        let Prepared { fixes, anew, sites } =
            groups.prepare(self.round, &ready, is_expected, is_unknown, patient);
        actions.extend(fixes.into_iter().map(|fix| match fix {
            Fix::Roster(group, sites) => Action::FixRoster(group, sites),
            Fix::Batch(group, number, sites) => Action::FixBatch(group, number, sites),
        }));
        if anew {
            self.phase = Phase::Waiting(now);
        }
        sites
    }

    fn try_open(&mut self, now: u64, patient: bool, actions: &mut Vec<Action>) {
        let Some(task) = self.contract.task(self.round) else { return };
        let ready = match self.prepared(task, now, patient, actions) {
            Some(sites) => sites,
            None => return,
        };
        if self.status != JobStatus::Running {
            self.status = JobStatus::Running;
            actions.push(Action::Save);
        }
        if self.buffered.is_some() && task.train {
            self.phase = Phase::Filling(now);
            return self.keep_filling(false, actions);
        }
        let sites = ready.iter().map(|site| (*site, Progress::default())).collect();
        self.phase = Phase::Open(OpenRound { task, opened: now, progressed: now, sites });
        actions.extend(ready.into_iter().map(|site| Action::StartRound(site, self.round, task)));
    }
}

#[cfg(test)]
mod tests;
