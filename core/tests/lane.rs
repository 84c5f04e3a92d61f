//! The lane client and the routing thread against servers made of the same bytes.

mod fake;

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use fake::port::Port;
use fake::{SECRET, credential, patiently, soon};
use luciola_core::cluster::routing::RoutingTable;
use luciola_core::cluster::rpc::{Lane, LaneOptions};
use luciola_core::error::Kind;
use luciola_core::net::Secret;
use luciola_core::types::NodeId;
use luciola_core::wire::credential::{self, Nonces};
use luciola_core::wire::handshake;
use luciola_core::wire::lane::{HEADER_BYTES, LaneHeader, socket_name};
use luciola_core::wire::pb::{self, Method, claims::Role};
use parking_lot::{Condvar, Mutex};
use prost::Message;

/// What the server does with one request.
#[derive(Clone, Debug)]
enum Step {
    /// Answers a lookup with an inode of that number.
    Inode(u64),
    /// Answers when another request has come too.
    Meet(Arc<Barrier>),
    Error(&'static str),
    Close,
    /// Answers with the id of another request.
    WrongId,
    /// Announces more bytes than are allowed.
    TooLong,
    Silence,
}

/// Ids and bytes of requests.
type Seen = Mutex<Vec<(u64, Vec<u8>)>>;

/// A lane server; requests beyond the scripted steps are answered with their own `parent` as inode.
struct Server {
    address: String,
    steps: Arc<Mutex<VecDeque<Step>>>,
    /// Id and bytes of every request seen.
    seen: Arc<Seen>,
    connections: Arc<AtomicU64>,
}

impl Server {
    fn start(steps: impl IntoIterator<Item = Step>) -> Server {
        Server::at(TcpListener::bind("127.0.0.1:0").unwrap(), steps)
    }

    fn at(listener: TcpListener, steps: impl IntoIterator<Item = Step>) -> Server {
        let address = listener.local_addr().unwrap();
        Server::accepting(address, steps, move || Some(listener.accept().ok()?.0))
    }

    /// The same server for clients on its own host: it has no other port, and counts for itself.
    fn locally(&self, steps: impl IntoIterator<Item = Step>) -> Server {
        let (address, listener) = (self.address.parse().unwrap(), self.listen_locally());
        Server::accepting(address, steps, move || Some(listener.accept().ok()?.0))
    }

    fn listen_locally(&self) -> UnixListener {
        UnixListener::bind_addr(&self.local_name()).unwrap()
    }

    fn local_name(&self) -> std::os::unix::net::SocketAddr {
        let name = socket_name(self.address.parse().unwrap());
        std::os::unix::net::SocketAddr::from_abstract_name(name).unwrap()
    }

    fn accepting<S: Read + Write + Send + 'static>(
        address: SocketAddr,
        steps: impl IntoIterator<Item = Step>,
        mut accept: impl FnMut() -> Option<S> + Send + 'static,
    ) -> Server {
        let server = Server {
            address: address.to_string(),
            steps: Arc::new(Mutex::new(steps.into_iter().collect())),
            seen: Arc::default(),
            connections: Arc::default(),
        };
        let (steps, seen, connections) =
            (server.steps.clone(), server.seen.clone(), server.connections.clone());
        std::thread::spawn(move || {
            while let Some(socket) = accept() {
                connections.fetch_add(1, Ordering::SeqCst);
                let (steps, seen) = (steps.clone(), seen.clone());
                std::thread::spawn(move || serve(socket, &steps, &seen));
            }
        });
        server
    }
}

fn greet(socket: &mut (impl Read + Write)) -> Option<()> {
    let kind = credential::ChannelKind::Lane;
    let server = [8; 32];
    socket
        .write_all(&handshake::encode_server_hello(
            kind,
            handshake::ServerHello::Nonce { nonce: server, wire: 0 },
        ))
        .ok()?;
    let mut hello = [0; handshake::CLIENT_HELLO_BYTES];
    socket.read_exact(&mut hello).ok()?;
    let (client, claims_len) = handshake::decode_client_hello(kind, &hello).unwrap();
    let mut rest = vec![0; claims_len + 32];
    socket.read_exact(&mut rest).ok()?;
    let (claims, proof) = rest.split_at(claims_len);
    let nonces = Nonces { server, client };
    let verdict = Secret::new(SECRET).verify(kind, &nonces, claims, proof.try_into().unwrap(), 0);
    let Ok((_, key)) = verdict else {
        let _ = socket.write_all(&handshake::encode_verdict(handshake::Verdict::Refused));
        return None;
    };
    let proof = credential::server_proof(&key, kind, &nonces);
    socket.write_all(&handshake::encode_verdict(handshake::Verdict::Welcome(proof))).ok()
}

