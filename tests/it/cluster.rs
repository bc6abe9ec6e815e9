//! A whole cluster in memory: the real state machines of coordinator and sites, the real budget and stores, and
//! everything that may happen between them, at random: messages are delivered, delayed, lost, doubled and swapped,
//! links are cut, processes die between any two steps and are started again, time passes. After each action the
//! [`Book`](book::Book) is checked; at the end the faults stop, and every job must end.
//!
//! Seeds 0 to 1999 by default. `WEIGHHOUSE_CLUSTER_SEED=17` replays one and prints what happens;
//! `WEIGHHOUSE_CLUSTER_RUNS=100000` tries more.

mod book;
mod hq;
mod keys;
mod network;
mod site;

use book::Book;
use hq::Hq;
use keys::{GROUPED_SITES, Job, SITES, keys};
use network::Link;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use site::{Came, Site};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use weighhouse_client::session::machine::Event;

/// Actions of a sequence before the faults stop.
const ACTIONS: u32 = 250;
/// Actions without faults in which every job must end, at most.
const LAST_ACTIONS: u32 = 3_000;
/// Milliseconds without faults in which every job must end, at most: what reconnecting, the rounds' shortest times and
/// the patience with a site that is gone add up to. A site that is there and never answers costs more.
const LAST_MS: u64 = 100_000;

/// What everyone acts in.
pub struct World {
    now: u64,
    links: BTreeMap<u64, Link>,
    book: Book,
    random: ChaCha8Rng,
}

struct Cluster {
    world: World,
    hq: Hq,
    sites: Vec<Site>,
    connections: u64,
    /// Messages are lost, doubled and swapped within a connection too, which no transport of ours does.
    hostile_network: bool,
    traced: bool,
    _folder: tempfile::TempDir,
}

/// Names the seed if the sequence fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let name = "cluster::no_sequence_of_faults_breaks_a_promise";
            eprintln!(
                "replay with WEIGHHOUSE_CLUSTER_SEED={} cargo test --release --test it -- {name}",
                self.0
            );
        }
    }
}

impl Cluster {
    fn new(seed: u64, traced: bool) -> Self {
        let folder = keys::fast_folder();
        let random = ChaCha8Rng::seed_from_u64(seed);
        let world = World { now: 0, links: BTreeMap::new(), book: Book::default(), random };
        // Twice as many sites are twice the work.
        let count = if matches!(seed % 20, 7 | 12) { GROUPED_SITES } else { SITES };
        let sites = (0..count).map(|number| Site::new(number, folder.path())).collect();
        let hostile_network = seed % 2 == 1;
        Self { world, hq: Hq::new(), sites, connections: 0, hostile_network, traced, _folder: folder }
    }

