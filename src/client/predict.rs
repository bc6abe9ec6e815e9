//! `weighhouse client predict`: a model and a table in, a table of scores out.

use crate::error::Interrupted;
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};
use weighhouse_client::predict::{
    DEFAULT_TOP, MAX_TOP, Model, Options, Reasons, Summary, TableFormat, predict,
};
use weighhouse_shared::config::Draft;

pub const HELP: &str = "\
Examples:
  weighhouse client predict --model campaign.safetensors --input rows.csv --output scores.csv
  weighhouse client predict --model campaign.safetensors --input rows.csv --keep city --explain | head
  weighhouse client predict --model campaign.safetensors --input - --explain all --format json < rows.csv
  weighhouse client predict --model products.safetensors --input rows.csv --top 5 --new-items-only

The input needs the model's customer and feature columns, and no label. One row comes out for each row in, in their \
order. Files may be larger than memory. --output is written whole or not at all. Nothing leaves this machine, and \
scoring costs no privacy budget.

Columns, by the label's kind: binary `probability`; classes `prediction` (the likeliest) and `probability_` with each \
class; count `expected`, the rate; number `prediction`, in the label's units; item `item_1`, `item_1_score`, … with the \
best --top items (`bucket N` where they are hashed, `other` for those the model does not know).

--explain adds a quantity, the base, which is that quantity for a neutral row (numbers at the middle of their bounds, \
categories \"other\", no steps), and what each feature contributed. Base and contributions add up to the quantity: \
binary `logit`, whose logistic function is the probability; classes `log_odds`, that of the predicted class against all \
others; count `log_rate`, the logarithm of the rate; number `explained_prediction`; item `explained_score`, that of \
item_1. All sequences of a row count as one feature, their names joined by +. Method: Shapley values by sampled \
permutations (Strumbelj and Kononenko 2014), 32 antithetic pairs; exact for interactions of two features, and for \
logistic models with less than three classes. The permutations come from the model's hash, so the same input gives the \
same reasons. A contribution says what moved the model, not what would change the customer.";

#[derive(Debug, clap::Args)]
pub struct PredictArguments {
    /// Model file, as `weighhouse model export` writes it
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    /// CSV file with a header; - for standard input
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// File to write; - for standard output
    #[arg(long, short, default_value = "-", value_name = "FILE")]
    output: PathBuf,
    /// Columns of the input to write beside the customer
    #[arg(long, num_args = 1.., value_name = "COLUMN")]
    keep: Vec<String>,
    /// Leave out rows that cannot be read, and say how many
    #[arg(long)]
    skip_bad_rows: bool,
    /// Say why: the so many features that moved the score most, or `all`
    #[arg(long, num_args = 0..=1, default_missing_value = "3", value_name = "COUNT")]
    explain: Option<ReasonsArgument>,
    /// Items to list of each row, if the model ranks items: 1 to 100 [default: 10]
    #[arg(long, value_name = "COUNT", value_parser = top)]
    top: Option<usize>,
    /// List no items that are in the row's own history, which is its sequences of the label's items
    #[arg(long)]
    new_items_only: bool,
    /// How to write
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: RowFormat,
}

/// How rows are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum RowFormat {
    /// Comma-separated, with a header
    #[default]
    Csv,
    /// One JSON object a line
    Json,
}

#[derive(Debug, Clone, Copy)]
struct ReasonsArgument(Reasons);

impl FromStr for ReasonsArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("all", _) => Ok(Self(Reasons::All)),
            (_, Ok(count)) if count > 0 => Ok(Self(Reasons::Top(count))),
            _ => Err("give how many reasons, 1 or more, or `all`".into()),
        }
    }
}

/// Reads how many items to list.
fn top(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| (1..=MAX_TOP).contains(count));
    count.ok_or_else(|| format!("give how many items, 1 to {MAX_TOP}; without --top it is {DEFAULT_TOP}"))
}

pub fn run(arguments: PredictArguments) -> Result<()> {
    let PredictArguments { model, input, output, keep, skip_bad_rows, explain, top, new_items_only, format } =
        arguments;
    let format = match format {
        RowFormat::Csv => TableFormat::Csv,
        RowFormat::Json => TableFormat::JsonLines,
    };
    let reasons = explain.map(|explain| explain.0);
    let options = Options { keep, skip_bad_rows, reasons, format, top, new_items_only };
    let model = Model::load(&model)?;
    let input = Input::open(&input)?;
    let to_file = output.as_os_str() != "-";
    let summary = if to_file {
        if input.is(&output) {
            bail!("{} is the input; give another --output", output.display());
        }
        let unwritable = || format!("cannot write {}; does its folder exist?", output.display());
        let draft = Draft::create(&output).with_context(unwritable)?;
        let file = draft.file().try_clone().with_context(unwritable)?;
        let summary = until_interrupted(move || score(&model, input, file, &options))?;
        draft.commit().with_context(unwritable)?;
        summary
    } else {
        until_interrupted(move || score(&model, input, io::stdout(), &options))?
    };
    if let Some(first) = &summary.first_skipped {
        eprintln!("warning: left out {} rows; the first: {first}", summary.skipped);
    }
    if to_file {
        println!("scored {} rows into {}", HumanCount(summary.scored), output.display());
    }
    Ok(())
}

/// Runs `work` on a thread of its own; an interruption ends the wait, so that drafts are removed.
fn until_interrupted<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        tokio::select! {
            outcome = tokio::task::spawn_blocking(work) => outcome?,
            () = super::asked_to_end(false) => Err(Interrupted.into()),
        }
    });
    runtime.shutdown_background();
    outcome
}

/// A table to read.
struct Input {
    /// What people know it as.
    name: String,
    /// None for standard input.
    file: Option<(File, PathBuf)>,
}

impl Input {
    fn open(path: &Path) -> Result<Self> {
        if path.as_os_str() == "-" {
            return Ok(Self { name: "standard input".into(), file: None });
        }
        let name = path.display().to_string();
        let file = File::open(path).with_context(|| format!("cannot read {name}"))?;
        Ok(Self { name, file: Some((file, path.into())) })
    }

    fn is(&self, other: &Path) -> bool {
        let own = self.file.as_ref().and_then(|(_, path)| path.canonicalize().ok());
        own.is_some() && own == other.canonicalize().ok()
    }
}

fn score(model: &Model, input: Input, output: impl io::Write, options: &Options) -> Result<Summary> {
    let Input { name, file } = input;
    let length = file.as_ref().and_then(|(file, _)| file.metadata().ok()).map(|metadata| metadata.len());
    let source: Box<dyn io::Read> = match file {
        Some((file, _)) => Box::new(file),
        None => Box::new(io::stdin().lock()),
    };
    let progress = Progress::new(length);
    Ok(predict(model, source, &name, output, options, |read, rows| progress.note(read, rows))?)
}

/// Shows how far it is, once it takes longer than two seconds.
struct Progress {
    bar: ProgressBar,
    started: Instant,
}

impl Progress {
    fn new(length: Option<u64>) -> Self {
        let template = match length {
            Some(_) => "scoring {wide_bar} {percent}%, {msg} rows",
            None => "scoring: {binary_bytes} read, {msg} rows",
        };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(length, ProgressDrawTarget::hidden()).with_style(style);
        Self { bar, started: Instant::now() }
    }

    fn note(&self, read: u64, rows: u64) {
        if self.bar.is_hidden() && self.started.elapsed() > Duration::from_secs(2) {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.set_position(read);
        self.bar.set_message(HumanCount(rows).to_string());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
