//! Staging, committing, recovery's replacements and removals.

use std::sync::Arc;

use super::api::*;
use super::cache::CacheSlot;
use super::engine::{Core, Engine};
use super::page_writer::{Change, Written};
use super::payload::Source;
use super::state::{ContentState, HOLE, PAGE, PageNumber, PendingState, Record, page_count};
use crate::types::{
    CHUNK_BYTES_MAX, ChainVersion, ChunkKey, Op, RequestTag, Stamp, Status, Version, WRITERS_MAX,
    WriterRecord,
};

impl Engine {
    /// Make `update` pending: durable against `kill -9`, not yet visible to `read`.
    ///
    /// `Write`, `Truncate` and `Remove` create version committed + 1, or any one where a `fresh` update finds nothing.
    /// Answers:
    /// - `Staged::Committed` where that version, or a newer one, is committed already;
    /// - `MissingVersion` where an earlier version is missing;
    /// - `WrongChainVersion` where something newer than `stamp.chain_version` is stored;
    /// - `Busy` where another request's pending version of the same chain version is in the way (a pending
    ///   version of an older chain version is replaced), or where too many clients write this chunk;
    /// - `Invalid`, `NoSpace`, `Checksum` (the bytes around a partial page are damaged), `Io`.
    ///
    /// The same tag and operation again is idempotent; a newer chain version is then taken over.
    ///
    /// `Op::Replace` is `install`: committed at once at the given stamp, regardless of what was there or pending. A commit
    /// of that version afterwards is allowed and changes nothing. Its payload is the content, then the records.
    pub fn stage(&self, update: &Update, payload: &dyn Source) -> Result<StageOutcome, Status> {
        self.stage_as(update, payload, Staged::Pending)
    }

    /// As `stage`, and committed in the same record (`Staged::Committed`), if that version was not pending before.
    pub fn stage_and_commit(&self, update: &Update, payload: &dyn Source) -> Result<StageOutcome, Status> {
        self.stage_as(update, payload, Staged::Committed)
    }

    fn stage_as(&self, update: &Update, payload: &dyn Source, end: Staged) -> Result<StageOutcome, Status> {
        check(update, payload)?;
        if let Op::Replace { length, removed, .. } = update.op {
            let Update { key, stamp, tag, .. } = *update;
            let writers = writers_behind(payload, length as usize);
            let content = Prefix { payload, length: length as usize };
            return self.install(&Install { key, stamp, removed, tag, writers: &writers }, &content);
        }
        let core = &self.core;
        core.group_commit.check()?;
        let slot = core.cache.slot(update.key);
        let _guard = slot.update.lock();
        let record = core.record_of(update.key, &slot)?;
        match admit(&record, update)? {
            Admission::Known(outcome) => Ok(outcome),
            Admission::Adopt(pending) => {
                let outcome = StageOutcome { staged: Staged::AlreadyPending, length: pending.state.length };
                let after = Record { pending: Some(pending), ..(*record).clone() };
                core.put(update.key, &slot, record, after)?;
                Ok(outcome)
            }
            Admission::New => core.stage_new(update, payload, &slot, record, end),
        }
    }

    /// Commit the pending `version` under `chain_version`. Idempotent: a version that is committed already, or
    /// overtaken, is fine. `MissingVersion` where it is neither pending nor committed.
    pub fn commit(
        &self,
        key: ChunkKey,
        version: Version,
        chain_version: ChainVersion,
    ) -> Result<CommitOutcome, Status> {
        let core = &self.core;
        core.group_commit.check()?;
        let slot = core.cache.slot(key);
        let _guard = slot.update.lock();
        let record = core.record_of(key, &slot)?;
        let Some(pending) = record.pending.as_ref().filter(|pending| pending.state.stamp.version == version)
        else {
            let newer = record.committed.as_ref().filter(|_| record.version() >= version);
            let state = newer.ok_or(Status::MissingVersion)?;
            return Ok(CommitOutcome { stamp: state.stamp, length: state.length });
        };
        let before = pending.state.stamp.chain_version;
        let stamp = Stamp { chain_version: chain_version.max(before), version };
        let state = match stamp == pending.state.stamp {
            true => pending.state.clone(),
            false => Arc::new(ContentState { stamp, ..(*pending.state).clone() }),
        };
        let outcome = CommitOutcome { stamp, length: state.length };
        let after = core.committed(&record.writers, PendingState { state, ..pending.clone() });
        core.put(key, &slot, record, after)?;
        Ok(outcome)
    }

