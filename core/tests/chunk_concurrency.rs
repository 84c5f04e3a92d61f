//! Many threads on one engine: what a reader gets is exactly what some writer committed under that version.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use luciola_core::chunk::{Engine, EngineOptions, Install, Origin, Update};
use luciola_core::types::*;

const WRITERS: u32 = 4;
const CHUNKS_EACH: u32 = 6;
const READS_MIN: u64 = 4000;
const WRITES_MIN: u64 = 4000;
const PAGE: u64 = PAGE_BYTES as u64;

/// In memory where there is a place for that: these tests are not about the disk's speed.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary directory")
}

fn key(index: u32) -> ChunkKey {
    ChunkKey { chain: ChainId(index % 3), chunk: ChunkId { content: ContentId(5), index } }
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// What every committed version of every chunk holds: length and checksum, `None` for a tombstone.
type History = Mutex<HashMap<(u32, u64), Option<(usize, u32)>>>;

struct Writer<'a> {
    engine: &'a Engine,
    history: &'a History,
    random: Random,
    /// Version and content of each chunk.
    chunks: HashMap<u32, (u64, Vec<u8>)>,
}

impl Writer<'_> {
    fn step(&mut self, index: u32) {
        let (version, mut bytes) = self.chunks.remove(&index).unwrap_or_default();
        let stamp = Stamp { chain_version: ChainVersion(1), version: Version(version + 1) };
        let fill = self.random.below(251) as u8;
        let op = match self.random.below(10) {
            0 => Op::Remove,
            1 => Op::Truncate { length: self.random.below(8 * PAGE) as u32 },
            2 => Op::Replace { length: self.random.below(6 * PAGE) as u32, writers: 0, removed: false },
            3..7 => Op::Write {
                offset: bytes.len() as u32 % (8 * PAGE as u32),
                length: 1 + self.random.below(9000) as u32,
            },
            _ => Op::Write {
                offset: self.random.below(6 * PAGE) as u32,
                length: 1 + self.random.below(2 * PAGE) as u32,
            },
        };
        let payload = match op {
            Op::Write { length, .. } | Op::Replace { length, .. } => vec![fill; length as usize],
            _ => Vec::new(),
        };
        match op {
            Op::Write { offset, length } => {
                let end = (offset + length) as usize;
                bytes.resize(bytes.len().max(end), 0);
                bytes[offset as usize..end].copy_from_slice(&payload);
            }
            Op::Truncate { length } => bytes.resize(length as usize, 0),
            Op::Remove => bytes.clear(),
            Op::Replace { .. } => bytes = payload.clone(),
        }
        let seen = (op != Op::Remove).then(|| (bytes.len(), crc_fast::crc32_iscsi(&bytes)));
        self.history.lock().unwrap().insert((index, version + 1), seen);
        let tag = RequestTag { client: ClientId(1), sequence: version + 1 };
        let update = Update { key: key(index), stamp, op, tag, origin: Origin::Client, fresh: false };
        if self.random.below(2) == 0 {
            self.engine.stage_and_commit(&update, &payload).unwrap();
            self.chunks.insert(index, (version + 1, bytes));
            return;
        }
        self.engine.stage(&update, &payload).unwrap();
        if self.random.below(8) == 0 && !matches!(op, Op::Replace { .. }) {
            // Dropped and staged again: the same version with the same content.
            self.engine.drop_pending(key(index), stamp.version).unwrap();
            self.engine.stage(&update, &payload).unwrap();
        }
        self.engine.commit(key(index), stamp.version, stamp.chain_version).unwrap();
        self.chunks.insert(index, (version + 1, bytes));
    }
}

fn check_read(engine: &Engine, history: &History, random: &mut Random, buffer: &mut [u8]) -> bool {
    let index = random.below(u64::from(WRITERS * CHUNKS_EACH)) as u32;
    let outcome = match engine.read(key(index), 0, &mut &mut buffer[..]) {
        Ok(outcome) => outcome,
        Err(Status::NotFound) => return false,
        Err(status) => panic!("read of chunk {index}: {status:?}"),
    };
    let bytes = &buffer[..outcome.length as usize];
    let found = Some((bytes.len(), crc_fast::crc32_iscsi(bytes)));
    let expected = history.lock().unwrap()[&(index, outcome.stamp.version.0)];
    assert_eq!(found, expected, "chunk {index} version {}", outcome.stamp.version);
    // A part, read separately, of whatever version is there now.
    let offset = random.below(9 * PAGE) as u32;
    match engine.read(key(index), offset, &mut &mut buffer[..1000]) {
        Ok(_) | Err(Status::NotFound) => {}
        Err(status) => panic!("partial read of chunk {index}: {status:?}"),
    }
    true
}

