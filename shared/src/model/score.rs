//! Predictions for evaluation and use: the network's nodes on candle tensors, on any device.
//!
//! Flat parameters and rows enter, the predictions of each row leave. Held together with
//! [`Network::outputs`] to 1e-5 by a test; memory is bounded by a chunk of rows, whatever their number.

use candle_core::Device;

use super::{ModelError, Network, Rows, Workspace, error::expect_length, loss::predict, tensors};
use crate::schema::SequenceShape;

/// The most rows that are on the device at a time.
const CHUNK_ROWS: usize = 4096;
/// The most outputs, unless one row has more.
const CHUNK_OUTPUTS: usize = 1 << 20;

/// The prediction for each row: `[rows, outputs of the target]`, row-major: a probability of label 1, of each class, a
/// rate, a number on -1 to 1, or a score of each item.
///
/// `parameters` is `[network.parameter_count()]`. Errors if a length does not fit, an id is outside its vocabulary, an
/// input is not finite, or the device fails.
pub fn score(
    network: &Network,
    parameters: &[f32],
    rows: &Rows,
    device: &Device,
) -> Result<Vec<f32>, ModelError> {
    expect_length("parameters", network.parameter_count(), parameters.len())?;
    let count = network.check_rows(rows)?;
    let outputs = network.target().outputs();
    let tensors = tensors::load(network, parameters, device)?;
    let chunk = (CHUNK_OUTPUTS / outputs).clamp(1, CHUNK_ROWS);
    let mut workspace = Workspace::new();
    let mut scores = Vec::with_capacity(count * outputs);
    for first in (0..count).step_by(chunk) {
        let end = count.min(first + chunk);
        let starts = chunk_starts(rows.step_starts, first, end);
        let rows = part_of(network, rows, first, end, &starts);
        let ids = network.scoring_ids(&rows, end - first, &mut workspace);
        let (tensors, count) = (tensors.as_slice(), end - first);
        let pass =
            tensors::Pass { network, parameters, tensors, rows: &rows, count, ids, device, learning: None };
        let outputs = pass.run()?.swap_remove(network.graph().output.0).expect("a node for each slot");
        scores.extend(outputs.flatten_all()?.to_vec1::<f32>()?);
    }
    scores.chunks_exact_mut(outputs).for_each(|row| predict(network.target(), row));
    Ok(scores)
}

/// The steps of rows `first .. end`, counted from the first of them.
fn chunk_starts(starts: &[u32], first: usize, end: usize) -> Vec<u32> {
    starts.get(first..=end).unwrap_or_default().iter().map(|start| start - starts[first]).collect()
}

/// Rows `first .. end`, whose steps begin at `starts`.
fn part_of<'a>(network: &Network, rows: &Rows<'a>, first: usize, end: usize, starts: &'a [u32]) -> Rows<'a> {
    let inputs = network.inputs();
    let none = SequenceShape::default();
    let step = inputs.sequence.as_ref().unwrap_or(&none);
    let at = |row: usize| rows.step_starts.get(row).map_or(0, |&start| start as usize);
    Rows {
        numbers: &rows.numbers[first * inputs.numbers..end * inputs.numbers],
        ids: &rows.ids[first * inputs.columns()..end * inputs.columns()],
        step_starts: starts,
        step_numbers: &rows.step_numbers[at(first) * step.numbers..at(end) * step.numbers],
        step_ids: &rows.step_ids[at(first) * step.columns()..at(end) * step.columns()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ModelSpec, Workspace, reference};
    use crate::schema::InputShape;

    #[test]
    fn the_two_forwards_agree_to_1e_5() {
        for (spec, shape) in reference::zoo() {
            let network = Network::new(&spec, shape.clone()).unwrap();
            let mut parameters = network.initial_parameters([3; 32]);
            for (i, parameter) in parameters.iter_mut().enumerate() {
                *parameter += (i as f32 * 0.7).sin() * 0.3;
            }
            let batch = reference::OwnedBatch::draw(5, shape, &[1; 50], 2.0);
            let outputs = network.target().outputs();
            let scores = score(&network, &parameters, &batch.rows(), &Device::Cpu).unwrap();
            assert_eq!(scores.len(), 50 * outputs);
            let mut expected = network.outputs(&parameters, &batch.rows(), &mut Workspace::new());
            expected.chunks_exact_mut(outputs).for_each(|row| predict(network.target(), row));
            for (expected, score) in expected.into_iter().zip(scores) {
                let error = (expected - score).abs() / expected.abs().max(1.0);
                assert!(error < 1e-5, "{spec:?}: {expected} against {score}");
            }
        }
    }

    #[test]
    fn extreme_logits_score_0_and_1_and_more_rows_than_a_chunk_are_all_scored() {
        let network = Network::new(&ModelSpec::Logistic {}, 1).unwrap();
        let numbers: Vec<f32> = (0..CHUNK_ROWS + 3).map(|i| if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
        let rows = Rows { numbers: &numbers, ..Rows::default() };
        let scores = score(&network, &[1e30, 0.0], &rows, &Device::Cpu).unwrap();
        assert_eq!(scores.len(), numbers.len());
        assert!(scores.iter().enumerate().all(|(i, &score)| score == if i % 2 == 0 { 1.0 } else { 0.0 }));
    }

    #[test]
    fn rows_whose_sequences_are_all_empty_are_scored() {
        for (spec, shape) in reference::zoo().into_iter().filter(|(_, shape)| shape.inputs.sequence.is_some())
        {
            let network = Network::new(&spec, shape.clone()).unwrap();
            let parameters = network.initial_parameters([3; 32]);
            let mut batch = reference::OwnedBatch::draw(5, shape, &[1; 3], 2.0);
            batch.step_starts.fill(0);
            batch.step_numbers.clear();
            batch.step_ids.clear();
            let scores = score(&network, &parameters, &batch.rows(), &Device::Cpu).unwrap();
            assert_eq!(scores.len(), 3 * network.target().outputs());
            assert!(scores.iter().all(|score| score.is_finite()), "{spec:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let network = Network::new(&ModelSpec::Logistic {}, 2).unwrap();
        let scored = |parameters: &[f32], numbers: &[f32], ids: &[u32]| {
            score(&network, parameters, &Rows { numbers, ids, ..Rows::default() }, &Device::Cpu)
        };
        assert!(scored(&[0.0; 2], &[1.0; 2], &[]).is_err());
        assert!(scored(&[0.0; 3], &[1.0; 3], &[]).is_err());
        assert!(scored(&[0.0; 3], &[1.0; 2], &[0]).is_err());
        assert!(scored(&[0.0; 3], &[], &[]).unwrap().is_empty());
        let shape = InputShape { vocabularies: vec![3], ..InputShape::default() };
        let network = Network::new(&ModelSpec::Logistic {}, shape).unwrap();
        let scored = |ids: &[u32]| score(&network, &[0.0; 3], &Rows { ids, ..Rows::default() }, &Device::Cpu);
        assert_eq!(scored(&[0, 2]).unwrap(), [0.5, 0.5]);
        assert!(matches!(scored(&[0, 3]), Err(ModelError::Id { row: 1, column: 0, vocabulary: 3 })));
    }
}