    /// Drop the pending version if it is `version`; otherwise does nothing.
    pub fn drop_pending(&self, key: ChunkKey, version: Version) -> Result<(), Status> {
        let core = &self.core;
        core.group_commit.check()?;
        let slot = core.cache.slot(key);
        let _guard = slot.update.lock();
        let record = core.record_of(key, &slot)?;
        if record.pending.as_ref().is_none_or(|pending| pending.state.stamp.version != version) {
            return Ok(());
        }
        let after =
            Record { committed: record.settled(), writers: record.writers.clone(), ..Record::default() };
        core.put(key, &slot, record, after)
    }

    /// Recovery: makes the chunk what the predecessor says, committed at once at that stamp (repairs damage too).
    pub fn install(&self, install: &Install<'_>, payload: &dyn Source) -> Result<StageOutcome, Status> {
        let length = u32::try_from(payload.len()).map_err(|_| Status::Invalid)?;
        if length > CHUNK_BYTES_MAX || (install.removed && length > 0) || install.stamp.version == Version(0)
        {
            return Err(Status::Invalid);
        }
        let core = &self.core;
        core.group_commit.check()?;
        let slot = core.cache.slot(install.key);
        let _guard = slot.update.lock();
        let record = core.record_of(install.key, &slot)?;
        let change = Change { offset: 0, payload, length, sparse: true };
        let written = core.write_content(install.key, &ContentState::default(), &change, Origin::Chain)?;
        let round = core.group_commit.begun();
        let mut state = state_of(&written, install.stamp, length);
        state.removed = install.removed;
        state.round = round;
        let own = WriterRecord { tag: install.tag, version: install.stamp.version, round };
        // Their ages are not known here, so they count as new.
        let theirs: Vec<_> = install.writers.iter().map(|&writer| WriterRecord { round, ..writer }).collect();
        let writers = core.writers.with(&theirs, own, round);
        let after = Record { committed: Some(Arc::new(state)), writers, ..Record::default() };
        core.put(install.key, &slot, record, after)?;
        Ok(StageOutcome { staged: Staged::Committed, length })
    }

    /// Forget a chunk entirely, version and writers too: recovery, for a chunk unknown to its predecessor.
    pub fn erase(&self, key: ChunkKey) -> Result<(), Status> {
        match self.core.erase_if(key, |_| true) {
            Err(Status::Checksum) => self.core.erase_unreadable(key),
            result => result.map(|_| ()),
        }
    }

    /// Recovery: the predecessor's record cannot be read, and nothing is committed here. From now on that is so here as
    /// well, because a missing chunk would be read as zeros; whether it is.
    pub fn set_unreadable(&self, key: ChunkKey) -> Result<bool, Status> {
        let core = &self.core;
        core.group_commit.check()?;
        let slot = core.cache.slot(key);
        let _guard = slot.update.lock();
        let record = match core.record_of(key, &slot) {
            Err(Status::Checksum) => return Ok(true),
            record => record?,
        };
        if record.committed.is_some() {
            return Ok(false);
        }
        if !record.is_absent() {
            core.put(key, &slot, record, Record::default())?;
        }
        core.index.put_unreadable(key)?;
        core.cache.unload(key, &slot);
        core.group_commit.wrote();
        Ok(true)
    }
}

/// The content in front of the writer records of an `Op::Replace`.
struct Prefix<'a> {
    payload: &'a dyn Source,
    length: usize,
}

impl Source for Prefix<'_> {
    fn len(&self) -> usize {
        self.length
    }

    fn copy_to(&self, offset: usize, into: &mut [u8]) {
        self.payload.copy_to(offset, into);
    }

    fn stable(&self) -> Option<&[u8]> {
        self.payload.stable().map(|bytes| &bytes[..self.length])
    }
}

fn writers_behind(payload: &dyn Source, mut offset: usize) -> Vec<WriterRecord> {
    let mut writers = Vec::new();
    while offset < payload.len() {
        let mut bytes = [0; WriterRecord::BYTES];
        payload.copy_to(offset, &mut bytes);
        writers.push(WriterRecord::decode(&bytes));
        offset += WriterRecord::BYTES;
    }
    writers
}

/// What an update finds.
enum Admission {
    /// Nothing to do.
    Known(StageOutcome),
    /// The same request under a newer chain version.
    Adopt(PendingState),
    New,
}

fn check(update: &Update, payload: &dyn Source) -> Result<(), Status> {
    let expected = match update.op {
        Op::Write { offset, length } => {
            let end = u64::from(offset) + u64::from(length);
            if length == 0 || end > u64::from(CHUNK_BYTES_MAX) {
                return Err(Status::Invalid);
            }
            length
        }
        Op::Truncate { length } if length > CHUNK_BYTES_MAX => return Err(Status::Invalid),
        Op::Replace { length, writers, .. } => {
            if length > CHUNK_BYTES_MAX || writers as usize > WRITERS_MAX {
                return Err(Status::Invalid);
            }
            length + writers * WriterRecord::BYTES as u32
        }
        Op::Truncate { .. } | Op::Remove => 0,
    };
    if payload.len() != expected as usize || update.stamp.version == Version(0) {
        return Err(Status::Invalid);
    }
    Ok(())
}

