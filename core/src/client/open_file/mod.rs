//! What this process knows of one open file, however many handles it has: the newest bytes and the newest length.
//!
//! - `state`: what is known, under the inode's lock.
//! - `reading`, `writing` (and write-back), `direct` writes, `appending`, `zeroing`, `metadata` the metadata service, `changes` of attributes and
//!   length, `durability` (fsync).
//!
//! Invariants:
//! - I1 A byte that was written is in `inline`, in `dirty`, in a flight, or acknowledged by the chains.
//! - I2 At most one flight of a chunk is under way, so its updates reach the chain in order.
//! - I3 A length is told to the metadata service only after the bytes below it were acknowledged.
//! - I4 While `exclusive` is set no flight is under way, the file is not leaving its inode, and nobody writes.
//! - I5 The first error of a write-back is told to every handle that was open then, at its next fsync and close.
//! - I6 While there is `inline`, nothing flies: a file with dirty bytes besides leaves its inode first (departure.rs).

mod appending;
mod changes;
mod direct;
mod durability;
mod metadata_sync;
mod punch_hole;
mod reading;
mod state;
mod writing;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::io::Errno;

use crate::lock::{Condvar, Mutex, MutexGuard};

use appending::AppendTrust;
pub(super) use appending::WRITE_BACK;
pub use direct::{DirectWrite, write_direct};
use durability::ChainSyncs;

use super::deferred_setattr::DeferredSetattr;
use super::dirty::{Dirty, DirtyChunk};
use super::inline::Inline;
use super::meta::Identity;
use super::shared::Shared;
use crate::error::{Error, Kind, Result};
use crate::wire::pb;

/// Where a write goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteOffset {
    At(u64),
    Append,
}

/// How a write or read treats this client's buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoMode {
    /// Bytes may wait here.
    Buffered,
    /// Acknowledged by the chains before the call returns; reads see what others wrote.
    Direct,
}

/// Whose changes an inode shows that the metadata service has answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// Of what was not known before, exactly one change that this client has made.
    Own,
    /// Perhaps those of others.
    Any,
}

pub struct State {
    /// As last told by the metadata service.
    inode: pb::Inode,
    /// When; `None`: this client may have been away since.
    described: Option<Instant>,
    layout: pb::Layout,
    /// What a reader here sees.
    length: u64,
    /// End of what the chains have acknowledged since the last truncation.
    acknowledged: u64,
    /// Counts what the chains have acknowledged.
    ack_count: u64,
    /// A length that counts only if the bytes below it were not cut away: the chains are to be asked.
    unverified_size: Option<pb::LengthHint>,
    /// The bytes in the inode. With `dirty` bytes besides, those are newer, and the file has outgrown it.
    inline: Option<Inline>,
    /// A thread is moving the file out of its inode.
    migrating: bool,
    dirty: Dirty,
    in_flight: BTreeMap<u32, Arc<DirtyChunk>>,
    /// Counts writes.
    writes: u64,
    /// Time of the last write that the metadata service was not told.
    mtime_ns: Option<i64>,
    /// Changed by a user who may not keep the set-id bits, which the metadata service has not heard of.
    clears_set_id: bool,
    /// Made here and not closed yet: attributes may wait.
    fresh: bool,
    deferred: Option<DeferredSetattr>,
    /// The metadata service is to be told of a length, a time or inline bytes.
    unsynced: bool,
    /// Counts what was told to it, or changed there, without asking for durability, and how much of that was followed
    /// by something durable.
    undurable: u64,
    durable: u64,
    /// Bytes that the chains have acknowledged to any client and that may not be on their disks yet.
    volatile: Option<Range<u64>>,
    chain_syncs: ChainSyncs,
    errors: u64,
    error: Option<Error>,
    helpers: usize,
    exclusive: bool,
    /// How many write sessions the metadata service has ended by itself.
    lost_sessions: u64,
    /// Write sessions of this client, and who opened them.
    sessions: Vec<(u64, Arc<Identity>)>,
    /// The one of them whose close is under way: if the metadata service does not know it any more, it has closed it, or
    /// its answer to the close says so.
    closing_session: Option<u64>,
    append_trust: AppendTrust,
    /// In the client's list of files with appended bytes.
    append_listed: bool,
    /// In the client's list of files with dirty bytes.
    listed: bool,
}

pub struct OpenInode {
    id: u64,
    shared: Arc<Shared>,
    state: Mutex<State>,
    changed: Condvar,
    /// The kernel may have pages of the file: a handle of a mount has been open without O_DIRECT.
    cached_by_kernel: AtomicBool,
    /// Held by whoever tells the metadata service.
    metadata_lock: Mutex<()>,
}

pub fn now_ns() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64)
}

