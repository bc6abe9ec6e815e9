//! What products are made of: floats in vectors, and what the sums of a tile are added to.

use std::ops::AddAssign;

use pulp::Simd;

use super::{MAX_TILE_COLUMNS, TILE_VECTORS};
use crate::model::vectors::integer;

/// f32 or f64, and its vectors.
pub(crate) trait Element: Copy + Default + AddAssign + 'static {
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
}

macro_rules! element {
    ($type:ty, $vector:ident, $vectors:ident, $vectors_mut:ident, $splat:ident, $add:ident, $multiply_add:ident) => {
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
        }
    };
}
element!(f32, f32s, as_simd_f32s, as_mut_simd_f32s, splat_f32s, add_f32s, mul_add_f32s);
element!(f64, f64s, as_simd_f64s, as_mut_simd_f64s, splat_f64s, add_f64s, mul_add_f64s);

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

/// What the sums of a tile are put in: floats of their type, or integers, which they are too.
pub(crate) trait Total<T: Element>: Copy + Default {
    /// Puts a row of a tile; of `tile_columns` the last may be outside the matrix.
    fn put_row<S: Simd>(
        simd: S,
        sums: [T::Vector<S>; TILE_VECTORS],
        put: Put<'_, Self>,
        totals: &mut [Self],
        tile_columns: usize,
    );
}

impl<T: Element> Total<T> for T {
    #[inline(always)]
    fn put_row<S: Simd>(
        simd: S,
        sums: [T::Vector<S>; TILE_VECTORS],
        put: Put<'_, T>,
        totals: &mut [T],
        tile_columns: usize,
    ) {
        if totals.len() == tile_columns {
            let totals = T::vectors_mut::<S>(totals).iter_mut();
            match put {
                Put::Add => totals.zip(sums).for_each(|(total, sum)| *total = T::add(simd, *total, sum)),
                Put::Write => totals.zip(sums).for_each(|(total, sum)| *total = sum),
                Put::WriteOnto(row) => {
                    let row = T::vectors::<S>(row);
                    totals
                        .zip(row)
                        .zip(sums)
                        .for_each(|((total, &row), sum)| *total = T::add(simd, row, sum));
                }
            }
        } else {
            let sums = plain_row::<T, S>(sums, tile_columns);
            match put {
                Put::Add => {}
                Put::Write => totals.fill(T::default()),
                Put::WriteOnto(row) => totals.copy_from_slice(row),
            }
            totals.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
        }
    }
}

/// Of magnitude at most [`INTEGER_LIMIT`](super::vectors::INTEGER_LIMIT).
impl<T: Element + Into<f64>> Total<T> for i64 {
    #[inline(always)]
    fn put_row<S: Simd>(
        _: S,
        sums: [T::Vector<S>; TILE_VECTORS],
        put: Put<'_, i64>,
        totals: &mut [i64],
        tile_columns: usize,
    ) {
        let row = plain_row::<T, S>(sums, tile_columns);
        match put {
            Put::Add => {}
            Put::Write => totals.fill(0),
            Put::WriteOnto(row) => totals.copy_from_slice(row),
        }
        totals.iter_mut().zip(row).for_each(|(total, sum)| *total += integer(sum.into()));
    }
}

/// The entries of a tile's row, and zeros.
#[inline(always)]
fn plain_row<T: Element, S: Simd>(
    sums: [T::Vector<S>; TILE_VECTORS],
    tile_columns: usize,
) -> [T; MAX_TILE_COLUMNS] {
    let mut row = [T::default(); MAX_TILE_COLUMNS];
    for (row, sum) in T::vectors_mut::<S>(&mut row[..tile_columns]).iter_mut().zip(sums) {
        *row = sum;
    }
    row
}

/// Columns of a register tile.
pub(super) const fn tile_columns<T: Element, S: Simd>() -> usize {
    TILE_VECTORS * size_of::<T::Vector<S>>() / size_of::<T>()
}
