//! One end of a data-plane connection over RDMA, driven by lines on standard input; what another implementation of the
//! protocol is tested against (`tests/rdma`).
//!
//! rdma_peer serve DEVICE                  prints its TCP port; `connections`, `chunk CONTENT INDEX`, `put … LENGTH SEED`,
//!                                         `hang` (in the next batch), `release`
//! rdma_peer drive DEVICE ADDRESS [strict] `connect`, `ping`, `write CONTENT INDEX LENGTH SEED`, `read CONTENT INDEX
//!                                         LENGTH DEADLINE_MS`, `peek`, `measure …`; strict: no falling back to TCP
//!
//! Each line is answered by one. It ends with its input.

#[path = "../tests/twin/mod.rs"]
mod twin;

use std::io::{BufRead, Write, stdin, stdout};
use std::sync::Arc;
use std::time::{Duration, Instant};

use luciola_core::buffer::{BufferPool, Placement};
use luciola_core::net::{Endpoint, Pool};
use luciola_core::rdma::{Fabric, Options};
use luciola_core::types::*;
use luciola_core::wire::pb::claims::Role;
use twin::{Fault, Running, credential, read_op, write_op};

const CHUNK_BYTES: usize = 1 << 20;
const LONG: Duration = Duration::from_secs(60);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["serve", device] => serve(device),
        ["drive", device, address] => drive(device, address, true),
        ["drive", device, address, "strict"] => drive(device, address, false),
        _ => panic!("serve DEVICE | drive DEVICE ADDRESS [strict]"),
    }
}

fn fabric(device: &str) -> Arc<Fabric> {
    Fabric::new(Options { devices: vec![device.to_owned()], ..Options::default() })
}

fn serve(device: &str) {
    let running = Running::with(|options| options.fabric = Some(fabric(device)));
    say(&running.server.tcp_address().unwrap().port().to_string());
    answer_lines(|words| match words {
        ["connections"] => running.server.connection_count().to_string(),
        ["chunk", content, index] => {
            let chunk = running.twin.chunk(1, number(content), number(index) as u32);
            chunk.map_or("none".to_owned(), |bytes| hexadecimal(&bytes))
        }
        ["hang"] => {
            running.twin.fail([Fault::Hang]);
            "ok".to_owned()
        }
        ["release"] => {
            running.twin.release();
            "ok".to_owned()
        }
        ["put", content, index, length, seed] => {
            running.twin.put(1, number(content), number(index) as u32, &pattern(length, seed));
            "ok".to_owned()
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
            // Reads (or writes) of SIZE bytes, DEPTH to a batch, COUNT batches; the microseconds of each.
            ["measure", "ping", count] => microseconds(number(count), || connection.ping(deadline)),
            ["measure", "read", size, depth, count] => {
                let ops: Vec<_> =
                    (0..number(depth)).map(|n| read_op(9, n as u32, 0, number(size) as u32)).collect();
                let places: Vec<_> =
                    ops.iter().map(|op| memory.try_take().unwrap().slice(0..op.length as usize)).collect();
                microseconds(number(count), || connection.read(&ops, &places, deadline, &mut Vec::new()))
            }
            ["measure", "write", size, depth, count] => {
                let places: Vec<_> = (0..number(depth))
                    .map(|_| memory.try_take().unwrap().slice(0..number(size) as usize))
                    .collect();
                microseconds(number(count), || {
                    sequence += 1;
                    let ops: Vec<_> = (0..number(depth))
                        .map(|n| write_op(9, n as u32, 0, number(size) as u32, sequence))
                        .collect();
                    connection.update(&ops, &places, deadline, &mut Vec::new())
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

fn microseconds(count: u64, mut work: impl FnMut() -> Result<(), Status>) -> String {
    let mut all = Vec::new();
    for _ in 0..count {
        let start = Instant::now();
        if let Err(status) = work() {
            return format!("{status:?}");
        }
        all.push(start.elapsed().as_micros().to_string());
    }
    all.join(" ")
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
