//! The engine's promises, one by one. Random sequences are in `core/tests/chunk_model.rs`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::faults::Fault;
use super::payload::Fill;
use super::state::PAGE;
use super::*;
use crate::types::*;

/// In memory where there is a place for that: these tests are not about the disk's speed.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary directory")
}

fn options() -> EngineOptions {
    EngineOptions {
        segment_bytes: 64 * PAGE as u64,
        reserve_bytes: 0,
        cache_bytes: 1 << 20,
        sync_interval: None,
        ..EngineOptions::default()
    }
}

fn open(dir: &Path) -> Engine {
    Engine::open(dir, options()).expect("the directory opens")
}

fn key(index: u32) -> ChunkKey {
    ChunkKey { chain: ChainId(1), chunk: ChunkId { content: ContentId(2), index } }
}

fn stamp(version: u64) -> Stamp {
    Stamp { chain_version: ChainVersion(1), version: Version(version) }
}

fn tag(client: u64, sequence: u64) -> RequestTag {
    RequestTag { client: ClientId(client), sequence }
}

fn update(index: u32, version: u64, op: Op) -> Update {
    Update {
        key: key(index),
        stamp: stamp(version),
        op,
        tag: tag(1, version),
        origin: Origin::Client,
        fresh: false,
    }
}

fn stage_write(
    engine: &Engine,
    index: u32,
    version: u64,
    offset: u32,
    bytes: &[u8],
) -> Result<Staged, Status> {
    let op = Op::Write { offset, length: bytes.len() as u32 };
    engine.stage(&update(index, version, op), &bytes).map(|outcome| outcome.staged)
}

fn write(engine: &Engine, index: u32, version: u64, offset: u32, bytes: &[u8]) {
    assert_eq!(stage_write(engine, index, version, offset, bytes), Ok(Staged::Pending));
    engine.commit(key(index), Version(version), ChainVersion(1)).unwrap();
}

fn truncate(engine: &Engine, index: u32, version: u64, length: u32) {
    engine.stage(&update(index, version, Op::Truncate { length }), &Vec::new()).unwrap();
    engine.commit(key(index), Version(version), ChainVersion(1)).unwrap();
}

fn remove(engine: &Engine, index: u32, version: u64) {
    engine.stage(&update(index, version, Op::Remove), &Vec::new()).unwrap();
    engine.commit(key(index), Version(version), ChainVersion(1)).unwrap();
}

fn read(engine: &Engine, index: u32, offset: u32, length: usize) -> Result<Vec<u8>, Status> {
    let mut bytes = vec![0; length];
    let outcome = engine.read(key(index), offset, &mut &mut bytes[..])?;
    bytes.truncate(outcome.length as usize);
    Ok(bytes)
}

