//! Chunks on one disk: the engine of one storage directory.
//!
//! A chunk is a list of 16 KiB pages in large sparse block files. Every page has a CRC32C, so every read,
//! partial ones too, is verified. The index holds, per chunk, its committed state, at most one pending state and
//! the last request of each recent writer. `docs/formats.md` draws both on disk.
//!
//! Invariants
//! - I1 A page that a committed state refers to is never written, except past that state's last valid byte.
//! - I2 A page has at most one owner: one chunk, whose committed and pending state may share it.
//! - I3 A page is used again only when no state in the index and no reader refers to it, and the index that
//!   gave it up is durable: power loss cannot bring back a state whose pages were overwritten.
//! - I4 For a chunk: committed ≤ pending ≤ committed + 1; on nothing, or a tombstone, any higher stamp may be pending.
//! - I5 What a call acknowledged survives `kill -9` at once, and power loss after the next `sync`.
//! - I6 Data reaches the page cache before the index names it, and the disk before the index does in `sync`.
//! - I7 After power loss a chunk is in the state of the last `sync` or in a later committed one, never in between:
//!   a record names the states that are durable if the round of `sync` under way counts, and if it does not, until a
//!   later one is durable; opening checks which it is. Only what was pending where recovery replaced a chunk may be gone.
//!
//! Not here: permission to write, the order of writes, forwarding (`craq`, `storage`). The caller runs at most
//! one update of a chunk at a time, or takes what the engine's own lock of the chunk makes of several.

mod accesses;
mod api;
mod blocks;
mod boot_id;
mod cache;
mod checksum;
mod codec;
mod deferred_free;
mod engine;
#[cfg(test)]
mod faults;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod group_commit;
mod index;
mod journal;
mod page_writer;
mod pages;
mod payload;
mod read;
mod scan;
mod segments;
mod state;
mod sync;
#[cfg(test)]
mod tests;
mod update;
mod writers;

pub use api::{
    ChunkRecord, ChunkState, CommitOutcome, Committed, Damage, EngineOptions, Install, OpenError, OpenReport,
    Origin, Pending, ReadOutcome, Space, StageOutcome, Staged, Update, Usage,
};
pub use engine::Engine;
pub use payload::{Sink, Source};
/// For the model check, which explores what power loss leaves by the engine's own rule.
#[doc(hidden)]
pub use state::{ContentState, Record};
pub use writers::Writers;
