"""The interface of an ordered log that several processes share, of which one may append: the leader.

A `Record` has the index of its predecessor plus one and the digest of its predecessor, so that a `Position` names not
only how long a log is but all that it contains up to there. The leader is who created the present `Claim`; its epoch
grows with each creation.

    O1  at most one record has each index, ever: what was read at an index is read there until it is trimmed
    O2  a record is stored only while the claim of its epoch stands, and only directly behind the record that it follows
    O3  a call that raises `MaybeCommitted` may take effect at any later time, as long as O2 allows it
    O4  `bounds`, `read` and `claim` see everything that had succeeded, anywhere, before they were called
    O5  a reader that knows a position which is not in this log is refused (`Diverged`): the log was restored from an
        old snapshot, or is another one

What a record means is its author's business. Nothing here waits for a lease to end: `leadership` does.
"""

import struct
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from ...errors import ConfigError, CorruptData, InvalidArgument, NotFound, Unavailable

RECORD_BYTES_MAX: Final = (
    1 << 20
)  # of the payload; etcd refuses requests above 1.5 MiB unless configured otherwise
OWNER_BYTES_MAX: Final = 1024  # of an owner's name, which every renewal writes again
ANNOUNCED_BYTES_MAX: Final = 1024  # of one value, and of a name
ANNOUNCED_MAX: Final = 64  # names: more replicas than any log has
READ_RECORDS_MAX: Final = 32  # in one answer: at most 32 MiB
DIGEST_BYTES: Final = 16
_HEADER: Final = struct.Struct(f"<QQ{DIGEST_BYTES}s")
_POSITION: Final = struct.Struct(f"<Q{DIGEST_BYTES}s")


class Deposed(Unavailable):
    """The claim has ended: nothing was and nothing will be stored under it by this call."""


class Trimmed(NotFound):
    """The records that follow this position are not kept any more: begin with a newer checkpoint."""


class Diverged(CorruptData):
    """The position is not one of this log, which was restored from an old snapshot or is another one."""


class Ended(ConfigError):
    """The log is not used any more: what it held was moved elsewhere."""


@dataclass(frozen=True, slots=True)
class Position:
    """The end of a prefix of the log: the index of its last record, and the digest of all of it."""

    index: int
    digest: bytes

    def __post_init__(self) -> None:
        assert self.index >= 0, "indexes begin with 1; 0 is before the first record"
        assert len(self.digest) == DIGEST_BYTES, "a digest has a fixed length"

    def encode(self) -> bytes:
        """Return the stored form."""
        return _POSITION.pack(self.index, self.digest)

    @staticmethod
    def decode(value: bytes) -> "Position":
        """Return what `encode` was called on. Raises: CorruptData."""
        if len(value) != _POSITION.size:
            raise CorruptData(f"a position has {_POSITION.size} bytes, not {len(value)}")
        return Position(*_POSITION.unpack(value))


START: Final = Position(0, bytes(DIGEST_BYTES))  # before the first record


@dataclass(frozen=True, slots=True)
class Record:
    """One entry: `payload`, appended under `epoch` behind the position `after`."""

    after: Position
    epoch: int
    payload: bytes
    position: Position

    @staticmethod
    def create(payload: bytes, *, after: Position, epoch: int) -> "Record":
        """Return the record that follows `after`. Raises: InvalidArgument if the payload is too large."""
        if len(payload) > RECORD_BYTES_MAX:
            raise InvalidArgument(f"a record has at most {RECORD_BYTES_MAX} bytes, not {len(payload)}")
        assert epoch > 0, "a record is appended under a claim"
        index = after.index + 1
        return Record(after, epoch, payload, Position(index, _digest(index, epoch, after.digest, payload)))

    @property
    def index(self) -> int:
        """Its place in the log, from 1."""
        return self.position.index

    def encode(self) -> bytes:
        """Return the stored form (docs/formats.md)."""
        header = _HEADER.pack(self.index, self.epoch, self.after.digest)
        return b"".join((header, self.position.digest, self.payload))

    @staticmethod
    def decode(value: bytes) -> "Record":
        """Return what `encode` was called on. Raises: CorruptData."""
        if len(value) < _HEADER.size + DIGEST_BYTES:
            raise CorruptData(f"a record of {len(value)} bytes is shorter than its header")
        index, epoch, previous = _HEADER.unpack_from(value)
        digest = value[_HEADER.size : _HEADER.size + DIGEST_BYTES]
        payload = value[_HEADER.size + DIGEST_BYTES :]
        if index == 0 or digest != _digest(index, epoch, previous, payload):
            raise CorruptData(f"record {index} does not match its digest")
        return Record(Position(index - 1, previous), epoch, payload, Position(index, digest))


@dataclass(frozen=True, slots=True)
class Bounds:
    """Which records are kept: `first` … `last.index`. None if `first` is one more than that."""

    first: int
    last: Position

    def __post_init__(self) -> None:
        assert 1 <= self.first <= self.last.index + 1, "only a prefix is trimmed"


@dataclass(frozen=True, slots=True)
class Claim:
    """Who leads. `epoch` is of its creation, `revision` of its last renewal; both grow."""

    epoch: int
    revision: int
    owner: str
    lease_s: float  # how long the owner relies on a renewal, from when it sent it

    def __post_init__(self) -> None:
        assert 0 < self.epoch <= self.revision, "a claim is created before it is renewed"
        assert self.lease_s > 0, "a lease lasts"


