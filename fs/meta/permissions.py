"""Permission checks: mode bits, ownership, the sticky bit, and the end of set-id bits.

Follows POSIX as Linux reads it. Root may do everything here; who may be root is decided where identities are
proved (`wire.credentials`): a client's token never is.
"""

import stat
from typing import Final, NamedTuple

from ..errors import PermissionDenied
from ..wire.pb.meta_pb2 import DIRECTORY, REGULAR, Inode

READ: Final = 4
WRITE: Final = 2
EXECUTE: Final = 1
PERMISSION_BITS: Final = 0o7777


class User(NamedTuple):
    """On whose behalf an operation runs."""

    uid: int
    gid: int
    groups: tuple[int, ...]

    def is_member(self, gid: int) -> bool:
        return gid == self.gid or gid in self.groups


def may(user: User, inode: Inode, wanted: int) -> bool:
    """Return whether `user` has all of the bits `wanted` on `inode`."""
    uid = user.uid
    permissions = inode.permissions
    if uid == 0:
        # Root executes only what has an execute bit.
        return not wanted & EXECUTE or inode.type == DIRECTORY or bool(permissions & 0o111)
    if uid == inode.uid:
        permissions >>= 6
    elif user.is_member(inode.gid):
        permissions >>= 3
    return permissions & wanted == wanted


def require(user: User, inode: Inode, wanted: int) -> None:
    """Raises: PermissionDenied (EACCES)."""
    if not may(user, inode, wanted):
        raise PermissionDenied("permission denied", inode=inode.id)


def require_owner(user: User, inode: Inode) -> None:
    """Raises: PermissionDenied (EPERM) unless `user` owns `inode` or is root."""
    if user.uid not in (0, inode.uid):
        raise PermissionDenied("only the owner may do this", errno=1, inode=inode.id)


def require_removal(user: User, directory: Inode, inode: Inode) -> None:
    """Raises: PermissionDenied unless `user` may take the name of `inode` out of `directory`."""
    require(user, directory, WRITE | EXECUTE)
    if directory.permissions & stat.S_ISVTX and user.uid not in (0, inode.uid, directory.uid):
        raise PermissionDenied(
            "the directory is sticky: only the owner may remove this", errno=1, inode=inode.id
        )


def inherit(user: User, directory: Inode, permissions: int, *, kind: int) -> tuple[int, int]:
    """(gid, permissions) of what `user` makes in `directory`: a set-group-id directory hands on its group."""
    permissions &= PERMISSION_BITS
    if not directory.permissions & stat.S_ISGID:
        return user.gid, permissions
    if kind == DIRECTORY:
        return directory.gid, permissions | stat.S_ISGID
    executable_by_group = permissions & (stat.S_ISGID | stat.S_IXGRP) == (stat.S_ISGID | stat.S_IXGRP)
    if executable_by_group and user.uid != 0 and not user.is_member(directory.gid):
        permissions &= ~stat.S_ISGID
    return directory.gid, permissions


def without_set_id(permissions: int) -> int:
    """After a change of content or owner: set-user-id goes, set-group-id too where it means execution."""
    if permissions & stat.S_IXGRP:
        permissions &= ~stat.S_ISGID
    return permissions & ~stat.S_ISUID


def after_write(user: User, inode: Inode) -> int:
    """Return the permissions of `inode` after `user` has changed its content."""
    if user.uid == 0 or inode.type != REGULAR:
        return inode.permissions
    return without_set_id(inode.permissions)


def after_chmod(user: User, inode: Inode, permissions: int) -> int:
    """Return the permissions that `user` gets who asks for `permissions`. Raises: PermissionDenied."""
    require_owner(user, inode)
    permissions &= PERMISSION_BITS
    if user.uid != 0 and not user.is_member(inode.gid):
        permissions &= ~stat.S_ISGID
    return permissions


def require_chown(user: User, inode: Inode, *, uid: int | None, gid: int | None) -> None:
    """Only root gives files away; an owner may choose among its own groups.

    Raises: PermissionDenied (EPERM).
    """
    if user.uid == 0:
        return
    gives_away = uid is not None and uid != inode.uid
    foreign = gid is not None and gid != inode.gid and not user.is_member(gid)
    if user.uid != inode.uid or gives_away or foreign:
        raise PermissionDenied("changing the owner is not permitted", errno=1, inode=inode.id)


def after_chown(inode: Inode) -> int:
    """Return the permissions of `inode` after its owner or group has changed, root's doing included."""
    return inode.permissions if inode.type == DIRECTORY else without_set_id(inode.permissions)


__all__ = [
    "EXECUTE",
    "PERMISSION_BITS",
    "READ",
    "WRITE",
    "User",
    "after_chmod",
    "after_chown",
    "after_write",
    "inherit",
    "may",
    "require",
    "require_chown",
    "require_owner",
    "require_removal",
    "without_set_id",
]
