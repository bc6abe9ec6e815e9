//! A site's policy: a job is held against it before anything is computed, its people decide when it says
//! so, and only its officer changes it.

use crate::federation::{Daemon, Federation, failure, output, records, run};
use crate::watch::Watch;
use serde_json::Value;
use std::path::Path;

/// Replaces `from` in the policy of the site at `home`.
fn amend(home: &Path, from: &str, to: &str) {
    let path = home.join("policy.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(path, text.replace(from, to)).unwrap();
}

/// Two sites whose jobs may cost epsilon 8 at delta 1e-4; berlin's policy is changed so.
fn branches(federation: &Federation, from: &str, to: &str) -> [std::path::PathBuf; 2] {
    let join = |name, customers| federation.join(name, &records(customers), &["--cap-delta", "1e-4"]);
    let homes = [join("berlin", 80), join("bonn", 60)];
    amend(&homes[0], from, to);
    homes
}

fn client(verb: &[&str], home: &Path) -> String {
    output(&[&["client"], verb, &["--home", home.to_str().unwrap()]].concat())
}

/// The jobs offered to a site, oldest first.
fn jobs(home: &Path) -> Vec<Value> {
    serde_json::from_str(&client(&["jobs", "--format", "json"], home)).unwrap()
}

/// Submits a job of `rounds` rounds at `epsilon` for one site or more, and watches it.
fn submit(federation: &Federation, rounds: u32, epsilon: f64, min_sites: u32) -> Watch {
    let path = federation.job(rounds, epsilon, "");
    let more = format!("[federation]\nmin_sites = {min_sites}\n");
    std::fs::write(&path, std::fs::read_to_string(&path).unwrap() + &more).unwrap();
    federation.operator(&["job", "submit", &path]);
    Watch::start(federation)
}

#[test]
fn a_job_over_the_limit_of_one_job_is_refused_by_that_rule_and_runs_without_the_site() {
    let federation = Federation::start();
    let homes = branches(&federation, "max_epsilon = 8.0", "max_epsilon = 0.5");
    let _sites = homes.each_ref().map(|home| federation.serve_site(home));
    let mut watch = submit(&federation, 2, 1.0, 1);
    watch.until("berlin refused: `jobs.max_epsilon`");
    watch.until("job is finished");
    let status = federation.status(&homes[0]);
    let said = status["last_job"].as_str().unwrap();
    assert!(said.contains("allows one job epsilon 0.5") && said.contains("this one asks"), "{said}");
    assert_eq!((&status["epsilon_reserved"], &status["epsilon_per_job"]), (&0.0.into(), &0.5.into()));
    assert_eq!(federation.status(&homes[1])["last_job"], "test: accepted");
}

#[test]
fn a_model_that_is_not_listed_is_refused_by_that_rule() {
    let federation = Federation::start();
    let homes = branches(&federation, "models = [\"logistic\", ", "models = [");
    let _sites = homes.each_ref().map(|home| federation.serve_site(home));
    submit(&federation, 2, 1.0, 1).until("berlin refused: `jobs.models`");
}

#[test]
fn an_approved_job_starts_at_once_and_completes_and_the_others_have_run_without_waiting() {
    let federation = Federation::start();
    let homes = branches(&federation, "approval = \"auto\"", "approval = \"ask\"");
    let _sites = homes.each_ref().map(|home| federation.serve_site(home));
    // Bonn runs a job of its own meanwhile: nobody waits for berlin.
    let mut alone = submit(&federation, 2, 1.0, 1);
    alone.until("berlin waits for approval");
    alone.until("job is finished");

    let mut both = submit(&federation, 3, 1.0, 2);
    both.until("berlin waits for approval");
    let offered = jobs(&homes[0]);
    let [waiting] = offered.as_slice() else {
        panic!("the ended job is no longer to be decided: {offered:?}")
    };
    assert_eq!((&waiting["state"], &waiting["model"]), (&"waiting".into(), &"logistic".into()));
    let asked = waiting["epsilon"].as_f64().unwrap();
    assert!(asked > 0.9 && asked <= 1.0, "{waiting}");
    assert_eq!(waiting["epsilon_would_be"], waiting["epsilon"]);
    let status = federation.status(&homes[0]);
    assert_eq!((&status["approval"], &status["jobs_waiting"]), (&"ask".into(), &1.into()));
    assert_eq!(status["epsilon_reserved"], 0.0);

    let prefix = &waiting["job"].as_str().unwrap()[..8];
    assert!(client(&["approve", prefix], &homes[0]).contains("starts at once"));
    both.until("berlin takes part");
    both.until("job is finished");
    assert!(federation.status(&homes[0])["updates_released"].as_u64().unwrap() >= 3);
    assert!(client(&["jobs"], &homes[0]).contains(prefix));
    // Bonn, which is not asked, knows its jobs from its ledger.
    assert_eq!(jobs(&homes[1]).len(), 2);
}

#[test]
fn a_refused_job_is_answered_with_a_label_and_refused_for_good() {
    let federation = Federation::start();
    let homes = branches(&federation, "approval = \"auto\"", "approval = \"ask\"");
    let _sites = homes.each_ref().map(|home| federation.serve_site(home));
    let mut watch = submit(&federation, 2, 1.0, 2);
    watch.until("berlin waits for approval");
    let job = jobs(&homes[0])[0]["job"].as_str().unwrap().to_owned();
    let home = homes[0].to_str().unwrap();
    assert!(failure(&["client", "approve", "f00d", "--home", home]).contains("no job f00d"));
    client(&["refuse", &job], &homes[0]);
    watch.until("berlin refused: someone there refused it");
    assert_eq!(jobs(&homes[0])[0]["state"], "refused");
    assert!(failure(&["client", "approve", &job, "--home", home]).contains("refused here, for good"));
    assert_eq!(federation.status(&homes[0])["epsilon_reserved"], 0.0);
}

#[test]
fn an_approval_that_the_budget_cannot_pay_is_refused_with_the_figures() {
    let federation = Federation::start();
    let homes = branches(&federation, "approval = \"auto\"", "approval = \"ask\"");
    amend(&homes[0], "epsilon = 8.0\n", "epsilon = 1.2\n");
    let _sites = homes.each_ref().map(|home| federation.serve_site(home));
    // Both wait for a third site; together they would pass the cap of 1.2.
    for rounds in [2, 3] {
        submit(&federation, rounds, 1.0, 3).until("berlin waits for approval");
    }
    let waiting = jobs(&homes[0]);
    let home = homes[0].to_str().unwrap();
    let approved = run(&["client", "approve", "--all", "--home", home]);
    let (said, error) =
        (String::from_utf8_lossy(&approved.stdout), String::from_utf8_lossy(&approved.stderr));
    assert_eq!((approved.status.code(), said.lines().count()), (Some(1), 1), "{said}{error}");
    assert!(error.contains("cannot be approved") && error.contains("over the cap of 1.2"), "{error}");
    Watch::of(&federation, &[waiting[0]["job"].as_str().unwrap()]).until("berlin takes part");
    let left = jobs(&homes[0]);
    assert_eq!([&left[0]["state"], &left[1]["state"]], ["running", "waiting"]);
    assert!(client(&["jobs"], &homes[0]).contains("over the cap of 1.2"));
}

#[test]
fn an_approval_survives_the_daemons_and_the_coordinators_death() {
    let mut federation = Federation::start();
    let homes = branches(&federation, "approval = \"auto\"", "approval = \"ask\"");
    let _bonn = federation.serve_site(&homes[1]);
    let berlin = federation.serve_site(&homes[0]);
    submit(&federation, 40, 1.0, 2).until("berlin waits for approval");
    berlin.kill();
    let job = jobs(&homes[0])[0]["job"].as_str().unwrap().to_owned();
    assert!(client(&["approve", &job], &homes[0]).contains("when the daemon runs"));
    federation.kill_coordinator();
    federation.serve();
    // As it comes back, berlin is offered the job again, and knows what was decided meanwhile.
    let berlin = federation.serve_site(&homes[0]);
    Watch::start(&federation).until("committed");
    berlin.kill();
    // Approved once, it is not asked about again.
    let _berlin = federation.serve_site(&homes[0]);
    Watch::start(&federation).until("job is finished");
    let status = federation.status(&homes[0]);
    assert!(status["updates_released"].as_u64().unwrap() > 10 && status["jobs_waiting"] == 0, "{status}");
}

#[test]
fn a_running_job_is_left_when_someone_refuses_it_and_gives_back_what_it_held() {
    let federation = Federation::start();
    let homes = branches(&federation, "approval = \"auto\"", "approval = \"ask\"");
    let _sites = homes.each_ref().map(|home| federation.serve_site(home));
    let mut watch = submit(&federation, 2, 1.0, 3);
    watch.until("berlin waits for approval");
    client(&["approve", "--all"], &homes[0]);
    watch.until("berlin takes part");
    assert!(federation.status(&homes[0])["epsilon_reserved"].as_f64().unwrap() > 0.9);
    let job = jobs(&homes[0])[0]["job"].as_str().unwrap().to_owned();
    client(&["refuse", &job], &homes[0]);
    watch.until("berlin refused");
    // The coordinator is told before the ledger is written: ask the daemon, whose end closes its ledger.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while federation.status(&homes[0])["epsilon_reserved"] != 0.0 {
        assert!(std::time::Instant::now() < deadline, "the job's reservation was never given back");
        std::thread::yield_now();
    }
}

