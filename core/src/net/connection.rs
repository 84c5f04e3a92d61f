//! The client's side of one connection.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::stream::Stream;
use super::{CLOCK_DRIFT_PERCENT, Credential, Endpoint, handshake, reaper, upgrade};
use crate::buffer::{Placement, Region, RegionId};
use crate::rdma::{Fabric, Grant};
use crate::types::{ChainId, ChainVersion, ReadOp, ReadResult, Status, UpdateOp, UpdateResult};
use crate::wire::credential;
use crate::wire::frame::{
    self, Envelope, HEADER_BYTES, Header, Home, Kind, Malformed, REGIONS_MAX, Registration,
};
use crate::wire::rdma::RemoteMemory;

/// A server answers `Timeout` in time to be heard if it is told a little less than the client has.
const DEADLINE_MARGIN: Duration = Duration::from_millis(50);
/// Longest that a handshake may take, on both sides.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("the server refused the token: it is wrong or has expired")]
    Refused,
    #[error("the server has too many connections")]
    Busy,
    #[error("what answers is not a server of this cluster")]
    NotOurs,
    #[error("no RDMA: {0}")]
    NoRdma(String),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl ConnectError {
    /// The status of a batch that could not be sent.
    pub fn status(&self) -> Status {
        match self {
            ConnectError::Refused => Status::Denied,
            ConnectError::Busy => Status::Busy,
            // Another process may have got a dead server's port; the server may come back elsewhere.
            ConnectError::NotOurs | ConnectError::NoRdma(_) | ConnectError::Io(_) => Status::Disconnected,
        }
    }
}

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
    /// What the last reply told.
    clock: Option<ServerClock>,
    /// The batch that was sent and not yet answered.
    waiting: Option<Waiting>,
    /// Scratch space for frames.
    frame: Vec<u8>,
}

#[derive(Debug)]
struct Waiting {
    kind: Kind,
    id: u32,
    count: usize,
    homes: Vec<Home>,
    /// Memory that the server may touch until it has answered.
    lent: Vec<Placement>,
    /// Buffers in place of memory that the server cannot reach; empty if there is none.
    bounced: Vec<Option<Placement>>,
}

impl Waiting {
    /// Where the bytes of operation `place` travel to: `own`, or a buffer in its stead.
    fn target<'a>(&'a self, place: usize, own: &'a Placement) -> &'a Placement {
        self.bounced.get(place).and_then(Option::as_ref).unwrap_or(own)
    }
}

/// The clock that the server keeps for this connection.
#[derive(Clone, Copy, Debug)]
struct ServerClock {
    /// When we heard of it: later than the server had read it.
    told_at: Instant,
    clock_ms: u32,
}

impl ServerClock {
    /// What it shows at `moment`, or less (N3).
    fn at(&self, moment: Instant) -> u32 {
        let passed = moment.saturating_duration_since(self.told_at) * (100 - CLOCK_DRIFT_PERCENT) / 100;
        // Half of what a wrapping `u32` can tell; a server waits no longer than that anyway.
        let passed_ms = passed.as_millis().min(i32::MAX as u128 / 2) as u32;
        self.clock_ms.wrapping_add(passed_ms)
    }
}

