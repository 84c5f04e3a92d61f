"""Replies that carry inodes, as they are sent and as they are recorded.

Most replies bring inodes as they are stored. Those are put together from the stored bytes (`StoredReply`), once for the
record of the request and for its caller. Only where something in them is not for this caller, or not what is stored,
are they taken apart (`execution.Execution`).
"""

from collections.abc import Sequence
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from ..errors import CorruptData
from ..wire.methods import Sent
from ..wire.pb import meta_pb2 as pb
from ..wire.preserialized import Prefixes, Preserialized, varint

Reply = TypeVar("Reply", bound=Message)

INLINE_DATA_TAG: Final = b"\x82\x01"  # before Inode.inline_data, wherever a stored inode has some


class StoredReply(Preserialized[Reply]):
    """A reply with inodes as they are stored. `inodes` are their ids.

    `has_data`: the bytes of a small file may be in it; their tag may also be there by chance. `recorded`: what is
    to be recorded instead.
    """

    __slots__ = ("has_data", "inodes", "recorded")

    def __init__(
        self,
        kind: type[Reply],
        encoded: bytes,
        inodes: Sequence[int],
        *,
        has_data: bool = False,
        recorded: bytes | None = None,
    ) -> None:
        super().__init__(kind, encoded)
        self.inodes = inodes
        self.has_data = has_data
        self.recorded = recorded

    def message(self) -> Reply:
        """Raises: CorruptData."""
        try:
            return super().message()
        except DecodeError as error:
            raise CorruptData("a stored inode cannot be read") from error


AnyInodeReply = pb.InodeReply | StoredReply[pb.InodeReply]

ID_TAG: Final = b"\x08"  # of `Inode.id`
# `InodeReply.inode`, `RenameReply.moved` and `CloseReply.results` are field 1; `RenameReply.replaced` and
# `CloseReply.errors` are field 2.
FIRST: Final = Prefixes(b"\n")
SECOND: Final = Prefixes(b"\x12")


def of_inode(
    inode: int, stored: bytes, *, session: int = 0, created: bool = False, named: bool = False
) -> StoredReply[pb.InodeReply]:
    """`InodeReply` with an inode as it is stored. One that is `named` is recorded by its id."""
    rest = pb.InodeReply(session=session, created=created).SerializeToString() if session or created else b""
    return StoredReply(
        pb.InodeReply,
        FIRST[len(stored)] + stored + rest,
        (inode,),
        has_data=INLINE_DATA_TAG in stored,
        recorded=by_id(inode) + rest if named else None,
    )


def by_id(inode: int) -> bytes:
    """Return the field `inode` of an `InodeReply`, or `moved` of a `RenameReply`, with the id alone."""
    encoded = ID_TAG + varint(inode)
    return FIRST[len(encoded)] + encoded


def is_by_id(inode: pb.Inode) -> bool:
    """Return whether a recorded inode is its id and nothing else. Until now there were records of whole inodes."""
    return not inode.type


def inodes_of(reply: object) -> Sequence[pb.Inode]:
    """Return the inodes in a reply; none in one that is preserialized."""
    match reply:
        case pb.InodeReply():
            return (reply.inode,)
        case pb.RenameReply():
            return (reply.moved, reply.replaced) if reply.HasField("replaced") else (reply.moved,)
        case pb.CloseReply():
            return [each.inode for each in reply.results if each.HasField("inode")]
        case pb.ApplyReply():
            return [each.attributes for each in reply.results if each.HasField("attributes")]
        case pb.ListReply():
            return [each.attributes for each in reply.entries if each.HasField("attributes")]
        case _:
            return ()


def without_collected(reply: object) -> None:
    """Take out of a repeated reply the inodes that are as recorded: they were collected, and have no attributes."""
    if isinstance(reply, pb.CloseReply):
        for closed in reply.results:
            if closed.HasField("inode") and is_by_id(closed.inode):
                closed.ClearField("inode")
    elif isinstance(reply, pb.ApplyReply):
        for result in reply.results:
            if result.HasField("attributes") and is_by_id(result.attributes):
                result.ClearField("attributes")


def without_data(reply: Sent[Reply]) -> bytes:
    """Return the reply as it is recorded.

    Asked again, a request gets inodes as they are then. So one that has a name is recorded by its id; the others,
    which may be collected before, without their inline data.
    """
    if isinstance(reply, pb.InodeReply) and reply.inode.link_count:
        short = pb.InodeReply(session=reply.session, created=reply.created)
        short.inode.id = reply.inode.id
        if reply.HasField("spare"):
            short.spare.CopyFrom(reply.spare)
        return short.SerializeToString()
    if isinstance(reply, pb.ApplyReply):
        named = pb.ApplyReply()
        named.CopyFrom(reply)
        for inode in inodes_of(named):
            inode.CopyFrom(pb.Inode(id=inode.id))
        return named.SerializeToString()
    if isinstance(reply, StoredReply):
        if reply.recorded is not None:
            return reply.recorded
        if not reply.has_data:
            return reply.SerializeToString()
        kept: Message = reply.message()
    elif isinstance(reply, Message) and any(inode.inline_data for inode in inodes_of(reply)):
        kept = type(reply)()
        kept.CopyFrom(reply)
    else:
        return reply.SerializeToString()
    for inode in inodes_of(kept):
        inode.ClearField("inline_data")
    return kept.SerializeToString()


__all__ = [
    "FIRST",
    "INLINE_DATA_TAG",
    "SECOND",
    "AnyInodeReply",
    "StoredReply",
    "by_id",
    "inodes_of",
    "is_by_id",
    "of_inode",
    "without_collected",
    "without_data",
]
