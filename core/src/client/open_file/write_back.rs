//! Dirty chunks, those in flight, and how they get to the chains.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::access::Access;
use super::inline::Inline;
use super::machine::{Bug, Effects, Event, Machine};
use super::metadata::ChangeOrigin;
use crate::buffer::Placement;
use crate::client::chunk_slice::{ChunkSlice, chunk_slices};
use crate::client::data::Write;
use crate::client::dirty::{Dirty, DirtyChunk, RUN_BYTES, overlay};
use crate::client::inline_migration::Migrated;
use crate::client::meta::Identity;
use crate::error::{Error, Result};
use crate::types::ContentId;
use crate::wire::pb;

/// Threads of the pool that write back one file at a time: enough to fill the chains, few enough to leave others room.
const HELPERS_MAX: usize = 4;
/// Updates of one batch; each is one slice.
const BATCH_SLICES_MAX: usize = 128;
/// Number of the write that made bytes dirty which were in the inode before: older than any other.
pub(super) const SPILLED: u64 = 0;

/// A chunk is clean, dirty, in flight, or in flight with newer dirty bytes over that.
#[derive(Default)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct WriteBack {
    dirty: Dirty,
    in_flight: BTreeMap<u32, Arc<DirtyChunk>>,
    helpers: usize,
}

impl WriteBack {
    /// Whether nothing is dirty or in flight.
    pub(super) fn is_empty(&self) -> bool {
        self.dirty.is_empty() && self.in_flight.is_empty()
    }

    pub(super) fn is_in_flight(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Whether nothing of a chunk is dirty or in flight.
    pub(super) fn is_idle(&self, index: u32) -> bool {
        !self.in_flight.contains_key(&index) && self.dirty.chunk(index).is_none()
    }

    /// Return the memory held.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.dirty.bytes() + self.in_flight.values().map(|chunk| chunk.bytes()).sum::<usize>()
    }

    /// Hash what distinguishes two states.
    #[cfg(test)]
    pub(super) fn hash_into(&self, hasher: &mut impl std::hash::Hasher) {
        use std::hash::Hash;
        let in_flight = self.in_flight.iter().map(|(index, chunk)| (*index, chunk.as_ref()));
        for (is_dirty, (index, chunk)) in
            self.dirty.chunks().map(|chunk| (true, chunk)).chain(in_flight.map(|chunk| (false, chunk)))
        {
            (is_dirty, index, chunk.since == SPILLED, chunk.wanted).hash(hasher);
            chunk.pieces().for_each(|(start, bytes)| (start, bytes.to_vec()).hash(hasher));
        }
    }

    /// Return the end of what is dirty or in flight.
    pub(super) fn end(&self, chunk_bytes: u32) -> u64 {
        let in_flight = self
            .in_flight
            .last_key_value()
            .map_or(0, |(&index, chunk)| u64::from(index) * u64::from(chunk_bytes) + u64::from(chunk.end()));
        self.dirty.end(chunk_bytes).max(in_flight)
    }

    /// Whether a write up to number `write` is not acknowledged yet.
    pub(super) fn waits_until(&self, write: u64) -> bool {
        self.dirty.chunks().any(|(_, chunk)| chunk.since <= write)
            || self.in_flight.values().any(|chunk| chunk.since <= write)
    }

    /// Return what waits of a range that is about to be read: pieces to lay over what the chains have. `None`: all of it,
    /// and it has been copied.
    pub(super) fn waiting(
        &self,
        offset: u64,
        into: &Placement,
        chunk_bytes: u32,
    ) -> Option<Vec<(usize, Placement)>> {
        if self.is_empty() {
            return Some(Vec::new());
        }
        let layers = |index: u32| [self.in_flight.get(&index).map(Arc::as_ref), self.dirty.chunk(index)];
        let mut found = Vec::new();
        let mut complete = true;
        for slice in chunk_slices(offset, into.len(), chunk_bytes, chunk_bytes) {
            let layers = layers(slice.index);
            if layers.iter().all(Option::is_none) {
                complete = false;
                continue;
            }
            let range = slice.offset..slice.offset + slice.range.len() as u32;
            for layer in layers.into_iter().flatten() {
                for (at, bytes) in layer.pieces_in(range.clone()) {
                    found.push((slice.range.start + (at - slice.offset) as usize, bytes));
                }
            }
        }
        if complete && overlay(offset, into, chunk_bytes, layers) {
            return None;
        }
        // Copied now: pieces that are dirty may change in place once the lock is free.
        Some(found.into_iter().map(|(at, bytes)| (at, Placement::from_vec(bytes.to_vec()))).collect())
    }