impl Connection {
    /// Connects and shakes hands, all within `timeout`. Errors: `NoRdma` if that was to be and cannot.
    pub fn connect(
        endpoint: &Endpoint,
        credential: &Credential,
        timeout: Duration,
    ) -> Result<Connection, ConnectError> {
        let timeout = timeout.min(HANDSHAKE_TIMEOUT);
        let deadline = Instant::now() + timeout;
        let mut stream = Stream::connect(endpoint, timeout)?;
        handshake::as_client(&mut stream, credential::Kind::Data, credential, deadline)?;
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
            waiting: None,
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

    /// Whether no request has failed on it, and none is under way.
    pub fn is_usable(&self) -> bool {
        self.stream.is_some() && self.waiting.is_none()
    }

    /// Whether memory in a [`Region`] is lent to the server instead of being copied through the socket.
    pub fn shares_memory(&self) -> bool {
        self.shares_memory
    }

    /// Whether memory in a [`Region`] is read and written by the server's device.
    pub fn is_remote_direct(&self) -> bool {
        self.fabric.is_some()
    }

    /// Whether an idle connection is still there.
    pub(super) fn is_alive(&mut self) -> bool {
        self.stream.as_mut().is_some_and(Stream::is_quiet)
    }

    /// Reads into `into`, one placement per operation, each at least as long as its operation asks. On success
    /// `out` holds one result per operation. The whole batch failed if this returns an error: `Timeout`,
    /// `Disconnected`, or `Checksum` if bytes were damaged on the way.
    pub fn read(
        &mut self,
        ops: &[ReadOp],
        into: &[Placement],
        deadline: Instant,
        out: &mut Vec<ReadResult>,
    ) -> Result<(), Status> {
        self.send_reads(ops, into, deadline)?;
        self.receive_reads(ops, into, deadline, out)
    }

    /// The first half of [`Connection::read`]: a caller may send to several servers before it waits for any.
    pub fn send_reads(
        &mut self,
        ops: &[ReadOp],
        into: &[Placement],
        deadline: Instant,
    ) -> Result<(), Status> {
        assert_eq!(ops.len(), into.len(), "one placement per operation");
        debug_assert!(ops.iter().zip(into).all(|(op, into)| op.length as usize <= into.len()));
        self.attempt(|connection| {
            let bounced = connection.bounce(into)?;
            let homes = connection.homes(into, &bounced, deadline)?;
            let envelope = connection.envelope(deadline)?;
            frame::encode_reads(&mut connection.frame, envelope, ops, &homes);
            connection.send(Kind::Read, envelope, Lent { homes, places: into, bounced }, &[], deadline)
        })
    }

    /// The second half, with the same arguments.
    pub fn receive_reads(
        &mut self,
        ops: &[ReadOp],
        into: &[Placement],
        deadline: Instant,
        out: &mut Vec<ReadResult>,
    ) -> Result<(), Status> {
        out.clear();
        self.attempt(|connection| connection.try_receive_reads(ops, into, deadline, out))
    }

    fn try_receive_reads(
        &mut self,
        ops: &[ReadOp],
        into: &[Placement],
        deadline: Instant,
        out: &mut Vec<ReadResult>,
    ) -> Result<(), Failure> {
        let header = self.receive(Kind::Read, deadline)?;
        let waiting = self.waiting.as_ref().expect("just received for it");
        let results = header.decode_read_results(&self.frame[HEADER_BYTES..])?;
        let mut following = Vec::new();
        let mut arrived = Vec::new();
        for (place, (((result, crc), op), (home, own))) in
            results.iter().zip(ops).zip(waiting.homes.iter().zip(into)).enumerate()
        {
            if result.length > op.length || (result.status != Status::Ok && result.length != 0) {
                return Err(Malformed("more bytes than were asked for").into());
            }
            out.push(*result);
            if result.length == 0 {
                continue;
            }
            let target = waiting.target(place, own).slice(0..result.length as usize);
            if *home == Home::Follows {
                following.push(target.clone());
            }
            arrived.push((target, own, *crc));
        }
        if crate::buffer::total_length(&following) != header.payload_bytes as usize {
            return Err(Malformed("the payload is not as long as its results say").into());
        }
        let shares_memory = self.shares_memory;
        self.stream.as_mut().ok_or(GONE)?.receive_into(&following, deadline)?;
        for (place, own, crc) in &arrived {
            match crc {
                _ if shares_memory => {}
                Some(crc) if place.crc32c() != *crc => return Err(Failure(Status::Checksum)),
                Some(_) => {}
                None => return Err(Malformed("bytes without a checksum").into()),
            }
            if place.as_ptr() != own.as_ptr() {
                place.copy_into(own);
            }
        }
        self.waiting = None;
        Ok(())
    }

    /// Sends updates; `payload[i]` is exactly as long as `ops[i]` says (empty if it has none). `payload_crc`
    /// of the operations is filled in where the transport needs it. After an error the updates may or may not
    /// happen; none is begun after `deadline` (N3).
    pub fn update(
        &mut self,
        ops: &[UpdateOp],
        payload: &[Placement],
        deadline: Instant,
        out: &mut Vec<UpdateResult>,
    ) -> Result<(), Status> {
        self.send_updates(ops, payload, deadline)?;
        self.receive_updates(deadline, out)
    }

    /// The first half of [`Connection::update`].
    pub fn send_updates(
        &mut self,
        ops: &[UpdateOp],
        payload: &[Placement],
        deadline: Instant,
    ) -> Result<(), Status> {
        assert_eq!(ops.len(), payload.len(), "one placement per operation");
        assert!(
            ops.iter().zip(payload).all(|(op, payload)| op.payload_bytes() == payload.len()),
            "payloads are as long as their operations say"
        );
        self.attempt(|connection| connection.try_send_updates(ops, payload, deadline))
    }

    fn try_send_updates(
        &mut self,
        ops: &[UpdateOp],
        payload: &[Placement],
        deadline: Instant,
    ) -> Result<(), Failure> {
        self.read_clock(deadline)?;
        let bounced = self.bounce(payload)?;
        for (payload, bounced) in payload.iter().zip(&bounced) {
            if let Some(bounced) = bounced {
                payload.copy_into(bounced);
            }
        }
        let homes = self.homes(payload, &bounced, deadline)?;
        let mut envelope = self.envelope(deadline)?;
        envelope.clock_ms = self.clock.expect("it was just read").at(deadline);
        let with_crc = |(op, payload): (&UpdateOp, &Placement)| {
            let needed = !self.shares_memory && !payload.is_empty();
            let crc = needed.then(|| op.payload_crc.unwrap_or_else(|| payload.crc32c()));
            UpdateOp { payload_crc: crc, ..*op }
        };
        let ops: Vec<UpdateOp> = ops.iter().zip(payload).map(with_crc).collect();
        frame::encode_updates(&mut self.frame, envelope, &ops, &homes);
        let following: Vec<Placement> = payload
            .iter()
            .zip(&homes)
            .filter(|(payload, home)| **home == Home::Follows && !payload.is_empty())
            .map(|(payload, _)| payload.clone())
            .collect();
        let lent = Lent { homes, places: payload, bounced };
        self.send(Kind::Update, envelope, lent, &following, deadline)
    }

    /// The second half.
    pub fn receive_updates(&mut self, deadline: Instant, out: &mut Vec<UpdateResult>) -> Result<(), Status> {
        *out = self.answer(Kind::Update, deadline, Header::decode_update_results)?;
        Ok(())
    }

    /// Asks for durability of what these chains have committed.
    pub fn sync(
        &mut self,
        chains: &[(ChainId, ChainVersion)],
        deadline: Instant,
        out: &mut Vec<Status>,
    ) -> Result<(), Status> {
        self.send_syncs(chains, deadline)?;
        self.receive_syncs(deadline, out)
    }

    /// The first half of [`Connection::sync`].
    pub fn send_syncs(
        &mut self,
        chains: &[(ChainId, ChainVersion)],
        deadline: Instant,
    ) -> Result<(), Status> {
        self.attempt(|connection| {
            let envelope = connection.envelope(deadline)?;
            frame::encode_syncs(&mut connection.frame, envelope, chains);
            let homes = vec![Home::Follows; chains.len()];
            connection.send(Kind::Sync, envelope, Lent { homes, ..Lent::default() }, &[], deadline)
        })
    }

    /// The second half.
    pub fn receive_syncs(&mut self, deadline: Instant, out: &mut Vec<Status>) -> Result<(), Status> {
        *out = self.answer(Kind::Sync, deadline, Header::decode_sync_results)?;
        Ok(())
    }

    /// Asks whether the server is there.
    pub fn ping(&mut self, deadline: Instant) -> Result<(), Status> {
        self.attempt(|connection| connection.try_ping(deadline))
    }

    fn try_ping(&mut self, deadline: Instant) -> Result<(), Failure> {
        let envelope = self.envelope(deadline)?;
        frame::encode_ping(&mut self.frame, envelope, false);
        self.send(Kind::Ping, envelope, Lent::default(), &[], deadline)?;
        self.receive(Kind::Ping, deadline)?.decode_ping(true)?;
        self.waiting = None;
        Ok(())
    }

    /// Knows the server's clock well enough to name a moment near `deadline` on it.
    fn read_clock(&mut self, deadline: Instant) -> Result<(), Failure> {
        let now = Instant::now();
        let left = deadline.saturating_duration_since(now);
        let is_fresh = |clock: &ServerClock| now - clock.told_at <= left / 2;
        if self.clock.as_ref().is_some_and(is_fresh) { Ok(()) } else { self.try_ping(deadline) }
    }

    /// What a batch needs; any failure ends the connection.
    fn attempt<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, Failure>) -> Result<T, Status> {
        work(self).map_err(|failure| self.fail(failure))
    }

