//! Looking for an answer for a moment before sleeping until it comes.
//!
//! A node on this host answers a small read from its page cache within some 30 µs. To put a processor to sleep and wake it
//! costs about as much, on both sides; so a thread that waits alone looks first. It learns at once where that is in
//! vain: answers that take longer, machines whose processors are busy.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Longest that a thread looks.
const SPIN_MAX: Duration = Duration::from_micros(60);
/// Answers that are slept for after one that did not come while we looked: in vain costs 1 µs an answer.
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
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What one connection has learnt of looking.
#[derive(Debug, Default)]
pub(super) struct Spin {
    skips: u32,
}

impl Spin {
    /// Whether `has_come` turned true while we looked.
    pub(super) fn finds(&mut self, waiter: &Waiter<'_>, mut has_come: impl FnMut() -> bool) -> bool {
        if self.skips > 0 {
            self.skips -= 1;
            return false;
        }
        let begun = Instant::now();
        while waiter.is_alone() {
            if has_come() {
                return true;
            }
            if begun.elapsed() >= SPIN_MAX {
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
    fn what_comes_while_one_looks_is_found_each_time() {
        let (waiters, mut spin) = (Waiters::new(), Spin::default());
        let waiter = waiters.enter();
        for _ in 0..3 {
            assert!(spin.finds(&waiter, || true));
        }
    }

    #[test]
    fn after_looking_in_vain_many_answers_are_slept_for() {
        let (waiters, mut spin) = (Waiters::new(), Spin::default());
        let waiter = waiters.enter();
        assert!(!spin.finds(&waiter, || false));
        for _ in 0..SKIPS {
            assert!(!spin.finds(&waiter, || panic!("it looked again so soon")));
        }
        assert!(spin.finds(&waiter, || true));
    }

    #[test]
    fn only_who_waits_alone_looks() {
        let (waiters, mut spin) = (Waiters::new(), Spin::default());
        let waiter = waiters.enter();
        let other = waiters.enter();
        assert!(!spin.finds(&waiter, || panic!("another waits too")));
        drop(other);
        assert!(spin.finds(&waiter, || true));
    }
}
