//! The client's side of one connection.
//!
//! - `batches`: its requests; `registration`: memory that the server reads and writes; `clock`: the server's, for updates.
//! - Here: connecting, sending a frame, receiving its reply, and closing.
//! - At most one batch waits for its answer. Any failure ends the connection, and memory that the server may
//!   still touch is quarantined (N2).

mod batches;
mod clock;
mod regions;
mod registration;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::connect_error::ConnectError;
use super::stream::Stream;
use super::{Certificates, Endpoint, Role, Token, cleanup, handshake, upgrade};
use crate::buffer::Placement;
use crate::cancel;
use crate::rdma::{Fabric, Grant};
use crate::types::Status;
use crate::wire::credential;
use crate::wire::frame::{self, Envelope, FrameKind, HEADER_BYTES, Header, Malformed, PayloadLocation};
use clock::ServerClock;
use regions::Regions;

/// The deadline sent to the server is this much earlier than the client's, so that its `Timeout` still arrives.
const DEADLINE_MARGIN: Duration = Duration::from_millis(50);
/// Longest that a handshake may take, on both sides.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const _: () = assert!(DEADLINE_MARGIN.as_millis() < HANDSHAKE_TIMEOUT.as_millis());
const _: () = assert!(
    upgrade::FIRST_PING_TIMEOUT.as_millis() < HANDSHAKE_TIMEOUT.as_millis(),
    "there is time for a first ping over RDMA"
);

/// An authenticated connection to a storage server. One batch at a time.
///
/// Any error makes it unusable: it closes, and memory of the failed batch that the server could still touch
/// stays out of use until the server has closed its side (rule N2).
#[derive(Debug)]
pub struct Connection {
    /// `None` after an error.
    stream: Option<Stream>,
    shares_memory: bool,
    /// Whose buffers travel by RDMA; `None` if nothing does.
    fabric: Option<Arc<Fabric>>,
    regions: Regions,
    next_id: u32,
    /// As of the last reply.
    clock: Option<ServerClock>,
    /// The batch that was sent and not yet answered.
    in_flight: Option<InFlightBatch>,
    /// Scratch space for frames.
    frame: Vec<u8>,
}

#[derive(Debug)]
struct InFlightBatch {
    kind: FrameKind,
    id: u32,
    count: usize,
    locations: Vec<PayloadLocation>,
    /// Memory that the server may access until it has answered.
    registered: Vec<Placement>,
    /// Bounce buffers for memory that the server cannot reach; empty if there is none.
    bounced: Vec<Option<Placement>>,
}

impl Connection {
    /// As `connect_with`, to a server of this machine.
    pub fn connect(
        endpoint: &Endpoint,
        token: &Token,
        timeout: Duration,
    ) -> Result<Connection, ConnectError> {
        Connection::connect_with(endpoint, token, None, timeout)
    }

    /// Connect and shake hands, all within `timeout`; over TCP by TLS if there are certificates, and then a server without
    /// it gets no token. Errors: `NoRdma` if that was to be and cannot.
    pub fn connect_with(
        endpoint: &Endpoint,
        token: &Token,
        certificates: Option<&Certificates>,
        timeout: Duration,
    ) -> Result<Connection, ConnectError> {
        let timeout = timeout.min(HANDSHAKE_TIMEOUT);
        let deadline = Instant::now() + timeout;
        let mut stream = Stream::connect(endpoint, timeout)?;
        if let (Some(certificates), Endpoint::Tcp(address) | Endpoint::Rdma { address, .. }) =
            (certificates, endpoint)
        {
            stream.begin_tls(certificates.client(Role::Storage, address.ip())?.into(), deadline)?;
        }
        let wire = handshake::as_client(&mut stream, credential::ChannelKind::Data, token, deadline)?;
        stream.begin_records(wire, true)?;
        let fabric = match endpoint {
            Endpoint::Rdma { address, fabric, .. } => {
                upgrade::as_client(&mut stream, fabric, deadline)?;
                Some((*address, fabric.clone()))
            }
            _ => None,
        };
        let shares_memory = stream.shares_memory();
        let mut connection = Connection {
            stream: Some(stream),
            shares_memory,
            fabric: fabric.as_ref().map(|(_, fabric)| fabric.clone()),
            regions: Regions::default(),
            next_id: 0,
            clock: None,
            in_flight: None,
            frame: Vec::new(),
        };
        if let Some((address, fabric)) = fabric {
            let first = deadline.min(Instant::now() + upgrade::FIRST_PING_TIMEOUT);
            connection.ping(first).map_err(|status| {
                ConnectError::NoRdma(format!("the first ping over it was not answered ({status})"))
            })?;
            fabric.reached(address);
        }
        Ok(connection)
    }

