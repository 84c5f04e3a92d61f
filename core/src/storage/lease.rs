//! The lease, under which this node may serve.
//!
//! A lease that is renewed before it ran out continues. One that had run out begins again only under routing that
//! is as new as the manager's when it granted it: meanwhile the manager may have changed chains without us. It also runs
//! out while the machine is suspended.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock::now_ns;
use crate::lock::Mutex;

#[derive(Debug, Default)]
pub struct Lease {
    until_ns: AtomicU64,
    pending: Mutex<Option<PendingLease>>,
}

#[derive(Clone, Copy, Debug)]
struct PendingLease {
    until_ns: u64,
    routing_version: u64,
}

impl Lease {
    pub fn holds(&self) -> bool {
        now_ns() < self.until_ns.load(Ordering::Acquire)
    }

    pub fn left_ns(&self) -> u64 {
        self.until_ns.load(Ordering::Acquire).saturating_sub(now_ns())
    }

    /// The manager lets this node serve until `until_ns`; its routing was at `routing_version` then, and ours
    /// is at `known_version`.
    pub fn set(&self, until_ns: u64, routing_version: u64, known_version: u64) {
        let mut pending = self.pending.lock();
        if self.holds() || known_version >= routing_version {
            *pending = None;
            self.until_ns.fetch_max(until_ns, Ordering::AcqRel);
        } else {
            *pending = Some(PendingLease { until_ns, routing_version });
        }
    }

    pub fn routing_known(&self, version: u64) {
        let mut pending = self.pending.lock();
        if let Some(ready) = pending.filter(|pending| version >= pending.routing_version) {
            *pending = None;
            self.until_ns.fetch_max(ready.until_ns, Ordering::AcqRel);
        }
    }

    pub fn drop_now(&self) {
        let mut pending = self.pending.lock();
        *pending = None;
        self.until_ns.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn lease_ends_by_itself_and_when_dropped() {
        let lease = Lease::default();
        assert!(!lease.holds(), "a node starts without a lease");
        lease.set(now_ns().saturating_sub(1), 0, 0);
        assert!(!lease.holds(), "a lease of the past");
        lease.set(now_ns() + 60 * SECOND, 0, 0);
        assert!(lease.holds() && lease.left_ns() > 50 * SECOND);
        lease.drop_now();
        assert!(!lease.holds());
    }

    #[test]
    fn lease_that_had_run_out_waits_for_routing() {
        let lease = Lease::default();
        lease.set(now_ns() + 60 * SECOND, 7, 6);
        assert!(!lease.holds());
        lease.routing_known(6);
        assert!(!lease.holds());
        lease.routing_known(8);
        assert!(lease.holds());
        // A renewal in time needs no newer routing.
        lease.set(now_ns() + 90 * SECOND, 99, 8);
        assert!(lease.left_ns() > 80 * SECOND);
    }

    #[test]
    fn dropped_lease_does_not_come_back_with_routing() {
        let lease = Lease::default();
        lease.set(now_ns() + 60 * SECOND, 7, 6);
        lease.drop_now();
        lease.routing_known(7);
        assert!(!lease.holds());
    }
}
