//! The queues of a session, and who serves them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use crate::fuse::device::FuseDevice;
use crate::fuse::slot::ThreadSlot;
use crate::lock::{Mutex, RwLock};

use super::queue::RingQueue;

/// Threads of a queue from the start, so that a request that comes beside another finds an entry.
pub const THREADS_FIRST: usize = 2;

/// Entries that a session has from the start.
pub fn first_entries(queues: usize) -> usize {
    queues * THREADS_FIRST
}

/// The queues of a session, and the threads that serve them.
pub struct Rings {
    pub queues: Vec<RingQueue>,
    pub slots: RwLock<Vec<Arc<ThreadSlot>>>,
    /// Threads started.
    pub numbers: AtomicUsize,
    pub watched: Mutex<Vec<Watched>>,
    /// Of the registrations that tests have the kernel refuse, the first to be refused, and how many.
    #[cfg(test)]
    pub refused: Mutex<std::ops::Range<usize>>,
    #[cfg(test)]
    pub registrations: AtomicUsize,
}

/// What the watcher saw of a queue when it looked last.
pub struct Watched {
    pub arrived: u64,
    /// Since when nothing has arrived though something may wait.
    pub since: Instant,
}

impl Rings {
    pub fn new(device: &FuseDevice, queues: usize, threads_max: usize) -> io::Result<Rings> {
        let made: io::Result<Vec<RingQueue>> = (0..queues)
            .map(|number| {
                Ok(RingQueue::new(number as u16, device.try_clone()?, threads_max.max(THREADS_FIRST)))
            })
            .collect();
        let watched = || Watched { arrived: 0, since: Instant::now() };
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

    /// The length of its window that a registration says. Too little has the kernel refuse it.
    #[cfg(test)]
    pub fn length_said(&self, length: usize) -> usize {
        let number = self.registrations.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        if self.refused.lock().contains(&number) { 4096 } else { length }
    }

    /// The slot of the thread that works on request `unique`.
    pub fn slot_of(&self, unique: u64) -> Option<Arc<ThreadSlot>> {
        let slots = self.slots.read();
        slots.iter().find(|slot| slot.works_on(unique)).cloned()
    }
}
