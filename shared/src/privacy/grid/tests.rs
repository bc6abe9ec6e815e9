//! What the grid promises, against integers computed the slow way.

use proptest::prelude::*;
use std::collections::BTreeSet;

use super::whole::WholeTaps;
use super::*;
use crate::model::{
    Batch, ModelSpec, Network, Tap,
    reference::{self, OwnedBatch, draws, gradient, norm},
};
use crate::schema::{DataShape, InputShape, SequenceShape, Target};

fn mlp(hidden: &[u32]) -> ModelSpec {
    ModelSpec::Mlp { hidden: hidden.into(), dropout: 0.0, activation: Default::default() }
}

fn network(hidden: &[u32], inputs: impl Into<DataShape>) -> Network {
    let spec = if hidden.is_empty() { ModelSpec::Logistic {} } else { mlp(hidden) };
    Network::new(&spec, inputs).unwrap()
}

fn drawn_parameters(network: &Network, seed: u64, size: f32) -> Vec<f32> {
    let mut draw = draws(seed);
    (0..network.parameter_count()).map(|_| draw() * size).collect()
}

fn grid(clip: f64) -> Grid {
    Grid::new(ClipNorm::new(clip).unwrap())
}

fn sum_of(network: &Network, parameters: &[f32], batch: &OwnedBatch, grid: &Grid) -> Vec<i64> {
    let mut sum = vec![0; network.parameter_count() + grid.clipping().counts()];
    clipped_sum(network, parameters, &batch.batch(), grid, &mut SumWorkspace::new(), &mut sum).unwrap();
    sum
}

/// The integer gradient of a customer, from the integer factors, by plain loops.
fn materialised(workspace: &SumWorkspace, customer: usize) -> Vec<i128> {
    let factors = &workspace.factors;
    let mut gradient = Vec::new();
    for tap in factors.taps() {
        let (output, width) = (tap.output(), factors.width(tap.output()));
        let starts = factors.starts(output);
        let rows = starts[customer] as usize..starts[customer + 1] as usize;
        let g = |row: usize, at: usize| factors.gradients(output)[row * width + at] as i128;
        let a =
            |slot: Slot, row: usize, at: usize| factors.values(slot)[row * factors.width(slot) + at] as i128;
        match *tap {
            Tap::Linear { input, biased, .. } => {
                let inputs = factors.width(input);
                let weight = (0..width * inputs).map(|at| {
                    rows.clone().map(|row| g(row, at / inputs) * a(input, row, at % inputs)).sum::<i128>()
                });
                gradient.extend(weight);
                let bias = (0..width).map(|at| rows.clone().map(|row| g(row, at) * 1024).sum::<i128>());
                gradient.extend(bias.filter(|_| biased));
            }
            Tap::Embedding { ids, vocabulary, .. } => {
                let mut table = vec![0i128; vocabulary * width];
                for row in rows {
                    for at in 0..width {
                        table[factors.ids(ids)[row] as usize * width + at] += g(row, at) * 1024;
                    }
                }
                gradient.extend(table);
            }
            Tap::Scale { input, .. } => {
                let of = |factor: &dyn Fn(usize, usize) -> i128| -> Vec<i128> {
                    (0..width).map(|at| rows.clone().map(|row| g(row, at) * factor(row, at)).sum()).collect()
                };
                gradient.extend(of(&|row, at| a(input, row, at)));
                gradient.extend(of(&|_, _| 1024));
            }
        }
    }
    gradient
}

/// The entries of the sum that are of a gradient made whole for this customer.
fn whole_places(workspace: &SumWorkspace, customer: usize) -> Vec<usize> {
    let (factors, mut places) = (&workspace.factors, Vec::new());
    let (mut first, mut linear) = (0, 0);
    for tap in factors.taps() {
        let next = first + tap.parameters(|slot| factors.width(slot));
        if matches!(tap, Tap::Linear { .. }) {
            if workspace.forms[customer].has(linear) {
                places.extend(first..next);
            }
            linear += 1;
        }
        first = next;
    }
    places
}

/// A model of any kind with rows that it takes.
fn any_model() -> impl Strategy<Value = (ModelSpec, DataShape)> {
    let hidden = || proptest::collection::vec(1u32..9, 1..3);
    let spec = prop_oneof![
        Just(ModelSpec::Logistic {}),
        (hidden(), 0.0..0.9).prop_map(|(hidden, dropout)| ModelSpec::Mlp {
            hidden,
            dropout,
            activation: Default::default()
        }),
        (hidden(), 1u32..6)
            .prop_map(|(hidden, embedding_dim)| ModelSpec::WideAndDeep { hidden, embedding_dim }),
    ];
    let any = (spec, any_shape());
    prop_oneof![any, proptest::sample::select(reference::zoo())]
}

