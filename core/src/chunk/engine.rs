//! The engine: what a storage node calls.

use std::path::Path;

use super::api::*;
use super::payload::{Sink, Source};
use crate::types::{ChainId, ChainVersion, ChunkId, ChunkKey, ContentId, Status, Version};

/// The chunks of one storage directory. All methods take `&self` and may be called from any thread.
pub struct Engine {}

#[allow(unused_variables)]
impl Engine {
    /// Opens the storage directory `dir`, or makes one of an empty or absent directory.
    ///
    /// After `kill -9` everything acknowledged is there. Checks that no page has two owners.
    pub fn open(dir: &Path, options: Options) -> Result<Engine, OpenError> {
        todo!()
    }

    /// What opening found: pending chunks to drive on, damaged block files.
    pub fn open_report(&self) -> &OpenReport {
        todo!()
    }

    /// All that is known of a chunk; `None` if it was never written (or its tombstone was purged).
    pub fn lookup(&self, key: ChunkKey) -> Result<Option<ChunkState>, Status> {
        todo!()
    }

    /// Makes `update` pending: durable against `kill -9`, not yet visible to `read`.
    ///
    /// `Write`, `Truncate` and `Remove` create version committed + 1. Answers:
    /// - `Staged::Committed` where that version, or a newer one, is committed already;
    /// - `MissingVersion` where an earlier version is missing;
    /// - `WrongChainVersion` where something newer than `stamp.chain_version` is stored;
    /// - `Busy` where another request's pending version of the same chain version is in the way (a pending
    ///   version of an older chain version is replaced), or where too many clients write this chunk;
    /// - `Invalid`, `NoSpace`, `Checksum` (the bytes around a partial page are damaged), `Io`.
    ///
    /// The same tag and operation again is idempotent; a newer chain version is then taken over.
    ///
    /// `Op::Replace` is `install`: committed at once at the given stamp, whatever was there or pending. A commit
    /// of that version afterwards is allowed and changes nothing.
    pub fn stage(&self, update: &Update, payload: &dyn Source) -> Result<StageOutcome, Status> {
        todo!()
    }

    /// Commits the pending `version` under `chain_version`. Idempotent: a version that is committed already, or
    /// overtaken, is fine. `MissingVersion` where it is neither pending nor committed.
    pub fn commit(
        &self,
        key: ChunkKey,
        version: Version,
        chain_version: ChainVersion,
    ) -> Result<CommitOutcome, Status> {
        todo!()
    }

    /// Drops the pending version if it is `version`; otherwise does nothing.
    pub fn drop_pending(&self, key: ChunkKey, version: Version) -> Result<(), Status> {
        todo!()
    }

    /// Recovery: makes the chunk what the predecessor says, committed at once at that stamp (repairs damage too).
    pub fn install(&self, install: &Install<'_>, payload: &dyn Source) -> Result<StageOutcome, Status> {
        todo!()
    }

    /// Forgets a chunk entirely, version and writers too: recovery, for a chunk its predecessor never heard of.
    pub fn erase(&self, key: ChunkKey) -> Result<(), Status> {
        todo!()
    }

    /// Reads committed bytes from `offset` on, at most `into.len()`, each page verified. Never waits for an update.
    /// `NotFound` for a chunk without committed content; a read at or past the end places nothing.
    /// After an error the content of `into` is undefined.
    pub fn read(&self, key: ChunkKey, offset: u32, into: &mut dyn Sink) -> Result<ReadOutcome, Status> {
        todo!()
    }

    /// Like `read`, of the chunk as it will be once its pending version is committed; `NotFound` without one.
    pub fn read_pending(
        &self,
        key: ChunkKey,
        offset: u32,
        into: &mut dyn Sink,
    ) -> Result<ReadOutcome, Status> {
        todo!()
    }

    /// Up to `limit` chunks of a chain after `after`, in order of (content, index), tombstones and pending ones too.
    pub fn list(
        &self,
        chain: ChainId,
        after: Option<ChunkId>,
        limit: usize,
    ) -> Result<Vec<ChunkRecord>, Status> {
        todo!()
    }

    /// The last chunk with content: its index and length.
    pub fn last_chunk(&self, chain: ChainId, content: ContentId) -> Result<Option<(u32, u32)>, Status> {
        todo!()
    }

    /// Last chunk, count and bytes of one content. Reads every record of the content.
    pub fn content_summary(&self, chain: ChainId, content: ContentId) -> Result<ContentSummary, Status> {
        todo!()
    }

    /// Chunks of one content with index ≥ `first_index` that hold content or have something pending.
    pub fn content_chunks(
        &self,
        chain: ChainId,
        content: ContentId,
        first_index: u32,
        limit: usize,
    ) -> Result<Vec<ChunkRecord>, Status> {
        todo!()
    }

    /// Returns when everything acknowledged before the call is durable against power loss.
    /// Concurrent callers share one round of disk writes.
    pub fn sync(&self) -> Result<(), Status> {
        todo!()
    }

    /// The chains that have records here.
    pub fn chains(&self) -> Vec<ChainId> {
        todo!()
    }

    pub fn usage(&self, chain: ChainId) -> Usage {
        todo!()
    }

    pub fn space(&self) -> Result<Space, Status> {
        todo!()
    }

    /// Removes up to `limit` records of a chain with their pages; `true` when none is left.
    pub fn remove_chain(&self, chain: ChainId, limit: usize) -> Result<bool, Status> {
        todo!()
    }

    /// Forgets up to `limit` tombstones committed before `before_unix_ms`; the number forgotten.
    pub fn purge_tombstones(
        &self,
        chain: ChainId,
        before_unix_ms: u64,
        limit: usize,
    ) -> Result<usize, Status> {
        todo!()
    }

    /// Reads and verifies every page of a chunk's committed state (and pending one); the damaged ones.
    pub fn verify(&self, key: ChunkKey) -> Result<Vec<Damage>, Status> {
        todo!()
    }

    /// Damaged pages found since the start that have not been replaced since.
    pub fn damage(&self) -> Vec<Damage> {
        todo!()
    }
}