    /// Sleep until a reply comes, instead of polling for it first.
    pub(super) fn without_polling(mut self) -> Connection {
        if let Some(stream) = &mut self.stream {
            stream.stop_polling();
        }
        self
    }

    /// Whether no request has failed on it, and none is under way.
    pub fn is_usable(&self) -> bool {
        self.stream.is_some() && self.in_flight.is_none()
    }

    /// Whether memory in a [`Region`](crate::buffer::Region) is shared with the server instead of being copied through the socket.
    pub fn shares_memory(&self) -> bool {
        self.shares_memory
    }

    /// Whether memory in a [`Region`](crate::buffer::Region) is read and written by the server's device.
    pub fn is_remote_direct(&self) -> bool {
        self.fabric.is_some()
    }

    /// Whether an idle connection is still there.
    pub(super) fn is_alive(&mut self) -> bool {
        self.stream.as_mut().is_some_and(Stream::is_quiet)
    }

    /// What a batch needs; any failure ends the connection.
    fn attempt<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, Failure>) -> Result<T, Status> {
        work(self).map_err(|failure| self.fail(failure))
    }

    /// Send the frame in `self.frame`, and what follows it.
    fn send(
        &mut self,
        kind: FrameKind,
        envelope: Envelope,
        RequestMemory { locations, places, bounced }: RequestMemory<'_>,
        following: &[Placement],
        deadline: Instant,
    ) -> Result<(), Failure> {
        assert!(self.in_flight.is_none(), "one batch at a time");
        assert!(
            bounced.is_empty() || bounced.len() == places.len(),
            "a bounce buffer, or none, per placement"
        );
        let registered =
            places.iter().zip(&locations).filter(|(_, location)| **location != PayloadLocation::Inline);
        let registered = registered.map(|(placement, _)| placement.clone()).collect();
        assert!(places.is_empty() || places.len() == locations.len(), "a location per placement");
        self.in_flight = Some(InFlightBatch {
            kind,
            id: envelope.id,
            count: locations.len(),
            locations,
            registered,
            bounced,
        });
        Ok(self.stream.as_mut().ok_or(GONE)?.send(&self.frame, following, None, deadline)?)
    }

    /// Receive the reply's header and table into `self.frame`.
    fn receive(&mut self, kind: FrameKind, deadline: Instant) -> Result<Header, Failure> {
        let stream = self.stream.as_mut().ok_or(GONE)?;
        let in_flight = self.in_flight.as_ref().expect("a batch was sent");
        assert_eq!(in_flight.kind, kind, "the answer to what was sent");
        // The caller's own memory is not given back to it while the server may write there.
        let must_wait = self.fabric.is_none()
            && in_flight.registered.iter().any(|registered| !registered.is_expendable());
        let _held = must_wait.then(cancel::hold);
        // The reply's table has as many entries as the request's, so one call brings both parts.
        self.frame.clear();
        self.frame.resize(HEADER_BYTES + in_flight.count * kind.entry_bytes(true), 0);
        // Held until the reply is here: so long the bytes are on their way.
        let _grant = match &self.fabric {
            Some(fabric) => {
                stream.receive(&mut self.frame[..HEADER_BYTES], deadline)?;
                let grant = grant(stream, fabric, in_flight, &mut self.frame[..HEADER_BYTES], deadline)?;
                stream.receive(&mut self.frame[HEADER_BYTES..], deadline)?;
                grant
            }
            None => {
                stream.receive(&mut self.frame, deadline)?;
                None
            }
        };
        let header = Header::decode(self.frame[..HEADER_BYTES].try_into().expect("it is that long"))?;
        if !header.reply || header.id != in_flight.id {
            return Err(Malformed("not the reply to this request").into());
        }
        self.clock = Some(ServerClock::received_now(header.clock_ms));
        Ok(header)
    }

    fn envelope(&mut self, deadline: Instant) -> Result<Envelope, Failure> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Failure(Status::Timeout));
        }
        let sent = left - (left / 4).min(DEADLINE_MARGIN);
        assert!(sent <= left, "a server answers before its client gives up");
        self.next_id = self.next_id.wrapping_add(1);
        let deadline_ms = u32::try_from(sent.as_millis()).unwrap_or(u32::MAX).max(1);
        Ok(Envelope { id: self.next_id, deadline_ms, clock_ms: 0 })
    }

    /// Close the connection after a failed batch.
    fn fail(&mut self, failure: Failure) -> Status {
        let in_flight = self.in_flight.take();
        if let Some(stream) = self.stream.take() {
            let registered = match stream.is_remote_direct() {
                // Free as soon as the link is reset, which `close_sending` does.
                true => Vec::new(),
                false => in_flight.as_ref().map(|in_flight| in_flight.registered.clone()).unwrap_or_default(),
            };
            let (socket, remains) = stream.close_sending();
            if !registered.is_empty() || remains.is_some() {
                cleanup::quarantine(socket, registered, remains);
            }
        }
        assert!(!self.is_usable(), "a failed request ends its connection");
        failure.0
    }
}

