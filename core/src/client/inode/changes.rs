//! Changes of an open file's attributes: those that wait, and those for which one must be alone with it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{OpenInode, State};
use crate::client::later::{Later, without_set_id};
use crate::client::meta::{Who, inode_path};
use crate::error::Result;
use crate::lock::MutexGuard;
use crate::wire::pb;

// Attributes that wait.
impl OpenInode {
    /// The file was made here just now: until it is closed, attributes may wait.
    pub fn made(&self) {
        self.state.lock().fresh = true;
    }

    /// The file is being closed: from here on attributes are told at once.
    pub fn closing(&self) {
        let mut state = self.state.lock();
        if std::mem::take(&mut state.fresh) {
            self.shared.was_made(state.length, state.layout.inline_bytes());
        }
    }

    /// Keeps a change of attributes to be told later, and returns what is seen now. `None`: it may not wait.
    pub fn set_later(self: &Arc<Self>, who: &Arc<Who>, request: &pb::SetAttrRequest) -> Option<pb::Inode> {
        let mut state = self.state.lock();
        if !state.fresh || state.sessions.is_empty() {
            return None;
        }
        let later = Later::add(state.later.as_ref(), who, request, &state.seen())?;
        if request.mtime_ns.is_some() || request.mtime_now {
            state.mtime_ns = None;
        }
        if state.later.replace(later).is_none() {
            self.shared.unsettled.fetch_add(1, Ordering::AcqRel);
        }
        self.list(&mut state);
        Some(state.seen())
    }

    /// Tells attributes that wait, alone. Length and bytes are not told.
    pub fn settle(&self) -> Result<()> {
        let _telling = self.telling.lock();
        let Some(later) = self.state.lock().later.clone() else { return Ok(()) };
        let request = pb::SetAttrRequest { path: Some(inode_path(self.id)), ..later.request.clone() };
        let inode = self.shared.meta.set_attr(&later.who, request)?;
        self.shared.names.learn(inode.clone());
        self.adopt_own(&inode);
        self.settled(&mut self.state.lock(), Some(&later));
        Ok(())
    }

    pub(super) fn settled(&self, state: &mut State, told: Option<&Later>) {
        let told = told.map(|later| later.number);
        if told.is_some() && told == state.later.as_ref().map(|later| later.number) {
            state.later = None;
            self.shared.unsettled.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// In the client's list of files that have something to tell.
    pub(super) fn list(self: &Arc<Self>, state: &mut State) {
        if !state.listed {
            state.listed = true;
            self.shared.list_dirty(self);
        }
    }
}

// Privileges.
impl OpenInode {
    /// A user is about to change the file's bytes: its set-id bits end, as the metadata service hears with the change.
    /// Returns whether they were seen to be set.
    pub fn clear_set_id(self: &Arc<Self>) -> bool {
        let mut state = self.state.lock();
        let permissions = state.seen().permissions;
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
        let (_telling, mut state) = self.enter(length)?;
        let result = MutexGuard::unlocked(&mut state, change);
        if let Ok(reply) = &result {
            let chunk_bytes = state.layout.chunk_bytes;
            let freed = state.dirty.cut(length, chunk_bytes);
            self.shared.budget.release(freed);
            if let Some(inline) = &mut state.inline {
                inline.forget_edits();
            }
            state.acknowledged = 0;
            state.doubtful = None;
            state.mtime_ns = None;
            if let Some(later) = &mut state.later {
                later.written();
            }
            state.undurable += 1;
            state.length = length;
            if let Some(inode) = reply.inode.clone().filter(|inode| !inode.bytes_withheld) {
                let source = state.source_of(&inode, true);
                self.adopt_into(&mut state, inode, source);
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
            let telling = self.telling.lock();
            let mut state = self.shared_state();
            if length != 0 && !state.inline_is_told() {
                drop((state, telling));
                self.flush();
                self.tell()?;
                continue;
            }
            state.exclusive = true;
            while !state.flights.is_empty() || state.departing {
                self.changed.wait(&mut state);
            }
            if length == 0 || state.inline_is_told() {
                return Ok((telling, state));
            }
            state.exclusive = false;
            self.changed.notify_all();
        }
    }

    /// Changes times at the metadata service while nothing else is being told of this file: what it hears of earlier
    /// writes must not come after, and take the times back.
    pub fn set_times<T>(&self, change: impl FnOnce() -> Result<T>) -> Result<T> {
        let _telling = self.telling.lock();
        let result = change()?;
        self.forget_mtime();
        Ok(result)
    }

    /// The metadata service was given times by the user: those of earlier writes count no more.
    pub fn forget_mtime(&self) {
        self.state.lock().mtime_ns = None;
    }

    /// Held by whoever tells the metadata service of this file.
    pub fn telling(&self) -> MutexGuard<'_, ()> {
        self.telling.lock()
    }
}
