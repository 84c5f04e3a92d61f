//! Frames of the data plane: a header, a table of operations or results, then the payload of those that have
//! one and whose bytes are not in a registered region.
//!
//! Decoding never panics and allocates nothing but the table, whose size the header bounds. What does not decode
//! is a [`Malformed`] frame: its connection closes.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::raw::*;
use crate::buffer::RegionId;
use crate::types::{
    BATCH_BYTES_MAX, BATCH_OPS_MAX, CHUNK_BYTES_MAX, ChainId, ChainVersion, ChunkId, ClientId, ContentId, Op,
    ReadOp, ReadResult, RequestTag, Status, UpdateOp, UpdateResult, Version, WRITERS_MAX, WriterRecord,
};

pub const MAGIC: [u8; 4] = *b"LUCF";
pub const VERSION: u8 = 3;
pub const HEADER_BYTES: usize = size_of::<RawHeader>();
/// Largest table of any frame.
pub const TABLE_BYTES_MAX: usize = BATCH_OPS_MAX * size_of::<RawUpdate>();
/// Most bytes after a frame: a batch's, and the records that go with the largest chunk.
pub const PAYLOAD_BYTES_MAX: usize = BATCH_BYTES_MAX + WRITERS_MAX * WriterRecord::BYTES;
/// Regions that one connection may have registered at once: a program has one pool and a few rings.
pub const REGIONS_MAX: usize = 32;
/// In place of a region's slot: the bytes follow the frame.
const INLINE: u16 = 0xffff;
const _: () = assert!(REGIONS_MAX < INLINE as usize, "no slot looks like inline bytes");
const _: () = assert!(BATCH_OPS_MAX <= u16::MAX as usize && PAYLOAD_BYTES_MAX <= u32::MAX as usize);
const _: () = assert!(CHUNK_BYTES_MAX as usize <= BATCH_BYTES_MAX, "the largest chunk fits a batch");
const _: () = assert!(
    size_of::<RawRead>() <= size_of::<RawUpdate>()
        && size_of::<RawReadResult>() <= size_of::<RawUpdate>()
        && size_of::<RawUpdateResult>() <= size_of::<RawUpdate>()
        && PORTS_MAX * size_of::<RawOffer>() <= TABLE_BYTES_MAX,
    "the largest table is that of updates"
);
/// Set in the kind of a reply.
pub(super) const REPLY: u8 = 0x80;
const HAS_CRC: u32 = 1;
/// The state that a replacement brings is a tombstone.
const REMOVED: u32 = 2;
/// Before the update the predecessor's chunk held nothing.
const FRESH: u32 = 4;

/// A frame that its receiver does not understand; the text says why, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed frame: {0}")]
pub struct Malformed(pub &'static str);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    Read = 1,
    Update = 2,
    Sync = 3,
    Ping = 4,
    /// Gives a region a slot number. Over a Unix socket one file descriptor travels with it; there is no reply.
    Register = 5,
    /// The ports over which a client could use RDMA; answered with the server's end of a queue pair.
    Offer = 6,
    /// The client's end of the queue pair. After the answer frames travel over it.
    Connect = 7,
    /// From a server that is ready to transmit; answered by the client when it may.
    Transmit = 8,
}

impl FrameKind {
    fn from_wire(number: u8) -> Result<FrameKind, Malformed> {
        Ok(match number {
            1 => FrameKind::Read,
            2 => FrameKind::Update,
            3 => FrameKind::Sync,
            4 => FrameKind::Ping,
            5 => FrameKind::Register,
            6 => FrameKind::Offer,
            7 => FrameKind::Connect,
            8 => FrameKind::Transmit,
            _ => return Err(Malformed("unknown kind")),
        })
    }

