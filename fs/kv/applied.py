"""A local store that carries out the records of one ordered log, each exactly once.

The store keeps, in its own keys, which log it follows and the `Position` up to which it has come. A record's writes and
the new position are one transaction of the local engine: after a crash the store is as it was after some record, and
says after which.

    A1  the store is what the records of its log up to `position` give, in their order, and nothing else
    A2  a record that the store has is not carried out again, and one that does not follow its position is refused
    A3  stores with equal positions are equal, byte by byte: a position has a digest of every record before it
    A4  `durable` is a position that survives power loss; it never goes back

Not done here: reading the log, and deciding who writes it (`replica`).
"""

import secrets
from collections.abc import Callable, Sequence
from struct import Struct
from typing import Final

from ..errors import CorruptData, Unavailable
from .engine import KEY_END, Engine, Transaction
from .log import START, Diverged, Position, Record
from .log.ordered_log import DIGEST_BYTES
from .record import Operation, decode_record, replay
from .record_sizes import RecordSizes

IDENTITY_KEY: Final = KEY_END + b"/log"
POSITION_KEY: Final = KEY_END + b"/position"
SKIPPED: Final = (
    KEY_END + b"/skipped/"
)  # of keys that are removed, and never there, for the versions that this takes
SKIPPED_MAX: Final = 4096  # in one transaction
FORMAT: Final = 1
_STORED: Final = Struct(f"<BQQ{DIGEST_BYTES}s")  # format, epoch, index, digest


class Gap(Unavailable):
    """Records are missing between the store's position and this one."""


class Applied:
    """`engine`, which holds what the log named `log_id` says, and changes by `apply` alone.

    `create`: the store may be new. An engine that was written to without a log is refused: that is not in the log.
    Raises: Diverged if the store follows another log; CorruptData if it follows none.
    """

    def __init__(self, engine: Engine, *, log_id: bytes, create: bool = False) -> None:
        assert log_id, "a log has a name"
        self.engine = engine
        self.log_id = log_id
        self.epoch = 0  # of the record at `position`
        self.position = self._load(create=create)
        self.durable = START
        self.sizes = RecordSizes(self.position.index)
        self.observer: Callable[[Record, Sequence[Operation]], None] | None = None  # called after each record

    def apply(self, record: Record) -> bool:
        """Carry out `record`; return False if the store has it already (A2).

        Raises: Gap; Diverged; CorruptData for a damaged record; what the engine raises: then nothing was done, or the
        engine has failed.
        """
        at = self.position
        if record.index < at.index:
            return False
        if record.index > at.index + 1:
            raise Gap(
                f"records {at.index + 1} to {record.index - 1} are missing before record {record.index} of the log"
            )
        if record.index == at.index:
            self._require_same(record.position)
            return False
        self._require_same(record.after)
        if record.epoch < self.epoch:
            raise Diverged(
                f"record {record.index} of the log has epoch {record.epoch}, the one before {self.epoch}"
            )
        operations = decode_record(record.payload)
        self._carry_out(operations, record)
        assert self.position == record.position, "A1: the store has come one record further"
        self.sizes.add(len(record.payload))
        if self.observer is not None:
            self.observer(record, operations)
        return True

    async def sync(self) -> Position:
        """Make what was carried out before the call survive power loss; return `durable`."""
        position = self.position
        await self.engine.sync()
        if position.index > self.durable.index:
            self.durable = position
        assert self.durable.index >= position.index, "A4: what is durable does not go back"
        return self.durable

    def _require_same(self, found: Position) -> None:
        if found != self.position:
            raise Diverged(
                f"record {found.index} of the log is not the one that the store has carried out:"
                " the log was restored from an old snapshot, or is another one"
            )

    def _carry_out(self, operations: Sequence[Operation], record: Record) -> None:
        transaction = _StoreTransaction(self.engine)
        replay(operations, transaction)
        transaction.put_own(POSITION_KEY, _stored(record.epoch, record.position))
        transaction.commit()
        self.position = record.position
        self.epoch = record.epoch

    def _load(self, *, create: bool) -> Position:
        reader = self.engine.begin()
        identity, stored = reader.snapshot_get(IDENTITY_KEY), reader.snapshot_get(POSITION_KEY)
        is_empty = not reader.snapshot_range(b"\x00", KEY_END, limit=1)
        reader.cancel()
        if identity is None and stored is None and is_empty and create:
            self._begin()
            return START
        if identity is None or stored is None:
            raise CorruptData("the key-value store follows no log: it was written to without one")
        if identity != self.log_id:
            raise Diverged(
                f"the key-value store follows the log {identity.decode(errors='replace')!r},"
                f" not {self.log_id.decode(errors='replace')!r}"
            )
        self.epoch, position = decode_position(stored)
        return position

    def _begin(self) -> None:
        _follow(self.engine, self.log_id, START)


