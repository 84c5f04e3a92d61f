"""Attributes, by path or by id."""

from ...wire.pb.meta_pb2 import InodeReply, StatRequest
from ..resolve import inode_at
from ..work import Work


def stat(work: Work, request: StatRequest) -> InodeReply:
    """The inode that a path leads to. Raises: what `locate` raises; NotFound."""
    inode = inode_at(work, request.path, follow=request.follow)
    work.pause(inode)
    return InodeReply(inode=work.visible(inode))


__all__ = ["stat"]
