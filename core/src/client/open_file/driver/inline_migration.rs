//! How a small file leaves its inode for chunks.
//!
//! - X1 Nothing is written under the content of a file that is still in its inode.
//! - X2 The inode's bytes are written, and synced, under a spare content that is this attempt's alone. The metadata
//!   service installs it only if the inode is still what they were read from. So of two clients that try at one time
//!   one succeeds, and what the other has written is nowhere in the file.
//! - X3 What this client wrote since is not part of it: it waits in `dirty`, and goes to whatever content the file has
//!   afterwards. The faster client's bytes stay where nothing was written here.

use std::time::Instant;

use super::super::transitions::write_back::Migrated;
use crate::buffer::Placement;
use crate::client::data::Write;
use crate::client::identity::Identity;
use crate::client::shared::Shared;
use crate::error::{Kind, Result};
use crate::types::ContentId;
use crate::wire::pb;

/// A file that is to leave its inode, on behalf of whom.
pub struct InlineMigration<'a> {
    pub shared: &'a Shared,
    pub identity: &'a Identity,
    pub inode: u64,
    pub session: u64,
    pub layout: pb::Layout,
}

impl InlineMigration<'_> {
    /// Moves the file, which had `bytes` when its `change` was `base`; it may have others by now.
    ///
    /// A conflict is tried again until the deadline: each means that somebody else has got on.
    pub fn run(&self, mut bytes: Vec<u8>, mut base: u64) -> Result<Migrated> {
        let deadline = self.shared.meta.deadline();
        loop {
            match self.attempt(bytes, base) {
                Err(error) if error.kind() == Kind::Conflict && Instant::now() < deadline => {}
                result => return result.map(|inode| Migrated { inode, ours: true }),
            }
            let theirs = self.shared.meta.stat_open(self.identity, self.inode)?;
            if !theirs.is_inline {
                return Ok(Migrated { inode: theirs, ours: false });
            }
            (bytes, base) = (theirs.inline_data, theirs.change);
        }
    }

    fn attempt(&self, bytes: Vec<u8>, base: u64) -> Result<pb::Inode> {
        // A content that bytes of an earlier attempt lie under may hold more than these.
        let spare = if bytes.is_empty() { None } else { Some(self.reserve(bytes, base)?) };
        let request = pb::SyncRequest { leave_inline: true, inline_base: base, spare, ..self.request() };
        self.shared.meta.sync(self.identity, request)
    }

    /// A spare content with the bytes, on the disks: what they replace may have been there as well.
    fn reserve(&self, bytes: Vec<u8>, base: u64) -> Result<pb::Spare> {
        let request = pb::SyncRequest { inline_base: base, ..self.request() };
        let spare = self.shared.meta.reserve_spare(self.identity, request)?;
        let content = ContentId(spare.content);
        let end = bytes.len() as u64;
        let payload = Placement::from_vec(bytes);
        let write = Write { layout: self.layout, content, offset: 0, payload };
        self.shared.chunks.write_many(&[write]).into_iter().collect::<Result<()>>()?;
        self.shared.chunks.sync(&self.layout, content, 0..end)?;
        Ok(spare)
    }

    fn request(&self) -> pb::SyncRequest {
        pb::SyncRequest { inode: self.inode, session: self.session, ..Default::default() }
    }
}
