//! One queue pair with its completion queue: work goes in, completions come out.
//!
//! Memory. A request names memory by the key of a registration, which the device checks itself: a request that outlives
//! its registration fails, and reaches no other memory. So posting is safe in Rust's sense even if the memory
//! goes away; that nothing is *reused* too early is `link`'s business.

use std::ffi::{c_int, c_uint};
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr;
use std::sync::Arc;

use super::device::{Device, Port};
use super::verbs::{
    self, QueueLimits, QueuePairAttributes, QueuePairInit, ReceiveRequest, ScatterEntry, SendRequest,
    WorkCompletion,
};
use crate::wire::rdma::{End, LinkLayer};

/// Most requests handed over in one call, and most completions taken in one.
pub const POST_MAX: usize = 32;
/// 4.096 us * 2^16 = 268 ms before a packet is sent again, if no NAK arrives: long enough for a peer under
/// emulation or on a busy machine, short enough for a request. The TCP connection shows the death of a peer sooner.
const TIMEOUT: u8 = 16;
/// Times that a packet is sent again. 7 means "without limit" to some devices, so a dead peer would never be noticed.
const RETRIES: u8 = 6;
const _: () = assert!(RETRIES < 7 && TIMEOUT < 32, "fields of three and five bits");
/// A message always finds a buffer (C1), so that it did not is an error at once.
const RNR_RETRIES: u8 = 0;
const RNR_TIMER: u8 = 12;
const HOPS_MAX: u8 = 64;

/// What a request asks of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkKind {
    /// A message with this immediate data.
    Send(u32),
    Write {
        address: u64,
        rkey: u32,
    },
    Read {
        address: u64,
        rkey: u32,
    },
}

/// One work request for the send queue. Without bytes the memory is not looked at.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    pub id: u64,
    pub work: WorkKind,
    pub address: u64,
    pub length: u32,
    pub lkey: u32,
    pub signaled: bool,
}

/// The outcome of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// This request of the send queue, and all before it.
    Sent {
        id: u64,
    },
    Received {
        id: u64,
        length: u32,
        immediate: Option<u32>,
    },
}

/// The numbers that a queue pair is made with.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub sends: usize,
    pub receives: usize,
}

/// A reliable connection's queue pair.
pub struct QueuePair {
    port: Port,
    channel: *mut verbs::CompletionChannel,
    completions: *mut verbs::CompletionQueue,
    raw: *mut verbs::QueuePair,
    armed: bool,
}

// SAFETY: the library's objects may be used from any thread; `&mut self` orders their use.
unsafe impl Send for QueuePair {}
// SAFETY: `&QueuePair` only gives out numbers.
unsafe impl Sync for QueuePair {}

impl QueuePair {
    /// A queue pair in state RESET. Errors: what the device says, `OutOfMemory` mostly when its limits are reached.
    pub fn new(port: &Port, size: Size) -> io::Result<QueuePair> {
        let device = &port.device;
        let library = device.library();
        // Built up step by step: `drop` gives back what there is.
        let mut queue = QueuePair {
            port: port.clone(),
            channel: ptr::null_mut(),
            completions: ptr::null_mut(),
            raw: ptr::null_mut(),
            armed: false,
        };
        // SAFETY: the device's context is open as long as `port` holds the device.
        queue.channel = unsafe { (library.create_comp_channel)(device.context()) };
        if queue.channel.is_null() {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the channel is open until `drop`.
        let fd = unsafe { BorrowedFd::borrow_raw((*queue.channel).fd) };
        let flags = rustix::fs::fcntl_getfl(fd)?;
        rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)?;
        let entries = size.sends + size.receives;
        assert!(entries <= device.limits().completions, "the completion queue has room for every request");
        let entries = entries as c_int;
        // SAFETY: context and channel are valid; the vector is one that the device has.
        queue.completions = unsafe {
            let vector = device.next_vector();
            (library.create_cq)(device.context(), entries, ptr::null_mut(), queue.channel, vector)
        };
        if queue.completions.is_null() {
            return Err(io::Error::last_os_error());
        }
        let mut init = QueuePairInit {
            qp_context: ptr::null_mut(),
            send_cq: queue.completions,
            recv_cq: queue.completions,
            srq: ptr::null_mut(),
            cap: QueueLimits {
                max_send_wr: size.sends as u32,
                max_recv_wr: size.receives as u32,
                max_send_sge: 1,
                max_recv_sge: 1,
                max_inline_data: 0,
            },
            qp_type: verbs::QPT_RC,
            sq_sig_all: 0,
        };
        // SAFETY: the domain and the completion queue are valid; `init` outlives the call.
        queue.raw = unsafe { (library.create_qp)(device.domain(), &mut init) };
        if queue.raw.is_null() { Err(io::Error::last_os_error()) } else { Ok(queue) }
    }

    pub fn device(&self) -> &Arc<Device> {
        &self.port.device
    }

    pub fn number(&self) -> u32 {
        // SAFETY: the queue pair exists until `drop`.
        unsafe { (*self.raw).qp_num }
    }