impl Drop for Connection {
    /// A batch that was sent and not waited for has failed.
    fn drop(&mut self) {
        if self.in_flight.is_some() {
            self.fail(GONE);
        }
    }
}

/// What goes with a request.
#[derive(Default)]
struct RequestMemory<'a> {
    locations: Vec<PayloadLocation>,
    places: &'a [Placement],
    bounced: Vec<Option<Placement>>,
}

/// Wait for leave to have bytes transmitted, if the server asks for that in `head` instead of answering; then `head` is
/// that of the answer.
fn grant<'a>(
    stream: &mut Stream,
    fabric: &'a Fabric,
    in_flight: &InFlightBatch,
    head: &mut [u8],
    deadline: Instant,
) -> Result<Option<Grant<'a>>, Failure> {
    let header = Header::decode((&*head).try_into().expect("a header"))?;
    if header.kind != FrameKind::Transmit {
        return Ok(None);
    }
    header.decode_transmit(false)?;
    let grants = fabric.grants().filter(|_| header.id == in_flight.id && in_flight.kind == FrameKind::Read);
    let grants = grants.ok_or(Malformed("no request waits for a grant"))?;
    let grant = grants.take(deadline).ok_or(Failure(Status::Timeout))?;
    let mut answer = Vec::new();
    frame::encode_transmit(&mut answer, Envelope::reply(header.id, 0), true);
    stream.send(&answer, &[], None, deadline)?;
    stream.receive(head, deadline)?;
    Ok(Some(grant))
}

/// Why a batch failed as a whole.
#[derive(Debug)]
struct Failure(Status);

const GONE: Failure = Failure(Status::Disconnected);

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure(match error.kind() {
            io::ErrorKind::TimedOut => Status::Timeout,
            _ => Status::Disconnected,
        })
    }
}

impl From<Malformed> for Failure {
    fn from(malformed: Malformed) -> Failure {
        log::warn!("malformed reply of a server: {malformed}; closing the connection");
        Failure(Status::Disconnected)
    }
}
