"""A replica's checkpoints in time: made, announced to the other replicas, and the log trimmed behind them.

Each replica announces beside the log's records where its newest checkpoint is, and the address that gives it. A log
that is restored from a snapshot takes the announcements back with it, and a replica without a store finds them. What a
replica has announced counts until it is withdrawn, by who removes the replica: one that is away has its checkpoint.

    K1  what is announced is a checkpoint that is listed, or nothing; after a start it is corrected before anything else
    K2  the log is trimmed only behind what `copies` replicas have announced, of which this one's is known to be there
    K3  nothing here ends the replica: what fails is tried again
    K4  what the log keeps has a limit in bytes, as long as `copies` replicas make their checkpoints
    K5  where a history is kept, a checkpoint is announced when the records up to it are there (`history`, H1)

Any replica trims, not only the primary: a full etcd has none, and that is when room is needed.
"""

import asyncio
import logging
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NoReturn, Protocol

from ...clock import Clock, SystemClock
from ...config import MetadataConfig
from ...errors import CorruptData, Error, NoSpace
from ..applied import Applied
from ..log import START, OrderedLog, Position
from ..record_sizes import COUNTED_MAX, RecordSizes
from ..replica import first_to_keep
from ..rocksdb import RocksEngine
from .catalog import Catalog

log = logging.getLogger(__name__)

CHECK_S: Final = 10.0  # between looks whether it is time
TOO_MUCH: Final = 2  # times what is between two checkpoints: replicas make theirs at different times
POSITION_BYTES: Final = len(START.encode())
_SYSTEM_CLOCK: Final = SystemClock()


@dataclass(frozen=True, slots=True)
class Policy:
    """When a checkpoint is made, how many are kept, and what of the log. See `MetadataConfig`."""

    records: int
    size_bytes: int  # of records
    interval_s: float  # if something has changed
    retained: int
    copies: int
    kept_records: int
    kept_bytes: int
    check_s: float = CHECK_S

    def __post_init__(self) -> None:
        assert self.records > 0, "a checkpoint has something new"
        assert self.size_bytes > 0, "a checkpoint has something new"
        assert self.interval_s > 0, "a checkpoint takes some time"
        assert self.retained > 0, "the newest is kept"
        assert self.copies > 0, "a record without a copy is never trimmed"
        assert self.kept_records >= 0, "what is kept is behind the checkpoints"
        assert self.records + self.kept_records <= COUNTED_MAX, "sizes of these records are known"

    @staticmethod
    def of(config: MetadataConfig, *, copies_max: int | None = None) -> "Policy":
        """Return what the configuration says. `copies_max`: how many replicas there are, if that is known."""
        copies = config.copies if copies_max is None else min(config.copies, copies_max)
        return Policy(
            records=config.checkpoint_records,
            size_bytes=config.checkpoint_bytes,
            interval_s=config.checkpoint_interval_s,
            retained=config.checkpoints,
            copies=copies,
            kept_records=config.kept_records,
            kept_bytes=config.kept_bytes,
        )


@dataclass(frozen=True, slots=True)
class Announcement:
    """What a replica says of its newest checkpoint, or START, and who gives it."""

    position: Position
    address: str

    def encode(self) -> bytes:
        """Return the stored form."""
        return self.position.encode() + self.address.encode()

    @staticmethod
    def decode(value: bytes) -> "Announcement":
        """Return what `encode` was called on. Raises: CorruptData."""
        position = Position.decode(value[:POSITION_BYTES])
        try:
            return Announcement(position, value[POSITION_BYTES:].decode())
        except UnicodeDecodeError as error:
            raise CorruptData("the address of a replica cannot be read") from error


async def announcements(log: OrderedLog) -> Mapping[str, Announcement]:
    """Return what each replica has announced, by its name."""
    return {name: Announcement.decode(value) for name, value in (await log.announced()).items()}


class Checkpoints(Protocol):
    """A replica's store and its checkpoints, as a keeper sees them."""

    def position(self) -> Position:
        """Return up to where the store has come."""

    def newest(self) -> Position:
        """Return the position of the newest checkpoint, or START."""

    @property
    def sizes(self) -> RecordSizes:
        """Of the records that the store has carried out."""

    async def make(self) -> None:
        """Make one of the store as it is now."""

    async def retain(self, count: int) -> object:
        """Remove all but the `count` newest."""


class KeptHistory(Protocol):
    """What a replica keeps of what the log forgets (`history.History`)."""

    async def archive(self, ordered: OrderedLog) -> None:
        """Keep the records up to the newest checkpoint. Raises: what the log raises."""

    def is_empty(self) -> bool:
        """Return whether it waits for a first checkpoint."""


class StoreCheckpoints:
    """`Checkpoints` of a store in RocksDB."""

    def __init__(self, applied: Applied, catalog: Catalog) -> None:
        assert isinstance(applied.engine, RocksEngine), "others have no checkpoints"
        self._applied = applied
        self._engine = applied.engine
        self._catalog = catalog

    def position(self) -> Position:
        return self._applied.position

    def newest(self) -> Position:
        newest = self._catalog.newest()
        return START if newest is None else newest.seal.position

    @property
    def sizes(self) -> RecordSizes:
        return self._applied.sizes

    async def make(self) -> None:
        await self._catalog.create(self._engine)

    async def retain(self, count: int) -> object:
        return await self._catalog.retain(count)


