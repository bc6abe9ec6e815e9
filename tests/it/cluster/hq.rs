//! The coordinator: the real driver and session machines, on a disk in memory that forgets at a crash.

use super::World;
use super::book::Book;
use super::keys::{Job, keys};
use super::network::{Link, piece};
use rand::Rng;
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use tokio::sync::oneshot;
use weighhouse_coordinator::admission::Arriving;
use weighhouse_coordinator::driver::{Closed, Driver, DriverError, Inbox, Input, Outgoing, ToSite, outbox};
use weighhouse_coordinator::session::machine::{Action, Event, Failure, SessionMachine, Who};
use weighhouse_coordinator::spool::Spool;
use weighhouse_coordinator::store::{MemoryDisk, Store};
use weighhouse_shared::ids::JobId;
use weighhouse_shared::wire::messages::{
    Holding, OperatorToCoordinator, Receipt, SiteToCoordinator, StopJob,
};
use weighhouse_shared::wire::stream::Content;

/// The coordinator's process and its disk.
pub struct Hq {
    pub disk: MemoryDisk,
    process: Option<Process>,
    sessions: u64,
}

struct Process {
    driver: Driver,
    _inbox: Inbox,
    /// Rounds whose updates are being compared.
    closed: VecDeque<Closed>,
    since: u64,
    sessions: BTreeMap<u64, Session>,
}

struct Session {
    machine: SessionMachine,
    site: usize,
    number: u64,
    outgoing: Option<Outgoing>,
    /// Taken out of `outgoing`, not yet on the link.
    staged: VecDeque<ToSite>,
    holds: Option<Holding>,
}

impl Hq {
    pub fn new() -> Self {
        let mut hq = Self { disk: MemoryDisk::default(), process: None, sessions: 0 };
        hq.start(0);
        hq
    }

    /// The coordinator is started; nothing if it runs.
    pub fn start(&mut self, now: u64) {
        if self.process.is_none() {
            let (driver, inbox) = Driver::restore(keys().parts(&self.disk)).unwrap();
            let (closed, sessions) = (VecDeque::new(), BTreeMap::new());
            self.process = Some(Process { driver, _inbox: inbox, closed, since: now, sessions });
        }
    }

    pub fn runs(&self) -> bool {
        self.process.is_some()
    }

    pub fn next_timeout(&self) -> Option<u64> {
        let process = self.process.as_ref()?;
        let sessions = process.sessions.values().filter_map(|session| session.machine.next_timeout());
        process.driver.next_timeout().map(|due| due + process.since).into_iter().chain(sessions).min()
    }

    /// Dies now, or in the middle of the next thing it saves.
    pub fn crash(&mut self, world: &mut World) {
        if world.random.random_bool(0.5) {
            self.disk.fail_after(world.random.random_range(0..12));
        } else {
            self.die(world);
        }
    }

    fn die(&mut self, world: &mut World) {
        let Some(process) = self.process.take() else { return };
        for (id, mut session) in process.sessions {
            session.stage(&mut world.book);
            // Some of what was to be sent may be on its way.
            let sent = world.random.random_range(0..=session.staged.len());
            let link = world.links.get_mut(&id).unwrap();
            for command in session.staged.drain(..sent) {
                if let ToSite::Message(message) | ToSite::Last(message) = &command {
                    world.book.says(session.site, message);
                }
                put(link, command, None);
            }
            link.hq_left = true;
        }
        self.disk.crash(world.random.random_range(0..12));
        world.book.check(&self.disk);
        world.book.coordinator_died();
    }

    fn input(&mut self, input: Input, world: &mut World) {
        world.book.evaluates = matches!(input, Input::Evaluation(..));
        self.act(world, |driver, at| driver.handle(input, at));
        world.book.evaluates = false;
    }

    fn act(&mut self, world: &mut World, act: impl FnOnce(&mut Driver, u64) -> Result<(), DriverError>) {
        let Some(process) = &mut self.process else { return };
        match act(&mut process.driver, world.now - process.since) {
            Ok(()) => {
                process.closed.extend(std::iter::from_fn(|| process.driver.next_closed()));
                for session in process.sessions.values_mut() {
                    let known = session.staged.len();
                    session.stage(&mut world.book);
                    for command in session.staged.range(known..) {
                        if let ToSite::Message(message) | ToSite::Last(message) = command {
                            world.book.says(session.site, message);
                        }
                    }
                }
                world.book.check(&self.disk);
            }
            Err(DriverError::Store(_)) => self.die(world),
            Err(error) => panic!("the driver fails: {error}"),
        }
    }

    /// Updates that were being compared have been; false if none were.
    pub fn combine(&mut self, world: &mut World) -> bool {
        let closed = self.process.as_mut().and_then(|process| process.closed.pop_front());
        let Some(closed) = closed else { return false };
        self.act(world, |driver, at| driver.combined(closed.combine(), at));
        true
    }

    pub fn submit(&mut self, job: &Job, world: &mut World) {
        world.book.submitted(job);
        let (reply, _) = oneshot::channel();
        let request = OperatorToCoordinator::SubmitJob(job.signed.clone());
        self.input(Input::Request { request, reply }, world);
    }

    pub fn stop(&mut self, job: JobId, world: &mut World) {
        let (reply, _) = oneshot::channel();
        let request = OperatorToCoordinator::StopJob(StopJob { job });
        self.input(Input::Request { request, reply }, world);
    }

    pub fn knows(&self, job: JobId) -> bool {
        Store::in_memory(&self.disk).unwrap().jobs().unwrap().iter().any(|(id, _)| *id == job)
    }

