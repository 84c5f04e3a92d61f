//! Generated from `proto/meta.proto` by `make proto`. Do not edit.

use super::pb::{self, Method};
use super::verb::{MetaRequest, Verb};

pub const LOOKUP: Verb<pb::LookupRequest, pb::InodeReply> = Verb::new(Method::MetaLookup, false);
pub const STAT: Verb<pb::StatRequest, pb::InodeReply> = Verb::new(Method::MetaStat, false);
pub const CREATE: Verb<pb::CreateRequest, pb::InodeReply> = Verb::new(Method::MetaCreate, true);
pub const OPEN: Verb<pb::OpenRequest, pb::InodeReply> = Verb::new(Method::MetaOpen, true);
pub const CLOSE: Verb<pb::CloseRequest, pb::CloseReply> = Verb::new(Method::MetaClose, true);
pub const SYNC: Verb<pb::SyncRequest, pb::InodeReply> = Verb::new(Method::MetaSync, true);
pub const MKNOD: Verb<pb::MknodRequest, pb::InodeReply> = Verb::new(Method::MetaMknod, true);
pub const MKDIR: Verb<pb::MkdirRequest, pb::InodeReply> = Verb::new(Method::MetaMkdir, true);
pub const SYMLINK: Verb<pb::SymlinkRequest, pb::InodeReply> = Verb::new(Method::MetaSymlink, true);
pub const LINK: Verb<pb::LinkRequest, pb::InodeReply> = Verb::new(Method::MetaLink, true);
pub const UNLINK: Verb<pb::UnlinkRequest, pb::InodeReply> = Verb::new(Method::MetaUnlink, true);
pub const RMDIR: Verb<pb::RmdirRequest, pb::Empty> = Verb::new(Method::MetaRmdir, true);
pub const RENAME: Verb<pb::RenameRequest, pb::RenameReply> = Verb::new(Method::MetaRename, true);
pub const SET_ATTR: Verb<pb::SetAttrRequest, pb::InodeReply> = Verb::new(Method::MetaSetAttr, true);
pub const LIST: Verb<pb::ListRequest, pb::ListReply> = Verb::new(Method::MetaList, false);
pub const STAT_FS: Verb<pb::StatFsRequest, pb::StatFsReply> = Verb::new(Method::MetaStatFs, false);
pub const REMOVE_TREE: Verb<pb::RemoveTreeRequest, pb::Empty> = Verb::new(Method::MetaRemoveTree, true);
pub const GET_XATTR: Verb<pb::XattrRequest, pb::XattrReply> = Verb::new(Method::MetaGetXattr, false);
pub const SET_XATTR: Verb<pb::XattrRequest, pb::Empty> = Verb::new(Method::MetaSetXattr, true);
pub const LIST_XATTR: Verb<pb::XattrRequest, pb::XattrReply> = Verb::new(Method::MetaListXattr, false);
pub const REMOVE_XATTR: Verb<pb::XattrRequest, pb::Empty> = Verb::new(Method::MetaRemoveXattr, true);
pub const HOLD: Verb<pb::HoldRequest, pb::HoldReply> = Verb::new(Method::MetaHold, true);
pub const REAL_PATH: Verb<pb::RealPathRequest, pb::RealPathReply> = Verb::new(Method::MetaRealPath, false);
pub const APPLY: Verb<pb::ApplyRequest, pb::ApplyReply> = Verb::new(Method::MetaApply, true);
pub const RESERVE_INODES: Verb<pb::ReserveInodesRequest, pb::ReserveInodesReply> =
    Verb::new(Method::MetaReserveInodes, true);

impl MetaRequest for pb::ApplyRequest {
    fn inode(&self) -> u64 {
        0
    }
    fn set_caller(&mut self, caller: pb::Caller) {
        self.caller = Some(caller);
    }
}

impl MetaRequest for pb::CloseRequest {
    fn inode(&self) -> u64 {
        self.closes.first().map_or(0, |one| one.inode)
    }
    fn set_caller(&mut self, caller: pb::Caller) {
        self.caller = Some(caller);
    }
}

impl MetaRequest for pb::CreateRequest {
    fn inode(&self) -> u64 {
        self.path.as_ref().map_or(0, |path| path.at)
    }
    fn set_caller(&mut self, caller: pb::Caller) {
        self.caller = Some(caller);
    }
}

impl MetaRequest for pb::HoldRequest {
    fn inode(&self) -> u64 {
        0
    }
    fn set_caller(&mut self, caller: pb::Caller) {
        self.caller = Some(caller);
    }
}

