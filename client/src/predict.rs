//! Scores for a site's customers: a model file and a table enter, the same rows with what the model says about
//! each leave, and if asked for, why. Promised: one row out for each row in, in their order; memory for one chunk
//! of rows, whatever the length of the table; the same bytes for the same model, table and options.
//!
//! Nothing leaves the site, and what is done with a model after it was trained costs no privacy budget.

mod explain;
mod rows;
mod scorer;
mod table;

pub use explain::{Explainer, PERMUTATION_PAIRS};
pub use rows::{RowReader, Rows, RowsError};
pub use scorer::Scorer;
pub use table::{TableFormat, Value};

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use table::TableWriter;
use weighhouse_shared::ids::ContentHash;
use weighhouse_shared::model::{ArtifactError, MAX_HEADER_BYTES, MAX_PARAMETERS, ModelArtifact, ModelError};
use weighhouse_shared::schema::{Schema, SchemaError};

/// The longest model file that is read, in bytes.
const MAX_MODEL_LEN: u64 = 8 + MAX_HEADER_BYTES as u64 + 4 * MAX_PARAMETERS as u64;

/// A model read from its file.
#[derive(Debug)]
pub struct Model {
    /// What the columns of its rows mean.
    pub schema: Schema,
    /// What computes.
    pub scorer: Scorer,
    /// Of the file's bytes.
    pub hash: ContentHash,
}

/// Why a model file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelFileError {
    /// It cannot be read.
    #[error("cannot read the model {path}; `weighhouse model export` writes one")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is longer than any model.
    #[error("{path} has {got} bytes, more than any model; name a file that `weighhouse model export` wrote")]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its length.
        got: u64,
    },
    /// It is no model.
    #[error("{path} is not a model that this program can use")]
    Artifact {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: ArtifactError,
    },
    /// Its schema cannot be read, so nobody knows what its inputs are.
    #[error("the schema in {path} is malformed; export the model again with `weighhouse model export`")]
    Schema {
        /// The file.
        path: PathBuf,
    },
    /// Its schema breaks a rule.
    #[error("the schema in {path} is not valid")]
    SchemaRule {
        /// The file.
        path: PathBuf,
        /// Which.
        #[source]
        source: SchemaError,
    },
}

impl Model {
    /// Reads the file at `path`.
    pub fn load(path: &Path) -> Result<Self, ModelFileError> {
        let unreadable = |source| ModelFileError::Read { path: path.into(), source };
        let got = std::fs::metadata(path).map_err(unreadable)?.len();
        if got > MAX_MODEL_LEN {
            return Err(ModelFileError::TooLong { path: path.into(), got });
        }
        let bytes = std::fs::read(path).map_err(unreadable)?;
        Self::from_bytes(&bytes, path)
    }

    /// The model in `bytes`, which came from `path`.
    fn from_bytes(bytes: &[u8], path: &Path) -> Result<Self, ModelFileError> {
        let no_model = |source| ModelFileError::Artifact { path: path.into(), source };
        let malformed = || ModelFileError::Schema { path: path.into() };
        let artifact = ModelArtifact::from_safetensors(bytes).map_err(no_model)?;
        let schema: Schema = serde_json::from_str(&artifact.schema_json).map_err(|_| malformed())?;
        schema.validate().map_err(|source| ModelFileError::SchemaRule { path: path.into(), source })?;
        if schema.shape() != artifact.shape {
            return Err(malformed());
        }
        let scorer = Scorer::new(artifact).map_err(|source| no_model(source.into()))?;
        Ok(Self { schema, scorer, hash: ContentHash::of(bytes) })
    }
}

/// Which reasons are written beside each score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reasons {
    /// The features that moved the score most, so many.
    Top(usize),
    /// What each feature contributed.
    All,
}

/// What is written.
#[derive(Debug, Clone)]
pub struct Options {
    /// Columns of the input that are written too, after the customer.
    pub keep: Vec<String>,
    /// Leave out rows that cannot be read, and count them.
    pub skip_bad_rows: bool,
    /// Why the score is what it is.
    pub reasons: Option<Reasons>,
    /// How rows are written.
    pub format: TableFormat,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Rows written.
    pub scored: u64,
    /// Rows left out.
    pub skipped: u64,
    /// Why the first of these was.
    pub first_skipped: Option<String>,
}

