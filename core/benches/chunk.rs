//! The chunk engine beside plain `pwrite` and `pread` of the same bytes in the same run.
//!
//!     cargo bench --bench chunk [-- DIRECTORY]
//!
//! Each row: median time of one operation of the engine, of the plain file, and the ratio of their speeds.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use luciola_core::buffer::Region;
use luciola_core::chunk::{Engine, EngineOptions, Origin, Source, Update};
use luciola_core::types::*;

const MIB: usize = 1 << 20;
const CHUNKS: u32 = 512;
const SMALL: usize = 4096;
/// Chunks from here on are written from shared memory.
const SHARED: u32 = 1 << 20;
const ROUNDS: u32 = 20_000;

fn key(index: u32) -> ChunkKey {
    ChunkKey { chain: ChainId(1), chunk: ChunkId { content: ContentId(1), index } }
}

fn write(engine: &Engine, index: u32, version: u64, offset: u32, bytes: &[u8]) {
    write_from(engine, index, version, (offset, bytes.len() as u32), &bytes);
}

fn write_from(engine: &Engine, index: u32, version: u64, (offset, length): (u32, u32), bytes: &dyn Source) {
    let stamp = Stamp { chain_version: ChainVersion(1), version: Version(version) };
    let op = Op::Write { offset, length };
    let tag = RequestTag { client: ClientId(1), sequence: version };
    engine
        .stage(&Update { key: key(index), stamp, op, tag, origin: Origin::Client, fresh: false }, bytes)
        .unwrap();
    engine.commit(key(index), stamp.version, stamp.chain_version).unwrap();
}

/// The median time of one call: other programs on the machine disturb a mean.
fn per_op(count: u32, mut work: impl FnMut(u32)) -> Duration {
    let mut times: Vec<Duration> = (0..count)
        .map(|n| {
            let start = Instant::now();
            work(n);
            start.elapsed()
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}

fn row(name: &str, engine: Duration, plain: Duration) {
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    println!(
        "{name:38} {:10.1} us {:10.1} us {:8.0} %",
        micros(engine),
        micros(plain),
        plain.as_secs_f64() / engine.as_secs_f64() * 100.0
    );
}

/// A cheap sequence of places.
fn scatter(n: u32) -> u32 {
    n.wrapping_mul(2_654_435_761) >> 8
}

fn main() {
    // Cargo itself passes `--bench`.
    let place = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let place = place.map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(place).unwrap();
    let engine = Engine::open(&dir.path().join("engine"), EngineOptions::default()).unwrap();
    let plain = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(dir.path().join("plain"))
        .unwrap();
    let bytes: Vec<u8> = (0..MIB).map(|n| (n * 31 % 253) as u8).collect();
    println!("{:38} {:>13} {:>13} {:>10}", "", "engine", "plain file", "speed");

    let fresh = per_op(CHUNKS, |n| write(&engine, n, 1, 0, &bytes));
    let fresh_plain = per_op(CHUNKS, |n| plain.write_all_at(&bytes, u64::from(n) * MIB as u64).unwrap());
    row("write 1 MiB, new (stage + commit)", fresh, fresh_plain);

    let region = Region::create(MIB).unwrap();
    let shared = region.placement(0, MIB).unwrap();
    shared.copy_from(&bytes);
    let fresh = per_op(CHUNKS, |n| write_from(&engine, SHARED + n, 1, (0, MIB as u32), &shared));
    row("the same from shared memory", fresh, fresh_plain);

    let again = per_op(CHUNKS, |n| write(&engine, n, 2, 0, &bytes));
    let again_plain = per_op(CHUNKS, |n| plain.write_all_at(&bytes, u64::from(n) * MIB as u64).unwrap());
    row("write 1 MiB, over the old", again, again_plain);

    read_rows(&engine, &plain);
    small_writes(&engine, &plain, &bytes);

    engine.sync().unwrap();
    let synced = per_op(20, |n| {
        write(&engine, n, 3 + u64::from(ROUNDS.div_ceil(CHUNKS)), 0, &bytes[..SMALL]);
        engine.sync().unwrap();
    });
    plain.sync_data().unwrap();
    let synced_plain = per_op(20, |n| {
        plain.write_all_at(&bytes[..SMALL], u64::from(n) * MIB as u64).unwrap();
        plain.sync_data().unwrap();
    });
    row("write 4 KiB and sync", synced, synced_plain);
    println!("records in memory: {} KiB", engine.cache_bytes() >> 10);
}

fn read_rows(engine: &Engine, plain: &File) {
    let mut into = vec![0; MIB];
    let read = |engine: &Engine, index, offset, into: &mut [u8]| {
        engine.read(key(index), offset, &mut &mut into[..]).unwrap();
    };
    // Each once before it counts.
    (0..CHUNKS).for_each(|n| read(engine, n, 0, &mut into));
    (0..CHUNKS).for_each(|n| plain.read_exact_at(&mut into, u64::from(n) * MIB as u64).unwrap());
    let large = per_op(4 * CHUNKS, |n| read(engine, n % CHUNKS, 0, &mut into));
    let large_plain =
        per_op(4 * CHUNKS, |n| plain.read_exact_at(&mut into, u64::from(n % CHUNKS) * MIB as u64).unwrap());
    row("read 1 MiB", large, large_plain);
    let small = per_op(ROUNDS, |n| {
        let offset = scatter(n) % (MIB / SMALL) as u32 * SMALL as u32;
        read(engine, scatter(n) % CHUNKS, offset, &mut into[..SMALL]);
    });
    let small_plain = per_op(ROUNDS, |n| {
        let offset = u64::from(scatter(n) % (MIB / SMALL) as u32) * SMALL as u64;
        plain
            .read_exact_at(&mut into[..SMALL], u64::from(scatter(n) % CHUNKS) * MIB as u64 + offset)
            .unwrap();
    });
    row("read 4 KiB, random", small, small_plain);
}

fn small_writes(engine: &Engine, plain: &File, bytes: &[u8]) {
    let place = |n: u32| scatter(n) % (MIB / SMALL) as u32 * SMALL as u32;
    // Every chunk in turn, so that versions are known without asking.
    let small = per_op(ROUNDS, |n| {
        write(engine, n % CHUNKS, 3 + u64::from(n / CHUNKS), place(n), &bytes[..SMALL]);
    });
    let small_plain = per_op(ROUNDS, |n| {
        let offset = u64::from(n % CHUNKS) * MIB as u64 + u64::from(place(n));
        plain.write_all_at(&bytes[..SMALL], offset).unwrap();
    });
    row("write 4 KiB over 1 MiB chunks, random", small, small_plain);
    let append = per_op(ROUNDS, |n| {
        let offset = n % 256 * SMALL as u32;
        write(engine, CHUNKS + n / 256, 1 + u64::from(n % 256), offset, &bytes[..SMALL]);
    });
    let append_plain = per_op(ROUNDS, |n| {
        let end = u64::from(CHUNKS) * MIB as u64;
        plain.write_all_at(&bytes[..SMALL], end + u64::from(n) * SMALL as u64).unwrap();
    });
    row("append 4 KiB", append, append_plain);
}
