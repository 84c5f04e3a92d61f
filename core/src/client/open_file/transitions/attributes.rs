//! Attributes are deferred, set-id bits end, and times are set.

use std::sync::Arc;

use super::super::machine::{Effects, Event, Machine};
use crate::client::deferred_setattr::{DeferredSetattr, without_set_id};
use crate::client::identity::Identity;
use crate::wire::pb;

/// Keep a change of attributes to be sent with other metadata.
pub struct DeferSetattr<'a> {
    pub identity: &'a Arc<Identity>,
    pub request: &'a pb::SetAttrRequest,
    pub now_ns: i64,
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
pub struct DeferredSynced(pub u64);

impl Event for DeferredSynced {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, effects: &mut Effects) {
        machine.drop_deferred(Some(self.0), effects);
    }
}

/// A user is about to change the file's bytes: its set-id bits end, as the metadata service hears with the change.
pub struct ClearSetId;

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
pub struct KeepSetId;

impl Event for KeepSetId {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, _: &mut Effects) {
        machine.metadata.forget(|pending| pending.clears_set_id = false);
    }
}

/// The metadata service was given times by the user: those of earlier writes do not count.
pub struct ForgetMtime;

impl Event for ForgetMtime {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, _: &mut Effects) {
        machine.metadata.forget_mtime();
    }
}

/// The file was created here just now: until its first close attributes may be deferred.
pub struct Created;

impl Event for Created {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, _: &mut Effects) {
        machine.is_new = true;
    }
}

/// A handle is being closed: from here on attributes are sent at once.
pub struct FirstClose;

impl Event for FirstClose {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, effects: &mut Effects) {
        if std::mem::take(&mut machine.is_new) {
            effects.created_file_closed = Some((machine.length, machine.layout.inline_bytes()));
        }
    }
}