class OrderedLog(ABC):
    """A process's access to one log.

    Every call may raise `Unavailable` or `Timeout`: it has had no effect and may be repeated. A call that writes may
    raise `MaybeCommitted` (O3).
    """

    # Reading.

    @abstractmethod
    async def bounds(self) -> Bounds:
        """Return which records are kept."""

    @abstractmethod
    async def read(self, after: Position, *, limit: int = READ_RECORDS_MAX) -> Sequence[Record]:
        """Return the records that follow `after`, at most `limit`, none at the end. Raises: Trimmed, Diverged."""

    @abstractmethod
    def follow(self, after: Position) -> AsyncGenerator[Sequence[Record]]:
        """Yield the records that follow `after`, a few at a time, as they are stored; never ends.

        Close it (`contextlib.aclosing`). Raises: as `read`; begin again with the last position after Unavailable.
        """

    # Writing.

    @abstractmethod
    async def append(self, record: Record) -> None:
        """Store `record`. Raises: Deposed if its claim has ended; NotAtEnd if its place is taken; NoSpace, with
        nothing stored; MaybeCommitted. `Appender` resolves the last, and is what a leader should use."""

    @abstractmethod
    async def trim(self, first: int) -> None:
        """Forget the records before index `first`: what they contain is kept elsewhere.

        Needs no claim and works when the log is full. Raises: InvalidArgument for records that do not exist yet.
        """

    # Beside the records: what each process says of itself to all others.

    @abstractmethod
    async def announce(self, name: str, value: bytes) -> None:
        """Keep `value` in place of what was announced under `name`. Needs no claim. Raises: NoSpace; MaybeCommitted."""

    @abstractmethod
    async def withdraw(self, name: str) -> None:
        """Forget what was announced under `name`, if anything was. Needs no claim. Raises: MaybeCommitted."""

    @abstractmethod
    async def announced(self) -> Mapping[str, bytes]:
        """Return the last value of each name."""

    # Claims.

    @abstractmethod
    async def claim(self) -> Claim | None:
        """Return the present claim."""

    @abstractmethod
    def claims(self) -> AsyncGenerator[Claim | None]:
        """Yield the present claim, then each change that is seen; never ends. Close it; begin again after errors."""

    @abstractmethod
    async def create_claim(self, owner: str, *, lease_s: float) -> Claim | None:
        """Claim the log where no claim is. Returns None if there is one. Raises: NoSpace; Ended; MaybeCommitted."""

    @abstractmethod
    async def renew_claim(self, claim: Claim) -> Claim:
        """Give the claim a new revision. Raises: Deposed; NoSpace; MaybeCommitted."""

    @abstractmethod
    async def end_claim(self, claim: Claim) -> bool:
        """Remove the claim if it has not been renewed since; return whether it is gone. Raises: MaybeCommitted."""

    @abstractmethod
    async def close(self) -> None:
        """End what works in the background. Iterators must have been closed before."""


class NotAtEnd(Unavailable):
    """The record does not follow the last one: another was stored at its place (perhaps this very one, earlier)."""


def check_chain(after: Position, records: Sequence[Record]) -> None:
    """Refuse records that do not follow `after` one after another. Raises: Diverged."""
    for record in records:
        if record.after != after:
            raise Diverged(
                f"record {record.index} of the log does not follow record {after.index} as it is known here:"
                " the log was restored from an old snapshot, or is another one"
            )
        after = record.position


def check_position(after: Position, bounds: Bounds) -> None:
    """Refuse a position from which nothing can be read. Raises: Diverged, Trimmed."""
    last = bounds.last
    if after.index > last.index or (after.index == last.index and after.digest != last.digest):
        raise Diverged(
            f"the log ends with record {last.index} and does not contain record {after.index} as it is known here:"
            " it was restored from an old snapshot, or is another one"
        )
    if after.index + 1 < bounds.first:
        raise Trimmed(f"records {after.index + 1} to {bounds.first - 1} of the log are not kept any more")


def check_owner(owner: str) -> None:
    """Refuse an owner's name that is too long. Raises: InvalidArgument."""
    if not 0 < len(owner.encode()) <= OWNER_BYTES_MAX:
        raise InvalidArgument(f"an owner's name has 1 to {OWNER_BYTES_MAX} bytes")


def check_announced(name: str, value: bytes) -> None:
    """Refuse what is too large. Raises: InvalidArgument."""
    if not 0 < len(name.encode()) <= ANNOUNCED_BYTES_MAX or len(value) > ANNOUNCED_BYTES_MAX:
        raise InvalidArgument(f"what is announced, and its name, have at most {ANNOUNCED_BYTES_MAX} bytes")


def _digest(index: int, epoch: int, previous: bytes, payload: bytes) -> bytes:
    state = blake2b(_HEADER.pack(index, epoch, previous), digest_size=DIGEST_BYTES)
    state.update(payload)
    return state.digest()


__all__ = [
    "ANNOUNCED_BYTES_MAX",
    "ANNOUNCED_MAX",
    "DIGEST_BYTES",
    "OWNER_BYTES_MAX",
    "READ_RECORDS_MAX",
    "RECORD_BYTES_MAX",
    "START",
    "Bounds",
    "Claim",
    "Deposed",
    "Diverged",
    "Ended",
    "NotAtEnd",
    "OrderedLog",
    "Position",
    "Record",
    "Trimmed",
    "check_announced",
    "check_chain",
    "check_owner",
    "check_position",
]
