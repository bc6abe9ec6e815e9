//! What one forward and one backward leave behind: the values and gradients of every slot, from which the taps'
//! factors are read.
//!
//! Buffers are kept between batches and grow to the largest one seen. Nothing here may leave a site: `Debug` prints
//! shapes only.

use std::sync::Arc;

use super::{
    graph::{Level, Slot, SlotShape, Tap},
    layers::{AttentionScratch, Recurrence},
    product::Packing,
    weights::PackedWeights,
};

/// A slot's matrices, `[rows of its level, width]`.
#[derive(Clone, Default)]
pub(super) struct Buffers {
    pub values: Vec<f32>,
    /// Derivative of the batch's loss by the values; zero-sized if no parameter has a part in the slot. Where it overwrites
    /// the values only one of the two is not empty.
    pub gradients: Vec<f32>,
}

/// Buffers of [`Network::backward`](super::Network::backward): one a thread, kept between batches.
#[derive(Clone, Default)]
pub struct Workspace {
    /// The network's, shared with it.
    pub(super) taps: Arc<[Tap]>,
    pub(super) shapes: Arc<[SlotShape]>,
    pub(super) slots: Vec<Buffers>,
    /// By source of ids.
    pub(super) ids: Vec<Vec<u32>>,
    /// Customer `i` has the factor rows `starts[level][i] .. starts[level][i + 1]` at each [`Level`].
    pub(super) starts: [Vec<u32>; 3],
    pub(super) packing: Packing<f32>,
    pub(super) weights: PackedWeights,
    pub(super) recurrence: Recurrence,
    pub(super) attention: AttentionScratch,
    /// Any row of a layer.
    pub(super) line: Vec<f32>,
    /// By slot, for the way back.
    pub(super) fresh: Vec<bool>,
    pub(super) customers: usize,
}

impl Workspace {
    /// Empty buffers.
    pub fn new() -> Self {
        Self::default()
    }

    /// The taps of the network that was last differentiated, in the order of its parameters.
    pub fn taps(&self) -> &[Tap] {
        &self.taps
    }

    /// How many slots there are.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Columns of a slot.
    pub fn width(&self, slot: Slot) -> usize {
        self.shapes[slot.0].width
    }

    /// `[rows of the slot's level, width]`.
    pub fn values(&self, slot: Slot) -> &[f32] {
        &self.slots[slot.0].values
    }

    /// Derivative of the batch's loss by the slot's values; by those before the activation where a linear layer made
    /// them. It carries the `1 / rows of the customer` of the mean over a customer's rows.
    pub fn gradients(&self, slot: Slot) -> &[f32] {
        &self.slots[slot.0].gradients
    }

    /// [`values`](Self::values), to be written over once nothing is differentiated any more.
    pub(crate) fn values_mut(&mut self, slot: Slot) -> &mut [f32] {
        &mut self.slots[slot.0].values
    }

    /// [`gradients`](Self::gradients), likewise.
    pub(crate) fn gradients_mut(&mut self, slot: Slot) -> &mut [f32] {
        &mut self.slots[slot.0].gradients
    }

    /// The ids of an embedding's tap, one for each factor row.
    pub fn ids(&self, source: usize) -> &[u32] {
        &self.ids[source]
    }

    /// Customer `i` has the rows `starts[i] .. starts[i + 1]` of this slot.
    pub fn starts(&self, slot: Slot) -> &[u32] {
        &self.starts[self.shapes[slot.0].level as usize]
    }

    /// Customers in the batch last differentiated.
    pub fn customers(&self) -> usize {
        self.customers
    }

    /// Rows of each level.
    pub(super) fn count(&self, level: Level) -> usize {
        self.starts[level as usize].last().map_or(0, |&end| end as usize)
    }
}

impl std::fmt::Debug for Workspace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workspace")
            .field("customers", &self.customers)
            .field("rows", &self.count(Level::Row))
            .field("taps", &self.taps)
            .finish()
    }
}
