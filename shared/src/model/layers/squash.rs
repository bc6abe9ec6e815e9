//! Hyperbolic tangent and sigmoid of an entry, in a form that vectorises within a `pulp` dispatch: the same bits wherever
//! in a slice the entry lies.

/// Hyperbolic tangent to an absolute error of 4e-7 and a relative one of 1e-6; a NaN stays.
///
/// The rational approximation of Eigen's `ptanh`: odd of degree 13 over even of degree 6, on the range on which f32
/// tells it from 1. In fused multiply-adds, as products are.
#[inline(always)]
pub(in crate::model) fn tanh(x: f32) -> f32 {
    const LIMIT: f32 = 7.905_311;
    // Comparisons and not `clamp`'s panics or `min`, which would drop a NaN.
    let x = if x > LIMIT { LIMIT } else { x };
    let x = if x < -LIMIT { -LIMIT } else { x };
    let square = x * x;
    let odd = square.mul_add(-2.760_768_5e-16, 2.000_188e-13);
    let odd = square.mul_add(odd, -8.604_672e-11);
    let odd = square.mul_add(odd, 5.122_297e-8);
    let odd = square.mul_add(odd, 1.485_722_4e-5);
    let odd = square.mul_add(odd, 6.372_619_4e-4);
    let odd = square.mul_add(odd, 4.893_524_6e-3);
    let even = square.mul_add(1.198_258_4e-6, 1.185_347_1e-4);
    let even = square.mul_add(even, 2.268_434_6e-3);
    let even = square.mul_add(even, 4.893_525e-3);
    x * odd / even
}

/// `1 / (1 + e^-x)` to an absolute error of 2e-7; a NaN stays.
#[inline(always)]
pub(in crate::model) fn sigmoid(x: f32) -> f32 {
    tanh(0.5 * x).mul_add(0.5, 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tanh_and_sigmoid_keep_to_their_errors_everywhere() {
        let (mut absolute, mut relative, mut sigmoid_error) = (0.0f64, 0.0f64, 0.0f64);
        // A thousandth of all f32 of either sign, denormals and infinities among them.
        for bits in (0..=f32::INFINITY.to_bits()).step_by(977) {
            for x in [f32::from_bits(bits), -f32::from_bits(bits)] {
                let exact = f64::from(x).tanh();
                let error = (f64::from(tanh(x)) - exact).abs();
                absolute = absolute.max(error);
                if x.abs() > 1e-30 {
                    relative = relative.max(error / exact.abs());
                }
                let exact = 1.0 / (1.0 + (-f64::from(x)).exp());
                sigmoid_error = sigmoid_error.max((f64::from(sigmoid(x)) - exact).abs());
            }
        }
        assert!(
            absolute < 4e-7 && relative < 1e-6 && sigmoid_error < 2e-7,
            "{absolute} {relative} {sigmoid_error}"
        );
        assert_eq!([tanh(f32::INFINITY), sigmoid(f32::INFINITY)].map(|y| y > 0.999_999), [true; 2]);
        assert!(tanh(f32::NAN).is_nan() && sigmoid(f32::NAN).is_nan());
    }
}