/// Rows with numbers, with ids, with sequences, or with several of them.
fn any_shape() -> impl Strategy<Value = DataShape> {
    let vocabularies = || proptest::collection::vec(1usize..7, 0..4);
    let holds_something = |(numbers, vocabularies): &(usize, Vec<usize>)| numbers + vocabularies.len() > 0;
    let sequence =
        (1usize..5, (0usize..3, vocabularies()).prop_filter("a step holds something", holds_something))
            .prop_map(|(length, (numbers, vocabularies))| SequenceShape { length, numbers, vocabularies });
    let target = prop_oneof![
        Just(Target::Binary),
        Just(Target::Count),
        Just(Target::Number),
        (2usize..5).prop_map(Target::Classes)
    ];
    let inputs = (0usize..12, vocabularies()).prop_filter("a row holds something", holds_something);
    (inputs, proptest::option::of(sequence), target).prop_map(
        |((numbers, vocabularies), sequence, target)| DataShape {
            inputs: InputShape { numbers, vocabularies, sequence },
            target,
        },
    )
}

fn squared(vector: &[i128]) -> i128 {
    vector.iter().map(|x| x * x).sum()
}

const LIMIT: i128 = (SENSITIVITY as i128) * (SENSITIVITY as i128);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_norm_is_within_the_sensitivity_and_the_sum_is_exactly_that_of_the_customers(
        (spec, shape) in any_model(),
        customer_rows in proptest::collection::vec(1usize..6, 0..9),
        seed in any::<u64>(),
        size in -12i32..40,
        weight in -12i32..40,
        clip in -6i32..=6,
        clipping in proptest::sample::select(vec![Clipping::Fixed, Clipping::Automatic, Clipping::Quantile]),
        removed in any::<proptest::sample::Index>(),
    ) {
        let network = Network::new(&spec, shape.clone()).unwrap();
        let parameters = drawn_parameters(&network, seed, 2f32.powi(weight));
        let grid = grid(10f64.powi(clip)).with_clipping(clipping);
        let batch = OwnedBatch::draw(seed, shape, &customer_rows, 2f32.powi(size)).with_draws(&network, seed);
        let mut workspace = SumWorkspace::new();
        let mut sum = vec![0; network.parameter_count() + clipping.counts()];
        clipped_sum(&network, &parameters, &batch.batch(), &grid, &mut workspace, &mut sum).unwrap();

        let mut expected = vec![0i128; sum.len()];
        let mut vectors = Vec::new();
        for customer in 0..batch.customers() {
            let mut vector = materialised(&workspace, customer);
            let alone = sum_of(&network, &parameters, &batch.only(&network, |other| other == customer), &grid);
            // What is made whole has no integer factors; what it is has a test of its own.
            for place in whole_places(&workspace, customer) {
                vector[place] = i128::from(alone[place]);
            }
            if clipping == Clipping::Quantile {
                let count = alone[vector.len()];
                prop_assert_eq!(count.abs(), COUNT);
                vector.push(i128::from(count));
            }
            prop_assert!(squared(&vector) <= LIMIT, "{} past {LIMIT}", squared(&vector));
            expected.iter_mut().zip(&vector).for_each(|(sum, entry)| *sum += entry);
            vectors.push(vector);
        }
        prop_assert_eq!(sum.iter().map(|&x| i128::from(x)).collect::<Vec<_>>(), expected);

        if batch.customers() > 0 {
            let removed = removed.index(batch.customers());
            let without = sum_of(&network, &parameters, &batch.only(&network, |other| other != removed), &grid);
            let alone = sum_of(&network, &parameters, &batch.only(&network, |other| other == removed), &grid);
            for (at, (&with, &without)) in sum.iter().zip(&without).enumerate() {
                prop_assert_eq!(with - without, alone[at]);
                prop_assert_eq!(i128::from(alone[at]), vectors[removed][at]);
            }
        }
    }

    #[test]
    fn the_norm_from_factors_is_the_norm_of_the_gradient_in_integers_and_within_the_bound_in_floats(
        (spec, shape) in any_model(), rows in 1usize..26, seed in any::<u64>(),
    ) {
        let network = Network::new(&spec, shape.clone()).unwrap();
        let batch = OwnedBatch::draw(seed, shape, &[1, rows], 1.0).with_draws(&network, seed);
        let mut workspace = SumWorkspace::new();
        let mut sum = vec![0; network.parameter_count()];
        let parameters = drawn_parameters(&network, seed, 0.5);
        clipped_sum(&network, &parameters, &batch.batch(), &grid(1.0), &mut workspace, &mut sum).unwrap();
        // Any integers will do, also past the sensitivity.
        let mut draw = draws(seed);
        let factors = &mut workspace.factors;
        for tap in factors.taps().to_vec() {
            let mut redraw = |matrix: &mut [f32]| {
                matrix.iter_mut().for_each(|entry| *entry = (draw() * 32_768.0).round());
            };
            tap.input().into_iter().for_each(|input| redraw(factors.values_mut(input)));
            redraw(factors.gradients_mut(tap.output()));
        }
        let expected = squared(&materialised(&workspace, 1));
        let SumWorkspace { factors, scratch, .. } = &mut workspace;
        let none = WholeTaps::default();
        prop_assert_eq!(scratch.exact_squared_norm(factors, 1, none), expected);
        let float: f64 = scratch.squared_norm(factors, 1, none);
        prop_assert!((float - expected as f64).abs() <= scratch.uncertainty(float));
        prop_assert!((float - expected as f64).abs() <= 1e-4 * expected as f64);
    }
}

