//! One site: the real session machine, payments, budget and outbox, on files of its own; its work is done in steps
//! between which anything may happen.

use super::book::Book;
use super::keys::keys;
use super::network::{Link, piece};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, VecDeque};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use weighhouse_client::budget::{Budget, BudgetError};
use weighhouse_client::contribute::{Contribution, Item, items};
use weighhouse_client::global_model::ArrivingModel;
use weighhouse_client::outbox::Outbox;
use weighhouse_client::payment::{self, PaidBytes, Payment};
use weighhouse_client::secure_sum::{SumError, Sums};
use weighhouse_client::session::machine::{Action, Event, Failure, SessionMachine};
use weighhouse_client::session::{Terms, judge};
use weighhouse_client::update::histogram_counts;
use weighhouse_shared::clock;
use weighhouse_shared::ids::JobId;
use weighhouse_shared::ledger::ReleaseKind;
use weighhouse_shared::secure_sum::site::Refusal;
use weighhouse_shared::wire::messages::{
    CoordinatorToSite, HeadVerdict, LedgerHead, RoundStart, SiteToCoordinator, Witnessed,
};
use weighhouse_shared::wire::stream::Content;

/// A site's daemon and what it leaves on disk.
pub struct Site {
    number: usize,
    folder: PathBuf,
    daemon: Option<Daemon>,
}

struct Daemon {
    machine: SessionMachine,
    budget: Budget,
    outbox: Outbox,
    sums: Sums,
    works: Vec<Work>,
    link: Option<u64>,
    /// Bytes of the models that may come.
    expected: BTreeMap<JobId, u64>,
}

/// A round's work under way: the real order of steps, with made-up bytes in the place of training.
struct Work {
    start: RoundStart,
    items: VecDeque<Item>,
    paying: Option<(Item, Payment, payment::Action)>,
    contribution: Contribution,
    begun: bool,
}

/// What a step at the site came to.
pub enum Came {
    /// Nothing more.
    Done,
    /// It wants a connection.
    Connect,
    /// It gave up its connection.
    Left,
}

impl Site {
    pub fn new(number: usize, folder: &Path) -> Self {
        let folder = folder.join(number.to_string());
        std::fs::create_dir(&folder).unwrap();
        let mut site = Self { number, folder, daemon: None };
        site.start(0);
        site
    }

    pub fn ledger(&self) -> PathBuf {
        self.folder.join("ledger.jsonl")
    }

    /// The daemon is started; nothing if it runs.
    pub fn start(&mut self, now: u64) {
        if self.daemon.is_some() {
            return;
        }
        // Other tests start processes: between fork and exec a child holds a copy of the lock that was just let go.
        let budget = loop {
            let identity = keys().site_key(self.number);
            match Budget::open(&self.ledger(), identity, &keys().policy_text, 100) {
                Err(BudgetError::Locked { .. }) => std::thread::yield_now(),
                opened => break opened.unwrap(),
            }
        };
        let outbox = Outbox::open(&self.folder.join("outbox")).unwrap();
        let sums = Sums::open(&self.folder.join("secure_sums")).unwrap();
        let (works, link, expected) = (Vec::new(), None, BTreeMap::new());
        let machine = SessionMachine::new(now);
        self.daemon = Some(Daemon { machine, budget, outbox, sums, works, link, expected });
    }

    pub fn runs(&self) -> bool {
        self.daemon.is_some()
    }

    /// Its connection, if it thinks that it has one.
    pub fn link(&self) -> Option<u64> {
        self.daemon.as_ref()?.link
    }

    pub fn next_timeout(&self) -> Option<u64> {
        self.daemon.as_ref()?.machine.next_timeout()
    }

    pub fn has_work(&self) -> bool {
        self.daemon.as_ref().is_some_and(|daemon| !daemon.works.is_empty())
    }

    /// Whether it still holds a reservation.
    pub fn holds(&self) -> bool {
        self.daemon.as_ref().is_some_and(|daemon| daemon.budget.balance().running_jobs().next().is_some())
    }