    /// Bytes of one entry of such a frame's table.
    pub fn entry_bytes(self, reply: bool) -> usize {
        match (self, reply) {
            (FrameKind::Read, false) => size_of::<RawRead>(),
            (FrameKind::Read, true) => size_of::<RawReadResult>(),
            (FrameKind::Update, false) => size_of::<RawUpdate>(),
            (FrameKind::Update, true) => size_of::<RawUpdateResult>(),
            (FrameKind::Sync, false) => size_of::<RawSync>(),
            (FrameKind::Sync, true) => size_of::<RawSyncResult>(),
            (FrameKind::Register, false) => size_of::<RawRegister>(),
            (FrameKind::Offer, false) => size_of::<RawOffer>(),
            (FrameKind::Offer, true) | (FrameKind::Connect, false) => size_of::<RawEnd>(),
            (FrameKind::Connect, true) => size_of::<RawConnected>(),
            (FrameKind::Ping | FrameKind::Transmit, _) | (FrameKind::Register, true) => 0,
        }
    }
}

/// What a header says, within all limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: FrameKind,
    pub reply: bool,
    pub count: u16,
    pub payload_bytes: u32,
    pub deadline_ms: u32,
    pub id: u32,
    pub clock_ms: u32,
    table_crc: u32,
}

/// The location of the bytes of one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadLocation {
    /// After the frame (of the reply, for a read), in the order of the operations.
    Inline,
    /// In the region registered under `slot`.
    Region { slot: u16, offset: u64 },
}

/// A region about to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionRegistration {
    pub slot: u16,
    pub region: RegionId,
    pub len: u64,
}