/// Buffers are written over, not zeroed, and factors become integers where the floats were.
#[test]
fn what_other_customers_left_in_a_workspace_changes_no_bit() {
    for (spec, shape) in reference::zoo() {
        let network = Network::new(&spec, shape.clone()).unwrap();
        let parameters = drawn_parameters(&network, 5, 0.3);
        let before = OwnedBatch::draw(6, shape.clone(), &[7, 1, 30, 4], 40.0).with_draws(&network, 6);
        let mut workspace = SumWorkspace::new();
        let (mut sum, clip) = (vec![0; network.parameter_count()], grid(0.5));
        // Once where much is saturated, once where nothing is finite.
        for size in [1.0, 1e30] {
            let wild: Vec<f32> = parameters.iter().map(|parameter| parameter * size).collect();
            clipped_sum(&network, &wild, &before.batch(), &clip, &mut workspace, &mut sum).unwrap();
        }
        for customer_rows in [&[2, 3][..], &[1, 9, 1]] {
            let batch = OwnedBatch::draw(8, shape.clone(), customer_rows, 1.0).with_draws(&network, 8);
            sum.fill(0);
            clipped_sum(&network, &parameters, &batch.batch(), &clip, &mut workspace, &mut sum).unwrap();
            assert_eq!(sum, sum_of(&network, &parameters, &batch, &clip), "{spec:?}");
        }
    }
}

#[test]
fn micro_batches_in_any_order_sum_to_the_same_integers() {
    let network = network(&[17, 6], 9);
    let parameters = network.initial_parameters([4; 32]);
    let batch = OwnedBatch::draw(1, 9, &[1, 3, 1, 25, 2, 1, 1, 1, 4, 1, 1], 2.0);
    let together = sum_of(&network, &parameters, &batch, &grid(0.5));
    let (mut split, mut workspace) = (vec![0; together.len()], SumWorkspace::new());
    for part in [2, 0, 1] {
        let part = batch.only(&network, |customer| customer % 3 == part);
        clipped_sum(&network, &parameters, &part.batch(), &grid(0.5), &mut workspace, &mut split).unwrap();
    }
    assert_eq!(split, together);
}

/// The relative error of a customer's integer gradient against its clipped gradient in f64, largest of a batch, and
/// the share of it that is rounding and not the margin of the clip factor.
fn errors(network: &Network, parameters: &[f32], batch: &OwnedBatch, clip: f64) -> (f64, f64) {
    let widened: Vec<f64> = parameters.iter().map(|&parameter| f64::from(parameter)).collect();
    let (mut worst, mut worst_direction) = (0.0f64, 0.0f64);
    for customer in 0..batch.customers() {
        let one = batch.only(network, |other| other == customer);
        let (_, exact) = gradient(network, &widened, &one);
        let factor = (clip / norm(&exact)).min(1.0);
        let clipped: Vec<f64> = exact.iter().map(|entry| entry * factor).collect();
        let got = sum_of(network, parameters, &one, &grid(clip));
        let got: Vec<f64> = got.iter().map(|&entry| entry as f64 * grid(clip).unit()).collect();
        let error: Vec<f64> = got.iter().zip(&clipped).map(|(a, b)| a - b).collect();
        // What is small beside the clip norm is lost in the noise, however it is rounded.
        worst = worst.max(norm(&error) / norm(&clipped).max(clip / 20.0));
        let cosine = got.iter().zip(&clipped).map(|(a, b)| a * b).sum::<f64>() / norm(&got) / norm(&clipped);
        if norm(&clipped) > clip / 20.0 {
            worst_direction = worst_direction.max((1.0 - cosine * cosine).max(0.0).sqrt());
        }
    }
    (worst, worst_direction)
}

