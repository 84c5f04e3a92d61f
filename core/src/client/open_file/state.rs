//! What is known of an open file, under its lock.

use std::sync::Arc;
use std::time::Duration;

use super::metadata_sync::MetadataUpdate;
use super::{Source, State, inline_of, now_ns};
use crate::buffer::Placement;
use crate::client::deferred_setattr::without_set_id;
use crate::client::dirty::{DirtyChunk, RUN_BYTES, overlay, parts};
use crate::client::inline::Inline;
use crate::client::shared::Shared;
use crate::error::Error;
use crate::log_rate_limit::Warnings;
use crate::wire::pb;

/// Updates of one wave of write-back; each is one piece.
const BATCH_PIECES_MAX: usize = 128;
/// Number of the write that made bytes dirty which were in the inode before: older than any other.
pub(super) const SPILLED: u64 = 0;

/// A disk that is full fails every write-back of every file.
static FAILED: Warnings = Warnings::new();

impl State {
    pub(super) fn local_view(&self) -> pb::Inode {
        self.with_times(pb::Inode { length: self.length, ..self.inode.clone() })
    }

    pub(super) fn with_times(&self, mut inode: pb::Inode) -> pb::Inode {
        if let Some(mtime_ns) = self.mtime_ns {
            inode.mtime_ns = mtime_ns;
            inode.ctime_ns = inode.ctime_ns.max(mtime_ns);
        }
        if self.clears_set_id {
            inode.permissions = without_set_id(inode.permissions);
        }
        if let Some(deferred) = &self.deferred {
            deferred.overlay(&mut inode);
        }
        inode
    }

    /// Whether the metadata service described the inode less than `age` ago.
    pub(super) fn is_younger_than(&self, age: Duration) -> bool {
        self.described.is_some_and(|described| described.elapsed() < age)
    }

    /// Of a reply to a change that this client has made, or to something else.
    pub(super) fn source_of(&self, inode: &pb::Inode, changes: bool) -> Source {
        if changes && inode.change == self.inode.change + 1 { Source::Own } else { Source::Any }
    }

    pub(super) fn is_clean(&self) -> bool {
        self.dirty.is_empty() && self.in_flight.is_empty() && self.metadata_is_synced()
    }

    pub(super) fn metadata_is_synced(&self) -> bool {
        let attributes = self.mtime_ns.is_none() && self.deferred.is_none() && !self.clears_set_id;
        !self.unsynced && attributes && self.inline_is_synced()
    }

    pub(super) fn inline_is_synced(&self) -> bool {
        !self.is_edited()
    }

    /// Whether set-id bits are to end that the metadata service has shown. Where it has shown none, the end travels with
    /// the next report: every write of a user may ask for it.
    pub(super) fn clears_known_set_id(&self) -> bool {
        let permissions = self.inode.permissions;
        self.clears_set_id && permissions != without_set_id(permissions)
    }

    /// Whether bytes in the inode were written here and are not told yet.
    pub(super) fn is_edited(&self) -> bool {
        self.inline.as_ref().is_some_and(Inline::is_edited)
    }

    /// What was written here is laid over what the inode has become. Returns the change in memory held.
    pub(super) fn follow_inode(&mut self, shared: &Shared) -> isize {
        match &mut self.inline {
            Some(inline) if inline.is_edited() && self.inode.is_inline => {
                inline.rebase(self.inode.inline_data.clone(), self.inode.change);
                0
            }
            _ => self.spill_inline(shared),
        }
    }

    /// Bytes up to `length` were written under an older truncation than is known now, before it or after.
    pub(super) fn add_unverified_size(&mut self, length: u64, truncate_version: u64) {
        let length = self.unverified_size.as_ref().map_or(length, |hint| hint.length.max(length));
        self.unverified_size = Some(pb::LengthHint { length, truncate_version });
        self.ack_count += 1;
        self.length = self.length.max(length);
        self.unsynced = true;
    }

    /// Whether all that is known of the file's bytes is in `inline`, so that a small write may go there.
    pub(super) fn is_inside(&self) -> bool {
        self.inline.is_some() && self.dirty.is_empty() && self.in_flight.is_empty()
    }

    /// Whether bytes that were in `inline` wait to be written back, and so are in no news.
    pub(super) fn has_spilled(&self) -> bool {
        self.waits_until(SPILLED)
    }

