//! Ledgers that were set back: found out at the next contact, offline, and by an auditor. Honest sites that
//! crash raise no alarm.

use crate::federation::{Daemon, Federation, failure, records};
use crate::watch::Watch;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::path::{Path, PathBuf};
use weighhouse_shared::clock;
use weighhouse_shared::ids::SiteId;
use weighhouse_shared::ledger::{self, Body, Entry, Trail, WitnessFault, check_witnesses, read_witnesses};
use weighhouse_shared::tls::verified_coordinator_key;

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for item in std::fs::read_dir(from).unwrap() {
        let item = item.unwrap();
        if item.file_type().unwrap().is_dir() {
            copy_folder(&item.path(), &to.join(item.file_name()));
        } else if let Err(error) = std::fs::copy(item.path(), to.join(item.file_name())) {
            // Drafts and outgoing items of a running daemon come and go.
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
        }
    }
}

fn site_status(federation: &Federation, name: &str) -> String {
    let sites: serde_json::Value =
        serde_json::from_str(&federation.operator(&["site", "list", "--format", "json"])).unwrap();
    let site = sites.as_array().unwrap().iter().find(|site| site["name"] == name).unwrap();
    site["status"].as_str().unwrap().to_owned()
}

fn join(federation: &Federation, names: &[&str]) -> Vec<PathBuf> {
    names.iter().map(|name| federation.join(name, &records(60), &["--cap-delta", "1e-4"])).collect()
}

/// What an auditor has: the ledger as a trail, its site, its entries.
fn audit(ledger: &[u8]) -> (Trail, SiteId, Vec<Entry>) {
    let (mut trail, mut entries) = (Trail::default(), Vec::new());
    let (chain, _) = ledger::read(ledger, |entry| {
        trail.note(entry);
        entries.push(entry.clone());
    })
    .unwrap();
    trail.end(chain.head().hash);
    (trail, SiteId::of_public_key(chain.public_key().unwrap()), entries)
}

/// The coordinator's key by way of the authority that the site has known since it joined.
fn coordinator_key(home: &Path, certificate: &Path) -> [u8; 32] {
    let authority = CertificateDer::from_pem_file(home.join("authority.crt")).unwrap();
    let certificate = CertificateDer::from_pem_file(certificate).unwrap();
    verified_coordinator_key(&authority, &certificate, clock::unix_time_s()).unwrap()
}

#[test]
fn a_site_restored_from_an_older_copy_is_found_out_and_its_newest_ledger_lets_it_in_again() {
    let mut federation = Federation::start();
    let homes = join(&federation, &["berlin", "bonn", "bremen"]);
    let mut sites: Vec<Daemon> = homes.iter().map(|home| federation.serve_site(home)).collect();
    let job = federation.job(5000, 8.0, "");
    federation.operator(&["job", "submit", &job]);
    let (home, older, newest) = (homes[1].as_path(), federation.path("older"), federation.path("newest"));
    // A watch tells of contributions from its own beginning on: what it tells of comes after the copy.
    Watch::start(&federation).until_times("sites in", 9);
    copy_folder(home, &older);
    let mut watch = Watch::start(&federation);
    watch.until_times("sites in", 15);
    sites.remove(1).kill();

    std::fs::rename(home, &newest).unwrap();
    copy_folder(&older, home);
    let ledger = home.join("ledger.jsonl");
    let before = std::fs::read(&ledger).unwrap();
    let serve = ["client", "serve", "--home", home.to_str().unwrap()];
    let error = failure(&serve);
    for part in ["older copy", "put back", "never delete", "data-protection officer"] {
        assert!(error.contains(part), "{error}");
    }
    let audited = failure(&["audit", "verify", ledger.to_str().unwrap()]);
    assert!(audited.contains("older copy"), "{audited}");
    watch.until("bonn came back with an older");
    assert_eq!(site_status(&federation, "bonn"), "ledger_set_back");
    assert_eq!(site_status(&federation, "berlin"), "online");

    // The evidence is in the home by now: no coordinator is needed, and a restarted one has not forgotten.
    drop(watch);
    federation.kill_coordinator();
    assert!(failure(&serve).contains("older copy"));
    assert_eq!(std::fs::read(&ledger).unwrap(), before, "nothing was spent meanwhile");
    let key = coordinator_key(home, &home.join("coordinator.crt"));
    let (trail, site, _) = audit(&before);
    let lines = std::fs::read(home.join("witnesses.jsonl")).unwrap();
    let checked = check_witnesses(&lines, &key, &trail, site);
    assert!(matches!(checked, Err(WitnessFault::SetBack { .. })), "{checked:?}");
    federation.serve();
    assert_eq!(site_status(&federation, "bonn"), "ledger_set_back");

    std::fs::copy(newest.join("ledger.jsonl"), &ledger).unwrap();
    let _back = federation.serve_site(home);
    assert_eq!(site_status(&federation, "bonn"), "online");
    Watch::start(&federation).until_times("3 of 3 sites in", 2);
}

