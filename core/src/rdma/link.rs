//! One connection over RDMA: a stream of bytes in messages, and transfers that the server issues.
//!
//! Used by one thread. It blocks in the kernel until the device or the TCP connection beside the queue pair has
//! something to say; the end of that connection is the end of this one.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::RecvFlags;

use super::credits::Credits;
use super::device::{Port, Registration};
use super::fabric::{Fabric, RdmaCounters};
use super::memory::SIZES;
use super::queue::{Completion, POST_MAX, QueuePair, Request, Size, WorkKind};
use crate::buffer::Placement;
use crate::wire::frame::{HEADER_BYTES, TABLE_BYTES_MAX};
use crate::wire::rdma::{End, Offer, RemoteMemory, WINDOW_MAX, WINDOW_MIN};

/// Bytes of one message: most frames fit one.
pub const MESSAGE_BYTES: usize = 4096;
/// Messages that this end has buffers for: more than the largest frame needs.
pub const WINDOW: u16 = 8;
/// Messages on their way out at once.
const SEND_SLOTS: usize = 8;
/// Transfers under way at once, where the device allows so many.
const TRANSFERS_MAX: usize = 128;
/// A completion is asked for at least every so many requests.
const SIGNAL_EVERY: usize = 16;
/// Longest piece of one transfer, so that several connections share a port fairly.
const PIECE_BYTES_MAX: usize = 4 << 20;
/// Most RDMA READs that we let a peer ask at once; more only costs the device memory.
const READS_MAX: u8 = 16;
/// Distinguishes receives from sends in the ids of requests.
const RECEIVE: u64 = 1 << 63;
const _: () = assert!(MESSAGE_BYTES <= PIECE_BYTES_MAX && SEND_SLOTS <= WINDOW as usize);
const _: () = assert!(WINDOW_MIN <= WINDOW && WINDOW <= WINDOW_MAX, "peers take such a window");
const _: () = assert!(
    (HEADER_BYTES + TABLE_BYTES_MAX).div_ceil(MESSAGE_BYTES) < WINDOW as usize,
    "the largest frame, and one message that returns buffers"
);
const _: () =
    assert!((WINDOW as usize + SEND_SLOTS) * MESSAGE_BYTES <= SIZES[0], "messages fit the smallest buffer");
const _: () = assert!(SIGNAL_EVERY <= POST_MAX && POST_MAX <= TRANSFERS_MAX);

/// Bytes here and there that a transfer moves.
#[derive(Clone, Debug)]
pub struct Transfer {
    pub local: Placement,
    pub remote: RemoteMemory,
}

/// A queue pair that the peer does not know yet.
pub struct Half {
    fabric: Arc<Fabric>,
    queue: QueuePair,
    messages: Placement,
    keys: Arc<Registration>,
    end: End,
    sends: usize,
    message_bytes: usize,
}

impl Half {
    /// Take memory and a queue pair and posts its receives. Only the client's end lets its peer at its memory.
    pub fn new(fabric: &Arc<Fabric>, port: &Port, remote_access: bool) -> io::Result<Half> {
        let limits = *port.device.limits();
        let messages = fabric.buffers().take((WINDOW as usize + SEND_SLOTS) * MESSAGE_BYTES)?;
        let (region, _) = messages.region().expect("registered buffers are parts of regions");
        let keys = port.device.registration(region)?;
        // Receives and sends share the completion queue.
        let sends = (TRANSFERS_MAX + SEND_SLOTS)
            .min(limits.work_requests)
            .min(limits.completions.saturating_sub(WINDOW as usize));
        if sends < 2 * SEND_SLOTS || limits.scatter_entries == 0 {
            return Err(io::Error::other(format!("{} allows too few work requests", port.device.name())));
        }
        let mut queue = QueuePair::new(port, Size { sends, receives: WINDOW as usize })?;
        queue.initialize(remote_access)?;
        for slot in 0..WINDOW as usize {
            let place = address(&messages) + (slot * MESSAGE_BYTES) as u64;
            queue.post_receive(RECEIVE | slot as u64, place, MESSAGE_BYTES as u32, keys.lkey)?;
        }
        let mut psn = [0; 4];
        rustix::rand::getrandom(&mut psn, rustix::rand::GetRandomFlags::empty())?;
        let end = End {
            port: 0,
            offer: port.offer,
            qpn: queue.number(),
            psn: u32::from_le_bytes(psn) & 0xff_ffff,
            window: WINDOW,
            reads: limits.reads_answered.min(READS_MAX),
            asks: false,
        };
        assert!(end.qpn >> 24 == 0 && end.psn >> 24 == 0, "numbers of 24 bits");
        let message_bytes = port.message_bytes.min(PIECE_BYTES_MAX);
        Ok(Half { fabric: fabric.clone(), queue, messages, keys, end, sends, message_bytes })
    }

