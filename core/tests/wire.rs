//! Frames: round trips, hostile bytes, and the drawings of docs/protocol.md.

use luciola_core::buffer::RegionId;
use luciola_core::types::*;
use luciola_core::wire::frame::{
    self, Envelope, FrameKind, HEADER_BYTES, Header, PayloadLocation, REGIONS_MAX, RegionRegistration,
};
use luciola_core::wire::lane::LaneHeader;
use luciola_core::wire::{credential, handshake};
use proptest::collection::vec;
use proptest::prelude::*;

/// Header and table of a frame.
fn open(bytes: &[u8]) -> (Header, &[u8]) {
    let header = Header::decode(bytes[..HEADER_BYTES].try_into().unwrap()).unwrap();
    assert_eq!(bytes.len(), HEADER_BYTES + header.table_bytes());
    (header, &bytes[HEADER_BYTES..])
}

fn chunk() -> impl Strategy<Value = ChunkId> {
    (any::<u64>(), any::<u32>()).prop_map(|(content, index)| ChunkId { content: ContentId(content), index })
}

/// Offset and length inside the largest chunk, and small enough for many in a batch.
fn range() -> impl Strategy<Value = (u32, u32)> {
    (0..CHUNK_BYTES_MAX - 100_000, 0..100_000u32)
}

fn location() -> impl Strategy<Value = PayloadLocation> {
    let region = (0..REGIONS_MAX as u16, any::<u64>())
        .prop_map(|(slot, offset)| PayloadLocation::Region { slot, offset });
    prop_oneof![Just(PayloadLocation::Inline), region]
}

fn read() -> impl Strategy<Value = (ReadOp, PayloadLocation)> {
    (any::<u32>(), any::<u64>(), chunk(), range(), location()).prop_map(
        |(chain, version, chunk, (offset, length), location)| {
            let (chain, chain_version) = (ChainId(chain), ChainVersion(version));
            (ReadOp { chain, chain_version, chunk, offset, length }, location)
        },
    )
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        range().prop_map(|(offset, length)| Op::Write { offset, length }),
        (0..=CHUNK_BYTES_MAX).prop_map(|length| Op::Truncate { length }),
        Just(Op::Remove),
        (0..100_000u32, 0..=WRITERS_MAX as u32, any::<bool>())
            .prop_map(|(length, writers, removed)| Op::Replace { length, writers, removed }),
    ]
}

fn update() -> impl Strategy<Value = (UpdateOp, PayloadLocation)> {
    let numbers = (any::<u32>(), any::<[u64; 6]>(), any::<Option<u32>>());
    (numbers, chunk(), op(), location()).prop_map(|((chain, words, payload_crc), chunk, op, location)| {
        let update = UpdateOp {
            chain: ChainId(chain),
            chain_version: ChainVersion(words[0]),
            chunk,
            op,
            tag: RequestTag { client: ClientId(words[1]), sequence: words[2] },
            settled: words[5],
            version: Version(words[3]),
            fresh: matches!(op, Op::Write { .. }),
            decided: ChainVersion(words[4]),
            payload_crc,
        };
        (update, location)
    })
}

