//! Many reads and writes in flight at once: submit them, continue, take the results later.
//!
//! A few threads take what was submitted in batches, so that many reads or writes of many files travel in one frame to
//! each node, from and to the memory of their buffers. An eventfd is readable while there are results. The order of
//! results is unspecified, and so is that of writes which overlap.
//!
//! Invariants:
//! - G1 Entries submitted and not yet drained are at most `entries`: `submit` never waits for room: it says how many
//!   it has taken.
//! - G2 Every entry taken gives exactly one completion, also when the ring is closed, or when its batch panics.
//! - G3 A placement is kept until its completion is drained, so its memory has no other user before.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::lock::{Condvar, Mutex};
use crate::panics::caught;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use crate::buffer::Placement;
use crate::client::{File, IoMode, Shared, WriteAt, WriteOffset, write_many};
use crate::error::{Error, Result};

/// Most entries of a ring.
pub const ENTRIES_MAX: usize = 65_536;
/// Threads of a ring: each has one batch under way.
const THREADS: usize = 4;
/// Entries and bytes that one thread takes at a time; a longer write is sent in parts of so many bytes.
const BATCH_ENTRIES: usize = 64;
const BATCH_BYTES: usize = 8 << 20;
const _: () =
    assert!(THREADS > 0 && THREADS * BATCH_ENTRIES <= ENTRIES_MAX, "a full ring fills every thread's batch");

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Read,
    /// Acknowledged by the chains when it completes; durable after fsync.
    Write,
}

/// One read or write.
pub struct Entry {
    pub file: Arc<File>,
    pub offset: u64,
    pub buffer: Placement,
    pub direction: Direction,
    /// Comes back with the completion.
    pub user_data: u64,
}

pub struct Completion {
    pub user_data: u64,
    /// Bytes read or written; fewer than asked only at the end of the file.
    pub result: Result<usize>,
    /// Keeps the memory until the completion is taken (G3).
    pub buffer: Placement,
}

#[derive(Default)]
struct Queues {
    submitted: VecDeque<Entry>,
    completed: VecDeque<Completion>,
    /// Taken by a thread, without a completion yet.
    working: usize,
    /// Threads with a batch.
    busy: usize,
    closed: bool,
}

struct RingInner {
    shared: Arc<Shared>,
    /// Most entries of one batch: with a full ring, each thread has one of these.
    batch_entries: usize,
    queues: Mutex<Queues>,
    /// Entries were submitted, or the ring was closed.
    submitted: Condvar,
    completed: Condvar,
    event: OwnedFd,
}

pub struct Ring {
    inner: Arc<RingInner>,
    entries: usize,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Ring {
    /// A ring for `entries` reads and writes at once.
    pub fn new(shared: Arc<Shared>, entries: usize) -> Result<Ring> {
        if entries == 0 || entries > ENTRIES_MAX {
            return Err(Error::invalid(format!("a ring has 1 to {ENTRIES_MAX} entries, not {entries}")));
        }
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let inner = Arc::new(RingInner {
            shared,
            batch_entries: entries.div_ceil(THREADS).min(BATCH_ENTRIES),
            queues: Mutex::default(),
            submitted: Condvar::new(),
            completed: Condvar::new(),
            event,
        });
        let mut threads = Vec::new();
        for _ in 0..THREADS.min(entries) {
            let inner = inner.clone();
            threads.push(thread::Builder::new().name("luciola-ring".to_owned()).spawn(move || inner.work())?);
        }
        Ok(Ring { inner, entries, threads: Mutex::new(threads) })
    }

    pub fn entries(&self) -> usize {
        self.entries
    }

    /// Readable while there are completions to drain.
    pub fn event(&self) -> BorrowedFd<'_> {
        self.inner.event.as_fd()
    }

    /// Take as many entries as there is room for, in order; return the rest.
    ///
    /// Errors: `InvalidArgument` when the ring is closed; nothing was taken then.
    pub fn submit(&self, entries: Vec<Entry>) -> Result<Vec<Entry>> {
        let mut entries = VecDeque::from(entries);
        let mut queues = self.inner.queues.lock();
        if queues.closed {
            return Err(Error::invalid("the ring is closed").with_errno(Errno::BADF));
        }
        let in_flight = queues.submitted.len() + queues.working + queues.completed.len();
        assert!(in_flight <= self.entries, "G1: no more entries than there is room for");
        let room = self.entries - in_flight;
        let rest = entries.split_off(room.min(entries.len()));
        queues.submitted.extend(entries);
        drop(queues);
        self.inner.submitted.notify_all();
        Ok(rest.into())
    }

