//! The slow truth for tests: one customer's gradient in f64 by plain loops, and batches with a seed.

use super::{Batch, Network, linear::Linear};
use crate::schema::InputShape;

/// Loss and flat gradient of the mean binary cross-entropy over all rows of `batch` as one customer's, in f64, with the
/// parameters as given.
pub(crate) fn gradient(network: &Network, parameters: &[f64], batch: &OwnedBatch) -> (f64, Vec<f64>) {
    let mut gradient = vec![0.0; network.parameter_count()];
    let mut loss = 0.0;
    let share = 1.0 / batch.labels.len() as f64;
    let (width, columns) = (batch.inputs.numbers, batch.inputs.columns());
    for (row, &label) in batch.labels.iter().enumerate() {
        let numbers = batch.rows[row * width..(row + 1) * width].iter();
        let numbers: Vec<f64> = numbers.map(|&number| f64::from(number)).collect();
        let ids = &batch.ids[row * columns..(row + 1) * columns];
        let at = |table: &super::embedding::Embedding| {
            let start = table.offset + ids[table.column] as usize * table.dim;
            start..start + table.dim
        };

        let mut deep_input = numbers.clone();
        for embedding in network.deep_embeddings() {
            deep_input.extend_from_slice(&parameters[at(embedding)]);
        }
        let mut activations = vec![deep_input];
        for layer in network.deep_layers() {
            let outputs = affine(layer, parameters, activations.last().unwrap());
            let rectified = outputs.into_iter().map(|z| if layer.rectified { z.max(0.0) } else { z });
            activations.push(rectified.collect());
        }
        let deep_logit = network.deep_layers().last().map(|_| activations.pop().unwrap()[0]);
        let wide_logit = network.wide_layer().map(|layer| affine(layer, parameters, &numbers)[0]);
        let categories: f64 = network.wide_embeddings().iter().map(|table| parameters[at(table).start]).sum();
        let z = deep_logit.unwrap_or(0.0) + wide_logit.unwrap_or(0.0) + categories;
        let y = f64::from(label);
        loss += share * (z.max(0.0) - z * y + (-z.abs()).exp().ln_1p());

        let slope = share * (1.0 / (1.0 + (-z).exp()) - y);
        for table in network.wide_embeddings() {
            gradient[at(table).start] += slope;
        }
        if let Some(layer) = network.wide_layer() {
            differentiate(layer, parameters, &numbers, &[slope], &mut gradient);
        }
        let mut delta = vec![slope];
        for (index, layer) in network.deep_layers().iter().enumerate().rev() {
            let input = activations.pop().unwrap();
            delta = differentiate(layer, parameters, &input, &delta, &mut gradient);
            if index > 0 {
                delta.iter_mut().zip(&input).for_each(|(d, &x)| *d = if x > 0.0 { *d } else { 0.0 });
            }
        }
        let mut own = delta.iter().skip(width);
        for embedding in network.deep_embeddings() {
            gradient[at(embedding)].iter_mut().zip(&mut own).for_each(|(slot, d)| *slot += d);
        }
    }
    (loss, gradient)
}

/// One row through one layer, before its ReLU.
fn affine(layer: &Linear, parameters: &[f64], input: &[f64]) -> Vec<f64> {
    let output = |o: usize| {
        let weight = &parameters[layer.offset + o * layer.inputs..][..layer.inputs];
        let bias =
            if layer.biased { parameters[layer.offset + layer.outputs * layer.inputs + o] } else { 0.0 };
        bias + weight.iter().zip(input).map(|(w, x)| w * x).sum::<f64>()
    };
    (0..layer.outputs).map(output).collect()
}

/// Adds one row's gradient of one layer; returns the gradient by the row.
fn differentiate(
    layer: &Linear,
    parameters: &[f64],
    input: &[f64],
    delta: &[f64],
    gradient: &mut [f64],
) -> Vec<f64> {
    let mut before = vec![0.0; layer.inputs];
    for (o, &d) in delta.iter().enumerate() {
        for (i, &x) in input.iter().enumerate() {
            let at = layer.offset + o * layer.inputs + i;
            gradient[at] += d * x;
            before[i] += d * parameters[at];
        }
        if layer.biased {
            gradient[layer.offset + layer.outputs * layer.inputs + o] += d;
        }
    }
    before
}

/// L2 norm.
pub(crate) fn norm(vector: &[f64]) -> f64 {
    vector.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// A batch that owns its data.
#[derive(Clone, Debug)]
pub(crate) struct OwnedBatch {
    pub inputs: InputShape,
    pub rows: Vec<f32>,
    pub ids: Vec<u32>,
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
    /// Customers with the given numbers of rows of entries in (-`size`, `size`) and of any ids.
    pub fn draw(seed: u64, inputs: impl Into<InputShape>, customer_rows: &[usize], size: f32) -> Self {
        let inputs = inputs.into();
        let mut draw = draws(seed);
        let mut starts = vec![0];
        for &rows in customer_rows {
            starts.push(starts[starts.len() - 1] + rows as u32);
        }
        let count = starts[starts.len() - 1] as usize;
        let rows = (0..count * inputs.numbers).map(|_| draw() * size).collect();
        let labels = (0..count).map(|_| f32::from(u8::from(draw() > 0.2))).collect();
        let vocabularies = inputs.vocabularies.iter().cycle().take(count * inputs.columns());
        let ids = vocabularies.map(|&ids| ((draw() + 1.0) / 2.0 * ids as f32) as u32 % ids as u32).collect();
        Self { inputs, rows, ids, labels, customer_starts: starts }
    }

    pub fn batch(&self) -> Batch<'_> {
        Batch {
            rows: &self.rows,
            ids: &self.ids,
            labels: &self.labels,
            customer_starts: &self.customer_starts,
        }
    }

    pub fn customers(&self) -> usize {
        self.customer_starts.len() - 1
    }

    /// The batch of the customers that `keep` says yes to.
    pub fn only(&self, keep: impl Fn(usize) -> bool) -> Self {
        let (width, columns) = (self.inputs.numbers, self.inputs.columns());
        let inputs = self.inputs.clone();
        let mut kept = Self { inputs, rows: vec![], ids: vec![], labels: vec![], customer_starts: vec![0] };
        for customer in (0..self.customers()).filter(|&customer| keep(customer)) {
            let span = self.customer_starts[customer] as usize..self.customer_starts[customer + 1] as usize;
            kept.rows.extend_from_slice(&self.rows[span.start * width..span.end * width]);
            kept.ids.extend_from_slice(&self.ids[span.start * columns..span.end * columns]);
            kept.labels.extend_from_slice(&self.labels[span]);
            kept.customer_starts.push(kept.labels.len() as u32);
        }
        kept
    }
}