    pub fn tick(&mut self, world: &mut World) {
        self.act(world, |driver, at| driver.tick(at));
        let Some(process) = &self.process else { return };
        let ids: Vec<u64> = process.sessions.keys().copied().collect();
        for id in ids {
            self.hear(id, Event::Tick, world);
        }
    }

    /// A site connects.
    pub fn accept(&mut self, id: u64, site: usize, now: u64) {
        let Some(process) = &mut self.process else { return };
        self.sessions += 1;
        let public_key = keys().site_key(site).public_key();
        let who = Who::Site { site: keys().sites[site], session: self.sessions, public_key };
        let machine = SessionMachine::new(who, now);
        let (number, staged) = (self.sessions, VecDeque::new());
        let session = Session { machine, site, number, outgoing: None, staged, holds: None };
        process.sessions.insert(id, session);
    }

    /// Whether a site's session is over its greeting.
    pub fn is_up(&self, id: u64) -> bool {
        let session = self.process.as_ref().and_then(|process| process.sessions.get(&id));
        session.is_some_and(|session| session.machine.is_up())
    }

    /// Whether something waits to be put on the link.
    pub fn has_staged(&self, id: u64) -> bool {
        let session = self.process.as_ref().and_then(|process| process.sessions.get(&id));
        session.is_some_and(|session| !session.staged.is_empty())
    }

    /// A message, or the time, comes to a session.
    pub fn hear(&mut self, id: u64, event: Event, world: &mut World) {
        let Some(process) = &mut self.process else { return };
        let Some(session) = process.sessions.get_mut(&id) else { return };
        let (site, number) = (keys().sites[session.site], session.number);
        let mut inputs = Vec::new();
        for action in session.machine.handle(event, world.now) {
            match action {
                Action::Send(message) => world.links.get_mut(&id).unwrap().send_down(message),
                Action::Connect(head) => {
                    let (outbox, outgoing) = outbox();
                    session.outgoing = Some(outgoing);
                    inputs.push(Input::Connected { site, session: number, head, outbox });
                }
                Action::Tell(input) => inputs.push(input),
                Action::Holds(holding) => session.holds = Some(holding),
                Action::Fail(Failure::Silent) => {
                    self.left(id, world);
                    return;
                }
                Action::Last(_) | Action::Enrol | Action::Fail(Failure::Protocol) => {
                    panic!("a site is taken for faulty")
                }
            }
        }
        for input in inputs {
            self.input(input, world);
        }
    }

    /// The coordinator's end of a connection is gone.
    pub fn left(&mut self, id: u64, world: &mut World) {
        world.links.get_mut(&id).unwrap().hq_left = true;
        let Some(process) = &mut self.process else { return };
        let Some(session) = process.sessions.remove(&id) else { return };
        if session.outgoing.is_some() {
            let site = keys().sites[session.site];
            let input = Input::Disconnected { site, session: session.number };
            self.input(input, world);
        }
    }

    /// Puts the next thing that waits on the link.
    pub fn send(&mut self, id: u64, world: &mut World) {
        let Some(process) = &mut self.process else { return };
        let Some(session) = process.sessions.get_mut(&id) else { return };
        let Some(command) = session.staged.pop_front() else { return };
        let ends = matches!(command, ToSite::Last(_) | ToSite::Close);
        put(world.links.get_mut(&id).unwrap(), command, session.holds.as_ref());
        if ends {
            self.left(id, world);
        }
    }

    /// An update is whole here.
    pub fn arrived(&mut self, id: u64, content: &Content, world: &mut World) {
        let Some(process) = &self.process else { return };
        let Some(session) = process.sessions.get(&id) else { return };
        let site = keys().sites[session.site];
        let (reply, mut answer) = oneshot::channel();
        let (job, round, piece) = (content.job, content.round, piece(content));
        self.input(Input::Announced { site, piece, reply }, world);
        // It may have died over that.
        let Ok(answer) = answer.try_recv() else { return };
        let spool = Spool::new(PathBuf::new());
        let begun = answer.and_then(|encoding| Arriving::begin(piece, encoding, &spool).unwrap());
        let whole = begun.and_then(|mut arriving| {
            arriving.push(&content.bytes).unwrap();
            arriving.finish().unwrap()
        });
        let input = match whole {
            Ok(update) => Input::Update(site, update),
            Err(outcome) => Input::Refused(site, Receipt { job, round, outcome }),
        };
        self.input(input, world);
    }

    /// What a site said.
    pub fn heard(&mut self, id: u64, message: SiteToCoordinator, world: &mut World) {
        self.hear(id, Event::Heard(message), world);
    }
}

impl Session {
    /// Takes what the driver wants sent.
    fn stage(&mut self, book: &mut Book) {
        let outgoing = self.outgoing.iter_mut();
        for command in outgoing.flat_map(|outgoing| std::iter::from_fn(|| outgoing.try_next())) {
            if let ToSite::Message(message) = &command {
                book.counts(self.site, message);
            }
            self.staged.push_back(command);
        }
    }
}

fn put(link: &mut Link, command: ToSite, holds: Option<&Holding>) {
    match command {
        ToSite::Message(message) | ToSite::Last(message) => link.send_down(message),
        ToSite::Model { job, round, model } => {
            let here =
                holds.is_some_and(|held| (held.job, held.round, held.content) == (job, round, model.hash));
            if !here && !link.cut {
                // A newer model of a job takes the place of one under way.
                link.models.retain(|older| older.job != job);
                link.models.push(Content {
                    job,
                    round,
                    base: model.hash,
                    hash: model.hash,
                    bytes: model.bytes,
                });
            }
        }
        ToSite::Close => {}
    }
}
