use super::*;
use crate::model::reference::{OwnedBatch, draws, gradient, norm};

/// Every kind of model, with numbers, with categories, with both.
fn networks() -> Vec<(Network, Vec<f32>)> {
    let wide_and_deep = |hidden: &[u32]| ModelSpec::WideAndDeep { hidden: hidden.into(), embedding_dim: 3 };
    let mixed = InputShape { numbers: 4, vocabularies: vec![3, 6] };
    let ids_only = InputShape { numbers: 0, vocabularies: vec![5, 2] };
    [
        (ModelSpec::Logistic {}, 5.into()),
        (ModelSpec::Mlp { hidden: vec![7] }, 4.into()),
        (ModelSpec::Mlp { hidden: vec![19, 8, 1] }, 33.into()),
        (ModelSpec::Logistic {}, mixed.clone()),
        (ModelSpec::Logistic {}, ids_only.clone()),
        (ModelSpec::Mlp { hidden: vec![6, 5] }, mixed.clone()),
        (ModelSpec::Mlp { hidden: vec![1, 4] }, ids_only.clone()),
        (wide_and_deep(&[9, 4]), mixed),
        (wide_and_deep(&[6]), ids_only),
        (wide_and_deep(&[5]), 4.into()),
    ]
    .into_iter()
    .map(|(spec, inputs): (_, InputShape)| {
        let network = Network::new(&spec, inputs).unwrap();
        let mut draw = draws(9);
        let mut parameters = network.initial_parameters([7; 32]);
        parameters.iter_mut().for_each(|parameter| *parameter += 0.2 * draw());
        (network, parameters)
    })
    .collect()
}

fn widened(parameters: &[f32]) -> Vec<f64> {
    parameters.iter().map(|&parameter| f64::from(parameter)).collect()
}

#[test]
fn tensors_lie_in_the_flat_parameters_without_gaps_under_pytorch_names() {
    let network = Network::new(&ModelSpec::Mlp { hidden: vec![3, 2] }, 4).unwrap();
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
        let mut owners = vec![0; network.parameter_count()];
        for layer in &network.linear {
            owners[layer.offset..][..layer.parameter_count()].iter_mut().for_each(|owner| *owner += 1);
        }
        for embedding in &network.embeddings {
            owners[embedding.offset..][..embedding.parameter_count()].iter_mut().for_each(|o| *o += 1);
        }
        assert!(owners.iter().all(|&owner| owner == 1), "{:?}", network.tensors());
        let batch = OwnedBatch::draw(1, network.inputs().clone(), &[2, 1], 1.0);
        let mut workspace = Workspace::new();
        network.backward(&parameters, &batch.batch(), &mut workspace).unwrap();
        let linear = workspace.linear().iter();
        let linear = linear.map(|tap| tap.outputs() * (tap.inputs() + usize::from(tap.biased())));
        let embeddings = workspace.embeddings().iter().map(|tap| tap.vocabulary() * tap.dim());
        assert_eq!(linear.chain(embeddings).sum::<usize>(), network.parameter_count());
    }
}

#[test]
fn a_wide_part_has_a_weight_for_each_category_and_one_intercept_in_all() {
    let shape = InputShape { numbers: 2, vocabularies: vec![3, 5] };
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
        "layers.0.weight[4, 6] layers.0.bias[4] layers.1.weight[1, 4] layers.1.bias[1] wide.weight[1, 2] \
         categories.0.weight[3, 1] categories.1.weight[5, 1] embeddings.0.weight[3, 2] embeddings.1.weight[5, 2]"
    );
}

#[test]
fn networks_out_of_bounds_are_refused() {
    for inputs in [0, MAX_INPUTS + 1] {
        assert!(matches!(Network::new(&ModelSpec::Logistic {}, inputs), Err(ModelError::Inputs { .. })));
    }
    let wide = ModelSpec::Mlp { hidden: vec![4096, 4096] };
    assert!(matches!(Network::new(&wide, MAX_INPUTS), Err(ModelError::Parameters { .. })));
    for ids in [0, MAX_VOCABULARY + 1, usize::MAX] {
        let shape = InputShape { numbers: 1, vocabularies: vec![2, ids] };
        let refusal = Network::new(&ModelSpec::Logistic {}, shape);
        assert!(matches!(refusal, Err(ModelError::Vocabulary { column: 1, .. })), "{ids}");
    }
    let shape = InputShape { numbers: 1, vocabularies: vec![2; 300] };
    let spec = ModelSpec::WideAndDeep { hidden: vec![2], embedding_dim: 256 };
    assert!(matches!(Network::new(&spec, shape), Err(ModelError::Inputs { got: 76_801 })));
}