fn status() -> impl Strategy<Value = Status> {
    (0..17u16).prop_map(|number| Status::from_wire(number).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn reads_come_back_as_they_went(batch in vec(read(), 1..=BATCH_OPS_MAX), id in any::<u32>(), deadline_ms in any::<u32>(), clock_ms in any::<u32>()) {
        let (ops, locations): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        let mut bytes = vec![1, 2, 3];
        frame::encode_reads(&mut bytes, Envelope { id, deadline_ms, clock_ms }, &ops, &locations);
        let (header, table) = open(&bytes);
        prop_assert_eq!((header.kind, header.reply, header.id), (FrameKind::Read, false, id));
        prop_assert_eq!((header.deadline_ms, header.clock_ms), (deadline_ms, clock_ms));
        prop_assert_eq!(header.decode_reads(table).unwrap(), (ops, locations));
        prop_assert!(header.decode_updates(table).is_err());
    }

    #[test]
    fn updates_come_back_as_they_went(batch in vec(update(), 1..=BATCH_OPS_MAX), id in any::<u32>()) {
        let (ops, locations): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        let mut bytes = Vec::new();
        frame::encode_updates(&mut bytes, Envelope { id, deadline_ms: 7, clock_ms: 9 }, &ops, &locations);
        let (header, table) = open(&bytes);
        let following = ops.iter().zip(&locations).filter(|(_, location)| **location == PayloadLocation::Inline);
        prop_assert_eq!(header.payload_bytes as usize, following.map(|(op, _)| op.payload_bytes()).sum::<usize>());
        prop_assert_eq!(header.decode_updates(table).unwrap(), (ops, locations));
        prop_assert!(header.decode_reads(table).is_err());
    }

    #[test]
    fn results_come_back_as_they_went(
        reads in vec((status(), 0..=CHUNK_BYTES_MAX, any::<u64>(), any::<Option<u32>>()), 1..=BATCH_OPS_MAX),
        updates in vec((status(), any::<u32>(), any::<u64>()), 1..=BATCH_OPS_MAX),
        syncs in vec(status(), 1..=BATCH_OPS_MAX),
        chains in vec((any::<u32>(), any::<u64>()), 1..=BATCH_OPS_MAX),
    ) {
        let mut bytes = Vec::new();
        let results: Vec<_> = reads
            .iter()
            .map(|(status, length, version, _)| ReadResult { status: *status, length: *length, version: Version(*version) })
            .collect();
        let crcs: Vec<_> = reads.iter().map(|read| read.3).collect();
        frame::encode_read_results(&mut bytes, Envelope::reply(1, 9), 55, &results, &crcs);
        let (header, table) = open(&bytes);
        prop_assert_eq!(header.payload_bytes, 55);
        let seen = header.decode_read_results(table).unwrap();
        prop_assert_eq!(seen, results.into_iter().zip(crcs).collect::<Vec<_>>());

        let results: Vec<_> = updates
            .into_iter()
            .map(|(status, length, version)| UpdateResult { status, version: Version(version), length })
            .collect();
        frame::encode_update_results(&mut bytes, Envelope::reply(1, 9), &results);
        let (header, table) = open(&bytes);
        prop_assert_eq!(header.decode_update_results(table).unwrap(), results);

        frame::encode_sync_results(&mut bytes, Envelope::reply(1, 9), &syncs);
        let (header, table) = open(&bytes);
        prop_assert_eq!(header.decode_sync_results(table).unwrap(), syncs);

        let chains: Vec<_> = chains.into_iter().map(|(chain, version)| (ChainId(chain), ChainVersion(version))).collect();
        frame::encode_syncs(&mut bytes, Envelope { id: 1, deadline_ms: 1, clock_ms: 1000 }, &chains);
        let (header, table) = open(&bytes);
        prop_assert_eq!(header.decode_syncs(table).unwrap(), chains);
    }

    #[test]
    fn registrations_come_back_as_they_went(slot in 0..REGIONS_MAX as u16, id in any::<[u8; 16]>(), len in any::<u64>()) {
        let registration = RegionRegistration { slot, region: RegionId(id), len };
        let mut bytes = Vec::new();
        frame::encode_registration(&mut bytes, &registration);
        let (header, table) = open(&bytes);
        prop_assert_eq!(header.decode_registration(table).unwrap(), registration);
    }
}

/// Every decoder, whatever the header says it is. Nothing may panic; tables are within their bound.
fn decode_all(header: &Header, table: &[u8]) {
    let _ = header.decode_reads(table).map(|(ops, locations)| assert_eq!(ops.len(), locations.len()));
    let _ = header.decode_read_results(table);
    let _ = header.decode_updates(table).map(|(ops, _)| {
        let total: usize = ops.iter().map(UpdateOp::payload_bytes).sum();
        assert!(total <= frame::PAYLOAD_BYTES_MAX);
    });
    let _ = header.decode_update_results(table);
    let _ = header.decode_syncs(table);
    let _ = header.decode_sync_results(table);
    let _ = header.decode_registration(table);
    let _ = header.decode_ping(false);
}

/// What a receiver does with a stream of bytes. Returns whether a whole frame was found.
fn receive(bytes: &[u8]) -> bool {
    let Some(head) = bytes.first_chunk::<HEADER_BYTES>() else { return false };
    let Ok(header) = Header::decode(head) else { return false };
    assert!(header.table_bytes() <= frame::TABLE_BYTES_MAX, "bounded before anything is allocated");
    assert!(header.payload_bytes as usize <= frame::PAYLOAD_BYTES_MAX);
    let Some(table) = bytes[HEADER_BYTES..].get(..header.table_bytes()) else { return false };
    decode_all(&header, table);
    true
}

/// Makes the checksums of a damaged frame right again, so that the damage reaches the decoders behind them.
fn reseal(bytes: &mut [u8]) {
    let table_crc = crc_fast::crc32_iscsi(&bytes[HEADER_BYTES..]);
    bytes[24..28].copy_from_slice(&table_crc.to_le_bytes());
    let header_crc = crc_fast::crc32_iscsi(&bytes[..28]);
    bytes[28..32].copy_from_slice(&header_crc.to_le_bytes());
}

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let envelope = Envelope { id: 3, deadline_ms: 1000, clock_ms: 1000 };
    prop_oneof![
        vec(read(), 1..5).prop_map(move |batch| {
            let (ops, locations): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
            let mut bytes = Vec::new();
            frame::encode_reads(&mut bytes, envelope, &ops, &locations);
            bytes
        }),
        vec(update(), 1..5).prop_map(move |batch| {
            let (ops, locations): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
            let mut bytes = Vec::new();
            frame::encode_updates(&mut bytes, envelope, &ops, &locations);
            bytes
        }),
        vec(any::<u32>(), 1..5).prop_map(move |chains| {
            let chains: Vec<_> = chains.into_iter().map(|chain| (ChainId(chain), ChainVersion(1))).collect();
            let mut bytes = Vec::new();
            frame::encode_syncs(&mut bytes, envelope, &chains);
            bytes
        }),
        any::<[u8; 16]>().prop_map(|id| {
            let mut bytes = Vec::new();
            let registration = RegionRegistration { slot: 1, region: RegionId(id), len: 4096 };
            frame::encode_registration(&mut bytes, &registration);
            bytes
        }),
        any::<bool>().prop_map(move |reply| {
            let mut bytes = Vec::new();
            frame::encode_ping(&mut bytes, envelope, reply);
            bytes
        }),
    ]
}

