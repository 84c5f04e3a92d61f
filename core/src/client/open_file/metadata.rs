//! What the metadata service is to be sent of an open file: length, times, set-id bits, deferred attributes and the
//! bytes of a small file; and what it replies.

use std::sync::Arc;
use std::time::Instant;

use super::durability::Stored;
use super::machine::{Bug, Effects, Event, Machine};
use crate::client::deferred_setattr::{DeferredSetattr, without_set_id};
use crate::client::meta::Identity;
use crate::wire::pb;

/// Whose changes an inode shows that the metadata service has replied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChangeOrigin {
    /// Of what was not known before, exactly one change that this client has made.
    Own,
    /// Perhaps those of others.
    Any,
}

impl ChangeOrigin {
    /// Of a reply to a change that this client has made, or to something else, where `known` was known.
    pub(super) fn of(known: &pb::Inode, reply: &pb::Inode, changes: bool) -> ChangeOrigin {
        if changes && reply.change == known.change + 1 { ChangeOrigin::Own } else { ChangeOrigin::Any }
    }
}

/// Metadata that is to be sent, beside the length and the bytes themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Pending {
    /// A length, or bytes in the inode.
    pub(super) size: bool,
    /// Time of the last write.
    pub(super) mtime_ns: Option<i64>,
    /// The file was changed by a user who may not keep the set-id bits.
    pub(super) clears_set_id: bool,
}

impl Pending {
    fn is_empty(&self) -> bool {
        !self.size && self.mtime_ns.is_none() && !self.clears_set_id
    }

    /// Return `self` with what is in `older` only.
    fn over(self, older: Pending) -> Pending {
        Pending {
            size: self.size || older.size,
            mtime_ns: self.mtime_ns.or(older.mtime_ns),
            clears_set_id: self.clears_set_id || older.clears_set_id,
        }
    }
}

/// Whether the metadata service has been sent what it must know.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Metadata {
    Clean,
    Dirty(Pending),
    /// `sent` is on its way; `newer` came since and is sent with the next update.
    Syncing {
        sent: Pending,
        newer: Pending,
    },
}

impl Metadata {
    fn dirty_or_clean(pending: Pending) -> Metadata {
        if pending.is_empty() { Metadata::Clean } else { Metadata::Dirty(pending) }
    }

    /// Add to what is to be sent.
    pub(super) fn mark(&mut self, change: impl FnOnce(&mut Pending)) {
        match self {
            Metadata::Syncing { newer, .. } => change(newer),
            Metadata::Dirty(pending) => change(pending),
            Metadata::Clean => {
                let mut pending = Pending::default();
                change(&mut pending);
                *self = Metadata::dirty_or_clean(pending);
            }
        }
    }

    /// Take something out of what is to be sent.
    fn forget(&mut self, change: impl Fn(&mut Pending)) {
        match self {
            Metadata::Clean => {}
            Metadata::Dirty(pending) => {
                change(pending);
                *self = Metadata::dirty_or_clean(std::mem::take(pending));
            }
            Metadata::Syncing { sent, newer } => {
                change(sent);
                change(newer);
            }
        }
    }

    /// Forget the time of the last write: the metadata service was given one by the user.
    pub(super) fn forget_mtime(&mut self) {
        self.forget(|pending| pending.mtime_ns = None);
    }

    /// Forget all of it: what waits is given up.
    pub(super) fn discard(&mut self) {
        self.forget(|pending| *pending = Pending::default());
    }

    fn begin_sync(&mut self) {
        *self = match std::mem::replace(self, Metadata::Clean) {
            Metadata::Clean => Metadata::Syncing { sent: Pending::default(), newer: Pending::default() },
            Metadata::Dirty(sent) => Metadata::Syncing { sent, newer: Pending::default() },
            Metadata::Syncing { .. } => panic!("metadata is sent under the metadata lock: once at a time"),
        };
    }

    pub(super) fn is_syncing(&self) -> bool {
        matches!(self, Metadata::Syncing { .. })
    }

    fn end_sync(&mut self, is_taken: bool, bug: Bug) {
        *self = match std::mem::replace(self, Metadata::Clean) {
            Metadata::Syncing { .. } if is_taken && bug == Bug::SyncClearsNewer => Metadata::Clean,
            Metadata::Syncing { newer, .. } if is_taken => Metadata::dirty_or_clean(newer),
            Metadata::Syncing { sent, newer } => Metadata::dirty_or_clean(newer.over(sent)),
            Metadata::Clean | Metadata::Dirty(_) => panic!("a sync of metadata ends once"),
        };
    }

    /// Return all that is to be sent or is on its way.
    pub(super) fn pending(&self) -> Pending {
        match self {
            Metadata::Clean => Pending::default(),
            Metadata::Dirty(pending) => pending.clone(),
            Metadata::Syncing { sent, newer } => newer.clone().over(sent.clone()),
        }
    }

    pub(super) fn is_synced(&self) -> bool {
        self.pending().is_empty()
    }

