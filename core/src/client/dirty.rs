//! Bytes of one file that were written here and are not on a chain yet.
//!
//! Invariants:
//! - D1 Pieces of a chunk never overlap, and no piece crosses a boundary of `RUN_BYTES` or of a chunk.
//! - D2 A write changes bytes that are dirty already in place, so the newest bytes are the only ones kept.
//! - D3 `bytes` is the memory the pieces hold, not the bytes that were written: that is what is bounded.

use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};

use super::chunk_slice::chunk_slices;
use crate::buffer::{BufferPool, Placement};

/// Longest piece: one request of the kernel, one buffer of the pool.
pub const RUN_BYTES: u32 = 1 << 20;
/// A payload that fills at least this much of a buffer is kept; a shorter one is copied.
const KEEP_BYTES: u32 = RUN_BYTES / 2;
/// From this size on a piece gets a pool buffer, where it can grow without moving again.
const POOL_BYTES: u32 = 64 << 10;
/// Shorter pieces of callers' memory that follow one another are copied into one: that is cheaper than an update each.
const JOIN_BYTES: usize = 64 << 10;
/// Smallest memory of a piece.
const PIECE_BYTES: u32 = 4 << 10;

#[derive(Debug)]
struct DirtySlice {
    /// Memory for the piece; its first `length` bytes are dirty.
    memory: Placement,
    length: u32,
    /// Memory that is used for it: a kept payload holds its whole buffer.
    held: usize,
}

/// Dirty bytes of one chunk.
#[derive(Debug)]
pub struct DirtyChunk {
    /// Number of the write that made it dirty.
    pub since: u64,
    /// Somebody waits for it, or it is complete.
    pub wanted: bool,
    pieces: BTreeMap<u32, DirtySlice>,
    bytes: usize,
}

impl DirtyChunk {
    fn new(since: u64) -> DirtyChunk {
        DirtyChunk { since, wanted: false, pieces: BTreeMap::new(), bytes: 0 }
    }

    /// A chunk of pieces in their callers' memory, which is neither changed nor counted here. They do not overlap and
    /// are cut at boundaries of `RUN_BYTES`.
    pub fn borrowed(since: u64, pieces: BTreeMap<u32, Placement>) -> DirtyChunk {
        let mut chunk = DirtyChunk::new(since);
        let mut joined: Vec<Placement> = Vec::new();
        let (mut start, mut length) = (0, 0);
        for (offset, memory) in pieces {
            let follows = start + length == offset && !offset.is_multiple_of(RUN_BYTES);
            let is_short = |memory: &Placement| memory.len() < JOIN_BYTES;
            if !(follows && is_short(&memory) && joined.last().is_some_and(is_short)) {
                chunk.borrow(start, length, &joined);
                joined.clear();
                (start, length) = (offset, 0);
            }
            length += memory.len() as u32;
            joined.push(memory);
        }
        chunk.borrow(start, length, &joined);
        chunk
    }

    fn borrow(&mut self, start: u32, length: u32, joined: &[Placement]) {
        let memory = match joined {
            [] => return,
            [one] => one.clone(),
            many => {
                let copy = Placement::from_vec(vec![0; length as usize]);
                let mut at = 0;
                for memory in many {
                    memory.copy_into(&copy.slice(at..at + memory.len()));
                    at += memory.len();
                }
                copy
            }
        };
        self.insert(start, DirtySlice { memory, length, held: 0 });
    }

    fn insert(&mut self, start: u32, piece: DirtySlice) {
        assert!(piece.length > 0 && piece.length as usize <= piece.memory.len(), "a piece has its memory");
        self.bytes += piece.held;
        let before = self.pieces.insert(start, piece);
        assert!(before.is_none(), "D1: pieces of a chunk never overlap");
    }

