//! Files that have something to write back or to report, for the clock thread and for writers that wait for room.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use super::open_file::OpenInode;
use crate::lock::Mutex;

#[derive(Default)]
pub struct DirtyFiles {
    dirty: Mutex<Vec<Weak<OpenInode>>>,
    /// Files with appended bytes that may not wait until they have aged.
    appended: Mutex<Vec<Weak<OpenInode>>>,
    /// Files with deferred attributes.
    deferred_count: AtomicUsize,
}

impl DirtyFiles {
    pub fn add(&self, inode: &Arc<OpenInode>) {
        self.dirty.lock().push(Arc::downgrade(inode));
    }

    /// Add a file to which bytes were appended while this client was its only writer.
    pub fn add_appended(&self, inode: &Arc<OpenInode>) {
        self.appended.lock().push(Arc::downgrade(inode));
    }

    pub fn has_appended(&self) -> bool {
        !self.appended.lock().is_empty()
    }

    pub fn add_deferred(&self) {
        self.deferred_count.fetch_add(1, Ordering::AcqRel);
    }

    pub fn remove_deferred(&self) {
        let before = self.deferred_count.fetch_sub(1, Ordering::AcqRel);
        assert!(before > 0, "A2: a file with deferred attributes is counted");
    }

    pub fn deferred_count(&self) -> usize {
        self.deferred_count.load(Ordering::Acquire)
    }

    fn all(&self) -> Vec<Arc<OpenInode>> {
        self.dirty.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// Write back what was appended before others may append (E4).
    pub fn write_back_appended(&self) {
        let files = std::mem::take(&mut *self.appended.lock());
        let files: Vec<_> = files.iter().filter_map(Weak::upgrade).collect();
        // Start all of them first: a report may wait for the metadata service.
        files.iter().for_each(OpenInode::start_append_write_back);
        files.iter().for_each(OpenInode::report_appended);
    }

    /// Report all deferred attributes: a name is about to be moved, and its reader is to find them (A2).
    pub fn flush_deferred(&self) {
        if self.deferred_count() == 0 {
            return;
        }
        for inode in self.all() {
            if let Err(error) = inode.flush_deferred() {
                inode.fail(error.context("attributes"));
            }
        }
    }

    /// Begin to write back everything: memory is short.
    pub fn flush_for_pressure(&self) {
        for inode in self.all() {
            inode.start_write_back();
        }
    }

    /// Begin to write back what has waited since the last call but one.
    pub fn write_back_aged(&self) {
        let files = self.all();
        // Start all of them first: a report may wait for the metadata service.
        files.iter().for_each(|inode| inode.start_write_back());
        let mut done: HashSet<_> =
            files.iter().filter(|inode| !inode.report_aged()).map(Arc::as_ptr).collect();
        // Remove each once: a file that has been written since is listed a second time.
        self.dirty.lock().retain(|inode| inode.strong_count() > 0 && !done.remove(&inode.as_ptr()));
    }

    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.dirty.lock().len()
    }
}