    /// The results of a batch whose reply is nothing but a table of them.
    fn answer<T>(
        &mut self,
        kind: Kind,
        deadline: Instant,
        decode: impl FnOnce(&Header, &[u8]) -> Result<Vec<T>, Malformed>,
    ) -> Result<Vec<T>, Status> {
        self.attempt(|connection| {
            let header = connection.receive(kind, deadline)?;
            let results = decode(&header, &connection.frame[HEADER_BYTES..])?;
            connection.waiting = None;
            Ok(results)
        })
    }

    /// Sends the frame in `self.frame`, and what follows it.
    fn send(
        &mut self,
        kind: Kind,
        envelope: Envelope,
        Lent { homes, places, bounced }: Lent<'_>,
        following: &[Placement],
        deadline: Instant,
    ) -> Result<(), Failure> {
        assert!(self.waiting.is_none(), "one batch at a time");
        let lent = places.iter().zip(&homes).filter(|(_, home)| **home != Home::Follows);
        let lent = lent.map(|(placement, _)| placement.clone()).collect();
        self.waiting = Some(Waiting { kind, id: envelope.id, count: homes.len(), homes, lent, bounced });
        Ok(self.stream.as_mut().ok_or(GONE)?.send(&self.frame, following, None, deadline)?)
    }

