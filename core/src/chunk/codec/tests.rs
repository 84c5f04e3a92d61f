use proptest::prelude::*;

use super::*;
use crate::chunk::state::{PageNumber, compress};
use crate::types::{Op, PAGE_BYTES};

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

fn writer(client: u64, sequence: u64) -> WriterRecord {
    let tag = RequestTag { client: ClientId(client), sequence };
    WriterRecord { tag, version: Version(3), round: 4 }
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
        writers: vec![writer(1, 2)],
    }
}

/// A chunk of `count` pages that lie apart, and an overwrite of one of them by `next`.
fn overwritten(count: u32, next: PageNumber) -> (Record, Record) {
    let pages: Vec<PageNumber> = (0..count).map(|n| 1000 + 3 * n).collect();
    let mut changed = pages.clone();
    changed[17] = next;
    let crcs = vec![0xdead_beef; pages.len()];
    let of = |version, pages: &[PageNumber]| Record {
        committed: Some(state(version, pages, &crcs, count * PAGE_BYTES)),
        writers: vec![writer(0x1122_3344_5566_7788, version)],
        ..Record::default()
    };
    (of(100, &pages), of(101, &changed))
}

#[test]
fn a_record_survives_the_round_trip() {
    for record in [sample(), Record::default()] {
        let (value, base) = encode_base(&record);
        assert_eq!(decode_base(&value), Ok((record, base)));
    }
}

#[test]
fn a_delta_makes_a_record_of_its_base() {
    let (before, after) = overwritten(64, 5000);
    let others = [sample(), Record::default(), before.clone(), after];
    for known in [before, sample(), Record::default()] {
        let (value, base) = encode_base(&known);
        let read = decode_base(&value).unwrap().1;
        for record in &others {
            assert_eq!(decode_delta(&encode_delta(record, &base), &read).as_ref(), Ok(record));
        }
    }
}

/// The drawing in docs/formats.md, byte by byte.
#[test]
fn a_base_record_looks_as_drawn() {
    let record = Record { fallbacks: vec![state(3, &[9, 8], &[4, 3], 20_000)], ..sample() };
    #[rustfmt::skip]
    let mut drawn = vec![
        4, 0b0111,
        1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 3, 4,              // one writer, not as in a base
        // Committed: chain version 3, version 4, round 12, 40,000 bytes, 8000 of the last page.
        6, 8, 24, 0x80, 0xf1, 4, 0x80, 0x7d,
        2 << 1,                                              // two runs
        0, 2 << 1, 14,                                       // pages 7 and 8
        0, 1 << 1 | 1,                                       // and a hole
        1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0,
        // A fallback: version 3, 20,000 bytes fewer.
        0, 1, 0, 0xbf, 0xb8, 2, 0,
        2 << 1,
        0, 1 << 1, 18,                                       // page 9
        0, 1 << 1, 3,                                        // and page 8, two before the one behind it
        4, 0, 0, 0, 3, 0, 0, 0,
        // Pending: who, and a write.
        0xaa, 0, 0, 0, 0, 0, 0, 0, 0xbb, 1, 1, 0x91, 0x22, 0xa2, 0x44,
        0, 2, 0, 0x80, 0xf1, 4, 0,                           // the next version, 40,000 bytes more
        2 << 1 | 1,                                          // removed
        2, 2 << 1, 40,                                       // pages 2 and 3 of the chunk: 20 and 21
        0, 1 << 1 | 1,
        5, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0,
    ];
    drawn.extend(checksum::crc32c(&drawn).to_le_bytes());
    assert_eq!(encode_base(&record).0, drawn);
}

#[test]
fn a_delta_looks_as_drawn() {
    let (before, after) = overwritten(64, 5000);
    let (value, base) = encode_base(&before);
    let mut drawn = vec![4, 0b1_0001];
    drawn.extend(&value[value.len() - 4..]);
    #[rustfmt::skip]
    drawn.extend([
        1, 0, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 101, 3, 4,
        0, 2, 0, 0, 0,                                       // the next version; else the same
        1 << 1, 17, 1 << 1, 0x90, 0x4e,                      // page 17 of the chunk: 5000
        0xef, 0xbe, 0xad, 0xde,
    ]);
    drawn.extend(checksum::crc32c(&drawn).to_le_bytes());
    assert_eq!(encode_delta(&after, &base), drawn);
}

