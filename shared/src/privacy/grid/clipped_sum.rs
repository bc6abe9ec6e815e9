//! The exact sum of clipped per-customer gradients, a batch of customers at a time; see [`grid`](super) for what it promises.

use std::fmt;

use pulp::Arch;

use super::clip::Clip;
use super::norm::NormScratch;
use super::sum::SumScratch;
use super::whole::{WholeGradients, WholeTaps};
use super::{COUNT, Grid, MAX_CUSTOMER_ROWS};
use crate::model::{Batch, Engine, ModelError, Network, Slot, Workspace};

/// Buffers of [`clipped_sum`]: one a thread, kept between batches. Holds un-noised data; `Debug` prints shapes.
#[derive(Clone, Default)]
pub struct SumWorkspace {
    engine: Engine,
    /// Factors in floats; once they are clipped, in integers, see [`Clip`].
    pub(super) factors: Workspace,
    /// Where each customer's gradient is made whole.
    pub(super) forms: Vec<WholeTaps>,
    /// Of a customer's slots those that are an input, and those that are an output of the other taps.
    slots: [Vec<Slot>; 2],
    pub(super) sums: SumScratch,
    pub(super) scratch: NormScratch,
    pub(super) whole: WholeGradients,
}

impl SumWorkspace {
    /// Empty buffers; gradients are computed on the processor.
    pub fn new() -> Self {
        Self::default()
    }

    /// Empty buffers; gradients are computed by `engine`.
    pub fn on(engine: Engine) -> Self {
        Self { engine, ..Self::default() }
    }

    /// Begins to add to `sum` the clipped, rounded gradients of customers at `parameters`; see [`clipped_sum`].
    ///
    /// Errors if the parameters or the sum are not the network's in number, or a parameter is not finite.
    pub fn begin<'a>(
        &'a mut self,
        network: &'a Network,
        parameters: &[f32],
        grid: &'a Grid,
        sum: &'a mut [i64],
    ) -> Result<Summation<'a>, ModelError> {
        let expected = network.parameter_count() + grid.clipping.counts();
        if sum.len() != expected {
            let got = sum.len();
            return Err(ModelError::Length { what: "entries in the sum", expected, got });
        }
        self.engine.load(network, parameters, &mut self.factors)?;
        self.whole.forget();
        let (gradient, counts) = sum.split_at_mut(network.parameter_count());
        Ok(Summation { workspace: self, network, grid, gradient, counts })
    }
}

impl fmt::Debug for SumWorkspace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SumWorkspace").field(&self.factors).finish()
    }
}

/// A sum that batch after batch is added to; all is in it once this is dropped.
pub struct Summation<'a> {
    workspace: &'a mut SumWorkspace,
    network: &'a Network,
    grid: &'a Grid,
    gradient: &'a mut [i64],
    counts: &'a mut [i64],
}

impl Summation<'_> {
    /// Adds the customers of `batch`; errors as [`clipped_sum`], without a part of them.
    pub fn add(&mut self, batch: &Batch) -> Result<(), ModelError> {
        let Self { workspace, network, grid, gradient, counts } = self;
        network.check(batch)?;
        let steps = |row: u32| batch.rows.step_starts.get(row as usize).copied().unwrap_or(0);
        for (customer, span) in batch.customer_starts.windows(2).enumerate() {
            let rows = (span[1] - span[0]) as usize * network.factor_rows();
            let got = rows.max((steps(span[1]) - steps(span[0])) as usize);
            if got > MAX_CUSTOMER_ROWS {
                return Err(ModelError::CustomerRows { customer, got, limit: MAX_CUSTOMER_ROWS });
            }
        }
        workspace.engine.differentiate(network, batch, &mut workspace.factors)?;
        let SumWorkspace { factors, forms, slots, sums, scratch, whole, .. } = &mut **workspace;
        let (clip, clipping) = (grid.clip.value(), grid.clipping);
        // Factors become integers, but where gradients are made whole: these are added now, or when this is dropped.
        let within = Arch::new().dispatch(Clip {
            clip,
            clipping,
            factors,
            forms,
            slots,
            scratch,
            whole,
            sum: gradient,
        });
        sums.add_taps(factors, forms, gradient);
        if let [count] = counts {
            *count += COUNT * (2 * within as i64 - batch.customers() as i64);
        }
        Ok(())
    }
}

impl Drop for Summation<'_> {
    fn drop(&mut self) {
        self.workspace.whole.flush(self.gradient);
    }
}

/// Adds to `sum` the clipped, rounded gradient of every customer of `batch`, exactly; see [`grid`](super).
///
/// `sum` is `[network.parameter_count()]` in the network's flat layout, in units of [`Grid::unit`], and then, with
/// [`Clipping::Quantile`](super::Clipping::Quantile), one entry of units of [`COUNT`]; the caller
/// zeroes it before the first call. One customer more or less in all calls together changes it by at
/// most [`SENSITIVITY`](super::SENSITIVITY) in L2 norm. Customers may be split over calls to bound memory, which is about
/// `8 bytes x rows x (inputs + hidden units)`, or over calls of [`Summation::add`], which is faster; the result is the same.
///
/// Errors, leaving `sum` alone, if a shape does not fit, a customer has more than [`MAX_CUSTOMER_ROWS`] rows, an id is
/// outside its vocabulary, or a parameter, an input or a label is not finite, naming its row. Customers whose gradient
/// overflows count as zero. On an accelerator also if the device fails.
pub fn clipped_sum(
    network: &Network,
    parameters: &[f32],
    batch: &Batch,
    grid: &Grid,
    workspace: &mut SumWorkspace,
    sum: &mut [i64],
) -> Result<(), ModelError> {
    workspace.begin(network, parameters, grid, sum)?.add(batch)
}
