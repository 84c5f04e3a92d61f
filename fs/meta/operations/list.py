"""The entries of a directory, a page at a time, in the order of their names or of their cookies.

A caller that continues after the last name, or the last cookie, misses no entry that exists all the while and sees none
twice, whatever is made or removed meanwhile. A cookie fits where a name does not: in the offset of an entry that the
kernel gives to programs, which may seek to it at any time.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, repeat
from typing import Final, cast

from ...errors import InvalidArgument, NotFound
from ...wire.lane.frames import FRAME_BYTES_MAX
from ...wire.pb.meta_pb2 import DIRECTORY, ListReply, ListRequest
from ...wire.preserialized import Prefixes
from ..context import OperationContext
from ..permissions import EXECUTE, READ, require
from ..replies import INLINE_DATA_TAG, StoredReply
from ..resolve import NAME_BYTES_MAX
from ..schema import (
    ENTRY_BYTES,
    cookie_key,
    cookie_range,
    decode_entry,
    decode_inode,
    encode_inode,
    entry_key,
    entry_range,
    inode_key,
    unpack_found,
)

LIMIT_MAX: Final = 8192
PAGE_BYTES_MAX: Final = 4 * 1024 * 1024  # stored inodes, after which a page ends
assert PAGE_BYTES_MAX <= FRAME_BYTES_MAX // 2, "a page, with its names, fits a frame of the lane"


def list_directory(context: OperationContext, request: ListRequest) -> StoredReply[ListReply]:
    """Return a page of entries, as of one moment. "." and ".." are the client's.

    Attributes come without the bytes of small files, and with `change` as stored, without `first_change`: a client that
    knows the inode from before a loss of power keeps that until it asks for the inode. This is the one operation that
    touches a thousand inodes: the reply is put together from their stored bytes, without an object for each.
    Raises: NotFound, NotADirectory, PermissionDenied, InvalidArgument, CorruptData.
    """
    if len(request.after) > NAME_BYTES_MAX:
        raise InvalidArgument("not the name of an entry")
    directory = context.directory(request.inode)
    require(context.user, directory, READ | (EXECUTE if request.with_inodes else 0))
    limit = min(request.limit or context.shared.config.list_limit, LIMIT_MAX)
    begin, end = _range(directory.id, request)
    only = context.only_entry(directory.id)
    if only is None:
        entries = [value for _, value in context.txn.snapshot_range(begin, end, limit=limit + 1)]
    else:
        entries = _only(context, directory.id, only, request, (begin, end))
    found = [unpack_found(entry) for entry in entries[:limit]]
    inodes = _attributes(context, found) if request.with_inodes else None
    count = len(found) if inodes is None else len(inodes)
    rest = ListReply(
        more=count < len(entries),
        parent=directory.parent or directory.id,
        next_cookie=context.shared.inodes.upcoming,
    )
    encoded = _dentries(entries[:count], inodes)
    encoded.append(rest.SerializeToString())
    shown = () if inodes is None else [number for number, _ in found]
    return StoredReply(ListReply, b"".join(encoded), shown)


def _only(
    context: OperationContext, directory: int, only: int, request: ListRequest, within: tuple[bytes, bytes]
) -> list[bytes]:
    """Return the entry of the directory `only`, the one that the caller may see, if it is asked for."""
    name = context.load(only).name
    value = context.txn.snapshot_get(entry_key(directory, name))
    if value is None:
        return []
    key = (
        cookie_key(directory, decode_entry(value).cookie) if request.by_cookie else entry_key(directory, name)
    )
    return [value] if within[0] <= key < within[1] else []


def _range(directory: int, request: ListRequest) -> tuple[bytes, bytes]:
    """Return the keys of the entries that are asked for."""
    if request.by_cookie:
        return cookie_range(directory, after=request.after_cookie)
    return entry_range(directory, after=request.after)


def _attributes(context: OperationContext, found: Sequence[tuple[int, int]]) -> list[bytes]:
    """Inodes in their wire form, as a listing shows them; fewer than were found if they are large."""
    stored = context.txn.snapshot_get_many([inode_key(number) for number, _ in found])
    if None in stored:
        raise NotFound("no such inode", inode=found[stored.index(None)][0])
    shown = cast("list[bytes]", list(stored))
    ends = list(accumulate(map(len, shown)))
    if ends and ends[-1] > PAGE_BYTES_MAX:
        del shown[max(1, bisect_right(ends, PAGE_BYTES_MAX)) :]
    directories = {index for index, (_, kind) in enumerate(found[: len(shown)]) if kind == DIRECTORY}
    for index in directories.union(_with_data(shown, ends)):
        shown[index] = _shown(context, shown[index])
    return shown


def _with_data(stored: Sequence[bytes], ends: Sequence[int]) -> Iterator[int]:
    """Which of the inodes, that end where `ends` says when they are joined, may have the bytes of a small file."""
    joined = b"".join(stored)
    at = joined.find(INLINE_DATA_TAG)
    while at >= 0:
        index = bisect_right(ends, at)
        yield index
        at = joined.find(INLINE_DATA_TAG, ends[index])


def _shown(context: OperationContext, stored: bytes) -> bytes:
    """Return the attributes of a stored inode, as a listing shows them. A tag that is there by chance does no harm."""
    inode = decode_inode(stored)
    if inode.is_inline:
        inode.ClearField("inline_data")
    return encode_inode(context.visible(inode))


_ATTRIBUTES: Final = Prefixes(b'"')  # field 4 of `Dentry`
_ENTRY: Final = Prefixes(b"\n")  # field 1 of `ListReply`


def _dentries(entries: Sequence[bytes], inodes: Sequence[bytes] | None) -> list[bytes]:
    """Return the wire form, by hand, in pieces."""
    pieces: list[bytes] = []
    for entry, inode in zip(entries, repeat(b"") if inodes is None else inodes, strict=False):
        shown = entry[ENTRY_BYTES:]
        attributes = _ATTRIBUTES[len(inode)] if inode else b""
        pieces += (_ENTRY[len(shown) + len(attributes) + len(inode)], shown, attributes, inode)
    return pieces


__all__ = ["LIMIT_MAX", "PAGE_BYTES_MAX", "list_directory"]
