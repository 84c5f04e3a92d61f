"""Attributes, by path or by id."""

from ...wire.pb.meta_pb2 import StatRequest
from ..replies import AnyInodeReply
from ..resolve import inode_at
from ..work import Work


def stat(work: Work, request: StatRequest) -> AnyInodeReply:
    """The inode that a path leads to. Raises: what `locate` raises; NotFound."""
    inode = inode_at(work, request.path, follow=request.follow)
    work.pause(inode)
    return work.reply(inode)


__all__ = ["stat"]