/// Why rows were not scored.
#[derive(Debug, thiserror::Error)]
pub enum PredictError {
    /// The input cannot be used.
    #[error(transparent)]
    Rows(#[from] RowsError),
    /// Two columns of the output would have one name.
    #[error("the output would have two columns `{column}`; leave it out of --keep")]
    Repeated {
        /// The name.
        column: String,
    },
    /// The model fails.
    #[error("the model cannot score these rows")]
    Model(#[from] ModelError),
    /// The model says nothing about a row.
    #[error(
        "line {line}: the model's score is not a finite number; train it anew, and check its job's quality"
    )]
    NotFinite {
        /// Of the input, counted from 1.
        line: u64,
    },
    /// The output cannot be written.
    #[error("cannot write the scores; is the disk full?")]
    Write(#[source] io::Error),
}

/// Scores the rows of `input`, which people know as `name`, into `output`. `note` hears after each chunk how many
/// bytes were read and how many rows written so far.
pub fn predict(
    model: &Model,
    input: impl Read,
    name: &str,
    output: impl Write,
    options: &Options,
    mut note: impl FnMut(u64, u64),
) -> Result<Summary, PredictError> {
    let Model { schema, scorer, hash } = model;
    let mut reader = RowReader::new(input, name, schema, &options.keep)?;
    let explainer = options.reasons.map(|reasons| (reasons, Explainer::new(schema, scorer, *hash)));
    let kept = std::iter::once(&schema.customer).chain(&options.keep).cloned();
    let mut columns: Vec<String> = kept.chain(scorer.columns()).collect();
    if let Some((reasons, _)) = &explainer {
        columns.extend(reason_columns(schema, scorer, *reasons));
    }
    if let Some(at) = (1..columns.len()).find(|&at| columns[..at].contains(&columns[at])) {
        return Err(PredictError::Repeated { column: columns.swap_remove(at) });
    }
    let mut table = TableWriter::new(output, columns, options.format).map_err(PredictError::Write)?;
    let (mut scored, mut values) = (0, Vec::new());
    while let Some(rows) = reader.next_chunk(options.skip_bad_rows)? {
        let scores = scorer.score(&rows)?;
        let contributions = explainer.as_ref().map(|(_, explainer)| explainer.contributions(scorer, &rows));
        for (at, scores) in scores.into_iter().enumerate() {
            values.clear();
            values.extend(scores);
            if let (Some((reasons, explainer)), Some(contributions)) = (&explainer, &contributions) {
                add_reasons(schema, *reasons, explainer.base(), &contributions[at], &mut values);
            }
            if !values.iter().all(Value::is_finite) {
                return Err(PredictError::NotFinite { line: rows.line(at) });
            }
            table.write(rows.kept(at), &values).map_err(PredictError::Write)?;
        }
        scored += rows.len() as u64;
        note(reader.bytes_read(), scored);
    }
    table.finish().map_err(PredictError::Write)?;
    Ok(Summary { scored, skipped: reader.skipped(), first_skipped: reader.first_skipped() })
}

/// Names of the columns that [`add_reasons`] fills.
fn reason_columns(schema: &Schema, scorer: &Scorer, reasons: Reasons) -> Vec<String> {
    let mut columns = vec![scorer.explained().to_owned(), "base".to_owned()];
    match reasons {
        Reasons::All => {
            columns.extend(schema.features.iter().map(|feature| format!("contribution_{}", feature.column)));
        }
        Reasons::Top(count) => {
            for rank in 1..=count.min(schema.features.len()) {
                columns.extend([format!("reason_{rank}"), format!("reason_{rank}_contribution")]);
            }
        }
    }
    columns
}

/// Adds what is explained, the base, and the contributions, which are `[features]`: all in the schema's order, or
/// the largest by size, those of 0 as empty cells.
fn add_reasons(schema: &Schema, reasons: Reasons, base: f64, contributions: &[f64], values: &mut Vec<Value>) {
    let explained = base + contributions.iter().sum::<f64>();
    values.extend([Value::Double(explained), Value::Double(base)]);
    match reasons {
        Reasons::All => values.extend(contributions.iter().copied().map(Value::Double)),
        Reasons::Top(count) => {
            let mut order: Vec<usize> = (0..contributions.len()).collect();
            order.sort_by(|&a, &b| contributions[b].abs().total_cmp(&contributions[a].abs()));
            for feature in order.into_iter().take(count) {
                values.extend(match contributions[feature] {
                    0.0 => [Value::Empty, Value::Empty],
                    by => [Value::Text(schema.features[feature].column.clone()), Value::Double(by)],
                });
            }
        }
    }
}

#[cfg(test)]
mod tests;
