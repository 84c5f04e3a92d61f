"""Symbolic links."""

from ...errors import InvalidArgument, NotFound
from ...wire.pb.meta_pb2 import SYMLINK, SymlinkRequest
from ..replies import AnyInodeReply
from ..resolve import ENAMETOOLONG, PATH_BYTES_MAX
from ..work import Work
from .make import attach, free_place, new_inode


def symlink(work: Work, request: SymlinkRequest) -> AnyInodeReply:
    """A symbolic link whose target need not exist.

    Raises: AlreadyExists, NotFound, NotADirectory, PermissionDenied, InvalidArgument.
    """
    target = request.target
    if not target:
        raise NotFound("a symbolic link needs a target")
    if b"\0" in target:
        raise InvalidArgument("not a target of a symbolic link")
    if len(target) >= PATH_BYTES_MAX:
        raise InvalidArgument("the target is too long", errno=ENAMETOOLONG)
    directory, name = free_place(work, request.path)
    inode = new_inode(work, directory, kind=SYMLINK, permissions=0o777)
    inode.symlink_target = target
    inode.length = len(target)
    attach(work, directory, name, inode)
    return work.reply(inode)


__all__ = ["symlink"]