#[test]
fn initial_parameters_are_the_same_for_everyone_and_within_the_kaiming_bounds() {
    let logistic = Network::new(&ModelSpec::Logistic {}, 3).unwrap();
    assert_eq!(logistic.initial_parameters([1; 32]), [0.0; 4]);
    let network = Network::new(&ModelSpec::Mlp { hidden: vec![64] }, 50).unwrap();
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
    let shape = InputShape { numbers: 2, vocabularies: vec![40, 30] };
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
const GOLDEN: [f32; 2] = [-0.073_139_876, 0.211_845_62];

#[test]
fn the_reference_gradient_equals_finite_differences() {
    for (network, parameters) in networks() {
        let batch = OwnedBatch::draw(3, network.inputs().clone(), &[3], 1.0);
        let parameters = widened(&parameters);
        let (_, exact) = gradient(&network, &parameters, &batch);
        for at in (0..parameters.len()).step_by(1 + parameters.len() / 40) {
            let loss = |step: f64| {
                let mut moved = parameters.clone();
                moved[at] += step;
                gradient(&network, &moved, &batch).0
            };
            let difference = (loss(1e-6) - loss(-1e-6)) / 2e-6;
            assert!((difference - exact[at]).abs() < 1e-7, "{at}: {difference} against {}", exact[at]);
        }
    }
}

#[test]
fn the_mean_gradient_equals_batch_of_one_gradients_in_f64_to_1e_5() {
    for (network, parameters) in networks() {
        // More rows than a block of a product has terms, and customers of several rows.
        let customer_rows: Vec<usize> = (0..200).map(|i| 1 + i % 3).collect();
        let batch = OwnedBatch::draw(4, network.inputs().clone(), &customer_rows, 1.5);
        let mut expected = vec![0.0; network.parameter_count()];
        for customer in 0..batch.customers() {
            let one = batch.only(|other| other == customer);
            let (_, gradient) = gradient(&network, &widened(&parameters), &one);
            expected.iter_mut().zip(gradient).for_each(|(sum, entry)| *sum += entry / 200.0);
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
        let batch = OwnedBatch::draw(5, network.inputs().clone(), &[1, 2, 9, 1, 4, 1, 1, 25], 2.0);
        let mut together = Workspace::new();
        network.backward(&parameters, &batch.batch(), &mut together).unwrap();
        let mut alone = Workspace::new();
        for customer in 0..batch.customers() {
            let one = batch.only(|other| other == customer);
            network.backward(&parameters, &one.batch(), &mut alone).unwrap();
            let span = batch.customer_starts[customer] as usize..batch.customer_starts[customer + 1] as usize;
            let of = |width: usize| span.start * width..span.end * width;
            for (one, all) in alone.linear().iter().zip(together.linear()) {
                assert_eq!(one.activations(), &all.activations()[of(all.inputs())]);
                assert_eq!(one.output_gradients(), &all.output_gradients()[of(all.outputs())]);
            }
            for (one, all) in alone.embeddings().iter().zip(together.embeddings()) {
                assert_eq!(one.ids(), &all.ids()[span.clone()]);
                assert_eq!(one.output_gradients(), &all.output_gradients()[of(all.dim())]);
            }
        }
    }
}

#[test]
fn logits_are_those_of_the_backward_pass() {
    for (network, parameters) in networks() {
        let batch = OwnedBatch::draw(6, network.inputs().clone(), &[1; 20], 1.0);
        let mut workspace = Workspace::new();
        network.backward(&parameters, &batch.batch(), &mut workspace).unwrap();
        assert_eq!(network.logits(&parameters, &batch.rows, &batch.ids), workspace.logits());
    }
}

#[test]
fn a_batch_of_nobody_has_a_zero_gradient() {
    for (network, parameters) in networks() {
        let (mut workspace, mut out) = (Workspace::new(), Vec::new());
        let nobody = Batch { rows: &[], ids: &[], labels: &[], customer_starts: &[0] };
        network.backward(&parameters, &nobody, &mut workspace).unwrap();
        network.mean_gradient(&mut workspace, &mut out);
        assert!(out.iter().all(|&entry| entry == 0.0));
    }
}

#[test]
fn what_is_not_finite_is_refused_naming_the_row() {
    let (network, parameters) = networks().swap_remove(1);
    let refusal = |parameters: &[f32], change: &dyn Fn(&mut OwnedBatch)| {
        let mut batch = OwnedBatch::draw(7, network.inputs().clone(), &[2, 1, 3], 1.0);
        change(&mut batch);
        network.backward(parameters, &batch.batch(), &mut Workspace::new()).unwrap_err().to_string()
    };
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert_eq!(refusal(&parameters, &|batch| batch.rows[4 * 4 + 1] = bad), "input row 4 is not finite");
    }
    assert_eq!(
        refusal(&parameters, &|batch| batch.labels[3] = f32::NAN),
        "the label of row 3 is not between 0 and 1"
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
    let short = Batch { rows: &batch.rows[1..], ..batch.batch() };
    assert!(network.backward(&parameters, &short, &mut Workspace::new()).is_err());
    assert!(network.backward(&parameters[1..], &batch.batch(), &mut Workspace::new()).is_err());
}

#[test]
fn ids_outside_their_vocabulary_and_missing_ids_are_refused() {
    let shape = InputShape { numbers: 4, vocabularies: vec![3, 6] };
    for spec in [ModelSpec::Logistic {}, ModelSpec::Mlp { hidden: vec![2] }] {
        let network = Network::new(&spec, shape.clone()).unwrap();
        let parameters = network.initial_parameters([0; 32]);
        let mut batch = OwnedBatch::draw(8, shape.clone(), &[2, 1], 1.0);
        let short = Batch { ids: &batch.ids[1..], ..batch.batch() };
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
    let shape = InputShape { numbers: 0, vocabularies: vec![4] };
    let network = Network::new(&ModelSpec::Logistic {}, shape).unwrap();
    // At zero each row's output gradient is 1/2 less its label, halved again for a customer of two rows.
    let batch = Batch { rows: &[], ids: &[2, 2, 1], labels: &[1.0, 1.0, 0.0], customer_starts: &[0, 2, 3] };
    let (mut workspace, mut out) = (Workspace::new(), Vec::new());
    network.backward(&[0.0; 4], &batch, &mut workspace).unwrap();
    network.mean_gradient(&mut workspace, &mut out);
    assert_eq!(out, [0.0, 0.25, -0.25, 0.0]);
}

#[test]
fn the_loss_does_not_overflow_at_extreme_logits() {
    assert_eq!(binary_cross_entropy(200.0, 1.0), 0.0);
    assert_eq!(binary_cross_entropy(-200.0, 1.0), 200.0);
    assert!((binary_cross_entropy(0.0, 1.0) - std::f32::consts::LN_2).abs() < 1e-7);
}