    /// What operators may submit here.
    fn jobs(&self) -> &'static [Job] {
        if self.sites.len() == SITES { &keys().jobs } else { &keys().grouped_jobs }
    }

    fn say(&self, what: impl FnOnce() -> String) {
        if self.traced {
            println!("{:>7} ms  {}", self.world.now, what());
        }
    }

    fn chance(&mut self, probability: f64) -> bool {
        self.world.random.random_bool(probability)
    }

    fn some_link(&mut self, wanted: impl Fn(&Link) -> bool) -> Option<u64> {
        let all = self.world.links.iter();
        let fit: Vec<u64> = all.filter(|(_, link)| wanted(link)).map(|(id, _)| *id).collect();
        (!fit.is_empty()).then(|| fit[self.world.random.random_range(0..fit.len())])
    }

    /// Something happens at a site.
    fn at_site(&mut self, site: usize, event: Event) {
        let World { now, links, book, .. } = &mut self.world;
        let link = self.sites[site].link();
        let came = self.sites[site].handle(event, *now, link.and_then(|id| links.get_mut(&id)), book);
        match came {
            Came::Done => {}
            Came::Left => self.site_leaves(site),
            Came::Connect if self.hq.runs() => {
                self.connections += 1;
                let id = self.connections;
                self.world.links.insert(id, Link::of(site));
                self.hq.accept(id, site, self.world.now);
                self.sites[site].connected(id);
                self.at_site(site, Event::Linked);
            }
            Came::Connect => self.at_site(site, Event::Lost("nobody there".into())),
        }
    }

    /// A site's end of its connection goes.
    fn site_leaves(&mut self, site: usize) {
        if let Some(link) = self.sites[site].link() {
            if let Some(link) = self.world.links.get_mut(&link) {
                link.site_left = true;
            }
            self.sites[site].disconnected();
            self.at_site(site, Event::Lost("the link".into()));
        }
    }

    fn deliver_up(&mut self) -> bool {
        let Some(id) = self.some_link(|link| !link.hq_left && !link.up.is_empty()) else { return false };
        let message = self.world.links.get_mut(&id).and_then(|link| link.up.pop_front());
        let Some(message) = message else { return false };
        self.say(|| format!("link {id} up: {}", format!("{message:?}").chars().take(40).collect::<String>()));
        self.hq.heard(id, message, &mut self.world);
        true
    }

    fn deliver_down(&mut self) -> bool {
        let Some(id) = self.some_link(|link| !link.site_left && !link.down.is_empty()) else { return false };
        let Some(link) = self.world.links.get_mut(&id) else { return false };
        let (site, Some(message)) = (link.site, link.down.pop_front()) else { return false };
        self.say(|| format!("link {id} down to site {site}: {}", site::short(&message)));
        self.at_site(site, Event::Heard(message));
        true
    }

    /// Any of the updates on their way; with a small chance it comes again later.
    fn deliver_update(&mut self) -> bool {
        let ready: Vec<u64> = self.world.links.keys().copied().filter(|id| self.hq.is_up(*id)).collect();
        let some = self.some_link(|link| !link.hq_left && !link.updates.is_empty());
        let Some(id) = some.filter(|id| ready.contains(id)) else { return false };
        let again = self.hostile_network && self.chance(0.1);
        let World { links, random, .. } = &mut self.world;
        let Some(link) = links.get_mut(&id) else { return false };
        let at = random.random_range(0..link.updates.len());
        let content = if again { link.updates[at].clone() } else { link.updates.swap_remove(at) };
        self.say(|| format!("link {id}: update for round {}", content.round));
        self.hq.arrived(id, &content, &mut self.world);
        true
    }

    fn deliver_model(&mut self) -> bool {
        let Some(id) = self.some_link(|link| !link.site_left && !link.models.is_empty()) else {
            return false;
        };
        let again = self.hostile_network && self.chance(0.1);
        let World { links, random, .. } = &mut self.world;
        let Some(link) = links.get_mut(&id) else { return false };
        let at = random.random_range(0..link.models.len());
        let content = if again { link.models[at].clone() } else { link.models.swap_remove(at) };
        let site = link.site;
        self.say(|| format!("link {id}: model of round {} to site {site}", content.round));
        if let Some(event) = self.sites[site].arrived(&content) {
            self.at_site(site, event);
        }
        true
    }

    fn send_down(&mut self) -> bool {
        let waiting: Vec<u64> =
            self.world.links.keys().copied().filter(|id| self.hq.has_staged(*id)).collect();
        let some = self.some_link(|link| !link.hq_left);
        let Some(id) = some.filter(|id| waiting.contains(id)).or(waiting.first().copied()) else {
            return false;
        };
        self.hq.send(id, &mut self.world);
        true
    }

    /// One end learns that its connection is gone.
    fn notice(&mut self) -> bool {
        if let Some(id) = self.some_link(|link| !link.site_left && (link.cut || link.hq_left)) {
            let site = self.world.links[&id].site;
            self.say(|| format!("site {site} notices that link {id} is gone"));
            if self.sites[site].link() == Some(id) {
                self.site_leaves(site);
            } else if let Some(link) = self.world.links.get_mut(&id) {
                link.site_left = true;
            }
            return true;
        }
        if let Some(id) = self.some_link(|link| !link.hq_left && (link.cut || link.site_left)) {
            self.say(|| format!("the coordinator notices that link {id} is gone"));
            self.hq.left(id, &mut self.world);
            return true;
        }
        false
    }

    fn combine(&mut self) -> bool {
        let combined = self.hq.combine(&mut self.world);
        if combined {
            self.say(|| "the updates of a round were compared".into());
        }
        combined
    }

    fn work(&mut self) -> bool {
        let busy: Vec<usize> = (0..self.sites.len()).filter(|site| self.sites[*site].has_work()).collect();
        if busy.is_empty() {
            return false;
        }
        let World { book, random, .. } = &mut self.world;
        let site = busy[random.random_range(0..busy.len())];
        if let Some(event) = self.sites[site].work(book, random, true) {
            self.say(|| format!("site {site} has done its work"));
            self.at_site(site, event);
        }
        true
    }

    /// Time passes, and whoever waited for it acts.
    fn pass_time(&mut self, ms: u64) {
        self.world.now += ms;
        let due = |timeout: Option<u64>, now: u64| timeout.is_some_and(|due| due <= now);
        if due(self.hq.next_timeout(), self.world.now) {
            self.hq.tick(&mut self.world);
        }
        for site in 0..self.sites.len() {
            if due(self.sites[site].next_timeout(), self.world.now) {
                self.at_site(site, Event::Tick);
            }
        }
    }

    fn submit(&mut self) {
        let jobs = self.jobs();
        let job = &jobs[self.world.random.random_range(0..jobs.len())];
        if self.world.book.jobs().len() < 2 && self.hq.runs() {
            self.say(|| format!("job {} is submitted", job.id.short()));
            self.hq.submit(job, &mut self.world);
        }
    }

    fn crash_site(&mut self) {
        let World { book, random, links, .. } = &mut self.world;
        let site = random.random_range(0..self.sites.len());
        if !self.sites[site].runs() {
            return;
        }
        let inside = self.sites[site].has_work() && random.random_bool(0.5);
        let link = match inside {
            true => self.sites[site].crash_inside(book, random),
            false => self.sites[site].crash(random),
        };
        // What it sent may still arrive; nobody is there to take what comes.
        if let Some(link) = link.and_then(|id| links.get_mut(&id)) {
            link.site_left = true;
            link.down.clear();
            link.models.clear();
        }
        self.say(|| format!("site {site} dies{}", if inside { " in the middle of a step" } else { "" }));
    }

    /// One random action.
    fn act(&mut self) {
        match self.world.random.random_range(0..1000) {
            0..250 => _ = self.deliver_up(),
            250..400 => _ = self.send_down(),
            400..420 => _ = self.combine(),
            420..570 => _ = self.deliver_down(),
            570..640 => _ = self.deliver_update(),
            640..710 => _ = self.deliver_model(),
            710..860 => _ = self.work(),
            860..900 => {
                let ms = match self.chance(0.2) {
                    true => self.world.random.random_range(0..25_000),
                    false => self.world.random.random_range(0..500),
                };
                self.pass_time(ms);
            }
            900..925 => _ = self.notice(),
            925..935 => {
                if let Some(id) = self.some_link(|link| !link.cut) {
                    self.say(|| format!("link {id} is cut"));
                    self.world.links.get_mut(&id).unwrap().cut();
                }
            }
            935..945 => self.crash_site(),
            945..965 => {
                let site = self.world.random.random_range(0..self.sites.len());
                self.sites[site].start(self.world.now);
            }
            965..972 => {
                self.say(|| "the coordinator dies".into());
                self.hq.crash(&mut self.world);
            }
            972..985 => self.hq.start(self.world.now),
            985..990 => self.submit(),
            990..999 if self.hostile_network => {
                if let Some(id) = self.some_link(|_| true) {
                    let World { links, random, .. } = &mut self.world;
                    links.get_mut(&id).unwrap().disturb(random);
                }
            }
            999 if self.chance(0.2) => {
                let jobs = self.world.book.jobs();
                if let (Some(job), true) = (jobs.first(), self.hq.runs()) {
                    self.say(|| "the operator stops a job".into());
                    self.hq.stop(*job, &mut self.world);
                }
            }
            _ => {}
        }
        let World { links, .. } = &mut self.world;
        links.retain(|_, link| !(link.site_left && link.hq_left));
    }

    /// Anything that can go on without a fault; false if nothing can.
    fn go_on(&mut self) -> bool {
        self.deliver_up()
            || self.send_down()
            || self.deliver_down()
            || self.deliver_update()
            || self.deliver_model()
            || self.combine()
            || self.work()
            || self.notice()
    }

    /// The faults have stopped: every job ends, and the sites hold nothing for it any more. How long it took.
    fn end(&mut self) -> u64 {
        let stopped = self.world.now;
        self.hq.disk.fail_after(u64::MAX);
        if !self.hq.runs() {
            self.hq.start(self.world.now);
        }
        let now = self.world.now;
        self.sites.iter_mut().for_each(|site| site.start(now));
        if self.hostile_network {
            self.world.links.values_mut().for_each(Link::cut);
        }
        for job in self.jobs() {
            if self.world.book.jobs().contains(&job.id) && !self.hq.knows(job.id) {
                self.hq.submit(job, &mut self.world);
            }
        }
        let most = LAST_ACTIONS * (self.sites.len() / SITES) as u32;
        for _ in 0..most {
            if self.go_on() {
                self.world.links.retain(|_, link| !(link.site_left && link.hq_left));
                continue;
            }
            if self.world.book.all_over() && self.sites.iter().all(|site| !site.holds()) {
                let took = self.world.now - stopped;
                assert!(took <= LAST_MS, "a job waits for a site that is there: {took} ms without a fault");
                return took;
            }
            let due = self.sites.iter().filter_map(Site::next_timeout).chain(self.hq.next_timeout()).min();
            let due = due.unwrap_or_else(|| panic!("a job never ends: nothing is to come and nobody waits"));
            self.pass_time(due.saturating_sub(self.world.now));
        }
        panic!("a job does not end after {most} actions without a fault");
    }
}

