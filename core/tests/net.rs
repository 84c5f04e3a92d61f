//! Connections, servers and pools over both transports, with an in-memory service and its faults.

mod fake;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fake::{Fault, Running, SECRET, at_most_a_minute, credential, patiently, read_op, soon, write_op};
use luciola_core::buffer::{BufferPool, Placement, Region};
use luciola_core::net::{
    ConnectError, Connection, Credential, Endpoint, Pool, Secret, Server, ServerOptions, Token,
};
use luciola_core::rdma::{Fabric, RdmaOptions};
use luciola_core::types::*;
use luciola_core::wire::credential::{self, Nonces};
use luciola_core::wire::frame::{self, Envelope, PayloadLocation};
use luciola_core::wire::handshake;
use luciola_core::wire::pb::{Claims, Revocations, RevokedToken, claims::Role};
use luciola_core::wire::rdma;
use parking_lot::RwLock;

const A_MINUTE: Duration = Duration::from_secs(60);

fn connect(endpoint: &Endpoint) -> Connection {
    Connection::connect(endpoint, &credential(Role::Client), A_MINUTE).unwrap()
}

fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|at| ((at * 31 + seed * 17 + at / 251) % 251) as u8).collect()
}

fn read_all(connection: &mut Connection, content: u64, index: u32, into: &Placement) -> ReadResult {
    let mut out = Vec::new();
    let op = read_op(content, index, 0, into.len() as u32);
    connection.read(&[op], std::slice::from_ref(into), soon(), &mut out).unwrap();
    out[0]
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = soon();
    while !condition() {
        assert!(Instant::now() < deadline, "{what} does not happen");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Every kind of memory over every transport.
#[test]
fn what_is_written_is_read_back() {
    let running = Running::start();
    let pool = BufferPool::new(2 << 20, 4).unwrap();
    for (number, endpoint) in [running.tcp(), running.unix()].into_iter().enumerate() {
        let mut connection = connect(&endpoint);
        for (kind, length) in [0, 1, 4096, 100_000, 1 << 20].into_iter().enumerate() {
            let content = 100 + number as u64;
            let bytes = pattern(length, kind);
            let shared = pool.try_take().unwrap().slice(0..length);
            shared.copy_from(&bytes);
            let payload = [shared, Placement::from_vec(bytes.clone())];
            let ops: Vec<_> =
                (0..2).map(|n| write_op(content, kind as u32 * 2 + n, 0, length as u32, 1)).collect();
            let mut out = Vec::new();
            connection.update(&ops, &payload, soon(), &mut out).unwrap();
            assert!(out.iter().all(|result| result.status == Status::Ok && result.length == length as u32));
            assert_eq!(running.fake.chunk(1, content, kind as u32 * 2).unwrap(), bytes);

            let targets =
                [pool.try_take().unwrap().slice(0..length + 10), Placement::private(length + 10).unwrap()];
            targets.iter().for_each(|target| target.copy_from(&vec![0xee; length + 10]));
            let reads: Vec<_> =
                (0..2).map(|n| read_op(content, kind as u32 * 2 + n, 0, length as u32 + 10)).collect();
            let mut out = Vec::new();
            connection.read(&reads, &targets, soon(), &mut out).unwrap();
            for (result, target) in out.iter().zip(&targets) {
                assert_eq!((result.status, result.length), (Status::Ok, length as u32));
                assert_eq!(target.slice(0..length).to_vec(), bytes);
                assert_eq!(
                    target.slice(length..length + 10).to_vec(),
                    [0xee; 10],
                    "nothing beyond the chunk"
                );
            }
        }
        connection.ping(soon()).unwrap();
    }
    wait_until("all buffers come back", || pool.available() == 4);
}

#[test]
fn a_batch_mixes_hits_misses_and_short_reads() {
    let running = Running::start();
    running.fake.put(1, 5, 0, b"0123456789");
    running.fake.put(1, 5, 2, b"abc");
    for endpoint in [running.tcp(), running.unix()] {
        let mut connection = connect(&endpoint);
        let into: Vec<_> = (0..4).map(|_| Placement::private(8).unwrap()).collect();
        let ops = [read_op(5, 0, 4, 8), read_op(5, 1, 0, 8), read_op(5, 2, 0, 8), read_op(5, 2, 100, 8)];
        let mut out = Vec::new();
        connection.read(&ops, &into, soon(), &mut out).unwrap();
        let seen: Vec<_> = out.iter().map(|result| (result.status, result.length)).collect();
        let expected = [(Status::Ok, 6), (Status::NotFound, 0), (Status::Ok, 3), (Status::Ok, 0)];
        assert_eq!(seen, expected);
        assert_eq!(into[0].slice(0..6).to_vec(), b"456789");
        assert_eq!(into[2].slice(0..3).to_vec(), b"abc");
    }
}

#[test]
fn the_largest_batch_goes_through() {
    let running = Running::start();
    let mut connection = connect(&running.tcp());
    let payload: Vec<_> = (0..BATCH_OPS_MAX).map(|n| Placement::from_vec(pattern(64 << 10, n))).collect();
    let ops: Vec<_> = (0..BATCH_OPS_MAX).map(|n| write_op(9, n as u32, 0, 64 << 10, 1)).collect();
    let mut out = Vec::new();
    connection.update(&ops, &payload, soon(), &mut out).unwrap();
    assert_eq!(out.len(), BATCH_OPS_MAX);
    let into: Vec<_> = (0..BATCH_OPS_MAX).map(|_| Placement::private(64 << 10).unwrap()).collect();
    let ops: Vec<_> = (0..BATCH_OPS_MAX).map(|n| read_op(9, n as u32, 0, 64 << 10)).collect();
    let mut out = Vec::new();
    connection.read(&ops, &into, soon(), &mut out).unwrap();
    assert!(into.iter().zip(&payload).all(|(into, payload)| into.to_vec() == payload.to_vec()));
}

#[test]
fn many_clients_at_once_read_what_they_wrote() {
    let running = Running::start();
    std::thread::scope(|scope| {
        for client in 0..8u64 {
            let endpoint = if client % 2 == 0 { running.tcp() } else { running.unix() };
            scope.spawn(move || {
                let pool = BufferPool::new(128 << 10, 2).unwrap();
                let mut connection = connect(&endpoint);
                for round in 0..50u32 {
                    let bytes = pattern(1000 + round as usize * 777, client as usize + round as usize);
                    let payload = pool.try_take().unwrap().slice(0..bytes.len());
                    payload.copy_from(&bytes);
                    let op = write_op(client, round, 0, bytes.len() as u32, 1);
                    connection.update(&[op], &[payload], soon(), &mut Vec::new()).unwrap();
                    let into = pool.try_take().unwrap().slice(0..bytes.len());
                    assert_eq!(read_all(&mut connection, client, round, &into).length as usize, bytes.len());
                    assert_eq!(into.to_vec(), bytes);
                }
            });
        }
    });
}

#[test]
fn wrong_secrets_and_expired_tokens_are_refused() {
    let running = Running::start();
    let foreign = Secret::new([1; 32]).mint(&Claims::default());
    let claims = Claims { expires_unix_s: 1, ..Claims::default() };
    let expired = Secret::new(SECRET).mint(&claims);
    let mut forged = credential(Role::Client).claims().to_vec();
    forged.extend([0x08, 0x02]); // role = ADMIN, appended
    let forged = Token::new(forged, [9; 32]).unwrap();
    for endpoint in [running.tcp(), running.unix()] {
        for token in [&foreign, &expired, &forged] {
            let error = Connection::connect(&endpoint, token, A_MINUTE).unwrap_err();
            assert!(matches!(error, ConnectError::Refused), "{error:?}");
            assert_eq!(error.status(), Status::Denied);
        }
    }
    connect(&running.tcp()).ping(soon()).unwrap();
    wait_until("the connections end", || running.server.connection_count() <= 1);
}

#[test]
fn a_connection_ends_with_its_token() {
    let running = Running::start();
    // Long enough to be used before it expires.
    let (token, mut connection) = [2, 8, 32]
        .into_iter()
        .find_map(|seconds| {
            let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
            let claims = Claims { expires_unix_s: now + seconds, ..Claims::default() };
            let token = Secret::new(SECRET).mint(&claims);
            let mut connection = Connection::connect(&running.tcp(), &token, A_MINUTE).ok()?;
            connection.ping(soon()).ok()?;
            Some((token, connection))
        })
        .expect("a connection before its token expires");
    wait_until("the token expires", || connection.ping(soon()) == Err(Status::Disconnected));
    let refused = Connection::connect(&running.tcp(), &token, A_MINUTE);
    assert!(matches!(refused, Err(ConnectError::Refused)));
}

#[test]
fn a_connection_ends_when_its_token_is_revoked() {
    let running = Running::start();
    let mint = |id: u8| Secret::new(SECRET).mint(&Claims { nonce: vec![id; 16], ..Claims::default() });
    let (void, good) = (mint(1), mint(2));
    for endpoint in [running.tcp(), running.unix()] {
        running.server.authority().set_revocations(Revocations::default());
        let mut first = Connection::connect(&endpoint, &void, A_MINUTE).unwrap();
        let mut second = Connection::connect(&endpoint, &good, A_MINUTE).unwrap();
        first.ping(soon()).unwrap();
        let tokens = vec![RevokedToken { id: vec![1; 16], expires_unix_s: 0 }];
        running.server.authority().set_revocations(Revocations { tokens, ..Revocations::default() });
        assert_eq!(first.ping(soon()), Err(Status::Disconnected));
        second.ping(soon()).unwrap();
        let refused = Connection::connect(&endpoint, &void, A_MINUTE);
        assert!(matches!(refused, Err(ConnectError::Refused)));
    }
}

#[test]
fn a_pool_shows_the_token_that_replaces_a_refused_one() {
    let running = Running::start();
    let mint = |id: u8| Secret::new(SECRET).mint(&Claims { nonce: vec![id; 16], ..Claims::default() });
    let revoke = |id: u8| {
        let tokens = vec![RevokedToken { id: vec![id; 16], expires_unix_s: 0 }];
        running.server.authority().set_revocations(Revocations { tokens, ..Revocations::default() });
    };
    let held = Credential::new(mint(1), Some("a file".into()));
    held.wait_for_renewal();
    let pool = Pool::new(running.tcp(), held.clone(), 1);
    pool.get(soon()).unwrap().ping(soon()).unwrap();
    revoke(1);
    assert_eq!(pool.get(soon()).unwrap().ping(soon()), Err(Status::Disconnected));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| pool.get(soon()).map(|mut connection| connection.ping(soon())));
        wait_until("the token is refused", || held.is_refused());
        held.replace(mint(2));
        assert!(matches!(waiting.join().unwrap(), Ok(Ok(_))));
    });
    // A newer token is used at once, though the connection of the last one stands.
    held.replace(mint(3));
    revoke(2);
    pool.get(soon()).unwrap().ping(soon()).unwrap();
}