@dataclass(frozen=True, slots=True)
class Member:
    """One replica: a name that no other has, and the address that gives its checkpoints."""

    name: str
    address: str


class Keeper:
    """Keeps the checkpoints of `member`, whose store follows `log`."""

    def __init__(  # noqa: PLR0913, what it looks after
        self,
        log: OrderedLog,
        checkpoints: Checkpoints,
        *,
        member: Member,
        policy: Policy,
        history: KeptHistory | None = None,
        clock: Clock = _SYSTEM_CLOCK,
    ) -> None:
        self._history = history
        self._log = log
        self._checkpoints = checkpoints
        self._member = member
        self._policy = policy
        self._clock = clock
        self._made_s = clock.monotonic()
        self._announced = False
        self._trimmed = False
        self._steps = asyncio.Lock()

    @property
    def newest(self) -> Position:
        """The position of the newest checkpoint, or START."""
        return self._checkpoints.newest()

    async def make_now(self) -> None:
        """Make a checkpoint of what has changed, and trim as far as is allowed. Raises: as `step`."""
        async with self._steps:
            self._trimmed = False
            await self._step(self._has_new)

    async def run(self) -> NoReturn:
        """Work until cancelled."""
        while True:
            try:
                await self.step()
            except Exception as error:
                log.warning(
                    "the checkpoint of this replica: %s", error, exc_info=not isinstance(error, Error)
                )
            await self._clock.sleep(self._policy.check_s)

    async def step(self) -> None:
        """Do what is due. Raises: what the log, the disk and the store raise."""
        async with self._steps:
            await self._step(self._is_due)

    async def _step(self, is_due: Callable[[], bool]) -> None:
        await self._announce_if_needed()
        if is_due():
            await self._make()
            self._made_s = self._clock.monotonic()
            self._announced = self._trimmed = False
            await self._checkpoints.retain(self._policy.retained)
            await self._announce_if_needed()
        if not self._trimmed:
            await self._trim()
            self._trimmed = True

    def _has_new(self) -> bool:
        return self._checkpoints.position().index > self._checkpoints.newest().index

    def _is_due(self) -> bool:
        if not self._has_new():
            return False
        newest, position = self._checkpoints.newest().index, self._checkpoints.position().index
        return (
            position - newest >= self._policy.records
            or self._checkpoints.sizes.at_most(newest, position) >= self._policy.size_bytes
            or self._clock.monotonic() - self._made_s >= self._policy.interval_s
            or (self._history is not None and self._history.is_empty())
        )

    async def _make(self) -> None:
        try:
            await self._checkpoints.make()
        except NoSpace:
            await self._checkpoints.retain(1)  # the others hold what the store has given up
            raise

    async def _announce_if_needed(self) -> None:
        if self._announced:
            return
        try:
            await self._announce()
        except NoSpace as error:  # a log that is full can be trimmed all the same
            log.warning("the checkpoint of this replica cannot be announced: %s", error)

    async def _announce(self) -> None:
        if self._history is not None:  # K5
            await self._history.archive(self._log)
        announcement = Announcement(self._checkpoints.newest(), self._member.address)
        await self._log.announce(self._member.name, announcement.encode())
        self._announced = True

    async def _trim(self) -> None:
        bounds = await self._log.bounds()
        held = {name: each.position.index for name, each in (await announcements(self._log)).items()}
        held[self._member.name] = self._checkpoints.newest().index  # K2
        known = [index for index in held.values() if index <= bounds.last.index]
        needed = first_to_keep(known, copies=self._policy.copies, kept=0)
        first = min(self._first_of_kept(needed), self._checkpoints.position().index + 1)
        if first > bounds.first:
            await self._log.trim(first)
            log.info("the log is trimmed: it begins with record %d", first)
        if self._is_too_far(needed - 1):
            log.warning("the log grows for want of checkpoints, the newest ones are at %s", held)

    def _is_too_far(self, held: int) -> bool:
        """Whether much is in the newest checkpoint here, and not in enough others."""
        newest = self._checkpoints.newest().index
        return (
            newest - held > TOO_MUCH * self._policy.records
            or self._checkpoints.sizes.at_least(held, newest) > TOO_MUCH * self._policy.size_bytes
        )

    def _first_of_kept(self, first: int) -> int:
        """Return where the records begin that are kept although `copies` replicas have them in checkpoints (K4)."""
        oldest, sizes = max(1, first - self._policy.kept_records), self._checkpoints.sizes
        return oldest + bisect_left(
            range(oldest, first),
            x=True,
            key=lambda index: sizes.at_most(index - 1, first - 1) <= self._policy.kept_bytes,
        )


__all__ = [
    "CHECK_S",
    "Announcement",
    "Checkpoints",
    "Keeper",
    "KeptHistory",
    "Member",
    "Policy",
    "StoreCheckpoints",
    "announcements",
]
