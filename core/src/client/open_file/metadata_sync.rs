//! Telling the metadata service of an open file's length, times and inline bytes.

use std::sync::Arc;

use super::durability::Stored;
use super::state::SPILLED;
use super::{OpenInode, Source, now_ns};
use crate::client::deferred_setattr::DeferredSetattr;
use crate::client::meta::Identity;
use crate::error::{Error, Kind, Result};
use crate::wire::pb;

/// How often a small file's bytes are merged with somebody else's before the conflict is reported.
const MERGES_MAX: usize = 32;
/// Times an extension is told that others have truncated or changed the file.
const EXTENDS_MAX: usize = 32;

impl OpenInode {
    /// Everything written so far is acknowledged and the metadata service knows of it.
    ///
    /// An error of the write-back is not this function's: handles ask `error_since`.
    pub fn sync(self: &Arc<Self>) -> Result<()> {
        self.flush();
        let state = self.state.lock();
        // Opened for reading only: nothing of it is ours.
        let skip = state.is_clean();
        drop(state);
        if skip { Ok(()) } else { self.sync_metadata() }
    }

    /// Tells that the file is at least `length` bytes long: the rest is zeros. Truncation would cut what others write.
    pub fn extend(self: &Arc<Self>, identity: &Identity, session: u64, length: u64) -> Result<()> {
        self.sync()?;
        for _ in 0..EXTENDS_MAX {
            let truncate_version = self.state.lock().inode.truncate_version;
            let request = pb::SyncRequest {
                inode: self.id,
                length: Some(pb::LengthHint { length, truncate_version }),
                mtime_ns: now_ns(),
                session,
                ..Default::default()
            };
            let inode = match self.shared.meta.sync(identity, request) {
                Err(error) if error.kind() == Kind::Conflict => continue,
                result => result?,
            };
            let done = inode.length >= length;
            self.apply_own_change(&inode);
            self.shared.metadata_cache.learn(inode);
            if done {
                return Ok(());
            }
        }
        Err(Error::timeout("others change the file again and again"))
    }

    /// Synchronizes length, times and inline bytes with the metadata service, if there are any to report.
    pub(super) fn sync_metadata(self: &Arc<Self>) -> Result<()> {
        self.report(None).map(drop)
    }

    /// As `tell`, and returns when all that the service has committed of the file is on its disk, from any client.
    pub(super) fn sync_durably(self: &Arc<Self>, identity: &Arc<Identity>) -> Result<Stored> {
        self.report(Some(identity))
    }

    fn report(self: &Arc<Self>, durable_for: Option<&Arc<Identity>>) -> Result<Stored> {
        let durable = durable_for.is_some();
        let _metadata = self.metadata_lock.lock();
        let mut merges = 0;
        loop {
            let mut state = self.state.lock();
            if state.has_spilled() {
                drop(state);
                self.flush_until(SPILLED);
                continue;
            }
            if state.metadata_is_synced() && !durable {
                return Ok(state.stored());
            }
            let layout = state.layout;
            let update = state.update();
            let writer = state.sessions.first().cloned();
            let reader = || (0, durable_for.cloned().unwrap_or_default());
            let (session, mut identity) = writer.unwrap_or_else(reader);
            if let Some(deferred) = &update.deferred {
                identity = deferred.identity.clone();
            }
            let request = pb::SyncRequest {
                inode: self.id,
                length: update.length,
                mtime_ns: update.mtime_ns,
                has_inline: update.inline.is_some(),
                inline_base: update.base,
                inline_data: update.inline.clone().unwrap_or_default(),
                durable,
                session,
                attributes: update.deferred.as_ref().map(|deferred| deferred.request.clone()),
                clear_set_id: update.clears_set_id,
                ..Default::default()
            };
            drop(state);
            match self.shared.meta.sync(&identity, request) {
                Ok(inode) => {
                    let layout = inode.layout.unwrap_or(layout);
                    let stored = Stored { layout, content: inode.content };
                    self.on_synced(inode, &update, durable);
                    return Ok(stored);
                }
                Err(error) if error.kind() == Kind::Conflict && merges < MERGES_MAX => {
                    merges += 1;
                    self.on_sync_failed();
                    self.merge(&identity)?;
                }
                Err(error) => {
                    self.on_sync_failed();
                    return Err(error);
                }
            }
        }
    }

