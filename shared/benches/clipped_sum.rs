//! The private step against the plain one, in one run: customers a second of a 64-128-64-1 perceptron and of a wide and
//! deep model, batch 256.
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
    schema::InputShape,
};

const CUSTOMERS: usize = 256;

fn steps(criterion: &mut Criterion) {
    let mlp = Network::new(&ModelSpec::Mlp { hidden: vec![128, 64], dropout: 0.0 }, 64).unwrap();
    let shape = InputShape { numbers: 32, vocabularies: vec![101; 8], sequence: None };
    let spec = ModelSpec::WideAndDeep { hidden: vec![128, 64], embedding_dim: 8 };
    let wide_and_deep = Network::new(&spec, shape).unwrap();
    for (name, network) in [
        ("mlp 64-128-64-1", &mlp),
        ("wide and deep, 32 numbers, 8 columns of 101 ids, 128-64-1", &wide_and_deep),
    ] {
        for rows in [1, 5] {
            compare(criterion, &format!("{name}, 256 customers of {rows} rows"), network, rows);
        }
    }
}

fn compare(criterion: &mut Criterion, name: &str, network: &Network, rows: usize) {
    let parameters = network.initial_parameters([1; 32]);
    let grid = Grid::new(ClipNorm::new(1.0).unwrap());
    let count = CUSTOMERS * rows;
    let InputShape { numbers, vocabularies, .. } = network.inputs();
    let inputs: Vec<f32> = (0..count * numbers).map(|i| (i as f32 * 0.37).sin() * 1.7).collect();
    let columns = vocabularies.len();
    let ids: Vec<u32> = (0..count * columns).map(|i| (i * 37 % vocabularies[i % columns]) as u32).collect();
    let labels: Vec<f32> = (0..count).map(|i| (i % 3 == 0).into()).collect();
    let customer_starts: Vec<u32> = (0..=CUSTOMERS).map(|i| (i * rows) as u32).collect();
    let rows = Rows { numbers: &inputs, ids: &ids, ..Rows::default() };
    let batch = Batch { rows, labels: &labels, customer_starts: &customer_starts, draws: &[] };

    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements(CUSTOMERS as u64));
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

criterion_group!(benches, steps);
criterion_main!(benches);
