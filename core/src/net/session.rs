//! The server's side of one connection.
//!
//! - `batches`: answering reads, updates and syncs; `memory`: the memory of their bytes; `frame_reader`: frames out of bytes.
//! - Here: the loop over frames, deadlines, and the upgrade to RDMA.
//! - Whatever a peer sends that is not of the protocol ends its connection, and no other.

mod batches;
mod frame_reader;
mod memory;
mod placements;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::budget::Budget;
use super::handshake::invalid;
use super::stream::Stream;
use super::{Certificates, Sender, Service, Wire, upgrade};
use crate::buffer::Placement;
use crate::clock;
use crate::rdma::{Fabric, Half};
use crate::wire::authority::Authority;
use crate::wire::credential::Refusal;
use crate::wire::frame::{self, Envelope, FrameKind, HEADER_BYTES, Header, Malformed, REGIONS_MAX};
use crate::wire::pb::{Claims, claims::Role};
use crate::wire::rdma::{encode_connect_answer, encode_offer_answer};
use frame_reader::FrameReader;
pub(super) use memory::RegionCache;
use memory::{InUseGuard, PayloadBuffer, RegisteredBuffer};

/// Once a frame has begun, its next bytes must come within this; also how long a client may take to read
/// its reply. Frees the thread and the memory of a client that went to sleep.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// File descriptors that may have arrived before their registrations: the kernel hands over one at a time, with
/// the first byte of the frame it was sent with.
const PASSED_MAX: usize = 2;
/// Longest deadline that a request may ask for.
const DEADLINE_MAX: Duration = Duration::from_secs(600);
const _: () = assert!(STALL_TIMEOUT.as_secs() < DEADLINE_MAX.as_secs());
const _: () =
    assert!(DEADLINE_MAX.as_millis() <= i32::MAX as u128 / 2, "a deadline is named on a clock that wraps");
const _: () = assert!(PASSED_MAX < REGIONS_MAX, "descriptors wait for registrations");

/// What all connections of a server share.
pub(super) struct Common {
    pub(super) budget: Arc<Budget>,
    pub(super) regions: RegionCache,
    pub(super) authority: Authority,
    pub(super) fabric: Option<Arc<Fabric>>,
    pub(super) certificates: Option<Certificates>,
    pub(super) wire: Wire,
}

/// Progress of the upgrade to RDMA.
enum Direct {
    No,
    /// Our end waits for the client's.
    Offered(Box<Half>),
    /// `asks`: the client wants to be asked before bytes are transmitted.
    Yes {
        asks: bool,
    },
}

pub(super) struct ServerSession {
    stream: Stream,
    claims: Claims,
    /// Of `Authority`, when the token was last looked at.
    generation: u64,
    common: Arc<Common>,
    direct: Direct,
    regions: [Option<RegisteredBuffer>; REGIONS_MAX],
    /// File descriptors that arrived and that no registration has claimed yet.
    passed: Vec<OwnedFd>,
    frame_reader: FrameReader,
    payload: PayloadBuffer,
    /// Held by every placement of the current batch (rule N1).
    in_use: Arc<InUseGuard>,
    frame: Vec<u8>,
    /// Where this connection's clock begins.
    begun_ns: u64,
}

impl ServerSession {
    pub(super) fn new(stream: Stream, claims: Claims, common: Arc<Common>) -> ServerSession {
        ServerSession {
            stream,
            claims,
            // It is looked at once more before the first request: it may have been revoked since the handshake.
            generation: u64::MAX,
            common,
            direct: Direct::No,
            regions: [const { None }; REGIONS_MAX],
            passed: Vec::new(),
            frame_reader: FrameReader::new(),
            payload: PayloadBuffer::default(),
            in_use: Arc::new(InUseGuard),
            frame: Vec::new(),
            begun_ns: clock::now_ns(),
        }
    }

    /// Answer batches until the client closes. Errors: why the connection was closed instead.
    pub(super) fn run(&mut self, service: &dyn Service) -> io::Result<()> {
        while self.receive(HEADER_BYTES, true)? {
            let header = Header::decode(self.frame_reader.head()).map_err(invalid)?;
            if header.reply {
                return Err(invalid(Malformed("a reply where a request belongs")));
            }
            let frame_bytes = HEADER_BYTES + header.table_bytes();
            self.receive(frame_bytes, false)?;
            let taken = self.frame_reader.take(frame_bytes);
            let table = &taken[HEADER_BYTES..];
            self.check_token().map_err(|refusal| io::Error::new(io::ErrorKind::PermissionDenied, refusal))?;
            let deadline = self.deadline(&header);
            match header.kind {
                FrameKind::Read => self.read(service, &header, table, deadline)?,
                FrameKind::Update => self.update(service, &header, table, deadline)?,
                FrameKind::Sync => self.sync(service, &header, table, deadline)?,
                FrameKind::Register => self.register(header.decode_registration(table).map_err(invalid)?)?,
                FrameKind::Offer => self.offer(&header, table)?,
                FrameKind::Connect => self.connect(&header, table)?,
                FrameKind::Transmit => return Err(invalid(Malformed("a client does not ask to transmit"))),
                FrameKind::Ping => {
                    header.decode_ping(false).map_err(invalid)?;
                    let envelope = self.envelope(&header);
                    frame::encode_ping(&mut self.frame, envelope, true);
                    self.reply(&[])?;
                }
            }
            self.frame_reader.recycle(taken);
        }
        Ok(())
    }

