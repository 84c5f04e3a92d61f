//! Connections over RDMA: bytes, faults, hostile peers, and that nothing is written late. Needs devices: `make test-rdma`.

mod fake;

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fake::{Fault, Running, credential, read_op, write_op};
use luciola_core::buffer::{BufferPool, Placement};
use luciola_core::net::{ConnectError, Connection, Endpoint, Pool, Server};
use luciola_core::rdma::{Fabric, Half, Link, Memory, RdmaOptions, Transfer};
use luciola_core::types::*;
use luciola_core::wire::pb::claims::Role;
use luciola_core::wire::rdma::RemoteMemory;

/// An emulated machine on a busy one is slow; nothing waits so long unless it fails.
const PATIENCE: Duration = Duration::from_secs(180);

fn all() -> Arc<Fabric> {
    let fabric = Fabric::new(RdmaOptions::default());
    fabric.check().expect("this test needs an RDMA device: run it by `make test-rdma`");
    fabric
}

/// Clients use the first device, servers the last: where there are two, bytes cross the cable.
fn fabric_with(options: RdmaOptions) -> Arc<Fabric> {
    let devices = vec![all().ports().first().unwrap().device.name().to_owned()];
    Fabric::new(RdmaOptions { devices, ..options })
}

fn fabric() -> Arc<Fabric> {
    fabric_with(RdmaOptions::default())
}

fn fabric_of_servers() -> Arc<Fabric> {
    let devices = vec![all().ports().last().unwrap().device.name().to_owned()];
    Fabric::new(RdmaOptions { devices, ..RdmaOptions::default() })
}

fn running() -> Running {
    running_on(&fabric_of_servers())
}

fn running_on(fabric: &Arc<Fabric>) -> Running {
    Running::with(|options| options.fabric = Some(fabric.clone()))
}

fn endpoint(server: &Server, fabric: &Arc<Fabric>, may_fall_back: bool) -> Endpoint {
    let address = server.tcp_address().unwrap();
    Endpoint::Rdma { address, fabric: fabric.clone(), may_fall_back }
}

fn connect(server: &Server, fabric: &Arc<Fabric>) -> Connection {
    let endpoint = endpoint(server, fabric, false);
    let connection =
        patiently(|| Connection::connect(&endpoint, &credential(Role::Client), Duration::from_secs(5)));
    assert!(connection.is_remote_direct());
    connection
}

/// A starved guest misses the limits of a handshake: it is tried again.
fn patiently<T>(mut work: impl FnMut() -> Result<T, ConnectError>) -> T {
    let deadline = later();
    loop {
        match work() {
            Ok(connected) => return connected,
            Err(error @ (ConnectError::Refused | ConnectError::NotOurs)) => panic!("{error}"),
            Err(error) => assert!(Instant::now() < deadline, "no connection: {error}"),
        }
    }
}

fn later() -> Instant {
    Instant::now() + PATIENCE
}

fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|at| ((at * 31 + seed * 17 + at / 251) % 251) as u8).collect()
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = later();
    while !condition() {
        assert!(Instant::now() < deadline, "{what} does not happen");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Two ends connected by hand, as a client's and a server's are, with the sockets that stand for their TCP connection.
struct Pair {
    client: Link,
    server: Link,
    /// The server's.
    fabric: Arc<Fabric>,
    sockets: [UnixStream; 2],
}

fn pair(fabric: &Arc<Fabric>) -> Pair {
    let of_server = fabric_of_servers();
    let ours = Half::new(fabric, &fabric.ports()[0], true).unwrap();
    let theirs = Half::new(&of_server, &of_server.ports()[0], false).unwrap();
    let (our_end, their_end) = (*ours.end(), *theirs.end());
    let (client, server) = (ours.connect(&their_end).unwrap(), theirs.connect(&our_end).unwrap());
    Pair { client, server, fabric: of_server, sockets: UnixStream::pair().unwrap().into() }
}

fn remote(link: &Link, placement: &Placement) -> RemoteMemory {
    RemoteMemory { address: placement.as_ptr() as u64, rkey: link.keys(placement).unwrap().rkey }
}

#[test]
fn what_is_written_is_read_back_from_any_memory() {
    let (running, fabric) = (running(), fabric());
    let pool = BufferPool::new(2 << 20, 4).unwrap();
    let mut connection = connect(&running.server, &fabric);
    for (kind, length) in [0, 1, 4096, 100_000, 1 << 20].into_iter().enumerate() {
        let bytes = pattern(length, kind);
        let shared = pool.try_take().unwrap().slice(0..length);
        shared.copy_from(&bytes);
        let payload = [shared, Placement::from_vec(bytes.clone())];
        let ops: Vec<_> = (0..2).map(|n| write_op(1, kind as u32 * 2 + n, 0, length as u32, 1)).collect();
        let mut out = Vec::new();
        connection.update(&ops, &payload, later(), &mut out).unwrap();
        assert!(out.iter().all(|result| result.status == Status::Ok && result.length == length as u32));
        assert_eq!(running.fake.chunk(1, 1, kind as u32 * 2).unwrap(), bytes);
        assert_eq!(running.fake.chunk(1, 1, kind as u32 * 2 + 1).unwrap(), bytes);
        let targets =
            [pool.try_take().unwrap().slice(0..length + 10), Placement::private(length + 10).unwrap()];
        targets.iter().for_each(|target| target.copy_from(&vec![0xee; length + 10]));
        let reads: Vec<_> = (0..2).map(|n| read_op(1, kind as u32 * 2 + n, 0, length as u32 + 10)).collect();
        connection.read(&reads, &targets, later(), &mut Vec::new()).unwrap();
        for target in &targets {
            assert_eq!(target.slice(0..length).to_vec(), bytes);
            assert_eq!(target.slice(length..length + 10).to_vec(), [0xee; 10], "nothing beyond the chunk");
        }
    }
    connection.ping(later()).unwrap();
    connection.sync(&[(ChainId(1), ChainVersion(1))], later(), &mut Vec::new()).unwrap();
    drop(connection);
    wait_until("all buffers come back", || pool.available() == 4);
    wait_until("the connection ends", || running.server.connection_count() == 0);
}

#[test]
fn the_largest_batch_goes_through_and_memory_of_many_regions() {
    let (running, fabric) = (running(), fabric());
    let mut connection = connect(&running.server, &fabric);
    // More regions than slots: the rest takes buffers.
    let pools: Vec<_> = (0..40).map(|_| BufferPool::new(16 << 10, 8).unwrap()).collect();
    let payload: Vec<_> = (0..BATCH_OPS_MAX)
        .map(|n| {
            let buffer = pools[n % 40].try_take().unwrap().into_placement();
            buffer.copy_from(&pattern(16 << 10, n));
            buffer
        })
        .collect();
    let ops: Vec<_> = (0..BATCH_OPS_MAX).map(|n| write_op(9, n as u32, 0, 16 << 10, 1)).collect();
    let mut out = Vec::new();
    for sequence in 1..3 {
        let ops: Vec<_> =
            ops.iter().map(|op| UpdateOp { tag: RequestTag { sequence, ..op.tag }, ..*op }).collect();
        connection.update(&ops, &payload, later(), &mut out).unwrap();
        assert_eq!(out.len(), BATCH_OPS_MAX);
    }
    let into: Vec<_> = (0..BATCH_OPS_MAX).map(|_| Placement::private(16 << 10).unwrap()).collect();
    let ops: Vec<_> = (0..BATCH_OPS_MAX).map(|n| read_op(9, n as u32, 0, 16 << 10)).collect();
    connection.read(&ops, &into, later(), &mut Vec::new()).unwrap();
    for (n, into) in into.iter().enumerate() {
        assert_eq!(into.to_vec(), pattern(16 << 10, n));
    }
}

#[test]
fn a_chain_forwards_what_it_took() {
    let fabric = fabric();
    let mut nodes: Vec<Running> = (0..3).map(|_| running()).collect();
    for place in 0..2 {
        let next = endpoint(&nodes[place + 1].server, &fabric, false);
        let pool = Arc::new(Pool::new(next, credential(Role::Service), 4));
        drop(patiently(|| pool.get(later())));
        *nodes[place].fake.next.lock() = Some(pool);
    }
    let mut connection = connect(&nodes[0].server, &fabric);
    let bytes = pattern(300_000, 5);
    let payload = Placement::from_vec(bytes.clone());
    let op = write_op(3, 0, 0, bytes.len() as u32, 1);
    connection.update(&[op], &[payload], later(), &mut Vec::new()).unwrap();
    for node in &nodes {
        assert_eq!(node.fake.chunk(1, 3, 0).unwrap(), bytes);
    }
    // The last one goes: its predecessor notices, and continues without it.
    nodes.pop().unwrap().server.stop();
    let op = write_op(3, 0, 0, 4, 2);
    let mut connection = connect(&nodes[1].server, &fabric);
    let mut out = Vec::new();
    connection.update(&[op], &[Placement::from_vec(vec![1; 4])], later(), &mut out).unwrap();
    assert_eq!(out[0].status, Status::Disconnected);
    for node in &nodes {
        *node.fake.next.lock() = None;
    }
}

#[test]
fn many_clients_at_once_read_what_they_wrote() {
    let running = running();
    let fabric = fabric();
    std::thread::scope(|scope| {
        for client in 0..4u64 {
            let mut connection = connect(&running.server, &fabric);
            scope.spawn(move || {
                let pool = BufferPool::new(64 << 10, 2).unwrap();
                for round in 0..20u32 {
                    let bytes = pattern(1000 + round as usize * 777, client as usize + round as usize);
                    let payload = pool.try_take().unwrap().slice(0..bytes.len());
                    payload.copy_from(&bytes);
                    let op = write_op(client, round, 0, bytes.len() as u32, 1);
                    connection.update(&[op], &[payload], later(), &mut Vec::new()).unwrap();
                    let into = pool.try_take().unwrap().slice(0..bytes.len());
                    let op = read_op(client, round, 0, bytes.len() as u32);
                    connection.read(&[op], std::slice::from_ref(&into), later(), &mut Vec::new()).unwrap();
                    assert_eq!(into.to_vec(), bytes);
                }
            });
        }
    });
}

/// Rule A3, at the level of the device: a write that the server issues after the client gave the batch up does not land,
/// though key and address are still good.
#[test]
fn a_write_after_the_client_gave_up_lands_nowhere() {
    let fabric = fabric();
    let Pair { client, mut server, fabric: of_server, sockets } = pair(&fabric);
    let pool = BufferPool::new(64 << 10, 1).unwrap();
    let buffer = pool.try_take().unwrap();
    let (place, [_client_socket, server_socket]) = (remote(&client, &buffer), sockets);
    let local = of_server.buffers().take(64 << 10).unwrap();
    local.copy_from(&vec![1; 64 << 10]);
    let transfer = [Transfer { local: local.clone(), remote: place }];
    server.write(&transfer, server_socket.as_fd(), later()).unwrap();
    server.settle(server_socket.as_fd(), later()).unwrap();
    assert_eq!(buffer.to_vec(), vec![1; 64 << 10], "while the batch is under way it lands");

    let remains = client.reset();
    assert!(remains.is_held());
    drop(buffer);
    let reused = pool.try_take().unwrap();
    reused.copy_from(&vec![2; 64 << 10]);
    local.copy_from(&vec![3; 64 << 10]);
    let late = server
        .write(&transfer, server_socket.as_fd(), later())
        .and_then(|()| server.settle(server_socket.as_fd(), later()));
    assert!(late.is_err(), "the device reports to the server that it was not received");
    assert_eq!(reused.to_vec(), vec![2; 64 << 10]);
}

/// The same through the whole stack: the server hangs over a read past its deadline, and answers then.
#[test]
fn a_read_that_timed_out_does_not_touch_its_buffer_any_more() {
    let (running, fabric) = (running(), fabric());
    running.fake.put(1, 5, 0, &vec![7; 50_000]);
    let mut connection = connect(&running.server, &fabric);
    let pool = BufferPool::new(64 << 10, 1).unwrap();
    let buffer = pool.try_take().unwrap().into_placement();
    running.fake.fail([Fault::Hang]);
    let soon = Instant::now() + Duration::from_millis(300);
    let op = read_op(5, 0, 0, 50_000);
    let result = connection.read(&[op], &[buffer.slice(0..50_000)], soon, &mut Vec::new());
    assert_eq!(result, Err(Status::Timeout));
    assert!(!connection.is_usable());
    drop(buffer);
    // At once, though the server still hangs: this is what memory registered over a Unix socket cannot do.
    let reused = pool.try_take().expect("the buffer is free when the call returns");
    reused.copy_from(&vec![2; 64 << 10]);
    running.fake.release();
    wait_until("the server gives the connection up", || running.server.connection_count() == 0);
    assert_eq!(reused.to_vec(), vec![2; 64 << 10]);
    // Everybody else is served.
    let mut other = connect(&running.server, &fabric);
    other.read(&[op], &[reused.slice(0..50_000)], later(), &mut Vec::new()).unwrap();
    assert_eq!(reused.slice(0..50_000).to_vec(), vec![7; 50_000]);
}

#[test]
fn a_lost_peer_ends_the_connection_and_only_that() {
    let (running, fabric) = (running(), fabric());
    running.fake.put(1, 5, 0, &[7; 1000]);
    let mut other = connect(&running.server, &fabric);
    for fault in [Fault::DropBefore, Fault::DropAfter] {
        let mut connection = connect(&running.server, &fabric);
        running.fake.fail([fault]);
        let into = Placement::private(1000).unwrap();
        let result = connection.read(&[read_op(5, 0, 0, 1000)], &[into], later(), &mut Vec::new());
        assert_eq!(result, Err(Status::Disconnected));
        other.ping(later()).unwrap();
    }
    drop(other);
    wait_until("all connections end", || running.server.connection_count() == 0);
    let Pair { mut client, server, fabric: _of_server, sockets: [ours, theirs] } = pair(&fabric);
    drop((server, theirs));
    let mut byte = [0];
    assert_eq!(client.receive_some(&mut byte, ours.as_fd(), later()).unwrap(), 0, "the end is seen");
}

#[test]
fn wrong_keys_and_places_end_the_connection_that_named_them() {
    let fabric = fabric();
    let pool = BufferPool::new(8192, 1).unwrap();
    let buffer = pool.try_take().unwrap();
    let end = pool.region().len() as u64;
    let wrong = |place: RemoteMemory| {
        [
            RemoteMemory { rkey: place.rkey ^ 0x55, ..place },
            RemoteMemory { address: place.address + end - 10, ..place },
            RemoteMemory { address: place.address.wrapping_sub(8192), ..place },
        ]
    };
    for number in 0..3 {
        let Pair { client, mut server, fabric: of_server, sockets: [_ours, socket] } = pair(&fabric);
        let place = wrong(remote(&client, &buffer))[number];
        let transfer = [Transfer { local: of_server.buffers().take(64).unwrap(), remote: place }];
        let result = match number {
            2 => server.read(&transfer, socket.as_fd(), later()),
            _ => server
                .write(&transfer, socket.as_fd(), later())
                .and_then(|()| server.settle(socket.as_fd(), later())),
        };
        let error = result.unwrap_err();
        assert!(error.to_string().contains("access"), "{error}");
    }
}

/// Rule A1: a client that learned a server's key has nothing from it.
#[test]
fn a_server_lets_no_client_at_its_memory() {
    let fabric = fabric();
    let Pair { mut client, server, fabric: of_server, sockets: [socket, _theirs] } = pair(&fabric);
    let secret = of_server.buffers().take(4096).unwrap();
    let place = remote(&server, &secret);
    let local = fabric.buffers().take(4096).unwrap();
    let error = client.read(&[Transfer { local, remote: place }], socket.as_fd(), later()).unwrap_err();
    assert_ne!(error.kind(), std::io::ErrorKind::TimedOut, "{error}");
}

#[test]
fn a_server_without_rdma_is_reached_over_tcp_and_that_is_counted() {
    let running = Running::start();
    running.fake.put(1, 5, 0, b"abc");
    let fabric = fabric();
    let strict = endpoint(&running.server, &fabric, false);
    let refused =
        patiently(|| match Connection::connect(&strict, &credential(Role::Client), Duration::from_secs(5)) {
            Err(ConnectError::NoRdma(reason)) => Ok(reason),
            Ok(connection) => panic!("{connection:?}"),
            Err(error) => Err(error),
        });
    assert!(refused.contains("no RDMA device"), "{refused}");
    let pool = Pool::new(endpoint(&running.server, &fabric, true), credential(Role::Client), 2);
    for _ in 0..3 {
        let mut connection = patiently(|| pool.get(later()));
        assert!(!connection.is_remote_direct());
        connection
            .read(&[read_op(5, 0, 0, 3)], &[Placement::private(3).unwrap()], later(), &mut Vec::new())
            .unwrap();
    }
    let counted = fabric.counters().all();
    assert_eq!(counted[1], ("rdma_fallbacks", 1));
}

#[test]
fn servers_ask_before_they_transmit() {
    let running = running();
    let asking = fabric_with(RdmaOptions { transmissions_max: Some(2), ..RdmaOptions::default() });
    for index in 0..8 {
        running.fake.put(1, 5, index, &pattern(40_000, index as usize));
    }
    std::thread::scope(|scope| {
        for index in 0..8u32 {
            let mut connection = connect(&running.server, &asking);
            scope.spawn(move || {
                let into = Placement::private(40_000).unwrap();
                for _ in 0..5 {
                    let op = read_op(5, index, 0, 40_000);
                    connection.read(&[op], std::slice::from_ref(&into), later(), &mut Vec::new()).unwrap();
                    assert_eq!(into.to_vec(), pattern(40_000, index as usize));
                }
            });
        }
    });
    // One who holds all of them makes the others wait, and no longer than their deadline.
    let held: Vec<_> = (0..2).map(|_| asking.grants().unwrap().take(later()).unwrap()).collect();
    let mut connection = connect(&running.server, &asking);
    let into = Placement::private(40_000).unwrap();
    let soon = Instant::now() + Duration::from_millis(300);
    let result = connection.read(&[read_op(5, 0, 0, 40_000)], &[into], soon, &mut Vec::new());
    assert_eq!(result, Err(Status::Timeout));
    drop(held);
}

#[test]
fn frames_longer_than_the_window_and_messages_both_ways_go_through() {
    let fabric = fabric();
    let Pair { mut client, mut server, fabric: _of_server, sockets: [ours, theirs] } = pair(&fabric);
    let bytes = pattern(300_000, 1);
    std::thread::scope(|scope| {
        let sent = bytes.clone();
        scope.spawn(move || {
            let mut received = vec![0; sent.len()];
            let mut at = 0;
            while at < received.len() {
                // Small and large bites.
                let end = received.len().min(at + 1 + at % 9000);
                at += server.receive_some(&mut received[at..end], theirs.as_fd(), later()).unwrap();
            }
            assert_eq!(received, sent);
            server.send(&received[..100_000], theirs.as_fd(), later()).unwrap();
            server.settle(theirs.as_fd(), later()).unwrap();
        });
        client.send(&bytes, ours.as_fd(), later()).unwrap();
        let mut back = vec![0; 100_000];
        let mut at = 0;
        while at < back.len() {
            at += client.receive_some(&mut back[at..], ours.as_fd(), later()).unwrap();
        }
        assert_eq!(back, bytes[..100_000]);
    });
}

/// Ten thousand connections (`LUCIOLA_TEST_CONNECTIONS`): used and closed, broken by either end, given up by the client
/// before and after they stood. What the kernel counts of the devices' objects, and of this process's files, is as it was.
#[test]
fn ten_thousand_connections_leave_nothing() {
    const THREADS: u64 = 4;
    let wanted = std::env::var("LUCIOLA_TEST_CONNECTIONS").map_or(10_000, |text| text.parse().unwrap());
    let each = u64::div_ceil(wanted, THREADS);
    let queues = || ["qp", "cq"].map(resources);
    // The kernel has some of its own.
    let unused = queues();
    let (fabric, of_server) = (fabric(), fabric_of_servers());
    let running = running_on(&of_server);
    running.fake.put(1, 5, 0, b"abc");
    // Everything that is made once and kept.
    let made = AtomicU64::new(0);
    come_and_go(&running, &fabric, 0..64, &made);
    let settled = || {
        wait_until("all connections end", || running.server.connection_count() == 0);
        wait_until("all queue pairs are destroyed", || queues() == unused);
    };
    settled();
    let files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let count = || ["pd", "mr", "ctx"].map(resources);
    let (counts, opened) = (count(), files());
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (running, fabric, made) = (&running, &fabric, &made);
            scope.spawn(move || come_and_go(running, fabric, thread * each..(thread + 1) * each, made));
        }
    });
    settled();
    // Memory that was registered for many at once is given back when buffers are taken next.
    for fabric in [&fabric, &of_server] {
        drop(fabric.buffers().take(1).unwrap());
    }
    wait_until("the devices hold what they held before", || count() == counts);
    wait_until("the files are closed", || files() <= opened);
    println!("qp, cq {unused:?}, pd, mr, ctx {counts:?}: before and after");
}