/// The fuzz targets run so many cases here, and more with PROPTEST_CASES set.
const HOSTILE_CASES: u32 = 20_000;

fn hostile() -> ProptestConfig {
    let from_environment = ProptestConfig::default();
    ProptestConfig { cases: from_environment.cases.max(HOSTILE_CASES), ..from_environment }
}

proptest! {
    #![proptest_config(hostile())]

    #[test]
    fn noise_is_no_frame(bytes in vec(any::<u8>(), 0..300)) {
        prop_assert!(!receive(&bytes));
        let _ = bytes.first_chunk().map(LaneHeader::decode);
        let _ = bytes.first_chunk().map(|bytes| handshake::decode_client_hello(credential::ChannelKind::Data, bytes));
        let _ = bytes.first_chunk().map(|bytes| handshake::decode_server_hello(credential::ChannelKind::Lane, bytes));
        let _ = bytes.first_chunk().map(handshake::decode_verdict);
    }

    #[test]
    fn any_damage_is_noticed(frame in any_frame(), place in any::<prop::sample::Index>(), bit in 0..8u32) {
        prop_assert!(receive(&frame));
        let mut damaged = frame.clone();
        let place = place.index(frame.len());
        damaged[place] ^= 1 << bit;
        let (head, table) = damaged.split_at(HEADER_BYTES);
        let noticed = match Header::decode(head.try_into().unwrap()) {
            Err(_) => true,
            Ok(header) => {
                header.decode_reads(table).is_err()
                    && header.decode_updates(table).is_err()
                    && header.decode_syncs(table).is_err()
                    && header.decode_registration(table).is_err()
                    && place >= HEADER_BYTES
            }
        };
        prop_assert!(noticed, "byte {place}");
    }

    #[test]
    fn resealed_damage_never_panics(
        frame in any_frame(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut damaged = frame.clone();
        for (place, byte) in damage {
            // Beyond magic and version, which only hide what comes after them.
            let place = 5 + place.index(frame.len() - 5);
            damaged[place] = byte;
        }
        reseal(&mut damaged);
        receive(&damaged);
        damaged.truncate(HEADER_BYTES + cut.index(damaged.len() - HEADER_BYTES + 1));
        reseal(&mut damaged);
        receive(&damaged);
    }
}

#[test]
fn limits_are_kept_to_the_byte() {
    let envelope = Envelope { id: 1, deadline_ms: 1, clock_ms: 1000 };
    let read = |offset, length| {
        let chunk = ChunkId::default();
        let op = ReadOp { chain: ChainId(1), chain_version: ChainVersion(1), chunk, offset, length };
        let mut bytes = Vec::new();
        frame::encode_reads(&mut bytes, envelope, &[op], &[PayloadLocation::Inline]);
        let (header, table) =
            (Header::decode(bytes[..HEADER_BYTES].try_into().unwrap()), bytes[HEADER_BYTES..].to_vec());
        header.unwrap().decode_reads(&table).is_ok()
    };
    assert!(read(0, CHUNK_BYTES_MAX));
    assert!(read(CHUNK_BYTES_MAX, 0));
    assert!(!read(1, CHUNK_BYTES_MAX));
    assert!(!read(u32::MAX, u32::MAX));
    let mut bytes = Vec::new();
    let half = ReadOp {
        chain: ChainId(1),
        chain_version: ChainVersion(1),
        chunk: ChunkId::default(),
        offset: 0,
        length: CHUNK_BYTES_MAX / 2,
    };
    frame::encode_reads(&mut bytes, envelope, &[half; 3], &[PayloadLocation::Inline; 3]);
    let (header, table) = open(&bytes);
    assert!(header.decode_reads(table).is_err(), "a batch has its own limit");
    // One operation too many, and none at all.
    frame::encode_syncs(&mut bytes, envelope, &[(ChainId(1), ChainVersion(1))]);
    for (count, allowed) in [(0u16, false), (1, true), (256, true), (257, false), (u16::MAX, false)] {
        bytes[6..8].copy_from_slice(&count.to_le_bytes());
        let crc = crc_fast::crc32_iscsi(&bytes[..28]);
        bytes[28..32].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Header::decode(bytes[..32].try_into().unwrap()).is_ok(), allowed, "{count}");
    }
}
