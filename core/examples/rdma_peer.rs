//! One end of a data-plane connection over RDMA, driven by lines on standard input; what another implementation of the
//! protocol is tested against (`tests/rdma`).
//!
//! rdma_peer serve DEVICE                  prints its TCP port; `connections`, `chunk CONTENT INDEX`, `put … LENGTH SEED`,
//!                                         `hang` (in the next batch), `release`
//! rdma_peer store DEVICE DIRECTORY        the same on a storage node, whose chunks are in files there; it only serves
//! rdma_peer drive DEVICE ADDRESS [strict] `connect`, `ping`, `write CONTENT INDEX LENGTH SEED`, `read CONTENT INDEX
//!                                         LENGTH DEADLINE_MS`, `peek`, `measure …`; strict: no falling back to TCP
//! rdma_peer wire DEVICE DEVICE            two ends of the transport alone, without frames, checksums and services:
//!                                         `write|read SIZE DEPTH COUNT`, issued by the second; `checksum SIZE COUNT`
//!
//! Each line is answered by one. It ends with its input.

#[path = "../tests/fake/mod.rs"]
mod fake;

use std::fmt::Debug;
use std::io::{self, BufRead, Write, stdin, stdout};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fake::{Fault, Running, SECRET, credential, read_op, write_op};
use luciola_core::buffer::{BufferPool, Placement};
use luciola_core::cluster::Transport;
use luciola_core::cluster::routing::own_boot_id;
use luciola_core::net::{Endpoint, Pool, Secret};
use luciola_core::rdma::{Fabric, Half, RdmaOptions, Transfer};
use luciola_core::storage::{NodeOptions, StorageServer};
use luciola_core::types::*;
use luciola_core::wire::pb::{self, claims::Role};
use luciola_core::wire::rdma::RemoteMemory;

const CHUNK_BYTES: usize = 1 << 20;
const LONG: Duration = Duration::from_secs(60);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["serve", device] => serve(device),
        ["store", device, directory] => store(device, directory),
        ["wire", client, server] => wire(client, server),
        ["drive", device, address] => drive(device, address, true),
        ["drive", device, address, "strict"] => drive(device, address, false),
        _ => panic!(
            "serve DEVICE | store DEVICE DIRECTORY | drive DEVICE ADDRESS [strict] | wire DEVICE DEVICE"
        ),
    }
}

fn fabric(device: &str) -> Arc<Fabric> {
    Fabric::new(RdmaOptions { devices: vec![device.to_owned()], ..RdmaOptions::default() })
}

fn serve(device: &str) {
    let running = Running::with(|options| options.fabric = Some(fabric(device)));
    say(&running.server.tcp_address().unwrap().port().to_string());
    answer_lines(|words| match words {
        ["connections"] => running.server.connection_count().to_string(),
        ["chunk", content, index] => {
            let chunk = running.fake.chunk(1, number(content), number(index) as u32);
            chunk.map_or("none".to_owned(), |bytes| hexadecimal(&bytes))
        }
        ["hang"] => {
            running.fake.fail([Fault::Hang]);
            "ok".to_owned()
        }
        ["release"] => {
            running.fake.release();
            "ok".to_owned()
        }
        ["put", content, index, length, seed] => {
            running.fake.put(1, number(content), number(index) as u32, &pattern(length, seed));
            "ok".to_owned()
        }
        _ => format!("unknown: {words:?}"),
    });
}

