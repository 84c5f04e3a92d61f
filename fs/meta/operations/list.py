"""The entries of a directory, a page at a time."""

from typing import Final

from ...errors import InvalidArgument
from ...wire.pb.meta_pb2 import Dentry, ListReply, ListRequest
from .. import schema
from ..permissions import EXECUTE, READ, require
from ..resolve import NAME_BYTES_MAX
from ..work import Work

PAGE_BYTES_MAX: Final = 2 * 1024 * 1024  # a page ends early rather than outgrow a lane frame
LIMIT_MAX: Final = 8192
ENTRY_BYTES: Final = 160  # about, with attributes


def list_directory(work: Work, request: ListRequest) -> ListReply:
    """A page of entries in the order of their names, as of one moment. "." and ".." are the client's.

    Raises: NotFound, NotADirectory, PermissionDenied, InvalidArgument.
    """
    if len(request.after) > NAME_BYTES_MAX:
        raise InvalidArgument("not the name of an entry")
    directory = work.directory(request.inode)
    require(work.user, directory, READ | (EXECUTE if request.with_inodes else 0))
    limit = min(request.limit or work.scene.config.list_limit, LIMIT_MAX)
    begin, end = schema.entry_range(directory.id, after=request.after)
    pairs = work.txn.snapshot_range(begin, end, limit=limit + 1)
    reply = ListReply(more=len(pairs) > limit, parent=directory.parent or directory.id)
    size_bytes = 0
    for key, value in pairs[:limit]:
        if size_bytes > PAGE_BYTES_MAX:
            reply.more = True
            break
        _, name = schema.split_one(key)
        entry = schema.decode_entry(value)
        dentry = Dentry(name=name, inode=entry.inode, type=entry.type)  # type: ignore[arg-type] # an enum's number
        if request.with_inodes:
            inode = work.load(entry.inode)
            dentry.attributes.CopyFrom(work.visible(inode))
            size_bytes += len(inode.inline_data)
        size_bytes += ENTRY_BYTES + len(name)
        reply.entries.append(dentry)
    return reply


__all__ = ["LIMIT_MAX", "PAGE_BYTES_MAX", "list_directory"]
