//! The doctor on real homes, of both sides, sound and broken.

use crate::federation::{Federation, failure, output, records, run};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// What the doctor finds: its subject, what is the case, and the cure if there is a problem.
fn findings(home: &Path) -> Vec<(String, String, Option<String>)> {
    let examined = run(&["doctor", "--home", home.to_str().unwrap(), "--format", "json"]);
    let findings: Vec<serde_json::Value> = serde_json::from_slice(&examined.stdout).unwrap();
    let text = |finding: &serde_json::Value, key: &str| finding[key].as_str().map(str::to_owned);
    let findings: Vec<_> = findings
        .iter()
        .map(|finding| {
            (text(finding, "subject").unwrap(), text(finding, "found").unwrap(), text(finding, "cure"))
        })
        .collect();
    let sound = findings.iter().all(|(.., cure)| cure.is_none());
    assert_eq!(examined.status.code(), Some(i32::from(!sound)));
    findings
}

fn problems(home: &Path) -> Vec<(String, String)> {
    let problem = |(subject, found, cure): (String, String, Option<String>)| cure.map(|_| (subject, found));
    findings(home).into_iter().filter_map(problem).collect()
}

#[test]
fn sound_homes_pass_whether_their_daemons_run_or_not() {
    let mut federation = Federation::start();
    let home = federation.join("shop", &records(40), &[]);
    let names = |home: &Path| findings(home).into_iter().map(|(subject, ..)| subject).collect::<Vec<_>>();
    let before = ["settings", "clock", "key", "certificate", "port", "disk", "policy", "schema", "data"];
    assert_eq!(names(&home), before);
    assert_eq!(problems(&home), []);
    let daemon = federation.serve_site(&home);
    assert_eq!(problems(&home), []);
    assert!(names(&home).contains(&"ledger".to_owned()));
    assert_eq!(problems(&federation.home()), []);
    drop(daemon);
    federation.end_coordinator();
    assert_eq!(problems(&federation.home()), []);
    assert!(names(&federation.home()).contains(&"state".to_owned()));
    let text = output(&["doctor", "--home", federation.home().to_str().unwrap()]);
    assert!(text.lines().all(|line| line.starts_with("PASSED")), "{text}");
}

#[test]
fn each_thing_that_is_broken_at_a_site_is_named_with_its_cure() {
    let mut federation = Federation::start();
    let home = federation.join("shop", &records(40), &[]);
    federation.operator(&["site", "revoke", "shop"]);
    let revoked = problems(&home);
    assert_eq!(revoked.len(), 1, "{revoked:?}");
    assert!(revoked[0].1.contains("refuses this site's certificate"), "{revoked:?}");

    federation.kill_coordinator();
    std::fs::write(federation.path("shop.csv"), "id,a,b,c,y\nc1,0,cheap,0,1\n").unwrap();
    let policy = home.join("policy.toml");
    let text = std::fs::read_to_string(&policy).unwrap();
    std::fs::write(&policy, format!("{text}\ncolour = \"red\"\n")).unwrap();
    std::fs::set_permissions(home.join("site.key"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let broken = problems(&home);
    let subjects: Vec<&str> = broken.iter().map(|(subject, _)| subject.as_str()).collect();
    assert_eq!(subjects, ["key", "port", "policy"], "{broken:?}");
    std::fs::write(&policy, text).unwrap();
    let data = problems(&home).pop().unwrap();
    assert!(data.0 == "data" && data.1.contains("line 2: column `b` holds `cheap`"), "{data:?}");

    std::fs::write(home.join("client.toml"), "name = 3").unwrap();
    assert_eq!(problems(&home)[0].0, "settings");
    let said = run(&["doctor", "--home", home.to_str().unwrap()]);
    let text = String::from_utf8(said.stdout).unwrap();
    assert!(text.lines().any(|line| line.starts_with("PROBLEM") && line.contains("; cure: ")), "{text}");
    let none = failure(&["doctor", "--home", federation.path("none").to_str().unwrap()]);
    assert!(none.contains("is no home"), "{none}");
}

#[test]
fn a_coordinators_port_that_another_program_uses_is_named() {
    let mut federation = Federation::start();
    federation.end_coordinator();
    let config = std::fs::read_to_string(federation.home().join("coordinator.toml")).unwrap();
    let listen = config.lines().find_map(|line| line.strip_prefix("listen = ")).unwrap();
    let _other = std::net::UdpSocket::bind(listen.trim_matches('"')).unwrap();
    let found = problems(&federation.home());
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].0 == "port" && found[0].1.contains("not this home's daemon"), "{found:?}");
}
