//! Adaptive busy polling: poll for a reply for a moment before sleeping until it comes.
//!
//! A node on this host answers a small read from its page cache within some 30 µs. To put a processor to sleep and wake it
//! costs about as much, on both sides; so a thread that waits alone polls first. It stops at once where that is in
//! vain: replies that take longer, machines whose processors are busy.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Longest that a thread polls.
const POLL_MAX: Duration = Duration::from_micros(60);
/// Replies that are not polled for after one that did not come in time: polling in vain costs 1 µs a reply.
const SKIPS: u32 = 64;

/// How many threads wait for answers.
#[derive(Debug, Default)]
pub(super) struct Waiters(AtomicUsize);

/// One of them, until dropped.
pub(super) struct Waiter<'a>(&'a Waiters);

impl Waiters {
    pub(super) const fn new() -> Waiters {
        Waiters(AtomicUsize::new(0))
    }

    pub(super) fn enter(&self) -> Waiter<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Waiter(self)
    }
}

impl Waiter<'_> {
    /// Where several wait, the processors have better things to do.
    fn is_alone(&self) -> bool {
        self.0.0.load(Ordering::Relaxed) == 1
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let before = self.0.0.fetch_sub(1, Ordering::Relaxed);
        assert!(before > 0, "a waiter is counted");
    }
}

/// Whether polling pays on one connection.
#[derive(Debug, Default)]
pub(super) struct BusyPoll {
    skips: u32,
}

impl BusyPoll {
    /// Poll `has_come`; whether it turned true.
    pub(super) fn poll(&mut self, waiter: &Waiter<'_>, mut has_come: impl FnMut() -> bool) -> bool {
        if self.skips > 0 {
            self.skips -= 1;
            return false;
        }
        let begun = Instant::now();
        while waiter.is_alone() {
            if has_come() {
                return true;
            }
            if begun.elapsed() >= POLL_MAX {
                self.skips = SKIPS;
                break;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poll_finds_a_reply_that_comes_in_time() {
        let (waiters, mut busy_poll) = (Waiters::new(), BusyPoll::default());
        let waiter = waiters.enter();
        for _ in 0..3 {
            assert!(busy_poll.poll(&waiter, || true));
        }
    }

    #[test]
    fn poll_in_vain_skips_the_next_replies() {
        let (waiters, mut busy_poll) = (Waiters::new(), BusyPoll::default());
        let waiter = waiters.enter();
        assert!(!busy_poll.poll(&waiter, || false));
        for _ in 0..SKIPS {
            assert!(!busy_poll.poll(&waiter, || panic!("it looked again so soon")));
        }
        assert!(busy_poll.poll(&waiter, || true));
    }

    #[test]
    fn poll_is_skipped_while_another_thread_waits() {
        let (waiters, mut busy_poll) = (Waiters::new(), BusyPoll::default());
        let waiter = waiters.enter();
        let other = waiters.enter();
        assert!(!busy_poll.poll(&waiter, || panic!("another waits too")));
        drop(other);
        assert!(busy_poll.poll(&waiter, || true));
    }
}
