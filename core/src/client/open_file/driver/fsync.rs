//! fsync (see `durability` for what it promises).

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::super::durability::{Stored, WHOLE_FILE};
use super::super::transitions::fsync::{BeginChainSync, ChainSync, ChainSyncEnded};
use super::OpenInode;
use crate::client::identity::Identity;
use crate::error::{Error, Result};
use crate::lock::MutexGuard;
use crate::panics::caught;
use crate::types::ContentId;

impl OpenInode {
    /// Make everything that was acknowledged of this file before the call survive the loss of power; `data_only` leaves
    /// out times. `identity` asks on behalf of a handle that is open for reading.
    ///
    /// An error of the write-back is not this function's: handles ask `error_since`.
    pub fn fsync(self: &Arc<Self>, identity: &Arc<Identity>, data_only: bool) -> Result<()> {
        self.shared.fence.pass(self.shared.meta.deadline())?;
        self.flush();
        let recoverable = || if data_only { self.machine.lock().recoverable() } else { None };
        if recoverable().is_some() {
            self.refresh(identity, Duration::ZERO)?;
        }
        let stored = recoverable().map_or_else(|| self.sync_durably(identity), Ok)?;
        self.sync_chains()?;
        if self.machine.lock().inode.content == stored.content {
            return Ok(());
        }
        self.sync_range(&stored, WHOLE_FILE)
    }

    fn sync_chains(self: &Arc<Self>) -> Result<()> {
        let mut machine = self.machine.lock();
        let (stored, range) = loop {
            match self.step(&mut machine, BeginChainSync) {
                ChainSync::Sync(stored, range) => break (stored, range),
                ChainSync::Nothing => return Ok(()),
                ChainSync::Wait => {}
            }
            let (failure_count, _) = machine.sync_failures();
            self.changed.wait(&mut machine);
            let (failures, failure) = machine.sync_failures();
            if failures != failure_count {
                return failure.map_or(Ok(()), Err);
            }
        };
        let result = MutexGuard::unlocked(&mut machine, || self.sync_range(&stored, range.clone()));
        self.step(&mut machine, ChainSyncEnded { content: stored.content, range, result: &result });
        result
    }

    /// A panic in there is an error: callers that wait for this sync continue.
    fn sync_range(&self, stored: &Stored, range: Range<u64>) -> Result<()> {
        assert!(range.start < range.end, "V1: what is volatile has bytes");
        let sync = || self.shared.chunks.sync(&stored.layout, ContentId(stored.content), range);
        let result = caught(sync).unwrap_or_else(|| Err(Error::mistake()));
        result.map_err(|error| error.context("fsync"))
    }
}
