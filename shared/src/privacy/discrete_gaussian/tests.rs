//! The law of the sampler, against its formula, against a plain sampler and against OpenDP's.
//!
//! Every statistical test states its alpha, the probability of failing where the sampler is right. Seeds are
//! fixed, so a test that passes goes on passing; OpenDP's sampler alone takes the system's randomness.

mod plain;

use super::*;
use opendp::traits::samplers::sample_discrete_gaussian;

const SIGMAS: [f64; 5] = [1.0, 3.0, 64.0, 1000.0, 65536.0];

/// The standard normal quantile at `1 - 1e-6`, and at `1 - 5e-7` for two sides.
const QUANTILE: f64 = 4.7534;
const QUANTILE_OF_TWO_SIDES: f64 = 4.8916;

/// As many draws as take a second or two without optimisation, or eight times as many with it.
fn draws(unoptimised: usize) -> usize {
    if cfg!(debug_assertions) { unoptimised } else { 8 * unoptimised }
}

fn samples(sigma: f64, count: usize, seed: u64) -> Vec<i64> {
    let noise = DiscreteGaussian::new(sigma).unwrap();
    let mut generator = Generator::from_seed(seed);
    (0..count).map(|_| noise.sample(&mut generator)).collect()
}

/// `sum of f(x) w(x)` over the integers of `from..to`, the weights' sum over all integers being one.
///
/// From sigma 2048 on integers are taken in runs of at most sigma / 1024, by the weight of the run's middle: a
/// relative error below 1e-6, nothing beside the deviation of any count tested here.
fn expectation(sigma: f64, from: i64, to: i64, f: impl Fn(f64) -> f64) -> f64 {
    let end = (9.5 * sigma) as i64 + 1;
    let run = 2f64.powf((sigma / 1024.0).log2().floor().max(0.0));
    let normaliser = match sigma {
        // By Poisson's summation formula the sum over all integers is this to within exp(-2 pi^2 sigma^2).
        2.0.. => sigma * (2.0 * std::f64::consts::PI).sqrt(),
        _ => (-40..=40).map(|x| (-0.5 * (f64::from(x) / sigma).powi(2)).exp()).sum(),
    };
    let (from, to) = (from.max(-end), to.min(end));
    let mut sum = 0.0;
    let mut x = from as f64;
    while x < to as f64 {
        let step = run.min(to as f64 - x);
        let middle = x + (step - 1.0) / 2.0;
        sum += step * f(middle) * (-0.5 * (middle / sigma).powi(2)).exp();
        x += step;
    }
    sum / normaliser
}

/// Cuts of the integers into cells of at least `least` probability: cell i holds `cuts[i - 1] <= x < cuts[i]`.
fn cuts(sigma: f64, least: f64) -> Vec<(i64, f64)> {
    let width = ((sigma / 12.0) as i64).max(1);
    let mut cells = Vec::new();
    let (mut from, mut to, mut probability) = (i64::MIN, -(6.0 * sigma) as i64, 0.0);
    let mut left = 1.0;
    while left - probability >= least && to < (7.0 * sigma) as i64 {
        probability += expectation(sigma, from.max(to - width), to, |_| 1.0);
        if probability >= least && left - probability >= least {
            cells.push((to, probability));
            left -= probability;
            (from, probability) = (to, 0.0);
        }
        to += width;
    }
    cells.push((i64::MAX, left));
    cells
}

fn counts(samples: &[i64], cells: &[(i64, f64)]) -> Vec<f64> {
    let mut counts = vec![0.0; cells.len()];
    for sample in samples {
        counts[cells.partition_point(|(end, _)| end <= sample).min(cells.len() - 1)] += 1.0;
    }
    counts
}

/// The chi-square quantile at `1 - 1e-6` (Wilson and Hilferty; within 1 % from 3 degrees of freedom).
fn critical(degrees: usize) -> f64 {
    let degrees = degrees as f64;
    let spread = 2.0 / (9.0 * degrees);
    degrees * (1.0 - spread + QUANTILE * spread.sqrt()).powi(3)
}