    /// Drop what is dirty from `length` on. Return the memory freed.
    pub(super) fn cut(&mut self, length: u64, chunk_bytes: u32) -> usize {
        self.dirty.cut(length, chunk_bytes)
    }

    /// Mark what was dirty by write number `write` as wanted.
    fn want_until(&mut self, write: u64) {
        for (_, chunk) in self.dirty.chunks_mut() {
            chunk.wanted |= chunk.since <= write;
        }
    }

    /// Return chunks that can be written back now (I2).
    fn ready(&self, bug: Bug) -> impl Iterator<Item = (u32, &DirtyChunk)> {
        self.dirty.chunks().filter(move |(index, chunk)| {
            chunk.wanted && (bug == Bug::SecondInFlight || !self.in_flight.contains_key(index))
        })
    }

    /// Put chunks in flight that were dirty, as many as make a good batch.
    fn take_batch(&mut self, bug: Bug) -> Vec<(u32, Arc<DirtyChunk>)> {
        let (mut bytes, mut slices) = (0, 0);
        let mut indices = Vec::new();
        for (index, chunk) in self.ready(bug) {
            bytes += chunk.bytes();
            slices += chunk.pieces().count();
            if !indices.is_empty() && (bytes > RUN_BYTES as usize || slices > BATCH_SLICES_MAX) {
                break;
            }
            indices.push(index);
        }
        let mut batch = Vec::new();
        for index in indices {
            let chunk = Arc::new(self.dirty.take(index).expect("it is ready"));
            self.put_in_flight(index, chunk.clone());
            batch.push((index, chunk));
        }
        batch
    }

    fn put_in_flight(&mut self, index: u32, chunk: Arc<DirtyChunk>) {
        let before = self.in_flight.insert(index, chunk);
        assert!(before.is_none(), "I2: one update of a chunk at a time");
    }

    fn end_flight(&mut self, index: u32, chunk: &Arc<DirtyChunk>) {
        let ended = self.in_flight.remove(&index);
        assert!(ended.is_some_and(|ended| Arc::ptr_eq(&ended, chunk)), "I1: what ends was in flight");
    }

    /// Drop what is wanted on chunks and cannot get there. Return the memory freed.
    fn give_up(&mut self) -> usize {
        let lost: Vec<u32> = self.ready(Bug::None).map(|(index, _)| index).collect();
        lost.into_iter().filter_map(|index| self.dirty.take(index)).map(|chunk| chunk.bytes()).sum()
    }
}

impl Machine {
    /// Whether all that is known of the file's bytes is in the inode, so that a small write may go there.
    pub(super) fn is_all_inline(&self) -> bool {
        self.bytes.inline().is_some() && self.write_back.is_empty()
    }

    /// Whether bytes in the inode were written here and are not synced yet.
    pub(super) fn is_edited(&self) -> bool {
        self.bytes.inline().is_some_and(Inline::is_edited)
    }

    /// Whether bytes that were in the inode wait to be written back, and so are in no update of metadata.
    pub(super) fn has_spilled(&self) -> bool {
        self.write_back.waits_until(SPILLED)
    }

    /// Return the end of what waits here for the chains or the metadata service.
    pub(super) fn waiting_end(&self) -> u64 {
        let inline = self.bytes.inline().filter(|inline| inline.is_edited());
        let inline = inline.map_or(0, |inline| inline.bytes.len() as u64);
        self.write_back.end(self.layout.chunk_bytes).max(inline)
    }

    /// Return the end of what was written here: acknowledged by the chains, or waiting.
    pub(super) fn written_end(&self) -> u64 {
        let unverified = self.unverified_size.map_or(0, |hint| hint.length);
        self.acknowledged.max(unverified).max(self.waiting_end())
    }

    /// Return where the file ends: as the metadata service reported, as chains have acknowledged here, and with what
    /// waits.
    pub(super) fn known_end(&self) -> u64 {
        self.inode.length.max(self.written_end())
    }

    /// Return the largest length that chunk indices can express.
    pub(super) fn length_max(&self) -> u64 {
        u64::from(self.layout.chunk_bytes.max(1)) * u64::from(u32::MAX)
    }

