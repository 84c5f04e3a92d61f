//! Calls to the metadata service: one method each, and what every call has in common.
//!
//! A call that changes something carries a sequence number that is kept over retries, so a service that was
//! killed half-way recognises it; and it says which earlier ones are settled, so that none of them is carried out
//! late (`sequences`). All calls are retried until the deadline: a restart of meta is a pause.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use prost::Message;

#[cfg(test)]
use super::fake::FakeMeta;
use super::identity::Identity;
use super::sequences::Sequences;
use crate::cluster::attempts::Attempts;
use crate::cluster::rpc::Lane;
use crate::error::{Error, Kind, Result};
use crate::log_rate_limit::Warnings;
use crate::types::ClientId;
use crate::wire::pb::{self, Method};
use crate::wire::verb::{MetaRequest, Verb};
use crate::wire::verbs;

/// First and longest pause before a transaction that lost to another one is run again.
const CONFLICT_FIRST: Duration = Duration::from_millis(1);
const CONFLICT_MAX: Duration = Duration::from_millis(50);

static GIVEN_UP: Warnings = Warnings::new();

/// How calls travel.
pub enum Channel {
    Lane(Arc<Lane>),
    #[cfg(test)]
    Fake(Arc<FakeMeta>),
}

pub struct Meta {
    channel: Channel,
    client: ClientId,
    sequences: Sequences,
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
    pub fn new(channel: Channel, client: ClientId, deadline: Duration) -> Meta {
        Meta { channel, client, sequences: Sequences::new(), deadline }
    }

    pub fn deadline(&self) -> Instant {
        Instant::now() + self.deadline
    }

    fn caller(&self, identity: &Identity) -> pb::Caller {
        let Identity { uid, gid, groups } = identity.clone();
        pb::Caller { uid, gid, groups, client: self.client.0, ..Default::default() }
    }

