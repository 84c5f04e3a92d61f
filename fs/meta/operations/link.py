"""Hard links."""

from typing import Final

from ...errors import InvalidArgument, NotFound, PermissionDenied
from ...wire.pb.meta_pb2 import DIRECTORY, SYMLINK, LinkRequest
from ..context import OperationContext
from ..permissions import READ, WRITE, require, require_owner
from ..replies import AnyInodeReply
from ..resolve import locate
from ..schema import Entry
from .make import free_place

LINKS_MAX: Final = 65_535  # what tools expect of st_nlink
EMLINK: Final = 31


def link(context: OperationContext, request: LinkRequest) -> AnyInodeReply:
    """One more name for an inode that is not a directory and has a name.

    Reads with conflict: the inode, the new parent, the new entry. Writes: the entry, the inode.
    Raises: PermissionDenied (EPERM for a directory), AlreadyExists, NotFound, InvalidArgument (EMLINK).
    """
    source = locate(context, request.source, follow=request.follow)
    if source.entry is None:
        raise NotFound("no such file or directory", name=source.name)
    if source.directory is not None:
        context.add_read_conflict(source.directory.id, source.name)
    inode = context.get_for_update(source.entry.inode)
    if source.directory is None and context.user.uid != inode.uid:
        # By number the caller has not shown a name of it. As Linux with protected_hardlinks: what one may change.
        require(context.user, inode, READ | WRITE)
        if inode.type == SYMLINK:  # whose bits allow everything
            require_owner(context.user, inode)
    if inode.type == DIRECTORY:
        raise PermissionDenied("directories have one name", errno=1, inode=inode.id)
    if not inode.link_count:
        raise NotFound("the file has been removed", inode=inode.id)
    if inode.link_count >= LINKS_MAX:
        raise InvalidArgument("the file has too many names", errno=EMLINK)
    directory, name = free_place(context, request.target)
    inode.link_count += 1
    context.change(inode)
    context.add_entry(directory.id, name, Entry(inode.id, inode.type, cookie=context.shared.inodes.take()))
    return context.reply(inode)


__all__ = ["LINKS_MAX", "link"]
