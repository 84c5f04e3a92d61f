"""Taking the name of a file away."""

from ...errors import InvalidArgument, IsADirectory
from ...wire.pb.meta_pb2 import UnlinkRequest
from ..context import OperationContext
from ..replies import AnyInodeReply
from ..resolve import locate
from .detach import drop, require_file, victim


def unlink(context: OperationContext, request: UnlinkRequest) -> AnyInodeReply:
    """Remove one name; the reply is the inode with the links it has left.

    Reads with conflict: the entry, the inode. Writes: both, the directory's entry time, an orphan without
    links.
    Raises: NotFound, IsADirectory, NotADirectory, PermissionDenied, InvalidArgument.
    """
    place = locate(context, request.path, follow=False)
    if place.directory is None:
        if not request.path.path:
            raise InvalidArgument("a name is needed to remove a file")
        raise IsADirectory("is a directory", name=place.name)
    inode = victim(context, place)
    require_file(place, inode)
    drop(context, place, inode)
    return context.reply(inode)


__all__ = ["unlink"]
