//! Matrix products over slices: f32 for the network, f64 for exact integer sums.
//!
//! Row-major slices enter, `out += left * right` leaves, or `out = left * right`. Written on `pulp` (run-time SIMD dispatch in safe
//! Rust; the `gemm` crate's interface is unsafe and promises nothing about order) because the privacy claim
//! needs this promise, which no matrix library gives:
//!
//! **Row independence.** `out[i, j]` is what it starts from plus, for each block of [`DEPTH_BLOCK`] terms in turn, the
//! chain of fused multiply-adds `left[i, k] * right[k, j]` in rising `k` from zero. Neither the number of rows nor
//! the row's position nor what the other rows hold changes a bit of it, so one customer's floats never depend on
//! who else is in the batch.
//!
//! AVX-512, AVX2, NEON and plain processors run the same chains.

mod element;
mod pack;

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::aligned::Aligned;
use super::vectors::{dot, largest_magnitude, vectorised};
pub(crate) use element::{Element, Total};
use element::{Put, lanes};

pub(crate) use pack::{PackedRight, View};
use pack::{pack_block, pack_left};

/// Terms of a dot product that are summed before they are added to the output.
pub(crate) const DEPTH_BLOCK: usize = 256;
/// Rows that go through one panel of `right` while it is in the first cache; whole tiles.
const ROW_BLOCK: usize = 16 * TILE_ROWS;
/// Columns of `right` that are packed at a time.
const COLUMN_BLOCK: usize = 512;
/// Rows of the register tile: so many cost no more than one, as at each step of a recurrence.
pub const TILE_ROWS: usize = 6;
/// Vectors in a row of the register tile; where all columns are in one, it has one.
const TILE_VECTORS: usize = 2;
/// Most columns of the register tile: two vectors of 64 bytes of f32.
const MAX_TILE_COLUMNS: usize = 32;

/// Buffers of [`add_product`], kept between calls.
#[derive(Clone, Debug, Default)]
pub(crate) struct Packing<T: Element> {
    left: Aligned<T>,
    right: Aligned<T>,
}

/// Adds `left * right` to `out`, with the row independence that this file's header promises.
///
/// Entries are widened from `X` to `T` while they are packed, so f32 that hold integers can be summed in f64.
/// `left` is `[rows, depth]`, `right` `[depth, columns]`, `out` `[rows, columns]`, row-major.
/// In f64 with integer entries the result is exact if the absolute products sum below 2^53.
///
/// # Panics
/// If a slice is shorter than its shape.
pub(crate) fn add_product<X: Copy + Into<T>, T: Element, O: Total<T>>(
    shape @ [rows, _, columns]: [usize; 3],
    left: View<'_, X>,
    right: View<'_, X>,
    out: &mut [O],
    packing: &mut Packing<T>,
) {
    assert_eq!(out.len(), rows * columns, "output of a {rows} x {columns} product");
    let out = Lines { data: out, stride: columns, columns };
    Arch::new().dispatch(Product { shape, left, right, fresh: false, size: None, out, packing });
}

/// Rows of `columns` entries that are written, each `stride` after the one before.
pub(crate) struct Lines<'a, O> {
    pub data: &'a mut [O],
    pub stride: usize,
    pub columns: usize,
}

/// Writes `left * right` to the lines of `out`, with the row independence that this file's header promises. They may have
/// more columns than the product, by less than a register tile: those are anything then. No depth leaves them as they are.
///
/// # Panics
/// If a slice is shorter than its shape.
pub(crate) fn write_product(
    shape: [usize; 3],
    left: View<'_, f32>,
    right: View<'_, f32>,
    out: Lines<'_, f32>,
    packing: &mut Packing<f32>,
) {
    Arch::new().dispatch(Product { shape, left, right, fresh: true, size: None, out, packing });
}

/// Adds to `out`, `[outputs, inputs]`, the sum over rows of the outer products of `gradients`, `[rows, outputs]`, and
/// `activations`, `[rows, inputs]`. In integers exact if the factors are, and the absolute products of each
/// [`DEPTH_BLOCK`] rows in turn sum to what `T` has exactly.
pub(crate) fn add_outer_products<X: Copy + Into<T>, T: Element, O: Total<T>>(
    [outputs, inputs]: [usize; 2],
    gradients: &[X],
    activations: &[X],
    out: &mut [O],
    packing: &mut Packing<T>,
) {
    let (left, right) = (View::transpose(gradients, outputs), View::rows(activations, inputs));
    add_product([outputs, gradients.len() / outputs, inputs], left, right, out, packing);
}

