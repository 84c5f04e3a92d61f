//! The open file as the rest of the client uses it: the machine under its lock, and the threads and services around it.
//!
//! - `reading`, `writing` (and write-back), `direct` writes, `appending`, `punch_hole`, `metadata_sync`, `attributes`,
//!   `exclusive` (truncation), `fsync`.
//!
//! Lock order: `metadata_lock`, then `machine`. Effects are carried out under the machine's lock.

mod appending;
mod attributes;
mod direct;
mod dirty_file;
mod exclusive;
mod fsync;
mod inline_migration;
mod metadata_sync;
mod punch_hole;
mod reading;
mod writing;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::io::Errno;

use super::access::Access;
use super::append_trust::AppendTrust;
use super::machine::{Effects, Event, Failed, Machine};
use super::transitions::metadata_sync::{Described, OwnChange};
use super::transitions::sessions::{AddSession, Closing, Discard, Distrust, DropSession, LoseSession};
use super::transitions::write_back::HelperEnded;
use crate::client::dirty_files::DirtyFile;
use crate::client::identity::Identity;
use crate::client::shared::Shared;
use crate::clock;
use crate::error::{Error, Kind, Result};
use crate::lock::{Condvar, Mutex, MutexGuard};
use crate::log_rate_limit::Warnings;
use crate::wire::pb;

pub use direct::{DirectWrite, write_direct};

/// A disk that is full fails every write-back of every file.
static FAILED: Warnings = Warnings::new();

pub struct OpenInode {
    id: u64,
    shared: Arc<Shared>,
    machine: Mutex<Machine>,
    changed: Condvar,
    /// The kernel may have pages of the file: a handle of a mount has been open without O_DIRECT.
    cached_by_kernel: AtomicBool,
    /// Held while metadata is sent.
    metadata_lock: Mutex<()>,
}

pub fn now_ns() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64)
}

/// Of a reply about a file that is open. Errors: ESTALE for a file that is gone: the metadata service has lost it, or
/// forgot that this client has it open.
pub fn stale<T>(reply: Result<T>) -> Result<T> {
    reply.map_err(|error| if error.kind() == Kind::NotFound { error.with_errno(Errno::STALE) } else { error })
}

impl OpenInode {
    pub fn new(shared: Arc<Shared>, inode: pb::Inode) -> Arc<OpenInode> {
        let id = inode.id;
        let machine = Machine::new(inode, shared.pool.clone(), Instant::now());
        Arc::new(OpenInode {
            id,
            shared,
            machine: Mutex::new(machine),
            changed: Condvar::new(),
            cached_by_kernel: AtomicBool::new(false),
            metadata_lock: Mutex::new(()),
        })
    }

    pub fn id(&self) -> u64 {
        self.id
    }

    /// Apply an event to the machine, and carry out its effects.
    fn step<E: Event>(self: &Arc<Self>, machine: &mut Machine, event: E) -> E::Outcome {
        let mut effects = Effects::default();
        let outcome = machine.step(event, &mut effects);
        self.carry_out(machine, effects);
        machine.assert_invariants();
        outcome
    }

    /// Apply an event to the machine, which is not locked yet.
    fn apply<E: Event>(self: &Arc<Self>, event: E) -> E::Outcome {
        self.step(&mut self.machine.lock(), event)
    }

    /// Return the file as the client's lists keep it.
    fn listed(self: &Arc<Self>) -> Weak<dyn DirtyFile> {
        let file: Weak<OpenInode> = Arc::downgrade(self);
        file
    }

    fn carry_out(self: &Arc<Self>, machine: &mut Machine, effects: Effects) {
        if effects.memory != 0 {
            self.shared.dirty_limit.adjust(0, effects.memory);
        }
        if effects.list_dirty {
            self.shared.dirty_files.add(self.listed());
        }
        if effects.list_appended {
            self.shared.list_appended(self.listed());
        }
        if let Some((from, to)) = effects.pages_follow {
            self.shared.metadata_cache.page_cache_follows(self.id, from, to);
        }
        match effects.deferred_files {
            0 => {}
            1 => self.shared.dirty_files.add_deferred(),
            -1 => self.shared.dirty_files.remove_deferred(),
            other => panic!("A2: a step changes one file, not {other}"),
        }
        if let Some((length, inline_bytes)) = effects.created_file_closed {
            self.shared.on_created_file_closed(length, inline_bytes);
        }
        for error in &effects.failures {
            FAILED.warn(format_args!("inode {}: {error}; fsync and close report it", self.id));
        }
        for _ in 0..effects.start_helpers {
            let inode = self.clone();
            if !self.shared.workers.submit(move || inode.run_helper()) {
                // The pool was stopped: threads that flush write back themselves.
                let mut none = Effects::default();
                machine.step(HelperEnded, &mut none);
            }
        }
        if effects.wake {
            self.changed.notify_all();
        }
    }

    /// Lock the machine while access is shared.
    fn lock_shared(&self) -> MutexGuard<'_, Machine> {
        let mut machine = self.machine.lock();
        while machine.access != Access::Shared {
            self.changed.wait(&mut machine);
        }
        machine
    }
}

// Views.
impl OpenInode {
    pub fn set_cached_by_kernel(&self) {
        if !self.is_cached_by_kernel() {
            self.cached_by_kernel.store(true, Ordering::Relaxed);
        }
    }

