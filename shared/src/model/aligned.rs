//! Buffers whose vectors are each on one cache line: a processor reads one that is on two as if it were two.

use std::fmt;
use std::ops::{Deref, DerefMut};

/// Of a cache line, and of the widest vector there is.
const LINE_BYTES: usize = 64;

/// Entries of which the first begins a cache line. `Debug` prints how many.
#[derive(Default)]
pub(crate) struct Aligned<T> {
    /// With room for the entries wherever the allocator puts them.
    memory: Vec<T>,
    first: usize,
    count: usize,
}

impl<T: Copy + Default> Aligned<T> {
    /// Makes it so many entries, which may hold anything; never gives memory back.
    pub fn resize(&mut self, count: usize) -> &mut [T] {
        let spare = LINE_BYTES / size_of::<T>();
        if self.memory.len() < count + spare {
            // A new one, not a longer one: nobody wants the old entries copied.
            self.memory = vec![T::default(); count + spare];
            self.first = self.memory.as_ptr().align_offset(LINE_BYTES).min(spare);
        }
        self.count = count;
        self
    }
}

impl<T> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.memory[self.first..][..self.count]
    }
}

impl<T> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.memory[self.first..][..self.count]
    }
}

impl<T> fmt::Debug for Aligned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Aligned[{}]", self.count)
    }
}

impl<T: Copy + Default> Clone for Aligned<T> {
    fn clone(&self) -> Self {
        let mut clone = Self { memory: Vec::new(), first: 0, count: 0 };
        clone.resize(self.count).copy_from_slice(self);
        clone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_aligned<T>(entries: &[T]) -> bool {
        entries.as_ptr().addr().is_multiple_of(LINE_BYTES)
    }

    #[test]
    fn entries_begin_a_cache_line_however_often_their_number_changes() {
        let (mut floats, mut integers) = (Aligned::<f32>::default(), Aligned::<i64>::default());
        assert!(floats.is_empty());
        for count in [1, 100, 3, 0, 70_000, 17] {
            floats.resize(count).fill(1.0);
            integers.resize(count).fill(1);
            assert_eq!([floats.len(), integers.len()], [count; 2]);
            assert!(is_aligned(&floats) && is_aligned(&integers), "{count}");
        }
        assert!(is_aligned(&floats.clone()));
        assert_eq!(*floats.clone(), [1.0; 17]);
    }
}