def adopt(engine: Engine, *, log_id: bytes) -> Position:
    """Let a store that was written to without a log follow the log named `log_id`, and return from where on.

    The log has to begin there (`EtcdLog.begin`): who has nothing takes a checkpoint. The index is above the version of
    the store, and that of `release` above the index, so what says how far a store has come grows through both.
    No other store gets the same position: the digest is random (A3). The caller syncs.
    Raises: CorruptData if the store follows a log, or is empty.
    """
    reader = engine.begin()
    identity, pairs = reader.snapshot_get(IDENTITY_KEY), reader.snapshot_range(b"\x00", KEY_END, limit=1)
    reader.cancel()
    if identity is not None or not pairs:
        raise CorruptData("the key-value store follows a log already" if identity else "the store is empty")
    position = Position(engine.version + 1, secrets.token_bytes(DIGEST_BYTES))
    _follow(engine, log_id, position)
    assert engine.version >= position.index, (
        "each record adds one to the index, and at least one to the version"
    )
    return position


def begin_again(applied: Applied, *, behind: Position) -> Position:
    """Let the store, whose content is the caller's business, follow its log from a new position on, and return it.

    The log has to begin there (`EtcdLog.change`). It is one further than `behind`, its present end, and no other store
    has it; the version of the store is brought there, so that what says how far a store has come never goes back. The
    caller syncs.
    """
    engine = applied.engine
    position = Position(behind.index + 1, secrets.token_bytes(DIGEST_BYTES))
    while engine.version < position.index:
        transaction = _StoreTransaction(engine)
        for number in range(min(SKIPPED_MAX, position.index - engine.version)):
            transaction.put_own(SKIPPED + b"%d" % number, None)
        transaction.commit()
    _follow(engine, applied.log_id, position)
    applied.epoch, applied.position = 0, position
    return position


def release(applied: Applied) -> None:
    """Let the store follow no log any more. The caller syncs. Raises: CorruptData."""
    engine = applied.engine
    transaction = _StoreTransaction(engine)
    transaction.put_own(IDENTITY_KEY, None)
    transaction.put_own(POSITION_KEY, None)
    transaction.commit()
    if engine.version < applied.position.index:
        raise CorruptData(
            "the key-value store has fewer versions than its log has records: it would look older"
        )


def _follow(engine: Engine, log_id: bytes, position: Position) -> None:
    transaction = _StoreTransaction(engine)
    transaction.put_own(IDENTITY_KEY, log_id)
    transaction.put_own(POSITION_KEY, _stored(0, position))
    transaction.commit()


class _StoreTransaction(Transaction):
    """Writes the store's own keys too, and uses the reserve: what it carries out is agreed already."""

    __slots__ = ()

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.may_use_reserve = True

    def put_own(self, key: bytes, value: bytes | None) -> None:
        """Set a key of the store's own; None removes it."""
        assert key >= KEY_END, "others are written by `put`"
        self._writes[key] = value


def _stored(epoch: int, position: Position) -> bytes:
    return _STORED.pack(FORMAT, epoch, position.index, position.digest)


def decode_position(stored: bytes) -> tuple[int, Position]:
    if len(stored) != _STORED.size or stored[0] != FORMAT:
        raise CorruptData("the position of the key-value store cannot be read: another release wrote it")
    _format, epoch, index, digest = _STORED.unpack(stored)
    return epoch, Position(index, digest)


__all__ = [
    "IDENTITY_KEY",
    "POSITION_KEY",
    "Applied",
    "Gap",
    "adopt",
    "begin_again",
    "decode_position",
    "release",
]
