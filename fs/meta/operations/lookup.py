"""One name in one directory."""

from ...errors import NotFound
from ...wire.pb.meta_pb2 import LookupRequest
from ..context import OperationContext
from ..permissions import EXECUTE, require
from ..replies import AnyInodeReply
from ..resolve import check_name


def lookup(context: OperationContext, request: LookupRequest) -> AnyInodeReply:
    """Return the inode behind a name. "." and ".." are names like others to the client, not here.

    Raises: NotFound, NotADirectory, PermissionDenied, InvalidArgument.
    """
    name = request.name
    check_name(name)
    directory = context.directory(request.parent)
    require(context.user, directory, EXECUTE)
    entry = context.peek(directory.id, name)
    if entry is None:
        raise NotFound("no such file or directory", name=name)
    inode = context.load(entry.inode)
    context.pause(inode)
    return context.reply(inode)


__all__ = ["lookup"]