/// How large the entries of a product are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Size {
    /// The sum of their squares.
    pub squares: f64,
    /// At least the largest magnitude, if none is NaN, and below three times it.
    pub largest: f32,
}

/// Writes to `out`, `[outputs, inputs]`, what [`add_outer_products`] would add; its size, of which the squares are within
/// [`SQUARES_ERROR`] where neither they nor their sum overflow or vanish. No rows leave `out` as it is, and have no size.
pub(crate) fn write_outer_products(
    [outputs, inputs]: [usize; 2],
    gradients: &[f32],
    activations: &[f32],
    out: &mut [f32],
    packing: &mut Packing<f32>,
) -> Size {
    let (left, right) = (View::transpose(gradients, outputs), View::rows(activations, inputs));
    let depth = gradients.len() / outputs;
    if depth == 0 {
        return Size::default();
    }
    let shape = [outputs, depth, inputs];
    let (mut sizes, whole) = (ColumnSquares::default(), depth <= DEPTH_BLOCK);
    let lines = Lines { data: out, stride: inputs, columns: inputs };
    // Of sums that are not final yet it is found afterwards.
    let measured = whole.then_some(&mut sizes);
    Arch::new().dispatch(Product { shape, left, right, fresh: true, size: measured, out: lines, packing });
    let ColumnSquares { sum: mut squares, most } = sizes;
    if !whole {
        squares = vectorised(
            #[inline(always)]
            || out.chunks(256).map(|piece| f64::from(dot::<f32, f32>(piece, piece))).sum(),
        );
    }
    // A chain of as many squares as a tile has rows, none of them lost, is the largest of them and at most so many times it.
    let sure = whole && (SURE_SQUARE..f32::MAX).contains(&most);
    let largest = if sure { most.sqrt() * (1.0 + 1.0 / (1 << 20) as f32) } else { largest_magnitude(out) };
    Size { squares, largest }
}

/// What is found of a product's entries while they are in registers: the columns of a tile by themselves.
#[derive(Clone, Copy, Default)]
struct ColumnSquares {
    /// Of all squares.
    sum: f64,
    /// The largest sum of a column's squares.
    most: f32,
}

/// Of a square above it nothing is lost below the range of f32.
const SURE_SQUARE: f32 = 1e-30;

/// Relative to the squares' sum: chains in f32 of at most [`TILE_ROWS`], the tiles of a [`ROW_BLOCK`] and the lanes of a
/// vector; of 256 and as many lanes where a product has more terms than [`DEPTH_BLOCK`].
pub(crate) const SQUARES_ERROR: f64 = 1.0 / (1 << 16) as f64;

/// What the entries of a product start from.
#[derive(Clone, Copy)]
pub(crate) enum Start<'a, T> {
    /// What the output holds.
    Kept,
    /// Zero, whatever the output holds.
    Zero,
    /// One value for each column, likewise.
    Row(&'a [T]),
}

/// The product of `left`, `[rows, depth]`, and a `right` that is packed already, in `out`, with the row independence that
/// this file's header promises.
///
/// # Panics
/// If a slice is shorter than its shape.
pub(crate) fn packed_product<X: Copy + Into<T>, T: Element>(
    rows: usize,
    left: View<'_, X>,
    right: &PackedRight<T>,
    start: Start<'_, T>,
    out: &mut [T],
) {
    assert_eq!(out.len(), rows * right.columns, "output of {rows} x {} columns", right.columns);
    assert!(!left.transposed, "rows by a packed right side");
    if let Start::Row(row) = start {
        assert_eq!(row.len(), right.columns, "a row to start from");
    }
    if right.depth == 0 {
        return match start {
            Start::Kept => {}
            Start::Zero => out.fill(T::default()),
            Start::Row(row) => out.chunks_exact_mut(row.len()).for_each(|out| out.copy_from_slice(row)),
        };
    }
    Arch::new().dispatch(PackedProduct { rows, left, right, start, out });
}

/// The blocks of columns and terms of a `[depth, columns]` right side, in the order in which they are summed: first
/// column, columns, first term, terms.
fn blocks([depth, columns]: [usize; 2]) -> impl Iterator<Item = [usize; 4]> {
    (0..columns).step_by(COLUMN_BLOCK).flat_map(move |first_column| {
        let block_columns = COLUMN_BLOCK.min(columns - first_column);
        (0..depth).step_by(DEPTH_BLOCK).map(move |first_term| {
            [first_column, block_columns, first_term, DEPTH_BLOCK.min(depth - first_term)]
        })
    })
}