fn noise(length: usize, seed: usize) -> Vec<u8> {
    let mut state = seed as u64 * 2 + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// The block file of page `page` of a chunk, and where the page begins in it.
fn place_on_disk(engine: &Engine, dir: &Path, index: u32, page: usize) -> (PathBuf, u64) {
    let record = engine.core.record(key(index)).unwrap().1;
    let number = record.committed.as_ref().unwrap().pages_between(page, page + 1)[0];
    let segment_pages = engine.core.segments.segment_pages();
    let path = dir.join(format!("blocks/{:08}.blk", number / segment_pages));
    (path, u64::from(number % segment_pages) * PAGE as u64)
}

/// Flip one bit on disk.
fn damage(engine: &Engine, dir: &Path, index: u32, offset: usize) {
    let (path, start) = place_on_disk(engine, dir, index, offset / PAGE);
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    let at = start + (offset % PAGE) as u64;
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

fn assert_no_leak(engine: &Engine) {
    engine.sync().unwrap();
    let owned: u64 = engine.chains().into_iter().map(|chain| engine.usage(chain).page_bytes).sum();
    assert_eq!(engine.space().unwrap().used_bytes, owned);
}

// Content -----------------------------------------------------------------------------------------------------

#[test]
fn a_write_is_visible_once_committed() {
    let dir = directory();
    let engine = open(dir.path());
    assert_eq!(read(&engine, 0, 0, 10), Err(Status::NotFound));
    assert_eq!(stage_write(&engine, 0, 1, 0, b"hello"), Ok(Staged::Pending));
    assert_eq!(read(&engine, 0, 0, 10), Err(Status::NotFound));
    engine.commit(key(0), Version(1), ChainVersion(1)).unwrap();
    assert_eq!(read(&engine, 0, 0, 10).unwrap(), b"hello");
    assert_eq!(read(&engine, 0, 3, 10).unwrap(), b"lo");
    assert_eq!(read(&engine, 0, 5, 10).unwrap(), b"");
}

#[test]
fn an_update_of_the_tail_is_committed_as_it_is_staged() {
    let dir = directory();
    let engine = open(dir.path());
    let apply = |version, offset, bytes: &[u8]| {
        let op = Op::Write { offset, length: bytes.len() as u32 };
        engine.stage_and_commit(&update(0, version, op), &bytes).map(|outcome| outcome.staged)
    };
    assert_eq!(apply(1, 0, b"hello"), Ok(Staged::Committed));
    assert_eq!(read(&engine, 0, 0, 10).unwrap(), b"hello");
    let state = engine.lookup(key(0)).unwrap().unwrap();
    assert_eq!((state.pending, state.writers[0].tag), (None, tag(1, 1)));
    engine.commit(key(0), Version(1), ChainVersion(1)).expect("a late commit changes nothing");
    assert_eq!(apply(1, 0, b"other"), Ok(Staged::Committed), "it came before");
    assert_eq!(apply(3, 0, b"other"), Err(Status::MissingVersion));
    // What was pending before waits for its commit.
    assert_eq!(stage_write(&engine, 0, 2, 0, b"J"), Ok(Staged::Pending));
    assert_eq!(apply(2, 0, b"J"), Ok(Staged::AlreadyPending));
    assert_eq!(read(&engine, 0, 0, 10).unwrap(), b"hello");
    // Under a newer chain version another one takes its place.
    let op = Op::Write { offset: 5, length: 3 };
    let stamp = Stamp { chain_version: ChainVersion(2), version: Version(2) };
    let other = Update { stamp, tag: tag(2, 1), ..update(0, 2, op) };
    assert_eq!(engine.stage_and_commit(&other, &&b"!!!"[..]).unwrap().length, 8);
    assert_eq!(read(&engine, 0, 0, 10).unwrap(), b"hello!!!");
    assert_no_leak(&engine);
}

#[test]
fn a_read_says_that_a_pending_version_exists() {
    let dir = directory();
    let engine = open(dir.path());
    write(&engine, 0, 1, 0, b"one");
    stage_write(&engine, 0, 2, 0, b"two").unwrap();
    let mut bytes = [0; 3];
    let outcome = engine.read(key(0), 0, &mut &mut bytes[..]).unwrap();
    assert_eq!((&bytes, outcome.stamp, outcome.pending), (b"one", stamp(1), Some(Version(2))));
    let outcome = engine.read_pending(key(0), 0, &mut &mut bytes[..]).unwrap();
    assert_eq!((&bytes, outcome.stamp), (b"two", stamp(2)));
}

#[test]
fn overwriting_a_little_writes_only_the_pages_it_touches() {
    let dir = directory();
    let engine = open(dir.path());
    let mut expected = noise(20 * PAGE, 1);
    write(&engine, 0, 1, 0, &expected);
    engine.sync().unwrap();
    let before = engine.space().unwrap().used_bytes;
    write(&engine, 0, 2, 5 * PAGE as u32 + 100, b"changed");
    expected[5 * PAGE + 100..5 * PAGE + 107].copy_from_slice(b"changed");
    // The old page waits for the next sync (I3).
    assert_eq!(engine.space().unwrap().used_bytes, before + PAGE as u64);
    assert_eq!(read(&engine, 0, 0, 20 * PAGE).unwrap(), expected);
    engine.sync().unwrap();
    assert_eq!(engine.space().unwrap().used_bytes, before);
}

#[test]
fn a_large_sequential_write_is_one_run() {
    let dir = directory();
    let engine = Engine::open(dir.path(), EngineOptions { segment_bytes: 1 << 24, ..options() }).unwrap();
    for index in 0..8 {
        write(&engine, index, 1, 0, &noise(1 << 20, index as usize));
        let record = engine.core.record(key(index)).unwrap().1;
        assert_eq!(record.committed.as_ref().unwrap().extents.len(), 1);
    }
}

#[test]
fn a_gap_takes_no_space_and_reads_as_zeros() {
    let dir = directory();
    let engine = open(dir.path());
    write(&engine, 0, 1, 40 * PAGE as u32, b"end");
    assert_eq!(engine.usage(ChainId(1)).page_bytes, PAGE as u64);
    let bytes = read(&engine, 0, 0, 41 * PAGE).unwrap();
    assert_eq!(bytes.len(), 40 * PAGE + 3);
    assert!(bytes[..40 * PAGE].iter().all(|&byte| byte == 0));
    assert_eq!(&bytes[40 * PAGE..], b"end");
}

#[test]
fn recovery_keeps_sparse_chunks_sparse() {
    let dir = directory();
    let engine = open(dir.path());
    let mut bytes = vec![0; 10 * PAGE];
    bytes[7 * PAGE] = 1;
    let install = Install { key: key(0), stamp: stamp(4), removed: false, tag: tag(0, 0), writers: &[] };
    engine.install(&install, &bytes).unwrap();
    assert_eq!(engine.usage(ChainId(1)).page_bytes, PAGE as u64);
    assert_eq!(read(&engine, 0, 0, 11 * PAGE).unwrap(), bytes);
}

/// What a committed version refers to is never written, except past its committed length.
#[test]
fn bytes_of_a_committed_version_are_never_overwritten() {
    let dir = directory();
    let engine = open(dir.path());
    let first = noise(1000, 1);
    write(&engine, 0, 1, 0, &first);
    // An append goes behind it, on the same page.
    write(&engine, 0, 2, 1000, &noise(1000, 2));
    assert_eq!(engine.core.pages.lock().used(), 1);
    // Cut to the middle of what version 2 holds, then appended to: version 2's bytes must stay for its readers.
    let (_slot, reader) = engine.core.record(key(0)).unwrap();
    truncate(&engine, 0, 3, 1500);
    write(&engine, 0, 4, 1500, &noise(300, 3));
    let state = reader.committed.as_ref().unwrap();
    let mut page = vec![0; PAGE];
    engine.core.read_page(key(0), state, 0, &mut page).unwrap();
    assert_eq!(&page[..1000], first);
    assert_eq!(&page[1000..2000], noise(1000, 2));
    assert_eq!(read(&engine, 0, 1500, 500).unwrap(), noise(300, 3));
}

#[test]
fn a_dropped_append_is_not_written_over_while_somebody_may_read_it() {
    let dir = directory();
    let engine = open(dir.path());
    write(&engine, 0, 1, 0, b"base");
    stage_write(&engine, 0, 2, 4, b"dropped").unwrap();
    let (_slot, reader) = engine.core.record(key(0)).unwrap();
    engine.drop_pending(key(0), Version(2)).unwrap();
    stage_write(&engine, 0, 2, 4, b"another").unwrap();
    let mut page = vec![0; PAGE];
    engine.core.read_page(key(0), &reader.pending.as_ref().unwrap().state, 0, &mut page).unwrap();
    assert_eq!(&page[..11], b"basedropped");
    engine.commit(key(0), Version(2), ChainVersion(1)).unwrap();
    assert_eq!(read(&engine, 0, 0, 20).unwrap(), b"baseanother");
}

// Protocol ----------------------------------------------------------------------------------------------------

#[test]
fn versions_keep_counting_over_removal() {
    let dir = directory();
    let engine = open(dir.path());
    write(&engine, 0, 1, 0, &noise(2 * PAGE, 1));
    remove(&engine, 0, 2);
    assert_eq!(read(&engine, 0, 0, 10), Err(Status::NotFound));
    let state = engine.lookup(key(0)).unwrap().unwrap();
    assert!(state.committed.unwrap().removed);
    assert_eq!(state.writers.len(), 1, "a late retry is still recognised");
    assert_eq!(stage_write(&engine, 0, 2, 0, b"late"), Ok(Staged::Committed));
    write(&engine, 0, 3, 2, b"new");
    assert_eq!(read(&engine, 0, 0, 10).unwrap(), b"\0\0new");
    assert_no_leak(&engine);
}

#[test]
fn tombstones_are_forgotten_by_age_and_living_chunks_are_not() {
    let dir = directory();
    let engine = open(dir.path());
    for index in 0..3 {
        write(&engine, index, 1, 0, b"x");
    }
    remove(&engine, 0, 2);
    engine.sync().unwrap();
    let round = engine.round();
    remove(&engine, 1, 2);
    assert_eq!(engine.usage(ChainId(1)).tombstones, 2);
    let old = (key(0), stamp(2));
    assert_eq!(engine.old_tombstones(ChainId(1), None, round, 10), Ok((vec![old], None)));
    let last = Some(key(0).chunk);
    assert_eq!(engine.old_tombstones(ChainId(1), None, round, 1), Ok((vec![old], last)));
    assert_eq!(engine.old_tombstones(ChainId(1), last, round, 1), Ok((vec![], Some(key(1).chunk))));
    assert_eq!(engine.forget(key(0), stamp(1)), Ok(false), "another one");
    assert_eq!(engine.forget(key(2), stamp(1)), Ok(false), "alive");
    assert_eq!(engine.forget(key(0), stamp(2)), Ok(true));
    assert_eq!(engine.forget(key(0), stamp(2)), Ok(false));
    assert_eq!(engine.lookup(key(0)), Ok(None));
    assert!(engine.lookup(key(1)).unwrap().is_some());
    assert_eq!(read(&engine, 2, 0, 1).unwrap(), b"x");
}

#[test]
fn the_floor_is_the_highest_version_forgotten_also_after_a_restart() {
    let dir = directory();
    let engine = open(dir.path());
    for index in 0..2 {
        write(&engine, index, 1, 0, b"x");
    }
    write(&engine, 1, 2, 0, b"x");
    remove(&engine, 1, 3);
    remove(&engine, 0, 2);
    assert_eq!(engine.floor(), Version(0));
    engine.forget(key(1), stamp(3)).unwrap();
    engine.forget(key(0), stamp(2)).unwrap();
    assert_eq!(engine.floor(), Version(3));
    drop(engine);
    let engine = open(dir.path());
    assert_eq!(engine.floor(), Version(3));
    assert_no_leak(&engine);
}

#[test]
fn a_fresh_update_follows_any_tombstone_with_a_lower_stamp() {
    let dir = directory();
    let engine = open(dir.path());
    write(&engine, 0, 1, 0, b"x");
    remove(&engine, 0, 2);
    let op = Op::Write { offset: 0, length: 3 };
    let bytes: &[u8] = b"new";
    let fresh = |chain_version, version| Update {
        stamp: Stamp { chain_version: ChainVersion(chain_version), version: Version(version) },
        fresh: true,
        ..update(0, version, op)
    };
    let stage = |update: &Update| engine.stage(update, &bytes).map(|outcome| outcome.staged);
    assert_eq!(stage(&Update { fresh: false, ..fresh(1, 9) }), Err(Status::MissingVersion));
    assert_eq!(stage(&fresh(1, 2)), Ok(Staged::Committed), "a late duplicate");
    // The head had forgotten the chunk, and counts from another number.
    assert_eq!(stage(&fresh(2, 1)), Ok(Staged::Pending));
    engine.commit(key(0), Version(1), ChainVersion(2)).unwrap();
    assert_eq!(read(&engine, 0, 0, 10).unwrap(), b"new");
    assert_eq!(stage(&fresh(3, 9)), Err(Status::MissingVersion), "here is something");
    let other = Update { key: key(5), ..fresh(2, 7) };
    assert_eq!(stage(&other), Ok(Staged::Pending), "a chunk that was never here");
}

#[test]
fn a_pending_version_keeps_its_tombstone_from_being_purged() {
    let dir = directory();
    let engine = open(dir.path());
    write(&engine, 0, 1, 0, b"x");
    remove(&engine, 0, 2);
    stage_write(&engine, 0, 3, 0, b"y").unwrap();
    assert_eq!(engine.old_tombstones(ChainId(1), None, u64::MAX, 10), Ok((vec![], None)));
    assert_eq!(engine.forget(key(0), stamp(2)), Ok(false));
    engine.commit(key(0), Version(3), ChainVersion(1)).unwrap();
    assert_eq!(read(&engine, 0, 0, 1).unwrap(), b"y");
}

#[test]
fn a_pending_version_gives_way_only_to_a_newer_chain_version() {
    let dir = directory();
    let engine = open(dir.path());
    stage_write(&engine, 0, 1, 0, b"first").unwrap();
    let op = Op::Write { offset: 0, length: 6 };
    let mut other = Update { tag: tag(2, 1), ..update(0, 1, op) };
    let bytes: &[u8] = b"second";
    assert_eq!(engine.stage(&other, &bytes), Err(Status::Busy));
    other.stamp.chain_version = ChainVersion(2);
    assert_eq!(engine.stage(&other, &bytes).unwrap().staged, Staged::Pending);
    other.stamp.chain_version = ChainVersion(1);
    assert_eq!(engine.stage(&other, &bytes), Err(Status::WrongChainVersion));
    let committed = engine.commit(key(0), Version(1), ChainVersion(1)).unwrap();
    assert_eq!(committed.stamp.chain_version, ChainVersion(2), "a stamp never goes back (§5.12, 2)");
    assert_eq!(read(&engine, 0, 0, 10).unwrap(), b"second");
    assert_eq!(stage_write(&engine, 0, 2, 0, b"x"), Err(Status::WrongChainVersion));
    assert_no_leak(&engine);
}

/// N-to-1: as many clients as there are write one chunk, and each is remembered until it says that it need not be.
#[test]
fn hundreds_of_writers_are_remembered_until_they_are_settled() {
    let dir = directory();
    let engine = open(dir.path());
    let by = |client: u64, version: u64| {
        let op = Op::Write { offset: 0, length: 1 };
        engine.stage(&Update { tag: tag(client, 9), ..update(0, version, op) }, &vec![7])?;
        engine.commit(key(0), Version(version), ChainVersion(1))
    };
    let writers = || engine.lookup(key(0)).unwrap().unwrap().writers;
    for client in 1..=400 {
        by(client, client).unwrap();
    }
    assert_eq!(writers().len(), 400);
    for client in 1..=400 {
        engine.writers().settle(ClientId(client), if client == 33 { 9 } else { 10 });
    }
    by(401, 401).unwrap();
    let known = writers();
    let known: Vec<_> = known.iter().map(|record| (record.tag.client.0, record.version.0)).collect();
    assert_eq!(known, [(33, 33), (401, 401)], "of client 33 the last request may come again");
}

#[test]
fn a_replacement_brings_content_stamp_and_writers() {
    let dir = directory();
    let engine = open(dir.path());
    write(&engine, 0, 1, 0, b"mine");
    stage_write(&engine, 0, 2, 0, b"undecided").unwrap();
    let record = WriterRecord { tag: tag(42, 17), version: Version(8), round: engine.round() };
    let mut payload = noise(3 * PAGE + 5, 4);
    let content = payload.clone();
    payload.extend(record.encode());
    let op = Op::Replace { length: content.len() as u32, writers: 1, removed: false };
    let outcome = engine.stage(&Update { tag: tag(0, 0), ..update(0, 9, op) }, &payload).unwrap();
    assert_eq!(outcome.staged, Staged::Committed);
    assert_eq!(engine.commit(key(0), Version(9), ChainVersion(1)).unwrap().stamp, stamp(9));
    let state = engine.lookup(key(0)).unwrap().unwrap();
    assert_eq!((state.pending, state.writers), (None, vec![record]));
    assert_eq!(read(&engine, 0, 0, 4 * PAGE).unwrap(), content);
    let op = Op::Replace { length: 0, writers: 0, removed: true };
    engine.stage(&update(0, 12, op), &Vec::new()).unwrap();
    assert_eq!(read(&engine, 0, 0, 1), Err(Status::NotFound));
    assert_eq!(engine.lookup(key(0)).unwrap().unwrap().version(), Version(12));
    assert_no_leak(&engine);
}

#[test]
fn impossible_updates_are_refused() {
    let dir = directory();
    let engine = open(dir.path());
    let bytes = vec![1; 8];
    for op in [
        Op::Write { offset: 0, length: 0 },
        Op::Write { offset: 0, length: 7 },
        Op::Write { offset: CHUNK_BYTES_MAX - 7, length: 8 },
        Op::Write { offset: u32::MAX, length: 8 },
        Op::Truncate { length: 8 },
        Op::Remove,
        Op::Replace { length: 9, writers: 0, removed: false },
        Op::Replace { length: 8, writers: 1, removed: false },
        Op::Replace { length: 8, writers: u32::MAX, removed: false },
        Op::Replace { length: u32::MAX, writers: 0, removed: false },
        Op::Replace { length: 8, writers: 0, removed: true },
    ] {
        assert_eq!(engine.stage(&update(0, 1, op), &bytes), Err(Status::Invalid), "{op:?}");
    }
    let op = Op::Truncate { length: CHUNK_BYTES_MAX + 1 };
    assert_eq!(engine.stage(&update(0, 1, op), &Vec::new()), Err(Status::Invalid));
    assert_eq!(stage_write(&engine, 0, 0, 0, b"x"), Err(Status::Invalid));
    assert_eq!(engine.lookup(key(0)), Ok(None));
}

#[test]
fn the_largest_chunk_works() {
    let dir = directory();
    let engine = open(dir.path());
    write(&engine, 0, 1, CHUNK_BYTES_MAX - 3, b"end");
    assert_eq!(read(&engine, 0, CHUNK_BYTES_MAX - 4, 10).unwrap(), b"\0end");
    truncate(&engine, 0, 2, 1);
    assert_eq!(read(&engine, 0, 0, 10).unwrap(), b"\0");
    assert_no_leak(&engine);
}

// Listings ----------------------------------------------------------------------------------------------------

#[test]
fn listings_stay_within_their_chain_and_content() {
    let dir = directory();
    let engine = open(dir.path());
    let at = |chain, content, index| ChunkKey {
        chain: ChainId(chain),
        chunk: ChunkId { content: ContentId(content), index },
    };
    let keys = [
        at(1, 1, 0),
        at(1, 1, u32::MAX),
        at(1, 2, 255),
        at(1, 2, 256),
        at(1, u64::MAX, 3),
        at(2, 2, 300),
        at(u32::MAX, u64::MAX, u32::MAX),
    ];
    for key in keys {
        let op = Op::Write { offset: 0, length: 4 };
        let update = Update { key, stamp: stamp(1), op, tag: tag(1, 1), origin: Origin::Chain, fresh: false };
        engine.stage(&update, &vec![key.chunk.index as u8; 4]).unwrap();
        engine.commit(key, Version(1), ChainVersion(1)).unwrap();
    }
    let all = engine.list(ChainId(1), None, 100).unwrap();
    assert_eq!(
        all.iter().map(|line| line.chunk).collect::<Vec<_>>(),
        keys[..5].iter().map(|k| k.chunk).collect::<Vec<_>>()
    );
    let mut paged = Vec::new();
    while let page = engine.list(ChainId(1), paged.last().copied(), 2).unwrap()
        && !page.is_empty()
    {
        paged.extend(page.iter().map(|line| line.chunk));
    }
    assert_eq!(paged.len(), 5);
    assert_eq!(engine.list(ChainId(u32::MAX), None, 9).unwrap().len(), 1);
    assert_eq!(engine.last_chunk(ChainId(1), ContentId(2)), Ok(Some((256, 4))));
    assert_eq!(engine.last_chunk(ChainId(1), ContentId(1)), Ok(Some((u32::MAX, 4))));
    assert_eq!(engine.last_chunk(ChainId(1), ContentId(3)), Ok(None));
    assert_eq!(engine.content_chunks(ChainId(1), ContentId(2), 256, 9).unwrap().len(), 1);
    assert_eq!(engine.chains(), vec![ChainId(1), ChainId(2), ChainId(u32::MAX)]);
    while !engine.remove_chain(ChainId(1), 2).unwrap() {}
    assert_eq!(engine.chains(), vec![ChainId(2), ChainId(u32::MAX)]);
    assert_no_leak(&engine);
}

#[test]
fn the_last_chunk_is_not_a_tombstone() {
    let dir = directory();
    let engine = open(dir.path());
    write(&engine, 3, 1, 0, b"abc");
    write(&engine, 8, 1, 0, b"x");
    remove(&engine, 8, 2);
    stage_write(&engine, 9, 1, 0, b"pending").unwrap();
    assert_eq!(engine.last_chunk(ChainId(1), ContentId(2)), Ok(Some((3, 3))));
    let found = engine.content_chunks(ChainId(1), ContentId(2), 0, 10).unwrap();
    assert_eq!(found.iter().map(|line| line.chunk.index).collect::<Vec<_>>(), vec![3, 9]);
    engine.core.index.put_raw(key(1), b"not a record");
    assert_eq!(engine.last_chunk(ChainId(1), ContentId(2)), Ok(Some((3, 3))), "no record before it is read");
}

// Damage ------------------------------------------------------------------------------------------------------

#[test]
fn a_flipped_bit_is_found_by_whole_and_partial_reads_and_repaired_by_a_replacement() {
    let dir = directory();
    let engine = open(dir.path());
    let bytes = noise(4 * PAGE + 100, 9);
    write(&engine, 0, 1, 0, &bytes);
    damage(&engine, dir.path(), 0, 2 * PAGE + 5000);
    assert_eq!(read(&engine, 0, 0, 5 * PAGE), Err(Status::Checksum), "whole");
    assert_eq!(read(&engine, 0, 2 * PAGE as u32, 10), Err(Status::Checksum), "another part of the page");
    assert_eq!(read(&engine, 0, 0, 2 * PAGE).unwrap(), bytes[..2 * PAGE], "the pages before are fine");
    assert_eq!(read(&engine, 0, 3 * PAGE as u32, 2 * PAGE).unwrap(), bytes[3 * PAGE..]);
    let expected = Damage { key: key(0), version: Version(1), page: 2 };
    assert_eq!(engine.damage(), vec![expected]);
    assert_eq!(engine.verify(key(0)), Ok(vec![expected]));
    // A write that needs the damaged bytes is refused, one that covers them heals.
    assert_eq!(stage_write(&engine, 0, 2, 2 * PAGE as u32, b"x"), Err(Status::Checksum));
    write(&engine, 0, 2, 0, b"elsewhere");
    assert_eq!(engine.damage(), vec![Damage { version: Version(2), ..expected }]);
    let install = Install { key: key(0), stamp: stamp(2), removed: false, tag: tag(0, 0), writers: &[] };
    engine.install(&install, &bytes).unwrap();
    assert_eq!(engine.damage(), vec![]);
    assert_eq!(engine.verify(key(0)), Ok(vec![]));
    assert_eq!(read(&engine, 0, 0, 5 * PAGE).unwrap(), bytes);
    assert_no_leak(&engine);
}

#[test]
fn a_flipped_bit_in_the_last_partial_page_is_found() {
    let dir = directory();
    let engine = open(dir.path());
    let bytes = noise(PAGE + 777, 3);
    write(&engine, 0, 1, 0, &bytes);
    damage(&engine, dir.path(), 0, PAGE + 776);
    assert_eq!(read(&engine, 0, PAGE as u32, 777), Err(Status::Checksum));
    assert_eq!(read(&engine, 0, PAGE as u32 + 3, 5), Err(Status::Checksum));
}

#[test]
fn a_truncated_or_missing_block_file_is_reported_and_its_chunks_read_as_damaged() {
    let dir = directory();
    let large = noise(30 * PAGE, 1);
    let path = {
        let engine = open(dir.path());
        write(&engine, 0, 1, 0, &large);
        write(&engine, 1, 1, 0, b"small, in another lane");
        place_on_disk(&engine, dir.path(), 0, 0).0
    };
    OpenOptions::new().write(true).open(&path).unwrap().set_len(10 * PAGE as u64).unwrap();
    for _ in 0..2 {
        let engine = open(dir.path());
        assert_eq!(engine.open_report().chunks, 2);
        assert_eq!(read(&engine, 0, 0, 30 * PAGE), Err(Status::Checksum));
        assert_eq!(read(&engine, 1, 0, 100).unwrap(), b"small, in another lane");
        assert_eq!(engine.verify(key(1)), Ok(vec![]));
        drop(engine);
        fs::remove_file(&path).unwrap();
    }
    let engine = open(dir.path());
    assert_eq!(engine.open_report().damaged_segments.len(), 1);
    let install = Install { key: key(0), stamp: stamp(1), removed: false, tag: tag(0, 0), writers: &[] };
    engine.install(&install, &large).unwrap();
    assert_eq!(read(&engine, 0, 0, 30 * PAGE).unwrap(), large);
}

/// A file is made and then given its length; `kill -9` between the two leaves it empty.
#[test]
fn a_block_file_that_was_being_made_is_no_damage() {
    let dir = directory();
    let path = {
        let engine = open(dir.path());
        write(&engine, 0, 1, 0, b"bytes");
        place_on_disk(&engine, dir.path(), 0, 0).0
    };
    let unfinished = path.with_file_name("00000007.blk");
    fs::File::create(&unfinished).unwrap();
    let engine = open(dir.path());
    assert!(engine.open_report().damaged_segments.is_empty());
    assert_eq!(fs::metadata(&unfinished).unwrap().len(), fs::metadata(&path).unwrap().len());
    assert_eq!(read(&engine, 0, 0, 5).unwrap(), b"bytes");
}

/// A caller that changes its own buffer while we verify in it is not a damaged disk.
#[test]
fn bytes_changed_in_the_callers_memory_are_read_again() {
    struct Meddling<'a>(&'a mut [u8]);
    impl Sink for Meddling<'_> {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn fill(&mut self, offset: usize, length: usize, call: Fill<'_>) -> io::Result<usize> {
            let count = call(&mut self.0[offset..offset + length])?;
            self.0[offset] ^= 0xff;
            Ok(count)
        }
        fn crc32c(&self, offset: usize, length: usize) -> u32 {
            crc_fast::crc32_iscsi(&self.0[offset..offset + length])
        }
        fn copy_from(&mut self, offset: usize, bytes: &[u8]) {
            self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        fn zero(&mut self, offset: usize, length: usize) {
            self.0[offset..offset + length].fill(0);
        }
    }
    let dir = directory();
    let engine = open(dir.path());
    let bytes = noise(3 * PAGE, 1);
    write(&engine, 0, 1, 0, &bytes);
    let mut into = vec![0; 3 * PAGE];
    engine.read(key(0), 0, &mut Meddling(&mut into)).unwrap();
    assert_eq!(into, bytes);
    assert_eq!(engine.damage(), vec![]);
}

