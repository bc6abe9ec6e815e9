//! Probabilities for evaluation and prediction: the network's forward on candle tensors, on any device.
//!
//! Flat parameters and rows enter, one probability a row leaves. Held together with
//! [`Network::logits`] to 1e-5 by a test; memory is bounded by a chunk of rows, whatever their number.

use candle_core::{D, Device, Tensor};

use super::{ModelError, Network, embedding::Embedding, error::expect_length, linear::Linear};

/// Rows that are on the device at a time.
const CHUNK_ROWS: usize = 4096;

/// The probability of label 1 for each row.
///
/// `parameters` is `[network.parameter_count()]`, `rows` `[n, numbers]` and `ids` `[n, categorical columns]`, row-major,
/// as [`Network::inputs`] says; the result is `[n]`, each in `[0, 1]` if the logit is finite. Errors if a length does not
/// fit, an id is outside its vocabulary, or the device fails.
pub fn score(
    network: &Network,
    parameters: &[f32],
    rows: &[f32],
    ids: &[u32],
    device: &Device,
) -> Result<Vec<f32>, ModelError> {
    expect_length("parameters", network.parameter_count(), parameters.len())?;
    let count = network.row_count(rows, ids)?;
    network.check_ids(ids)?;
    let linear = |layer: &Linear| LinearTensors::load(layer, parameters, device);
    let table = |embedding: &Embedding| {
        let entries = &parameters[embedding.offset..][..embedding.parameter_count()];
        Tensor::from_slice(entries, (embedding.vocabulary, embedding.dim), device)
    };
    let deep = network.deep_layers().iter().map(linear).collect::<Result<Vec<_>, _>>()?;
    let wide = network.wide_layer().map(linear).transpose()?;
    let embeddings = network.deep_embeddings().iter().map(table).collect::<Result<Vec<_>, _>>()?;
    let categories = network.wide_embeddings().iter().map(table).collect::<Result<Vec<_>, _>>()?;

    let (width, columns) = (network.inputs().numbers, network.inputs().columns());
    let mut scores = Vec::with_capacity(count);
    for first in (0..count).step_by(CHUNK_ROWS) {
        let end = count.min(first + CHUNK_ROWS);
        let numbers = Tensor::from_slice(&rows[first * width..end * width], (end - first, width), device)?;
        let own = &ids[first * columns..end * columns];
        let column = |index: usize| {
            let ids: Vec<u32> = own.iter().skip(index).step_by(columns).copied().collect();
            Tensor::from_vec(ids, end - first, device)
        };
        let columns = (0..columns).map(column).collect::<Result<Vec<_>, _>>()?;

        let mut logits = Tensor::zeros((end - first, 1), candle_core::DType::F32, device)?;
        if !deep.is_empty() {
            let vectors = embeddings.iter().zip(&columns).map(|(table, ids)| table.index_select(ids, 0));
            let mut parts = vectors.collect::<Result<Vec<_>, _>>()?;
            if width > 0 {
                parts.insert(0, numbers.clone());
            }
            let input = Tensor::cat(&parts, D::Minus1)?;
            logits = deep.iter().try_fold(input, |value, layer| layer.forward(&value))?;
        }
        if let Some(layer) = &wide {
            logits = (logits + layer.forward(&numbers)?)?;
        }
        for (table, ids) in categories.iter().zip(&columns) {
            logits = (logits + table.index_select(ids, 0)?)?;
        }
        // exp overflows to infinity at large negative logits, and its reciprocal is the 0 that is meant.
        let probability = ((logits.neg()?.exp()? + 1.0)?).recip()?;
        scores.extend(probability.flatten_all()?.to_vec1::<f32>()?);
    }
    Ok(scores)
}

/// One linear layer on the device.
struct LinearTensors {
    /// `[inputs, outputs]`.
    transposed: Tensor,
    bias: Option<Tensor>,
    rectified: bool,
}

impl LinearTensors {
    fn load(layer: &Linear, parameters: &[f32], device: &Device) -> Result<Self, candle_core::Error> {
        let weight = Tensor::from_slice(layer.weight(parameters), (layer.outputs, layer.inputs), device)?;
        let bias = layer.bias(parameters);
        let bias = layer.biased.then(|| Tensor::from_slice(bias, layer.outputs, device)).transpose()?;
        Ok(Self { transposed: weight.t()?, bias, rectified: layer.rectified })
    }

