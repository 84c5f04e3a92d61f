//! The table of open files, and what opens that are under way must know of files that are closed meanwhile.
//!
//! - F1 The reply to an open may be older than what this client has reported or changed since, through handles that are
//!   gone by now or without one. Nothing may be written on top of it: the open asks again.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::identity::Identity;
use super::open_file::OpenInode;
use super::shared::Shared;
use crate::clock;
use crate::error::Result;
use crate::lock::Mutex;
use crate::wire::pb;

struct Opened {
    inode: Arc<OpenInode>,
    handles: usize,
}

#[derive(Default)]
struct Table {
    open: HashMap<u64, Opened>,
    /// Opens that are not finished, by number, and the number of the last one.
    opening: BTreeSet<u64>,
    last_opening: u64,
    /// What was learnt of inodes that are not open, since the oldest of those opens began.
    left: HashMap<u64, Left>,
    /// Opens up to this number began before some of that was dropped.
    forgotten: u64,
}

/// The newest `change` of an inode, and the last open that had begun when it was learnt.
struct Left {
    change: u64,
    opening: u64,
}

const LEFT_MAX: usize = 1024;

impl Table {
    fn leave(&mut self, inode: u64, change: u64) {
        if self.opening.is_empty() {
            return;
        }
        if self.left.len() >= LEFT_MAX {
            self.left.clear();
            self.forgotten = self.last_opening;
        }
        let opening = self.last_opening;
        let left = self.left.entry(inode).or_insert(Left { change, opening });
        *left = Left { change: left.change.max(change), opening };
        assert!(self.left.len() <= LEFT_MAX && self.forgotten <= self.last_opening, "F1: memory is bounded");
    }

    fn begin_opening(&mut self) -> u64 {
        self.last_opening += 1;
        let is_new = self.opening.insert(self.last_opening);
        assert!(is_new, "F1: an open has a number of its own");
        self.last_opening
    }

    fn end_opening(&mut self, number: u64) {
        let was_known = self.opening.remove(&number);
        assert!(was_known, "F1: an open ends once");
        if self.opening.is_empty() {
            self.left.clear();
        }
    }

    /// Return whether the reply to that open is, or may be, older than what is known.
    fn is_overtaken(&self, number: u64, inode: &pb::Inode) -> bool {
        assert!(self.opening.contains(&number), "F1: the open is under way");
        let newer = |left: &Left| left.opening >= number && left.change > inode.change;
        number <= self.forgotten || self.left.get(&inode.id).is_some_and(newer)
    }
}

/// The open files of one client, above what they share.
pub struct OpenFiles {
    shared: Arc<Shared>,
    table: Mutex<Table>,
    /// Handles that are open for reading, by inode.
    read_holds: Mutex<HashMap<u64, usize>>,
}

impl OpenFiles {
    pub fn new(shared: Arc<Shared>) -> Arc<OpenFiles> {
        Arc::new(OpenFiles { shared, table: Mutex::default(), read_holds: Mutex::default() })
    }

    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Return the open file with that inode number, if this process has it open.
    pub fn find(&self, inode: u64) -> Option<Arc<OpenInode>> {
        self.table.lock().open.get(&inode).map(|opened| opened.inode.clone())
    }

    /// Return the open file that this client has just changed, to `inode`; `None`: it is not open.
    pub fn find_changed(&self, inode: &pb::Inode) -> Option<Arc<OpenInode>> {
        let mut table = self.table.lock();
        let open = table.open.get(&inode.id).map(|opened| opened.inode.clone());
        if open.is_none() {
            table.leave(inode.id, inode.change);
        }
        open
    }

    pub fn all(&self) -> Vec<Arc<OpenInode>> {
        self.table.lock().open.values().map(|opened| opened.inode.clone()).collect()
    }

    /// How many files are open.
    pub fn count(&self) -> usize {
        self.table.lock().open.len()
    }

    /// Drop one handle. With the last one, metadata that could not be reported is discarded.
    pub fn release(&self, inode: u64) {
        let mut table = self.table.lock();
        let known =
            table.open.get_mut(&inode).expect("a handle is of a file in the table, and released once");
        assert!(known.handles > 0, "an open file has handles");
        known.handles -= 1;
        if known.handles == 0 {
            known.inode.discard_unsynced();
            let change = known.inode.change();
            table.open.remove(&inode);
            table.leave(inode, change);
        }
    }

