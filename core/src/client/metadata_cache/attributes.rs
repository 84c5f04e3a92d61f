//! Attributes of inodes, and which of them the kernel has been given.

use std::sync::Arc;
use std::time::Instant;

use super::generations::Generations;
use crate::wire::pb;

#[derive(Clone)]
pub(super) struct Attributes {
    pub(super) inode: Arc<pb::Inode>,
    /// When the metadata service was asked.
    pub(super) asked: Instant,
    /// The kernel holds no attributes older than those of this `change`.
    shown: u64,
}

/// Where a reply comes from, and who else gets it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// Its attributes go to the kernel.
    Shown,
    /// Reply to a change that this client made, and that the kernel knows of.
    Own,
    /// Only this client gets it.
    Silent,
}

pub(super) struct AttributeCache {
    known: Generations<u64, Attributes>,
}

impl AttributeCache {
    pub(super) fn new() -> AttributeCache {
        AttributeCache { known: Generations::new() }
    }

    pub(super) fn get(&mut self, inode: u64) -> Option<&Attributes> {
        self.known.get(&inode)
    }

    /// Take in a reply. Return the newest attributes known (N2).
    pub(super) fn learn(&mut self, inode: Arc<pb::Inode>, asked: Instant, source: Source) -> Arc<pb::Inode> {
        let known = self.known.get(&inode.id).cloned();
        let (before, shown) = known.as_ref().map_or((0, 0), |known| (known.inode.change, known.shown));
        let newest = match known {
            Some(known)
                if known.inode.change > inode.change
                    || known.inode.change == inode.change && known.asked > asked =>
            {
                known
            }
            _ => Attributes { inode, asked, shown },
        };
        let change = newest.inode.change;
        assert!(change >= before, "N2: what is known gets no older");
        let is_shown = match source {
            Source::Shown => true,
            Source::Own => change <= before + 1 && shown >= before,
            Source::Silent => false,
        };
        let shown = if is_shown { change } else { shown };
        self.known.put(newest.inode.id, Attributes { shown, ..newest.clone() });
        newest.inode
    }

    /// Record that the entries of a directory changed at `time_ns`. The age of its attributes stays.
    pub(super) fn touch(&mut self, directory: u64, time_ns: i64) {
        let Some(known) = self.known.get(&directory).cloned() else { return };
        if known.inode.ctime_ns < time_ns {
            let mut inode = pb::Inode::clone(&known.inode);
            inode.mtime_ns = time_ns;
            inode.ctime_ns = time_ns;
            inode.change = inode.change.max(time_ns as u64);
            self.known.put(directory, Attributes { inode: Arc::new(inode), ..known });
        }
    }

    pub(super) fn forget(&mut self, inode: u64) {
        self.known.remove(&inode);
    }

    /// Whether the kernel holds no attributes older than those of `change`.
    pub(super) fn is_shown(&mut self, inode: u64, change: u64) -> bool {
        self.known.get(&inode).is_some_and(|known| known.shown >= change)
    }

    /// Record that the kernel has dropped attributes older than those of `change`.
    pub(super) fn shown(&mut self, inode: u64, change: u64) {
        if let Some(known) = self.known.young_mut(&inode) {
            known.shown = known.shown.max(change);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.known.len()
    }
}
