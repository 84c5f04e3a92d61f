//! Random sequences of calls against the chunk engine and a plain model in memory, with reopening in between.

use std::collections::BTreeMap;
use std::path::Path;

use luciola_core::chunk::{Engine, EngineOptions, Install, Origin, StageOutcome, Staged, Update};
use luciola_core::types::*;
use proptest::prelude::*;

const PAGE: u32 = PAGE_BYTES;

#[derive(Clone, Debug)]
struct Content {
    stamp: Stamp,
    bytes: Vec<u8>,
    removed: bool,
}

#[derive(Clone, Debug, Default)]
struct Chunk {
    committed: Option<Content>,
    pending: Option<(Content, Op, RequestTag)>,
}

#[derive(Clone, Debug)]
enum Step {
    Stage { chunk: u32, op: Kind, client: u64, chain_version: u64, ahead: u64, again: bool, fresh: bool },
    Commit { chunk: u32 },
    Drop { chunk: u32 },
    Install { chunk: u32, length: u32, removed: bool, version: u64 },
    Erase { chunk: u32 },
    Read { chunk: u32, offset: u32, length: u32 },
    ReadPending { chunk: u32, offset: u32, length: u32 },
    Purge,
    Sync,
    Reopen,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Write { offset: u32, length: u32 },
    Append { length: u32 },
    Truncate { length: u32 },
    Remove,
}

/// Places around page boundaries, where mistakes live, and anywhere.
fn place() -> impl Strategy<Value = u32> {
    prop_oneof![
        3 => (0u32..5, -2i64..3).prop_map(|(page, by)| (i64::from(page * PAGE) + by).max(0) as u32),
        2 => 0u32..5 * PAGE,
    ]
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![
        1 => Just(1u32),
        2 => 1u32..5000,
        2 => (1u32..4, -2i64..3).prop_map(|(page, by)| (i64::from(page * PAGE) + by) as u32),
    ]
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        4 => (place(), length()).prop_map(|(offset, length)| Kind::Write { offset, length }),
        4 => length().prop_map(|length| Kind::Append { length }),
        3 => place().prop_map(|length| Kind::Truncate { length }),
        1 => Just(Kind::Remove),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let chunk = || 0u32..3;
    prop_oneof![
        8 => (chunk(), kind(), 1u64..4, 1u64..4, prop_oneof![9 => Just(1u64), 1 => 0u64..4], any::<bool>(), any::<bool>())
            .prop_map(|(chunk, op, client, chain_version, ahead, again, fresh)| Step::Stage {
                chunk, op, client, chain_version, ahead, again, fresh
            }),
        8 => chunk().prop_map(|chunk| Step::Commit { chunk }),
        1 => chunk().prop_map(|chunk| Step::Drop { chunk }),
        1 => (chunk(), place(), prop::bool::weighted(0.2), 0u64..6)
            .prop_map(|(chunk, length, removed, version)| Step::Install { chunk, length, removed, version }),
        1 => chunk().prop_map(|chunk| Step::Erase { chunk }),
        3 => (chunk(), place(), length()).prop_map(|(chunk, offset, length)| Step::Read { chunk, offset, length }),
        2 => (chunk(), place(), length())
            .prop_map(|(chunk, offset, length)| Step::ReadPending { chunk, offset, length }),
        1 => Just(Step::Purge),
        1 => Just(Step::Sync),
        1 => Just(Step::Reopen),
    ]
}

/// In memory where there is a place for that: these tests are not about the disk's speed.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary directory")
}

fn key(chunk: u32) -> ChunkKey {
    ChunkKey { chain: ChainId(7), chunk: ChunkId { content: ContentId(9), index: chunk } }
}

/// Bytes that differ from update to update; every third page of zeros, for recovery's holes.
fn bytes(length: u32, seed: u64) -> Vec<u8> {
    (0..u64::from(length))
        .map(|n| if (n / u64::from(PAGE)) % 3 == 2 { 0 } else { (n * 7 + seed * 131 + n / 251) as u8 })
        .collect()
}

