//! Keys and values of the index, as `docs/formats.md` ("Chunk index") draws them.
//!
//! A chunk has a base record, and beside it perhaps a delta: what an update changed, and those before it since the base
//! was written. A delta names its base by checksum and holds all that differs, so that two values are a whole record.

mod fields;
mod format3;
mod runs;

use std::sync::Arc;

pub use self::fields::Malformed;
use self::fields::{
    FALLBACKS_MAX, FALLBACKS_SHIFT, HAS_COMMITTED, HAS_PENDING, Input, op_fields, op_from_fields,
    put_difference, put_varint, seal,
};
use self::runs::{Run, apply, runs_of};
use super::checksum;
use super::state::{ContentState, HOLE, PendingState, Record, page_count};
use crate::types::{
    CHUNK_BYTES_MAX, ChainId, ChainVersion, ChunkId, ChunkKey, ClientId, ContentId, RequestTag, Stamp,
    Version, WRITERS_MAX, WriterRecord,
};

pub const KEY_BYTES: usize = 16;
/// Behind the key of a chunk: that of its delta, which therefore follows in the order of keys.
pub const DELTA: u8 = 1;
pub const DELTA_KEY_BYTES: usize = KEY_BYTES + 1;
pub const RECORD_FORMAT: u8 = 4;
/// It is a delta.
const HAS_BASE: u8 = 1 << 4;
const FLAGS: u8 = 0b1_1111;
/// Beside a count: what is counted is there (pages that are a hole, a tombstone, records as in the base).
const MARK: u64 = 1;
/// About what a record takes beside its pages and writers.
const FIXED_BYTES: usize = 256;

/// Big-endian, so that keys sort by chain, content, index.
pub fn encode_key(key: ChunkKey) -> [u8; KEY_BYTES] {
    let mut bytes = [0; KEY_BYTES];
    bytes[..4].copy_from_slice(&key.chain.0.to_be_bytes());
    bytes[4..12].copy_from_slice(&key.chunk.content.0.to_be_bytes());
    bytes[12..].copy_from_slice(&key.chunk.index.to_be_bytes());
    bytes
}

pub fn encode_delta_key(key: ChunkKey) -> [u8; DELTA_KEY_BYTES] {
    let mut bytes = [DELTA; DELTA_KEY_BYTES];
    bytes[..KEY_BYTES].copy_from_slice(&encode_key(key));
    bytes
}

/// The chunk of a key, and whether the value is its delta.
pub fn decode_key(bytes: &[u8]) -> Result<(ChunkKey, bool), Malformed> {
    let (chain, rest) = bytes.split_first_chunk::<4>().ok_or(Malformed::Key(bytes.len()))?;
    let (content, rest) = rest.split_first_chunk::<8>().ok_or(Malformed::Key(bytes.len()))?;
    let (index, rest) = rest.split_first_chunk::<4>().ok_or(Malformed::Key(bytes.len()))?;
    if !rest.is_empty() && rest != [DELTA] {
        return Err(Malformed::Key(bytes.len()));
    }
    let key = ChunkKey {
        chain: ChainId(u32::from_be_bytes(*chain)),
        chunk: ChunkId {
            content: ContentId(u64::from_be_bytes(*content)),
            index: u32::from_be_bytes(*index),
        },
    };
    Ok((key, !rest.is_empty()))
}

/// Of a base record: what its deltas refer to.
#[derive(Debug, PartialEq, Eq)]
pub struct Base {
    committed: Option<Arc<ContentState>>,
    writers: Vec<WriterRecord>,
    /// The checksum at its end, which its deltas name.
    crc: u32,
    /// Its length.
    bytes: usize,
}

impl Base {
    fn of(record: &Record, value: &[u8]) -> Base {
        let (_, crc) = value.split_last_chunk().expect("a record ends with its checksum");
        let (committed, writers) = (record.committed.clone(), record.writers.clone());
        Base { committed, writers, crc: u32::from_le_bytes(*crc), bytes: value.len() }
    }

    /// Bytes of the record in the index.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of memory, roughly; the state may be that of the record beside it.
    pub fn memory(&self) -> usize {
        let state = self.committed.as_ref().map_or(0, |state| state.memory());
        size_of::<Base>() + state + self.writers.len() * size_of::<WriterRecord>()
    }
}

pub fn encode_base(record: &Record) -> (Vec<u8>, Base) {
    let value = encode(record, None);
    let base = Base::of(record, &value);
    (value, base)
}

/// What of `record` differs from `base`.
pub fn encode_delta(record: &Record, base: &Base) -> Vec<u8> {
    encode(record, Some(base))
}

