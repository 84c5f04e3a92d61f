//! Deferred attributes of a file that this client has created and not closed yet: they are sent with its length.
//!
//! A program that unpacks an archive creates a file, writes it, and sets its times, owner and permissions before it
//! closes it: one call instead of four.
//!
//! - A1 Only a change that revokes no access may be deferred; all others are sent before the call returns.
//! - A2 What is deferred is sent by the first close or fsync, before this client moves or links any name, and after one to
//!   two seconds.
//! - A3 Everything that asks this client sees what is deferred.

use std::sync::Arc;

use super::identity::Identity;
use crate::wire::pb;

/// (uid_t)-1: "leave it".
const NO_ID: u32 = u32::MAX;
const SET_ID: u32 = 0o6000;
const SET_USER_ID: u32 = 0o4000;
const SET_GROUP_ID: u32 = 0o2000;
const GROUP_EXECUTE: u32 = 0o0010;
const NOT_OWNER: u32 = 0o077;
const ACCESS: u32 = 0o777;

/// Attributes that are still to be sent.
#[derive(Clone, Debug, PartialEq)]
pub struct DeferredSetattr {
    pub identity: Arc<Identity>,
    /// Owner, permissions and times only.
    pub request: pb::SetAttrRequest,
    ctime_ns: i64,
    /// Number of the change, of all that were deferred.
    pub number: u64,
}

impl DeferredSetattr {
    /// Return `request` on top of what is deferred already, or `None` if it may not be deferred (A1). `seen` is the file as
    /// this client sees it. Only root's changes are deferred: they are never refused when they are sent.
    pub fn add(
        before: Option<&DeferredSetattr>,
        identity: &Arc<Identity>,
        request: &pb::SetAttrRequest,
        seen: &pb::Inode,
        now_ns: i64,
    ) -> Option<DeferredSetattr> {
        let uid = request.uid.filter(|uid| *uid != NO_ID);
        let gid = request.gid.filter(|gid| *gid != NO_ID);
        let given = uid.is_some_and(|uid| uid != seen.uid) || gid.is_some_and(|gid| gid != seen.gid);
        let is_shared = seen.permissions & NOT_OWNER != 0;
        let taken = given && (is_shared || uid.is_some() && seen.uid != 0);
        let clears = uid.is_some() || gid.is_some() || request.clear_set_id;
        let cleared = clears && seen.permissions & SET_ID != 0;
        let kept = request.permissions.unwrap_or(seen.permissions);
        let fewer = seen.permissions & !kept & (ACCESS | SET_ID) != 0;
        let other = request.length.is_some() || request.layout.is_some();
        if identity.uid != 0 || taken || cleared || fewer || other {
            return None;
        }
        let base = before.map(|before| before.request.clone()).unwrap_or_default();
        let request = pb::SetAttrRequest {
            uid: uid.or(base.uid),
            gid: gid.or(base.gid),
            permissions: request.permissions.or(base.permissions),
            atime_ns: request.atime_ns.or(request.atime_now.then_some(now_ns)).or(base.atime_ns),
            mtime_ns: request.mtime_ns.or(request.mtime_now.then_some(now_ns)).or(base.mtime_ns),
            ..Default::default()
        };
        let number = before.map_or(0, |before| before.number) + 1;
        Some(DeferredSetattr { identity: identity.clone(), request, ctime_ns: now_ns, number })
    }

    /// Take in that a write came after them: its time counts.
    pub fn written(&mut self) {
        self.request.mtime_ns = None;
    }

    /// Lay what is deferred over the inode.
    pub fn overlay(&self, inode: &mut pb::Inode) {
        let request = &self.request;
        inode.uid = request.uid.unwrap_or(inode.uid);
        inode.gid = request.gid.unwrap_or(inode.gid);
        inode.permissions = request.permissions.unwrap_or(inode.permissions);
        inode.atime_ns = request.atime_ns.unwrap_or(inode.atime_ns);
        inode.mtime_ns = request.mtime_ns.unwrap_or(inode.mtime_ns);
        inode.ctime_ns = inode.ctime_ns.max(self.ctime_ns);
    }
}

