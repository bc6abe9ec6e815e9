//! Where a model learns: on the processor by the hand-written layers, or on an accelerator through candle.
//!
//! On an accelerator a zero is added to what each tap's gradients are by, so that candle's own backward yields them row by
//! row; factors come back to the processor, and clipping and summing in integers are the same code. The two paths are held
//! together by a test on the processor.
//!
//! One promise is weaker there: that a customer's factors are the same bits whoever else is in the batch
//! ([`grid`](crate::privacy::grid), point 2) rests on the accelerator's library computing each row of a product from
//! that row alone, in an order that does not depend on the number of rows. For the processor it is proved.

use std::fmt;
use std::str::FromStr;

use candle_core::{Device, Tensor, Var};
use serde::{Deserialize, Serialize};

use super::{
    Batch, ModelError, Network, Workspace,
    graph::Node,
    network::Mode,
    tensors::{self, Learning, Pass},
    workspace::Buffers,
};

/// What a site asks to learn on: `auto`, `cpu`, `cuda:N` or `metal`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// The first accelerator that this build knows and the machine has, else the processor.
    Auto,
    /// The processor: what is taken by those who say nothing, since all promises are proved for it.
    #[default]
    Cpu,
    /// A CUDA device by its number.
    Cuda(usize),
    /// Metal.
    Metal,
}

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// No device is called so.
    #[error(
        "there is no device `{name}`; use \"auto\", \"cpu\", \"cuda:0\" (or another number) or \"metal\""
    )]
    Name {
        /// What was asked for.
        name: String,
    },
    /// This program was built without it.
    #[error(
        "this program was built without {feature}: build it with `--features {feature}`, or use device = \"cpu\""
    )]
    NotBuilt {
        /// The cargo feature.
        feature: &'static str,
    },
    /// The machine does not have it.
    #[error("device `{choice}` cannot be used; check its driver, or use device = \"cpu\"")]
    Unavailable {
        /// Which.
        choice: DeviceChoice,
        /// What the driver said.
        #[source]
        source: Box<candle_core::Error>,
    },
}

impl FromStr for DeviceChoice {
    type Err = DeviceError;

