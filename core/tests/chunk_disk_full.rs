//! A full disk, on a small tmpfs. Needs root to mount it; others skip it with a message.

use std::path::{Path, PathBuf};

use luciola_core::chunk::{Engine, EngineOptions, Origin, Staged, Update};
use luciola_core::types::*;
use rustix::fs::FallocateFlags;
use rustix::mount::{MountFlags, UnmountFlags};

const MIB: usize = 1 << 20;
const RESERVE: u64 = 8 << 20;

struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(dir: &Path, bytes: usize) -> Option<SmallDisk> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root may mount the small file system that this test fills");
            return None;
        }
        let data = std::ffi::CString::new(format!("size={bytes}")).unwrap();
        rustix::mount::mount("tmpfs", dir, "tmpfs", MountFlags::empty(), Some(data.as_c_str())).unwrap();
        Some(SmallDisk(dir.to_owned()))
    }

    fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.0).unwrap();
        stat.f_bavail * stat.f_frsize
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}

fn open(disk: &SmallDisk) -> Engine {
    let options = EngineOptions {
        reserve_bytes: RESERVE,
        cache_bytes: 1 << 20,
        sync_interval: None,
        ..EngineOptions::default()
    };
    Engine::open(&disk.0.join("engine"), options).unwrap()
}

fn key(index: u32) -> ChunkKey {
    ChunkKey { chain: ChainId(1), chunk: ChunkId { content: ContentId(1), index } }
}

fn bytes(index: u32) -> Vec<u8> {
    let mut bytes = vec![index as u8; MIB];
    bytes[MIB / 2..MIB / 2 + 4].copy_from_slice(&index.to_le_bytes());
    bytes
}

fn stage(engine: &Engine, index: u32, version: u64, origin: Origin, bytes: &[u8]) -> Result<Staged, Status> {
    let stamp = Stamp { chain_version: ChainVersion(1), version: Version(version) };
    let op = Op::Write { offset: 0, length: bytes.len() as u32 };
    let tag = RequestTag { client: ClientId(1), sequence: version };
    let update = Update { key: key(index), stamp, op, tag, origin, fresh: false };
    engine.stage(&update, &bytes).map(|outcome| outcome.staged)
}

fn write(engine: &Engine, index: u32, version: u64, origin: Origin) -> Result<(), Status> {
    stage(engine, index, version, origin, &bytes(index))?;
    engine.commit(key(index), Version(version), ChainVersion(1)).map(|_| ())
}

fn remove(engine: &Engine, index: u32, version: u64) {
    let stamp = Stamp { chain_version: ChainVersion(1), version: Version(version) };
    let tag = RequestTag { client: ClientId(1), sequence: version };
    let update = Update { key: key(index), stamp, op: Op::Remove, tag, origin: Origin::Client, fresh: false };
    engine.stage(&update, &Vec::new()).unwrap();
    engine.commit(key(index), Version(version), ChainVersion(1)).unwrap();
}

/// An update of chunk 0 that needs no pages.
fn truncate(engine: &Engine, version: u64) -> Result<(), Status> {
    let stamp = Stamp { chain_version: ChainVersion(1), version: Version(version) };
    let op = Op::Truncate { length: MIB as u32 };
    let update =
        Update { key: key(0), stamp, op, tag: RequestTag::default(), origin: Origin::Client, fresh: false };
    engine.stage(&update, &Vec::new())?;
    engine.commit(key(0), stamp.version, stamp.chain_version)?;
    Ok(())
}

/// An engine with eight chunks, and the file that has taken the rest of its disk.
fn filled_by_others(disk: &SmallDisk) -> (Engine, PathBuf) {
    let engine = open(disk);
    for index in 0..8 {
        write(&engine, index, 1, Origin::Client).unwrap();
    }
    drop(engine);
    let engine = open(disk);
    let hog = disk.0.join("hog");
    let file = std::fs::File::create(&hog).unwrap();
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, disk.free()).unwrap();
    (engine, hog)
}

fn check(engine: &Engine, indices: std::ops::Range<u32>) {
    let mut into = vec![0; MIB];
    for index in indices {
        engine.read(key(index), 0, &mut &mut into[..]).unwrap();
        assert!(into == bytes(index), "chunk {index}");
    }
}

fn assert_no_leak(engine: &Engine) {
    engine.sync().unwrap();
    assert_eq!(engine.space().unwrap().used_bytes, engine.usage(ChainId(1)).page_bytes);
}

