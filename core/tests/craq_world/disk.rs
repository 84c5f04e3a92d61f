//! One disk: what its process reads and writes, and what is left of it when power is lost.
//!
//! As in the chunk engine a state is durable when a round of `sync` that began after it was written has flushed the data;
//! until then its record names the states that an opening after power loss may fall back to. Which those are is decided
//! by the engine's own rule, `Record::fallbacks_for`. A round goes by steps, and updates come in between: the data is
//! flushed, the index says so, the index is flushed, and pages that were given up before the round are free.

use std::sync::Arc;

use luciola_core::chunk;
use luciola_core::craq::{Stored, StoredPending};
use luciola_core::types::*;

use super::byte_of;

/// What a chunk holds at one version. `history` is for checking: the requests that made it, one byte each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    pub stamp: Stamp,
    pub removed: bool,
    pub history: Vec<u8>,
    pub bytes: Vec<u8>,
    /// The round of `sync` that had begun when it was written.
    pub round: u64,
}

impl State {
    /// Nothing, or a tombstone.
    pub fn is_bare(&self) -> bool {
        self.removed || self.stamp.version == Version(0)
    }

    fn as_engine(&self) -> Arc<chunk::ContentState> {
        Arc::new(chunk::ContentState {
            stamp: self.stamp,
            round: self.round,
            ..chunk::ContentState::default()
        })
    }
}

