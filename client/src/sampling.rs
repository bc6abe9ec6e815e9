//! Poisson sampling: each customer is in a step's batch with the contract's rate, independently of all
//! others and of earlier steps. It is what the accountant counts on.

use weighhouse_shared::privacy::Generator;
use weighhouse_shared::privacy::SamplingRate;

/// The places of the customers drawn from `customers`.
pub fn poisson_sample(customers: usize, rate: SamplingRate, generator: &mut Generator) -> Vec<usize> {
    (0..customers).filter(|_| generator.bernoulli(rate)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_of_one_takes_everyone() {
        let mut generator = Generator::from_seed(1);
        let rate = SamplingRate::new(1.0).unwrap();
        assert_eq!(poisson_sample(5, rate, &mut generator), [0, 1, 2, 3, 4]);
    }

    /// Batch sizes of a Poisson sample vary as a binomial does; a fixed-size batch would not.
    /// 400 draws of 1000 customers at 0.1, seed 2: the variance lies within the 1e-6 two-sided band of
    /// 90 (chi-square, 399 degrees of freedom, normal approximation: 90 (1 +- 4.9 sqrt(2/399))).
    #[test]
    fn batch_sizes_vary_as_a_binomial_does() {
        let mut generator = Generator::from_seed(2);
        let rate = SamplingRate::new(0.1).unwrap();
        let sizes: Vec<f64> =
            (0..400).map(|_| poisson_sample(1000, rate, &mut generator).len() as f64).collect();
        let mean = sizes.iter().sum::<f64>() / 400.0;
        let variance = sizes.iter().map(|size| (size - mean).powi(2)).sum::<f64>() / 399.0;
        assert!((mean - 100.0).abs() < 4.9 * (90.0f64 / 400.0).sqrt(), "mean {mean}");
        assert!((variance / 90.0 - 1.0).abs() < 4.9 * (2.0f64 / 399.0).sqrt(), "variance {variance}");
    }

    /// Independence, as shuffled batches do not have it: neither of two neighbours, nor of the same customer
    /// in two steps one after the other, more or less often than the rate squared. 400 draws of 1000 customers at
    /// 0.1, seed 3: 200000 trials each, bounds at 4.9 standard deviations (alpha 1e-6).
    #[test]
    fn a_customer_is_drawn_independently_of_others_and_of_earlier_steps() {
        let mut generator = Generator::from_seed(3);
        let rate = SamplingRate::new(0.1).unwrap();
        let mut draw = || {
            let mut drawn = vec![false; 1000];
            poisson_sample(1000, rate, &mut generator)
                .into_iter()
                .for_each(|customer| drawn[customer] = true);
            drawn
        };
        let (mut neighbours, mut repeated) = (0, 0);
        for _ in 0..200 {
            let (first, second) = (draw(), draw());
            for drawn in [&first, &second] {
                neighbours += drawn.chunks(2).filter(|pair| pair[0] && pair[1]).count();
            }
            repeated += first.iter().zip(&second).filter(|(first, second)| **first && **second).count();
        }
        let bound = 4.9 * (200_000.0f64 * 0.01 * 0.99).sqrt();
        assert!((neighbours as f64 - 2000.0).abs() < bound, "{neighbours} pairs of neighbours");
        assert!((repeated as f64 - 2000.0).abs() < bound, "{repeated} drawn twice in a row");
    }
}