/// A payload in shared memory that changes after we looked at it must not poison the chunk.
#[test]
fn a_payload_that_changes_while_it_is_written_is_stored_as_one_of_its_states() {
    struct Changing(AtomicU64);
    impl Source for Changing {
        fn len(&self) -> usize {
            3 * PAGE
        }
        fn copy_to(&self, _offset: usize, into: &mut [u8]) {
            into.fill(self.0.fetch_add(1, Ordering::Relaxed) as u8);
        }
    }
    let dir = directory();
    let engine = open(dir.path());
    let op = Op::Write { offset: 0, length: 3 * PAGE as u32 };
    engine.stage(&update(0, 1, op), &Changing(AtomicU64::new(0))).unwrap();
    engine.commit(key(0), Version(1), ChainVersion(1)).unwrap();
    assert_eq!(read(&engine, 0, 0, 3 * PAGE).unwrap().len(), 3 * PAGE);
    assert_eq!(engine.verify(key(0)), Ok(vec![]));
}

// Readers and writers -----------------------------------------------------------------------------------------

/// A sink that stops in the middle of a read until the test resumes it.
struct Pausing<'a> {
    bytes: Vec<u8>,
    arrived: &'a Barrier,
    resume: &'a Barrier,
    has_paused: bool,
}

impl Sink for Pausing<'_> {
    fn len(&self) -> usize {
        self.bytes.len()
    }
    fn fill(&mut self, offset: usize, length: usize, call: Fill<'_>) -> io::Result<usize> {
        if !std::mem::replace(&mut self.has_paused, true) {
            self.arrived.wait();
            self.resume.wait();
        }
        call(&mut self.bytes[offset..offset + length])
    }
    fn crc32c(&self, offset: usize, length: usize) -> u32 {
        crc_fast::crc32_iscsi(&self.bytes[offset..offset + length])
    }
    fn copy_from(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
    fn zero(&mut self, offset: usize, length: usize) {
        self.bytes[offset..offset + length].fill(0);
    }
}

