//! Copies of matrices in the order in which a register tile reads them.

use pulp::{Arch, Simd, WithSimd};

use super::element::{Element, lanes};
use super::{TILE_ROWS, TILE_VECTORS, blocks};

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
pub(crate) struct PackedRight<T> {
    pub(super) depth: usize,
    pub(super) columns: usize,
    /// Panel after panel of each block of terms of each block of columns.
    pub(super) panels: Vec<T>,
}

impl<T: Element> PackedRight<T> {
    /// Packs `right`, `[depth, columns]`, in place of what was packed before.
    pub(crate) fn pack(&mut self, [depth, columns]: [usize; 2], right: View<'_, T>) {
        (self.depth, self.columns) = (depth, columns);
        self.panels.clear();
        Arch::new().dispatch(PackAll { right, packed: self });
    }
}

struct PackAll<'a, T> {
    right: View<'a, T>,
    packed: &'a mut PackedRight<T>,
}

impl<T: Element> WithSimd for PackAll<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { right, packed: PackedRight { depth, columns, panels, .. } } = self;
        for block @ [_, block_columns, _, terms] in blocks([*depth, *columns]) {
            let first = panels.len();
            let tile_columns = TILE_VECTORS * lanes::<T, S>();
            let added = block_columns.div_ceil(tile_columns) * tile_columns * terms;
            panels.resize(first + added, T::default());
            pack_block::<T, T>(right, block, tile_columns, &mut panels[first..]);
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
    for (p, panel) in panels.chunks_exact_mut(terms * tile_columns).enumerate() {
        let column = p * tile_columns;
        let width = tile_columns.min(block_columns - column);
        pack(right, first_term, first_column + column, width, tile_columns, panel);
    }
}

/// Copies rows `first_row .. last_row` of a transposed `left` and `terms` of its columns from `first_term` on to `panels`: tile
/// after tile `[terms, TILE_ROWS]`, with zeros past the last row.
#[inline(always)]
pub(super) fn pack_left<X: Copy + Into<T>, T: Element>(
    left: View<'_, X>,
    [first_term, terms]: [usize; 2],
    [first_row, last_row]: [usize; 2],
    panels: &mut [T],
) {
    // Line by line: lines are often a power of two apart, and one entry of each at a time would fall out of the cache.
    for term in 0..terms {
        let line = &left.data[(first_term + term) * left.stride..][first_row..last_row];
        let (tiles, rest) = line.as_chunks::<TILE_ROWS>();
        let mut panels = panels.chunks_exact_mut(terms * TILE_ROWS).map(|panel| {
            let slots = &mut panel[term * TILE_ROWS..];
            slots.first_chunk_mut::<TILE_ROWS>().expect("a tile for each term")
        });
        for (entries, slots) in tiles.iter().zip(&mut panels) {
            *slots = entries.map(Into::into);
        }
        if let (false, Some(slots)) = (rest.is_empty(), panels.next()) {
            *slots = [T::default(); TILE_ROWS];
            slots.iter_mut().zip(rest).for_each(|(slot, &entry)| *slot = entry.into());
        }
    }
}

/// Copies columns `first .. first + width` of the terms from `first_term` on to `panel`, `[terms, padded]`,
/// with zeros in the columns past `width`.
#[inline(always)]
fn pack<X: Copy + Into<T>, T: Element>(
    right: View<'_, X>,
    first_term: usize,
    first: usize,
    width: usize,
    padded: usize,
    panel: &mut [T],
) {
    if right.transposed {
        panel.fill(T::default());
        let terms = panel.len() / padded;
        for j in 0..width {
            let line = &right.data[(first + j) * right.stride + first_term..][..terms];
            for (slot, &value) in panel[j..].iter_mut().step_by(padded).zip(line) {
                *slot = value.into();
            }
        }
    } else {
        for (k, slots) in panel.chunks_exact_mut(padded).enumerate() {
            let line = &right.data[(first_term + k) * right.stride + first..][..width];
            // Chunks of a known length are copied in vectors, without a call.
            let (chunks, rest) = line.as_chunks::<CHUNK>();
            let (slot_chunks, _) = slots.as_chunks_mut::<CHUNK>();
            for (slots, values) in slot_chunks.iter_mut().zip(chunks) {
                for at in 0..CHUNK {
                    slots[at] = values[at].into();
                }
            }
            let slots = &mut slots[width - rest.len()..];
            slots.iter_mut().zip(rest).for_each(|(slot, &value)| *slot = value.into());
            if width < padded {
                slots[rest.len()..].fill(T::default());
            }
        }
    }
}
