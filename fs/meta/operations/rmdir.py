"""Removing an empty directory."""

from ...errors import InvalidArgument, NotEmpty
from ...ids import ROOT_INODE
from ...wire.pb.common_pb2 import Empty
from ...wire.pb.meta_pb2 import RmdirRequest
from ..resolve import EBUSY, locate
from ..work import Work
from .detach import drop, require_empty, victim


def rmdir(work: Work, request: RmdirRequest) -> Empty:
    """Removes a directory without entries.

    Reads with conflict: the entry, the inode, the range of its entries.
    Raises: NotEmpty, NotADirectory, NotFound, PermissionDenied, InvalidArgument for "." (EINVAL) and the root (EBUSY).
    """
    place = locate(work, request.path, follow=False)
    if place.directory is None:
        if place.entry is not None and place.entry.inode == ROOT_INODE:
            raise InvalidArgument("the root cannot be removed", errno=EBUSY)
        if place.name == b"..":
            raise NotEmpty("the directory is not empty")
        raise InvalidArgument("a name is needed to remove a directory")
    inode = victim(work, place)
    require_empty(work, inode)
    drop(work, place, inode)
    return Empty()


__all__ = ["rmdir"]
