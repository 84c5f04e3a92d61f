//! Write sessions of this client at the metadata service.

use std::sync::Arc;

use super::driver::{AppendTrust, lost};
use super::machine::{Effects, Event, Machine};
use crate::client::meta::Identity;

#[derive(Clone, Default)]
pub(super) struct Sessions {
    /// How many the metadata service has ended by itself.
    pub(super) lost: u64,
    /// Sessions, and who opened them.
    pub(super) open: Vec<(u64, Arc<Identity>)>,
    /// The one of them whose close is under way: if the metadata service does not know it any more, it has closed it, or
    /// its reply to the close says so.
    pub(super) closing: Option<u64>,
}

impl Sessions {
    pub(super) fn first(&self) -> Option<(u64, Arc<Identity>)> {
        self.open.first().cloned()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    fn has(&self, session: u64) -> bool {
        self.open.iter().any(|(known, _)| *known == session)
    }
}

/// A handle was opened for writing.
pub(super) struct AddSession {
    pub(super) session: u64,
    pub(super) identity: Arc<Identity>,
    /// If it is the first.
    pub(super) append_trust: AppendTrust,
}

impl Event for AddSession {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, _: &mut Effects) {
        assert_ne!(self.session, 0, "a write session has a number");
        if machine.sessions.is_empty() {
            machine.append_trust = self.append_trust;
        }
        machine.sessions.open.push((self.session, self.identity));
    }
}

/// The session has ended, or its close is left to others.
pub(super) struct DropSession(pub(super) u64);

impl Event for DropSession {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, _: &mut Effects) {
        machine.sessions.open.retain(|(known, _)| *known != self.0);
        machine.sessions.closing.take_if(|closing| *closing == self.0);
    }
}

/// The close of this session is sent; `None`: it was refused, and the session stays open.
pub(super) struct Closing(pub(super) Option<u64>);

impl Event for Closing {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, _: &mut Effects) {
        machine.sessions.closing = self.0;
    }
}

/// The metadata service has ended this session while this client was away. Others may have cut or replaced the file
/// since, so what waits here is discarded, and all handles that write fail.
pub(super) struct LoseSession(pub(super) u64);

impl Event for LoseSession {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, effects: &mut Effects) {
        if !machine.sessions.has(self.0) || machine.sessions.closing == Some(self.0) {
            return;
        }
        machine.sessions.open.clear();
        machine.sessions.lost += 1;
        machine.discard_dirty(effects);
        machine.acknowledged = 0;
        machine.unverified_size = None;
        machine.described = None;
        machine.fail(lost(), effects);
        effects.wake = true;
    }
}

/// No handle is left: what could not be sent is not sent when others have opened it again.
pub(super) struct Discard;

impl Event for Discard {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, effects: &mut Effects) {
        if !machine.is_clean() {
            machine.discard_dirty(effects);
        }
    }
}

/// What is known may be from before this client was away.
pub(super) struct Distrust;

impl Event for Distrust {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, _: &mut Effects) {
        machine.described = None;
    }
}

impl Machine {
    /// Give up what waits here.
    fn discard_dirty(&mut self, effects: &mut Effects) {
        effects.memory -= self.write_back.cut(0, self.layout.chunk_bytes) as isize;
        if let Some(inline) = self.bytes.inline_mut() {
            inline.forget_edits();
        }
        let number = self.deferred.as_ref().map(|deferred| deferred.number);
        self.drop_deferred(number, effects);
        self.metadata.discard();
    }
}
