//! The chunk engine: updates of shared chunks beside rounds of `sync`, recovery's replacements, removals.
//!
//! A chunk goes through *moments*: what is committed and pending after each call. After power loss it must be in one of
//! those between the last that a finished `sync` covers and the last that had begun, with the right bytes and stamps.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};

use luciola_core::chunk::{Committed, Engine, EngineOptions, Install, Origin, Pending, Staged, Update};
use luciola_core::types::*;

use super::crash::Chance;
use super::disk::{Disk, Log};
use super::enumerate::{Case, Plan, Report, every_cut, every_cut_of, with_recorded_volume, with_volume};
use super::image::{Body, Image};
use super::{FIRST, for_each_seed, number};

const PAGE: u32 = PAGE_BYTES;
const CHUNKS: usize = 5;
const CLIENTS: u64 = 3;
/// Where a chunk's length stays below.
const LENGTH_MAX: u32 = 5 * PAGE;

fn options() -> EngineOptions {
    EngineOptions {
        segment_bytes: 64 * u64::from(PAGE),
        reserve_bytes: 0,
        cache_bytes: 1 << 20,
        sync_interval: None,
        on_round: Some(on_round),
        ..EngineOptions::default()
    }
}

fn key(chunk: usize) -> ChunkKey {
    ChunkKey { chain: ChainId(1), chunk: ChunkId { content: ContentId(7), index: chunk as u32 } }
}

/// One state of a chunk.
#[derive(Clone, PartialEq, Eq)]
struct Content {
    stamp: Stamp,
    removed: bool,
    bytes: Arc<Vec<u8>>,
    tag: RequestTag,
}

impl std::fmt::Debug for Content {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = if self.removed { "removed" } else { "bytes" };
        write!(formatter, "v{} ({} {what})", self.stamp.version.0, self.bytes.len())
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Moment {
    committed: Option<Content>,
    pending: Option<Content>,
}

impl Moment {
    fn is_like(&self, other: &Moment, whatever_tag: bool) -> bool {
        let mut mine = self.clone();
        if let (true, Some(content), Some(theirs)) = (whatever_tag, &mut mine.committed, &other.committed) {
            content.tag = theirs.tag;
        }
        mine == *other
    }

    fn version(&self) -> u64 {
        self.committed.as_ref().map_or(0, |content| content.stamp.version.0)
    }
}

/// What the workload did, and when.
struct History {
    /// Of each chunk: the moments, and how much was recorded when the call began that led there.
    moments: Vec<Vec<(usize, Moment)>>,
    /// How much was recorded when a `sync` had returned; the moments that it covers.
    synced: Vec<(usize, Vec<usize>)>,
}

impl History {
    fn promises(&self, cut: usize) -> usize {
        self.synced.partition_point(|&(position, _)| position <= cut)
    }

    /// The moments in which a chunk may be after power was lost before change number `cut`.
    fn allowed(&self, chunk: usize, cut: usize) -> &[(usize, Moment)] {
        let first = self.promises(cut).checked_sub(1).map_or(0, |place| self.synced[place].1[chunk]);
        let end = self.moments[chunk].partition_point(|&(position, _)| position <= cut);
        &self.moments[chunk][first..end]
    }
}

/// Lets a `sync` and the updates beside it take turns: the one who syncs waits at each step of the round.
#[derive(Default)]
struct Gate {
    turns: Mutex<Turns>,
    changed: Condvar,
}

#[derive(Default)]
struct Turns {
    arrivals: usize,
    departures: usize,
    is_over: bool,
}

thread_local! {
    /// The gate of a thread that syncs beside updates.
    static GATE: RefCell<Option<Arc<Gate>>> = const { RefCell::new(None) };
}

/// The engine's hook.
fn on_round() {
    if let Some(gate) = GATE.with_borrow(Option::clone) {
        gate.pass();
    }
}

impl Gate {
    fn pass(&self) {
        let mut turns = self.turns.lock().expect("not poisoned");
        turns.arrivals += 1;
        let mine = turns.arrivals;
        self.changed.notify_all();
        drop(self.changed.wait_while(turns, |turns| turns.departures < mine).expect("not poisoned"));
    }