#[test]
fn what_is_not_in_memory_is_fetched_by_a_read_that_does_not_wait() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let bytes = noise(40 * PAGE, 1);
    write(&engine, 0, 1, 0, &bytes);
    let mut into = vec![0; bytes.len()];
    let mut cached = |offset: usize, length: usize| {
        let read = engine.read_cached(key(0), offset as u32, &mut &mut into[..length]).unwrap();
        read.map(|outcome| into[..outcome.length as usize].to_vec())
    };
    assert_eq!(cached(0, 40 * PAGE), Some(bytes.clone()));
    if !engine.drop_cached() {
        return;
    }
    for range in [PAGE + 5..PAGE + 10, 0..40 * PAGE] {
        // The kernel may read ahead what the drop was to take.
        let is_none = (0..1000).any(|_| engine.drop_cached() && cached(range.start, range.len()).is_none());
        assert!(is_none, "bytes that are not in memory are not waited for");
        let mut found = None;
        while found.is_none() {
            std::thread::yield_now();
            found = cached(range.start, range.len());
        }
        assert!(found.unwrap() == bytes[range], "other bytes than were written");
    }
    assert_eq!(engine.read_cached(key(1), 0, &mut &mut into[..]), Err(Status::NotFound));
}

/// Pages a reader holds are not used again.
#[test]
fn pages_are_not_used_again_while_a_reader_holds_them() {
    let dir = directory();
    let engine = open(dir.path());
    let old = noise(20 * PAGE, 1);
    write(&engine, 0, 1, 0, &old);
    let (arrived, resume) = (Barrier::new(2), Barrier::new(2));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut sink =
                Pausing { bytes: vec![0; 20 * PAGE], arrived: &arrived, resume: &resume, has_paused: false };
            let outcome = engine.read(key(0), 0, &mut sink).unwrap();
            (outcome.stamp, sink.bytes)
        });
        arrived.wait();
        // Overwritten, removed, synced; then enough new data to take every free page of the block file.
        write(&engine, 0, 2, 0, &noise(20 * PAGE, 2));
        remove(&engine, 0, 3);
        for index in 1..16 {
            engine.sync().unwrap();
            write(&engine, index, 1, 0, &noise(20 * PAGE, 3));
        }
        resume.wait();
        assert_eq!(reader.join().unwrap(), (stamp(1), old));
    });
    assert_no_leak(&engine);
}

