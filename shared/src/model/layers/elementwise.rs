//! Functions over slices whose loops vectorise: within [`Arch::dispatch`](pulp::Arch::dispatch), which the caller enters.
//!
//! Deterministic on one machine, and each entry by itself.

/// Where [`exp`] stops falling and rising.
const EXP_RANGE: [f32; 2] = [-87.0, 88.0];

/// The exponential, within 2e-7 of it relative to it, of an entry in -87 to 88; of the nearer end outside; a NaN stays.
///
/// By the polynomial of Cephes' `expf` on half an octave either side of 0. Without `mul_add`, which processors without
/// it would call a function for.
#[inline(always)]
pub(super) fn exp(entry: f32) -> f32 {
    // 1.5 * 2^23: with it added, the last bits of the f32 are the rounded integer.
    const SHIFT: f32 = 12_582_912.0;
    // The logarithm of 2 in two parts, of which the first times a small integer is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let entry = if entry < EXP_RANGE[0] { EXP_RANGE[0] } else { entry };
    let entry = if entry > EXP_RANGE[1] { EXP_RANGE[1] } else { entry };
    let shifted = entry * std::f32::consts::LOG2_E + SHIFT;
    let octaves = shifted - SHIFT;
    let rest = entry - octaves * LN_2[0] - octaves * LN_2[1];
    let mut sum = 1.987_569_1e-4;
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        sum = sum * rest + coefficient;
    }
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    (sum * rest * rest + rest + 1.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_2e_7_of_the_exponential_and_passes_nan() {
        for step in -87_000..=88_000 {
            let entry = step as f32 / 1000.0;
            let expected = f64::from(entry).exp();
            let error = (f64::from(exp(entry)) - expected).abs() / expected;
            assert!(error < 2e-7, "{entry}: {error:e}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), exp(-87.0));
        assert_eq!(exp(f32::INFINITY), exp(88.0));
        assert!(exp(f32::NAN).is_nan());
    }
}
