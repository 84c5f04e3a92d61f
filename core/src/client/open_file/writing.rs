//! Writing to an open file, and writing back what waits here.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rustix::io::Errno;

use super::appending::Writers;
use super::{IoMode, OpenInode, Source, State, WriteOffset};
use crate::buffer::Placement;
use crate::client::data::Write;
use crate::client::dirty::DirtyChunk;
use crate::client::inline_migration::InlineMigration;
use crate::client::shared::Shared;
use crate::error::{Error, Kind, Result};
use crate::lock::MutexGuard;
use crate::log_rate_limit::Warnings;
use crate::types::ContentId;
use crate::wire::pb;

/// Threads of the pool that write back one file at a time: enough to fill the chains, few enough to leave others room.
const HELPERS_MAX: usize = 4;
/// Most bytes taken in at once.
const WRITE_BYTES_MAX: usize = 4 << 20;

/// A metadata service that is away fails the reports of every file.
static UNREPORTED: Warnings = Warnings::new();

impl OpenInode {
    /// Writes `payload`; `keep`: its memory may be kept and changed. Returns the offset it went to.
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
        // A long payload in parts, so that its copy fits the bound on dirty bytes. An append stays whole: others may
        // append too.
        if let WriteOffset::At(offset) = place
            && payload.len() > WRITE_BYTES_MAX
        {
            for at in (0..payload.len()).step_by(WRITE_BYTES_MAX) {
                let part = payload.slice(at..payload.len().min(at + WRITE_BYTES_MAX));
                let place = WriteOffset::At(offset.saturating_add(at as u64));
                self.write(place, &part, keep, mode)?;
            }
            return Ok(offset);
        }
        let alone = place == WriteOffset::Append && self.learn_end()? == Writers::ThisClient;
        let mode = if place == WriteOffset::Append && !alone { IoMode::Direct } else { mode };
        self.reserve(payload.len())?;
        let (mut state, offset) = loop {
            let mut state = self.shared_state();
            let offset = match place {
                WriteOffset::At(offset) => offset,
                WriteOffset::Append => state.length,
            };
            if !state.must_wait_for_sync(offset.saturating_add(payload.len() as u64)) {
                break (state, offset);
            }
            self.changed.wait(&mut state);
        };
        if offset.saturating_add(payload.len() as u64) > state.length_max() {
            self.shared.dirty_limit.release(payload.len());
            return Err(Error::invalid("the file would be too large for its layout").with_errno(Errno::FBIG));
        }
        let (change, complete) = state.put(offset, payload, keep, &self.shared);
        self.shared.dirty_limit.adjust(payload.len(), change);
        let write = state.writes;
        let inside = state.is_inside();
        self.list(&mut state);
        if mode == IoMode::Buffered {
            if alone {
                self.list_appended(&mut state);
            }
            if complete {
                self.help(&mut state);
            }
            drop(state);
            if self.shared.dirty_limit.is_above_high_water() {
                self.shared.dirty_files.flush_for_pressure();
            }
            return Ok(offset);
        }
        let seen = state.errors;
        drop(state);
        if inside {
            self.sync_metadata()?;
        } else {
            self.flush_until(write);
        }
        // Also of bytes in the inode: another write may have moved them out of it, and that may have failed.
        if let Some((_, error)) = self.error_since(seen) {
            return Err(error);
        }
        Ok(offset)
    }

    /// Room for dirty bytes, making some by writing back what all files hold.
    fn reserve(&self, bytes: usize) -> Result<()> {
        if self.shared.dirty_limit.try_reserve(bytes) {
            return Ok(());
        }
        self.shared.dirty_files.flush_for_pressure();
        self.shared.dirty_limit.reserve(bytes, self.shared.meta.deadline())
    }

    /// Begins to write back everything without waiting.
    pub fn start_write_back(self: &Arc<Self>) {
        let mut state = self.state.lock();
        state.want_until(u64::MAX);
        self.help(&mut state);
    }

    /// Sends threads, if there is something for them to do.
    pub(super) fn help(self: &Arc<Self>, state: &mut State) {
        self.help_besides(state, 0);
    }

    /// Sends threads, if there is more to do than `others` will.
    fn help_besides(self: &Arc<Self>, state: &mut State, others: usize) {
        let ready = state.ready().take(HELPERS_MAX + others).count().saturating_sub(others);
        while state.helpers < ready {
            let inode = self.clone();
            if !self.shared.workers.submit(move || inode.write_back()) {
                return;
            }
            state.helpers += 1;
        }
    }

    /// A helper: writes back until nothing wanted is left.
    fn write_back(self: Arc<Self>) {
        let mut state = self.state.lock();
        while !state.exclusive && self.write_back_batch(&mut state) {}
        state.helpers -= 1;
    }

    /// Writes back what is wanted, as many chunks as make a good batch. False: there was nothing to do.
    fn write_back_batch(self: &Arc<Self>, state: &mut MutexGuard<'_, State>) -> bool {
        if state.ready().next().is_some() && self.shared.fence.is_raised() {
            return self.wait_at_fence(state);
        }
        if state.inline.is_some() {
            return self.migrate_inline(state);
        }
        let batch = state.take_batch();
        if batch.is_empty() {
            return false;
        }
        let batch = Batch::new(state, batch);
        let writes = batch.writes();
        let results = MutexGuard::unlocked(state, || write_all(&self.shared, &writes));
        self.end_batch(state, batch, &writes, &results);
        true
    }

    /// Chains have answered the `writes` of a batch.
    pub(super) fn end_batch(
        &self,
        state: &mut State,
        batch: Batch,
        writes: &[Write],
        results: &[Result<()>],
    ) {
        assert_eq!(results.len(), writes.len(), "one result for each write");
        let Batch { chunks, content, truncate_version, .. } = batch;
        let current = truncate_version == state.inode.truncate_version && content == state.inode.content;
        for (write, result) in writes.iter().zip(results) {
            match result {
                Ok(()) if current => state.on_acked(write.offset, write.payload.len()),
                Ok(()) if content == state.inode.content => {
                    let end = write.offset + write.payload.len() as u64;
                    state.add_volatile(write.offset..end);
                    state.add_unverified_size(end, truncate_version);
                }
                Ok(()) => state.unsynced = true,
                Err(error) => state.fail(error.clone().context("write-back")),
            }
        }
        let mut freed = 0;
        for (index, chunk) in chunks {
            state.in_flight.remove(&index);
            freed += chunk.bytes();
        }
        if results.iter().any(Result::is_err) {
            // What failed did not extend the file: an append that follows leaves no hole.
            state.length = state.known_end();
        }
        self.shared.dirty_limit.release(freed);
        self.changed.notify_all();
    }

    /// What is dirty waits until this client is registered again. If its write session is lost, or that takes too long,
    /// nothing of it is left.
    fn wait_at_fence(self: &Arc<Self>, state: &mut MutexGuard<'_, State>) -> bool {
        let passed = MutexGuard::unlocked(state, || self.shared.fence.pass(self.shared.meta.deadline()));
        if let Err(error) = passed {
            let freed = state.give_up();
            self.shared.dirty_limit.release(freed);
            state.fail(error.context("write-back"));
            self.changed.notify_all();
        }
        true
    }

    /// Moves the file out of its inode, because dirty bytes are wanted on its chunks. False: there is nothing to do.
    /// A panic in there is an error of these bytes: callers that wait for them continue.
    fn migrate_inline(self: &Arc<Self>, state: &mut MutexGuard<'_, State>) -> bool {
        if state.migrating || state.ready().next().is_none() {
            return false;
        }
        let Some(inline) = state.inline.clone() else { return false };
        let (session, identity) = state.sessions.first().cloned().unwrap_or_default();
        let layout = state.layout;
        state.migrating = true;
        let migrated = MutexGuard::unlocked(state, || {
            let migration = InlineMigration {
                shared: &self.shared,
                identity: &identity,
                inode: self.id,
                session,
                layout,
            };
            let run = || migration.run(inline.bytes, inline.base);
            catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err(mistake()))
        });
        state.migrating = false;
        match migrated {
            Ok(migrated) => {
                let inode = migrated.inode;
                let source = state.source_of(&inode, migrated.ours);
                if source == Source::Own {
                    self.shared.metadata_cache.page_cache_follows(self.id, state.inode.change, inode.change);
                }
                state.undurable += 1;
                self.apply_inode(state, inode, source);
            }
            Err(error) => {
                let freed = state.give_up();
                self.shared.dirty_limit.release(freed);
                state.fail(error.context("write-back"));
            }
        }
        self.help(state);
        self.changed.notify_all();
        true
    }

    /// Returns when every write up to number `write` has been acknowledged or has failed.
    pub(super) fn flush_until(self: &Arc<Self>, write: u64) {
        let mut state = self.shared_state();
        loop {
            state.want_until(write);
            // This thread flies too: for one chunk nobody is woken.
            self.help_besides(&mut state, 1);
            if !state.exclusive && self.write_back_batch(&mut state) {
                continue;
            }
            if !state.waits_until(write) {
                return;
            }
            self.changed.wait(&mut state);
        }
    }

    /// Writes back everything written so far. Errors are counted (`error_since`).
    pub fn flush(self: &Arc<Self>) {
        let writes = self.state.lock().writes;
        self.flush_until(writes);
    }

    /// Reports by age, after write-back was started: inline bytes, attributes that wait, and the end of set-id bits that
    /// are known to be set. False: nothing is left to do, the client's list of dirty files need not have it.
    pub fn report_aged(self: &Arc<Self>) -> bool {
        let mut state = self.state.lock();
        if state.deferred.is_some() {
            drop(state);
            if let Err(error) = self.flush_deferred() {
                self.state.lock().fail(error.context("attributes"));
            }
        } else if state.is_edited() {
            drop(state);
            if let Err(error) = self.sync_metadata() {
                self.state.lock().fail(error.context("write-back"));
            }
        } else if state.clears_known_set_id() {
            drop(state);
            // The bytes are not at stake, and the next report has it again.
            if let Err(error) = self.sync_metadata() {
                UNREPORTED.warn(format_args!("inode {}: set-id bits stay for now: {error}", self.id));
            }
        } else if state.dirty.is_empty() && state.in_flight.is_empty() {
            state.listed = false;
            return false;
        }
        true
    }

    /// Counts an error that concerns every handle.
    pub fn fail(&self, error: Error) {
        self.state.lock().fail(error);
    }
}

