//! The private step against the plain one, in one run: customers a second of a 64-128-64-1 perceptron, batch 256.
//!
//! `cargo bench -p weighhouse-shared --bench clipped_sum`; one thread each.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use weighhouse_shared::{
    model::{Batch, ModelSpec, Network, Workspace},
    privacy::{
        ClipNorm,
        grid::{Grid, SumWorkspace, clipped_sum},
    },
};

const CUSTOMERS: usize = 256;
const INPUTS: usize = 64;

fn steps(criterion: &mut Criterion) {
    let network = Network::new(&ModelSpec::Mlp { hidden: vec![128, 64] }, INPUTS).unwrap();
    let parameters = network.initial_parameters([1; 32]);
    let grid = Grid::new(ClipNorm::new(1.0).unwrap());
    for rows in [1, 5] {
        let inputs: Vec<f32> =
            (0..CUSTOMERS * rows * INPUTS).map(|i| (i as f32 * 0.37).sin() * 1.7).collect();
        let labels: Vec<f32> = (0..CUSTOMERS * rows).map(|i| (i % 3 == 0).into()).collect();
        let customer_starts: Vec<u32> = (0..=CUSTOMERS).map(|i| (i * rows) as u32).collect();
        let batch = Batch { rows: &inputs, labels: &labels, customer_starts: &customer_starts };

        let mut group = criterion.benchmark_group(format!("mlp 64-128-64-1, 256 customers of {rows} rows"));
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
                clipped_sum(&network, &parameters, &batch, &grid, &mut workspace, &mut sum).unwrap();
                black_box(&sum);
            });
        });
        group.finish();
    }
}

criterion_group!(benches, steps);
criterion_main!(benches);
