//! The models' files mean the same to other programs: rebuilt in PyTorch from the names and the spec in a file, each
//! gives the same outputs. Files and outputs are kept, so that what they mean cannot change unnoticed where there is no
//! PyTorch.

use crate::models::{self, Sample};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use weighhouse_shared::model::{ModelArtifact, Network, Workspace, predict};
use weighhouse_shared::schema::RowTable;

/// What stands beside a model.
#[derive(Debug, Serialize, Deserialize)]
struct Golden {
    rows: Vec<GoldenRow>,
    /// Before the link to a prediction.
    outputs: Vec<Vec<f32>>,
    /// Probabilities, rates, numbers on -1 to 1, or scores.
    predictions: Vec<Vec<f32>>,
}

#[derive(Debug, Serialize, Deserialize)]
struct GoldenRow {
    numbers: Vec<f32>,
    ids: Vec<u32>,
    /// None if rows have no sequence.
    steps: Option<Vec<GoldenStep>>,
}

#[derive(Debug, Serialize, Deserialize)]
struct GoldenStep {
    numbers: Vec<f32>,
    ids: Vec<u32>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn folder() -> PathBuf {
    root().join("tests/data/models")
}

fn predictions(network: &Network, outputs: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let mut predictions = outputs.to_vec();
    predictions.iter_mut().for_each(|row| predict(network.target(), row));
    predictions
}

/// A sample's rows and what it makes of them.
fn golden(sample: &Sample) -> Golden {
    let (shape, rows) = (sample.schema.input_shape(), sample.rows());
    fn nth<T: Copy>(values: &[T], width: usize, at: usize) -> Vec<T> {
        values[at * width..(at + 1) * width].to_vec()
    }
    let starts = rows.step_starts();
    let row = |at: usize| {
        let steps = shape.sequence.as_ref().map(|step| {
            let step = |at| GoldenStep {
                numbers: nth(&rows.step_numbers, step.numbers, at),
                ids: nth(&rows.step_ids, step.columns(), at),
            };
            (starts[at] as usize..starts[at + 1] as usize).map(step).collect()
        });
        GoldenRow {
            numbers: nth(&rows.numbers, shape.numbers, at),
            ids: nth(&rows.ids, shape.columns(), at),
            steps,
        }
    };
    let outputs = sample.outputs();
    let predictions = predictions(&sample.artifact().network().unwrap(), &outputs);
    Golden { rows: (0..outputs.len()).map(row).collect(), outputs, predictions }
}

impl Golden {
    fn table(&self) -> RowTable {
        let mut table = RowTable::default();
        for row in &self.rows {
            table.numbers.extend(&row.numbers);
            table.ids.extend(&row.ids);
            let Some(steps) = &row.steps else { continue };
            table.step_counts.push(steps.len() as u16);
            for step in steps {
                table.step_numbers.extend(&step.numbers);
                table.step_ids.extend(&step.ids);
            }
        }
        table
    }
}

fn assert_close(name: &str, expected: &[Vec<f32>], got: &[f32]) {
    let expected = expected.concat();
    assert_eq!(expected.len(), got.len(), "{name}");
    for (expected, got) in expected.into_iter().zip(got) {
        assert!(
            (expected - got).abs() <= 1e-5 * expected.abs().max(1.0),
            "{name}: {got}, and it was {expected}"
        );
    }
}

/// With `WEIGHHOUSE_WRITE_GOLDEN` set it writes the files instead; commit them once `tests/torch/check.py` agrees.
#[test]
fn models_of_every_kind_give_the_outputs_that_their_kept_files_say() {
    let write = std::env::var_os("WEIGHHOUSE_WRITE_GOLDEN").is_some();
    let table = folder().join("rows.csv");
    if write {
        std::fs::create_dir_all(folder()).unwrap();
        std::fs::write(&table, models::csv()).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&table).unwrap(), models::csv());
    let mut names = BTreeSet::from([table]);
    for sample in models::all() {
        let name = sample.name;
        let (model, beside) =
            (folder().join(format!("{name}.safetensors")), folder().join(format!("{name}.json")));
        names.extend([model.clone(), beside.clone()]);
        if write {
            sample.write(&folder());
            let mut json = serde_json::to_string(&golden(&sample)).unwrap();
            json.push('\n');
            std::fs::write(&beside, json).unwrap();
        }
        let artifact = ModelArtifact::from_safetensors(&std::fs::read(&model).unwrap()).unwrap();
        assert_eq!(artifact, sample.artifact(), "{name}");
        let golden: Golden = serde_json::from_slice(&std::fs::read(&beside).unwrap()).unwrap();
        let (network, table) = (artifact.network().unwrap(), golden.table());
        let starts = table.step_starts();
        let rows = table.as_rows(&starts);
        let outputs = network.outputs(&artifact.parameters, &rows, &mut Workspace::new());
        assert_close(name, &golden.outputs, &outputs);
        let outputs = outputs.chunks_exact(network.target().outputs()).map(<[f32]>::to_vec);
        assert_close(
            name,
            &golden.predictions,
            &predictions(&network, &outputs.collect::<Vec<_>>()).concat(),
        );
    }
    let kept = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    assert_eq!(kept.collect::<BTreeSet<_>>(), names);
}

/// Runs where `WEIGHHOUSE_PYTHON` names a Python that has torch and safetensors.
#[test]
fn pytorch_gives_the_outputs_that_the_kept_files_say() {
    let Some(python) = std::env::var_os("WEIGHHOUSE_PYTHON") else {
        println!("not run: set WEIGHHOUSE_PYTHON to a Python that has torch and safetensors");
        return;
    };
    let script = root().join("tests/torch/check.py");
    let checked = Command::new(python).arg(script).arg(folder()).output().unwrap();
    let said = String::from_utf8_lossy(&checked.stdout);
    assert!(checked.status.success(), "{said}{}", String::from_utf8_lossy(&checked.stderr));
    assert_eq!(said.lines().filter(|line| line.starts_with("agrees")).count(), models::all().len(), "{said}");
}
