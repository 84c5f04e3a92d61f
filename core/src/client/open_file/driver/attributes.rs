//! Attributes of an open file: those that are deferred, and the end of set-id bits.

use std::sync::Arc;

use super::super::transitions::attributes::{
    ClearSetId, Created, DeferSetattr, DeferredSynced, FirstClose, KeepSetId,
};
use super::{OpenInode, now_ns, stale};
use crate::client::identity::Identity;
use crate::client::meta::inode_path;
use crate::error::Result;
use crate::wire::pb;

impl OpenInode {
    /// Take in that the file was created here just now: until it is closed, attributes may be deferred.
    pub fn on_create(self: &Arc<Self>) {
        self.apply(Created);
    }

    /// Take in that a handle is being closed: from here on attributes are sent at once.
    pub fn on_first_close(self: &Arc<Self>) {
        self.apply(FirstClose);
    }

    /// Keep a change of attributes to be sent with other metadata, and return what is seen now. `None`: it may not wait.
    pub fn defer_setattr(
        self: &Arc<Self>,
        identity: &Arc<Identity>,
        request: &pb::SetAttrRequest,
    ) -> Option<pb::Inode> {
        self.apply(DeferSetattr { identity, request, now_ns: now_ns() })
    }

    /// Send deferred attributes, alone: no length and no bytes.
    pub fn flush_deferred(self: &Arc<Self>) -> Result<()> {
        let _metadata = self.metadata_lock.lock();
        let Some(deferred) = self.machine.lock().deferred.clone() else { return Ok(()) };
        let request = pb::SetAttrRequest { path: Some(inode_path(self.id)), ..deferred.request.clone() };
        let inode = stale(self.shared.meta.set_attr(&deferred.identity, request))?;
        self.shared.metadata_cache.learn(inode.clone());
        self.apply_own_change(&inode);
        self.apply(DeferredSynced(deferred.number));
        Ok(())
    }

    /// End the set-id bits: a user is about to change the file's bytes. Return whether they were seen to be set.
    pub fn clear_set_id(self: &Arc<Self>) -> bool {
        self.apply(ClearSetId)
    }

    /// Take in that the bits were set after everything that cleared them.
    pub fn keep_set_id(self: &Arc<Self>) {
        self.apply(KeepSetId);
    }
}
