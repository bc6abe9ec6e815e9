//! Jobs in a secure sum, as processes on real sockets: each round's model is the one that the survivors' integers lead
//! to, whoever is killed at whatever stage; and what is told to nobody opens nothing.

use crate::federation::{Daemon, Federation, records};
use crate::go_between::{Book, GoBetween, Pass, Seen};
use crate::kill_loop::check;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;
use weighhouse_coordinator::aggregate::Aggregate;
use weighhouse_coordinator::global_model::GlobalModel;
use weighhouse_coordinator::opened_sum;
use weighhouse_coordinator::secure_sum::OpenedSum;
use weighhouse_coordinator::spool::Spool;
use weighhouse_shared::ids::{ContentHash, JobId, RoundId, SiteId};
use weighhouse_shared::job::JobContract;
use weighhouse_shared::ledger::ReleaseKind;
use weighhouse_shared::model::ServerState;
use weighhouse_shared::secure_sum::batch_of;
use weighhouse_shared::secure_sum::site::{Member, Record};
use weighhouse_shared::wire::codec;
use weighhouse_shared::wire::messages::{
    CoordinatorToSite, SiteToCoordinator, SumBatch, SumQuestion, SumRoster,
};

/// What a stuck federation is given before the test fails; nothing waits for it otherwise.
const PATIENCE: Duration = Duration::from_secs(90);

/// A site, and what passed between it and the coordinator.
struct Site {
    home: PathBuf,
    between: GoBetween,
    daemon: Option<Daemon>,
    contract: Option<JobContract>,
    /// Its file as it was when it told its key: with its secret, before it was committed to anything.
    record: Option<Record>,
    roster: Option<SumRoster>,
    batches: BTreeMap<u32, SumBatch>,
    questions: BTreeMap<RoundId, Vec<SumQuestion>>,
    ended: bool,
}

impl Site {
    fn serve(&mut self, federation: &Federation) {
        self.daemon = Some(federation.serve_site(&self.home));
    }

    fn kill(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.kill();
        }
    }

    fn id(&self) -> SiteId {
        weighhouse_client::home::Home::at(&self.home).identity().unwrap().site()
    }

    fn note(&mut self, seen: &Seen) {
        match seen {
            Seen::ToSite(CoordinatorToSite::JobOffer(offer)) => {
                self.contract = Some(codec::decode(&offer.contract).unwrap());
            }
            Seen::FromSite(SiteToCoordinator::SumKey(told)) if self.record.is_none() => {
                let path = self.home.join("secure_sums").join(told.job.to_string());
                self.record = Some(codec::decode(&std::fs::read(path).unwrap()).unwrap());
            }
            Seen::ToSite(CoordinatorToSite::SumRoster(told)) => {
                assert!(self.roster.as_ref().is_none_or(|known| known == told), "two rosters");
                self.roster = Some(told.clone());
            }
            Seen::ToSite(CoordinatorToSite::SumBatch(told)) => {
                let known = self.batches.entry(told.grant.batch).or_insert_with(|| told.clone());
                assert_eq!(known, told, "two batches of one number");
            }
            Seen::ToSite(CoordinatorToSite::SumQuestion(told)) => {
                self.questions.entry(told.question.round).or_default().push(told.clone());
            }
            Seen::ToSite(CoordinatorToSite::JobEnded(_)) => self.ended = true,
            _ => {}
        }
    }

    /// Waits until something passes for which `wanted` holds.
    fn until(&mut self, wanted: impl Fn(&Seen) -> bool) {
        loop {
            let seen = self.between.seen.recv_timeout(PATIENCE).expect("nothing goes on");
            self.note(&seen);
            if wanted(&seen) {
                return;
            }
        }
    }

    fn catch_up(&mut self) {
        while let Ok(seen) = self.between.seen.try_recv() {
            self.note(&seen);
        }
    }

    /// What the site added to the sum of `round` before its masks, from what left it and its secret.
    fn unmasked(&self, job: JobId, contract: &JobContract, book: &Book, round: RoundId) -> Option<Vec<u32>> {
        let contents = book.get(&(job, round, ReleaseKind::Update))?;
        assert_eq!(contents.len(), 1, "one vector a round");
        let (hash, copies) = contents.first_key_value()?;
        let bytes = copies.iter().find(|copy| ContentHash::of(copy) == *hash)?;
        let members = contract.group_of_member(self.id()).unwrap();
        let mut member = Member::new(job, self.id(), self.record.clone()?);
        let terms = contract.federation.sum_terms(&members).unwrap();
        member.take_roster(terms, self.roster.clone()?.keys).unwrap();
        member.take_batch(self.batches.get(&batch_of(round))?.grant.clone()).unwrap();
        let mut mask = vec![0; bytes.len() / 4];
        member.masks(round).unwrap().apply(&mut mask, 1);
        let masked = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
        Some(masked.zip(mask).map(|(value, mask)| value.wrapping_sub(mask)).collect())
    }
}

