//! What this process knows of one open file, however many handles it has: the newest bytes and the newest length.
//!
//! - The state, in parts: `inline` (bytes in the inode), `write_back` (dirty chunks and those in flight), `metadata` (what
//!   the metadata service is to be sent), `access` (truncation), `sessions`, `append_trust`, `durability` (fsync).
//! - `machine` has them all, and is pure: `step(event)` changes the state and returns what is to be done (`Effects`). No
//!   lock, I/O, thread or clock. `view` is what readers see of it, `server_inode` how it follows the metadata service.
//! - `transitions` has the events, one type each.
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
//!   first (`driver::inline_migration`).

mod access;
mod append_trust;
mod bug;
mod driver;
mod durability;
#[cfg(test)]
mod exploration;
mod inline;
mod machine;
mod metadata;
mod mode;
mod server_inode;
mod sessions;
mod transitions;
mod view;
mod write_back;

pub use append_trust::WRITE_BACK;
pub use driver::{DirectWrite, OpenInode, now_ns, stale, write_direct};
pub use mode::{IoMode, WriteOffset};
pub use sessions::lost;
