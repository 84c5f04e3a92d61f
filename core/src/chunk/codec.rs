//! Keys and values of the index, as `docs/formats.md` ("Chunk index") draws them.

use std::sync::Arc;

use super::checksum;
use super::state::{ContentState, Extent, HOLE, PageNumber, PendingState, Record, compress, page_count};
use crate::types::{
    CHUNK_BYTES_MAX, ChainId, ChainVersion, ChunkId, ChunkKey, ClientId, ContentId, Op, PAGE_BYTES,
    RequestTag, Stamp, Version, WriterRecord,
};

pub const KEY_BYTES: usize = 16;
pub const RECORD_FORMAT: u8 = 3;
const HAS_COMMITTED: u8 = 1;
const HAS_PENDING: u8 = 2;
/// Where the number of fallbacks stands in the flags, of two bits.
const FALLBACKS_SHIFT: u32 = 2;
const FALLBACKS_MAX: usize = 2;
const FLAGS: u8 = 0b1111;
const REMOVED: u16 = 1;
const RUN_BYTES: usize = 8;
/// About what a state takes beside its pages, and what changes in it with one update.
const STATE_BYTES: usize = 128;
// Counts and places of pages fit into 16 bits.
const _: () = assert!(CHUNK_BYTES_MAX / PAGE_BYTES <= u16::MAX as u32);

/// Why a value is not a record.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("key of {0} bytes")]
    Key(usize),
    #[error("the record's checksum does not match")]
    Checksum,
    #[error("record format {0} is not known")]
    Format(u8),
    #[error("the record ends early or has bytes left over")]
    Length,
    #[error("a field has an impossible value")]
    Field,
}

/// Big-endian, so that keys sort by chain, content, index.
pub fn encode_key(key: ChunkKey) -> [u8; KEY_BYTES] {
    let mut bytes = [0; KEY_BYTES];
    bytes[..4].copy_from_slice(&key.chain.0.to_be_bytes());
    bytes[4..12].copy_from_slice(&key.chunk.content.0.to_be_bytes());
    bytes[12..].copy_from_slice(&key.chunk.index.to_be_bytes());
    bytes
}

pub fn decode_key(bytes: &[u8]) -> Result<ChunkKey, Malformed> {
    let bytes: &[u8; KEY_BYTES] = bytes.try_into().map_err(|_| Malformed::Key(bytes.len()))?;
    let (chain, rest) = bytes.split_first_chunk::<4>().expect("16 bytes");
    let (content, index) = rest.split_first_chunk::<8>().expect("12 bytes");
    Ok(ChunkKey {
        chain: ChainId(u32::from_be_bytes(*chain)),
        chunk: ChunkId {
            content: ContentId(u64::from_be_bytes(*content)),
            index: u32::from_be_bytes(index.try_into().expect("4 bytes")),
        },
    })
}

pub fn encode_record(record: &Record) -> Vec<u8> {
    let states = record.states().chain(&record.fallbacks);
    // A state beside the committed one names only what differs; it takes up to as much.
    let bytes_of =
        |state: &ContentState| STATE_BYTES + state.extents.len() * RUN_BYTES + state.crcs.len() * 4;
    let states_bytes: usize = states.map(|state| bytes_of(state)).sum();
    let mut out = Vec::with_capacity(states_bytes + (record.writers.len() + 1) * (WriterRecord::BYTES + 8));
    let committed = if record.committed.is_some() { HAS_COMMITTED } else { 0 };
    let pending = if record.pending.is_some() { HAS_PENDING } else { 0 };
    out.push(RECORD_FORMAT);
    assert!(record.fallbacks.len() <= FALLBACKS_MAX, "two rounds can matter");
    out.push(committed | pending | (record.fallbacks.len() as u8) << FALLBACKS_SHIFT);
    out.extend((record.writers.len() as u16).to_le_bytes());
    for writer in &record.writers {
        out.extend(writer.encode());
        out.extend(writer.round.to_le_bytes());
    }
    let base = record.committed.as_deref();
    if let Some(state) = base {
        encode_state(state, None, &mut out);
    }
    for state in &record.fallbacks {
        encode_state(state, base, &mut out);
    }
    if let Some(pending) = &record.pending {
        let (kind, first, second) = op_fields(pending.op);
        out.extend(pending.tag.client.0.to_le_bytes());
        out.extend(pending.tag.sequence.to_le_bytes());
        for field in [kind, first, second] {
            out.extend(field.to_le_bytes());
        }
        encode_state(&pending.state, base, &mut out);
    }
    let crc = checksum::crc32c(&out);
    out.extend(crc.to_le_bytes());
    out
}

