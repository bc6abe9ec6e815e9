use super::*;
use crate::model::{
    MAX_INPUTS, MAX_VOCABULARY,
    reference::{self, OwnedBatch, draws, gradient, norm},
};

/// Every kind of model, with parameters of any sign.
fn networks() -> Vec<(Network, Vec<f32>)> {
    let of = |(spec, shape): (ModelSpec, DataShape)| {
        let network = Network::new(&spec, shape).unwrap();
        let mut draw = draws(9);
        let mut parameters = network.initial_parameters([7; 32]);
        parameters.iter_mut().for_each(|parameter| *parameter += 0.2 * draw());
        (network, parameters)
    };
    reference::zoo().into_iter().map(of).collect()
}

/// Customers with so many rows each, with the draws that the network asks for.
fn drawn(network: &Network, seed: u64, customer_rows: &[usize]) -> OwnedBatch {
    OwnedBatch::draw(seed, network.shape.clone(), customer_rows, 1.0).with_draws(network, seed)
}

fn mlp(hidden: &[u32]) -> ModelSpec {
    ModelSpec::Mlp { hidden: hidden.into(), dropout: 0.0, activation: Default::default() }
}

fn widened(parameters: &[f32]) -> Vec<f64> {
    parameters.iter().map(|&parameter| f64::from(parameter)).collect()
}

#[test]
fn tensors_lie_in_the_flat_parameters_without_gaps_under_pytorch_names() {
    let network = Network::new(&mlp(&[3, 2]), 4).unwrap();
    let mut end = 0;
    for tensor in network.tensors() {
        assert_eq!(tensor.offset, end, "{}", tensor.name);
        end += tensor.entries();
    }
    assert_eq!(end, network.parameter_count());
    let named: Vec<_> = network.tensors().iter().map(|t| (t.name.as_str(), t.shape.as_slice())).collect();
    assert_eq!(named[2], ("layers.1.weight", [2, 3].as_slice()));
    assert_eq!(named[5], ("layers.2.bias", [1].as_slice()));
}

/// Parameters are added to the sum tap by tap; one that lay in no tap, or in two, would be summed unclipped.
#[test]
fn the_taps_own_every_parameter_once() {
    for (network, parameters) in networks() {
        let batch = drawn(&network, 1, &[2, 1]);
        let mut workspace = Workspace::new();
        network.backward(&parameters, &batch.batch(), &mut workspace).unwrap();
        let mut tensors = network.tensors().iter();
        let mut next = || tensors.next().expect("a tensor for each tap").shape.clone();
        for tap in workspace.taps() {
            let width = workspace.width(tap.output());
            match *tap {
                Tap::Linear { input, biased, .. } => {
                    let weight = next();
                    assert_eq!(weight[0], width);
                    assert_eq!(weight[1..].iter().product::<usize>(), workspace.width(input));
                    if biased {
                        assert_eq!(next(), [width]);
                    }
                }
                Tap::Embedding { vocabulary, .. } => assert_eq!(next(), [vocabulary, width]),
                Tap::Scale { .. } => assert_eq!([next(), next()], [[width], [width]]),
            }
        }
        assert_eq!(tensors.next(), None);
    }
}

#[test]
fn a_wide_part_has_a_weight_for_each_category_and_one_intercept_in_all() {
    let shape = InputShape { numbers: 2, vocabularies: vec![3, 5], sequence: None };
    let names = |spec: &ModelSpec| {
        let network = Network::new(spec, shape.clone()).unwrap();
        let named = network.tensors().iter().map(|tensor| format!("{}{:?}", tensor.name, tensor.shape));
        named.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        names(&ModelSpec::Logistic {}),
        "layers.0.weight[1, 2] layers.0.bias[1] categories.0.weight[3, 1] categories.1.weight[5, 1]"
    );
    assert_eq!(
        names(&ModelSpec::WideAndDeep { hidden: vec![4], embedding_dim: 2 }),
        "embeddings.0.weight[3, 2] embeddings.1.weight[5, 2] layers.0.weight[4, 6] layers.0.bias[4] \
         layers.1.weight[1, 4] layers.1.bias[1] wide.weight[1, 2] categories.0.weight[3, 1] \
         categories.1.weight[5, 1]"
    );
}

