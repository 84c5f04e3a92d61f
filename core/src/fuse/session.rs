//! A mounted file system: from mount to unmount by any party.
//!
//! Threads are started as requests need them: each waits on its own clone of the device, and the last one that stops
//! waiting starts another, up to `threads_max`, and beyond while all of them hang (`watch`). They end when the kernel says
//! that the mount is gone; those beyond `threads_max` when they are needed no more.
//!
//! S1  `FileSystem::destroy` is called exactly once, after the last operation has returned; an operation that does not
//!     return within `grace` after the end is left behind.
//! S2  A request is answered exactly once, also when an operation panics (EIO) or its program is killed (EINTR): by who
//!     takes its number out of the slot.

use std::io;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::lock::{Condvar, Mutex, RwLock};

use crate::buffer::BufferPool;
use crate::cancel::Calls;

use super::abi::{InHeader, Opcode};
use super::device::{FuseDevice, HEAD_BYTES, Received};
use super::dropper::Dropper;
use super::file_system::FileSystem;
use super::mount::Mounted;
use super::negotiate::{self, Agreement};
use super::notify::Notifier;
use super::options::SessionOptions;
use super::request::Ending;
use super::watch::{self, THREADS_LIMIT, Watch};
use super::worker::{Served, Worker};

/// A mount that is ready for its first request.
pub struct Session {
    shared: Arc<SessionShared>,
}

/// What the threads of a session share.
pub struct SessionShared {
    pub fs: Arc<dyn FileSystem>,
    pub options: SessionOptions,
    pub agreement: Agreement,
    pub notifier: Notifier,
    pub pool: BufferPool,
    /// Buffers of the threads beyond `threads_max`.
    further_pool: OnceLock<BufferPool>,
    pub watch: Watch,
    dropper: OnceLock<Dropper>,
    mounted: Mounted,
    /// Threads that wait for a request.
    waiting: AtomicUsize,
    /// Most threads at present.
    limit: AtomicUsize,
    /// One for each thread.
    slots: RwLock<Vec<Arc<ThreadSlot>>>,
    life: Mutex<Life>,
    changed: Condvar,
    destroyed: AtomicBool,
}

#[derive(Default)]
struct Life {
    threads: usize,
    /// How many of them were started beyond `threads_max`.
    further: usize,
    /// The kernel has ended the connection.
    ended: bool,
    failure: Option<io::Error>,
}

/// What one thread works on.
pub struct ThreadSlot {
    /// Where its requests come from, and are answered: clones of a device do not know one another's.
    device: FuseDevice,
    /// Number of its request until it is answered; 0 while there is none.
    unanswered: AtomicU64,
    pid: AtomicU32,
    ending: AtomicU8,
    pub calls: Arc<Calls>,
}

impl ThreadSlot {
    fn new(device: FuseDevice) -> ThreadSlot {
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
        self.pid.store(header.pid, Ordering::Relaxed);
        self.ending.store(ending as u8, Ordering::Relaxed);
        self.calls.begin(header.unique);
        self.unanswered.store(header.unique, Ordering::Release);
    }

