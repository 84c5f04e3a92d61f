//! How long the slowest of many small writes take: threads that overwrite 4 KiB at random in chunks of 1 MiB.
//!
//!     cargo bench --bench chunk_tails [-- DIRECTORY THREADS SECONDS PAUSE_US]
//!
//! Between two writes a thread pauses, as a program does that waits for its mount: threads that want all processors at once
//! show how long the scheduler makes them wait. Prints updates a second, and of their times the median, p99, p99.9, p99.99 and the longest.

use std::path::PathBuf;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use luciola_core::chunk::{Engine, EngineOptions, Origin, Update};
use luciola_core::types::*;

const MIB: u32 = 1 << 20;
const CHUNKS: u32 = 256;
const SMALL: u32 = 4096;

fn write(engine: &Engine, index: u32, version: u64, offset: u32, bytes: &[u8]) {
    let chunk = ChunkId { content: ContentId(1), index };
    let update = Update {
        key: ChunkKey { chain: ChainId(1), chunk },
        stamp: Stamp { chain_version: ChainVersion(1), version: Version(version) },
        op: Op::Write { offset, length: bytes.len() as u32 },
        tag: RequestTag { client: ClientId(0x1234_5678_9abc_def0), sequence: version },
        origin: Origin::Client,
        fresh: false,
    };
    engine.stage_and_commit(&update, &bytes).expect("a write of the benchmark");
}

/// Overwrites of one thread in its own chunks, so that versions are known without asking; the time of each.
fn overwrite(engine: &Engine, first: u32, threads: u32, seconds: u64, pause: Duration) -> Vec<Duration> {
    let bytes = vec![first as u8; SMALL as usize];
    let mine: Vec<u32> = (first..CHUNKS).step_by(threads as usize).collect();
    let mut versions = vec![1; mine.len()];
    let mut state = u64::from(first) + 1;
    let mut times = Vec::new();
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (place, page) = ((state >> 33) as usize % mine.len(), (state >> 48) as u32 % (MIB / SMALL));
        versions[place] += 1;
        let begin = Instant::now();
        write(engine, mine[place], versions[place], page * SMALL, &bytes);
        times.push(begin.elapsed());
        if begin >= end {
            return times;
        }
        if !pause.is_zero() {
            thread::sleep(pause);
        }
    }
}

fn main() {
    // Cargo itself passes `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let place = arguments.first().map_or_else(std::env::temp_dir, PathBuf::from);
    let number =
        |at: usize, default| arguments.get(at).map_or(default, |word| word.parse().expect("a number"));
    let (threads, seconds) = (number(1, 8) as u32, number(2, 10));
    let pause = Duration::from_micros(number(3, 400));
    let dir = tempfile::tempdir_in(place).expect("a directory");
    let engine = Engine::open(&dir.path().join("engine"), EngineOptions::default()).expect("a new engine");
    let content = vec![7; MIB as usize];
    (0..CHUNKS).for_each(|index| write(&engine, index, 1, 0, &content));
    engine.sync().expect("what is overwritten is on the disk");

    let (engine, start) = (&engine, &Barrier::new(threads as usize));
    let began = Instant::now();
    let mut times: Vec<Duration> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|first| {
                scope.spawn(move || {
                    start.wait();
                    overwrite(engine, first, threads, seconds, pause)
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a thread of the benchmark")).collect()
    });
    let rate = times.len() as f64 / began.elapsed().as_secs_f64();
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    let shares = [0.5, 0.99, 0.999, 0.9999, 1.0].map(|share| format!("{:9.3}", at(share)));
    println!("{rate:8.0} a second; ms: {}", shares.join(" "));
}
