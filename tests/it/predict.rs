//! Scores from a model file, by the real binary: files of any length, whole or not at all.

use crate::federation::{Federation, PROGRAM, SCHEMA, failure, output, records, run};
use crate::models::{self, Sample};
use serde_json::Value;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use weighhouse_shared::model::{ModelArtifact, ModelSpec};
use weighhouse_shared::schema::{Items, LabelKind, Schema};

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

/// The rows that the program writes, with `options`, for a sample's model and rows.
fn predicted(sample: &Sample, folder: &Path, options: &[&str]) -> Vec<Value> {
    let (model, input) = (sample.write(folder), folder.join("rows.csv"));
    std::fs::write(&input, models::csv()).unwrap();
    let predict = ["client", "predict", "--model", &model, "--input", input.to_str().unwrap()];
    let written = output(&[&predict[..], &["--format", "json"], options].concat());
    written.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn number(row: &Value, column: &str) -> f64 {
    row[column].as_f64().unwrap_or_else(|| panic!("no number in {column}: {row}"))
}

fn assert_near(got: f64, expected: f64, sample: &Sample) {
    let close = (got - expected).abs() <= 2e-5 * expected.abs().max(1.0);
    assert!(close, "{}: {got}, expected {expected}", sample.name);
}

/// Items from the best to the worst, and their names.
fn ranking(outputs: &[f32], items: &Items) -> Vec<(usize, String)> {
    let mut order: Vec<usize> = (0..outputs.len()).collect();
    order.sort_by(|&a, &b| outputs[b].total_cmp(&outputs[a]));
    let name = |item: usize| match items {
        Items::Categories(categories) => categories.get(item).cloned(),
        Items::HashBuckets(buckets) => (item < *buckets as usize).then(|| format!("bucket {item}")),
    };
    order.into_iter().map(|item| (item, name(item).unwrap_or_else(|| "other".into()))).collect()
}

/// The columns of each kind of label, their values worked out here from the network's own outputs, and reasons that
/// add up to what they say they explain.
#[test]
fn models_of_every_kind_are_served_with_the_columns_of_their_label_and_reasons_that_add_up() {
    let folder = tempfile::tempdir().unwrap();
    for sample in models::all() {
        let rows = predicted(&sample, folder.path(), &["--explain", "all", "--keep", "town"]);
        let outputs = sample.outputs();
        assert_eq!(rows.len(), outputs.len());
        for (row, outputs) in rows.iter().zip(&outputs) {
            let logits: Vec<f64> = outputs.iter().map(|&output| f64::from(output)).collect();
            let (explained, columns): (f64, Vec<String>) = match &sample.schema.label.kind {
                LabelKind::Binary => {
                    assert_near(number(row, "probability"), 1.0 / (1.0 + (-logits[0]).exp()), &sample);
                    (number(row, "logit"), vec!["probability".into(), "logit".into()])
                }
                LabelKind::Classes(classes) => {
                    let total: f64 = logits.iter().map(|logit| logit.exp()).sum();
                    let best = (0..classes.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
                    assert_eq!(row["prediction"], classes[best].as_str());
                    let names = classes.iter().map(|class| format!("probability_{class}"));
                    for (name, logit) in names.clone().zip(&logits) {
                        assert_near(number(row, &name), logit.exp() / total, &sample);
                    }
                    let odds = logits[best].exp() / (total - logits[best].exp());
                    assert_near(number(row, "log_odds"), odds.ln(), &sample);
                    let columns = std::iter::once("prediction".into()).chain(names);
                    (odds.ln(), columns.chain(["log_odds".into()]).collect())
                }
                LabelKind::Count => {
                    assert_near(number(row, "expected"), logits[0].exp(), &sample);
                    (logits[0], vec!["expected".into(), "log_rate".into()])
                }
                LabelKind::Number { min, max } => {
                    let expected = min + (logits[0] + 1.0) / 2.0 * (max - min);
                    assert_near(number(row, "prediction"), expected, &sample);
                    (expected, vec!["prediction".into(), "explained_prediction".into()])
                }
                LabelKind::Item(items) => {
                    let mut columns = Vec::new();
                    for (rank, (item, name)) in (1..).zip(ranking(outputs, items)) {
                        assert_eq!(row[format!("item_{rank}")], name, "{}", sample.name);
                        let score = format!("item_{rank}_score");
                        assert_near(number(row, &score), logits[item], &sample);
                        columns.extend([format!("item_{rank}"), score]);
                    }
                    columns.push("explained_score".into());
                    (number(row, "item_1_score"), columns)
                }
            };
            let quantity = columns.last().unwrap();
            assert_near(number(row, quantity), explained, &sample);
            let features = sample.schema.features.iter().filter(|feature| feature.length.is_none());
            let mut contributions: Vec<String> = features.map(|feature| feature.column.clone()).collect();
            let sequences = sample.schema.features.iter().enumerate().filter(|(_, of)| of.length.is_some());
            let sequences: Vec<(usize, &str)> = sequences.map(|(at, of)| (at, of.column.as_str())).collect();
            let together = sequences.iter().map(|(_, name)| *name).collect::<Vec<_>>().join("+");
            contributions.insert(sequences[0].0, together.clone());
            let contributions: Vec<String> =
                contributions.iter().map(|feature| format!("contribution_{feature}")).collect();
            let sum: f64 = contributions.iter().map(|column| number(row, column)).sum();
            let rounded = 1e-12 * explained.abs().max(1.0);
            assert!((number(row, "base") + sum - number(row, quantity)).abs() <= rounded, "{}", sample.name);
            if row["id"] == "u2" {
                assert_eq!(number(row, &format!("contribution_{together}")), 0.0, "a customer without steps");
            }
            let expected: Vec<String> =
                ["id".to_owned(), "town".to_owned()].into_iter().chain(columns).collect();
            let expected = expected.into_iter().chain(["base".to_owned()]).chain(contributions);
            let mut expected: Vec<String> = expected.collect();
            let mut got: Vec<String> = row.as_object().unwrap().keys().cloned().collect();
            expected.sort();
            got.sort();
            assert_eq!(got, expected, "{}", sample.name);
        }
    }
}

#[test]
fn the_best_items_are_listed_as_many_as_asked_for_and_those_of_the_rows_history_left_out_if_asked() {
    let folder = tempfile::tempdir().unwrap();
    let all = models::all();
    let sample = all.iter().find(|sample| sample.name == "two_tower_item").unwrap();
    let LabelKind::Item(items) = &sample.schema.label.kind else { panic!("a model that ranks") };
    let options = ["--top", "2", "--new-items-only", "--explain", "1"];
    let rows = predicted(sample, folder.path(), &options);
    // Of u4 all steps count, those before the last five too; of u2 none.
    let histories: [&[&str]; 6] =
        [&["milk", "tea"], &[], &["soap"], &["milk", "soap", "tea", "other"], &["other", "soap"], &["tea"]];
    for ((row, outputs), history) in rows.iter().zip(sample.outputs()).zip(histories) {
        let names = ranking(&outputs, items).into_iter().map(|(_, name)| name);
        let mut new = names.filter(|name| !history.contains(&name.as_str()));
        for rank in ["item_1", "item_2"] {
            assert_eq!(row[rank].as_str().map(str::to_owned), new.next(), "{row}");
        }
        let explained = row["item_1_score"].as_f64().map(|score| (score * 1e4).round());
        assert_eq!(row["explained_score"].as_f64().map(|score| (score * 1e4).round()), explained);
        assert_eq!(row.as_object().unwrap().len(), 1 + 4 + 2 + 2);
    }
    assert!(rows[3]["item_1"].is_null() && rows[3]["base"].is_null(), "nothing is new to u4");

    let refused = |name: &str, options: &[&str]| {
        let sample = all.iter().find(|sample| sample.name == name).unwrap();
        let (model, input) = (sample.write(folder.path()), folder.path().join("rows.csv"));
        let predict = ["client", "predict", "--model", &model, "--input", input.to_str().unwrap()];
        failure(&[&predict[..], options].concat())
    };
    let refusal = refused("logistic_binary", &["--top", "3"]);
    assert!(refusal.contains("`--top` goes with a model whose label is of kind item"), "{refusal}");
    assert!(refused("cnn_count", &["--new-items-only"]).contains("`--new-items-only` goes with"));
}

#[test]
fn a_rows_sequences_must_go_together_or_the_row_is_refused_by_line_and_column() {
    let folder = tempfile::tempdir().unwrap();
    let all = models::all();
    let sample = all.iter().find(|sample| sample.name == "lstm_number").unwrap();
    let (model, input) = (sample.write(folder.path()), folder.path().join("rows.csv"));
    std::fs::write(&input, format!("{}u7,Rome,1,gold,tea,1 2,milk\n", models::csv())).unwrap();
    let predict = ["client", "predict", "--model", &model, "--input", input.to_str().unwrap()];
    let refused = failure(&predict);
    assert!(refused.contains("line 8: column `product` lists 1 entries and column `paid` 2"), "{refused}");
    let skipping = run(&[&predict[..], &["--skip-bad-rows"]].concat());
    assert_eq!(String::from_utf8(skipping.stdout).unwrap().lines().count(), 7);
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