    /// Memory held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Offset in the chunk and bytes of every piece, in order.
    pub fn pieces(&self) -> impl Iterator<Item = (u32, Placement)> + '_ {
        self.pieces.iter().map(|(&start, piece)| (start, piece.memory.slice(0..piece.length as usize)))
    }

    /// The dirty bytes in `range`, with their offsets in the chunk.
    pub fn pieces_in(&self, range: Range<u32>) -> impl Iterator<Item = (u32, Placement)> + '_ {
        self.overlapping(range.clone()).map(move |(start, piece)| {
            let from = range.start.max(start);
            let to = range.end.min(start + piece.length);
            (from, piece.memory.slice((from - start) as usize..(to - start) as usize))
        })
    }

    /// First byte after the last dirty one.
    pub fn end(&self) -> u32 {
        self.pieces.last_key_value().map_or(0, |(start, piece)| start + piece.length)
    }

    fn overlapping(&self, range: Range<u32>) -> impl Iterator<Item = (u32, &DirtySlice)> {
        let first = self
            .pieces
            .range(..=range.start)
            .next_back()
            .filter(|(start, piece)| *start + piece.length > range.start)
            .map_or(range.start, |(start, _)| *start);
        self.pieces.range(first..range.end.max(first)).map(|(start, piece)| (*start, piece))
    }

    /// Copies what is dirty in `range` over `target`, whose first byte is `range.start`. Returns the bytes copied.
    fn overlay(&self, range: Range<u32>, target: &Placement) -> usize {
        let mut copied = 0;
        for (start, piece) in self.overlapping(range.clone()) {
            let from = range.start.max(start);
            let to = range.end.min(start + piece.length);
            let source = piece.memory.slice((from - start) as usize..(to - start) as usize);
            source.copy_into(&target.slice((from - range.start) as usize..(to - range.start) as usize));
            copied += (to - from) as usize;
        }
        copied
    }

    /// Puts `source` at `offset`, all inside one run.
    fn put(&mut self, offset: u32, source: &Placement, keep: bool, chunk_bytes: u32, pool: &BufferPool) {
        let end = offset + source.len() as u32;
        assert!(offset < end && end <= chunk_bytes, "a chunk has what is put into it");
        assert_eq!(offset / RUN_BYTES, (end - 1) / RUN_BYTES, "D1: no piece crosses a boundary of a run");
        let part = |from: u32, to: u32| source.slice((from - offset) as usize..(to - offset) as usize);
        let mut gaps = Vec::new();
        let mut at = offset;
        for (start, piece) in self.overlapping(offset..end) {
            let (from, to) = (offset.max(start), end.min(start + piece.length));
            part(from, to).copy_into(&piece.memory.slice((from - start) as usize..(to - start) as usize));
            if at < from {
                gaps.push(at..from);
            }
            at = to;
        }
        if at < end {
            gaps.push(at..end);
        }
        for gap in gaps {
            self.fill(gap.start, &part(gap.start, gap.end), keep, chunk_bytes, pool);
        }
    }

    /// Adds bytes where none are dirty: to the piece before them if they continue it.
    fn fill(&mut self, offset: u32, source: &Placement, keep: bool, chunk_bytes: u32, pool: &BufferPool) {
        let length = source.len() as u32;
        if keep && length >= KEEP_BYTES {
            let held = RUN_BYTES as usize;
            self.insert(offset, DirtySlice { memory: source.clone(), length, held });
            return;
        }
        let run_end = ((offset / RUN_BYTES + 1) * RUN_BYTES).min(chunk_bytes);
        let before = self.pieces.range_mut(..offset).next_back();
        if let Some((&start, piece)) = before
            && start + piece.length == offset
            && !offset.is_multiple_of(RUN_BYTES)
        {
            let needed = piece.length + length;
            if (piece.memory.len() as u32) < needed {
                let memory = memory_for(needed, run_end - start, pool);
                piece.memory.slice(0..piece.length as usize).copy_into(&memory);
                self.bytes = self.bytes - piece.held + memory.len();
                piece.held = memory.len();
                piece.memory = memory;
            }
            source.copy_into(&piece.memory.slice(piece.length as usize..needed as usize));
            piece.length = needed;
            return;
        }
        let memory = memory_for(length, run_end - offset, pool);
        source.copy_into(&memory);
        let held = memory.len();
        self.insert(offset, DirtySlice { memory, length, held });
    }

    /// Forgets everything from `end` on.
    fn cut(&mut self, end: u32) {
        let beyond = self.pieces.split_off(&end);
        self.bytes -= beyond.values().map(|piece| piece.held).sum::<usize>();
        if let Some((&start, piece)) = self.pieces.iter_mut().next_back() {
            piece.length = piece.length.min(end - start);
        }
    }

    /// Whether the run around `offset` is dirty from its first to its last byte.
    fn run_is_complete(&self, offset: u32, chunk_bytes: u32) -> bool {
        let run = offset / RUN_BYTES * RUN_BYTES;
        let run_end = (run + RUN_BYTES).min(chunk_bytes);
        let mut at = run;
        for (start, piece) in self.pieces.range(run..run_end) {
            if *start != at {
                return false;
            }
            at += piece.length;
        }
        assert!(at <= run_end, "D1: no piece crosses a boundary of a run or chunk");
        at == run_end
    }
}

