//! Tracked sockets by key: a table of slots alone, four bytes each. The key of a slot is read from its socket.

use std::hash::{BuildHasher, Hash};
use std::marker::PhantomData;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

/// Slots by key. No key leads to two. Where a method takes `key_of`, that returns the key of the socket in a slot.
#[derive(Default)]
pub(super) struct Index<K, S> {
    slots: HashTable<u32>,
    hasher: S,
    keys: PhantomData<K>,
}

/// There are fewer sockets than 2³²: each takes more than a kilobyte in the kernel.
fn slot(at: usize) -> u32 {
    at as u32
}

impl<K: Copy + Eq + Hash, S: BuildHasher> Index<K, S> {
    pub(super) fn get(&self, key: K, key_of: impl Fn(usize) -> Option<K>) -> Option<usize> {
        let same = |&slot: &u32| key_of(slot as usize) == Some(key);
        self.slots.find(self.hasher.hash_one(key), same).map(|&slot| slot as usize)
    }

    /// Makes `key` lead to the socket at `at`, whose key it is, and to no other.
    pub(super) fn insert(&mut self, key: K, at: usize, key_of: impl Fn(usize) -> Option<K>) {
        let same = |&slot: &u32| key_of(slot as usize) == Some(key);
        let hash = self.hasher.hash_one(key);
        match self.slots.entry(hash, same, rehash(&self.hasher, &key_of)) {
            Entry::Occupied(mut entry) => *entry.get_mut() = slot(at),
            Entry::Vacant(entry) => {
                entry.insert(slot(at));
            }
        }
    }

    /// Removes `key`, the present or last key of the socket at `at`, if it leads there.
    pub(super) fn remove(&mut self, key: K, at: usize) {
        let hash = self.hasher.hash_one(key);
        if let Ok(entry) = self.slots.find_entry(hash, |&known| known == slot(at)) {
            entry.remove();
        }
    }

    /// Follows the socket with `key` from one slot to another.
    pub(super) fn moved(&mut self, key: K, from: usize, to: usize) {
        let hash = self.hasher.hash_one(key);
        if let Some(at) = self.slots.find_mut(hash, |&known| known == slot(from)) {
            *at = slot(to);
        }
    }

    pub(super) fn shrink_to_fit(&mut self, key_of: impl Fn(usize) -> Option<K>) {
        self.slots.shrink_to_fit(rehash(&self.hasher, &key_of));
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

/// The hash of the socket in a slot. Every slot in the table has a socket with a key.
fn rehash<K: Hash>(hasher: &impl BuildHasher, key_of: &impl Fn(usize) -> Option<K>) -> impl Fn(&u32) -> u64 {
    |&slot| key_of(slot as usize).map_or(0, |key| hasher.hash_one(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustc_hash::FxBuildHasher;

    #[test]
    fn a_key_leads_to_the_last_that_took_it_until_that_one_goes() {
        let mut keys: Vec<Option<u64>> = (0..1000).map(|n| Some(n * 64 + 1)).collect();
        let mut index = Index::<u64, FxBuildHasher>::default();
        for at in 0..keys.len() {
            index.insert(keys[at].unwrap(), at, |at| keys[at]);
        }
        assert!((0..1000).all(|at| index.get(keys[at].unwrap(), |at| keys[at]) == Some(at)));
        keys.push(Some(1));
        index.insert(1, 1000, |at| keys[at]);
        index.remove(1, 0);
        assert_eq!(
            index.get(1, |at| keys[at]),
            Some(1000),
            "a key that was taken over is not removed by its former socket"
        );
        keys[1000] = None;
        index.remove(1, 1000);
        assert_eq!(index.get(1, |at| keys[at]), None);
        keys.swap(0, 999);
        index.moved(keys[0].unwrap(), 999, 0);
        index.shrink_to_fit(|at| keys[at]);
        assert_eq!(index.get(keys[0].unwrap(), |at| keys[at]), Some(0));
        assert_eq!(index.get(keys[500].unwrap(), |at| keys[at]), Some(500));
    }
}
