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
use super::counters::SessionCounters;
use super::device::{FuseDevice, HEAD_BYTES, Received};
use super::file_system::FileSystem;
use super::mount::Mounted;
use super::negotiate::{self, Agreement};
use super::notify::Notifier;
use super::options::{IoUring, REQUEST_BYTES_MAX, REQUEST_BYTES_MIN, SessionOptions};
use super::shared::SessionShared;
use super::uring::allowed;
use super::uring::channel::Channel;
use super::uring::rings::{Rings, first_entries};
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
        let queues = match options.io_uring {
            IoUring::Never => Err("not asked for".to_owned()),
            IoUring::Auto | IoUring::Always => allowed::queues(),
        };
        let entries = queues.as_ref().map_or(0, |queues| first_entries(*queues));
        let buffers = options.threads_max + options.buffers_kept_max + entries;
        let pool = BufferPool::new(options.request_bytes, buffers)?;
        let mounted = Mounted::new(&options)?;
        let greeted = greet(&mounted.device, &pool, &options, queues.is_ok()).and_then(|agreement| {
            Ok((agreement, prepare_rings(&mounted.device, &options, &agreement, queues)?))
        });
        let (agreement, rings) = match greeted {
            Ok(greeted) => greeted,
            Err(error) => {
                let _ = mounted.unmount(true);
                return Err(error);
            }
        };
        let channel = OnceLock::new();
        let rings = rings.map_err(|reason| channel.set(Channel::Device(reason))).ok();
        mounted.set_read_ahead(options.read_ahead_bytes);
        let notifier = Notifier::new(Arc::downgrade(mounted.device.fd()));
        let shared = Arc::new(SessionShared {
            fs,
            agreement,
            notifier: notifier.clone(),
            counters: SessionCounters::default(),
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
            rings,
            channel,
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
            self.start_rings();
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

    fn start_rings(&self) {
        let shared = &self.shared;
        let Some(rings) = &shared.rings else { return };
        let channel = match shared.start_ring_threads(rings) {
            Ok(()) => Channel::IoUring,
            Err(error) => {
                if shared.options.io_uring == IoUring::Always {
                    shared.fail(io::Error::new(error.kind(), format!("FUSE over io_uring: {error}")));
                }
                Channel::Device(format!("a ring was refused: {error}"))
            }
        };
        log::info!("requests come by {channel}");
        shared.channel.set(channel).expect("a session starts its rings once");
        shared.watch.wake();
    }

    /// A handle that ends the session from elsewhere.
    pub fn handle(&self) -> SessionHandle {
        SessionHandle { shared: self.shared.clone() }
    }

    #[cfg(test)]
    pub(super) fn shared(&self) -> &Arc<SessionShared> {
        &self.shared
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
        self.shared.channel.get_or_init(|| Channel::Device("the session has ended".into()));
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

    /// Where requests come from. Waits until `Session::run` has found out, or ended.
    pub fn channel(&self) -> Channel {
        self.shared.channel.wait().clone()
    }

    /// What was answered.
    pub fn counters(&self) -> &SessionCounters {
        &self.shared.counters
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

/// The queues of rings, or why there are none.
fn prepare_rings(
    device: &FuseDevice,
    options: &SessionOptions,
    agreement: &Agreement,
    queues: Result<usize, String>,
) -> io::Result<Result<Rings, String>> {
    let reason = match queues {
        Ok(queues) if agreement.is_over_io_uring() => {
            return Rings::new(device, queues, options.threads_max).map(Ok);
        }
        Ok(_) => "the kernel does not offer it".to_owned(),
        Err(reason) => reason,
    };
    match options.io_uring {
        IoUring::Always => {
            Err(io::Error::new(io::ErrorKind::Unsupported, format!("FUSE over io_uring: {reason}")))
        }
        IoUring::Auto | IoUring::Never => Ok(Err(reason)),
    }
}

/// Answer INIT; `rings`: whether io_uring is wanted.
fn greet(
    device: &FuseDevice,
    pool: &BufferPool,
    options: &SessionOptions,
    rings: bool,
) -> io::Result<Agreement> {
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
    match negotiate::answer(&message[size_of_val(&header)..], options, rings) {
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
