"""Attributes, by path or by id."""

from ...wire.pb.meta_pb2 import StatRequest
from ..context import OperationContext
from ..replies import AnyInodeReply
from ..resolve import inode_at


def stat(context: OperationContext, request: StatRequest) -> AnyInodeReply:
    """Return the inode that a path leads to. Raises: what `locate` raises; NotFound."""
    inode = inode_at(context, request.path, follow=request.follow)
    context.pause(inode)
    return context.reply(inode)


__all__ = ["stat"]