    pub(super) fn size_is_synced(&self) -> bool {
        self.acknowledged <= self.inode.length
            && self.unverified_size.is_none()
            && self.inline_is_synced()
            && !self.has_spilled()
    }

    /// What is to be reported now; empty if nothing was written since the last report.
    pub(super) fn update(&mut self) -> MetadataUpdate {
        let metadata_is_synced = self.metadata_is_synced();
        if let Some(inline) = &mut self.inline {
            inline.begin_sync();
        }
        // Of an inline file all of it is told, and it may be longer than its bytes: zeros after them.
        let length = if self.is_inside() { self.length } else { self.acknowledged };
        let hint = pb::LengthHint { length, truncate_version: self.inode.truncate_version };
        MetadataUpdate {
            length: self.unverified_size.or((length > 0 && !metadata_is_synced).then_some(hint)),
            mtime_ns: self.mtime_ns.unwrap_or_default(),
            inline: self
                .inline
                .as_ref()
                .filter(|inline| inline.is_edited())
                .map(|inline| inline.bytes.clone()),
            base: self.inline.as_ref().map_or(0, |inline| inline.base),
            deferred: self.deferred.clone(),
            clears_set_id: self.clears_set_id,
            writes: self.writes,
            ack_count: self.ack_count,
            undurable: self.undurable,
        }
    }

    /// Largest length that chunk indices can express.
    pub(super) fn length_max(&self) -> u64 {
        u64::from(self.layout.chunk_bytes.max(1)) * u64::from(u32::MAX)
    }

    /// End of what waits here for the chains.
    pub(super) fn waiting_end(&self) -> u64 {
        let chunk_bytes = u64::from(self.layout.chunk_bytes);
        let in_flight = self
            .in_flight
            .last_key_value()
            .map_or(0, |(&index, chunk)| u64::from(index) * chunk_bytes + u64::from(chunk.end()));
        let inline = self.inline.as_ref().filter(|inline| inline.is_edited());
        let inline = inline.map_or(0, |inline| inline.bytes.len() as u64);
        self.dirty.end(self.layout.chunk_bytes).max(in_flight).max(inline)
    }

    /// Where the file ends: as the metadata service reported, as chains have acknowledged here, and with what waits.
    pub(super) fn known_end(&self) -> u64 {
        let unverified_size = self.unverified_size.map_or(0, |hint| hint.length);
        self.inode.length.max(self.acknowledged).max(unverified_size).max(self.waiting_end())
    }

    /// Whether a write up to `end` must wait: bytes that would leave `inline` are being told.
    pub(super) fn must_wait_for_sync(&self, end: u64) -> bool {
        let metadata = self.inline.as_ref().is_some_and(|inline| !inline.syncing.is_empty());
        metadata && end > u64::from(self.layout.inline_bytes())
    }

    /// Takes in a write. Returns the change in memory held and whether a run is complete.
    pub(super) fn put(
        &mut self,
        offset: u64,
        payload: &Placement,
        keep: bool,
        shared: &Shared,
    ) -> (isize, bool) {
        let end = offset + payload.len() as u64;
        self.count_write(end);
        let mut change = 0;
        let mut complete = false;
        let inside = self.is_inside() && end <= u64::from(self.layout.inline_bytes());
        if let Some(inline) = self.inline.as_mut().filter(|_| inside) {
            inline.write(offset as usize, payload.len(), |target| payload.copy_to(target));
            self.unsynced = true;
        } else {
            change += self.spill_inline(shared);
            let (more, runs) =
                self.dirty.put(self.writes, offset, payload, keep, self.layout.chunk_bytes, &shared.pool);
            change += more;
            complete = !runs.is_empty();
        }
        (change, complete)
    }

    /// A write up to `end` is taken in: what readers and attributes show of it.
    pub(super) fn count_write(&mut self, end: u64) {
        self.writes += 1;
        self.length = self.length.max(end);
        self.mtime_ns = Some(now_ns());
        if let Some(deferred) = &mut self.deferred {
            deferred.written();
        }
    }

    /// What was written to `inline` becomes dirty instead, and what is left of it is what the inode holds. Returns the
    /// change in memory held.
    pub(super) fn spill_inline(&mut self, shared: &Shared) -> isize {
        let mut change = 0;
        if let Some(inline) = self.inline.as_ref().filter(|inline| inline.is_edited()) {
            let bytes = Placement::from_vec(inline.bytes.clone());
            for range in inline.edits() {
                // Older than everything that is written from here on: whoever flushes waits for it.
                let (start, bytes) = (range.start as u64, bytes.slice(range));
                change +=
                    self.dirty.put(SPILLED, start, &bytes, false, self.layout.chunk_bytes, &shared.pool).0;
            }
        }
        self.inline = inline_of(&self.inode);
        change
    }