impl OpenInode {
    pub fn new(shared: Arc<Shared>, inode: pb::Inode) -> Arc<OpenInode> {
        let layout = inode.layout.unwrap_or_default();
        let inline = inline_of(&inode);
        let state = State {
            described: Some(Instant::now()),
            layout,
            length: inode.length,
            acknowledged: 0,
            ack_count: 0,
            unverified_size: None,
            inline,
            migrating: false,
            dirty: Dirty::default(),
            in_flight: BTreeMap::new(),
            writes: 0,
            mtime_ns: None,
            clears_set_id: false,
            fresh: false,
            deferred: None,
            unsynced: false,
            undurable: 1,
            durable: 0,
            volatile: durability::volatile_at_open(&inode),
            chain_syncs: ChainSyncs::default(),
            errors: 0,
            error: None,
            helpers: 0,
            exclusive: false,
            lost_sessions: 0,
            sessions: Vec::new(),
            closing_session: None,
            append_trust: AppendTrust::default(),
            append_listed: false,
            listed: false,
            inode,
        };
        let id = state.inode.id;
        Arc::new(OpenInode {
            id,
            shared,
            state: Mutex::new(state),
            changed: Condvar::new(),
            cached_by_kernel: AtomicBool::new(false),
            metadata_lock: Mutex::new(()),
        })
    }

    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn set_cached_by_kernel(&self) {
        if !self.is_cached_by_kernel() {
            self.cached_by_kernel.store(true, Ordering::Relaxed);
        }
    }

    pub fn is_cached_by_kernel(&self) -> bool {
        self.cached_by_kernel.load(Ordering::Relaxed)
    }

    /// The inode as this process sees it: with what was written here and not yet told.
    pub fn local_view(&self) -> pb::Inode {
        self.state.lock().local_view()
    }

    /// Attributes from elsewhere (a listing, a cache), with what was written here and not told yet. The bytes of small
    /// files do not come with them, so nothing is taken in.
    pub fn overlay_local(&self, inode: &pb::Inode) -> pb::Inode {
        let state = self.state.lock();
        if inode.change == state.inode.change && inode.others_write {
            // What others write changes the length before they report it.
            let seen = state.local_view();
            return pb::Inode { length: seen.length.max(inode.length), ..seen };
        }
        if inode.change <= state.inode.change {
            return state.local_view();
        }
        let unverified_size = state.unverified_size.map_or(0, |hint| hint.length);
        let length = inode.length.max(state.acknowledged).max(unverified_size).max(state.waiting_end());
        state.with_times(pb::Inode { length, ..inode.clone() })
    }

    /// `change` of the inode if nothing was written here since it was told.
    pub fn clean_change(&self) -> Option<u64> {
        let state = self.state.lock();
        state.is_clean().then_some(state.inode.change)
    }

    /// `change` of the inode as last told by the metadata service.
    pub fn change(&self) -> u64 {
        self.state.lock().inode.change
    }

    pub fn length(&self) -> u64 {
        self.state.lock().length
    }

    /// Counts writes made here.
    pub fn writes(&self) -> u64 {
        self.state.lock().writes
    }

    pub fn layout(&self) -> pb::Layout {
        self.state.lock().layout
    }

    /// Number of errors so far: a handle remembers it when it is opened and when it reports.
    pub fn errors(&self) -> u64 {
        self.state.lock().errors
    }

    /// The error that a handle which has seen `seen` of them is still to be told.
    pub fn error_since(&self, seen: u64) -> Option<(u64, Error)> {
        let state = self.state.lock();
        (state.errors > seen)
            .then(|| (state.errors, state.error.clone().expect("errors are counted with a reason")))
    }

    /// `alone_ns`: no other client had the file open for writing at some moment after that.
    pub fn add_session(&self, session: u64, identity: &Arc<Identity>, alone_ns: Option<u64>) {
        let state = &mut *self.state.lock();
        if state.sessions.is_empty() {
            state.append_trust = AppendTrust::opened(alone_ns);
        }
        state.sessions.push((session, identity.clone()));
    }

    pub fn write_sessions(&self) -> Vec<pb::WriteSession> {
        let state = self.state.lock();
        let session = |(session, _): &(u64, _)| pb::WriteSession { inode: self.id, session: *session };
        state.sessions.iter().map(session).collect()
    }

    /// How often a write session was lost: a handle remembers it when it is opened, and fails when it has grown.
    pub fn lost_sessions(&self) -> u64 {
        self.state.lock().lost_sessions
    }

    /// The metadata service has ended this session while this client was away. Others may have cut or replaced the
    /// file since, so what waits here goes nowhere, and all handles that write fail.
    pub fn lose_session(&self, session: u64) {
        let mut state = self.state.lock();
        let is_known = state.sessions.iter().any(|(known, _)| *known == session);
        if !is_known || state.closing_session == Some(session) {
            return;
        }
        state.sessions.clear();
        state.lost_sessions += 1;
        self.discard_dirty(&mut state);
        state.acknowledged = 0;
        state.unverified_size = None;
        state.described = None;
        state.fail(lost());
        self.changed.notify_all();
    }

    /// What is known may be from before this client was away.
    pub fn distrust(&self) {
        self.state.lock().described = None;
    }