    fn end(&self) {
        self.turns.lock().expect("not poisoned").is_over = true;
        self.changed.notify_all();
    }

    /// Waits until the one who syncs has arrived once more; false: the round is over.
    fn wait_for(&self, arrivals: usize) -> bool {
        let turns = self.turns.lock().expect("not poisoned");
        let is_early = |turns: &mut Turns| turns.arrivals < arrivals && !turns.is_over;
        !self.changed.wait_while(turns, is_early).expect("not poisoned").is_over
    }

    fn open(&self, departures: usize) {
        self.turns.lock().expect("not poisoned").departures = departures;
        self.changed.notify_all();
    }
}

/// Runs `sync` in a thread of its own; calls `beside` at each step of its round.
fn interleave(sync: impl FnOnce() + Send, mut beside: impl FnMut()) {
    let gate = Arc::new(Gate::default());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            GATE.set(Some(gate.clone()));
            sync();
            gate.end();
        });
        let mut step = 1;
        while gate.wait_for(step) {
            beside();
            gate.open(step);
            step += 1;
        }
    });
}

/// The program that loses power.
struct Workload<'a> {
    engine: &'a Engine,
    disk: &'a Disk,
    volume: u64,
    chance: Chance,
    history: History,
    sequences: HashMap<u64, u64>,
}

