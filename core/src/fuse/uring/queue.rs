//! The kernel's queue of requests of one processor, as this side knows it.
//!
//! A request comes in the queue of the processor that its program runs on, and is handed to an entry of that queue that is
//! free, or waits for an answer there: each answer makes its own entry take the request that waits longest. One that waits
//! does not get an entry that is registered meanwhile, which the kernel gives to requests that come later. So requests may
//! wait beside free entries, from a registration until an answer finds that none waits. Until then the queue is *unswept*,
//! and requests of our own (`nudge`), whose answers come at once, sweep it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::fuse::device::FuseDevice;

pub struct RingQueue {
    /// The processor, and the queue's number.
    pub number: u16,
    pub device: FuseDevice,
    /// Threads started for it that have not ended.
    pub threads: AtomicUsize,
    /// Most of them at present.
    pub limit: AtomicUsize,
    /// Entries that the kernel may give a request to.
    waiting: AtomicUsize,
    /// Requests that have come.
    arrived: AtomicU64,
    /// Entries registered, and how many of them had been when an answer found that no request waits.
    registered: AtomicU64,
    swept: AtomicU64,
    /// Threads whose processes ask something by this queue.
    pub nudging: AtomicUsize,
}

impl RingQueue {
    pub fn new(number: u16, device: FuseDevice, threads_max: usize) -> RingQueue {
        RingQueue {
            number,
            device,
            threads: AtomicUsize::new(0),
            limit: AtomicUsize::new(threads_max),
            waiting: AtomicUsize::new(0),
            arrived: AtomicU64::new(0),
            registered: AtomicU64::new(0),
            swept: AtomicU64::new(0),
            nudging: AtomicUsize::new(0),
        }
    }

    /// An entry is about to be registered.
    pub fn begin_register(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
    }

    /// The entry is registered, or was refused.
    pub fn end_register(&self, is_registered: bool) {
        if !is_registered {
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        } else {
            self.registered.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// A request has come. Whether no other entry is free.
    pub fn begin_work(&self) -> bool {
        self.arrived.fetch_add(1, Ordering::SeqCst);
        let before = self.waiting.fetch_sub(1, Ordering::SeqCst);
        assert!(before > 0, "a request comes to an entry that waits");
        before == 1
    }

    /// An answer is about to be handed over, after which its entry is free again.
    pub fn end_work(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
    }

    /// Before an answer: what to call `end_sweep` with if its entry gets no request at once. `None` if that means nothing.
    pub fn begin_sweep(&self) -> Option<u64> {
        let registered = self.registered.load(Ordering::SeqCst);
        (self.swept.load(Ordering::Relaxed) != registered).then_some(registered)
    }

    /// No request waited after so many registrations.
    pub fn end_sweep(&self, registered: u64) {
        self.swept.fetch_max(registered, Ordering::SeqCst);
    }

    pub fn is_busy(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) == 0
    }

    /// Whether requests may wait beside free entries.
    pub fn is_unswept(&self) -> bool {
        // One that waits has come after another, which is counted as soon as its thread runs.
        self.begin_sweep().is_some() && self.arrived() > 0
    }

    /// Give up looking for such requests: they wait for the next answer.
    pub fn give_up(&self) {
        self.end_sweep(self.registered.load(Ordering::SeqCst));
    }

    pub fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue() -> RingQueue {
        let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty());
        RingQueue::new(0, FuseDevice::from_fd(null.unwrap()), 4)
    }

    #[test]
    fn last_entry_in_use_is_noticed() {
        let queue = queue();
        assert!(queue.is_busy());
        (0..2).for_each(|_| queue.begin_register());
        (0..2).for_each(|_| queue.end_register(true));
        assert!(!queue.begin_work() && !queue.is_busy());
        assert!(queue.begin_work() && queue.is_busy());
        queue.end_work();
        assert!(!queue.is_busy());
        assert_eq!(queue.arrived(), 2);
    }

    #[test]
    fn queue_is_unswept_from_a_registration_beside_requests_to_an_answer_that_finds_none_waiting() {
        let queue = queue();
        queue.begin_register();
        queue.end_register(true);
        assert!(!queue.is_unswept(), "nothing can wait before the first request");
        assert!(queue.begin_work());
        let before = queue.begin_sweep().expect("requests may wait");
        queue.end_work();
        assert!(queue.is_unswept(), "this answer's entry may have got one of several");
        queue.begin_register();
        queue.end_register(true);
        queue.end_sweep(before);
        assert!(queue.is_unswept(), "the last registration came afterwards");
        queue.end_sweep(queue.begin_sweep().unwrap());
        assert!(!queue.is_unswept());
    }

    #[test]
    fn refused_entry_counts_for_nothing() {
        let queue = queue();
        queue.begin_register();
        queue.end_register(false);
        assert!(queue.is_busy() && !queue.is_unswept());
    }
}