#[test]
fn a_token_is_refused_outside_its_networks() {
    let running = Running::start();
    for (network, is_welcome) in [("127.0.0.0/8", true), ("10.0.0.0/8", false)] {
        let claims = Claims { networks: vec![network.into()], version: 2, ..Claims::default() };
        let token = Secret::new(SECRET).mint(&claims);
        for endpoint in [running.tcp(), running.unix()] {
            let connected = Connection::connect(&endpoint, &token, A_MINUTE);
            assert_eq!(connected.is_ok(), is_welcome, "{network} {endpoint}");
        }
    }
}

#[test]
fn a_squatter_learns_nothing_and_is_noticed() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = Endpoint::Tcp(listener.local_addr().unwrap());
    let squatter = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let hello = handshake::encode_server_hello(
            credential::ChannelKind::Data,
            handshake::ServerHello::Nonce { nonce: [5; 32], wire: 0 },
        );
        socket.write_all(&hello).unwrap();
        let mut answer = [0; 4096];
        let length = socket.read(&mut answer).unwrap();
        socket.write_all(&handshake::encode_verdict(handshake::Verdict::Welcome([7; 32]))).unwrap();
        answer[..length].to_vec()
    });
    let error = Connection::connect(&endpoint, &credential(Role::Client), A_MINUTE).unwrap_err();
    assert!(matches!(error, ConnectError::NotOurs), "{error:?}");
    let seen = squatter.join().unwrap();
    let key = hmac_key();
    assert!(!seen.windows(32).any(|window| window == key), "the key never travels");
}