/// A run of pages of a state, from page `index` of the chunk on.
#[derive(Clone, Copy)]
struct Run {
    index: usize,
    extent: Extent,
}

fn all_runs(state: &ContentState) -> impl Iterator<Item = Run> {
    let mut index = 0;
    state.extents.iter().map(move |&extent| {
        let run = Run { index, extent };
        index += extent.count as usize;
        run
    })
}

/// The pages of a state that are not those of `base`: another page, or other bytes in it.
fn changed_runs(state: &ContentState, base: &ContentState) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut before = base.pages().zip(&base.crcs);
    for (index, (page, crc)) in state.pages().zip(&state.crcs).enumerate() {
        if before.next() == Some((page, crc)) {
            continue;
        }
        match runs.last_mut() {
            Some(Run { index: first, extent })
                if *first + extent.count as usize == index && extent.precedes(page) =>
            {
                extent.count += 1;
            }
            _ => runs.push(Run { index, extent: Extent { first: page, count: 1 } }),
        }
    }
    runs
}

fn encode_state(state: &ContentState, base: Option<&ContentState>, out: &mut Vec<u8>) {
    out.extend(state.stamp.chain_version.0.to_le_bytes());
    out.extend(state.stamp.version.0.to_le_bytes());
    out.extend(state.round.to_le_bytes());
    out.extend(state.length.to_le_bytes());
    out.extend(state.tail_used.to_le_bytes());
    out.extend((u16::from(state.removed) * REMOVED).to_le_bytes());
    let Some(base) = base else {
        encode_runs(all_runs(state), state.extents.len(), out);
        encode_crcs(&state.crcs, out);
        return;
    };
    let runs = changed_runs(state, base);
    encode_runs(runs.iter().copied(), runs.len(), out);
    for Run { index, extent } in runs {
        encode_crcs(&state.crcs[index..index + extent.count as usize], out);
    }
}

fn encode_runs(runs: impl Iterator<Item = Run>, count: usize, out: &mut Vec<u8>) {
    out.extend((count as u16).to_le_bytes());
    let start = out.len();
    out.resize(start + count * RUN_BYTES, 0);
    for (bytes, Run { index, extent }) in out[start..].chunks_exact_mut(RUN_BYTES).zip(runs) {
        bytes[..2].copy_from_slice(&(index as u16).to_le_bytes());
        bytes[2..4].copy_from_slice(&(extent.count as u16).to_le_bytes());
        bytes[4..].copy_from_slice(&extent.first.to_le_bytes());
    }
}

fn encode_crcs(crcs: &[u32], out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + crcs.len() * 4, 0);
    for (bytes, crc) in out[start..].chunks_exact_mut(4).zip(crcs) {
        bytes.copy_from_slice(&crc.to_le_bytes());
    }
}

fn op_fields(op: Op) -> (u32, u32, u32) {
    match op {
        Op::Write { offset, length } => (1, offset, length),
        Op::Truncate { length } => (2, length, 0),
        Op::Remove => (3, 0, 0),
        Op::Replace { .. } => unreachable!("a replacement is never pending"),
    }
}

fn op_from_fields(kind: u32, first: u32, second: u32) -> Result<Op, Malformed> {
    let fits = first.checked_add(second).is_some_and(|end| end <= CHUNK_BYTES_MAX);
    match kind {
        1 if fits => Ok(Op::Write { offset: first, length: second }),
        2 if fits => Ok(Op::Truncate { length: first }),
        3 => Ok(Op::Remove),
        _ => Err(Malformed::Field),
    }
}