/// Fails if `samples` are not from the discrete Gaussian: chi-square, alpha 1e-6.
fn assert_law(sigma: f64, samples: &[i64], name: &str) {
    let cells = cuts(sigma, 12.0 / samples.len() as f64);
    let statistic: f64 = counts(samples, &cells)
        .into_iter()
        .zip(&cells)
        .map(|(count, (_, probability))| {
            let expected = probability * samples.len() as f64;
            (count - expected).powi(2) / expected
        })
        .sum();
    let critical = critical(cells.len() - 1);
    assert!(statistic < critical, "{name}, sigma {sigma}: {statistic} over {} cells", cells.len());
}

/// Fails if the two are not from one law: chi-square of homogeneity, alpha 1e-6.
fn assert_same_law(sigma: f64, ours: &[i64], theirs: &[i64], name: &str) {
    let cells = cuts(sigma, 24.0 / ours.len().min(theirs.len()) as f64);
    let (our_counts, their_counts) = (counts(ours, &cells), counts(theirs, &cells));
    let ratio = (theirs.len() as f64 / ours.len() as f64).sqrt();
    let statistic: f64 =
        our_counts.iter().zip(&their_counts).map(|(a, b)| (a * ratio - b / ratio).powi(2) / (a + b)).sum();
    let critical = critical(cells.len() - 1);
    assert!(statistic < critical, "{name}, sigma {sigma}: {statistic} over {} cells", cells.len());
}

/// As many as [`samples`], drawn side by side.
fn vector(sigma: f64, count: usize, seed: u64) -> Vec<i64> {
    let mut values = vec![0; count];
    DiscreteGaussian::new(sigma).unwrap().add_to(&mut values, &mut Generator::from_seed(seed));
    values
}

/// 2^27 and 2^30: the choice of an integer and that of a block share a word, but for few bits; 2^32 and beyond: they do not.
#[test]
fn samples_pass_chi_square_at_every_sigma_one_by_one_and_side_by_side() {
    let more = [0.5, 0.9, 99.7, 150.3, 2f64.powi(27), 2f64.powi(30), 2f64.powi(32), 2f64.powi(40)];
    for (seed, sigma) in (100..).zip(SIGMAS.into_iter().chain(more)) {
        assert_law(sigma, &samples(sigma, draws(100_000), seed), "sample");
        assert_law(sigma, &vector(sigma, draws(100_000), seed + 50), "add_to");
    }
}

/// Means of x, x^2, x^3 and x^4 within their deviations: alpha 1e-6 each, by the central limit theorem.
#[test]
fn moments_are_those_of_the_law() {
    for (seed, sigma) in (200..).zip(SIGMAS) {
        let samples = samples(sigma, draws(200_000), seed);
        for power in 1..=4 {
            let moment = |p: i32| expectation(sigma, i64::MIN, i64::MAX, |x| (x / sigma).powi(p));
            let count = samples.len() as f64;
            let mean = samples.iter().map(|&x| (x as f64 / sigma).powi(power)).sum::<f64>() / count;
            let expected = if power % 2 == 0 { moment(power) } else { 0.0 };
            let deviation = ((moment(2 * power) - expected * expected) / count).sqrt();
            assert!(
                (mean - expected).abs() < QUANTILE_OF_TWO_SIDES * deviation,
                "sigma {sigma}, power {power}: {mean} for {expected}, deviation {deviation}"
            );
        }
    }
}

/// Counts beyond 2, 3, 4 and 4.5 sigma, each side: two-sided Poisson probability, alpha 1e-6 each (Poisson
/// tails are above the binomial ones, so the test is a little lenient).
#[test]
fn tails_hold_their_share_of_samples() {
    for (seed, sigma) in (300..).zip(SIGMAS) {
        let samples = samples(sigma, draws(300_000), seed);
        for reach in [2.0, 3.0, 4.0, 4.5] {
            let edge = (reach * sigma) as i64 + 1;
            let probability = expectation(sigma, edge, i64::MAX, |_| 1.0);
            let expected = probability * samples.len() as f64;
            let above = samples.iter().filter(|&&x| x >= edge).count();
            let below = samples.iter().filter(|&&x| x <= -edge).count();
            for count in [above, below] {
                let chance = 2.0 * poisson_tail(expected, count);
                assert!(chance > 1e-6, "sigma {sigma}, beyond {reach}: {count}, expected {expected}");
            }
        }
    }
}

