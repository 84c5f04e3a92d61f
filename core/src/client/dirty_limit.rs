//! How many dirty bytes all files of a client may hold together.

use std::time::Instant;

use crate::lock::{Condvar, Mutex};

use crate::error::{Error, Result};

/// A bounded count of bytes; a writer that wants more waits. One request may be larger than the limit: it waits until
/// nothing else is held.
pub struct DirtyLimit {
    limit: usize,
    used: Mutex<usize>,
    freed: Condvar,
}

impl DirtyLimit {
    pub fn new(limit: usize) -> DirtyLimit {
        DirtyLimit { limit, used: Mutex::new(0), freed: Condvar::new() }
    }

    fn fits(&self, used: usize, bytes: usize) -> bool {
        assert!(bytes > 0, "a writer wants room for something");
        used == 0 || used + bytes <= self.limit
    }

    /// Take `bytes` if they fit.
    pub fn try_reserve(&self, bytes: usize) -> bool {
        let mut used = self.used.lock();
        let fits = self.fits(*used, bytes);
        *used += if fits { bytes } else { 0 };
        fits
    }

    /// Take `bytes`, waiting until they fit.
    pub fn reserve(&self, bytes: usize, deadline: Instant) -> Result<()> {
        let mut used = self.used.lock();
        while !self.fits(*used, bytes) {
            if self.freed.wait_until(&mut used, deadline).timed_out() {
                return Err(Error::timeout(
                    "write buffer full: storage nodes do not accept writes (see `luciola status`)",
                ));
            }
        }
        *used += bytes;
        Ok(())
    }

    /// Replace `reserved` bytes by what they turned out to be.
    pub fn adjust(&self, reserved: usize, change: isize) {
        let mut used = self.used.lock();
        let now = *used as isize - reserved as isize + change;
        assert!(now >= 0, "more bytes given back than were taken");
        *used = now as usize;
        self.freed.notify_all();
    }

    pub fn release(&self, bytes: usize) {
        self.adjust(bytes, 0);
    }

    pub fn used(&self) -> usize {
        *self.used.lock()
    }

    /// Return whether write-back should begin before a writer has to wait.
    pub fn is_above_high_water(&self) -> bool {
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
        let dirty_limit = Arc::new(DirtyLimit::new(100));
        dirty_limit.reserve(80, Instant::now()).unwrap();
        assert!(!dirty_limit.try_reserve(30));
        let waiter = std::thread::spawn({
            let dirty_limit = dirty_limit.clone();
            move || dirty_limit.reserve(30, Instant::now() + Duration::from_secs(60))
        });
        dirty_limit.release(80);
        waiter.join().unwrap().unwrap();
        assert_eq!(dirty_limit.used(), 30);
    }

    #[test]
    fn a_request_above_the_limit_gets_in_alone() {
        let dirty_limit = DirtyLimit::new(10);
        assert!(dirty_limit.try_reserve(50));
        assert!(!dirty_limit.try_reserve(1));
        let error = dirty_limit.reserve(1, Instant::now()).unwrap_err();
        assert_eq!(error.kind(), crate::error::Kind::Timeout);
        dirty_limit.release(50);
        assert!(dirty_limit.try_reserve(10));
    }
}
