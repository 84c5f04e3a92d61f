//! One thread with an entry: wait for a request, perform it, answer it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use crate::fuse::abi::Opcode;
use crate::fuse::body::Body;
use crate::fuse::dropper::Job;
use crate::fuse::execute::{Executed, Message, execute};
use crate::fuse::request::{self, Answer};
use crate::fuse::shared::SessionShared;
use crate::fuse::slot::ThreadSlot;

use super::entry::{Arrived, Next, Reply, RingEntry};
use super::nudge;
use super::queue::RingQueue;
use super::rings::THREADS_FIRST;

/// What a new thread does first.
pub enum Work {
    /// It offers the kernel a new entry, and reports how that ended.
    Register(Box<dyn FnOnce(io::Result<()>) + Send>),
    /// It answers request `unique` with EINTR in place of the thread of that slot, and takes its entry over.
    TakeOver(Arc<ThreadSlot>, u64),
}

pub struct RingWorker<'a> {
    shared: &'a Arc<SessionShared>,
    index: usize,
    queue: &'a RingQueue,
    slot: Arc<ThreadSlot>,
    /// Started beyond `threads_max`, because the others hung.
    is_further: bool,
    /// Bodies that are not payload, made contiguous.
    scratch: Vec<u8>,
    out: Vec<u8>,
}

impl<'a> RingWorker<'a> {
    pub fn new(shared: &'a Arc<SessionShared>, index: usize, slot: Arc<ThreadSlot>) -> Self {
        let queue = &shared.rings.as_ref().expect("threads are started when there are queues").queues[index];
        let threads_max = shared.options.threads_max.max(THREADS_FIRST);
        let is_further = queue.threads.load(Ordering::Acquire) > threads_max;
        RingWorker { shared, index, queue, slot, is_further, scratch: Vec::new(), out: Vec::new() }
    }

    /// Serve requests until there will be no more, or another thread has taken the entry.
    pub fn run(&mut self, work: Work) -> io::Result<()> {
        self.slot.calls.install();
        let entry = match work {
            Work::Register(report) => {
                let made = self.register();
                self.shared.watch.wake();
                match made {
                    Ok(entry) => {
                        report(Ok(()));
                        entry
                    }
                    Err(error) => {
                        report(Err(error));
                        return Ok(());
                    }
                }
            }
            Work::TakeOver(slot, unique) => match self.take_over(&slot, unique)? {
                Some(entry) => entry,
                None => return Ok(()),
            },
        };
        self.serve(entry)
    }

    fn register(&self) -> io::Result<RingEntry> {
        let device = self.queue.device.fd().clone();
        let mut entry = RingEntry::new(device, self.queue.number, self.shared.take_buffer(self.is_further))?;
        let length = entry.buffer().len();
        #[cfg(test)]
        let length = self.shared.rings.as_ref().expect("it has queues").length_said(length);
        // Not before: until there is a buffer the kernel has no entry to give a request to.
        self.queue.begin_register();
        let registered = entry.register(length);
        self.queue.end_register(registered.is_ok());
        registered.map(|()| entry)
    }

    /// Answer a request whose thread still works on it. `None` if that thread was faster.
    fn take_over(&self, slot: &ThreadSlot, unique: u64) -> io::Result<Option<RingEntry>> {
        if !slot.claim(unique) {
            return Ok(None);
        }
        let mut entry =
            slot.entry_in_use().take().expect("R1: an entry is in its slot while its request is worked on");
        let spare = entry.buffer().is_in_use().then(|| self.shared.take_buffer(self.is_further));
        entry.answer(unique, Reply::Error(Errno::INTR), spare)?;
        self.free(&mut entry)?;
        Ok(Some(entry))
    }

    fn serve(&mut self, mut entry: RingEntry) -> io::Result<()> {
        loop {
            let arrived = match entry.next()? {
                Next::Request(arrived) => arrived,
                Next::Ended => return Ok(()),
            };
            if self.queue.begin_work() {
                self.shared.add_ring_thread(self.index);
                self.shared.watch.wake();
            } else if self.queue.is_unswept() {
                self.shared.watch.wake();
            }
            entry = match self.perform(entry, &arrived)? {
                Some(entry) => entry,
                None => return Ok(()),
            };
            self.free(&mut entry)?;
        }
    }

    /// The entry has an answer, after which the kernel may give it a request.
    fn free(&self, entry: &mut RingEntry) -> io::Result<()> {
        self.queue.end_work();
        if let Some(registered) = self.queue.begin_sweep()
            && !entry.hand_over()?
        {
            self.queue.end_sweep(registered);
        }
        Ok(())
    }

    /// Perform a request, and put its answer into the ring. `None` if another thread has answered it and has the entry.
    fn perform(&mut self, entry: RingEntry, arrived: &Arrived) -> io::Result<Option<RingEntry>> {
        let header = &arrived.header;
        let first = &arrived.first[..arrived.first_length];
        let payload = entry.buffer().slice(0..entry.buffer().len());
        let is_data = matches!(Opcode::from_wire(header.opcode), Some(Opcode::Write | Opcode::Read));
        self.scratch.clear();
        self.scratch.extend_from_slice(first);
        if !is_data {
            self.scratch.resize(first.len() + arrived.rest_length, 0);
            payload.copy_to(&mut self.scratch[first.len()..]);
        }
        if header.opcode == Opcode::StatFs as u32
            && self.queue.nudging.load(Ordering::Acquire) > 0
            && nudge::is_ours(header.pid)
        {
            drop(payload);
            return self.answer(entry, header.unique, Err(Errno::NOSYS)).map(Some);
        }
        *self.slot.entry_in_use() = Some(entry);
        self.slot.begin(header, request::ending(header.opcode, &self.scratch));
        let body = Body(&self.scratch);
        let payload_length = if is_data { arrived.rest_length } else { 0 };
        let message = Message { header, body, payload: &payload, payload_length };
        let outcome = execute(self.shared, &self.slot, message, &mut self.out);
        drop(payload);
        let Executed::Answered(answer) = outcome else { return Ok(None) };
        let entry = self.slot.entry_in_use().take().expect("R1: who claims the request has its entry");
        self.answer(entry, header.unique, answer).map(Some)
    }

    fn answer(
        &self,
        mut entry: RingEntry,
        unique: u64,
        answer: Result<Answer, Errno>,
    ) -> io::Result<RingEntry> {
        let reply = match answer {
            Err(error) => Reply::Error(error),
            Ok(Answer::Nothing) => Reply::Value(&[]),
            Ok(Answer::Out) => Reply::Value(&self.out),
            Ok(Answer::AfterDropping(pages)) => {
                // The entry is of no use before it is answered, so the thread may wait as well.
                let (dropped, wait) = crossbeam_channel::bounded::<()>(1);
                let reply = Box::new(move || drop(dropped));
                self.shared.dropper().answer_after(Job { reply, pages });
                let _ = wait.recv();
                Reply::Value(&self.out)
            }
            Ok(Answer::Piece(piece)) if piece.as_ptr() == entry.buffer().as_ptr() => {
                Reply::Placed(piece.len())
            }
            Ok(Answer::Piece(piece)) => Reply::Pieces(vec![piece]),
            Ok(Answer::Pieces(pieces)) => Reply::Pieces(pieces),
        };
        // Pieces of the buffer itself make it one that is in use, and are copied into another.
        let spare = entry.buffer().is_in_use().then(|| self.shared.take_buffer(self.is_further));
        entry.answer(unique, reply, spare)?;
        Ok(entry)
    }
}