/// The key of the test's token, computed on its own.
fn hmac_key() -> [u8; 32] {
    use hmac::{Hmac, KeyInit, Mac};
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(&SECRET).unwrap();
    mac.update(credential(Role::Client).claims());
    mac.finalize().into_bytes().into()
}

#[test]
fn a_stalled_handshake_does_not_hold_its_place_for_long() {
    let running = Running::start();
    let mut silent = TcpStream::connect(running.server.tcp_address().unwrap()).unwrap();
    silent.set_read_timeout(Some(A_MINUTE)).unwrap();
    silent.read_exact(&mut [0; handshake::SERVER_HELLO_BYTES]).unwrap();
    assert!(closes(&mut silent));
    wait_until("its place is free", || running.server.connection_count() == 0);
}

#[test]
fn another_users_process_cannot_reach_the_socket() {
    use std::os::unix::process::CommandExt;
    let running = Running::start();
    let mode = std::fs::metadata(running.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    if !rustix_is_root() {
        return; // Only root can become another user; the mode was checked.
    }
    let parent = running.socket().parent().unwrap();
    std::fs::set_permissions(parent, std::fs::Permissions::from_mode(0o755)).unwrap();
    let script = "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ntry: s.connect(sys.argv[1])\n\
                  except PermissionError: sys.exit(13)\nsys.exit(1 if s.recv(1) else 14)";
    let attempt = || {
        let mut command = std::process::Command::new("/usr/bin/python3");
        command.arg("-c").arg(script).arg(running.socket()).uid(65534).gid(65534);
        command.status().unwrap().code()
    };
    assert_eq!(attempt(), Some(13));
    // Even with the file open to all, the peer's uid is checked: the connection closes without a greeting.
    std::fs::set_permissions(running.socket(), std::fs::Permissions::from_mode(0o666)).unwrap();
    assert_eq!(attempt(), Some(14));
}

fn rustix_is_root() -> bool {
    std::fs::metadata("/proc/self")
        .map(|metadata| std::os::unix::fs::MetadataExt::uid(&metadata) == 0)
        .unwrap()
}

#[test]
fn one_connection_too_many_is_refused_as_busy() {
    let running = Running::with(|options| options.threads_max = 4);
    let mut held: Vec<_> = (0..4).map(|_| connect(&running.tcp())).collect();
    let error = Connection::connect(&running.tcp(), &credential(Role::Client), A_MINUTE).unwrap_err();
    assert!(matches!(error, ConnectError::Busy), "{error:?}");
    held.iter_mut().for_each(|connection| connection.ping(soon()).unwrap());
    drop(held);
    wait_until("the places are free again", || running.server.connection_count() == 0);
    connect(&running.unix()).ping(soon()).unwrap();
}

#[test]
fn clients_leave_threads_to_nodes() {
    let running = Running::with(|options| options.threads_max = 16);
    let connect_as = |role| Connection::connect(&running.tcp(), &credential(role), A_MINUTE);
    let clients: Vec<_> = (0..14).map(|_| connect_as(Role::Trusted).unwrap()).collect();
    assert!(matches!(connect_as(Role::Client), Err(ConnectError::Busy)));
    wait_until("its place is free", || running.server.connection_count() == 14);
    let mut nodes: Vec<_> = (0..2).map(|_| connect_as(Role::Service).unwrap()).collect();
    nodes.iter_mut().for_each(|node| node.ping(soon()).unwrap());
    drop((clients, nodes));
    wait_until("all places are free", || running.server.connection_count() == 0);
    let _clients: Vec<_> = (0..14).map(|_| connect_as(Role::Client).unwrap()).collect();
}

#[test]
fn a_stop_ends_connections_and_threads() {
    let running = Running::start();
    let mut idle = connect(&running.tcp());
    let mut other = connect(&running.unix());
    let socket = running.socket().to_owned();
    running.server.stop();
    assert_eq!(running.server.connection_count(), 0);
    assert!(!socket.exists());
    assert_eq!(idle.ping(soon()), Err(Status::Disconnected));
    assert_eq!(other.ping(soon()), Err(Status::Disconnected));
    assert!(Connection::connect(&running.tcp(), &credential(Role::Client), Duration::from_secs(1)).is_err());
    running.server.stop();
}

#[test]
fn a_dead_servers_socket_is_replaced_and_a_living_ones_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data.sock");
    drop(UnixListener::bind(&path).unwrap()); // leaves its file
    let options = || {
        let mut options = ServerOptions::new(Secret::new(SECRET));
        options.unix = Some(path.clone());
        options
    };
    let first = Server::start(options(), std::sync::Arc::new(fake::FakeStore::default())).unwrap();
    let error = Server::start(options(), std::sync::Arc::new(fake::FakeStore::default())).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    connect(&Endpoint::Unix(path.clone())).ping(soon()).unwrap();
    drop(first);
    std::fs::write(&path, "precious").unwrap();
    let error = Server::start(options(), std::sync::Arc::new(fake::FakeStore::default())).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[test]
fn a_socket_path_may_be_longer_than_the_kernel_allows() {
    let directory = tempfile::tempdir().unwrap();
    let deep = directory.path().join("d".repeat(100)).join("e".repeat(100));
    std::fs::create_dir_all(&deep).unwrap();
    let path = deep.join("data.sock");
    let running = Running::with(|options| options.unix = Some(path.clone()));
    connect(&running.unix()).ping(soon()).unwrap();
    running.server.stop();
    assert!(!path.exists());
}

/// Lets a test speak frames by hand.
fn raw_connection(socket: &mut (impl Read + Write)) {
    let mut hello = [0; handshake::SERVER_HELLO_BYTES];
    socket.read_exact(&mut hello).unwrap();
    let kind = credential::ChannelKind::Data;
    let Ok(handshake::ServerHello::Nonce { nonce: server, .. }) =
        handshake::decode_server_hello(kind, &hello)
    else {
        panic!("a greeting");
    };
    let token = credential(Role::Client);
    let nonces = Nonces { server, client: [6; 32] };
    let proof = token.client_proof(kind, &nonces);
    socket.write_all(&handshake::encode_client_hello(kind, nonces.client, token.claims(), &proof)).unwrap();
    let mut verdict = [0; handshake::VERDICT_BYTES];
    socket.read_exact(&mut verdict).unwrap();
    assert!(matches!(handshake::decode_verdict(&verdict), handshake::Verdict::Welcome(_)));
}

/// Whether the peer closes the connection, and does not merely keep silent.
fn closes(socket: &mut impl Read) -> bool {
    use std::io::ErrorKind::{TimedOut, WouldBlock};
    match socket.read(&mut [0; 1]) {
        Ok(count) => count == 0,
        Err(error) => !matches!(error.kind(), TimedOut | WouldBlock),
    }
}

#[test]
fn hostile_frames_close_their_connection_and_nothing_else() {
    let running = Running::start();
    let address = running.server.tcp_address().unwrap();
    let mut bystander = connect(&running.tcp());
    let mut state = 0x1234_5678_9abc_def0u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let envelope = Envelope { id: 1, deadline_ms: 60_000, clock_ms: 60_000 };
    let mut good = Vec::new();
    frame::encode_reads(&mut good, envelope, &[read_op(1, 1, 0, 10)], &[PayloadLocation::Inline]);
    for round in 0..60usize {
        let mut socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(A_MINUTE)).unwrap();
        raw_connection(&mut socket);
        let mut frame = good.clone();
        match round % 3 {
            // Noise, one flipped bit, a reply where a request belongs.
            0 => frame = (0..100).map(|_| random() as u8).collect(),
            1 => {
                let bit = random() as usize % (frame.len() * 8);
                frame[bit / 8] ^= 1 << (bit % 8);
            }
            _ => frame::encode_ping(&mut frame, envelope, true),
        }
        let _ = socket.write_all(&frame);
        assert!(closes(&mut socket), "round {round}");
    }
    bystander.ping(soon()).unwrap();
    assert_eq!(running.fake.reads.load(Ordering::SeqCst), 0);
}

