//! Calls to the metadata service: one method each, and what every call has in common.
//!
//! A call that changes something carries a sequence number that is kept over retries, so a service that was
//! killed half-way recognises it. All calls are retried until the deadline: a restart of meta is a pause.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use prost::Message;

use super::about::About;
use super::lane::Lane;
use super::patience::Warnings;
use crate::error::{Error, Kind, Result};
use crate::types::ClientId;
use crate::wire::pb::{self, Method};

/// First and longest pause before a transaction that lost to another one is run again.
const CONFLICT_FIRST: Duration = Duration::from_millis(1);
const CONFLICT_MAX: Duration = Duration::from_millis(50);

static GIVEN_UP: Warnings = Warnings::new();

/// On whose behalf a call is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Who {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

impl Who {
    /// Who the token says its bearer is.
    pub fn of_claims(claims: &[u8]) -> Result<Who> {
        let claims =
            pb::Claims::decode(claims).map_err(|_| Error::invalid("the token's claims make no sense"))?;
        Ok(Who { uid: claims.uid, gid: claims.gid, groups: claims.groups })
    }
}

/// How calls travel.
pub enum Carrier {
    Lane(Arc<Lane>),
    #[cfg(test)]
    Twin(Arc<super::twin::MetaTwin>),
}

pub struct Meta {
    carrier: Carrier,
    client: ClientId,
    sequence: AtomicU64,
    deadline: Duration,
}

/// The path that is the inode itself.
pub fn inode_path(inode: u64) -> pb::Path {
    pb::Path { at: inode, path: Vec::new() }
}

/// One name in a directory.
pub fn name_path(parent: u64, name: &[u8]) -> pb::Path {
    pb::Path { at: parent, path: name.to_vec() }
}

fn missing() -> Error {
    Error::new(Kind::CorruptData, "the metadata service answered without an inode")
}

impl Meta {
    pub fn new(carrier: Carrier, client: ClientId, deadline: Duration) -> Meta {
        Meta { carrier, client, sequence: AtomicU64::new(1), deadline }
    }

    pub fn deadline(&self) -> Instant {
        Instant::now() + self.deadline
    }

    /// The caller of a request that changes nothing.
    pub fn reader(&self, who: &Who) -> Option<pb::Caller> {
        let Who { uid, gid, groups } = who.clone();
        Some(pb::Caller { uid, gid, groups, client: self.client.0, sequence: 0 })
    }

    /// The caller of a request that changes something: a fresh sequence number.
    pub fn writer(&self, who: &Who) -> Option<pb::Caller> {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        self.reader(who).map(|caller| pb::Caller { sequence, ..caller })
    }

    /// An operator hears of a call that was given up.
    fn once<Q: Message + About, R: Message + Default>(
        &self,
        method: Method,
        request: &Q,
        deadline: Instant,
    ) -> Result<R> {
        let result = match &self.carrier {
            Carrier::Lane(lane) => lane.call(method, request, deadline),
            #[cfg(test)]
            Carrier::Twin(twin) => twin.call(method, request),
        };
        if let Err(error) = &result
            && error.is_retryable()
            && Instant::now() >= deadline
        {
            GIVEN_UP.warn(format_args!("client {}: inode {}: {error}", self.client, request.inode()));
        }
        result
    }

    /// Calls and runs again what lost to another transaction.
    fn call<Q: Message + About, R: Message + Default>(&self, method: Method, request: &Q) -> Result<R> {
        let deadline = self.deadline();
        let mut pause = CONFLICT_FIRST;
        loop {
            match self.once(method, request, deadline) {
                Err(error) if error.kind() == Kind::Conflict && Instant::now() + pause < deadline => {
                    thread::sleep(pause);
                    pause = (pause * 2).min(CONFLICT_MAX);
                }
                result => return result,
            }
        }
    }

    fn inode<Q: Message + About>(&self, method: Method, request: &Q) -> Result<pb::Inode> {
        self.call::<Q, pb::InodeReply>(method, request)?.inode.ok_or_else(missing)
    }

    pub fn lookup(&self, who: &Who, parent: u64, name: &[u8]) -> Result<pb::Inode> {
        let request = pb::LookupRequest { caller: self.reader(who), parent, name: name.to_vec() };
        self.inode(Method::MetaLookup, &request)
    }