    /// Start threads, if there is more to write back than `others` will.
    pub(super) fn start_helpers(&mut self, others: usize, effects: &mut Effects) {
        let ready = self
            .write_back
            .ready(Bug::None)
            .take(HELPERS_MAX.saturating_add(others))
            .count()
            .saturating_sub(others);
        if self.write_back.helpers < ready {
            effects.start_helpers += ready - self.write_back.helpers;
            self.write_back.helpers = ready;
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

    /// Count a write up to `end`: what readers and attributes show of it.
    fn count_write(&mut self, end: u64, now_ns: i64) {
        self.writes += 1;
        self.length = self.length.max(end);
        self.metadata.mark(|pending| pending.mtime_ns = Some(now_ns));
        if let Some(deferred) = &mut self.deferred {
            deferred.written();
        }
    }

    /// Bytes up to `length` were written under an older truncation than is known now, before it or after.
    pub(super) fn add_unverified_size(&mut self, length: u64, truncate_version: u64) {
        let length = self.unverified_size.as_ref().map_or(length, |hint| hint.length.max(length));
        self.unverified_size = Some(pb::LengthHint { length, truncate_version });
        self.ack_count += 1;
        self.length = self.length.max(length);
        self.metadata.mark(|pending| pending.size = true);
    }

    fn on_acked(&mut self, offset: u64, length: usize) {
        let end = offset + length as u64;
        self.acknowledged = self.acknowledged.max(end);
        self.ack_count += 1;
        self.durability.add_volatile(offset..end);
        self.metadata.mark(|pending| pending.size = true);
    }

    fn give_up(&mut self, effects: &mut Effects) {
        effects.memory -= self.write_back.give_up() as isize;
        self.length = self.known_end();
    }
}

/// Take in a write for which `reserved` bytes of memory are reserved.
pub(super) struct TakeWrite<'a> {
    /// `None`: append.
    pub(super) offset: Option<u64>,
    pub(super) payload: &'a Placement,
    /// The memory of `payload` may be kept and changed.
    pub(super) keep: bool,
    pub(super) now_ns: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    Done {
        offset: u64,
        /// Number of the write.
        number: u64,
        is_inline: bool,
        /// A run of a chunk is complete: it is worth writing back now.
        is_complete: bool,
    },
    /// Access is not shared, or bytes that would leave the inode are being sent.
    Wait,
    TooLarge,
}

impl Event for TakeWrite<'_> {
    type Outcome = Taken;

    fn apply(self, machine: &mut Machine, effects: &mut Effects) -> Taken {
        assert!(!self.payload.is_empty(), "an empty write changes nothing");
        let length = self.payload.len();
        if machine.access != Access::Shared && machine.bug != Bug::WriteWhileExclusive {
            return Taken::Wait;
        }
        let offset = self.offset.unwrap_or(machine.length);
        let end = offset.saturating_add(length as u64);
        let exceeds_inline = end > u64::from(machine.layout.inline_bytes());
        let is_syncing = machine.bytes.inline().is_some_and(|inline| !inline.syncing.is_empty());
        if is_syncing && exceeds_inline && machine.bug != Bug::SpillWhileSyncing {
            return Taken::Wait;
        }
        effects.memory -= length as isize;
        if end > machine.length_max() {
            return Taken::TooLarge;
        }
        machine.count_write(end, self.now_ns);
        let mut is_complete = false;
        let is_inline = machine.is_all_inline() && !exceeds_inline;
        if let Some(inline) = machine.bytes.inline_mut().filter(|_| is_inline) {
            inline.write(offset as usize, length, |target| self.payload.copy_to(target));
            machine.metadata.mark(|pending| pending.size = true);
        } else {
            machine.spill_inline(effects);
            let (number, chunk_bytes) = (machine.writes, machine.layout.chunk_bytes);
            let (change, complete) = machine.write_back.dirty.put(
                number,
                offset,
                self.payload,
                self.keep,
                chunk_bytes,
                &machine.pool,
            );
            effects.memory += change;
            is_complete = !complete.is_empty();
        }
        machine.list(effects);
        Taken::Done { offset, number: machine.writes, is_inline: machine.is_all_inline(), is_complete }
    }
}

/// Put the file in the client's list of files with appended bytes.
pub(super) struct ListAppended;

impl Event for ListAppended {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, effects: &mut Effects) {
        effects.list_appended |= !std::mem::replace(&mut machine.is_append_listed, true);
    }
}

/// The client has taken the file out of that list.
pub(super) struct UnlistAppended;

impl Event for UnlistAppended {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, _: &mut Effects) {
        machine.is_append_listed = false;
    }
}

/// Want everything up to a write on the chains, beside what `others` threads write back anyway.
pub(super) struct Want {
    pub(super) until: u64,
    pub(super) others: usize,
}

impl Event for Want {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, effects: &mut Effects) {
        machine.write_back.want_until(self.until);
        machine.start_helpers(self.others, effects);
    }
}

