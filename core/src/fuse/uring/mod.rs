//! Requests over io_uring (Linux 6.14): a queue for each processor, so that a request is served where its program runs.
//!
//! Each thread has one *entry*: a ring of its own, with memory that the kernel copies one request into. It hands over an
//! answer and waits for the next request in one system call. The kernel gives a request to the entry that was free last.
//! Threads are started as on the device: the last one of a queue that stops waiting starts another, up to `threads_max` a
//! queue, and the watcher starts more while all of a queue hang. An entry stays until the session ends.
//!
//! The device is served as well: FORGET and INTERRUPT come there always, and everything does until all queues have an
//! entry, or if the kernel refuses one of the first. So a session whose rings fail goes on with the device alone.
//!
//! R1  An entry is answered by the thread that waits with it next, because the kernel serves it in that thread. A request
//!     that is answered early (W1) takes its entry along to a new thread; the old one ends when its operation returns.
//! R2  The kernel writes into an entry's buffer as soon as it is answered. So an answer goes out when no one else holds the
//!     buffer; one that a file system keeps is replaced (`window`), for which the answer waits.
//! R3  Requests do not wait beside free entries for longer than a few ticks (`queue`).
//! R4  Calls that wait do not stop others (W2), for each queue.

mod allowed;
mod entry;
mod nudge;
mod queue;
mod ring;
#[cfg(test)]
mod tests;
mod window;
mod worker;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use crate::lock::{Mutex, RwLock};
use crate::panics::caught;

use super::device::FuseDevice;
use super::shared::{SessionShared, ThreadSlot, Way};
use super::watch::{THREADS_LIMIT, TICK};

pub use allowed::{has_io_uring, queues};
pub use entry::Entry;

use queue::Queue;
use worker::RingWorker;

/// Threads of a queue from the start, so that a request that comes beside another finds an entry.
const THREADS_FIRST: usize = 2;
/// Most threads of one queue; the others of its processor's programs wait.
const THREADS_MAX: usize = THREADS_LIMIT;

/// How requests come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Not known before the session runs.
    Unknown,
    IoUring,
    /// /dev/fuse, and why.
    Device(String),
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Transport::Unknown => f.write_str("unknown"),
            Transport::IoUring => f.write_str("io_uring"),
            Transport::Device(reason) => write!(f, "/dev/fuse ({reason})"),
        }
    }
}

/// Entries that a session has from the start.
pub fn first_entries(queues: usize) -> usize {
    queues * THREADS_FIRST
}

/// The queues of a session, and the threads that serve them.
pub struct Rings {
    pub queues: Vec<Queue>,
    pub slots: RwLock<Vec<Arc<ThreadSlot>>>,
    numbers: AtomicUsize,
    watched: Mutex<Vec<Watched>>,
    /// Of the registrations that tests have the kernel refuse, the first to be refused, and how many.
    #[cfg(test)]
    pub refused: Mutex<std::ops::Range<usize>>,
    #[cfg(test)]
    pub registrations: AtomicUsize,
}

/// What the watcher saw of a queue when it looked last.
struct Watched {
    arrived: u64,
    since: Instant,
    unswept_since: Option<Instant>,
}

impl Rings {
    pub fn new(device: &FuseDevice, queues: usize, threads_max: usize) -> io::Result<Rings> {
        let made: io::Result<Vec<Queue>> = (0..queues)
            .map(|number| Ok(Queue::new(number as u16, device.try_clone()?, threads_max.max(THREADS_FIRST))))
            .collect();
        let watched = || Watched { arrived: 0, since: Instant::now(), unswept_since: None };
        Ok(Rings {
            queues: made?,
            slots: RwLock::default(),
            numbers: AtomicUsize::new(0),
            watched: Mutex::new((0..queues).map(|_| watched()).collect()),
            #[cfg(test)]
            refused: Mutex::default(),
            #[cfg(test)]
            registrations: AtomicUsize::new(0),
        })
    }

    /// Whether a queue is to be looked at: none of its entries is free, or requests may wait beside those that are.
    pub fn need_watch(&self) -> bool {
        self.queues.iter().any(|queue| queue.is_busy() || queue.is_unswept())
    }