/// Memory for `needed` bytes of a piece that can grow to `most`.
fn memory_for(needed: u32, most: u32, pool: &BufferPool) -> Placement {
    if needed >= POOL_BYTES
        && most >= KEEP_BYTES
        && let Some(buffer) = pool.try_take()
    {
        let length = buffer.len().min(RUN_BYTES as usize);
        return buffer.into_placement().slice(0..length);
    }
    let length = needed.next_power_of_two().max(PIECE_BYTES).min(most);
    Placement::from_vec(vec![0; length as usize])
}

/// Copies the bytes: a chunk that is dirty changes in place.
#[cfg(test)]
impl Clone for DirtyChunk {
    fn clone(&self) -> DirtyChunk {
        let copy =
            |piece: &DirtySlice| DirtySlice { memory: Placement::from_vec(piece.memory.to_vec()), ..*piece };
        let pieces = self.pieces.iter().map(|(start, piece)| (*start, copy(piece))).collect();
        DirtyChunk { pieces, ..*self }
    }
}

/// Dirty bytes of one file, by chunk.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
pub struct Dirty {
    chunks: BTreeMap<u32, DirtyChunk>,
}

impl Dirty {
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Memory held.
    pub fn bytes(&self) -> usize {
        self.chunks.values().map(DirtyChunk::bytes).sum()
    }

    /// First byte of the file after the last dirty one; 0 if none is dirty.
    pub fn end(&self, chunk_bytes: u32) -> u64 {
        self.chunks
            .last_key_value()
            .map_or(0, |(&index, chunk)| u64::from(index) * u64::from(chunk_bytes) + u64::from(chunk.end()))
    }

    /// Puts `source` at `offset` of the file; `keep`: its memory may be kept and changed. Returns the change in
    /// memory held, and the chunks that now have a complete run, which are marked wanted.
    pub fn put(
        &mut self,
        write: u64,
        offset: u64,
        source: &Placement,
        keep: bool,
        chunk_bytes: u32,
        pool: &BufferPool,
    ) -> (isize, Vec<u32>) {
        let mut change = 0;
        let mut complete = Vec::new();
        for slice in chunk_slices(offset, source.len(), chunk_bytes, RUN_BYTES) {
            let chunk = self.chunks.entry(slice.index).or_insert_with(|| DirtyChunk::new(write));
            let before = chunk.bytes as isize;
            chunk.put(slice.offset, &source.slice(slice.range.clone()), keep, chunk_bytes, pool);
            change += chunk.bytes as isize - before;
            if chunk.run_is_complete(slice.offset, chunk_bytes) {
                chunk.wanted = true;
                if complete.last() != Some(&slice.index) {
                    complete.push(slice.index);
                }
            }
        }
        (change, complete)
    }

    /// Return the chunks of a range that are dirty.
    pub fn chunks_in(&self, indices: RangeInclusive<u32>) -> impl Iterator<Item = (u32, &DirtyChunk)> {
        self.chunks.range(indices).map(|(&index, chunk)| (index, chunk))
    }

    /// Takes a chunk out, to be written back.
    pub fn take(&mut self, index: u32) -> Option<DirtyChunk> {
        let chunk = self.chunks.remove(&index)?;
        assert!(!chunk.pieces.is_empty(), "a chunk that is dirty has dirty bytes");
        Some(chunk)
    }

    pub fn chunk(&self, index: u32) -> Option<&DirtyChunk> {
        self.chunks.get(&index)
    }

    pub fn chunks_mut(&mut self) -> impl Iterator<Item = (u32, &mut DirtyChunk)> {
        self.chunks.iter_mut().map(|(&index, chunk)| (index, chunk))
    }

    pub fn chunks(&self) -> impl Iterator<Item = (u32, &DirtyChunk)> {
        self.chunks.iter().map(|(&index, chunk)| (index, chunk))
    }

    /// Forgets everything from `length` on. Returns the memory set free.
    pub fn cut(&mut self, length: u64, chunk_bytes: u32) -> usize {
        let before = self.bytes();
        let index = u32::try_from(length / u64::from(chunk_bytes)).unwrap_or(u32::MAX);
        drop(self.chunks.split_off(&index.saturating_add(1)));
        if let Some(chunk) = self.chunks.get_mut(&index) {
            chunk.cut((length % u64::from(chunk_bytes)) as u32);
            if chunk.pieces.is_empty() {
                self.chunks.remove(&index);
            }
        }
        before - self.bytes()
    }
}

