//! A bounded map that drops what was not used for one or two generations (N3).

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;

/// Entries of each kind: 32,768 inodes of about 300 bytes are 10 MiB, twice while a generation is replaced.
pub(super) const ENTRIES_MAX: usize = 32_768;

pub(super) struct Generations<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
}

impl<K: Hash + Eq + Clone, V: Clone> Generations<K, V> {
    pub(super) fn new() -> Self {
        Generations { young: HashMap::new(), old: HashMap::new() }
    }

    pub(super) fn get<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        if !self.young.contains_key(key)
            && let Some((key, value)) = self.old.remove_entry(key)
        {
            self.put(key, value);
        }
        self.young.get(key)
    }

    /// The value, if it belongs to the young generation.
    pub(super) fn young_mut<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        self.young.get_mut(key)
    }

    pub(super) fn put(&mut self, key: K, value: V) {
        if self.young.len() >= ENTRIES_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
        assert!(self.young.len() <= ENTRIES_MAX && self.old.len() <= ENTRIES_MAX, "N3: memory is bounded");
    }

    pub(super) fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
    {
        self.young.remove(key);
        self.old.remove(key);
    }

    pub(super) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}