/// Runs one sequence; commits and contributions in it, and the milliseconds from the last fault to its end.
fn run(seed: u64, traced: bool) -> (u32, u32, u64) {
    let _seed = Seed(seed);
    let mut cluster = Cluster::new(seed, traced);
    cluster.submit();
    for _ in 0..ACTIONS {
        cluster.act();
    }
    cluster.say(|| "the faults stop".into());
    let took = cluster.end();
    for (number, site) in cluster.sites.iter().enumerate() {
        cluster.world.book.audit(number, &site.ledger());
    }
    (cluster.world.book.commits, cluster.world.book.contributions, took)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn no_sequence_of_faults_breaks_a_promise() {
    if let Some(seed) = number("WEIGHHOUSE_CLUSTER_SEED") {
        run(seed, true);
        return;
    }
    let runs = number("WEIGHHOUSE_CLUSTER_RUNS").unwrap_or(2_000);
    let [next, commits, contributions, longest] = [(); 4].map(|()| AtomicU64::new(0));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= runs {
                        return;
                    }
                    let (committed, contributed, took) = run(seed, false);
                    longest.fetch_max(took, Ordering::Relaxed);
                    commits.fetch_add(committed.into(), Ordering::Relaxed);
                    contributions.fetch_add(contributed.into(), Ordering::Relaxed);
                }
            });
        }
    });
    let (commits, contributions) = (commits.into_inner(), contributions.into_inner());
    let longest = longest.into_inner();
    println!(
        "{runs} sequences, {commits} rounds committed, {contributions} contributions sent; {longest} ms from the last fault to the end, at most"
    );
    assert!(commits > 2 * runs && contributions > 4 * runs, "too little happened");
}
