//! Links that are cut, and sites that move, with real daemons: an outage costs its own length and not the round;
//! contents go on where they stopped; another address is no new connection.

use crate::federation::{Federation, records, talking};
use crate::link::{Link, Way};
use crate::watch::Watch;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// What something that must happen is given before a test fails; nothing waits for it otherwise.
const PATIENCE: Duration = Duration::from_secs(120);

fn connected(lines: &mpsc::Receiver<String>) {
    while !lines.recv_timeout(PATIENCE).expect("the site connects").contains("is connected") {}
}

/// How long the link is cut, in seconds: ten, or `WEIGHHOUSE_LINK_CUT_S`.
fn outage() -> Duration {
    let asked = std::env::var("WEIGHHOUSE_LINK_CUT_S").ok();
    Duration::from_secs(asked.map_or(10, |text| text.parse().expect("seconds")))
}

#[test]
fn a_link_that_is_cut_costs_the_time_of_the_cut_and_not_the_round() {
    let federation = Federation::start();
    let homes = ["berlin", "bonn"].map(|name| federation.join(name, &records(60), &["--cap-delta", "1e-4"]));
    let link = Link::lay(&federation, &homes[1]);
    let _stays = federation.serve_site(&homes[0]);
    let _cut_off = federation.serve_site(&homes[1]);
    let job = federation.job(4_000, 8.0, "[evaluation]\nevery = 0\n[federation]\nmin_sites = 2");
    federation.operator(&["job", "submit", &job]);
    let mut watch = Watch::start(&federation);
    watch.until("round 3 committed");

    link.cut();
    let began = Instant::now();
    // What was on its way is told; then there is silence, since a round needs both.
    let silence = outage();
    let mut heard = String::new();
    while let Some(line) = watch.within(silence.saturating_sub(began.elapsed())) {
        assert!(!line.contains("job is") || line.contains("job is running"), "{line}");
        heard = line;
    }
    let cut = began.elapsed();
    assert!(cut >= silence);
    link.mend();
    let mended = Instant::now();
    let next = watch.until("committed");
    let cost = mended.elapsed();
    println!(
        "{:.1} s of outage cost {:.1} s; before it: {heard}; after it: {next}",
        cut.as_secs_f64(),
        (cut + cost).as_secs_f64()
    );
    assert!(next.contains("2 sites"), "both sites are in the round that was cut: {next}");
    assert!(cost <= silence, "an outage of {cut:?} cost {cost:?} more");
    let job = federation.operator(&["job", "list", "--format", "json"]);
    let job: serde_json::Value = serde_json::from_str(&job).unwrap();
    federation.operator(&["job", "stop", job[0]["job"].as_str().unwrap()]);
}

/// Layers of a model of several pieces, and its bytes.
const HIDDEN: u64 = 1_800;
const MODEL_LEN: u64 = 4 * (3 * HIDDEN + HIDDEN + HIDDEN * HIDDEN + HIDDEN + HIDDEN + 1);

/// A job of one round of it.
fn long_job(federation: &Federation) -> String {
    let more = format!(
        "[model.mlp]\nhidden = [{HIDDEN}, {HIDDEN}]\n[evaluation]\nevery = 0\n[federation]\nmin_sites = 1"
    );
    federation.job(1, 1.0, &more)
}

/// What may pass after the cut, where a third is left: with blocks that were cut, and packets that were lost on a busy
/// machine, before the cut or after it. Who begins anew needs all of it.
const THE_REST: u64 = 2 * MODEL_LEN / 3;

#[test]
fn an_upload_that_was_cut_goes_on_where_it_stopped_though_the_site_was_killed() {
    let federation = Federation::start();
    let home = federation.join("shop", &records(30), &["--cap-delta", "1e-4"]);
    let link = Link::lay(&federation, &home);
    let site = federation.serve_site(&home);
    link.cut_after(Way::Up, 2 * MODEL_LEN / 3);
    federation.operator(&["job", "submit", &long_job(&federation)]);
    assert_eq!(link.was_cut.recv_timeout(PATIENCE), Ok(Way::Up));
    site.kill();
    link.mend();
    let before = link.passed(Way::Up);
    let _again = federation.serve_site(&home);
    let watched = federation.operator(&["job", "watch"]);
    assert!(watched.contains("job is finished"), "{watched}");
    let after = link.passed(Way::Up) - before;
    println!("{before} bytes up before the cut, {after} after it; the update has {MODEL_LEN}");
    assert!(after < THE_REST, "{after} bytes were sent after the cut");
    let status = federation.status(&home);
    assert_eq!(status["updates_released"], 1);
}

#[test]
fn a_download_that_was_cut_goes_on_where_it_stopped_though_the_coordinator_was_killed() {
    let mut federation = Federation::start();
    let home = federation.join("shop", &records(30), &["--cap-delta", "1e-4"]);
    let link = Link::lay(&federation, &home);
    let _site = federation.serve_site(&home);
    link.cut_after(Way::Down, 2 * MODEL_LEN / 3);
    federation.operator(&["job", "submit", &long_job(&federation)]);
    assert_eq!(link.was_cut.recv_timeout(PATIENCE), Ok(Way::Down));
    federation.kill_coordinator();
    federation.serve();
    let before = link.passed(Way::Down);
    link.mend();
    let watched = federation.operator(&["job", "watch"]);
    assert!(watched.contains("job is finished"), "{watched}");
    // Acknowledgements of the update go down too.
    let after = link.passed(Way::Down) - before;
    println!("{before} bytes down before the cut, {after} after it; the model has {MODEL_LEN}");
    assert!(after < THE_REST, "{after} bytes were sent after the cut");
}

#[test]
fn a_site_that_moves_to_another_address_carries_on_in_the_same_connection() {
    let federation = Federation::start();
    let home = federation.join("shop", &records(60), &["--cap-delta", "1e-4"]);
    let link = Link::lay(&federation, &home);
    let (_daemon, lines) = talking(&home);
    connected(&lines);
    let job = federation.job(60, 8.0, "[evaluation]\nevery = 0\n[federation]\nmin_sites = 1");
    federation.operator(&["job", "submit", &job]);
    let mut watch = Watch::start(&federation);
    let handshakes = link.handshakes();
    for round in [3, 10, 20] {
        watch.until(&format!("round {round} committed"));
        link.move_site();
    }
    watch.until("job is finished");
    assert_eq!(link.handshakes(), handshakes, "no handshake after the first");
    assert!(!lines.try_iter().any(|line| line.contains("is connected")), "it never connects again");
}
