//! Metadata is sent: length, times, set-id bits, deferred attributes and the bytes of a small file; and what is replied.

use std::sync::Arc;
use std::time::Instant;

use super::super::bug::Bug;
use super::super::durability::Stored;
use super::super::machine::{Effects, Event, Machine};
use super::super::server_inode::ChangeOrigin;
use crate::client::deferred_setattr::DeferredSetattr;
use crate::client::identity::Identity;
use crate::wire::pb;

/// What one sync of metadata sends.
pub struct MetadataUpdate {
    pub length: Option<pb::LengthHint>,
    pub mtime_ns: i64,
    pub inline: Option<Vec<u8>>,
    pub base: u64,
    pub deferred: Option<DeferredSetattr>,
    pub clears_set_id: bool,
    /// On behalf of whom.
    pub session: u64,
    pub identity: Arc<Identity>,
    pub layout: pb::Layout,
    /// How often the chains had acknowledged something.
    ack_count: u64,
    /// How much had been sent or changed without being made durable.
    undurable: u64,
}

impl MetadataUpdate {
    /// Whether the chains have acknowledged something since it was made.
    #[cfg(test)]
    pub fn is_acked_since(&self, ack_count: u64) -> bool {
        self.ack_count != ack_count
    }

    /// Whether there is anything to report. The inode certainly changes by it.
    pub fn reports(&self) -> bool {
        let bytes = self.length.is_some() || self.inline.is_some();
        bytes || self.mtime_ns != 0 || self.deferred.is_some() || self.clears_set_id
    }
}

impl Machine {
    /// Describe what is to be sent now; empty if nothing was written since the last sync.
    fn update(&self) -> MetadataUpdate {
        assert!(!self.has_spilled(), "I3: what has left the inode is acknowledged first");
        // Of an inline file all of it is sent, and it may be longer than its bytes: zeros after them.
        let is_all = self.is_all_inline() || self.bug == Bug::ReportUnacknowledged;
        let length = if is_all { self.length } else { self.acknowledged };
        let hint = pb::LengthHint { length, truncate_version: self.inode.truncate_version };
        let inline = self.bytes.inline();
        let pending = self.metadata.pending();
        let (session, identity) = self.sessions.first().unwrap_or_default();
        MetadataUpdate {
            length: self.unverified_size.or((length > 0 && !self.is_synced()).then_some(hint)),
            mtime_ns: pending.mtime_ns.unwrap_or_default(),
            inline: inline.filter(|inline| inline.is_edited()).map(|inline| inline.bytes.clone()),
            base: inline.map_or(0, |inline| inline.base),
            deferred: self.deferred.clone(),
            clears_set_id: pending.clears_set_id,
            session,
            identity,
            layout: self.layout,
            ack_count: self.ack_count,
            undurable: self.durability.undurable,
        }
    }

    fn begin_sync(&mut self) {
        self.metadata.begin_sync();
        if let Some(inline) = self.bytes.inline_mut() {
            inline.begin_sync();
        }
    }
}

/// Begin to send metadata; hold the metadata lock.
pub struct BeginSync {
    /// All that the service has committed is to be on its disk, from any client.
    pub durable: bool,
}

#[allow(clippy::large_enum_variant)] // moved once, beside a request to a service
pub enum Sync {
    /// Bytes that were in the inode must be written back first.
    SpilledFirst,
    /// There is nothing to send.
    Nothing(Stored),
    Send(MetadataUpdate),
}

impl Event for BeginSync {
    type Outcome = Sync;

    fn apply(self, machine: &mut Machine, _: &mut Effects) -> Sync {
        if machine.has_spilled() {
            return Sync::SpilledFirst;
        }
        if machine.is_synced() && !self.durable {
            return Sync::Nothing(machine.stored());
        }
        let update = machine.update();
        machine.begin_sync();
        Sync::Send(update)
    }
}

/// Begin to send what a close has to send; hold the metadata lock. Everything written so far has been written back. There
/// is nothing where all that was written has been cut away since.
pub struct BeginFinalSync;

impl Event for BeginFinalSync {
    type Outcome = Sync;

