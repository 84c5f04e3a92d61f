//! One thread with an entry: wait for a request, perform it, answer it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use rustix::io::Errno;

use crate::buffer::{Buffer, BufferPool};
use crate::fuse::abi::Opcode;
use crate::fuse::body::Body;
use crate::fuse::dropper::Job;
use crate::fuse::execute::{Message, Outcome, execute};
use crate::fuse::request::{self, Answer};
use crate::fuse::shared::{SessionShared, ThreadSlot, Way};
use crate::fuse::worker::BUFFER_WAIT;

use super::entry::{Arrived, Entry, Next, Reply};
use super::queue::Queue;
use super::{THREADS_FIRST, Work, add_thread, nudge};

pub struct RingWorker<'a> {
    shared: &'a Arc<SessionShared>,
    index: usize,
    queue: &'a Queue,
    slot: Arc<ThreadSlot>,
    /// Started beyond `threads_max`, because the others hung.
    is_further: bool,
    /// Bodies that are not payload, made contiguous.
    scratch: Vec<u8>,
    out: Vec<u8>,
}

impl<'a> RingWorker<'a> {
    pub fn new(shared: &'a Arc<SessionShared>, index: usize, slot: Arc<ThreadSlot>) -> Self {
        let queue = &shared.rings.get().expect("threads are started when there are queues").queues[index];
        let threads_max = shared.options.threads_max.max(THREADS_FIRST);
        let is_further = queue.threads.load(Ordering::Acquire) > threads_max;
        RingWorker { shared, index, queue, slot, is_further, scratch: Vec::new(), out: Vec::new() }
    }

    /// Serve requests until there will be no more, or another thread has taken the entry.
    pub fn run(&mut self, work: Work) -> io::Result<()> {
        self.slot.calls.install();
        let entry = match work {
            Work::Register(report) => {
                self.queue.begin_register();
                let made = self.register();
                self.queue.end_register(made.is_ok());
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

    fn register(&self) -> io::Result<Entry> {
        let device = self.queue.device.fd().clone();
        let mut entry = Entry::new(device, self.queue.number, self.take_buffer())?;
        let length = entry.buffer().len();
        #[cfg(test)]
        let length = self.shared.rings.get().expect("it has queues").length_said(length);
        entry.register(length)?;
        Ok(entry)
    }

    /// Answer a request whose thread still works on it. `None` if that thread was faster.
    fn take_over(&self, slot: &ThreadSlot, unique: u64) -> io::Result<Option<Entry>> {
        if !slot.claim(unique) {
            return Ok(None);
        }
        let mut entry = slot.lent().take().expect("R1: an entry is lent while its request is worked on");
        let spare = entry.buffer().is_in_use().then(|| self.take_buffer());
        entry.answer(unique, Reply::Error(Errno::INTR), spare)?;
        self.free(&mut entry)?;
        Ok(Some(entry))
    }

    fn serve(&mut self, mut entry: Entry) -> io::Result<()> {
        loop {
            let arrived = match entry.next()? {
                Next::Request(arrived) => arrived,
                Next::Ended => return Ok(()),
            };
            if self.queue.begin_work() {
                add_thread(self.shared, self.index);
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
    fn free(&self, entry: &mut Entry) -> io::Result<()> {
        self.queue.end_work();
        if let Some(registered) = self.queue.begin_sweep()
            && !entry.hand_over()?
        {
            self.queue.end_sweep(registered);
        }
        Ok(())
    }

    /// Perform a request, and put its answer into the ring. `None` if another thread has answered it and has the entry.
    fn perform(&mut self, entry: Entry, arrived: &Arrived) -> io::Result<Option<Entry>> {
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
            && self.queue.nudging.load(Ordering::Acquire)
            && nudge::is_ours(header.pid)
        {
            drop(payload);
            return self.answer(entry, header.unique, Err(Errno::NOSYS)).map(Some);
        }
        *self.slot.lent() = Some(entry);
        self.slot.begin(header, request::ending(header.opcode, &self.scratch));
        let body = Body(&self.scratch);
        let payload_length = if is_data { arrived.rest_length } else { 0 };
        let message = Message { header, body, payload: &payload, payload_length };
        let outcome = execute(self.shared, &self.slot, message, &mut self.out);
        drop(payload);
        let Outcome::Answered(answer) = outcome else { return Ok(None) };
        let entry = self.slot.lent().take().expect("R1: who claims the request has its entry");
        self.answer(entry, header.unique, answer).map(Some)
    }

    fn answer(&self, mut entry: Entry, unique: u64, answer: Result<Answer, Errno>) -> io::Result<Entry> {
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
        let spare = entry.buffer().is_in_use().then(|| self.take_buffer());
        entry.answer(unique, reply, spare)?;
        Ok(entry)
    }

    fn take_buffer(&self) -> Buffer {
        let shared = self.shared;
        if let Some(buffer) = self.is_further.then(|| shared.further_pool()).and_then(BufferPool::try_take) {
            return buffer;
        }
        loop {
            if let Some(buffer) = shared.pool.take(Instant::now() + BUFFER_WAIT) {
                return buffer;
            }
            log::warn!("no free buffer: the file system holds all {}; waiting", shared.pool.count());
        }
    }
}

impl ThreadSlot {
    /// Where the entry is while its request is worked on.
    fn lent(&self) -> crate::lock::MutexGuard<'_, Option<Entry>> {
        match &self.way {
            Way::Ring { entry, .. } => entry.lock(),
            Way::Device(_) => panic!("the slot of a thread with a ring"),
        }
    }
}
