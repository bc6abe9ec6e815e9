//! The private step against the plain one, in one run: customers a second of a 64-128-64-1 perceptron and of a wide and
//! deep model, batch 256, and of models of sequences, batch 64.
//!
//! `cargo bench -p weighhouse-shared --bench clipped_sum`; one thread each.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use weighhouse_shared::{
    model::{Batch, ModelSpec, Network, Rows, Workspace},
    privacy::{
        ClipNorm,
        grid::{Grid, SumWorkspace, clipped_sum},
    },
    schema::{InputShape, SequenceShape},
};

const CUSTOMERS: usize = 256;
const SEQUENCE_CUSTOMERS: usize = 64;
const STEPS: usize = 30;

fn steps(criterion: &mut Criterion) {
    let mlp = Network::new(
        &ModelSpec::Mlp { hidden: vec![128, 64], dropout: 0.0, activation: Default::default() },
        64,
    )
    .unwrap();
    let shape = InputShape { numbers: 32, vocabularies: vec![101; 8], sequence: None };
    let spec = ModelSpec::WideAndDeep { hidden: vec![128, 64], embedding_dim: 8 };
    let wide_and_deep = Network::new(&spec, shape).unwrap();
    for (name, network) in [
        ("mlp 64-128-64-1", &mlp),
        ("wide and deep, 32 numbers, 8 columns of 101 ids, 128-64-1", &wide_and_deep),
    ] {
        for rows in [1, 5] {
            let name = format!("{name}, 256 customers of {rows} rows");
            compare(criterion, &name, network, [CUSTOMERS, rows]);
        }
    }
    let lstm = ModelSpec::Lstm { hidden: vec![128, 64], dropout: 0.0, embedding_dim: 32, negatives: 1 };
    let transformer = ModelSpec::Transformer {
        layers: 2,
        width: 64,
        heads: 4,
        feed_forward: 256,
        dropout: 0.0,
        negatives: 1,
    };
    for (name, spec) in [("lstm 32-128-64-1", lstm), ("transformer of 2 layers, width 64", transformer)] {
        let sequence = Some(SequenceShape { length: STEPS, numbers: 0, vocabularies: vec![2000] });
        let network = Network::new(&spec, InputShape { sequence, ..InputShape::default() }).unwrap();
        let name = format!("{name}, 2000 ids, 64 customers of {STEPS} steps");
        compare(criterion, &name, &network, [SEQUENCE_CUSTOMERS, 1]);
    }
}

fn compare(criterion: &mut Criterion, name: &str, network: &Network, [customers, rows_each]: [usize; 2]) {
    let parameters = network.initial_parameters([1; 32]);
    let grid = Grid::new(ClipNorm::new(1.0).unwrap());
    let count = customers * rows_each;
    let InputShape { numbers, vocabularies, sequence } = network.inputs();
    let inputs: Vec<f32> = (0..count * numbers).map(|i| (i as f32 * 0.37).sin() * 1.7).collect();
    let columns = vocabularies.len();
    let ids: Vec<u32> = (0..count * columns).map(|i| (i * 37 % vocabularies[i % columns]) as u32).collect();
    let step_ids: Vec<u32> =
        sequence.iter().flat_map(|sequence| any_ids(&sequence.vocabularies, count)).collect();
    let step_starts: Vec<u32> =
        sequence.iter().flat_map(|_| (0..=count).map(|row| (row * STEPS) as u32)).collect();
    let labels: Vec<f32> = (0..count).map(|i| (i % 3 == 0).into()).collect();
    let customer_starts: Vec<u32> = (0..=customers).map(|i| (i * rows_each) as u32).collect();
    let rows = Rows {
        numbers: &inputs,
        ids: &ids,
        step_starts: &step_starts,
        step_ids: &step_ids,
        ..Rows::default()
    };
    let batch = Batch { rows, labels: &labels, customer_starts: &customer_starts, draws: &[] };

    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements(customers as u64));
    group.bench_function("plain", |bencher| {
        let (mut workspace, mut gradient) = (Workspace::new(), Vec::new());
        bencher.iter(|| {
            network.backward(&parameters, &batch, &mut workspace).unwrap();
            network.mean_gradient(&mut workspace, &mut gradient);
            black_box(&gradient);
        });
    });
    group.bench_function("private", |bencher| {
        let (mut workspace, mut sum) = (SumWorkspace::new(), vec![0i64; network.parameter_count()]);
        bencher.iter(|| {
            sum.fill(0);
            clipped_sum(network, &parameters, &batch, &grid, &mut workspace, &mut sum).unwrap();
            black_box(&sum);
        });
    });
    group.finish();
}

/// Ids of so many rows' steps, the lower ones more often, as popular items are.
fn any_ids(vocabularies: &[usize], rows: usize) -> Vec<u32> {
    let id = |i: usize| {
        ((i as f64 * 0.618_034).fract().powi(3) * vocabularies[i % vocabularies.len()] as f64) as u32
    };
    (0..rows * STEPS * vocabularies.len()).map(id).collect()
}

criterion_group!(benches, steps);
criterion_main!(benches);
