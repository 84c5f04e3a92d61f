//! Where an append goes: to the end of the file, which other clients may move.
//!
//! - E1 A client that has learned that no other has the file open for writing appends for `TRUST` without asking again.
//! - E2 A client that learns of others does not append before its own write session is older than that: from then on
//!   none of them takes itself for the only one.
//! - E3 While others write, each append asks for the end first, and is acknowledged by the chains before it returns.
//! - E4 What was appended and buffered under E1 is written back at once, and others wait (E2) until there was time for that:
//!   `WRITE_BACK` after the last moment at which it can have been appended.
//!
//! So an append never overwrites what another client had synced or closed before it began, nor what another client had
//! appended before without an error of its write-back, unless writing it back took longer than `WRITE_BACK`. Appends of
//! two clients at one moment may still meet: nothing reserves the bytes between the question and the write.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::super::machine::{Effects, Event, Machine};
use super::super::write_back::UnlistAppended;
use super::OpenInode;
use crate::clock;
use crate::error::{Error, Result};
use crate::log_rate_limit::Warnings;

/// How long a client that was alone counts itself alone. It asks as often while it appends.
const TRUST: Duration = Duration::from_millis(200);
const TRUST_NS: u64 = TRUST.as_nanos() as u64;
/// Time to write back what was appended alone.
pub(in crate::client) const WRITE_BACK: Duration = Duration::from_millis(250);
/// How long another client waits, once, with its first append. Clocks differ by at most 5 %.
const WAIT_NS: u64 = (TRUST_NS + WRITE_BACK.as_nanos() as u64) / 20 * 21;

/// A metadata service that is away fails the reports of every file.
static UNREPORTED: Warnings = Warnings::new();

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writers {
    ThisClient,
    Others,
}

/// What one client knows of the writers of a file, in nanoseconds of `clock`.
#[derive(Clone, Default)]
pub(in super::super) struct AppendTrust {
    /// This client is the only writer until then.
    alone_until_ns: u64,
    /// Its oldest write session has been known to the metadata service since then at the latest.
    opened_ns: u64,
}

impl AppendTrust {
    /// Make it when the first write session was opened, just now.
    pub(in super::super) fn opened(alone_ns: Option<u64>) -> AppendTrust {
        AppendTrust {
            opened_ns: clock::now_ns(),
            alone_until_ns: alone_ns.map_or(0, |since| since + TRUST_NS),
        }
    }
}

/// No other client had the file open for writing at some moment; trust that until then.
struct Alone {
    until_ns: u64,
}

impl Event for Alone {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, _: &mut Effects) {
        machine.append_trust.alone_until_ns = self.until_ns;
    }
}

// E4.
impl OpenInode {
    /// Begin to write back what was appended, without waiting.
    pub fn start_append_write_back(self: &Arc<Self>) {
        self.apply(UnlistAppended);
        self.start_write_back();
    }

    /// Send what was appended to bytes in the inode.
    pub fn report_appended(self: &Arc<Self>) {
        if !self.machine.lock().is_edited() {
            return;
        }
        if let Err(error) = self.sync_metadata() {
            // What has aged is sent once more, and that failure counts.
            let id = self.id;
            UNREPORTED.warn(format_args!(
                "inode {id}: sync of appended bytes failed: {error}; it is retried within two seconds"
            ));
        }
    }
}

impl OpenInode {
    /// Learn where the file ends, unless this client is known to be its only writer.
    pub(super) fn learn_end(self: &Arc<Self>) -> Result<Writers> {
        let (writer, opened_ns) = {
            let machine = self.machine.lock();
            if clock::now_ns() < machine.append_trust.alone_until_ns {
                return Ok(Writers::ThisClient);
            }
            (machine.sessions.first(), machine.append_trust.opened_ns)
        };
        let identity = writer
            .map(|(_, identity)| identity)
            .ok_or_else(|| Error::invalid("append without a write session: open the file for writing"))?;
        loop {
            let asked_ns = clock::now_ns();
            let inode = self.shared.meta.stat_open(&identity, self.id)?;
            self.apply_server_inode(&inode);
            if !inode.others_write {
                self.apply(Alone { until_ns: asked_ns + TRUST_NS });
                return Ok(Writers::ThisClient);
            }
            let may_append_ns = opened_ns + WAIT_NS;
            if asked_ns >= may_append_ns {
                return Ok(Writers::Others);
            }
            thread::sleep(Duration::from_nanos(may_append_ns - asked_ns));
        }
    }
}