pub fn decode_record(bytes: &[u8]) -> Result<Record, Malformed> {
    let (body, crc) = bytes.split_last_chunk::<4>().ok_or(Malformed::Length)?;
    if checksum::crc32c(body) != u32::from_le_bytes(*crc) {
        return Err(Malformed::Checksum);
    }
    let mut input = Input(body);
    let [format, flags] = input.take::<2>()?;
    if format != RECORD_FORMAT {
        return Err(Malformed::Format(format));
    }
    let writer_count = input.u16()?;
    let writers = (0..writer_count)
        .map(|_| {
            let writer = WriterRecord::decode(&input.take()?);
            Ok(WriterRecord { round: input.u64()?, ..writer })
        })
        .collect::<Result<_, Malformed>>()?;
    let fallback_count = usize::from(flags >> FALLBACKS_SHIFT);
    if flags & !FLAGS != 0 || fallback_count > FALLBACKS_MAX {
        return Err(Malformed::Field);
    }
    let committed = match flags & HAS_COMMITTED {
        0 => None,
        _ => Some(Arc::new(decode_state(&mut input, None)?)),
    };
    let base = committed.as_deref();
    let fallbacks = (0..fallback_count)
        .map(|_| Ok(Arc::new(decode_state(&mut input, base)?)))
        .collect::<Result<_, Malformed>>()?;
    let pending = match flags & HAS_PENDING {
        0 => None,
        _ => Some(decode_pending(&mut input, base)?),
    };
    if !input.0.is_empty() {
        return Err(Malformed::Length);
    }
    Ok(Record { committed, fallbacks, pending, writers })
}

fn decode_pending(input: &mut Input<'_>, base: Option<&ContentState>) -> Result<PendingState, Malformed> {
    let tag = RequestTag { client: ClientId(input.u64()?), sequence: input.u64()? };
    let op = op_from_fields(input.u32()?, input.u32()?, input.u32()?)?;
    Ok(PendingState { state: Arc::new(decode_state(input, base)?), op, tag })
}

fn decode_state(input: &mut Input<'_>, base: Option<&ContentState>) -> Result<ContentState, Malformed> {
    let stamp = Stamp { chain_version: ChainVersion(input.u64()?), version: Version(input.u64()?) };
    let round = input.u64()?;
    let length = input.u32()?;
    let tail_used = input.u32()?;
    let removed = input.u16()? & REMOVED != 0;
    if length > CHUNK_BYTES_MAX || tail_used > PAGE_BYTES {
        return Err(Malformed::Field);
    }
    let (extents, crcs) = decode_pages(input, base, page_count(length))?;
    Ok(ContentState { stamp, length, tail_used, removed, round, extents, crcs })
}

/// The extents and checksums of a state of `count` pages: those of `base` where no run covers it.
fn decode_pages(
    input: &mut Input<'_>,
    base: Option<&ContentState>,
    count: usize,
) -> Result<(Vec<Extent>, Vec<u32>), Malformed> {
    let run_count = usize::from(input.u16()?);
    if run_count > count {
        return Err(Malformed::Field);
    }
    let runs = (0..run_count).map(|_| decode_run(input)).collect::<Result<Vec<Run>, _>>()?;
    let mut pages: Vec<PageNumber> = base.iter().flat_map(|base| base.pages()).collect();
    let mut crcs = base.map_or_else(Vec::new, |base| base.crcs.clone());
    let shared = pages.len();
    pages.resize(count, HOLE);
    crcs.resize(count, 0);
    let mut end = 0;
    for Run { index, extent } in &runs {
        // Between two runs there is only what the base has, too.
        let is_gap_shared = *index == end || (*index > end && *index <= shared);
        if !is_gap_shared || *index + extent.count as usize > count {
            return Err(Malformed::Field);
        }
        for offset in 0..extent.count {
            let page = if extent.first == HOLE { HOLE } else { extent.first + offset };
            pages[*index + offset as usize] = page;
            crcs[*index + offset as usize] = input.u32()?;
        }
        end = *index + extent.count as usize;
    }
    if end < count && count > shared {
        return Err(Malformed::Field);
    }
    Ok((compress(&pages), crcs))
}