/// Start threads for what is wanted.
pub(super) struct StartHelpers;

impl Event for StartHelpers {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, effects: &mut Effects) {
        machine.start_helpers(0, effects);
    }
}

/// What a thread that writes back has to do.
pub(super) enum WriteBackTask {
    Nothing,
    /// Wait until this client is registered again.
    WaitAtFence,
    Migrate(Migration),
    Write(Batch),
}

/// A file that is to leave its inode.
pub(super) struct Migration {
    pub(super) bytes: Vec<u8>,
    pub(super) base: u64,
    pub(super) layout: pb::Layout,
    pub(super) session: u64,
    pub(super) identity: Arc<Identity>,
}

/// A thread that writes back asks for work.
pub(super) struct TakeTask {
    pub(super) is_fenced: bool,
}

impl Event for TakeTask {
    type Outcome = WriteBackTask;

    fn apply(self, machine: &mut Machine, _: &mut Effects) -> WriteBackTask {
        let bug = machine.bug;
        if machine.access != Access::Shared || machine.write_back.ready(bug).next().is_none() {
            return WriteBackTask::Nothing;
        }
        if self.is_fenced {
            return WriteBackTask::WaitAtFence;
        }
        if machine.bytes.inline().is_some() && bug != Bug::WriteBackInline {
            if machine.bytes.is_migrating() {
                return WriteBackTask::Nothing;
            }
            let (session, identity) = machine.sessions.first().unwrap_or_default();
            let (bytes, base) = machine.bytes.begin_migration();
            return WriteBackTask::Migrate(Migration {
                bytes,
                base,
                layout: machine.layout,
                session,
                identity,
            });
        }
        let chunks = machine.write_back.take_batch(bug);
        WriteBackTask::Write(Batch::new(machine, chunks))
    }
}

/// A helper thread has found nothing to do, or could not be started.
pub(super) struct HelperEnded;

impl Event for HelperEnded {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, _: &mut Effects) {
        assert!(machine.write_back.helpers > 0, "a helper is counted while it runs");
        machine.write_back.helpers -= 1;
    }
}

/// This client was not registered again in time: what was wanted on chains is given up.
pub(super) struct FenceFailed(pub(super) Error);

impl Event for FenceFailed {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, effects: &mut Effects) {
        machine.give_up(effects);
        machine.fail(self.0.context("write-back"), effects);
        effects.wake = true;
    }
}

/// The file has left its inode, or could not.
pub(super) struct MigrationEnded {
    pub(super) result: Result<Migrated>,
    pub(super) now: Instant,
}

impl Event for MigrationEnded {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, effects: &mut Effects) {
        machine.bytes.end_migration();
        match self.result {
            Ok(Migrated { inode, ours }) => {
                let source = ChangeOrigin::of(&machine.inode, &inode, ours);
                machine.follow_pages(&inode, source, effects);
                machine.durability.undurable += 1;
                machine.apply_inode(inode, source, self.now, effects);
            }
            Err(error) => {
                machine.give_up(effects);
                machine.fail(error.context("write-back"), effects);
            }
        }
        machine.start_helpers(0, effects);
        effects.wake = true;
    }
}

/// Chunks of one file that are in flight together, and what the file was when they left.
#[cfg_attr(test, derive(Clone))]
pub(super) struct Batch {
    chunks: Vec<(u32, Arc<DirtyChunk>)>,
    layout: pb::Layout,
    content: u64,
    truncate_version: u64,
}

impl Batch {
    /// Make a batch of `chunks` that are in flight.
    fn new(machine: &Machine, chunks: Vec<(u32, Arc<DirtyChunk>)>) -> Batch {
        assert!(!chunks.is_empty(), "a batch writes something");
        let is_in_flight = |(index, _): &(u32, _)| machine.write_back.in_flight.contains_key(index);
        assert!(chunks.iter().all(is_in_flight), "I1: they are in flight");
        let is_inline = machine.inode.is_inline && machine.bug != Bug::WriteBackInline;
        assert!(!is_inline, "I6: nothing is written under the content of a file in its inode");
        let (content, truncate_version) = (machine.inode.content, machine.inode.truncate_version);
        Batch { chunks, layout: machine.layout, content, truncate_version }
    }

    /// Return which content and truncation the batch was made for.
    #[cfg(test)]
    pub(super) fn stamp(&self) -> (u64, u64) {
        (self.content, self.truncate_version)
    }

    /// Return one write for each slice, those of a chunk one after another.
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

/// Chains have answered the `writes` of a batch.
pub(super) struct BatchEnded<'a> {
    pub(super) batch: Batch,
    pub(super) writes: &'a [Write],
    pub(super) results: &'a [Result<()>],
}

