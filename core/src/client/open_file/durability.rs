//! What fsync promises: all that any client had acknowledged of the file before the call survives the loss of power.
//!
//! Bytes are durable on chains, or in the store of the metadata service if the file is inline; so are its content and
//! length. What is known here may be older than what others have done, so every fsync asks the metadata service first:
//!
//! - V1 `volatile` has every byte that may be acknowledged and not durable, as far as is known here: at open all of the
//!   file, then what this client writes.
//! - V2 A reply that shows a change which this client has not made, or that another client has the file open for
//!   writing, makes the whole file volatile. A client that writes has a write session, and `change` grows before that
//!   session ends, so after such an exchange nothing is missing in `volatile`.
//! - V3 `volatile` is taken by one sync of chains at a time. A call that comes meanwhile waits for it, shares its error, and
//!   then looks again.
//! - V4 A cut to nothing replaces the content, and is durable only once it is reported. So a sync of chains counts only if
//!   the content is still that of the report before it. If it was replaced meanwhile, the content of the report is
//!   synced: it has what had been acknowledged before the call, and the cut may not be durable. However often others cut
//!   the file, an fsync is one report and at most two syncs.

use std::ops::Range;

use crate::error::Error;
use crate::wire::pb;

/// Every chain of the stripe: how far others have written is not known.
pub(super) const WHOLE_FILE: Range<u64> = 0..u64::MAX;

#[derive(Clone)]
pub(super) struct Durability {
    /// Counts what was sent to the metadata service, or changed there, without asking for durability, and how much of
    /// that was followed by something durable.
    pub(super) undurable: u64,
    pub(super) durable: u64,
    /// Bytes that the chains have acknowledged to any client and that may not be on their disks yet.
    pub(super) volatile: Option<Range<u64>>,
    /// A sync of chains is under way.
    pub(super) is_syncing: bool,
    /// How many have failed, and the last reason.
    pub(super) failure_count: u64,
    pub(super) failure: Option<Error>,
}

impl Durability {
    pub(super) fn at_open(inode: &pb::Inode) -> Durability {
        Durability {
            undurable: 1,
            durable: 0,
            volatile: volatile_at_open(inode),
            is_syncing: false,
            failure_count: 0,
            failure: None,
        }
    }

    pub(super) fn is_consistent(&self) -> bool {
        self.durable <= self.undurable && (self.failure_count > 0) == self.failure.is_some()
    }

    pub(super) fn add_volatile(&mut self, range: Range<u64>) {
        assert!(range.start < range.end, "V1: what is volatile has bytes");
        self.volatile = Some(match self.volatile.take() {
            Some(before) => before.start.min(range.start)..before.end.max(range.end),
            None => range,
        });
    }

    /// Others have changed the file, or may be writing it (V2).
    pub(super) fn others_wrote(&mut self, is_inline: bool) {
        self.undurable += 1;
        if !is_inline {
            self.add_volatile(WHOLE_FILE);
        }
    }

    /// The metadata service has taken what had been counted to `undurable`.
    pub(super) fn on_synced(&mut self, undurable: u64, durable: bool) {
        assert!(undurable <= self.undurable, "V1: what an update has was counted before it");
        if durable {
            self.durable = self.durable.max(undurable);
        } else {
            self.undurable += 1;
        }
    }
}

/// Return what may not be durable of a file that was just opened: its writers need not have synced it.
fn volatile_at_open(inode: &pb::Inode) -> Option<Range<u64>> {
    match inode {
        inode if inode.is_inline => None,
        inode if inode.others_write => Some(WHOLE_FILE),
        inode => (inode.length > 0).then_some(0..inode.length),
    }
}

/// The content that a file has once power was lost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stored {
    pub(super) layout: pb::Layout,
    pub(super) content: u64,
}
