//! Calls to mgmtd and meta over the lane (docs/protocol.md): framed protobuf on blocking sockets.
//!
//! A connection has one call in flight; concurrent calls take several connections out of a bounded pool. Servers on this
//! host are reached over Unix sockets (docs/decisions/0024-lane-on-one-host.md).

use std::fmt;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::lock::{Condvar, Mutex};
use prost::Message;
use rustix::net::Shutdown;

use super::attempts::{Attempts, Reached};
use super::backoff::Backoff;
use crate::cancel::is_cancelled;
use crate::error::{Error, Kind, Result};
use crate::net::stream::Stream;
use crate::net::{ConnectError, Role, handshake, with_current_token};
use crate::wire::credential::{ChannelKind, Credential, Token};
use crate::wire::frame::Malformed;
use crate::wire::lane::{HEADER_BYTES, LaneHeader, PAYLOAD_BYTES_MAX, socket_name};
use crate::wire::pb::{self, Method};

/// Longest that connecting to one address may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The same while another address was not tried yet: one that hangs must not keep a call from one that answers.
const CONNECT_FIRST_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait for a reply where there is another address to ask. A call with a longer deadline is sent again.
pub(super) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest pause of a call once the service has changed. Calls of one client need not come together.
const CHANGED_PAUSE_MAX: Duration = Duration::from_millis(10);
const _: () = assert!(CONNECT_FIRST_TIMEOUT.as_millis() < CONNECT_TIMEOUT.as_millis());
const _: () = assert!(CONNECT_TIMEOUT.as_millis() < ATTEMPT_TIMEOUT.as_millis());
const _: () = assert!(PAYLOAD_BYTES_MAX <= u32::MAX as usize, "a header says how long a message is");

/// How a lane retries.
#[derive(Clone, Debug)]
pub struct LaneOptions {
    /// What the servers have to be, by their certificates.
    pub role: Role,
    pub retry_first: Duration,
    pub retry_max: Duration,
    pub connections_max: usize,
    /// A connection that was not used for so long is closed: a server has a bounded number for all its clients.
    pub idle_max: Duration,
}

impl Default for LaneOptions {
    fn default() -> LaneOptions {
        LaneOptions {
            role: Role::Mgmtd,
            retry_first: Duration::from_millis(10),
            retry_max: Duration::from_secs(1),
            connections_max: 16,
            idle_max: Duration::from_secs(30),
        }
    }
}

/// Calls one service that listens at one of several addresses. A call goes to the address that answered last,
/// and on to the next when a connection fails, or a standby refuses it. An address that is left has no calls in progress
/// any more: where one is not answered, others are not. Who knows of a change of the service says so
/// (`set_addresses`, `retry_now`), and calls that wait to be sent again are sent at once.
pub struct Lane {
    credential: Credential,
    options: LaneOptions,
    next_id: AtomicU64,
    state: Mutex<LaneState>,
    freed: Condvar,
    /// Wakes calls out of their pauses.
    changed: Condvar,
}

#[derive(Default)]
struct LaneState {
    addresses: Vec<String>,
    /// Index of the address that answered last.
    preferred: usize,
    /// The one used last is at the end.
    idle: Vec<IdleConnection>,
    in_use: Vec<ConnectionInUse>,
    /// Idle, in use and being opened.
    open: usize,
    /// How often the service has changed.
    changes: u64,
}

impl LaneState {
    /// Close idle connections to addresses of which `is_gone`, and end the calls in progress there.
    fn leave(&mut self, is_gone: impl Fn(&str) -> bool) {
        let before = self.idle.len();
        self.idle.retain(|each| !is_gone(&each.address));
        self.closed(before - self.idle.len());
        for each in self.in_use.iter().filter(|each| is_gone(&each.address)) {
            // It fails only where the peer has ended the connection already.
            let _ = rustix::net::shutdown(&each.socket, Shutdown::Both);
        }
    }

    /// So many connections are gone.
    fn closed(&mut self, count: usize) {
        assert!(self.open >= self.idle.len() + self.in_use.len() + count, "open connections are counted");
        assert!(self.preferred < self.addresses.len().max(1), "one of the addresses is preferred");
        self.open -= count;
    }
}