#[test]
fn networks_out_of_bounds_are_refused() {
    for inputs in [0, MAX_INPUTS + 1] {
        assert!(matches!(Network::new(&ModelSpec::Logistic {}, inputs), Err(ModelError::Inputs { .. })));
    }
    let wide = mlp(&[4096, 4096]);
    assert!(matches!(Network::new(&wide, MAX_INPUTS), Err(ModelError::Parameters { .. })));
    for ids in [0, MAX_VOCABULARY + 1, usize::MAX] {
        let shape = InputShape { numbers: 1, vocabularies: vec![2, ids], sequence: None };
        let refusal = Network::new(&ModelSpec::Logistic {}, shape);
        assert!(matches!(refusal, Err(ModelError::Vocabulary { column: 1, .. })), "{ids}");
    }
    let shape = InputShape { numbers: 1, vocabularies: vec![2; 300], sequence: None };
    let spec = ModelSpec::WideAndDeep { hidden: vec![2], embedding_dim: 256 };
    assert!(matches!(Network::new(&spec, shape), Err(ModelError::Inputs { got: 76_801 })));
}

#[test]
fn initial_parameters_are_the_same_for_everyone_and_within_the_kaiming_bounds() {
    let logistic = Network::new(&ModelSpec::Logistic {}, 3).unwrap();
    assert_eq!(logistic.initial_parameters([1; 32]), [0.0; 4]);
    let network = Network::new(&mlp(&[64]), 50).unwrap();
    let parameters = network.initial_parameters([1; 32]);
    assert_eq!(parameters, network.initial_parameters([1; 32]));
    assert_ne!(parameters, network.initial_parameters([2; 32]));
    let (weight, bound) = (&parameters[..64 * 50], (6.0f32 / 50.0).sqrt());
    assert!(weight.iter().all(|entry| entry.abs() < bound));
    let variance = weight.iter().map(|x| f64::from(x * x)).sum::<f64>() / weight.len() as f64;
    assert!((variance * 50.0 / 2.0 - 1.0).abs() < 0.05, "{variance}");
    assert!(parameters[64 * 50..][..64].iter().all(|&bias| bias == 0.0));
    // Golden: a change here changes where every job starts.
    assert_eq!(parameters[..2], GOLDEN);
}

#[test]
fn embeddings_start_at_random_within_their_bound_and_a_wide_part_at_zero() {
    let shape = InputShape { numbers: 2, vocabularies: vec![40, 30], sequence: None };
    let spec = ModelSpec::WideAndDeep { hidden: vec![4], embedding_dim: 16 };
    let network = Network::new(&spec, shape).unwrap();
    let parameters = network.initial_parameters([1; 32]);
    let tensor = |name: &str| {
        let spec = network.tensors().iter().find(|tensor| tensor.name == name).unwrap();
        &parameters[spec.offset..][..spec.entries()]
    };
    for zero in ["wide.weight", "categories.0.weight", "categories.1.weight", "layers.1.bias"] {
        assert!(tensor(zero).iter().all(|&entry| entry == 0.0), "{zero}");
    }
    let (first, second) = (tensor("embeddings.0.weight"), tensor("embeddings.1.weight"));
    assert!(first.iter().chain(second).all(|entry| entry.abs() < 0.25 && *entry != 0.0));
    assert_ne!(first[..8], second[..8]);
    assert_ne!(first[..16], first[16..32]);
}

/// Computed with Python's hashlib from the description above.
const GOLDEN: [f32; 2] = [-0.320_938_23, -0.243_162_9];

/// Computed in f64 with `torch.nn.LSTM` and `torch.nn.Conv1d` (`padding="same"`) from the same flat parameters.
#[test]
fn sequences_go_through_an_lstm_and_a_convolution_as_in_pytorch() {
    let lstm = ModelSpec::Lstm { hidden: vec![2, 3], dropout: 0.2, embedding_dim: 4, negatives: 1 };
    let channels = vec![3, 2];
    let cnn = ModelSpec::Cnn { channels, kernel: 3, dropout: 0.2, embedding_dim: 4, negatives: 1 };
    let sequence = Some(SequenceShape { length: 4, numbers: 2, vocabularies: vec![] });
    let shape = InputShape { sequence, ..InputShape::default() };
    let step_numbers: Vec<f32> = (0..8).map(|i| (f64::from(i) * 1.3).cos() as f32).collect();
    let rows = Rows { step_starts: &[0, 4], step_numbers: &step_numbers, ..Rows::default() };
    for (spec, parameters, expected) in [(lstm, 116, -0.851_670_55), (cnn, 44, -2.541_998_67)] {
        let network = Network::new(&spec, shape.clone()).unwrap();
        assert_eq!(network.parameter_count(), parameters);
        let parameters: Vec<f32> = (0..parameters).map(|i| ((i as f64 * 0.7).sin() * 0.8) as f32).collect();
        let outputs = network.outputs(&parameters, &rows, &mut Workspace::new());
        assert!((f64::from(outputs[0]) - expected).abs() < 2e-6, "{spec:?}: {outputs:?}");
    }
}

