//! Sending the metadata service an open file's length, times and inline bytes.

use std::sync::Arc;
use std::time::Instant;

use super::super::durability::Stored;
use super::super::machine::Effects;
use super::super::transitions::metadata_sync::{
    BeginFinalSync, BeginSync, Merge, MetadataUpdate, Sync, SyncEnded, SyncFailed,
};
use super::super::write_back::SPILLED;
use super::{OpenInode, now_ns, stale};
use crate::client::identity::Identity;
use crate::error::{Error, Kind, Result};
use crate::wire::pb;

/// How often a small file's bytes are merged with another client's before the conflict is reported.
const MERGES_MAX: usize = 32;
/// How often an extension is tried while others truncate the file.
const EXTENDS_MAX: usize = 32;

/// Fail a sync that a panic interrupts, so that later ones are not refused. Made and dropped under the metadata lock.
#[must_use = "it lasts as long as the sync"]
pub struct SyncGuard<'a>(&'a Arc<OpenInode>);

impl Drop for SyncGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut machine = self.0.machine.lock();
            if machine.metadata.is_syncing() {
                // The invariants may be what has failed: a second panic would end the process.
                let mut effects = Effects::default();
                machine.step(SyncFailed, &mut effects);
                self.0.carry_out(&mut machine, effects);
            }
        }
    }
}

impl OpenInode {
    /// Guard syncs that begin from here on; hold the metadata lock.
    pub fn guard_sync(self: &Arc<Self>) -> SyncGuard<'_> {
        SyncGuard(self)
    }

    /// Write back everything written so far, and send the metadata service what it must know.
    ///
    /// An error of the write-back is not this function's: handles ask `error_since`.
    pub fn sync(self: &Arc<Self>) -> Result<()> {
        self.flush();
        // Opened for reading only: nothing of it is ours.
        if self.is_clean() { Ok(()) } else { self.sync_metadata() }
    }

    /// Make the file at least `length` bytes long: the rest is zeros. Truncation would cut what others write.
    pub fn extend(self: &Arc<Self>, identity: &Identity, session: u64, length: u64) -> Result<()> {
        self.sync()?;
        for _ in 0..EXTENDS_MAX {
            let truncate_version = self.machine.lock().inode.truncate_version;
            let request = pb::SyncRequest {
                inode: self.id,
                length: Some(pb::LengthHint { length, truncate_version }),
                mtime_ns: now_ns(),
                session,
                ..Default::default()
            };
            let inode = match stale(self.shared.meta.sync(identity, request)) {
                Err(error) if error.kind() == Kind::Conflict => continue,
                result => result?,
            };
            let is_done = inode.length >= length;
            self.apply_own_change(&inode);
            self.shared.metadata_cache.learn(inode);
            if is_done {
                return Ok(());
            }
        }
        Err(Error::timeout("extending the file failed: too many concurrent modifications; retry"))
    }

    /// Send length, times and inline bytes, if there are any to send.
    pub(super) fn sync_metadata(self: &Arc<Self>) -> Result<()> {
        self.sync_metadata_for(None).map(drop)
    }

    /// As `sync_metadata`, and return when all that the service has committed of the file is on its disk, from any client.
    pub(super) fn sync_durably(self: &Arc<Self>, identity: &Arc<Identity>) -> Result<Stored> {
        self.sync_metadata_for(Some(identity))
    }

    fn sync_metadata_for(self: &Arc<Self>, durable_for: Option<&Arc<Identity>>) -> Result<Stored> {
        let durable = durable_for.is_some();
        let _metadata = self.metadata_lock.lock();
        let _guard = self.guard_sync();
        let mut merges = 0;
        loop {
            let update = match self.apply(BeginSync { durable }) {
                Sync::SpilledFirst => {
                    self.flush_until(SPILLED);
                    continue;
                }
                Sync::Nothing(stored) => return Ok(stored),
                Sync::Send(update) => update,
            };
            let identity = match (&update.deferred, durable_for) {
                (Some(deferred), _) => &deferred.identity,
                (None, Some(reader)) if update.session == 0 => reader,
                (None, _) => &update.identity,
            };
            let request = pb::SyncRequest {
                inode: self.id,
                length: update.length,
                mtime_ns: update.mtime_ns,
                has_inline: update.inline.is_some(),
                inline_base: update.base,
                inline_data: update.inline.clone().unwrap_or_default(),
                durable,
                session: update.session,
                attributes: update.deferred.as_ref().map(|deferred| deferred.request.clone()),
                clear_set_id: update.clears_set_id,
                ..Default::default()
            };
            match stale(self.shared.meta.sync(identity, request)) {
                Ok(inode) => {
                    let layout = inode.layout.unwrap_or(update.layout);
                    let stored = Stored { layout, content: inode.content };
                    self.on_synced(inode, &update, durable);
                    return Ok(stored);
                }
                Err(error) if error.kind() == Kind::Conflict && merges < MERGES_MAX => {
                    merges += 1;
                    self.on_sync_failed();
                    self.merge(identity)?;
                }
                Err(error) => {
                    self.on_sync_failed();
                    return Err(error);
                }
            }
        }
    }

    /// Take in that the metadata service has not taken the update, or that this is not known.
    pub fn on_sync_failed(self: &Arc<Self>) {
        self.apply(SyncFailed);
    }

    /// Take in that the metadata service has taken the update.
    pub fn on_synced(self: &Arc<Self>, inode: pb::Inode, update: &MetadataUpdate, durable: bool) {
        // First of all: a thread that finds the file clean, or closed, finds this.
        if update.reports() {
            self.shared.metadata_cache.learn(inode.clone());
        } else {
            self.shared.metadata_cache.learn_opened(inode.clone());
        }
        self.apply(SyncEnded { inode, update, durable, now: Instant::now() });
    }

    /// Take in what another client has made of the small file, with what was written here over it.
    fn merge(self: &Arc<Self>, identity: &Identity) -> Result<()> {
        let theirs = self.ask(identity)?;
        let write = self.apply(Merge { theirs, now: Instant::now() });
        self.flush_until(write);
        Ok(())
    }

    /// Begin the last sync, which a close carries; `None`: there is nothing to send. Everything written so far has been
    /// written back, also by others; hold the metadata lock.
    pub fn final_update(self: &Arc<Self>) -> Option<MetadataUpdate> {
        loop {
            match self.apply(BeginFinalSync) {
                Sync::SpilledFirst => self.flush_until(SPILLED),
                Sync::Nothing(_) => return None,
                Sync::Send(update) => return Some(update),
            }
        }
    }
}