    pub fn end(&self) -> &End {
        &self.end
    }

    /// Connect to the peer's end.
    pub fn connect(mut self, theirs: &End) -> io::Result<Link> {
        self.queue.connect(&self.end, theirs)?;
        let counters = self.fabric.counters().clone();
        Ok(Link {
            fabric: self.fabric,
            queue: self.queue,
            messages: self.messages,
            keys: self.keys,
            credits: Credits::new(WINDOW, theirs.window),
            sends: self.sends,
            message_bytes: self.message_bytes,
            asked: 0,
            done: 0,
            slots: [0; SEND_SLOTS],
            next_slot: 0,
            received_messages: VecDeque::new(),
            completions: Vec::new(),
            ended: None,
            peer: theirs.offer,
            counters,
        })
    }
}

/// A received message, as far as it has not been taken yet.
struct Message {
    slot: usize,
    at: usize,
    end: usize,
}

pub struct Link {
    fabric: Arc<Fabric>,
    queue: QueuePair,
    /// Receive buffers, then send buffers.
    messages: Placement,
    keys: Arc<Registration>,
    credits: Credits,
    /// Most requests in the send queue.
    sends: usize,
    message_bytes: usize,
    /// Requests of the send queue are numbered from 1: the last one posted, and the last one known to be done.
    asked: u64,
    done: u64,
    /// The request that last used each send buffer.
    slots: [u64; SEND_SLOTS],
    next_slot: usize,
    received_messages: VecDeque<Message>,
    completions: Vec<Completion>,
    /// Why nothing works any more.
    ended: Option<io::ErrorKind>,
    peer: Offer,
    counters: Arc<RdmaCounters>,
}

impl Link {
    pub fn fabric(&self) -> &Arc<Fabric> {
        &self.fabric
    }

    /// The keys of the placement for a peer, if its region is or can be registered with this connection's device.
    pub fn keys(&self, placement: &Placement) -> io::Result<Arc<Registration>> {
        let (region, _) = placement.region().ok_or(io::ErrorKind::InvalidInput)?;
        self.queue.device().registration(region)
    }

    /// Send bytes as one or more messages.
    pub fn send(&mut self, bytes: &[u8], socket: BorrowedFd<'_>, deadline: Instant) -> io::Result<()> {
        for piece in bytes.chunks(MESSAGE_BYTES) {
            self.wait(socket, deadline, |link| {
                link.credits.may_send() && link.slot_is_free() && link.room() > 0
            })?;
            self.post_message(piece)?;
        }
        Ok(())
    }

    fn slot_is_free(&self) -> bool {
        self.slots[self.next_slot] <= self.done
    }

    fn room(&self) -> usize {
        assert!(self.done <= self.asked, "only what was posted is done");
        let under_way = (self.asked - self.done) as usize;
        assert!(under_way <= self.sends, "the send queue is never overrun");
        self.sends - under_way
    }

    fn post_message(&mut self, bytes: &[u8]) -> io::Result<()> {
        assert!(bytes.len() <= MESSAGE_BYTES && self.slot_is_free(), "a buffer is free for the message");
        let start = (WINDOW as usize + self.next_slot) * MESSAGE_BYTES;
        self.messages.copy_in(start, bytes);
        let returned = self.credits.send();
        self.asked += 1;
        self.slots[self.next_slot] = self.asked;
        self.next_slot = (self.next_slot + 1) % SEND_SLOTS;
        let request = Request {
            id: self.asked,
            work: WorkKind::Send(returned.into()),
            address: address(&self.messages) + start as u64,
            length: bytes.len() as u32,
            lkey: self.keys.lkey,
            signaled: true,
        };
        self.guard(|link| link.queue.post_sends(&[request]))
    }