fn an_end() -> rdma::End {
    let offer = rdma::Offer { gid: [7; 16], link: rdma::LinkLayer::Ethernet, mtu: 3, lid: 0 };
    rdma::End { port: 0, offer, qpn: 5, psn: 6, window: 8, reads: 1, asks: false }
}

/// No device is needed for that: the answer is no.
#[test]
fn a_server_without_rdma_says_so_and_continues_over_tcp() {
    let running = Running::start();
    let mut socket = TcpStream::connect(running.server.tcp_address().unwrap()).unwrap();
    socket.set_read_timeout(Some(A_MINUTE)).unwrap();
    raw_connection(&mut socket);
    let envelope = Envelope { id: 1, deadline_ms: 60_000, clock_ms: 0 };
    let mut frame = Vec::new();
    // Twice: being refused is no state.
    for _ in 0..2 {
        rdma::encode_offer(&mut frame, envelope, &[an_end().offer]);
        socket.write_all(&frame).unwrap();
        let mut answer = vec![0; frame::HEADER_BYTES + frame::FrameKind::Offer.entry_bytes(true)];
        socket.read_exact(&mut answer).unwrap();
        let (head, table) = answer.split_at(frame::HEADER_BYTES);
        let header = frame::Header::decode(head.try_into().unwrap()).unwrap();
        assert_eq!(header.decode_offer_answer(table), Ok(Err(rdma::Unable::NoDevice)));
    }
    frame::encode_ping(&mut frame, envelope, false);
    socket.write_all(&frame).unwrap();
    socket.read_exact(&mut [0; frame::HEADER_BYTES]).unwrap();
}