    /// Receives the reply's header and table into `self.frame`.
    fn receive(&mut self, kind: Kind, deadline: Instant) -> Result<Header, Failure> {
        let stream = self.stream.as_mut().ok_or(GONE)?;
        let waiting = self.waiting.as_ref().expect("a batch was sent");
        assert_eq!(waiting.kind, kind, "the answer to what was sent");
        // The reply's table has as many entries as the request's, so one call brings both parts.
        self.frame.clear();
        self.frame.resize(HEADER_BYTES + waiting.count * kind.entry_bytes(true), 0);
        // Held until the reply is here: so long the bytes are on their way.
        let _grant = match &self.fabric {
            Some(fabric) => {
                stream.receive(&mut self.frame[..HEADER_BYTES], deadline)?;
                let grant = grant(stream, fabric, waiting, &mut self.frame[..HEADER_BYTES], deadline)?;
                stream.receive(&mut self.frame[HEADER_BYTES..], deadline)?;
                grant
            }
            None => {
                stream.receive(&mut self.frame, deadline)?;
                None
            }
        };
        let header = Header::decode(self.frame[..HEADER_BYTES].try_into().expect("it is that long"))?;
        if !header.reply || header.id != waiting.id {
            return Err(Malformed("not the reply to this request").into());
        }
        self.clock = Some(ServerClock { told_at: Instant::now(), clock_ms: header.clock_ms });
        Ok(header)
    }