    /// Receive what is there, at least one byte; 0 when the peer has ended the connection. Errors: `WouldBlock` if
    /// nothing came until `until`.
    pub fn receive_some(
        &mut self,
        target: &mut [u8],
        socket: BorrowedFd<'_>,
        until: Instant,
    ) -> io::Result<usize> {
        match self.wait(socket, until, |link| !link.received_messages.is_empty()) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
            Err(error) => return Err(error),
        }
        let message = self.received_messages.front_mut().expect("waited for it");
        let count = target.len().min(message.end - message.at);
        let start = message.slot * MESSAGE_BYTES + message.at;
        self.messages.slice(start..start + count).copy_to(&mut target[..count]);
        message.at += count;
        assert!(message.at <= message.end, "bytes are taken once");
        if message.at == message.end {
            let slot = message.slot;
            self.received_messages.pop_front();
            self.repost(slot)?;
            self.return_buffers()?;
        }
        Ok(count)
    }

    fn repost(&mut self, slot: usize) -> io::Result<()> {
        let place = address(&self.messages) + (slot * MESSAGE_BYTES) as u64;
        let lkey = self.keys.lkey;
        self.guard(|link| link.queue.post_receive(RECEIVE | slot as u64, place, MESSAGE_BYTES as u32, lkey))?;
        self.credits.repost();
        Ok(())
    }

    /// Return credits to the peer when they are due (C2).
    fn return_buffers(&mut self) -> io::Result<()> {
        if self.credits.must_return() && self.slot_is_free() && self.room() > 0 {
            self.post_message(&[])?;
        }
        Ok(())
    }

    /// Write to the peer's memory. The bytes are there when it receives what is sent next; our own must stay as they are
    /// until [`Link::settle`].
    pub fn write(
        &mut self,
        transfers: &[Transfer],
        socket: BorrowedFd<'_>,
        deadline: Instant,
    ) -> io::Result<()> {
        let bytes = self.transfer(transfers, socket, deadline, |memory| WorkKind::Write {
            address: memory.address,
            rkey: memory.rkey,
        })?;
        self.counters.written(bytes);
        Ok(())
    }

    /// Read from the peer's memory; when it returns, all bytes are here.
    pub fn read(
        &mut self,
        transfers: &[Transfer],
        socket: BorrowedFd<'_>,
        deadline: Instant,
    ) -> io::Result<()> {
        let bytes = self.transfer(transfers, socket, deadline, |memory| WorkKind::Read {
            address: memory.address,
            rkey: memory.rkey,
        })?;
        self.settle(socket, deadline)?;
        self.counters.read(bytes);
        Ok(())
    }

    /// Wait until the device is done with all memory that was handed to it.
    pub fn settle(&mut self, socket: BorrowedFd<'_>, deadline: Instant) -> io::Result<()> {
        self.wait(socket, deadline, |link| link.done == link.asked)
    }

    fn transfer(
        &mut self,
        transfers: &[Transfer],
        socket: BorrowedFd<'_>,
        deadline: Instant,
        work: impl Fn(RemoteMemory) -> WorkKind,
    ) -> io::Result<u64> {
        let mut requests: Vec<Request> = Vec::new();
        let mut total = 0;
        for transfer in transfers {
            let lkey = self.keys(&transfer.local)?.lkey;
            let (mut at, len) = (0, transfer.local.len());
            total += len as u64;
            while at < len {
                let length = (len - at).min(self.message_bytes);
                let RemoteMemory { address: remote, rkey } = transfer.remote;
                requests.push(Request {
                    id: 0,
                    work: work(RemoteMemory { address: remote.wrapping_add(at as u64), rkey }),
                    address: address(&transfer.local) + at as u64,
                    length: length as u32,
                    lkey,
                    signaled: false,
                });
                at += length;
            }
        }
        let mut left = requests.as_mut_slice();
        while !left.is_empty() {
            self.wait(socket, deadline, |link| link.room() > 0)?;
            let count = left.len().min(self.room()).min(POST_MAX);
            let (now, later) = left.split_at_mut(count);
            for (place, request) in now.iter_mut().enumerate() {
                self.asked += 1;
                request.id = self.asked;
                request.signaled = place + 1 == count || (place + 1) % SIGNAL_EVERY == 0;
            }
            self.guard(|link| link.queue.post_sends(now))?;
            left = later;
        }
        Ok(total)
    }

    /// Whether the peer has said nothing and nothing has gone wrong.
    pub fn is_quiet(&mut self) -> bool {
        self.take_completions().is_ok() && self.received_messages.is_empty()
    }

    /// Wait until `is_ready`. Errors: `TimedOut` at `until`, `UnexpectedEof` when the TCP connection has ended, and what
    /// went wrong with a request; after all but the first nothing works any more.
    fn wait(
        &mut self,
        socket: BorrowedFd<'_>,
        until: Instant,
        is_ready: impl Fn(&Link) -> bool,
    ) -> io::Result<()> {
        let mut over = false;
        loop {
            self.take_completions()?;
            if is_ready(self) {
                return Ok(());
            }
            if over {
                return Err(self.end(io::ErrorKind::UnexpectedEof.into()));
            }
            self.guard(|link| link.queue.arm())?;
            self.take_completions()?;
            if is_ready(self) {
                return Ok(());
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            // What the peer sent before it ended the connection still counts: look once more.
            over = self.sleep(socket, left)?;
        }
    }

    /// Sleep until something happens; true if the TCP connection has ended.
    fn sleep(&mut self, socket: BorrowedFd<'_>, longest: Duration) -> io::Result<bool> {
        let longest = Timespec { tv_sec: longest.as_secs() as _, tv_nsec: longest.subsec_nanos() as _ };
        let event = self.queue.event();
        let mut polled =
            [PollFd::from_borrowed_fd(event, PollFlags::IN), PollFd::from_borrowed_fd(socket, PollFlags::IN)];
        match rustix::event::poll(&mut polled, Some(&longest)) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(false),
            Err(error) => return Err(self.end(error.into())),
        }
        let [event, socket_state] = polled.map(|polled| !polled.revents().is_empty());
        if event {
            self.queue.take_event();
        }
        if !socket_state {
            return Ok(false);
        }
        match rustix::net::recv(socket, &mut [0u8; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((0, _)) => Ok(true),
            Ok(_) => Err(self.end(io::Error::new(
                io::ErrorKind::InvalidData,
                "bytes over TCP on a connection upgraded to RDMA",
            ))),
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(_) => Ok(true),
        }
    }

    fn take_completions(&mut self) -> io::Result<()> {
        if let Some(kind) = self.ended {
            return Err(kind.into());
        }
        let mut completions = std::mem::take(&mut self.completions);
        completions.clear();
        self.guard(|link| link.queue.poll(&mut completions))?;
        for completion in &completions {
            match *completion {
                Completion::Sent { id } => {
                    assert!(self.done < id && id <= self.asked, "requests are done in their order, and once");
                    self.done = id;
                }
                Completion::Received { id, length, immediate } => {
                    self.received((id & !RECEIVE) as usize, length as usize, immediate)?;
                }
            }
        }
        self.completions = completions;
        self.return_buffers()
    }

    fn received(&mut self, slot: usize, length: usize, immediate: Option<u32>) -> io::Result<()> {
        assert!(slot < WINDOW as usize, "a message is in a buffer that was posted");
        // Only what a peer has written into our memory, with immediate data, is longer.
        let immediate = immediate.filter(|_| length <= MESSAGE_BYTES);
        let returned = immediate.and_then(|number| u16::try_from(number).ok());
        let Some(returned) = returned else {
            return Err(self.end(io::Error::new(io::ErrorKind::InvalidData, "a message of another kind")));
        };
        if let Err(error) = self.credits.receive(returned) {
            return Err(self.end(io::Error::new(io::ErrorKind::InvalidData, error)));
        }
        if length == 0 {
            return self.repost(slot);
        }
        self.received_messages.push_back(Message { slot, at: 0, end: length });
        Ok(())
    }

    /// What `work` returns; after an error nothing works any more.
    fn guard<T>(&mut self, work: impl FnOnce(&mut Link) -> io::Result<T>) -> io::Result<T> {
        work(self).map_err(|error| self.end(error))
    }

    fn end(&mut self, error: io::Error) -> io::Error {
        self.ended = Some(error.kind());
        error
    }

    /// Stop the device's work on all memory of this connection (rules A3 and A4). What is left keeps the queue pair's
    /// number out of use until it is dropped.
    pub fn reset(mut self) -> Remains {
        self.counters.reset();
        let reset = self.queue.reset();
        if let Err(error) = &reset {
            // Then it must go at once: destroying it stops the device too.
            log::warn!("resetting the queue pair to {:?} failed: {error}; destroying it", self.peer.gid);
        }
        Remains { queue: reset.is_ok().then_some(self.queue), _messages: self.messages, _keys: self.keys }
    }
}

/// A queue pair in RESET, held until its peer has gone.
pub struct Remains {
    queue: Option<QueuePair>,
    _messages: Placement,
    _keys: Arc<Registration>,
}

impl Remains {
    /// Whether there is a queue pair to hold.
    pub fn is_held(&self) -> bool {
        self.queue.is_some()
    }
}

fn address(placement: &Placement) -> u64 {
    placement.as_ptr() as u64
}
