//! Set-user-id and set-group-id bits end when a file is written, cut or given away (HANDLE_KILLPRIV_V2): without the
//! kernel's help each write would cost a question for extended attributes. File capabilities are not kept at all.

use super::caller::Caller;
use super::operations::{Attributes, FileKind, Reply, SetAttributes};
use super::request::Context;

const SET_USER_ID: u32 = 0o4000;
const SET_GROUP_ID: u32 = 0o2000;
const GROUP_EXECUTE: u32 = 0o0010;

/// Kept nowhere, because every write would have to look for it and remove it.
pub const CAPABILITY: &[u8] = b"security.capability";

/// `permissions` without the bits that end; `None` if there are none. A set-group-id bit without group execution
/// means mandatory locking, not privilege, and stays.
fn without_privileges(attributes: &Attributes) -> Option<u32> {
    if attributes.kind != FileKind::Regular {
        return None;
    }
    let mut ending = SET_USER_ID;
    if attributes.permissions & GROUP_EXECUTE != 0 {
        ending |= SET_GROUP_ID;
    }
    (attributes.permissions & ending != 0).then_some(attributes.permissions & !ending)
}

/// Clear the bits of `inode`, which was emptied by a user who may not keep them. Returns the permissions if it had any.
pub fn drop_privileges(context: &Context<'_>, caller: &Caller, inode: u64) -> Reply<Option<u32>> {
    let current = context.fs.getattr(caller, inode, None)?.attributes;
    let Some(permissions) = without_privileges(&current) else { return Ok(None) };
    let change = SetAttributes { permissions: Some(permissions), ..Default::default() };
    context.fs.setattr(caller, inode, &change)?;
    // The kernel may believe in the mode that it knows.
    context.notifier.inval_attributes(inode)?;
    Ok(Some(permissions))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(kind: FileKind, permissions: u32) -> Attributes {
        Attributes {
            inode: 2,
            kind,
            permissions,
            links: 1,
            uid: 0,
            gid: 0,
            device: 0,
            length: 0,
            blocks: 0,
            block_bytes: 4096,
            atime_ns: 0,
            mtime_ns: 0,
            ctime_ns: 0,
        }
    }

    #[test]
    fn bits_that_grant_privileges_end_and_others_stay() {
        let regular = |permissions| without_privileges(&attributes(FileKind::Regular, permissions));
        assert_eq!(regular(0o4755), Some(0o755));
        assert_eq!(regular(0o6755), Some(0o755));
        assert_eq!(regular(0o2755), Some(0o755));
        assert_eq!(regular(0o2644), None);
        assert_eq!(regular(0o6644), Some(0o2644));
        assert_eq!(regular(0o755), None);
        assert_eq!(without_privileges(&attributes(FileKind::Directory, 0o2755)), None);
    }
}
