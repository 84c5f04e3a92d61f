"""Opening a file that exists."""

from ...errors import InvalidArgument, IsADirectory, NotFound
from ...wire.pb.meta_pb2 import DIRECTORY, REGULAR, SYMLINK, OpenRequest
from ..permissions import READ, WRITE, require
from ..replies import AnyInodeReply
from ..resolve import ELOOP, locate
from ..work import Work
from .length import set_length


def open_path(work: Work, request: OpenRequest) -> AnyInodeReply:
    """Opens what a path leads to; for writing, the reply brings a session.

    Raises: NotFound, IsADirectory, PermissionDenied, InvalidArgument (ELOOP for a symbolic link).
    """
    place = locate(work, request.path, follow=request.follow)
    if place.entry is None:
        raise NotFound("no such file or directory", name=place.name)
    return open_inode(
        work, place.entry.inode, read=request.read, write=request.write, truncate=request.truncate
    )


def open_inode(work: Work, number: int, *, read: bool, write: bool, truncate: bool) -> AnyInodeReply:
    """Opens the inode. It may be one without a name, which the caller has kept open otherwise."""
    changes = write or truncate
    inode = work.take(number) if changes else work.load(number)
    work.pause(inode)
    if inode.type == SYMLINK:
        raise InvalidArgument("is a symbolic link", errno=ELOOP)
    if inode.type == DIRECTORY and changes:
        raise IsADirectory("is a directory", inode=number)
    require(work.user, inode, (READ if read else 0) | (WRITE if changes else 0))
    if inode.type != REGULAR:
        return work.reply(inode)
    if truncate:
        set_length(work, inode, 0)
        work.change(inode)
    session = work.open_session(number) if write else 0
    return work.reply(inode, session=session)


__all__ = ["open_inode", "open_path"]