    /// SIGKILL, or the power goes: what the outbox never synced may be gone or cut short.
    pub fn crash(&mut self, random: &mut ChaCha8Rng) -> Option<u64> {
        let link = self.daemon.take().and_then(|daemon| daemon.link);
        if random.random_bool(0.3) {
            let files = std::fs::read_dir(self.folder.join("outbox")).unwrap();
            let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
            files.sort();
            if let Some(file) = files.get(random.random_range(0..files.len().max(1))) {
                let len = std::fs::metadata(file).unwrap().len();
                let kept = random.random_range(0..=len);
                if random.random_bool(0.5) {
                    std::fs::remove_file(file).unwrap();
                } else {
                    OpenOptions::new().write(true).open(file).unwrap().set_len(kept).unwrap();
                }
            }
        }
        link
    }

    /// It dies in the middle of a step: what the step wrote to the ledger is there in part.
    pub fn crash_inside(&mut self, book: &mut Book, random: &mut ChaCha8Rng) -> Option<u64> {
        let len = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.len());
        let before = len(&self.ledger());
        self.work(book, random, false);
        let link = self.crash(random);
        let after = len(&self.ledger());
        let kept = random.random_range(before..=after);
        OpenOptions::new().write(true).open(self.ledger()).unwrap().set_len(kept).unwrap();
        link
    }

    /// Something happened; what the machine wants is done at once, in its order.
    pub fn handle(&mut self, event: Event, now: u64, link: Option<&mut Link>, book: &mut Book) -> Came {
        let (number, ledger) = (self.number, self.ledger());
        let Some(daemon) = &mut self.daemon else { return Came::Done };
        let mut sink = Link::default();
        let link = link.unwrap_or(&mut sink);
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for action in daemon.machine.handle(event, now) {
                match action {
                    Action::Connect => return Came::Connect,
                    Action::Send(message) => {
                        if let SiteToCoordinator::Evaluation(evaluation) = &message {
                            let bytes: Vec<u8> =
                                evaluation.histogram.iter().flat_map(|count| count.to_le_bytes()).collect();
                            let purpose = (evaluation.job, evaluation.round, ReleaseKind::Evaluation);
                            book.leaves(number, &ledger, purpose, &bytes);
                        }
                        link.send_up(message);
                    }
                    Action::TellHead(contribution) => {
                        let (head, signature) = daemon.budget.signed_head();
                        let signature = signature.into();
                        let told = LedgerHead { contribution, head, signature };
                        link.send_up(SiteToCoordinator::LedgerHead(told));
                    }
                    Action::TellStanding => {
                        let standing = daemon.budget.balance().standing(clock::unix_time_s()).unwrap();
                        link.send_up(SiteToCoordinator::Standing(standing));
                    }
                    // Here a content travels whole.
                    Action::TellPart(_) | Action::Ended { .. } | Action::Notice(_) => {}
                    Action::KeepCertificate(_) => panic!("site {number} asked for no certificate"),
                    Action::TakeWitness(witnessed) => take_witness(number, &daemon.budget, &witnessed),
                    Action::Judge { offer, rung } => {
                        let (keys, approvals) = (keys(), keys().approvals());
                        let (authority, schema) = (keys.authority(), &keys.schema);
                        let terms = Terms { authority, schema, policy: &keys.policy, approvals: &approvals };
                        let now_s = clock::unix_time_s();
                        events.push_back(Event::Judged(judge(
                            terms,
                            &mut daemon.budget,
                            &offer,
                            rung,
                            now_s,
                        )));
                    }
                    Action::Expect { job, len: Some(len) } => {
                        daemon.expected.insert(job, len);
                    }
                    Action::Expect { job, len: None } => {
                        daemon.expected.remove(&job);
                    }
                    Action::Work { contract, start, .. } => {
                        let parameters = contract.contract.network().unwrap().parameter_count();
                        let mut items: VecDeque<Item> =
                            items(&contract.contract, parameters, &start).unwrap().into();
                        let summed = contract.contract.federation.secure_sum().is_some();
                        if summed && !daemon.sums.is_prepared(start.job, start.round) {
                            items.retain(|item| item.kind != ReleaseKind::Update);
                        }
                        let contribution =
                            Contribution { evaluation: None, update: None, charges: Vec::new() };
                        let work = Work { start, items, paying: None, contribution, begun: false };
                        daemon.works.push(work);
                    }
                    Action::Upload { job, round, paid, from } => {
                        assert_eq!(from, 0);
                        let PaidBytes { base, content: hash, bytes } = paid;
                        book.leaves(number, &ledger, (job, round, ReleaseKind::Update), &bytes);
                        book.is_from(number, (job, round), base);
                        if !link.cut {
                            link.updates.push(Content { job, round, base, hash, bytes });
                        }
                    }
                    Action::Close(job) => {
                        daemon.budget.give_back(job).unwrap();
                        daemon.outbox.forget(job, None).unwrap();
                        daemon.sums.forget(job).unwrap();
                    }
                    Action::TellSumKey(contract) => {
                        let key = daemon.sums.key(&contract, &keys().site_key(number)).unwrap();
                        link.send_up(SiteToCoordinator::SumKey(key));
                    }
                    Action::TakeSumRoster(told) => {
                        let offer = daemon.sums.take_roster(told);
                        link.send_sum(number, offer.map(|offer| offer.map(SiteToCoordinator::SumOffer)));
                    }
                    Action::TakeSumBatch(told) => {
                        let offer = daemon.sums.take_batch(told);
                        link.send_sum(number, offer.map(|offer| offer.map(SiteToCoordinator::SumOffer)));
                    }
                    Action::AnswerSum(told) => {
                        let answer = daemon.sums.answer(&told);
                        link.send_sum(
                            number,
                            answer.map(|answer| Some(SiteToCoordinator::SumAnswer(answer))),
                        );
                    }
                    Action::Fail(Failure::Silent) => return Came::Left,
                    Action::Fail(failure) => {
                        panic!("site {number} takes the coordinator for faulty: {failure:?}")
                    }
                }
            }
        }
        Came::Done
    }

    pub fn connected(&mut self, link: u64) {
        if let Some(daemon) = &mut self.daemon {
            daemon.link = Some(link);
        }
    }

    pub fn disconnected(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            daemon.link = None;
        }
    }

    /// A model arrives; nothing happens if it was not expected.
    pub fn arrived(&self, content: &Content) -> Option<Event> {
        let daemon = self.daemon.as_ref()?;
        if daemon.expected.get(&content.job) != Some(&(content.bytes.len() as u64)) {
            return None;
        }
        let mut arriving = ArrivingModel::begin(piece(content), Vec::new()).unwrap();
        arriving.push(&content.bytes);
        Some(Event::ModelArrived(arriving.finish().unwrap()))
    }

    /// One step of some work; the event that it ended with, if it did. `lasts`: the daemon does not die in it.
    pub fn work(&mut self, book: &mut Book, random: &mut ChaCha8Rng, lasts: bool) -> Option<Event> {
        let number = self.number;
        let daemon = self.daemon.as_mut()?;
        if daemon.works.is_empty() {
            return None;
        }
        let at = random.random_range(0..daemon.works.len());
        let Daemon { budget, outbox, sums, works, .. } = daemon;
        let work = &mut works[at];
        let (job, round) = (work.start.job, work.start.round);
        if !work.begun {
            outbox.forget(job, Some(round)).unwrap();
            work.begun = true;
            return None;
        }
        let Some((item, mut payment, action)) = work.paying.take() else {
            return match work.items.pop_front() {
                Some(item) => {
                    work.contribution.charges.push(item.charge);
                    let debited = budget.is_debited(job, round, item.charge.population);
                    let (payment, action) = Payment::begin(work.start.model, item.any_model, debited);
                    work.paying = Some((item, payment, action));
                    None
                }
                None => {
                    let work = works.remove(at);
                    Some(Event::Worked { job, round, contribution: Some(work.contribution) })
                }
            };
        };
        let population = item.charge.population;
        let done = match action {
            payment::Action::Find => payment::Event::Found(outbox.find(job, round, item.kind).unwrap()),
            payment::Action::Debit => match budget.debit(job, round, item.charge, item.mechanism) {
                Ok(debit) => {
                    if lasts {
                        book.debited(number, job, round, population);
                    }
                    payment::Event::Debited(debit)
                }
                // The job has ended in the meantime.
                Err(error) => {
                    assert!(!budget.holds(job), "site {number} cannot pay: {error}");
                    works.remove(at);
                    return Some(Event::Worked { job, round, contribution: None });
                }
            },
            payment::Action::Make(_debit) => {
                book.made(number, job, round, item.kind);
                payment::Event::Made(match item.kind {
                    ReleaseKind::Update => {
                        let mut values = [0, 1].map(|_| random.random_range(-(1i32 << 20)..1 << 20) as u32);
                        if book.is_summed(job) {
                            book.adds(number, job, round, values);
                            sums.masks(job, round).unwrap().apply(&mut values, 1);
                        }
                        values.map(u32::to_le_bytes).concat()
                    }
                    ReleaseKind::Evaluation => {
                        let count = |_| random.random_range(-100i64..100).to_le_bytes();
                        [0, 1, 2, 3].map(count).concat()
                    }
                })
            }
            payment::Action::Store { content, bytes } => {
                outbox.store(job, round, item.kind, work.start.model, content, &bytes).unwrap();
                payment::Event::Stored
            }
            payment::Action::Bind { content, len } => {
                match budget.release(job, round, population, item.kind, content, len) {
                    Ok(()) => payment::Event::Bound,
                    Err(error) => {
                        assert!(!budget.holds(job), "site {number} cannot pay: {error}");
                        works.remove(at);
                        return Some(Event::Worked { job, round, contribution: None });
                    }
                }
            }
            payment::Action::Done(released) => {
                match item.kind {
                    ReleaseKind::Update => work.contribution.update = released,
                    ReleaseKind::Evaluation => {
                        work.contribution.evaluation = released.map(|paid| histogram_counts(&paid.bytes));
                    }
                }
                return None;
            }
        };
        let next = payment.handle(done);
        work.paying = Some((item, payment, next));
        None
    }
}