/// The smaller of the probabilities that a Poisson count is at most, and at least, `count`.
fn poisson_tail(mean: f64, count: usize) -> f64 {
    let mut logarithm = -mean;
    let (mut below, mut at) = (0.0, logarithm.exp());
    for k in 1..=count {
        below += at;
        logarithm += (mean / k as f64).ln();
        at = logarithm.exp();
    }
    (below + at).min(1.0 - below)
}

/// The slow path alone: every choice within a block is decided in integers, whatever the sure share and the
/// float estimate would have said. Chi-square, alpha 1e-6.
#[test]
fn samples_decided_only_in_integers_have_the_same_law() {
    for (seed, sigma) in (400..).zip(SIGMAS.into_iter().chain([0.5, 2f64.powi(40)])) {
        let noise = DiscreteGaussian::new(sigma).unwrap();
        let mut generator = Generator::from_seed(seed);
        let sample = |_| loop {
            let candidate = noise.candidate(&mut generator);
            let sample = if candidate.block >= noise.envelope.blocks() {
                noise.sample_tail(candidate.block, &mut generator)
            } else {
                let uniform = noise.first_digits(&candidate, generator.next_u64());
                noise.exactly_accepts(&candidate, uniform, &mut generator).then_some(candidate.sample)
            };
            if let Some(sample) = sample {
                break sample;
            }
        };
        let samples: Vec<i64> = (0..draws(3_000)).map(sample).collect();
        assert_law(sigma, &samples, "integers only");
    }
}

/// Blocks that end at half a sigma leave 60 % of the law to the tails. Chi-square, alpha 1e-6.
#[test]
fn samples_mostly_from_tail_blocks_have_the_same_law() {
    for (seed, sigma) in (500..).zip(SIGMAS.into_iter().chain([0.5, 2f64.powi(40)])) {
        let exact = Sigma::new(sigma);
        let noise = DiscreteGaussian::under(Envelope::reaching(&exact, 0.5), exact);
        let mut generator = Generator::from_seed(seed);
        let samples: Vec<i64> = (0..draws(2_000)).map(|_| noise.sample(&mut generator)).collect();
        let end = (noise.envelope.side << noise.envelope.width_bits) as i64;
        let in_tails = samples.iter().filter(|&&x| x >= end || x < -end).count();
        assert!(in_tails > samples.len() / 10, "sigma {sigma}: {in_tails} in tails");
        assert_law(sigma, &samples, "tails");
    }
}

/// Not a matter of chance: on each uniform, near the borders and anywhere, who answers answers alike.
#[test]
fn the_three_ways_to_decide_never_disagree() {
    let mut generator = Generator::from_seed(600);
    let (mut sure, mut undecided) = (0, 0);
    let more = [0.5, 777.7, 3e6, 2f64.powi(27), 2f64.powi(31), 2f64.powi(40)];
    for sigma in SIGMAS.into_iter().chain(more) {
        let noise = DiscreteGaussian::new(sigma).unwrap();
        for _ in 0..draws(100) {
            let mut candidate = noise.candidate(&mut generator);
            if candidate.block >= noise.envelope.blocks() {
                continue;
            }
            let block = candidate.block;
            assert_eq!(candidate.sure, noise.envelope.sure[block]);
            // The greatest digits that are surely accepted and their neighbours, with ones ever after.
            let share = u32::from(candidate.sure) << 16;
            let step = 1 << noise.offset_bits.max(16);
            for digits in [share.saturating_sub(2 * step), share.saturating_sub(step), share] {
                candidate.digits = digits;
                if noise.surely_accepts(&candidate) {
                    let greatest = u64::from(digits | (step - 1)) << 32 | u64::from(u32::MAX);
                    assert!(noise.exactly_accepts(&candidate, greatest, &mut generator), "{sigma} {block}");
                    sure += 1;
                }
            }
            let weight =
                noise.sigma.weight(candidate.sample.unsigned_abs()) * f64::from(noise.envelope.scale);
            let border = (weight / f64::from(noise.envelope.heights[block]) * 2f64.powi(64)) as u64;
            let near = [1 << 19, 1 << 22, (1 << 24) + 3, 1 << 26]
                .map(|distance| [border.saturating_sub(distance), border.saturating_add(distance)]);
            for uniform in near.into_iter().flatten().chain([border, generator.next_u64()]) {
                let exact = noise.exactly_accepts(&candidate, uniform, &mut generator);
                match estimate_accepts(noise.lead(&candidate, uniform)) {
                    Some(estimate) => assert_eq!(estimate, exact, "{sigma} {block} {uniform:#x}"),
                    None => undecided += 1,
                }
            }
        }
    }
    assert!(sure > 1000 && undecided > 1000, "{sure} sure, {undecided} undecided");
}