    /// What waits here of a range that is about to be read: pieces to lay over what the chains have. `None`: all of
    /// it, and it has been copied.
    pub(super) fn waiting(&self, offset: u64, into: &Placement) -> Option<Vec<(usize, Placement)>> {
        if self.dirty.is_empty() && self.in_flight.is_empty() {
            return Some(Vec::new());
        }
        let chunk_bytes = self.layout.chunk_bytes;
        let layers = |index: u32| [self.in_flight.get(&index).map(Arc::as_ref), self.dirty.chunk(index)];
        let mut found = Vec::new();
        let mut complete = true;
        for part in parts(offset, into.len(), chunk_bytes, chunk_bytes) {
            let layers = layers(part.index);
            if layers.iter().all(Option::is_none) {
                complete = false;
                continue;
            }
            let range = part.offset..part.offset + part.range.len() as u32;
            for layer in layers.into_iter().flatten() {
                for (at, bytes) in layer.pieces_in(range.clone()) {
                    found.push((part.range.start + (at - part.offset) as usize, bytes));
                }
            }
        }
        if complete && overlay(offset, into, chunk_bytes, layers) {
            return None;
        }
        // Copied now: pieces that are dirty may change in place once the lock is gone.
        Some(found.into_iter().map(|(at, bytes)| (at, Placement::from_vec(bytes.to_vec()))).collect())
    }

    /// Whether nothing of a chunk is dirty or in flight.
    pub(super) fn is_idle(&self, index: u32) -> bool {
        !self.in_flight.contains_key(&index) && self.dirty.chunk(index).is_none()
    }

    /// Marks what was dirty by write number `write` as wanted.
    pub(super) fn want_until(&mut self, write: u64) {
        for (_, chunk) in self.dirty.chunks_mut() {
            chunk.wanted |= chunk.since <= write;
        }
    }

    /// Chunks that can be written back now (I2).
    pub(super) fn ready(&self) -> impl Iterator<Item = (u32, &DirtyChunk)> {
        self.dirty.chunks().filter(|(index, chunk)| chunk.wanted && !self.in_flight.contains_key(index))
    }

    /// Moves chunks from dirty to flight.
    pub(super) fn take_batch(&mut self) -> Vec<(u32, Arc<DirtyChunk>)> {
        let (mut bytes, mut pieces) = (0, 0);
        let mut indices = Vec::new();
        for (index, chunk) in self.ready() {
            bytes += chunk.bytes();
            pieces += chunk.pieces().count();
            if !indices.is_empty() && (bytes > RUN_BYTES as usize || pieces > BATCH_PIECES_MAX) {
                break;
            }
            indices.push(index);
        }
        let mut batch = Vec::new();
        for index in indices {
            let chunk = Arc::new(self.dirty.take(index).expect("it was there a moment ago"));
            self.in_flight.insert(index, chunk.clone());
            batch.push((index, chunk));
        }
        batch
    }

    /// Forgets what is wanted on chunks and cannot get there. Returns the memory set free.
    pub(super) fn give_up(&mut self) -> usize {
        let lost: Vec<u32> = self.ready().map(|(index, _)| index).collect();
        let freed =
            lost.into_iter().filter_map(|index| self.dirty.take(index)).map(|chunk| chunk.bytes()).sum();
        self.length = self.known_end();
        freed
    }

    /// Whether a write up to number `write` is not acknowledged yet.
    pub(super) fn waits_until(&self, write: u64) -> bool {
        self.dirty.chunks().any(|(_, chunk)| chunk.since <= write)
            || self.in_flight.values().any(|chunk| chunk.since <= write)
    }

    pub(super) fn on_acked(&mut self, offset: u64, length: usize) {
        let end = offset + length as u64;
        self.acknowledged = self.acknowledged.max(end);
        self.ack_count += 1;
        self.add_volatile(offset..end);
        self.unsynced = true;
    }

    pub(super) fn fail(&mut self, error: Error) {
        FAILED.warn(format_args!("inode {}: {error}", self.inode.id));
        self.errors += 1;
        self.error = Some(error);
    }
}
