"""What is in replies: the types that are recorded, and the inodes they carry."""

from collections.abc import Sequence
from typing import Final

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


def inodes_of(reply: object) -> Sequence[pb.Inode]:
    """The inodes in a reply; none in one that is encoded."""
    match reply:
        case pb.InodeReply():
            return [reply.inode]
        case pb.CloseReply():
            return [result.inode for result in reply.results if result.HasField("inode")]
        case pb.RenameReply():
            return [reply.moved, reply.replaced] if reply.HasField("replaced") else [reply.moved]
        case pb.ListReply():
            return [entry.attributes for entry in reply.entries if entry.HasField("attributes")]
    return []


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
