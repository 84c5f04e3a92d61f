//! Files that have something to write back or to report, for the clock thread and for writers that wait for room.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use crate::lock::Mutex;

/// An open file, as the lists use it. Errors are counted: fsync and close report them.
pub trait DirtyFile: Send + Sync {
    /// Begin to write back everything without waiting.
    fn start_write_back(self: Arc<Self>);

    /// Begin to write back what was appended, without waiting.
    fn start_append_write_back(self: Arc<Self>);

    /// Send what was appended to bytes in the inode.
    fn report_appended(self: Arc<Self>);

    /// Send deferred attributes.
    fn report_deferred(self: Arc<Self>);

    /// Send what has aged, after write-back was started. False: nothing is left to do, the list need not have the file.
    fn report_aged(self: Arc<Self>) -> bool;
}

#[derive(Default)]
pub struct DirtyFiles {
    dirty: Mutex<Vec<Weak<dyn DirtyFile>>>,
    /// Files with appended bytes that may not wait until they have aged.
    appended: Mutex<Vec<Weak<dyn DirtyFile>>>,
    /// Files with deferred attributes.
    deferred_count: AtomicUsize,
}

impl DirtyFiles {
    pub fn add(&self, file: Weak<dyn DirtyFile>) {
        self.dirty.lock().push(file);
    }

    /// Add a file to which bytes were appended while this client was its only writer.
    pub fn add_appended(&self, file: Weak<dyn DirtyFile>) {
        self.appended.lock().push(file);
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

    fn all(&self) -> Vec<Arc<dyn DirtyFile>> {
        self.dirty.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// Write back what was appended before others may append (E4).
    pub fn write_back_appended(&self) {
        let files = std::mem::take(&mut *self.appended.lock());
        let files: Vec<_> = files.iter().filter_map(Weak::upgrade).collect();
        // Start all of them first: a report may wait for the metadata service.
        files.iter().for_each(|file| file.clone().start_append_write_back());
        files.into_iter().for_each(|file| file.report_appended());
    }

    /// Report all deferred attributes: a name is about to be moved, and its reader is to find them (A2).
    pub fn flush_deferred(&self) {
        if self.deferred_count() == 0 {
            return;
        }
        for file in self.all() {
            file.report_deferred();
        }
    }

    /// Begin to write back everything: memory is short.
    pub fn flush_for_pressure(&self) {
        for file in self.all() {
            file.start_write_back();
        }
    }

    /// Begin to write back what has waited since the last call but one.
    pub fn write_back_aged(&self) {
        let files = self.all();
        // Start all of them first: a report may wait for the metadata service.
        files.iter().for_each(|file| file.clone().start_write_back());
        let is_done = |file: &&Arc<dyn DirtyFile>| !Arc::clone(file).report_aged();
        let mut done: HashSet<*const ()> =
            files.iter().filter(is_done).map(|file| Arc::as_ptr(file).cast()).collect();
        // Remove each once: a file that has been written since is listed a second time.
        self.dirty.lock().retain(|file| file.strong_count() > 0 && !done.remove(&file.as_ptr().cast()));
    }

    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.dirty.lock().len()
    }
}