impl Header {
    /// Check everything that a header alone shows, before anything is allocated or received for it.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Header, Malformed> {
        let raw = RawHeader::ref_from_bytes(bytes).expect("the sizes are equal and alignment is one");
        if raw.magic != MAGIC {
            return Err(Malformed("not the beginning of a frame"));
        }
        if raw.version != VERSION {
            return Err(Malformed("another version of the protocol"));
        }
        if crc_fast::crc32_iscsi(&bytes[..HEADER_BYTES - 4]) != raw.header_crc.get() {
            return Err(Malformed("header checksum"));
        }
        let header = Header {
            kind: FrameKind::from_wire(raw.kind & !REPLY)?,
            reply: raw.kind & REPLY != 0,
            count: raw.count.get(),
            payload_bytes: raw.payload_bytes.get(),
            deadline_ms: raw.deadline_ms.get(),
            id: raw.id.get(),
            clock_ms: raw.clock_ms.get(),
            table_crc: raw.table_crc.get(),
        };
        header.check()?;
        Ok(header)
    }

    fn check(&self) -> Result<(), Malformed> {
        let count = self.count as usize;
        let count_allowed = match (self.kind, self.reply) {
            (FrameKind::Register, true) => false,
            (FrameKind::Register, false) | (FrameKind::Connect, _) | (FrameKind::Offer, true) => count == 1,
            (FrameKind::Offer, false) => (1..=PORTS_MAX).contains(&count),
            (FrameKind::Ping | FrameKind::Transmit, _) => count == 0,
            _ => (1..=BATCH_OPS_MAX).contains(&count),
        };
        if !count_allowed {
            return Err(Malformed("count of operations"));
        }
        let may_have_payload =
            matches!((self.kind, self.reply), (FrameKind::Read, true) | (FrameKind::Update, false));
        if self.payload_bytes as usize > if may_have_payload { PAYLOAD_BYTES_MAX } else { 0 } {
            return Err(Malformed("length of the payload"));
        }
        Ok(())
    }

    /// Bytes of the table that follows the header: at most [`TABLE_BYTES_MAX`].
    pub fn table_bytes(&self) -> usize {
        self.count as usize * self.kind.entry_bytes(self.reply)
    }

    pub(super) fn entries<'a, T: FromBytes + KnownLayout + Immutable + Unaligned>(
        &self,
        kind: FrameKind,
        reply: bool,
        table: &'a [u8],
    ) -> Result<&'a [T], Malformed> {
        if self.kind != kind || self.reply != reply || table.len() != self.table_bytes() {
            return Err(Malformed("not the frame that was expected"));
        }
        if crc_fast::crc32_iscsi(table) != self.table_crc {
            return Err(Malformed("table checksum"));
        }
        <[T]>::ref_from_bytes(table).map_err(|_| Malformed("size of the table"))
    }

    /// Check a frame without a table.
    pub fn decode_ping(&self, reply: bool) -> Result<(), Malformed> {
        self.entries::<RawSyncResult>(FrameKind::Ping, reply, &[]).map(|_| ())
    }

    /// As [`Header::decode_ping`].
    pub fn decode_transmit(&self, reply: bool) -> Result<(), Malformed> {
        self.entries::<RawSyncResult>(FrameKind::Transmit, reply, &[]).map(|_| ())
    }

    /// The operations of a batch of reads. Together they ask for at most `BATCH_BYTES_MAX`.
    pub fn decode_reads(&self, table: &[u8]) -> Result<(Vec<ReadOp>, Vec<PayloadLocation>), Malformed> {
        let entries = self.entries::<RawRead>(FrameKind::Read, false, table)?;
        let mut ops = Vec::with_capacity(entries.len());
        let mut locations = Vec::with_capacity(entries.len());
        let mut total = 0;
        for raw in entries {
            let op = ReadOp {
                chain: ChainId(raw.chain.get()),
                chain_version: ChainVersion(raw.chain_version.get()),
                chunk: chunk(raw.content, raw.index),
                offset: raw.offset.get(),
                length: raw.length.get(),
            };
            check_range(op.offset, op.length)?;
            total += op.length as usize;
            ops.push(op);
            locations.push(location(raw.slot, raw.region_offset)?);
        }
        if total > BATCH_BYTES_MAX {
            return Err(Malformed("more bytes than a batch may have"));
        }
        Ok((ops, locations))
    }

    /// The results of a batch of reads, with the checksums of the bytes that follow.
    pub fn decode_read_results(&self, table: &[u8]) -> Result<Vec<(ReadResult, Option<u32>)>, Malformed> {
        let entries = self.entries::<RawReadResult>(FrameKind::Read, true, table)?;
        entries
            .iter()
            .map(|raw| {
                let result = ReadResult {
                    status: status(raw.status)?,
                    length: raw.length.get(),
                    version: Version(raw.version.get()),
                };
                check_range(0, result.length)?;
                Ok((result, (u32::from(raw.flags.get()) & HAS_CRC != 0).then_some(raw.crc.get())))
            })
            .collect()
    }

    /// The operations of a batch of updates. The payloads that follow are together `payload_bytes` long.
    pub fn decode_updates(&self, table: &[u8]) -> Result<(Vec<UpdateOp>, Vec<PayloadLocation>), Malformed> {
        let entries = self.entries::<RawUpdate>(FrameKind::Update, false, table)?;
        let mut ops = Vec::with_capacity(entries.len());
        let mut locations = Vec::with_capacity(entries.len());
        let (mut total, mut following) = (0, 0);
        for raw in entries {
            let op = decode_update(raw)?;
            let location = location(raw.slot, raw.region_offset)?;
            let length = op.payload_bytes();
            total += length;
            following += if location == PayloadLocation::Inline { length } else { 0 };
            ops.push(op);
            locations.push(location);
        }
        if total > PAYLOAD_BYTES_MAX {
            return Err(Malformed("more bytes than a batch may have"));
        }
        if following != self.payload_bytes as usize {
            return Err(Malformed("the payload is not as long as its operations say"));
        }
        Ok((ops, locations))
    }

    pub fn decode_update_results(&self, table: &[u8]) -> Result<Vec<UpdateResult>, Malformed> {
        let entries = self.entries::<RawUpdateResult>(FrameKind::Update, true, table)?;
        entries
            .iter()
            .map(|raw| {
                let (version, length) = (Version(raw.version.get()), raw.length.get());
                Ok(UpdateResult { status: status(raw.status)?, version, length })
            })
            .collect()
    }

    pub fn decode_syncs(&self, table: &[u8]) -> Result<Vec<(ChainId, ChainVersion)>, Malformed> {
        let entries = self.entries::<RawSync>(FrameKind::Sync, false, table)?;
        Ok(entries
            .iter()
            .map(|raw| (ChainId(raw.chain.get()), ChainVersion(raw.chain_version.get())))
            .collect())
    }

    pub fn decode_sync_results(&self, table: &[u8]) -> Result<Vec<Status>, Malformed> {
        self.entries::<RawSyncResult>(FrameKind::Sync, true, table)?
            .iter()
            .map(|raw| status(raw.status))
            .collect()
    }

    pub fn decode_registration(&self, table: &[u8]) -> Result<RegionRegistration, Malformed> {
        let raw = &self.entries::<RawRegister>(FrameKind::Register, false, table)?[0];
        if raw.slot.get() as usize >= REGIONS_MAX {
            return Err(Malformed("slot of a region"));
        }
        Ok(RegionRegistration { slot: raw.slot.get(), region: RegionId(raw.region), len: raw.length.get() })
    }
}