struct PackedProduct<'a, X, T: Element> {
    rows: usize,
    left: View<'a, X>,
    right: &'a PackedRight<T>,
    start: Start<'a, T>,
    out: &'a mut [T],
}

impl<X: Copy + Into<T>, T: Element> WithSimd for PackedProduct<'_, X, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { rows, left, right, start, out } = self;
        let tile_columns = TILE_VECTORS * lanes::<T, S>();
        let mut rest = &right.panels[..];
        for [first_column, block_columns, first_term, terms] in blocks([right.depth, right.columns]) {
            let (panels, later) = rest.split_at(block_columns.div_ceil(tile_columns) * tile_columns * terms);
            rest = later;
            for block_start in (0..rows).step_by(ROW_BLOCK) {
                let block_end = rows.min(block_start + ROW_BLOCK);
                for (p, panel) in panels.chunks_exact(terms * tile_columns).enumerate() {
                    let column = p * tile_columns;
                    let width = tile_columns.min(block_columns - column);
                    let columns = first_column + column..first_column + column + width;
                    for first_row in (block_start..block_end).step_by(TILE_ROWS) {
                        let tile_rows = TILE_ROWS.min(block_end - first_row);
                        let lines = tile_lines(left, [first_row, tile_rows], [first_term, terms]);
                        let sums = strided_tile::<X, T, S, TILE_VECTORS>(simd, lines, panel);
                        let put = match start {
                            Start::Zero if first_term == 0 => Put::Write,
                            Start::Row(row) if first_term == 0 => Put::WriteOnto(&row[columns.clone()]),
                            _ => Put::Add,
                        };
                        let out = &mut out[first_row * right.columns + columns.start..];
                        put_tile(simd, &sums, put, out, [tile_rows, right.columns, width]);
                    }
                }
            }
        }
    }
}

/// The rows of a register tile; past `tile_rows` its last again.
#[inline(always)]
fn tile_lines<'a, X>(
    left: View<'a, X>,
    [first_row, tile_rows]: [usize; 2],
    [first_term, terms]: [usize; 2],
) -> [&'a [X]; TILE_ROWS] {
    let mut lines = [[].as_slice(); TILE_ROWS];
    for (i, line) in lines.iter_mut().enumerate() {
        let row = first_row + i.min(tile_rows - 1);
        *line = &left.data[row * left.stride + first_term..][..terms];
    }
    lines
}

struct Product<'a, X, T: Element, O> {
    /// Rows, depth, columns.
    shape: [usize; 3],
    left: View<'a, X>,
    right: View<'a, X>,
    /// Whether the output is written and not added to.
    fresh: bool,
    /// To which that of what is written is added, if that is final.
    size: Option<&'a mut ColumnSquares>,
    out: Lines<'a, O>,
    packing: &'a mut Packing<T>,
}

impl<X: Copy + Into<T>, T: Element, O: Total<T>> WithSimd for Product<'_, X, T, O> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if self.shape[2] <= lanes::<T, S>() {
            self.multiply::<S, 1>(simd);
        } else {
            self.multiply::<S, TILE_VECTORS>(simd);
        }
    }
}