    pub fn stat(&self, who: &Who, path: pb::Path, follow: bool) -> Result<pb::Inode> {
        let request = pb::StatRequest { caller: self.reader(who), path: Some(path), follow };
        self.inode(Method::MetaStat, &request)
    }

    /// The inode of a file that is open here, with the bytes of a small one. The service withholds those from a user
    /// who may not read the file and, after it was restarted, is not known to have it open: they must not be taken
    /// for none.
    pub fn stat_open(&self, who: &Who, inode: u64) -> Result<pb::Inode> {
        let inode = self.stat(who, inode_path(inode), false)?;
        if inode.bytes_withheld {
            return Err(Error::new(Kind::PermissionDenied, "the file may not be read any more"));
        }
        Ok(inode)
    }

    pub fn create(&self, who: &Who, request: pb::CreateRequest) -> Result<pb::InodeReply> {
        self.call(Method::MetaCreate, &pb::CreateRequest { caller: self.writer(who), ..request })
    }

    pub fn open(&self, who: &Who, request: pb::OpenRequest) -> Result<pb::InodeReply> {
        self.call(Method::MetaOpen, &pb::OpenRequest { caller: self.writer(who), ..request })
    }

    /// The outcome of each close, in order; with the inode if the close brought news of it.
    pub fn close(&self, who: &Who, closes: Vec<pb::CloseOne>) -> Result<Vec<Result<Option<pb::Inode>>>> {
        let count = closes.len();
        let request = pb::CloseRequest { caller: self.writer(who), closes };
        let reply: pb::CloseReply = self.call(Method::MetaClose, &request)?;
        if reply.errors.len() != count || reply.results.len() != count {
            return Err(Error::new(
                Kind::CorruptData,
                "the metadata service answered other closes than asked",
            ));
        }
        let outcome = |(result, error): (pb::InodeReply, pb::Error)| match error.code.as_str() {
            "" => Ok(result.inode),
            _ => Err(error.into()),
        };
        Ok(reply.results.into_iter().zip(reply.errors).map(outcome).collect())
    }

    /// `Conflict` comes back as it is: the bytes to send must be made anew.
    pub fn sync(&self, who: &Who, request: pb::SyncRequest) -> Result<pb::Inode> {
        let request = pb::SyncRequest { caller: self.writer(who), ..request };
        let reply: pb::InodeReply = self.once(Method::MetaSync, &request, self.deadline())?;
        reply.inode.ok_or_else(missing)
    }

    /// A content for the bytes of a file that is to leave its inode. `Conflict` comes back, as from `sync`.
    pub fn reserve_spare(&self, who: &Who, request: pb::SyncRequest) -> Result<pb::Spare> {
        let request = pb::SyncRequest { caller: self.writer(who), reserve_spare: true, ..request };
        let reply: pb::InodeReply = self.once(Method::MetaSync, &request, self.deadline())?;
        reply
            .spare
            .ok_or_else(|| Error::new(Kind::CorruptData, "a spare content was asked for and none came"))
    }

    pub fn mknod(
        &self,
        who: &Who,
        path: pb::Path,
        kind: pb::FileType,
        mode: u32,
        device: u32,
    ) -> Result<pb::Inode> {
        let request = pb::MknodRequest {
            caller: self.writer(who),
            path: Some(path),
            r#type: kind.into(),
            permissions: mode,
            device,
        };
        self.inode(Method::MetaMknod, &request)
    }

    pub fn mkdir(&self, who: &Who, path: pb::Path, permissions: u32, parents: bool) -> Result<pb::Inode> {
        let request = pb::MkdirRequest {
            caller: self.writer(who),
            path: Some(path),
            permissions,
            parents,
            layout: None,
        };
        self.inode(Method::MetaMkdir, &request)
    }

    pub fn symlink(&self, who: &Who, path: pb::Path, target: &[u8]) -> Result<pb::Inode> {
        let request =
            pb::SymlinkRequest { caller: self.writer(who), path: Some(path), target: target.to_vec() };
        self.inode(Method::MetaSymlink, &request)
    }

    pub fn link(&self, who: &Who, source: pb::Path, target: pb::Path, follow: bool) -> Result<pb::Inode> {
        let caller = self.writer(who);
        let request = pb::LinkRequest { caller, source: Some(source), target: Some(target), follow };
        self.inode(Method::MetaLink, &request)
    }

    /// The inode that lost a name.
    pub fn unlink(&self, who: &Who, path: pb::Path) -> Result<pb::Inode> {
        self.inode(Method::MetaUnlink, &pb::UnlinkRequest { caller: self.writer(who), path: Some(path) })
    }

