//! Bytes and quality of compressed updates: `job plan` for one job under each compression, as a table. Quality is
//! simulated with the job's own clipping, noise, compression and averaging on customers generated anew each time, so what
//! counts is the distance from the best possible.
//!
//! Run with `cargo bench --bench compression`.

use std::fmt::Write;
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
            let plan = Command::new(env!("CARGO_BIN_EXE_weighhouse"))
                .args(["job", "plan", path.to_str().unwrap(), "--offline", "--simulate", "--format", "json"])
                .output()
                .unwrap();
            assert!(plan.status.success(), "{}", String::from_utf8_lossy(&plan.stderr));
            let plan: serde_json::Value = serde_json::from_slice(&plan.stdout).unwrap();
            let (up, down) = (plan["bytes_up"].as_u64().unwrap(), plan["bytes_down"].as_u64().unwrap());
            let figure = |key: &str| plan["choices"][0][key].as_f64().unwrap_or(f64::NAN);
            println!(
                "| {name} | {} | {compression} | {up} | {:.3} | {:.3} |",
                plan["parameters"],
                up as f64 / down as f64,
                figure("best_possible_auc") - figure("expected_auc")
            );
        }
    }
}