    /// The metadata service has not taken the news, or it is not known.
    pub fn on_sync_failed(&self) {
        if let Some(inline) = &mut self.state.lock().inline {
            inline.end_sync();
        }
        self.changed.notify_all();
    }

    /// The metadata service has taken the news.
    pub fn on_synced(&self, inode: pb::Inode, update: &MetadataUpdate, durable: bool) {
        // First of all: who finds the file clean, or closed, finds this.
        if update.reports() {
            self.shared.metadata_cache.learn(inode.clone());
        } else {
            self.shared.metadata_cache.learn_opened(inode.clone());
        }
        let mut state = self.state.lock();
        self.on_deferred_synced(&mut state, update.deferred.as_ref());
        let source = state.source_of(&inode, update.reports());
        if source == Source::Own {
            self.shared.metadata_cache.page_cache_follows(self.id, state.inode.change, inode.change);
        }
        if durable {
            state.durable = state.durable.max(update.undurable);
        } else {
            state.undurable += 1;
        }
        if let Some(inline) = &mut state.inline {
            inline.syncing = Default::default();
        }
        // What was in flight when the news was made, and has arrived since, is not in it: not even if the length is the
        // same, for the file may have been cut in between.
        let arrived = state.ack_count != update.ack_count;
        if state.unverified_size == update.length && !arrived {
            state.unverified_size = None;
        }
        if state.writes == update.writes {
            state.mtime_ns = None;
            state.clears_set_id = false;
            state.unsynced = !state.dirty.is_empty() || !state.in_flight.is_empty() || arrived;
        }
        self.apply_inode(&mut state, inode, source);
        if state.inline.is_none() && state.acknowledged > state.inode.length {
            state.unsynced = true;
        }
        self.changed.notify_all();
    }

    /// Somebody else changed the small file: keep their bytes where nothing was written here.
    fn merge(self: &Arc<Self>, identity: &Identity) -> Result<()> {
        let theirs = self.shared.meta.stat_open(identity, self.id)?;
        let mut state = self.state.lock();
        state.writes += 1;
        let write = state.writes;
        self.apply_inode(&mut state, theirs, Source::Any);
        drop(state);
        self.flush_until(write);
        Ok(())
    }

    /// What a close has to tell; `None` if nothing, also where all that was written has been cut away since.
    /// Everything written so far has been written back, also by others; hold `metadata`.
    pub fn final_update(self: &Arc<Self>) -> Option<MetadataUpdate> {
        loop {
            let mut state = self.state.lock();
            if !state.has_spilled() {
                let synced = state.metadata_is_synced();
                return Some(state.update()).filter(|update| !synced && update.reports());
            }
            drop(state);
            self.flush_until(SPILLED);
        }
    }
}

/// What the metadata service is to be told.
pub struct MetadataUpdate {
    pub length: Option<pb::LengthHint>,
    pub mtime_ns: i64,
    pub inline: Option<Vec<u8>>,
    pub base: u64,
    pub deferred: Option<DeferredSetattr>,
    pub clears_set_id: bool,
    /// How many writes had been made, and how often the chains had acknowledged some.
    pub writes: u64,
    pub ack_count: u64,
    /// How much had been told or changed without being made durable.
    pub undurable: u64,
}

impl MetadataUpdate {
    /// Whether there is anything to report. The inode certainly changes by it.
    fn reports(&self) -> bool {
        let bytes = self.length.is_some() || self.inline.is_some();
        bytes || self.mtime_ns != 0 || self.deferred.is_some() || self.clears_set_id
    }
}
