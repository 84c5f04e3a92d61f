//! A bound on bytes in memory, shared by all connections of a server.

use std::sync::Arc;
use std::time::Instant;

use crate::lock::{Condvar, Mutex};

#[derive(Debug)]
pub(super) struct Budget {
    total: usize,
    free: Mutex<usize>,
    freed: Condvar,
}

impl Budget {
    pub(super) fn new(bytes: usize) -> Budget {
        Budget { total: bytes, free: Mutex::new(bytes), freed: Condvar::new() }
    }

    /// Reserve `bytes`, waiting until `deadline`; `None` if so much did not become free by then.
    pub(super) fn take(self: &Arc<Budget>, bytes: usize, deadline: Instant) -> Option<Share> {
        let mut free = self.free.lock();
        while *free < bytes {
            if self.freed.wait_until(&mut free, deadline).timed_out() && *free < bytes {
                return None;
            }
        }
        assert!(*free <= self.total, "bytes are given back once");
        *free -= bytes;
        Some(Share { budget: self.clone(), bytes })
    }
}

/// Reserved bytes, given back on drop.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut free = self.budget.free.lock();
        *free += self.bytes;
        assert!(*free <= self.budget.total, "bytes are given back once");
        drop(free);
        self.budget.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_taken_is_missing_until_it_is_dropped() {
        let budget = Arc::new(Budget::new(100));
        let share = budget.take(80, Instant::now()).unwrap();
        assert!(budget.take(30, Instant::now() + Duration::from_millis(5)).is_none());
        let waiter = std::thread::spawn({
            let budget = budget.clone();
            move || budget.take(100, Instant::now() + Duration::from_secs(60)).is_some()
        });
        drop(share);
        assert!(waiter.join().unwrap());
        assert!(budget.take(101, Instant::now()).is_none());
    }
}