/// Copies what is dirty in a range of a file over `target`: first the older of `layers`, then the newer.
/// Returns whether every byte of the range was dirty in one layer.
pub fn overlay<'a>(
    offset: u64,
    target: &Placement,
    chunk_bytes: u32,
    mut layers: impl FnMut(u32) -> [Option<&'a DirtyChunk>; 2],
) -> bool {
    let mut complete = true;
    for slice in chunk_slices(offset, target.len(), chunk_bytes, chunk_bytes) {
        let length = slice.range.len();
        let place = target.slice(slice.range);
        let range = slice.offset..slice.offset + length as u32;
        let mut most = 0;
        for layer in layers(slice.index).into_iter().flatten() {
            most = most.max(layer.overlay(range.clone(), &place));
        }
        complete &= most == length;
    }
    complete
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CHUNK: u32 = 64 << 10;

    fn pool() -> BufferPool {
        BufferPool::new(RUN_BYTES as usize, 4).unwrap()
    }

    fn shown(dirty: &Dirty, length: usize, chunk_bytes: u32) -> Vec<u8> {
        let target = Placement::from_vec(vec![0; length]);
        overlay(0, &target, chunk_bytes, |index| [dirty.chunk(index), None]);
        target.to_vec()
    }

    fn held(dirty: &Dirty) -> usize {
        dirty.chunks.values().flat_map(|chunk| chunk.pieces.values()).map(|piece| piece.held).sum()
    }

    #[test]
    fn sequential_small_writes_become_one_piece_and_complete_their_run() {
        let pool = pool();
        let mut dirty = Dirty::default();
        let mut complete = Vec::new();
        for at in (0..1 << 20).step_by(4096) {
            let source = Placement::from_vec(vec![7; 4096]);
            complete = dirty.put(1, at, &source, false, 1 << 20, &pool).1;
        }
        assert_eq!(complete, [0]);
        let chunk = dirty.take(0).unwrap();
        let pieces: Vec<_> = chunk.pieces().map(|(start, bytes)| (start, bytes.len())).collect();
        assert_eq!(pieces, [(0, 1 << 20)]);
        assert!(chunk.pieces().next().unwrap().1.is_shared(), "a long piece is in the pool");
    }

    #[test]
    fn a_large_payload_is_kept_and_not_copied() {
        let pool = pool();
        let mut dirty = Dirty::default();
        let payload = pool.try_take().unwrap().into_placement();
        let (_, complete) = dirty.put(1, 1 << 20, &payload, true, 1 << 20, &pool);
        assert_eq!(complete, [1]);
        let chunk = dirty.take(1).unwrap();
        assert_eq!(chunk.pieces().next().unwrap().1.as_ptr(), payload.as_ptr());
    }

    #[derive(Clone, Debug)]
    enum Edit {
        Write { offset: u64, length: usize },
        Cut { length: u64 },
    }

    fn edit() -> impl Strategy<Value = Edit> {
        prop_oneof![
            6 => (0u64..300_000, 1usize..90_000).prop_map(|(offset, length)| Edit::Write { offset, length }),
            3 => (0u64..300_000, 1usize..5000).prop_map(|(offset, length)| Edit::Write { offset, length }),
            1 => (0u64..400_000).prop_map(|length| Edit::Cut { length }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn dirty_bytes_equal_a_plain_array(steps in proptest::collection::vec(edit(), 1..24)) {
            let pool = pool();
            let mut dirty = Dirty::default();
            let mut model = vec![0u8; 400_000];
            let mut bytes = 0isize;
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Edit::Write { offset, length } => {
                        let payload = vec![number as u8 + 1; length];
                        model[offset as usize..offset as usize + length].copy_from_slice(&payload);
                        let source = Placement::from_vec(payload);
                        bytes += dirty.put(number as u64, offset, &source, false, CHUNK, &pool).0;
                    }
                    Edit::Cut { length } => {
                        model[length as usize..].fill(0);
                        bytes -= dirty.cut(length, CHUNK) as isize;
                    }
                }
                prop_assert_eq!(&shown(&dirty, model.len(), CHUNK), &model);
                prop_assert_eq!(dirty.bytes(), bytes as usize);
                prop_assert_eq!(held(&dirty), bytes as usize);
                let end = model.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1);
                prop_assert_eq!(dirty.end(CHUNK), end);
            }
        }
    }
}