    pub fn is_cached_by_kernel(&self) -> bool {
        self.cached_by_kernel.load(Ordering::Relaxed)
    }

    /// Return the inode as this process sees it: with what was written here and is not synced yet.
    pub fn local_view(&self) -> pb::Inode {
        self.machine.lock().local_view()
    }

    /// Return attributes from elsewhere (a listing, a cache), with what was written here and is not synced yet.
    pub fn overlay_local(&self, inode: &pb::Inode) -> pb::Inode {
        self.machine.lock().overlay_local(inode)
    }

    /// Return `change` of the inode as the metadata service last described it.
    pub fn change(&self) -> u64 {
        self.machine.lock().inode.change
    }

    pub fn length(&self) -> u64 {
        self.machine.lock().length
    }

    /// Return the number of writes made here.
    pub fn writes(&self) -> u64 {
        self.machine.lock().writes
    }

    pub fn layout(&self) -> pb::Layout {
        self.machine.lock().layout
    }

    /// Return whether everything written here is acknowledged and synced.
    pub fn is_clean(&self) -> bool {
        self.machine.lock().is_clean()
    }

    /// Return the number of errors so far: a handle remembers it when it is opened and when it reports.
    pub fn errors(&self) -> u64 {
        self.machine.lock().error_count
    }

    /// Return the error that a handle which has reported `seen` of them has to report.
    pub fn error_since(&self, seen: u64) -> Option<(u64, Error)> {
        let machine = self.machine.lock();
        let reason = || machine.error.clone().expect("I5: errors are counted with a reason");
        (machine.error_count > seen).then(|| (machine.error_count, reason()))
    }

    /// Count an error that concerns every handle.
    pub fn fail(self: &Arc<Self>, error: Error) {
        self.apply(Failed(error));
    }
}

// Write sessions.
impl OpenInode {
    /// `alone_ns`: no other client had the file open for writing at some moment after that.
    pub fn add_session(self: &Arc<Self>, session: u64, identity: &Arc<Identity>, alone_ns: Option<u64>) {
        let append_trust = AppendTrust::opened(clock::now_ns(), alone_ns);
        self.apply(AddSession { session, identity: identity.clone(), append_trust });
    }

    pub fn write_sessions(&self) -> Vec<pb::WriteSession> {
        let machine = self.machine.lock();
        let session = |(session, _): &(u64, _)| pb::WriteSession { inode: self.id, session: *session };
        machine.sessions.open.iter().map(session).collect()
    }

    /// Return how often a write session was lost: a handle remembers it when it is opened, and fails when it has grown.
    pub fn lost_sessions(&self) -> u64 {
        self.machine.lock().sessions.lost
    }

    /// Take in that the metadata service has ended this session while this client was away.
    pub fn lose_session(self: &Arc<Self>, session: u64) {
        self.apply(LoseSession(session));
    }

    /// Take in that what is known may be from before this client was away.
    pub fn distrust(self: &Arc<Self>) {
        self.apply(Distrust);
    }

    pub fn drop_session(self: &Arc<Self>, session: u64) {
        self.apply(DropSession(session));
    }

    /// Begin to close the session; hold the metadata lock.
    pub fn begin_close(self: &Arc<Self>, session: u64) {
        self.apply(Closing(Some(session)));
    }

    /// Keep the session open; hold the metadata lock.
    pub fn close_refused(self: &Arc<Self>) {
        self.apply(Closing(None));
    }

    /// Return whether other handles of this client than that of `session` write the file.
    pub fn is_written_besides(&self, session: u64) -> bool {
        self.machine.lock().sessions.open.iter().any(|(known, _)| *known != session)
    }

    /// Give up what could not be sent: no handle is left.
    pub fn discard_unsynced(self: &Arc<Self>) {
        self.apply(Discard);
    }
}

// What the metadata service says of the inode.
impl OpenInode {
    /// Take in the reply to a change of attributes that this client made.
    pub fn apply_own_change(self: &Arc<Self>, inode: &pb::Inode) {
        self.apply(OwnChange { inode: inode.clone(), now: Instant::now() });
    }

    /// Take in what the metadata service said of this inode: all of it, with the bytes of a small file.
    pub fn apply_server_inode(self: &Arc<Self>, inode: &pb::Inode) {
        self.apply(Described { inode: inode.clone(), now: Instant::now() });
    }

    /// Ask the metadata service again if what it said is older than `age`. Errors: ESTALE for a file that is gone,
    /// because the service forgot that this client has it open: its chunks are gone too, and would read as zeros.
    pub fn refresh(self: &Arc<Self>, identity: &Identity, age: Duration) -> Result<()> {
        self.refresh_older(identity, |_| age)
    }

    /// As `refresh`, with the age for what is known of the file.
    fn refresh_older(
        self: &Arc<Self>,
        identity: &Identity,
        age: impl FnOnce(&Machine) -> Duration,
    ) -> Result<()> {
        let is_young = {
            let machine = self.machine.lock();
            machine.is_younger_than(age(&machine), Instant::now())
        };
        if is_young {
            return Ok(());
        }
        self.apply_server_inode(&self.ask(identity)?);
        Ok(())
    }

    /// Return the inode as the metadata service has it now.
    fn ask(&self, identity: &Identity) -> Result<pb::Inode> {
        stale(self.shared.meta.stat_open(identity, self.id))
    }
}