struct IdleConnection {
    address: String,
    opened: OpenConnection,
    since: Instant,
}

/// A connection, and the generation of the token that it was opened with.
struct OpenConnection {
    stream: Stream,
    generation: u64,
}

/// To end a call from outside.
struct ConnectionInUse {
    address: String,
    socket: Arc<OwnedFd>,
}

/// How long an attempt may take.
#[derive(Clone, Copy)]
struct Patience {
    deadline: Instant,
    /// Other addresses were not tried yet.
    has_others: bool,
}

/// Why one attempt failed.
enum Failure {
    /// Another attempt may succeed, at another address.
    Lost(Error),
    /// As `Lost`, of what explains more than that the deadline has passed.
    Untrusted(Error),
    /// The service answered; another attempt may succeed.
    Retryable(Error),
    Final(Error),
}

impl Lane {
    /// `addresses` are "host:port". Connects when the first call is made.
    pub fn new(addresses: Vec<String>, credential: impl Into<Credential>, options: LaneOptions) -> Arc<Lane> {
        assert!(options.connections_max > 0, "a lane has at least one connection");
        let state = Mutex::new(LaneState { addresses, ..LaneState::default() });
        let next_id = AtomicU64::new(1);
        let (freed, changed) = (Condvar::new(), Condvar::new());
        Arc::new(Lane { credential: credential.into(), options, next_id, state, freed, changed })
    }

    #[cfg(test)]
    pub fn changes(&self) -> u64 {
        self.state.lock().changes
    }

    #[cfg(test)]
    pub fn addresses(&self) -> Vec<String> {
        self.state.lock().addresses.clone()
    }

    /// Replace the addresses by those of newer routing. Calls in progress at others lose their connections, and are sent
    /// again: a server that was stopped, and replaced, would not answer them.
    pub fn set_addresses(&self, addresses: Vec<String>) {
        let mut state = self.state.lock();
        if state.addresses == addresses {
            return;
        }
        let preferred = state.addresses.get(state.preferred);
        let place = addresses.iter().position(|address| Some(address) == preferred).unwrap_or(0);
        state.preferred = place;
        state.addresses = addresses.clone();
        state.leave(|address| !addresses.iter().any(|known| known == address));
        drop(state);
        self.retry_now();
    }

    /// Send calls again that pause after a failure: the service has changed, as when a standby has taken over.
    pub fn retry_now(&self) {
        self.state.lock().changes += 1;
        self.changed.notify_all();
    }

    /// Call `method`. The same bytes are sent again, with growing pauses, after a lost connection and after
    /// `Unavailable`, `MaybeCommitted` and `Busy`, until `deadline`: the request's `Caller` makes it idempotent.
    /// All other errors of the service are returned as they come, `Conflict` included.
    pub fn call<Q: Message, R: Message + Default>(
        &self,
        method: Method,
        request: &Q,
        deadline: Instant,
    ) -> Result<R> {
        self.call_tracked(method, request, deadline, &mut Attempts::new())
    }

    /// As `call`; `attempts` says afterwards how far it got.
    pub(crate) fn call_tracked<Q: Message, R: Message + Default>(
        &self,
        method: Method,
        request: &Q,
        deadline: Instant,
        attempts: &mut Attempts<String>,
    ) -> Result<R> {
        let request = request.encode_to_vec();
        if request.len() > PAYLOAD_BYTES_MAX {
            return Err(Error::invalid("the request is too long for the lane"));
        }
        let reply = self.call_bytes(method, &request, deadline, attempts)?;
        R::decode(reply.as_slice())
            .map_err(|error| Error::new(Kind::CorruptData, format!("{}: {error}", method.as_str_name())))
    }

