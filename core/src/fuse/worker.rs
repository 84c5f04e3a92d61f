//! One thread of a session: read a request, perform it, answer it.

use std::io;
use std::sync::Arc;

use zerocopy::FromBytes;

use crate::buffer::Buffer;

use super::abi::{InHeader, InterruptIn, Opcode};
use super::body::Body;
use super::device::{FuseDevice, HEAD_BYTES, Head, Received};
use super::dropper::Job;
use super::execute::{Executed, Message, execute};
use super::request::{self, Answer};
use super::shared::SessionShared;
use super::slot::ThreadSlot;

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
        let mut buffer = self.shared.take_buffer(self.is_further);
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
                        buffer = self.shared.take_buffer(self.is_further);
                    }
                    if !self.shared.end_work(self.is_further) {
                        return Ok(Served::Surplus);
                    }
                }
            }
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
        self.slot.begin(header, request::ending(header.opcode, body.0));
        let message = Message { header, body, payload: buffer, payload_length };
        let Executed::Answered(answer) = execute(self.shared, &self.slot, message, &mut self.out) else {
            return;
        };
        match answer {
            Ok(Answer::Nothing) => {}
            Ok(Answer::AfterDropping(pages)) => {
                let (device, unique) = (self.device.clone(), header.unique);
                let value = std::mem::take(&mut self.out);
                let reply = Box::new(move || device.reply(unique, None, &value, &[]));
                self.shared.dropper().answer_after(Job { reply, pages });
            }
            Ok(Answer::Out) => self.device.reply(header.unique, None, &self.out, &[]),
            Ok(Answer::Piece(piece)) => self.device.reply_with(header.unique, &piece),
            Ok(Answer::Pieces(pieces)) => self.device.reply(header.unique, None, &[], &pieces),
            Err(errno) => self.device.reply(header.unique, Some(errno), &[], &[]),
        }
    }
}
