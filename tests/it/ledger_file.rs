//! The ledger's file in trouble, through the real daemon: torn, damaged, on a disk that is full.

use crate::federation::{Daemon, Federation, PROGRAM, failure, records};
use crate::go_between::GoBetween;
use crate::kill_loop::check;
use std::path::Path;
use std::process::Command;

const RUN: [&str; 2] = ["--cap-delta", "1e-4"];

fn submit(federation: &Federation, rounds: u32) {
    let job = federation.job(rounds, 1.0, "[federation]\nmin_sites = 1");
    let watched = federation.operator(&["job", "submit", &job, "--watch"]);
    assert!(watched.contains("job is finished"), "{watched}");
}

fn ledger(home: &Path) -> Vec<u8> {
    std::fs::read(home.join("ledger.jsonl")).unwrap()
}

#[test]
fn a_torn_last_entry_is_mended_by_the_daemon_and_a_torn_middle_is_an_alarm() {
    let federation = Federation::start();
    let home = federation.join("shop", &records(30), &RUN);
    let daemon = federation.serve_site(&home);
    submit(&federation, 2);
    daemon.end();
    let whole = ledger(&home);
    let last = whole[..whole.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;

    // Cut off at a few places of a last entry: the entry goes, the others stay, the site serves.
    for keep in [1, 100, whole.len() - last - 1] {
        std::fs::write(home.join("ledger.jsonl"), [&whole[..], &whole[last..][..keep]].concat()).unwrap();
        federation.serve_site(&home).end();
        assert!(ledger(&home).starts_with(&whole));
        assert_eq!(
            ledger(&home).iter().filter(|byte| **byte == b'\n').count(),
            federation.status(&home)["ledger_entries"].as_u64().unwrap() as usize
        );
    }

    let middle = whole.len() / 2;
    std::fs::write(home.join("ledger.jsonl"), [&whole[..middle], &whole[middle + 200..]].concat()).unwrap();
    let error = failure(&["client", "serve", "--home", home.to_str().unwrap()]);
    assert!(error.contains("damaged or tampered with"), "{error}");
}

/// A limit on the ledger's length, as a disk that fills up in the middle of an entry.
#[test]
fn a_disk_that_fills_up_stops_all_releases_with_a_clear_line_and_leaves_nothing_unpaid() {
    let federation = Federation::start();
    let home = federation.join("shop", &records(30), &RUN);
    let between = GoBetween::start(&federation, &home);
    let errors = federation.path("errors.log");
    // 8 KiB: the ledger's opening, the reservation, and a few rounds' entries.
    let mut limited = Command::new("sh");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 16; exec \"$@\" 2>>errors.log", "sh", PROGRAM]);
    limited.current_dir(errors.parent().unwrap()).args(["client", "serve", "--home"]).arg(&home);
    let daemon = Daemon::start_command(limited, "is connected");
    submit(&federation, 12);
    daemon.end();
    let said = std::fs::read_to_string(&errors).unwrap();
    assert!(said.contains("nothing more will leave this site until that is mended"), "{said}");
    assert_eq!(ledger(&home).len(), 8192, "the disk must have filled up in the middle of an entry");
    let before = between.book();
    assert!((1..12).contains(&before.len()), "{} contributions left", before.len());
    check(&home, &before);

    // With room again it mends the entry that was cut off, and goes on.
    let daemon = federation.serve_site(&home);
    submit(&federation, 3);
    daemon.end();
    let after = between.book();
    assert!(after.len() > before.len());
    check(&home, &after);
}