impl<X: Copy + Into<T>, T: Element, O: Total<T>> Product<'_, X, T, O> {
    /// In tiles of `VECTORS` vectors a row.
    #[inline(always)]
    fn multiply<S: Simd, const VECTORS: usize>(self, simd: S) {
        let Self { shape: [rows, depth, columns], left, right, fresh, mut size, out, packing } = self;
        let tile_columns = VECTORS * lanes::<T, S>();
        debug_assert!(
            size.is_none() || left.transposed,
            "past the last row there are zeros only if it is packed"
        );
        for block @ [first_column, block_columns, first_term, terms] in blocks([depth, columns]) {
            let put = if fresh && first_term == 0 { Put::Write } else { Put::Add };
            let panels = packing.right.resize(block_columns.div_ceil(tile_columns) * terms * tile_columns);
            pack_block::<X, T>(right, block, tile_columns, panels);
            for block_start in (0..rows).step_by(ROW_BLOCK) {
                let block_end = rows.min(block_start + ROW_BLOCK);
                let tiles = || {
                    let first_rows = (block_start..block_end).step_by(TILE_ROWS);
                    first_rows.map(|first_row| [first_row, TILE_ROWS.min(block_end - first_row)])
                };
                if left.transposed {
                    let lines = packing.left.resize(terms * ROW_BLOCK);
                    pack_left(left, [first_term, terms], [block_start, block_end], lines);
                }
                for (p, panel) in panels.chunks_exact(terms * tile_columns).enumerate() {
                    let mut squares = [T::splat(simd, T::default()); VECTORS];
                    let mut most = squares;
                    let column = first_column + p * tile_columns;
                    let width = tile_columns.min(out.columns - column);
                    for (t, tile @ [first_row, tile_rows]) in tiles().enumerate() {
                        let sums = if left.transposed {
                            packed_tile::<T, S, VECTORS>(simd, &packing.left, t * TILE_ROWS, panel)
                        } else {
                            let lines = tile_lines(left, tile, [first_term, terms]);
                            strided_tile::<X, T, S, VECTORS>(simd, lines, panel)
                        };
                        if size.is_some() {
                            // Past the last row and the last column there are zeros.
                            for at in 0..VECTORS {
                                let mut of_column = T::splat(simd, T::default());
                                for sums in &sums {
                                    of_column = T::multiply_add(simd, sums[at], sums[at], of_column);
                                }
                                squares[at] = T::add(simd, squares[at], of_column);
                                most[at] = T::max(simd, most[at], of_column);
                            }
                        }
                        let lines = &mut out.data[first_row * out.stride + column..];
                        put_tile(simd, &sums, put, lines, [tile_rows, out.stride, width]);
                    }
                    if let Some(size) = &mut size {
                        for at in 0..VECTORS {
                            size.sum += T::reduce_sum(simd, squares[at]).into();
                            let most: f64 = T::reduce_max(simd, most[at]).into();
                            size.most = size.most.max(most as f32);
                        }
                    }
                }
            }
        }
    }
}

type Tile<T, S, const VECTORS: usize> = [[<T as Element>::Vector<S>; VECTORS]; TILE_ROWS];

/// Puts the first rows of a tile, and of them the first `width` columns, in `out`, each line `stride` after the one before.
#[inline(always)]
fn put_tile<T: Element, O: Total<T>, S: Simd, const VECTORS: usize>(
    simd: S,
    sums: &Tile<T, S, VECTORS>,
    put: Put<'_, O>,
    out: &mut [O],
    [rows, stride, width]: [usize; 3],
) {
    // Not a loop, so that the sums stay in registers.
    let [s0, s1, s2, s3, s4, s5] = sums;
    put_line(simd, s0, put, out, 0..rows, [stride, width]);
    put_line(simd, s1, put, out, 1..rows, [stride, width]);
    put_line(simd, s2, put, out, 2..rows, [stride, width]);
    put_line(simd, s3, put, out, 3..rows, [stride, width]);
    put_line(simd, s4, put, out, 4..rows, [stride, width]);
    put_line(simd, s5, put, out, 5..rows, [stride, width]);
}

/// Puts a row of a tile in the first of these lines of `out`, if there is any.
#[inline(always)]
fn put_line<T: Element, O: Total<T>, S: Simd, const VECTORS: usize>(
    simd: S,
    sums: &[T::Vector<S>; VECTORS],
    put: Put<'_, O>,
    out: &mut [O],
    lines: Range<usize>,
    [stride, width]: [usize; 2],
) {
    if !lines.is_empty() {
        O::put_row(simd, sums, put, &mut out[lines.start * stride..][..width]);
    }
}

/// Adds one term to every sum of the tile.
#[inline(always)]
fn step<T: Element, S: Simd, const VECTORS: usize>(
    simd: S,
    sums: &mut Tile<T, S, VECTORS>,
    left: [T; TILE_ROWS],
    right: &[T::Vector<S>],
) {
    for (sums, left) in sums.iter_mut().zip(left) {
        let left = T::splat(simd, left);
        for (sum, &right) in sums.iter_mut().zip(right) {
            *sum = T::multiply_add(simd, left, right, *sum);
        }
    }
}

/// Of rows from `first` on of what [`pack_left`] packed.
#[inline(always)]
fn packed_tile<T: Element, S: Simd, const VECTORS: usize>(
    simd: S,
    left: &[T],
    first: usize,
    panel: &[T],
) -> Tile<T, S, VECTORS> {
    let mut sums = [[T::splat(simd, T::default()); VECTORS]; TILE_ROWS];
    let right = T::vectors::<S>(panel).as_chunks::<VECTORS>().0;
    for (left, right) in left.as_chunks::<ROW_BLOCK>().0.iter().zip(right) {
        let left = left[first..].first_chunk().expect("blocks are of whole tiles");
        step::<T, S, VECTORS>(simd, &mut sums, *left, right);
    }
    sums
}

