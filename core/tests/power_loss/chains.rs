//! A chain of two storage nodes that lose power together: while they serve, while one is away, while it is filled, and
//! again while the chain recovers.
//!
//! What a finished sync of the chain covers is on every replica that serves, so whichever of them resumes has it. A
//! replica that is being filled may be behind, but holds nothing that never was.

use std::path::Path;
use std::sync::Arc;

use luciola_core::chunk::{Engine, EngineOptions};
use luciola_core::storage::NodeOptions;
use luciola_core::types::*;

use super::chunks::restart;
use super::crash::Chance;
use super::disk::{Disk, Log};
use super::enumerate::{Case, Plan, Report, every_cut, every_cut_of, with_recorded_volume, with_volume};
use super::image::Image;
use super::storage_cluster::{CHAIN, Cluster, chunk, tag};
use super::{FIRST, for_each_seed, number};

const CHUNKS: usize = 3;
const LENGTH_MAX: usize = 3 * PAGE_BYTES as usize;
const NODES: [&str; 2] = ["node-0", "node-1"];
/// Later than any version that the workload comes to.
const RECOVERED: u64 = 100;
/// One in so many states is recovered by a chain, and power is lost again at every change that this makes.
const RECOVERIES: u64 = 200;
/// What the workload of the first seed has at least; fewer: a part of it is not tested any more.
const CUTS_MIN: usize = 700;
const STATES_MIN: usize = 1000;

fn small(options: &mut NodeOptions) {
    options.engine = engine_options();
}

fn engine_options() -> EngineOptions {
    EngineOptions {
        segment_bytes: 64 * u64::from(PAGE_BYTES),
        reserve_bytes: 0,
        cache_bytes: 1 << 20,
        sync_interval: None,
        ..EngineOptions::default()
    }
}

type Bytes = Arc<Vec<u8>>;

/// What happened, and how much was recorded when it began.
struct History {
    /// Of each chunk: its contents, of which the first is none.
    contents: Vec<Vec<(usize, Option<Bytes>)>>,
    /// When a sync had ended, and which contents it covers.
    synced: Vec<(usize, Vec<usize>)>,
    /// Whether the second replica serves, from when on.
    serves: Vec<(usize, bool)>,
}

impl History {
    fn promises(&self, cut: usize) -> usize {
        let ended = self.synced.partition_point(|&(position, _)| position <= cut);
        ended + self.serves.partition_point(|&(position, _)| position <= cut)
    }

    /// Contents that a chunk may have on a replica; one that serves has what was synced.
    fn allowed(&self, chunk: usize, cut: usize, serves: bool) -> &[(usize, Option<Bytes>)] {
        let ended = self.synced.partition_point(|&(position, _)| position <= cut);
        let first =
            if serves { ended.checked_sub(1).map_or(0, |place| self.synced[place].1[chunk]) } else { 0 };
        let end = self.contents[chunk].partition_point(|&(position, _)| position <= cut);
        &self.contents[chunk][first..end]
    }

    fn second_serves(&self, cut: usize) -> bool {
        self.serves[self.serves.partition_point(|&(position, _)| position <= cut) - 1].1
    }
}

struct Workload<'a> {
    cluster: Arc<Cluster>,
    disk: &'a Disk,
    volume: u64,
    chance: Chance,
    history: History,
    sequence: u64,
}

impl Workload<'_> {
    fn position(&self) -> usize {
        self.disk.position(self.volume)
    }

    fn write(&mut self) {
        let number = self.chance.below(CHUNKS);
        let before = self.history.contents[number].last().expect("the first is none").1.clone();
        let mut bytes = before.map_or_else(Vec::new, |bytes| bytes.to_vec());
        let offset = self.chance.below(bytes.len().min(LENGTH_MAX) + 1);
        let length = 1 + self.chance.below(PAGE_BYTES as usize + 100);
        let mut noise = Chance(self.chance.next());
        let payload: Vec<u8> = (0..length).map(|_| noise.next() as u8).collect();
        bytes.resize(bytes.len().max(offset + length), 0);
        bytes[offset..offset + length].copy_from_slice(&payload);
        self.history.contents[number].push((self.disk.position(self.volume), Some(Arc::new(bytes))));
        self.sequence += 1;
        let result = self.cluster.write(chunk(number as u32), offset as u32, &payload, tag(1, self.sequence));
        assert_eq!(result.status, Status::Ok);
    }

    fn writes(&mut self, count: usize) {
        (0..count).for_each(|_| self.write());
    }

    fn sync(&mut self) {
        let covered = self.history.contents.iter().map(|contents| contents.len() - 1).collect();
        assert_eq!(self.cluster.sync(), [Status::Ok]);
        self.history.synced.push((self.position(), covered));
    }

    fn live(&mut self) {
        self.writes(3);
        self.sync();
        self.writes(2);
        self.history.serves.push((self.position(), false));
        self.cluster.kill(1);
        self.cluster.set_state(1, TargetState::Offline);
        self.writes(2);
        self.sync();
        self.cluster.restart(1);
        self.cluster.set_state(1, TargetState::Syncing);
        self.writes(1);
        self.cluster.fill(1);
        self.writes(1);
        self.cluster.node(1).sync().expect("the disk works");
        self.history.serves.push((self.position(), true));
        self.cluster.set_state(1, TargetState::Serving);
        self.writes(2);
        self.sync();
        self.writes(2);
    }
}