    /// This connection's clock, which advances while the machine is suspended; a `u32` of it wraps after 49 days.
    fn clock_ms(&self) -> u32 {
        ((clock::now_ns() - self.begun_ns) / 1_000_000) as u32
    }

    fn envelope(&self, header: &Header) -> Envelope {
        Envelope::reply(header.id, self.clock_ms())
    }

    /// When the answer is due. Updates are not begun from then on, and never after the moment that their sender named
    /// on this connection's clock: it may have given them up while they waited in the socket (rule N3).
    fn deadline(&self, header: &Header) -> Instant {
        let asked = Duration::from_millis(header.deadline_ms.into()).min(DEADLINE_MAX);
        let left = match header.kind {
            FrameKind::Update => header.clock_ms.wrapping_sub(self.clock_ms()) as i32,
            _ => i32::MAX,
        };
        Instant::now() + asked.min(Duration::from_millis(left.max(0) as u64))
    }

    /// A token is good for new requests only until it expires or is revoked, also on a connection that stands.
    fn check_token(&mut self) -> Result<(), Refusal> {
        let generation = self.common.authority.generation();
        if generation != self.generation || self.claims.expires_unix_s != 0 {
            self.common.authority.check(&self.claims)?;
            self.generation = generation;
        }
        Ok(())
    }

    /// Receive until `bytes` are buffered. False if the client closed before the first of them.
    fn receive(&mut self, bytes: usize, between_frames: bool) -> io::Result<bool> {
        assert!(bytes <= FrameReader::BYTES, "a frame without its payload fits");
        let mut stalled_since = None;
        while self.frame_reader.len() < bytes {
            match self.stream.receive_some(self.frame_reader.space(), &mut self.passed) {
                Ok(0) if between_frames && self.frame_reader.is_empty() => return Ok(false),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    self.frame_reader.filled(count);
                    stalled_since = None;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let since = *stalled_since.get_or_insert_with(Instant::now);
                    if since.elapsed() < STALL_TIMEOUT {
                        continue;
                    }
                    if !between_frames || !self.frame_reader.is_empty() {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    // Idle: fine, but not with memory of its own.
                    self.payload.release();
                }
                Err(error) => return Err(error),
            }
            if self.passed.len() > PASSED_MAX {
                return Err(invalid(Malformed("more file descriptors than registrations")));
            }
        }
        Ok(true)
    }

    /// Answer the offer of a client to upgrade to RDMA.
    fn offer(&mut self, header: &Header, table: &[u8]) -> io::Result<()> {
        let offers = header.decode_offer(table).map_err(invalid)?;
        if self.stream.shares_memory() || !matches!(self.direct, Direct::No) {
            return Err(invalid(Malformed("an offer where none belongs")));
        }
        let is_protected = self.stream.is_protected();
        let answer = match upgrade::answer_offer(is_protected, self.common.fabric.as_ref(), &offers) {
            Ok((half, end)) => {
                self.direct = Direct::Offered(Box::new(half));
                Ok(end)
            }
            Err(unable) => Err(unable),
        };
        let envelope = self.envelope(header);
        encode_offer_answer(&mut self.frame, envelope, &answer);
        self.reply(&[])
    }

    /// Connect to the end of a client, and upgrade the connection to RDMA.
    fn connect(&mut self, header: &Header, table: &[u8]) -> io::Result<()> {
        let end = header.decode_connect(table).map_err(invalid)?;
        let Direct::Offered(half) = std::mem::replace(&mut self.direct, Direct::No) else {
            return Err(invalid(Malformed("an end that nothing was offered to")));
        };
        let answer = upgrade::answer_connect(*half, &end);
        let envelope = self.envelope(header);
        encode_connect_answer(&mut self.frame, envelope, answer.as_ref().map(|_| end.asks).map_err(|e| *e));
        self.reply(&[])?;
        if let Ok(link) = answer {
            if !self.frame_reader.is_empty() {
                return Err(invalid(Malformed("more bytes over TCP than were to come")));
            }
            self.direct = Direct::Yes { asks: end.asks };
            self.stream.upgrade_to_rdma(link);
        }
        Ok(())
    }

    fn reply(&mut self, following: &[Placement]) -> io::Result<()> {
        self.stream.send(&self.frame, following, None, Instant::now() + STALL_TIMEOUT)
    }
}

fn sender(claims: &Claims) -> Sender<'_> {
    if claims.role == Role::Service as i32 { Sender::Node(claims) } else { Sender::Client(claims) }
}