    pub fn drop_session(&self, session: u64) {
        let mut state = self.state.lock();
        state.sessions.retain(|(known, _)| *known != session);
        state.closing_session.take_if(|closing_session| *closing_session == session);
    }

    /// The session is about to be closed; hold `metadata`.
    pub fn begin_close(&self, session: u64) {
        self.state.lock().closing_session = Some(session);
    }

    /// The session stays open; hold `metadata`.
    pub fn close_refused(&self) {
        self.state.lock().closing_session = None;
    }

    /// Whether other handles of this client than that of `session` write the file.
    pub fn is_written_besides(&self, session: u64) -> bool {
        self.state.lock().sessions.iter().any(|(known, _)| *known != session)
    }

    /// Whether everything written here is acknowledged and told.
    pub fn is_clean(&self) -> bool {
        self.state.lock().is_clean()
    }

    /// Takes in the reply to a change of attributes that this client made. If it was the only change since what is
    /// known, the bytes of a small file are still those that what is waiting here was made from.
    pub fn apply_own_change(&self, inode: &pb::Inode) {
        let mut state = self.state.lock();
        let known = state.inode.change;
        let source = state.source_of(inode, true);
        if source == Source::Own {
            self.shared.metadata_cache.page_cache_follows(self.id, known, inode.change);
            if let Some(inline) = &mut state.inline
                && inline.base == known
            {
                inline.base = inode.change;
            }
        }
        state.undurable += 1;
        self.apply_inode(&mut state, inode.clone(), source);
    }

    /// Takes in what the metadata service just said of this inode: all of it, with the bytes of a small file.
    pub fn apply_server_inode(&self, inode: &pb::Inode) {
        let mut state = self.state.lock();
        self.apply_inode(&mut state, inode.clone(), Source::Any);
    }

    fn apply_inode(&self, state: &mut State, inode: pb::Inode, source: Source) {
        // An answer without the file's bytes says nothing of them: it is asked for again when it is needed.
        if inode.id != self.id || inode.bytes_withheld {
            return;
        }
        let is_changed = inode.change > state.inode.change && source == Source::Any;
        let others_wrote = inode.others_write || is_changed;
        let is_newer = inode.change >= state.inode.change;
        if is_newer {
            let truncated = inode.truncate_version != state.inode.truncate_version
                || inode.content != state.inode.content;
            if inode.content != state.inode.content {
                state.unverified_size = None;
                state.volatile = None;
            }
            if truncated {
                if inode.content == state.inode.content && state.unsynced && state.acknowledged > 0 {
                    state.add_unverified_size(state.acknowledged, state.inode.truncate_version);
                }
                state.acknowledged = 0;
            }
            if let Some(layout) = inode.layout {
                state.layout = layout;
            }
            state.inode = inode;
            state.described = Some(Instant::now());
        }
        if others_wrote {
            state.others_wrote();
        }
        // Also after an older answer: what was being told when the newer one came may have been told by now.
        let change = state.follow_inode(&self.shared);
        self.shared.dirty_limit.adjust(0, change);
        if is_newer {
            state.length = state.known_end();
        }
    }

    /// Nobody has the file open any more: what could not be told will not be, when others have opened it anew.
    pub fn discard_unsynced(&self) {
        let mut state = self.state.lock();
        if !state.is_clean() {
            self.discard_dirty(&mut state);
        }
    }

    fn discard_dirty(&self, state: &mut State) {
        let chunk_bytes = state.layout.chunk_bytes;
        self.shared.dirty_limit.release(state.dirty.cut(0, chunk_bytes));
        if let Some(inline) = &mut state.inline {
            inline.forget_edits();
        }
        let deferred = state.deferred.clone();
        self.on_deferred_synced(state, deferred.as_ref());
        state.mtime_ns = None;
        state.clears_set_id = false;
        state.unsynced = false;
    }

    /// Asks the metadata service again if what it said is older than `age`. Errors: ESTALE for a file that is gone,
    /// because the service forgot that this client has it open: its chunks are gone too, and would read as zeros.
    pub fn refresh(&self, identity: &Identity, age: Duration) -> Result<()> {
        if self.state.lock().is_younger_than(age) {
            return Ok(());
        }
        match self.shared.meta.stat_open(identity, self.id) {
            Ok(inode) => self.apply_server_inode(&inode),
            Err(error) if error.kind() == Kind::NotFound => return Err(error.with_errno(Errno::STALE)),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn shared_state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock();
        while state.exclusive {
            self.changed.wait(&mut state);
        }
        state
    }
}

/// Of a handle whose write session has ended without it.
pub fn lost() -> Error {
    let reason = "the cluster did not hear this client for its session timeout and ended its write session; open the file again";
    Error::new(Kind::NotFound, reason).with_errno(Errno::STALE)
}

fn inline_of(inode: &pb::Inode) -> Option<Inline> {
    inode.is_inline.then(|| Inline::new(inode.inline_data.clone(), inode.change))
}