fn receive(socket: &mut impl Read) -> Option<(LaneHeader, Vec<u8>)> {
    let mut header = [0; HEADER_BYTES];
    socket.read_exact(&mut header).ok()?;
    let header = LaneHeader::decode(&header).unwrap();
    let mut payload = vec![0; header.length as usize];
    socket.read_exact(&mut payload).ok()?;
    Some((header, payload))
}

fn reply(socket: &mut impl Write, header: LaneHeader, error: bool, payload: &[u8]) -> Option<()> {
    let header = LaneHeader { length: payload.len() as u32, reply: true, error, ..header };
    socket.write_all(&[&header.encode(), payload].concat()).ok()
}

fn serve(mut socket: impl Read + Write, steps: &Mutex<VecDeque<Step>>, seen: &Seen) -> Option<()> {
    greet(&mut socket)?;
    loop {
        let (header, payload) = receive(&mut socket)?;
        let request = pb::LookupRequest::decode(payload.as_slice()).unwrap();
        let step = steps.lock().pop_front();
        seen.lock().push((header.id, payload));
        let inode = |id| {
            let inode = Some(pb::Inode { id, ..pb::Inode::default() });
            pb::InodeReply { inode, ..pb::InodeReply::default() }.encode_to_vec()
        };
        match step.unwrap_or(Step::Inode(request.parent)) {
            Step::Inode(id) => reply(&mut socket, header, false, &inode(id))?,
            Step::Meet(all) => {
                all.wait();
                reply(&mut socket, header, false, &inode(request.parent))?;
            }
            Step::Error(code) => {
                let error = pb::Error {
                    code: code.to_owned(),
                    message: "as asked".to_owned(),
                    ..pb::Error::default()
                };
                reply(&mut socket, header, true, &error.encode_to_vec())?;
            }
            Step::Close => return None,
            Step::WrongId => {
                reply(&mut socket, LaneHeader { id: header.id + 1, ..header }, false, &inode(1))?
            }
            Step::TooLong => {
                let header = LaneHeader { length: u32::MAX, reply: true, ..header };
                socket.write_all(&header.encode()).ok()?;
            }
            // No client waits for so long; the next try of one that does is answered.
            Step::Silence => {
                std::thread::sleep(Duration::from_secs(60));
                return None;
            }
        }
    }
}

fn lane(addresses: &[&str]) -> Arc<Lane> {
    let options = LaneOptions {
        retry_first: Duration::from_millis(2),
        retry_max: Duration::from_millis(20),
        connections_max: 4,
        ..LaneOptions::default()
    };
    Lane::new(
        addresses.iter().map(|address| (*address).to_owned()).collect(),
        credential(Role::Client),
        options,
    )
}

fn lookup(lane: &Lane, parent: u64, deadline: Instant) -> Result<u64, Kind> {
    let request = pb::LookupRequest { parent, name: b"name".to_vec(), ..pb::LookupRequest::default() };
    let reply: Result<pb::InodeReply, _> = lane.call(Method::MetaLookup, &request, deadline);
    reply.map(|reply| reply.inode.unwrap().id).map_err(|error| error.kind())
}