#[test]
fn steps_towards_rdma_out_of_turn_close_their_connection() {
    let running = Running::start();
    let envelope = Envelope { id: 1, deadline_ms: 60_000, clock_ms: 0 };
    let (mut connect_frame, mut transmit, mut answer) = (Vec::new(), Vec::new(), Vec::new());
    rdma::encode_connect(&mut connect_frame, envelope, &an_end());
    frame::encode_transmit(&mut transmit, envelope, false);
    rdma::encode_offer_answer(&mut answer, envelope, &Ok(an_end()));
    for frame in [connect_frame, transmit, answer] {
        let mut socket = TcpStream::connect(running.server.tcp_address().unwrap()).unwrap();
        socket.set_read_timeout(Some(A_MINUTE)).unwrap();
        raw_connection(&mut socket);
        socket.write_all(&frame).unwrap();
        assert!(closes(&mut socket));
    }
    // A Unix socket is never upgraded to RDMA.
    let mut socket = UnixStream::connect(running.socket()).unwrap();
    raw_connection(&mut socket);
    let mut offer = Vec::new();
    rdma::encode_offer(&mut offer, envelope, &[an_end().offer]);
    socket.write_all(&offer).unwrap();
    assert!(closes(&mut socket));
    connect(&running.tcp()).ping(soon()).unwrap();
}

/// A pool that may fall back does; one that may not says why. True with and without devices: the server has none.
#[test]
fn without_rdma_a_pool_stays_with_tcp_where_it_may() {
    let running = Running::start();
    let address = running.server.tcp_address().unwrap();
    for may_fall_back in [true, false] {
        let fabric = Fabric::new(RdmaOptions::default());
        let endpoint = Endpoint::Rdma { address, fabric: fabric.clone(), may_fall_back };
        let pool = Pool::new(endpoint, credential(Role::Client), 2);
        match pool.get(soon()) {
            Ok(mut connection) => {
                assert!(may_fall_back && !connection.is_remote_direct());
                connection.ping(soon()).unwrap();
                assert!(fabric.avoids(address));
            }
            Err(ConnectError::NoRdma(reason)) => assert!(!may_fall_back && !reason.is_empty()),
            Err(error) => panic!("{error}"),
        };
        assert_eq!(fabric.counters().all()[1], ("rdma_fallbacks", u64::from(may_fall_back)));
    }
}

/// Registers `region` by hand.
fn register(socket: &UnixStream, slot: u16, region: &Region, len: u64) {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
    let mut bytes = Vec::new();
    frame::encode_registration(&mut bytes, &frame::RegionRegistration { slot, region: region.id(), len });
    let passed = [region.as_fd()];
    let mut space = [std::mem::MaybeUninit::uninit(); 64];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&passed)));
    let pieces = [std::io::IoSlice::new(&bytes)];
    assert_eq!(
        rustix::net::sendmsg(socket, &pieces, &mut control, SendFlags::NOSIGNAL).unwrap(),
        bytes.len()
    );
}

#[test]
fn places_outside_a_registered_region_are_invalid() {
    let running = Running::start();
    running.fake.put(1, 1, 1, b"0123456789");
    let mut socket = UnixStream::connect(running.socket()).unwrap();
    raw_connection(&mut socket);
    let region = Region::create(8192).unwrap();
    register(&socket, 2, &region, 8192);
    // Longer than the memfd: slot 4 stays empty.
    register(&socket, 4, &region, 16384);
    let cases = [
        (2, 0, Status::Ok),
        (2, 8192 - 10, Status::Ok),
        (2, 8192 - 9, Status::Invalid),
        (2, 8192, Status::Invalid),
        (2, u64::MAX, Status::Invalid),
        (2, u64::MAX - 9, Status::Invalid),
        (3, 0, Status::Invalid),
        (4, 0, Status::Invalid),
    ];
    for (slot, offset, expected) in cases {
        let mut bytes = Vec::new();
        let location = PayloadLocation::Region { slot, offset };
        frame::encode_reads(
            &mut bytes,
            Envelope { id: 9, deadline_ms: 60_000, clock_ms: 60_000 },
            &[read_op(1, 1, 0, 10)],
            &[location],
        );
        socket.write_all(&bytes).unwrap();
        let mut reply = vec![0; frame::HEADER_BYTES + frame::FrameKind::Read.entry_bytes(true)];
        socket.read_exact(&mut reply).unwrap();
        let header = frame::Header::decode(reply[..frame::HEADER_BYTES].try_into().unwrap()).unwrap();
        let results = header.decode_read_results(&reply[frame::HEADER_BYTES..]).unwrap();
        assert_eq!(results[0].0.status, expected, "slot {slot}, offset {offset}");
    }
    assert_eq!(region.placement(8182, 10).unwrap().to_vec(), b"0123456789");
    assert_eq!(running.fake.reads.load(Ordering::SeqCst), 2);
}

#[test]
fn a_registration_without_its_descriptor_closes_the_connection() {
    let running = Running::start();
    let mut socket = UnixStream::connect(running.socket()).unwrap();
    raw_connection(&mut socket);
    let mut bytes = Vec::new();
    let region = luciola_core::buffer::RegionId([3; 16]);
    frame::encode_registration(&mut bytes, &frame::RegionRegistration { slot: 0, region, len: 4096 });
    socket.write_all(&bytes).unwrap();
    assert!(closes(&mut socket));
}

