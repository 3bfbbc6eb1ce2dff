//! Lives by what they are kept under: a table of slots alone, four bytes each. The key of a slot is asked of its life.

use std::hash::BuildHasher;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use rustc_hash::FxBuildHasher;

/// Slots by key. No key leads to two. Where a method takes `key_of`, that tells the key of the life in a slot.
///
/// Keys are cookies and addresses, which the kernel gives out: nobody else has a choice in them, so the hash needs no
/// secret.
#[derive(Default)]
pub(super) struct Index(HashTable<u32>);

fn hash(key: u64) -> u64 {
    FxBuildHasher.hash_one(key)
}

/// There are fewer lives than 2³²: a socket takes more than a kilobyte in the kernel.
fn slot(at: usize) -> u32 {
    at as u32
}

impl Index {
    pub(super) fn get(&self, key: u64, key_of: impl Fn(usize) -> Option<u64>) -> Option<usize> {
        self.0.find(hash(key), |&slot| key_of(slot as usize) == Some(key)).map(|&slot| slot as usize)
    }

    /// Makes `key` lead to the life at `at`, whose key it is, and to no other.
    pub(super) fn insert(&mut self, key: u64, at: usize, key_of: impl Fn(usize) -> Option<u64>) {
        let same = |&slot: &u32| key_of(slot as usize) == Some(key);
        match self.0.entry(hash(key), same, rehash(&key_of)) {
            Entry::Occupied(mut entry) => *entry.get_mut() = slot(at),
            Entry::Vacant(entry) => {
                entry.insert(slot(at));
            }
        }
    }

    /// Takes back that `key`, which the life at `at` has or had last, leads there; if it does.
    pub(super) fn remove(&mut self, key: u64, at: usize) {
        if let Ok(entry) = self.0.find_entry(hash(key), |&known| known == slot(at)) {
            entry.remove();
        }
    }

    /// Says that the life with `key` went from one slot to another.
    pub(super) fn moved(&mut self, key: u64, from: usize, to: usize) {
        if let Some(at) = self.0.find_mut(hash(key), |&known| known == slot(from)) {
            *at = slot(to);
        }
    }

    pub(super) fn shrink_to_fit(&mut self, key_of: impl Fn(usize) -> Option<u64>) {
        self.0.shrink_to_fit(rehash(&key_of));
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The hash of the life in a slot. Every slot in the table has a life with a key.
fn rehash(key_of: &impl Fn(usize) -> Option<u64>) -> impl Fn(&u32) -> u64 {
    |&slot| key_of(slot as usize).map_or(0, hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_leads_to_the_last_that_took_it_until_that_one_goes() {
        let mut keys: Vec<Option<u64>> = (0..1000).map(|n| Some(n * 64 + 1)).collect();
        let mut index = Index::default();
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
            "what was taken over is not the former one's to take back"
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