#[test]
fn a_model_of_sequences_needs_them() {
    for text in ["lstm = { hidden = [3] }", "cnn = { channels = [3] }"] {
        #[derive(serde::Deserialize)]
        struct Job {
            model: ModelSpec,
        }
        let job: Job = toml::from_str(&format!("model = {{ {text} }}")).unwrap();
        assert!(matches!(Network::new(&job.model, 3), Err(ModelError::NoSequence)), "{text}");
    }
}

/// Which are central differences of the loss in f64.
#[test]
fn the_mean_gradient_equals_batch_of_one_gradients_in_f64_to_1e_5() {
    for (network, parameters) in networks() {
        // More rows than a block of a product has terms, and customers of several rows.
        let customer_rows: Vec<usize> = (0..150).map(|i| 1 + i % 3).collect();
        let batch = drawn(&network, 4, &customer_rows);
        let mut expected = vec![0.0; network.parameter_count()];
        for customer in 0..batch.customers() {
            let one = batch.only(&network, |other| other == customer);
            let (_, gradient) = gradient(&network, &widened(&parameters), &one);
            expected.iter_mut().zip(gradient).for_each(|(sum, entry)| *sum += entry / 150.0);
        }
        let (mut workspace, mut got) = (Workspace::new(), Vec::new());
        network.backward(&parameters, &batch.batch(), &mut workspace).unwrap();
        network.mean_gradient(&mut workspace, &mut got);
        let error: Vec<f64> = expected.iter().zip(&got).map(|(e, &g)| e - f64::from(g)).collect();
        assert!(norm(&error) < 1e-5 * norm(&expected), "{} of {}", norm(&error), norm(&expected));
    }
}

#[test]
fn factors_of_one_customer_are_the_same_bits_alone_and_in_any_batch() {
    for (network, parameters) in networks() {
        let batch = drawn(&network, 5, &[1, 2, 9, 1, 4, 1, 1, 25]);
        let mut together = Workspace::new();
        network.backward(&parameters, &batch.batch(), &mut together).unwrap();
        let mut alone = Workspace::new();
        for customer in 0..batch.customers() {
            let one = batch.only(&network, |other| other == customer);
            network.backward(&parameters, &one.batch(), &mut alone).unwrap();
            let span = |slot| {
                let starts: &[u32] = together.starts(slot);
                starts[customer] as usize..starts[customer + 1] as usize
            };
            let part = |slot, all: &[f32]| {
                let width = together.width(slot);
                all[span(slot).start * width..span(slot).end * width].to_vec()
            };
            for tap in together.taps() {
                let output = tap.output();
                assert_eq!(alone.gradients(output), part(output, together.gradients(output)), "{tap:?}");
                if let Some(input) = tap.input() {
                    assert_eq!(alone.values(input), part(input, together.values(input)), "{tap:?}");
                }
                if let Tap::Embedding { ids, .. } = *tap {
                    assert_eq!(alone.ids(ids), &together.ids(ids)[span(output)]);
                }
            }
        }
    }
}

#[test]
fn outputs_are_those_of_the_backward_pass_without_dropout() {
    for (network, parameters) in networks() {
        if network.draws(1, 1) > 0 {
            continue;
        }
        let batch = drawn(&network, 6, &[1; 20]);
        let mut workspace = Workspace::new();
        network.backward(&parameters, &batch.batch(), &mut workspace).unwrap();
        let learning = workspace.values(network.graph.output).to_vec();
        assert_eq!(network.outputs(&parameters, &batch.rows(), &mut workspace), learning);
    }
}

#[test]
fn dropout_zeroes_about_its_share_and_only_while_the_model_learns() {
    let network =
        Network::new(&ModelSpec::Mlp { hidden: vec![200], dropout: 0.25, activation: Default::default() }, 3)
            .unwrap();
    let parameters = network.initial_parameters([1; 32]);
    let batch = drawn(&network, 6, &[1; 50]);
    let mut workspace = Workspace::new();
    network.backward(&parameters, &batch.batch(), &mut workspace).unwrap();
    let [Tap::Linear { output: hidden, .. }, Tap::Linear { input: dropped, .. }] = *workspace.taps() else {
        panic!("two layers")
    };
    let pairs = || workspace.values(hidden).iter().zip(workspace.values(dropped)).filter(|(x, _)| **x > 0.0);
    let zeroed = pairs().filter(|(_, y)| **y == 0.0).count() as f64 / pairs().count() as f64;
    assert!((zeroed - 0.25).abs() < 0.03, "{zeroed}");
    assert!(pairs().all(|(x, y)| *y == 0.0 || (y / x - 4.0 / 3.0).abs() < 1e-6));
    let short = Batch { draws: &batch.draws[1..], ..batch.batch() };
    assert!(network.backward(&parameters, &short, &mut workspace).is_err());
    network.outputs(&parameters, &batch.rows(), &mut workspace);
    assert_eq!(workspace.values(hidden), workspace.values(dropped));
}