#[test]
fn more_descriptors_than_registrations_close_the_connection() {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
    let running = Running::start();
    let mut socket = UnixStream::connect(running.socket()).unwrap();
    raw_connection(&mut socket);
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut ping = Vec::new();
    frame::encode_ping(&mut ping, Envelope { id: 1, deadline_ms: 60_000, clock_ms: 60_000 }, false);
    let passed = [writer.as_fd(), writer.as_fd()];
    let closed = (0..10).any(|_| {
        let mut space = [std::mem::MaybeUninit::uninit(); 128];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&passed)));
        let pieces = [std::io::IoSlice::new(&ping)];
        let sent = rustix::net::sendmsg(&socket, &pieces, &mut control, SendFlags::NOSIGNAL);
        sent.is_err() || socket.read_exact(&mut [0; frame::HEADER_BYTES]).is_err()
    });
    assert!(closed);
    drop(writer);
    // Ends when the server has closed all that it was sent.
    assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn damage_on_the_way_is_noticed_by_the_server() {
    let running = Running::start();
    let mut socket = TcpStream::connect(running.server.tcp_address().unwrap()).unwrap();
    raw_connection(&mut socket);
    let mut op = write_op(1, 1, 0, 5, 1);
    op.payload_crc = Some(Placement::from_vec(b"hello".to_vec()).crc32c());
    let mut bytes = Vec::new();
    frame::encode_updates(
        &mut bytes,
        Envelope { id: 1, deadline_ms: 60_000, clock_ms: 60_000 },
        &[op],
        &[PayloadLocation::Inline],
    );
    bytes.extend(b"hellp");
    socket.write_all(&bytes).unwrap();
    let mut reply = vec![0; frame::HEADER_BYTES + frame::FrameKind::Update.entry_bytes(true)];
    socket.read_exact(&mut reply).unwrap();
    let header = frame::Header::decode(reply[..frame::HEADER_BYTES].try_into().unwrap()).unwrap();
    let results = header.decode_update_results(&reply[frame::HEADER_BYTES..]).unwrap();
    assert_eq!(results[0].status, Status::Checksum);
    assert_eq!(running.fake.executed.load(Ordering::SeqCst), 0);
}

/// A proxy that flips a bit of what the server sends, `at` bytes into the stream.
fn damaging_proxy(running: &Running, at: usize) -> Endpoint {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = Endpoint::Tcp(listener.local_addr().unwrap());
    let server = running.server.tcp_address().unwrap();
    std::thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        let mut upstream = TcpStream::connect(server).unwrap();
        let mut forward = (client.try_clone().unwrap(), upstream.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut forward.0, &mut forward.1));
        let (mut client, mut seen, mut bytes) = (client, 0, [0; 4096]);
        while let Ok(length @ 1..) = upstream.read(&mut bytes) {
            if (seen..seen + length).contains(&at) {
                bytes[at - seen] ^= 0x10;
            }
            seen += length;
            if client.write_all(&bytes[..length]).is_err() {
                break;
            }
        }
    });
    endpoint
}

#[test]
fn damage_on_the_way_is_noticed_by_the_client() {
    let running = Running::start();
    running.fake.put(1, 5, 0, &pattern(1000, 1));
    let before_payload = handshake::SERVER_HELLO_BYTES
        + handshake::VERDICT_BYTES
        + frame::HEADER_BYTES
        + frame::FrameKind::Read.entry_bytes(true);
    let into = Placement::private(1000).unwrap();
    let mut connection = connect(&damaging_proxy(&running, before_payload + 500));
    let read =
        connection.read(&[read_op(5, 0, 0, 1000)], std::slice::from_ref(&into), soon(), &mut Vec::new());
    assert_eq!(read, Err(Status::Checksum));
    assert!(!connection.is_usable());
    // In the table of results.
    let mut connection = connect(&damaging_proxy(&running, before_payload - 20));
    let read = connection.read(&[read_op(5, 0, 0, 1000)], &[into], soon(), &mut Vec::new());
    assert_eq!(read, Err(Status::Disconnected));
}

/// A proxy that can hold back what the client sends.
struct HoldingProxy {
    endpoint: Endpoint,
    /// Closed by the writer.
    gate: Arc<RwLock<()>>,
    /// How many bytes are held, or were.
    held: Arc<AtomicUsize>,
    /// Ends when what was held has reached the server and been dealt with.
    thread: std::thread::JoinHandle<()>,
}

fn holding_proxy(running: &Running) -> HoldingProxy {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = Endpoint::Tcp(listener.local_addr().unwrap());
    let server = running.server.tcp_address().unwrap();
    let (gate, held) = (Arc::new(RwLock::new(())), Arc::new(AtomicUsize::new(0)));
    let (open, holds) = (gate.clone(), held.clone());
    let thread = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut upstream = TcpStream::connect(server).unwrap();
        let mut back = (upstream.try_clone().unwrap(), client.try_clone().unwrap());
        let replies = std::thread::spawn(move || std::io::copy(&mut back.0, &mut back.1));
        let mut bytes = [0; 4096];
        while let Ok(length @ 1..) = client.read(&mut bytes) {
            if open.try_read().is_none() {
                holds.fetch_add(length, Ordering::SeqCst);
            }
            let _open = open.read();
            upstream.write_all(&bytes[..length]).unwrap();
        }
        upstream.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = replies.join().unwrap();
    });
    HoldingProxy { endpoint, gate, held, thread }
}

/// What its client has given up is not begun, however late it arrives (N3).
#[test]
fn an_update_that_was_given_up_on_its_way_is_not_executed() {
    patiently("an update that is given up on its way", |time| {
        let running = Running::start();
        let proxy = holding_proxy(&running);
        let mut connection = connect(&proxy.endpoint);
        let mut update = |sequence, deadline| {
            let payload = [Placement::from_vec(b"late".to_vec())];
            connection.update(&[write_op(1, 1, 0, 4, sequence)], &payload, deadline, &mut Vec::new())
        };
        assert_eq!(update(1, soon()), Ok(()));
        let closed = proxy.gate.write();
        assert_eq!(update(2, Instant::now() + time), Err(Status::Timeout));
        let was_sent = patiently_or_not(|| proxy.held.load(Ordering::SeqCst) > frame::HEADER_BYTES);
        drop(closed);
        proxy.thread.join().unwrap();
        assert_eq!(running.fake.executed.load(Ordering::SeqCst), 1);
        was_sent.then_some(())
    });
}

