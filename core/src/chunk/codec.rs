//! Keys and values of the index, as `docs/formats.md` ("Chunk index") draws them.

use std::sync::Arc;

use super::checksum;
use super::state::{Extent, HOLE, PendingState, Record, State, page_count};
use crate::types::{
    CHUNK_BYTES_MAX, ChainId, ChainVersion, ChunkId, ChunkKey, ClientId, ContentId, Op, RequestTag, Stamp,
    Version, WriterRecord,
};

pub const KEY_BYTES: usize = 16;
pub const RECORD_FORMAT: u8 = 1;
const HAS_COMMITTED: u8 = 1;
const HAS_PENDING: u8 = 2;
const HAS_DURABLE: u8 = 4;
const REMOVED: u32 = 1;

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
    let mut out = Vec::with_capacity(record.memory());
    let committed = if record.committed.is_some() { HAS_COMMITTED } else { 0 };
    let pending = if record.pending.is_some() { HAS_PENDING } else { 0 };
    out.push(RECORD_FORMAT);
    let durable = if record.durable.is_some() { HAS_DURABLE } else { 0 };
    out.push(committed | durable | pending);
    out.extend((record.writers.len() as u16).to_le_bytes());
    for writer in &record.writers {
        out.extend(writer.encode());
    }
    for state in record.committed.iter().chain(&record.durable) {
        encode_state(state, &mut out);
    }
    if let Some(pending) = &record.pending {
        let (kind, first, second) = op_fields(pending.op);
        out.extend(pending.tag.client.0.to_le_bytes());
        out.extend(pending.tag.sequence.to_le_bytes());
        for field in [kind, first, second] {
            out.extend(field.to_le_bytes());
        }
        encode_state(&pending.state, &mut out);
    }
    let crc = checksum::crc32c(&out);
    out.extend(crc.to_le_bytes());
    out
}