#[test]
fn witnesses_survive_a_killed_coordinator_and_name_every_release_of_the_ledger() {
    let mut federation = Federation::start();
    let homes = join(&federation, &["berlin", "bonn"]);
    let sites: Vec<Daemon> = homes.iter().map(|home| federation.serve_site(home)).collect();
    let job = federation.job(6, 8.0, "");
    federation.operator(&["job", "submit", &job, "--watch"]);
    federation.kill_coordinator();
    sites.into_iter().for_each(Daemon::kill);
    federation.serve();
    let (file, certificate) = (federation.path("bonn.jsonl"), federation.path("hq.crt"));
    let (file_text, certificate_text) = (file.to_str().unwrap(), certificate.to_str().unwrap());
    federation.operator(&[
        "site",
        "witnesses",
        "bonn",
        "--output",
        file_text,
        "--certificate",
        certificate_text,
    ]);
    let key = coordinator_key(&homes[1], &certificate);
    let ledger = std::fs::read(homes[1].join("ledger.jsonl")).unwrap();
    let (trail, site, entries) = audit(&ledger);
    let lines = std::fs::read(&file).unwrap();
    // Six rounds of training and one that only evaluates.
    let count = check_witnesses(&lines, &key, &trail, site).unwrap();
    assert!(count >= 7, "{count}");

    let witnesses: Vec<_> = read_witnesses(&lines, &key).map(|read| read.unwrap().1).collect();
    let named: usize = witnesses.iter().map(|witness| witness.received.len()).sum();
    let released = entries.iter().filter(|entry| matches!(entry.body, Body::Released { .. })).count();
    assert_eq!((named, released > 6), (released, true));

    // An auditor who is handed an older ledger, or another site's, sees it.
    let last = ledger[..ledger.len() / 2].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
    let (trail, site, _) = audit(&ledger[..last]);
    assert!(matches!(check_witnesses(&lines, &key, &trail, site), Err(WitnessFault::SetBack { .. })));
    let (trail, other, _) = audit(&std::fs::read(homes[0].join("ledger.jsonl")).unwrap());
    assert_eq!(check_witnesses(&lines, &key, &trail, other), Err(WitnessFault::Site { line: 1 }));
    let json = federation.operator(&["site", "witnesses", "bonn", "--format", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["witnesses"].as_array().unwrap().len(), count);
}

#[test]
fn honest_sites_and_coordinators_killed_again_and_again_raise_no_alarm() {
    let mut federation = Federation::start();
    let homes = join(&federation, &["berlin", "bonn"]);
    let mut sites: Vec<Daemon> = homes.iter().map(|home| federation.serve_site(home)).collect();
    let job = federation.job(1500, 8.0, "");
    federation.operator(&["job", "submit", &job]);
    for turn in 0..8 {
        Watch::start(&federation).until_times("sites in", 2 + turn % 3);
        let victim = turn % 2;
        sites.remove(victim).kill();
        if turn % 4 == 3 {
            federation.kill_coordinator();
            federation.serve();
        }
        // A site that is refused never says that it is connected.
        sites.insert(victim, federation.serve_site(&homes[victim]));
    }
    let watched = federation.operator(&["job", "watch"]);
    assert!(watched.contains("job is finished"), "{watched}");
    for (name, home) in ["berlin", "bonn"].iter().zip(&homes) {
        assert_eq!(site_status(&federation, name), "online");
        let (trail, site, _) = audit(&std::fs::read(home.join("ledger.jsonl")).unwrap());
        let key = coordinator_key(home, &home.join("coordinator.crt"));
        let all = federation.operator(&["site", "witnesses", name]);
        assert!(check_witnesses(all.as_bytes(), &key, &trail, site).unwrap() > 10);
        let kept = std::fs::read(home.join("witnesses.jsonl")).unwrap();
        assert!(check_witnesses(&kept, &key, &trail, site).unwrap() > 10);
    }
}
