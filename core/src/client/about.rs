//! Which inode a request to the metadata service is about, and on whose behalf it runs.

use crate::wire::pb;

pub trait About {
    /// The inode, or the directory that its path begins at; 0 if it is about none, or the path begins at the root.
    fn inode(&self) -> u64;
    fn set_caller(&mut self, caller: pb::Caller);
}

fn start(path: Option<&pb::Path>) -> u64 {
    path.map_or(0, |path| path.at)
}

macro_rules! about {
    ($($request:ident: $inode:expr),+ $(,)?) => {
        $(impl About for pb::$request {
            fn inode(&self) -> u64 {
                let inode: fn(&pb::$request) -> u64 = $inode;
                inode(self)
            }

            fn set_caller(&mut self, caller: pb::Caller) {
                self.caller = Some(caller);
            }
        })+
    };
}

about! {
    LookupRequest: |request| request.parent,
    StatRequest: |request| start(request.path.as_ref()),
    CreateRequest: |request| start(request.path.as_ref()),
    OpenRequest: |request| start(request.path.as_ref()),
    CloseRequest: |request| request.closes.first().map_or(0, |close| close.inode),
    SyncRequest: |request| request.inode,
    MknodRequest: |request| start(request.path.as_ref()),
    MkdirRequest: |request| start(request.path.as_ref()),
    SymlinkRequest: |request| start(request.path.as_ref()),
    LinkRequest: |request| start(request.source.as_ref()),
    UnlinkRequest: |request| start(request.path.as_ref()),
    RmdirRequest: |request| start(request.path.as_ref()),
    RenameRequest: |request| start(request.source.as_ref()),
    SetAttrRequest: |request| start(request.path.as_ref()),
    ListRequest: |request| request.inode,
    StatFsRequest: |_| 0,
    RemoveTreeRequest: |request| start(request.path.as_ref()),
    XattrRequest: |request| request.inode,
    HoldRequest: |_| 0,
    RealPathRequest: |request| request.inode,
}