/// A federation of so many sites with a job of `rounds` rounds submitted, each site's key told.
fn begun(sites: usize, rounds: u32, more: &str) -> (Federation, Vec<Site>) {
    let federation = Federation::start();
    let caps = ["--cap-epsilon", "1000", "--cap-delta", "1e-4"];
    let names = ["berlin", "bonn", "kiel", "mainz", "ulm", "jena", "trier", "worms", "celle"];
    let mut all: Vec<Site> = names[..sites]
        .iter()
        .map(|name| {
            let home = federation.join(name, &records(40), &caps);
            let between = GoBetween::start(&federation, &home);
            Site {
                home,
                between,
                daemon: None,
                contract: None,
                record: None,
                roster: None,
                batches: BTreeMap::new(),
                questions: BTreeMap::new(),
                ended: false,
            }
        })
        .collect();
    all.iter_mut().for_each(|site| site.serve(&federation));
    let job = federation.job(
        rounds,
        8.0,
        &format!("[evaluation]\nevery = 5\n[federation]\nmode = \"secure_sum\"\n{more}"),
    );
    federation.operator(&["job", "submit", &job]);
    for site in &mut all {
        site.until(|seen| matches!(seen, Seen::FromSite(SiteToCoordinator::SumKey(_))));
    }
    (federation, all)
}

/// The survivors of each group that was asked about `round`: one list a group.
fn survivors_of(sites: &[Site], contract: &JobContract, round: RoundId) -> Vec<Vec<SiteId>> {
    let of_group = |members: Vec<SiteId>| {
        let group = || sites.iter().filter(|site| members.contains(&site.id()));
        let asked: BTreeSet<Vec<u16>> = group()
            .filter_map(|site| site.questions.get(&round))
            .flatten()
            .map(|told| told.question.survivors.clone())
            .collect();
        assert!(asked.len() <= 1, "round {round} has two lists of survivors of one group");
        let survivors = asked.into_iter().next()?;
        let roster = group().find_map(|site| site.roster.as_ref()).unwrap();
        Some(survivors.into_iter().map(|number| roster.keys[usize::from(number)].site()).collect())
    };
    contract.grouped_members().into_iter().filter_map(of_group).collect()
}

/// The model that the opened sums lead to.
fn stepped(
    model: GlobalModel,
    contract: &JobContract,
    round: RoundId,
    opened: Vec<OpenedSum>,
    state: Option<&mut ServerState>,
) -> GlobalModel {
    if contract.federation.sum_groups().is_none() {
        let OpenedSum { values, sites } = &opened[0];
        return opened_sum::step(model, contract, round, values, *sites, state).unwrap();
    }
    let spool = Spool::new(std::env::temp_dir());
    let mut aggregate = Aggregate::new(model.bytes.len() / 4, &contract.federation, &spool).unwrap();
    opened_sum::add_groups(&mut aggregate, contract, round, opened).unwrap();
    model.moved_by(aggregate.combine().unwrap(), state)
}

