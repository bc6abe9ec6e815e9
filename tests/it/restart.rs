//! Killed processes: the job goes on, and nothing spent is forgotten.

use crate::federation::{Federation, PROGRAM, records};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

#[test]
fn a_coordinator_killed_between_rounds_carries_the_job_on() {
    let mut federation = Federation::start();
    let homes = [
        federation.join("berlin", &records(80), &["--cap-delta", "1e-4"]),
        federation.join("bonn", &records(60), &["--cap-delta", "1e-4"]),
    ];
    let _sites = homes.each_ref().map(|home| federation.serve_site(home));
    // With state over rounds, which has to be there for the next one.
    let job = federation.job(200, 8.0, "[federation]\nstrategy = \"fedadam\"");
    federation.operator(&["job", "submit", &job]);
    let home = federation.home();
    for _ in 0..3 {
        // Kill after some more rounds were committed.
        let mut watch = Command::new(PROGRAM)
            .args(["job", "watch", "--home", home.to_str().unwrap()])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(watch.stdout.take().unwrap()).lines();
        lines.map_while(Result::ok).filter(|line| line.contains("sites in")).nth(8);
        federation.kill_coordinator();
        watch.kill().unwrap();
        watch.wait().unwrap();
        federation.serve();
    }
    let watched = federation.operator(&["job", "watch"]);
    assert!(watched.contains("job is finished"), "{watched}");
    let committed: Vec<&str> = watched.lines().filter(|line| line.contains("committed")).collect();
    // 200 rounds of training and one that only evaluates, each committed once.
    assert_eq!(committed.len(), 201);
    for (round, line) in committed.iter().enumerate() {
        assert!(line.starts_with(&format!("round {round} committed")), "{line}");
    }
    for home in &homes {
        let status = federation.status(home);
        assert!(status["epsilon_spent"].as_f64().unwrap() <= 8.0);
        assert!(status["updates_released"].as_u64().unwrap() <= 200);
    }
}

#[test]
fn a_site_killed_in_the_middle_of_a_job_comes_back_and_never_overspends() {
    let federation = Federation::start();
    let homes = [
        federation.join("berlin", &records(80), &["--cap-delta", "1e-4"]),
        federation.join("bonn", &records(60), &["--cap-delta", "1e-4"]),
    ];
    let _stays = federation.serve_site(&homes[0]);
    let mut killed = federation.serve_site(&homes[1]);
    let job = federation.job(60, 8.0, "");
    federation.operator(&["job", "submit", &job]);
    for _ in 0..5 {
        killed.kill();
        killed = federation.serve_site(&homes[1]);
    }
    let watched = federation.operator(&["job", "watch"]);
    assert!(watched.contains("job is finished"), "{watched}");
    let status = federation.status(&homes[1]);
    let spent = status["epsilon_spent"].as_f64().unwrap();
    assert!(spent > 0.0 && spent <= 8.0, "{status}");
}

#[test]
fn a_job_over_the_sites_cap_is_refused_and_a_smaller_one_is_served() {
    let federation = Federation::start();
    let extra = ["--cap-epsilon", "2", "--cap-delta", "1e-4"];
    let homes =
        [federation.join("berlin", &records(80), &extra), federation.join("bonn", &records(60), &extra)];
    let _sites = homes.each_ref().map(|home| federation.serve_site(home));
    let job = federation.job(2, 3.0, "");
    federation.operator(&["job", "submit", &job]);
    let greedy = federation.operator(&["job", "list", "--format", "json"]);
    let greedy: serde_json::Value = serde_json::from_str(&greedy).unwrap();
    assert_ne!(greedy[0]["status"], "finished");
    let job = federation.job(2, 1.0, "");
    let watched = federation.operator(&["job", "submit", &job, "--watch"]);
    assert!(watched.contains("job is finished"), "{watched}");
    let status = federation.status(&homes[0]);
    assert!(status["epsilon_spent"].as_f64().unwrap() <= 1.0, "only the smaller job was paid: {status}");
    let stopped = federation.operator(&["job", "stop", greedy[0]["job"].as_str().unwrap()]);
    assert!(stopped.contains("stopped"));
}
