//! A model as a file: safetensors with everything needed to run it again.
//!
//! The tensors stand under their PyTorch names (`layers.0.weight`, ...), so candle, Python and others can open
//! the file; the metadata carry the format version, the spec, what the rows hold, what is learned from them, and their schema
//! with the categories whose places in the list are the ids. Bytes enter
//! from disk or the network: whatever they are, they yield a [`ModelArtifact`] that fits its own spec, or an error,
//! never a panic. Equal models yield equal bytes, so a model can be named by its hash.

use std::collections::BTreeMap;

use safetensors::{Dtype, SafeTensors};
use serde::Serialize;

use super::{ModelError, ModelSpec, Network, error::expect_length, vectors::first_not_finite};
use crate::schema::DataShape;

/// Longest header that is read, in bytes: a few kilobytes of tensors and the rest for the schema.
pub const MAX_HEADER_BYTES: usize = 1 << 20;

const VERSION: &str = "1";
const VERSION_KEY: &str = "weighhouse.version";
const SPEC_KEY: &str = "weighhouse.spec";
const INPUTS_KEY: &str = "weighhouse.inputs";
const TARGET_KEY: &str = "weighhouse.target";
const SCHEMA_KEY: &str = "weighhouse.schema";

/// A model with its parameters and what its rows mean.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelArtifact {
    /// Which network of the zoo.
    pub spec: ModelSpec,
    /// What a row holds, and what is learned from it.
    pub shape: DataShape,
    /// What the numbers are; JSON that this module does not look into.
    pub schema_json: String,
    /// The flat parameters in the order of [`Network::tensors`], all finite.
    pub parameters: Vec<f32>,
}

/// Why bytes are not a model, or a model cannot become bytes.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// Header longer than [`MAX_HEADER_BYTES`].
    #[error("model header of {got} bytes, at most {limit} are allowed")]
    HeaderLength {
        /// Length asked for.
        got: u64,
        /// Most bytes.
        limit: usize,
    },
    /// Not safetensors at all.
    #[error("not a safetensors file")]
    Format(#[source] safetensors::SafeTensorError),
    /// Another version, or a file that some other program wrote.
    #[error("model file of version {got}, this program reads version {VERSION}")]
    Version {
        /// Version in the file, or `none`.
        got: String,
    },
    /// A metadata entry that is missing or cannot be read.
    #[error("model metadata `{key}` is missing or malformed")]
    Metadata {
        /// The entry.
        key: &'static str,
    },
    /// Tensors that are not those of the spec.
    #[error("expected tensor `{name}` as F32 of shape {expected:?}, got {got}")]
    Tensor {
        /// Name in the spec.
        name: String,
        /// Shape in the spec.
        expected: Vec<usize>,
        /// Type and shape in the file, or `nothing`.
        got: String,
    },
    /// More tensors than the spec has.
    #[error("expected {expected} tensors, got {got}")]
    Tensors {
        /// Tensors of the spec.
        expected: usize,
        /// Tensors in the file.
        got: usize,
    },
    /// A spec out of range, or parameters that are not finite or do not fit.
    #[error("the model in the file is not valid")]
    Model(#[from] ModelError),
}

#[derive(Serialize)]
struct TensorEntry<'a> {
    dtype: &'static str,
    shape: &'a [usize],
    data_offsets: [usize; 2],
}

impl ModelArtifact {
    /// The network that the parameters belong to.
    pub fn network(&self) -> Result<Network, ModelError> {
        Network::new(&self.spec, self.shape.clone())
    }