#[test]
fn a_site_with_fewer_customers_than_its_policy_wants_does_not_start() {
    let federation = Federation::start();
    let home = federation.join("shop", &records(20), &[]);
    amend(&home, "min = 1\n", "min = 21\n");
    let error = failure(&["client", "serve", "--home", home.to_str().unwrap()]);
    assert!(error.contains("`customers.min`") && error.contains("at least 21"), "{error}");
    assert!(!home.join("ledger.jsonl").exists(), "nothing half-written");
    amend(&home, "min = 21\n", "min = 20\n");
    drop(federation.serve_site(&home));
}

/// The officer's day: key, signature on a copy elsewhere, check, and a change that others cannot make.
#[test]
fn once_an_officer_is_named_a_change_that_the_officer_has_not_signed_is_refused() {
    let federation = Federation::start();
    let home = federation.join("shop", &records(20), &[]);
    let home_text = home.to_str().unwrap();
    let officer = |name: &str| {
        let key = federation.path(name).to_str().unwrap().to_owned();
        let said = output(&["policy", "new-key", &key]);
        let lines = said.split_once("[officer]").expect("the lines to add are printed").1.to_owned();
        (key, format!("[officer]{lines}"))
    };
    let ((key, lines), (other, _)) = (officer("officer.key"), officer("other.key"));
    let serve = ["client", "serve", "--home", home_text];
    let check = || {
        let checked = run(&["policy", "check", "--home", home_text, "--format", "json"]);
        let review: Value = serde_json::from_slice(&checked.stdout).unwrap();
        (checked.status.code(), review)
    };
    let accepted = || drop::<Daemon>(federation.serve_site(&home));

    let unnamed = output(&["policy", "sign", "--home", home_text, "--key", &key]);
    assert!(unnamed.contains("names no officer") && unnamed.contains(lines.trim()), "{unnamed}");
    std::fs::remove_file(home.join("policy.toml.sig")).unwrap();
    accepted();

    amend(&home, "# [officer]\n# public_key = \"…\"\n", &lines);
    assert!(failure(&serve).contains("not signed by the data-protection officer"));
    output(&["policy", "sign", "--home", home_text, "--key", &key]);
    assert_eq!(check().0, Some(0));
    accepted();
    assert_eq!(check().1["in_force"], true);

    amend(&home, "max_epsilon = 8.0", "max_epsilon = 100.0");
    assert!(failure(&serve).contains("weighhouse policy sign"));
    let (code, review) = check();
    assert_eq!((code, &review["signature"]["state"]), (Some(1), &"unknown".into()));
    assert_eq!(review["changes"][0]["key"], "jobs.max_epsilon");
    output(&["policy", "sign", "--home", home_text, "--key", &other]);
    assert!(failure(&serve).contains("not signed by the data-protection officer"));

    // The officer signs a copy, far from the site; both files come back.
    let copy = federation.path("copy.toml");
    std::fs::copy(home.join("policy.toml"), &copy).unwrap();
    output(&["policy", "sign", copy.to_str().unwrap(), "--key", &key]);
    output(&["policy", "check", copy.to_str().unwrap()]);
    std::fs::copy(federation.path("copy.toml.sig"), home.join("policy.toml.sig")).unwrap();
    accepted();
    let shown = output(&["policy", "show", "--home", home_text, "--format", "json"]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((&shown["in_force"], &shown["signed"]), (&true.into(), &true.into()));
    assert_eq!(shown["policy"]["jobs"]["max_epsilon"], 100.0);
    assert!(federation.status(&home)["officer"].is_string());
}