    fn envelope(&mut self, deadline: Instant) -> Result<Envelope, Failure> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Failure(Status::Timeout));
        }
        let told = left - (left / 4).min(DEADLINE_MARGIN);
        self.next_id = self.next_id.wrapping_add(1);
        let deadline_ms = u32::try_from(told.as_millis()).unwrap_or(u32::MAX).max(1);
        Ok(Envelope { id: self.next_id, deadline_ms, clock_ms: 0 })
    }

    fn stream(&mut self) -> Result<&mut Stream, Failure> {
        self.stream.as_mut().ok_or(GONE)
    }

    /// Registered buffers for placements that the server's device cannot reach as they are; empty if there is none.
    fn bounce(&mut self, placements: &[Placement]) -> Result<Vec<Option<Placement>>, Failure> {
        let (Some(fabric), Some(stream)) = (&self.fabric, &self.stream) else { return Ok(Vec::new()) };
        let link = stream.link().ok_or(GONE)?;
        let mut regions: Vec<RegionId> = Vec::new();
        let mut reachable = |placement: &Placement| {
            let Some((region, _)) = placement.region() else { return false };
            let known = regions.contains(&region.id());
            // One slot stays for the buffers.
            if (!known && regions.len() == REGIONS_MAX - 1) || link.keys(placement).is_err() {
                return false;
            }
            if !known {
                regions.push(region.id());
            }
            true
        };
        let bounced: Vec<bool> =
            placements.iter().map(|placement| !placement.is_empty() && !reachable(placement)).collect();
        let lengths = placements.iter().zip(&bounced).filter(|(_, bounced)| **bounced);
        let total: usize = lengths.map(|(placement, _)| placement.len()).sum();
        if total == 0 {
            return Ok(Vec::new());
        }
        let buffer = fabric.buffers().take(total).map_err(|_| Failure(Status::Busy))?;
        let mut used = 0;
        Ok(placements
            .iter()
            .zip(bounced)
            .map(|(placement, bounced)| {
                bounced.then(|| {
                    used += placement.len();
                    buffer.slice(used - placement.len()..used)
                })
            })
            .collect())
    }

    /// Where the server finds each placement, or the buffer in its stead. Registers regions that it does not know yet.
    fn homes(
        &mut self,
        placements: &[Placement],
        bounced: &[Option<Placement>],
        deadline: Instant,
    ) -> Result<Vec<Home>, Failure> {
        let mut homes = Vec::with_capacity(placements.len());
        for (place, placement) in placements.iter().enumerate() {
            let placement = bounced.get(place).and_then(Option::as_ref).unwrap_or(placement);
            let lends = self.shares_memory || (self.fabric.is_some() && !placement.is_empty());
            let home = match placement.region() {
                Some((region, offset)) if lends => match self.slot(placement, region, deadline)? {
                    Some(slot) => Home::Region { slot, offset: offset as u64 },
                    None => Home::Follows,
                },
                _ => Home::Follows,
            };
            homes.push(home);
        }
        self.regions.batch += 1;
        Ok(homes)
    }

    /// The slot of `region`, registered now if need be; `None` if this batch uses all slots for others.
    fn slot(
        &mut self,
        placement: &Placement,
        region: &Arc<Region>,
        deadline: Instant,
    ) -> Result<Option<u16>, Failure> {
        if let Some(slot) = self.regions.find(region.id()) {
            return Ok(Some(slot));
        }
        self.release_dead(deadline)?;
        let Some(slot) = self.regions.choose() else {
            return Ok(None);
        };
        let stream = self.stream.as_mut().ok_or(GONE)?;
        let (name, passed) = match stream.link() {
            Some(link) => {
                // Without a registration there is no way: `bounce` has made sure of one for all but its own buffer.
                let keys = link.keys(placement).map_err(|error| {
                    log::warn!("memory for RDMA: {error}");
                    Failure(Status::Busy)
                })?;
                let address = region.as_ptr() as u64;
                (RegionId::from(RemoteMemory { address, rkey: keys.rkey }), None)
            }
            None => (region.id(), Some(region.as_fd())),
        };
        let registration = Registration { slot, region: name, len: region.len() as u64 };
        let mut frame = Vec::new();
        frame::encode_registration(&mut frame, &registration);
        stream.send(&frame, &[], passed, deadline)?;
        self.regions.set(slot, region);
        Ok(Some(slot))
    }

    /// Tells the server to forget regions that no longer exist here, so that their memory is freed.
    fn release_dead(&mut self, deadline: Instant) -> Result<(), Failure> {
        for slot in self.regions.take_dead() {
            let mut frame = Vec::new();
            frame::encode_registration(&mut frame, &Registration { slot, region: RegionId([0; 16]), len: 0 });
            self.stream()?.send(&frame, &[], None, deadline)?;
        }
        Ok(())
    }

    /// Closes the connection after a failed batch.
    fn fail(&mut self, failure: Failure) -> Status {
        let waiting = self.waiting.take();
        if let Some(stream) = self.stream.take() {
            let lent = match stream.is_remote_direct() {
                // Free as soon as the link is reset, which `close_sending` does.
                true => Vec::new(),
                false => waiting.as_ref().map(|waiting| waiting.lent.clone()).unwrap_or_default(),
            };
            let (socket, remains) = stream.close_sending();
            if !lent.is_empty() || remains.is_some() {
                reaper::bury(socket, lent, remains);
            }
        }
        failure.0
    }
}