    /// Receives may be posted from here on. `remote_access`: whether the peer may read and write registered memory.
    pub fn initialize(&mut self, remote_access: bool) -> io::Result<()> {
        let access = if remote_access { verbs::ACCESS_REMOTE_READ | verbs::ACCESS_REMOTE_WRITE } else { 0 };
        let mut attributes = QueuePairAttributes {
            qp_state: verbs::QPS_INIT,
            port_num: self.port.number,
            qp_access_flags: access,
            ..QueuePairAttributes::default()
        };
        let mask = verbs::QP_STATE | verbs::QP_PKEY_INDEX | verbs::QP_PORT | verbs::QP_ACCESS_FLAGS;
        self.modify(&mut attributes, mask)
    }

    /// Connect to the peer's end: ready to receive and to send.
    pub fn connect(&mut self, ours: &End, theirs: &End) -> io::Result<()> {
        let limits = *self.device().limits();
        let mut attributes = QueuePairAttributes {
            qp_state: verbs::QPS_RTR,
            path_mtu: ours.offer.mtu.min(theirs.offer.mtu).into(),
            dest_qp_num: theirs.qpn,
            rq_psn: theirs.psn,
            max_dest_rd_atomic: ours.reads,
            min_rnr_timer: RNR_TIMER,
            ..QueuePairAttributes::default()
        };
        attributes.ah_attr.port_num = self.port.number;
        attributes.ah_attr.dlid = theirs.offer.lid;
        if ours.offer.link == LinkLayer::Ethernet {
            attributes.ah_attr.is_global = 1;
            let (prefix, interface) = theirs.offer.gid.split_at(8);
            let number = |half: &[u8]| u64::from_ne_bytes(half.try_into().expect("eight bytes"));
            attributes.ah_attr.grh.dgid = [number(prefix), number(interface)];
            attributes.ah_attr.grh.sgid_index = self.port.gid_index;
            attributes.ah_attr.grh.hop_limit = HOPS_MAX;
        }
        let mask = verbs::QP_STATE
            | verbs::QP_AV
            | verbs::QP_PATH_MTU
            | verbs::QP_DEST_QPN
            | verbs::QP_RQ_PSN
            | verbs::QP_MAX_DEST_RD_ATOMIC
            | verbs::QP_MIN_RNR_TIMER;
        self.modify(&mut attributes, mask)?;
        let mut attributes = QueuePairAttributes {
            qp_state: verbs::QPS_RTS,
            timeout: TIMEOUT,
            retry_cnt: RETRIES,
            rnr_retry: RNR_RETRIES,
            sq_psn: ours.psn,
            max_rd_atomic: limits.reads_asked.min(theirs.reads),
            ..QueuePairAttributes::default()
        };
        let mask = verbs::QP_STATE
            | verbs::QP_TIMEOUT
            | verbs::QP_RETRY_CNT
            | verbs::QP_RNR_RETRY
            | verbs::QP_SQ_PSN
            | verbs::QP_MAX_QP_RD_ATOMIC;
        self.modify(&mut attributes, mask)
    }

    /// Stop everything. When this returns, the device works on no packet and no request of the queue pair any more, and
    /// drops what still comes for it (rule A3).
    pub fn reset(&mut self) -> io::Result<()> {
        let mut attributes =
            QueuePairAttributes { qp_state: verbs::QPS_RESET, ..QueuePairAttributes::default() };
        self.modify(&mut attributes, verbs::QP_STATE)
    }

    fn modify(&mut self, attributes: &mut QueuePairAttributes, mask: c_int) -> io::Result<()> {
        let library = self.device().library();
        // SAFETY: the queue pair exists until `drop`, and `attributes` outlives the call.
        match unsafe { (library.modify_qp)(self.raw, attributes, mask) } {
            0 => Ok(()),
            error => {
                let error = io::Error::from_raw_os_error(error.abs());
                let name = self.device().name();
                Err(io::Error::new(
                    error.kind(),
                    format!("{name}: queue pair to {}: {error}", attributes.qp_state),
                ))
            }
        }
    }

    pub fn post_receive(&mut self, id: u64, address: u64, length: u32, lkey: u32) -> io::Result<()> {
        let mut entry = ScatterEntry { address, length, lkey };
        let mut request =
            ReceiveRequest { wr_id: id, next: ptr::null_mut(), sg_list: &mut entry, num_sge: 1 };
        let mut bad = ptr::null_mut();
        // SAFETY: the queue pair exists until `drop`; the device's table of functions belongs to its context, which is
        // open; the request is copied before the call returns.
        let error = unsafe { ((*(*self.raw).context).ops.post_recv)(self.raw, &mut request, &mut bad) };
        posted(error)
    }

