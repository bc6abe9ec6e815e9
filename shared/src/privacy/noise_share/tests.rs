use super::*;
use crate::privacy::{DiscreteGaussian, Generator};
use proptest::prelude::*;

fn terms(members: u32, honest_shares: u32, batch: f64, parameters: u64) -> SumTerms {
    SumTerms {
        members,
        honest_shares,
        batch,
        parameters,
        rounds: 100,
        noise_multiplier: NoiseMultiplier::new(5.0).unwrap(),
        delta: Delta::new(1e-5).unwrap(),
        clip_norm: ClipNorm::new(0.5).unwrap(),
    }
}

/// Probabilities of a discrete Gaussian at integers from minus to plus `reach`.
fn law(sigma: f64, reach: i32) -> Vec<f64> {
    let weights: Vec<f64> =
        (-reach..=reach).map(|x| (-f64::from(x * x) / (2.0 * sigma * sigma)).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / total).collect()
}

fn convolved(first: &[f64], second: &[f64]) -> Vec<f64> {
    let mut sum = vec![0.0; first.len() + second.len() - 1];
    for (at, one) in first.iter().enumerate() {
        for (place, other) in second.iter().enumerate() {
            sum[at + place] += one * other;
        }
    }
    sum
}

/// Exact up to f64: the law of a sum of shares by convolution, beside that of one discrete Gaussian. Of two shares the bound
/// is near enough to the truth for a forgotten constant to show.
#[test]
fn the_law_of_a_sum_of_shares_is_as_near_to_one_discrete_gaussian_as_the_theorem_says() {
    for (sigma, shares) in [(0.5, 2), (0.6, 2), (0.6, 5), (0.8, 3), (1.0, 4), (1.2, 8)] {
        let share = law(sigma, 40);
        let sum = (1..shares).fold(share.clone(), |sum, _| convolved(&sum, &share));
        let (reach, whole) = ((sum.len() / 2) as i32, sigma * f64::from(shares).sqrt());
        let one = law(whole, reach);
        let middle =
            (sum.len() / 2).saturating_sub((6.0 * whole) as usize)..=sum.len() / 2 + (6.0 * whole) as usize;
        let apart = middle.map(|at| (sum[at] / one[at]).ln().abs()).fold(0.0, f64::max);
        let bound = convolution_error(sigma, shares);
        assert!(apart <= bound + 1e-11, "{sigma} {shares}: {apart} is more than {bound}");
        assert!(shares > 2 || apart > bound / 10.0, "{sigma} {shares}: {apart} of {bound}");
    }
}

#[test]
fn what_the_law_of_the_sum_adds_to_epsilon_is_nothing_that_shows() {
    let encoding = SumEncoding::new(terms(1024, 1, 100.0, 1_000_000)).unwrap();
    assert_eq!(encoding.error_epsilon(), 0.0, "one share is its own sum");
    for (members, honest) in [(3, 2), (47, 25), (1024, 530)] {
        let encoding = SumEncoding::new(terms(members, honest, 100.0, 10_000)).unwrap();
        assert!(encoding.error_epsilon() < 1e-100, "{members}: {}", encoding.error_epsilon());
        assert!(encoding.share_sigma() > 100.0);
    }
}

#[test]
fn the_grid_is_as_fine_as_the_range_allows_and_what_cannot_fit_is_refused() {
    for (members, batch, parameters) in
        [(3, 1.0, 2), (47, 100.0, 60), (47, 1000.0, 10_000), (10, 100.0, 1_000_000), (1024, 100.0, 100_000)]
    {
        let encoding = SumEncoding::new(terms(members, members.div_ceil(2), batch, parameters)).unwrap();
        assert!(encoding.fits());
        let finer = SumEncoding {
            shift: encoding.shift.saturating_sub(1),
            limit: 2 * encoding.limit - 1,
            ..encoding
        };
        assert!(encoding.shift == 0 || !finer.fits(), "{members} {batch} {parameters}: {encoding:?}");
        let rounding = encoding.sensitivity() as f64 / (SENSITIVITY >> encoding.shift) as f64;
        assert!(rounding <= 1.0 + 1.0 / 48.0, "{members} {batch} {parameters}: {rounding}");
        assert!(encoding.limit as f64 * encoding.unit() >= 0.5 * batch * 0.5);
    }
    assert_eq!(SumEncoding::new(terms(1024, 500, 1e9, 10)), Err(SumEncodingError::TooCoarse));
    let noise_multiplier = NoiseMultiplier::new(1e6).unwrap();
    let loud = SumTerms { noise_multiplier, ..terms(1024, 1, 1e5, 1 << 30) };
    assert_eq!(SumEncoding::new(loud), Err(SumEncodingError::TooCoarse));
}