    /// Entries submitted and not drained yet.
    pub fn in_flight(&self) -> usize {
        let queues = self.inner.queues.lock();
        queues.submitted.len() + queues.working + queues.completed.len()
    }

    /// Wait until there are `least` completions to take, at most for `timeout` (`None`: indefinitely, and so is one that
    /// ends beyond what the clock counts); whether there are. Waits for no more than are in flight.
    pub fn wait(&self, least: usize, timeout: Option<Duration>) -> bool {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut queues = self.inner.queues.lock();
        loop {
            let pending = queues.submitted.len() + queues.working;
            if queues.completed.len() >= least || pending == 0 {
                return true;
            }
            match deadline {
                None => self.inner.completed.wait(&mut queues),
                Some(deadline) => {
                    if self.inner.completed.wait_until(&mut queues, deadline).timed_out() {
                        return false;
                    }
                }
            }
        }
    }

    /// Take up to `most` completions, without waiting.
    pub fn take(&self, most: usize) -> Vec<Completion> {
        let mut queues = self.inner.queues.lock();
        let count = most.min(queues.completed.len());
        let taken = queues.completed.drain(..count).collect();
        if queues.completed.is_empty() {
            // EAGAIN: the counter is zero already.
            let _ = rustix::io::read(&self.inner.event, &mut [0u8; 8]);
        }
        taken
    }

    /// Take up to `most` completions, waiting until there are `least` or `timeout` has passed (`None`: indefinitely).
    /// Waits for no more than are in flight.
    pub fn drain(&self, most: usize, least: usize, timeout: Option<Duration>) -> Vec<Completion> {
        self.wait(least.min(most), timeout);
        self.take(most)
    }

    /// Refuse new entries from now on. What was submitted is finished.
    pub fn refuse(&self) {
        self.inner.queues.lock().closed = true;
        self.inner.submitted.notify_all();
    }

    /// Finish what was submitted, then end the threads. Completions may still be drained. Idempotent.
    pub fn close(&self) {
        self.refuse();
        for thread in self.threads.lock().drain(..) {
            // A panic of the thread has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.close();
    }
}

impl RingInner {
    fn work(&self) {
        loop {
            let batch = {
                let mut queues = self.queues.lock();
                while queues.submitted.is_empty() {
                    if queues.closed {
                        return;
                    }
                    self.submitted.wait(&mut queues);
                }
                queues.take_batch(self.batch_entries)
            };
            self.perform(RingBatch::new(batch));
            let mut queues = self.queues.lock();
            assert!(queues.busy > 0, "a thread with a batch is counted");
            queues.busy -= 1;
        }
    }

    /// Complete every entry of `batch`, those that a panic has left over with an error (G2).
    fn perform(&self, mut batch: RingBatch) {
        let run = || {
            self.read(&mut batch);
            self.complete(&mut batch);
            self.write(&mut batch);
        };
        if caught(run).is_none() {
            log::error!("a batch of a ring panicked; what is left of it fails");
            batch.fail_rest();
        }
        self.complete(&mut batch);
        assert!(batch.entries.iter().all(Option::is_none), "G2: every entry completes");
    }

    /// Hand over what has completed of `batch`.
    fn complete(&self, batch: &mut RingBatch) {
        if batch.completions.is_empty() {
            return;
        }
        let mut queues = self.queues.lock();
        assert!(queues.working >= batch.completions.len(), "G2: each entry completes once");
        queues.working -= batch.completions.len();
        queues.completed.extend(batch.completions.drain(..));
        drop(queues);
        // Written after the queue was filled: a reader that sees the event finds the completion. It cannot overflow.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        self.completed.notify_all();
    }

    /// Read together what is read from chunks alone.
    fn read(&self, batch: &mut RingBatch) {
        let mut plans = Vec::new();
        let mut planned = Vec::new();
        for index in batch.places(|entry| entry.direction == Direction::Read) {
            let Entry { file, offset, buffer, .. } = batch.entry(index);
            let plan = file.options().read.then(|| file.inode().plan_read(*offset, buffer)).flatten();
            match plan {
                Some(plan) => {
                    plans.push(plan);
                    planned.push(index);
                }
                None => {
                    let result = file.read_at(*offset, buffer);
                    batch.complete(index, result);
                }
            }
        }
        if plans.is_empty() {
            return;
        }
        let results = self.shared.chunks.read_many(&plans);
        assert_eq!(results.len(), planned.len(), "one result for each read");
        for (index, result) in planned.into_iter().zip(results) {
            let length = batch.entry(index).buffer.len();
            batch.complete(index, result.map(|()| length));
        }
    }