/// Waits for the job's end and holds every round against what left the sites; how many survived each.
fn settled(federation: &Federation, sites: &mut [Site], rounds: u32) -> Vec<usize> {
    let watched = federation.operator(&["job", "watch", "--format", "json"]);
    assert!(watched.contains("finished"), "{watched}");
    sites.iter_mut().for_each(Site::kill);
    sites.iter_mut().for_each(Site::catch_up);
    let books: Vec<Book> = sites.iter().map(|site| site.between.book()).collect();
    sites.iter().zip(&books).for_each(|(site, book)| check(&site.home, book));
    let contract = sites.iter().find_map(|site| site.contract.clone()).unwrap();
    let id = contract.id();
    let events = watched.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let committed: Vec<_> = events.filter_map(|event| event.get("committed").cloned()).collect();
    assert_eq!(committed.len() as u32, rounds + 1);
    let mut model = GlobalModel::initial(id, &contract).unwrap();
    let mut state = contract.server_state(model.bytes.len() / 4);
    let mut counts = Vec::new();
    let least = contract.federation.sum_groups().map_or(1, |groups| groups.min_groups);
    for (round, summary) in (0..rounds).map(RoundId).zip(&committed) {
        let counted = summary["sites"].as_u64().unwrap() as usize;
        counts.push(counted);
        if counted == 0 {
            assert_eq!(summary["model"], model.hash.to_string(), "an abandoned round moves nothing");
            continue;
        }
        let asked = survivors_of(sites, &contract, round);
        let sum_of = |survivors: &Vec<SiteId>| {
            let mut values = vec![0u32; model.bytes.len() / 4];
            for of in survivors {
                let at = sites.iter().position(|site| site.id() == *of).unwrap();
                let added = sites[at].unmasked(id, &contract, &books[at], round).unwrap();
                values.iter_mut().zip(added).for_each(|(sum, value)| *sum = sum.wrapping_add(value));
            }
            OpenedSum { values, sites: survivors.len() as u32 }
        };
        let sums: Vec<OpenedSum> = asked.iter().map(sum_of).collect();
        // Of the groups that were asked, any may have been opened, but enough of them.
        let chosen = (0u32..1 << sums.len()).filter(|chosen| chosen.count_ones() >= least);
        let led_to = chosen.filter_map(|chosen| {
            let numbers = (0..sums.len()).filter(|at| chosen & 1 << at != 0);
            let opened: Vec<OpenedSum> = numbers.map(|at| sums[at].clone()).collect();
            let survivors: u32 = opened.iter().map(|sum| sum.sites).sum();
            let mut state = state.clone();
            let mut next = (survivors as usize == counted)
                .then(|| stepped(model.clone(), &contract, round, opened, state.as_mut()))?;
            if round.0 + 1 == rounds {
                next = next.concluded(state.as_ref());
            }
            (summary["model"] == next.hash.to_string()).then_some((next, state))
        });
        let found = led_to.collect::<Vec<_>>().pop();
        (model, state) =
            found.unwrap_or_else(|| panic!("round {round} with {counted} sites is another model"));
    }
    counts
}

fn starts(round: u32) -> impl Fn(&Seen) -> bool {
    move |seen| matches!(seen, Seen::ToSite(CoordinatorToSite::RoundStart(start)) if start.round == RoundId(round))
}

fn asks(round: u32) -> impl Fn(&Seen) -> bool {
    move |seen| matches!(seen, Seen::ToSite(CoordinatorToSite::SumQuestion(told)) if told.question.round == RoundId(round))
}

fn answers(round: u32) -> impl Fn(&Seen) -> bool {
    move |seen| matches!(seen, Seen::FromSite(SiteToCoordinator::SumAnswer(told)) if told.answer.round == RoundId(round))
}

#[test]
fn a_job_in_a_secure_sum_ends_with_the_model_that_its_sites_sum_leads_to_and_no_secret_is_left() {
    let (federation, mut sites) = begun(4, 10, "strategy = \"fedadam\"");
    for site in &mut sites {
        // What the budget still allows is said once the job is closed here.
        site.until(|seen| matches!(seen, Seen::ToSite(CoordinatorToSite::JobEnded(_))));
        site.until(|seen| matches!(seen, Seen::FromSite(SiteToCoordinator::Standing(_))));
    }
    let counts = settled(&federation, &mut sites, 10);
    assert_eq!(counts, [4; 10]);
    for site in &sites {
        assert_eq!(site.batches.len(), 2, "ten rounds are in two batches");
        assert!(site.ended);
        assert_eq!(std::fs::read_dir(site.home.join("secure_sums")).unwrap().count(), 0);
        let status = federation.status(&site.home);
        assert_eq!(status["updates_released"].as_u64(), Some(10));
    }
}

/// Whether what was seen is what is waited for.
type Stage = Box<dyn Fn(&Seen) -> bool>;

#[test]
fn a_site_killed_at_any_stage_comes_back_or_is_left_out_and_the_sums_are_right() {
    let (federation, mut sites) = begun(5, 12, "min_sites = 4");
    let stages: [(u32, &dyn Fn(u32) -> Stage); 4] = [
        (1, &|round| Box::new(starts(round))),
        (3, &|round| {
            Box::new(move |seen| {
                matches!(seen, Seen::FromSite(SiteToCoordinator::LedgerHead(told))
                    if told.contribution.is_some_and(|(_, of)| of == RoundId(round)))
            })
        }),
        (5, &|round| Box::new(asks(round))),
        (7, &|round| Box::new(answers(round))),
    ];
    for (round, stage) in stages {
        let victim = (round as usize) % sites.len();
        sites[victim].until(stage(round));
        sites[victim].kill();
        sites[victim].serve(&federation);
    }
    // One stays away from round 9 on: the others wait a while for it, and go on without.
    sites[2].until(starts(9));
    sites[2].kill();
    let counts = settled(&federation, &mut sites, 12);
    assert!(counts.iter().all(|count| *count >= 4), "{counts:?}");
    assert_eq!(counts[11], 4);
}