fn admit(record: &Record, update: &Update) -> Result<Admission, Status> {
    let stamp = update.stamp;
    let begins = update.fresh && record.is_bare();
    if let Some(state) = &record.committed {
        let is_known = if begins { stamp <= state.stamp } else { stamp.version <= state.stamp.version };
        if is_known {
            let outcome = StageOutcome { staged: Staged::Committed, length: state.length };
            return Ok(Admission::Known(outcome));
        }
        if stamp.chain_version < state.stamp.chain_version {
            return Err(Status::WrongChainVersion);
        }
    }
    if !begins && stamp.version.0 != record.version().0 + 1 {
        return Err(Status::MissingVersion);
    }
    let Some(pending) = &record.pending else { return Ok(Admission::New) };
    let before = pending.state.stamp.chain_version;
    if stamp.chain_version < before {
        return Err(Status::WrongChainVersion);
    }
    let is_same = pending.tag == update.tag && pending.op == update.op && update.tag != RequestTag::default();
    if is_same && stamp.chain_version == before {
        let outcome = StageOutcome { staged: Staged::AlreadyPending, length: pending.state.length };
        return Ok(Admission::Known(outcome));
    }
    if is_same {
        let state = Arc::new(ContentState { stamp, ..(*pending.state).clone() });
        return Ok(Admission::Adopt(PendingState { state, ..pending.clone() }));
    }
    if stamp.chain_version == before && pending.tag != update.tag {
        return Err(Status::Busy);
    }
    Ok(Admission::New)
}

fn state_of(written: &Written, stamp: Stamp, length: u32) -> ContentState {
    assert_eq!(written.crcs.len(), page_count(length), "one checksum per page");
    ContentState {
        stamp,
        length,
        tail_used: written.tail_used,
        extents: written.extents.clone(),
        crcs: written.crcs.clone(),
        ..ContentState::default()
    }
}

impl Core {
    fn stage_new(
        &self,
        update: &Update,
        payload: &dyn Source,
        slot: &CacheSlot,
        record: Arc<Record>,
        end: Staged,
    ) -> Result<StageOutcome, Status> {
        let begun = self.group_commit.begun();
        if update.origin == Origin::Client && !self.writers.has_room(&record.writers, update.tag, begun) {
            return Err(Status::Busy);
        }
        let settled = record.settled();
        let nothing = ContentState::default();
        let base = settled.as_deref().unwrap_or(&nothing);
        let (written, length) = self.write_update(update, payload, base)?;
        let mut state = state_of(&written, update.stamp, length);
        state.removed = update.op == Op::Remove;
        state.round = self.group_commit.begun();
        let pending = PendingState { state: Arc::new(state), op: update.op, tag: update.tag };
        let after = match end {
            Staged::Committed => self.committed(&record.writers, pending),
            _ => {
                let writers = record.writers.clone();
                Record { committed: settled, pending: Some(pending), writers, ..Record::default() }
            }
        };
        self.put(update.key, slot, record, after)?;
        Ok(StageOutcome { staged: end, length })
    }

    /// The record once `pending` is committed, where requests of `writers` are remembered.
    fn committed(&self, writers: &[WriterRecord], pending: PendingState) -> Record {
        let PendingState { state, tag, .. } = pending;
        let round = self.group_commit.begun();
        let own = WriterRecord { tag, version: state.stamp.version, round };
        let writers = self.writers.with(writers, own, round);
        Record { committed: Some(state), writers, ..Record::default() }
    }

    fn write_update(
        &self,
        update: &Update,
        payload: &dyn Source,
        base: &ContentState,
    ) -> Result<(Written, u32), Status> {
        let none: &[u8] = &[];
        match update.op {
            Op::Write { offset, length } => {
                let length = base.length.max(offset + length);
                let change = Change { offset: offset as usize, payload, length, sparse: false };
                Ok((self.write_content(update.key, base, &change, update.origin)?, length))
            }
            Op::Truncate { length } if length > base.length => {
                let change = Change { offset: length as usize, payload: &none, length, sparse: false };
                Ok((self.write_content(update.key, base, &change, update.origin)?, length))
            }
            Op::Truncate { length } => Ok((self.cut_content(update.key, base, length)?, length)),
            Op::Remove => Ok((self.cut_content(update.key, base, 0)?, 0)),
            Op::Replace { .. } => unreachable!("stage hands it to install"),
        }
    }

