//! What a model says about rows: one record of named columns for each row, whatever is learned. A new kind of label is
//! a new [`Kind`] with its columns and its values; reading, writing and explaining do not change.

use super::{PredictError, Value};
use candle_core::Device;
use std::collections::HashSet;
use weighhouse_shared::model::{self, ModelArtifact, ModelError, ModelSpec, Network, Workspace};
use weighhouse_shared::schema::{DataShape, Items, LabelKind, Target};

/// Bytes of buffers that one thread takes to explain; see [`Network::buffer_bytes`].
const BLOCK_BYTES: usize = 64 << 20;

/// A model ready to score.
pub struct Scorer {
    network: Network,
    parameters: Vec<f32>,
    kind: Kind,
    additive: bool,
    /// The same model with two items, so that one item's score costs no more than that.
    pair: Option<Network>,
}

/// What a model's outputs mean.
#[derive(Debug, Clone, PartialEq)]
enum Kind {
    /// The probability of label 1, from one logit.
    Probability,
    /// The probability of each of these, from as many logits.
    Classes(Vec<String>),
    /// How often, from the logarithm of the rate.
    Rate,
    /// A number between the bounds, from one brought onto -1 to 1.
    Number { min: f64, max: f64 },
    /// A score of each.
    Items(Items),
}

/// Which outputs of a model are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listing {
    /// Items of each row.
    pub top: usize,
    /// Leave out the items of the row's own history.
    pub new_items_only: bool,
}

impl Scorer {
    /// The scorer of a model, whose labels are of `kind`. Errors if its parameters do not fit its spec.
    pub fn new(artifact: ModelArtifact, kind: &LabelKind) -> Result<Self, ModelError> {
        let network = artifact.network()?;
        let ModelArtifact { spec, shape, parameters, .. } = artifact;
        let kind = match kind {
            LabelKind::Binary => Kind::Probability,
            LabelKind::Classes(categories) => Kind::Classes(categories.clone()),
            LabelKind::Count => Kind::Rate,
            &LabelKind::Number { min, max } => Kind::Number { min, max },
            LabelKind::Item(items) => Kind::Items(items.clone()),
        };
        let additive = match (&spec, &kind) {
            // The log-odds of one of two classes are the difference of two logits.
            (ModelSpec::Logistic {}, Kind::Classes(classes)) => classes.len() == 2,
            (ModelSpec::Logistic {}, _) => true,
            // Nothing but the history has a part in an item's score.
            (ModelSpec::MatrixFactorisation { .. }, Kind::Items(_)) => true,
            _ => false,
        };
        let pair = match shape.target {
            // Refused where the history's items are those that are ranked.
            Target::Item(items) if items > 2 => {
                Network::new(&spec, DataShape { inputs: shape.inputs, target: Target::Item(2) }).ok()
            }
            _ => None,
        };
        Ok(Self { network, parameters, kind, additive, pair })
    }

    /// Whether outputs are scores of items.
    pub fn ranks(&self) -> bool {
        matches!(self.kind, Kind::Items(_))
    }

    /// Which items there are, if any are ranked.
    pub(super) fn items(&self) -> Option<&Items> {
        match &self.kind {
            Kind::Items(items) => Some(items),
            _ => None,
        }
    }

    /// About how many bytes it takes to score one row of no steps, and each step.
    pub(super) fn bytes(&self) -> [usize; 2] {
        let outputs = self.network.target().outputs();
        [self.network.buffer_bytes(1, 0) + 4 * size_of::<f32>() * outputs, self.network.buffer_bytes(0, 1)]
    }

    /// Names of the columns of a record.
    pub fn columns(&self, listing: Listing) -> Vec<String> {
        match &self.kind {
            Kind::Probability => vec!["probability".into()],
            Kind::Classes(classes) => {
                let probabilities = classes.iter().map(|class| format!("probability_{class}"));
                std::iter::once("prediction".to_owned()).chain(probabilities).collect()
            }
            Kind::Rate => vec!["expected".into()],
            Kind::Number { .. } => vec!["prediction".into()],
            Kind::Items(_) => {
                let ranks = 1..=self.listed(listing);
                ranks.flat_map(|rank| [format!("item_{rank}"), format!("item_{rank}_score")]).collect()
            }
        }
    }

