//! One thread of a session: read a request, perform it, answer it.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use zerocopy::FromBytes;

use crate::buffer::{Buffer, BufferPool};
use crate::panics::caught;

use super::abi::{InHeader, InterruptIn, Opcode};
use super::body::Body;
use super::caller::{self, Caller};
use super::device::{FuseDevice, HEAD_BYTES, Head, Received};
use super::dropper::{Job, Reply};
use super::request::{self, Answer, Context, Request};
use super::shared::{SessionShared, ThreadSlot};

/// How long the session waits for a buffer before it says so. The file system holds them all: it is to write back.
const BUFFER_WAIT: Duration = Duration::from_secs(10);

pub struct Worker<'a> {
    shared: &'a Arc<SessionShared>,
    device: FuseDevice,
    slot: Arc<ThreadSlot>,
    /// Started beyond `threads_max`, because the others hung.
    is_further: bool,
    /// Bodies that are not payload, made contiguous.
    scratch: Vec<u8>,
    out: Vec<u8>,
}

/// Why a thread has stopped serving.
pub enum Served {
    /// There will be no more requests.
    All,
    /// Enough other threads wait for them.
    Surplus,
}

/// The header at the start of a request.
pub fn header(message: &[u8]) -> Option<InHeader> {
    InHeader::read_from_prefix(message).ok().map(|(header, _)| header)
}

impl<'a> Worker<'a> {
    pub fn new(
        shared: &'a Arc<SessionShared>,
        device: FuseDevice,
        slot: Arc<ThreadSlot>,
        is_further: bool,
    ) -> Self {
        Worker { shared, device, slot, is_further, scratch: Vec::new(), out: Vec::new() }
    }

    /// Serve requests until there will be no more, or the thread is needed no more.
    pub fn serve(&mut self) -> io::Result<Served> {
        self.slot.calls.install();
        let mut head = [0; HEAD_BYTES];
        let mut buffer = self.take_buffer();
        loop {
            match self.device.receive(&mut head, &buffer)? {
                Received::Ended => return Ok(Served::All),
                Received::Nothing => {}
                Received::Request(length) => {
                    self.shared.begin_work(&self.device);
                    self.answer(&head, &buffer, length);
                    if buffer.is_in_use() {
                        // The holder of a part of it keeps it out of the pool.
                        drop(buffer);
                        buffer = self.take_buffer();
                    }
                    if !self.shared.end_work(self.is_further) {
                        return Ok(Served::Surplus);
                    }
                }
            }
        }
    }

    fn take_buffer(&self) -> Buffer {
        if let Some(buffer) =
            self.is_further.then(|| self.shared.further_pool()).and_then(BufferPool::try_take)
        {
            return buffer;
        }
        loop {
            if let Some(buffer) = self.shared.pool.take(Instant::now() + BUFFER_WAIT) {
                return buffer;
            }
            log::warn!("no free buffer: the file system holds all {}; waiting", self.shared.pool.count());
        }
    }

    /// Answer one request.
    fn answer(&mut self, head: &Head, buffer: &Buffer, length: usize) {
        let Some(header) =
            header(head).filter(|header| header.len as usize == length && length >= size_of::<InHeader>())
        else {
            log::error!("request of {length} bytes ignored: wrong header");
            return;
        };
        let in_buffer = length.saturating_sub(HEAD_BYTES);
        let body = &head[size_of::<InHeader>()..length.min(HEAD_BYTES)];
        match Opcode::from_wire(header.opcode) {
            Some(Opcode::Write | Opcode::Read) => {
                self.perform(&header, Body(body), buffer, in_buffer);
            }
            // A signal for the program that waits for another request. It needs no answer.
            Some(Opcode::Interrupt) => {
                if let Ok((input, _)) = InterruptIn::read_from_prefix(body) {
                    self.shared.watch.interrupt(input.unique);
                }
            }
            _ => {
                let mut scratch = std::mem::take(&mut self.scratch);
                scratch.clear();
                scratch.extend_from_slice(body);
                if in_buffer > 0 {
                    let start = scratch.len();
                    scratch.resize(start + in_buffer, 0);
                    buffer.copy_to(&mut scratch[start..]);
                }
                self.perform(&header, Body(&scratch), buffer, 0);
                self.scratch = scratch;
            }
        }
    }

    fn perform(&mut self, header: &InHeader, body: Body<'_>, buffer: &Buffer, payload_length: usize) {
        let shared = self.shared;
        self.slot.begin(header, request::ending(header.opcode, body.0));
        let mut request = Request {
            context: Context {
                fs: &*shared.fs,
                options: &shared.options,
                agreement: &shared.agreement,
                notifier: &shared.notifier,
            },
            caller: Caller {
                uid: header.uid,
                gid: header.gid,
                pid: header.pid,
                named_group: shared.agreement.names_groups().then(|| caller::named_group(header, body.0)),
            },
            inode: header.inode,
            opcode: header.opcode,
            body,
            payload: buffer,
            payload_length,
            opened: None,
        };
        self.out.clear();
        // A bug in one operation is one program's EIO, not the loss of the mount.
        let result = caught(|| request::perform(&mut request, &mut self.out));
        if !self.slot.claim(header.unique) {
            // Its program was killed, and the kernel knows nothing of what was opened.
            request.close_opened();
            return;
        }
        match result {
            Some(Ok(Answer::Nothing)) => {}
            Some(Ok(Answer::AfterDropping { inode, offset, length, number })) => {
                let (device, unique) = (self.device.clone(), header.unique);
                let reply = Reply { device, unique, value: std::mem::take(&mut self.out) };
                shared.dropper().answer_after(Job { reply, inode, offset, length, number });
            }
            Some(Ok(Answer::Out)) => self.device.reply(header.unique, None, &self.out, &[]),
            Some(Ok(Answer::Piece(piece))) => self.device.reply_with(header.unique, &piece),
            Some(Ok(Answer::Pieces(pieces))) => self.device.reply(header.unique, None, &[], &pieces),
            Some(Err(errno)) => self.device.reply(header.unique, Some(errno), &[], &[]),
            None => {
                log::error!(
                    "operation {} on inode {} panicked; answered with EIO",
                    header.opcode,
                    header.inode
                );
                // The kernel knows nothing of what was opened.
                request.close_opened();
                if !is_unanswered(header.opcode) {
                    self.device.reply(header.unique, Some(Errno::IO), &[], &[]);
                }
            }
        }
    }
}

fn is_unanswered(opcode: u32) -> bool {
    matches!(Opcode::from_wire(opcode), Some(Opcode::Forget | Opcode::BatchForget))
}
