//! What the threads of a session share: the mount, the requests they work on, and their number.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::buffer::{Buffer, BufferPool};
use crate::lock::{Condvar, Mutex, RwLock};

use super::counters::SessionCounters;
use super::dropper::Dropper;
use super::file_system::FileSystem;
use super::mount::Mounted;
use super::negotiate::Agreement;
use super::notify::Notifier;
use super::options::SessionOptions;
use super::slot::ThreadSlot;
use super::uring::channel::Channel;
use super::uring::rings::Rings;
use super::watch::{THREADS_LIMIT, Watch};

/// How long the session waits for a buffer before it says so. The file system holds them all: it is to write back.
const BUFFER_WAIT: Duration = Duration::from_secs(10);

/// What the threads of a session share.
pub struct SessionShared {
    pub fs: Arc<dyn FileSystem>,
    pub options: SessionOptions,
    pub agreement: Agreement,
    pub notifier: Notifier,
    pub counters: SessionCounters,
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
    /// None: all requests come from the device.
    pub(super) rings: Option<Rings>,
    /// Where requests come from, as soon as that is known.
    pub(super) channel: OnceLock<Channel>,
}

#[derive(Default)]
pub struct Life {
    /// Those that read the device.
    pub(super) threads: usize,
    /// How many of them were started beyond `threads_max`.
    pub(super) further: usize,
    /// Those that have a ring.
    pub(super) ring_threads: usize,
    /// The kernel has ended the connection.
    pub(super) ended: bool,
    pub(super) failure: Option<io::Error>,
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
        let of_device = self.slots.read().iter().find(|slot| slot.works_on(unique)).cloned();
        of_device.or_else(|| self.rings.as_ref().and_then(|rings| rings.slot_of(unique)))
    }

    /// Whether the watcher has to look again in a tick.
    pub fn needs_watch(&self) -> bool {
        self.is_busy() || self.rings_in_use().is_some_and(Rings::need_watch)
    }

    /// The rings, once it is known that requests come by them.
    pub fn rings_in_use(&self) -> Option<&Rings> {
        self.rings.as_ref().filter(|_| self.channel.get() == Some(&Channel::IoUring))
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

    /// A buffer for a payload. Waits while the file system keeps all; `is_further`: for a thread beyond `threads_max`.
    pub fn take_buffer(&self, is_further: bool) -> Buffer {
        if let Some(buffer) = is_further.then(|| self.further_pool()).and_then(BufferPool::try_take) {
            return buffer;
        }
        loop {
            if let Some(buffer) = self.pool.take(Instant::now() + BUFFER_WAIT) {
                return buffer;
            }
            log::warn!("no free buffer: the file system holds all {}; waiting", self.pool.count());
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
        while life.threads + life.ring_threads > 0 {
            if self.changed.wait_until(&mut life, deadline).timed_out() {
                log::warn!(
                    "unmount: {} operations have not returned after {:?}",
                    life.threads + life.ring_threads,
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
