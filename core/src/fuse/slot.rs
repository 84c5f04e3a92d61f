//! What one thread of a session works on, and where its requests come from.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use crate::cancel::Calls;
use crate::lock::{Mutex, MutexGuard};

use super::abi::InHeader;
use super::device::FuseDevice;
use super::request::Ending;
use super::uring::entry::RingEntry;

/// Where the requests of a thread come from, and are answered.
pub enum Way {
    /// Clones of a device do not know one another's.
    Device(FuseDevice),
    /// An entry of that queue, here while its request is worked on: it goes with the right to answer it.
    Ring { queue: usize, entry: Box<Mutex<Option<RingEntry>>> },
}

/// What one thread works on.
pub struct ThreadSlot {
    pub(super) way: Way,
    /// Number of its request until it is answered; 0 while there is none.
    pub(super) unanswered: AtomicU64,
    pub(super) pid: AtomicU32,
    pub(super) ending: AtomicU8,
    pub calls: Arc<Calls>,
}

impl ThreadSlot {
    pub fn new(way: Way) -> ThreadSlot {
        ThreadSlot {
            way,
            unanswered: AtomicU64::new(0),
            pid: AtomicU32::new(0),
            ending: AtomicU8::new(0),
            calls: Arc::default(),
        }
    }

    /// The thread begins to work on a request.
    pub fn begin(&self, header: &InHeader, ending: Ending) {
        assert_eq!(self.unanswered.load(Ordering::Relaxed), 0, "S2: the request before is answered");
        self.pid.store(header.pid, Ordering::Relaxed);
        self.ending.store(ending as u8, Ordering::Relaxed);
        self.calls.begin(header.unique);
        self.unanswered.store(header.unique, Ordering::Release);
    }

    /// Take the right to answer request `unique`. False: it has been answered.
    pub fn claim(&self, unique: u64) -> bool {
        assert!(unique != 0, "no request has the number 0");
        self.unanswered.compare_exchange(unique, 0, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    pub fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    pub fn ending(&self) -> Ending {
        Ending::from_number(self.ending.load(Ordering::Relaxed))
    }

    pub fn works_on(&self, unique: u64) -> bool {
        self.unanswered.load(Ordering::Acquire) == unique
    }

    /// Where the entry is while its request is worked on.
    pub fn entry_in_use(&self) -> MutexGuard<'_, Option<RingEntry>> {
        match &self.way {
            Way::Ring { entry, .. } => entry.lock(),
            Way::Device(_) => panic!("the slot of a thread with a ring"),
        }
    }
}
