//! Bytes and quality of compressed updates: `job plan` for one job under each compression, as a table. Quality is
//! simulated with the job's own clipping, noise, compression and averaging on customers generated anew each time, so what
//! counts is the distance from the best possible: its mean over some runs, and the least and the most of them.
//!
//! Run with `cargo bench --bench compression`.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

const SCHEMA_HEAD: &str = "name = \"test\"\ncustomer = \"id\"\n[label]\ncolumn = \"y\"\nkind = \"binary\"\n";

/// Name, model, features, rounds.
const JOBS: [(&str, &str, usize, u32); 2] =
    [("logistic", "[model.logistic]", 30, 30), ("mlp", "[model.mlp]\nhidden = [64, 32]", 30, 30)];

const COMPRESSIONS: [(&str, &str); 6] = [
    ("none", "compression = \"none\""),
    ("int8", "compression = \"int8\""),
    ("int4", "compression = \"int4\""),
    ("top_k, 0.25", "compression = \"top_k\"\ntop_k_share = 0.25"),
    ("top_k, 0.1", "compression = \"top_k\"\ntop_k_share = 0.1"),
    ("top_k, 0.02", "compression = \"top_k\"\ntop_k_share = 0.02"),
];

/// Runs of each.
const RUNS: usize = 5;

fn main() {
    let folder = tempfile::tempdir().unwrap();
    println!("| model | parameters | compression | bytes a round | share | AUC under the best possible |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for (name, model, features, rounds) in JOBS {
        let mut schema = SCHEMA_HEAD.to_owned();
        for feature in 0..features {
            writeln!(schema, "[[features]]\ncolumn = \"f{feature}\"\nmin = -1\nmax = 1").unwrap();
        }
        std::fs::write(folder.path().join("schema.toml"), schema).unwrap();
        for (compression, keys) in COMPRESSIONS {
            let path = folder.path().join("job.toml");
            let job = format!(
                "name = \"{name}\"\nschema = \"schema.toml\"\n[privacy]\nepsilon = 8.0\ndelta = 1e-5\n[training]\n\
                 rounds = {rounds}\nexpected_customers = 500\n[evaluation]\nevery = 0\n[federation]\n{keys}\n{model}\n"
            );
            std::fs::write(&path, job).unwrap();
            let plans: Vec<serde_json::Value> = (0..RUNS).map(|_| plan(&path)).collect();
            let bytes = |key: &str| plans[0][key].as_u64().unwrap();
            let (up, down) = (bytes("bytes_up"), bytes("bytes_down"));
            let loss = |plan: &serde_json::Value| {
                let figure = |key: &str| plan["choices"][0][key].as_f64().unwrap();
                figure("best_possible_auc") - figure("expected_auc")
            };
            let losses: Vec<f64> = plans.iter().map(loss).collect();
            println!(
                "| {name} | {} | {compression} | {up} | {:.3} | {:.3} ({:.3} to {:.3}) |",
                plans[0]["parameters"],
                up as f64 / down as f64,
                losses.iter().sum::<f64>() / RUNS as f64,
                losses.iter().copied().fold(f64::INFINITY, f64::min),
                losses.iter().copied().fold(f64::NEG_INFINITY, f64::max)
            );
        }
    }
}

/// What the job of this file would come to.
fn plan(job: &Path) -> serde_json::Value {
    let plan = Command::new(env!("CARGO_BIN_EXE_weighhouse"))
        .args(["job", "plan", job.to_str().unwrap(), "--offline", "--simulate", "--format", "json"])
        .output()
        .unwrap();
    assert!(plan.status.success(), "{}", String::from_utf8_lossy(&plan.stderr));
    serde_json::from_slice(&plan.stdout).unwrap()
}