    /// Hand over at most [`POST_MAX`] requests, which are carried out in order.
    pub fn post_sends(&mut self, requests: &[Request]) -> io::Result<()> {
        assert!(requests.len() <= POST_MAX, "callers post in pieces");
        if requests.is_empty() {
            return Ok(());
        }
        let mut entries = [ScatterEntry::default(); POST_MAX];
        let mut raw: Vec<SendRequest> = Vec::with_capacity(requests.len());
        for (request, entry) in requests.iter().zip(&mut entries) {
            *entry = ScatterEntry { address: request.address, length: request.length, lkey: request.lkey };
            let (opcode, imm_data, remote_address, rkey) = match request.work {
                WorkKind::Send(immediate) => (verbs::WR_SEND_WITH_IMM, immediate.to_be(), 0, 0),
                WorkKind::Write { address, rkey } => (verbs::WR_RDMA_WRITE, 0, address, rkey),
                WorkKind::Read { address, rkey } => (verbs::WR_RDMA_READ, 0, address, rkey),
            };
            raw.push(SendRequest {
                wr_id: request.id,
                next: ptr::null_mut(),
                sg_list: entry,
                num_sge: c_int::from(request.length > 0),
                opcode,
                send_flags: if request.signaled { verbs::SEND_SIGNALED } else { 0 },
                imm_data,
                remote_address,
                rkey,
                rest: [0; 9],
            });
        }
        let first = raw.as_mut_ptr();
        for place in 1..raw.len() {
            // SAFETY: both entries are in the vector, which does not grow any more.
            unsafe { (*first.add(place - 1)).next = first.add(place) };
        }
        let mut bad = ptr::null_mut();
        // SAFETY: as for `post_receive`; the list ends with the last entry of the vector.
        let error = unsafe { ((*(*self.raw).context).ops.post_send)(self.raw, first, &mut bad) };
        posted(error)
    }

    /// Take what has completed. Errors: the first request that failed; nothing of the connection works any more then.
    pub fn poll(&mut self, out: &mut Vec<Completion>) -> io::Result<()> {
        let mut raw = [WorkCompletion::default(); POST_MAX];
        loop {
            // SAFETY: the completion queue exists until `drop`, and `raw` has as many entries as said.
            let count = unsafe {
                let poll = (*(*self.completions).context).ops.poll_cq;
                poll(self.completions, POST_MAX as c_int, raw.as_mut_ptr())
            };
            let Ok(count) = usize::try_from(count) else {
                return Err(io::Error::other("the completion queue cannot be read"));
            };
            for completion in &raw[..count] {
                out.push(self.completion(completion)?);
            }
            if count < POST_MAX {
                return Ok(());
            }
        }
    }

    fn completion(&self, raw: &WorkCompletion) -> io::Result<Completion> {
        if raw.status != verbs::WC_SUCCESS {
            let text = self.device().library().status_text(raw.status);
            let kind = match raw.status {
                verbs::WC_RETRY_EXC_ERR | verbs::WC_WR_FLUSH_ERR => io::ErrorKind::ConnectionReset,
                _ => io::ErrorKind::InvalidData,
            };
            return Err(io::Error::new(kind, format!("{}: {text}", self.device().name())));
        }
        if raw.opcode & verbs::WC_RECV == 0 {
            return Ok(Completion::Sent { id: raw.wr_id });
        }
        let immediate = (raw.wc_flags & verbs::WC_WITH_IMM != 0).then(|| u32::from_be(raw.imm_data));
        Ok(Completion::Received { id: raw.wr_id, length: raw.byte_len, immediate })
    }

    /// Ask for an event at the next completion. A caller that then polls and finds nothing may wait for [`QueuePair::event`].
    pub fn arm(&mut self) -> io::Result<()> {
        if self.armed {
            return Ok(());
        }
        // SAFETY: as for `poll`.
        let error = unsafe { ((*(*self.completions).context).ops.req_notify_cq)(self.completions, 0) };
        posted(error)?;
        self.armed = true;
        Ok(())
    }

    /// Readable when there is an event.
    pub fn event(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel is open until `drop`.
        unsafe { BorrowedFd::borrow_raw((*self.channel).fd) }
    }

    /// Take the event, if there is one.
    pub fn take_event(&mut self) {
        let library = self.device().library();
        let (mut queue, mut context) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the channel belongs to this completion queue alone; the event is acknowledged at once, so that
        // destroying the queue does not wait for it.
        unsafe {
            if (library.get_cq_event)(self.channel, &mut queue, &mut context) == 0 {
                (library.ack_cq_events)(queue, 1 as c_uint);
                self.armed = false;
            }
        }
    }
}

fn posted(error: c_int) -> io::Result<()> {
    // Some providers return the negative.
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error.abs())) }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        let library = self.device().library();
        // SAFETY: each object came from the library, is given back once, and after what uses it.
        let errors = unsafe {
            [
                if self.raw.is_null() { 0 } else { (library.destroy_qp)(self.raw) },
                if self.completions.is_null() { 0 } else { (library.destroy_cq)(self.completions) },
                if self.channel.is_null() { 0 } else { (library.destroy_comp_channel)(self.channel) },
            ]
        };
        if errors != [0; 3] {
            log::error!(
                "{}: destroying a queue pair failed: {errors:?}; it stays allocated",
                self.device().name()
            );
        }
    }
}

impl fmt::Debug for QueuePair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QueuePair {{ {}, {:#x} }}", self.device().name(), self.number())
    }
}
