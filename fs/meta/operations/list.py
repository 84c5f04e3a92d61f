"""The entries of a directory, a page at a time."""

from typing import Final

from google.protobuf.message import DecodeError

from ...errors import CorruptData, InvalidArgument, NotFound
from ...wire.pb.meta_pb2 import DIRECTORY, ListReply, ListRequest
from ..permissions import EXECUTE, READ, require
from ..resolve import NAME_BYTES_MAX
from ..schema import ONE_BYTES, entry_range, inode_key, unpack_entry
from ..work import Work

LIMIT_MAX: Final = 8192
PAGE_BYTES_MAX: Final = 4 * 1024 * 1024  # stored inodes, after which a page ends: half a lane frame


def list_directory(work: Work, request: ListRequest) -> ListReply:
    """A page of entries in the order of their names, as of one moment. "." and ".." are the client's.

    Attributes come without the bytes of small files. This is the one operation that touches a thousand inodes, so it
    parses them where they are to be: about three microseconds an entry.
    Raises: NotFound, NotADirectory, PermissionDenied, InvalidArgument.
    """
    if len(request.after) > NAME_BYTES_MAX:
        raise InvalidArgument("not the name of an entry")
    directory = work.directory(request.inode)
    require(work.user, directory, READ | (EXECUTE if request.with_inodes else 0))
    limit = min(request.limit or work.scene.config.list_limit, LIMIT_MAX)
    begin, end = entry_range(directory.id, after=request.after)
    pairs = work.txn.snapshot_range(begin, end, limit=limit + 1)
    reply = ListReply(more=len(pairs) > limit, parent=directory.parent or directory.id)
    add = reply.entries.add
    for key, value in pairs[:limit]:
        number, kind = unpack_entry(value)
        add(name=key[ONE_BYTES:], inode=number, type=kind)
    if request.with_inodes:
        _add_attributes(work, reply)
    return reply


def _add_attributes(work: Work, reply: ListReply) -> None:
    entries = reply.entries
    keys = [inode_key(entry.inode) for entry in entries]
    size_bytes = 0
    for index, stored in enumerate(work.txn.snapshot_get_many(keys)):
        if stored is None:
            raise NotFound("no such inode", inode=entries[index].inode)
        size_bytes += len(stored)
        if size_bytes > PAGE_BYTES_MAX and index:
            del entries[index:]
            reply.more = True
            return
        attributes = entries[index].attributes
        try:
            attributes.MergeFromString(stored)
        except DecodeError as error:
            raise CorruptData("a stored inode cannot be read") from error
        if attributes.is_inline:
            attributes.ClearField("inline_data")
        elif attributes.type == DIRECTORY:
            attributes.CopyFrom(work.visible(attributes))


__all__ = ["LIMIT_MAX", "PAGE_BYTES_MAX", "list_directory"]
