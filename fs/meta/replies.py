"""What is in replies: the types that are recorded, and the inodes they carry."""

from collections.abc import Callable, Sequence
from typing import Any, Final

from google.protobuf.message import Message

from ..wire.pb import common_pb2 as lane
from ..wire.pb import meta_pb2 as pb
from ..wire.pb.common_pb2 import Empty

# By the method's number on the lane.
RECORDED: Final[dict[int, type[Message]]] = {
    lane.META_CREATE: pb.InodeReply,
    lane.META_OPEN: pb.InodeReply,
    lane.META_CLOSE: pb.CloseReply,
    lane.META_SYNC: pb.InodeReply,
    lane.META_MKNOD: pb.InodeReply,
    lane.META_MKDIR: pb.InodeReply,
    lane.META_SYMLINK: pb.InodeReply,
    lane.META_LINK: pb.InodeReply,
    lane.META_UNLINK: pb.InodeReply,
    lane.META_RMDIR: Empty,
    lane.META_RENAME: pb.RenameReply,
    lane.META_SET_ATTR: pb.InodeReply,
    lane.META_REMOVE_TREE: Empty,
    lane.META_SET_XATTR: Empty,
    lane.META_REMOVE_XATTR: Empty,
}


_INODES: Final[dict[type, Callable[[Any], Sequence[pb.Inode]]]] = {
    pb.InodeReply: lambda reply: (reply.inode,),
    pb.CloseReply: lambda reply: [each.inode for each in reply.results if each.HasField("inode")],
    pb.RenameReply: lambda reply: (
        (reply.moved, reply.replaced) if reply.HasField("replaced") else (reply.moved,)
    ),
    pb.ListReply: lambda reply: [each.attributes for each in reply.entries if each.HasField("attributes")],
}


def inodes_of(reply: object) -> Sequence[pb.Inode]:
    """The inodes in a reply; none in one that is encoded."""
    find = _INODES.get(type(reply))
    return () if find is None else find(reply)


def without_data(reply: Message) -> bytes:
    """The reply as it is recorded: inline data is in the inode, and may be large."""
    if not any(inode.inline_data for inode in inodes_of(reply)):
        return reply.SerializeToString()
    kept = type(reply)()
    kept.CopyFrom(reply)
    for inode in inodes_of(kept):
        inode.ClearField("inline_data")
    return kept.SerializeToString()


__all__ = ["RECORDED", "inodes_of", "without_data"]
