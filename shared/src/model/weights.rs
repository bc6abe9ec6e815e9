//! A network's weights as its products want them: packed when the parameters change, then used for every batch.

use std::sync::Arc;

use super::{
    ModelError, Network, Tap,
    error::expect_length,
    graph::Node,
    product::PackedRight,
    vectors::{first_not_finite, same},
};

/// Of the network and the parameters last loaded.
#[derive(Clone, Default)]
pub(super) struct PackedWeights {
    /// The network's own, which no other network shares.
    taps: Option<Arc<[Tap]>>,
    parameters: Vec<f32>,
    /// By node, the weight that it multiplies by on the way forward and on the way back.
    pub nodes: Vec<[PackedRight<f32>; 2]>,
}

impl PackedWeights {
    /// Packs the weights of `network` at `parameters`; nothing is done if they are the ones that are here.
    ///
    /// Errors if the parameters are not the network's in number, or one is not finite, naming it.
    pub fn load(&mut self, network: &Network, parameters: &[f32]) -> Result<(), ModelError> {
        let of_network = self.taps.as_ref().is_some_and(|taps| Arc::ptr_eq(taps, network.shared_taps()));
        if of_network && same(&self.parameters, parameters) {
            return Ok(());
        }
        check_parameters(network, parameters)?;
        self.taps = Some(network.shared_taps().clone());
        self.parameters.clear();
        self.parameters.extend_from_slice(parameters);
        self.nodes.resize_with(network.graph().nodes.len(), Default::default);
        for (node, packed) in network.graph().nodes.iter().zip(&mut self.nodes) {
            match node {
                Node::Linear { layer, .. } => layer.pack(parameters, packed),
                Node::Lstm { layer, .. } => layer.pack(parameters, packed),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Refuses parameters that do not fit or are not finite.
pub(super) fn check_parameters(network: &Network, parameters: &[f32]) -> Result<(), ModelError> {
    expect_length("parameters", network.parameter_count(), parameters.len())?;
    match first_not_finite(parameters) {
        Some(row) => Err(ModelError::NotFinite { what: "parameter", row }),
        None => Ok(()),
    }
}
