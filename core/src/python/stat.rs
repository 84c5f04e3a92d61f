//! Attributes as Python gets them.

use crate::wire::pb;

/// (inode, type, permissions, links, uid, gid, device, length, atime, mtime, ctime, birth) with times in nanoseconds.
pub type Stat = (u64, i32, u32, u32, u32, u32, u32, u64, i64, i64, i64, u64);

/// Return the attributes of `inode`.
pub fn stat(inode: &pb::Inode) -> Stat {
    (
        inode.id,
        inode.r#type,
        inode.permissions,
        inode.link_count,
        inode.uid,
        inode.gid,
        inode.device,
        inode.length,
        inode.atime_ns,
        inode.mtime_ns,
        inode.ctime_ns,
        inode.birth_ns,
    )
}
