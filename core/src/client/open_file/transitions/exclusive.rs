//! Access is drained, exclusive for a truncation, and shared again.

use std::time::Instant;

use super::super::access::Access;
use super::super::bug::Bug;
use super::super::machine::{Effects, Event, Machine};
use super::super::server_inode::ChangeOrigin;
use crate::wire::pb;

/// Let nothing new begin.
pub struct Drain;

impl Event for Drain {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, _: &mut Effects) {
        assert_eq!(machine.access, Access::Shared, "I4: one thread at a time asks to be alone");
        machine.access = Access::Draining;
    }
}

/// Take exclusive access, for a truncation to `length`.
pub struct Enter {
    pub length: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entered {
    Exclusive,
    /// Something is in flight, or the file is leaving its inode.
    Wait,
    /// Access is shared again: bytes in the inode that stay must be synced first.
    SyncFirst,
}

impl Event for Enter {
    type Outcome = Entered;

    fn apply(self, machine: &mut Machine, effects: &mut Effects) -> Entered {
        assert_eq!(machine.access, Access::Draining, "I4: access is drained before it is exclusive");
        let in_flight = machine.write_back.is_in_flight() && machine.bug != Bug::EnterWhileInFlight;
        if in_flight || machine.bytes.is_migrating() {
            return Entered::Wait;
        }
        if self.length == 0 || !machine.is_edited() {
            machine.access = Access::Exclusive;
            return Entered::Exclusive;
        }
        machine.access = Access::Shared;
        effects.wake = true;
        Entered::SyncFirst
    }
}

/// Give back exclusive access.
pub struct Leave {
    /// The file was cut to, or extended to, this length, and what the metadata service replied.
    pub truncated: Option<(u64, Option<pb::Inode>)>,
    pub now: Instant,
}

impl Event for Leave {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, effects: &mut Effects) {
        assert_eq!(machine.access, Access::Exclusive, "I4: exclusive access is given back once");
        if let Some((length, inode)) = self.truncated {
            machine.truncate(length, inode, self.now, effects);
        }
        machine.access = Access::Shared;
        machine.start_helpers(0, effects);
        effects.wake = true;
    }
}

impl Machine {
    fn truncate(&mut self, length: u64, inode: Option<pb::Inode>, now: Instant, effects: &mut Effects) {
        effects.memory -= self.write_back.cut(length, self.layout.chunk_bytes) as isize;
        if let Some(inline) = self.bytes.inline_mut() {
            inline.forget_edits();
            inline.bytes.truncate(usize::try_from(length).unwrap_or(usize::MAX));
        }
        assert!(!self.write_back.is_in_flight(), "I4: nothing is in flight over a cut");
        self.acknowledged = 0;
        self.unverified_size = None;
        self.metadata.forget_mtime();
        if let Some(deferred) = &mut self.deferred {
            deferred.written();
        }
        self.durability.undurable += 1;
        self.length = length;
        if let Some(inode) = inode.filter(|inode| !inode.bytes_withheld) {
            let source = ChangeOrigin::of(&self.inode, &inode, true);
            self.apply_inode(inode, source, now, effects);
            // What is known may be newer than this reply.
            self.length = self.inode.length.max(self.waiting_end());
        }
    }
}