    fn call_bytes(
        &self,
        method: Method,
        request: &[u8],
        deadline: Instant,
        attempts: &mut Attempts<String>,
    ) -> Result<Vec<u8>> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mut backoff = Backoff::new(self.options.retry_first, self.options.retry_max);
        let (mut untried, mut seen) = {
            let state = self.state.lock();
            (state.addresses.len(), state.changes)
        };
        // The last error of the service itself explains more than that the deadline has passed.
        let mut said = None;
        let given_up = |error: Error, attempts: &Attempts<String>| {
            error.context(format!("{} was given up ({attempts})", method.as_str_name()))
        };
        loop {
            let patience = Patience { deadline, has_others: untried > 1 };
            let error = match self.attempt(method, id, request, patience, attempts) {
                Ok(reply) => return Ok(reply),
                Err(Failure::Final(error)) if error.kind() == Kind::Timeout => {
                    return Err(given_up(error, attempts));
                }
                Err(Failure::Final(error)) => return Err(error),
                Err(failure @ (Failure::Lost(_) | Failure::Untrusted(_))) => {
                    let (Failure::Lost(error) | Failure::Untrusted(error)) = &failure else {
                        unreachable!("it is one of them")
                    };
                    let error = error.clone();
                    if matches!(failure, Failure::Untrusted(_)) {
                        said = Some(error.clone());
                    }
                    // Each address gets a chance before the first pause.
                    untried = untried.saturating_sub(1);
                    if untried > 0 && Instant::now() < deadline {
                        continue;
                    }
                    error
                }
                Err(Failure::Retryable(error)) => {
                    said = Some(error.clone());
                    error
                }
            };
            if self.pause(&mut backoff, &mut seen, deadline).is_none() {
                return Err(given_up(said.unwrap_or(error), attempts));
            }
        }
    }

    /// Wait before the next attempt, but not for long once the service has changed since it was `seen`. `None`: there is no time left, or the call is cancelled.
    fn pause(&self, backoff: &mut Backoff, seen: &mut u64, deadline: Instant) -> Option<()> {
        let until = Instant::now() + backoff.pause(deadline)?;
        if is_cancelled() {
            return None;
        }
        let mut state = self.state.lock();
        while state.changes == *seen {
            if self.changed.wait_until(&mut state, until).timed_out() {
                return Some(());
            }
        }
        *seen = state.changes;
        drop(state);
        backoff.restart();
        std::thread::sleep(backoff.pause(deadline)?.min(CHANGED_PAUSE_MAX));
        Some(())
    }

    fn attempt(
        &self,
        method: Method,
        id: u64,
        request: &[u8],
        patience: Patience,
        attempts: &mut Attempts<String>,
    ) -> Result<Vec<u8>, Failure> {
        let (address, mut opened) = self.connection(patience, attempts)?;
        let socket = opened.stream.handle();
        if !self.begin_use(&address, &socket) {
            self.give_back(address, None);
            return Err(Failure::Lost(Error::unavailable("the server was replaced")));
        }
        let is_one_of_several = self.is_one_of_several();
        let longest = Instant::now() + ATTEMPT_TIMEOUT;
        let deadline = if is_one_of_several { patience.deadline.min(longest) } else { patience.deadline };
        let exchanged = exchange(&mut opened.stream, method, id, request, deadline, attempts);
        self.end_use(&socket);
        match exchanged {
            Ok((header, reply)) => {
                attempts.reached(Reached::Answered);
                let failure = header.error.then(|| service_error(&reply));
                if let Some(Failure::Retryable(error)) = &failure
                    && error.kind() == Kind::Unavailable
                    && is_one_of_several
                {
                    self.give_back(address, None); // a standby: another one is the primary
                    return Err(Failure::Lost(error.clone()));
                }
                self.give_back(address, Some(opened));
                failure.map_or(Ok(reply), Err)
            }
            Err(error) => {
                self.give_back(address, None);
                let timed_out = error.kind() == io::ErrorKind::TimedOut;
                let kind = if timed_out { Kind::Timeout } else { Kind::Unavailable };
                Err(Failure::Lost(Error::new(kind, format!("connection lost: {error}"))))
            }
        }
    }

    /// Whether the service may still be there.
    fn knows(&self, address: &str) -> bool {
        self.state.lock().addresses.iter().any(|known| known == address)
    }

    fn is_one_of_several(&self) -> bool {
        self.state.lock().addresses.len() > 1
    }

    /// Let `set_addresses` end what is done over the connection from here on. False: the address has gone already.
    fn begin_use(&self, address: &str, socket: &Arc<OwnedFd>) -> bool {
        let mut state = self.state.lock();
        let is_known = state.addresses.iter().any(|known| known == address);
        if is_known {
            state.in_use.push(ConnectionInUse { address: address.to_owned(), socket: socket.clone() });
        }
        is_known
    }

    fn end_use(&self, socket: &Arc<OwnedFd>) {
        let mut state = self.state.lock();
        let place = state.in_use.iter().position(|each| Arc::ptr_eq(&each.socket, socket));
        state.in_use.swap_remove(place.expect("a connection in use is known"));
    }

    /// An idle connection that is still there, or a new one; its address beside it.
    fn connection(
        &self,
        patience: Patience,
        attempts: &mut Attempts<String>,
    ) -> Result<(String, OpenConnection), Failure> {
        let mut state = self.state.lock();
        let address = loop {
            while let Some(IdleConnection { address, mut opened, .. }) = state.idle.pop() {
                if opened.generation == self.credential.generation() && opened.stream.is_quiet() {
                    attempts.begin(address.clone());
                    return Ok((address, opened));
                }
                state.closed(1);
            }
            if state.open < self.options.connections_max {
                state.open += 1;
                let preferred = state.preferred;
                break state.addresses.get(preferred).cloned();
            }
            if self.freed.wait_until(&mut state, patience.deadline).timed_out() {
                return Err(Failure::Final(Error::timeout("all connections are in use")));
            }
        };
        drop(state);
        let Some(address) = address else {
            self.give_back(String::new(), None);
            return Err(Failure::Lost(Error::unavailable("no server of that kind is known")));
        };
        attempts.begin(address.clone());
        match self.connect(&address, patience) {
            Ok(opened) => Ok((address, opened)),
            Err(error) => {
                let failure = self.connect_failure(&address, error);
                self.give_back(address, None);
                Err(failure)
            }
        }
    }

    /// A new connection.
    fn connect(&self, address: &str, patience: Patience) -> Result<OpenConnection, ConnectError> {
        let connect = |token: &Token| self.connect_with(token, address, patience);
        let (stream, generation) = with_current_token(&self.credential, patience.deadline, connect)?;
        Ok(OpenConnection { stream, generation })
    }

    /// Ended from outside as a call is, when the address is left.
    fn connect_with(&self, token: &Token, address: &str, patience: Patience) -> Result<Stream, ConnectError> {
        let longest = if patience.has_others { CONNECT_FIRST_TIMEOUT } else { CONNECT_TIMEOUT };
        let deadline = patience.deadline.min(Instant::now() + longest);
        let resolved = address.to_socket_addrs()?.next();
        let resolved = resolved.ok_or_else(|| io::Error::other("the name has no address"))?;
        // A server on this host is reached at half the price. Whatever stands in the way, TCP is still there.
        if let Ok(stream) = Stream::connect_abstract(socket_name(resolved).as_bytes()) {
            match self.introduce(address, None, stream, token, deadline) {
                Err(ConnectError::NotOurs | ConnectError::Io(_))
                    if Instant::now() < deadline && self.knows(address) => {}
                result => return result,
            }
        }
        self.introduce(address, Some(resolved.ip()), Stream::begin_tcp(resolved)?, token, deadline)
    }

    /// `host`: where the server is that TLS protects the way to, if there are certificates.
    fn introduce(
        &self,
        address: &str,
        host: Option<IpAddr>,
        mut stream: Stream,
        token: &Token,
        deadline: Instant,
    ) -> Result<Stream, ConnectError> {
        let socket = stream.handle();
        if !self.begin_use(address, &socket) {
            return Err(io::Error::other("the server was replaced").into());
        }
        let connected = self.shake_hands(&mut stream, host, token, deadline);
        self.end_use(&socket);
        connected.map(|()| stream)
    }

    fn shake_hands(
        &self,
        stream: &mut Stream,
        host: Option<IpAddr>,
        token: &Token,
        deadline: Instant,
    ) -> Result<(), ConnectError> {
        stream.finish_connecting(deadline)?;
        if let (Some(certificates), Some(host)) = (self.credential.certificates(), host) {
            stream.begin_tls(certificates.client(self.options.role, host)?.into(), deadline)?;
        }
        handshake::as_client(stream, ChannelKind::Lane, token, deadline).map(|_| ())
    }

    fn connect_failure(&self, address: &str, error: ConnectError) -> Failure {
        let message = match error {
            ConnectError::Refused => format!("{address}: {}", self.credential.explain()),
            _ => format!("{address}: {error}"),
        };
        match error {
            ConnectError::Refused => Failure::Final(Error::new(Kind::Unauthenticated, message)),
            ConnectError::Busy => Failure::Lost(Error::new(Kind::Busy, message)),
            // Another process may have got a dead server's port: not ours to talk to, but the server may come back.
            ConnectError::Untrusted(_) => Failure::Untrusted(Error::unavailable(message)),
            ConnectError::NotOurs | ConnectError::NoRdma(_) | ConnectError::Io(_) => {
                Failure::Lost(Error::unavailable(message))
            }
        }
    }

    /// Close connections that have been idle for long. Call it now and then.
    pub fn close_idle(&self) {
        let mut state = self.state.lock();
        let is_due = |each: &&IdleConnection| each.since.elapsed() >= self.options.idle_max;
        let count = state.idle.iter().take_while(is_due).count();
        let closed: Vec<IdleConnection> = state.idle.drain(..count).collect();
        state.closed(count);
        drop(state);
        drop(closed);
        self.freed.notify_all();
    }

    /// End the use of a connection: it becomes idle, or was lost, and then another address is tried next.
    fn give_back(&self, address: String, opened: Option<OpenConnection>) {
        let mut state = self.state.lock();
        assert!(state.open > state.idle.len(), "a connection in use is counted");
        assert!(state.open <= self.options.connections_max, "connections are bounded");
        let place = state.addresses.iter().position(|known| *known == address);
        match (opened, place) {
            (Some(opened), Some(place)) => {
                state.preferred = place;
                state.idle.push(IdleConnection { address, opened, since: Instant::now() });
            }
            (Some(_), None) => state.closed(1),
            (None, place) => {
                state.closed(1);
                if place == Some(state.preferred) && state.addresses.len() > 1 {
                    state.preferred = (state.preferred + 1) % state.addresses.len();
                    state.leave(|left| left == address);
                }
            }
        }
        drop(state);
        self.freed.notify_all();
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        write!(f, "Lane {{ {:?}, {} open, {} idle }}", state.addresses, state.open, state.idle.len())
    }
}