/// An overwrite of 4 KiB in a chunk of many pages costs one page, not all of them once more.
#[test]
fn an_update_costs_what_it_changes() {
    let (before, after) = overwritten(64, 5000);
    let (value, base) = encode_base(&before);
    assert_eq!(format3::writing::encode(&before).len(), 844);
    assert_eq!(value.len(), 480);
    assert_eq!(encode_delta(&after, &base).len(), 37);
    let fallbacks = vec![before.committed.clone().unwrap()];
    let with_fallback = Record { fallbacks, ..after };
    assert_eq!(encode_delta(&with_fallback, &base).len(), 43);
}

/// Many clients write one chunk: those that have not written since are named by their place.
#[test]
fn writers_of_the_base_are_named_and_not_repeated() {
    let (before, after) = overwritten(64, 5000);
    let known: Vec<WriterRecord> = (0..500).map(|client| writer(client << 40, 7)).collect();
    let (value, base) = encode_base(&Record { writers: known.clone(), ..before });
    let mut writers = known.clone();
    writers[250] = writer(250 << 40, 8);
    writers.swap_remove(3);
    writers.push(writer(600 << 40, 1));
    let record = Record { writers, ..after };
    let delta = encode_delta(&record, &base);
    assert!(delta.len() < 120, "{} bytes", delta.len());
    assert_eq!(decode_delta(&delta, &decode_base(&value).unwrap().1), Ok(record));
}

#[test]
fn a_delta_is_refused_without_its_own_base() {
    let (before, after) = overwritten(64, 5000);
    let (value, base) = encode_base(&before);
    let delta = encode_delta(&after, &base);
    let (_, other) = encode_base(&after);
    assert_eq!(decode_delta(&delta, &other), Err(Malformed::Base));
    assert_eq!(decode_base(&delta), Err(Malformed::Base));
    assert_eq!(decode_delta(&value, &base), Err(Malformed::Base), "a base is no delta");
}

#[test]
fn other_formats_are_called_so() {
    for format in [0, 2, 5, 255] {
        let value = seal(vec![format, 0, 0, 0]);
        assert_eq!(decode_base(&value), Err(Malformed::Format(format)));
        assert_eq!(foreign_format(&value), Some(format));
    }
    let base = encode_base(&sample()).1;
    let older = format3::writing::encode(&sample());
    assert_eq!(foreign_format(&older), None);
    assert_eq!(decode_delta(&older, &base), Err(Malformed::Format(3)), "format 3 had no deltas");
    assert_eq!(foreign_format(&[5]), None, "damaged, of whatever format");
}

/// `sample` as docs/formats.md drew format 3, in hexadecimal.
const SAMPLE_OF_FORMAT_3: &str = include_str!("sample_format3.hex");

#[test]
fn a_record_of_format_3_is_read_and_may_have_deltas() {
    let digits: String = SAMPLE_OF_FORMAT_3.split_whitespace().collect();
    let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
    let value: Vec<u8> = (0..digits.len()).step_by(2).map(byte).collect();
    assert_eq!(value, format3::writing::encode(&sample()), "the tests write as it was drawn");
    let (record, base) = decode_base(&value).unwrap();
    assert_eq!(record, sample());
    let (_, after) = overwritten(64, 5000);
    assert_eq!(decode_delta(&encode_delta(&after, &base), &base), Ok(after));
}

#[test]
fn keys_sort_by_chain_content_index_and_deltas_follow() {
    let key = |chain, content, index| ChunkKey {
        chain: ChainId(chain),
        chunk: ChunkId { content: ContentId(content), index },
    };
    assert_eq!(
        encode_key(key(0x0102_0304, 0x05060708090a0b0c, 0x0d0e0f10)),
        [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]
    );
    let keys = [key(1, 2, 300), key(1, 256, 1), key(2, 0, 0), key(2, 0, 1), key(256, 0, 0)];
    for pair in keys.windows(2) {
        assert!(encode_key(pair[0])[..] < encode_delta_key(pair[0])[..]);
        assert!(encode_delta_key(pair[0])[..] < encode_key(pair[1])[..]);
    }
    for key in keys {
        assert_eq!(decode_key(&encode_key(key)), Ok((key, false)));
        assert_eq!(decode_key(&encode_delta_key(key)), Ok((key, true)));
    }
    for length in [0, 5, 15, 18] {
        assert_eq!(decode_key(&[DELTA; 18][..length]), Err(Malformed::Key(length)));
    }
    let mut other = encode_delta_key(keys[0]);
    other[KEY_BYTES] = 2;
    assert_eq!(decode_key(&other), Err(Malformed::Key(17)));
}

