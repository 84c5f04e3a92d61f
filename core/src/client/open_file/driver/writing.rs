//! Writing to an open file, and writing back what waits here.

use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;

use super::super::machine::Machine;
use super::super::mode::{IoMode, WriteOffset};
use super::super::transitions::appending::ListAppended;
use super::super::transitions::write_back::{
    BatchEnded, FenceFailed, HelperEnded, Migrated, Migration, MigrationEnded, StartHelpers, TakeTask, Want,
    WriteBackTask,
};
use super::super::transitions::writing::{TakeWrite, Taken};
use super::appending::Writers;
use super::inline_migration::InlineMigration;
use super::{OpenInode, now_ns, stale};
use crate::buffer::Placement;
use crate::client::data::Write;
use crate::client::shared::Shared;
use crate::error::{Error, Result};
use crate::lock::MutexGuard;
use crate::panics::caught;

/// Most bytes taken in at once.
const WRITE_BYTES_MAX: usize = 4 << 20;

impl OpenInode {
    /// Write `payload`; `keep`: its memory may be kept and changed. Return the offset it went to.
    pub fn write(
        self: &Arc<Self>,
        place: WriteOffset,
        payload: &Placement,
        keep: bool,
        mode: IoMode,
    ) -> Result<u64> {
        if payload.is_empty() {
            return Ok(0);
        }
        // A long payload in slices, so that its copy fits the limit on dirty bytes. An append stays whole: others may
        // append too.
        if let WriteOffset::At(offset) = place
            && payload.len() > WRITE_BYTES_MAX
        {
            for at in (0..payload.len()).step_by(WRITE_BYTES_MAX) {
                let slice = payload.slice(at..payload.len().min(at + WRITE_BYTES_MAX));
                let place = WriteOffset::At(offset.saturating_add(at as u64));
                self.write(place, &slice, keep, mode)?;
            }
            return Ok(offset);
        }
        let is_alone = place == WriteOffset::Append && self.learn_end()? == Writers::ThisClient;
        let mode = if place == WriteOffset::Append && !is_alone { IoMode::Direct } else { mode };
        self.reserve(payload.len())?;
        let offset = match place {
            WriteOffset::At(offset) => Some(offset),
            WriteOffset::Append => None,
        };
        let mut machine = self.machine.lock();
        let (offset, number, is_inline, is_complete) = loop {
            match self.step(&mut machine, TakeWrite { offset, payload, keep, now_ns: now_ns() }) {
                Taken::Done { offset, number, is_inline, is_complete } => {
                    break (offset, number, is_inline, is_complete);
                }
                Taken::Wait => self.changed.wait(&mut machine),
                Taken::TooLarge => {
                    let reason = "the file would be too large for its layout";
                    return Err(Error::invalid(reason).with_errno(Errno::FBIG));
                }
            }
        };
        assert!(
            place == WriteOffset::Append || place == WriteOffset::At(offset),
            "a write goes where it was put"
        );
        if mode == IoMode::Buffered {
            if is_alone {
                self.step(&mut machine, ListAppended);
            }
            if is_complete {
                self.step(&mut machine, StartHelpers);
            }
            drop(machine);
            if self.shared.dirty_limit.is_above_high_water() {
                self.shared.dirty_files.flush_for_pressure();
            }
            return Ok(offset);
        }
        let seen = machine.error_count;
        drop(machine);
        if is_inline {
            self.sync_metadata()?;
        } else {
            self.flush_until(number);
        }
        // Also of bytes in the inode: another write may have moved them out of it, and that may have failed.
        if let Some((_, error)) = self.error_since(seen) {
            return Err(error);
        }
        Ok(offset)
    }

    /// Reserve memory for dirty bytes, freeing some by writing back what all files hold.
    fn reserve(&self, bytes: usize) -> Result<()> {
        if self.shared.dirty_limit.try_reserve(bytes) {
            return Ok(());
        }
        self.shared.dirty_files.flush_for_pressure();
        self.shared.dirty_limit.reserve(bytes, self.shared.meta.deadline())
    }

    /// Write back until nothing wanted is left, as a thread of the pool.
    pub(super) fn run_helper(self: Arc<Self>) {
        let mut machine = self.machine.lock();
        while self.write_back_batch(&mut machine) {}
        self.step(&mut machine, HelperEnded);
    }

    /// Write back what is wanted, as many chunks as make a good batch. False: there was nothing to do.
    pub(super) fn write_back_batch(self: &Arc<Self>, machine: &mut MutexGuard<'_, Machine>) -> bool {
        match self.step(machine, TakeTask { is_fenced: self.shared.fence.is_raised() }) {
            WriteBackTask::Nothing => return false,
            WriteBackTask::WaitAtFence => {
                let pass = || self.shared.fence.pass(self.shared.meta.deadline());
                if let Err(error) = MutexGuard::unlocked(machine, pass) {
                    self.step(machine, FenceFailed(error));
                }
            }
            WriteBackTask::Migrate(migration) => {
                let result = MutexGuard::unlocked(machine, || self.migrate_inline(migration));
                self.step(machine, MigrationEnded { result, now: Instant::now() });
            }
            WriteBackTask::Write(batch) => {
                let writes = batch.writes();
                let results = MutexGuard::unlocked(machine, || write_all(&self.shared, &writes));
                self.step(machine, BatchEnded { batch, writes: &writes, results: &results });
            }
        }
        true
    }

    /// Move the file out of its inode, because dirty bytes are wanted on its chunks. A panic in there is an error of
    /// these bytes: callers that wait for them continue.
    fn migrate_inline(&self, migration: Migration) -> Result<Migrated> {
        let Migration { bytes, base, layout, session, identity } = migration;
        let (shared, identity) = (&*self.shared, &*identity);
        let migration = InlineMigration { shared, identity, inode: self.id, session, layout };
        let run = || migration.run(bytes, base);
        stale(caught(run).unwrap_or_else(|| Err(Error::mistake())))
    }

    /// Return when every write up to number `write` has been acknowledged or has failed.
    pub(super) fn flush_until(self: &Arc<Self>, write: u64) {
        let mut machine = self.lock_shared();
        loop {
            // This thread writes back too: for one chunk no other is woken.
            self.step(&mut machine, Want { until: write, others: 1 });
            if self.write_back_batch(&mut machine) {
                continue;
            }
            if !machine.write_back.waits_until(write) {
                return;
            }
            self.changed.wait(&mut machine);
        }
    }

    /// Write back everything written so far. Errors are counted (`error_since`).
    pub fn flush(self: &Arc<Self>) {
        let writes = self.writes();
        self.flush_until(writes);
    }
}

/// Return one result for each. A panic in there is an error of these writes: callers that wait for them continue.
pub(super) fn write_all(shared: &Shared, writes: &[Write]) -> Vec<Result<()>> {
    let result = caught(|| shared.chunks.write_many(writes));
    let results = result.unwrap_or_else(|| writes.iter().map(|_| Err(Error::mistake())).collect());
    assert_eq!(results.len(), writes.len(), "one result for each write");
    for (write, result) in writes.iter().zip(&results) {
        shared.write_back.ended(write.payload.len(), result.is_ok());
    }
    results
}
