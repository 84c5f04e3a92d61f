"""Removing an empty directory."""

from ...errors import InvalidArgument, NotEmpty
from ...ids import ROOT_INODE
from ...wire.pb.common_pb2 import Empty
from ...wire.pb.meta_pb2 import RmdirRequest
from ..context import OperationContext
from ..resolve import EBUSY, locate
from .detach import drop, require_empty, victim


def rmdir(context: OperationContext, request: RmdirRequest) -> Empty:
    """Remove a directory without entries.

    Reads with conflict: the entry, the inode, the range of its entries.
    Raises: NotEmpty, NotADirectory, NotFound, PermissionDenied, InvalidArgument for "." (EINVAL) and the root (EBUSY).
    """
    place = locate(context, request.path, follow=False)
    if place.directory is None:
        if place.entry is not None and place.entry.inode == ROOT_INODE:
            raise InvalidArgument("the root cannot be removed", errno=EBUSY)
        if place.name == b"..":
            raise NotEmpty("the directory is not empty")
        raise InvalidArgument("a name is needed to remove a directory")
    inode = victim(context, place)
    require_empty(context, inode)
    drop(context, place, inode)
    return Empty()


__all__ = ["rmdir"]