    /// The file's bytes. Errors if the parameters do not fit the spec or are not finite, or the schema is too long.
    pub fn to_safetensors(&self) -> Result<Vec<u8>, ArtifactError> {
        let network = self.network()?;
        check_parameters(&network, &self.parameters)?;
        // Written here and not by the safetensors crate, whose metadata are in an arbitrary order.
        let spec = serde_json::to_string(&self.spec).expect("a model spec has only string keys");
        let (inputs, target) = (json(&self.shape.inputs), json(&self.shape.target));
        let metadata = BTreeMap::from([
            (VERSION_KEY, VERSION),
            (SPEC_KEY, &spec),
            (INPUTS_KEY, &inputs),
            (TARGET_KEY, &target),
            (SCHEMA_KEY, &self.schema_json),
        ]);
        let mut header = format!("{{\"__metadata__\":{}", json(&metadata));
        for tensor in network.tensors() {
            let data_offsets = [tensor.offset * 4, (tensor.offset + tensor.entries()) * 4];
            let entry = TensorEntry { dtype: "F32", shape: &tensor.shape, data_offsets };
            header.push_str(&format!(",{}:{}", json(&tensor.name), json(&entry)));
        }
        header.push('}');
        while !header.len().is_multiple_of(8) {
            header.push(' ');
        }
        check_header_length(header.len() as u64)?;

        let mut bytes = Vec::with_capacity(8 + header.len() + 4 * self.parameters.len());
        bytes.extend_from_slice(&(header.len() as u64).to_le_bytes());
        bytes.extend_from_slice(header.as_bytes());
        for parameter in &self.parameters {
            bytes.extend_from_slice(&parameter.to_le_bytes());
        }
        Ok(bytes)
    }

    /// Reads a file's bytes. Errors on anything but exactly the tensors of a valid spec, all finite, in a version
    /// that this program knows.
    pub fn from_safetensors(bytes: &[u8]) -> Result<Self, ArtifactError> {
        if let Some(length) = bytes.first_chunk::<8>() {
            check_header_length(u64::from_le_bytes(*length))?;
        }
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(ArtifactError::Format)?;
        let metadata = header.metadata().as_ref();
        let entry = |key: &'static str| {
            metadata.and_then(|metadata| metadata.get(key)).ok_or(ArtifactError::Metadata { key })
        };
        match entry(VERSION_KEY) {
            Ok(version) if version == VERSION => {}
            Ok(version) => return Err(ArtifactError::Version { got: version.chars().take(32).collect() }),
            Err(_) => return Err(ArtifactError::Version { got: "none".into() }),
        }
        let malformed = |key| ArtifactError::Metadata { key };
        let spec: ModelSpec = serde_json::from_str(entry(SPEC_KEY)?).map_err(|_| malformed(SPEC_KEY))?;
        let inputs = serde_json::from_str(entry(INPUTS_KEY)?).map_err(|_| malformed(INPUTS_KEY))?;
        let target = serde_json::from_str(entry(TARGET_KEY)?).map_err(|_| malformed(TARGET_KEY))?;
        let shape = DataShape { inputs, target };
        let schema_json = entry(SCHEMA_KEY)?.clone();
        let network = Network::new(&spec, shape.clone())?;

        let file = SafeTensors::deserialize(bytes).map_err(ArtifactError::Format)?;
        if file.len() != network.tensors().len() {
            return Err(ArtifactError::Tensors { expected: network.tensors().len(), got: file.len() });
        }
        // The sizes are those of the file, which is in memory: nothing is allocated for a spec without its tensors.
        let mut parameters = Vec::with_capacity(bytes.len() / 4);
        for tensor in network.tensors() {
            let refusal = |got| ArtifactError::Tensor {
                name: tensor.name.clone(),
                expected: tensor.shape.clone(),
                got,
            };
            let view = file.tensor(&tensor.name).map_err(|_| refusal("nothing".into()))?;
            if view.dtype() != Dtype::F32 || view.shape() != tensor.shape {
                return Err(refusal(format!("{:?} of shape {:?}", view.dtype(), view.shape())));
            }
            parameters.extend(view.data().as_chunks::<4>().0.iter().map(|entry| f32::from_le_bytes(*entry)));
        }
        check_parameters(&network, &parameters)?;
        Ok(Self { spec, shape, schema_json, parameters })
    }
}

fn check_header_length(got: u64) -> Result<(), ArtifactError> {
    let limit = MAX_HEADER_BYTES;
    if got > limit as u64 { Err(ArtifactError::HeaderLength { got, limit }) } else { Ok(()) }
}

