//! What the threads of a session share: the mount, the requests they work on, and their number.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::buffer::BufferPool;
use crate::cancel::Calls;
use crate::lock::{Condvar, Mutex, RwLock};

use super::abi::InHeader;
use super::device::FuseDevice;
use super::dropper::Dropper;
use super::file_system::FileSystem;
use super::mount::Mounted;
use super::negotiate::Agreement;
use super::notify::Notifier;
use super::options::SessionOptions;
use super::request::Ending;
use super::watch::{THREADS_LIMIT, Watch};

/// What the threads of a session share.
pub struct SessionShared {
    pub fs: Arc<dyn FileSystem>,
    pub options: SessionOptions,
    pub agreement: Agreement,
    pub notifier: Notifier,
    pub pool: BufferPool,
    /// Buffers of the threads beyond `threads_max`.
    pub(super) further_pool: OnceLock<BufferPool>,
    pub watch: Watch,
    pub(super) dropper: OnceLock<Dropper>,
    pub(super) mounted: Mounted,
    /// Threads that wait for a request.
    pub(super) waiting: AtomicUsize,
    /// Most threads at present.
    pub(super) limit: AtomicUsize,
    /// One for each thread.
    pub(super) slots: RwLock<Vec<Arc<ThreadSlot>>>,
    pub(super) life: Mutex<Life>,
    pub(super) changed: Condvar,
    pub(super) destroyed: AtomicBool,
}

#[derive(Default)]
pub struct Life {
    pub(super) threads: usize,
    /// How many of them were started beyond `threads_max`.
    pub(super) further: usize,
    /// The kernel has ended the connection.
    pub(super) ended: bool,
    pub(super) failure: Option<io::Error>,
}

/// What one thread works on.
pub struct ThreadSlot {
    /// Where its requests come from, and are answered: clones of a device do not know one another's.
    pub(super) device: FuseDevice,
    /// Number of its request until it is answered; 0 while there is none.
    pub(super) unanswered: AtomicU64,
    pub(super) pid: AtomicU32,
    pub(super) ending: AtomicU8,
    pub calls: Arc<Calls>,
}

impl ThreadSlot {
    pub fn new(device: FuseDevice) -> ThreadSlot {
        ThreadSlot {
            device,
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

    /// Answer request `unique` while the thread still works on it.
    pub fn end_early(&self, unique: u64, errno: Errno) {
        if self.ending() == Ending::Cancelled {
            self.calls.cancel(unique);
        }
        if self.claim(unique) {
            self.device.reply(unique, Some(errno), &[], &[]);
        }
    }
}

impl SessionShared {
    /// A thread has done its work. False: enough others wait, and it is one of those that were started beyond
    /// `threads_max`, so it ends.
    pub fn end_work(&self, is_further: bool) -> bool {
        let others = self.waiting.fetch_add(1, Ordering::AcqRel);
        assert!(others < THREADS_LIMIT.max(self.options.threads_max), "a thread waits once");
        if !is_further || others == 0 {
            return true;
        }
        let one_less = |waiting: usize| (waiting > 1).then(|| waiting - 1);
        self.waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less).is_err()
    }

    /// Whether no thread waits for a request, though there are as many as there may be.
    pub fn is_busy(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) == 0
    }

    /// The requests that threads work on, in the order of the threads.
    pub fn requests(&self) -> Vec<u64> {
        self.slots.read().iter().map(|slot| slot.unanswered.load(Ordering::Acquire)).collect()
    }

    /// The thread that works on request `unique`, if there is one.
    pub fn slot_of(&self, unique: u64) -> Option<Arc<ThreadSlot>> {
        let slots = self.slots.read();
        slots.iter().find(|slot| slot.unanswered.load(Ordering::Acquire) == unique).cloned()
    }

    pub fn dropper(&self) -> &Dropper {
        self.dropper.get_or_init(|| Dropper::start(&self.notifier, &self.fs))
    }

    /// Buffers for threads beyond `threads_max`: address space that is used only if they are started.
    pub fn further_pool(&self) -> &BufferPool {
        let count = THREADS_LIMIT.saturating_sub(self.options.threads_max);
        if let Some(pool) = self.further_pool.get() {
            return pool;
        }
        match BufferPool::new(self.options.request_bytes, count.max(1)) {
            Ok(pool) => self.further_pool.get_or_init(|| pool),
            Err(error) => {
                log::warn!(
                    "allocating buffers for further threads failed: {error}; they share those of the first ones"
                );
                &self.pool
            }
        }
    }

    /// Take the mount off, if the connection has not ended: afterwards another mount may be in the same place, with
    /// the same number.
    pub fn unmount(&self, lazy: bool) -> io::Result<()> {
        if self.life.lock().ended { Ok(()) } else { self.mounted.unmount(lazy) }
    }

    /// End the session, because it cannot be served any more.
    pub fn fail(&self, error: io::Error) {
        log::error!("serving requests failed: {error}; ending the session");
        let mut life = self.life.lock();
        life.failure.get_or_insert(error);
        life.ended = true;
        self.changed.notify_all();
    }

    pub fn wait_for_end(&self) {
        let mut life = self.life.lock();
        while !life.ended {
            self.changed.wait(&mut life);
        }
        // A connection that was cut, or that could not be read, leaves a mount without a server.
        crate::lock::MutexGuard::unlocked(&mut life, || {
            let _ = self.mounted.unmount(true);
        });
        if life.failure.is_some() {
            crate::lock::MutexGuard::unlocked(&mut life, || {
                let _ = self.mounted.abort();
            });
        }
        let deadline = Instant::now() + self.options.grace;
        while life.threads > 0 {
            if self.changed.wait_until(&mut life, deadline).timed_out() {
                log::warn!(
                    "unmount: {} operations have not returned after {:?}",
                    life.threads,
                    self.options.grace
                );
                break;
            }
        }
    }

    /// Whether the kernel has ended the connection within `limit`.
    pub fn wait_until_ended(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut life = self.life.lock();
        while !life.ended {
            if self.changed.wait_until(&mut life, deadline).timed_out() {
                return life.ended;
            }
        }
        true
    }
}