/// On a disk that is nearly full there may be no further write that would free them.
#[test]
fn pages_that_a_reader_held_through_the_last_round_are_freed_though_nothing_is_written_again() {
    let dir = directory();
    let engine = open(dir.path());
    write(&engine, 0, 1, 0, &noise(20 * PAGE, 1));
    engine.sync().unwrap();
    let (_slot, reader) = engine.core.record(key(0)).unwrap();
    remove(&engine, 0, 2);
    write(&engine, 1, 1, 0, &noise(PAGE, 2));
    engine.sync().unwrap();
    assert_eq!(engine.core.deferred_free.lock().pages(), 20, "they have a reader");
    let rounds = engine.core.group_commit.count();
    engine.sync().unwrap();
    assert_eq!(engine.core.deferred_free.lock().pages(), 20, "he is still there");
    drop(reader);
    engine.sync().unwrap();
    assert_eq!(engine.core.deferred_free.lock().pages(), 0);
    assert_eq!(engine.core.pages.lock().used(), 1);
    assert_eq!(engine.core.group_commit.count(), rounds, "there was nothing to flush");
}

/// A reader waits neither for a pending write nor for one that is being written.
#[test]
fn a_read_does_not_wait_for_a_write_in_progress() {
    struct Slow<'a>(&'a Barrier, &'a Barrier, AtomicBool);
    impl Source for Slow<'_> {
        fn len(&self) -> usize {
            PAGE
        }
        fn copy_to(&self, _offset: usize, into: &mut [u8]) {
            if !self.2.swap(true, Ordering::Relaxed) {
                self.0.wait();
                self.1.wait();
            }
            into.fill(9);
        }
    }
    let dir = directory();
    let engine = open(dir.path());
    write(&engine, 0, 1, 0, &vec![1; PAGE]);
    let (arrived, resume) = (Barrier::new(2), Barrier::new(2));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let op = Op::Write { offset: 0, length: PAGE as u32 };
            engine.stage(&update(0, 2, op), &Slow(&arrived, &resume, AtomicBool::new(false)))
        });
        arrived.wait();
        assert_eq!(read(&engine, 0, 0, PAGE).unwrap(), vec![1; PAGE]);
        assert_eq!(engine.lookup(key(0)).unwrap().unwrap().pending, None);
        resume.wait();
        writer.join().unwrap().unwrap();
    });
    assert_eq!(read(&engine, 0, 0, PAGE).unwrap(), vec![1; PAGE]);
}

/// 3FS's batch remove used metadata it had read before it took the locks.
#[test]
fn removing_many_looks_again_under_each_lock() {
    let dir = directory();
    let engine = open(dir.path());
    write(&engine, 0, 1, 0, b"x");
    remove(&engine, 0, 2);
    // The chunk comes back between the listing and its turn.
    let is_tombstone =
        |record: &super::state::Record| record.committed.as_ref().is_some_and(|state| state.removed);
    write(&engine, 0, 3, 0, b"back");
    assert_eq!(engine.core.erase_if(key(0), is_tombstone), Ok(false));
    assert_eq!(read(&engine, 0, 0, 4).unwrap(), b"back");
}

// Crashes -----------------------------------------------------------------------------------------------------

/// Data is written, the index is not: the old state stands, and the pages are free again.
#[test]
fn a_crash_between_data_and_index_leaves_the_old_state() {
    let dir = directory();
    let mut expected = noise(2 * PAGE + 500, 1);
    {
        let engine = open(dir.path());
        write(&engine, 0, 1, 0, &expected);
        let record = engine.core.record(key(0)).unwrap().1;
        let base = record.committed.as_ref().unwrap();
        let payload = noise(3 * PAGE, 2);
        for offset in [0, PAGE + 7, 2 * PAGE + 500] {
            let length = (offset + payload.len()).max(expected.len()) as u32;
            let change = super::page_writer::Change { offset, payload: &payload, length, sparse: false };
            engine.core.write_content(key(0), base, &change, Origin::Client).unwrap();
        }
    }
    let engine = open(dir.path());
    assert_eq!(read(&engine, 0, 0, 9 * PAGE).unwrap(), expected);
    assert_no_leak(&engine);
    write(&engine, 0, 2, expected.len() as u32, b"resumes");
    expected.extend(b"resumes");
    assert_eq!(read(&engine, 0, 0, 9 * PAGE).unwrap(), expected);
}

/// A pending append is written in place behind the committed bytes. What replaces it must not touch them before the
/// index says so.
#[test]
fn a_crash_while_a_pending_version_is_replaced_leaves_the_old_one() {
    let dir = directory();
    {
        let engine = open(dir.path());
        write(&engine, 0, 1, 0, b"base");
        stage_write(&engine, 0, 2, 4, b"pending").unwrap();
        let record = engine.core.record(key(0)).unwrap().1;
        let base = record.settled().unwrap();
        let payload = b"REPLACED".to_vec();
        let change = super::page_writer::Change { offset: 4, payload: &payload, length: 12, sparse: false };
        engine.core.write_content(key(0), &base, &change, Origin::Chain).unwrap();
    }
    let engine = open(dir.path());
    assert_eq!(engine.open_report().pending, vec![key(0)]);
    engine.commit(key(0), Version(2), ChainVersion(1)).unwrap();
    assert_eq!(read(&engine, 0, 0, 20).unwrap(), b"basepending");
}

/// A copy of the directory as power loss leaves it: the index is there, and of the data what was synced.
fn after_power_loss(engine: &Engine, dir: &Path, lost: &[(u32, usize)]) -> tempfile::TempDir {
    let copy = directory();
    copy_tree(dir, copy.path());
    fs::write(copy.path().join("boot"), "another kernel").unwrap();
    for &(index, page) in lost {
        let record = engine.core.record(key(index)).unwrap().1;
        let state = record.pending.as_ref().map_or(record.committed.as_ref(), |pending| Some(&pending.state));
        let number = state.unwrap().pages_between(page, page + 1)[0];
        let path = copy.path().join(format!("blocks/{:08}.blk", number / 64));
        let file = OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(&[0; PAGE], u64::from(number % 64) * PAGE as u64).unwrap();
    }
    copy
}