/// Chunks of one file that are in flight together, and what the file was when they left.
pub(super) struct Batch {
    chunks: Vec<(u32, Arc<DirtyChunk>)>,
    layout: pb::Layout,
    content: u64,
    truncate_version: u64,
}

impl Batch {
    /// Of `chunks` that are in flight already.
    pub(super) fn new(state: &State, chunks: Vec<(u32, Arc<DirtyChunk>)>) -> Batch {
        assert!(!state.inode.is_inline, "I6: nothing is written under the content of a file in its inode");
        assert!(
            chunks.iter().all(|(index, _)| state.in_flight.contains_key(index)),
            "I1: they are in flight"
        );
        let (content, truncate_version) = (state.inode.content, state.inode.truncate_version);
        Batch { chunks, layout: state.layout, content, truncate_version }
    }

    /// One for each piece, those of a chunk in a row.
    pub(super) fn writes(&self) -> Vec<Write> {
        let chunk_bytes = u64::from(self.layout.chunk_bytes);
        let writes = self.chunks.iter().flat_map(|(index, chunk)| {
            chunk.pieces().map(move |(at, payload)| Write {
                layout: self.layout,
                content: ContentId(self.content),
                offset: u64::from(*index) * chunk_bytes + u64::from(at),
                payload,
            })
        });
        writes.collect()
    }
}

/// One result for each. A panic in there is an error of these writes: callers that wait for them continue.
pub(super) fn write_all(shared: &Shared, writes: &[Write]) -> Vec<Result<()>> {
    let result = catch_unwind(AssertUnwindSafe(|| shared.chunks.write_many(writes)));
    result.unwrap_or_else(|_| writes.iter().map(|_| Err(mistake())).collect())
}

fn mistake() -> Error {
    Error::new(Kind::Other, "a defect of the client, see its log")
}