    /// How many items are listed of each row.
    fn listed(&self, listing: Listing) -> usize {
        listing.top.min(self.network.target().outputs())
    }

    /// What the model predicts, `[rows, outputs]`; see [`model::score`].
    pub(super) fn predictions(&self, rows: &model::Rows) -> Result<Vec<f32>, ModelError> {
        model::score(&self.network, &self.parameters, rows, &Device::Cpu)
    }

    /// The outputs of each row before the link to a prediction, `[rows, outputs]`.
    pub(super) fn raw_outputs(&self, rows: &model::Rows) -> Vec<f32> {
        self.network.outputs(&self.parameters, rows, &mut Workspace::new())
    }

    /// How many outputs a row has.
    pub(super) fn outputs(&self) -> usize {
        self.network.target().outputs()
    }

    /// The outputs that a row's record is about, the first of them the one that is explained: the likeliest class, the
    /// best items without those in `history` if only new ones are wanted, or the only output. Of equal ones the first.
    pub(super) fn choose(&self, prediction: &[f32], listing: Listing, history: &[u32]) -> Vec<u32> {
        let better = |a: &u32, b: &u32| {
            prediction[*b as usize].total_cmp(&prediction[*a as usize]).then_with(|| a.cmp(b))
        };
        let outputs = 0..prediction.len() as u32;
        match &self.kind {
            Kind::Probability | Kind::Rate | Kind::Number { .. } => vec![0],
            Kind::Classes(_) => outputs.min_by(better).into_iter().collect(),
            Kind::Items(_) => {
                let known: HashSet<u32> = match listing.new_items_only {
                    true => history.iter().copied().collect(),
                    false => HashSet::new(),
                };
                let mut items: Vec<u32> = outputs.filter(|item| !known.contains(item)).collect();
                let top = self.listed(listing);
                if items.len() > top {
                    items.select_nth_unstable_by(top, better);
                    items.truncate(top);
                }
                items.sort_unstable_by(better);
                items
            }
        }
    }

    /// Adds a row's record to `values`: what it predicts of what [`choose`](Self::choose) chose.
    pub(super) fn values(
        &self,
        prediction: &[f32],
        chosen: &[u32],
        listing: Listing,
        values: &mut Vec<Value>,
    ) {
        match &self.kind {
            Kind::Probability | Kind::Rate => values.push(Value::Single(prediction[0])),
            Kind::Number { .. } => values.push(Value::Single(self.in_units(prediction[0]) as f32)),
            Kind::Classes(classes) => {
                values.extend(chosen.iter().map(|&class| Value::Text(classes[class as usize].clone())));
                values.extend(prediction.iter().copied().map(Value::Single));
            }
            Kind::Items(items) => {
                for &item in chosen {
                    values.push(Value::Text(name_of(items, item)));
                    values.push(Value::Single(prediction[item as usize]));
                }
                let missing = self.listed(listing) - chosen.len();
                values.extend(std::iter::repeat_n(Value::Empty, 2 * missing));
            }
        }
    }

    /// What contributions add up to: the quantity in which the model's last layer adds, or that of a class against the
    /// rest.
    pub fn explained(&self) -> &'static str {
        match self.kind {
            Kind::Probability => "logit",
            Kind::Classes(_) => "log_odds",
            Kind::Rate => "log_rate",
            Kind::Number { .. } => "explained_prediction",
            Kind::Items(_) => "explained_score",
        }
    }

    /// The explained quantity of one row's `outputs`, before the link to a prediction, for `subject`, one of them.
    pub(super) fn quantity(&self, outputs: &[f32], subject: usize) -> f64 {
        match self.kind {
            Kind::Probability | Kind::Rate => f64::from(outputs[0]),
            Kind::Number { .. } => self.in_units(outputs[0]),
            Kind::Classes(_) => log_odds(outputs, subject),
            Kind::Items(_) => f64::from(outputs[subject]),
        }
    }

    /// A number from -1 to 1 in the label's own units.
    fn in_units(&self, output: f32) -> f64 {
        match self.kind {
            Kind::Number { min, max } => min + (f64::from(output) + 1.0) / 2.0 * (max - min),
            _ => f64::from(output),
        }
    }

    /// Whether each feature adds its part to the explained quantity whatever the others are.
    pub fn is_additive(&self) -> bool {
        self.additive
    }

    /// What computes the explained quantity.
    pub(super) fn probe(&self) -> Probe<'_> {
        let parameters = self.pair.as_ref().map(|pair| self.of_pair(pair)).unwrap_or_default();
        Probe { scorer: self, subject: 0, parameters, workspace: Workspace::new() }
    }

    /// The parameters of `pair`; its items are the model's first two.
    fn of_pair(&self, pair: &Network) -> Vec<f32> {
        let tensors = pair.tensors().iter().zip(self.network.tensors());
        tensors.flat_map(|(own, of)| &self.parameters[of.offset..][..own.entries()]).copied().collect()
    }
}

