//! Bytes are appended while this client is the only writer, and written back soon (E1, E4).

use super::super::machine::{Effects, Event, Machine};

/// No other client had the file open for writing at some moment; trust that until then.
pub struct Alone {
    pub until_ns: u64,
}

impl Event for Alone {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, _: &mut Effects) {
        machine.append_trust.alone_until_ns = self.until_ns;
    }
}

/// Put the file in the client's list of files with appended bytes.
pub struct ListAppended;

impl Event for ListAppended {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, effects: &mut Effects) {
        effects.list_appended |= !std::mem::replace(&mut machine.is_append_listed, true);
    }
}

/// The client has taken the file out of that list.
pub struct UnlistAppended;

impl Event for UnlistAppended {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, _: &mut Effects) {
        machine.is_append_listed = false;
    }
}
