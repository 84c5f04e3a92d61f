//! The server's side of one connection.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::lock::Mutex;

use super::budget::{Budget, Share};
use super::handshake::invalid;
use super::stream::Stream;
use super::{Sender, Service, upgrade};
use crate::buffer::{Placement, REGION_BYTES_MAX, Region, RegionId};
use crate::rdma::{Fabric, Half, Transfer};
use crate::types::{ReadOp, ReadResult, Status, UpdateOp, UpdateResult, Version};
use crate::wire::credential::Refusal;
use crate::wire::frame::{
    self, Envelope, HEADER_BYTES, Header, Home, Kind, Malformed, REGIONS_MAX, Registration, TABLE_BYTES_MAX,
};
use crate::wire::pb::{Claims, claims::Role};
use crate::wire::rdma::{RemoteMemory, encode_connect_answer, encode_offer_answer};

/// Once a frame has begun, its next bytes must come within this; also how long a client may take to read
/// its reply. Frees the thread and the memory of a client that went to sleep.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Payload memory that a connection keeps between batches, so that it is not mapped anew for each.
const RETAINED_BYTES: usize = 4 << 20;
/// File descriptors that may have arrived before their registrations: the kernel hands over one at a time, with
/// the first byte of the frame it was sent with.
const PASSED_MAX: usize = 2;
/// Longest deadline that a request may ask for.
const DEADLINE_MAX: Duration = Duration::from_secs(600);

/// Regions mapped into this process, so that many connections of one client share one mapping. The memory is
/// recognised by its inode, not only by the name that the peer gives it.
#[derive(Debug, Default)]
pub(super) struct RegionCache(Mutex<HashMap<RegionKey, Weak<Region>>>);

/// Name, device and inode, length.
type RegionKey = (RegionId, (u64, u64), usize);

impl RegionCache {
    fn map(&self, fd: OwnedFd, id: RegionId, len: usize) -> io::Result<Arc<Region>> {
        let key = (id, Region::identity(&fd)?, len);
        let mut cache = self.0.lock();
        if let Some(region) = cache.get(&key).and_then(Weak::upgrade) {
            return Ok(region);
        }
        let region = Region::map_peer(fd, id, len)?;
        cache.retain(|_, region| region.strong_count() > 0);
        cache.insert(key, Arc::downgrade(&region));
        Ok(region)
    }
}

/// What all connections of a server share.
pub(super) struct Common {
    pub(super) budget: Arc<Budget>,
    pub(super) regions: RegionCache,
    pub(super) fabric: Option<Arc<Fabric>>,
}

/// A client's memory.
enum Lent {
    Mapped(Arc<Region>),
    Remote { memory: RemoteMemory, len: u64 },
}

/// How far the way to RDMA has been gone.
enum Direct {
    No,
    /// Our end waits for the client's.
    Offered(Box<Half>),
    /// `asks`: the client wants to be asked before bytes are transmitted.
    Yes {
        asks: bool,
    },
}

pub(super) struct Session {
    stream: Stream,
    claims: Claims,
    common: Arc<Common>,
    direct: Direct,
    regions: [Option<Lent>; REGIONS_MAX],
    /// File descriptors that arrived and that no registration has claimed yet.
    passed: Vec<OwnedFd>,
    inbox: Inbox,
    payload: Payload,
    /// Held by every placement of the current batch (rule N1).
    loan: Arc<()>,
    frame: Vec<u8>,
    /// Where this connection's clock begins.
    begun: Instant,
}

impl Session {
    pub(super) fn new(stream: Stream, claims: Claims, common: Arc<Common>) -> Session {
        Session {
            stream,
            claims,
            common,
            direct: Direct::No,
            regions: [const { None }; REGIONS_MAX],
            passed: Vec::new(),
            inbox: Inbox::new(),
            payload: Payload::default(),
            loan: Arc::new(()),
            frame: Vec::new(),
            begun: Instant::now(),
        }
    }