    /// Take the right to answer request `unique`. False: it has been answered.
    pub fn claim(&self, unique: u64) -> bool {
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

impl Session {
    /// Mount `fs` and agrees with the kernel on how to talk. Programs that use the mount wait until `run`.
    pub fn mount(fs: Arc<dyn FileSystem>, options: SessionOptions) -> io::Result<Session> {
        assert!(options.request_bytes.is_power_of_two(), "requests have whole pages");
        assert!(options.threads_max > 0 && options.background_max > 0, "something must run");
        let pool = BufferPool::new(options.request_bytes, options.threads_max + options.buffers_kept_max)?;
        let mounted = Mounted::new(&options)?;
        let agreement = match greet(&mounted.device, &pool, &options) {
            Ok(agreement) => agreement,
            Err(error) => {
                let _ = mounted.unmount(true);
                return Err(error);
            }
        };
        mounted.set_read_ahead(options.read_ahead_bytes);
        let notifier = Notifier::new(Arc::downgrade(mounted.device.fd()));
        let shared = Arc::new(SessionShared {
            fs,
            agreement,
            notifier: notifier.clone(),
            pool,
            further_pool: OnceLock::new(),
            watch: Watch::default(),
            dropper: OnceLock::new(),
            mounted,
            waiting: AtomicUsize::new(0),
            limit: AtomicUsize::new(options.threads_max),
            options,
            slots: RwLock::default(),
            life: Mutex::default(),
            changed: Condvar::new(),
            destroyed: AtomicBool::new(false),
        });
        if let Err(errno) = shared.fs.init(notifier) {
            let _ = shared.mounted.unmount(true);
            return Err(errno.into());
        }
        Ok(Session { shared })
    }

    /// Serve requests until the mount is gone, then let the file system write back and end. Called once.
    pub fn run(&self) -> io::Result<()> {
        let shared = &self.shared;
        assert!(!shared.destroyed.load(Ordering::Acquire), "a session runs once");
        let device = FuseDevice::from_shared(shared.mounted.device.fd().clone());
        let watching = thread::Builder::new().name("fuse-watch".into()).spawn({
            let shared = shared.clone();
            move || watch::run(&shared)
        })?;
        let started = shared.start_thread(device);
        if started.is_ok() {
            shared.wait_for_end();
        }
        shared.watch.end();
        let watched = watching.join();
        assert!(watched.is_ok(), "watching over requests does not fail");
        started?;
        self.finish();
        match shared.life.lock().failure.take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// A handle that ends the session from elsewhere.
    pub fn handle(&self) -> SessionHandle {
        SessionHandle { shared: self.shared.clone() }
    }

    fn finish(&self) {
        if !self.shared.destroyed.swap(true, Ordering::AcqRel) {
            self.shared.fs.destroy();
        }
    }
}

impl Drop for Session {
    /// A session that never ran leaves no mount either.
    fn drop(&mut self) {
        let _ = self.shared.unmount(true);
        self.finish();
    }
}

/// Ends a session. Cheap to clone.
#[derive(Clone)]
pub struct SessionHandle {
    shared: Arc<SessionShared>,
}

impl SessionHandle {
    /// Unmount and make `run` return. Programs that still have files open may continue for `grace`, then they get
    /// errors. Idempotent; returns before the session has ended.
    pub fn unmount(&self) -> io::Result<()> {
        let shared = &self.shared;
        match shared.unmount(false) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            result => return result,
        }
        log::info!(
            "unmount: programs still use the mount; serving them for at most {:?}",
            shared.options.grace
        );
        shared.unmount(true)?;
        if !shared.wait_until_ended(shared.options.grace) {
            log::warn!(
                "unmount: programs still use the mount after {:?}; disconnecting them",
                shared.options.grace
            );
            self.abort()?;
        }
        Ok(())
    }

    /// Cut off every program that uses the mount, at once. What they have written is still written back.
    pub fn abort(&self) -> io::Result<()> {
        let _ = self.shared.unmount(true);
        if self.shared.life.lock().ended {
            return Ok(());
        }
        self.shared.mounted.abort()
    }
}

/// Answer INIT.
fn greet(device: &FuseDevice, pool: &BufferPool, options: &SessionOptions) -> io::Result<Agreement> {
    let buffer = pool.try_take().expect("a new pool has buffers");
    let mut head = [0; HEAD_BYTES];
    let length = loop {
        match device.receive(&mut head, &buffer)? {
            Received::Request(length) => break length,
            Received::Nothing => {}
            Received::Ended => return Err(io::ErrorKind::ConnectionAborted.into()),
        }
    };
    let mut message = head.to_vec();
    message.extend(buffer.slice(0..length.saturating_sub(HEAD_BYTES)).to_vec());
    message.truncate(length);
    let header = super::worker::header(&message)
        .filter(|header| header.opcode == Opcode::Init as u32)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the kernel did not begin with INIT"))?;
    match negotiate::answer(&message[size_of_val(&header)..], options) {
        Ok((out, agreement)) => {
            device.reply(header.unique, None, negotiate::bytes(&out), &[]);
            log::debug!("FUSE 7.{}, capabilities {:#x}", agreement.minor, agreement.flags);
            Ok(agreement)
        }
        Err(error) => {
            device.reply(header.unique, Some(rustix::io::Errno::PROTO), &[], &[]);
            Err(error)
        }
    }
}

impl SessionShared {
    /// Start a thread that serves `device`.
    fn start_thread(self: &Arc<Self>, device: FuseDevice) -> io::Result<()> {
        let slot = Arc::new(ThreadSlot::new(FuseDevice::from_shared(device.fd().clone())));
        let (number, is_further) = {
            let mut life = self.life.lock();
            if life.ended || life.threads >= self.limit.load(Ordering::Relaxed) {
                return Ok(());
            }
            let is_further = life.threads - life.further >= self.options.threads_max;
            life.threads += 1;
            life.further += usize::from(is_further);
            (life.threads, is_further)
        };
        self.waiting.fetch_add(1, Ordering::AcqRel);
        self.slots.write().push(slot.clone());
        let (shared, started_slot) = (self.clone(), slot.clone());
        let started = thread::Builder::new().name(format!("fuse-{number}")).spawn(move || {
            let result = Worker::new(&shared, device, slot.clone(), is_further).serve();
            shared.thread_ended(&slot, is_further, result);
        });
        if let Err(error) = started {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            self.slots.write().retain(|other| !Arc::ptr_eq(other, &started_slot));
            self.forget_thread(&mut self.life.lock(), is_further);
            return Err(error);
        }
        Ok(())
    }

    fn forget_thread(&self, life: &mut Life, is_further: bool) {
        assert!(life.threads > 0 && life.further >= usize::from(is_further), "threads are counted");
        life.threads -= 1;
        life.further -= usize::from(is_further);
        assert!(life.further <= life.threads, "further threads are threads");
        if life.further == 0 {
            self.limit.store(self.options.threads_max, Ordering::Relaxed);
        }
    }

    fn thread_ended(&self, slot: &Arc<ThreadSlot>, is_further: bool, result: io::Result<Served>) {
        self.slots.write().retain(|other| !Arc::ptr_eq(other, slot));
        let mut life = self.life.lock();
        self.forget_thread(&mut life, is_further);
        // An unmount waits for the last thread, for any reason.
        self.changed.notify_all();
        match result {
            Ok(Served::Surplus) => return,
            Ok(_) => {}
            Err(error) => {
                log::error!("reading requests failed: {error}; ending the session");
                life.failure.get_or_insert(error);
            }
        }
        life.ended = true;
    }

    /// A thread begins to work. If no other waits for the next request, one has to.
    pub fn begin_work(self: &Arc<Self>, device: &FuseDevice) {
        if self.waiting.fetch_sub(1, Ordering::SeqCst) != 1 {
            return;
        }
        if self.life.lock().threads < self.limit.load(Ordering::Relaxed) {
            self.start_another(device);
        } else {
            self.watch.all_busy();
        }
    }

    fn start_another(self: &Arc<Self>, device: &FuseDevice) {
        let started = device.try_clone().and_then(|clone| self.start_thread(clone));
        if let Err(error) = started {
            log::warn!("starting another worker thread failed: {error}; continuing with those that run");
        }
    }

    /// A thread has done its work. False: enough others wait, and it is one of those that were started beyond
    /// `threads_max`, so it ends.
    pub fn end_work(&self, is_further: bool) -> bool {
        let others = self.waiting.fetch_add(1, Ordering::AcqRel);
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

    /// Every thread hangs: lets there be twice as many.
    pub fn raise_limit(self: &Arc<Self>) {
        let most = THREADS_LIMIT.max(self.options.threads_max);
        let limit = self.limit.load(Ordering::Relaxed);
        if limit < most {
            self.limit.store(most.min(limit * 2), Ordering::Relaxed);
            log::info!(
                "all {limit} worker threads are busy; starting up to {} more",
                most.min(limit * 2) - limit
            );
            self.start_another(&self.mounted.device);
        }
    }

    pub fn dropper(&self) -> &Dropper {
        self.dropper.get_or_init(|| Dropper::start(self.notifier.clone()))
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
    fn unmount(&self, lazy: bool) -> io::Result<()> {
        if self.life.lock().ended { Ok(()) } else { self.mounted.unmount(lazy) }
    }

    fn wait_for_end(&self) {
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
    fn wait_until_ended(&self, limit: Duration) -> bool {
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