fn encode(record: &Record, base: Option<&Base>) -> Vec<u8> {
    assert!(record.fallbacks.len() <= FALLBACKS_MAX, "two rounds can matter");
    let pages =
        if base.is_none() { record.committed.as_ref().map_or(0, |state| state.crcs.len()) } else { 0 };
    let mut out = Vec::with_capacity(FIXED_BYTES + pages * 8);
    let committed = if record.committed.is_some() { HAS_COMMITTED } else { 0 };
    let pending = if record.pending.is_some() { HAS_PENDING } else { 0 };
    let has_base = if base.is_some() { HAS_BASE } else { 0 };
    out.push(RECORD_FORMAT);
    out.push(committed | pending | has_base | (record.fallbacks.len() as u8) << FALLBACKS_SHIFT);
    if let Some(base) = base {
        out.extend(base.crc.to_le_bytes());
    }
    encode_writers(&record.writers, base.map_or(&[], |base| &base.writers), &mut out);
    let other = base.and_then(|base| base.committed.as_deref());
    if let Some(state) = &record.committed {
        encode_state(state, other, &mut out);
    }
    // In a base record the others differ from its committed state.
    let other = if base.is_some() { other } else { record.committed.as_deref() };
    for state in &record.fallbacks {
        encode_state(state, other, &mut out);
    }
    if let Some(pending) = &record.pending {
        out.extend(pending.tag.client.0.to_le_bytes());
        put_varint(pending.tag.sequence, &mut out);
        let (kind, first, second) = op_fields(pending.op);
        [kind, first, second].into_iter().for_each(|field| put_varint(u64::from(field), &mut out));
        encode_state(&pending.state, other, &mut out);
    }
    seal(out)
}

/// Runs of those that stand in `known` are named by their place there.
fn encode_writers(writers: &[WriterRecord], known: &[WriterRecord], out: &mut Vec<u8>) {
    put_varint(writers.len() as u64, out);
    let (mut rest, mut from) = (writers, 0);
    while let Some((writer, behind)) = rest.split_first() {
        let Some(place) = place_of(writer, known, from) else {
            put_varint(0, out);
            encode_writer(writer, out);
            rest = behind;
            continue;
        };
        let count = rest.iter().zip(&known[place..]).take_while(|(one, other)| one == other).count();
        put_varint((count as u64) << 1 | MARK, out);
        put_difference(place as u64, from as u64, out);
        (rest, from) = (&rest[count..], place + count);
    }
}

/// The place of `writer` in `known`, most likely `from` or a little behind.
fn place_of(writer: &WriterRecord, known: &[WriterRecord], from: usize) -> Option<usize> {
    let behind = known[from..].iter().position(|other| other == writer).map(|place| from + place);
    behind.or_else(|| known[..from].iter().position(|other| other == writer))
}

fn encode_writer(writer: &WriterRecord, out: &mut Vec<u8>) {
    // Clients are numbered at random.
    out.extend(writer.tag.client.0.to_le_bytes());
    [writer.tag.sequence, writer.version.0, writer.round]
        .into_iter()
        .for_each(|field| put_varint(field, out));
}

/// `state` as what differs from `other`.
fn encode_state(state: &ContentState, other: Option<&ContentState>, out: &mut Vec<u8>) {
    let nothing = ContentState::default();
    let before = other.unwrap_or(&nothing);
    put_difference(state.stamp.chain_version.0, before.stamp.chain_version.0, out);
    put_difference(state.stamp.version.0, before.stamp.version.0, out);
    put_difference(state.round, before.round, out);
    put_difference(u64::from(state.length), u64::from(before.length), out);
    put_difference(u64::from(state.tail_used), u64::from(before.tail_used), out);
    let runs = runs_of(state, other);
    put_varint((runs.len() as u64) << 1 | u64::from(state.removed), out);
    let (mut end, mut page) = (0, 0);
    for run in &runs {
        let Run { index, extent } = run;
        put_varint((index - end) as u64, out);
        put_varint(u64::from(extent.count) << 1 | u64::from(extent.first == HOLE), out);
        if extent.first != HOLE {
            put_difference(u64::from(extent.first), page, out);
            page = u64::from(extent.first + extent.count);
        }
        end = run.end();
    }
    let crcs = runs.iter().flat_map(|run| &state.crcs[run.index..run.end()]);
    crcs.for_each(|crc| out.extend(crc.to_le_bytes()));
}

#[cfg(test)]
pub use format3::writing::encode as encode_format3;

/// The format of a record that is whole, and what stands between it and the checksum.
fn open(value: &[u8]) -> Result<(u8, &[u8]), Malformed> {
    let (body, crc) = value.split_last_chunk::<4>().ok_or(Malformed::Length)?;
    if checksum::crc32c(body) != u32::from_le_bytes(*crc) {
        return Err(Malformed::Checksum);
    }
    let (&format, rest) = body.split_first().ok_or(Malformed::Length)?;
    match format {
        RECORD_FORMAT | format3::FORMAT => Ok((format, rest)),
        other => Err(Malformed::Format(other)),
    }
}

/// The format of a value that is whole and of no known one.
pub fn foreign_format(value: &[u8]) -> Option<u8> {
    match open(value) {
        Err(Malformed::Format(format)) => Some(format),
        _ => None,
    }
}

/// A base record of any format, and what its delta may refer to.
pub fn decode_base(value: &[u8]) -> Result<(Record, Base), Malformed> {
    let record = match open(value)? {
        (format3::FORMAT, body) => format3::decode(body)?,
        (_, body) => decode(body, None)?,
    };
    let base = Base::of(&record, value);
    Ok((record, base))
}