/// What an item is called.
fn name_of(items: &Items, item: u32) -> String {
    match items {
        Items::Categories(categories) => {
            categories.get(item as usize).cloned().unwrap_or_else(|| "other".into())
        }
        Items::HashBuckets(buckets) if item < *buckets => format!("bucket {item}"),
        Items::HashBuckets(_) => "other".into(),
    }
}

/// The logarithm of how much likelier `class` is than all others together: its logit less the logarithm of the sum of
/// the others' exponentials.
fn log_odds(logits: &[f32], class: usize) -> f64 {
    let others =
        || logits.iter().enumerate().filter(|(at, _)| *at != class).map(|(_, &logit)| f64::from(logit));
    let largest = others().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = others().map(|logit| (logit - largest).exp()).sum();
    f64::from(logits[class]) - largest - total.ln()
}

/// Computes the explained quantity of a row as it is asked for it: one for each thread.
pub(super) struct Probe<'a> {
    scorer: &'a Scorer,
    subject: usize,
    /// Of the pair, both of its items being the subject; empty if there is none.
    parameters: Vec<f32>,
    workspace: Workspace,
}

impl Probe<'_> {
    /// From now on `subject`, an output of the model, is explained.
    pub fn aim(&mut self, subject: usize) {
        let Self { scorer, parameters, .. } = self;
        self.subject = subject;
        let Some(pair) = &scorer.pair else { return };
        for (own, of) in pair.tensors().iter().zip(scorer.network.tensors()) {
            if own.shape != of.shape {
                let width = own.entries() / 2;
                let item = &scorer.parameters[of.offset + subject * width..][..width];
                parameters[own.offset..][..own.entries()]
                    .chunks_exact_mut(width)
                    .for_each(|to| to.copy_from_slice(item));
            }
        }
    }

    /// The explained quantity of each row. A row's value does not depend on the others.
    pub fn explain(&mut self, rows: &model::Rows) -> Vec<f64> {
        let Self { scorer, subject, parameters, workspace } = self;
        match &scorer.pair {
            Some(pair) => {
                let outputs = pair.outputs(parameters, rows, workspace);
                outputs.chunks_exact(2).map(|outputs| scorer.quantity(outputs, 0)).collect()
            }
            None => {
                let outputs = scorer.network.outputs(&scorer.parameters, rows, workspace);
                let rows = outputs.chunks_exact(scorer.outputs());
                rows.map(|outputs| scorer.quantity(outputs, *subject)).collect()
            }
        }
    }

    /// How many rows with so many steps are explained at once.
    pub fn block(&self, steps: usize) -> usize {
        let network = self.scorer.pair.as_ref().unwrap_or(&self.scorer.network);
        let row = network.buffer_bytes(1, steps) + size_of::<f32>() * network.target().outputs();
        (BLOCK_BYTES / row.max(1)).max(1)
    }
}

/// Refuses what only a ranking has.
pub(super) fn check_listing(
    scorer: &Scorer,
    top: Option<usize>,
    new_items_only: bool,
) -> Result<Listing, PredictError> {
    let option = match (top, new_items_only) {
        (Some(_), _) => "--top",
        (None, true) => "--new-items-only",
        (None, false) => "",
    };
    if !option.is_empty() && !scorer.ranks() {
        return Err(PredictError::NoItems { option });
    }
    Ok(Listing { top: top.unwrap_or(super::DEFAULT_TOP).clamp(1, super::MAX_TOP), new_items_only })
}

impl std::fmt::Debug for Scorer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Scorer({:?}, {} parameters)", self.network.target(), self.parameters.len())
    }
}