#[test]
fn calls_are_answered_over_few_connections() {
    let server = Server::start([]);
    let lane = lane(&[&server.address]);
    for parent in 1..50 {
        assert_eq!(lookup(&lane, parent, soon()), Ok(parent));
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
    std::thread::scope(|scope| {
        for thread in 0..16 {
            let lane = &lane;
            scope.spawn(move || {
                for call in 0..50 {
                    assert_eq!(lookup(lane, thread * 100 + call + 1, soon()), Ok(thread * 100 + call + 1));
                }
            });
        }
    });
    assert!(server.connections.load(Ordering::SeqCst) <= 4);
}

#[test]
fn a_server_on_this_host_is_reached_over_its_unix_socket() {
    let server = Server::start([]);
    let local = server.locally([]);
    let lane = lane(&[&server.address]);
    for parent in 1..50 {
        assert_eq!(lookup(&lane, parent, soon()), Ok(parent));
    }
    assert_eq!(local.connections.load(Ordering::SeqCst), 1);
    assert_eq!(server.connections.load(Ordering::SeqCst), 0);
}

#[test]
fn a_call_that_loses_its_unix_socket_continues() {
    use Step::*;
    let server = Server::start([]);
    let local = server.locally([Inode(1), Close, WrongId, Inode(2)]);
    let lane = lane(&[&server.address]);
    assert_eq!(lookup(&lane, 7, soon()), Ok(1));
    assert_eq!(lookup(&lane, 8, soon()), Ok(2));
    assert_eq!(local.seen.lock().len(), 4);
}

/// Fills what the listener keeps for connections that are not accepted.
fn filled(name: &std::os::unix::net::SocketAddr) -> Vec<rustix::fd::OwnedFd> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let name = SocketAddrUnix::new_abstract_name(name.as_abstract_name().unwrap()).unwrap();
    let mut waiting = Vec::new();
    loop {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        match rustix::net::connect(&fd, &name) {
            Ok(()) => waiting.push(fd),
            Err(error) => {
                assert_eq!(error, rustix::io::Errno::AGAIN);
                return waiting;
            }
        }
    }
}

#[test]
fn a_unix_socket_without_room_is_left_for_tcp_at_once() {
    let server = Server::start([]);
    let listener = server.listen_locally();
    let waiting = filled(&server.local_name());
    assert!(!waiting.is_empty());
    let lane = lane(&[&server.address]);
    assert_eq!(lookup(&lane, 7, soon()), Ok(7));
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
    drop(listener);
}

#[test]
fn a_unix_socket_where_another_program_answers_is_left_for_tcp() {
    let server = Server::start([]);
    let listener = server.listen_locally();
    std::thread::spawn(move || {
        while let Ok((mut socket, _)) = listener.accept() {
            let _ = socket.write_all(b"GET / HTTP/1.1 and more than a hello has, to be sure of it");
        }
    });
    assert_eq!(lookup(&lane(&[&server.address]), 7, soon()), Ok(7));
}

#[test]
fn a_server_that_stops_behind_its_unix_socket_meets_the_deadline() {
    let server = Server::start([]);
    // No process ever accepts, as if it were stopped.
    let listener = server.listen_locally();
    let lane = lane(&[&server.address]);
    let deadline = Instant::now() + Duration::from_millis(200);
    assert_eq!(lookup(&lane, 7, deadline), Err(Kind::Unavailable));
    drop(listener);
    assert_eq!(lookup(&lane, 7, soon()), Ok(7), "its socket is gone: TCP is there");
}

#[test]
fn a_unix_socket_is_gone_with_its_server() {
    let server = Server::start([]);
    let listener = server.listen_locally();
    drop(listener);
    assert!(UnixStream::connect_addr(&server.local_name()).is_err());
    assert_eq!(lookup(&lane(&[&server.address]), 7, soon()), Ok(7));
}

#[test]
fn a_lost_connection_is_retried_with_the_same_id_and_bytes() {
    use Step::*;
    let server = Server::start([Inode(1), Close, Close, WrongId, TooLong, Inode(2)]);
    let lane = lane(&[&server.address]);
    assert_eq!(lookup(&lane, 7, soon()), Ok(1));
    assert_eq!(lookup(&lane, 8, soon()), Ok(2));
    let seen = server.seen.lock();
    assert_eq!(seen.len(), 6);
    assert!(seen[2..].iter().all(|one| *one == seen[1]), "the same request, five times");
    assert_ne!(seen[0].0, seen[1].0);
}

#[test]
fn passing_errors_are_retried_and_others_returned() {
    use Step::*;
    let server = Server::start([Error("unavailable"), Error("maybe_committed"), Error("busy"), Inode(3)]);
    let lane = lane(&[&server.address]);
    assert_eq!(lookup(&lane, 7, soon()), Ok(3));
    for (code, kind) in [
        ("not_found", Kind::NotFound),
        ("conflict", Kind::Conflict),
        ("stale_routing", Kind::StaleRouting),
        ("of a later version", Kind::Other),
    ] {
        let before = server.seen.lock().len();
        server.steps.lock().push_back(Error(code));
        assert_eq!(lookup(&lane, 7, soon()), Err(kind));
        assert_eq!(server.seen.lock().len(), before + 1);
    }
    assert_eq!(
        server.connections.load(Ordering::SeqCst),
        1,
        "an error is an answer, the connection lives on"
    );
    server.steps.lock().extend((0..10_000).map(|_| Error("unavailable")));
    patiently("the service's own error when time is up", |time| {
        let result = lookup(&lane, 7, Instant::now() + time);
        assert!(matches!(result, Err(Kind::Unavailable | Kind::Timeout)), "{result:?}");
        (result == Err(Kind::Unavailable)).then_some(())
    });
}