struct World {
    engine: Option<Engine>,
    dir: tempfile::TempDir,
    model: BTreeMap<u32, Chunk>,
    sequence: u64,
}

fn open(dir: &Path) -> Engine {
    let options = EngineOptions {
        segment_bytes: 64 * u64::from(PAGE),
        reserve_bytes: 0,
        cache_bytes: 1 << 20,
        sync_interval: None,
        ..EngineOptions::default()
    };
    Engine::open(dir, options).expect("the directory opens")
}

impl World {
    fn new() -> World {
        let dir = directory();
        World { engine: Some(open(dir.path())), dir, model: BTreeMap::new(), sequence: 0 }
    }

    fn engine(&self) -> &Engine {
        self.engine.as_ref().expect("open between steps")
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Stage { chunk, op, client, chain_version, ahead, again, fresh } => {
                self.stage(chunk, op, client, (chain_version, ahead), fresh);
                if again {
                    self.stage_again(chunk);
                }
            }
            Step::Commit { chunk } => self.commit(chunk),
            Step::Drop { chunk } => {
                let version = self.chunk(chunk).pending.as_ref().map_or(Version(1), |p| p.0.stamp.version);
                self.engine().drop_pending(key(chunk), version).unwrap();
                self.chunk_mut(chunk).pending = None;
            }
            Step::Install { chunk, length, removed, version } => {
                self.install(chunk, length, removed, version)
            }
            Step::Erase { chunk } => {
                self.engine().erase(key(chunk)).unwrap();
                self.model.remove(&chunk);
            }
            Step::Read { chunk, offset, length } => self.check_read(chunk, offset, length),
            Step::ReadPending { chunk, offset, length } => {
                let expected = self.chunk(chunk).pending.map(|pending| pending.0);
                let mut into = vec![0xee; length as usize];
                let outcome = self.engine().read_pending(key(chunk), offset, &mut &mut into[..]);
                check_bytes(expected.as_ref(), offset, &into, outcome);
            }
            Step::Purge => {
                let (old, _) = self.engine().old_tombstones(ChainId(7), None, u64::MAX, usize::MAX).unwrap();
                for (key, stamp) in old {
                    assert!(self.engine().forget(key, stamp).unwrap());
                }
                self.model.retain(|_, chunk| {
                    chunk.pending.is_some() || chunk.committed.as_ref().is_none_or(|state| !state.removed)
                });
            }
            Step::Sync => self.engine().sync().unwrap(),
            Step::Reopen => {
                self.engine = None;
                self.engine = Some(open(self.dir.path()));
            }
        }
    }

    fn chunk(&self, chunk: u32) -> Chunk {
        self.model.get(&chunk).cloned().unwrap_or_default()
    }

    fn chunk_mut(&mut self, chunk: u32) -> &mut Chunk {
        self.model.entry(chunk).or_default()
    }

    fn stage(&mut self, chunk: u32, kind: Kind, client: u64, by: (u64, u64), fresh: bool) {
        let (chain_version, ahead) = by;
        self.sequence += 1;
        let before = self.chunk(chunk);
        let base = before.committed.as_ref().map(|state| state.bytes.clone()).unwrap_or_default();
        let committed = before.committed.as_ref().map_or(Stamp::default(), |state| state.stamp);
        let stamp = Stamp {
            chain_version: ChainVersion(chain_version),
            version: Version(committed.version.0 + ahead),
        };
        let tag = RequestTag { client: ClientId(client), sequence: self.sequence };
        let op = match kind {
            Kind::Write { offset, length } => Op::Write { offset, length },
            Kind::Append { length } => Op::Write { offset: base.len() as u32, length },
            Kind::Truncate { length } => Op::Truncate { length },
            Kind::Remove => Op::Remove,
        };
        let data = match op {
            Op::Write { length, .. } => bytes(length, self.sequence),
            _ => Vec::new(),
        };
        let update = Update { key: key(chunk), stamp, op, tag, origin: Origin::Client, fresh };
        let outcome = self.engine().stage(&update, &data);
        let pending = before.pending.as_ref().map(|pending| pending.0.stamp);
        let begins = fresh && before.committed.as_ref().is_none_or(|state| state.removed);
        let expected = if stamp.version == Version(0) {
            Err(Status::Invalid)
        } else if begins && stamp <= committed || !begins && ahead == 0 {
            Ok(Staged::Committed)
        } else if committed.chain_version > stamp.chain_version && before.committed.is_some() {
            Err(Status::WrongChainVersion)
        } else if ahead > 1 && !begins {
            Err(Status::MissingVersion)
        } else {
            match pending {
                None => Ok(Staged::Pending),
                Some(pending) if pending.chain_version > stamp.chain_version => {
                    Err(Status::WrongChainVersion)
                }
                Some(pending) if pending.chain_version == stamp.chain_version => Err(Status::Busy),
                Some(_) => Ok(Staged::Pending),
            }
        };
        assert_eq!(outcome.map(|outcome| outcome.staged), expected);
        if expected == Ok(Staged::Pending) {
            let after = apply(base, op, &data);
            assert_eq!(outcome.unwrap().length, after.len() as u32);
            let content = Content { stamp, bytes: after, removed: op == Op::Remove };
            self.chunk_mut(chunk).pending = Some((content, op, tag));
        }
    }

    /// A duplicate of what is pending changes nothing, and under a newer chain version only that.
    fn stage_again(&mut self, chunk: u32) {
        let Some((content, op, tag)) = self.chunk(chunk).pending else { return };
        let data = match op {
            Op::Write { length, .. } => vec![0x55; length as usize],
            _ => Vec::new(),
        };
        for by in [0, 1] {
            let chain_version = ChainVersion(content.stamp.chain_version.0 + by);
            let stamp = Stamp { chain_version, ..content.stamp };
            let update = Update { key: key(chunk), stamp, op, tag, origin: Origin::Chain, fresh: true };
            let length = content.bytes.len() as u32;
            let expected = StageOutcome { staged: Staged::AlreadyPending, length };
            assert_eq!(self.engine().stage(&update, &data), Ok(expected));
            self.chunk_mut(chunk).pending.as_mut().unwrap().0.stamp = stamp;
        }
    }

    fn commit(&mut self, chunk: u32) {
        let before = self.chunk(chunk);
        let Some((content, ..)) = before.pending else {
            let version = before.committed.as_ref().map_or(Version(0), |state| state.stamp.version);
            let missing = self.engine().commit(key(chunk), Version(version.0 + 1), ChainVersion(9));
            assert_eq!(missing, Err(Status::MissingVersion));
            return;
        };
        for _ in 0..2 {
            let Stamp { version, chain_version } = content.stamp;
            let outcome = self.engine().commit(key(chunk), version, chain_version).unwrap();
            assert_eq!((outcome.stamp, outcome.length), (content.stamp, content.bytes.len() as u32));
        }
        *self.chunk_mut(chunk) = Chunk { committed: Some(content), pending: None };
    }

    fn install(&mut self, chunk: u32, length: u32, removed: bool, version: u64) {
        self.sequence += 1;
        let content = if removed { Vec::new() } else { bytes(length, self.sequence) };
        let stamp = Stamp { chain_version: ChainVersion(2), version: Version(version) };
        let install = Install { key: key(chunk), stamp, removed, tag: RequestTag::default(), writers: &[] };
        let outcome = self.engine().install(&install, &content);
        if version == 0 {
            return assert_eq!(outcome, Err(Status::Invalid));
        }
        assert_eq!(outcome.unwrap().staged, Staged::Committed);
        let committed = Some(Content { stamp, bytes: content, removed });
        *self.chunk_mut(chunk) = Chunk { committed, pending: None };
    }

    fn check_read(&self, chunk: u32, offset: u32, length: u32) {
        let expected = self.chunk(chunk).committed.filter(|state| !state.removed);
        let mut into = vec![0xee; length as usize];
        let outcome = self.engine().read(key(chunk), offset, &mut &mut into[..]);
        check_bytes(expected.as_ref(), offset, &into, outcome);
    }

    /// Everything at once: states, contents, listings, counters, and that no page leaks.
    fn check(&self) {
        let engine = self.engine();
        let listed = engine.list(ChainId(7), None, usize::MAX).unwrap();
        let known = self.model.iter().filter(|(_, c)| c.committed.is_some() || c.pending.is_some());
        assert_eq!(listed.len(), known.clone().count());
        for (line, (&index, chunk)) in listed.iter().zip(known) {
            assert_eq!(line.chunk.index, index);
            assert_eq!(line.committed.map(|c| c.stamp), chunk.committed.as_ref().map(|c| c.stamp));
            assert_eq!(line.pending.map(|p| p.stamp), chunk.pending.as_ref().map(|p| p.0.stamp));
            if let Some(state) = &chunk.committed {
                assert_eq!(line.crc32c, crc_fast::crc32_iscsi(&state.bytes));
                assert_eq!(line.committed.unwrap().removed, state.removed);
            }
            let state = engine.lookup(key(index)).unwrap().unwrap();
            assert_eq!((state.committed, state.pending), (line.committed, line.pending));
            self.check_read(index, 0, 10 * PAGE);
            assert_eq!(engine.verify(key(index)).unwrap(), vec![]);
        }
        let live = self.model.values().filter_map(|c| c.committed.as_ref()).filter(|c| !c.removed);
        let usage = engine.usage(ChainId(7));
        assert_eq!(usage.chunks, live.clone().count() as u64);
        assert_eq!(usage.bytes, live.map(|c| c.bytes.len() as u64).sum::<u64>());
        engine.sync().unwrap();
        assert_eq!(
            engine.space().unwrap().used_bytes,
            usage.page_bytes,
            "pages in use are those referred to"
        );
        assert_eq!(engine.damage(), vec![]);
    }
}

