//! What is on disk before what leaves, and at how many syncs: the daemons' own system calls, as `strace`
//! saw them.

use crate::federation::{Daemon, Federation, PROGRAM, records};
use crate::strace::{self, Call};

/// A job that only trains, one site being enough, with a model of many datagrams. `hidden` squared and some
/// more are its parameters.
fn job(federation: &Federation, rounds: u32, hidden: u32) -> String {
    let more = format!(
        "[model.mlp]\nhidden = [{hidden}, {hidden}]\n[evaluation]\nevery = 0\n[federation]\nmin_sites = 1"
    );
    federation.job(rounds, 1.0, &more)
}

/// Bytes of the parameters of that model on three features.
fn model_len(hidden: u64) -> u64 {
    4 * (3 * hidden + hidden + hidden * hidden + hidden + hidden + 1)
}

/// Bytes handed to the network by calls that began in `lines`.
fn sent(calls: &[Call], lines: std::ops::Range<usize>) -> u64 {
    calls.iter().filter(|call| lines.contains(&call.lines.0)).map(Call::sent).sum()
}

/// The call that its thread made next.
fn next_of_thread<'a>(calls: &'a [Call], call: &Call) -> Option<&'a Call> {
    calls.iter().find(|next| next.thread == call.thread && next.lines.0 > call.lines.0)
}

#[test]
fn every_ledger_entry_is_synced_before_what_it_pays_for_leaves_and_a_round_costs_two_syncs() {
    const ROUNDS: usize = 6;
    let federation = Federation::start();
    let home = federation.join("shop", &records(40), &["--cap-delta", "1e-4"]);
    let log = federation.path("strace.log");
    let mut tracer = strace::tracer(&log, &[]);
    tracer.arg(PROGRAM).args(["client", "serve", "--home"]).arg(&home);
    let daemon = Daemon::start_command(tracer, "is connected");
    let job = job(&federation, ROUNDS as u32, 100);
    let watched = federation.operator(&["job", "submit", &job, "--watch"]);
    assert!(watched.contains("job is finished"), "{watched}");
    daemon.end();
    let calls = strace::read(&log);

    // Nothing comes between an entry and its sync, and the sync succeeds.
    let entries: Vec<&Call> = calls.iter().filter(|call| call.is_on(&["write"], "/ledger.jsonl")).collect();
    let synced = |entry: &Call| {
        let sync = next_of_thread(&calls, entry).filter(|next| next.is_on(&["fdatasync"], "/ledger.jsonl"));
        let sync = sync.filter(|sync| sync.result == Some(0));
        sync.unwrap_or_else(|| panic!("an entry was not synced: {entry:?}")).lines.1
    };
    entries.iter().for_each(|entry| {
        synced(entry);
    });
    let of_kind = |kind: &str| -> Vec<&Call> {
        entries.iter().filter(|entry| entry.ledger_entry() == Some(kind)).copied().collect()
    };
    assert_eq!((of_kind("opened").len(), of_kind("reserved").len()), (1, 1));
    let (debits, releases) = (of_kind("debited"), of_kind("released"));
    assert_eq!((debits.len(), releases.len()), (ROUNDS, ROUNDS));

    // From a round's debit until its release is on disk, acknowledgements leave and nothing longer; the
    // update leaves after.
    let update = model_len(100);
    for round in 0..ROUNDS {
        let (debit, release) = (debits[round].lines.0, synced(releases[round]));
        let end = debits.get(round + 1).map_or(usize::MAX, |next| next.lines.0);
        let (before, after) = (sent(&calls, debit..release), sent(&calls, release..end));
        assert!(before < update / 4, "round {round}: {before} bytes left before their release was on disk");
        assert!(after >= update, "round {round}: only {after} bytes after its release");
    }

    // Two syncs a round: the debit's and the release's.
    let rounds = debits[0].lines.0..=synced(releases[ROUNDS - 1]);
    let syncs: Vec<&Call> =
        calls.iter().filter(|call| call.is_sync() && rounds.contains(&call.lines.0)).collect();
    assert_eq!(syncs.len(), 2 * ROUNDS, "{syncs:#?}");
}

#[test]
fn every_committed_round_is_synced_with_its_model_before_the_next_one_is_sent() {
    const ROUNDS: usize = 5;
    let mut federation = Federation::start();
    let home = federation.join("shop", &records(40), &["--cap-delta", "1e-4"]);
    federation.end_coordinator();
    let log = federation.path("strace.log");
    federation.serve_under(strace::tracer(&log, &[]));
    let site = federation.serve_site(&home);
    let job = job(&federation, ROUNDS as u32, 150);
    let watched = federation.operator(&["job", "submit", &job, "--watch"]);
    assert!(watched.contains("job is finished"), "{watched}");
    drop(site);
    federation.end_coordinator();
    let calls = strace::read(&log);

    // A model longer than 64 KiB is a file, put in place by a rename: the first at submission, then one a round.
    let model = model_len(150);
    let places: Vec<&Call> = calls
        .iter()
        .filter(|call| call.name.starts_with("rename") && call.arguments.contains("/state/models/"))
        .collect();
    assert_eq!(places.len(), 1 + ROUNDS);
    for (round, place) in places.iter().enumerate() {
        let before = calls.iter().rfind(|call| call.thread == place.thread && call.lines.0 < place.lines.0);
        let draft = before.filter(|call| call.is_sync() && call.is_on(&["fsync", "fdatasync"], ".new"));
        assert!(draft.is_some_and(|sync| sync.result == Some(0)), "the model of {place:?} was not synced");
        let folder = next_of_thread(&calls, place).filter(|call| call.is_on(&["fsync"], "/state/models"));
        assert!(folder.is_some_and(|sync| sync.result == Some(0)), "the folder of {place:?} was not synced");

        // The database: written, then synced by its file, and only then does the next round's model leave.
        let end = places.get(round + 1).map_or(usize::MAX, |next| next.lines.0);
        let later = |after: usize| move |call: &&Call| call.lines.0 > after && call.lines.0 < end;
        let written =
            calls.iter().filter(later(place.lines.1)).find(|call| call.is_on(&["pwrite64"], "/state/db"));
        let written = written.unwrap_or_else(|| panic!("nothing was stored after {place:?}")).lines.1;
        let synced = calls.iter().filter(later(written)).find(|call| call.is_on(&["fdatasync"], "/state/db"));
        let synced =
            synced.filter(|sync| sync.result == Some(0)).expect("the database's file was not synced");
        let (before, after) =
            (sent(&calls, place.lines.0..synced.lines.1), sent(&calls, synced.lines.1..end));
        assert!(before < model / 4, "{before} bytes left before round {round} was on disk");
        assert!(round == ROUNDS || after >= model, "only {after} bytes after round {round}");
    }
    // A round costs the model's file, its folder, and the database: three syncs.
    let rounds = places[1].lines.0..places[ROUNDS].lines.0;
    let syncs = calls.iter().filter(|call| call.is_sync() && rounds.contains(&call.lines.0)).count();
    assert_eq!(syncs, 3 * (ROUNDS - 1));
}