#[test]
fn a_dead_address_gives_way_to_a_living_one() {
    let dead = Port::reserve();
    let living = Server::start([]);
    let lane = lane(&[&dead.address.to_string(), &living.address]);
    assert_eq!(lookup(&lane, 5, soon()), Ok(5));
    assert_eq!(lookup(&lane, 6, soon()), Ok(6));
    assert_eq!(living.connections.load(Ordering::SeqCst), 1, "from then on it is the first");
    // And addresses can change.
    let other = Server::start([]);
    lane.set_addresses(vec![other.address.clone()]);
    assert_eq!(lookup(&lane, 8, soon()), Ok(8));
    assert_eq!(other.seen.lock().len(), 1);
}

#[test]
fn a_call_that_a_standby_refuses_goes_to_the_primary_and_so_do_later_ones() {
    let standby = Server::start([Step::Error("unavailable")]);
    let primary = Server::start([Step::Error("busy")]);
    let lane = lane(&[&standby.address, &primary.address]);
    assert_eq!(lookup(&lane, 5, soon()), Ok(5));
    assert_eq!(lookup(&lane, 6, soon()), Ok(6));
    assert_eq!(standby.seen.lock().len(), 1, "it is asked once");
    assert_eq!(primary.seen.lock().len(), 3, "one that is busy is the primary");
    assert_eq!(standby.seen.lock()[0], primary.seen.lock()[0], "the same id and bytes");
}

#[test]
fn idle_connections_to_a_server_that_hangs_are_not_used_again() {
    let both = Arc::new(Barrier::new(2));
    let hung = Server::start([Step::Meet(both.clone()), Step::Meet(both)]);
    let other = Server::start([]);
    let lane = lane(&[&hung.address, &other.address]);
    std::thread::scope(|scope| {
        let calls = [3, 4].map(|parent| {
            let lane = &lane;
            scope.spawn(move || lookup(lane, parent, soon()))
        });
        assert_eq!(calls.map(|call| call.join().unwrap()), [Ok(3), Ok(4)]);
    });
    hung.steps.lock().extend([Step::Close, Step::Silence]);
    assert_eq!(lookup(&lane, 5, soon()), Ok(5));
    assert_eq!(lookup(&lane, 6, soon()), Ok(6));
    assert_eq!(other.seen.lock().len(), 2);
}

#[test]
fn a_call_at_a_server_that_does_not_answer_another_is_sent_to_the_next() {
    let hung = Server::start([Step::Silence, Step::Silence]);
    let other = Server::start([]);
    let lane = lane(&[&hung.address, &other.address]);
    let deadline = soon();
    std::thread::scope(|scope| {
        let call = scope.spawn(|| lookup(&lane, 5, deadline));
        while hung.seen.lock().is_empty() {
            assert!(Instant::now() < deadline, "the request does not arrive");
            std::thread::yield_now();
        }
        patiently("a request without an answer in time", |time| {
            let before = hung.seen.lock().len();
            let result = lookup(&lane, 6, Instant::now() + time);
            (result != Err(Kind::Timeout) || hung.seen.lock().len() > before).then_some(())
        });
        assert_eq!(call.join().unwrap(), Ok(5));
    });
    assert!(hung.seen.lock().contains(&other.seen.lock()[0]), "the same id and bytes");
}

#[test]
fn a_call_without_an_answer_is_sent_to_the_server_that_replaces_its_own() {
    let paused = Server::start([Step::Silence]);
    let other = Server::start([]);
    let lane = lane(&[&paused.address]);
    let deadline = soon();
    std::thread::scope(|scope| {
        let call = scope.spawn(|| lookup(&lane, 5, deadline));
        while paused.seen.lock().is_empty() {
            assert!(Instant::now() < deadline, "the request does not arrive");
            std::thread::yield_now();
        }
        lane.set_addresses(vec![other.address.clone()]);
        assert_eq!(call.join().unwrap(), Ok(5));
    });
    assert_eq!(*paused.seen.lock(), *other.seen.lock(), "the same id and bytes");
}