impl Link {
    /// What a site says in a secure sum; an honest coordinator is refused only what came too late.
    fn send_sum(&mut self, number: usize, said: Result<Option<SiteToCoordinator>, SumError>) {
        match said {
            Ok(said) => said.into_iter().for_each(|said| self.send_up(said)),
            // What comes late, or twice over a faulty network.
            Err(SumError::Unknown) => {}
            Err(SumError::Refused(Refusal::NoBatch | Refusal::OtherBatch | Refusal::OtherSurvivors)) => {}
            Err(SumError::Refused(Refusal::NotInRoster)) => {}
            Err(error) => panic!("site {number} refused an honest coordinator: {error:?}"),
        }
    }
}

/// The ledger of an honest site never contradicts what the coordinator saw of it.
fn take_witness(number: usize, budget: &Budget, witnessed: &Witnessed) {
    assert_eq!(witnessed.verdict, HeadVerdict::Follows, "the ledger of site {number} is called set back");
    if let Some(signed) = &witnessed.witness {
        assert!(signed.is_signed_by(&keys().coordinator_key));
        assert_eq!(budget.hold_against(&signed.witness), Ok(()), "site {number}");
    }
}

/// What a message is about, for the trace.
pub fn short(message: &CoordinatorToSite) -> String {
    match message {
        CoordinatorToSite::RoundStart(start) => format!("start of round {}", start.round),
        CoordinatorToSite::JobOffer(_) => "offer".into(),
        CoordinatorToSite::Receipt(receipt) => format!("receipt {:?}", receipt.outcome),
        CoordinatorToSite::JobEnded(ended) => format!("end {:?}", ended.status),
        other => format!("{other:?}").chars().take(9).collect(),
    }
}
