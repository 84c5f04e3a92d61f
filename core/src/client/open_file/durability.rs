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
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::{OpenInode, State};
use crate::client::meta::Identity;
use crate::error::{Error, Kind, Result};
use crate::lock::MutexGuard;
use crate::types::ContentId;
use crate::wire::pb;

/// Every chain of the stripe: how far others have written is not known.
const WHOLE_FILE: Range<u64> = 0..u64::MAX;

/// Syncs of one file's chains, of which one is under way at a time.
#[derive(Default)]
pub(super) struct ChainSyncs {
    is_running: bool,
    /// How many have failed, and the last reason.
    failure_count: u64,
    failure: Option<Error>,
}

/// What may not be durable of a file that was just opened: its writers need not have synced it.
pub(super) fn volatile_at_open(inode: &pb::Inode) -> Option<Range<u64>> {
    match inode {
        inode if inode.is_inline => None,
        inode if inode.others_write => Some(WHOLE_FILE),
        inode => (inode.length > 0).then_some(0..inode.length),
    }
}

impl State {
    /// Others have changed the file, or may be writing it (V2).
    pub(super) fn others_wrote(&mut self) {
        self.undurable += 1;
        if !self.inode.is_inline {
            self.add_volatile(WHOLE_FILE);
        }
    }

    pub(super) fn add_volatile(&mut self, range: Range<u64>) {
        self.volatile = Some(match self.volatile.take() {
            Some(before) => before.start.min(range.start)..before.end.max(range.end),
            None => range,
        });
    }

    /// Whether the metadata service needs to store nothing for the bytes to be found after the loss of power: its
    /// record of the write session survives, so the content stays, and the length is found on the chains.
    fn is_recoverable(&self) -> bool {
        let is_durable = self.durable == self.undurable;
        is_durable && self.size_is_synced() && self.inline.is_none() && !self.sessions.is_empty()
    }

    pub(super) fn stored(&self) -> Stored {
        Stored { layout: self.layout, content: self.inode.content }
    }
}

/// The content that a file has once power was lost.
pub(super) struct Stored {
    pub(super) layout: pb::Layout,
    pub(super) content: u64,
}

impl OpenInode {
    /// Everything that was acknowledged of this file before the call survives the loss of power; `data_only` leaves out
    /// times. `identity` asks on behalf of a handle that is open for reading.
    ///
    /// An error of the write-back is not this function's: handles ask `error_since`.
    pub fn fsync(self: &Arc<Self>, identity: &Arc<Identity>, data_only: bool) -> Result<()> {
        self.shared.fence.pass(self.shared.meta.deadline())?;
        self.flush();
        let recoverable = || Some(self.state.lock()).filter(|state| data_only && state.is_recoverable());
        if recoverable().is_some() {
            self.refresh(identity, Duration::ZERO)?;
        }
        let recoverable = recoverable().map(|state| state.stored());
        let stored = recoverable.map_or_else(|| self.sync_durably(identity), Ok)?;
        self.sync_chains()?;
        if self.state.lock().inode.content == stored.content {
            return Ok(());
        }
        self.sync_range(&stored.layout, stored.content, WHOLE_FILE)
    }

    fn sync_chains(&self) -> Result<()> {
        let mut state = self.state.lock();
        while state.chain_syncs.is_running {
            let failure_count = state.chain_syncs.failure_count;
            self.changed.wait(&mut state);
            if state.chain_syncs.failure_count != failure_count {
                return state.chain_syncs.failure.clone().map_or(Ok(()), Err);
            }
        }
        let Some(range) = state.volatile.take() else { return Ok(()) };
        let (layout, content) = (state.layout, state.inode.content);
        state.chain_syncs.is_running = true;
        let result = MutexGuard::unlocked(&mut state, || self.sync_range(&layout, content, range.clone()));
        state.chain_syncs.is_running = false;
        if let Err(error) = &result {
            if state.inode.content == content {
                state.add_volatile(range);
            }
            state.chain_syncs.failure_count += 1;
            state.chain_syncs.failure = Some(error.clone());
        }
        self.changed.notify_all();
        result
    }

    /// A mistake in there is an error: callers that wait for this sync go on.
    fn sync_range(&self, layout: &pb::Layout, content: u64, range: Range<u64>) -> Result<()> {
        let sync = || self.shared.chunks.sync(layout, ContentId(content), range);
        let mistake = |_| Err(Error::new(Kind::Other, "a defect of the client, see its log"));
        catch_unwind(AssertUnwindSafe(sync)).unwrap_or_else(mistake).map_err(|error| error.context("fsync"))
    }
}