#[test]
fn rounding_moves_a_clipped_gradient_by_less_than_a_half_percent() {
    for (spec, shape) in reference::zoo() {
        let network = Network::new(&spec, shape.clone()).unwrap();
        let parameters = drawn_parameters(&network, 11, 0.3);
        // Of one row each: rows that cancel may be past what a factor holds, which costs precision.
        let batch = OwnedBatch::draw(12, shape, &[1; 12], 1.7).with_draws(&network, 13);
        let (clipped, direction) = errors(&network, &parameters, &batch, 0.5);
        assert!(clipped < 5e-3 && direction < 5e-3, "{spec:?}: {clipped}, of which rounding {direction}");
    }
}

/// Whose gradients are made whole.
fn recurrence_of_thirty_steps() -> (DataShape, Network) {
    let sequence = SequenceShape { length: 30, numbers: 6, vocabularies: vec![] };
    let inputs = InputShape { numbers: 0, vocabularies: vec![], sequence: Some(sequence) };
    let shape = DataShape { inputs, target: Target::Binary };
    let spec = ModelSpec::Lstm { hidden: vec![16], embedding_dim: 4, dropout: 0.0, negatives: 1 };
    let network = Network::new(&spec, shape.clone()).unwrap();
    (shape, network)
}

/// Sequences of thirty steps: the gradients of layers that see each step are made whole, and are those of f64 but for the
/// customer's one clip factor.
#[test]
fn gradients_that_are_made_whole_are_those_of_f64() {
    let (shape, network) = recurrence_of_thirty_steps();
    let parameters = drawn_parameters(&network, 11, 0.3);
    let widened: Vec<f64> = parameters.iter().map(|&parameter| f64::from(parameter)).collect();
    let (mut workspace, mut made) = (SumWorkspace::new(), 0);
    for seed in 0..20 {
        let batch = OwnedBatch::draw(seed, shape.clone(), &[1], 1.7).with_draws(&network, 13);
        let (_, exact) = gradient(&network, &widened, &batch);
        for clip in [0.05, 0.5, 2.0] {
            let grid = grid(clip);
            let factor = (clip / norm(&exact)).min(1.0);
            let mut sum = vec![0; network.parameter_count()];
            clipped_sum(&network, &parameters, &batch.batch(), &grid, &mut workspace, &mut sum).unwrap();
            let places = whole_places(&workspace, 0);
            let clipped: Vec<f64> = places.iter().map(|&place| factor * exact[place]).collect();
            let got: Vec<f64> = places.iter().map(|&place| sum[place] as f64 * grid.unit()).collect();
            let scale = norm(&got) / norm(&clipped).max(f64::MIN_POSITIVE);
            let error: Vec<f64> = got.iter().zip(&clipped).map(|(a, b)| a - scale * b).collect();
            assert!(norm(&error) <= 1e-5 * norm(&clipped).max(clip), "{seed} {clip}: {}", norm(&error));
            // The margin, if it is clipped, and a rounding of the norm.
            assert!(places.is_empty() || (0.997..1.0005).contains(&scale), "{seed} {clip}: {scale}");
            made += places.len();
        }
    }
    assert!(made > 10 * network.parameter_count(), "{made} entries were made whole");
}

/// What is not in the sum yet when the next batch comes is not lost, and nothing of one sum gets into the next: also
/// where the gradients are made whole and wait in floats.
#[test]
fn batches_added_to_one_sum_are_the_same_integers_as_each_by_itself() {
    let (shape, network) = recurrence_of_thirty_steps();
    let parameters = drawn_parameters(&network, 11, 0.3);
    let sizes: [&[usize]; 5] = [&[1], &[2, 1], &[], &[1, 1, 3], &[1]];
    let batch = |at: usize| {
        let customer_rows = sizes[at % sizes.len()];
        OwnedBatch::draw(at as u64, shape.clone(), customer_rows, 1.7).with_draws(&network, at as u64)
    };
    let batches: Vec<OwnedBatch> = (0..40).map(batch).collect();
    let mut workspace = SumWorkspace::new();
    for clipping in [Clipping::Fixed, Clipping::Automatic, Clipping::Quantile] {
        let grid = grid(0.5).with_clipping(clipping);
        let mut expected = vec![0; network.parameter_count() + clipping.counts()];
        for batch in &batches {
            let of_batch = sum_of(&network, &parameters, batch, &grid);
            expected.iter_mut().zip(of_batch).for_each(|(sum, entry)| *sum += entry);
        }
        let mut sum = vec![0; expected.len()];
        let mut summation = workspace.begin(&network, &parameters, &grid, &mut sum).unwrap();
        batches.iter().for_each(|batch| summation.add(&batch.batch()).unwrap());
        drop(summation);
        assert_eq!(sum, expected, "{clipping:?}");
        assert!(!whole_places(&workspace, 0).is_empty());
    }
}

