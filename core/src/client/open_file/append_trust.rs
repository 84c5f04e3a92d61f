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

use std::time::Duration;

/// How long a client that was alone counts itself alone. It asks as often while it appends.
const TRUST: Duration = Duration::from_millis(200);
pub(super) const TRUST_NS: u64 = TRUST.as_nanos() as u64;
/// Time to write back what was appended alone.
pub const WRITE_BACK: Duration = Duration::from_millis(250);
/// How long another client waits, once, with its first append. Clocks differ by at most 5 %.
pub(super) const WAIT_NS: u64 = (TRUST_NS + WRITE_BACK.as_nanos() as u64) / 20 * 21;

/// What one client knows of the writers of a file, in nanoseconds of `clock`.
#[derive(Clone, Default)]
pub(super) struct AppendTrust {
    /// This client is the only writer until then.
    pub(super) alone_until_ns: u64,
    /// Its oldest write session has been known to the metadata service since then at the latest.
    pub(super) opened_ns: u64,
}

impl AppendTrust {
    /// Make it when the first write session was opened, at `opened_ns`; at `alone_ns` no other client had one.
    pub(super) fn opened(opened_ns: u64, alone_ns: Option<u64>) -> AppendTrust {
        assert!(alone_ns.is_none_or(|since| since <= opened_ns), "E1: it was asked before the reply came");
        AppendTrust { opened_ns, alone_until_ns: alone_ns.map_or(0, |since| since + TRUST_NS) }
    }
}