/// Less than it takes to give up an attempt to connect.
const CONNECTING: Duration = Duration::from_secs(4);

/// A call to `hung` of which `begun` says when it connects, and which is answered by the server that replaces that.
fn replaced_while_connecting(hung: &str, begun: impl FnOnce(&Lane)) {
    let other = Server::start([]);
    let lane = lane(&[hung]);
    std::thread::scope(|scope| {
        let call = scope.spawn(|| lookup(&lane, 5, Instant::now() + CONNECTING));
        begun(&lane);
        lane.set_addresses(vec![other.address.clone()]);
        assert_eq!(call.join().unwrap(), Ok(5));
    });
}

#[test]
fn a_server_that_hangs_in_its_handshake_is_left_when_it_is_replaced() {
    let hung = TcpListener::bind("127.0.0.1:0").unwrap();
    replaced_while_connecting(&hung.local_addr().unwrap().to_string(), |_| {
        std::mem::forget(hung.accept().unwrap());
    });
    let hung = Server::start([]);
    let local = hung.listen_locally();
    replaced_while_connecting(&hung.address, |_| std::mem::forget(local.accept().unwrap()));
    assert_eq!(hung.connections.load(Ordering::SeqCst), 0, "nor is it reached in another way");
}

#[test]
fn a_host_that_does_not_answer_is_left_when_its_server_is_replaced() {
    let hung = TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::net::listen(&hung, 0).unwrap();
    let address = hung.local_addr().unwrap();
    let mut waiting = Vec::new();
    while let Ok(socket) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        waiting.push(socket); // until nothing more gets in: the next one hears nothing
    }
    replaced_while_connecting(&address.to_string(), |lane| {
        while !format!("{lane:?}").contains(" 1 open") {
            std::thread::yield_now();
        }
    });
}

#[test]
fn a_call_that_pauses_is_sent_again_when_the_service_changes() {
    let standby = Server::start([Step::Error("unavailable")]);
    let long = Duration::from_secs(1000);
    let options = LaneOptions { retry_first: long, retry_max: long, ..LaneOptions::default() };
    let lane = Lane::new(vec![standby.address.clone()], credential(Role::Client), options);
    let deadline = soon();
    std::thread::scope(|scope| {
        let call = scope.spawn(|| lookup(&lane, 5, deadline));
        while standby.seen.lock().is_empty() {
            assert!(Instant::now() < deadline, "the request does not arrive");
            std::thread::yield_now();
        }
        lane.retry_now(); // it is the primary now
        assert_eq!(call.join().unwrap(), Ok(5));
    });
    assert_eq!(standby.seen.lock().len(), 2);
}

#[test]
fn a_server_that_comes_later_is_waited_for() {
    let port = Port::reserve();
    let lane = lane(&[&port.address.to_string()]);
    std::thread::scope(|scope| {
        let call = scope.spawn(|| lookup(&lane, 5, soon()));
        std::thread::sleep(Duration::from_millis(80));
        let _server = Server::at(TcpListener::bind(port.address).unwrap(), []);
        assert_eq!(call.join().unwrap(), Ok(5));
    });
}

#[test]
fn a_silent_server_is_left_at_the_deadline() {
    patiently("a request without an answer", |time| {
        let server = Server::start([Step::Silence]);
        let lane = lane(&[&server.address]);
        let request = pb::LookupRequest { parent: 5, ..pb::LookupRequest::default() };
        let result: Result<pb::InodeReply, _> =
            lane.call(Method::MetaLookup, &request, Instant::now() + time);
        let error = result.unwrap_err();
        assert_eq!(error.kind(), Kind::Timeout);
        if server.seen.lock().is_empty() {
            return None;
        }
        let said = error.message();
        assert!(said.starts_with("META_LOOKUP was given up (1 attempts in "), "{said}");
        let end = format!(", the last to {}, sent and not answered): connection lost: ", server.address);
        assert!(said.contains(&end), "{said}");
        assert_eq!(lookup(&lane, 6, soon()), Ok(6), "the next call takes another connection");
        Some(())
    });
}

