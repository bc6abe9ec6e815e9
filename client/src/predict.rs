//! Scores for a site's customers: a model file and a table enter, the same rows with what the model says about
//! each leave, and if asked for, why. Promised: one row out for each row in, in their order; memory for one chunk
//! of rows, whatever the length of the table; the same bytes for the same model, table and options.
//!
//! Nothing leaves the site, and what is done with a model after it was trained costs no privacy budget.

mod explain;
mod rows;
mod scorer;
mod table;

pub use explain::{Explainer, Explanation, PERMUTATION_PAIRS};
pub use rows::{Rows, RowsError, TableReader};
pub use scorer::{Listing, Scorer};
pub use table::{TableFormat, Value};

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use table::TableWriter;
use weighhouse_shared::ids::ContentHash;
use weighhouse_shared::model::{ArtifactError, MAX_HEADER_BYTES, MAX_PARAMETERS, ModelArtifact, ModelError};
use weighhouse_shared::schema::{Items, Schema, SchemaError, Values};

/// Items that are listed of each row where nobody says how many.
pub const DEFAULT_TOP: usize = 10;
/// The most items that are listed of each row.
pub const MAX_TOP: usize = 100;
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
        let scorer = Scorer::new(artifact, &schema.label.kind).map_err(|source| no_model(source.into()))?;
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
    /// Of a model that ranks items, how many are listed: 1 to [`MAX_TOP`], [`DEFAULT_TOP`] if None.
    pub top: Option<usize>,
    /// Leave out the items of the row's own history, which is its sequences of the items that are ranked.
    pub new_items_only: bool,
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
    /// Something that only a ranking of items has.
    #[error("`{option}` goes with a model whose label is of kind item, and this one's is not; leave it out")]
    NoItems {
        /// What was asked for.
        option: &'static str,
    },
    /// New items are wanted, and nothing says which are old.
    #[error(
        "--new-items-only needs a feature with a `length` and the same `categories` or `hash_buckets` as the label, and the \
         model's schema has none; leave it out"
    )]
    NoHistory,
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
    let listing = scorer::check_listing(scorer, options.top, options.new_items_only)?;
    let histories = match options.new_items_only {
        true => histories(schema, scorer).ok_or(PredictError::NoHistory)?,
        false => Vec::new(),
    };
    let mut reader = TableReader::new(input, name, schema, scorer, &options.keep, &histories)?;
    let explainer = options.reasons.map(|reasons| (reasons, Explainer::new(schema, scorer, *hash)));
    let kept = std::iter::once(&schema.customer).chain(&options.keep).cloned();
    let mut columns: Vec<String> = kept.chain(scorer.columns(listing)).collect();
    if let Some((reasons, explainer)) = &explainer {
        columns.extend(reason_columns(scorer, explainer, *reasons));
    }
    let mut seen = HashSet::new();
    if let Some(at) = columns.iter().position(|column| !seen.insert(column.as_str())) {
        return Err(PredictError::Repeated { column: columns.swap_remove(at) });
    }
    let mut table = TableWriter::new(output, columns, options.format).map_err(PredictError::Write)?;
    let (mut scored, mut values) = (0, Vec::new());
    while let Some(rows) = reader.next_chunk(options.skip_bad_rows)? {
        let predictions = scorer.predictions(&rows.table.as_rows(&rows.table.step_starts()))?;
        let predictions: Vec<&[f32]> = predictions.chunks_exact(scorer.outputs()).collect();
        let not_finite = |at: usize| PredictError::NotFinite { line: rows.line(at) };
        let finite = |prediction: &&[f32]| prediction.iter().all(|output| output.is_finite());
        if let Some(at) = predictions.iter().position(|prediction| !finite(prediction)) {
            return Err(not_finite(at));
        }
        let chosen = predictions.iter().enumerate();
        let chosen: Vec<Vec<u32>> =
            chosen.map(|(at, prediction)| scorer.choose(prediction, listing, rows.history(at))).collect();
        let explanations = explainer.as_ref().map(|(_, explainer)| {
            let subjects = chosen.iter().map(|chosen| chosen.first().map(|&subject| subject as usize));
            explainer.explanations(scorer, &rows, &subjects.collect::<Vec<_>>())
        });
        for (at, (prediction, chosen)) in predictions.iter().zip(&chosen).enumerate() {
            values.clear();
            scorer.values(prediction, chosen, listing, &mut values);
            if let (Some((reasons, explainer)), Some(explanations)) = (&explainer, &explanations) {
                add_reasons(explainer.features(), *reasons, explanations[at].as_ref(), &mut values);
            }
            if !values.iter().all(Value::is_finite) {
                return Err(not_finite(at));
            }
            table.write(rows.kept(at), &values).map_err(PredictError::Write)?;
        }
        scored += rows.len() as u64;
        note(reader.bytes_read(), scored);
    }
    table.finish().map_err(PredictError::Write)?;
    Ok(Summary { scored, skipped: reader.skipped(), first_skipped: reader.first_skipped() })
}