    fn from_str(name: &str) -> Result<Self, DeviceError> {
        match name.split_once(':') {
            None if name == "auto" => Ok(Self::Auto),
            None if name == "cpu" => Ok(Self::Cpu),
            None if name == "cuda" => Ok(Self::Cuda(0)),
            None if name == "metal" => Ok(Self::Metal),
            Some(("cuda", number)) if number.parse::<u8>().is_ok() => {
                Ok(Self::Cuda(number.parse().expect("a number just now")))
            }
            _ => Err(DeviceError::Name { name: name.chars().take(40).collect() }),
        }
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = DeviceError;

    fn try_from(name: String) -> Result<Self, DeviceError> {
        name.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> Self {
        choice.to_string()
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}

/// Where a model learns.
#[derive(Clone, Debug, Default)]
pub enum Engine {
    /// The hand-written layers on the processor.
    #[default]
    Processor,
    /// candle on a device.
    Candle(Device),
}

impl Engine {
    /// The engine of a choice. Errors if the build or the machine does not have it.
    pub fn new(choice: DeviceChoice) -> Result<Self, DeviceError> {
        let opened = |device: Result<Device, candle_core::Error>| {
            let unavailable = |source| DeviceError::Unavailable { choice, source: Box::new(source) };
            device.map(Self::Candle).map_err(unavailable)
        };
        match choice {
            DeviceChoice::Cpu => Ok(Self::Processor),
            DeviceChoice::Cuda(_) if !cfg!(feature = "cuda") => {
                Err(DeviceError::NotBuilt { feature: "cuda" })
            }
            DeviceChoice::Metal if !cfg!(feature = "metal") => {
                Err(DeviceError::NotBuilt { feature: "metal" })
            }
            DeviceChoice::Cuda(number) => opened(Device::new_cuda(number)),
            DeviceChoice::Metal => opened(Device::new_metal(0)),
            DeviceChoice::Auto => Ok([DeviceChoice::Cuda(0), DeviceChoice::Metal]
                .into_iter()
                .find_map(|choice| Self::new(choice).ok())
                .unwrap_or_default()),
        }
    }

    /// Prepares [`differentiate`](Self::differentiate) at `parameters`, for any number of batches. Errors if they do not fit or
    /// are not finite.
    pub(crate) fn load(
        &self,
        network: &Network,
        parameters: &[f32],
        workspace: &mut Workspace,
    ) -> Result<(), ModelError> {
        workspace.weights.load(network, parameters, matches!(self, Self::Processor))
    }

    /// Leaves each tap's factors in `workspace`, at the parameters that are loaded; the batch is checked. Errors if the
    /// device fails.
    pub(crate) fn differentiate(
        &self,
        network: &Network,
        batch: &Batch,
        workspace: &mut Workspace,
    ) -> Result<(), ModelError> {
        // A tensor of no rows is not worth a device.
        let without_rows = batch.labels.is_empty();
        let without_steps = batch.rows.step_starts.last() == Some(&0);
        match self {
            Self::Candle(device) if !without_rows && !without_steps => {
                on_device(network, batch, workspace, device)
            }
            Self::Candle(_) => {
                // Only the processor's weights are packed.
                let parameters = std::mem::take(&mut workspace.weights.parameters);
                network.load(&parameters, workspace)?;
                network.differentiate(batch, workspace);
                Ok(())
            }
            Self::Processor => {
                network.differentiate(batch, workspace);
                Ok(())
            }
        }
    }
}

/// [`Network::differentiate`] by candle: values of the taps' inputs and gradients of their outputs, nothing else.
fn on_device(
    network: &Network,
    batch: &Batch,
    workspace: &mut Workspace,
    device: &Device,
) -> Result<(), ModelError> {
    network.shape_batch(batch, Mode::Learn, workspace);
    let parameters = workspace.weights.parameters.as_slice();
    let tensors = tensors::load(network, parameters, device)?;
    let mut taps: Vec<Option<Var>> = vec![None; workspace.shapes.len()];
    for tap in workspace.taps.iter() {
        let (slot, shape) = (tap.output().0, workspace.shapes[tap.output().0]);
        if taps[slot].is_none() {
            let zeros = (workspace.count(shape.level), shape.width);
            taps[slot] = Some(Var::zeros(zeros, candle_core::DType::F32, device)?);
        }
    }
    let pass = Pass {
        network,
        parameters,
        tensors: &tensors,
        rows: &batch.rows,
        count: batch.labels.len(),
        ids: &workspace.ids,
        device,
        learning: Some(Learning { dropout: network.dropout_draws(batch), taps: &taps }),
    };
    let values = pass.run()?;
    let output = values[network.graph().output.0].as_ref().expect("a node for each slot");
    let mut gradient = vec![0.0; output.elem_count()];
    network.differentiate_loss(&output.flatten_all()?.to_vec1::<f32>()?, batch, &mut gradient);
    let gradient = Tensor::from_vec(gradient, output.shape(), device)?;
    let gradients = (output * gradient)?.sum_all()?.backward()?;

    workspace.slots.resize_with(taps.len(), Buffers::default);
    workspace.slots.iter_mut().for_each(|buffers| {
        buffers.values.clear();
        buffers.gradients.clear();
    });
    for node in &network.graph().nodes {
        // What the node before has made at the step before, zeros at the first.
        if let Node::Lstm { states, output, .. } = node {
            let hidden = values[output.0].as_ref().expect("a node for each slot").flatten_all()?.to_vec1()?;
            let width = workspace.shapes[output.0].width;
            let previous = &mut workspace.slots[states.previous.0].values;
            previous.resize(hidden.len(), 0.0);
            for span in batch.rows.step_starts.windows(2) {
                let (first, end) = (span[0] as usize * width, span[1] as usize * width);
                if first < end {
                    previous[first + width..end].copy_from_slice(&hidden[first..end - width]);
                }
            }
        }
    }
    for tap in workspace.taps.clone().iter() {
        let output = tap.output().0;
        let zeros = taps[output].as_ref().expect("zeros for each tap");
        workspace.slots[output].gradients = match gradients.get(zeros.as_tensor()) {
            Some(gradient) => gradient.flatten_all()?.to_vec1()?,
            None => vec![0.0; zeros.elem_count()],
        };
        if let Some(input) = tap.input()
            && let Some(value) = &values[input.0]
        {
            workspace.slots[input.0].values = value.flatten_all()?.to_vec1()?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::reference::{self, OwnedBatch, draws};

    #[test]
    fn candle_and_the_hand_written_layers_leave_the_same_factors() {
        let engine = Engine::Candle(Device::Cpu);
        for (spec, shape) in reference::zoo() {
            let network = Network::new(&spec, shape.clone()).unwrap();
            let mut draw = draws(9);
            let mut parameters = network.initial_parameters([7; 32]);
            parameters.iter_mut().for_each(|parameter| *parameter += 0.2 * draw());
            for customer_rows in [&[1, 2, 9, 1, 4][..], &[1], &[]] {
                let batch = OwnedBatch::draw(3, shape.clone(), customer_rows, 1.0).with_draws(&network, 3);
                let (mut one, mut other) = (Workspace::new(), Workspace::new());
                engine.load(&network, &parameters, &mut one).unwrap();
                engine.differentiate(&network, &batch.batch(), &mut one).unwrap();
                network.load(&parameters, &mut other).unwrap();
                network.differentiate(&batch.batch(), &mut other);
                for tap in network_taps(&other) {
                    let close = |one: &[f32], other: &[f32], what: &str| {
                        assert_eq!(one.len(), other.len(), "{spec:?} {tap:?} {what}");
                        let largest = other.iter().fold(1e-3f32, |largest, x| largest.max(x.abs()));
                        for (a, b) in one.iter().zip(other) {
                            assert!((a - b).abs() <= 2e-5 * largest, "{spec:?} {tap:?} {what}: {a} for {b}");
                        }
                    };
                    close(one.gradients(tap.output()), other.gradients(tap.output()), "gradients");
                    if let Some(input) = tap.input() {
                        close(one.values(input), other.values(input), "values");
                    }
                }
            }
        }
    }

    fn network_taps(workspace: &Workspace) -> Vec<crate::model::Tap> {
        workspace.taps().to_vec()
    }

    #[test]
    fn devices_are_known_by_name_and_those_not_built_say_what_to_do() {
        for (name, choice) in [
            ("auto", DeviceChoice::Auto),
            ("cpu", DeviceChoice::Cpu),
            ("cuda:3", DeviceChoice::Cuda(3)),
            ("metal", DeviceChoice::Metal),
        ] {
            assert_eq!(name.parse::<DeviceChoice>().unwrap(), choice);
            assert_eq!(choice.to_string(), name);
        }
        for name in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "cpu:0"] {
            assert!(name.parse::<DeviceChoice>().unwrap_err().to_string().contains("use \"auto\""), "{name}");
        }
        if !cfg!(feature = "cuda") {
            let refusal = Engine::new(DeviceChoice::Cuda(0)).unwrap_err().to_string();
            assert!(refusal.contains("build it with `--features cuda`"), "{refusal}");
        }
        assert!(matches!(Engine::new(DeviceChoice::Cpu), Ok(Engine::Processor)));
        assert!(Engine::new(DeviceChoice::Auto).is_ok());
    }
}
