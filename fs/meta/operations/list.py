"""The entries of a directory, a page at a time."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from google.protobuf.message import DecodeError

from ...errors import CorruptData, InvalidArgument, NotFound
from ...wire.encoded import Encoded
from ...wire.pb.meta_pb2 import DIRECTORY, ListReply, ListRequest
from ..permissions import EXECUTE, READ, require
from ..resolve import NAME_BYTES_MAX
from ..schema import ONE_BYTES, decode_inode, encode_inode, entry_range, inode_key, unpack_entry
from ..work import Work

LIMIT_MAX: Final = 8192
PAGE_BYTES_MAX: Final = 4 * 1024 * 1024  # stored inodes, after which a page ends: half a lane frame
INLINE_DATA_TAG: Final = b"\x82\x01"  # before Inode.inline_data, wherever a stored inode has some


class Listing(Encoded[ListReply]):
    """A page of entries, and which inodes are in it with their attributes."""

    __slots__ = ("inodes",)

    def __init__(self, encoded: bytes, inodes: Sequence[int]) -> None:
        super().__init__(ListReply, encoded)
        self.inodes = inodes

    def message(self) -> ListReply:
        """Raises: CorruptData."""
        try:
            return super().message()
        except DecodeError as error:
            raise CorruptData("a stored inode cannot be read") from error


def list_directory(work: Work, request: ListRequest) -> Listing:
    """A page of entries in the order of their names, as of one moment. "." and ".." are the client's.

    Attributes come without the bytes of small files. This is the one operation that touches a thousand inodes: the
    reply is put together from their stored bytes, without an object for each.
    Raises: NotFound, NotADirectory, PermissionDenied, InvalidArgument, CorruptData.
    """
    if len(request.after) > NAME_BYTES_MAX:
        raise InvalidArgument("not the name of an entry")
    directory = work.directory(request.inode)
    require(work.user, directory, READ | (EXECUTE if request.with_inodes else 0))
    limit = min(request.limit or work.scene.config.list_limit, LIMIT_MAX)
    begin, end = entry_range(directory.id, after=request.after)
    pairs = work.txn.snapshot_range(begin, end, limit=limit + 1)
    found = [(key[ONE_BYTES:], *unpack_entry(value)) for key, value in pairs[:limit]]
    entries = _with_attributes(work, found) if request.with_inodes else [_entry(*each) for each in found]
    rest = ListReply(more=len(entries) < len(pairs), parent=directory.parent or directory.id)
    entries.append(rest.SerializeToString())
    return Listing(b"".join(entries), [number for _, number, _ in found] if request.with_inodes else ())


def _with_attributes(work: Work, found: Sequence[tuple[bytes, int, int]]) -> list[bytes]:
    """Entries in their wire form; fewer than were found if their inodes are large."""
    inodes = work.txn.snapshot_get_many([inode_key(number) for _, number, _ in found])
    entries: list[bytes] = []
    size_bytes = 0
    for (name, number, kind), stored in zip(found, inodes, strict=True):
        if stored is None:
            raise NotFound("no such inode", inode=number)
        size_bytes += len(stored)
        if size_bytes > PAGE_BYTES_MAX and entries:
            break
        special = kind == DIRECTORY or INLINE_DATA_TAG in stored
        shown = _shown(work, stored) if special else stored
        entries.append(_entry(name, number, kind, b'"' + _varint(len(shown)) + shown))
    return entries


def _shown(work: Work, stored: bytes) -> bytes:
    """The attributes of a stored inode, as a listing shows them. The tag may be there by chance: that does no harm."""
    inode = decode_inode(stored)
    if inode.is_inline:
        inode.ClearField("inline_data")
    return encode_inode(work.visible(inode))


def _entry(name: bytes, inode: int, kind: int, attributes: bytes = b"") -> bytes:
    """The wire form, by hand: fields 1 to 4 of `Dentry`, as field 1 of `ListReply`."""
    dentry = b"\n%b%b\x10%b\x18%c%b" % (_varint(len(name)), name, _varint(inode), kind, attributes)
    return b"\n%b%b" % (_varint(len(dentry)), dentry)


def _varint(number: int) -> bytes:
    return _ONE_BYTE[number] if number < 0x80 else _CONTINUED[number & 0x7F] + _varints(number >> 7)


@lru_cache(4096)
def _varints(number: int) -> bytes:
    """What follows the lowest seven bits: neighbouring ids have it in common."""
    return _varint(number)


_ONE_BYTE: Final = [bytes((bits,)) for bits in range(0x80)]
_CONTINUED: Final = [bytes((bits | 0x80,)) for bits in range(0x80)]

__all__ = ["LIMIT_MAX", "PAGE_BYTES_MAX", "Listing", "list_directory"]
