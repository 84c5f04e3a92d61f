//! Latency and throughput of the transports, as ratios to reading a local file with `preadv`.
//!
//!     cargo run --release --example transports
//!
//! The server is another process that reads one cached file, without an engine: this measures the way, not the disk.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use luciola_core::buffer::{BufferPool, Placement, read_vectored_at};
use luciola_core::net::{Connection, Endpoint, Secret, Sender, Server, ServerOptions, Service};
use luciola_core::types::*;
use luciola_core::wire::pb::Claims;

const FILE_BYTES: usize = 64 << 20;
const RUN: Duration = Duration::from_millis(1500);
const SECRET: [u8; 32] = [7; 32];

/// Reads come from the file, writes go to it: chunk `i` is its MiB `i`.
struct OneFile(File);

impl OneFile {
    fn place(chunk: ChunkId, offset: u32) -> u64 {
        (u64::from(chunk.index) << 20) + u64::from(offset)
    }
}

impl Service for OneFile {
    fn read(&self, ops: &[ReadOp], into: &[Placement], _: Instant, out: &mut Vec<ReadResult>) {
        for (op, into) in ops.iter().zip(into) {
            let length = into.read_at(&self.0, OneFile::place(op.chunk, op.offset)).unwrap() as u32;
            out.push(ReadResult { status: Status::Ok, length, version: Version(1) });
        }
    }

    fn update(
        &self,
        _: Sender<'_>,
        ops: &[UpdateOp],
        payload: &[Placement],
        _: Instant,
        out: &mut Vec<UpdateResult>,
    ) {
        for (op, payload) in ops.iter().zip(payload) {
            payload.write_at(&self.0, OneFile::place(op.chunk, 0)).unwrap();
            out.push(UpdateResult { status: Status::Ok, version: Version(1), length: payload.len() as u32 });
        }
    }

    fn sync(&self, _: Sender<'_>, chains: &[(ChainId, ChainVersion)], _: Instant, out: &mut Vec<Status>) {
        out.extend(chains.iter().map(|_| Status::Ok));
    }
}

fn serve(directory: &Path) {
    let file = File::options().read(true).write(true).open(directory.join("file")).unwrap();
    let mut options = ServerOptions::new(Secret::new(SECRET));
    options.tcp = Some("127.0.0.1:0".parse().unwrap());
    options.unix = Some(directory.join("sock"));
    let server = Server::start(options, Arc::new(OneFile(file))).unwrap();
    std::fs::write(directory.join("port.new"), server.tcp_address().unwrap().to_string()).unwrap();
    std::fs::rename(directory.join("port.new"), directory.join("port")).unwrap();
    // Ends with its parent.
    std::io::Read::read_to_end(&mut std::io::stdin(), &mut Vec::new()).unwrap();
}

/// What one operation costs, in seconds.
#[derive(Clone, Copy)]
struct Cost {
    elapsed: f64,
    /// Processor time of client and server together; on a busy machine the only number to trust.
    processor: f64,
}

/// Runs `work` for a while; `server` is the process that works for us.
fn cost(server: Option<u32>, mut work: impl FnMut(u32)) -> Cost {
    (0..200).for_each(&mut work);
    let used = || processor_s("self") + server.map_or(0.0, |server| processor_s(&server.to_string()));
    let (begun, before) = (Instant::now(), used());
    let mut count = 0;
    while begun.elapsed() < RUN {
        for _ in 0..8 {
            work(count);
            count += 1;
        }
    }
    let each = f64::from(count);
    Cost { elapsed: begun.elapsed().as_secs_f64() / each, processor: (used() - before) / each }
}

/// Processor time that a process has used.
fn processor_s(process: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let after_name = stat.rsplit(')').next().unwrap();
    let ticks: u64 =
        after_name.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    ticks as f64 / 100.0
}

