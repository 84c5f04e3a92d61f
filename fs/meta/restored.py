"""A namespace of before in place of the present one: what must not be the same as it was then.

N1  ids of the abandoned state are not handed out again, and the store counts as newer than that state
N2  a file that has grown since is measured before its length is relied on (lengths.py): its chunks have more bytes
    than it had then
N3  no moment of the log is before the one at which the states change
"""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ..clock import Clock
from ..errors import CorruptData
from ..kv import Durability, Engine, Pair, Transaction, run
from ..wire.pb.meta_pb2 import REGULAR, Inode, RemovedContent
from . import schema
from .bootstrap import raise_generation
from .context import NS_PER_MS
from .moments import KEY as MOMENT

SESSIONS: Final = 256  # stored in one transaction
NAMED: Final = 10  # inodes without bytes that a report names


@dataclass(frozen=True, slots=True)
class Restored:
    """How the files of a restored namespace differ from what they were. `gone`: inodes whose chunks were removed."""

    files: int
    grown: int
    gone_count: int
    gone: tuple[int, ...]


async def replace_namespace(restored: Engine, present: Engine, *, clock: Clock) -> Restored:
    """Prepare `restored`, a state of before, to follow `present`, which is only read. Raises: CorruptData."""
    before, now = _superblock(restored), _superblock(present)
    if before.store != now.store:
        raise CorruptData("the state to restore is of another metadata store")
    report, grown = _compare(restored, present)
    await raise_generation(restored, now.generation + 1, clock=clock)  # N1
    client = secrets.randbits(62) | 1  # which no manager knows: the collector ends its sessions
    now_ms = clock.unix_ns() // NS_PER_MS
    for first in range(0, len(grown), SESSIONS):
        batch = grown[first : first + SESSIONS]

        def open_sessions(txn: Transaction, batch: list[int] = batch) -> None:
            for inode in batch:
                session = secrets.randbits(62) | 1
                txn.put(schema.session_key(inode, session), schema.encode_session(client, now_ms))

        await run(restored, open_sessions, clock=clock)

    def date(txn: Transaction) -> None:
        known = [engine.begin().snapshot_get(MOMENT) for engine in (restored, present)]
        latest = max((schema.decode_next(value) for value in known if value is not None), default=0)
        txn.put(MOMENT, schema.encode_next(max(now_ms, latest)))  # N3

    await run(restored, date, durability=Durability.SYNC, clock=clock)
    return report


def _superblock(engine: Engine) -> schema.Superblock:
    value = engine.begin().snapshot_get(schema.SUPERBLOCK)
    if value is None:
        raise CorruptData("the metadata store holds nothing, not even a root directory")
    return schema.decode_superblock(value)


def _compare(restored: Engine, present: Engine) -> tuple[Restored, list[int]]:
    """Return the report, and the inodes of files that have grown, or may have."""
    kept = {record.content for record in _garbage(present)}
    contents: dict[int, int] = {}  # of the present files: length
    for inode in _files(present):
        contents[inode.content] = inode.length
    written = {schema.split_two(key)[0] for key, _ in _pairs(present, b"S")}
    files, grown, gone = 0, [], []
    for inode in _files(restored):
        files += 1
        length = contents.get(inode.content)
        if length is None and inode.content not in kept:
            gone.append(inode.id)
        elif inode.id in written or (length is not None and length > inode.length):
            grown.append(inode.id)
    return Restored(files, len(grown), len(gone), tuple(gone[:NAMED])), grown


def _files(engine: Engine) -> Iterator[Inode]:
    """Yield the files whose bytes are in chunks."""
    for _, value in _pairs(engine, schema.INODES):
        inode = schema.decode_inode(value)
        if inode.type == REGULAR and not inode.is_inline and inode.length:
            yield inode


def _garbage(engine: Engine) -> Iterator[RemovedContent]:
    for kind in (schema.GARBAGE, schema.KEPT):
        for _, value in _pairs(engine, kind):
            yield schema.decode_garbage(value)


def _pairs(engine: Engine, kind: bytes) -> Iterator[Pair]:
    (pairs,) = engine.snapshot([schema.kind_range(kind)])
    return pairs


__all__ = ["Restored", "replace_namespace"]
