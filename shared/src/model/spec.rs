//! What a job says about its model: a choice from the compiled-in zoo and its sizes, nothing that runs.
//!
//! A [`ModelSpec`] enters from a job file (TOML) or the wire (bincode) and is checked by
//! [`Network::new`](super::Network::new), which is the only way to get from it to something that computes.

use serde::{Deserialize, Serialize};

use super::ModelError;

/// Most hidden layers of a multi-layer perceptron.
pub const MAX_HIDDEN_LAYERS: usize = 8;
/// Most units of a hidden layer.
pub const MAX_HIDDEN_UNITS: u32 = 4096;

/// A model of the zoo for binary labels.
///
/// ```
/// # use weighhouse_shared::model::ModelSpec;
/// #[derive(serde::Deserialize)]
/// struct Job { model: ModelSpec }
/// let job: Job = toml::from_str("[model.mlp]\nhidden = [32]").unwrap();
/// assert_eq!(job.model, ModelSpec::Mlp { hidden: vec![32] });
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ModelSpec {
    /// Logistic regression: one linear layer to one logit.
    Logistic {},
    /// Multi-layer perceptron: linear layers with ReLU between them, the last to one logit.
    Mlp {
        /// Units of each hidden layer, first to last: 1 to 8 layers, each of 1 to 4096 units.
        hidden: Vec<u32>,
    },
}

impl ModelSpec {
    /// The hidden widths; empty for logistic regression. Errors name the layer and the range.
    pub(super) fn hidden_units(&self) -> Result<&[u32], ModelError> {
        match self {
            Self::Logistic {} => Ok(&[]),
            Self::Mlp { hidden } => {
                if hidden.is_empty() || hidden.len() > MAX_HIDDEN_LAYERS {
                    return Err(ModelError::HiddenLayers { got: hidden.len() });
                }
                for (layer, &units) in hidden.iter().enumerate() {
                    if units == 0 || units > MAX_HIDDEN_UNITS {
                        return Err(ModelError::HiddenUnits { layer, got: units });
                    }
                }
                Ok(hidden)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Job {
        model: ModelSpec,
    }

    #[test]
    fn toml_and_bincode_carry_the_same_specs() {
        for (text, spec) in [
            ("[model.logistic]", ModelSpec::Logistic {}),
            ("[model.mlp]\nhidden = [64, 16]", ModelSpec::Mlp { hidden: vec![64, 16] }),
        ] {
            let job: Job = toml::from_str(text).unwrap();
            assert_eq!(job.model, spec);
            let again: Job = toml::from_str(&toml::to_string(&job).unwrap()).unwrap();
            assert_eq!(again, job);
            let bytes = bincode::serde::encode_to_vec(&job, bincode::config::standard()).unwrap();
            let (again, read): (Job, usize) =
                bincode::serde::decode_from_slice(&bytes, bincode::config::standard()).unwrap();
            assert_eq!((again, read), (job, bytes.len()));
        }
    }

    #[test]
    fn unknown_models_and_keys_are_refused() {
        for bad in [
            "[model.oracle]",
            "[model.mlp]\nhidden = [4]\nlayers = 2",
            "[model.logistic]\nhidden = [4]",
            "[model.mlp]",
        ] {
            assert!(toml::from_str::<Job>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_out_of_range_are_refused_with_the_layer() {
        let refusal = |hidden: Vec<u32>| ModelSpec::Mlp { hidden }.hidden_units().unwrap_err().to_string();
        assert_eq!(refusal(vec![]), "a multi-layer perceptron has 1 to 8 hidden layers, got 0");
        assert_eq!(refusal(vec![1; 9]), "a multi-layer perceptron has 1 to 8 hidden layers, got 9");
        assert_eq!(refusal(vec![8, 0]), "hidden layer 1 must have 1 to 4096 units, got 0");
        assert_eq!(refusal(vec![4097]), "hidden layer 0 must have 1 to 4096 units, got 4097");
    }
}
