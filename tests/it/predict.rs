//! Scores from a model file, by the real binary: files of any length, whole or not at all.

use crate::federation::{Federation, PROGRAM, SCHEMA, failure, output, records, run};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use weighhouse_shared::model::{ModelArtifact, ModelSpec};
use weighhouse_shared::schema::Schema;

/// Writes a logistic model for the federation's schema; its path.
fn write_model(folder: &Path) -> String {
    let schema: Schema = toml::from_str(SCHEMA).unwrap();
    let artifact = ModelArtifact {
        spec: ModelSpec::Logistic {},
        shape: schema.shape(),
        schema_json: serde_json::to_string(&schema).unwrap(),
        parameters: vec![2.0, -1.0, 0.5, 0.25],
    };
    let path = folder.join("model.safetensors");
    std::fs::write(&path, artifact.to_safetensors().unwrap()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_trained_model_scores_the_sites_own_customers_and_says_why() {
    let federation = Federation::start();
    let homes = ["berlin", "bonn"].map(|name| federation.join(name, &records(200), &[]));
    let _sites = homes.each_ref().map(|home| federation.serve_site(home));
    let job = federation.job(3, 4.0, "");
    federation.operator(&["job", "submit", &job, "--watch"]);
    let text = |name: &str| federation.path(name).to_str().unwrap().to_owned();
    let (model, input, scores) = (text("model.safetensors"), text("berlin.csv"), text("scores.csv"));
    federation.operator(&["model", "export", "--output", &model]);
    let predict = ["client", "predict", "--model", &model, "--input", &input];
    let said = output(&[&predict[..], &["--output", &scores, "--explain", "2", "--keep", "y"]].concat());
    assert!(said.contains("scored 200 rows into"), "{said}");
    let written = std::fs::read_to_string(&scores).unwrap();
    let mut lines = written.lines();
    assert_eq!(
        lines.next().unwrap(),
        "id,y,probability,logit,base,reason_1,reason_1_contribution,reason_2,reason_2_contribution"
    );
    assert_eq!(lines.clone().count(), 200);
    assert!(lines.all(|line| line.starts_with('c') && line.split(',').count() == 9));
    // The same rows to standard output, as JSON, with all contributions.
    let json = output(&[&predict[..], &["--explain", "all", "--format", "json"]].concat());
    let rows: Vec<serde_json::Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((rows.len(), rows[7]["id"].as_str()), (200, Some("c7")));
    for row in &rows {
        let number = |column: &str| row[column].as_f64().unwrap();
        let parts = ["contribution_a", "contribution_b", "contribution_c"].map(number);
        assert!((number("base") + parts.iter().sum::<f64>() - number("logit")).abs() < 1e-12);
    }
}

#[test]
fn scores_are_written_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (model, input, scores) = (write_model(folder.path()), path("rows.csv"), path("scores.csv"));
    std::fs::write(&input, "id,a,b,c\nu,0,0,0\nv,0,cheap,0\n").unwrap();
    std::fs::write(&scores, "yesterday's\n").unwrap();
    let predict = ["client", "predict", "--model", &model, "--input", &input, "--output"];
    let refused = failure(&[&predict[..], &[&scores]].concat());
    assert!(refused.contains("line 3: column `b` holds `cheap`"), "{refused}");
    assert_eq!(std::fs::read_to_string(&scores).unwrap(), "yesterday's\n");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3, "no draft is left");
    assert!(failure(&[&predict[..], &[&input]].concat()).contains("is the input"));
    assert!(
        failure(&[&predict[..], &[&path("none/scores.csv")]].concat()).contains("does its folder exist?")
    );

    let skipping = run(&[&predict[..], &[&scores, "--skip-bad-rows"]].concat());
    assert!(skipping.status.success());
    let warned = String::from_utf8(skipping.stderr).unwrap();
    assert!(warned.contains("left out 1 rows; the first") && warned.contains("line 3"), "{warned}");
    assert_eq!(std::fs::read_to_string(&scores).unwrap().lines().count(), 2);

    let none = path("none.safetensors");
    let missing = failure(&["client", "predict", "--model", &none, "--input", &input]);
    assert!(missing.contains("`weighhouse model export` writes one"), "{missing}");
    let wrong = failure(&["client", "predict", "--model", &input, "--input", &input]);
    assert!(wrong.contains("rows.csv is not a model"), "{wrong}");
}

/// The most memory a process has had, in kilobytes.
fn peak_memory(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// A pipe holds 64 kB, so what was written is nearly all read. 60 MB more of input may cost at most 8 MB more of
/// memory; held whole it would cost seven times that.
#[test]
fn memory_does_not_grow_with_the_table() {
    let folder = tempfile::tempdir().unwrap();
    let (model, scores) = (write_model(folder.path()), folder.path().join("scores.csv"));
    let mut program = Command::new(PROGRAM);
    program.args(["client", "predict", "--model", &model, "--input", "-", "--explain", "1", "--output"]);
    let mut child = program.arg(&scores).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut input = BufWriter::new(child.stdin.take().unwrap());
    let padding = "x".repeat(90);
    writeln!(input, "id,a,b,c,note").unwrap();
    let peaks = [0..50_000, 50_000..600_000].map(|rows| {
        for row in rows {
            writeln!(input, "c{row},0.5,0.25,0.125,{padding}").unwrap();
        }
        input.flush().unwrap();
        peak_memory(child.id())
    });
    drop(input);
    assert!(child.wait().unwrap().success());
    let lines = std::fs::read(&scores).unwrap().iter().filter(|byte| **byte == b'\n').count();
    assert_eq!(lines, 600_001);
    assert!(peaks[1] < peaks[0] + 8_000, "{peaks:?} kB");
}
