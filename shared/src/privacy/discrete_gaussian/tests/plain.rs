//! The sampler of Canonne, Kamath and Steinke ("The Discrete Gaussian for Differential Privacy", 2020,
//! Algorithms 1 to 3), as plainly as it can be written, for whole sigmas: to test the fast one against.

use super::super::Generator;

/// Uniform over `0..bound`, by refusing words beyond the last whole multiple.
fn below(bound: u64, generator: &mut Generator) -> u64 {
    loop {
        let word = generator.next_u64();
        if word < u64::MAX - u64::MAX % bound {
            return word % bound;
        }
    }
}

fn coin(numerator: u64, denominator: u64, generator: &mut Generator) -> bool {
    below(denominator, generator) < numerator
}

/// True with probability `exp(-numerator / denominator)`.
fn exponential_coin(mut numerator: u64, denominator: u64, generator: &mut Generator) -> bool {
    while numerator > denominator {
        if !exponential_coin(denominator, denominator, generator) {
            return false;
        }
        numerator -= denominator;
    }
    let mut k = 1;
    while coin(numerator, denominator * k, generator) {
        k += 1;
    }
    k % 2 == 1
}

/// Probability proportional to `exp(-|x| / scale)`.
fn discrete_laplace(scale: u64, generator: &mut Generator) -> i64 {
    loop {
        let offset = below(scale, generator);
        if !exponential_coin(offset, scale, generator) {
            continue;
        }
        let mut whole = 0;
        while exponential_coin(1, 1, generator) {
            whole += 1;
        }
        let magnitude = (offset + scale * whole) as i64;
        let negative = coin(1, 2, generator);
        if !(negative && magnitude == 0) {
            return if negative { -magnitude } else { magnitude };
        }
    }
}

/// Probability proportional to `exp(-x^2 / (2 sigma^2))`; `sigma` up to 2^15.
pub(super) fn discrete_gaussian(sigma: u32, generator: &mut Generator) -> i64 {
    let sigma = u64::from(sigma);
    let scale = sigma + 1;
    loop {
        let candidate = discrete_laplace(scale, generator);
        // (|x| - sigma^2 / t)^2 / (2 sigma^2), both sides times t^2.
        let distance = (candidate.unsigned_abs() * scale).abs_diff(sigma * sigma);
        if exponential_coin(distance * distance, 2 * sigma * sigma * scale * scale, generator) {
            return candidate;
        }
    }
}
