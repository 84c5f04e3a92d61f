//! Changes of an open file's attributes: those that wait, and those for which one must be alone with it.

use std::sync::Arc;

use super::{OpenInode, State};
use crate::client::deferred_setattr::{DeferredSetattr, without_set_id};
use crate::client::meta::{Identity, inode_path};
use crate::error::Result;
use crate::lock::MutexGuard;
use crate::wire::pb;

// Attributes that wait.
impl OpenInode {
    /// The file was made here just now: until it is closed, attributes may wait.
    pub fn on_create(&self) {
        self.state.lock().fresh = true;
    }

    /// The file is being closed: from here on attributes are told at once.
    pub fn on_first_close(&self) {
        let mut state = self.state.lock();
        if std::mem::take(&mut state.fresh) {
            self.shared.on_created_file_closed(state.length, state.layout.inline_bytes());
        }
    }

    /// Keeps a change of attributes to be told later, and returns what is seen now. `None`: it may not wait.
    pub fn defer_setattr(
        self: &Arc<Self>,
        identity: &Arc<Identity>,
        request: &pb::SetAttrRequest,
    ) -> Option<pb::Inode> {
        let mut state = self.state.lock();
        if !state.fresh || state.sessions.is_empty() {
            return None;
        }
        let deferred = DeferredSetattr::add(state.deferred.as_ref(), identity, request, &state.local_view())?;
        if request.mtime_ns.is_some() || request.mtime_now {
            state.mtime_ns = None;
        }
        if state.deferred.replace(deferred).is_none() {
            self.shared.dirty_files.add_deferred();
        }
        self.list(&mut state);
        Some(state.local_view())
    }

    /// Tells attributes that wait, alone. Length and bytes are not told.
    pub fn flush_deferred(&self) -> Result<()> {
        let _metadata = self.metadata_lock.lock();
        let Some(deferred) = self.state.lock().deferred.clone() else { return Ok(()) };
        let request = pb::SetAttrRequest { path: Some(inode_path(self.id)), ..deferred.request.clone() };
        let inode = self.shared.meta.set_attr(&deferred.identity, request)?;
        self.shared.metadata_cache.learn(inode.clone());
        self.apply_own_change(&inode);
        self.on_deferred_synced(&mut self.state.lock(), Some(&deferred));
        Ok(())
    }

    pub(super) fn on_deferred_synced(&self, state: &mut State, synced: Option<&DeferredSetattr>) {
        let synced = synced.map(|deferred| deferred.number);
        if synced.is_some() && synced == state.deferred.as_ref().map(|deferred| deferred.number) {
            state.deferred = None;
            self.shared.dirty_files.remove_deferred();
        }
    }

    /// In the client's list of files that have something to tell.
    pub(super) fn list(self: &Arc<Self>, state: &mut State) {
        if !state.listed {
            state.listed = true;
            self.shared.dirty_files.add(self);
        }
    }
}

// Privileges.
impl OpenInode {
    /// A user is about to change the file's bytes: its set-id bits end, as the metadata service hears with the change.
    /// Returns whether they were seen to be set.
    pub fn clear_set_id(self: &Arc<Self>) -> bool {
        let mut state = self.state.lock();
        let permissions = state.local_view().permissions;
        // Counts as a write: a report that is under way does not have it.
        state.writes += 1;
        state.clears_set_id = true;
        self.list(&mut state);
        permissions != without_set_id(permissions)
    }

    /// The bits were set after everything that cleared them.
    pub fn keep_set_id(&self) {
        self.state.lock().clears_set_id = false;
    }
}

// Alone with the file.
impl OpenInode {
    /// Calls `change` at the metadata service while nobody writes and nothing is under way, for changes that replace
    /// content; `length` is the file's length afterwards. Dirty bytes beyond it are dropped once that has succeeded.
    pub fn truncate(
        self: &Arc<Self>,
        length: u64,
        change: impl FnOnce() -> Result<pb::InodeReply>,
    ) -> Result<pb::InodeReply> {
        let (_metadata, mut state) = self.enter(length)?;
        let result = MutexGuard::unlocked(&mut state, change);
        if let Ok(reply) = &result {
            let chunk_bytes = state.layout.chunk_bytes;
            let freed = state.dirty.cut(length, chunk_bytes);
            self.shared.dirty_limit.release(freed);
            if let Some(inline) = &mut state.inline {
                inline.forget_edits();
            }
            state.acknowledged = 0;
            state.unverified_size = None;
            state.mtime_ns = None;
            if let Some(deferred) = &mut state.deferred {
                deferred.written();
            }
            state.undurable += 1;
            state.length = length;
            if let Some(inode) = reply.inode.clone().filter(|inode| !inode.bytes_withheld) {
                let source = state.source_of(&inode, true);
                self.apply_inode(&mut state, inode, source);
                // What is known may be newer than this answer.
                state.length = state.inode.length.max(state.waiting_end());
            }
        }
        state.exclusive = false;
        self.help(&mut state);
        self.changed.notify_all();
        result
    }

    /// Waits until this thread is alone with the file. What only exists as inline bytes is told first, unless it is
    /// about to be cut away. Nor is anything told meanwhile: it would be refused, merged with what is left after the
    /// cut, and told again.
    fn enter(self: &Arc<Self>, length: u64) -> Result<(MutexGuard<'_, ()>, MutexGuard<'_, State>)> {
        loop {
            // Before `exclusive`: whoever tells waits for nobody to be alone with the file.
            let metadata = self.metadata_lock.lock();
            let mut state = self.shared_state();
            if length != 0 && !state.inline_is_synced() {
                drop((state, metadata));
                self.flush();
                self.sync_metadata()?;
                continue;
            }
            state.exclusive = true;
            while !state.in_flight.is_empty() || state.migrating {
                self.changed.wait(&mut state);
            }
            if length == 0 || state.inline_is_synced() {
                return Ok((metadata, state));
            }
            state.exclusive = false;
            self.changed.notify_all();
        }
    }

    /// Changes times at the metadata service while nothing else is being told of this file: what it hears of earlier
    /// writes must not come after, and take the times back.
    pub fn set_times<T>(&self, change: impl FnOnce() -> Result<T>) -> Result<T> {
        let _metadata = self.metadata_lock.lock();
        let result = change()?;
        self.forget_mtime();
        Ok(result)
    }

    /// The metadata service was given times by the user: those of earlier writes count no more.
    pub fn forget_mtime(&self) {
        self.state.lock().mtime_ns = None;
    }

    /// Held by whoever tells the metadata service of this file.
    pub fn lock_metadata(&self) -> MutexGuard<'_, ()> {
        self.metadata_lock.lock()
    }
}
