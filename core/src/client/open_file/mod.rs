//! What this process knows of one open file, however many handles it has: the newest bytes and the newest length.
//!
//! - `machine` is pure: `step(event)` changes the state and returns what is to be done (`Effects`). No lock, I/O, thread
//!   or clock. Its parts: `inline` (bytes in the inode), `write_back` (dirty chunks and those in flight), `metadata` (what
//!   the metadata service is to be sent), `access` (truncation), `sessions`, `durability` (fsync), `view` (what readers see).
//! - `driver` holds the lock, waits, runs threads and calls services, and carries out the effects.
//! - `exploration` runs the machine in small worlds through every order of the events that it names.
//!
//! Invariants, asserted after each step where they can be seen from the state:
//! - I1 A byte that was written is in `Inline::edits`, dirty, in flight, acknowledged by the chains, or was given up with
//!   an error. Bytes are edits only while nothing is dirty or in flight: what is written beside them is newer.
//! - I2 At most one update of a chunk is in flight, so its updates reach the chain in order.
//! - I3 A length is sent to the metadata service only after the bytes below it were acknowledged.
//! - I4 While access is exclusive nothing is in flight, the file is not leaving its inode, and no write is taken in.
//! - I5 The first error of a write-back is reported to every handle that was open then, at its next fsync and close.
//! - I6 While the bytes are in the inode, nothing of them is written to chunks: a file with dirty chunks leaves its inode
//!   first (`inline_migration`).

mod access;
mod driver;
mod durability;
#[cfg(test)]
mod exploration;
mod inline;
mod machine;
mod metadata;
mod sessions;
mod view;
mod write_back;

pub(super) use driver::WRITE_BACK;
pub use driver::{DirectWrite, OpenInode, lost, now_ns, write_direct};

/// Where a write goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteOffset {
    At(u64),
    Append,
}

/// How a write or read treats this client's buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoMode {
    /// Bytes may wait here.
    Buffered,
    /// Acknowledged by the chains before the call returns; reads see what others wrote.
    Direct,
}