impl MetaRequest for pb::LinkRequest {
    fn inode(&self) -> u64 {
        self.source.as_ref().map_or(0, |path| path.at)
    }
    fn set_caller(&mut self, caller: pb::Caller) {
        self.caller = Some(caller);
    }
}

impl MetaRequest for pb::ListRequest {
    fn inode(&self) -> u64 {
        self.inode
    }
    fn set_caller(&mut self, caller: pb::Caller) {
        self.caller = Some(caller);
    }
}

impl MetaRequest for pb::LookupRequest {
    fn inode(&self) -> u64 {
        self.parent
    }
    fn set_caller(&mut self, caller: pb::Caller) {
        self.caller = Some(caller);
    }
}

impl MetaRequest for pb::MkdirRequest {
    fn inode(&self) -> u64 {
        self.path.as_ref().map_or(0, |path| path.at)
    }
    fn set_caller(&mut self, caller: pb::Caller) {
        self.caller = Some(caller);
    }
}

impl MetaRequest for pb::MknodRequest {
    fn inode(&self) -> u64 {
        self.path.as_ref().map_or(0, |path| path.at)
    }
    fn set_caller(&mut self, caller: pb::Caller) {
        self.caller = Some(caller);
    }
}

impl MetaRequest for pb::OpenRequest {
    fn inode(&self) -> u64 {
        self.path.as_ref().map_or(0, |path| path.at)
    }
    fn set_caller(&mut self, caller: pb::Caller) {
        self.caller = Some(caller);
    }
}

impl MetaRequest for pb::RealPathRequest {
    fn inode(&self) -> u64 {
        self.inode
    }
    fn set_caller(&mut self, caller: pb::Caller) {
        self.caller = Some(caller);
    }
}

impl MetaRequest for pb::RemoveTreeRequest {
    fn inode(&self) -> u64 {
        self.path.as_ref().map_or(0, |path| path.at)
    }
    fn set_caller(&mut self, caller: pb::Caller) {
        self.caller = Some(caller);
    }
}

impl MetaRequest for pb::RenameRequest {
    fn inode(&self) -> u64 {
        self.source.as_ref().map_or(0, |path| path.at)
    }
    fn set_caller(&mut self, caller: pb::Caller) {
        self.caller = Some(caller);
    }
}

impl MetaRequest for pb::ReserveInodesRequest {
    fn inode(&self) -> u64 {
        0
    }
    fn set_caller(&mut self, caller: pb::Caller) {
        self.caller = Some(caller);
    }
}

impl MetaRequest for pb::RmdirRequest {
    fn inode(&self) -> u64 {
        self.path.as_ref().map_or(0, |path| path.at)
    }
    fn set_caller(&mut self, caller: pb::Caller) {
        self.caller = Some(caller);
    }
}

impl MetaRequest for pb::SetAttrRequest {
    fn inode(&self) -> u64 {
        self.path.as_ref().map_or(0, |path| path.at)
    }
    fn set_caller(&mut self, caller: pb::Caller) {
        self.caller = Some(caller);
    }
}

impl MetaRequest for pb::StatFsRequest {
    fn inode(&self) -> u64 {
        0
    }
    fn set_caller(&mut self, caller: pb::Caller) {
        self.caller = Some(caller);
    }
}

impl MetaRequest for pb::StatRequest {
    fn inode(&self) -> u64 {
        self.path.as_ref().map_or(0, |path| path.at)
    }
    fn set_caller(&mut self, caller: pb::Caller) {
        self.caller = Some(caller);
    }
}

impl MetaRequest for pb::SymlinkRequest {
    fn inode(&self) -> u64 {
        self.path.as_ref().map_or(0, |path| path.at)
    }
    fn set_caller(&mut self, caller: pb::Caller) {
        self.caller = Some(caller);
    }
}

impl MetaRequest for pb::SyncRequest {
    fn inode(&self) -> u64 {
        self.inode
    }
    fn set_caller(&mut self, caller: pb::Caller) {
        self.caller = Some(caller);
    }
}

impl MetaRequest for pb::UnlinkRequest {
    fn inode(&self) -> u64 {
        self.path.as_ref().map_or(0, |path| path.at)
    }
    fn set_caller(&mut self, caller: pb::Caller) {
        self.caller = Some(caller);
    }
}

impl MetaRequest for pb::XattrRequest {
    fn inode(&self) -> u64 {
        self.inode
    }
    fn set_caller(&mut self, caller: pb::Caller) {
        self.caller = Some(caller);
    }
}