fn op(n: u32, length: u32) -> ReadOp {
    let chunk = ChunkId { content: ContentId(1), index: n % (FILE_BYTES >> 20) as u32 };
    ReadOp { chain: ChainId(1), chain_version: ChainVersion(1), chunk, offset: 0, length }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(directory) = arguments.get(1) {
        return serve(Path::new(directory));
    }
    let directory = std::env::temp_dir().join(format!("luciola-transports-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let file = File::create_new(directory.join("file")).unwrap();
    (0..FILE_BYTES >> 20).for_each(|n| file.write_all_at(&vec![n as u8; 1 << 20], (n as u64) << 20).unwrap());
    let mut server = std::process::Command::new(std::env::current_exe().unwrap())
        .arg(&directory)
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    while !directory.join("port").exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    measure(&directory, server.id());
    drop(server.stdin.take());
    server.wait().unwrap();
    std::fs::remove_dir_all(&directory).unwrap();
}

fn measure(directory: &Path, server: u32) {
    let credential = Secret::new(SECRET).mint(&Claims::default());
    let deadline = || Instant::now() + Duration::from_secs(10);
    let file = File::open(directory.join("file")).unwrap();
    let pool = BufferPool::new(1 << 20, 2).unwrap();
    let shared = [pool.try_take().unwrap().into_placement()];
    let private = [Placement::private(1 << 20).unwrap()];
    let small = |place: &[Placement; 1]| [place[0].slice(0..4096)];
    let tcp: Endpoint =
        Endpoint::Tcp(std::fs::read_to_string(directory.join("port")).unwrap().parse().unwrap());
    let unix = Endpoint::Unix(directory.join("sock"));

    let preadv = |place: &[Placement]| {
        cost(None, |n| {
            let at = u64::from(n % (FILE_BYTES >> 20) as u32) << 20;
            assert_eq!(read_vectored_at(&file, place, at).unwrap(), place[0].len());
        })
    };
    let (local_small, local_large) = (preadv(&small(&private)), preadv(&private));
    println!("{:<22} {:>8} {:>14} {:>10} {:>12}", "", "µs", "processor µs", "MiB/s", "of preadv");
    let report = |name: &str, cost: Cost, bytes: usize, local: Cost| {
        let (elapsed, processor) = (cost.elapsed * 1e6, cost.processor * 1e6);
        let mib = bytes as f64 / (1 << 20) as f64 / cost.elapsed;
        let share = 100.0 * local.elapsed / cost.elapsed;
        println!("{name:<22} {elapsed:>8.1} {processor:>14.1} {mib:>10.0} {share:>11.1}%");
    };
    report("preadv 4 KiB", local_small, 4096, local_small);
    report("preadv 1 MiB", local_large, 1 << 20, local_large);
    for (name, endpoint, place) in
        [("shm", &unix, &shared), ("unix socket", &unix, &private), ("tcp", &tcp, &private)]
    {
        let mut connection = Connection::connect(endpoint, &credential, Duration::from_secs(5)).unwrap();
        let mut out = Vec::new();
        report(
            &format!("{name} ping"),
            cost(Some(server), |_| connection.ping(deadline()).unwrap()),
            0,
            local_small,
        );
        let place_small = small(place);
        let mut reads = |place: &[Placement; 1]| {
            cost(Some(server), |n| {
                connection.read(&[op(n, place[0].len() as u32)], place, deadline(), &mut out).unwrap();
                assert_eq!(out[0].length as usize, place[0].len());
            })
        };
        report(&format!("{name} read 4 KiB"), reads(&place_small), 4096, local_small);
        report(&format!("{name} read 1 MiB"), reads(place), 1 << 20, local_large);
        let mut out = Vec::new();
        let write = cost(Some(server), |n| {
            let update = UpdateOp {
                chain: ChainId(1),
                chain_version: ChainVersion(1),
                chunk: op(n, 0).chunk,
                op: Op::Write { offset: 0, length: 1 << 20 },
                tag: RequestTag::default(),
                settled: 0,
                version: Version(0),
                decided: ChainVersion(0),
                fresh: false,
                payload_crc: None,
            };
            connection.update(&[update], place, deadline(), &mut out).unwrap();
        });
        report(&format!("{name} write 1 MiB"), write, 1 << 20, local_large);
    }
}
