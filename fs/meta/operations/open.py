"""Opening a file that exists."""

from ...errors import InvalidArgument, IsADirectory, NotFound
from ...wire.pb.meta_pb2 import DIRECTORY, REGULAR, SYMLINK, OpenRequest
from ..context import OperationContext
from ..permissions import READ, WRITE, require
from ..replies import AnyInodeReply
from ..resolve import ELOOP, locate
from .length import set_length


def open_path(context: OperationContext, request: OpenRequest) -> AnyInodeReply:
    """Open what a path leads to; for writing, the reply brings a session.

    Raises: NotFound, IsADirectory, PermissionDenied, InvalidArgument (ELOOP for a symbolic link).
    """
    place = locate(context, request.path, follow=request.follow)
    if place.entry is None:
        raise NotFound("no such file or directory", name=place.name)
    return open_inode(
        context, place.entry.inode, read=request.read, write=request.write, truncate=request.truncate
    )


def open_inode(
    context: OperationContext, number: int, *, read: bool, write: bool, truncate: bool
) -> AnyInodeReply:
    """Open the inode. It may be one without a name, which the caller has kept open otherwise."""
    changes = write or truncate
    inode = context.get_for_update(number) if changes else context.load(number)
    context.pause(inode)
    if inode.type == SYMLINK:
        raise InvalidArgument("is a symbolic link", errno=ELOOP)
    if inode.type == DIRECTORY and changes:
        raise IsADirectory("is a directory", inode=number)
    require(context.user, inode, (READ if read else 0) | (WRITE if changes else 0))
    if inode.type != REGULAR:
        return context.reply(inode)
    if truncate:
        set_length(context, inode, 0)
        context.change(inode)
    session = context.open_session(number) if write else 0
    return context.reply(inode, session=session)


__all__ = ["open_inode", "open_path"]
