//! The demo as a stranger runs it, only smaller.

use crate::federation::{PROGRAM, failure, output};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

#[test]
fn the_demo_learns_together_and_every_ledger_stays_under_its_cap() {
    let folder = tempfile::tempdir().unwrap();
    let keep = folder.path().join("kept");
    let keep_text = keep.to_str().unwrap();
    let text = output(&[
        "demo", "--sites", "4", "--rounds", "8", "--keep", keep_text, "--format", "json", "--seed", "3",
    ]);
    let result: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(result["branches"].as_array().unwrap().len(), 4);
    for branch in result["branches"].as_array().unwrap() {
        let spent = branch["epsilon_spent"].as_f64().unwrap();
        assert!(spent > 1.0 && spent <= 8.0, "{branch}");
    }
    assert!(result["shared"].as_f64().unwrap() > 0.6);
    assert!(keep.join("model.safetensors").is_file());
    let report = std::fs::read_to_string(keep.join("report.html")).unwrap();
    assert!(report.contains("<svg") && !report.contains("http"));
    // The coordinator saw sums only; what each site's own noise would have come to is drawn beside.
    assert_eq!((&result["mode"], &result["other_mode"]["mode"]), (&"secure_sum".into(), &"site".into()));
    assert_eq!(result["other_mode"]["judged_rounds"].as_array().unwrap().len(), 8);
    assert!(report.contains("secure sum 0.") && report.contains("each site 0."));
    for file in ["site.key", "site.crt", "ledger.jsonl", "client.toml"] {
        assert!(keep.join("branch-01").join(file).is_file(), "{file}");
    }
    assert!(failure(&["demo", "--keep", keep_text]).contains("not an empty folder"));
}

#[test]
fn the_demo_shows_each_sites_own_noise_where_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let keep = folder.path().join("kept");
    let asked = ["--sites", "2", "--rounds", "2", "--keep", keep.to_str().unwrap()];
    assert!(failure(&[&["demo"], &asked[..]].concat()).contains("use --mode site"));
    let site = ["demo", "--mode", "site", "--format", "json"];
    let result: serde_json::Value = serde_json::from_str(&output(&[&site, &asked[..]].concat())).unwrap();
    // Two are too few for a sum.
    assert_eq!((&result["mode"], &result["other_mode"]), (&"site".into(), &serde_json::Value::Null));
}

#[test]
fn the_branches_of_one_seed_are_the_same_and_of_another_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, seed: &str| {
        let path = folder.path().join(name);
        output(&["demo", "--only-data", path.to_str().unwrap(), "--sites", "2", "--seed", seed]);
        std::fs::read(path.join("branch-02/train.csv")).unwrap()
    };
    let first = write("a", "5");
    assert_eq!(first, write("b", "5"));
    assert_ne!(first, write("c", "6"));
}

/// The processes that run from `folder`, by their command lines.
fn processes_of(folder: &str) -> usize {
    let mut count = 0;
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        count += usize::from(String::from_utf8_lossy(&command).contains(folder));
    }
    count
}

#[test]
fn ctrl_c_and_a_kill_leave_no_process_behind() {
    for signal in ["INT", "KILL"] {
        let folder = tempfile::tempdir().unwrap();
        let keep = folder.path().join("kept");
        let keep_text = keep.to_str().unwrap();
        let mut demo = Command::new(PROGRAM)
            .args(["demo", "--sites", "3", "--rounds", "2000", "--keep", keep_text])
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(demo.stderr.take().unwrap());
        let mut lines = stderr.lines().map_while(Result::ok);
        assert!(lines.any(|line| line.starts_with("round ")), "the demo must get going");
        let hq = format!("{keep_text}/coordinator");
        assert!(processes_of(&hq) >= 1);
        let id = demo.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
        std::thread::spawn(move || lines.for_each(drop));
        demo.wait().unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while processes_of(&format!("{keep_text}/")) > 0 {
            assert!(std::time::Instant::now() < deadline, "processes outlived the demo after SIG{signal}");
            std::thread::yield_now();
        }
    }
}
