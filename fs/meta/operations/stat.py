"""Attributes, by path or by id."""

from typing import Final

from ...errors import InvalidArgument
from ...wire.pb.meta_pb2 import BatchStatReply, BatchStatRequest, Inode, InodeReply, StatRequest
from ..resolve import inode_at
from ..work import Work

BATCH_MAX: Final = 1024  # about a listing's page
REPLY_BYTES_MAX: Final = 4 * 1024 * 1024  # half a lane frame


def stat(work: Work, request: StatRequest) -> InodeReply:
    """The inode that a path leads to. Raises: what `locate` raises; NotFound."""
    inode = inode_at(work, request.path, follow=request.follow)
    work.pause(inode)
    return InodeReply(inode=work.visible(inode))


def batch_stat(work: Work, request: BatchStatRequest) -> BatchStatReply:
    """Inodes in the order asked; id 0 where there is none. Raises: InvalidArgument for too many."""
    if len(request.inodes) > BATCH_MAX:
        raise InvalidArgument(f"at most {BATCH_MAX} inodes in one request, not {len(request.inodes)}")
    reply = BatchStatReply()
    size_bytes = 0
    for number in request.inodes:
        inode = work.find(number)
        if inode is not None:
            work.pause(inode)
            size_bytes += len(inode.inline_data) + 256
        if size_bytes > REPLY_BYTES_MAX:
            raise InvalidArgument("the inline data of so many inodes is too much for one reply", errno=7)
        reply.inodes.append(Inode() if inode is None else work.visible(inode))
    return reply


__all__ = ["BATCH_MAX", "batch_stat", "stat"]