impl Workload<'_> {
    fn now(&self, chunk: usize) -> Moment {
        self.history.moments[chunk].last().expect("each chunk begins absent").1.clone()
    }

    /// The call that makes this moment is about to begin.
    fn begin(&mut self, chunk: usize, moment: Moment) {
        self.history.moments[chunk].push((self.disk.position(self.volume), moment));
    }

    fn tag(&mut self) -> RequestTag {
        let client = 1 + self.chance.next() % CLIENTS;
        let sequence = self.sequences.entry(client).or_insert(0);
        *sequence += 1;
        RequestTag { client: ClientId(client), sequence: *sequence }
    }

    fn noise(&mut self, length: u32) -> Vec<u8> {
        let mut chance = Chance(self.chance.next());
        (0..length.div_ceil(8)).flat_map(|_| chance.next().to_le_bytes()).take(length as usize).collect()
    }

    fn step(&mut self) {
        let chunk = self.chance.below(CHUNKS);
        let now = self.now(chunk);
        match (now.pending, self.chance.below(100)) {
            (Some(pending), 0..70) => self.commit(chunk, pending),
            (Some(pending), 70..80) => self.drop_pending(chunk, pending),
            (_, 80..90) => self.install(chunk),
            (Some(_), _) => {}
            (None, 75..80) if now.committed.as_ref().is_some_and(|content| content.removed) => {
                self.erase(chunk)
            }
            (None, kind) => {
                self.stage(chunk, kind);
                if let Some(pending) = self.now(chunk).pending
                    && self.chance.below(3) > 0
                {
                    self.commit(chunk, pending);
                }
            }
        }
    }

    fn stage(&mut self, chunk: usize, kind: usize) {
        let now = self.now(chunk);
        let before = now.committed.as_ref().map_or(&[][..], |content| &content.bytes);
        let length = before.len() as u32;
        let mut bytes = before.to_vec();
        let version = match now.committed {
            Some(_) => now.version() + 1,
            None => self.engine.floor().0 + 1,
        };
        let op = match kind {
            0..40 if length < LENGTH_MAX => {
                Op::Write { offset: length, length: 1 + self.chance.below(PAGE as usize) as u32 }
            }
            40..50 => Op::Truncate { length: self.chance.below(LENGTH_MAX as usize) as u32 },
            50..58 if now.committed.is_some() => Op::Remove,
            _ => Op::Write {
                offset: self.chance.below(length.max(1) as usize) as u32,
                length: 1 + self.chance.below(2 * PAGE as usize) as u32,
            },
        };
        let mut payload = Vec::new();
        match op {
            Op::Write { offset, length } => {
                payload = self.noise(length);
                bytes.resize(bytes.len().max((offset + length) as usize), 0);
                bytes[offset as usize..(offset + length) as usize].copy_from_slice(&payload);
            }
            Op::Truncate { length } => bytes.resize(length as usize, 0),
            _ => bytes.clear(),
        }
        let stamp = Stamp { chain_version: ChainVersion(1), version: Version(version) };
        let tag = self.tag();
        let removed = op == Op::Remove;
        let content = Some(Content { stamp, removed, bytes: Arc::new(bytes), tag });
        let update = Update { key: key(chunk), stamp, op, tag, origin: Origin::Client, fresh: true };
        let (outcome, expected) = if self.chance.below(3) == 0 {
            self.begin(chunk, Moment { committed: content, pending: None });
            (self.engine.stage_and_commit(&update, &payload), Staged::Committed)
        } else {
            self.begin(chunk, Moment { pending: content, ..now });
            (self.engine.stage(&update, &payload), Staged::Pending)
        };
        assert_eq!(outcome.map(|outcome| outcome.staged), Ok(expected));
    }

    fn commit(&mut self, chunk: usize, pending: Content) {
        let version = pending.stamp.version;
        self.begin(chunk, Moment { committed: Some(pending), pending: None });
        self.engine.commit(key(chunk), version, ChainVersion(1)).expect("what is pending can be committed");
    }

    fn drop_pending(&mut self, chunk: usize, pending: Content) {
        let now = self.now(chunk);
        self.begin(chunk, Moment { pending: None, ..now });
        self.engine.drop_pending(key(chunk), pending.stamp.version).expect("what is pending can be dropped");
    }

    /// As recovery does it: the whole chunk, some versions ahead, at once.
    fn install(&mut self, chunk: usize) {
        let now = self.now(chunk);
        let version = now.version().max(self.engine.floor().0) + 1 + self.chance.next() % 3;
        let stamp = Stamp { chain_version: ChainVersion(1), version: Version(version) };
        let removed = self.chance.below(6) == 0;
        let length = if removed { 0 } else { self.chance.below(LENGTH_MAX as usize) as u32 };
        let mut bytes = self.noise(length);
        // A page of zeros becomes a hole.
        if length > 2 * PAGE && self.chance.below(2) == 0 {
            bytes[..PAGE as usize].fill(0);
        }
        let tag = self.tag();
        let committed = Some(Content { stamp, removed, bytes: Arc::new(bytes.clone()), tag });
        // What was pending does not come back if the replacement is lost: the predecessor decides what is here (R8).
        if now.pending.is_some() {
            self.begin(chunk, Moment { pending: None, ..now });
        }
        self.begin(chunk, Moment { committed, pending: None });
        let install = Install { key: key(chunk), stamp, removed, tag, writers: &[] };
        self.engine.install(&install, &bytes).expect("any version can be installed");
    }

    fn erase(&mut self, chunk: usize) {
        self.begin(chunk, Moment::default());
        self.engine.erase(key(chunk)).expect("any record can be erased");
    }

    fn sync(&mut self) {
        let covered = self.history.moments.iter().map(|moments| moments.len() - 1).collect();
        let engine = self.engine;
        let beside = || {
            for _ in 0..self.chance.below(4) {
                self.step();
            }
        };
        interleave(|| engine.sync().expect("the disk works"), beside);
        self.history.synced.push((self.disk.position(self.volume), covered));
    }
}

/// A busy engine on a new volume, recorded; it ends as a process that is killed.
fn record(disk: &Disk, seed: u64, steps: usize) -> (Log, History) {
    let (history, log) = with_recorded_volume(disk, &Image::default(), |path, volume| {
        let engine = Engine::open(&path.join("chunks"), options()).expect("a new directory opens");
        let history = History {
            moments: vec![vec![(0, Moment::default())]; CHUNKS],
            synced: vec![(disk.position(volume), vec![0; CHUNKS])],
        };
        let chance = Chance(seed);
        let mut workload =
            Workload { engine: &engine, disk, volume, chance, history, sequences: HashMap::new() };
        for _ in 0..steps {
            match workload.chance.below(8) {
                0 => workload.sync(),
                _ => workload.step(),
            }
        }
        workload.history
    });
    (log, history)
}