/// Whether `condition` comes true within a second.
fn patiently_or_not(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(1);
    while !condition() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
    condition()
}

#[test]
fn an_error_makes_a_connection_unusable_and_a_pool_replaces_it() {
    let running = Running::start();
    running.fake.put(1, 5, 0, b"0123456789");
    for endpoint in [running.tcp(), running.unix()] {
        let pool = Pool::new(endpoint, credential(Role::Client), 1);
        running.fake.fail([Fault::DropAfter]);
        let into = Placement::private(10).unwrap();
        {
            let mut connection = pool.get(soon()).unwrap();
            let read = |connection: &mut Connection| {
                connection.read(&[read_op(5, 0, 0, 10)], std::slice::from_ref(&into), soon(), &mut Vec::new())
            };
            assert_eq!(read(&mut connection), Err(Status::Disconnected));
            assert!(!connection.is_usable());
            assert_eq!(read(&mut connection), Err(Status::Disconnected));
        }
        assert_eq!(read_all(&mut pool.get(soon()).unwrap(), 5, 0, &into).length, 10);
        assert_eq!(into.to_vec(), b"0123456789");
    }
}

#[test]
fn a_pool_notices_that_an_idle_connection_has_gone() {
    let mut running = Running::start();
    let pool = Pool::new(running.tcp(), credential(Role::Client), 2);
    pool.get(soon()).unwrap().ping(soon()).unwrap();
    running.server.stop();
    let address = running.server.tcp_address();
    let mut options = ServerOptions::new(Secret::new(SECRET));
    options.tcp = address;
    running.server = Server::start(options, running.fake.clone()).unwrap();
    pool.get(soon()).unwrap().ping(soon()).unwrap();
}

#[test]
fn a_pool_is_bounded_and_waits() {
    let running = Running::start();
    let pool = Pool::new(running.unix(), credential(Role::Client), 2);
    let first = pool.get(soon()).unwrap();
    let _second = pool.get(soon()).unwrap();
    let error = pool.get(Instant::now() + Duration::from_millis(20)).unwrap_err();
    assert!(matches!(&error, ConnectError::Io(error) if error.kind() == std::io::ErrorKind::TimedOut));
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| pool.get(soon()).unwrap().ping(soon()));
        drop(first);
        waiter.join().unwrap().unwrap();
    });
    assert_eq!(running.server.connection_count(), 2);
}

#[test]
fn a_deadline_ends_a_request_in_time_whatever_the_server_does() {
    let running = Running::start();
    for endpoint in [running.tcp(), running.unix()] {
        let mut connection = connect(&endpoint);
        running.fake.fail([Fault::Hang]);
        let into = Placement::private(10).unwrap();
        let deadline = Instant::now() + Duration::from_millis(60);
        let read = || connection.read(&[read_op(5, 0, 0, 10)], &[into], deadline, &mut Vec::new());
        assert_eq!(at_most_a_minute(|| running.fake.release(), read), Err(Status::Timeout));
    }
    running.fake.release();
}

/// Rule N2: the late placement of a read that was given up lands in no reused buffer.
#[test]
fn a_buffer_of_a_timed_out_read_stays_away_until_the_server_is_done() {
    let (running, pool) = patiently("a read that hangs", |time| {
        let running = Running::start();
        running.fake.put(1, 5, 0, &[0xab; 4096]);
        running.fake.fail([Fault::Hang]);
        let pool = BufferPool::new(4096, 1).unwrap();
        let mut connection = connect(&running.unix());
        let buffer = pool.try_take().unwrap();
        buffer.zero();
        let into = [buffer.into_placement()];
        let deadline = Instant::now() + time;
        let read = connection.read(&[read_op(5, 0, 0, 4096)], &into, deadline, &mut Vec::new());
        assert_eq!(read, Err(Status::Timeout));
        (running.fake.hung.load(Ordering::SeqCst) == 1).then_some((running, pool))
    });
    std::thread::sleep(Duration::from_millis(100));
    assert!(pool.try_take().is_none(), "the server can still write into it");
    running.fake.release();
    let buffer = pool.take(soon()).expect("it comes back when the server has finished");
    assert_eq!(buffer.to_vec(), [0xab; 4096], "the late placement had landed before");
}

/// Rule N1 over two hops: the head's answer waits until the tail, which has the client's memory too, is done.
#[test]
fn memory_passed_to_a_lost_successor_stays_away_until_that_is_done() {
    let (_head, tail, pool) = patiently("an update that hangs at the tail", |time| {
        let (head, tail) = (Running::start(), Running::start());
        let next = Pool::new(tail.unix(), credential(Role::Service), 2);
        *head.fake.next.lock() = Some(std::sync::Arc::new(next));
        tail.fake.fail([Fault::Hang]);
        let pool = BufferPool::new(4096, 1).unwrap();
        let buffer = pool.try_take().unwrap();
        buffer.copy_from(&pattern(4096, 3));
        let mut connection = connect(&head.unix());
        let deadline = Instant::now() + 2 * time;
        let payload = [buffer.into_placement()];
        let written = connection.update(&[write_op(8, 0, 0, 4096, 1)], &payload, deadline, &mut Vec::new());
        let hangs = tail.fake.hung.load(Ordering::SeqCst) == 1;
        assert!(!hangs || written == Err(Status::Timeout), "{written:?}");
        hangs.then_some((head, tail, pool))
    });
    std::thread::sleep(Duration::from_millis(150));
    assert!(pool.try_take().is_none(), "the tail can still read it");
    tail.fake.release();
    assert!(pool.take(soon()).is_some());
    assert_eq!(tail.fake.chunk(1, 8, 0).unwrap(), pattern(4096, 3), "and it read what was written");
}