#[test]
fn readers_see_exactly_what_was_committed() {
    let dir = directory();
    let options = EngineOptions {
        segment_bytes: 1 << 20,
        reserve_bytes: 0,
        // Small enough that records are evicted and loaded all the time.
        cache_bytes: 64 * 400,
        sync_interval: Some(Duration::from_millis(20)),
        deferred_free_bytes_max: 4 << 20,
        ..EngineOptions::default()
    };
    let engine = Engine::open(dir.path(), options).unwrap();
    let history = History::default();
    let stop = AtomicBool::new(false);
    let reads = AtomicU64::new(0);
    let writes = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for number in 0..WRITERS {
            let (engine, history, stop, writes) = (&engine, &history, &stop, &writes);
            scope.spawn(move || {
                let random = Random(u64::from(number) * 77 + 1);
                let mut writer = Writer { engine, history, random, chunks: HashMap::new() };
                while !stop.load(Ordering::Relaxed) {
                    let index = number * CHUNKS_EACH + writer.random.below(u64::from(CHUNKS_EACH)) as u32;
                    writer.step(index);
                    writes.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for number in 0..4 {
            let (engine, history, stop, reads) = (&engine, &history, &stop, &reads);
            scope.spawn(move || {
                let mut random = Random(number * 31 + 5);
                let mut buffer = vec![0; 16 * PAGE as usize];
                while !stop.load(Ordering::Relaxed) {
                    reads.fetch_add(
                        u64::from(check_read(engine, history, &mut random, &mut buffer)),
                        Ordering::Relaxed,
                    );
                }
            });
        }
        // Listings, verification and removal of another chain run beside it.
        let (engine, stop) = (&engine, &stop);
        scope.spawn(move || {
            let mut random = Random(99);
            while !stop.load(Ordering::Relaxed) {
                other_chain(engine, &mut random);
            }
        });
        // As much as a quiet machine does in two or three seconds; under load that takes longer.
        let is_little =
            || reads.load(Ordering::Relaxed) < READS_MIN || writes.load(Ordering::Relaxed) < WRITES_MIN;
        let (least, patience) = (Duration::from_secs(1), Duration::from_secs(60));
        let begun = Instant::now();
        while begun.elapsed() < least || (is_little() && begun.elapsed() < patience) {
            std::thread::sleep(Duration::from_millis(20));
        }
        stop.store(true, Ordering::Relaxed);
    });
    println!("{} reads and {} writes", reads.load(Ordering::Relaxed), writes.load(Ordering::Relaxed));
    assert!(reads.load(Ordering::Relaxed) > 100 && writes.load(Ordering::Relaxed) > 100);
    assert_eq!(engine.damage(), vec![]);
    engine.sync().unwrap();
    let owned: u64 = engine.chains().into_iter().map(|chain| engine.usage(chain).page_bytes).sum();
    assert_eq!(engine.space().unwrap().used_bytes, owned, "nothing leaks");
    drop(engine);
    Engine::open(dir.path(), EngineOptions::default()).expect("every page has one owner");
}

fn other_chain(engine: &Engine, random: &mut Random) {
    let chain = ChainId(77);
    for index in 0..10 {
        let key = ChunkKey { chain, chunk: ChunkId { content: ContentId(1), index } };
        let stamp = Stamp { chain_version: ChainVersion(1), version: Version(1) };
        let install = Install { key, stamp, removed: false, tag: RequestTag::default(), writers: &[] };
        engine.install(&install, &vec![3; random.below(5 * PAGE) as usize]).unwrap();
    }
    for line in engine.list(chain, None, 100).unwrap() {
        let key = ChunkKey { chain, chunk: line.chunk };
        assert_eq!(engine.verify(key).unwrap(), vec![]);
        let content = vec![3; line.committed.unwrap().length as usize];
        assert_eq!(line.crc32c, crc_fast::crc32_iscsi(&content));
    }
    while !engine.remove_chain(chain, 3).unwrap() {}
    assert_eq!(engine.usage(chain), Default::default());
}