/// All sites at the end of the range, and the largest of 400 sums of noise: seed 8; by the bound one in a hundred thousand
/// million such tests would fail.
#[test]
fn a_sum_of_sites_at_the_end_of_their_range_does_not_wrap() {
    let encoding = SumEncoding::new(terms(47, 25, 1000.0, 200)).unwrap();
    let sampler = DiscreteGaussian::new(encoding.share_sigma()).unwrap();
    let mut generator = Generator::from_seed(8);
    for sign in [-1, 1] {
        let mut sum = vec![0i64; 200];
        for _ in 0..47 {
            let mut site = vec![sign * i64::MAX; 200];
            encoding.round_and_clamp(&mut site);
            sampler.add_to(&mut site, &mut generator);
            sum.iter_mut().zip(&site).for_each(|(sum, value)| *sum += value);
        }
        assert!(sum.iter().all(|sum| i32::try_from(*sum).is_ok()));
        assert!(sum.iter().all(|sum| sum.abs() > i64::from(i32::MAX) / 4), "the range is not used");
    }
}

/// The sum of the honest shares has the standard deviation that the contract claims, and so it has without any one of
/// the sites that are beyond them. 40,000 sums, seed 9; bounds at 5 standard errors (alpha below 1e-6).
#[test]
fn the_sum_of_honest_shares_has_the_claimed_noise_also_without_one_sites_contribution() {
    let (threshold, colluding) = (6, 2);
    let encoding = SumEncoding::new(terms(8, threshold - colluding, 50.0, 40)).unwrap();
    let sampler = DiscreteGaussian::new(encoding.share_sigma()).unwrap();
    let mut generator = Generator::from_seed(9);
    let claimed = 5.0 * encoding.sensitivity() as f64;
    let mut deviation = |shares: u32| {
        let (count, mut squares) = (40_000, 0.0);
        for _ in 0..count {
            let sum: i64 = (0..shares).map(|_| sampler.sample(&mut generator)).sum();
            squares += (sum as f64).powi(2);
        }
        (squares / f64::from(count)).sqrt() / claimed
    };
    let slack = 5.0 / 80_000f64.sqrt();
    let honest = deviation(threshold - colluding);
    assert!((honest - 1.0).abs() < slack, "{honest}");
    // One survivor more than need be, and its share taken out again by whoever knows it.
    assert!(deviation(threshold - colluding + 1) > 1.0 + slack);
    // What a site's share comes to alone is the guarantee that masks protect.
    let alone = deviation(1);
    assert!((alone / (encoding.local_multiplier() / 5.0) - 1.0).abs() < slack, "{alone}");
}

proptest! {
    /// One customer more, of any gradient within the clip norm, on any sum, in the range or beyond it.
    #[test]
    fn rounding_and_the_range_keep_the_sensitivity(
        start in proptest::collection::vec(-(1i64 << 40)..1 << 40, 12),
        gradient in proptest::collection::vec(-1.0f64..1.0, 12),
        batch in 1.0f64..1e5,
        members in 3u32..1024,
    ) {
        let encoding = SumEncoding::new(terms(members, members.div_ceil(2), batch, 12)).unwrap();
        let norm = gradient.iter().map(|value| value * value).sum::<f64>().sqrt().max(1e-9);
        let customer = gradient.iter().map(|value| (value / norm * SENSITIVITY as f64) as i64);
        let (mut without, mut with) = (start.clone(), start);
        with.iter_mut().zip(customer).for_each(|(value, own)| *value += own);
        encoding.round_and_clamp(&mut without);
        encoding.round_and_clamp(&mut with);
        let squares: i128 = with.iter().zip(&without).map(|(one, other)| i128::from(one - other).pow(2)).sum();
        prop_assert!(squares <= i128::from(encoding.sensitivity()).pow(2));
        prop_assert!(with.iter().all(|value| value.abs() <= encoding.limit()));
    }
}