fn check_parameters(network: &Network, parameters: &[f32]) -> Result<(), ModelError> {
    expect_length("parameters", network.parameter_count(), parameters.len())?;
    match first_not_finite(parameters) {
        Some(row) => Err(ModelError::NotFinite { what: "parameter", row }),
        None => Ok(()),
    }
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("strings and numbers are JSON")
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use proptest::prelude::*;

    use super::*;
    use crate::model::{Rows, Workspace};
    use crate::schema::InputShape;

    fn artifact() -> ModelArtifact {
        let spec = ModelSpec::Mlp { hidden: vec![3, 2], dropout: 0.0, activation: Default::default() };
        let parameters = Network::new(&spec, 4).unwrap().initial_parameters([1; 32]);
        ModelArtifact {
            spec,
            shape: 4.into(),
            schema_json: r#"{"columns":["age \"years\""]}"#.into(),
            parameters,
        }
    }

    #[test]
    fn a_model_survives_the_file_bit_for_bit_and_equal_models_are_equal_files() {
        let bytes = artifact().to_safetensors().unwrap();
        assert_eq!(ModelArtifact::from_safetensors(&bytes).unwrap(), artifact());
        assert_eq!(artifact().to_safetensors().unwrap(), bytes);
    }

    #[test]
    fn candle_opens_the_file_under_pytorch_names() {
        let bytes = artifact().to_safetensors().unwrap();
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap();
        assert_eq!(tensors.len(), 6);
        assert_eq!(tensors["layers.0.weight"].dims(), [3, 4]);
        let bias = tensors["layers.1.weight"].flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(bias, artifact().parameters[15..21]);
    }

    /// Small enough to be read by eye: three categories, two numbers, one hidden unit.
    fn wide_and_deep() -> ModelArtifact {
        ModelArtifact {
            spec: ModelSpec::WideAndDeep { hidden: vec![1], embedding_dim: 2 },
            shape: InputShape { numbers: 2, vocabularies: vec![3], sequence: None }.into(),
            schema_json: r#"{"features":[{"column":"tier","categories":["basic","gold"]}]}"#.into(),
            parameters: (0..18).map(|at| at as f32 / 4.0 - 1.0).collect(),
        }
    }

    /// A change here makes every model file already written unreadable, or another model.
    #[test]
    fn a_small_model_file_has_exactly_these_bytes() {
        let header = concat!(
            r#"{"__metadata__":{"weighhouse.inputs":"{\"numbers\":2,\"vocabularies\":[3]}","#,
            r#""weighhouse.schema":"{\"features\":[{\"column\":\"tier\",\"categories\":[\"basic\",\"gold\"]}]}","#,
            r#""weighhouse.spec":"{\"wide_and_deep\":{\"hidden\":[1],\"embedding_dim\":2}}","#,
            r#""weighhouse.target":"\"binary\"","weighhouse.version":"1"},"#,
            r#""embeddings.0.weight":{"dtype":"F32","shape":[3,2],"data_offsets":[0,24]},"#,
            r#""layers.0.weight":{"dtype":"F32","shape":[1,4],"data_offsets":[24,40]},"#,
            r#""layers.0.bias":{"dtype":"F32","shape":[1],"data_offsets":[40,44]},"#,
            r#""layers.1.weight":{"dtype":"F32","shape":[1,1],"data_offsets":[44,48]},"#,
            r#""layers.1.bias":{"dtype":"F32","shape":[1],"data_offsets":[48,52]},"#,
            r#""wide.weight":{"dtype":"F32","shape":[1,2],"data_offsets":[52,60]},"#,
            r#""categories.0.weight":{"dtype":"F32","shape":[3,1],"data_offsets":[60,72]}}"#,
        );
        let padded = format!("{header:<width$}", width = header.len().next_multiple_of(8));
        let mut expected = (padded.len() as u64).to_le_bytes().to_vec();
        expected.extend_from_slice(padded.as_bytes());
        expected.extend((0..18).flat_map(|at| (at as f32 / 4.0 - 1.0).to_le_bytes()));
        let bytes = wide_and_deep().to_safetensors().unwrap();
        assert_eq!(String::from_utf8_lossy(&bytes[8..8 + padded.len()]), padded);
        assert_eq!(bytes, expected);
        assert_eq!(ModelArtifact::from_safetensors(&bytes).unwrap(), wide_and_deep());
    }

    #[test]
    fn a_model_from_the_file_scores_as_the_network_that_was_written() {
        let bytes = wide_and_deep().to_safetensors().unwrap();
        let read = ModelArtifact::from_safetensors(&bytes).unwrap();
        let rows = Rows { numbers: &[0.5, -1.0, 1.0, 0.25], ids: &[2, 0], ..Rows::default() };
        let scores = crate::model::score(&read.network().unwrap(), &read.parameters, &rows, &Device::Cpu);
        let (network, parameters) = (wide_and_deep().network().unwrap(), wide_and_deep().parameters);
        let logits = network.outputs(&parameters, &rows, &mut Workspace::new());
        for (score, logit) in scores.unwrap().into_iter().zip(logits) {
            assert!((score - 1.0 / (1.0 + (-logit).exp())).abs() < 1e-5, "{score} of logit {logit}");
        }
    }

    /// Replaces a piece of the header by another of the same length.
    fn altered(from: &str, to: &str) -> Vec<u8> {
        assert_eq!(from.len(), to.len());
        let mut bytes = artifact().to_safetensors().unwrap();
        let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        bytes
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let refusal = |bytes: &[u8]| ModelArtifact::from_safetensors(bytes).unwrap_err().to_string();
        assert_eq!(
            refusal(&altered("version\":\"1\"", "version\":\"2\"")),
            "model file of version 2, this program reads version 1"
        );
        assert_eq!(
            refusal(&altered("\"shape\":[3,4]", "\"shape\":[4,3]")),
            "expected tensor `layers.0.weight` as F32 of shape [3, 4], got F32 of shape [4, 3]"
        );
        assert_eq!(
            refusal(&altered("layers.1.bias", "layers.1.bent")),
            "expected tensor `layers.1.bias` as F32 of shape [2], got nothing"
        );
        assert_eq!(
            refusal(&altered(r#"\"numbers\":4"#, r#"\"numbers\":0"#)),
            "the model in the file is not valid"
        );
        assert_eq!(
            refusal(&altered("weighhouse.schema", "weighhouse.schemo")),
            "model metadata `weighhouse.schema` is missing or malformed"
        );
        assert_eq!(
            refusal(&u64::MAX.to_le_bytes()),
            "model header of 18446744073709551615 bytes, at most 1048576 are allowed"
        );
    }

    #[test]
    fn values_that_are_not_finite_are_neither_written_nor_read() {
        let mut bytes = artifact().to_safetensors().unwrap();
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        assert!(matches!(
            ModelArtifact::from_safetensors(&bytes),
            Err(ArtifactError::Model(ModelError::NotFinite { what: "parameter", row: 25 }))
        ));
        let mut model = artifact();
        model.parameters[7] = f32::INFINITY;
        assert!(model.to_safetensors().is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = ModelArtifact::from_safetensors(&bytes);
        }

        #[test]
        fn flipped_and_truncated_files_yield_a_valid_model_or_an_error(
            flips in proptest::collection::vec((any::<proptest::sample::Index>(), 0u8..8), 0..4),
            keep in any::<proptest::sample::Index>(),
            truncate in any::<bool>(),
        ) {
            let mut bytes = artifact().to_safetensors().unwrap();
            for (at, bit) in flips {
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << bit;
            }
            if truncate {
                bytes.truncate(keep.index(bytes.len()));
            }
            if let Ok(model) = ModelArtifact::from_safetensors(&bytes) {
                prop_assert_eq!(model.parameters.len(), model.network().unwrap().parameter_count());
                prop_assert!(model.parameters.iter().all(|parameter| parameter.is_finite()));
            }
        }
    }
}