/// The bits of a word that chose the integer of a block are no digits of the uniform: nothing may turn on them,
/// or the integer and its acceptance would not be independent.
#[test]
fn bits_that_chose_the_integer_never_decide_its_acceptance() {
    let mut unsure_by_them = 0;
    for sigma in [1000.0, 3e6, 2f64.powi(25), 2f64.powi(27), 2f64.powi(30)] {
        let noise = DiscreteGaussian::new(sigma).unwrap();
        let mask = (1u32 << noise.offset_bits) - 1;
        assert!(mask > 0);
        for block in 0..noise.envelope.blocks() {
            let sure = noise.envelope.sure[block];
            let at = |digits| Candidate { block, sure, sample: 0, digits };
            let share = u32::from(sure) << 16;
            for digits in [
                share & !mask,
                (share & !mask).wrapping_sub(mask + 1),
                (share & !mask).wrapping_add(mask + 1),
            ] {
                let decided = [digits, digits | mask].map(|digits| noise.surely_accepts(&at(digits)));
                assert_eq!(decided[0], decided[1], "sigma {sigma}, block {block}");
                unsure_by_them += u32::from(digits < share && !decided[0]);
                let uniform = [digits, digits | mask]
                    .map(|digits| noise.first_digits(&at(digits), 0x0123_4567_89ab_cdef));
                assert_eq!(uniform[0], uniform[1], "sigma {sigma}, block {block}");
                assert_eq!((uniform[0] >> 32) as u32 & !mask, digits & !mask, "sigma {sigma}, block {block}");
            }
        }
    }
    assert!(unsure_by_them > 100, "{unsure_by_them}");
}

#[test]
fn the_part_of_the_table_that_no_block_fills_is_no_integer() {
    for sigma in SIGMAS {
        let noise = DiscreteGaussian::new(sigma).unwrap();
        let again = 2 * noise.envelope.side as usize + 2;
        assert_eq!(noise.sample_tail(again, &mut Generator::from_seed(660)), None);
    }
}

/// Also where the tails begin beyond what a weight is proved for.
#[test]
fn what_is_no_block_is_estimated_without_its_magnitude() {
    for sigma in [0.5, 0.61, 0.81, 3.0, 2f64.powi(40)] {
        let noise = DiscreteGaussian::new(sigma).unwrap();
        let Envelope { side, width_bits, scale, .. } = noise.envelope;
        for past in 0..3 {
            let (block, sample) =
                (noise.envelope.blocks() + past, ((side as i64 + past as i64 + 1) << width_bits) - 1);
            let candidate = Candidate { block, sure: 0, sample, digits: 0 };
            assert_eq!(noise.lead(&candidate, 0), f64::from(scale), "sigma {sigma}, block {block}");
        }
    }
}

/// At sigma 2^40 noise is 0 once in 10^12 draws; of 100,000 some 800 are settled, 16 at a time.
#[test]
fn every_value_of_a_vector_of_any_length_gets_noise() {
    let noise = DiscreteGaussian::new(2f64.powi(40)).unwrap();
    let mut generator = Generator::from_seed(670);
    for length in (0..=2 * BATCH + 1).chain([100_000]) {
        let mut values = vec![0; length];
        noise.add_to(&mut values, &mut generator);
        assert!(values.iter().all(|&value| value != 0), "{length}");
    }
}

