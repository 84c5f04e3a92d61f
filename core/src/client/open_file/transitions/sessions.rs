//! Write sessions are opened, closed and lost.

use std::sync::Arc;

use super::super::append_trust::AppendTrust;
use super::super::bug::Bug;
use super::super::machine::{Effects, Event, Machine};
use super::super::sessions::lost;
use crate::client::identity::Identity;

/// A handle was opened for writing.
pub struct AddSession {
    pub session: u64,
    pub identity: Arc<Identity>,
    /// If it is the first.
    pub append_trust: AppendTrust,
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
pub struct DropSession(pub u64);

impl Event for DropSession {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, _: &mut Effects) {
        machine.sessions.open.retain(|(known, _)| *known != self.0);
        machine.sessions.closing.take_if(|closing| *closing == self.0);
    }
}

/// The close of this session is sent; `None`: it was refused, and the session stays open.
pub struct Closing(pub Option<u64>);

impl Event for Closing {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, _: &mut Effects) {
        machine.sessions.closing = self.0;
    }
}

/// The metadata service has ended this session while this client was away. Others may have cut or replaced the file
/// since, so what waits here is discarded, and all handles that write fail.
pub struct LoseSession(pub u64);

impl Event for LoseSession {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, effects: &mut Effects) {
        if !machine.sessions.has(self.0) || machine.sessions.closing == Some(self.0) {
            return;
        }
        machine.sessions.open.clear();
        machine.sessions.lost += 1;
        if machine.bug != Bug::KeepDirtyOfLostSession {
            machine.discard_dirty(effects);
        }
        machine.acknowledged = 0;
        machine.unverified_size = None;
        machine.described = None;
        machine.fail(lost(), effects);
        effects.wake = true;
    }
}

/// No handle is left: what could not be sent is not sent when others have opened it again.
pub struct Discard;

impl Event for Discard {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, effects: &mut Effects) {
        if !machine.is_clean() {
            machine.discard_dirty(effects);
        }
    }
}

/// What is known may be from before this client was away.
pub struct Distrust;

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
