//! How many dirty bytes all files of a client may hold together.

use std::time::Instant;

use crate::lock::{Condvar, Mutex};

use crate::error::{Error, Result};

/// A bounded count of bytes; whoever wants more waits. One request may be larger than the limit: it waits until
/// nothing else is held.
pub struct Budget {
    limit: usize,
    used: Mutex<usize>,
    freed: Condvar,
}

impl Budget {
    pub fn new(limit: usize) -> Budget {
        Budget { limit, used: Mutex::new(0), freed: Condvar::new() }
    }

    /// Takes `bytes` if they fit.
    pub fn try_reserve(&self, bytes: usize) -> bool {
        let mut used = self.used.lock();
        if *used != 0 && *used + bytes > self.limit {
            return false;
        }
        *used += bytes;
        true
    }

    /// Takes `bytes`, waiting until they fit.
    pub fn reserve(&self, bytes: usize, deadline: Instant) -> Result<()> {
        let mut used = self.used.lock();
        while *used != 0 && *used + bytes > self.limit {
            if self.freed.wait_until(&mut used, deadline).timed_out() {
                return Err(Error::timeout("no room for dirty data: the storage nodes do not take it"));
            }
        }
        *used += bytes;
        Ok(())
    }

    /// Replaces `reserved` bytes by what they turned out to be.
    pub fn settle(&self, reserved: usize, change: isize) {
        let mut used = self.used.lock();
        let now = *used as isize - reserved as isize + change;
        assert!(now >= 0, "more bytes given back than were taken");
        *used = now as usize;
        self.freed.notify_all();
    }

    pub fn release(&self, bytes: usize) {
        self.settle(bytes, 0);
    }

    pub fn used(&self) -> usize {
        *self.used.lock()
    }

    /// Whether write-back should begin before anybody has to wait.
    pub fn is_pressed(&self) -> bool {
        self.used() > self.limit / 2
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_writer_waits_until_bytes_are_freed() {
        let budget = Arc::new(Budget::new(100));
        budget.reserve(80, Instant::now()).unwrap();
        assert!(!budget.try_reserve(30));
        let waiter = std::thread::spawn({
            let budget = budget.clone();
            move || budget.reserve(30, Instant::now() + Duration::from_secs(60))
        });
        budget.release(80);
        waiter.join().unwrap().unwrap();
        assert_eq!(budget.used(), 30);
    }

    #[test]
    fn a_request_above_the_limit_gets_in_alone() {
        let budget = Budget::new(10);
        assert!(budget.try_reserve(50));
        assert!(!budget.try_reserve(1));
        let error = budget.reserve(1, Instant::now()).unwrap_err();
        assert_eq!(error.kind(), crate::error::Kind::Timeout);
        budget.release(50);
        assert!(budget.try_reserve(10));
    }
}
