"""Keys and values of the namespace in the key-value store. The bytes are drawn in docs/formats.md.

    M                         superblock      format version, id and generation of the store, cluster id
    I inode                   inode           the `Inode` message of proto/meta.proto
    D directory name          entry           inode, type, cookie, and the `Dentry` message that listings show
    C directory cookie        entry           the same value, in the order in which names were made
    T directory               entry time      when an entry last came or went; written blindly
    N directory               subdirectories  how many
    S inode session           write session   client, when it was opened
    R client slot             record          the answer to a request that has been carried out (requests.py)
    O removed_at inode        orphan          an inode without a name, until it is open nowhere
    G removed_at content      garbage         the `RemovedContent` message: chunks to remove
    H removed_at content      kept garbage    the same, while a state may be restored in which a file had the chunks
    P inode                   cut             a truncation in progress
    X inode name              attribute       an extended attribute
    Q due content             quarantine      the `QuarantinedContent` message: chunks that no file names
    Y client                  reservation     ids that a client gives to its new inodes (reservations.py)
    L                         load            the `LoadState` message, while a dump is being loaded
    A kind                    allocator       first id, or moment of `RemovalClock`, that is not reserved

Ids in keys are big-endian: keys sort by number. `removed_at` is a moment of `RemovalClock`, for H of the wall clock.
Making a file writes T but neither reads it nor writes its directory's I or N, so creates in one directory never
conflict. A directory's record holds 2 as its link count while it has a name, and 0 after; `OperationContext.visible`
puts together what callers see. Every D has its C, written and deleted with it (`OperationContext.add_entry`). A cookie
is the id of the inode that was made with the name, or an id of its own: no two entries have the same, and a name keeps
its cookie until it goes.
"""

from collections.abc import Sequence
from struct import Struct
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from ..errors import ConfigError, CorruptData
from ..wire.pb.meta_pb2 import Dentry, Inode, QuarantinedContent, RemovedContent

FORMAT_VERSION: Final = 5
GENERATION_BITS: Final = 44  # of an id are below the generation in which it was handed out; 0 in the first

_ONE: Final = Struct(">cQ")
_TWO: Final = Struct(">cQQ")
_ENTRY: Final = Struct("<QBQ")
_FOUND: Final = Struct("<QB")  # its first fields
_SESSION: Final = Struct("<QQ")
_TIME: Final = Struct("<q")
_COUNT: Final = Struct("<I")
_RECORD: Final = Struct("<QH")
_NEXT: Final = Struct("<Q")
_SUPERBLOCK: Final = Struct("<IQI")
_INTENT: Final = Struct("<QQ")
_RESERVATION: Final = Struct("<QQ")

SUPERBLOCK: Final = b"M"
LOAD: Final = b"L"
GARBAGE: Final = b"G"
KEPT: Final = b"H"  # of garbage, for `[metadata] history_s`
INODES: Final = b"I"  # first byte of the keys of all inodes
QUARANTINE: Final = b"Q"
RESERVATIONS: Final = b"Y"

pack_one: Final = _ONE.pack
pack_two: Final = _TWO.pack
unpack_found: Final = _FOUND.unpack_from  # inode and type of an entry
ENTRY_BYTES: Final = _ENTRY.size  # of an entry, before its message


class Superblock(NamedTuple):
    """Whose store this is, and which: `store` was drawn when it was created, `generation` counts accepted losses."""

    store: int
    generation: int
    cluster_id: str


class Record(NamedTuple):
    """The answer to a request: `method` is its number on the lane, `reply` serialized."""

    sequence: int
    method: int
    reply: bytes


class Entry(NamedTuple):
    """What a directory says of a name."""

    inode: int
    type: int
    cookie: int = 0  # its place in the listing by cookies; 0: what a path leads to that names no entry


class Session(NamedTuple):
    """A file opened for writing."""

    client: int
    opened_unix_ms: int


class TruncateIntent(NamedTuple):
    """A truncation in progress: the chunks of `content` beyond `length` are being removed."""

    content: int
    length: int


def inode_key(inode: int) -> bytes:
    return pack_one(INODES, inode)


def entry_key(directory: int, name: bytes) -> bytes:
    return pack_one(b"D", directory) + name


def entry_range(directory: int, *, after: bytes = b"") -> tuple[bytes, bytes]:
    """Return all entries of a directory whose names sort after `after`."""
    begin = pack_one(b"D", directory)
    return (begin + after + b"\x00" if after else begin), pack_one(b"D", directory + 1)


