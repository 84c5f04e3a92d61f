//! Dirty chunks, those in flight, and how they get to the chains.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::bug::Bug;
use crate::buffer::Placement;
use crate::client::chunk_slice::chunk_slices;
use crate::client::dirty::{Dirty, DirtyChunk, RUN_BYTES, overlay};

/// Threads of the pool that write back one file at a time: enough to fill the chains, few enough to leave others room.
pub(super) const HELPERS_MAX: usize = 4;

/// Updates of one batch; each is one slice.
const BATCH_SLICES_MAX: usize = 128;

/// Number of the write that made bytes dirty which were in the inode before: older than any other.
pub(super) const SPILLED: u64 = 0;

/// A chunk is clean, dirty, in flight, or in flight with newer dirty bytes over that.
#[derive(Default)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct WriteBack {
    pub(super) dirty: Dirty,
    pub(super) in_flight: BTreeMap<u32, Arc<DirtyChunk>>,
    pub(super) helpers: usize,
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

    /// Whether bytes of a range that were written up to number `write` are not acknowledged yet.
    pub(super) fn waits_in(&self, range: Range<u64>, write: u64, chunk_bytes: u32) -> bool {
        let end = range.end.min(self.end(chunk_bytes));
        if range.start >= end {
            return false;
        }
        let chunk_bytes = u64::from(chunk_bytes);
        let index = |at: u64| u32::try_from(at / chunk_bytes).expect("a chunk has the byte");
        let indices = index(range.start)..=index(end - 1);
        let in_flight = self.in_flight.range(indices.clone()).map(|(index, chunk)| (*index, chunk.as_ref()));
        in_flight.chain(self.dirty.chunks_in(indices)).any(|(index, chunk)| {
            let start = u64::from(index) * chunk_bytes;
            let part = range.start.saturating_sub(start) as u32..(end - start).min(chunk_bytes) as u32;
            chunk.since <= write && chunk.pieces_in(part).next().is_some()
        })
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
        let is_within = |(at, bytes): &(usize, Placement)| at + bytes.len() <= into.len();
        assert!(found.iter().all(is_within), "what waits is laid over the range that is read");
        // Copied now: pieces that are dirty may change in place once the lock is free.
        Some(found.into_iter().map(|(at, bytes)| (at, Placement::from_vec(bytes.to_vec()))).collect())
    }

    /// Drop what is dirty from `length` on. Return the memory freed.
    pub(super) fn cut(&mut self, length: u64, chunk_bytes: u32) -> usize {
        self.dirty.cut(length, chunk_bytes)
    }

    /// Mark what was dirty by write number `write` as wanted.
    pub(super) fn want_until(&mut self, write: u64) {
        for (_, chunk) in self.dirty.chunks_mut() {
            chunk.wanted |= chunk.since <= write;
        }
    }

    /// Return chunks that can be written back now (I2).
    pub(super) fn ready(&self, bug: Bug) -> impl Iterator<Item = (u32, &DirtyChunk)> {
        self.dirty.chunks().filter(move |(index, chunk)| {
            chunk.wanted && (bug == Bug::SecondInFlight || !self.in_flight.contains_key(index))
        })
    }

    /// Put chunks in flight that were dirty, as many as make a good batch.
    pub(super) fn take_batch(&mut self, bug: Bug) -> Vec<(u32, Arc<DirtyChunk>)> {
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
        assert!(!indices.is_empty(), "a thread takes a batch where a chunk is ready");
        let mut batch = Vec::new();
        for index in indices {
            let chunk = Arc::new(self.dirty.take(index).expect("it is ready"));
            self.put_in_flight(index, chunk.clone());
            batch.push((index, chunk));
        }
        batch
    }

    pub(super) fn put_in_flight(&mut self, index: u32, chunk: Arc<DirtyChunk>) {
        let before = self.in_flight.insert(index, chunk);
        assert!(before.is_none(), "I2: one update of a chunk at a time");
    }

    pub(super) fn end_flight(&mut self, index: u32, chunk: &Arc<DirtyChunk>) {
        let ended = self.in_flight.remove(&index);
        assert!(ended.is_some_and(|ended| Arc::ptr_eq(&ended, chunk)), "I1: what ends was in flight");
    }

    /// Drop what is wanted on chunks and cannot get there. Return the memory freed.
    pub(super) fn give_up(&mut self) -> usize {
        let lost: Vec<u32> = self.ready(Bug::None).map(|(index, _)| index).collect();
        lost.into_iter().filter_map(|index| self.dirty.take(index)).map(|chunk| chunk.bytes()).sum()
    }
}