    /// Whether it claims to be dirty and is not.
    pub(super) fn is_empty_dirty(&self) -> bool {
        matches!(self, Metadata::Dirty(pending) if pending.is_empty())
    }
}

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
    pub(super) fn is_acked_since(&self, ack_count: u64) -> bool {
        self.ack_count != ack_count
    }

    /// Whether there is anything to report. The inode certainly changes by it.
    pub fn reports(&self) -> bool {
        let bytes = self.length.is_some() || self.inline.is_some();
        bytes || self.mtime_ns != 0 || self.deferred.is_some() || self.clears_set_id
    }
}

impl Machine {
    /// Whether everything written here is acknowledged and synced.
    pub(super) fn is_clean(&self) -> bool {
        self.write_back.is_empty() && self.is_synced()
    }

    /// Whether the metadata service has been sent all that it must know.
    pub(super) fn is_synced(&self) -> bool {
        self.metadata.is_synced() && self.deferred.is_none() && !self.is_edited()
    }

    pub(super) fn size_is_synced(&self) -> bool {
        self.acknowledged <= self.inode.length
            && self.unverified_size.is_none()
            && !self.is_edited()
            && !self.has_spilled()
    }

    /// Describe what is to be sent now; empty if nothing was written since the last sync.
    fn update(&self) -> MetadataUpdate {
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

    /// Forget deferred attributes if they are still those of that number.
    pub(super) fn drop_deferred(&mut self, number: Option<u64>, effects: &mut Effects) {
        if number.is_some() && number == self.deferred.as_ref().map(|deferred| deferred.number) {
            self.deferred = None;
            effects.deferred_files -= 1;
        }
    }

    pub(super) fn follow_pages(&self, inode: &pb::Inode, source: ChangeOrigin, effects: &mut Effects) {
        if source == ChangeOrigin::Own {
            effects.pages_follow = Some((self.inode.change, inode.change));
        }
    }

    /// Take in what the metadata service replied of this inode, and lay what was written here over it.
    pub(super) fn apply_inode(
        &mut self,
        inode: pb::Inode,
        source: ChangeOrigin,
        now: Instant,
        effects: &mut Effects,
    ) {
        // A reply without the file's bytes says nothing of them: it is asked for again when it is needed.
        if inode.id != self.inode.id || inode.bytes_withheld {
            return;
        }
        let is_changed = inode.change > self.inode.change && source == ChangeOrigin::Any;
        let others_wrote = inode.others_write || is_changed;
        // A stale reply is ignored: what is known is newer.
        let is_newer = inode.change >= self.inode.change || self.bug == Bug::TakeStaleReply;
        if is_newer {
            let is_other_content = inode.content != self.inode.content;
            let is_truncated = inode.truncate_version != self.inode.truncate_version || is_other_content;
            if is_other_content {
                self.unverified_size = None;
                self.durability.volatile = None;
            }
            if is_truncated && self.bug != Bug::KeepAcknowledged {
                if !is_other_content && self.metadata.pending().size && self.acknowledged > 0 {
                    self.add_unverified_size(self.acknowledged, self.inode.truncate_version);
                }
                self.acknowledged = 0;
            }
            if let Some(layout) = inode.layout {
                self.layout = layout;
            }
            self.inode = inode;
            self.described = Some(now);
        }
        if others_wrote {
            self.durability.others_wrote(self.inode.is_inline);
        }
        // Also after a stale reply: what was being sent when the newer one came may have been taken by now.
        self.follow_inode(effects);
        if is_newer {
            self.length = self.known_end();
        }
    }

    /// Lay what was written here over what the inode has become.
    fn follow_inode(&mut self, effects: &mut Effects) {
        let is_inline = self.inode.is_inline;
        if self.bug == Bug::MigrationDropsEdits && !is_inline {
            self.bytes.replace(&self.inode);
        }
        match self.bytes.inline_mut().filter(|inline| is_inline && inline.is_edited()) {
            Some(inline) if self.bug == Bug::RebaseDropsEdits => {
                inline.bytes = self.inode.inline_data.clone();
                inline.base = self.inode.change;
            }
            Some(inline) => inline.rebase(self.inode.inline_data.clone(), self.inode.change),
            None => self.spill_inline(effects),
        }
    }
}

/// Begin to send metadata; hold the metadata lock.
pub(super) struct BeginSync {
    /// All that the service has committed is to be on its disk, from any client.
    pub(super) durable: bool,
}

#[allow(clippy::large_enum_variant)] // moved once, beside a request to a service
pub(super) enum Sync {
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
pub(super) struct BeginFinalSync;

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
pub(super) struct SyncEnded<'a> {
    pub(super) inode: pb::Inode,
    pub(super) update: &'a MetadataUpdate,
    pub(super) durable: bool,
    pub(super) now: Instant,
}

impl Event for SyncEnded<'_> {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, effects: &mut Effects) {
        let SyncEnded { inode, update, durable, now } = self;
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
pub(super) struct SyncFailed;

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
pub(super) struct Merge {
    pub(super) theirs: pb::Inode,
    pub(super) now: Instant,
}

impl Event for Merge {
    /// The write up to which to write back, where bytes have become dirty by that.
    type Outcome = u64;