/// A node with one replica of chain 1, which is alone in it and keeps its lease.
fn store(device: &str, directory: &str) {
    let mut options = NodeOptions::new(NodeId(1), PathBuf::from(directory), Secret::new(SECRET));
    options.transport = Transport::Rdma;
    options.rdma = RdmaOptions { devices: vec![device.to_owned()], ..RdmaOptions::default() };
    options.engine.reserve_bytes = 0;
    let server = StorageServer::start(options).unwrap();
    let address = server.tcp_address().unwrap();
    let node = pb::Node {
        id: 1,
        kind: pb::NodeKind::NodeStorage as i32,
        status: pb::NodeStatus::Connected as i32,
        data_address: address.to_string(),
        boot_id: own_boot_id().to_owned(),
        ..pb::Node::default()
    };
    let state = pb::PublicState::Serving as i32;
    let target = pb::Target { id: 1, node: 1, state, ..pb::Target::default() };
    let chain = pb::Chain { id: 1, version: 1, targets: vec![target], ..pb::Chain::default() };
    let routing =
        pb::Routing { version: 1, nodes: vec![node], chains: vec![chain], ..pb::Routing::default() };
    server.set_routing(routing).unwrap();
    server.set_lease(u64::MAX, 1);
    say(&address.port().to_string());
    answer_lines(|words| format!("unknown: {words:?}"));
}

/// What a server does with its link, and nothing else; the other end sleeps.
fn wire(client: &str, server: &str) {
    let (client, server) = (fabric(client), fabric(server));
    let port = |fabric: &Arc<Fabric>| fabric.ports().into_iter().next().expect("a port that can be used");
    let ours = Half::new(&client, &port(&client), true).unwrap();
    let theirs = Half::new(&server, &port(&server), false).unwrap();
    let (our_end, their_end) = (*ours.end(), *theirs.end());
    let (passive, mut link) = (ours.connect(&their_end).unwrap(), theirs.connect(&our_end).unwrap());
    let (_other, socket) = UnixStream::pair().unwrap();
    say("ready");
    answer_lines(|words| match words {
        [what @ ("write" | "read"), size, depth, count] => {
            let (size, depth) = (number(size) as usize, number(depth) as usize);
            let take = |fabric: &Arc<Fabric>| fabric.buffers().take(size).unwrap();
            let far: Vec<Placement> = (0..depth).map(|_| take(&client)).collect();
            let transfers: Vec<Transfer> = far
                .iter()
                .map(|place| {
                    let rkey = passive.keys(place).unwrap().rkey;
                    let remote = RemoteMemory { address: place.as_ptr() as u64, rkey };
                    Transfer { local: take(&server), remote }
                })
                .collect();
            microseconds(number(count), || {
                let deadline = Instant::now() + LONG;
                if *what == "read" {
                    return link.read(&transfers, socket.as_fd(), deadline);
                }
                link.write(&transfers, socket.as_fd(), deadline)?;
                link.settle(socket.as_fd(), deadline)
            })
        }
        ["checksum", size, count] => {
            let place = server.buffers().take(number(size) as usize).unwrap();
            place.copy_from(&pattern(size, "1"));
            microseconds(number(count), || {
                std::hint::black_box(place.crc32c());
                io::Result::Ok(())
            })
        }
        _ => format!("unknown: {words:?}"),
    });
}