fn decode_run(input: &mut Input<'_>) -> Result<Run, Malformed> {
    let (index, count) = (usize::from(input.u16()?), u32::from(input.u16()?));
    let first: PageNumber = input.u32()?;
    if count == 0 || (first != HOLE && count > HOLE - first) {
        return Err(Malformed::Field);
    }
    Ok(Run { index, extent: Extent { first, count } })
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed::Length)?;
        self.0 = rest;
        Ok(*head)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.take().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn state(version: u64, pages: &[PageNumber], crcs: &[u32], length: u32) -> Arc<ContentState> {
        Arc::new(ContentState {
            stamp: Stamp { chain_version: ChainVersion(3), version: Version(version) },
            length,
            tail_used: 8000,
            removed: version == 5,
            round: 12,
            extents: compress(pages),
            crcs: crcs.to_vec(),
        })
    }

    fn sample() -> Record {
        Record {
            committed: Some(state(4, &[7, 8, HOLE], &[1, 2, 0], 40_000)),
            // Another first page, and the last one with fewer bytes than it has now.
            fallbacks: vec![state(3, &[9, 8], &[4, 3], 20_000), state(2, &[9, 8, HOLE], &[4, 2, 0], 40_000)],
            pending: Some(PendingState {
                state: state(5, &[7, 8, 20, 21, HOLE], &[1, 2, 5, 6, 0], 80_000),
                op: Op::Write { offset: 0x1111, length: 0x2222 },
                tag: RequestTag { client: ClientId(0xaa), sequence: 0xbb },
            }),
            writers: vec![WriterRecord {
                tag: RequestTag { client: ClientId(1), sequence: 2 },
                version: Version(3),
                round: 4,
            }],
        }
    }

    #[test]
    fn a_record_survives_the_round_trip() {
        let record = sample();
        assert_eq!(decode_record(&encode_record(&record)), Ok(record));
        assert_eq!(decode_record(&encode_record(&Record::default())), Ok(Record::default()));
    }

    /// The drawing in docs/formats.md, byte by byte.
    #[test]
    fn a_record_looks_as_drawn() {
        let bytes = encode_record(&sample());
        let u16_at = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!((bytes[0], bytes[1], u16_at(2)), (3, 0b1011, 1));
        assert_eq!([u64_at(4), u64_at(12), u64_at(20), u64_at(28)], [1, 2, 3, 4]);
        // A state of three pages in two runs.
        let committed = 36;
        assert_eq!([u64_at(committed), u64_at(committed + 8)], [3, 4]);
        assert_eq!(u64_at(committed + 16), 12);
        assert_eq!([u32_at(committed + 24), u32_at(committed + 28)], [40_000, 8000]);
        assert_eq!([u16_at(committed + 32), u16_at(committed + 34)], [0, 2], "not removed, two runs");
        assert_eq!([u16_at(committed + 36), u16_at(committed + 38)], [0, 2]);
        assert_eq!([u16_at(committed + 44), u16_at(committed + 46)], [2, 1]);
        assert_eq!([u32_at(committed + 40), u32_at(committed + 48)], [7, HOLE]);
        assert_eq!([52, 56, 60].map(|at| u32_at(committed + at)), [1, 2, 0]);
        // The others say where they differ from it.
        let newer = committed + 64;
        assert_eq!([u64_at(newer), u64_at(newer + 8)], [3, 3]);
        assert_eq!(u16_at(newer + 34), 2);
        assert_eq!([36, 38, 44, 46].map(|at| u16_at(newer + at)), [0, 1, 1, 1]);
        assert_eq!([u32_at(newer + 40), u32_at(newer + 48)], [9, 8]);
        assert_eq!([u32_at(newer + 52), u32_at(newer + 56)], [4, 3]);
        let older = newer + 60;
        assert_eq!([u64_at(older), u64_at(older + 8)], [3, 2]);
        assert_eq!([u16_at(older + 34), u16_at(older + 36), u16_at(older + 38)], [1, 0, 1]);
        assert_eq!([u32_at(older + 40), u32_at(older + 44)], [9, 4]);
        let pending = older + 48;
        assert_eq!([u64_at(pending), u64_at(pending + 8)], [0xaa, 0xbb]);
        assert_eq!([u32_at(pending + 16), u32_at(pending + 20), u32_at(pending + 24)], [1, 0x1111, 0x2222]);
        let state = pending + 28;
        assert_eq!([u64_at(state), u64_at(state + 8)], [3, 5]);
        assert_eq!([u16_at(state + 32), u16_at(state + 34)], [1, 2], "removed, two runs");
        assert_eq!([36, 38, 44, 46].map(|at| u16_at(state + at)), [2, 2, 4, 1]);
        assert_eq!(bytes.len(), state + 36 + 2 * 8 + 3 * 4 + 4);
        assert_eq!(u32_at(bytes.len() - 4), checksum::crc32c(&bytes[..bytes.len() - 4]));
    }

    /// An overwrite of 4 KiB in a chunk of many pages costs one page, not all of them once more.
    #[test]
    fn states_beside_the_committed_one_cost_only_what_differs() {
        let pages: Vec<PageNumber> = (0..64).map(|n| 3 * n).collect();
        let mut next = pages.clone();
        next[17] = 1000;
        let committed = Some(state(4, &pages, &[1; 64], 64 * PAGE_BYTES));
        let before = Record { committed, ..Record::default() };
        let pending = state(5, &next, &[1; 64], 64 * PAGE_BYTES);
        let tag = RequestTag::default();
        let pending = PendingState { state: pending, op: Op::Write { offset: 0, length: 1 }, tag };
        let after = Record { pending: Some(pending), ..before.clone() };
        assert_eq!(encode_record(&after).len() - encode_record(&before).len(), 28 + 36 + 8 + 4);
    }

    proptest! {
        #[test]
        fn any_two_states_survive_the_round_trip(
            base in proptest::collection::vec((0u32..6, 0u32..3), 0..12),
            other in proptest::collection::vec((0u32..6, 0u32..3), 0..12),
        ) {
            let made = |version, parts: &[(u32, u32)]| {
                let pages: Vec<_> = parts.iter().map(|(page, _)| if *page == 5 { HOLE } else { *page }).collect();
                let crcs: Vec<_> = parts.iter().map(|(_, crc)| *crc).collect();
                state(version, &pages, &crcs, pages.len() as u32 * PAGE_BYTES)
            };
            let record = Record {
                committed: Some(made(4, &base)),
                fallbacks: vec![made(3, &other)],
                ..Record::default()
            };
            prop_assert_eq!(decode_record(&encode_record(&record)), Ok(record));
        }
    }

    #[test]
    fn keys_sort_by_chain_content_index() {
        let key = |chain, content, index| ChunkKey {
            chain: ChainId(chain),
            chunk: ChunkId { content: ContentId(content), index },
        };
        assert_eq!(
            encode_key(key(0x0102_0304, 0x05060708090a0b0c, 0x0d0e0f10)),
            [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]
        );
        let keys = [key(1, 2, 300), key(1, 256, 1), key(2, 0, 0), key(256, 0, 0)];
        assert!(keys.windows(2).all(|pair| encode_key(pair[0]) < encode_key(pair[1])));
        for key in keys {
            assert_eq!(decode_key(&encode_key(key)), Ok(key));
        }
        assert_eq!(decode_key(b"short"), Err(Malformed::Key(5)));
    }

    /// What an engine never writes is refused here, not by an assertion of a later update.
    #[test]
    fn a_state_or_an_operation_beyond_its_limits_is_refused() {
        let grown = |record: &mut Record, tail_used| {
            let pending = record.pending.as_mut().unwrap();
            pending.state = Arc::new(ContentState { tail_used, ..(*pending.state).clone() });
        };
        let mut record = sample();
        grown(&mut record, PAGE_BYTES);
        assert_eq!(decode_record(&encode_record(&record)), Ok(record.clone()));
        grown(&mut record, PAGE_BYTES + 1);
        assert_eq!(decode_record(&encode_record(&record)), Err(Malformed::Field));
        for op in [
            Op::Write { offset: 1, length: CHUNK_BYTES_MAX },
            Op::Write { offset: u32::MAX, length: 1 },
            Op::Truncate { length: CHUNK_BYTES_MAX + 1 },
        ] {
            let mut record = sample();
            record.pending.as_mut().unwrap().op = op;
            assert_eq!(decode_record(&encode_record(&record)), Err(Malformed::Field), "{op:?}");
        }
    }

    proptest! {
        #[test]
        fn a_damaged_record_is_refused(place in 0usize..500, flip in 1u8..) {
            let mut bytes = encode_record(&sample());
            let place = place % bytes.len();
            bytes[place] ^= flip;
            prop_assert!(decode_record(&bytes).is_err());
        }

        /// Whatever stands in the index, decoding neither panics nor allocates beyond what the bytes justify.
        #[test]
        fn arbitrary_bytes_with_a_valid_checksum_do_not_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..300)
        ) {
            if let Some(first) = bytes.first_mut() { *first = RECORD_FORMAT; }
            let crc = checksum::crc32c(&bytes);
            bytes.extend(crc.to_le_bytes());
            let _ = decode_record(&bytes);
        }
    }
}