impl Drop for Connection {
    /// A batch that was sent and not waited for has failed.
    fn drop(&mut self) {
        if self.waiting.is_some() {
            self.fail(GONE);
        }
    }
}

/// What goes with a request.
#[derive(Default)]
struct Lent<'a> {
    homes: Vec<Home>,
    places: &'a [Placement],
    bounced: Vec<Option<Placement>>,
}

/// Waits for leave to have bytes transmitted, if the server asks for that in `head` instead of answering; then `head` is
/// that of the answer.
fn grant<'a>(
    stream: &mut Stream,
    fabric: &'a Fabric,
    waiting: &Waiting,
    head: &mut [u8],
    deadline: Instant,
) -> Result<Option<Grant<'a>>, Failure> {
    let header = Header::decode((&*head).try_into().expect("a header"))?;
    if header.kind != Kind::Transmit {
        return Ok(None);
    }
    header.decode_transmit(false)?;
    let grants = fabric.grants().filter(|_| header.id == waiting.id && waiting.kind == Kind::Read);
    let grants = grants.ok_or(Malformed("nobody wants to be asked"))?;
    let grant = grants.take(deadline).ok_or(Failure(Status::Timeout))?;
    let mut answer = Vec::new();
    frame::encode_transmit(&mut answer, Envelope::reply(header.id, 0), true);
    stream.send(&answer, &[], None, deadline)?;
    stream.receive(head, deadline)?;
    Ok(Some(grant))
}

/// The regions that the server knows by slot number.
#[derive(Debug, Default)]
struct Regions {
    slots: Vec<Slot>,
    /// Counts batches; slots used in this one must stay.
    batch: u64,
}

#[derive(Debug)]
struct Slot {
    id: Option<RegionId>,
    region: Weak<Region>,
    used: u64,
}

impl Regions {
    fn find(&mut self, id: RegionId) -> Option<u16> {
        let place = self.slots.iter().position(|slot| slot.id == Some(id))?;
        self.slots[place].used = self.batch;
        Some(place as u16)
    }

    /// A slot for one more region: an unused one, or the one least recently used.
    fn choose(&mut self) -> Option<u16> {
        if let Some(free) = self.slots.iter().position(|slot| slot.id.is_none()) {
            return Some(free as u16);
        }
        if self.slots.len() < REGIONS_MAX {
            self.slots.push(Slot { id: None, region: Weak::new(), used: 0 });
            return Some(self.slots.len() as u16 - 1);
        }
        let oldest = (0..self.slots.len()).min_by_key(|place| self.slots[*place].used)?;
        (self.slots[oldest].used < self.batch).then_some(oldest as u16)
    }

    fn set(&mut self, slot: u16, region: &Arc<Region>) {
        self.slots[slot as usize] =
            Slot { id: Some(region.id()), region: Arc::downgrade(region), used: self.batch };
    }

    fn take_dead(&mut self) -> Vec<u16> {
        let dead: Vec<u16> = (0..self.slots.len())
            .filter(|place| self.slots[*place].id.is_some() && self.slots[*place].region.strong_count() == 0)
            .map(|place| place as u16)
            .collect();
        dead.iter().for_each(|place| self.slots[*place as usize].id = None);
        dead
    }
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
        log::warn!("a server's reply: {malformed}");
        Failure(Status::Disconnected)
    }
}
