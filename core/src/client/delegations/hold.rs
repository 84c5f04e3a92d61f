//! The read hold of an open that brought a delegation, which handles share (G3).

use std::sync::{Arc, Weak};

use crate::client::close_batcher::Close;
use crate::client::identity::Identity;
use crate::client::open_files::OpenFiles;
use crate::wire::pb;

/// Ends when it is dropped: with the delegation, and the handles that were opened by it.
pub struct ReadHold {
    files: Weak<OpenFiles>,
    identity: Arc<Identity>,
    inode: u64,
    /// Of the request that opened the file.
    number: u64,
}

impl ReadHold {
    /// Of an open that `files` has counted.
    pub fn new(files: &Arc<OpenFiles>, identity: &Arc<Identity>, inode: u64, number: u64) -> Arc<ReadHold> {
        Arc::new(ReadHold { files: Arc::downgrade(files), identity: identity.clone(), inode, number })
    }
}

impl Drop for ReadHold {
    fn drop(&mut self) {
        let Some(files) = self.files.upgrade() else { return };
        files.unhold(self.inode, self.number);
        let one =
            pb::CloseOne { inode: self.inode, read_hold: true, hold: self.number, ..Default::default() };
        // Never sent from here: the thread of the poll must not wait for the service.
        files.shared().closes.push_unsent(Close { identity: self.identity.clone(), one });
    }
}
