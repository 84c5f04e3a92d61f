//! Names in directories, present or absent, and when this client last changed an entry of a directory.

use std::time::Instant;

use super::generations::Generations;

#[derive(Clone, Copy)]
pub(super) struct Dentry {
    /// `None`: there is no such name.
    pub(super) inode: Option<u64>,
    pub(super) asked: Instant,
}

pub(super) struct DentryCache {
    known: Generations<(u64, Vec<u8>), Dentry>,
    /// When this client last changed an entry of a directory.
    changed: Generations<u64, Instant>,
}

impl DentryCache {
    pub(super) fn new() -> DentryCache {
        DentryCache { known: Generations::new(), changed: Generations::new() }
    }

    pub(super) fn get(&mut self, parent: u64, name: &[u8]) -> Option<Dentry> {
        self.known.get(&(parent, name.to_vec())).copied()
    }

    /// Take in a reply, unless a newer one is known (N2).
    pub(super) fn learn(&mut self, parent: u64, name: &[u8], dentry: Dentry) {
        let key = (parent, name.to_vec());
        if self.known.get(&key).is_none_or(|known| known.asked <= dentry.asked) {
            self.known.put(key, dentry);
        }
    }

    /// Record a change that this client has made.
    pub(super) fn change(&mut self, parent: u64, name: &[u8], dentry: Dentry) {
        self.changed.put(parent, dentry.asked);
        self.known.put((parent, name.to_vec()), dentry);
    }

    pub(super) fn have_changed_since(&mut self, directory: u64, asked: Instant) -> bool {
        self.changed.get(&directory).is_some_and(|changed| *changed >= asked)
    }

    pub(super) fn len(&self) -> usize {
        self.known.len() + self.changed.len()
    }
}