#[test]
fn connections_that_are_idle_for_long_are_closed_and_opened_again() {
    let server = Server::start([]);
    let connect = |idle_max| {
        let options = LaneOptions { idle_max, ..LaneOptions::default() };
        Lane::new(vec![server.address.clone()], credential(Role::Client), options)
    };
    let lane = connect(Duration::ZERO);
    assert_eq!(lookup(&lane, 5, soon()), Ok(5));
    lane.close_idle();
    assert!(format!("{lane:?}").ends_with("0 open, 0 idle }"), "{lane:?}");
    assert_eq!(lookup(&lane, 6, soon()), Ok(6));
    let lane = connect(Duration::from_secs(3600));
    assert_eq!(lookup(&lane, 5, soon()), Ok(5));
    lane.close_idle();
    assert!(format!("{lane:?}").ends_with("1 open, 1 idle }"), "{lane:?}");
}

#[test]
fn a_wrong_token_is_reported_at_once() {
    let server = Server::start([]);
    let foreign = Secret::new([1; 32]).mint(&pb::Claims::default());
    let lane = Lane::new(vec![server.address.clone()], foreign, LaneOptions::default());
    assert_eq!(lookup(&lane, 5, soon()), Err(Kind::Unauthenticated));
    assert!(server.seen.lock().is_empty());
    let empty = Lane::new(Vec::new(), credential(Role::Client), LaneOptions::default());
    assert_eq!(lookup(&empty, 5, Instant::now() + Duration::from_millis(20)), Err(Kind::Unavailable));
}

/// A cluster manager with long polls: answers when its version exceeds what the caller knows.
#[derive(Clone)]
struct Mgmtd {
    state: Arc<(Mutex<(u64, bool)>, Condvar)>,
    polls: Arc<AtomicU64>,
}

impl Mgmtd {
    fn start() -> (Mgmtd, String) {
        let mgmtd =
            Mgmtd { state: Arc::new((Mutex::new((1, false)), Condvar::new())), polls: Arc::default() };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let served = mgmtd.clone();
        std::thread::spawn(move || {
            while let Ok((socket, _)) = listener.accept() {
                let served = served.clone();
                std::thread::spawn(move || served.serve(socket));
            }
        });
        (mgmtd, address)
    }

    fn publish(&self, version: u64) {
        self.state.0.lock().0 = version;
        self.state.1.notify_all();
    }

    /// Breaks the next answer off.
    fn break_next(&self) {
        self.state.0.lock().1 = true;
    }

    fn serve(&self, mut socket: TcpStream) -> Option<()> {
        greet(&mut socket)?;
        loop {
            let (header, payload) = receive(&mut socket)?;
            let request = pb::GetRoutingRequest::decode(payload.as_slice()).unwrap();
            self.polls.fetch_add(1, Ordering::SeqCst);
            let mut state = self.state.0.lock();
            let until = Instant::now() + Duration::from_millis(request.wait_ms.into());
            while state.0 <= request.known_version {
                if self.state.1.wait_until(&mut state, until).timed_out() {
                    break;
                }
            }
            let broken = std::mem::take(&mut state.1);
            let version = state.0;
            drop(state);
            if broken {
                return None;
            }
            // The whole at first; then each version brings the node of its number.
            let delta = request.known_version > 0;
            let ids = if delta { request.known_version + 1..version + 1 } else { 1..version + 1 };
            let nodes = ids.map(|id| pb::Node { id: id as u32, ..pb::Node::default() }).collect();
            let routing = pb::Routing {
                version,
                delta,
                nodes,
                cluster_id: "test".to_owned(),
                ..pb::Routing::default()
            };
            reply(&mut socket, header, false, &routing.encode_to_vec())?;
        }
    }
}

#[test]
fn routing_follows_the_cluster_manager() {
    let (mgmtd, address) = Mgmtd::start();
    let table = RoutingTable::start(lane(&[&address]), soon()).unwrap();
    assert_eq!(table.current().version, 1);
    for version in [2, 3, 7] {
        mgmtd.publish(version);
        let seen = table.wait_newer(version - 1, soon());
        assert_eq!(seen.version, version);
        assert!((1..=version).all(|id| seen.nodes.contains_key(&NodeId(id as u32))));
    }
    // A lost connection, and a change while it is lost.
    mgmtd.break_next();
    mgmtd.publish(9);
    assert_eq!(table.wait_newer(8, soon()).version, 9);
    assert!(mgmtd.polls.load(Ordering::SeqCst) < 20, "one poll a change, not a busy loop");
}

#[test]
fn without_a_cluster_manager_there_is_an_error_in_time() {
    let dead = Port::reserve();
    let lane = lane(&[&dead.address.to_string()]);
    let error = RoutingTable::start(lane, Instant::now() + Duration::from_millis(60)).unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
}
