//! What a model says about rows: one record of named columns for each row, whatever kind of model it is. A new kind
//! of output is a new [`Kind`] with its columns and its records; reading, writing and explaining do not change.

use super::{Rows, Value};
use candle_core::Device;
use weighhouse_shared::model::{self, ModelArtifact, ModelError, ModelSpec, Network, Workspace};

/// A model ready to score.
pub struct Scorer {
    network: Network,
    parameters: Vec<f32>,
    kind: Kind,
    additive: bool,
}

/// What a model's output means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The probability of label 1, from one logit.
    Probability,
}

impl Scorer {
    /// The scorer of a model. Errors if its parameters do not fit its spec.
    pub fn new(artifact: ModelArtifact) -> Result<Self, ModelError> {
        let network = artifact.network()?;
        let additive = matches!(artifact.spec, ModelSpec::Logistic {});
        Ok(Self { network, parameters: artifact.parameters, kind: Kind::Probability, additive })
    }

    /// Names of the columns of [`score`](Self::score).
    pub fn columns(&self) -> Vec<String> {
        match self.kind {
            Kind::Probability => vec!["probability".into()],
        }
    }

    /// One record for each row. Errors if the device fails.
    pub fn score(&self, rows: &Rows) -> Result<Vec<Vec<Value>>, ModelError> {
        let Self { network, parameters, .. } = self;
        match self.kind {
            Kind::Probability => {
                let scores =
                    model::score(network, parameters, &plain(&rows.numbers, &rows.ids), &Device::Cpu)?;
                Ok(scores.into_iter().map(|score| vec![Value::Single(score)]).collect())
            }
        }
    }

    /// What contributions add up to: the quantity in which the model's last layer adds.
    pub fn explained(&self) -> &'static str {
        match self.kind {
            Kind::Probability => "logit",
        }
    }

    /// The explained quantity of each row; `numbers` is `[n, numbers]` and `ids` `[n, categorical columns]`, row-major.
    /// A row's value does not depend on the others.
    pub(super) fn explain(&self, numbers: &[f32], ids: &[u32]) -> Vec<f64> {
        match self.kind {
            Kind::Probability => {
                let outputs =
                    self.network.outputs(&self.parameters, &plain(numbers, ids), &mut Workspace::new());
                outputs.into_iter().map(f64::from).collect()
            }
        }
    }

    /// Whether each feature adds its part to the explained quantity whatever the others are.
    pub fn is_additive(&self) -> bool {
        self.additive
    }
}

/// Rows without sequences, as a network takes them.
fn plain<'a>(numbers: &'a [f32], ids: &'a [u32]) -> model::Rows<'a> {
    model::Rows { numbers, ids, ..model::Rows::default() }
}

impl std::fmt::Debug for Scorer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Scorer({:?}, {} parameters)", self.kind, self.parameters.len())
    }
}