fn decode_update(raw: &RawUpdate) -> Result<UpdateOp, Malformed> {
    let (offset, length) = (raw.offset.get(), raw.length.get());
    let op = match raw.op.get() {
        1 => Op::Write { offset, length },
        2 => Op::Truncate { length },
        3 => Op::Remove,
        4 => Op::Replace { length, writers: raw.writers.get(), removed: raw.flags.get() & REMOVED != 0 },
        _ => return Err(Malformed("unknown operation")),
    };
    let is_replace = matches!(op, Op::Replace { .. });
    let only_of_replace = raw.writers.get() != 0 || raw.flags.get() & REMOVED != 0;
    if (!is_replace && only_of_replace)
        || (is_replace && raw.flags.get() & FRESH != 0)
        || (op == Op::Remove && length != 0)
        || (!matches!(op, Op::Write { .. }) && offset != 0)
    {
        return Err(Malformed("fields that the operation does not have"));
    }
    if raw.writers.get() as usize > WRITERS_MAX {
        return Err(Malformed("records of writers"));
    }
    check_range(offset, length)?;
    Ok(UpdateOp {
        chain: ChainId(raw.chain.get()),
        chain_version: ChainVersion(raw.chain_version.get()),
        chunk: chunk(raw.content, raw.index),
        op,
        tag: RequestTag { client: ClientId(raw.client.get()), sequence: raw.sequence.get() },
        settled: raw.settled.get(),
        version: Version(raw.version.get()),
        decided: ChainVersion(raw.decided.get()),
        fresh: raw.flags.get() & FRESH != 0,
        payload_crc: (raw.flags.get() & HAS_CRC != 0).then_some(raw.crc.get()),
    })
}

fn chunk(content: U64, index: U32) -> ChunkId {
    ChunkId { content: ContentId(content.get()), index: index.get() }
}

fn check_range(offset: u32, length: u32) -> Result<(), Malformed> {
    match offset.checked_add(length) {
        Some(end) if end <= CHUNK_BYTES_MAX => Ok(()),
        _ => Err(Malformed("beyond the largest chunk")),
    }
}

fn location(slot: U16, offset: U64) -> Result<PayloadLocation, Malformed> {
    match slot.get() {
        INLINE => Ok(PayloadLocation::Inline),
        slot if (slot as usize) < REGIONS_MAX => Ok(PayloadLocation::Region { slot, offset: offset.get() }),
        _ => Err(Malformed("slot of a region")),
    }
}

fn status(number: U16) -> Result<Status, Malformed> {
    Status::from_wire(number.get()).ok_or(Malformed("unknown status"))
}

/// What the sender of a frame chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope {
    pub id: u32,
    /// Time the receiver has for it, from its arrival. 0 in replies.
    pub deadline_ms: u32,
    /// On the clock that the server keeps for this connection. In a reply: now. In a request for updates: the moment
    /// from which none of them is begun any more; in other requests 0.
    pub clock_ms: u32,
}

