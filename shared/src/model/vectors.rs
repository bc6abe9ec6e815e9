//! Loops over vectors and rows of f32, and of f32 that hold integers: dot products, sums, rectifiers.
//!
//! Each row by itself, in an order that depends on lengths alone: the row independence of [`product`](super::product).

use pulp::{Arch, Simd, WithSimd};

use super::product::Element;

/// Runs a closure that changes what it captures compiled for the processor's instruction set; it wants `#[inline(always)]`.
///
/// [`Arch::dispatch`] would take it by `FnOnce::call_once`, which nothing inlines where the closure is large: what it
/// calls then runs in plain code.
#[inline(always)]
pub fn vectorised<R>(work: impl FnMut() -> R) -> R {
    struct Work<F>(F);
    impl<R, F: FnMut() -> R> WithSimd for Work<F> {
        type Output = R;

        #[inline(always)]
        fn with_simd<S: Simd>(mut self, _: S) -> R {
            (self.0)()
        }
    }
    Arch::new().dispatch(Work(work))
}

/// `a . b` over the shorter of the two, in an order that depends on the length alone. Inlines, to be vectorised where
/// it is called. In f64 exact for integers whose absolute products sum below 2^53.
#[inline(always)]
pub(crate) fn dot<X: Copy + Into<T>, T: Element + std::ops::Mul<Output = T>>(a: &[X], b: &[X]) -> T {
    let (a_chunks, a_rest) = a.as_chunks::<16>();
    let (b_chunks, b_rest) = b.as_chunks::<16>();
    let mut lanes = [T::default(); 16];
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for i in 0..16 {
            lanes[i] += a[i].into() * b[i].into();
        }
    }
    // Not into the lanes: an index that varies would keep them out of registers.
    let mut rest = T::default();
    for (&a, &b) in a_rest.iter().zip(b_rest) {
        rest += a.into() * b.into();
    }
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            let upper = lanes[i + half];
            lanes[i] += upper;
        }
    }
    rest += lanes[0];
    rest
}

/// A bound `e`: [`dot`] of f32 in f32 is within `e |a| |b|` of the dot product of `a` and `b` of `width` entries, where
/// nothing overflows and no entry is below 2^-60 but zero. By the chains of sums and the product that a term goes through,
/// at most 15 in what is left of 16, as [`gram_error`](super::gram_error).
#[inline(always)]
pub(crate) fn dot_error(width: usize) -> f64 {
    // Twice the unit roundoff is more than the bound's quotient for any chain below 2^23.
    (width / 16 + 24) as f64 * 2f64.powi(-23)
}

/// The sum of the entries, in an order that depends on the length alone. Inlines, as [`dot`].
#[inline(always)]
pub(crate) fn sum(entries: &[f32]) -> f32 {
    let (chunks, rest) = entries.as_chunks::<16>();
    let mut lanes = [0.0; 16];
    for chunk in chunks {
        for i in 0..16 {
            lanes[i] += chunk[i];
        }
    }
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    rest.iter().sum::<f32>() + lanes[0]
}

/// `out[i] += rows[i] . vector` for `rows` of `[out.len(), vector.len()]`, each row by itself.
pub(crate) fn add_dots(rows: &[f32], vector: &[f32], out: &mut [f32]) {
    assert_eq!(rows.len(), out.len() * vector.len(), "rows of {} for {} dots", vector.len(), out.len());
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for (row, out) in rows.chunks_exact(vector.len()).zip(out.iter_mut()) {
                *out += dot::<_, f32>(row, vector);
            }
        },
    );
}

/// `out += sum over r of weights[r] * rows[r]` for `rows` of `[weights.len(), out.len()]`.
pub(crate) fn add_weighted_rows<X: Copy + Into<T>, T>(weights: &[X], rows: &[X], out: &mut [T])
where
    T: Element + std::ops::Mul<Output = T>,
{
    assert_eq!(rows.len(), weights.len() * out.len(), "{} rows of {}", weights.len(), out.len());
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for (&weight, row) in weights.iter().zip(rows.chunks_exact(out.len())) {
                for (out, &value) in out.iter_mut().zip(row) {
                    *out += weight.into() * value.into();
                }
            }
        },
    );
}

/// `out[j] += sum over r of rows[r, j]` for `rows` of `[.., out.len()]`.
pub(crate) fn add_rows<X: Copy + Into<T>, T: Element>(rows: &[X], out: &mut [T]) {
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for row in rows.chunks_exact(out.len()) {
                for (out, &value) in out.iter_mut().zip(row) {
                    *out += value.into();
                }
            }
        },
    );
}

/// Magnitude up to which [`integer`] is exact.
pub(crate) const INTEGER_LIMIT: f64 = (1u64 << 51) as f64;

/// The integer that an f64 of magnitude at most [`INTEGER_LIMIT`] is.
#[inline(always)]
pub(crate) fn integer(value: f64) -> i64 {
    // With 1.5 * 2^52 added, the last bits of the f64 are the integer: vectorises where a cast does not.
    const SHIFT: f64 = 6_755_399_441_055_744.0;
    debug_assert!(value.abs() <= INTEGER_LIMIT && value.fract() == 0.0);
    (value + SHIFT).to_bits().wrapping_sub(SHIFT.to_bits()) as i64
}

/// The largest magnitude of finite entries.
pub(crate) fn largest_magnitude(entries: &[f32]) -> f32 {
    // Bits of floats that are not negative are in the order of the floats.
    let largest = vectorised(
        #[inline(always)]
        || entries.iter().fold(0, |largest, entry| entry.abs().to_bits().max(largest)),
    );
    f32::from_bits(largest)
}

/// ReLU in place; a NaN stays.
pub(crate) fn rectify(values: &mut [f32]) {
    Arch::new().dispatch(
        #[inline(always)]
        || values.iter_mut().for_each(|value| *value = if *value < 0.0 { 0.0 } else { *value }),
    );
}

/// Zeroes the gradients behind a ReLU where its output is not positive.
pub(crate) fn mask(gradients: &mut [f32], rectified: &[f32]) {
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for (gradient, &output) in gradients.iter_mut().zip(rectified) {
                *gradient = if output > 0.0 { *gradient } else { 0.0 };
            }
        },
    );
}

/// Whether both hold the same bits.
pub(super) fn same(a: &[f32], b: &[f32]) -> bool {
    /// Entries that are looked at before it may stop.
    const STRETCH: usize = 1024;
    let differs = |a: &[f32], b: &[f32]| {
        let pairs = a.iter().zip(b);
        let bits = |bits, (a, b): (&f32, &f32)| bits | (a.to_bits() ^ b.to_bits());
        Arch::new().dispatch(
            #[inline(always)]
            move || pairs.fold(0, bits) != 0,
        )
    };
    a.len() == b.len() && !a.chunks(STRETCH).zip(b.chunks(STRETCH)).any(|(a, b)| differs(a, b))
}

/// Whether no entry is NaN or infinite.
pub fn all_finite(values: &[f32]) -> bool {
    first_not_finite(values).is_none()
}

/// Position of the first entry that is NaN or infinite.
pub(crate) fn first_not_finite(values: &[f32]) -> Option<usize> {
    let largest = Arch::new().dispatch(
        #[inline(always)]
        || values.iter().fold(0u32, |largest, value| largest.max(value.to_bits() & 0x7fff_ffff)),
    );
    if largest < f32::INFINITY.to_bits() { None } else { values.iter().position(|value| !value.is_finite()) }
}