/// Also where all squares vanish in f32, and where they overflow.
#[test]
fn the_norm_of_whole_gradients_is_that_of_their_entries_however_small_or_large() {
    let network = network(&[8], 8);
    let parameters = drawn_parameters(&network, 3, 0.5);
    let batch = OwnedBatch::draw(9, 8, &[40], 1.0).with_draws(&network, 1);
    for size in [1e-38, 1e-30, 1e-20, 1e-12, 1.0, 1e12, 1e20, 1e30] {
        let mut workspace = SumWorkspace::new();
        let SumWorkspace { factors, whole, .. } = &mut workspace;
        network.backward(&parameters, &batch.batch(), factors).unwrap();
        let outputs: BTreeSet<Slot> = factors.taps().iter().map(Tap::output).collect();
        for output in outputs {
            factors.gradients_mut(output).iter_mut().for_each(|entry| *entry *= size);
        }
        let taps = WholeTaps::of(factors, 0);
        let mut expected = 0.0;
        for (linear, tap) in factors.taps().iter().enumerate().filter(|(linear, _)| taps.has(*linear)) {
            let (input, output) = (tap.input().unwrap(), tap.output());
            let (inputs, outputs) = (factors.width(input), factors.width(output));
            let (a, g) = (values(factors, input, 0), gradients(factors, output, 0));
            for at in 0..outputs {
                let entry = |input: Option<usize>| -> f64 {
                    let of_row = |row: usize| input.map_or(1.0, |input| f64::from(a[row * inputs + input]));
                    (0..40).map(|row| f64::from(g[row * outputs + at]) * of_row(row)).sum()
                };
                let squares = (0..inputs).map(Some).chain([None]).map(|input| entry(input).powi(2));
                expected += squares.sum::<f64>();
            }
            assert!(linear < 2);
        }
        let got = whole.make(factors, 0, taps);
        // Entries near the end of f32's range have few digits.
        let within = if size < 1e-35 { 1e-3 } else { 5e-5 };
        assert!(
            expected > 0.0 && (got - expected).abs() < within * expected,
            "{size:e}: {got} for {expected}"
        );
    }
}

/// Inputs from where they vanish to where they overflow, at clip norms as far from 1 as they can be.
#[test]
fn customers_with_whole_gradients_stay_within_the_sensitivity_whatever_their_rows() {
    let shape = DataShape::from(8);
    let network = network(&[8], shape.clone());
    let mut workspace = SumWorkspace::new();
    let mut seen = BTreeSet::new();
    for size in (-44..=38).step_by(2) {
        let parameters = drawn_parameters(&network, 3, 0.5);
        let batch = OwnedBatch::draw(9, shape.clone(), &[40], 10f32.powi(size)).with_draws(&network, 1);
        for clip in [1e-6, 1e-3, 1.0, 1e3, 1e6] {
            for clipping in [Clipping::Fixed, Clipping::Automatic, Clipping::Quantile] {
                let grid = grid(clip).with_clipping(clipping);
                let mut sum = vec![0; network.parameter_count() + clipping.counts()];
                clipped_sum(&network, &parameters, &batch.batch(), &grid, &mut workspace, &mut sum).unwrap();
                let squares = squared(&sum.iter().map(|&entry| i128::from(entry)).collect::<Vec<_>>());
                assert!(squares <= LIMIT, "{size} {clip} {clipping:?}: {squares}");
                assert!(!whole_places(&workspace, 0).is_empty());
                seen.insert(squares > LIMIT / 2);
            }
        }
    }
    assert_eq!(seen.len(), 2, "some are clipped and some are small");
}

