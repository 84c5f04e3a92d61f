//! A mounted file system: from mount to unmount, whoever unmounts it.
//!
//! Threads are started as requests need them: each waits on its own clone of the device, and the last one that stops
//! waiting starts another, up to `threads_max`. They end when the kernel says that the mount is gone.
//!
//! S1  `FileSystem::destroy` is called exactly once, after the last operation has returned; an operation that does not
//!     return within `grace` after the end is left behind.
//! S2  A request is answered exactly once, also when an operation panics (EIO).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::lock::{Condvar, Mutex, RwLock};

use crate::buffer::BufferPool;

use super::abi::Opcode;
use super::device::{Device, HEAD_BYTES, Received};
use super::file_system::FileSystem;
use super::mount::Mounted;
use super::negotiate::{self, Agreement};
use super::notify::Notifier;
use super::options::SessionOptions;
use super::worker::Worker;

/// A mount that is ready for its first request.
pub struct Session {
    shared: Arc<Shared>,
}

/// What the threads of a session share.
pub struct Shared {
    pub fs: Arc<dyn FileSystem>,
    pub options: SessionOptions,
    pub agreement: Agreement,
    pub pool: BufferPool,
    mounted: Mounted,
    /// Threads that wait for a request.
    waiting: AtomicUsize,
    /// One for each thread: what it works on, and what was interrupted of it.
    slots: RwLock<Vec<Arc<Slot>>>,
    life: Mutex<Life>,
    changed: Condvar,
    destroyed: AtomicBool,
}

#[derive(Default)]
struct Life {
    threads: usize,
    /// The kernel has ended the connection.
    ended: bool,
    failure: Option<io::Error>,
}

/// What one thread works on.
#[derive(Default)]
pub struct Slot {
    /// Number of its request; 0 while it waits.
    pub working_on: AtomicU64,
    /// Number of the last of its requests that was interrupted.
    pub interrupted: AtomicU64,
}

impl Session {
    /// Mounts `fs` and agrees with the kernel on how to talk. Programs that use the mount wait until `run`.
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
        let shared = Arc::new(Shared {
            fs,
            options,
            agreement,
            pool,
            mounted,
            waiting: AtomicUsize::new(0),
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

    /// Serves requests until the mount is gone, then lets the file system write back and end. Called once.
    pub fn run(&self) -> io::Result<()> {
        let shared = &self.shared;
        assert!(!shared.destroyed.load(Ordering::Acquire), "a session runs once");
        let device = Device::from_shared(shared.mounted.device.fd().clone());
        shared.start_thread(device)?;
        shared.wait_for_end();
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
    shared: Arc<Shared>,
}

impl SessionHandle {
    /// Unmounts and makes `run` return. Programs that still have files open may go on for `grace`, then they get
    /// errors. Idempotent; returns before the session has ended.
    pub fn unmount(&self) -> io::Result<()> {
        let shared = &self.shared;
        match shared.unmount(false) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            result => return result,
        }
        log::info!(
            "programs still use the mount: it goes on for them, for {:?} at most",
            shared.options.grace
        );
        shared.unmount(true)?;
        if !shared.wait_until_ended(shared.options.grace) {
            log::warn!("programs still use the mount after {:?}: cut off", shared.options.grace);
            self.abort()?;
        }
        Ok(())
    }

    /// Cuts off every program that uses the mount, at once. What they have written is still written back.
    pub fn abort(&self) -> io::Result<()> {
        let _ = self.shared.unmount(true);
        if self.shared.life.lock().ended {
            return Ok(());
        }
        self.shared.mounted.abort()
    }
}

/// Answers INIT.
fn greet(device: &Device, pool: &BufferPool, options: &SessionOptions) -> io::Result<Agreement> {
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

impl Shared {
    /// Starts a thread that serves `device`.
    fn start_thread(self: &Arc<Self>, device: Device) -> io::Result<()> {
        let slot = Arc::new(Slot::default());
        let number = {
            let mut life = self.life.lock();
            if life.ended || life.threads >= self.options.threads_max {
                return Ok(());
            }
            life.threads += 1;
            life.threads
        };
        self.waiting.fetch_add(1, Ordering::AcqRel);
        self.slots.write().push(slot.clone());
        let shared = self.clone();
        let started = thread::Builder::new().name(format!("fuse-{number}")).spawn(move || {
            let result = Worker::new(&shared, device, slot.clone()).serve();
            shared.thread_ended(&slot, result);
        });
        if let Err(error) = started {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            self.life.lock().threads -= 1;
            return Err(error);
        }
        Ok(())
    }

    fn thread_ended(&self, slot: &Arc<Slot>, result: io::Result<()>) {
        self.slots.write().retain(|other| !Arc::ptr_eq(other, slot));
        let mut life = self.life.lock();
        life.threads -= 1;
        life.ended = true;
        if let Err(error) = result {
            log::error!("reading requests failed: {error}");
            life.failure.get_or_insert(error);
        }
        self.changed.notify_all();
    }

    /// A thread begins to work. If nobody else waits for the next request, somebody should.
    pub fn begin_work(self: &Arc<Self>, device: &Device) {
        if self.waiting.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        if self.life.lock().threads < self.options.threads_max {
            let started = device.try_clone().and_then(|clone| self.start_thread(clone));
            if let Err(error) = started {
                log::warn!("no further thread: {error}");
            }
        }
    }

    pub fn end_work(&self) {
        self.waiting.fetch_add(1, Ordering::AcqRel);
    }

    /// Marks request `unique` as interrupted. False if no thread works on it (yet).
    pub fn interrupt(&self, unique: u64) -> bool {
        for slot in self.slots.read().iter() {
            if slot.working_on.load(Ordering::Acquire) == unique {
                slot.interrupted.store(unique, Ordering::Release);
                return true;
            }
        }
        false
    }

    /// Takes the mount off, if the connection has not ended: afterwards another mount may be in the same place, with
    /// the same number.
    fn unmount(&self, lazy: bool) -> io::Result<()> {
        if self.life.lock().ended { Ok(()) } else { self.mounted.unmount(lazy) }
    }

    fn wait_for_end(&self) {
        let mut life = self.life.lock();
        while !life.ended {
            self.changed.wait(&mut life);
        }
        // A connection that was cut, or that could not be read, leaves a mount that nobody serves.
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
                    "{} operations have not returned {:?} after the end",
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
