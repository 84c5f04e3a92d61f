//! Direct writes, many at once, out of their callers' memory: as `write` with `IoMode::Direct`, without a copy.
//!
//! - W1 A chunk is written here only while nothing of it is dirty or in flight, so that its updates stay in order (I2).
//!   All other writes are left to `write`, which merges them with what is dirty.
//! - W2 Until chains have answered, the caller's memory is in flight like any other: reads see it; fsync, close and
//!   truncation wait for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::OpenInode;
use super::writing::{Batch, write_all};
use crate::buffer::Placement;
use crate::client::data::Write;
use crate::client::dirty::{DirtyChunk, Part, RUN_BYTES, parts};
use crate::client::shared::Shared;
use crate::error::Result;

/// All of `payload` at `offset`, through one handle.
pub struct DirectWrite<'a> {
    pub inode: &'a Arc<OpenInode>,
    pub offset: u64,
    pub payload: Placement,
    /// How many errors of the file the handle has reported to its writer.
    pub written: &'a AtomicU64,
}

impl DirectWrite<'_> {
    fn overlaps(&self, other: &Write) -> bool {
        let (end, other_end) = (self.end(), other.offset + other.payload.len() as u64);
        other.offset < end && self.offset < other_end
    }

    fn end(&self) -> u64 {
        self.offset.saturating_add(self.payload.len() as u64)
    }
}

/// Writes of one file that are in flight: which of the list, and as what.
struct DirectBatch<'a> {
    inode: &'a Arc<OpenInode>,
    requests: Vec<usize>,
    batch: Batch,
    writes: Vec<Write>,
}

/// Carries out all that can be sent now, of any files, in one call. `None`: use `write`.
pub fn write_direct(shared: &Shared, requests: &[DirectWrite]) -> Vec<Option<Result<()>>> {
    let mut files: BTreeMap<*const OpenInode, Vec<usize>> = BTreeMap::new();
    for (number, request) in requests.iter().enumerate() {
        files.entry(Arc::as_ptr(request.inode)).or_default().push(number);
    }
    let in_flight: Vec<DirectBatch> =
        files.into_values().filter_map(|numbers| begin(requests, numbers)).collect();
    let writes: Vec<Write> = in_flight.iter().flat_map(|flight| flight.writes.iter().cloned()).collect();
    let mut outcomes: Vec<Option<Result<()>>> = requests.iter().map(|_| None).collect();
    if writes.is_empty() {
        return outcomes;
    }
    let results = write_all(shared, &writes);
    let mut rest = results.as_slice();
    for flight in in_flight {
        let (results, others) = rest.split_at(flight.writes.len());
        rest = others;
        flight.end(requests, results, &mut outcomes);
    }
    outcomes
}

/// Puts writes of one file in flight, as many as can be. `None`: not one.
fn begin<'a>(requests: &[DirectWrite<'a>], numbers: Vec<usize>) -> Option<DirectBatch<'a>> {
    let inode = requests[numbers[0]].inode;
    let mut guard = inode.state.lock();
    let state = &mut *guard;
    // Without a session it was lost since the handle was checked: `write` checks again.
    let has_session = !state.sessions.is_empty();
    if !has_session || state.exclusive || state.inline.is_some() || inode.shared.fence.is_raised() {
        return None;
    }
    let mut chunks: BTreeMap<u32, (u64, BTreeMap<u32, Placement>)> = BTreeMap::new();
    let mut taken = Vec::new();
    for number in numbers {
        let request = &requests[number];
        if request.payload.is_empty() || request.end() > state.length_max() {
            continue;
        }
        let chunk_bytes = state.layout.chunk_bytes;
        let parts: Vec<Part> = parts(request.offset, request.payload.len(), chunk_bytes, RUN_BYTES).collect();
        let is_free = |part: &Part| {
            let known = chunks.get(&part.index);
            state.is_idle(part.index) && !known.is_some_and(|(_, pieces)| touches(pieces, part))
        };
        if !parts.iter().all(is_free) {
            continue;
        }
        state.count_write(request.end());
        for part in parts {
            let (_, pieces) = chunks.entry(part.index).or_insert_with(|| (state.writes, BTreeMap::new()));
            pieces.insert(part.offset, request.payload.slice(part.range));
        }
        taken.push(number);
    }
    if taken.is_empty() {
        return None;
    }
    let chunks: Vec<(u32, Arc<DirtyChunk>)> = chunks
        .into_iter()
        .map(|(index, (since, pieces))| (index, Arc::new(DirtyChunk::borrowed(since, pieces))))
        .collect();
    state.in_flight.extend(chunks.iter().cloned());
    inode.list(state);
    let batch = Batch::new(state, chunks);
    let writes = batch.writes();
    Some(DirectBatch { inode, requests: taken, batch, writes })
}

/// Whether a part of a chunk overlaps one of its `pieces`, which do not overlap.
fn touches(pieces: &BTreeMap<u32, Placement>, part: &Part) -> bool {
    let end = part.offset + part.range.len() as u32;
    let last = pieces.range(..end).next_back();
    last.is_some_and(|(start, memory)| start + memory.len() as u32 > part.offset)
}

impl DirectBatch<'_> {
    /// Chains have answered. An error belongs to the writes whose bytes were in the update that failed.
    fn end(self, requests: &[DirectWrite], results: &[Result<()>], outcomes: &mut [Option<Result<()>>]) {
        let mut state = self.inode.state.lock();
        self.inode.end_batch(&mut state, self.batch, &self.writes, results);
        for number in self.requests {
            let request = &requests[number];
            let failed = self.writes.iter().zip(results).find_map(|(write, result)| match result {
                Err(error) if request.overlaps(write) => Some(error.clone()),
                _ => None,
            });
            if failed.is_some() {
                // Under the lock: no other write of this handle gets the error of this one.
                request.written.fetch_max(state.errors, Ordering::AcqRel);
            }
            outcomes[number] = Some(failed.map_or(Ok(()), Err));
        }
        // What became dirty meanwhile, and waits for these chunks.
        self.inode.help(&mut state);
    }
}