fn apply(mut bytes: Vec<u8>, op: Op, data: &[u8]) -> Vec<u8> {
    match op {
        Op::Write { offset, .. } => {
            let end = offset as usize + data.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[offset as usize..end].copy_from_slice(data);
        }
        Op::Truncate { length } => bytes.resize(length as usize, 0),
        Op::Remove => bytes.clear(),
        Op::Replace { .. } => unreachable!("installed"),
    }
    bytes
}

fn check_bytes(
    expected: Option<&Content>,
    offset: u32,
    into: &[u8],
    outcome: Result<luciola_core::chunk::ReadOutcome, Status>,
) {
    let Some(expected) = expected else {
        assert_eq!(outcome, Err(Status::NotFound));
        return;
    };
    let outcome = outcome.unwrap();
    let start = expected.bytes.len().min(offset as usize);
    let end = expected.bytes.len().min(offset as usize + into.len());
    assert_eq!(outcome.stamp, expected.stamp);
    assert_eq!(outcome.length as usize, end - start);
    assert_eq!(outcome.chunk_length as usize, expected.bytes.len());
    assert!(into[..end - start] == expected.bytes[start..end], "the bytes read are those written");
    assert!(into[end - start..].iter().all(|&byte| byte == 0xee), "nothing beyond is touched");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 2000, ..ProptestConfig::default() })]
    #[test]
    fn the_engine_agrees_with_a_model(steps in proptest::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        for step in steps {
            world.run(step);
        }
        world.check();
        world.run(Step::Reopen);
        world.check();
    }
}