fn copy_tree(source: &Path, target: &Path) {
    for entry in fs::read_dir(source).unwrap() {
        let entry = entry.unwrap();
        let to = target.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir(&to).unwrap();
            copy_tree(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// I7: data that was never synced is lost, the index that names it is not.
#[test]
fn power_loss_leaves_the_synced_state_or_a_later_one() {
    let dir = directory();
    let engine = open(dir.path());
    let first = noise(3 * PAGE, 1);
    write(&engine, 0, 1, 0, &first);
    write(&engine, 1, 1, 0, &first);
    write(&engine, 2, 1, 0, &first);
    engine.sync().unwrap();
    for version in 2..5 {
        write(&engine, 0, version, 100, &noise(2 * PAGE, version as usize));
        write(&engine, 1, version, 100, &noise(2 * PAGE, version as usize));
    }
    stage_write(&engine, 2, 2, PAGE as u32, b"pending").unwrap();
    write(&engine, 3, 1, 0, b"new");
    // Whatever else is written meanwhile takes none of the old pages.
    for index in 10..14 {
        write(&engine, index, 1, 0, &noise(10 * PAGE, 9));
    }
    let copy = after_power_loss(&engine, dir.path(), &[(0, 1), (2, 1), (3, 0)]);
    let after = open(copy.path());
    assert_eq!(after.open_report().fallen_back, vec![key(0), key(2), key(3)]);
    assert_eq!(read(&after, 0, 0, 4 * PAGE).unwrap(), first, "the synced state");
    let state = after.lookup(key(0)).unwrap().unwrap();
    assert_eq!((state.version(), state.writers.len()), (Version(1), 0));
    assert_eq!(read(&after, 1, 0, 4 * PAGE), read(&engine, 1, 0, 4 * PAGE), "the newest, which is intact");
    assert_eq!(read(&after, 2, 0, 4 * PAGE).unwrap(), first);
    assert_eq!(after.lookup(key(2)).unwrap().unwrap().pending, None);
    assert_eq!(after.lookup(key(3)), Ok(None));
    for index in [0, 1, 2, 10, 11, 12, 13] {
        assert_eq!(after.verify(key(index)), Ok(vec![]));
    }
    assert_no_leak(&after);
    // What fell back is an ordinary chunk.
    write(&after, 0, 2, 0, b"again");
    drop(after);
    assert_eq!(open(copy.path()).open_report().fallen_back, vec![]);
}

#[test]
fn what_was_synced_needs_no_older_state() {
    let dir = directory();
    let engine = open(dir.path());
    let fallbacks = || -> Vec<u64> {
        let record = engine.core.record(key(0)).unwrap().1;
        record.fallbacks.iter().map(|state| state.stamp.version.0).collect()
    };
    write(&engine, 0, 1, 0, b"one");
    write(&engine, 0, 2, 0, b"two");
    assert_eq!(fallbacks(), [0; 0], "nothing was durable yet");
    engine.sync().unwrap();
    write(&engine, 0, 3, 0, b"three");
    write(&engine, 0, 4, 0, b"four");
    assert_eq!(fallbacks(), [2]);
    engine.sync().unwrap();
    write(&engine, 0, 5, 0, b"five");
    assert_eq!(fallbacks(), [4]);
    engine.sync().unwrap();
    stage_write(&engine, 0, 6, 0, b"six").unwrap();
    assert_eq!(fallbacks(), [0; 0], "the committed state is durable itself");
}

/// A chunk that a round of `sync` meets while it is updated, again and again.
struct Busy {
    engine: Arc<Engine>,
    /// What was written as each version, from 1 on.
    contents: crate::lock::Mutex<Vec<Vec<u8>>>,
    /// The block files as the last flush left them.
    flushed: tempfile::TempDir,
}

impl Busy {
    const BYTES: usize = 2 * PAGE + 100;

    fn new(dir: &Path) -> Arc<Busy> {
        let (engine, contents) = (Arc::new(open(dir)), crate::lock::Mutex::new(Vec::new()));
        Arc::new(Busy { engine, contents, flushed: directory() })
    }

    fn committed(&self) -> usize {
        self.contents.lock().len()
    }

    /// Replace one page of the chunk, or append to it in place.
    fn update(&self) {
        let mut contents = self.contents.lock();
        let version = contents.len() + 1;
        let mut content = contents.last().cloned().unwrap_or_default();
        let (offset, bytes) = match version {
            1 => (0, noise(Busy::BYTES, 1)),
            _ if version.is_multiple_of(3) => (content.len(), noise(50, version)),
            _ => (version % 2 * PAGE, noise(PAGE, version)),
        };
        content.resize(content.len().max(offset + bytes.len()), 0);
        content[offset..offset + bytes.len()].copy_from_slice(&bytes);
        write(&self.engine, 0, version as u64, offset as u32, &bytes);
        contents.push(content);
        // Takes pages as soon as they are free, and so would overwrite a state that is still needed.
        write(&self.engine, 1, version as u64, 0, &noise(2 * PAGE, 1000 + version));
    }

    /// Remember what is on the disk now.
    fn note_flushed(&self, dir: &Path) {
        fs::remove_dir_all(self.flushed.path().join("blocks")).ok();
        fs::create_dir(self.flushed.path().join("blocks")).unwrap();
        copy_tree(&dir.join("blocks"), &self.flushed.path().join("blocks"));
    }

    /// The directory after power loss: the index as it is now, or as it was in `index`, and of the block files the pages
    /// that were flushed, and any of the others.
    fn lose_power(&self, dir: &Path, is_lost: &mut dyn FnMut() -> bool) -> tempfile::TempDir {
        let copy = directory();
        copy_tree(dir, copy.path());
        fs::write(copy.path().join("boot"), "another kernel").unwrap();
        for entry in fs::read_dir(copy.path().join("blocks")).unwrap() {
            let path = entry.unwrap().path();
            let mut now = fs::read(&path).unwrap();
            let flushed = fs::read(self.flushed.path().join("blocks").join(path.file_name().unwrap()));
            let flushed = flushed.unwrap_or_else(|_| vec![0; now.len()]);
            for (now, flushed) in now.chunks_mut(PAGE).zip(flushed.chunks(PAGE)) {
                if is_lost() {
                    now.copy_from_slice(flushed);
                }
            }
            fs::write(&path, now).unwrap();
        }
        copy
    }

    /// What power loss leaves is version `promised` or a later one, whole.
    fn check(&self, copy: &Path, promised: usize) {
        let after = open(copy);
        let version = after.lookup(key(0)).unwrap().map_or(0, |state| state.version().0) as usize;
        assert!(version >= promised, "version {promised} was promised, and there is {version}");
        if version > 0 {
            let content = read(&after, 0, 0, 1 << 20);
            assert!(
                content.as_ref() == Ok(&self.contents.lock()[version - 1]),
                "version {version} is damaged"
            );
        }
        assert_no_leak(&after);
    }
}

use super::faults::Moment;

/// What a round makes durable, and what is written while it runs, is not written over before a later round ends, and is
/// found after power loss at every moment of it, however often this repeats.
#[test]
fn power_loss_during_a_round_keeps_what_was_synced_before() {
    let dir = directory();
    let busy = Busy::new(dir.path());
    let promised = Arc::new(AtomicU64::new(0));
    let (other, path) = (Arc::downgrade(&busy), dir.path().to_owned());
    let during = promised.clone();
    *busy.engine.core.segments.faults.hook.lock() = Some(Box::new(move |moment| {
        let Some(busy) = other.upgrade() else { return };
        busy.update();
        if moment == Moment::Flushed {
            busy.note_flushed(&path);
            busy.update();
        }
        busy.check(busy.lose_power(&path, &mut || true).path(), during.load(Ordering::Relaxed) as usize);
    }));
    for round in 0..4 {
        for _ in 0..round % 3 {
            busy.update();
        }
        let before = busy.committed() as u64;
        busy.engine.sync().unwrap();
        promised.store(before, Ordering::Relaxed);
        busy.check(busy.lose_power(dir.path(), &mut || true).path(), before as usize);
        busy.update();
        busy.update();
        busy.check(busy.lose_power(dir.path(), &mut || true).path(), before as usize);
        // Of what was not flushed some pages reached the disk.
        let mut coin = round as u64;
        let mut flip = || {
            coin = coin.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            coin >> 63 == 1
        };
        busy.check(busy.lose_power(dir.path(), &mut flip).path(), before as usize);
    }
    *busy.engine.core.segments.faults.hook.lock() = None;
}

// Failing disks -----------------------------------------------------------------------------------------------

fn fault(skip: u32, count: u32, errno: Errno) -> Fault {
    Fault { skip, count, errno: errno.raw_os_error() }
}

#[test]
fn a_failed_read_is_an_io_error_and_the_next_may_succeed() {
    let dir = directory();
    let engine = open(dir.path());
    write(&engine, 0, 1, 0, b"hello");
    *engine.core.segments.faults.read.lock() = fault(0, 1, Errno::IO);
    assert_eq!(read(&engine, 0, 0, 5), Err(Status::Io));
    assert_eq!(read(&engine, 0, 0, 5).unwrap(), b"hello");
}

#[test]
fn a_failed_write_leaves_the_old_state_and_gives_its_pages_back() {
    let dir = directory();
    let engine = open(dir.path());
    let old = noise(3 * PAGE, 1);
    write(&engine, 0, 1, 0, &old);
    for (errno, status) in
        [(Errno::IO, Status::Io), (Errno::NOSPC, Status::NoSpace), (Errno::DQUOT, Status::NoSpace)]
    {
        *engine.core.segments.faults.write.lock() = fault(0, 1, errno);
        assert_eq!(stage_write(&engine, 0, 2, 10, &noise(2 * PAGE, 2)), Err(status));
        assert_eq!(engine.lookup(key(0)).unwrap().unwrap().pending, None);
        assert_eq!(read(&engine, 0, 0, 3 * PAGE).unwrap(), old);
        assert_no_leak(&engine);
    }
    write(&engine, 0, 2, 0, b"again");
}

/// After a failed flush the content of the disk is unknown: no later sync may say that all is well.
#[test]
fn a_failed_sync_is_never_forgotten() {
    let dir = directory();
    let engine = open(dir.path());
    write(&engine, 0, 1, 0, b"hello");
    *engine.core.segments.faults.sync.lock() = fault(0, 1, Errno::IO);
    assert_eq!(engine.sync(), Err(Status::Io));
    assert_eq!(engine.sync(), Err(Status::Io));
    assert_eq!(stage_write(&engine, 0, 2, 0, b"x"), Err(Status::Io));
    assert_eq!(read(&engine, 0, 0, 5).unwrap(), b"hello", "reads continue");
}

#[test]
fn directory_reports_how_far_it_had_come_until_it_is_confirmed() {
    let dir = directory();
    let engine = open(dir.path());
    assert_eq!(engine.opened_round(), 0);
    engine.confirm().unwrap();
    write(&engine, 0, 1, 0, b"one");
    engine.sync().unwrap();
    let synced = engine.synced_round();
    drop(engine);
    for _ in 0..3 {
        let engine = open(dir.path());
        assert_eq!(engine.opened_round(), synced, "opening it brings nothing new");
        assert!(engine.synced_round() > synced);
    }
    let engine = open(dir.path());
    engine.confirm().unwrap();
    let synced = engine.synced_round();
    drop(engine);
    assert_eq!(open(dir.path()).opened_round(), synced);
}

#[test]
fn listing_since_a_round_shows_what_was_staged_since_and_what_is_pending() {
    let dir = directory();
    let engine = open(dir.path());
    for index in 0..4 {
        write(&engine, index, 1, 0, b"old");
    }
    assert_eq!(stage_write(&engine, 3, 2, 0, b"pending"), Ok(Staged::Pending));
    engine.sync().unwrap();
    let round = engine.round();
    write(&engine, 1, 2, 0, b"new");
    remove(&engine, 2, 2);
    let listed = |since| {
        let records = engine.list_since(ChainId(1), None, 10, since).unwrap();
        records.iter().map(|record| record.chunk.index).collect::<Vec<_>>()
    };
    assert_eq!(listed(0), [0, 1, 2, 3]);
    assert_eq!(listed(round), [1, 2, 3]);
}

#[test]
fn write_back_of_long_runs_begins_before_a_sync() {
    let dir = directory();
    let engine = open(dir.path());
    let begun = || engine.core.segments.faults.write_back_bytes.load(Ordering::Relaxed);
    write(&engine, 0, 1, 0, &noise(PAGE, 1));
    assert_eq!(begun(), 0, "the kernel gathers short ones");
    write(&engine, 1, 1, 0, &noise(32 * PAGE, 2));
    assert_eq!(begun(), 32 * PAGE);
    write(&engine, 1, 2, 5, &noise(100, 3));
    assert_eq!(begun(), 32 * PAGE);
}

#[test]
fn sync_flushes_only_what_was_written_since_the_last_round() {
    let dir = directory();
    let engine = open(dir.path());
    write(&engine, 0, 1, 0, b"hello");
    engine.sync().unwrap();
    let rounds = engine.core.group_commit.count();
    engine.sync().unwrap();
    assert_eq!(engine.core.group_commit.count(), rounds);
    write(&engine, 0, 2, 0, b"again");
    engine.sync().unwrap();
    assert_eq!(engine.core.group_commit.count(), rounds + 1);
    drop(engine);
    // What the process before has written is not known to be on the disk: opening counts a round that it may have been
    // in, and runs one.
    let engine = open(dir.path());
    assert_eq!(engine.core.group_commit.count(), rounds + 3);
}

#[test]
fn concurrent_syncs_share_rounds() {
    // A round is shared if another call comes meanwhile, and whether one does is up to the scheduler.
    let shared = (0..100).any(|_| {
        let rounds = rounds_of_forty_calls();
        assert!(rounds >= 5, "{rounds} rounds, and five calls one after the other");
        rounds < 40
    });
    assert!(shared, "each call has a round of its own");
}

fn rounds_of_forty_calls() -> u64 {
    // On a real disk: a round must take a moment to be shared.
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    std::thread::scope(|scope| {
        for index in 0..8 {
            let engine = &engine;
            scope.spawn(move || {
                for version in 1..=5 {
                    write(engine, index, version, 0, b"x");
                    engine.sync().unwrap();
                }
            });
        }
    });
    engine.core.group_commit.count()
}

// Directories -------------------------------------------------------------------------------------------------

#[test]
fn a_directory_is_opened_once() {
    let dir = directory();
    let engine = open(dir.path());
    assert!(matches!(Engine::open(dir.path(), options()), Err(OpenError::Locked { .. })));
    drop(engine);
    open(dir.path());
}

fn open_error(dir: &Path) -> OpenError {
    Engine::open(dir, options()).err().expect("it must not open")
}

#[test]
fn foreign_newer_and_damaged_directories_are_refused_and_left_alone() {
    let dir = directory();
    fs::write(dir.path().join("precious"), "data").unwrap();
    assert!(matches!(open_error(dir.path()), OpenError::Foreign { .. }));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

    let dir = directory();
    drop(open(dir.path()));
    let format = dir.path().join("FORMAT");
    let text = fs::read_to_string(&format).unwrap();
    for found in [0, 6] {
        fs::write(&format, text.replace("format 5", &format!("format {found}"))).unwrap();
        let error = open_error(dir.path());
        assert!(matches!(error, OpenError::Format { wanted: 5, .. }));
        let words = format!("chunk engine format {found}, and this release reads format 5; run the release");
        assert!(error.to_string().contains(&words), "{error}");
    }
    for broken in ["", "something else\nformat 1\n", "luciola chunk engine\nformat one\n"] {
        fs::write(&format, broken).unwrap();
        assert!(matches!(open_error(dir.path()), OpenError::Foreign { .. } | OpenError::Damaged { .. }));
    }
    fs::write(&format, [0xff, 0xfe]).unwrap();
    assert!(matches!(open_error(dir.path()), OpenError::Foreign { .. }));
    fs::write(&format, text).unwrap();
    open(dir.path());
}

#[test]
fn records_of_another_format_are_called_so_and_not_damaged() {
    let dir = directory();
    let engine = open(dir.path());
    write(&engine, 0, 1, 0, b"x");
    let mut foreign = vec![9, 0, 0, 0];
    foreign.extend(super::checksum::crc32c(&foreign).to_le_bytes());
    engine.core.index.put_raw(key(1), &foreign);
    drop(engine);
    let error = open_error(dir.path());
    assert!(matches!(error, OpenError::RecordFormat { found: 9, wanted: 3, .. }), "{error}");
}

/// A directory whose chunk 1 of three has a record that cannot be read.
fn with_an_unreadable_record() -> tempfile::TempDir {
    let dir = directory();
    let engine = open(dir.path());
    for index in 0..3 {
        write(&engine, index, 1, 0, &noise(2 * PAGE, index as usize));
    }
    let mut bytes = super::codec::encode_record(&engine.core.record(key(1)).unwrap().1);
    bytes[10] ^= 1;
    engine.core.index.put_raw(key(1), &bytes);
    drop(engine);
    dir
}

#[test]
fn an_unreadable_record_is_an_error_for_its_chunk_alone() {
    let dir = with_an_unreadable_record();
    for _ in 0..2 {
        let engine = open(dir.path());
        assert_eq!(engine.open_report().unreadable, [key(1)]);
        assert_eq!(engine.open_report().pending, []);
        assert_eq!(read(&engine, 1, 0, 10), Err(Status::Checksum), "not absent, which would be zeros");
        assert_eq!(engine.lookup(key(1)), Err(Status::Checksum));
        assert_eq!(stage_write(&engine, 1, 2, 0, b"x"), Err(Status::Checksum));
        for index in [0, 2] {
            assert_eq!(read(&engine, index, 0, 2 * PAGE).unwrap(), noise(2 * PAGE, index as usize));
        }
        let lines = engine.list(key(0).chain, None, 10).unwrap();
        assert_eq!(lines.iter().map(|line| line.is_unreadable).collect::<Vec<_>>(), [false, true, false]);
        assert_eq!(lines[1].committed, None);
        // The last chunk is readable, so the end of the content is known.
        assert_eq!(engine.last_chunk(key(0).chain, key(0).chunk.content), Ok(Some((2, 2 * PAGE as u32))));
        assert_no_leak(&engine);
    }
}

#[test]
fn an_unreadable_record_is_erased_and_written_again() {
    let dir = with_an_unreadable_record();
    let engine = open(dir.path());
    engine.erase(key(1)).unwrap();
    assert_eq!(engine.lookup(key(1)), Ok(None));
    write(&engine, 1, 1, 0, b"again");
    drop(engine);
    let engine = open(dir.path());
    assert_eq!(engine.open_report().unreadable, []);
    assert_eq!(read(&engine, 1, 0, 10).unwrap(), b"again");
    assert_eq!(read(&engine, 2, 0, 2 * PAGE).unwrap(), noise(2 * PAGE, 2), "pages are used once");
}

#[test]
fn a_chunk_that_its_predecessor_cannot_read_is_unreadable_unless_it_is_committed() {
    let dir = directory();
    let engine = open(dir.path());
    write(&engine, 0, 1, 0, b"kept");
    stage_write(&engine, 1, 1, 0, b"pending").unwrap();
    assert_eq!(engine.lookup(key(2)), Ok(None));
    assert_eq!([0, 1, 2].map(|index| engine.set_unreadable(key(index))), [Ok(false), Ok(true), Ok(true)]);
    assert_eq!(engine.set_unreadable(key(2)), Ok(true), "again");
    assert_eq!(read(&engine, 0, 0, 10).unwrap(), b"kept");
    assert_no_leak(&engine);
    for index in [1, 2] {
        assert_eq!(read(&engine, index, 0, 10), Err(Status::Checksum));
    }
    drop(engine);
    assert_eq!(open(dir.path()).open_report().unreadable, [key(1), key(2)]);
}

#[test]
fn removing_a_chain_removes_what_cannot_be_read() {
    let dir = with_an_unreadable_record();
    let engine = open(dir.path());
    assert_eq!(engine.remove_chain(key(0).chain, 10), Ok(true));
    drop(engine);
    assert_eq!(open(dir.path()).open_report(), &OpenReport::default());
}

#[test]
fn an_index_with_many_unreadable_records_is_refused() {
    let dir = directory();
    let engine = open(dir.path());
    for index in 0..=1000 {
        engine.core.index.put_unreadable(key(index)).unwrap();
    }
    drop(engine);
    let error = open_error(dir.path());
    assert!(error.to_string().contains("more than 1000 records"), "{error}");
}

/// An engine that has 20 chunks and was closed, and its index's newest journal: its bytes, of which as many are used.
fn with_a_journal() -> (tempfile::TempDir, PathBuf, Vec<u8>, usize) {
    let dir = directory();
    let engine = open(dir.path());
    for index in 0..20 {
        write(&engine, index, 1, 0, b"kept");
    }
    engine.sync().unwrap();
    drop(engine);
    let journals = fs::read_dir(dir.path().join("index")).unwrap().map(|entry| entry.unwrap().path());
    let path = journals.filter(|path| path.extension().is_some_and(|kind| kind == "jnl")).max().unwrap();
    let bytes = fs::read(&path).unwrap();
    let used = bytes.iter().rposition(|&byte| byte != 0).unwrap() + 1;
    (dir, path, bytes, used)
}

/// What was synced is not given up for a bit that has changed: other replicas have all of it.
#[test]
fn a_damaged_journal_is_cut_only_after_power_loss() {
    let (dir, path, mut bytes, used) = with_a_journal();
    bytes[used / 2] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let error = open_error(dir.path());
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
    assert!(
        error.to_string().contains("no power was lost") && error.to_string().contains("empty"),
        "{error}"
    );
    assert_eq!(fs::read(&path).unwrap(), bytes, "left as it was");
    fs::write(dir.path().join("boot"), "another kernel").unwrap();
    let engine = open(dir.path());
    let found = engine.list(ChainId(1), None, 100).unwrap().len();
    assert!(0 < found && found < 20, "{found}: those before the damage");
}

/// `kill -9` leaves the beginning of a batch.
#[test]
fn a_journal_that_ends_within_a_batch_opens_without_power_loss() {
    let (dir, path, mut bytes, used) = with_a_journal();
    bytes[used - 10..used].fill(0);
    fs::write(&path, &bytes).unwrap();
    let engine = open(dir.path());
    assert_eq!(engine.list(ChainId(1), None, 100).unwrap().len(), 20, "the last batch says what was synced");
}

#[test]
fn a_missing_index_is_not_made_again_once_the_directory_was_in_use() {
    let dir = directory();
    let engine = open(dir.path());
    write(&engine, 0, 1, 0, b"kept");
    drop(engine);
    let (index, away) = (dir.path().join("index"), dir.path().join("away"));
    fs::rename(&index, &away).unwrap();
    for _ in 0..2 {
        let error = open_error(dir.path());
        assert!(matches!(error, OpenError::Damaged { .. }) && error.to_string().contains("index"), "{error}");
        assert!(!index.exists());
    }
    // Its block files alone say so, too.
    fs::remove_file(dir.path().join("boot")).unwrap();
    assert!(matches!(open_error(dir.path()), OpenError::Damaged { .. }));
    fs::rename(&away, &index).unwrap();
    assert_eq!(read(&open(dir.path()), 0, 0, 10).unwrap(), b"kept");
}

#[test]
fn a_directory_whose_making_broke_off_before_it_had_an_index_opens() {
    let dir = directory();
    drop(open(dir.path()));
    for name in ["index", "blocks"] {
        fs::remove_dir_all(dir.path().join(name)).unwrap();
    }
    fs::remove_file(dir.path().join("boot")).unwrap();
    write(&open(dir.path()), 0, 1, 0, b"x");
}

/// The drawing of FORMAT in docs/formats.md.
#[test]
fn the_format_file_is_as_drawn() {
    let dir = directory();
    drop(Engine::open(dir.path(), EngineOptions { identity: 0x1f << 120, ..options() }).unwrap());
    let text = fs::read_to_string(dir.path().join("FORMAT")).unwrap();
    let lines = "luciola chunk engine\nformat 5\npage_bytes 16384\nsegment_bytes 1048576\n";
    assert_eq!(text, format!("{lines}identity 1f{:030}\n", 0));
}

#[test]
fn an_engine_that_is_expected_is_neither_created_nor_replaced_by_another() {
    let dir = directory();
    let expected = || EngineOptions { identity: 7, create: false, ..options() };
    let refused = || Engine::open(dir.path(), expected()).err().expect("it must not open");
    let error = refused();
    assert!(matches!(error, OpenError::Missing { .. }), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "left as it was");
    drop(Engine::open(dir.path(), EngineOptions { create: true, ..expected() }).unwrap());
    drop(Engine::open(dir.path(), expected()).unwrap());

    let format = dir.path().join("FORMAT");
    let text = fs::read_to_string(&format).unwrap();
    let last = |digit: char| text.trim_end().strip_suffix('7').unwrap().to_owned() + &format!("{digit}\n");
    fs::write(&format, last('8')).unwrap();
    let error = refused();
    assert!(matches!(error, OpenError::OtherEngine { found: 8, wanted: 7, .. }), "{error}");
    fs::write(&format, last('x')).unwrap();
    assert!(matches!(refused(), OpenError::Damaged { .. }));
    fs::write(&format, text.split("identity").next().unwrap()).unwrap();
    assert!(matches!(refused(), OpenError::Damaged { .. }));
}

/// The drawing of the block files: page n is at byte n × 16384 of the files laid end to end.
#[test]
fn pages_lie_where_the_drawing_says() {
    let dir = directory();
    let engine = open(dir.path());
    let bytes = noise(30 * PAGE, 5);
    write(&engine, 3, 1, 0, &bytes);
    for index in 0..30 {
        let (path, at) = place_on_disk(&engine, dir.path(), 3, index);
        let mut found = vec![0; PAGE];
        File::open(path).unwrap().read_exact_at(&mut found, at).unwrap();
        assert_eq!(found, bytes[index * PAGE..(index + 1) * PAGE]);
    }
}

/// 3FS: after some interleaving two chunks owned one block. Here such an index does not open.
#[test]
fn a_page_with_two_owners_is_found_at_open() {
    let dir = directory();
    {
        let engine = open(dir.path());
        write(&engine, 0, 1, 0, b"x");
        let record = engine.core.record(key(0)).unwrap().1;
        engine.core.index.put(key(1), &record).unwrap();
    }
    let error = open_error(dir.path());
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
    assert!(error.to_string().contains("two owners"), "{error}");
}

#[test]
fn memory_for_records_is_bounded() {
    let dir = directory();
    let engine = Engine::open(dir.path(), EngineOptions { segment_bytes: 1 << 30, ..options() }).unwrap();
    for index in 0..4000 {
        write(&engine, index, 1, 0, b"x");
    }
    for index in 0..4000 {
        assert_eq!(read(&engine, index, 0, 1).unwrap(), b"x");
    }
    let limit = options().cache_bytes / 2;
    assert!(engine.cache_bytes() < limit + limit / 4, "{} bytes", engine.cache_bytes());
}

#[test]
fn background_round_that_panics_refuses_updates_and_reads_continue() {
    let dir = directory();
    let engine = open(dir.path());
    write(&engine, 0, 1, 0, b"old");
    drop(engine);
    let sync_interval = Some(Duration::from_millis(1));
    let engine = Engine::open(dir.path(), EngineOptions { sync_interval, ..options() }).unwrap();
    *engine.core.segments.faults.hook.lock() = Some(Box::new(|_| panic!("a mistake, on purpose")));
    let _ = stage_write(&engine, 1, 1, 0, b"new"); // the failure may come before it
    let began = Instant::now();
    while !engine.has_failed() {
        assert!(began.elapsed() < Duration::from_secs(30), "the round fails");
        std::thread::yield_now();
    }
    assert_eq!(engine.sync(), Err(Status::Io));
    assert_eq!(read(&engine, 0, 0, 3), Ok(b"old".to_vec()));
}