    /// Start the threads, and register their entries. Errors: why requests do not come over the rings.
    pub fn start(&self, shared: &Arc<SessionShared>) -> io::Result<()> {
        let (registered, outcomes) = mpsc::channel();
        let mut refusal = None;
        for index in (0..self.queues.len() * THREADS_FIRST).map(|number| number % self.queues.len()) {
            let registered = registered.clone();
            let report = Box::new(move |result| drop(registered.send((index, result))));
            if let Err(error) = start_thread(shared, index, Work::Register(report)) {
                refusal = Some(error);
            }
        }
        drop(registered);
        let mut has_entry = vec![false; self.queues.len()];
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
        entry::call_off(&shared.mounted.device)?;
        Err(refusal.unwrap_or_else(|| io::Error::other("a thread has ended")))
    }

    /// What a registration says of the length of its window. Too little has the kernel refuse it.
    #[cfg(test)]
    fn length_said(&self, length: usize) -> usize {
        let number = self.registrations.fetch_add(1, Ordering::SeqCst);
        if self.refused.lock().contains(&number) { 4096 } else { length }
    }

    /// The slot of the thread that works on request `unique`.
    pub fn slot_of(&self, unique: u64) -> Option<Arc<ThreadSlot>> {
        let slots = self.slots.read();
        slots.iter().find(|slot| slot.works_on(unique)).cloned()
    }

    /// Start further threads where all hang, and have requests found that wait beside free entries. Called by the watcher
    /// once a tick.
    pub fn look(&self, shared: &Arc<SessionShared>) {
        let mut watched = self.watched.lock();
        for (index, (queue, seen)) in self.queues.iter().zip(watched.iter_mut()).enumerate() {
            let arrived = queue.arrived();
            if !queue.is_busy() || arrived != seen.arrived {
                (seen.arrived, seen.since) = (arrived, Instant::now());
            } else if seen.since.elapsed() >= TICK {
                seen.since = Instant::now();
                raise_limit(shared, queue, index);
            }
            seen.unswept_since =
                queue.is_unswept().then(|| seen.unswept_since.unwrap_or_else(Instant::now));
            if seen.unswept_since.is_some_and(|since| since.elapsed() >= TICK) {
                nudge::nudge(shared, index);
            }
        }
    }
}

/// What a new thread does first.
enum Work {
    /// It offers the kernel a new entry, and reports how that ended.
    Register(Box<dyn FnOnce(io::Result<()>) + Send>),
    /// It answers request `unique` with EINTR in place of the thread of that slot, and takes its entry over.
    TakeOver(Arc<ThreadSlot>, u64),
}

/// All threads of a queue hang: lets there be twice as many.
fn raise_limit(shared: &Arc<SessionShared>, queue: &Queue, index: usize) {
    let threads = queue.threads.load(Ordering::Acquire);
    let limit = queue.limit.load(Ordering::Relaxed);
    // Where there may be more threads already, starting one has failed before.
    if threads >= limit && limit < THREADS_MAX {
        queue.limit.store(THREADS_MAX.min(limit * 2), Ordering::Relaxed);
        log::info!("processor {}: all {limit} ring threads are busy; starting more", queue.number);
    }
    while queue.threads.load(Ordering::Acquire) < queue.limit.load(Ordering::Relaxed) {
        if !add_thread(shared, index) {
            break;
        }
    }
}

/// No entry of the queue is free. Start another thread with one, unless there are as many as there may be.
/// False: none was started.
pub fn add_thread(shared: &Arc<SessionShared>, index: usize) -> bool {
    let queue = &shared.rings.get().expect("threads are added to queues").queues[index];
    if queue.threads.load(Ordering::Acquire) >= queue.limit.load(Ordering::Relaxed) {
        return false;
    }
    let number = queue.number;
    let report = Box::new(move |result: io::Result<()>| {
        if let Err(error) = result {
            log::warn!("processor {number}: another ring failed: {error}; continuing with those there are");
        }
    });
    if let Err(error) = start_thread(shared, index, Work::Register(report)) {
        log::warn!("processor {number}: starting another ring thread failed: {error}; continuing without");
        return false;
    }
    true
}

/// Answer request `unique`, which `slot`'s thread works on, with EINTR.
pub fn end_early(shared: &Arc<SessionShared>, slot: &Arc<ThreadSlot>, unique: u64) -> io::Result<()> {
    let Way::Ring { queue, .. } = &slot.way else { panic!("the slot of a thread with a ring") };
    start_thread(shared, *queue, Work::TakeOver(slot.clone(), unique))
}

fn start_thread(shared: &Arc<SessionShared>, index: usize, work: Work) -> io::Result<()> {
    let rings = shared.rings.get().expect("threads are started when there are queues");
    let queue = &rings.queues[index];
    let slot = Arc::new(ThreadSlot::new(Way::Ring { queue: index, entry: Mutex::default() }));
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
    let rings = shared.rings.get().expect("as when it was started");
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