impl Event for BatchEnded<'_> {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, effects: &mut Effects) {
        assert_eq!(self.results.len(), self.writes.len(), "one result for each write");
        let Batch { chunks, content, truncate_version, .. } = self.batch;
        let is_current =
            truncate_version == machine.inode.truncate_version && content == machine.inode.content;
        for (write, result) in self.writes.iter().zip(self.results) {
            match result {
                Ok(()) if is_current => machine.on_acked(write.offset, write.payload.len()),
                Ok(()) if content == machine.inode.content => {
                    let end = write.offset + write.payload.len() as u64;
                    machine.durability.add_volatile(write.offset..end);
                    machine.add_unverified_size(end, truncate_version);
                }
                Ok(()) => machine.metadata.mark(|pending| pending.size = true),
                Err(_) if machine.bug == Bug::ForgetError => {}
                Err(error) => machine.fail(error.clone().context("write-back"), effects),
            }
        }
        for (index, chunk) in chunks {
            machine.write_back.end_flight(index, &chunk);
            if machine.bug != Bug::LeakBatch {
                effects.memory -= chunk.bytes() as isize;
            }
        }
        if self.results.iter().any(Result::is_err) {
            // What failed did not extend the file: an append that follows leaves no hole.
            machine.length = machine.known_end();
        }
        effects.wake |= machine.bug != Bug::NoWakeAfterBatch;
    }
}

/// A direct write of a list: its number there, offset and bytes.
pub(super) struct DirectSlice<'a> {
    pub(super) number: usize,
    pub(super) offset: u64,
    pub(super) payload: &'a Placement,
}

impl DirectSlice<'_> {
    fn end(&self) -> u64 {
        self.offset.saturating_add(self.payload.len() as u64)
    }
}

/// Put writes of one file in flight out of their callers' memory, as many as can be (W1).
pub(super) struct BeginDirect<'a> {
    pub(super) writes: &'a [DirectSlice<'a>],
    pub(super) now_ns: i64,
}

impl Event for BeginDirect<'_> {
    /// The numbers of the writes that are in flight now; `None`: not one.
    type Outcome = Option<(Vec<usize>, Batch)>;

    fn apply(self, machine: &mut Machine, effects: &mut Effects) -> Self::Outcome {
        // Without a session it was lost since the handle was checked: the caller's other way checks again.
        let has_session = !machine.sessions.is_empty();
        if !has_session || machine.access != Access::Shared || machine.bytes.inline().is_some() {
            return None;
        }
        let mut chunks: BTreeMap<u32, (u64, BTreeMap<u32, Placement>)> = BTreeMap::new();
        let mut taken = Vec::new();
        for write in self.writes {
            if write.payload.is_empty() || write.end() > machine.length_max() {
                continue;
            }
            let chunk_bytes = machine.layout.chunk_bytes;
            let slices: Vec<ChunkSlice> =
                chunk_slices(write.offset, write.payload.len(), chunk_bytes, RUN_BYTES).collect();
            let is_free = |slice: &ChunkSlice| {
                let known = chunks.get(&slice.index);
                machine.write_back.is_idle(slice.index)
                    && !known.is_some_and(|(_, pieces)| touches(pieces, slice))
            };
            if !slices.iter().all(is_free) {
                continue;
            }
            machine.count_write(write.end(), self.now_ns);
            for slice in slices {
                let (_, pieces) =
                    chunks.entry(slice.index).or_insert_with(|| (machine.writes, BTreeMap::new()));
                pieces.insert(slice.offset, write.payload.slice(slice.range));
            }
            taken.push(write.number);
        }
        if taken.is_empty() {
            return None;
        }
        let chunks: Vec<(u32, Arc<DirtyChunk>)> = chunks
            .into_iter()
            .map(|(index, (since, pieces))| (index, Arc::new(DirtyChunk::borrowed(since, pieces))))
            .collect();
        for (index, chunk) in &chunks {
            machine.write_back.put_in_flight(*index, chunk.clone());
        }
        machine.list(effects);
        Some((taken, Batch::new(machine, chunks)))
    }
}

/// Whether a slice of a chunk overlaps one of its `pieces`, which do not overlap.
fn touches(pieces: &BTreeMap<u32, Placement>, slice: &ChunkSlice) -> bool {
    let end = slice.offset + slice.range.len() as u32;
    let last = pieces.range(..end).next_back();
    last.is_some_and(|(start, memory)| start + memory.len() as u32 > slice.offset)
}
