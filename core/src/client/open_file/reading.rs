//! Reading an open file: what waits here, laid over what the chains have.

use std::time::Duration;

use super::{IoMode, OpenInode};
use crate::buffer::Placement;
use crate::client::data::Read;
use crate::client::dirty::parts;
use crate::client::meta::Identity;
use crate::error::{Kind, Result};
use crate::types::ContentId;

/// A reader asks again what it reads after this long: the file may have been replaced by an empty one, and its old
/// chunks are only kept for a while (`MetaConfig.gc_delay_ms`, at least twice as long).
const REFRESH: Duration = Duration::from_secs(10);

impl OpenInode {
    /// Reads up to `into.len()` bytes; fewer only at the end of the file.
    pub fn read(&self, identity: &Identity, offset: u64, into: &Placement, mode: IoMode) -> Result<usize> {
        self.shared.fence.pass(self.shared.meta.deadline())?;
        self.read_unfenced(identity, offset, into, mode)
    }

    fn read_unfenced(
        &self,
        identity: &Identity,
        offset: u64,
        into: &Placement,
        mode: IoMode,
    ) -> Result<usize> {
        self.refresh_for(identity, offset.saturating_add(into.len() as u64), mode)?;
        let state = self.state.lock();
        if offset >= state.length {
            return Ok(0);
        }
        let count = (state.length - offset).min(into.len() as u64) as usize;
        let into = into.slice(0..count);
        if let Some(inline) = &state.inline {
            copy_inline(&inline.bytes, offset as usize, &into);
            for (at, bytes) in state.waiting(offset, &into).unwrap_or_default() {
                bytes.copy_into(&into.slice(at..at + bytes.len()));
            }
            return Ok(count);
        }
        let waiting = state.waiting(offset, &into);
        let Some(waiting) = waiting else { return Ok(count) };
        let read = Read {
            layout: state.layout,
            content: ContentId(state.inode.content),
            offset,
            into: into.clone(),
        };
        drop(state);
        self.shared.chunks.read(&read)?;
        for (at, bytes) in waiting {
            bytes.copy_into(&into.slice(at..at + bytes.len()));
        }
        Ok(count)
    }

    /// As `read`, into memory that its owner can do without: if a node hangs with it, the bytes lie elsewhere.
    pub fn read_anywhere(
        &self,
        identity: &Identity,
        offset: u64,
        into: &Placement,
        mode: IoMode,
    ) -> Result<Placement> {
        match self.read(identity, offset, &into.clone().expendable(), mode) {
            Err(error) if error.kind() == Kind::Timeout && into.is_shared() => {
                let other = Placement::private(into.len())?;
                let count = self.read(identity, offset, &other, mode)?;
                Ok(other.slice(0..count))
            }
            result => result.map(|count| into.slice(0..count)),
        }
    }

    /// Reads ahead of a reader, into memory that its owner can do without. `None`: the reader has to ask for itself,
    /// because the fence is raised, for which a shared thread does not wait, or because a node hangs with that memory.
    pub fn read_in_advance(
        &self,
        identity: &Identity,
        offset: u64,
        into: &Placement,
    ) -> Option<Result<Placement>> {
        if self.shared.fence.is_raised() {
            return None;
        }
        match self.read_unfenced(identity, offset, &into.clone().expendable(), IoMode::Buffered) {
            Err(error) if error.kind() == Kind::Timeout && into.is_shared() => None,
            result => Some(result.map(|count| into.slice(0..count))),
        }
    }

    /// Asks anew before a read up to `end`, if what is known is too old for it.
    pub fn refresh_for(&self, identity: &Identity, end: u64, mode: IoMode) -> Result<()> {
        let age = self.freshness(end, mode);
        self.refresh(identity, age)
    }

    /// How old the inode may be for a read up to `end`.
    fn freshness(&self, end: u64, mode: IoMode) -> Duration {
        let state = self.state.lock();
        let beyond = end > state.length;
        match mode {
            IoMode::Direct if beyond || state.inline.is_some() => Duration::ZERO,
            _ if beyond => self.shared.attribute_timeout,
            _ => REFRESH,
        }
    }

    /// What a read of a chunked file needs where nothing of its chunks is dirty or in flight: for batches of many files.
    /// `None`: use `read`.
    pub fn plan_read(&self, offset: u64, into: &Placement) -> Option<Read> {
        let state = self.state.lock();
        let end = offset.saturating_add(into.len() as u64);
        let is_known = state.inline.is_none() && end <= state.length && state.is_younger_than(REFRESH);
        if !is_known || self.shared.fence.is_raised() {
            return None;
        }
        let chunk_bytes = state.layout.chunk_bytes;
        let mut parts = parts(offset, into.len(), chunk_bytes, chunk_bytes);
        parts.all(|part| state.is_idle(part.index)).then(|| Read {
            layout: state.layout,
            content: ContentId(state.inode.content),
            offset,
            into: into.clone(),
        })
    }
}

fn copy_inline(bytes: &[u8], offset: usize, into: &Placement) {
    let known = bytes.get(offset..).unwrap_or_default();
    let known = &known[..known.len().min(into.len())];
    into.copy_from(known);
    // The length may be ahead of the bytes: a file extended by truncation.
    into.slice(known.len()..into.len()).zero();
}
