//! Copies of matrices in the order in which a register tile reads them.

use pulp::{Arch, Simd, WithSimd};

use super::element::{Element, lanes};
use super::{ROW_BLOCK, TILE_ROWS, TILE_VECTORS, blocks};
use crate::model::aligned::Aligned;

/// Entries that are copied together.
const CHUNK: usize = 8;

/// A matrix in a row-major slice of `stride` elements a row, or the transpose of it.
#[derive(Clone, Copy)]
pub(crate) struct View<'a, T> {
    pub data: &'a [T],
    pub stride: usize,
    pub transposed: bool,
}

impl<'a, T> View<'a, T> {
    /// The `[.., columns]` matrix in `data`.
    pub(crate) fn rows(data: &'a [T], columns: usize) -> Self {
        Self { data, stride: columns, transposed: false }
    }

    /// The transpose of the `[.., columns]` matrix in `data`.
    pub(crate) fn transpose(data: &'a [T], columns: usize) -> Self {
        Self { data, stride: columns, transposed: true }
    }
}

/// A right side, `[depth, columns]`, packed once for many products.
#[derive(Clone, Debug, Default)]
pub(crate) struct PackedRight<T: Element> {
    pub(super) depth: usize,
    pub(super) columns: usize,
    /// Panel after panel of each block of terms of each block of columns.
    pub(super) panels: Aligned<T>,
}

impl<T: Element> PackedRight<T> {
    /// Packs `right`, `[depth, columns]`, in place of what was packed before.
    pub(crate) fn pack(&mut self, [depth, columns]: [usize; 2], right: View<'_, T>) {
        (self.depth, self.columns) = (depth, columns);
        Arch::new().dispatch(PackAll { right, packed: self });
    }
}

struct PackAll<'a, T: Element> {
    right: View<'a, T>,
    packed: &'a mut PackedRight<T>,
}

impl<T: Element> WithSimd for PackAll<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { right, packed: PackedRight { depth, columns, panels, .. } } = self;
        let tile_columns = TILE_VECTORS * lanes::<T, S>();
        let entries = |[_, block_columns, _, terms]: [usize; 4]| {
            block_columns.div_ceil(tile_columns) * tile_columns * terms
        };
        let mut rest = panels.resize(blocks([*depth, *columns]).map(entries).sum());
        for block in blocks([*depth, *columns]) {
            let (panels, later) = rest.split_at_mut(entries(block));
            pack_block::<T, T>(right, block, tile_columns, panels);
            rest = later;
        }
    }
}

/// The panels, of `tile_columns` each, of one block of `right`.
#[inline(always)]
pub(super) fn pack_block<X: Copy + Into<T>, T: Element>(
    right: View<'_, X>,
    [first_column, block_columns, first_term, terms]: [usize; 4],
    tile_columns: usize,
    panels: &mut [T],
) {
    if right.transposed {
        for (p, panel) in panels.chunks_exact_mut(terms * tile_columns).enumerate() {
            let column = p * tile_columns;
            let width = tile_columns.min(block_columns - column);
            pack_transposed(right, first_term, first_column + column, width, tile_columns, panel);
        }
        return;
    }
    // Line by line: lines are often a power of two apart, and a part of each at a time would fall out of the cache.
    for term in 0..terms {
        let line = &right.data[(first_term + term) * right.stride + first_column..][..block_columns];
        let panels = panels.chunks_exact_mut(terms * tile_columns);
        for (columns, panel) in line.chunks(tile_columns).zip(panels) {
            copy(columns, &mut panel[term * tile_columns..][..tile_columns]);
        }
    }
}

/// Copies rows `first_row .. last_row` of a transposed `left` and `terms` of its columns from `first_term` on to `lines`,
/// `[terms, ROW_BLOCK]`, with zeros past the last row up to a whole tile.
#[inline(always)]
pub(super) fn pack_left<X: Copy + Into<T>, T: Element>(
    left: View<'_, X>,
    [first_term, terms]: [usize; 2],
    [first_row, last_row]: [usize; 2],
    lines: &mut [T],
) {
    let rows = (last_row - first_row).next_multiple_of(TILE_ROWS);
    for (term, slots) in lines.chunks_exact_mut(ROW_BLOCK).take(terms).enumerate() {
        copy(&left.data[(first_term + term) * left.stride..][first_row..last_row], &mut slots[..rows]);
    }
}

/// Copies the line to the slots, with zeros behind it.
#[inline(always)]
fn copy<X: Copy + Into<T>, T: Element>(line: &[X], slots: &mut [T]) {
    // Chunks of a known length are copied in vectors, without a call.
    let (chunks, rest) = line.as_chunks::<CHUNK>();
    let (slots, rest_slots) = slots.split_at_mut(chunks.len() * CHUNK);
    for (slots, values) in slots.as_chunks_mut::<CHUNK>().0.iter_mut().zip(chunks) {
        *slots = values.map(Into::into);
    }
    if !rest_slots.is_empty() {
        rest_slots.fill(T::default());
        rest_slots.iter_mut().zip(rest).for_each(|(slot, &value)| *slot = value.into());
    }
}

/// Copies columns `first .. first + width` of the terms from `first_term` on of a transposed matrix to `panel`,
/// `[terms, padded]`, with zeros in the columns past `width`.
#[inline(always)]
fn pack_transposed<X: Copy + Into<T>, T: Element>(
    right: View<'_, X>,
    first_term: usize,
    first: usize,
    width: usize,
    padded: usize,
    panel: &mut [T],
) {
    panel.fill(T::default());
    let terms = panel.len() / padded;
    for j in 0..width {
        let line = &right.data[(first + j) * right.stride + first_term..][..terms];
        for (slot, &value) in panel[j..].iter_mut().step_by(padded).zip(line) {
            *slot = value.into();
        }
    }
}
