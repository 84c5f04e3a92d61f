//! Which of the kernel's pages of a file may be used at its next open, and once newer attributes are shown (N4).

use super::generations::Generations;

#[derive(Clone, Copy)]
struct Pages {
    /// `change` of the inode that the pages belong to,
    change: u64,
    /// once the open of this number has dropped older ones; `None`: there are none older.
    invalidation: Option<u64>,
    /// Length that the kernel was last shown.
    length: u64,
    /// The invalidation is being carried out before attributes are shown.
    is_dropping: bool,
}

pub(super) struct KernelPages {
    known: Generations<u64, Pages>,
    last_invalidation: u64,
}

impl KernelPages {
    pub(super) fn new() -> KernelPages {
        KernelPages { known: Generations::new(), last_invalidation: 0 }
    }

    /// Record an open at `change`. Return the number of the invalidation that it has to carry out; `None`: the kernel's
    /// pages are valid.
    pub(super) fn open(&mut self, inode: u64, change: u64, length: u64) -> Option<u64> {
        let is_valid = |pages: &Pages| pages.change == change && pages.invalidation.is_none();
        if self.known.get(&inode).is_some_and(is_valid) {
            return None;
        }
        self.invalidate(inode, Pages { change, invalidation: None, length, is_dropping: false })
    }

    /// Put `pages` with an invalidation of their own; return its number.
    fn invalidate(&mut self, inode: u64, pages: Pages) -> Option<u64> {
        self.last_invalidation += 1;
        let invalidation = Some(self.last_invalidation);
        self.known.put(inode, Pages { invalidation, ..pages });
        invalidation
    }

    /// Whether others have changed the inode, up to `change`, since its pages were cached.
    pub(super) fn are_outdated(&mut self, inode: u64, change: u64) -> bool {
        self.known.get(&inode).is_some_and(|pages| pages.change < change || pages.is_dropping)
    }

    /// Record that the kernel is about to be shown attributes at `change`. Return the number of an invalidation, if it must
    /// drop its pages before. At another length it drops them itself, and is not asked to: it ignores attributes that a
    /// notification overtakes, and would not learn of the length.
    pub(super) fn show(&mut self, inode: u64, change: u64, length: u64) -> Option<u64> {
        // What was forgotten is older than anything.
        let unknown = Pages { change: 0, invalidation: None, length, is_dropping: false };
        let pages = self.known.get(&inode).copied().unwrap_or(unknown);
        let is_valid = pages.change >= change && !pages.is_dropping;
        if is_valid || pages.length != length {
            self.known.put(inode, Pages { length, ..pages });
            return None;
        }
        // Not reported as carried out by an open: the next one drops them once more.
        self.invalidate(inode, Pages { change: pages.change.max(change), is_dropping: true, ..pages })
    }

    /// Record that the kernel has dropped its pages before attributes were shown.
    pub(super) fn dropped(&mut self, inode: u64, invalidation: u64) {
        if let Some(pages) = self.known.get(&inode).copied()
            && pages.is_dropping
            && pages.invalidation == Some(invalidation)
        {
            self.known.put(inode, Pages { is_dropping: false, ..pages });
        }
    }

    /// Record that the kernel has carried out an invalidation.
    pub(super) fn invalidated(&mut self, inode: u64, invalidation: u64) {
        assert!(invalidation != 0 && invalidation <= self.last_invalidation, "N4: an open asked for it");
        let Some(pages) = self.known.get(&inode).copied() else { return };
        if pages.invalidation == Some(invalidation) {
            self.known.put(inode, Pages { invalidation: None, ..pages });
        }
    }

    /// Have the next open drop the pages, whatever has changed.
    pub(super) fn forget(&mut self, inode: u64) {
        self.known.remove(&inode);
    }

    /// Record that this client alone changed the inode, from `from` to `to`.
    pub(super) fn follow(&mut self, inode: u64, from: u64, to: u64) {
        assert!(from <= to, "N4: `change` grows");
        if let Some(pages) = self.known.get(&inode).copied()
            && pages.change == from
        {
            self.known.put(inode, Pages { change: to, ..pages });
        }
    }

    pub(super) fn len(&self) -> usize {
        self.known.len()
    }
}