    fn apply(self, machine: &mut Machine, effects: &mut Effects) -> u64 {
        machine.writes += 1;
        machine.apply_inode(self.theirs, ChangeOrigin::Any, self.now, effects);
        machine.writes
    }
}

/// The metadata service has described the inode: all of it, with the bytes of a small file.
pub(super) struct Described {
    pub(super) inode: pb::Inode,
    pub(super) now: Instant,
}

impl Event for Described {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, effects: &mut Effects) {
        machine.apply_inode(self.inode, ChangeOrigin::Any, self.now, effects);
    }
}

/// The metadata service has replied to a change of attributes that this client made. If it was the only change since what
/// is known, the bytes of a small file are still those that what waits here was made from.
pub(super) struct OwnChange {
    pub(super) inode: pb::Inode,
    pub(super) now: Instant,
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

/// Keep a change of attributes to be sent with other metadata.
pub(super) struct DeferSetattr<'a> {
    pub(super) identity: &'a Arc<Identity>,
    pub(super) request: &'a pb::SetAttrRequest,
    pub(super) now_ns: i64,
}

impl Event for DeferSetattr<'_> {
    /// The inode as it is seen here now; `None`: this change may not wait.
    type Outcome = Option<pb::Inode>;

    fn apply(self, machine: &mut Machine, effects: &mut Effects) -> Option<pb::Inode> {
        if !machine.is_new || machine.sessions.is_empty() {
            return None;
        }
        let before = machine.deferred.as_ref();
        let view = machine.local_view();
        let deferred = DeferredSetattr::add(before, self.identity, self.request, &view, self.now_ns)?;
        if self.request.mtime_ns.is_some() || self.request.mtime_now {
            machine.metadata.forget_mtime();
        }
        if machine.deferred.replace(deferred).is_none() {
            effects.deferred_files += 1;
        }
        machine.list(effects);
        Some(machine.local_view())
    }
}

/// Deferred attributes of that number have been sent by themselves.
pub(super) struct DeferredSynced(pub(super) u64);

impl Event for DeferredSynced {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, effects: &mut Effects) {
        machine.drop_deferred(Some(self.0), effects);
    }
}

/// A user is about to change the file's bytes: its set-id bits end, as the metadata service hears with the change.
pub(super) struct ClearSetId;

impl Event for ClearSetId {
    /// Whether bits were seen to be set.
    type Outcome = bool;

    fn apply(self, machine: &mut Machine, effects: &mut Effects) -> bool {
        let permissions = machine.local_permissions();
        machine.metadata.mark(|pending| pending.clears_set_id = true);
        machine.list(effects);
        permissions != without_set_id(permissions)
    }
}

/// The set-id bits were set after everything that cleared them.
pub(super) struct KeepSetId;

impl Event for KeepSetId {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, _: &mut Effects) {
        machine.metadata.forget(|pending| pending.clears_set_id = false);
    }
}

/// The metadata service was given times by the user: those of earlier writes do not count.
pub(super) struct ForgetMtime;

impl Event for ForgetMtime {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, _: &mut Effects) {
        machine.metadata.forget_mtime();
    }
}

/// The file was created here just now: until its first close attributes may be deferred.
pub(super) struct Created;

impl Event for Created {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, _: &mut Effects) {
        machine.is_new = true;
    }
}

/// A handle is being closed: from here on attributes are sent at once.
pub(super) struct FirstClose;

impl Event for FirstClose {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, effects: &mut Effects) {
        if std::mem::take(&mut machine.is_new) {
            effects.created_file_closed = Some((machine.length, machine.layout.inline_bytes()));
        }
    }
}

/// Decide what is to be sent by age, after write-back was started.
pub(super) struct Age;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Aged {
    DeferredAttributes,
    InlineBytes,
    /// Set-id bits that are known to be set end. Where none are known, their end travels with the next sync: every write
    /// of a user may ask for it.
    SetIdBits,
    /// Bytes wait for the chains.
    WriteBack,
    /// The client's list of dirty files does not have the file any more.
    Nothing,
}

impl Event for Age {
    type Outcome = Aged;

    fn apply(self, machine: &mut Machine, _: &mut Effects) -> Aged {
        let permissions = machine.inode.permissions;
        let clears = machine.metadata.pending().clears_set_id && permissions != without_set_id(permissions);
        if machine.deferred.is_some() {
            return Aged::DeferredAttributes;
        }
        if machine.is_edited() {
            return Aged::InlineBytes;
        }
        if clears {
            return Aged::SetIdBits;
        }
        if !machine.write_back.is_empty() {
            return Aged::WriteBack;
        }
        machine.is_listed = false;
        Aged::Nothing
    }
}