fn record(disk: &Disk, seed: u64) -> (Log, History) {
    let (history, log) = with_recorded_volume(disk, &Image::default(), |path, volume| {
        let cluster = Cluster::start_in(path, &[TargetState::Serving; 2], 1, small);
        let contents = vec![vec![(0, None)]; CHUNKS];
        let history = History { contents, synced: Vec::new(), serves: vec![(0, true)] };
        let mut workload = Workload { cluster, disk, volume, chance: Chance(seed), history, sequence: 0 };
        workload.live();
        end(&workload.cluster);
        workload.history
    });
    (log, history)
}

/// Only then the directories are not in use any more.
fn end(cluster: &Cluster) {
    (0..NODES.len()).for_each(|node| cluster.kill(node));
}

fn content(engine: &Engine, number: usize) -> Result<Option<Vec<u8>>, Status> {
    let mut bytes = vec![0; 2 * LENGTH_MAX + PAGE_BYTES as usize];
    match engine.read(ChunkKey { chain: CHAIN, chunk: chunk(number as u32) }, 0, &mut &mut bytes[..]) {
        Ok(outcome) => {
            bytes.truncate(outcome.length as usize);
            Ok(Some(bytes))
        }
        Err(Status::NotFound) => Ok(None),
        Err(status) => Err(status),
    }
}

fn is_among(found: &Option<Vec<u8>>, allowed: &[(usize, Option<Bytes>)]) -> bool {
    allowed.iter().any(|(_, one)| one.as_deref() == found.as_ref())
}

/// Each replica alone. How many updates those that serve have seen, and so which of them resumes.
fn check(path: &Path, history: &History, cut: usize, serves: [bool; 2]) -> Result<usize, String> {
    let mut updates = [0; 2];
    for (node, name) in NODES.iter().enumerate() {
        let engine = Engine::open(&path.join(name), engine_options())
            .map_err(|error| format!("{name} does not open: {error}"))?;
        for number in 0..CHUNKS {
            let found = content(&engine, number)
                .map_err(|status| format!("{name}: chunk {number} cannot be read: {status:?}"))?;
            let allowed = history.allowed(number, cut, serves[node]);
            if !is_among(&found, allowed) {
                let length = found.map(|bytes| bytes.len());
                let lengths: Vec<_> =
                    allowed.iter().map(|(_, one)| one.as_ref().map(|bytes| bytes.len())).collect();
                return Err(format!(
                    "{name}: chunk {number} has {length:?} bytes, and not one of {lengths:?}"
                ));
            }
        }
        updates[node] = engine.usage(CHAIN).updates;
    }
    Ok(usize::from(serves[1] && (!serves[0] || updates[1] > updates[0])))
}

/// The chain resumes with `winner`; the other is filled, and both serve.
fn recover(path: &Path, winner: usize) {
    let mut states = [TargetState::Waiting; 2];
    states[winner] = TargetState::Serving;
    let cluster = Cluster::start_in(path, &states, RECOVERED, small);
    cluster.wait_until("what was pending is committed", || cluster.pending(winner) == 0);
    cluster.resync(1 - winner);
    if !cluster.lines(winner).is_empty() {
        cluster.assert_equal_replicas();
    }
    end(&cluster);
}

fn check_case(disk: &Disk, history: &History, case: &Case, image: &mut Image) -> Result<Report, String> {
    restart_all(image);
    let serves = [true, history.second_serves(case.cut)];
    let winner = with_volume(disk, image, |path| check(path, history, case.cut, serves))?;
    let mut report = Report { states: 1, ..Report::default() };
    if case.is_chosen(RECOVERIES) {
        report += check_recovery(disk, history, case, image, winner)?;
    }
    Ok(report)
}

fn check_recovery(
    disk: &Disk,
    history: &History,
    case: &Case,
    image: &Image,
    winner: usize,
) -> Result<Report, String> {
    let (recovered, log) = with_recorded_volume(disk, image, |path, _| {
        recover(path, winner);
        check(path, history, case.cut, [true; 2])
    });
    recovered.map_err(|what| format!("after the chain recovered, {what}"))?;
    let plan = Plan { seed: case.variant.seed, by_turns: 1, fixed: false, only: None, promises: &|_| 0 };
    let mut serves = [false; 2];
    serves[winner] = true;
    let report = every_cut(&log, &plan, &|_, image| {
        restart_all(image);
        with_volume(disk, image, |path| check(path, history, case.cut, serves))?;
        Ok(Report { states: 1, ..Report::default() })
    });
    let report = report.map_err(|fault| format!("while the chain recovered, {}", fault.what))?;
    Ok(Report { recoveries: 1, ..report })
}

fn restart_all(image: &mut Image) {
    NODES.iter().for_each(|name| restart(image, name));
}

#[test]
fn chains_keep_what_was_synced_when_both_nodes_lose_power() {
    if !super::can_mount() {
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let disk = Disk::mount(directory.path()).expect("mounts");
    for_each_seed(|seed| {
        let (log, history) = record(&disk, seed);
        let promises = |cut| history.promises(cut);
        let plan = Plan {
            seed,
            by_turns: 1,
            fixed: true,
            only: number("LUCIOLA_CUT").map(|cut| cut as usize),
            promises: &promises,
        };
        let report = every_cut_of(&log, &plan, &|case, image| check_case(&disk, &history, case, image));
        let is_first = seed == FIRST && plan.only.is_none();
        assert!(!is_first || (report.cuts >= CUTS_MIN && report.states >= STATES_MIN), "{report}");
        assert!(!is_first || report.recoveries > 0, "{report}");
        report
    });
}