fn drive(device: &str, address: &str, may_fall_back: bool) {
    let endpoint =
        Endpoint::Rdma { address: address.parse().unwrap(), fabric: fabric(device), may_fall_back };
    let pool = Pool::new(endpoint, credential(Role::Client), 1);
    let memory = BufferPool::new(CHUNK_BYTES, 8).unwrap();
    let mut last: Option<Placement> = None;
    let mut sequence = 0;
    answer_lines(|words| {
        let within = match words {
            ["read", .., limit] => Duration::from_millis(number(limit)),
            _ => LONG,
        };
        let deadline = Instant::now() + within;
        if let ["peek"] = words {
            return last.as_ref().map_or("none".to_owned(), |place| hexadecimal(&place.to_vec()));
        }
        let mut connection = match pool.get(deadline) {
            Ok(connection) => connection,
            Err(error) => return format!("error {error}"),
        };
        match words {
            ["connect"] => if connection.is_remote_direct() { "rdma" } else { "tcp" }.to_owned(),
            ["ping"] => status(connection.ping(deadline)),
            // Writes (or reads, after that) of SIZE bytes, DEPTH to a batch, COUNT batches; the microseconds of each.
            ["measure", "ping", count] => {
                microseconds(number(count), || connection.ping(Instant::now() + LONG))
            }
            ["measure", "read", size, depth, count] => {
                let ops: Vec<_> = (0..number(depth))
                    .map(|n| read_op(measured(size), n as u32, 0, number(size) as u32))
                    .collect();
                let places = places(&memory, number(size) as usize, ops.len());
                microseconds(number(count), || {
                    let mut out = Vec::new();
                    connection.read(&ops, &places, Instant::now() + LONG, &mut out)?;
                    all_ok(out.iter().map(|result| result.status))
                })
            }
            ["measure", "write", size, depth, count] => {
                let places = places(&memory, number(size) as usize, number(depth) as usize);
                microseconds(number(count), || {
                    sequence += 1;
                    let ops: Vec<_> = (0..number(depth))
                        .map(|n| write_op(measured(size), n as u32, 0, number(size) as u32, sequence))
                        .collect();
                    let mut out = Vec::new();
                    connection.update(&ops, &places, Instant::now() + LONG, &mut out)?;
                    all_ok(out.iter().map(|result| result.status))
                })
            }
            ["write", content, index, length, seed] => {
                let bytes = pattern(length, seed);
                let payload = memory.try_take().unwrap().slice(0..bytes.len());
                payload.copy_from(&bytes);
                sequence += 1;
                let op = write_op(number(content), number(index) as u32, 0, bytes.len() as u32, sequence);
                let mut out = Vec::new();
                match connection.update(&[op], &[payload], deadline, &mut out) {
                    Ok(()) => format!("{:?} {}", out[0].status, out[0].length),
                    Err(status) => format!("{status:?}"),
                }
            }
            ["read", content, index, length, _] => {
                let length = number(length) as usize;
                last = None;
                let place = memory.try_take().unwrap().slice(0..length);
                place.copy_from(&vec![0xee; length]);
                let op = read_op(number(content), number(index) as u32, 0, length as u32);
                let mut out = Vec::new();
                let result = connection.read(&[op], std::slice::from_ref(&place), deadline, &mut out);
                last = Some(place);
                match result {
                    Ok(()) => format!("{:?} {}", out[0].status, out[0].length),
                    Err(status) => format!("{status:?}"),
                }
            }
            _ => format!("unknown: {words:?}"),
        }
    });
}

/// The content whose chunks have this size.
fn measured(size: &str) -> u64 {
    100 + number(size)
}

/// Places of `size` bytes each, as many to a buffer as fit.
fn places(memory: &BufferPool, size: usize, count: usize) -> Vec<Placement> {
    let to_a_buffer = (CHUNK_BYTES / size).max(1);
    let buffers: Vec<_> = (0..count.div_ceil(to_a_buffer)).map(|_| memory.try_take().unwrap()).collect();
    let place =
        |n: usize| buffers[n / to_a_buffer].slice(n % to_a_buffer * size..(n % to_a_buffer + 1) * size);
    (0..count).map(place).collect()
}

fn answer_lines(mut answer: impl FnMut(&[&str]) -> String) {
    for line in stdin().lock().lines() {
        let line = line.unwrap();
        say(&answer(&line.split_whitespace().collect::<Vec<_>>()));
    }
}

fn say(text: &str) {
    let mut out = stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).unwrap();
}

fn microseconds<E: Debug>(count: u64, mut work: impl FnMut() -> Result<(), E>) -> String {
    let mut all = Vec::new();
    for _ in 0..count {
        let start = Instant::now();
        if let Err(error) = work() {
            return format!("{error:?}");
        }
        all.push(start.elapsed().as_micros().to_string());
    }
    all.join(" ")
}

fn all_ok(mut statuses: impl Iterator<Item = Status>) -> Result<(), Status> {
    statuses.find(|status| *status != Status::Ok).map_or(Ok(()), Err)
}

fn status(result: Result<(), Status>) -> String {
    format!("{:?}", result.err().unwrap_or(Status::Ok))
}

fn number(word: &str) -> u64 {
    word.parse().unwrap()
}

fn pattern(length: &str, seed: &str) -> Vec<u8> {
    let (length, seed) = (number(length) as usize, number(seed) as usize);
    (0..length).map(|at| ((at % 251 * 31 + seed * 17) % 251) as u8).collect()
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
