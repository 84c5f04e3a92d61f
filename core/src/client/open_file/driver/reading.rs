//! Reading an open file: what waits here, laid over what the chains have.

use std::sync::Arc;
use std::time::Instant;

use super::super::mode::IoMode;
use super::super::transitions::write_back::Want;
use super::super::view::{ReadPlan, read_inline};
use super::OpenInode;
use crate::buffer::Placement;
use crate::client::data::Read;
use crate::client::identity::Identity;
use crate::error::{Kind, Result};

impl OpenInode {
    /// Read up to `into.len()` bytes; fewer only at the end of the file.
    pub fn read(
        self: &Arc<Self>,
        identity: &Identity,
        offset: u64,
        into: &Placement,
        mode: IoMode,
    ) -> Result<usize> {
        self.shared.fence.pass(self.shared.meta.deadline())?;
        self.read_unfenced(identity, offset, into, mode)
    }

    fn read_unfenced(
        self: &Arc<Self>,
        identity: &Identity,
        offset: u64,
        into: &Placement,
        mode: IoMode,
    ) -> Result<usize> {
        self.refresh_for(identity, offset.saturating_add(into.len() as u64), mode)?;
        let plan = match mode {
            IoMode::Buffered => self.machine.lock().read(offset, into),
            IoMode::Direct => self.plan_direct(offset, into),
        };
        let (read, waiting, count) = match plan {
            ReadPlan::Done(count) => return Ok(count),
            ReadPlan::SyncFirst => return self.read_synced(identity, offset, into),
            ReadPlan::Chains { read, waiting, count } => (read, waiting, count),
        };
        assert!(count <= into.len() && read.into.len() == count, "a read fills what it was given");
        self.shared.chunks.read(&read)?;
        for (at, bytes) in waiting {
            bytes.copy_into(&read.into.slice(at..at + bytes.len()));
        }
        Ok(count)
    }

    /// Plan a direct read, after the chains have acknowledged what it would show of what was written here before.
    fn plan_direct(self: &Arc<Self>, offset: u64, into: &Placement) -> ReadPlan {
        let mut machine = self.machine.lock();
        let until = machine.writes;
        while machine.delays_direct_read(offset, into.len(), until) {
            // This thread writes back too: for one chunk no other is woken.
            self.step(&mut machine, Want { until, others: 1 });
            if !self.write_back_batch(&mut machine) {
                self.changed.wait(&mut machine);
            }
        }
        machine.read_direct(offset, into)
    }

    /// Read what the metadata service has of a small file, after it was sent what was written here before. Errors: those of
    /// that sync too.
    fn read_synced(self: &Arc<Self>, identity: &Identity, offset: u64, into: &Placement) -> Result<usize> {
        self.sync_metadata()?;
        let inode = self.ask(identity)?;
        self.apply_server_inode(&inode);
        if inode.is_inline && !inode.bytes_withheld {
            return Ok(read_inline(&inode, offset, into));
        }
        // It has left its inode.
        self.read_unfenced(identity, offset, into, IoMode::Direct)
    }

    /// As `read`, into memory that its owner can do without: if a node hangs with it, the bytes are elsewhere.
    pub fn read_anywhere(
        self: &Arc<Self>,
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

    /// Read ahead of a reader, into memory that its owner can do without. `None`: the reader has to ask for itself,
    /// because the fence is raised, for which a shared thread does not wait, or because a node hangs with that memory.
    pub fn read_in_advance(
        self: &Arc<Self>,
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

    /// Ask the metadata service before a read up to `end`, if what is known is too old for it.
    pub fn refresh_for(self: &Arc<Self>, identity: &Identity, end: u64, mode: IoMode) -> Result<()> {
        let timeout = self.shared.attribute_timeout;
        self.refresh_older(identity, |machine| machine.freshness(end, mode, timeout))
    }

    /// Return what a read of a chunked file needs where nothing of its chunks is dirty or in flight: for batches of many
    /// files. `None`: use `read`.
    pub fn plan_read(&self, offset: u64, into: &Placement) -> Option<Read> {
        if self.shared.fence.is_raised() {
            return None;
        }
        self.machine.lock().plan_read(offset, into, Instant::now())
    }
}