    /// Answers batches until the client closes. Errors: why the connection was closed instead.
    pub(super) fn run(&mut self, service: &dyn Service) -> io::Result<()> {
        while self.receive(HEADER_BYTES, true)? {
            let header = Header::decode(self.inbox.head()).map_err(invalid)?;
            if header.reply {
                return Err(invalid(Malformed("a reply where a request belongs")));
            }
            let frame_bytes = HEADER_BYTES + header.table_bytes();
            if !self.receive(frame_bytes, false)? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let taken = self.inbox.take(frame_bytes);
            let table = &taken[HEADER_BYTES..];
            if self.has_expired() {
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, Refusal::Expired));
            }
            let deadline = self.deadline(&header);
            match header.kind {
                Kind::Read => self.read(service, &header, table, deadline)?,
                Kind::Update => self.update(service, &header, table, deadline)?,
                Kind::Sync => self.sync(service, &header, table, deadline)?,
                Kind::Register => self.register(header.decode_registration(table).map_err(invalid)?)?,
                Kind::Offer => self.offer(&header, table)?,
                Kind::Connect => self.connect(&header, table)?,
                Kind::Transmit => return Err(invalid(Malformed("a client does not ask to transmit"))),
                Kind::Ping => {
                    header.decode_ping(false).map_err(invalid)?;
                    let envelope = self.envelope(&header);
                    frame::encode_ping(&mut self.frame, envelope, true);
                    self.reply(&[])?;
                }
            }
            self.inbox.recycle(taken);
        }
        Ok(())
    }

    /// This connection's clock; a `u32` of it begins anew after 49 days.
    fn clock_ms(&self) -> u32 {
        self.begun.elapsed().as_millis() as u32
    }

    fn envelope(&self, header: &Header) -> Envelope {
        Envelope::reply(header.id, self.clock_ms())
    }

    /// When the answer is due. Updates are not begun from then on, and never after the moment that their sender named
    /// on this connection's clock: it may have given them up while they waited in the socket (rule N3).
    fn deadline(&self, header: &Header) -> Instant {
        let asked = Duration::from_millis(header.deadline_ms.into()).min(DEADLINE_MAX);
        let left = match header.kind {
            Kind::Update => header.clock_ms.wrapping_sub(self.clock_ms()) as i32,
            _ => i32::MAX,
        };
        Instant::now() + asked.min(Duration::from_millis(left.max(0) as u64))
    }

    /// A token is good for new requests only until it expires, also on a connection that stands.
    fn has_expired(&self) -> bool {
        let expires = self.claims.expires_unix_s;
        expires != 0 && SystemTime::UNIX_EPOCH.elapsed().is_ok_and(|now| now.as_secs() >= expires)
    }

    /// Receives until `bytes` are in the inbox. False if the client closed before the first of them.
    fn receive(&mut self, bytes: usize, between_frames: bool) -> io::Result<bool> {
        let mut stalled_since = None;
        while self.inbox.len() < bytes {
            match self.stream.receive_some(self.inbox.space(), &mut self.passed) {
                Ok(0) if between_frames && self.inbox.is_empty() => return Ok(false),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    self.inbox.filled(count);
                    stalled_since = None;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let since = *stalled_since.get_or_insert_with(Instant::now);
                    if since.elapsed() < STALL_TIMEOUT {
                        continue;
                    }
                    if !between_frames || !self.inbox.is_empty() {
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

    /// A client could go on by RDMA.
    fn offer(&mut self, header: &Header, table: &[u8]) -> io::Result<()> {
        let offers = header.decode_offer(table).map_err(invalid)?;
        if self.stream.shares_memory() || !matches!(self.direct, Direct::No) {
            return Err(invalid(Malformed("an offer where none belongs")));
        }
        let answer = match upgrade::answer_offer(self.common.fabric.as_ref(), &offers) {
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

    /// The client goes on by RDMA.
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
            if !self.inbox.is_empty() {
                return Err(invalid(Malformed("more bytes over TCP than were to come")));
            }
            self.direct = Direct::Yes { asks: end.asks };
            self.stream.go_on_over(link);
        }
        Ok(())
    }

    fn register(&mut self, registration: Registration) -> io::Result<()> {
        let slot = registration.slot as usize;
        self.regions[slot] = None;
        if registration.len == 0 {
            return Ok(());
        }
        if self.stream.is_remote_direct() {
            if registration.len > REGION_BYTES_MAX as u64 {
                return Err(invalid(Malformed("a region of that length is not allowed")));
            }
            let (memory, len) = (registration.region.into(), registration.len);
            self.regions[slot] = Some(Lent::Remote { memory, len });
            return Ok(());
        }
        if self.passed.is_empty() {
            return Err(invalid(Malformed("a registration without a file descriptor")));
        }
        let fd = self.passed.remove(0);
        match self.common.regions.map(fd, registration.region, registration.len as usize) {
            Ok(region) => self.regions[slot] = Some(Lent::Mapped(region)),
            // Operations that name the slot are answered with Invalid.
            Err(error) => log::warn!("a region was not registered: {error}"),
        }
        Ok(())
    }

    fn read(
        &mut self,
        service: &dyn Service,
        header: &Header,
        table: &[u8],
        deadline: Instant,
    ) -> io::Result<()> {
        let (ops, homes) = header.decode_reads(table).map_err(invalid)?;
        let lengths: Vec<usize> = ops.iter().map(|op| op.length as usize).collect();
        let mut results = Vec::with_capacity(ops.len());
        let (places, _share) = match self.places(&homes, &lengths, deadline) {
            Ok((places, share)) => {
                service.read(&ops, &places, deadline, &mut results);
                check_read_results(&ops, &results);
                (places, share)
            }
            Err(status) => {
                results.extend(ops.iter().map(|_| ReadResult { status, length: 0, version: Version(0) }));
                (Vec::new(), None)
            }
        };
        let filled: Vec<(&Home, Placement)> = places
            .iter()
            .zip(&homes)
            .zip(&results)
            .filter(|(_, result)| result.length > 0)
            .map(|((place, home), result)| (home, place.slice(0..result.length as usize)))
            .collect();
        drop(places);
        let (following, transfers) = self.split(&filled).map_err(io::Error::other)?;
        self.transmit(header, &transfers)?;
        // While the device moves the bytes, which nobody changes any more.
        let crcs = self.read_crcs(&results, &filled);
        drop(filled);
        let payload_bytes = crate::buffer::total_length(&following);
        let envelope = self.envelope(header);
        frame::encode_read_results(&mut self.frame, envelope, payload_bytes, &results, &crcs);
        self.wait_for_loans(following.len() + transfers.len());
        self.reply(&following)?;
        if transfers.is_empty() {
            return Ok(());
        }
        self.stream.over_link(|link, socket| link.settle(socket, Instant::now() + STALL_TIMEOUT))
    }

    /// Checksums of what was read; none where both ends share memory.
    fn read_crcs(&self, results: &[ReadResult], filled: &[(&Home, Placement)]) -> Vec<Option<u32>> {
        let mut filled = filled.iter();
        results
            .iter()
            .map(|result| {
                let place = (result.length > 0).then(|| filled.next().expect("one for each with bytes"));
                place.filter(|_| !self.stream.shares_memory()).map(|(_, place)| place.crc32c())
            })
            .collect()
    }

    /// What follows the reply, and what goes to the client's memory by RDMA; the rest lies there already.
    fn split(&self, filled: &[(&Home, Placement)]) -> Result<(Vec<Placement>, Vec<Transfer>), Status> {
        let (mut following, mut transfers) = (Vec::new(), Vec::new());
        for (home, local) in filled {
            match home {
                Home::Follows => following.push(local.clone()),
                Home::Region { slot, offset } => {
                    if let Some(remote) = self.remote(*slot, *offset, local.len())? {
                        transfers.push(Transfer { local: local.clone(), remote });
                    }
                }
            }
        }
        Ok((following, transfers))
    }

    /// Writes to the client's memory, when it lets us. The reply comes after the bytes (rule A2).
    fn transmit(&mut self, header: &Header, transfers: &[Transfer]) -> io::Result<()> {
        if transfers.is_empty() {
            return Ok(());
        }
        if matches!(self.direct, Direct::Yes { asks: true }) {
            let envelope = self.envelope(header);
            frame::encode_transmit(&mut self.frame, envelope, false);
            self.reply(&[])?;
            self.receive(HEADER_BYTES, false)?;
            let answer = self.inbox.take(HEADER_BYTES);
            let answer = Header::decode(answer.as_slice().try_into().expect("a header")).map_err(invalid)?;
            answer.decode_transmit(true).map_err(invalid)?;
            if answer.id != header.id {
                return Err(invalid(Malformed("leave for another batch")));
            }
        }
        let patience = Instant::now() + STALL_TIMEOUT;
        self.stream.over_link(|link, socket| link.write(transfers, socket, patience))
    }

    fn update(
        &mut self,
        service: &dyn Service,
        header: &Header,
        table: &[u8],
        deadline: Instant,
    ) -> io::Result<()> {
        let (ops, homes) = header.decode_updates(table).map_err(invalid)?;
        let lengths: Vec<usize> = ops.iter().map(|op| op.payload_bytes()).collect();
        let mut results = Vec::with_capacity(ops.len());
        // Without memory for the payload there is no way to the next frame, so the connection waits longer than
        // the request, and is closed only then.
        let patience = Instant::now() + STALL_TIMEOUT;
        let failed = match self.places(&homes, &lengths, patience) {
            Ok((payload, _share)) => {
                self.receive_payload(&homes, &payload)?;
                self.fetch_payload(&homes, &payload)?;
                match self.verify(&ops, &payload)? {
                    _ if Instant::now() >= deadline => Some(Status::Timeout),
                    Status::Ok => {
                        let sender = sender(&self.claims);
                        service.update(sender, &ops, &payload, deadline, &mut results);
                        assert_eq!(results.len(), ops.len(), "one result per operation");
                        None
                    }
                    status => Some(status),
                }
            }
            Err(status) if header.payload_bytes == 0 => Some(status),
            Err(status) => {
                return Err(io::Error::other(format!("no memory for a payload: {status}")));
            }
        };
        if let Some(status) = failed {
            results.extend(ops.iter().map(|_| UpdateResult { status, version: Version(0), length: 0 }));
        }
        let envelope = self.envelope(header);
        frame::encode_update_results(&mut self.frame, envelope, &results);
        self.wait_for_loans(0);
        self.reply(&[])
    }

    /// Receives the bytes that follow the frame, of which the inbox may already have some.
    fn receive_payload(&mut self, homes: &[Home], payload: &[Placement]) -> io::Result<()> {
        let mut missing = Vec::new();
        for (place, _) in payload.iter().zip(homes).filter(|(_, home)| **home == Home::Follows) {
            let here = self.inbox.len().min(place.len());
            place.copy_from(&self.inbox.take(here));
            if here < place.len() {
                missing.push(place.slice(here..place.len()));
            }
        }
        self.stream.receive_into(&missing, Instant::now() + STALL_TIMEOUT)
    }

    /// Reads the payloads that lie in the client's memory beyond the network.
    fn fetch_payload(&mut self, homes: &[Home], payload: &[Placement]) -> io::Result<()> {
        let filled = homes.iter().zip(payload.iter().cloned()).filter(|(_, place)| !place.is_empty());
        let filled: Vec<(&Home, Placement)> = filled.collect();
        let (_, transfers) = self.split(&filled).map_err(io::Error::other)?;
        if transfers.is_empty() {
            return Ok(());
        }
        let patience = Instant::now() + STALL_TIMEOUT;
        self.stream.over_link(|link, socket| link.read(&transfers, socket, patience))
    }

    /// Whether the payload arrived as it was sent.
    fn verify(&self, ops: &[UpdateOp], payload: &[Placement]) -> io::Result<Status> {
        if self.stream.shares_memory() {
            return Ok(Status::Ok);
        }
        for (op, place) in ops.iter().zip(payload) {
            if place.is_empty() {
                continue;
            }
            match op.payload_crc {
                None => return Err(invalid(Malformed("bytes without a checksum"))),
                Some(crc) if place.crc32c() != crc => return Ok(Status::Checksum),
                Some(_) => {}
            }
        }
        Ok(Status::Ok)
    }

    fn sync(
        &mut self,
        service: &dyn Service,
        header: &Header,
        table: &[u8],
        deadline: Instant,
    ) -> io::Result<()> {
        let chains = header.decode_syncs(table).map_err(invalid)?;
        let mut results = Vec::with_capacity(chains.len());
        service.sync(sender(&self.claims), &chains, deadline, &mut results);
        assert_eq!(results.len(), chains.len(), "one result per chain");
        let envelope = self.envelope(header);
        frame::encode_sync_results(&mut self.frame, envelope, &results);
        self.reply(&[])
    }

    fn reply(&mut self, following: &[Placement]) -> io::Result<()> {
        self.stream.send(&self.frame, following, None, Instant::now() + STALL_TIMEOUT)
    }

    /// The memory of each operation: in the client's region, or in this connection's buffer.
    fn places(
        &mut self,
        homes: &[Home],
        lengths: &[usize],
        deadline: Instant,
    ) -> Result<(Vec<Placement>, Option<Share>), Status> {
        let direct = self.stream.is_remote_direct();
        // Bytes that pass through memory of ours.
        let following: usize = homes
            .iter()
            .zip(lengths)
            .filter(|(home, _)| direct || **home == Home::Follows)
            .map(|(_, length)| *length)
            .sum();
        let mut places = Vec::with_capacity(homes.len());
        for (home, length) in homes.iter().zip(lengths) {
            places.push(match home {
                Home::Region { slot, offset } => self.in_region(*slot, *offset, *length)?,
                Home::Follows if direct && *length > 0 => return Err(Status::Invalid),
                Home::Follows => None,
            });
        }
        let (buffer, share) = match following {
            0 => (None, None),
            bytes => {
                let share = self.share(bytes, deadline)?;
                let buffer = match self.common.fabric.as_ref().filter(|_| direct) {
                    Some(fabric) => fabric.buffers().take(bytes),
                    None => self.payload.get(bytes),
                };
                (Some(buffer.map_err(|_| Status::Busy)?), share)
            }
        };
        let mut used = 0;
        let places = places
            .into_iter()
            .zip(lengths)
            .map(|(place, length)| {
                let place = place.unwrap_or_else(|| match &buffer {
                    Some(buffer) => {
                        used += length;
                        buffer.slice(used - length..used)
                    }
                    None => Placement::from_vec(Vec::new()),
                });
                place.kept_by(self.loan.clone())
            })
            .collect();
        Ok((places, share))
    }

    /// Leave to hold `bytes`. Nodes need none: what they forward is bounded by the budgets of those who sent it, and
    /// two nodes whose budgets were full of updates for each other would wait for ever.
    fn share(&self, bytes: usize, deadline: Instant) -> Result<Option<Share>, Status> {
        match sender(&self.claims) {
            Sender::Node(_) => Ok(None),
            Sender::Client(_) => self.common.budget.take(bytes, deadline).map(Some).ok_or(Status::Busy),
        }
    }

    /// The place in memory that the client shares; `None` if it lies beyond the network.
    fn in_region(&self, slot: u16, offset: u64, length: usize) -> Result<Option<Placement>, Status> {
        match self.regions[slot as usize].as_ref().ok_or(Status::Invalid)? {
            Lent::Mapped(region) => {
                let offset = usize::try_from(offset).map_err(|_| Status::Invalid)?;
                region.placement(offset, length).map(Some).ok_or(Status::Invalid)
            }
            Lent::Remote { .. } => self.remote(slot, offset, length).map(|_| None),
        }
    }

    /// Where the client's device finds the place; `None` if the memory is shared.
    fn remote(&self, slot: u16, offset: u64, length: usize) -> Result<Option<RemoteMemory>, Status> {
        match self.regions[slot as usize].as_ref().ok_or(Status::Invalid)? {
            Lent::Mapped(_) => Ok(None),
            Lent::Remote { memory, len } => {
                let end = offset.checked_add(length as u64).ok_or(Status::Invalid)?;
                let address = memory.address.checked_add(offset).ok_or(Status::Invalid)?;
                if end > *len {
                    return Err(Status::Invalid);
                }
                Ok(Some(RemoteMemory { address, rkey: memory.rkey }))
            }
        }
    }

    /// Waits until nobody but us (with `ours` placements) can touch the memory of this batch (rule N1). Nearly
    /// always at once; after a successor was lost, until that has closed its connection.
    fn wait_for_loans(&self, ours: usize) {
        let mut pause = Duration::from_micros(50);
        while Arc::strong_count(&self.loan) > 1 + ours {
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }
}

impl Drop for Session {
    /// Before the socket closes, also when the service panicked.
    fn drop(&mut self) {
        self.wait_for_loans(0);
    }
}

fn check_read_results(ops: &[ReadOp], results: &[ReadResult]) {
    assert_eq!(results.len(), ops.len(), "one result per operation");
    for (op, result) in ops.iter().zip(results) {
        assert!(result.length <= op.length, "no more bytes than were asked for");
        assert!(result.status == Status::Ok || result.length == 0, "a failed read has no bytes");
    }
}

fn sender(claims: &Claims) -> Sender<'_> {
    if claims.role == Role::Service as i32 { Sender::Node(claims) } else { Sender::Client(claims) }
}

/// What was received and not yet used. As large as the largest frame without its payload.
struct Inbox {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    spare: Vec<u8>,
}

impl Inbox {
    fn new() -> Inbox {
        Inbox { bytes: vec![0; HEADER_BYTES + TABLE_BYTES_MAX], start: 0, end: 0, spare: Vec::new() }
    }

    fn len(&self) -> usize {
        self.end - self.start
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Room for more; never empty, because a frame without payload fits whole.
    fn space(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.bytes[self.end..]
    }

    fn filled(&mut self, count: usize) {
        self.end += count;
    }

    fn head(&self) -> &[u8; HEADER_BYTES] {
        self.bytes[self.start..self.start + HEADER_BYTES].try_into().expect("received before it is looked at")
    }

    /// Takes out the first `bytes`.
    fn take(&mut self, bytes: usize) -> Vec<u8> {
        let mut taken = std::mem::take(&mut self.spare);
        taken.clear();
        taken.extend_from_slice(&self.bytes[self.start..self.start + bytes]);
        self.start += bytes;
        taken
    }

    fn recycle(&mut self, spare: Vec<u8>) {
        self.spare = spare;
    }
}

/// Memory for payloads that follow frames.
#[derive(Default)]
struct Payload(Option<Placement>);

impl Payload {
    fn get(&mut self, bytes: usize) -> io::Result<Placement> {
        if let Some(kept) = self.0.as_ref().filter(|kept| kept.len() >= bytes) {
            return Ok(kept.slice(0..bytes));
        }
        let fresh = Placement::private(bytes.next_power_of_two().max(64 << 10))?;
        let part = fresh.slice(0..bytes);
        if fresh.len() <= RETAINED_BYTES {
            self.0 = Some(fresh);
        }
        Ok(part)
    }

    fn release(&mut self) {
        self.0 = None;
    }
}
