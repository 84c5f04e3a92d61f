//! A mounted file system: from mount to unmount by any party.
//!
//! Threads are started as requests need them: each waits on its own clone of the device, and the last one that stops
//! waiting starts another, up to `threads_max`, and beyond while all of them hang (`watcher`). They end when the kernel says
//! that the mount is gone; those beyond `threads_max` when they are needed no more.
//!
//! S1  `FileSystem::destroy` is called exactly once, after the last operation has returned; an operation that does not
//!     return within `grace` after the end is left behind.
//! S2  A request is answered exactly once, also when an operation panics (EIO) or its program is killed (EINTR): by who
//!     takes its number out of the slot.

use std::io;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::lock::{Condvar, Mutex, RwLock};
use crate::panics::caught;

use crate::buffer::BufferPool;

use super::abi::Opcode;
use super::device::{FuseDevice, HEAD_BYTES, Received};
use super::file_system::FileSystem;
use super::mount::Mounted;
use super::negotiate::{self, Agreement};
use super::notify::Notifier;
use super::options::{REQUEST_BYTES_MAX, REQUEST_BYTES_MIN, SessionOptions};
use super::shared::SessionShared;
use super::watch::Watch;
use super::watcher;

/// A mount that is ready for its first request.
pub struct Session {
    shared: Arc<SessionShared>,
}

impl Session {
    /// Mount `fs` and agrees with the kernel on how to talk. Programs that use the mount wait until `run`.
    pub fn mount(fs: Arc<dyn FileSystem>, options: SessionOptions) -> io::Result<Session> {
        assert!(options.request_bytes.is_power_of_two(), "requests have whole pages");
        assert!(
            (REQUEST_BYTES_MIN..=REQUEST_BYTES_MAX).contains(&options.request_bytes),
            "checked by the caller"
        );
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
            move || {
                if caught(|| watcher::run(&shared)).is_none() {
                    shared.fail(io::Error::other("the watching thread panicked"));
                }
            }
        })?;
        let started = shared.start_thread(device);
        if started.is_ok() {
            shared.wait_for_end();
        }
        shared.watch.end();
        watching.join().expect("its panics are caught");
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