#[test]
fn a_batch_of_nobody_has_a_zero_gradient() {
    for (network, parameters) in networks() {
        let (mut workspace, mut out) = (Workspace::new(), Vec::new());
        let nobody = drawn(&network, 1, &[]);
        network.backward(&parameters, &nobody.batch(), &mut workspace).unwrap();
        network.mean_gradient(&mut workspace, &mut out);
        assert!(out.iter().all(|&entry| entry == 0.0));
    }
}

#[test]
fn what_is_not_finite_is_refused_naming_the_row() {
    let (network, parameters) = networks().swap_remove(1);
    let refusal = |parameters: &[f32], change: &dyn Fn(&mut OwnedBatch)| {
        let mut batch = drawn(&network, 7, &[2, 1, 3]);
        change(&mut batch);
        network.backward(parameters, &batch.batch(), &mut Workspace::new()).unwrap_err().to_string()
    };
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert_eq!(refusal(&parameters, &|batch| batch.rows[4 * 4 + 1] = bad), "input row 4 is not finite");
    }
    assert_eq!(
        refusal(&parameters, &|batch| batch.labels[3] = f32::NAN),
        "the label of row 3 is out of range"
    );
    // Finite, but its logit overflows.
    assert_eq!(
        refusal(&parameters, &|batch| batch.rows[8..12].fill(3e38)),
        "gradient of row 2 is not finite"
    );
    let mut broken = parameters.clone();
    broken[6] = f32::NAN;
    assert_eq!(refusal(&broken, &|_| ()), "parameter 6 is not finite");
}

#[test]
fn batches_that_do_not_fit_are_refused() {
    let (network, parameters) = networks().swap_remove(0);
    let batch = OwnedBatch::draw(8, 5, &[2, 1], 1.0);
    for starts in [&[][..], &[1, 3], &[0, 2, 2, 3], &[0, 3, 2], &[0, 2], &[0, 4]] {
        let batch = Batch { customer_starts: starts, ..batch.batch() };
        assert!(network.backward(&parameters, &batch, &mut Workspace::new()).is_err(), "{starts:?}");
    }
    let rows = Rows { numbers: &batch.rows[1..], ..batch.rows() };
    let short = Batch { rows, ..batch.batch() };
    assert!(network.backward(&parameters, &short, &mut Workspace::new()).is_err());
    assert!(network.backward(&parameters[1..], &batch.batch(), &mut Workspace::new()).is_err());
}

#[test]
fn ids_outside_their_vocabulary_and_missing_ids_are_refused() {
    let shape = InputShape { numbers: 4, vocabularies: vec![3, 6], sequence: None };
    for spec in [ModelSpec::Logistic {}, mlp(&[2])] {
        let network = Network::new(&spec, shape.clone()).unwrap();
        let parameters = network.initial_parameters([0; 32]);
        let mut batch = OwnedBatch::draw(8, shape.clone(), &[2, 1], 1.0);
        let rows = Rows { ids: &batch.ids[1..], ..batch.rows() };
        let short = Batch { rows, ..batch.batch() };
        let refusal = network.backward(&parameters, &short, &mut Workspace::new());
        assert_eq!(refusal.unwrap_err().to_string(), "expected 6 ids in rows, got 5");
        batch.ids[3] = 6;
        let refusal = network.backward(&parameters, &batch.batch(), &mut Workspace::new());
        assert_eq!(
            refusal.unwrap_err().to_string(),
            "the id of row 1 in categorical column 1 is outside its vocabulary of 6"
        );
    }
}

#[test]
fn rows_with_one_id_share_its_gradient_and_others_have_none() {
    let shape = InputShape { numbers: 0, vocabularies: vec![4], sequence: None };
    let network = Network::new(&ModelSpec::Logistic {}, shape).unwrap();
    // At zero each row's output gradient is 1/2 less its label, halved again for a customer of two rows.
    let rows = Rows { ids: &[2, 2, 1], ..Rows::default() };
    let (labels, customer_starts) = (&[1.0, 1.0, 0.0], &[0, 2, 3]);
    let batch = Batch { rows, labels, customer_starts, draws: &[] };
    let (mut workspace, mut out) = (Workspace::new(), Vec::new());
    network.backward(&[0.0; 4], &batch, &mut workspace).unwrap();
    network.mean_gradient(&mut workspace, &mut out);
    assert_eq!(out, [0.0, 0.25, -0.25, 0.0]);
}
