//! `kill -9` at random moments: what a child acknowledged over a pipe is there afterwards, and nothing half-done.
//!
//! The operations of a chunk are a function of (chunk, version), so that parent and child know every content.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use luciola_core::chunk::{Engine, EngineOptions, Origin, Staged, Update};
use luciola_core::types::*;

const CHUNKS: u32 = 8;
const PAGE: u64 = PAGE_BYTES as u64;
const DIRECTORY: &str = "LUCIOLA_TEST_CRASH_DIRECTORY";

/// In memory where there is a place for that: these tests are not about the disk's speed.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary directory")
}

fn key(index: u32) -> ChunkKey {
    ChunkKey { chain: ChainId(1), chunk: ChunkId { content: ContentId(1), index } }
}

fn options() -> EngineOptions {
    EngineOptions {
        segment_bytes: 4 << 20,
        reserve_bytes: 0,
        // Syncs all the time, so that pages are used again and files are written at every moment.
        sync_interval: Some(Duration::from_millis(5)),
        deferred_free_bytes_max: 2 << 20,
        ..EngineOptions::default()
    }
}

fn mix(chunk: u32, version: u64, salt: u64) -> u64 {
    let mut x = u64::from(chunk) << 40 ^ version << 8 ^ salt;
    for _ in 0..3 {
        x = (x ^ x >> 31).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
    x >> 8
}

/// The operation that creates `version`, its payload, and the content after it.
fn apply(chunk: u32, version: u64, bytes: &mut Vec<u8>) -> (Op, Vec<u8>) {
    let number = |salt, bound| mix(chunk, version, salt) % bound;
    let op = match number(1, 12) {
        0 => Op::Remove,
        1 => Op::Truncate { length: number(2, 6 * PAGE) as u32 },
        2..7 if bytes.len() < 20 * PAGE as usize => {
            Op::Write { offset: bytes.len() as u32, length: 1 + number(3, 10_000) as u32 }
        }
        _ => Op::Write { offset: number(4, 10 * PAGE) as u32, length: 1 + number(5, 3 * PAGE) as u32 },
    };
    let mut payload = Vec::new();
    match op {
        Op::Write { offset, length } => {
            payload = (0..u64::from(length)).map(|n| (mix(chunk, version, 6) + n * 3) as u8).collect();
            let end = (offset + length) as usize;
            bytes.resize(bytes.len().max(end), 0);
            bytes[offset as usize..end].copy_from_slice(&payload);
        }
        Op::Truncate { length } => bytes.resize(length as usize, 0),
        Op::Remove => bytes.clear(),
        Op::Replace { .. } => unreachable!("not among them"),
    }
    (op, payload)
}

fn content(chunk: u32, version: u64) -> (Op, Vec<u8>) {
    let mut bytes = Vec::new();
    let mut op = Op::Remove;
    for version in 1..=version {
        op = apply(chunk, version, &mut bytes).0;
    }
    (op, bytes)
}

/// The child: writes until it is killed. Not a test of its own; without its environment it does nothing.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(DIRECTORY).map(PathBuf::from) else { return };
    let engine = Engine::open(&dir, options()).expect("the directory opens after kill -9");
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let engine = &engine;
            scope.spawn(move || keep_writing(engine, (thread * CHUNKS / 2)..((thread + 1) * CHUNKS / 2)));
        }
    });
}

fn keep_writing(engine: &Engine, chunks: std::ops::Range<u32>) {
    let mut known: HashMap<u32, (u64, Vec<u8>)> = HashMap::new();
    for chunk in chunks.clone() {
        let state = engine.lookup(key(chunk)).unwrap();
        if let Some(pending) = state.as_ref().and_then(|state| state.pending) {
            commit(engine, chunk, pending.stamp.version.0);
        }
        let version = engine.lookup(key(chunk)).unwrap().map_or(0, |state| state.version().0);
        known.insert(chunk, (version, content(chunk, version).1));
    }
    loop {
        for chunk in chunks.clone() {
            let (version, bytes) = known.get_mut(&chunk).expect("all are known");
            *version += 1;
            let (op, payload) = apply(chunk, *version, bytes);
            let stamp = Stamp { chain_version: ChainVersion(1), version: Version(*version) };
            let tag = RequestTag { client: ClientId(1), sequence: *version };
            let update = Update { key: key(chunk), stamp, op, tag, origin: Origin::Client, fresh: false };
            if *version % 3 == 0 {
                assert_eq!(engine.stage_and_commit(&update, &payload).unwrap().staged, Staged::Committed);
                acknowledge("committed", chunk, *version);
                continue;
            }
            assert_eq!(engine.stage(&update, &payload).unwrap().staged, Staged::Pending);
            acknowledge("staged", chunk, *version);
            commit(engine, chunk, *version);
        }
    }
}

