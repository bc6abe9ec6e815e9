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
    pub parameters: Vec<f32>,
    /// By node, the weight that it multiplies by on the way forward and on the way back; empty where an accelerator
    /// multiplies.
    pub nodes: Vec<[PackedRight<f32>; 2]>,
}

impl PackedWeights {
    /// Takes the parameters of `network`, and packs its weights if they are `multiplied` here; nothing is done if they are
    /// the ones that are here.
    ///
    /// Errors if the parameters are not the network's in number, or one is not finite, naming it.
    pub fn load(
        &mut self,
        network: &Network,
        parameters: &[f32],
        multiplied: bool,
    ) -> Result<(), ModelError> {
        let nodes = if multiplied { network.graph().nodes.as_slice() } else { &[] };
        if self.is_of(network) && self.nodes.len() == nodes.len() && same(&self.parameters, parameters) {
            return Ok(());
        }
        expect_length("parameters", network.parameter_count(), parameters.len())?;
        if let Some(row) = first_not_finite(parameters) {
            return Err(ModelError::NotFinite { what: "parameter", row });
        }
        self.taps = Some(network.shared_taps().clone());
        self.parameters.clear();
        self.parameters.extend_from_slice(parameters);
        self.nodes.resize_with(nodes.len(), Default::default);
        for (node, packed) in nodes.iter().zip(&mut self.nodes) {
            match node {
                Node::Linear { layer, .. } => layer.pack(parameters, packed),
                Node::Lstm { layer, .. } => layer.pack(parameters, packed),
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether what is here is of `network`.
    pub fn is_of(&self, network: &Network) -> bool {
        self.taps.as_ref().is_some_and(|taps| Arc::ptr_eq(taps, network.shared_taps()))
    }
}