    fn apply(self, machine: &mut Machine, _: &mut Effects) -> Sync {
        if machine.has_spilled() {
            return Sync::SpilledFirst;
        }
        let update = machine.update();
        if machine.is_synced() || !update.reports() {
            return Sync::Nothing(machine.stored());
        }
        machine.begin_sync();
        Sync::Send(update)
    }
}

/// The metadata service has taken an update.
pub struct SyncEnded<'a> {
    pub inode: pb::Inode,
    pub update: &'a MetadataUpdate,
    pub durable: bool,
    pub now: Instant,
}

impl Event for SyncEnded<'_> {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, effects: &mut Effects) {
        let SyncEnded { inode, update, durable, now } = self;
        assert!(machine.metadata.is_syncing(), "a sync of metadata ends once");
        assert!(update.ack_count <= machine.ack_count, "I3: an update has what was acknowledged before it");
        machine.drop_deferred(update.deferred.as_ref().map(|deferred| deferred.number), effects);
        let source = ChangeOrigin::of(&machine.inode, &inode, update.reports());
        machine.follow_pages(&inode, source, effects);
        machine.durability.on_synced(update.undurable, durable);
        if let Some(inline) = machine.bytes.inline_mut() {
            inline.syncing = Default::default();
        }
        // What was in flight when the update was made, and has been acknowledged since, is not in it: not even if the
        // length is the same, for the file may have been cut in between.
        let is_acked_since = machine.ack_count != update.ack_count;
        if machine.unverified_size == update.length && !is_acked_since {
            machine.unverified_size = None;
        }
        machine.metadata.end_sync(true, machine.bug);
        if is_acked_since || !machine.write_back.is_empty() {
            let is_forgotten = machine.bug == Bug::SyncClearsNewer;
            machine.metadata.mark(|pending| pending.size |= !is_forgotten);
        }
        machine.apply_inode(inode, source, now, effects);
        if machine.bytes.inline().is_none() && machine.acknowledged > machine.inode.length {
            let is_forgotten = machine.bug == Bug::SyncClearsNewer;
            machine.metadata.mark(|pending| pending.size |= !is_forgotten);
        }
        effects.wake = true;
    }
}

/// The metadata service has not taken an update, or that is not known.
pub struct SyncFailed;

impl Event for SyncFailed {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, effects: &mut Effects) {
        machine.metadata.end_sync(false, machine.bug);
        if let Some(inline) = machine.bytes.inline_mut() {
            inline.end_sync();
        }
        effects.wake = true;
    }
}

/// Another client has changed the small file to `theirs`. Keep its bytes where nothing was written here.
pub struct Merge {
    pub theirs: pb::Inode,
    pub now: Instant,
}

impl Event for Merge {
    /// The write up to which to write back, where bytes have become dirty by that.
    type Outcome = u64;

    fn apply(self, machine: &mut Machine, effects: &mut Effects) -> u64 {
        assert!(!machine.metadata.is_syncing(), "a merge follows a sync that was refused");
        machine.writes += 1;
        machine.apply_inode(self.theirs, ChangeOrigin::Any, self.now, effects);
        machine.writes
    }
}

/// The metadata service has described the inode: all of it, with the bytes of a small file.
pub struct Described {
    pub inode: pb::Inode,
    pub now: Instant,
}

impl Event for Described {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, effects: &mut Effects) {
        machine.apply_inode(self.inode, ChangeOrigin::Any, self.now, effects);
    }
}

/// The metadata service has replied to a change of attributes that this client made. If it was the only change since what
/// is known, the bytes of a small file are still those that what waits here was made from.
pub struct OwnChange {
    pub inode: pb::Inode,
    pub now: Instant,
}

impl Event for OwnChange {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, effects: &mut Effects) {
        let known = machine.inode.change;
        let source = ChangeOrigin::of(&machine.inode, &self.inode, true);
        machine.follow_pages(&self.inode, source, effects);
        if source == ChangeOrigin::Own
            && let Some(inline) = machine.bytes.inline_mut().filter(|inline| inline.base == known)
        {
            inline.base = self.inode.change;
        }
        machine.durability.undurable += 1;
        machine.apply_inode(self.inode, source, self.now, effects);
    }
}
