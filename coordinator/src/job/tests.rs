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
        let now = 10 * u64::from(round);
        assert!(contribute(&mut machine, 1, Part::Update, now + 10).is_empty());
        assert_eq!(contribute(&mut machine, 2, Part::Update, now + 11), [Action::Commit(RoundId(round))]);
        let actions = machine.handle(Event::Committed(model(1 + round as u8)), now + 12);
        assert_eq!(started(&actions).len(), 2);
    }
    contribute(&mut machine, 1, Part::Evaluation, 30);
    assert_eq!(contribute(&mut machine, 2, Part::Evaluation, 31), [Action::Commit(RoundId(2))]);
    let end = machine.handle(Event::Committed(model(2)), 32);
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
    assert_eq!(verdict(&machine, 2, 0, model(0)), Err(Outcome::Repeated), "the round is being stored");
    machine.handle(Event::Committed(model(1)), 12);
    assert_eq!(verdict(&machine, 2, 0, model(0)), Err(Outcome::Repeated), "the next round is open");
    assert_eq!(verdict(&machine, 3, 0, model(0)), Err(Outcome::Late), "it was not in it");
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
    let mut machine = JobMachine::restore(contract, JobStatus::Waiting, RoundId(0), model(0), &answers, 0);
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
    let mut machine = JobMachine::restore(contract, JobStatus::Running, RoundId(1), model(1), &answers, 100);
    assert_eq!(machine.handle(Event::SiteOnline(site(1)), 101), [Action::Offer(site(1))]);
    machine.handle(Event::Answered(site(1), Decision::Accepted), 102);
    assert_eq!(machine.handle(Event::SiteOnline(site(2)), 103), [Action::Offer(site(2))]);
    let actions = machine.handle(Event::Answered(site(2), Decision::Accepted), 104);
    assert_eq!(started(&actions), [site(1), site(2)]);
}

/// Sites 1 to 3 agreed to a job of two steps of two updates each, which is evaluated at its end.
fn filling() -> JobMachine {
    let mut machine = machine_with("min_sites = 2\nmax_time_s = 60\nschedule = \"buffered\"");
    for number in [1, 2, 3] {
        machine.handle(Event::SiteOnline(site(number)), 0);
    }
    let turns: Vec<SiteId> = [1, 2, 3]
        .into_iter()
        .flat_map(|number| started(&machine.handle(Event::Answered(site(number), Decision::Accepted), 0)))
        .collect();
    assert_eq!(turns, [site(1), site(2), site(3)]);
    assert_eq!(machine.contributions(), (0, 2));
    machine
}

fn sent(machine: &mut JobMachine, number: u8, round: u32, base: u8, now: u64) -> Vec<Action> {
    let verdict = machine.verdict(site(number), RoundId(round), Some(model(base)), Part::Update);
    assert_eq!(verdict, Ok(()));
    machine.handle(Event::Counted(site(number), Part::Update), now)
}

/// The number of the update that each site is to make.
fn turns(actions: &[Action]) -> Vec<(SiteId, u32)> {
    let turn = |action: &Action| match action {
        Action::StartRound(site, round, _) => Some((*site, round.0)),
        _ => None,
    };
    actions.iter().filter_map(turn).collect()
}

#[test]
fn a_full_buffer_is_a_step_and_a_quick_site_waits_for_nobody() {
    let mut machine = filling();
    assert_eq!(turns(&sent(&mut machine, 1, 0, 0, 10)), [(site(1), 1)], "it goes on at once");
    assert_eq!(sent(&mut machine, 1, 1, 0, 20), [Action::Commit(RoundId(0))]);
    // It has made both of its updates; the others are still at work on the old model.
    assert!(turns(&machine.handle(Event::Committed(model(1)), 21)).is_empty());
    assert_eq!(machine.staleness(model(0)), 1);
    assert_eq!(turns(&sent(&mut machine, 2, 0, 0, 30)), [(site(2), 1)]);
    assert_eq!(machine.staleness(model(1)), 0);
    assert_eq!(sent(&mut machine, 2, 1, 1, 40), [Action::Commit(RoundId(1))]);
    // The last step: all evaluate its model, the slow one too.
    let last = machine.handle(Event::Committed(model(2)), 41);
    assert_eq!(turns(&last), [(site(1), 2), (site(2), 2), (site(3), 2)]);
    let late = machine.verdict(site(3), RoundId(0), Some(model(0)), Part::Update);
    assert_eq!(late, Err(Outcome::Late));
    for number in [1, 2] {
        assert!(contribute(&mut machine, number, Part::Evaluation, 50).is_empty());
    }
    assert_eq!(contribute(&mut machine, 3, Part::Evaluation, 51), [Action::Commit(RoundId(2))]);
    assert_eq!(machine.handle(Event::Committed(model(2)), 52), [Action::End(JobStatus::Finished)]);
}