/// The float norm that the clip factor is made of, against the norm of the customer's gradient in f64, with
/// activations as they are and not rounded.
#[test]
fn norms_from_factors_equal_those_of_batch_of_one_gradients_to_1e_5() {
    for (spec, shape) in reference::zoo() {
        let network = Network::new(&spec, shape.clone()).unwrap();
        let parameters = drawn_parameters(&network, 21, 0.4);
        let widened: Vec<f64> = parameters.iter().map(|&parameter| f64::from(parameter)).collect();
        let batch = OwnedBatch::draw(22, shape, &[1, 2, 9, 1, 30], 1.0).with_draws(&network, 23);
        let mut workspace = SumWorkspace::new();
        let SumWorkspace { factors, scratch, whole, .. } = &mut workspace;
        network.backward(&parameters, &batch.batch(), factors).unwrap();
        let customers = 0..batch.customers();
        let made: Vec<f64> =
            customers.clone().map(|at| whole.make(factors, at, WholeTaps::of(factors, at))).collect();
        let inputs: BTreeSet<Slot> = factors.taps().iter().filter_map(Tap::input).collect();
        for input in inputs {
            factors.values_mut(input).iter_mut().for_each(|entry| *entry *= ACTIVATION_STEPS);
        }
        for customer in customers {
            let (_, exact) = gradient(&network, &widened, &batch.only(&network, |other| other == customer));
            let exact = norm(&exact);
            for (taps, made) in
                [(WholeTaps::default(), 0.0), (WholeTaps::of(factors, customer), made[customer])]
            {
                scratch.measure_inputs::<f64>(factors, customer, taps);
                let squared: f64 = scratch.squared_norm(factors, customer, taps);
                let got = (squared / f64::from(ACTIVATION_STEPS).powi(2) + made).sqrt();
                assert!((got - exact).abs() <= 1e-5 * exact, "{spec:?}: {got} for {exact}");
            }
        }
    }
}

#[test]
fn repeated_ids_of_a_customer_are_one_vector_before_clipping() {
    let shape = DataShape::from(InputShape { numbers: 0, vocabularies: vec![3], sequence: None });
    let network = network(&[], shape.clone());
    let batch = |ids: &[u32], labels: &[f32]| OwnedBatch {
        shape: shape.clone(),
        ids: ids.to_vec(),
        labels: labels.to_vec(),
        customer_starts: vec![0, ids.len() as u32],
        ..OwnedBatch::default()
    };
    let sum = |ids: &[u32], labels: &[f32]| sum_of(&network, &[0.0; 3], &batch(ids, labels), &grid(1.0));
    let half = SENSITIVITY as i64 / 2;
    // At zero a row's gradient is -1/2 for label 1 and 1/2 for label 0, a quarter each for a customer of two rows.
    assert_eq!(sum(&[1], &[1.0]), [0, -half, 0]);
    assert_eq!(sum(&[1, 1], &[1.0, 1.0]), [0, -half, 0]);
    assert_eq!(sum(&[2, 0], &[1.0, 0.0]), [half / 2, 0, -half / 2]);
    assert_eq!(sum(&[1, 1], &[1.0, 0.0]), [0, 0, 0]);
    // Clipped at 1/4: one vector of norm 1/2 is halved, two of 1/4 at different ids are divided by the root of 2.
    let sum = |ids: &[u32]| sum_of(&network, &[0.0; 3], &batch(ids, &[1.0, 1.0]), &grid(0.25));
    let share = |entry: i64| entry.abs() as f64 / SENSITIVITY as f64;
    assert!((share(sum(&[1, 1])[1]) - 1.0).abs() < 2e-3);
    assert!((share(sum(&[1, 2])[2]) - 0.5f64.sqrt()).abs() < 2e-3);
}

#[test]
#[should_panic(expected = "3 parameters in no tap")]
fn a_parameter_that_is_in_no_tap_is_not_summed() {
    let network = network(&[4], 3);
    let batch = OwnedBatch::draw(2, 3, &[1], 1.0);
    let mut workspace = SumWorkspace::new();
    let mut sum = vec![0; network.parameter_count()];
    let parameters = network.initial_parameters([0; 32]);
    clipped_sum(&network, &parameters, &batch.batch(), &grid(1.0), &mut workspace, &mut sum).unwrap();
    let SumWorkspace { factors, forms, sums, .. } = &mut workspace;
    sums.add_taps(factors, forms, &mut vec![0; network.parameter_count() + 3]);
}

/// Rows of numbers alone.
fn numbers(width: usize, rows: &[f32], labels: &[f32], customer_starts: &[u32]) -> OwnedBatch {
    OwnedBatch {
        shape: width.into(),
        rows: rows.to_vec(),
        labels: labels.to_vec(),
        customer_starts: customer_starts.to_vec(),
        ..OwnedBatch::default()
    }
}