    /// Put `after` in the place of `before`, in the index and in memory, and retires what it gave up.
    /// The caller holds the chunk's update lock.
    pub fn put(
        &self,
        key: ChunkKey,
        slot: &CacheSlot,
        before: Arc<Record>,
        mut after: Record,
    ) -> Result<(), Status> {
        check_record(key, &after);
        let (begun, synced) = self.group_commit.rounds();
        assert!(after.states().all(|state| state.round <= begun), "I6: {key:?}: a round that has not begun");
        after.fallbacks = before.fallbacks_for(&after, begun, synced);
        self.store(key, &before, &after).inspect_err(|&status| {
            // Whether the index took it is unknown until the next opening; until then nothing may build on it.
            log::error!("index write of {key:?} failed; refusing updates until the engine is reopened");
            self.group_commit.fail(status);
        })?;
        self.account(key, &before, &after);
        self.review_damage(key, &before, &after);
        let released = released(&before, &after);
        self.cache.replace(key, slot, Arc::new(after));
        let waiting = {
            let mut deferred_free = self.deferred_free.lock();
            deferred_free.push(before, released);
            deferred_free.pages() * PAGE as u64
        };
        self.group_commit.wrote();
        if waiting > self.options.deferred_free_bytes_max {
            self.free_deferred(waiting)?;
        }
        Ok(())
    }

    fn store(&self, key: ChunkKey, before: &Record, after: &Record) -> Result<(), Status> {
        #[cfg(test)]
        self.segments.faults.on_index()?;
        match after.is_absent() {
            true => self.forget(key, before),
            false => self.index.put(key, after),
        }
    }

    /// Delete the record from the index. The floor there is never lower than one that was used.
    pub fn forget(&self, key: ChunkKey, before: &Record) -> Result<(), Status> {
        let mut floor = self.floor.lock();
        let raised = before.version().max(*floor);
        assert!(before.version() <= raised, "{key:?}: what is forgotten is not above the floor");
        self.index.forget(key, raised)?;
        *floor = raised;
        Ok(())
    }

    fn free_deferred(&self, waiting: u64) -> Result<(), Status> {
        if self.options.sync_interval.is_some() && waiting < 2 * self.options.deferred_free_bytes_max {
            self.group_commit.hurry();
            return Ok(());
        }
        self.sync()
    }

    /// Delete the record of a chunk if it is as `is_wanted` says, looked at under the chunk's lock.
    pub fn erase_if(&self, key: ChunkKey, is_wanted: impl Fn(&Record) -> bool) -> Result<bool, Status> {
        self.group_commit.check()?;
        let slot = self.cache.slot(key);
        let _guard = slot.update.lock();
        let record = self.record_of(key, &slot)?;
        if record.is_absent() || !is_wanted(&record) {
            return Ok(false);
        }
        self.put(key, &slot, record, Record::default())?;
        Ok(true)
    }
}

impl Core {
    /// Delete a record that cannot be read. Its version is unknown and cannot raise the floor. The replica that discards
    /// it is SYNCING, and what it orders later has the stamp of a later chain version; or no other one has the chunk.
    fn erase_unreadable(&self, key: ChunkKey) -> Result<(), Status> {
        let slot = self.cache.slot(key);
        let _guard = slot.update.lock();
        if self.record_of(key, &slot) == Err(Status::Checksum) {
            self.forget(key, &Record::default())?;
            self.group_commit.wrote();
        }
        Ok(())
    }
}

/// Assert I4, and that the writers are bounded.
fn check_record(key: ChunkKey, record: &Record) {
    assert!(record.writers.len() <= WRITERS_MAX, "{key:?}: the requests remembered are bounded");
    let Some(pending) = record.pending.as_ref().map(|pending| pending.state.stamp) else { return };
    let committed = record.committed.as_ref().map_or(Stamp::default(), |state| state.stamp);
    assert!(committed < pending, "I4: {key:?}: {pending:?} is pending on {committed:?}");
    let is_next = pending.version.0 == committed.version.0 + 1;
    assert!(is_next || record.is_bare(), "I4: {key:?}: {pending:?} is pending on {committed:?}");
}

/// Pages of `before` that `after` no longer refers to. States only ever share a page at the same index.
fn released(before: &Record, after: &Record) -> Vec<PageNumber> {
    let is_kept = |state: &Arc<ContentState>| after.states().any(|kept| Arc::ptr_eq(kept, state));
    let lost: Vec<_> = before.states().filter(|state| !is_kept(state)).collect();
    let mut released = Vec::new();
    for (place, state) in lost.iter().enumerate() {
        // What is kept, and what was counted already.
        let mut others: Vec<_> =
            after.states().chain(lost[..place].iter().copied()).map(|other| other.pages()).collect();
        for page in state.pages() {
            let mut is_shared = false;
            for other in &mut others {
                is_shared |= other.next() == Some(page);
            }
            if page != HOLE && !is_shared {
                released.push(page);
            }
        }
    }
    released
}
