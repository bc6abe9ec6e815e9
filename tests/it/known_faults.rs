//! Faults that systems of this field were published with, as far as only whole processes can show them.
//! The manual's `privacy` module lists all of them, each with the test that would fail.

use crate::federation::{Federation, failure, records};
use crate::go_between::{GoBetween, Seen};
use std::collections::BTreeSet;
use std::path::Path;
use weighhouse_client::budget::read_ledger;
use weighhouse_shared::clock;
use weighhouse_shared::job::UPDATE_STEP;
use weighhouse_shared::ledger::{Body, Population};
use weighhouse_shared::privacy::accountant::{GaussianEvent, renyi_epsilon};
use weighhouse_shared::wire::messages::SiteToCoordinator;

fn submit(federation: &Federation) {
    let job = federation.job(4, 1.0, "[evaluation]\nevery = 2\n[federation]\nmin_sites = 1");
    let watched = federation.operator(&["job", "submit", &job, "--watch"]);
    assert!(watched.contains("job is finished"), "{watched}");
}

/// What a site that has `records` says in a job, the noised values blotted out but not their number, nor
/// any name of a key, a hash or a job.
fn said(records: &str) -> BTreeSet<String> {
    let federation = Federation::start();
    let home = federation.join("shop", records, &["--cap-delta", "1e-4"]);
    let between = GoBetween::start(&federation, &home);
    let daemon = federation.serve_site(&home);
    submit(&federation);
    let message = |seen| match seen {
        Seen::FromSite(SiteToCoordinator::Evaluation(evaluation)) => {
            Some(format!("evaluation {} of {} counts", evaluation.round, evaluation.histogram.len()))
        }
        Seen::FromSite(SiteToCoordinator::LedgerHead(told)) => {
            let round = told.contribution.map(|(_, round)| round);
            Some(format!(
                "{} entries, {} bytes signed, for {round:?}",
                told.head.entries,
                told.signature.len()
            ))
        }
        Seen::FromSite(message) => Some(blot(&format!("{message:?}"))),
        _ => None,
    };
    let mut said = BTreeSet::new();
    // The last word is what the job left of the budget; the first of its kind was said on connecting.
    let mut standings = 0;
    while standings < 2 {
        let seen = between.seen.recv().unwrap();
        standings += u32::from(matches!(seen, Seen::FromSite(SiteToCoordinator::Standing(_))));
        said.extend(message(seen));
    }
    daemon.end();
    for ((_, round, kind), contents) in between.book() {
        let lens: Vec<usize> = contents.values().flatten().map(Vec::len).collect();
        said.insert(format!("{kind:?} {round} of {lens:?} bytes"));
    }
    said
}

/// `text` without its random parts: long runs of hexadecimal digits.
fn blot(text: &str) -> String {
    let mut blotted = String::new();
    for part in text.split_inclusive(|letter: char| !letter.is_ascii_hexdigit()) {
        let digits = part.trim_end_matches(|letter: char| !letter.is_ascii_hexdigit());
        blotted.push_str(if digits.len() >= 8 { "#" } else { digits });
        blotted.push_str(&part[digits.len()..]);
    }
    blotted
}

#[test]
fn fault_exact_row_counts_losses_and_metrics_sent_in_clear() {
    // Ten times the rows, other values, nearly all labels the same.
    let many = (0..400).map(|row| format!("x{row},0.9,0.1,0.{},{}\n", row % 10, u8::from(row > 5)));
    let many: String = std::iter::once("id,a,b,c,y\n".to_owned()).chain(many).collect();
    let (few, many) = (said(&records(40)), said(&many));
    assert!(few.len() > 8, "{few:?}");
    assert_eq!(few, many, "a site's messages differ by more than noise");
}

#[test]
fn fault_noise_added_after_unmasking_instead_of_at_the_site() {
    let federation = Federation::start();
    let home = federation.join("shop", &records(40), &["--cap-delta", "1e-4"]);
    let between = GoBetween::start(&federation, &home);
    let _daemon = federation.serve_site(&home);
    let more = "[evaluation]\nevery = 0\n[federation]\nmin_sites = 1";
    let job = federation.job(1, 0.001, more);
    federation.operator(&["job", "submit", &job, "--watch"]);
    let book = between.book();
    let update = book.values().flat_map(|contents| contents.values()).flatten().next().unwrap();
    let values =
        update.as_chunks::<4>().0.iter().map(|bytes| f64::from(i32::from_le_bytes(*bytes)) * UPDATE_STEP);
    // Without noise no update is longer than steps x rate x customers x clip norm / expected customers. With
    // the noise of epsilon 0.001 one of four values is far above it, but for one time in a million.
    let longest = 3.0 * 1.5 * 40.0 * 0.5 / 100.0;
    assert!(values.clone().any(|value| value.abs() > longest), "{:?}", values.collect::<Vec<_>>());
}

#[test]
fn a_secure_sum_of_too_few_sites_is_refused_when_it_is_submitted() {
    let federation = Federation::start();
    let job = federation.job(1, 1.0, "[federation]\nmode = \"secure_sum\"");
    let home = federation.home();
    let said = failure(&["job", "submit", &job, "--home", home.to_str().unwrap()]);
    assert!(said.contains("needs 3 to 1024 sites that have joined, there are 0"), "{said}");
}

/// What the training customers paid by the ledger, and by adding up its debits one by one.
fn spent(home: &Path) -> (f64, f64) {
    let mut events: Vec<GaussianEvent> = Vec::new();
    let chain = read_ledger(&home.join("ledger.jsonl"), |entry| {
        if let Body::Debited { charge, .. } = &entry.body
            && charge.population == Population::Training
        {
            events.push(charge.event);
        }
    })
    .unwrap();
    let (_, delta) = chain.balance().cap().unwrap();
    (chain.balance().spent_at(clock::unix_time_s(), delta).lifetime, renyi_epsilon(&events, delta))
}

#[test]
fn fault_no_composition_over_rounds_or_an_accountant_reset_at_each_job_or_restart() {
    let federation = Federation::start();
    let home = federation.join("shop", &records(40), &["--cap-delta", "1e-4"]);
    let mut last = 0.0;
    for _ in 0..3 {
        // A new job and a new process each time.
        let daemon = federation.serve_site(&home);
        submit(&federation);
        daemon.end();
        let (by_ledger, by_debits) = spent(&home);
        assert!((by_ledger - by_debits).abs() < 1e-9 * by_debits, "{by_ledger} is not {by_debits}");
        assert!(by_ledger > last * 1.2, "{by_ledger} after {last}");
        last = by_ledger;
    }
}

#[test]
fn fault_noise_from_a_general_purpose_generator_or_in_floating_point() {
    // What ships of the two crates on the way from records to bytes names no other source of randomness.
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for krate in ["client", "shared"] {
        let manifest = std::fs::read_to_string(root.join(krate).join("Cargo.toml")).unwrap();
        let manifest: toml::Table = toml::from_str(&manifest).unwrap();
        let dependencies = manifest["dependencies"].as_table().unwrap();
        for (name, dependency) in dependencies {
            assert!(!name.starts_with("rand") && name != "fastrand" && name != "oorandom", "{krate}: {name}");
            assert!(!dependency.to_string().contains("seeded"), "{krate}: a seeded generator would ship");
        }
    }
    let own: toml::Table =
        toml::from_str(&std::fs::read_to_string(root.join("Cargo.toml")).unwrap()).unwrap();
    assert!(!own["dependencies"].to_string().contains("seeded"));
}