/// Against gradients in f64: `C g / (|g| + 0.01)`, whether the norm is far above, near or far below the clip norm. The
/// margin and the rounding of factors are all that is between.
#[test]
fn automatic_clipping_scales_by_the_clip_norm_over_the_norm_and_gamma() {
    for (hidden, inputs, size) in [(&[][..], 20, 1.7), (&[32], 20, 1.7), (&[], 3, 1e-2)] {
        let network = network(hidden, inputs);
        let parameters = drawn_parameters(&network, 11, 0.3);
        let widened: Vec<f64> = parameters.iter().map(|&parameter| f64::from(parameter)).collect();
        let batch = OwnedBatch::draw(12, inputs, &[1, 1, 5, 25, 2], size);
        for clip in [0.05, 1.0, 40.0] {
            let grid = grid(clip).with_clipping(Clipping::Automatic);
            for customer in 0..batch.customers() {
                let one = batch.only(&network, |other| other == customer);
                let (_, exact) = gradient(&network, &widened, &one);
                let factor = clip / (norm(&exact) + 0.01);
                let got = sum_of(&network, &parameters, &one, &grid);
                let error: Vec<f64> = got
                    .iter()
                    .zip(&exact)
                    .map(|(&got, exact)| got as f64 * grid.unit() - factor * exact)
                    .collect();
                let relative = norm(&error) / (factor * norm(&exact));
                assert!(relative < 5e-3, "{hidden:?} {clip} {customer}: {relative}");
            }
        }
    }
}

#[test]
fn automatic_clipping_leaves_a_gradient_of_zero_at_zero() {
    let network = network(&[], 2);
    let zero = numbers(2, &[3.0, -1.0, 3.0, -1.0], &[1.0, 0.0], &[0, 2]);
    let grid = grid(1.0).with_clipping(Clipping::Automatic);
    assert_eq!(sum_of(&network, &[0.0; 3], &zero, &grid), [0; 3]);
}

#[test]
fn gradients_below_the_clip_norm_are_not_scaled() {
    let network = network(&[], 3);
    let batch = numbers(3, &[1.0, 2.0, -0.5], &[1.0], &[0, 1]);
    // At zero parameters the output gradient is -1/2: norm 1/2 sqrt(1 + 4 + 1/4 + 1) = 1.25, below 2.
    let sum = sum_of(&network, &[0.0; 4], &batch, &grid(2.0));
    let gradient: Vec<f64> = sum.iter().map(|&entry| entry as f64 * grid(2.0).unit()).collect();
    assert_eq!(gradient, [-0.5, -1.0, 0.25, -0.5]);
}

#[test]
fn several_rows_of_a_customer_are_averaged_before_clipping() {
    let network = network(&[], 2);
    let clip = grid(1.0);
    let row = [3.0, -1.0];
    let once = numbers(2, &row, &[1.0], &[0, 1]);
    let often = numbers(2, &row.repeat(4), &[1.0; 4], &[0, 4]);
    let (once, often) =
        (sum_of(&network, &[0.0; 3], &once, &clip), sum_of(&network, &[0.0; 3], &often, &clip));
    for (once, often) in once.into_iter().zip(often) {
        assert!((once - often).abs() <= 4 * 3 * 1024, "{once} against {often}");
    }
    // Opposite rows cancel before the norm is taken, not after.
    let both = numbers(2, &row.repeat(2), &[1.0, 0.0], &[0, 2]);
    assert_eq!(sum_of(&network, &[0.0; 3], &both, &clip), [0; 3]);
}

#[test]
fn inputs_that_are_not_finite_are_refused_naming_the_row_and_leave_the_sum_alone() {
    let network = network(&[4], 3);
    let parameters = network.initial_parameters([0; 32]);
    for bad in [f32::NAN, f32::INFINITY] {
        let mut batch = OwnedBatch::draw(2, 3, &[2, 3], 1.0);
        batch.rows[3 * 3 + 2] = bad;
        let mut sum = vec![7; network.parameter_count()];
        let refusal = clipped_sum(
            &network,
            &parameters,
            &batch.batch(),
            &grid(1.0),
            &mut SumWorkspace::new(),
            &mut sum,
        );
        assert_eq!(refusal.unwrap_err().to_string(), "input row 3 is not finite");
        assert!(sum.iter().all(|&entry| entry == 7));
    }
}

#[test]
fn a_customer_whose_gradient_overflows_counts_as_zero_and_spoils_nobody_else() {
    let network = network(&[4, 3], 2);
    let mut parameters = vec![1e30; network.parameter_count()];
    parameters[0] = -1e30;
    let mut batch = OwnedBatch::draw(3, 2, &[1, 2, 1], 0.0);
    batch.rows[2..6].copy_from_slice(&[1e30, 1e30, -3e38, 2e38]);
    let others = batch.only(&network, |customer| customer != 1);
    assert_eq!(
        sum_of(&network, &parameters, &batch, &grid(1.0)),
        sum_of(&network, &parameters, &others, &grid(1.0))
    );
}