#[inline(always)]
fn strided_tile<X: Copy + Into<T>, T: Element, S: Simd, const VECTORS: usize>(
    simd: S,
    lines: [&[X]; TILE_ROWS],
    panel: &[T],
) -> Tile<T, S, VECTORS> {
    let mut sums = [[T::splat(simd, T::default()); VECTORS]; TILE_ROWS];
    let right = T::vectors::<S>(panel).as_chunks::<VECTORS>().0;
    // One zip, so that no line's length is looked at inside the loop.
    let [l0, l1, l2, l3, l4, l5] = lines;
    let pairs = l0.iter().zip(l1).zip(l2.iter().zip(l3)).zip(l4.iter().zip(l5));
    for ((((a, b), (c, d)), (e, f)), right) in pairs.zip(right) {
        step::<T, S, VECTORS>(simd, &mut sums, [*a, *b, *c, *d, *e, *f].map(Into::into), right);
    }
    sums
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn naive(
        [rows, depth, columns]: [usize; 3],
        left: impl Fn(usize, usize) -> f64,
        right: impl Fn(usize, usize) -> f64,
    ) -> Vec<f64> {
        let mut out = vec![0.0; rows * columns];
        for i in 0..rows {
            for j in 0..columns {
                out[i * columns + j] = (0..depth).map(|k| left(i, k) * right(k, j)).sum();
            }
        }
        out
    }

    #[test]
    fn integer_products_in_f64_are_exact_for_every_shape_and_layout() {
        let mut packing = Packing::default();
        for shape @ [rows, depth, columns] in
            [[1, 1, 1], [6, 3, 8], [7, 300, 9], [13, 5, 17], [2, 513, 1], [1, 2, 530], [12, 256, 16]]
        {
            let entry = |i: usize| ((i * 2_654_435_761) % 65_537) as f64 - 32_768.0;
            let left: Vec<f64> = (0..rows * depth).map(entry).collect();
            let right: Vec<f64> = (0..depth * columns).map(|i| entry(i + 7)).collect();
            for (left_transposed, right_transposed) in
                [(false, false), (false, true), (true, false), (true, true)]
            {
                let left_view =
                    if left_transposed { View::transpose(&left, rows) } else { View::rows(&left, depth) };
                let right_view = if right_transposed {
                    View::transpose(&right, depth)
                } else {
                    View::rows(&right, columns)
                };
                let mut out = vec![0.0; rows * columns];
                add_product(shape, left_view, right_view, &mut out, &mut packing);
                if !left_transposed {
                    let (mut packed, mut again) = (PackedRight::default(), vec![3.0; rows * columns]);
                    packed.pack([depth, columns], right_view);
                    packed_product(rows, left_view, &packed, Start::Zero, &mut again);
                    assert_eq!(again, out, "{shape:?}");
                    let row: Vec<f64> = (0..columns).map(entry).collect();
                    packed_product(rows, left_view, &packed, Start::Row(&row), &mut again);
                    let sums = out.chunks_exact(columns).zip(again.chunks_exact(columns));
                    for (out, again) in sums {
                        assert!(out.iter().zip(&row).zip(again).all(|((a, b), c)| a + b == *c), "{shape:?}");
                    }
                    packed_product(rows, left_view, &packed, Start::Kept, &mut again);
                    let at = rows * columns - 1;
                    assert_eq!(again[at], 2.0 * out[at] + row[columns - 1], "{shape:?}");
                }
                let at = |view: View<'_, f64>, i: usize, j: usize| {
                    view.data[if view.transposed { j * view.stride + i } else { i * view.stride + j }]
                };
                assert_eq!(
                    out,
                    naive(shape, |i, k| at(left_view, i, k), |k, j| at(right_view, k, j)),
                    "{shape:?}"
                );
            }
        }
    }

    #[test]
    fn outer_products_are_exact_in_floats_and_in_integers() {
        let (mut packing, mut narrow) = (Packing::default(), Packing::<f32>::default());
        for [outputs, inputs, rows] in [[2, 5, 4], [19, 3, 300], [8, 8, 1], [33, 17, 7], [1, 40, 9]] {
            let entry = |i: usize| ((i * 2_654_435_761) % 129) as f32 - 64.0;
            let gradients: Vec<f32> = (0..rows * outputs).map(entry).collect();
            let activations: Vec<f32> = (0..rows * inputs).map(|i| entry(i + 7)).collect();
            let shape = [outputs, inputs];
            let expected = naive(
                [outputs, rows, inputs],
                |i, k| gradients[k * outputs + i].into(),
                |k, j| activations[k * inputs + j].into(),
            );
            let mut out = vec![0.5; outputs * inputs];
            add_outer_products::<f32, f64, f64>(shape, &gradients, &activations, &mut out, &mut packing);
            assert!(out.iter().zip(&expected).all(|(got, expected)| *got == expected + 0.5), "{shape:?}");
            let (mut wide, mut short) = (vec![-7i64; out.len()], vec![-7i64; out.len()]);
            add_outer_products::<f32, f64, i64>(shape, &gradients, &activations, &mut wide, &mut packing);
            add_outer_products::<f32, f32, i64>(shape, &gradients, &activations, &mut short, &mut narrow);
            assert!(wide.iter().zip(&expected).all(|(got, expected)| *got == *expected as i64 - 7));
            assert_eq!(wide, short, "{shape:?}");
        }
    }

    #[test]
    fn the_size_of_outer_products_is_that_of_what_is_written() {
        let mut packing = Packing::default();
        for [outputs, inputs, rows] in
            [[2, 5, 4], [100, 33, 30], [8, 8, 1], [33, 170, 7], [7, 530, 3], [6, 16, 300]]
        {
            let draw = |i: usize| ((i * 2_654_435_761) % 257) as f32 / 100.0 - 1.0;
            let gradients: Vec<f32> = (0..rows * outputs).map(draw).collect();
            let activations: Vec<f32> = (0..rows * inputs).map(|i| draw(i + 7)).collect();
            let mut out = vec![9.0; outputs * inputs];
            let size =
                write_outer_products([outputs, inputs], &gradients, &activations, &mut out, &mut packing);
            let mut sums = vec![0.0; out.len()];
            add_outer_products([outputs, inputs], &gradients, &activations, &mut sums, &mut packing);
            assert_eq!(out, sums);
            let expected: f64 = out.iter().map(|&entry| f64::from(entry).powi(2)).sum();
            assert!((size.squares - expected).abs() < SQUARES_ERROR * expected, "{size:?} for {expected}");
            let largest: f32 = out.iter().fold(0.0, |largest, entry| entry.abs().max(largest));
            assert!((largest..3.0 * largest).contains(&size.largest), "{size:?} for {largest}");
        }
    }

    #[test]
    fn no_entry_is_larger_than_a_products_size_however_small_or_large_its_square() {
        let mut packing = Packing::default();
        for factor in [1e-22, 1e-18, 1.0, 1e18, 1e20] {
            for at in [0, 5, 40 * 33 - 1] {
                let (mut gradients, mut activations) = ([0.25 * factor; 40], [1e-7; 33]);
                gradients[at / 33] = factor;
                activations[at % 33] = 2.0;
                let mut out = vec![0.0; 40 * 33];
                let shape = [40, 33];
                let size = write_outer_products(shape, &gradients, &activations, &mut out, &mut packing);
                let largest = largest_magnitude(&out);
                assert_eq!(largest, 2.0 * factor);
                assert!((largest..3.0 * largest).contains(&size.largest), "{size:?} for {largest}");
            }
            let mut out = [0.0; 7];
            let size = write_outer_products([1, 7], &[factor], &[0.5; 7], &mut out, &mut packing);
            assert!((0.5 * factor..1.5 * factor).contains(&size.largest), "{size:?} for {factor}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn a_row_of_a_product_does_not_depend_on_the_other_rows(
            rows in 1usize..20, depth in 1usize..40, columns in 2usize..40, seed in any::<u64>(),
        ) {
            let mut state = seed;
            let mut draw = |count: usize| -> Vec<f32> {
                (0..count).map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    ((state >> 40) as f32 / 8_388_608.0 - 1.0) * 3.7
                }).collect()
            };
            let (left, right) = (draw(rows * depth), draw(depth * columns));
            let mut packing = Packing::default();
            let mut together = vec![0.25; rows * columns];
            let right = View::transpose(&right, depth);
            add_product([rows, depth, columns], View::rows(&left, depth), right, &mut together, &mut packing);
            for (row, together) in left.chunks_exact(depth).zip(together.chunks_exact(columns)) {
                let mut alone = vec![0.25; columns];
                add_product([1, depth, columns], View::rows(row, depth), right, &mut alone, &mut packing);
                prop_assert_eq!(&alone, together);
            }
        }
    }
}
