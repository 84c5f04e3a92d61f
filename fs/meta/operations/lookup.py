"""One name in one directory."""

from ...errors import NotFound
from ...wire.pb.meta_pb2 import LookupRequest
from ..permissions import EXECUTE, require
from ..replies import AnyInodeReply
from ..resolve import check_name
from ..work import Work


def lookup(work: Work, request: LookupRequest) -> AnyInodeReply:
    """The inode behind a name. "." and ".." are names like others to the client, not here.

    Raises: NotFound, NotADirectory, PermissionDenied, InvalidArgument.
    """
    name = request.name
    check_name(name)
    directory = work.directory(request.parent)
    require(work.user, directory, EXECUTE)
    entry = work.glance(directory.id, name)
    if entry is None:
        raise NotFound("no such file or directory", name=name)
    inode = work.load(entry.inode)
    work.pause(inode)
    return work.reply(inode)


__all__ = ["lookup"]
