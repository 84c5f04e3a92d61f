//! Changes of an open file for which one thread must be alone with it.

use std::sync::Arc;
use std::time::Instant;

use super::super::access::Access;
use super::super::machine::Machine;
use super::super::transitions::attributes::ForgetMtime;
use super::super::transitions::exclusive::{Drain, Enter, Entered, Leave};
use super::OpenInode;
use crate::error::Result;
use crate::lock::MutexGuard;
use crate::wire::pb;

impl OpenInode {
    /// Call `change` at the metadata service without writers and with nothing under way, for changes that replace
    /// content; `length` is the file's length afterwards. Dirty bytes beyond it are dropped once that has succeeded.
    pub fn truncate(
        self: &Arc<Self>,
        length: u64,
        change: impl FnOnce() -> Result<pb::InodeReply>,
    ) -> Result<pb::InodeReply> {
        let (_metadata, mut machine) = self.enter(length)?;
        let result = MutexGuard::unlocked(&mut machine, change);
        let truncated = result.as_ref().ok().map(|reply| (length, reply.inode.clone()));
        self.step(&mut machine, Leave { truncated, now: Instant::now() });
        result
    }

    /// Wait until this thread is alone with the file. What only exists as inline bytes is synced first, unless it is
    /// about to be cut away. Metadata is not synced meanwhile: it would be refused, merged with what is left after the
    /// cut, and sent again.
    fn enter(self: &Arc<Self>, length: u64) -> Result<(MutexGuard<'_, ()>, MutexGuard<'_, Machine>)> {
        loop {
            // Before access is drained: a thread that syncs metadata does not wait for access.
            let metadata = self.metadata_lock.lock();
            let mut machine = self.lock_shared();
            if length != 0 && machine.is_edited() {
                drop((machine, metadata));
                self.flush();
                self.sync_metadata()?;
                continue;
            }
            self.step(&mut machine, Drain);
            loop {
                match self.step(&mut machine, Enter { length }) {
                    Entered::Exclusive => {
                        assert_eq!(machine.access, Access::Exclusive, "I4: this thread is alone");
                        return Ok((metadata, machine));
                    }
                    Entered::Wait => self.changed.wait(&mut machine),
                    Entered::SyncFirst => break,
                }
            }
        }
    }

    /// Change times at the metadata service while no other metadata of this file is sent: what it is sent of earlier
    /// writes must not come after, and take the times back.
    pub fn set_times<T>(self: &Arc<Self>, change: impl FnOnce() -> Result<T>) -> Result<T> {
        let _metadata = self.metadata_lock.lock();
        let result = change()?;
        self.forget_mtime();
        Ok(result)
    }

    /// Take in that the metadata service was given times by the user: those of earlier writes do not count.
    pub fn forget_mtime(self: &Arc<Self>) {
        self.apply(ForgetMtime);
    }

    /// Hold it while metadata of this file is sent.
    pub fn lock_metadata(&self) -> MutexGuard<'_, ()> {
        self.metadata_lock.lock()
    }
}