    /// An operator hears of a call that was given up.
    fn once<Q: MetaRequest, R: Message + Default>(
        &self,
        method: Method,
        request: &Q,
        deadline: Instant,
        attempts: &mut Attempts<String>,
    ) -> Result<R> {
        let result = match &self.channel {
            Channel::Lane(lane) => lane.call_tracked(method, request, deadline, attempts),
            #[cfg(test)]
            Channel::Fake(fake) => fake.call(method, request),
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
    fn until_no_conflict<Q: MetaRequest, R: Message + Default>(
        &self,
        method: Method,
        request: &Q,
        attempts: &mut Attempts<String>,
    ) -> Result<R> {
        let deadline = self.deadline();
        let mut pause = CONFLICT_FIRST;
        loop {
            match self.once(method, request, deadline, attempts) {
                Err(error) if error.kind() == Kind::Conflict && Instant::now() + pause < deadline => {
                    thread::sleep(pause);
                    pause = (pause * 2).min(CONFLICT_MAX);
                }
                result => return result,
            }
        }
    }

    /// Call `verb`, with a sequence number if it may change something.
    fn call<Q: MetaRequest, R: Message + Default>(
        &self,
        verb: &Verb<Q, R>,
        identity: &Identity,
        mut request: Q,
    ) -> Result<R> {
        let send = |request: &Q, attempts: &mut _| self.until_no_conflict(verb.method, request, attempts);
        if verb.has_side_effects {
            return self.numbered(identity, request, send);
        }
        request.set_caller(self.caller(identity));
        send(&request, &mut Attempts::new())
    }

    /// As `call`, but `Conflict` comes back as it is.
    fn call_once<Q: MetaRequest, R: Message + Default>(
        &self,
        verb: &Verb<Q, R>,
        identity: &Identity,
        request: Q,
    ) -> Result<R> {
        self.numbered(identity, request, |request, attempts| {
            self.once(verb.method, request, self.deadline(), attempts)
        })
    }

    /// As `call`, for a reply whose inode is all of it that matters.
    fn call_inode<Q: MetaRequest>(
        &self,
        verb: &Verb<Q, pb::InodeReply>,
        identity: &Identity,
        request: Q,
    ) -> Result<pb::Inode> {
        self.call(verb, identity, request)?.inode.ok_or_else(missing)
    }

    /// Gives the request its number for as long as `send` works on it.
    fn numbered<Q: MetaRequest, R>(
        &self,
        identity: &Identity,
        mut request: Q,
        send: impl FnOnce(&Q, &mut Attempts<String>) -> Result<R>,
    ) -> Result<R> {
        let live = self.sequences.begin();
        let (sequence, settled_below) = (live.number, live.settled_below);
        request.set_caller(pb::Caller { sequence, settled_below, ..self.caller(identity) });
        let mut attempts = Attempts::new();
        let result = send(&request, &mut attempts);
        if result.is_err() && attempts.may_arrive() {
            live.give_up();
        }
        result
    }

    pub fn lookup(&self, identity: &Identity, parent: u64, name: &[u8]) -> Result<pb::Inode> {
        let request = pb::LookupRequest { caller: None, parent, name: name.to_vec() };
        self.call_inode(&verbs::LOOKUP, identity, request)
    }

    /// Of a file that others write, the length may be 50 ms old.
    pub fn stat(&self, identity: &Identity, path: pb::Path, follow: bool) -> Result<pb::Inode> {
        let request = pb::StatRequest { caller: None, path: Some(path), follow, exact: false };
        self.call_inode(&verbs::STAT, identity, request)
    }

    /// As `stat`, with every write that was acknowledged before the call, to any client.
    pub fn stat_exactly(&self, identity: &Identity, path: pb::Path, follow: bool) -> Result<pb::Inode> {
        let request = pb::StatRequest { caller: None, path: Some(path), follow, exact: true };
        self.call_inode(&verbs::STAT, identity, request)
    }

    /// The inode of a file that is open here, with the bytes of a small one. The service withholds those from a user
    /// who may not read the file and, after it was restarted, is not known to have it open: they must not be taken
    /// for none.
    pub fn stat_open(&self, identity: &Identity, inode: u64) -> Result<pb::Inode> {
        let inode = self.stat_exactly(identity, inode_path(inode), false)?;
        if inode.bytes_withheld {
            return Err(Error::new(Kind::PermissionDenied, "the file may not be read any more"));
        }
        Ok(inode)
    }

    pub fn create(&self, identity: &Identity, request: pb::CreateRequest) -> Result<pb::InodeReply> {
        self.call(&verbs::CREATE, identity, request)
    }

    pub fn open(&self, identity: &Identity, request: pb::OpenRequest) -> Result<pb::InodeReply> {
        self.call(&verbs::OPEN, identity, request)
    }

    /// The outcome of each close, in order; with the inode if the close changed what is known of it.
    pub fn close(
        &self,
        identity: &Identity,
        closes: Vec<pb::CloseOne>,
    ) -> Result<Vec<Result<Option<pb::Inode>>>> {
        let count = closes.len();
        let request = pb::CloseRequest { caller: None, closes };
        let reply = self.call(&verbs::CLOSE, identity, request)?;
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

    /// The outcome of each change, in order; with the inode that it has made.
    pub fn apply(&self, identity: &Identity, changes: Vec<pb::Change>) -> Result<Vec<Result<u64>>> {
        let count = changes.len();
        let reply =
            self.call(&verbs::APPLY, identity, pb::ApplyRequest { changes, ..pb::ApplyRequest::default() })?;
        if reply.results.len() != count {
            return Err(Error::new(
                Kind::CorruptData,
                "the metadata service answered other changes than asked",
            ));
        }
        let outcome =
            |result: pb::ChangeResult| result.error.map_or(Ok(result.inode), |error| Err(error.into()));
        Ok(reply.results.into_iter().map(outcome).collect())
    }

    /// `Conflict` comes back as it is: the bytes to send must be made again.
    pub fn sync(&self, identity: &Identity, request: pb::SyncRequest) -> Result<pb::Inode> {
        let reply = self.call_once(&verbs::SYNC, identity, request)?;
        reply.inode.ok_or_else(missing)
    }

    /// A content for the bytes of a file that is to leave its inode. `Conflict` comes back, as from `sync`.
    pub fn reserve_spare(&self, identity: &Identity, request: pb::SyncRequest) -> Result<pb::Spare> {
        let request = pb::SyncRequest { reserve_spare: true, ..request };
        let reply = self.call_once(&verbs::SYNC, identity, request)?;
        reply
            .spare
            .ok_or_else(|| Error::new(Kind::CorruptData, "a spare content was asked for and none came"))
    }

    pub fn mknod(
        &self,
        identity: &Identity,
        path: pb::Path,
        kind: pb::FileType,
        mode: u32,
        device: u32,
    ) -> Result<pb::Inode> {
        let request = pb::MknodRequest {
            caller: None,
            path: Some(path),
            r#type: kind.into(),
            permissions: mode,
            device,
        };
        self.call_inode(&verbs::MKNOD, identity, request)
    }

    pub fn mkdir(&self, identity: &Identity, request: pb::MkdirRequest) -> Result<pb::Inode> {
        self.call_inode(&verbs::MKDIR, identity, request)
    }

    pub fn symlink(&self, identity: &Identity, path: pb::Path, target: &[u8]) -> Result<pb::Inode> {
        let request = pb::SymlinkRequest { caller: None, path: Some(path), target: target.to_vec() };
        self.call_inode(&verbs::SYMLINK, identity, request)
    }

    pub fn link(
        &self,
        identity: &Identity,
        source: pb::Path,
        target: pb::Path,
        follow: bool,
    ) -> Result<pb::Inode> {
        let request = pb::LinkRequest { caller: None, source: Some(source), target: Some(target), follow };
        self.call_inode(&verbs::LINK, identity, request)
    }

    /// The inode that lost a name.
    pub fn unlink(&self, identity: &Identity, path: pb::Path) -> Result<pb::Inode> {
        self.call_inode(&verbs::UNLINK, identity, pb::UnlinkRequest { caller: None, path: Some(path) })
    }

    pub fn rmdir(&self, identity: &Identity, path: pb::Path) -> Result<()> {
        let request = pb::RmdirRequest { caller: None, path: Some(path) };
        self.call(&verbs::RMDIR, identity, request).map(drop)
    }

    pub fn rename(&self, identity: &Identity, request: pb::RenameRequest) -> Result<pb::RenameReply> {
        self.call(&verbs::RENAME, identity, request)
    }

    pub fn set_attr(&self, identity: &Identity, request: pb::SetAttrRequest) -> Result<pb::Inode> {
        self.call_inode(&verbs::SET_ATTR, identity, request)
    }

    pub fn list(&self, identity: &Identity, request: pb::ListRequest) -> Result<pb::ListReply> {
        self.call(&verbs::LIST, identity, request)
    }

    pub fn stat_fs(&self, identity: &Identity) -> Result<pb::StatFsReply> {
        self.call(&verbs::STAT_FS, identity, pb::StatFsRequest { caller: None })
    }

    pub fn remove_tree(&self, identity: &Identity, path: pb::Path) -> Result<()> {
        let request = pb::RemoveTreeRequest { caller: None, path: Some(path) };
        self.call(&verbs::REMOVE_TREE, identity, request).map(drop)
    }

    pub fn get_xattr(&self, identity: &Identity, inode: u64, name: &[u8]) -> Result<Vec<u8>> {
        let request = pb::XattrRequest { inode, name: name.to_vec(), ..Default::default() };
        Ok(self.call(&verbs::GET_XATTR, identity, request)?.value)
    }

    /// `flags` of setxattr(2).
    pub fn set_xattr(
        &self,
        identity: &Identity,
        inode: u64,
        name: &[u8],
        value: &[u8],
        flags: u32,
    ) -> Result<()> {
        let (name, value) = (name.to_vec(), value.to_vec());
        let request = pb::XattrRequest { caller: None, inode, name, value, flags };
        self.call(&verbs::SET_XATTR, identity, request).map(drop)
    }

    pub fn list_xattr(&self, identity: &Identity, inode: u64) -> Result<Vec<Vec<u8>>> {
        let request = pb::XattrRequest { inode, ..Default::default() };
        Ok(self.call(&verbs::LIST_XATTR, identity, request)?.names)
    }

    pub fn remove_xattr(&self, identity: &Identity, inode: u64, name: &[u8]) -> Result<()> {
        let request = pb::XattrRequest { inode, name: name.to_vec(), ..Default::default() };
        self.call(&verbs::REMOVE_XATTR, identity, request).map(drop)
    }

    /// Reports what is open. Returns the write sessions that the service does not know.
    pub fn hold(&self, identity: &Identity, request: pb::HoldRequest) -> Result<Vec<pb::WriteSession>> {
        Ok(self.call(&verbs::HOLD, identity, request)?.lost)
    }

    pub fn real_path(&self, identity: &Identity, inode: u64) -> Result<Vec<u8>> {
        let request = pb::RealPathRequest { caller: None, inode };
        Ok(self.call(&verbs::REAL_PATH, identity, request)?.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::rpc::LaneOptions;
    use crate::logged;
    use crate::net::Secret;

    #[test]
    fn a_call_that_is_given_up_leaves_one_line() {
        logged::begin();
        let credential = Secret::new([1; 32]).mint(&pb::Claims::default());
        let lane = Lane::new(Vec::new(), credential, LaneOptions::default());
        let meta = Meta::new(Channel::Lane(lane), ClientId(5), Duration::from_millis(20));
        let error = meta.sync(&Identity::default(), pb::SyncRequest { inode: 21, ..Default::default() });
        let error = error.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.message().starts_with("META_SYNC was given up (no request sent within "), "{error}");
        assert_eq!(logged::with("META_SYNC"), [format!("WARN client 5: inode 21: {error}")]);
    }
}