/// Alpha 1e-6 a sigma.
#[test]
fn a_plain_sampler_gives_the_same_law() {
    for (seed, sigma) in (700..).zip([1, 3, 64, 1000]) {
        let mut generator = Generator::from_seed(seed);
        let plain: Vec<i64> =
            (0..draws(6_000)).map(|_| plain::discrete_gaussian(sigma, &mut generator)).collect();
        let sigma = f64::from(sigma);
        assert_law(sigma, &plain, "plain");
        assert_same_law(sigma, &samples(sigma, draws(50_000), seed + 50), &plain, "plain");
    }
}

/// Alpha 1e-6 a sigma; OpenDP's side is not seeded.
#[test]
fn opendp_gives_the_same_law() {
    for (seed, sigma) in (800..).zip(SIGMAS) {
        let theirs: Vec<i64> = (0..12_000)
            .map(|_| {
                let scale = sigma.try_into().expect("a finite sigma is a ratio");
                let sample = sample_discrete_gaussian(scale).expect("the system gives randomness");
                sample.try_into().expect("within i64")
            })
            .collect();
        assert_same_law(sigma, &samples(sigma, draws(50_000), seed), &theirs, "opendp");
    }
}

#[test]
fn noise_and_its_support_do_not_depend_on_the_data() {
    const COUNT: usize = 20_000;
    for sigma in [0.5, 3.0, 65536.0] {
        let noise = DiscreteGaussian::new(sigma).unwrap();
        let added_to = |data: &dyn Fn(usize) -> i64| {
            let mut values: Vec<i64> = (0..COUNT).map(data).collect();
            let mut generator = Generator::from_seed(900);
            noise.add_to(&mut values, &mut generator);
            let noise: Vec<i64> = values.iter().enumerate().map(|(at, value)| value - data(at)).collect();
            (noise, generator.next_u64())
        };
        let (noise, next) = added_to(&|_| 0);
        for data in [
            &(|at: usize| at as i64 * 12_345_678_901) as &dyn Fn(usize) -> i64,
            &|_: usize| 1 << 62,
            &|at: usize| if at.is_multiple_of(2) { -(1 << 62) } else { 3 },
        ] {
            assert_eq!(added_to(data), (noise.clone(), next), "same noise, same number of draws");
        }
        assert!(noise.iter().any(|x| x % 2 == 0) && noise.iter().any(|x| x % 2 != 0));
    }
}

#[test]
fn sums_beyond_the_ends_of_i64_stop_there() {
    let noise = DiscreteGaussian::new(2f64.powi(40)).unwrap();
    let mut generator = Generator::from_seed(901);
    let mut values: Vec<i64> = [i64::MAX, i64::MIN].repeat(50);
    noise.add_to(&mut values, &mut generator);
    assert!(values.iter().step_by(2).all(|&value| value > 0));
    assert!(values.iter().skip(1).step_by(2).all(|&value| value < 0));
    assert!(values.contains(&i64::MAX) && values.contains(&i64::MIN));
}

#[test]
fn sigma_outside_its_range_is_refused() {
    for bad in [0.0, -1.0, 0.499_999, 1.099_511_627_777e12, f64::NAN, f64::INFINITY] {
        let refused = DiscreteGaussian::new(bad).unwrap_err();
        assert!(refused.to_string().starts_with("sigma of a discrete Gaussian must be from 0.5 to 2^40"));
    }
    assert_eq!(DiscreteGaussian::new(0.5).unwrap().sigma(), 0.5);
    assert_eq!(DiscreteGaussian::new(2f64.powi(40)).unwrap().sigma(), 2f64.powi(40));
}

#[test]
fn debug_shows_only_sigma() {
    let shown = format!("{:?}", DiscreteGaussian::new(2.5).unwrap());
    assert_eq!(shown, "DiscreteGaussian { sigma: 2.5, .. }");
}