    /// Send writes together, again and again until all are done.
    fn write(&self, batch: &mut RingBatch) {
        // The place of each, and how many of its bytes have been acknowledged.
        let writes = batch.places(|entry| entry.direction == Direction::Write);
        let mut left: Vec<(usize, usize)> = writes.into_iter().map(|index| (index, 0)).collect();
        while !left.is_empty() {
            let parts: Vec<WriteAt> =
                left.iter().map(|(index, written)| batch.entry(*index).part(*written)).collect();
            let outcomes = write_many(&self.shared, &parts);
            assert_eq!(outcomes.len(), parts.len(), "one outcome for each write");
            let mut waits = true;
            for (((index, written), part), outcome) in
                std::mem::take(&mut left).into_iter().zip(parts).zip(outcomes)
            {
                // What stands in the way of one, this one waits for: afterwards the others may be sent together.
                let outcome = outcome.or_else(|| std::mem::take(&mut waits).then(|| write_alone(&part)));
                let written = written + part.payload.len();
                let length = batch.entry(index).buffer.len();
                match outcome {
                    None => left.push((index, written - part.payload.len())),
                    Some(Ok(())) if written < length => left.push((index, written)),
                    Some(outcome) => {
                        assert!(written <= length, "no byte is written twice");
                        batch.complete(index, outcome.map(|()| length));
                    }
                }
            }
            self.complete(batch);
        }
    }
}

/// Entries that a thread works on.
struct RingBatch {
    /// Those without a completion.
    entries: Vec<Option<Entry>>,
    completions: Vec<Completion>,
}

impl RingBatch {
    fn new(entries: Vec<Entry>) -> RingBatch {
        let completions = Vec::with_capacity(entries.len());
        RingBatch { entries: entries.into_iter().map(Some).collect(), completions }
    }

    /// The places of entries without a completion that `is_meant`.
    fn places(&self, is_meant: impl Fn(&Entry) -> bool) -> Vec<usize> {
        (0..self.entries.len()).filter(|index| self.entries[*index].as_ref().is_some_and(&is_meant)).collect()
    }

    fn entry(&self, index: usize) -> &Entry {
        self.entries[index].as_ref().expect("G2: an entry completes once")
    }

    fn complete(&mut self, index: usize, result: Result<usize>) {
        let Entry { user_data, buffer, .. } =
            self.entries[index].take().expect("G2: an entry completes once");
        self.completions.push(Completion { user_data, result, buffer });
    }

    fn fail_rest(&mut self) {
        for index in self.places(|_| true) {
            self.complete(index, Err(Error::mistake()));
        }
    }
}

impl Entry {
    /// What to write next, after `written` bytes. An append stays whole: others may append too.
    fn part(&self, written: usize) -> WriteAt {
        let length = self.buffer.len();
        let end = if self.file.options().append { length } else { length.min(written + BATCH_BYTES) };
        assert!(written < end || length == 0, "every part brings a write further");
        WriteAt {
            file: self.file.clone(),
            offset: self.offset.saturating_add(written as u64),
            payload: self.buffer.slice(written..end),
        }
    }
}

fn write_alone(part: &WriteAt) -> Result<()> {
    let WriteAt { file, offset, payload } = part;
    file.write_through(WriteOffset::At(*offset), payload, false, IoMode::Direct).map(drop)
}

impl Queues {
    /// A share of what waits, so that threads without a batch get as much each; bounded in entries and bytes.
    fn take_batch(&mut self, entries_max: usize) -> Vec<Entry> {
        assert!(self.busy < THREADS, "a thread has one batch at a time");
        let share = self.submitted.len().div_ceil(THREADS - self.busy).min(entries_max);
        let mut batch = Vec::with_capacity(share);
        let mut bytes = 0;
        while batch.len() < share && bytes < BATCH_BYTES {
            let Some(entry) = self.submitted.pop_front() else { break };
            bytes += entry.buffer.len();
            batch.push(entry);
        }
        assert!(!batch.is_empty(), "a thread is woken for entries");
        self.working += batch.len();
        self.busy += 1;
        batch
    }
}