    fn forward(&self, input: &Tensor) -> Result<Tensor, candle_core::Error> {
        let mut value = input.matmul(&self.transposed)?;
        if let Some(bias) = &self.bias {
            value = value.broadcast_add(bias)?;
        }
        if self.rectified { value.relu() } else { Ok(value) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ModelSpec;
    use crate::schema::InputShape;

    #[test]
    fn the_two_forwards_agree_to_1e_5() {
        let mixed = InputShape { numbers: 3, vocabularies: vec![4, 9] };
        let ids_only = InputShape { numbers: 0, vocabularies: vec![6] };
        let wide_and_deep = || ModelSpec::WideAndDeep { hidden: vec![12, 5], embedding_dim: 4 };
        let cases: [(_, InputShape); 9] = [
            (ModelSpec::Logistic {}, 7.into()),
            (ModelSpec::Mlp { hidden: vec![5] }, 3.into()),
            (ModelSpec::Mlp { hidden: vec![33, 20, 4] }, 19.into()),
            (ModelSpec::Logistic {}, mixed.clone()),
            (ModelSpec::Logistic {}, ids_only.clone()),
            (ModelSpec::Mlp { hidden: vec![8] }, mixed.clone()),
            (wide_and_deep(), mixed),
            (wide_and_deep(), ids_only),
            (wide_and_deep(), 5.into()),
        ];
        for (spec, inputs) in cases {
            let network = Network::new(&spec, inputs).unwrap();
            let mut parameters = network.initial_parameters([3; 32]);
            for (i, parameter) in parameters.iter_mut().enumerate() {
                *parameter += (i as f32 * 0.7).sin() * 0.3;
            }
            let InputShape { numbers, vocabularies } = network.inputs();
            let rows: Vec<f32> = (0..numbers * 50).map(|i| (i as f32 * 1.3).cos() * 2.0).collect();
            let ids: Vec<u32> =
                (0..50).flat_map(|row| vocabularies.iter().map(move |ids| row * 7 % *ids as u32)).collect();
            let scores = score(&network, &parameters, &rows, &ids, &Device::Cpu).unwrap();
            assert_eq!(scores.len(), 50);
            for (logit, score) in network.logits(&parameters, &rows, &ids).into_iter().zip(scores) {
                let probability = 1.0 / (1.0 + (-f64::from(logit)).exp());
                assert!((probability - f64::from(score)).abs() < 1e-5, "{probability} against {score}");
            }
        }
    }

    #[test]
    fn extreme_logits_score_0_and_1_and_more_rows_than_a_chunk_are_all_scored() {
        let network = Network::new(&ModelSpec::Logistic {}, 1).unwrap();
        let rows: Vec<f32> = (0..CHUNK_ROWS + 3).map(|i| if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
        let scores = score(&network, &[1e30, 0.0], &rows, &[], &Device::Cpu).unwrap();
        assert_eq!(scores.len(), rows.len());
        assert!(scores.iter().enumerate().all(|(i, &score)| score == if i % 2 == 0 { 1.0 } else { 0.0 }));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let network = Network::new(&ModelSpec::Logistic {}, 2).unwrap();
        let scored = |parameters: &[f32], rows: &[f32], ids: &[u32]| {
            score(&network, parameters, rows, ids, &Device::Cpu)
        };
        assert!(scored(&[0.0; 2], &[1.0; 2], &[]).is_err());
        assert!(scored(&[0.0; 3], &[1.0; 3], &[]).is_err());
        assert!(scored(&[0.0; 3], &[1.0; 2], &[0]).is_err());
        assert!(scored(&[0.0; 3], &[], &[]).unwrap().is_empty());
        let shape = InputShape { numbers: 0, vocabularies: vec![3] };
        let network = Network::new(&ModelSpec::Logistic {}, shape).unwrap();
        assert_eq!(score(&network, &[0.0; 3], &[], &[0, 2], &Device::Cpu).unwrap(), [0.5, 0.5]);
        assert!(matches!(
            score(&network, &[0.0; 3], &[], &[0, 3], &Device::Cpu),
            Err(ModelError::Id { row: 1, column: 0, vocabulary: 3 })
        ));
    }
}