/// What a chunk is now.
fn look(engine: &Engine, chunk: usize) -> Result<Moment, String> {
    let mut moment = Moment::default();
    let failed = |what: &str, status| format!("chunk {chunk}: {what} fails with {status:?}");
    let Some(state) = engine.lookup(key(chunk)).map_err(|status| failed("lookup", status))? else {
        return Ok(moment);
    };
    let mut buffer = vec![0; 4 * LENGTH_MAX as usize];
    if let Some(committed) = state.committed {
        let mut bytes = Vec::new();
        if !committed.removed {
            let outcome =
                engine.read(key(chunk), 0, &mut &mut buffer[..]).map_err(|status| failed("read", status))?;
            bytes = buffer[..outcome.length as usize].to_vec();
        }
        // A chunk knows the request that made it what it is: a repetition is recognised.
        let tag = state.writers.iter().find(|writer| writer.version == committed.stamp.version);
        let tag = tag.map(|writer| writer.tag).unwrap_or_default();
        let Committed { stamp, removed, .. } = committed;
        moment.committed = Some(Content { stamp, removed, bytes: Arc::new(bytes), tag });
    }
    if let Some(pending) = state.pending {
        let outcome = engine
            .read_pending(key(chunk), 0, &mut &mut buffer[..])
            .map_err(|status| failed("read of what is pending", status))?;
        let bytes = Arc::new(buffer[..outcome.length as usize].to_vec());
        let Pending { stamp, removed, tag, .. } = pending;
        moment.pending = Some(Content { stamp, removed, bytes, tag });
    }
    Ok(moment)
}

/// Opens what power loss left, and compares it with what was promised.
/// `was_opened`: it may have fallen back before.
fn check(path: &Path, history: &History, cut: usize, was_opened: bool) -> Result<(), String> {
    let directory = path.join("chunks");
    let engine = Engine::open(&directory, options()).map_err(|error| format!("does not open: {error}"))?;
    let report = engine.open_report();
    if !report.unreadable.is_empty() {
        return Err(format!("records that cannot be read: {:?}", report.unreadable));
    }
    let mut found = Vec::new();
    for chunk in 0..CHUNKS {
        let moment = look(&engine, chunk)?;
        let allowed = history.allowed(chunk, cut);
        // A record keeps the last request of each client. If that one is gone, the one before is not remembered either;
        // its client has had the answer.
        let is_forgetful = was_opened || report.fallen_back.contains(&key(chunk));
        if !allowed.iter().any(|(_, one)| moment.is_like(one, is_forgetful)) {
            let allowed = names(allowed);
            return Err(format!(
                "chunk {chunk} is {moment:?}, and not one of {allowed:?}; opening found {report:?}"
            ));
        }
        found.push(moment);
    }
    resume(&engine, &found)
}

fn names(moments: &[(usize, Moment)]) -> Vec<&Moment> {
    moments.iter().map(|(_, moment)| moment).collect()
}

/// The engine works as before: takes an update of every chunk, and leaks nothing.
fn resume(engine: &Engine, found: &[Moment]) -> Result<(), String> {
    for (chunk, moment) in found.iter().enumerate() {
        if let Some(pending) = &moment.pending {
            let version = pending.stamp.version;
            engine
                .commit(key(chunk), version, ChainVersion(1))
                .map_err(|status| format!("chunk {chunk}: commit of {version:?} fails with {status:?}"))?;
        }
        let committed = moment.pending.as_ref().or(moment.committed.as_ref());
        let version = committed.map_or(engine.floor().0, |content| content.stamp.version.0) + 1;
        let stamp = Stamp { chain_version: ChainVersion(2), version: Version(version) };
        let before = committed.map_or(&[][..], |content| &content.bytes);
        let payload = b"resumes";
        let offset = before.len() as u32;
        let op = Op::Write { offset, length: payload.len() as u32 };
        let tag = RequestTag { client: ClientId(9), sequence: 1 };
        let update = Update { key: key(chunk), stamp, op, tag, origin: Origin::Client, fresh: true };
        engine
            .stage(&update, &&payload[..])
            .and_then(|_| engine.commit(key(chunk), stamp.version, stamp.chain_version))
            .map_err(|status| format!("chunk {chunk}: a further write fails with {status:?}"))?;
        let mut buffer = vec![0; before.len() + payload.len()];
        let outcome = engine
            .read(key(chunk), 0, &mut &mut buffer[..])
            .map_err(|status| format!("chunk {chunk}: reading what was written on fails with {status:?}"))?;
        if outcome.length as usize != buffer.len()
            || buffer[..before.len()] != *before
            || !buffer.ends_with(payload)
        {
            return Err(format!("chunk {chunk} has other bytes after a further write"));
        }
    }
    engine.sync().map_err(|status| format!("sync fails with {status:?}"))?;
    let owned = engine.usage(ChainId(1)).page_bytes;
    let used = engine.space().map_err(|status| format!("space fails with {status:?}"))?.used_bytes;
    if owned != used {
        return Err(format!("{used} bytes are in use, and chunks have {owned}"));
    }
    Ok(())
}