/// Return `permissions` after a change of the file's bytes by a user. A set-group-id bit without group execution means
/// mandatory locking, not privilege, and stays.
pub fn without_set_id(permissions: u32) -> u32 {
    let stays = if permissions & GROUP_EXECUTE == 0 { SET_GROUP_ID } else { 0 };
    permissions & !(SET_USER_ID | SET_GROUP_ID) | permissions & stays
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(uid: u32, permissions: u32) -> pb::Inode {
        pb::Inode { uid, gid: uid, permissions, ..Default::default() }
    }

    fn waits(request: pb::SetAttrRequest, seen: &pb::Inode) -> bool {
        DeferredSetattr::add(None, &Arc::default(), &request, seen, 1).is_some()
    }

    #[test]
    fn what_takes_access_from_somebody_does_not_wait() {
        let chmod = |permissions| pb::SetAttrRequest { permissions: Some(permissions), ..Default::default() };
        let chown = |uid, gid| pb::SetAttrRequest { uid, gid, ..Default::default() };
        assert!(waits(chmod(0o644), &seen(0, 0o600)));
        assert!(waits(chmod(0o4755), &seen(0, 0o600)));
        assert!(!waits(chmod(0o600), &seen(0, 0o644)));
        assert!(!waits(chmod(0o755), &seen(0, 0o4755)));
        assert!(waits(chown(Some(7), Some(7)), &seen(0, 0o600)));
        assert!(waits(chown(Some(0), Some(NO_ID)), &seen(0, 0o644)), "nothing changes");
        assert!(!waits(chown(None, Some(7)), &seen(0, 0o640)), "its group would lose it");
        assert!(!waits(chown(Some(7), None), &seen(5, 0o600)), "its owner would lose it");
        assert!(!waits(chown(Some(0), None), &seen(0, 0o4700)), "set-id bits go");
        // The kernel asks for it with each change of the owner.
        let chown_and_clear = |uid| pb::SetAttrRequest { clear_set_id: true, ..chown(uid, None) };
        assert!(waits(chown_and_clear(Some(7)), &seen(0, 0o600)), "there are no set-id bits");
        assert!(!waits(chown_and_clear(None), &seen(0, 0o4700)), "set-id bits go");
        assert!(!waits(pb::SetAttrRequest { length: Some(0), ..chmod(0o644) }, &seen(0, 0o600)));
    }

    #[test]
    fn bits_that_grant_privileges_end_and_others_stay() {
        let cases = [
            (0o4755, 0o755),
            (0o6755, 0o755),
            (0o2755, 0o755),
            (0o2644, 0o2644),
            (0o6644, 0o2644),
            (0o755, 0o755),
        ];
        for (before, after) in cases {
            assert_eq!(without_set_id(before), after);
        }
    }

    #[test]
    fn only_changes_of_root_wait() {
        let request = pb::SetAttrRequest { permissions: Some(0o644), ..Default::default() };
        let user = Arc::new(Identity { uid: 7, ..Default::default() });
        assert_eq!(DeferredSetattr::add(None, &user, &request, &seen(7, 0o600), 1), None);
    }

    #[test]
    fn later_changes_are_laid_over_earlier_ones() {
        let root = Arc::default();
        let times = pb::SetAttrRequest { mtime_ns: Some(5), atime_ns: Some(6), ..Default::default() };
        let first = DeferredSetattr::add(None, &root, &times, &seen(0, 0o600), 1).unwrap();
        let chmod = pb::SetAttrRequest { permissions: Some(0o644), mtime_ns: Some(9), ..Default::default() };
        let both = DeferredSetattr::add(Some(&first), &root, &chmod, &seen(0, 0o600), 2).unwrap();
        let mut inode = seen(0, 0o600);
        both.overlay(&mut inode);
        assert_eq!((inode.permissions, inode.atime_ns, inode.mtime_ns), (0o644, 6, 9));
        assert_ne!(first.number, both.number);
    }
}