#[test]
fn a_customer_that_no_rounding_fits_counts_as_zero() {
    // Saturated activations of 65536 inputs: norm 2^23 a unit of output gradient. With 2 rows whose output gradients
    // cancel but for less than a unit, nothing but zero may fit; whatever comes out, it is within the sensitivity.
    let inputs = 65_536;
    let network = network(&[], inputs);
    let mut batch = OwnedBatch::draw(4, inputs, &[2, 1, 3], 0.0);
    batch.rows.fill(1e6);
    batch.labels = vec![1.0, 1.0, 0.0, 1.0, 0.0, 1.0];
    let parameters = vec![0.0; network.parameter_count()];
    for clip in [1e-6, 1.0, 37.0, 1e6] {
        for customer in 0..3 {
            let sum =
                sum_of(&network, &parameters, &batch.only(&network, |other| other == customer), &grid(clip));
            let sum: Vec<i128> = sum.into_iter().map(i128::from).collect();
            assert!(squared(&sum) <= LIMIT);
        }
    }
}

#[test]
fn a_batch_of_nobody_adds_nothing_and_a_wrong_sum_is_refused() {
    let network = network(&[3], 2);
    let parameters = network.initial_parameters([0; 32]);
    let nobody = Batch { customer_starts: &[0], ..Batch::default() };
    let mut sum = vec![5; network.parameter_count()];
    let mut workspace = SumWorkspace::new();
    clipped_sum(&network, &parameters, &nobody, &grid(1.0), &mut workspace, &mut sum).unwrap();
    assert!(sum.iter().all(|&entry| entry == 5));
    assert!(clipped_sum(&network, &parameters, &nobody, &grid(1.0), &mut workspace, &mut sum[1..]).is_err());
}

#[test]
fn a_workspace_serves_networks_and_batches_of_any_size_in_turn() {
    let mut workspace = SumWorkspace::new();
    for (hidden, inputs, customers) in [(&[9, 4][..], 8, 40), (&[], 3, 2), (&[2], 30, 7)] {
        let network = network(hidden, inputs);
        let parameters = drawn_parameters(&network, 5, 0.5);
        let batch = OwnedBatch::draw(6, inputs, &vec![2; customers], 1.0);
        let mut sum = vec![0; network.parameter_count()];
        clipped_sum(&network, &parameters, &batch.batch(), &grid(1.0), &mut workspace, &mut sum).unwrap();
        assert_eq!(sum, sum_of(&network, &parameters, &batch, &grid(1.0)));
    }
}

#[test]
fn the_grid_states_its_unit_and_sensitivity() {
    assert_eq!(grid(2.0).sensitivity(), 1 << 24);
    assert_eq!(grid(2.0).unit() * grid(2.0).sensitivity() as f64, 2.0);
    assert_eq!(grid(2.0).clip().value(), 2.0);
}

/// Half of the customers have norms of 1/2 and half of 2: a clip norm between counts the half, one below nobody, one above
/// all; those within it are not scaled, those above it to what the count leaves of the norm.
#[test]
fn clipping_by_quantile_counts_the_customers_within_the_norm_in_the_same_sum() {
    let network = network(&[], 1);
    // At zero the output gradient is 1/2: norm 1/2 |(x, 1)|.
    let inputs: Vec<f32> = (0..10).map(|at| if at % 2 == 0 { 0.0 } else { 15f32.sqrt() }).collect();
    let starts: Vec<u32> = (0..=10).collect();
    let batch = numbers(1, &inputs, &[0.0; 10], &starts);
    for (clip, within) in [(0.1, 0), (1.0, 5), (3.0, 10)] {
        let grid = grid(clip).with_clipping(Clipping::Quantile);
        let sum = sum_of(&network, &[0.0; 2], &batch, &grid);
        assert_eq!(sum[2], COUNT * (2 * within - 10), "{clip}");
        let bias = sum[1] as f64 * grid.unit();
        let small = 0.5f64.min(clip * (15.0f64 / 16.0).sqrt());
        let large = 2.0f64.min(clip * (15.0f64 / 16.0).sqrt()) / 4.0;
        assert!((bias - 5.0 * (small + large)).abs() < 5e-3 * bias, "{clip}: {bias}");
    }
}

#[test]
fn another_clip_norm_changes_the_unit_and_not_what_is_recorded() {
    let grid = grid(0.5);
    let moved = grid.with_clip(ClipNorm::new(2.0).unwrap());
    assert_eq!((moved.unit(), moved.recorded_clip()), (4.0 * grid.unit(), grid.clip()));
    assert_eq!(moved.sensitivity(), grid.sensitivity());
}