def cookie_key(directory: int, cookie: int) -> bytes:
    return pack_two(b"C", directory, cookie)


def cookie_range(directory: int, *, after: int) -> tuple[bytes, bytes]:
    """Return all entries of a directory whose cookies are greater than `after`."""
    return pack_two(b"C", directory, after) + b"\x00", pack_one(b"C", directory + 1)


def time_key(directory: int) -> bytes:
    return pack_one(b"T", directory)


def subdirectories_key(directory: int) -> bytes:
    return pack_one(b"N", directory)


def session_key(inode: int, session: int) -> bytes:
    return pack_two(b"S", inode, session)


def session_range(inode: int) -> tuple[bytes, bytes]:
    return pack_one(b"S", inode), pack_one(b"S", inode + 1)


def record_key(client: int, slot: int) -> bytes:
    return pack_two(b"R", client, slot)


def reservation_key(client: int) -> bytes:
    return pack_one(RESERVATIONS, client)


def orphan_key(removed_ms: int, inode: int) -> bytes:
    return pack_two(b"O", removed_ms, inode)


def garbage_key(removed_ms: int, content: int) -> bytes:
    return pack_two(GARBAGE, removed_ms, content)


def kept_key(removed_unix_ms: int, content: int) -> bytes:
    return pack_two(KEPT, removed_unix_ms, content)


def removal_begin(kind: bytes, removed_ms: int) -> bytes:
    """Before all orphans or garbage of that moment."""
    return pack_one(kind, removed_ms)


def quarantine_key(due_unix_ms: int, content: int) -> bytes:
    return pack_two(QUARANTINE, due_unix_ms, content)


def intent_key(inode: int) -> bytes:
    return pack_one(b"P", inode)


def attribute_key(inode: int, name: bytes) -> bytes:
    return pack_one(b"X", inode) + name


def attribute_range(inode: int) -> tuple[bytes, bytes]:
    return pack_one(b"X", inode), pack_one(b"X", inode + 1)


def allocator_key(kind: bytes) -> bytes:
    return b"A" + kind


def kind_range(kind: bytes) -> tuple[bytes, bytes]:
    """Return all keys that begin with one letter."""
    return kind, bytes((kind[0] + 1,))


def split_one(key: bytes) -> tuple[int, bytes]:
    """Return the id in a key, and what follows it."""
    return _ONE.unpack_from(key)[1], key[_ONE.size :]


def split_two(key: bytes) -> tuple[int, int]:
    """Return the two numbers of a key that is made of two."""
    _, first, second = _TWO.unpack(key)
    return first, second


def encode_inode(inode: Inode) -> bytes:
    return inode.SerializeToString()


def decode_inode(value: bytes) -> Inode:
    """Raises: CorruptData."""
    try:
        return Inode.FromString(value)
    except DecodeError as error:
        raise CorruptData("a stored inode cannot be read") from error


def encode_entry(entry: Entry, name: bytes) -> bytes:
    number, kind, cookie = entry
    shown = Dentry(name=name, inode=number, cookie=0 if cookie == number else cookie)
    shown.type = kind  # type: ignore[assignment]  # an int
    return _ENTRY.pack(number, kind, cookie) + shown.SerializeToString()


def decode_entry(value: bytes) -> Entry:
    return Entry(*_ENTRY.unpack_from(value))


def decode_dentry(value: bytes) -> Dentry:
    """Return an entry as listings show it. Raises: CorruptData."""
    try:
        return Dentry.FromString(value[ENTRY_BYTES:])
    except DecodeError as error:
        raise CorruptData("a stored entry of a directory cannot be read") from error


def encode_session(client: int, opened_unix_ms: int) -> bytes:
    return _SESSION.pack(client, opened_unix_ms)


def decode_session(value: bytes) -> Session:
    return Session(*_SESSION.unpack(value))


def encode_time(time_ns: int) -> bytes:
    return _TIME.pack(time_ns)


def decode_time(value: bytes) -> int:
    return int(_TIME.unpack(value)[0])


def encode_count(count: int) -> bytes:
    return _COUNT.pack(count)


def decode_count(value: bytes | None) -> int:
    return 0 if value is None else int(_COUNT.unpack(value)[0])


def encode_record(sequence: int, method: int, reply: bytes) -> bytes:
    return _RECORD.pack(sequence, method) + reply


def decode_record(value: bytes) -> Record:
    sequence, method = _RECORD.unpack_from(value)
    return Record(sequence, method, value[_RECORD.size :])