fn exchange(
    stream: &mut Stream,
    method: Method,
    id: u64,
    request: &[u8],
    deadline: Instant,
    attempts: &mut Attempts<String>,
) -> io::Result<(LaneHeader, Vec<u8>)> {
    assert!(request.len() <= PAYLOAD_BYTES_MAX, "callers refuse what is too long");
    let (method, length) = (method as u16, request.len() as u32);
    let header = LaneHeader { length, method, reply: false, error: false, id };
    stream.send(&[&header.encode(), request].concat(), &[], None, deadline)?;
    attempts.reached(Reached::Sent);
    let mut bytes = [0; HEADER_BYTES];
    stream.receive(&mut bytes, deadline)?;
    let header = LaneHeader::decode(&bytes).map_err(handshake::invalid)?;
    if !header.reply || header.id != id || header.method != method {
        return Err(handshake::invalid(Malformed("not the reply to this request")));
    }
    let mut reply = vec![0; header.length as usize];
    stream.receive(&mut reply, deadline)?;
    Ok((header, reply))
}

fn service_error(reply: &[u8]) -> Failure {
    let error = match pb::Error::decode(reply) {
        Ok(error) => Error::from(error),
        Err(error) => return Failure::Final(Error::new(Kind::CorruptData, error.to_string())),
    };
    match error.kind() {
        Kind::Unavailable | Kind::MaybeCommitted | Kind::Busy => Failure::Retryable(error),
        _ => Failure::Final(error),
    }
}
