//! The accountant's price: the slowest published cells, and one more round of a running job.

use criterion::{Criterion, criterion_group, criterion_main};
use weighhouse_shared::privacy::accountant::{Composition, GaussianEvent, RenyiCurve, epsilon, noise_for};
use weighhouse_shared::privacy::{Delta, Epsilon, NoiseMultiplier, SamplingRate};

fn event(noise_multiplier: f64, sampling_rate: f64, steps: u32) -> GaussianEvent {
    GaussianEvent {
        noise_multiplier: NoiseMultiplier::new(noise_multiplier).expect("in range"),
        sampling_rate: SamplingRate::new(sampling_rate).expect("in range"),
        steps,
    }
}

fn accountant(criterion: &mut Criterion) {
    let delta = Delta::new(1e-5).expect("in range");
    let mut group = criterion.benchmark_group("accountant");
    group.sample_size(10);
    for (z, q, steps) in [(0.5, 0.001, 100_000), (0.8, 0.001, 10_000), (2.0, 0.01, 10_000), (5.0, 1.0, 1000)]
    {
        let cell = event(z, q, steps);
        group.bench_function(format!("epsilon z {z} q {q} T {steps}"), |bencher| {
            bencher.iter(|| epsilon(&[cell], delta));
        });
    }
    for (z, q, steps) in [(1.0, 0.01, 1000), (0.8, 0.001, 10_000)] {
        let mut running = Composition::planned(&[event(z, q, steps)], delta);
        running.add(&event(z, q, steps / 2));
        group.bench_function(format!("one more round z {z} q {q} of {steps}"), |bencher| {
            bencher.iter(|| {
                running.add(&event(z, q, 1));
                running.epsilon(delta)
            });
        });
    }
    let round = RenyiCurve::of(&event(1.0, 0.01, 1));
    let mut running = RenyiCurve::zero();
    group.bench_function("one more round, Renyi", |bencher| {
        bencher.iter(|| {
            running.add(&round);
            running.epsilon(delta)
        });
    });
    let (target, rate) = (Epsilon::new(2.0).expect("in range"), SamplingRate::new(0.01).expect("in range"));
    group.bench_function("noise for epsilon 2, q 0.01, T 1000", |bencher| {
        bencher.iter(|| noise_for(target, delta, rate, 1000));
    });
    group.finish();
}

criterion_group!(benches, accountant);
criterion_main!(benches);
