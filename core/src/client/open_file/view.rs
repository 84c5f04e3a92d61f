//! What this process sees of the file: what the metadata service described, with what was written here over it.

use std::time::{Duration, Instant};

use super::machine::Machine;
use super::mode::IoMode;
use crate::buffer::Placement;
use crate::client::chunk_slice::chunk_slices;
use crate::client::data::Read;
use crate::client::deferred_setattr::without_set_id;
use crate::types::ContentId;
use crate::wire::pb;

/// A reader asks again what it reads after this long: the file may have been replaced by an empty one, and its old
/// chunks are only kept for a while (`MetaConfig.gc_delay_ms`, at least twice as long).
pub(super) const REFRESH: Duration = Duration::from_secs(10);

/// How a read continues without the lock.
pub(super) enum ReadPlan {
    /// So many bytes have been read.
    Done(usize),
    /// Ask the chains, and lay the pieces over what they have.
    Chains { read: Read, waiting: Vec<(usize, Placement)>, count: usize },
    /// Send the metadata service what was written to the inode's bytes, and read what it has then.
    SyncFirst,
}

impl Machine {
    /// Return the inode with what was written here and is not synced yet.
    pub(super) fn local_view(&self) -> pb::Inode {
        self.with_pending(pb::Inode { length: self.length, ..self.inode.clone() })
    }

    /// Return the permissions of `local_view`, without a copy of the inode.
    pub(super) fn local_permissions(&self) -> u32 {
        let permissions = self.inode.permissions;
        self.with_pending(pb::Inode { permissions, ..pb::Inode::default() }).permissions
    }

    /// Lay attributes that wait over an inode.
    fn with_pending(&self, mut inode: pb::Inode) -> pb::Inode {
        let pending = self.metadata.pending();
        if let Some(mtime_ns) = pending.mtime_ns {
            inode.mtime_ns = mtime_ns;
            inode.ctime_ns = inode.ctime_ns.max(mtime_ns);
        }
        if pending.clears_set_id {
            inode.permissions = without_set_id(inode.permissions);
        }
        if let Some(deferred) = &self.deferred {
            deferred.overlay(&mut inode);
        }
        inode
    }

    /// Return attributes from elsewhere (a listing, a cache) with what was written here and is not synced yet. The bytes
    /// of small files do not come with them, so nothing is taken in.
    pub(super) fn overlay_local(&self, inode: &pb::Inode) -> pb::Inode {
        if inode.change == self.inode.change && inode.others_write {
            // What others write changes the length before they report it.
            let view = self.local_view();
            return pb::Inode { length: view.length.max(inode.length), ..view };
        }
        if inode.change <= self.inode.change {
            return self.local_view();
        }
        let length = inode.length.max(self.written_end());
        self.with_pending(pb::Inode { length, ..inode.clone() })
    }

    /// Return how old the inode may be for a read up to `end`.
    pub(super) fn freshness(&self, end: u64, mode: IoMode, attribute_timeout: Duration) -> Duration {
        let beyond = end > self.length_for(mode);
        match mode {
            IoMode::Direct if beyond || self.bytes.inline().is_some() => Duration::ZERO,
            _ if beyond => attribute_timeout,
            _ => REFRESH,
        }
    }

    /// Return the length that a read goes by. A direct one shows no bytes that wait here, and no zeros before them.
    fn length_for(&self, mode: IoMode) -> u64 {
        match mode {
            IoMode::Direct if !self.write_back.is_empty() => self.length.min(self.stored_end()),
            IoMode::Direct | IoMode::Buffered => self.length,
        }
    }

    /// Whether a direct read of `length` bytes has to wait for what was written here up to number `write`: the chains
    /// have not acknowledged all of it, and others would read older bytes after this reader.
    pub(super) fn delays_direct_read(&self, offset: u64, length: usize, write: u64) -> bool {
        if self.write_back.is_empty() {
            return false;
        }
        if self.bytes.inline().is_some() {
            return self.write_back.waits_until(write);
        }
        let end = offset.saturating_add(length as u64);
        // Bytes beyond the end of the file make those before them readable.
        let end = if end > self.stored_end() { u64::MAX } else { end };
        self.write_back.waits_in(offset..end, write, self.layout.chunk_bytes)
    }

    /// Read a range directly, of which nothing delays the read.
    pub(super) fn read_direct(&self, offset: u64, into: &Placement) -> ReadPlan {
        if self.is_edited() {
            return ReadPlan::SyncFirst;
        }
        let length = self.length_for(IoMode::Direct);
        if offset >= length {
            return ReadPlan::Done(0);
        }
        let count = (length - offset).min(into.len() as u64) as usize;
        let into = into.slice(0..count);
        if let Some(inline) = self.bytes.inline() {
            copy_inline(&inline.bytes, offset as usize, &into);
            return ReadPlan::Done(count);
        }
        ReadPlan::Chains { read: self.chunk_read(offset, into), waiting: Vec::new(), count }
    }

    /// Read what is known here of a range.
    pub(super) fn read(&self, offset: u64, into: &Placement) -> ReadPlan {
        if offset >= self.length {
            return ReadPlan::Done(0);
        }
        let count = (self.length - offset).min(into.len() as u64) as usize;
        let into = into.slice(0..count);
        let chunk_bytes = self.layout.chunk_bytes;
        if let Some(inline) = self.bytes.inline() {
            copy_inline(&inline.bytes, offset as usize, &into);
            for (at, bytes) in self.write_back.waiting(offset, &into, chunk_bytes).unwrap_or_default() {
                bytes.copy_into(&into.slice(at..at + bytes.len()));
            }
            return ReadPlan::Done(count);
        }
        let Some(waiting) = self.write_back.waiting(offset, &into, chunk_bytes) else {
            return ReadPlan::Done(count);
        };
        ReadPlan::Chains { read: self.chunk_read(offset, into), waiting, count }
    }

    fn chunk_read(&self, offset: u64, into: Placement) -> Read {
        Read { layout: self.layout, content: ContentId(self.inode.content), offset, into }
    }

    /// Return the read of a chunked file where nothing of its chunks is dirty or in flight; `None`: use `read`.
    pub(super) fn plan_read(&self, offset: u64, into: &Placement, now: Instant) -> Option<Read> {
        let end = offset.saturating_add(into.len() as u64);
        let length = self.length_for(IoMode::Direct);
        if self.bytes.inline().is_some() || end > length || !self.is_younger_than(REFRESH, now) {
            return None;
        }
        let chunk_bytes = self.layout.chunk_bytes;
        let mut slices = chunk_slices(offset, into.len(), chunk_bytes, chunk_bytes);
        let is_idle = slices.all(|slice| self.write_back.is_idle(slice.index));
        is_idle.then(|| self.chunk_read(offset, into.clone()))
    }
}

/// Read a range of a small file that the metadata service has described. Return the count of bytes.
pub(super) fn read_inline(inode: &pb::Inode, offset: u64, into: &Placement) -> usize {
    assert!(inode.is_inline, "its bytes are in its inode");
    let count = inode.length.saturating_sub(offset).min(into.len() as u64) as usize;
    if count > 0 {
        copy_inline(&inode.inline_data, offset as usize, &into.slice(0..count));
    }
    count
}

fn copy_inline(bytes: &[u8], offset: usize, into: &Placement) {
    let known = bytes.get(offset..).unwrap_or_default();
    let known = &known[..known.len().min(into.len())];
    into.copy_from(known);
    // The length may be ahead of the bytes: a file extended by truncation.
    into.slice(known.len()..into.len()).zero();
}