/// Kills the coordinator as soon as the site has seen each of the stages in turn, and starts it again.
fn kill_coordinator_at(federation: &mut Federation, site: &mut Site, stages: &[&dyn Fn(&Seen) -> bool]) {
    for stage in stages {
        site.until(stage);
        federation.kill_coordinator();
        federation.serve();
    }
}

#[test]
fn a_coordinator_killed_at_any_stage_goes_on_with_the_same_survivors() {
    let (mut federation, mut sites) = begun(4, 11, "min_sites = 3");
    let stages: [&dyn Fn(&Seen) -> bool; 7] = [
        &|seen| matches!(seen, Seen::FromSite(SiteToCoordinator::SumOffer(_))),
        &|seen| matches!(seen, Seen::ToSite(CoordinatorToSite::SumBatch(_))),
        &starts(1),
        &|seen| matches!(seen, Seen::Update),
        &asks(4),
        &answers(6),
        &|seen| matches!(seen, Seen::ToSite(CoordinatorToSite::SumBatch(told)) if told.grant.batch == 1),
    ];
    kill_coordinator_at(&mut federation, &mut sites[1], &stages);
    settled(&federation, &mut sites, 11);
}

#[test]
fn with_fewer_answers_than_the_threshold_a_round_is_abandoned_and_the_next_goes_on() {
    let (federation, mut sites) = begun(4, 3, "min_sites = 3\nmax_time_s = 8");
    for site in &sites[..2] {
        site.between.pass(Pass::NoAnswers);
    }
    sites[0].until(asks(0));
    sites[0].until(starts(1));
    for site in &sites[..2] {
        site.between.pass(Pass::Everything);
    }
    let counts = settled(&federation, &mut sites, 3);
    assert_eq!(counts[0], 0);
    assert!(counts[2] >= 3);
    for site in &sites {
        let status = federation.status(&site.home);
        assert_eq!(status["updates_released"].as_u64(), Some(3), "an abandoned round is paid for");
    }
}

/// Nine sites in three groups of three, each of which needs all of its own; two groups are enough for a round.
#[test]
fn a_site_that_is_gone_costs_its_group_and_the_others_go_on_by_the_rule_over_groups() {
    let (federation, mut sites) = begun(9, 6, "groups = 3\nstrategy = \"fedmedian\"");
    sites[0].until(starts(1));
    sites[0].kill();
    sites[0].serve(&federation);
    sites[1].until(asks(2));
    sites[1].kill();
    sites[1].serve(&federation);
    // For good: its group is left out from then on.
    sites[2].until(starts(4));
    sites[2].kill();
    let counts = settled(&federation, &mut sites, 6);
    assert_eq!((counts[0], counts[5]), (9, 6), "{counts:?}");
    assert!(counts.iter().all(|count| *count == 6 || *count == 9), "{counts:?}");
    let groups = sites[0].contract.as_ref().unwrap().grouped_members();
    let own = |site: &Site| groups.iter().find(|members| members.contains(&site.id())).unwrap().clone();
    for site in &sites {
        let roster = site.roster.as_ref().unwrap().keys.iter().map(|key| key.site());
        assert!(roster.eq(own(site)), "a site knows the keys of its group alone");
    }
}

#[test]
fn a_coordinator_killed_at_any_stage_goes_on_with_the_same_survivors_of_each_group() {
    let (mut federation, mut sites) = begun(6, 9, "groups = 2\nnorm_bound = 10.0");
    let stages: [&dyn Fn(&Seen) -> bool; 6] = [
        &|seen| matches!(seen, Seen::ToSite(CoordinatorToSite::SumBatch(_))),
        &starts(1),
        &|seen| matches!(seen, Seen::Update),
        &asks(4),
        &answers(6),
        &|seen| matches!(seen, Seen::ToSite(CoordinatorToSite::SumBatch(told)) if told.grant.batch == 1),
    ];
    kill_coordinator_at(&mut federation, &mut sites[1], &stages);
    let counts = settled(&federation, &mut sites, 9);
    assert!(counts.iter().all(|count| *count == 0 || *count == 6), "{counts:?}");
    assert!(counts.iter().filter(|count| **count == 6).count() >= 6, "{counts:?}");
}