fn come_and_go(running: &Running, fabric: &Arc<Fabric>, rounds: std::ops::Range<u64>, made: &AtomicU64) {
    let pool = BufferPool::new(4096, 1).unwrap();
    let endpoint = endpoint(&running.server, fabric, false);
    let op = read_op(5, 0, 0, 3);
    for round in rounds {
        let number = made.fetch_add(1, Ordering::Relaxed);
        if number.is_multiple_of(500) {
            // It takes minutes: past the capturing of output, so that its progress is seen.
            let _ = writeln!(std::io::stderr(), "{number} connections");
        }
        if round % 4 == 3 {
            // Given up at any step on the way; on a quick machine it may be there in time.
            let patience = Duration::from_micros(round * 37 % 20_000);
            drop(Connection::connect(&endpoint, &credential(Role::Client), patience));
            continue;
        }
        let mut connection = connect(&running.server, fabric);
        let into = pool.try_take().unwrap().slice(0..3);
        let deadline = match round % 4 {
            // Broken by the server, in the middle of this batch or of another thread's.
            0 => {
                running.fake.fail([Fault::DropBefore]);
                later()
            }
            // Given up by the client.
            1 => Instant::now() + Duration::from_micros(round % 2000),
            _ => later(),
        };
        match connection.read(&[op], std::slice::from_ref(&into), deadline, &mut Vec::new()) {
            Ok(()) => assert_eq!(into.to_vec(), b"abc"),
            Err(Status::Disconnected | Status::Timeout) => assert!(!connection.is_usable()),
            Err(status) => panic!("{status:?}"),
        }
    }
}

