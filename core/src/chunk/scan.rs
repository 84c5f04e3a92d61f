//! Listings, and removals of many chunks.

use super::api::*;
use super::engine::Engine;
use super::index;
use super::state::{ContentState, Record};
use crate::types::{ChainId, ChunkId, ChunkKey, ContentId, Stamp, Status};

impl Engine {
    /// Up to `limit` chunks of a chain after `after`, in order of (content, index), tombstones and pending ones too.
    pub fn list(
        &self,
        chain: ChainId,
        after: Option<ChunkId>,
        limit: usize,
    ) -> Result<Vec<ChunkRecord>, Status> {
        self.list_since(chain, after, limit, 0)
    }

    /// As `list`; only chunks whose data were staged since round `since` of `sync` had begun, or have something pending,
    /// or cannot be read.
    pub fn list_since(
        &self,
        chain: ChainId,
        after: Option<ChunkId>,
        limit: usize,
        since: u64,
    ) -> Result<Vec<ChunkRecord>, Status> {
        let after = after.map(|chunk| ChunkKey { chain, chunk });
        let is_recent = |record: &Record| {
            record.pending.is_some() || record.committed.as_ref().is_none_or(|state| state.round >= since)
        };
        let records = self.core.index.scan(index::of_chain(chain, after));
        let records = records.filter(|entry| match entry {
            Ok((_, Ok(record))) => is_recent(record),
            _ => true,
        });
        let lines: Result<Vec<_>, _> =
            records.take(limit).map(|entry| entry.map(|(key, record)| line(key, record))).collect();
        if let Ok(lines) = &lines {
            assert!(
                lines.is_sorted_by(|one, next| one.chunk < next.chunk),
                "each chunk is listed once, in order"
            );
        }
        lines
    }

    /// The last chunk with content: its index and length.
    pub fn last_chunk(&self, chain: ChainId, content: ContentId) -> Result<Option<(u32, u32)>, Status> {
        for entry in self.core.index.scan(index::of_content(chain, content, 0)).rev() {
            let (key, record) = entry?;
            if let Some(state) = content_of(&record?) {
                return Ok(Some((key.chunk.index, state.length)));
            }
        }
        Ok(None)
    }

    /// Chunks of one content with index ≥ `first_index` that hold content or have something pending.
    pub fn content_chunks(
        &self,
        chain: ChainId,
        content: ContentId,
        first_index: u32,
        limit: usize,
    ) -> Result<Vec<ChunkRecord>, Status> {
        let mut found = Vec::new();
        for entry in self.core.index.scan(index::of_content(chain, content, first_index)) {
            if found.len() == limit {
                break;
            }
            let (key, record) = entry?;
            let is_wanted = |record: &Record| content_of(record).is_some() || record.pending.is_some();
            if record.as_ref().map_or(true, is_wanted) {
                found.push(line(key, record));
            }
        }
        assert!(found.len() <= limit, "no more than were asked for");
        Ok(found)
    }

    /// Remove up to `limit` records of a chain with their pages; `true` when none is left.
    pub fn remove_chain(&self, chain: ChainId, limit: usize) -> Result<bool, Status> {
        let entries = self.core.index.scan(index::of_chain(chain, None)).take(limit);
        let keys = entries.map(|entry| Ok(entry?.0)).collect::<Result<Vec<ChunkKey>, Status>>()?;
        for &key in &keys {
            self.erase(key)?;
        }
        Ok(keys.len() < limit)
    }

    /// Among the next `limit` records of a chain after `after`: the tombstones that were staged before `round` of
    /// `sync` began, and the last record looked at; `None` at the end of the chain.
    #[allow(clippy::type_complexity)]
    pub fn old_tombstones(
        &self,
        chain: ChainId,
        after: Option<ChunkId>,
        round: u64,
        limit: usize,
    ) -> Result<(Vec<(ChunkKey, Stamp)>, Option<ChunkId>), Status> {
        let after = after.map(|chunk| ChunkKey { chain, chunk });
        let (mut found, mut last, mut count) = (Vec::new(), None, 0);
        for entry in self.core.index.scan(index::of_chain(chain, after)).take(limit) {
            let (key, record) = entry?;
            let record = record.ok().filter(|record| record.pending.is_none());
            let state = record.and_then(|record| record.committed);
            let state = state.filter(|state| state.removed && state.round < round);
            found.extend(state.map(|state| (key, state.stamp)));
            assert!(last.is_none_or(|last| last < key.chunk), "the index is in order");
            (last, count) = (Some(key.chunk), count + 1);
        }
        Ok((found, last.filter(|_| count == limit)))
    }

    /// Forget a tombstone, if it is still there and nothing is pending; whether it was.
    pub fn forget(&self, key: ChunkKey, stamp: Stamp) -> Result<bool, Status> {
        self.core.erase_if(key, |record| {
            let state = record.committed.as_ref().filter(|state| state.removed && state.stamp == stamp);
            state.is_some() && record.pending.is_none()
        })
    }
}

fn content_of(record: &Record) -> Option<&ContentState> {
    record.committed.as_deref().filter(|state| !state.removed)
}

fn line(key: ChunkKey, record: Result<Record, Status>) -> ChunkRecord {
    let is_unreadable = record.is_err();
    let record = record.unwrap_or_default();
    ChunkRecord {
        chunk: key.chunk,
        committed: record.committed.as_ref().map(|state| state.committed()),
        crc32c: record.committed.as_ref().map_or(0, |state| state.content_crc()),
        pending: record.pending.as_ref().map(|pending| pending.pending()),
        is_unreadable,
    }
}
