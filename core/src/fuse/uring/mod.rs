//! Requests over io_uring (Linux 6.14): a queue for each processor, so that a request is served where its program runs.
//!
//! Each thread has one *entry*: a ring of its own, with memory that the kernel copies one request into. It hands over an
//! answer and waits for the next request in one system call. The kernel gives a request to the entry that was free last.
//! Threads are started as on the device: the last one of a queue that stops waiting starts another, up to `threads_max` a
//! queue, and the watcher starts more while all of a queue hang. An entry stays until the session ends.
//!
//! The device is served as well: FORGET and INTERRUPT come there always, and everything does until all queues have an
//! entry, or if the kernel refuses one of the first. So a session whose rings fail continues with the device alone.
//!
//! R1  An entry is answered by the thread that waits with it next, because the kernel serves it in that thread. A request
//!     that is answered early (W1) takes its entry along to a new thread; the old one ends when its operation returns.
//! R2  The kernel writes into an entry's buffer as soon as it is answered. So an answer goes out when no one else holds the
//!     buffer; one that a file system keeps is replaced (`window`), for which the answer waits.
//! R3  Requests do not wait beside free entries for longer than a few ticks (`queue`).
//! R4  Calls that wait do not stop others (W2), for each queue.

pub mod allowed;
pub mod channel;
pub mod entry;
mod nudge;
mod queue;
mod ring;
pub mod rings;
#[cfg(test)]
mod tests;
mod window;
mod worker;

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use crate::panics::caught;

use super::shared::SessionShared;
use super::slot::{ThreadSlot, Way};
use super::watch::{THREADS_LIMIT, TICK};

use queue::RingQueue;
use rings::{Rings, THREADS_FIRST};
use worker::{RingWorker, Work};

/// Most threads of one queue; the others of its processor's programs wait.
const THREADS_MAX: usize = THREADS_LIMIT;

impl SessionShared {
    /// Start the threads, and register their entries. Errors: why requests do not come over the rings.
    pub fn start_ring_threads(self: &Arc<Self>, rings: &Rings) -> io::Result<()> {
        let (registered, outcomes) = mpsc::channel();
        let mut refusal = None;
        for index in (0..rings.queues.len() * THREADS_FIRST).map(|number| number % rings.queues.len()) {
            let registered = registered.clone();
            let report = Box::new(move |result| drop(registered.send((index, result))));
            if let Err(error) = start_thread(self, index, Work::Register(report)) {
                refusal = Some(error);
            }
        }
        drop(registered);
        let mut has_entry = vec![false; rings.queues.len()];
        for (index, result) in outcomes {
            match result {
                Ok(()) => has_entry[index] = true,
                Err(error) => refusal = Some(error),
            }
        }
        if !has_entry.contains(&false) {
            return Ok(());
        }
        // Requests wait for entries of all queues until one is refused.
        entry::call_off(&self.mounted.device)?;
        Err(refusal.unwrap_or_else(|| io::Error::other("a thread has ended")))
    }

    /// Start further threads where all hang, and have requests found that wait beside free entries. Called by the watcher
    /// once a tick.
    pub fn look_at_rings(self: &Arc<Self>) {
        let Some(rings) = self.rings_in_use() else { return };
        let mut watched = rings.watched.lock();
        for (index, (queue, seen)) in rings.queues.iter().zip(watched.iter_mut()).enumerate() {
            let arrived = queue.arrived();
            if arrived != seen.arrived || !(queue.is_busy() || queue.is_unswept()) {
                (seen.arrived, seen.since) = (arrived, Instant::now());
            } else if seen.since.elapsed() >= TICK {
                seen.since = Instant::now();
                if queue.is_busy() {
                    raise_limit(self, queue, index);
                } else {
                    nudge::nudge(self, index);
                }
            }
        }
    }

    /// No entry of the queue is free. Start another thread with one, unless there are as many as there may be.
    /// False: none was started.
    pub fn add_ring_thread(self: &Arc<Self>, index: usize) -> bool {
        let rings = self.rings.as_ref().expect("threads are added to queues");
        let queue = &rings.queues[index];
        if queue.threads.load(Ordering::Acquire) >= queue.limit.load(Ordering::Relaxed) {
            return false;
        }
        let number = queue.number;
        let report = Box::new(move |result: io::Result<()>| {
            if let Err(error) = result {
                log::warn!(
                    "processor {number}: another ring failed: {error}; continuing with those there are"
                );
            }
        });
        if let Err(error) = start_thread(self, index, Work::Register(report)) {
            log::warn!(
                "processor {number}: starting another ring thread failed: {error}; continuing without"
            );
            return false;
        }
        true
    }

    /// Answer request `unique`, which `slot`'s thread works on, with EINTR.
    pub fn answer_from_another_thread(
        self: &Arc<Self>,
        queue: usize,
        slot: &Arc<ThreadSlot>,
        unique: u64,
    ) -> io::Result<()> {
        start_thread(self, queue, Work::TakeOver(slot.clone(), unique))
    }
}

/// All threads of a queue hang: lets there be twice as many.
fn raise_limit(shared: &Arc<SessionShared>, queue: &RingQueue, index: usize) {
    let threads = queue.threads.load(Ordering::Acquire);
    let limit = queue.limit.load(Ordering::Relaxed);
    // Where there may be more threads already, starting one has failed before.
    if threads >= limit && limit < THREADS_MAX {
        queue.limit.store(THREADS_MAX.min(limit * 2), Ordering::Relaxed);
        log::info!("processor {}: all {limit} ring threads are busy; starting more", queue.number);
    }
    while queue.threads.load(Ordering::Acquire) < queue.limit.load(Ordering::Relaxed) {
        if !shared.add_ring_thread(index) {
            break;
        }
    }
}

fn start_thread(shared: &Arc<SessionShared>, index: usize, work: Work) -> io::Result<()> {
    let rings = shared.rings.as_ref().expect("threads are started when there are queues");
    let queue = &rings.queues[index];
    let slot = Arc::new(ThreadSlot::new(Way::Ring { queue: index, entry: Box::default() }));
    shared.life.lock().ring_threads += 1;
    queue.threads.fetch_add(1, Ordering::AcqRel);
    rings.slots.write().push(slot.clone());
    let number = rings.numbers.fetch_add(1, Ordering::Relaxed);
    let name = format!("fuse-ring-{}-{number}", queue.number);
    let (with, its) = (shared.clone(), slot.clone());
    let started = thread::Builder::new().name(name).spawn(move || {
        // A panic in an operation is that one's error. Elsewhere, the request may never be answered, so the session ends.
        let result = caught(|| RingWorker::new(&with, index, its.clone()).run(work));
        let result = result.unwrap_or_else(|| Err(io::Error::other("a ring thread panicked")));
        thread_ended(&with, index, &its, result);
    });
    if let Err(error) = started {
        thread_ended(shared, index, &slot, Ok(()));
        return Err(error);
    }
    Ok(())
}

fn thread_ended(shared: &SessionShared, index: usize, slot: &Arc<ThreadSlot>, result: io::Result<()>) {
    let rings = shared.rings.as_ref().expect("as when it was started");
    rings.slots.write().retain(|other| !Arc::ptr_eq(other, slot));
    rings.queues[index].threads.fetch_sub(1, Ordering::AcqRel);
    if let Err(error) = result {
        shared.fail(error);
    }
    let mut life = shared.life.lock();
    assert!(life.ring_threads > 0, "threads are counted");
    life.ring_threads -= 1;
    shared.changed.notify_all();
}
