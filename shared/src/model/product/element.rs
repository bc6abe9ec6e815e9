//! What products are made of: floats in vectors, and what the sums of a tile are added to.

use std::ops::AddAssign;

use pulp::Simd;

use super::MAX_TILE_COLUMNS;
use crate::model::vectors::integer;

/// f32 or f64, and its vectors.
pub(crate) trait Element: Copy + Default + AddAssign + Into<f64> + 'static {
    type Vector<S: Simd>: Copy;
    fn vectors<S: Simd>(slice: &[Self]) -> &[Self::Vector<S>];
    fn vectors_mut<S: Simd>(slice: &mut [Self]) -> &mut [Self::Vector<S>];
    fn splat<S: Simd>(simd: S, value: Self) -> Self::Vector<S>;
    fn add<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;
    /// `a * b + c`, rounded once.
    fn multiply_add<S: Simd>(
        simd: S,
        a: Self::Vector<S>,
        b: Self::Vector<S>,
        c: Self::Vector<S>,
    ) -> Self::Vector<S>;
    /// The sum of a vector's lanes.
    fn reduce_sum<S: Simd>(simd: S, vector: Self::Vector<S>) -> Self;
    /// Lane by lane the larger of the two; either of them where one is NaN.
    fn max<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;
    /// The largest of a vector's lanes.
    fn reduce_max<S: Simd>(simd: S, vector: Self::Vector<S>) -> Self;
}

macro_rules! element {
    ($type:ty, $vector:ident, $vectors:ident, $vectors_mut:ident, $splat:ident, $add:ident, $multiply_add:ident, $reduce_sum:ident,
        $max:ident, $reduce_max:ident) => {
        impl Element for $type {
            type Vector<S: Simd> = S::$vector;
            #[inline(always)]
            fn vectors<S: Simd>(slice: &[Self]) -> &[S::$vector] {
                S::$vectors(slice).0
            }
            #[inline(always)]
            fn vectors_mut<S: Simd>(slice: &mut [Self]) -> &mut [S::$vector] {
                S::$vectors_mut(slice).0
            }
            #[inline(always)]
            fn splat<S: Simd>(simd: S, value: Self) -> S::$vector {
                simd.$splat(value)
            }
            #[inline(always)]
            fn add<S: Simd>(simd: S, a: S::$vector, b: S::$vector) -> S::$vector {
                simd.$add(a, b)
            }
            #[inline(always)]
            fn multiply_add<S: Simd>(simd: S, a: S::$vector, b: S::$vector, c: S::$vector) -> S::$vector {
                simd.$multiply_add(a, b, c)
            }
            #[inline(always)]
            fn reduce_sum<S: Simd>(simd: S, vector: S::$vector) -> $type {
                simd.$reduce_sum(vector)
            }
            #[inline(always)]
            fn max<S: Simd>(simd: S, a: S::$vector, b: S::$vector) -> S::$vector {
                simd.$max(a, b)
            }
            #[inline(always)]
            fn reduce_max<S: Simd>(simd: S, vector: S::$vector) -> $type {
                simd.$reduce_max(vector)
            }
        }
    };
}
element!(
    f32,
    f32s,
    as_simd_f32s,
    as_mut_simd_f32s,
    splat_f32s,
    add_f32s,
    mul_add_f32s,
    reduce_sum_f32s,
    max_f32s,
    reduce_max_f32s
);
element!(
    f64,
    f64s,
    as_simd_f64s,
    as_mut_simd_f64s,
    splat_f64s,
    add_f64s,
    mul_add_f64s,
    reduce_sum_f64s,
    max_f64s,
    reduce_max_f64s
);

/// What a row of a tile does to the output's.
#[derive(Clone, Copy)]
pub(crate) enum Put<'a, T> {
    /// Is added to it.
    Add,
    /// Is written over it.
    Write,
    /// Is added to this and written over it.
    WriteOnto(&'a [T]),
}

impl<T: Copy + Default> Put<'_, T> {
    /// Makes of `totals` what the sums are to be added to.
    #[inline(always)]
    fn begin(self, totals: &mut [T]) {
        match self {
            Put::Add => {}
            Put::Write => totals.fill(T::default()),
            Put::WriteOnto(row) => totals.copy_from_slice(row),
        }
    }
}

/// What the sums of a tile are put in: floats of their type, or integers, which they are too.
pub(crate) trait Total<T: Element>: Copy + Default {
    /// Puts a row of a tile, of which the last columns may be outside the matrix.
    fn put_row<S: Simd, const VECTORS: usize>(
        simd: S,
        sums: &[T::Vector<S>; VECTORS],
        put: Put<'_, Self>,
        totals: &mut [Self],
    );
}

impl<T: Element> Total<T> for T {
    #[inline(always)]
    fn put_row<S: Simd, const VECTORS: usize>(
        simd: S,
        sums: &[T::Vector<S>; VECTORS],
        put: Put<'_, T>,
        totals: &mut [T],
    ) {
        if totals.len() == VECTORS * lanes::<T, S>() {
            let totals = T::vectors_mut::<S>(totals).iter_mut();
            match put {
                Put::Add => totals.zip(sums).for_each(|(total, &sum)| *total = T::add(simd, *total, sum)),
                Put::Write => totals.zip(sums).for_each(|(total, &sum)| *total = sum),
                Put::WriteOnto(row) => {
                    let row = T::vectors::<S>(row);
                    totals
                        .zip(row)
                        .zip(sums)
                        .for_each(|((total, &row), &sum)| *total = T::add(simd, row, sum));
                }
            }
        } else {
            let sums = plain_row::<T, S, VECTORS>(sums);
            put.begin(totals);
            totals.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
        }
    }
}

/// Of magnitude at most [`INTEGER_LIMIT`](super::vectors::INTEGER_LIMIT).
impl<T: Element> Total<T> for i64 {
    #[inline(always)]
    fn put_row<S: Simd, const VECTORS: usize>(
        _: S,
        sums: &[T::Vector<S>; VECTORS],
        put: Put<'_, i64>,
        totals: &mut [i64],
    ) {
        let row = plain_row::<T, S, VECTORS>(sums);
        put.begin(totals);
        totals.iter_mut().zip(row).for_each(|(total, sum)| *total += integer(sum.into()));
    }
}

/// The entries of a tile's row, and zeros.
#[inline(always)]
fn plain_row<T: Element, S: Simd, const VECTORS: usize>(
    sums: &[T::Vector<S>; VECTORS],
) -> [T; MAX_TILE_COLUMNS] {
    let mut row = [T::default(); MAX_TILE_COLUMNS];
    let vectors = T::vectors_mut::<S>(&mut row[..VECTORS * lanes::<T, S>()]);
    vectors.iter_mut().zip(sums).for_each(|(row, &sum)| *row = sum);
    row
}

/// Entries of a vector.
pub(super) const fn lanes<T: Element, S: Simd>() -> usize {
    size_of::<T::Vector<S>>() / size_of::<T>()
}