    /// Count one more handle that is open for reading.
    pub fn hold(&self, inode: u64) {
        *self.read_holds.lock().entry(inode).or_default() += 1;
    }

    pub fn unhold(&self, inode: u64) {
        let mut holds = self.read_holds.lock();
        let count = holds.get_mut(&inode).expect("a hold is counted while it is there");
        *count -= 1;
        if *count == 0 {
            holds.remove(&inode);
        }
    }

    pub fn held(&self) -> Vec<u64> {
        self.read_holds.lock().keys().copied().collect()
    }

    /// Return the write sessions of all open files.
    pub fn write_sessions(&self) -> Vec<pb::WriteSession> {
        self.all().iter().flat_map(|inode| inode.write_sessions()).collect()
    }

    /// Return attributes that the metadata service has sent, with what was written here and not synced yet.
    pub fn local_view(&self, inode: &pb::Inode) -> pb::Inode {
        match self.find(inode.id) {
            Some(open) => open.overlay_local(inode),
            // It may have been closed since that was asked.
            None => self
                .shared
                .metadata_cache
                .newest(inode)
                .map_or_else(|| inode.clone(), |known| pb::Inode::clone(&known)),
        }
    }

    /// Fail the files of write sessions that the metadata service does not know any more.
    pub fn lose_sessions(&self, lost: &[pb::WriteSession]) {
        for lost in lost {
            if let Some(inode) = self.find(lost.inode) {
                inode.lose_session(lost.session);
            }
        }
    }

    /// Report what is open, as `request` says, to a service that may have forgotten this client: write sessions that
    /// were lost fail, and what is known of open files is asked for again.
    pub fn register_again(&self, identity: &Identity, request: pb::HoldRequest) -> Result<()> {
        let lost = self.shared.meta.hold(identity, request)?;
        self.lose_sessions(&lost);
        self.all().iter().for_each(|inode| inode.distrust());
        Ok(())
    }

    /// Describe what a client should not keep when all files are closed and all is synced; empty if there is none.
    #[cfg(test)]
    pub fn leftovers(&self) -> String {
        let mut left = Vec::new();
        let mut expect_none = |what: &str, count: usize| {
            if count != 0 {
                left.push(format!("{count} {what}"));
            }
        };
        expect_none("bytes of the dirty limit", self.shared.dirty_limit.used());
        expect_none("files with deferred attributes", self.shared.dirty_files.deferred_count());
        expect_none("closes", self.shared.closes.count());
        expect_none("held inodes", self.held().len());
        expect_none("files with dirty bytes", self.shared.dirty_files.count());
        let (open, opening, closed) = self.counts();
        expect_none("open files", open);
        expect_none("opens", opening);
        expect_none("changes", closed);
        left.join(", ")
    }

    /// Count open files, opens under way, and closed files that these must know of.
    #[cfg(test)]
    fn counts(&self) -> (usize, usize, usize) {
        let table = self.table.lock();
        (table.open.len(), table.opening.len(), table.left.len())
    }
}

/// The metadata service is being asked to open a file, until this is dropped.
pub struct Opening<'a> {
    files: &'a OpenFiles,
    number: u64,
    /// By `clock`.
    pub begun_ns: u64,
}

impl Opening<'_> {
    /// Begin before the metadata service is asked to open a file.
    pub fn begin(files: &OpenFiles) -> Opening<'_> {
        let number = files.table.lock().begin_opening();
        Opening { files, number, begun_ns: clock::now_ns() }
    }

    /// Add a handle of the file that the metadata service described. `None`: this client has changed it since; ask
    /// again.
    pub fn opened(&mut self, inode: &pb::Inode) -> Option<Arc<OpenInode>> {
        let mut table = self.files.table.lock();
        if let Some(known) = table.open.get_mut(&inode.id) {
            assert!(known.handles > 0 && known.inode.id() == inode.id, "an open file has handles");
            known.handles += 1;
            let known = known.inode.clone();
            drop(table);
            known.apply_server_inode(inode);
            return Some(known);
        }
        if table.is_overtaken(self.number, inode) {
            let again = table.begin_opening();
            table.end_opening(std::mem::replace(&mut self.number, again));
            return None;
        }
        let new = OpenInode::new(self.files.shared.clone(), inode.clone());
        table.open.insert(inode.id, Opened { inode: new.clone(), handles: 1 });
        Some(new)
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.files.table.lock().end_opening(self.number);
    }
}