/// `bytes` after `op`, whose payload is `byte`.
pub fn applied(mut bytes: Vec<u8>, op: Op, byte: u8) -> Vec<u8> {
    match op {
        Op::Write { offset, .. } => {
            let end = offset as usize + 1;
            bytes.resize(bytes.len().max(end), 0);
            bytes[end - 1] = byte;
        }
        Op::Truncate { length } => bytes.resize(length as usize, 0),
        Op::Remove => bytes.clear(),
        Op::Replace { .. } => unreachable!("a replacement brings its own bytes"),
    }
    bytes
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pending {
    pub update: StoredPending,
    pub state: State,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Fallback {
    state: State,
    /// The round that had begun when it was replaced: the end of the next one frees its pages.
    retired: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Chunk {
    /// Version 0: nothing was ever committed.
    pub committed: State,
    pub pending: Option<Pending>,
    pub writers: Vec<WriterRecord>,
    pub fallbacks: Vec<Fallback>,
}

/// What recovery compares: the chunk as the index has it. What a machine is staging is in no index; that of the tail counts
/// as pending, because the tail may commit it with that. That of the returning replica need not be looked at (R9).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Listing {
    pub stamp: Stamp,
    pub removed: bool,
    pub bytes: Vec<u8>,
    pub pending: Option<Version>,
}

/// History, bytes, what is pending, the stamp, and the requests that are remembered.
type Essence<'a> = (&'a [u8], &'a [u8], Option<StoredPending>, Option<Stamp>, Vec<WriterRecord>);

impl Listing {
    /// No record at all.
    pub fn is_absent(&self) -> bool {
        self.stamp.version == Version(0) && self.pending.is_none()
    }
}

impl Chunk {
    /// What to do for the update that is to be pending. To remove nothing once more, where its tombstone was
    /// forgotten, changes nothing.
    pub fn staged(&self, update: StoredPending, round: u64) -> Chunk {
        let byte = byte_of(update.tag);
        let mut state = self.committed.clone();
        let is_again = update.op == Op::Remove && state.is_bare() && state.history.last() == Some(&byte);
        if !is_again {
            state.history.push(byte);
        }
        state.bytes = applied(state.bytes, update.op, byte);
        (state.stamp, state.removed, state.round) = (update.stamp, update.op == Op::Remove, round);
        Chunk { pending: Some(Pending { update, state }), ..self.clone() }
    }

    pub fn with_pending_committed(&self) -> Chunk {
        let Pending { update, state } = self.pending.clone().expect("a pending version");
        self.committed_as(state, update.tag)
    }

    pub fn committed_as(&self, state: State, tag: RequestTag) -> Chunk {
        let mut writers = self.writers.clone();
        if tag.client.0 != 0 {
            writers.retain(|record| record.tag.client != tag.client);
            writers.push(WriterRecord { tag, version: state.stamp.version, round: 0 });
        }
        Chunk { committed: state, pending: None, writers, ..self.clone() }
    }

    /// The state once the pending version is committed.
    pub fn newest(&self) -> &State {
        self.pending.as_ref().map_or(&self.committed, |pending| &pending.state)
    }

    pub fn listing(&self, under_way: Option<Version>) -> Listing {
        let State { stamp, removed, bytes, .. } = &self.committed;
        let bytes = if *removed { Vec::new() } else { bytes.clone() };
        let pending = self.pending.as_ref().map(|pending| pending.update.stamp.version).or(under_way);
        Listing { stamp: *stamp, removed: *removed, bytes, pending }
    }

    /// What two replicas must agree on: a tombstone is as good as none, also for the requests it remembers. Requests
    /// that do not come again may be forgotten: a state from before power loss has lost those that a later one replaced.
    pub fn essence(&self, purged: bool, may_come: impl Fn(RequestTag) -> bool) -> Essence<'_> {
        let State { stamp, history, bytes, .. } = &self.committed;
        let stamp = (!purged || !self.committed.is_bare()).then_some(*stamp);
        let pending = self.pending.as_ref().map(|pending| pending.update);
        let remembered = self.writers.iter().filter(|record| !purged && may_come(record.tag));
        (history, bytes, pending, stamp, remembered.copied().collect())
    }

    fn is_absent(&self) -> bool {
        self.committed.stamp.version == Version(0) && self.pending.is_none()
    }

    fn as_engine(&self) -> chunk::Record {
        let State { stamp, .. } = &self.committed;
        chunk::Record {
            committed: (stamp.version != Version(0)).then(|| self.committed.as_engine()),
            fallbacks: self.fallbacks.iter().map(|fallback| fallback.state.as_engine()).collect(),
            ..chunk::Record::default()
        }
    }

    fn states(&mut self) -> impl Iterator<Item = &mut State> {
        let pending = self.pending.iter_mut().map(|pending| &mut pending.state);
        std::iter::once(&mut self.committed).chain(pending)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Index {
    chunks: Vec<Chunk>,
    floor: Version,
    /// The newest round that it says has succeeded.
    synced: u64,
}

/// How far a round of `sync` has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Step {
    #[default]
    Idle,
    Begun,
    /// The data is on disk.
    Flushed,
    /// The index says so, but need not be on disk.
    Recorded,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Disk {
    index: Index,
    /// The index as it was flushed last; `None` where power is not lost.
    stored: Option<Index>,
    step: Step,
}

impl Disk {
    pub fn new(chunks: usize, loses_power: bool) -> Disk {
        let index = Index { chunks: vec![Chunk::default(); chunks], floor: Version(0), synced: 1 };
        Disk { stored: loses_power.then(|| index.clone()), index, step: Step::Idle }
    }

    pub fn chunk(&self, chunk: usize) -> &Chunk {
        &self.index.chunks[chunk]
    }

    pub fn chunks(&self) -> &[Chunk] {
        &self.index.chunks
    }

    pub fn stored(&self, chunk: usize) -> Stored {
        let Chunk { committed, pending, writers, .. } = self.chunk(chunk);
        Stored {
            committed: committed.stamp,
            removed: committed.removed,
            pending: pending.as_ref().map(|pending| pending.update),
            writers: writers.clone(),
            floor: self.index.floor,
        }
    }

    /// How many updates its chunks have seen, as the engine counts them.
    pub fn updates(&self) -> u64 {
        self.index.chunks.iter().map(|chunk| chunk.committed.stamp.version.0).sum()
    }

    pub fn floor(&self) -> Version {
        self.index.floor
    }

    pub fn raise_floor(&mut self, version: Version) {
        self.index.floor = self.index.floor.max(version);
    }

    // Updates ---------------------------------------------------------------------------------------------

    /// Puts `after` in the place of a chunk's record. `one_fallback`: the mistake to name only a state of before the
    /// round that had succeeded.
    pub fn put(&mut self, chunk: usize, mut after: Chunk, one_fallback: bool) {
        let before = &self.index.chunks[chunk];
        after.fallbacks = match self.stored.is_some() && !after.is_absent() {
            true => self.fallbacks(before, &after, one_fallback),
            false => Vec::new(),
        };
        self.index.chunks[chunk] = after;
    }

    fn fallbacks(&self, before: &Chunk, after: &Chunk, one_fallback: bool) -> Vec<Fallback> {
        let newest = Fallback { state: before.committed.clone(), retired: self.begun() };
        let earlier: Vec<&Fallback> = std::iter::once(&newest).chain(&before.fallbacks).collect();
        let begun = if one_fallback { self.synced() } else { self.begun() };
        let named = before.as_engine().fallbacks_for(&after.as_engine(), begun, self.synced());
        let known = |state: &Arc<chunk::ContentState>| {
            let same = |fallback: &&&Fallback| fallback.state.stamp == state.stamp;
            (*earlier.iter().find(same).expect("a fallback is an earlier state")).clone()
        };
        named.iter().map(known).collect()
    }

    /// Deletes a chunk's record. The floor is never lower than a version that was used.
    pub fn forget(&mut self, chunk: usize) {
        self.raise_floor(self.chunk(chunk).committed.stamp.version);
        self.index.chunks[chunk] = Chunk::default();
    }

    /// Of a chunk that is nothing here and at its predecessor, however that came about.
    pub fn learn_history(&mut self, chunk: usize, history: Vec<u8>) {
        self.index.chunks[chunk].committed.history = history;
    }

    // Rounds ----------------------------------------------------------------------------------------------

    /// The newest round that has begun, or will have when the one under way counts as one.
    pub fn begun(&self) -> u64 {
        match self.step {
            Step::Idle | Step::Recorded => self.index.synced,
            Step::Begun | Step::Flushed => self.index.synced + 1,
        }
    }

    /// The newest round of which the process knows that it has succeeded.
    fn synced(&self) -> u64 {
        self.index.synced - u64::from(self.step == Step::Recorded)
    }

    pub fn is_round_under_way(&self) -> bool {
        self.step != Step::Idle
    }

    /// One step of a round; whether it was the last.
    pub fn advance_round(&mut self) -> bool {
        self.step = match self.step {
            Step::Idle => Step::Begun,
            Step::Begun => Step::Flushed,
            Step::Flushed => {
                self.index.synced += 1;
                Step::Recorded
            }
            Step::Recorded => {
                self.stored = Some(self.index.clone());
                Step::Idle
            }
        };
        let has_ended = self.step == Step::Idle;
        if has_ended && self.is_durable() {
            self.flush();
        }
        has_ended
    }

    /// Whether a round would find nothing to do.
    pub fn is_durable(&self) -> bool {
        let is_old = |state: &State| state.round < self.index.synced;
        let mut states = self.index.chunks.iter().flat_map(|chunk| {
            std::iter::once(&chunk.committed).chain(chunk.pending.iter().map(|pending| &pending.state))
        });
        self.step == Step::Idle && self.stored.as_ref() == Some(&self.index) && states.all(is_old)
    }

    /// Whole rounds, until everything is durable. Their numbers begin again, so that equal disks are the same.
    pub fn flush(&mut self) {
        if self.stored.is_none() {
            return;
        }
        (self.index.synced, self.step) = (1, Step::Idle);
        for chunk in &mut self.index.chunks {
            chunk.fallbacks.clear();
            chunk.states().for_each(|state| state.round = 0);
        }
        self.stored = Some(self.index.clone());
    }

    // Power -----------------------------------------------------------------------------------------------

    /// What may be left when power is lost now: the index as it was flushed last or as it is, and of each chunk the data
    /// that no round has flushed, or not. The worst comes first.
    pub fn leftovers(&self) -> Vec<Result<Disk, &'static str>> {
        let mut found = Vec::new();
        for index in [self.stored.as_ref().expect("a disk that loses power"), &self.index] {
            for kept in 0..1u32 << index.chunks.len() {
                let left = self.opened(index, kept);
                if !found.contains(&left) {
                    found.push(left);
                }
            }
        }
        found
    }

    /// The disk as the engine opens it. `kept`: a bit for each chunk whose data has reached the disk by itself.
    fn opened(&self, index: &Index, kept: u32) -> Result<Disk, &'static str> {
        let flushed = self.begun() - u64::from(self.step == Step::Begun);
        let mut chunks = Vec::new();
        for (place, chunk) in index.chunks.iter().enumerate() {
            let is_there = |state: &State| state.round < flushed || kept >> place & 1 == 1;
            let is_lost = |state: &State| state.round >= index.synced && !is_there(state);
            let is_freed = |fallback: &Fallback| self.synced() > fallback.retired;
            let mut left = Chunk { fallbacks: Vec::new(), ..chunk.clone() };
            if chunk.committed.stamp.version != Version(0) && is_lost(&chunk.committed) {
                let usable = |fallback: &&Fallback| {
                    fallback.state.round < index.synced || (is_there(&fallback.state) && !is_freed(fallback))
                };
                let fallback = chunk.fallbacks.iter().find(usable);
                if fallback.is_some_and(|fallback| is_freed(fallback) || !is_there(&fallback.state)) {
                    return Err("power loss leaves a chunk with pages that were given to others");
                }
                left.committed = fallback.map(|fallback| fallback.state.clone()).unwrap_or_default();
                left.writers.retain(|record| record.version <= left.committed.stamp.version);
                left.pending = None;
            } else if chunk.pending.as_ref().is_some_and(|pending| is_lost(&pending.state)) {
                left.pending = None;
            }
            chunks.push(left);
        }
        let index = Index { chunks, ..index.clone() };
        let mut disk = Disk { stored: Some(index.clone()), index, step: Step::Idle };
        disk.flush();
        Ok(disk)
    }
}