#[test]
fn each_update_of_a_site_counts_once_in_its_order_and_from_a_model_of_the_job() {
    let mut machine = filling();
    let verdict = |machine: &JobMachine, number, round, base| {
        machine.verdict(site(number), RoundId(round), Some(model(base)), Part::Update)
    };
    sent(&mut machine, 1, 0, 0, 10);
    assert_eq!(verdict(&machine, 1, 0, 0), Err(Outcome::Repeated));
    assert_eq!(verdict(&machine, 1, 2, 0), Err(Outcome::WrongRound));
    assert_eq!(verdict(&machine, 1, 1, 9), Err(Outcome::WrongModel));
    assert_eq!(verdict(&machine, 9, 0, 0), Err(Outcome::WrongRound), "it has not agreed");
    sent(&mut machine, 1, 1, 0, 20);
    machine.handle(Event::Committed(model(1)), 21);
    assert_eq!(verdict(&machine, 1, 2, 1), Err(Outcome::WrongRound), "the contract allows two");
    assert_eq!(machine.released().unwrap()[&site(1)], 2);
}

#[test]
fn a_site_that_comes_back_is_asked_for_the_same_update_and_one_that_skips_rests_until_the_next_step() {
    let mut machine = filling();
    machine.handle(Event::SiteOffline(site(2)), 5);
    machine.handle(Event::SiteOnline(site(2)), 6);
    assert_eq!(turns(&machine.handle(Event::Answered(site(2), Decision::Accepted), 7)), [(site(2), 0)]);
    assert!(turns(&machine.handle(Event::Skipped(site(2), RoundId(0)), 8)).is_empty());
    sent(&mut machine, 1, 0, 0, 10);
    assert_eq!(sent(&mut machine, 3, 0, 0, 11), [Action::Commit(RoundId(0))]);
    // Site 1 is on its second update already.
    let next = machine.handle(Event::Committed(model(1)), 12);
    assert_eq!(turns(&next), [(site(2), 1), (site(3), 1)]);
}

#[test]
fn a_buffer_that_does_not_fill_in_time_or_cannot_fill_ends_the_job_with_a_reason() {
    let mut machine = filling();
    sent(&mut machine, 1, 0, 0, 10);
    assert_eq!(machine.next_timeout(), Some(60_000));
    let end = machine.handle(Event::Tick, 60_000);
    let [Action::End(JobStatus::Failed { reason })] = end.as_slice() else { panic!("{end:?}") };
    assert!(reason.contains("step 0 had 1 of 2 updates: after 60 s"), "{reason}");
    let mut machine = filling();
    let mut end = Vec::new();
    for round in [0, 1] {
        for number in [1, 2, 3] {
            end = machine.handle(Event::Skipped(site(number), RoundId(round)), 10);
        }
    }
    let [Action::End(JobStatus::Failed { reason })] = end.as_slice() else { panic!("{end:?}") };
    assert!(reason.contains("every site has released all updates"), "{reason}");
}

#[test]
fn a_restored_buffered_job_goes_on_where_each_site_is_and_knows_old_models() {
    let contract = filling().contract().clone();
    let answers = BTreeMap::from([(site(1), Decision::Accepted), (site(2), Decision::Accepted)]);
    let mut machine = JobMachine::restore(contract, JobStatus::Running, RoundId(1), model(1), &answers, 100);
    machine.resume(BTreeMap::from([(site(1), 1)]), [model(0)]);
    for number in [1, 2] {
        machine.handle(Event::SiteOnline(site(number)), 101);
    }
    machine.handle(Event::Answered(site(1), Decision::Accepted), 102);
    let begun = machine.handle(Event::Answered(site(2), Decision::Accepted), 103);
    assert_eq!(turns(&begun), [(site(1), 1), (site(2), 0)]);
    assert_eq!(machine.staleness(model(0)), 1);
    sent(&mut machine, 2, 0, 0, 110);
}