fn encode_state(state: &State, out: &mut Vec<u8>) {
    out.extend(state.stamp.chain_version.0.to_le_bytes());
    out.extend(state.stamp.version.0.to_le_bytes());
    out.extend(state.unix_ms.to_le_bytes());
    out.extend(state.round.to_le_bytes());
    out.extend(state.length.to_le_bytes());
    out.extend(state.tail_used.to_le_bytes());
    out.extend((u32::from(state.removed) * REMOVED).to_le_bytes());
    out.extend((state.extents.len() as u32).to_le_bytes());
    for extent in &state.extents {
        out.extend(extent.first.to_le_bytes());
        out.extend(extent.count.to_le_bytes());
    }
    for crc in &state.crcs {
        out.extend(crc.to_le_bytes());
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
    match kind {
        1 => Ok(Op::Write { offset: first, length: second }),
        2 => Ok(Op::Truncate { length: first }),
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
    let writer_count = u16::from_le_bytes(input.take()?);
    let writers = (0..writer_count)
        .map(|_| Ok(WriterRecord::decode(&input.take()?)))
        .collect::<Result<_, Malformed>>()?;
    let committed = match flags & HAS_COMMITTED {
        0 => None,
        _ => Some(Arc::new(decode_state(&mut input)?)),
    };
    let durable = match flags & HAS_DURABLE {
        0 => None,
        _ => Some(Arc::new(decode_state(&mut input)?)),
    };
    let pending = match flags & HAS_PENDING {
        0 => None,
        _ => Some(decode_pending(&mut input)?),
    };
    if !input.0.is_empty() {
        return Err(Malformed::Length);
    }
    Ok(Record { committed, durable, pending, writers })
}

fn decode_pending(input: &mut Input<'_>) -> Result<PendingState, Malformed> {
    let tag = RequestTag { client: ClientId(input.u64()?), sequence: input.u64()? };
    let op = op_from_fields(input.u32()?, input.u32()?, input.u32()?)?;
    Ok(PendingState { state: Arc::new(decode_state(input)?), op, tag })
}

fn decode_state(input: &mut Input<'_>) -> Result<State, Malformed> {
    let stamp = Stamp { chain_version: ChainVersion(input.u64()?), version: Version(input.u64()?) };
    let unix_ms = input.u64()?;
    let round = input.u64()?;
    let length = input.u32()?;
    let tail_used = input.u32()?;
    let removed = input.u32()? & REMOVED != 0;
    if length > CHUNK_BYTES_MAX {
        return Err(Malformed::Field);
    }
    let pages = page_count(length);
    let extent_count = input.u32()? as usize;
    if extent_count > pages {
        return Err(Malformed::Field);
    }
    let mut extents = Vec::with_capacity(extent_count);
    let mut covered = 0u64;
    for _ in 0..extent_count {
        let extent = Extent { first: input.u32()?, count: input.u32()? };
        if extent.count == 0 || (extent.first != HOLE && extent.count > HOLE - extent.first) {
            return Err(Malformed::Field);
        }
        covered += u64::from(extent.count);
        extents.push(extent);
    }
    if covered != pages as u64 {
        return Err(Malformed::Field);
    }
    let crcs = (0..pages).map(|_| input.u32()).collect::<Result<_, _>>()?;
    Ok(State { stamp, length, tail_used, removed, unix_ms, round, extents, crcs })
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed::Length)?;
        self.0 = rest;
        Ok(*head)
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

    fn sample() -> Record {
        let state = |version, removed| State {
            stamp: Stamp { chain_version: ChainVersion(3), version: Version(version) },
            length: 40_000,
            tail_used: 8000,
            removed,
            unix_ms: 1_700_000_000_000,
            round: 12,
            extents: vec![Extent { first: 7, count: 2 }, Extent { first: HOLE, count: 1 }],
            crcs: vec![1, 2, 0],
        };
        Record {
            committed: Some(Arc::new(state(4, false))),
            durable: Some(Arc::new(state(2, false))),
            pending: Some(PendingState {
                state: Arc::new(state(5, true)),
                op: Op::Write { offset: 0x1111, length: 0x2222 },
                tag: RequestTag { client: ClientId(0xaa), sequence: 0xbb },
            }),
            writers: vec![WriterRecord {
                tag: RequestTag { client: ClientId(1), sequence: 2 },
                version: Version(3),
                unix_ms: 4,
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
        assert_eq!((bytes[0], bytes[1], u16_at(2)), (1, 7, 1));
        assert_eq!([u64_at(4), u64_at(12), u64_at(20), u64_at(28)], [1, 2, 3, 4]);
        // A state of three pages in two extents.
        let state_bytes = 48 + 2 * 8 + 3 * 4;
        let committed = 36;
        assert_eq!([u64_at(committed), u64_at(committed + 8)], [3, 4]);
        assert_eq!([u64_at(committed + 16), u64_at(committed + 24)], [1_700_000_000_000, 12]);
        let words: Vec<u32> = (0..11).map(|n| u32_at(committed + 32 + 4 * n)).collect();
        assert_eq!(words, [40_000, 8000, 0, 2, 7, 2, HOLE, 1, 1, 2, 0]);
        let durable = committed + state_bytes;
        assert_eq!([u64_at(durable), u64_at(durable + 8)], [3, 2]);
        let pending = durable + state_bytes;
        assert_eq!([u64_at(pending), u64_at(pending + 8)], [0xaa, 0xbb]);
        assert_eq!([u32_at(pending + 16), u32_at(pending + 20), u32_at(pending + 24)], [1, 0x1111, 0x2222]);
        let state = pending + 28;
        assert_eq!([u64_at(state), u64_at(state + 8)], [3, 5]);
        assert_eq!(u32_at(state + 40), 1, "removed");
        assert_eq!(bytes.len(), state + state_bytes + 4);
        assert_eq!(u32_at(bytes.len() - 4), checksum::crc32c(&bytes[..bytes.len() - 4]));
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

    proptest! {
        #[test]
        fn a_damaged_record_is_refused(place in 0usize..400, flip in 1u8..) {
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