impl Envelope {
    /// Of the reply to request `id`, given at `clock_ms`.
    pub fn reply(id: u32, clock_ms: u32) -> Envelope {
        Envelope { id, deadline_ms: 0, clock_ms }
    }
}

/// Put a frame with `entries` into `frame`, replacing what was there.
pub(super) fn encode<T: IntoBytes + Immutable>(
    frame: &mut Vec<u8>,
    kind: u8,
    envelope: Envelope,
    payload_bytes: usize,
    entries: impl ExactSizeIterator<Item = T>,
) {
    assert!(entries.len() <= BATCH_OPS_MAX, "callers split their batches");
    assert!(payload_bytes <= PAYLOAD_BYTES_MAX, "callers split their batches");
    let count = entries.len() as u16;
    frame.clear();
    frame.resize(HEADER_BYTES, 0);
    entries.for_each(|entry| frame.extend_from_slice(entry.as_bytes()));
    assert_eq!(
        frame.len() - HEADER_BYTES,
        count as usize * size_of::<T>(),
        "as many entries as the header says"
    );
    let mut header = RawHeader {
        magic: MAGIC,
        version: VERSION,
        kind,
        count: count.into(),
        payload_bytes: (payload_bytes as u32).into(),
        deadline_ms: envelope.deadline_ms.into(),
        id: envelope.id.into(),
        clock_ms: envelope.clock_ms.into(),
        table_crc: crc_fast::crc32_iscsi(&frame[HEADER_BYTES..]).into(),
        header_crc: 0.into(),
    };
    header.header_crc = crc_fast::crc32_iscsi(&header.as_bytes()[..HEADER_BYTES - 4]).into();
    frame[..HEADER_BYTES].copy_from_slice(header.as_bytes());
}

fn location_to_wire(location: &PayloadLocation) -> (U16, U64) {
    match *location {
        PayloadLocation::Inline => (INLINE.into(), 0.into()),
        PayloadLocation::Region { slot, offset } => {
            assert!((slot as usize) < REGIONS_MAX, "slots are numbered from zero");
            (slot.into(), offset.into())
        }
    }
}

pub fn encode_reads(frame: &mut Vec<u8>, envelope: Envelope, ops: &[ReadOp], locations: &[PayloadLocation]) {
    assert_eq!(ops.len(), locations.len(), "one location per operation");
    let entries = ops.iter().zip(locations).map(|(op, location)| {
        let (slot, region_offset) = location_to_wire(location);
        RawRead {
            chain: op.chain.0.into(),
            slot,
            reserved: 0.into(),
            chain_version: op.chain_version.0.into(),
            content: op.chunk.content.0.into(),
            index: op.chunk.index.into(),
            offset: op.offset.into(),
            length: op.length.into(),
            reserved_2: 0.into(),
            region_offset,
        }
    });
    encode(frame, FrameKind::Read as u8, envelope, 0, entries);
}

/// `crcs[i]` is the checksum of the bytes of result `i` that follow; `None` where both ends share memory.
pub fn encode_read_results(
    frame: &mut Vec<u8>,
    envelope: Envelope,
    payload_bytes: usize,
    results: &[ReadResult],
    crcs: &[Option<u32>],
) {
    assert_eq!(results.len(), crcs.len(), "a checksum, or none, per result");
    let entries = results.iter().zip(crcs).map(|(result, crc)| RawReadResult {
        status: (result.status as u16).into(),
        flags: (if crc.is_some() { HAS_CRC as u16 } else { 0 }).into(),
        length: result.length.into(),
        version: result.version.0.into(),
        crc: crc.unwrap_or(0).into(),
        reserved: 0.into(),
    });
    encode(frame, FrameKind::Read as u8 | REPLY, envelope, payload_bytes, entries);
}