def encode_superblock(superblock: Superblock) -> bytes:
    head = _SUPERBLOCK.pack(FORMAT_VERSION, superblock.store, superblock.generation)
    return head + superblock.cluster_id.encode()


def decode_superblock(value: bytes) -> Superblock:
    """Raises: ConfigError for another format; CorruptData."""
    found = int.from_bytes(value[:4], "little")
    if found != FORMAT_VERSION:
        raise ConfigError(
            f"the metadata have format {found}, and this release reads format {FORMAT_VERSION}: "
            "run the release that wrote them"
        )
    if len(value) < _SUPERBLOCK.size:
        raise CorruptData("the superblock of the metadata is too short")
    _, store, generation = _SUPERBLOCK.unpack_from(value)
    return Superblock(store, generation, value[_SUPERBLOCK.size :].decode(errors="replace"))


def encode_next(number: int) -> bytes:
    return _NEXT.pack(number)


def decode_next(value: bytes) -> int:
    return int(_NEXT.unpack(value)[0])


def encode_first_change(number: int, boot_id: str) -> bytes:
    return _NEXT.pack(number) + boot_id.encode()


def decode_first_change(value: bytes) -> tuple[int, str]:
    return decode_next(value[: _NEXT.size]), value[_NEXT.size :].decode()


def encode_intent(content: int, length: int) -> bytes:
    return _INTENT.pack(content, length)


def decode_intent(value: bytes) -> TruncateIntent:
    return TruncateIntent(*_INTENT.unpack(value))


def encode_reservations(ranges: Sequence[range]) -> bytes:
    return b"".join(_RESERVATION.pack(each.start, each.stop) for each in ranges)


def decode_reservations(value: bytes | None) -> list[range]:
    return [] if value is None else [range(*each) for each in _RESERVATION.iter_unpack(value)]


def encode_garbage(inode: Inode, removed_unix_ms: int, *, length: int) -> bytes:
    """Return what is needed to remove the chunks of `inode`'s content, all below `length`, when the inode is gone."""
    return RemovedContent(
        content=inode.content,
        inode=inode.id,
        layout=inode.layout,
        removed_unix_ms=removed_unix_ms,
        length=length,
    ).SerializeToString()


def encode_spare(inode: Inode, content: int, reserved_unix_ms: int) -> bytes:
    """Return a content that is reserved for the bytes of `inode`, which is inline: garbage unless it is claimed."""
    return RemovedContent(
        content=content,
        inode=inode.id,
        layout=inode.layout,
        removed_unix_ms=reserved_unix_ms,
        length=inode.layout.inline_bytes,
        spare=True,
    ).SerializeToString()


def decode_garbage(value: bytes) -> RemovedContent:
    """Raises: CorruptData."""
    try:
        return RemovedContent.FromString(value)
    except DecodeError as error:
        raise CorruptData("a stored record of removed content cannot be read") from error


def decode_quarantined(value: bytes) -> QuarantinedContent:
    """Raises: CorruptData."""
    try:
        return QuarantinedContent.FromString(value)
    except DecodeError as error:
        raise CorruptData("a stored record of quarantined content cannot be read") from error


__all__ = [
    "ENTRY_BYTES",
    "FORMAT_VERSION",
    "GARBAGE",
    "INODES",
    "KEPT",
    "LOAD",
    "QUARANTINE",
    "RESERVATIONS",
    "SUPERBLOCK",
    "Entry",
    "Record",
    "Session",
    "TruncateIntent",
    "allocator_key",
    "attribute_key",
    "attribute_range",
    "cookie_key",
    "cookie_range",
    "decode_count",
    "decode_dentry",
    "decode_entry",
    "decode_first_change",
    "decode_garbage",
    "decode_inode",
    "decode_intent",
    "decode_next",
    "decode_quarantined",
    "decode_record",
    "decode_reservations",
    "decode_session",
    "decode_time",
    "encode_count",
    "encode_entry",
    "encode_first_change",
    "encode_garbage",
    "encode_inode",
    "encode_intent",
    "encode_next",
    "encode_record",
    "encode_reservations",
    "encode_session",
    "encode_spare",
    "encode_time",
    "entry_key",
    "entry_range",
    "garbage_key",
    "inode_key",
    "intent_key",
    "kept_key",
    "kind_range",
    "orphan_key",
    "quarantine_key",
    "record_key",
    "removal_begin",
    "reservation_key",
    "session_key",
    "session_range",
    "split_one",
    "split_two",
    "subdirectories_key",
    "time_key",
    "unpack_found",
]
