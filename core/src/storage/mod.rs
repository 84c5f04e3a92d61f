//! The storage server: what a node does with batches. It joins `net`, `craq` and `chunk`.
//!
//! - `table`: the machines of the chunks with work in progress. Committed state lives in the engine, so
//!   a machine that is at rest is forgotten.
//! - `call`: one caller's batch. Its thread executes what the machines order for its own updates.
//! - `send`: sends updates to successors, many chunks in one batch, over the connections of `peers`.
//! - `redrive`: threads for what no caller executes: pending versions whose caller has left, or that a restart
//!   or a change of the chain found on disk.
//! - `quarantine`: sets a chunk aside that its chain never had.
//! - `repair`: fetches a damaged chunk from another replica.
//! - `slow_ops`: says which chunks something has held for long.
//! - `hold`: keeps updates of clients waiting for a moment, for a backup.
//! - `control`: calls of the Python process.
//!
//! Invariants
//! - S1 No lock of the table is held across disk or network I/O; the lock of one chunk's machine is held across
//!   the engine's look-up when the machine is made, and across the writes of a repair, a quarantine or a tombstone's end.
//! - S2 A caller never waits for one chunk while it holds another that it could finish.
//! - S3 A thread that holds one connection to a peer never waits for another one, and a send whose answer depends on
//!   further sends has connections of its own: no circle of full pools can form.
//! - S4 Lease and chain version are looked at before the state that is served.
//! - S5 An update is not begun after its caller's deadline. It is looked at when the update holds its chunk, so
//!   every later decision for this chunk comes after it, also if its thread sleeps there.
//! - S6 A node whose disk has failed, a flush or a write of the index included, serves nothing from that moment on.

mod call;
mod control;
mod counters;
mod hold;
mod lease;
mod node;
mod peers;
mod quarantine;
mod redrive;
mod redrive_queue;
mod repair;
mod repair_queue;
mod send;
mod server;
mod service;
mod slow_ops;
mod table;
#[cfg(test)]
mod tests;

pub use control::{ChunkLine, ScrubReport, SyncReport};
pub use node::{ChainStatus, TargetReport};
pub use server::{NodeOptions, StorageServer};