#[test]
fn a_region_is_forwarded_along_a_chain_on_one_host() {
    let (head, tail) = (Running::start(), Running::start());
    let next = Pool::new(tail.unix(), credential(Role::Service), 2);
    *head.fake.next.lock() = Some(std::sync::Arc::new(next));
    let region = Region::create(1 << 20).unwrap();
    let mut connection = connect(&head.unix());
    for round in 0..5 {
        let payload = region.placement(round * 1000, 50_000).unwrap();
        payload.copy_from(&pattern(50_000, round));
        let mut out = Vec::new();
        connection.update(&[write_op(8, round as u32, 0, 50_000, 1)], &[payload], soon(), &mut out).unwrap();
        assert_eq!(out[0].status, Status::Ok);
        assert_eq!(tail.fake.chunk(1, 8, round as u32).unwrap(), pattern(50_000, round));
    }
}

/// More regions than a connection has slots, and regions that end.
#[test]
fn regions_are_registered_and_dropped_on_one_connection() {
    let running = Running::start();
    let mut connection = connect(&running.unix());
    let mut kept = Vec::new();
    for round in 0..3 * frame::REGIONS_MAX {
        let region = Region::create(4096).unwrap();
        let payload = region.placement(0, 100).unwrap();
        payload.copy_from(&pattern(100, round));
        let op = write_op(8, round as u32, 0, 100, 1);
        let mut out = Vec::new();
        connection.update(&[op], &[payload], soon(), &mut out).unwrap();
        assert_eq!(out[0].status, Status::Ok);
        assert_eq!(running.fake.chunk(1, 8, round as u32).unwrap(), pattern(100, round));
        if round % 2 == 0 {
            kept.push(region);
        }
    }
    let into: Vec<_> = kept.iter().map(|region| region.placement(1000, 100).unwrap()).collect();
    let ops: Vec<_> = (0..kept.len()).map(|n| read_op(8, 2 * n as u32, 0, 100)).collect();
    let mut out = Vec::new();
    connection.read(&ops, &into, soon(), &mut out).unwrap();
    for (round, into) in into.iter().enumerate() {
        assert_eq!(into.to_vec(), pattern(100, 2 * round));
    }
}

/// Memory of a region that the client has dropped is given back, not held by the server.
#[test]
fn a_dropped_region_is_unmapped_by_the_server() {
    let running = Running::start();
    let mut connection = connect(&running.unix());
    let mut use_region = |region: &std::sync::Arc<Region>| {
        let into = region.placement(0, 10).unwrap();
        read_all(&mut connection, 1, 1, &into);
    };
    let region = Region::create(4096).unwrap();
    use_region(&region);
    let (_, inode) = Region::identity(&*region).unwrap();
    let mappings = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let ours = |line: &&str| {
            line.contains("memfd:") && line.split_whitespace().nth(4) == Some(&inode.to_string())
        };
        maps.lines().filter(ours).count()
    };
    assert_eq!(mappings(), 2, "the client's and the server's");
    drop(region);
    assert_eq!(mappings(), 1);
    use_region(&Region::create(4096).unwrap());
    assert_eq!(mappings(), 0);
}

#[test]
fn syncs_report_each_chain() {
    let running = Running::start();
    running.fake.versions.lock().insert(ChainId(2), ChainVersion(9));
    for endpoint in [running.tcp(), running.unix()] {
        let chains =
            [(ChainId(1), ChainVersion(1)), (ChainId(2), ChainVersion(8)), (ChainId(2), ChainVersion(9))];
        let mut out = Vec::new();
        connect(&endpoint).sync(&chains, soon(), &mut out).unwrap();
        assert_eq!(out, [Status::Ok, Status::WrongChainVersion, Status::Ok]);
    }
}

#[test]
fn payloads_in_memory_are_bounded_over_all_connections() {
    let running = Running::with(|options| options.payload_bytes_max = 100_000);
    std::thread::scope(|scope| {
        for client in 0..6 {
            let endpoint = running.tcp();
            scope.spawn(move || {
                let mut connection = connect(&endpoint);
                for round in 0..20 {
                    let payload = [Placement::from_vec(pattern(60_000, client + round))];
                    let op = write_op(client as u64, round as u32, 0, 60_000, 1);
                    connection.update(&[op], &payload, soon(), &mut Vec::new()).unwrap();
                }
            });
        }
    });
    assert_eq!(running.fake.executed.load(Ordering::SeqCst), 120);
}

/// Else two nodes full of updates for each other would deadlock.
#[test]
fn a_nodes_updates_do_not_wait_for_the_clients_budget() {
    let running = Running::with(|options| options.payload_bytes_max = 1000);
    std::thread::scope(|scope| {
        running.fake.fail([Fault::Hang]);
        let client = scope.spawn(|| {
            let payload = [Placement::from_vec(pattern(1000, 1))];
            connect(&running.tcp()).update(&[write_op(1, 0, 0, 1000, 1)], &payload, soon(), &mut Vec::new())
        });
        wait_until("the client's update hangs", || running.fake.batches.load(Ordering::SeqCst) == 1);
        let node = credential(Role::Service);
        let mut node = Connection::connect(&running.tcp(), &node, A_MINUTE).unwrap();
        let payload = [Placement::from_vec(pattern(1000, 2))];
        node.update(&[write_op(2, 0, 0, 1000, 1)], &payload, soon(), &mut Vec::new()).unwrap();
        running.fake.release();
        client.join().unwrap().unwrap();
    });
}
