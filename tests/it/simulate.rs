//! `simulate`: a job at made-up sites, without a network.

use crate::federation::{SCHEMA, failure, output, records};
use serde_json::Value;
use std::path::Path;

/// A folder with a schema, customers and a job.
fn folder(more: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("schema.toml", SCHEMA);
    write("customers.csv", &records(600));
    let job = "name = \"n\"\nschema = \"schema.toml\"\n[privacy]\nepsilon = 8.0\ndelta = 1e-4\n";
    write("job.toml", &format!("{job}{more}"));
    folder
}

fn simulate(folder: &Path, arguments: &[&str]) -> Value {
    let job = folder.join("job.toml");
    let begin = ["simulate", job.to_str().unwrap(), "--format", "json"];
    serde_json::from_str(&output(&[&begin, arguments].concat())).unwrap()
}

/// All but noise and time.
fn drawn_from_the_seed(report: &Value) -> Value {
    let fields = [
        "job",
        "parameters",
        "sites_a_round",
        "customers_least",
        "customers_most",
        "held_out_customers",
        "commonest_label_share",
        "best_possible",
        "quality_at_start",
        "epsilon",
        "noise_multiplier",
    ];
    fields.into_iter().map(|field| (field.to_owned(), report[field].clone())).collect()
}

#[test]
fn what_is_not_noise_is_a_function_of_the_seed_for_generated_and_for_real_customers() {
    let folder = folder("[model.mlp]\nhidden = [4]\n");
    let data = folder.path().join("customers.csv");
    let data = ["--data", data.to_str().unwrap(), "--alpha", "0.3"];
    for extra in [&[][..], &data[..]] {
        let common = ["--sites", "12", "--rounds", "2", "--participation", "0.5", "--seed"];
        let run = |seed: &str| simulate(folder.path(), &[&common[..], &[seed], extra].concat());
        let (first, again, other) = (run("5"), run("5"), run("6"));
        assert_eq!(drawn_from_the_seed(&first), drawn_from_the_seed(&again));
        assert_ne!(drawn_from_the_seed(&first), drawn_from_the_seed(&other));
        assert_eq!((&first["sites_a_round"], &first["rounds"]), (&6.into(), &2.into()));
        assert_eq!(first["quality_by_round"].as_array().unwrap().len(), 2);
        // The noise has no seed. A few real customers are too few to show it.
        if extra.is_empty() {
            assert_ne!(first["quality_by_round"], again["quality_by_round"], "{first}");
        }
    }
}

#[test]
fn a_simulated_job_learns_what_its_privacy_allows_by_any_strategy() {
    for federation in [
        "",
        "strategy = \"fedmedian\"",
        "compression = \"top_k\"\ntop_k_share = 0.5",
        "mode = \"secure_sum\"",
        "mode = \"secure_sum\"\ngroups = 5\nstrategy = \"fedmedian\"",
    ] {
        let folder = folder(&format!("[federation]\n{federation}\n"));
        let report = simulate(folder.path(), &["--sites", "60", "--rounds", "15"]);
        let (end, best) = (&report["quality_in_the_end"], &report["best_possible"]);
        assert!(end.as_f64().unwrap() > best.as_f64().unwrap() - 0.05, "{federation}: {report}");
        assert_eq!(report["epsilon"], 8.0);
        assert!(report["certified_epsilon"].as_f64().unwrap() <= 8.0);
        assert!(report["sites_a_second"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn a_smaller_alpha_gives_sites_that_differ_more() {
    let folder = folder("");
    let data = folder.path().join("customers.csv");
    let share = |alpha: &str| {
        let data = ["--data", data.to_str().unwrap(), "--alpha", alpha];
        let report = simulate(folder.path(), &[&data[..], &["--sites", "20", "--rounds", "1"]].concat());
        report["commonest_label_share"].as_f64().unwrap()
    };
    let shares = ["1000", "1", "0.01"].map(share);
    assert!(shares[0] < shares[1] && shares[1] < shares[2] && shares[2] > 0.9, "{shares:?}");
}

/// Ten times the sites, about the same memory: 1,800 more updates of 69 KB, had each site left one, were 120 MB.
#[test]
fn memory_does_not_grow_with_the_number_of_sites() {
    let folder = folder("[model.mlp]\nhidden = [128, 128]\n[training]\nlocal_steps = 1\n");
    let peak = |sites: &str| {
        let report = simulate(folder.path(), &["--sites", sites, "--rounds", "1", "--customers", "5"]);
        assert!(report["parameters"].as_u64().unwrap() > 16_000);
        report["peak_memory_bytes"].as_u64().unwrap() as f64 / 1e6
    };
    let (few, many) = (peak("200"), peak("2000"));
    assert!(many < few + 20.0, "{few} MB at 200 sites, {many} MB at 2000");
}

#[test]
fn sites_that_do_nothing_touch_no_customer_and_cost_nothing() {
    let folder = folder("");
    let report = simulate(folder.path(), &["--no-op", "--sites", "50", "--rounds", "2"]);
    assert_eq!(report["quality_by_round"].as_array().unwrap().len(), 0);
    assert_eq!((report.get("epsilon"), &report["held_out_customers"]), (None, &Value::Null));
}

#[test]
fn what_cannot_be_simulated_is_said_in_one_line() {
    let folder = folder("[federation]\nmin_sites = 5\n");
    let job = folder.path().join("job.toml");
    let job = job.to_str().unwrap();
    let refused = |arguments: &[&str]| failure(&[&["simulate", job], arguments].concat());
    assert!(refused(&["--participation", "0"]).contains("--participation must be above 0"));
    assert!(
        refused(&["--sites", "10", "--participation", "0.2"]).contains("raise --sites or --participation")
    );
    let data = folder.path().join("customers.csv");
    let data = data.to_str().unwrap();
    assert!(refused(&["--data", data, "--alpha", "0"]).contains("--alpha must be above 0"));
    assert!(refused(&["--data", data, "--sites", "601"]).contains("at most as many as there are customers"));
    let empty = tempfile::tempdir().unwrap();
    assert!(refused(&["--data", empty.path().to_str().unwrap()]).contains("no .csv file"));
    assert!(refused(&["--data", "/nowhere.csv"]).contains("/nowhere.csv does not exist"));
}
