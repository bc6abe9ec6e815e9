//! Probabilities for evaluation and prediction: the network's forward on candle tensors, on any device.
//!
//! Flat parameters and rows enter, one probability a row leaves. Held together with
//! [`Network::logits`] to 1e-5 by a test; memory is bounded by a chunk of rows, whatever their number.

use candle_core::{Device, Tensor};

use super::{ModelError, Network, error::expect_length};

/// Rows that are on the device at a time.
const CHUNK_ROWS: usize = 4096;

/// The probability of label 1 for each row.
///
/// `parameters` is `[network.parameter_count()]`, `rows` `[n, network.inputs()]` row-major, the result `[n]`, each in
/// `[0, 1]` if the logit is finite. Errors if a length does not fit or the device fails.
pub fn score(
    network: &Network,
    parameters: &[f32],
    rows: &[f32],
    device: &Device,
) -> Result<Vec<f32>, ModelError> {
    expect_length("parameters", network.parameter_count(), parameters.len())?;
    let inputs = network.inputs();
    expect_length("numbers in rows", rows.len() / inputs * inputs, rows.len())?;
    let tensors = network
        .tensors()
        .iter()
        .map(|spec| {
            Tensor::from_slice(&parameters[spec.offset..][..spec.entries()], spec.shape.as_slice(), device)
        })
        .collect::<Result<Vec<_>, _>>()?;

    let mut scores = Vec::with_capacity(rows.len() / inputs);
    for chunk in rows.chunks(CHUNK_ROWS * inputs) {
        let mut value = Tensor::from_slice(chunk, (chunk.len() / inputs, inputs), device)?;
        for (layer, tensors) in network.layers().iter().zip(tensors.chunks_exact(2)) {
            value = value.matmul(&tensors[0].t()?)?.broadcast_add(&tensors[1])?;
            if layer.rectified {
                value = value.relu()?;
            }
        }
        // exp overflows to infinity at large negative logits, and its reciprocal is the 0 that is meant.
        let probability = ((value.neg()?.exp()? + 1.0)?).recip()?;
        scores.extend(probability.flatten_all()?.to_vec1::<f32>()?);
    }
    Ok(scores)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ModelSpec;

    #[test]
    fn the_two_forwards_agree_to_1e_5() {
        for (spec, inputs) in [
            (ModelSpec::Logistic {}, 7),
            (ModelSpec::Mlp { hidden: vec![5] }, 3),
            (ModelSpec::Mlp { hidden: vec![33, 20, 4] }, 19),
        ] {
            let network = Network::new(&spec, inputs).unwrap();
            let mut parameters = network.initial_parameters([3; 32]);
            for (i, parameter) in parameters.iter_mut().enumerate() {
                *parameter += (i as f32 * 0.7).sin() * 0.3;
            }
            let rows: Vec<f32> = (0..inputs * 50).map(|i| (i as f32 * 1.3).cos() * 2.0).collect();
            let scores = score(&network, &parameters, &rows, &Device::Cpu).unwrap();
            for (logit, score) in network.logits(&parameters, &rows).into_iter().zip(scores) {
                let probability = 1.0 / (1.0 + (-f64::from(logit)).exp());
                assert!((probability - f64::from(score)).abs() < 1e-5, "{probability} against {score}");
            }
        }
    }

    #[test]
    fn extreme_logits_score_0_and_1_and_more_rows_than_a_chunk_are_all_scored() {
        let network = Network::new(&ModelSpec::Logistic {}, 1).unwrap();
        let rows: Vec<f32> = (0..CHUNK_ROWS + 3).map(|i| if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
        let scores = score(&network, &[1e30, 0.0], &rows, &Device::Cpu).unwrap();
        assert_eq!(scores.len(), rows.len());
        assert!(scores.iter().enumerate().all(|(i, &score)| score == if i % 2 == 0 { 1.0 } else { 0.0 }));
    }

    #[test]
    fn lengths_that_do_not_fit_are_refused() {
        let network = Network::new(&ModelSpec::Logistic {}, 2).unwrap();
        assert!(score(&network, &[0.0; 2], &[1.0; 2], &Device::Cpu).is_err());
        assert!(score(&network, &[0.0; 3], &[1.0; 3], &Device::Cpu).is_err());
        assert!(score(&network, &[0.0; 3], &[], &Device::Cpu).unwrap().is_empty());
    }
}
