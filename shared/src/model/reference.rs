//! The slow truth for tests: one customer's gradient in f64 by plain loops, and batches with a seed.

use super::{Batch, Network};

/// Loss and flat gradient of the mean binary cross-entropy over `rows`, in f64, with the parameters as given.
pub(crate) fn gradient(
    network: &Network,
    parameters: &[f64],
    rows: &[f32],
    labels: &[f32],
) -> (f64, Vec<f64>) {
    let mut gradient = vec![0.0; network.parameter_count()];
    let mut loss = 0.0;
    let share = 1.0 / labels.len() as f64;
    for (row, &label) in rows.chunks_exact(network.inputs()).zip(labels) {
        let mut activations = vec![row.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>()];
        for layer in network.layers() {
            let input = activations.last().unwrap();
            let output = (0..layer.outputs).map(|o| {
                let weight = &parameters[layer.offset + o * layer.inputs..][..layer.inputs];
                let bias = parameters[layer.offset + layer.outputs * layer.inputs + o];
                let z = bias + weight.iter().zip(input).map(|(w, x)| w * x).sum::<f64>();
                if layer.rectified { z.max(0.0) } else { z }
            });
            activations.push(output.collect());
        }
        let (z, y) = (activations.pop().unwrap()[0], f64::from(label));
        loss += share * (z.max(0.0) - z * y + (-z.abs()).exp().ln_1p());
        let mut delta = vec![share * (1.0 / (1.0 + (-z).exp()) - y)];
        for layer in network.layers().iter().rev() {
            let input = activations.pop().unwrap();
            let mut before = vec![0.0; layer.inputs];
            for (o, &d) in delta.iter().enumerate() {
                for (i, &x) in input.iter().enumerate() {
                    let at = layer.offset + o * layer.inputs + i;
                    gradient[at] += d * x;
                    before[i] += if x > 0.0 { d * parameters[at] } else { 0.0 };
                }
                gradient[layer.offset + layer.outputs * layer.inputs + o] += d;
            }
            delta = before;
        }
    }
    (loss, gradient)
}

/// L2 norm.
pub(crate) fn norm(vector: &[f64]) -> f64 {
    vector.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// A batch that owns its data.
#[derive(Clone, Debug)]
pub(crate) struct OwnedBatch {
    pub inputs: usize,
    pub rows: Vec<f32>,
    pub labels: Vec<f32>,
    pub customer_starts: Vec<u32>,
}

/// Draws in (-1, 1) from a seed (an LCG: tests only).
pub(crate) fn draws(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed.wrapping_mul(2) + 1;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / 8_388_608.0 - 1.0
    }
}

impl OwnedBatch {
    /// Customers with the given numbers of rows of entries in (-`size`, `size`).
    pub fn draw(seed: u64, inputs: usize, customer_rows: &[usize], size: f32) -> Self {
        let mut draw = draws(seed);
        let mut starts = vec![0];
        for &rows in customer_rows {
            starts.push(starts[starts.len() - 1] + rows as u32);
        }
        let count = starts[starts.len() - 1] as usize;
        Self {
            inputs,
            rows: (0..count * inputs).map(|_| draw() * size).collect(),
            labels: (0..count).map(|_| f32::from(u8::from(draw() > 0.2))).collect(),
            customer_starts: starts,
        }
    }

    pub fn batch(&self) -> Batch<'_> {
        Batch { rows: &self.rows, labels: &self.labels, customer_starts: &self.customer_starts }
    }

    pub fn customers(&self) -> usize {
        self.customer_starts.len() - 1
    }

    /// The batch of the customers that `keep` says yes to.
    pub fn only(&self, keep: impl Fn(usize) -> bool) -> Self {
        let mut kept = Self { inputs: self.inputs, rows: vec![], labels: vec![], customer_starts: vec![0] };
        for customer in (0..self.customers()).filter(|&customer| keep(customer)) {
            let span = self.customer_starts[customer] as usize..self.customer_starts[customer + 1] as usize;
            kept.rows.extend_from_slice(&self.rows[span.start * self.inputs..span.end * self.inputs]);
            kept.labels.extend_from_slice(&self.labels[span]);
            kept.customer_starts.push(kept.labels.len() as u32);
        }
        kept
    }
}