    pub fn rmdir(&self, who: &Who, path: pb::Path) -> Result<()> {
        let request = pb::RmdirRequest { caller: self.writer(who), path: Some(path) };
        self.call::<_, pb::Empty>(Method::MetaRmdir, &request).map(drop)
    }

    pub fn rename(&self, who: &Who, request: pb::RenameRequest) -> Result<pb::RenameReply> {
        self.call(Method::MetaRename, &pb::RenameRequest { caller: self.writer(who), ..request })
    }

    pub fn set_attr(&self, who: &Who, request: pb::SetAttrRequest) -> Result<pb::Inode> {
        self.inode(Method::MetaSetAttr, &pb::SetAttrRequest { caller: self.writer(who), ..request })
    }

    pub fn list(&self, who: &Who, request: pb::ListRequest) -> Result<pb::ListReply> {
        self.call(Method::MetaList, &pb::ListRequest { caller: self.reader(who), ..request })
    }

    pub fn stat_fs(&self, who: &Who) -> Result<pb::StatFsReply> {
        self.call(Method::MetaStatFs, &pb::StatFsRequest { caller: self.reader(who) })
    }

    pub fn remove_tree(&self, who: &Who, path: pb::Path) -> Result<()> {
        let request = pb::RemoveTreeRequest { caller: self.writer(who), path: Some(path) };
        self.call::<_, pb::Empty>(Method::MetaRemoveTree, &request).map(drop)
    }

    pub fn get_xattr(&self, who: &Who, inode: u64, name: &[u8]) -> Result<Vec<u8>> {
        let request =
            pb::XattrRequest { caller: self.reader(who), inode, name: name.to_vec(), ..Default::default() };
        Ok(self.call::<_, pb::XattrReply>(Method::MetaGetXattr, &request)?.value)
    }

    /// `flags` of setxattr(2).
    pub fn set_xattr(&self, who: &Who, inode: u64, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
        let (name, value) = (name.to_vec(), value.to_vec());
        let request = pb::XattrRequest { caller: self.writer(who), inode, name, value, flags };
        self.call::<_, pb::Empty>(Method::MetaSetXattr, &request).map(drop)
    }

    pub fn list_xattr(&self, who: &Who, inode: u64) -> Result<Vec<Vec<u8>>> {
        let request = pb::XattrRequest { caller: self.reader(who), inode, ..Default::default() };
        Ok(self.call::<_, pb::XattrReply>(Method::MetaListXattr, &request)?.names)
    }

    pub fn remove_xattr(&self, who: &Who, inode: u64, name: &[u8]) -> Result<()> {
        let request =
            pb::XattrRequest { caller: self.writer(who), inode, name: name.to_vec(), ..Default::default() };
        self.call::<_, pb::Empty>(Method::MetaRemoveXattr, &request).map(drop)
    }

    /// Tells a service that may have forgotten it which inodes are open for reading. Returns its incarnation.
    pub fn hold(&self, who: &Who, inodes: Vec<u64>, incarnation: u64) -> Result<u64> {
        let request = pb::HoldRequest { caller: self.reader(who), inodes, incarnation };
        Ok(self.call::<_, pb::HoldReply>(Method::MetaHold, &request)?.incarnation)
    }

    pub fn real_path(&self, who: &Who, inode: u64) -> Result<Vec<u8>> {
        let request = pb::RealPathRequest { caller: self.reader(who), inode };
        Ok(self.call::<_, pb::RealPathReply>(Method::MetaRealPath, &request)?.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::lane::LaneOptions;
    use crate::logged;
    use crate::net::Secret;

    #[test]
    fn a_call_that_is_given_up_leaves_one_line() {
        logged::begin();
        let credential = Secret::new([1; 32]).mint(&pb::Claims::default());
        let lane = Lane::new(Vec::new(), credential, LaneOptions::default());
        let meta = Meta::new(Carrier::Lane(lane), ClientId(5), Duration::from_millis(20));
        let error = meta.sync(&Who::default(), pb::SyncRequest { inode: 21, ..Default::default() });
        let error = error.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.message().starts_with("META_SYNC was given up (nobody was asked in "), "{error}");
        assert_eq!(logged::with("META_SYNC"), [format!("WARN client 5: inode 21: {error}")]);
    }
}
