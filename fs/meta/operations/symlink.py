"""Symbolic links."""

from ...errors import InvalidArgument, NotFound
from ...wire.pb.meta_pb2 import SYMLINK, SymlinkRequest
from ..context import OperationContext
from ..replies import AnyInodeReply
from ..resolve import ENAMETOOLONG, PATH_BYTES_MAX
from .make import attach, free_place, new_inode


def symlink(context: OperationContext, request: SymlinkRequest) -> AnyInodeReply:
    """Make a symbolic link whose target need not exist.

    Raises: AlreadyExists, NotFound, NotADirectory, PermissionDenied, InvalidArgument.
    """
    target = request.target
    if not target:
        raise NotFound("a symbolic link needs a target")
    if b"\0" in target:
        raise InvalidArgument("not a target of a symbolic link")
    if len(target) >= PATH_BYTES_MAX:
        raise InvalidArgument("the target is too long", errno=ENAMETOOLONG)
    directory, name = free_place(context, request.path)
    inode = new_inode(context, directory, kind=SYMLINK, permissions=0o777)
    inode.symlink_target = target
    inode.length = len(target)
    attach(context, directory, name, inode)
    return context.reply(inode)


__all__ = ["symlink"]
