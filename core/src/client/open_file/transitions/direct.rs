//! Direct writes are put in flight out of their callers' memory (W1).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::access::Access;
use super::super::bug::Bug;
use super::super::machine::{Effects, Event, Machine};
use super::write_back::Batch;
use crate::buffer::Placement;
use crate::client::chunk_slice::{ChunkSlice, chunk_slices};
use crate::client::dirty::{DirtyChunk, RUN_BYTES};

/// A direct write of a list: its number there, offset and bytes.
pub struct DirectSlice<'a> {
    pub number: usize,
    pub offset: u64,
    pub payload: &'a Placement,
}

impl DirectSlice<'_> {
    fn end(&self) -> u64 {
        self.offset.saturating_add(self.payload.len() as u64)
    }
}

/// Put writes of one file in flight out of their callers' memory, as many as can be (W1).
pub struct BeginDirect<'a> {
    pub writes: &'a [DirectSlice<'a>],
    pub now_ns: i64,
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
                (machine.write_back.is_idle(slice.index) || machine.bug == Bug::DirectPastDirty)
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
