//! Direct writes, many at once, out of their callers' memory: as `write` with `IoMode::Direct`, without a copy.
//!
//! - W1 A chunk is written here only while nothing of it is dirty or in flight, so that its updates stay in order (I2).
//!   All other writes are left to `write`, which merges them with what is dirty.
//! - W2 Until chains have answered, the caller's memory is in flight like any other: buffered reads see it; direct reads of
//!   it, fsync, close and truncation wait for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::transitions::direct::{BeginDirect, DirectSlice};
use super::super::transitions::write_back::{Batch, BatchEnded, StartHelpers};
use super::writing::write_all;
use super::{OpenInode, now_ns};
use crate::buffer::Placement;
use crate::client::data::Write;
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

/// Carry out all that can be sent now, of any files, in one call. `None`: use `write`.
pub fn write_direct(shared: &Shared, requests: &[DirectWrite]) -> Vec<Option<Result<()>>> {
    let mut files: BTreeMap<*const OpenInode, Vec<DirectSlice>> = BTreeMap::new();
    for (number, request) in requests.iter().enumerate() {
        let slice = DirectSlice { number, offset: request.offset, payload: &request.payload };
        files.entry(Arc::as_ptr(request.inode)).or_default().push(slice);
    }
    let begin = |slices: Vec<DirectSlice>| begin(requests[slices[0].number].inode, &slices);
    let batches: Vec<DirectBatch> = files.into_values().filter_map(begin).collect();
    let writes: Vec<Write> = batches.iter().flat_map(|batch| batch.writes.iter().cloned()).collect();
    let mut outcomes: Vec<Option<Result<()>>> = requests.iter().map(|_| None).collect();
    if writes.is_empty() {
        return outcomes;
    }
    let results = write_all(shared, &writes);
    let mut rest = results.as_slice();
    for batch in batches {
        let (results, others) = rest.split_at(batch.writes.len());
        rest = others;
        batch.end(requests, results, &mut outcomes);
    }
    assert!(rest.is_empty(), "each result belongs to a write");
    outcomes
}

/// Put writes of one file in flight, as many as can be. `None`: not one.
fn begin<'a>(inode: &'a Arc<OpenInode>, slices: &[DirectSlice]) -> Option<DirectBatch<'a>> {
    if inode.shared.fence.is_raised() {
        return None;
    }
    let (requests, batch) = inode.apply(BeginDirect { writes: slices, now_ns: now_ns() })?;
    let writes = batch.writes();
    Some(DirectBatch { inode, requests, batch, writes })
}

impl DirectBatch<'_> {
    /// Take in what chains have answered. An error belongs to the writes whose bytes were in the update that failed.
    fn end(self, requests: &[DirectWrite], results: &[Result<()>], outcomes: &mut [Option<Result<()>>]) {
        let mut machine = self.inode.machine.lock();
        self.inode.step(&mut machine, BatchEnded { batch: self.batch, writes: &self.writes, results });
        for number in self.requests {
            let request = &requests[number];
            let failed = self.writes.iter().zip(results).find_map(|(write, result)| match result {
                Err(error) if request.overlaps(write) => Some(error.clone()),
                _ => None,
            });
            if failed.is_some() {
                // Under the lock: no other write of this handle gets the error of this one.
                request.written.fetch_max(machine.error_count, Ordering::AcqRel);
            }
            outcomes[number] = Some(failed.map_or(Ok(()), Err));
        }
        // What became dirty meanwhile, and waits for these chunks.
        self.inode.step(&mut machine, StartHelpers);
    }
}