/// Writes as `origin` until there is no space; the number of chunks written.
fn fill(engine: &Engine, first: u32, origin: Origin) -> u32 {
    for index in first.. {
        match write(engine, index, 1, origin) {
            Ok(()) => {}
            Err(Status::NoSpace) => return index,
            Err(status) => panic!("a full disk is NoSpace, not {status:?}"),
        }
    }
    unreachable!("the disk is small")
}

#[test]
fn a_full_disk_refuses_clients_first_and_works_again_when_space_returns() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(dir.path(), 64 * MIB) else { return };
    let engine = open(&disk);
    // One version is pending when the disk fills.
    stage(&engine, 1000, 1, Origin::Client, b"pending").unwrap();

    let count = fill(&engine, 0, Origin::Client);
    assert!(count > 20, "{count} chunks fit");
    assert!(disk.free() >= RESERVE - MIB as u64, "the reserve is left: {}", disk.free());
    assert_eq!(engine.space().unwrap().free_bytes >> 20, 0);
    check(&engine, 0..count);
    assert_no_leak(&engine);

    // Commits, removals and what the chain has agreed to still work.
    engine.commit(key(1000), Version(1), ChainVersion(1)).unwrap();
    let more = fill(&engine, count, Origin::Chain);
    assert!(more > count, "the chain may use the reserve");
    assert!(disk.free() >= RESERVE / 4 - MIB as u64, "but not the index's part: {}", disk.free());
    check(&engine, 0..more);
    assert_no_leak(&engine);

    for index in 0..12 {
        remove(&engine, index, 2);
    }
    // Without a sync in between: the write itself makes the space usable.
    for index in 0..4 {
        write(&engine, index, 3, Origin::Client).unwrap();
    }
    check(&engine, 0..4);
    check(&engine, 12..more);
    assert_no_leak(&engine);

    drop(engine);
    let engine = open(&disk);
    check(&engine, 0..4);
    check(&engine, 12..more);
    write(&engine, 4, 3, Origin::Client).unwrap();
    assert_no_leak(&engine);
}

#[test]
fn removed_chunks_fill_the_reserve_first() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(dir.path(), 64 * MIB) else { return };
    let engine = open(&disk);
    let count = fill(&engine, 0, Origin::Chain);
    let before = disk.free();
    (0..count).for_each(|index| remove(&engine, index, 2));
    engine.sync().unwrap();
    assert!(disk.free() >= RESERVE, "the reserve is whole again: {}, before {before}", disk.free());
    assert!(engine.space().unwrap().free_bytes > u64::from(count - 9) * MIB as u64, "clients get the rest");
}

/// Another process takes the last byte: data is refused, everything else works.
#[test]
fn a_disk_filled_by_others_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(dir.path(), 800 * MIB) else { return };
    let (engine, hog) = filled_by_others(&disk);
    assert_eq!(disk.free(), 0);
    assert_eq!(write(&engine, 8, 1, Origin::Client), Err(Status::NoSpace));
    assert_eq!(write(&engine, 8, 1, Origin::Chain), Err(Status::NoSpace));
    check(&engine, 0..8);
    // What needs no pages works: the index has its room already.
    let version = 5001;
    (2..=version).for_each(|version| truncate(&engine, version).unwrap());
    // What removals set free goes to the index's part of the reserve first, then to the chain.
    (4..8).for_each(|index| remove(&engine, index, 2));
    write(&engine, 8, 1, Origin::Chain).unwrap();
    check(&engine, 0..4);
    drop(engine);
    std::fs::remove_file(hog).unwrap();
    let engine = open(&disk);
    assert_eq!(engine.lookup(key(0)).unwrap().unwrap().version(), Version(version));
    check(&engine, 0..4);
    check(&engine, 8..9);
    write(&engine, 9, 1, Origin::Client).unwrap();
    assert_no_leak(&engine);
}

/// A disk without room for a journal in advance: the index cannot be written, and not again before it is opened.
#[test]
fn a_small_disk_filled_by_others_stops_the_index_until_it_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(dir.path(), 300 * MIB) else { return };
    let (engine, hog) = filled_by_others(&disk);
    let refused = (2..5000).find(|&version| truncate(&engine, version).is_err());
    assert!(refused.is_some(), "a block for the index was still free");
    assert!(engine.has_failed());
    std::fs::remove_file(hog).unwrap();
    assert!(truncate(&engine, 5000).is_err());
    drop(engine);
    let engine = open(&disk);
    check(&engine, 0..8);
    write(&engine, 8, 1, Origin::Client).unwrap();
    assert_no_leak(&engine);
}