/// Objects of a kind that all devices together hold, as `rdma resource` shows them.
fn resources(kind: &str) -> u64 {
    let shown = std::process::Command::new("rdma").arg("resource").output().expect("iproute2 is installed");
    let words = String::from_utf8(shown.stdout).unwrap();
    let words: Vec<&str> = words.split_whitespace().collect();
    let counts = words.windows(2).filter(|pair| pair[0] == kind).map(|pair| pair[1].parse::<u64>().unwrap());
    counts.sum()
}

#[test]
fn memory_of_a_gpu_is_refused_with_a_reason() {
    let fabric = fabric();
    let device = fabric.ports().remove(0).device;
    let file = tempfile::tempfile().unwrap();
    for memory in
        [Memory::DmaBuf { fd: file.as_fd(), offset: 0, len: 4096 }, Memory::Peer { address: 4096, len: 4096 }]
    {
        let error = device.register(memory).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::Unsupported);
        assert!(error.to_string().contains("GPU"), "{error}");
    }
}

#[test]
fn the_wanted_device_and_gid_are_used_or_the_reason_is_reported() {
    let all = all().ports();
    let name = format!("{}:{}", all[0].device.name(), all[0].number);
    let of = |devices: &str, gid_index| {
        Fabric::new(RdmaOptions { devices: vec![devices.into()], gid_index, transmissions_max: None })
    };
    let one = of(&name, Some(all[0].gid_index));
    assert_eq!(one.ports().len(), 1);
    assert_eq!(one.ports()[0].offer, all[0].offer);
    let reason = of(&name, Some(200)).check().unwrap_err();
    assert!(reason.contains(&name) && reason.contains("200"), "{reason}");
    let limits = all[0].device.limits();
    assert!(limits.work_requests > 0 && limits.completions > 0 && limits.scatter_entries > 0);
}