/// The features whose sequences are of the items that are ranked, so that both have the same ids; None if there is
/// none.
fn histories(schema: &Schema, scorer: &Scorer) -> Option<Vec<usize>> {
    let items = scorer.items()?;
    let of_items = |values: &Values| match (values, items) {
        (Values::Categories(categories), Items::Categories(items)) => categories == items,
        (Values::HashBuckets(buckets), Items::HashBuckets(items)) => buckets == items,
        _ => false,
    };
    let features = schema.features.iter().enumerate();
    let listed = features.filter(|(_, feature)| feature.length.is_some() && of_items(&feature.values));
    let listed: Vec<usize> = listed.map(|(at, _)| at).collect();
    if listed.is_empty() { None } else { Some(listed) }
}

/// Names of the columns that [`add_reasons`] fills.
fn reason_columns(scorer: &Scorer, explainer: &Explainer, reasons: Reasons) -> Vec<String> {
    let (mut columns, features) =
        (vec![scorer.explained().to_owned(), "base".to_owned()], explainer.features());
    match reasons {
        Reasons::All => columns.extend(features.iter().map(|feature| format!("contribution_{feature}"))),
        Reasons::Top(count) => {
            for rank in 1..=count.min(features.len()) {
                columns.extend([format!("reason_{rank}"), format!("reason_{rank}_contribution")]);
            }
        }
    }
    columns
}

/// Adds what is explained, the base, and the contributions of `features`: all in their order, or the largest by size,
/// those of 0 as empty cells. Empty cells alone if nothing is explained.
fn add_reasons(
    features: &[String],
    reasons: Reasons,
    explanation: Option<&Explanation>,
    values: &mut Vec<Value>,
) {
    let Some(Explanation { base, contributions }) = explanation else {
        let cells = match reasons {
            Reasons::All => features.len(),
            Reasons::Top(count) => 2 * count.min(features.len()),
        };
        values.extend(std::iter::repeat_n(Value::Empty, 2 + cells));
        return;
    };
    let explained = base + contributions.iter().sum::<f64>();
    values.extend([Value::Double(explained), Value::Double(*base)]);
    match reasons {
        Reasons::All => values.extend(contributions.iter().copied().map(Value::Double)),
        Reasons::Top(count) => {
            let mut order: Vec<usize> = (0..contributions.len()).collect();
            order.sort_by(|&a, &b| contributions[b].abs().total_cmp(&contributions[a].abs()));
            for feature in order.into_iter().take(count) {
                values.extend(match contributions[feature] {
                    0.0 => [Value::Empty, Value::Empty],
                    by => [Value::Text(features[feature].clone()), Value::Double(by)],
                });
            }
        }
    }
}

#[cfg(test)]
mod tests;
