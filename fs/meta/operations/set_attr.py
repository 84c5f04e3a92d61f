"""Permissions, owner, times, length, and the layout that a directory hands on."""

from typing import Final

from ...errors import InvalidArgument, IsADirectory, NotADirectory, NotFound
from ...wire.pb.meta_pb2 import DIRECTORY, REGULAR, Inode, SetAttrRequest
from .. import schema
from ..context import OperationContext
from ..permissions import (
    WRITE,
    after_chmod,
    after_chown,
    require,
    require_chown,
    require_owner,
    without_set_id,
)
from ..replies import AnyInodeReply
from ..resolve import locate
from .length import set_length

NO_ID: Final = 0xFFFF_FFFF  # (uid_t)-1: "leave it"
_OPTIONAL: Final = ("permissions", "length", "atime_ns", "mtime_ns", "layout")


def set_attr(context: OperationContext, request: SetAttrRequest) -> AnyInodeReply:
    """Change what is set in the request, all or nothing.

    A request that sets nothing moves ctime, as `chown(-1, -1)` does on Linux, if the owner or root sends it. From
    others it changes nothing: each change makes mounts drop what they keep of the file, and writers start again.

    Reads with conflict: the inode. Raises: NotFound, PermissionDenied, IsADirectory, InvalidArgument.
    """
    place = locate(context, request.path, follow=request.follow)
    if place.entry is None:
        raise NotFound("no such file or directory", name=place.name)
    inode = context.get_for_update(place.entry.inode)
    if context.user.uid not in (0, inode.uid) and not _sets(request):
        return context.reply(inode)
    context.pause(inode)
    # The length first: it may have to wait for the chains, and it clears set-id bits that a chmod then may
    # set.
    if request.HasField("length"):
        _length(context, inode, request)
    if request.clear_set_id and inode.type == REGULAR:
        _require_writer(context, inode, request)
        inode.permissions = without_set_id(inode.permissions)
    change_attributes(context, inode, request)
    if request.clear_layout or request.HasField("layout"):
        _layout(context, inode, request)
    context.change(inode)
    return context.reply(inode)


def change_attributes(context: OperationContext, inode: Inode, request: SetAttrRequest) -> None:
    """Owner, permissions and times of `inode`, which was taken; the caller stores it. Raises: PermissionDenied."""
    _owner(context, inode, request)
    if request.HasField("permissions"):
        inode.permissions = after_chmod(context.user, inode, request.permissions)
    _times(context, inode, request)


def _sets(request: SetAttrRequest) -> bool:
    """Return whether the request asks for a change."""
    owner = any(request.HasField(name) and getattr(request, name) != NO_ID for name in ("uid", "gid"))
    times = request.atime_now or request.mtime_now
    return (
        owner
        or times
        or request.clear_set_id
        or request.clear_layout
        or any(map(request.HasField, _OPTIONAL))
    )


def _require_writer(context: OperationContext, inode: Inode, request: SetAttrRequest) -> None:
    """Raises: PermissionDenied (EACCES) unless the caller owns the inode, has it open for writing, or might open it."""
    if context.user.uid != inode.uid and not context.owns_session(inode.id, request.session):
        require(context.user, inode, WRITE)


def _length(context: OperationContext, inode: Inode, request: SetAttrRequest) -> None:
    if inode.type == DIRECTORY:
        raise IsADirectory("is a directory", inode=inode.id)
    if inode.type != REGULAR:
        raise InvalidArgument("only regular files have a length", inode=inode.id)
    if not context.owns_session(inode.id, request.session):
        require(context.user, inode, WRITE)
    set_length(context, inode, request.length)


def _owner(context: OperationContext, inode: Inode, request: SetAttrRequest) -> None:
    uid = request.uid if request.HasField("uid") and request.uid != NO_ID else None
    gid = request.gid if request.HasField("gid") and request.gid != NO_ID else None
    if uid is None and gid is None:
        return
    require_chown(context.user, inode, uid=uid, gid=gid)
    inode.permissions = after_chown(inode)
    inode.uid = inode.uid if uid is None else uid
    inode.gid = inode.gid if gid is None else gid


def _times(context: OperationContext, inode: Inode, request: SetAttrRequest) -> None:
    explicit = request.HasField("atime_ns") or request.HasField("mtime_ns")
    if not explicit and not request.atime_now and not request.mtime_now:
        return
    if explicit:
        require_owner(context.user, inode)
    else:
        _require_writer(context, inode, request)
    if request.atime_now or request.HasField("atime_ns"):
        inode.atime_ns = context.now_ns if request.atime_now else request.atime_ns
    if request.mtime_now or request.HasField("mtime_ns"):
        inode.mtime_ns = context.now_ns if request.mtime_now else request.mtime_ns
        if inode.type == DIRECTORY:
            context.txn.delete(schema.time_key(inode.id))  # older than what was set just now


def _layout(context: OperationContext, inode: Inode, request: SetAttrRequest) -> None:
    if inode.type == REGULAR:
        raise NotADirectory(
            "the layout of a file is fixed when it is created: set that of its directory, and copy the file there",
            inode=inode.id,
        )
    if inode.type != DIRECTORY:
        raise NotADirectory("only directories hand on a layout", inode=inode.id)
    require_owner(context.user, inode)
    if request.clear_layout:
        inode.ClearField("layout")
    if request.HasField("layout"):
        before = inode.layout if inode.HasField("layout") else None
        inode.layout.CopyFrom(context.shared.placer.template(request.layout, before))


__all__ = ["change_attributes", "set_attr"]