fn commit(engine: &Engine, chunk: u32, version: u64) {
    engine.commit(key(chunk), Version(version), ChainVersion(1)).unwrap();
    acknowledge("committed", chunk, version);
}

fn acknowledge(what: &str, chunk: u32, version: u64) {
    // One write of a whole line: a pipe keeps it in one piece.
    let line = format!("ack {what} {chunk} {version}\n");
    std::io::stdout().write_all(line.as_bytes()).and_then(|()| std::io::stdout().flush()).unwrap();
}

/// Runs the child until it has acknowledged `count` times, and a moment longer, and kills it; the newest acknowledged (staged, committed) version of each chunk.
fn run_and_kill(dir: &Path, count: u64, moment: Duration) -> HashMap<u32, (u64, u64)> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(DIRECTORY, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let (reached, wait) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut left = count;
        let mut newest: HashMap<u32, (u64, u64)> = HashMap::new();
        for line in output.lines().map_while(Result::ok) {
            let words: Vec<&str> = line.split(' ').collect();
            let ["ack", what, chunk, version] = words[..] else { continue };
            let Ok(version) = version.parse::<u64>() else { continue };
            let entry = newest.entry(chunk.parse().unwrap()).or_default();
            if what == "staged" {
                entry.0 = version;
            } else {
                *entry = (entry.0.max(version), version);
            }
            left = left.saturating_sub(1);
            if left == 0 {
                // Sent again for every further line, without effect.
                let _ = reached.send(());
            }
        }
        newest
    });
    wait.recv_timeout(Duration::from_secs(120)).expect("the child gets somewhere");
    std::thread::sleep(moment);
    child.kill().unwrap();
    let status = child.wait().unwrap();
    assert!(status.code().is_none(), "the child ended by itself: {status}");
    reader.join().unwrap()
}

/// Checks the directory against what was acknowledged, and notes in `acknowledged` what it holds now.
fn check(dir: &Path, acknowledged: &mut HashMap<u32, (u64, u64)>) {
    let engine = Engine::open(dir, EngineOptions { sync_interval: None, ..options() }).expect("it opens");
    assert!(engine.open_report().damaged_segments.is_empty());
    let mut buffer = vec![0; 64 * PAGE as usize];
    for chunk in 0..CHUNKS {
        let (staged, committed) = acknowledged.get(&chunk).copied().unwrap_or_default();
        let state = engine.lookup(key(chunk)).unwrap();
        let version = state.as_ref().map_or(0, |state| state.version().0);
        acknowledged.insert(chunk, (staged.max(version), version));
        let pending = state.as_ref().and_then(|state| state.pending);
        assert!(
            version == committed || version == committed + 1,
            "chunk {chunk}: {version}, acknowledged {committed}"
        );
        assert!(version >= staged || pending.is_some_and(|pending| pending.stamp.version.0 == staged));
        assert_eq!(engine.verify(key(chunk)).unwrap(), vec![]);
        let (op, expected) = content(chunk, version);
        match engine.read(key(chunk), 0, &mut &mut buffer[..]) {
            Ok(outcome) => {
                assert!(buffer[..outcome.length as usize] == expected, "chunk {chunk} at {version}")
            }
            Err(status) => assert_eq!((status, op), (Status::NotFound, Op::Remove)),
        }
        if let Some(pending) = pending {
            assert_eq!(pending.stamp.version.0, version + 1);
            let outcome = engine.read_pending(key(chunk), 0, &mut &mut buffer[..]).unwrap();
            let (op, expected) = content(chunk, version + 1);
            assert_eq!(pending.op, op);
            assert!(buffer[..outcome.length as usize] == expected, "chunk {chunk}, pending {}", version + 1);
        }
    }
    engine.sync().unwrap();
    assert_eq!(engine.space().unwrap().used_bytes, engine.usage(ChainId(1)).page_bytes, "nothing leaks");
}

#[test]
fn what_was_acknowledged_survives_kill_9() {
    let dir = directory();
    let mut total = 0;
    // What earlier rounds acknowledged counts too.
    let mut acknowledged: HashMap<u32, (u64, u64)> = HashMap::new();
    for round in 0..8 {
        let moment = Duration::from_micros(mix(0, round, 10) % 3000);
        let newest = run_and_kill(dir.path(), 1 + mix(0, round, 9) % 200, moment);
        for (chunk, (staged, committed)) in newest {
            let before = acknowledged.entry(chunk).or_default();
            *before = (before.0.max(staged), before.1.max(committed));
        }
        check(dir.path(), &mut acknowledged);
        total = acknowledged.values().map(|(_, committed)| committed).sum();
    }
    assert!(total > 100, "the child got somewhere: {total} commits");
}
