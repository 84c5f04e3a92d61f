//! Whether this client may use what it has open. The cluster forgets a client that has not been heard for its session
//! timeout: it ends its write sessions and read holds, and then others may replace or remove what it writes and reads.
//!
//! - N1 Nothing is read from chains, written to them or made durable after the session timeout has passed since the last
//!   extension that succeeded was *sent*, by a clock that runs while the machine sleeps.
//! - N2 After that the client is registered again before it continues: it has asked which of its write sessions are left.
//!   Files whose sessions are not fail with ESTALE; of all others it asks the metadata service before it reads them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::clock;
use crate::error::{Error, Kind, Result};
use crate::lock::{Condvar, Mutex};

/// Raised from time to time, until the client is registered again.
pub struct Fence {
    /// By `clock`.
    open_until_ns: AtomicU64,
    waiting: Mutex<()>,
    renewed: Condvar,
}

impl Fence {
    pub fn new() -> Fence {
        Fence { open_until_ns: AtomicU64::new(u64::MAX), waiting: Mutex::new(()), renewed: Condvar::new() }
    }

    pub fn is_raised(&self) -> bool {
        clock::now_ns() >= self.open_until_ns.load(Ordering::Acquire)
    }

    /// Let the client continue until then.
    pub fn open_until(&self, until_ns: u64) {
        let _waiting = self.waiting.lock();
        self.open_until_ns.store(until_ns, Ordering::Release);
        self.renewed.notify_all();
    }

    /// Wait until the fence is open. Errors: `Unavailable` at the deadline.
    pub fn pass(&self, deadline: Instant) -> Result<()> {
        if !self.is_raised() {
            return Ok(());
        }
        let mut waiting = self.waiting.lock();
        while self.is_raised() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return Err(Error::new(
                    Kind::Unavailable,
                    "the session of this client has lapsed: the cluster manager was not reached in time; retry when it is",
                ));
            }
            self.renewed.wait_for(&mut waiting, left);
        }
        Ok(())
    }
}