/// The record that a delta makes of its base.
pub fn decode_delta(value: &[u8], base: &Base) -> Result<Record, Malformed> {
    match open(value)? {
        (format3::FORMAT, _) => Err(Malformed::Format(format3::FORMAT)),
        (_, body) => decode(body, Some(base)),
    }
}

fn decode(body: &[u8], base: Option<&Base>) -> Result<Record, Malformed> {
    let mut input = Input(body);
    let [flags] = input.take()?;
    let fallback_count = usize::from(flags >> FALLBACKS_SHIFT & 0b11);
    if flags & !FLAGS != 0 || fallback_count > FALLBACKS_MAX {
        return Err(Malformed::Field);
    }
    let named = if flags & HAS_BASE == 0 { None } else { Some(input.u32()?) };
    if named != base.map(|base| base.crc) {
        return Err(Malformed::Base);
    }
    let writers = decode_writers(&mut input, base.map_or(&[], |base| &base.writers))?;
    let other = base.and_then(|base| base.committed.as_deref());
    let committed = match flags & HAS_COMMITTED {
        0 => None,
        _ => Some(Arc::new(decode_state(&mut input, other)?)),
    };
    let other = if base.is_some() { other } else { committed.as_deref() };
    let fallbacks = (0..fallback_count)
        .map(|_| Ok(Arc::new(decode_state(&mut input, other)?)))
        .collect::<Result<_, Malformed>>()?;
    let pending = match flags & HAS_PENDING {
        0 => None,
        _ => Some(decode_pending(&mut input, other)?),
    };
    match input.0.is_empty() {
        true => Ok(Record { committed, fallbacks, pending, writers }),
        false => Err(Malformed::Length),
    }
}

fn decode_writers(input: &mut Input<'_>, known: &[WriterRecord]) -> Result<Vec<WriterRecord>, Malformed> {
    let count = input.varint()? as usize;
    if count > WRITERS_MAX {
        return Err(Malformed::Field);
    }
    let (mut writers, mut from) = (Vec::new(), 0);
    while writers.len() < count {
        let run = input.varint()?;
        if run == 0 {
            writers.push(decode_writer(input)?);
            continue;
        }
        let place = input.difference(from as u64)?;
        let length = run >> 1;
        let end = place.saturating_add(length);
        let left = (count - writers.len()) as u64;
        if run & MARK == 0 || length == 0 || length > left || end > known.len() as u64 {
            return Err(Malformed::Field);
        }
        writers.extend(&known[place as usize..end as usize]);
        from = end as usize;
    }
    Ok(writers)
}

fn decode_writer(input: &mut Input<'_>) -> Result<WriterRecord, Malformed> {
    let tag = RequestTag { client: ClientId(input.u64()?), sequence: input.varint()? };
    Ok(WriterRecord { tag, version: Version(input.varint()?), round: input.varint()? })
}

fn decode_pending(input: &mut Input<'_>, other: Option<&ContentState>) -> Result<PendingState, Malformed> {
    let tag = RequestTag { client: ClientId(input.u64()?), sequence: input.varint()? };
    let op = op_from_fields(input.varint_u32()?, input.varint_u32()?, input.varint_u32()?)?;
    Ok(PendingState { state: Arc::new(decode_state(input, other)?), op, tag })
}

fn decode_state(input: &mut Input<'_>, other: Option<&ContentState>) -> Result<ContentState, Malformed> {
    let nothing = ContentState::default();
    let before = other.unwrap_or(&nothing);
    let chain_version = ChainVersion(input.difference(before.stamp.chain_version.0)?);
    let version = Version(input.difference(before.stamp.version.0)?);
    let round = input.difference(before.round)?;
    let length = input.difference_u32(before.length)?;
    let tail_used = input.difference_u32(before.tail_used)?;
    let runs = input.varint()?;
    let count = page_count(length);
    if length > CHUNK_BYTES_MAX || runs >> 1 > count as u64 {
        return Err(Malformed::Field);
    }
    let removed = runs & MARK != 0;
    let runs = decode_runs(input, (runs >> 1) as usize)?;
    let (extents, crcs) = apply(&runs, || input.u32(), other, count)?;
    let stamp = Stamp { chain_version, version };
    Ok(ContentState { stamp, length, tail_used, removed, round, extents, crcs })
}

fn decode_runs(input: &mut Input<'_>, count: usize) -> Result<Vec<Run>, Malformed> {
    let mut runs: Vec<Run> = Vec::new();
    let mut page = 0;
    for _ in 0..count {
        let end = runs.last().map_or(0, Run::end);
        let index = end + input.varint_u32()? as usize;
        let marked = input.varint()?;
        let count = u32::try_from(marked >> 1).map_err(|_| Malformed::Field)?;
        let first = match marked & MARK {
            0 => input.difference_u32(page)?,
            _ => HOLE,
        };
        if marked & MARK == 0 && first == HOLE {
            return Err(Malformed::Field);
        }
        let run = Run::new(index, first, count)?;
        if first != HOLE {
            page = first + count;
        }
        runs.push(run);
    }
    Ok(runs)
}

#[cfg(test)]
mod tests;