/// The next start of the engine in `directory` is one after power loss: another kernel runs.
pub fn restart(image: &mut Image, directory: &str) {
    if let Some(boot) = file_mut(image, &[directory, "boot"])
        && boot.length > 0
    {
        boot.write(0, b"another kernel, ");
    }
}

fn file_mut<'a>(image: &'a mut Image, path: &[&str]) -> Option<&'a mut super::image::Content> {
    let mut inode = image.root;
    for name in path {
        let Some(Body::Directory(names)) = image.bodies.get(&inode) else { return None };
        inode = *names.get(name.as_bytes())?;
    }
    match image.bodies.get_mut(&inode) {
        Some(Body::File(content)) => Some(content),
        _ => None,
    }
}

/// One in so many states is opened on a recorded disk, and power is lost again at every change that opening makes.
const RECOVERIES: u64 = 150;
/// What the workload of the first seed has; fewer: a part of it is not tested any more.
const CUTS_MIN: usize = 2000;
const STATES_MIN: usize = 3000;

fn check_case(disk: &Disk, history: &History, case: &Case, image: &mut Image) -> Result<Report, String> {
    restart(image, "chunks");
    let mut report = Report { states: 1, ..Report::default() };
    if case.is_chosen(RECOVERIES) {
        report += check_recovery(disk, history, case, image)?;
    }
    with_volume(disk, image, |path| check(path, history, case.cut, false))?;
    Ok(report)
}

/// Power is lost again while the engine opens what power loss left.
fn check_recovery(disk: &Disk, history: &History, case: &Case, image: &Image) -> Result<Report, String> {
    let (opened, log) = with_recorded_volume(disk, image, |path, _| {
        Engine::open(&path.join("chunks"), options())
            .map(drop)
            .map_err(|error| format!("does not open: {error}"))
    });
    opened?;
    let plan = Plan { seed: case.variant.seed, by_turns: 1, fixed: false, only: None, promises: &|_| 0 };
    let report = every_cut(&log, &plan, &|_, image| {
        restart(image, "chunks");
        with_volume(disk, image, |path| check(path, history, case.cut, true))?;
        Ok(Report { states: 1, ..Report::default() })
    });
    let report = report.map_err(|fault| format!("while this was opened again, {}", fault.what))?;
    Ok(Report { recoveries: 1, ..report })
}

#[test]
fn chunks_keep_their_promises_whenever_power_is_lost() {
    if !super::can_mount() {
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let disk = Disk::mount(directory.path()).expect("mounts");
    for_each_seed(|seed| {
        let (log, history) = record(&disk, seed, 80);
        let promises = |cut| history.promises(cut);
        let plan = Plan {
            seed,
            by_turns: 2,
            fixed: true,
            only: number("LUCIOLA_CUT").map(|cut| cut as usize),
            promises: &promises,
        };
        let report = every_cut_of(&log, &plan, &|case, image| check_case(&disk, &history, case, image));
        let is_first = seed == FIRST && plan.only.is_none();
        assert!(!is_first || (report.cuts >= CUTS_MIN && report.states >= STATES_MIN), "{report}");
        assert!(!is_first || report.recoveries > 5, "{report}");
        report
    });
}