fn any_state() -> impl Strategy<Value = Arc<ContentState>> {
    let pages = proptest::collection::vec((0u32..6, 0u32..3), 0..12);
    (pages, any::<u64>(), any::<u64>(), any::<u64>(), 0..=PAGE_BYTES, any::<bool>()).prop_map(
        |(parts, chain_version, version, round, tail_used, removed)| {
            let pages: Vec<_> = parts.iter().map(|(page, _)| if *page == 5 { HOLE } else { *page }).collect();
            Arc::new(ContentState {
                stamp: Stamp { chain_version: ChainVersion(chain_version), version: Version(version) },
                length: pages.len() as u32 * PAGE_BYTES,
                tail_used,
                removed,
                round,
                extents: compress(&pages),
                crcs: parts.iter().map(|(_, crc)| *crc).collect(),
            })
        },
    )
}

fn any_writers() -> impl Strategy<Value = Vec<WriterRecord>> {
    let writer = (0u64..4, 0u64..4).prop_map(|(client, sequence)| writer(client, sequence));
    proptest::collection::vec(writer, 0..8)
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        any::<(u32, u32)>().prop_map(|(offset, length)| Op::Write { offset, length }),
        any::<u32>().prop_map(|length| Op::Truncate { length }),
        Just(Op::Remove),
    ]
}

fn any_record() -> impl Strategy<Value = Record> {
    let pending = (any_state(), any_op(), any::<(u64, u64)>()).prop_map(|(state, op, (client, sequence))| {
        PendingState { state, op, tag: RequestTag { client: ClientId(client), sequence } }
    });
    let committed = proptest::option::of(any_state());
    let fallbacks = proptest::collection::vec(any_state(), 0..=FALLBACKS_MAX);
    (committed, fallbacks, proptest::option::of(pending), any_writers()).prop_map(
        |(committed, fallbacks, pending, writers)| Record { committed, fallbacks, pending, writers },
    )
}

proptest! {
    #[test]
    fn any_record_survives_the_round_trip(record in any_record()) {
        let (value, base) = encode_base(&record);
        prop_assert_eq!(decode_base(&value), Ok((record, base)));
    }

    #[test]
    fn any_record_is_read_from_format_3(record in any_record()) {
        prop_assert_eq!(decode_base(&format3::writing::encode(&record)).map(|(read, _)| read), Ok(record));
    }

    #[test]
    fn any_record_is_a_delta_of_any_other(known in any_record(), record in any_record(), is_older: bool) {
        let value = if is_older { format3::writing::encode(&known) } else { encode_base(&known).0 };
        let base = decode_base(&value).unwrap().1;
        prop_assert_eq!(decode_delta(&encode_delta(&record, &base), &base), Ok(record));
    }

    #[test]
    fn a_damaged_value_is_refused(known in any_record(), record in any_record(), place: usize, flip in 1u8..) {
        let (value, base) = encode_base(&known);
        let damaged = |mut value: Vec<u8>| {
            let place = place % value.len();
            value[place] ^= flip;
            value
        };
        prop_assert!(decode_base(&damaged(value)).is_err());
        prop_assert!(decode_delta(&damaged(encode_delta(&record, &base)), &base).is_err());
    }

    /// Also where the checksum fits what is left, as no torn write makes it.
    #[test]
    fn a_truncated_value_is_refused(known in any_record(), record in any_record(), cut: usize) {
        let (value, base) = encode_base(&known);
        let delta = encode_delta(&record, &base);
        for (value, base) in [(value, None), (delta, Some(&base))] {
            let cut = &value[..cut % (value.len() - 4)];
            let read = |value: &[u8]| match base {
                None => decode_base(value).map(|(record, _)| record),
                Some(base) => decode_delta(value, base),
            };
            prop_assert!(read(cut).is_err());
            prop_assert!(read(&seal(cut.to_vec())).is_err());
            prop_assert!(read(&seal([&value[..value.len() - 4], &[0]].concat())).is_err(), "a byte more");
        }
    }

    /// Whatever stands in the index, decoding neither panics nor allocates beyond what the bytes justify.
    #[test]
    fn arbitrary_bytes_with_a_valid_checksum_do_not_panic(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..300),
        known in any_record(),
        format in 3u8..=4,
        flags: u8,
    ) {
        let base = encode_base(&known).1;
        bytes.splice(0..0, [format, flags]);
        let _ = decode_base(&seal(bytes.clone()));
        let delta = [&[RECORD_FORMAT, flags | HAS_BASE], &base.crc.to_le_bytes()[..], &bytes[2..]].concat();
        let _ = decode_delta(&seal(delta), &base);
    }
}