pub fn encode_updates(
    frame: &mut Vec<u8>,
    envelope: Envelope,
    ops: &[UpdateOp],
    locations: &[PayloadLocation],
) {
    assert_eq!(ops.len(), locations.len(), "one location per operation");
    let following = ops.iter().zip(locations).filter(|(_, location)| **location == PayloadLocation::Inline);
    let payload_bytes = following.map(|(op, _)| op.payload_bytes()).sum();
    let entries = ops.iter().zip(locations).map(|(op, location)| encode_update(op, location));
    encode(frame, FrameKind::Update as u8, envelope, payload_bytes, entries);
}

fn encode_update(op: &UpdateOp, location: &PayloadLocation) -> RawUpdate {
    let (slot, region_offset) = location_to_wire(location);
    let (mut flags, mut records) = (if op.payload_crc.is_some() { HAS_CRC } else { 0 }, 0);
    flags |= if op.fresh { FRESH } else { 0 };
    let (number, offset, length): (u16, u32, u32) = match op.op {
        Op::Write { offset, length } => (1, offset, length),
        Op::Truncate { length } => (2, 0, length),
        Op::Remove => (3, 0, 0),
        Op::Replace { length, writers, removed } => {
            flags |= if removed { REMOVED } else { 0 };
            records = writers;
            (4, 0, length)
        }
    };
    RawUpdate {
        chain: op.chain.0.into(),
        slot,
        op: number.into(),
        chain_version: op.chain_version.0.into(),
        content: op.chunk.content.0.into(),
        index: op.chunk.index.into(),
        offset: offset.into(),
        length: length.into(),
        crc: op.payload_crc.unwrap_or(0).into(),
        client: op.tag.client.0.into(),
        sequence: op.tag.sequence.into(),
        version: op.version.0.into(),
        region_offset,
        flags: flags.into(),
        writers: records.into(),
        decided: op.decided.0.into(),
        settled: op.settled.into(),
    }
}

pub fn encode_update_results(frame: &mut Vec<u8>, envelope: Envelope, results: &[UpdateResult]) {
    let entries = results.iter().map(|result| RawUpdateResult {
        status: (result.status as u16).into(),
        reserved: 0.into(),
        length: result.length.into(),
        version: result.version.0.into(),
    });
    encode(frame, FrameKind::Update as u8 | REPLY, envelope, 0, entries);
}

pub fn encode_syncs(frame: &mut Vec<u8>, envelope: Envelope, chains: &[(ChainId, ChainVersion)]) {
    let entries = chains.iter().map(|(chain, version)| RawSync {
        chain: chain.0.into(),
        reserved: 0.into(),
        chain_version: version.0.into(),
    });
    encode(frame, FrameKind::Sync as u8, envelope, 0, entries);
}

pub fn encode_sync_results(frame: &mut Vec<u8>, envelope: Envelope, results: &[Status]) {
    let entries =
        results.iter().map(|status| RawSyncResult { status: (*status as u16).into(), reserved: [0; 6] });
    encode(frame, FrameKind::Sync as u8 | REPLY, envelope, 0, entries);
}

pub fn encode_ping(frame: &mut Vec<u8>, envelope: Envelope, reply: bool) {
    let kind = FrameKind::Ping as u8 | if reply { REPLY } else { 0 };
    encode(frame, kind, envelope, 0, std::iter::empty::<RawSyncResult>());
}

pub fn encode_transmit(frame: &mut Vec<u8>, envelope: Envelope, reply: bool) {
    let kind = FrameKind::Transmit as u8 | if reply { REPLY } else { 0 };
    encode(frame, kind, envelope, 0, std::iter::empty::<RawSyncResult>());
}

pub fn encode_registration(frame: &mut Vec<u8>, registration: &RegionRegistration) {
    assert!((registration.slot as usize) < REGIONS_MAX, "slots are numbered from zero");
    let entry = RawRegister {
        slot: registration.slot.into(),
        reserved: [0; 6],
        region: registration.region.0,
        length: registration.len.into(),
    };
    encode(frame, FrameKind::Register as u8, Envelope::reply(0, 0), 0, std::iter::once(entry));
}
