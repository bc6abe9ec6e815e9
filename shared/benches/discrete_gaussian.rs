//! Nanoseconds a sample: our exact discrete Gaussian, OpenDP's, and a rounded float normal (ziggurat), all in
//! one run. Ours and the float normal are driven by the same generator and fill the same vector, so that the
//! difference between them is what exactness costs.
//!
//! `cargo bench -p weighhouse-shared --bench discrete_gaussian`

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use opendp::traits::samplers::sample_discrete_gaussian;
use rand_distr::{Distribution, Normal};
use weighhouse_shared::privacy::{DiscreteGaussian, Generator};

const VECTOR: usize = 16_384;
const SIGMAS: [f64; 6] = [1.0, 3.0, 64.0, 1000.0, 65536.0, 1_099_511_627_776.0];

/// The generator as `rand` wants it.
struct Words(Generator);

impl rand::RngCore for Words {
    fn next_u32(&mut self) -> u32 {
        self.0.next_u64() as u32
    }
    fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }
    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        self.0.fill(bytes);
    }
}

fn samples(criterion: &mut Criterion) {
    let mut generator = Generator::from_system().expect("the system gives a key");
    let mut values = vec![0i64; VECTOR];

    let mut group = criterion.benchmark_group("words");
    group.throughput(Throughput::Elements(VECTOR as u64));
    group.bench_function("next_u64", |bencher| {
        bencher.iter(|| (0..VECTOR).fold(0, |sum: u64, _| sum ^ generator.next_u64()))
    });
    group.finish();

    let mut group = criterion.benchmark_group("sample");
    for sigma in SIGMAS {
        group.throughput(Throughput::Elements(VECTOR as u64));
        let noise = DiscreteGaussian::new(sigma).expect("in range");
        group.bench_function(format!("exact/{sigma}"), |bencher| {
            bencher.iter(|| {
                values.fill(0);
                noise.add_to(black_box(&mut values), &mut generator);
            })
        });

        let mut words = Words(Generator::from_system().expect("the system gives a key"));
        let normal = Normal::new(0.0, sigma).expect("finite");
        group.bench_function(format!("float_normal/{sigma}"), |bencher| {
            bencher.iter(|| {
                values.fill(0);
                for value in black_box(&mut values) {
                    *value += normal.sample(&mut words).round() as i64;
                }
            })
        });

        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("opendp/{sigma}"), |bencher| {
            bencher.iter(|| sample_discrete_gaussian(sigma.try_into().expect("finite")))
        });
    }
    group.finish();
}

fn setup(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("setup");
    for sigma in SIGMAS {
        group.bench_function(sigma.to_string(), |bencher| {
            bencher.iter(|| DiscreteGaussian::new(black_box(sigma)))
        });
    }
    group.finish();
}

criterion_group!(benches, samples, setup);
criterion_main!(benches);
