//! What the metadata service says of the inode, taken in with what was written here laid over it.

use std::time::Instant;

use super::bug::Bug;
use super::machine::{Effects, Machine};
use super::write_back::SPILLED;
use crate::buffer::Placement;
use crate::wire::pb;

/// Whose changes an inode shows that the metadata service has replied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChangeOrigin {
    /// Of what was not known before, exactly one change that this client has made.
    Own,
    /// Perhaps those of others.
    Any,
}

impl ChangeOrigin {
    /// Of a reply to a change that this client has made, or to something else, where `known` was known.
    pub(super) fn of(known: &pb::Inode, reply: &pb::Inode, changes: bool) -> ChangeOrigin {
        if changes && reply.change == known.change + 1 { ChangeOrigin::Own } else { ChangeOrigin::Any }
    }
}

impl Machine {
    /// Take in what the metadata service replied of this inode, and lay what was written here over it.
    pub(super) fn apply_inode(
        &mut self,
        inode: pb::Inode,
        source: ChangeOrigin,
        now: Instant,
        effects: &mut Effects,
    ) {
        // A reply without the file's bytes says nothing of them: it is asked for again when it is needed.
        if inode.id != self.inode.id || inode.bytes_withheld {
            return;
        }
        let is_changed = inode.change > self.inode.change && source == ChangeOrigin::Any;
        let others_wrote = inode.others_write || is_changed;
        // A stale reply is ignored: what is known is newer.
        let is_newer = inode.change >= self.inode.change || self.bug == Bug::TakeStaleReply;
        if is_newer {
            let is_other_content = inode.content != self.inode.content;
            let is_truncated = inode.truncate_version != self.inode.truncate_version || is_other_content;
            if is_other_content {
                self.unverified_size = None;
                self.durability.volatile = None;
            }
            if is_truncated && self.bug != Bug::KeepAcknowledged {
                if !is_other_content && self.metadata.pending().size && self.acknowledged > 0 {
                    self.add_unverified_size(self.acknowledged, self.inode.truncate_version);
                }
                self.acknowledged = 0;
            }
            if let Some(layout) = inode.layout {
                self.layout = layout;
            }
            self.inode = inode;
            self.described = Some(now);
        }
        if others_wrote {
            self.durability.others_wrote(self.inode.is_inline);
        }
        // Also after a stale reply: what was being sent when the newer one came may have been taken by now.
        self.follow_inode(effects);
        if is_newer {
            self.length = self.known_end();
        }
    }

    /// Lay what was written here over what the inode has become.
    fn follow_inode(&mut self, effects: &mut Effects) {
        let is_inline = self.inode.is_inline;
        if self.bug == Bug::MigrationDropsEdits && !is_inline {
            self.bytes.replace(&self.inode);
        }
        match self.bytes.inline_mut().filter(|inline| is_inline && inline.is_edited()) {
            Some(inline) if self.bug == Bug::RebaseDropsEdits => {
                inline.bytes = self.inode.inline_data.clone();
                inline.base = self.inode.change;
            }
            Some(inline) => inline.rebase(self.inode.inline_data.clone(), self.inode.change),
            None => self.spill_inline(effects),
        }
    }

    /// Turn what was written to the inode's bytes into dirty chunks; what is left of those is what the inode holds.
    pub(super) fn spill_inline(&mut self, effects: &mut Effects) {
        if let Some(inline) = self.bytes.inline().filter(|inline| inline.is_edited()) {
            let bytes = Placement::from_vec(inline.bytes.clone());
            for range in inline.edits() {
                // Older than everything that is written from here on: a thread that flushes waits for it.
                let (start, bytes) = (range.start as u64, bytes.slice(range));
                let chunk_bytes = self.layout.chunk_bytes;
                let (change, _) =
                    self.write_back.dirty.put(SPILLED, start, &bytes, false, chunk_bytes, &self.pool);
                effects.memory += change;
            }
        }
        self.bytes.replace(&self.inode);
    }

    /// Bytes up to `length` were written under an older truncation than is known now, before it or after.
    pub(super) fn add_unverified_size(&mut self, length: u64, truncate_version: u64) {
        let length = self.unverified_size.as_ref().map_or(length, |hint| hint.length.max(length));
        self.unverified_size = Some(pb::LengthHint { length, truncate_version });
        self.ack_count += 1;
        self.length = self.length.max(length);
        self.metadata.mark(|pending| pending.size = true);
    }

    pub(super) fn follow_pages(&self, inode: &pb::Inode, source: ChangeOrigin, effects: &mut Effects) {
        if source == ChangeOrigin::Own {
            effects.pages_follow = Some((self.inode.change, inode.change));
        }
    }

    /// Forget deferred attributes if they are still those of that number.
    pub(super) fn drop_deferred(&mut self, number: Option<u64>, effects: &mut Effects) {
        if number.is_some() && number == self.deferred.as_ref().map(|deferred| deferred.number) {
            self.deferred = None;
            effects.deferred_files -= 1;
        }
    }
}
