//! Trees of keys and values: of the embedded database, or of a [`MemoryDisk`].

use sled::IVec;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A tree.
#[derive(Debug)]
pub(super) enum Tree {
    /// Of the database.
    Database(sled::Tree),
    /// In memory, by its name.
    Memory(&'static str, MemoryDisk),
}

/// Keys with their values, in order.
pub(super) type Entries = Box<dyn DoubleEndedIterator<Item = sled::Result<(IVec, IVec)>>>;

impl Tree {
    /// Puts a value in place of what is there.
    pub fn insert(&self, key: impl AsRef<[u8]>, value: impl Into<IVec>) -> sled::Result<()> {
        match self {
            Self::Database(tree) => tree.insert(key, value).map(|_| ()),
            Self::Memory(name, disk) => {
                disk.write(name, key.as_ref(), Some(value.into().to_vec())).map(|_| ())
            }
        }
    }

    /// Takes a value away; what was there.
    pub fn remove(&self, key: impl AsRef<[u8]>) -> sled::Result<Option<IVec>> {
        match self {
            Self::Database(tree) => tree.remove(key),
            Self::Memory(name, disk) => Ok(disk.write(name, key.as_ref(), None)?.map(IVec::from)),
        }
    }

    /// The value of a key.
    pub fn get(&self, key: impl AsRef<[u8]>) -> sled::Result<Option<IVec>> {
        match self {
            Self::Database(tree) => tree.get(key),
            Self::Memory(name, disk) => {
                let key = (*name, key.as_ref().to_vec());
                Ok(disk.lock().values.get(&key).map(|value| IVec::from(value.as_slice())))
            }
        }
    }

    /// Those whose keys begin with `prefix`.
    pub fn scan_prefix(&self, prefix: &[u8]) -> Entries {
        match self {
            Self::Database(tree) => Box::new(tree.scan_prefix(prefix)),
            Self::Memory(name, disk) => disk.entries(name, |key| key.starts_with(prefix)),
        }
    }

    /// Those in a range.
    pub fn range(&self, range: RangeInclusive<Vec<u8>>) -> Entries {
        match self {
            Self::Database(tree) => Box::new(tree.range(range)),
            Self::Memory(name, disk) => disk.entries(name, |key| range.contains(key)),
        }
    }

    /// All of them.
    pub fn iter(&self) -> Entries {
        self.scan_prefix(&[])
    }
}

/// Memory in the place of a disk, to put a whole federation under test: a crash loses what was not synced, from
/// some write on, as the database's log does.
#[derive(Debug, Clone, Default)]
pub struct MemoryDisk(Arc<Mutex<State>>);

type Key = (&'static str, Vec<u8>);

#[derive(Debug, Default)]
struct State {
    synced: BTreeMap<Key, Vec<u8>>,
    values: BTreeMap<Key, Vec<u8>>,
    unsynced: Vec<(Key, Option<Vec<u8>>)>,
    /// Writes and syncs that still succeed.
    left: Option<u64>,
}

impl MemoryDisk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After so many more writes and syncs, none succeeds until [`MemoryDisk::crash`]: the process dies there.
    pub fn fail_after(&self, writes: u64) {
        self.lock().left = Some(writes);
    }

    /// The process died: of the writes not synced, the first `kept` are there (at most all), the others are lost.
    pub fn crash(&self, kept: usize) {
        let mut state = self.lock();
        let State { synced, values, unsynced, left } = &mut *state;
        for (key, value) in unsynced.drain(..).take(kept) {
            put(synced, key, value);
        }
        values.clone_from(synced);
        *left = None;
    }

    /// On return, everything written before survives a crash.
    pub(super) fn sync(&self) -> sled::Result<()> {
        let mut state = self.lock();
        state.spend()?;
        let State { synced, unsynced, .. } = &mut *state;
        for (key, value) in unsynced.drain(..) {
            put(synced, key, value);
        }
        Ok(())
    }

    fn write(&self, tree: &'static str, key: &[u8], value: Option<Vec<u8>>) -> sled::Result<Option<Vec<u8>>> {
        let mut state = self.lock();
        state.spend()?;
        let key = (tree, key.to_vec());
        state.unsynced.push((key.clone(), value.clone()));
        Ok(put(&mut state.values, key, value))
    }

    fn entries(&self, tree: &'static str, wanted: impl Fn(&Vec<u8>) -> bool) -> Entries {
        let state = self.lock();
        let of_tree = state.values.range((tree, Vec::new())..).take_while(|((name, _), _)| *name == tree);
        let found = of_tree.filter(|((_, key), _)| wanted(key));
        let copied = found.map(|((_, key), value)| Ok((key.as_slice().into(), value.as_slice().into())));
        Box::new(copied.collect::<Vec<_>>().into_iter())
    }
}

impl State {
    fn spend(&mut self) -> sled::Result<()> {
        match &mut self.left {
            Some(0) => Err(sled::Error::Unsupported("the process died here".into())),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

fn put(values: &mut BTreeMap<Key, Vec<u8>>, key: Key, value: Option<Vec<u8>>) -> Option<Vec<u8>> {
    match value {
        Some(value) => values.insert(key, value),
        None => values.remove(&key),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_keeps_what_was_synced_and_the_first_of_what_was_not() {
        let disk = MemoryDisk::default();
        let (tree, other) = (Tree::Memory("a-1", disk.clone()), Tree::Memory("b-1", disk.clone()));
        tree.insert([1], vec![1]).unwrap();
        other.insert([1], vec![9]).unwrap();
        disk.sync().unwrap();
        tree.insert([2], vec![2]).unwrap();
        assert_eq!(tree.remove([1]).unwrap().unwrap(), [1]);
        disk.crash(1);
        let keys = |tree: &Tree| tree.iter().map(|entry| entry.unwrap().0.to_vec()).collect::<Vec<_>>();
        assert_eq!((keys(&tree), keys(&other)), (vec![vec![1], vec![2]], vec![vec![1]]));
        disk.crash(9);
        assert_eq!(keys(&tree), [[1], [2]]);
    }

    #[test]
    fn a_disk_that_dies_takes_nothing_more() {
        let disk = MemoryDisk::default();
        let tree = Tree::Memory("a-1", disk.clone());
        disk.fail_after(1);
        tree.insert([1], vec![1]).unwrap();
        assert!(disk.sync().is_err() && tree.insert([2], vec![2]).is_err());
        disk.crash(0);
        assert_eq!(tree.iter().count(), 0);
        tree.insert([3], vec![3]).unwrap();
    }
}
