"""What a log forgets, kept for a time beside a replica's store: states of before are made of it.

    DIR/00000000000000012345/            a checkpoint, as in the catalog of the replica, whose tables it shares
    DIR/FIRST-LAST.segment               the records between

    H1  a record is in a segment before a checkpoint that has it is announced, so before the log may forget it
    H2  a state between two moments is made of a checkpoint and all records that follow it: what lacks one is refused
    H3  the history yields to the store: when there is no room, or the disk fails, it is the history that has a gap

One checkpoint is kept for each 24th part of the window, which bounds both the disk space and the records to carry out.
"""

import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from ...clock import Clock, SystemClock
from ...errors import CorruptData, Error, InvalidArgument, NoSpace, NotFound, Timeout, Unavailable
from ...units import GIB
from ..log import Diverged, OrderedLog, Position, Record, Trimmed
from ..rocksdb import is_short_of_space
from .catalog import PART, Catalog, Checkpoint, in_thread
from .restore import place
from .segment import SUFFIX, MomentKey, Segment, read_segment, write_segment

log = logging.getLogger(__name__)

PARTS: Final = 24  # of the window, each of which begins with a checkpoint
ROOM_BYTES: Final = 1 * GIB  # that are left free, for what the store and its checkpoints need
NS_PER_MS: Final = 1_000_000
_SYSTEM_CLOCK: Final = SystemClock()


@dataclass(frozen=True, slots=True)
class Target:
    """A state: what `checkpoint` and the records after it, up to `position`, give. `unix_ms`: the moment of it."""

    checkpoint: Checkpoint
    position: Position
    unix_ms: int


def format_moment(unix_ms: int) -> str:
    """Return a moment for people, in this machine's time zone."""
    return datetime.fromtimestamp(unix_ms / 1000, UTC).astimezone().isoformat(timespec="milliseconds")


class Archive:
    """The history in `directory`, which is created if it is missing, and which one process uses."""

    def __init__(self, directory: Path, *, log_id: bytes, moment: MomentKey) -> None:
        self.directory = directory
        for path in directory.glob(f"*{SUFFIX}{PART}"):
            path.unlink()
        self.catalog = Catalog(directory)
        self.log_id = log_id
        self.moment = moment
        self._moments: dict[str, int] = {}  # of checkpoints, by name

    def checkpoints(self) -> Sequence[Checkpoint]:
        """Return those of this log, oldest first."""
        return [each for each in self.catalog.checkpoints() if each.seal.log_id == self.log_id]

    def segments(self) -> Sequence[Segment]:
        """Return those of this log that can be read, oldest first."""
        found = []
        for path in self.directory.glob(f"*{SUFFIX}"):
            try:
                segment = read_segment(path)
            except CorruptData as error:
                log.warning("%s skipped: %s", path, error)
                continue
            if segment.log_id == self.log_id:
                found.append(segment)
        return sorted(found, key=lambda segment: segment.last.index)

    def moment_of(self, checkpoint: Checkpoint) -> int:
        """Return the moment of a checkpoint, in milliseconds; 0 if it is not known. Raises: CorruptData."""
        if checkpoint.name not in self._moments:
            self._moments[checkpoint.name] = self.moment.of_store(checkpoint.directory)
        return self._moments[checkpoint.name]

    async def records(self, ordered: OrderedLog, after: Position) -> AsyncIterator[Record]:
        """Yield all records after a position: those of segments, then those of the log, up to its end.

        Raises: Trimmed or Diverged where one is missing (H2); CorruptData; what the log raises.
        """
        segments = self.segments()
        while True:
            inside = [each for each in segments if each.after.index <= after.index < each.last.index]
            if not inside:
                break
            for record in inside[0].records():
                if record.index <= after.index:
                    continue
                if record.after != after:
                    raise Diverged(f"record {record.index} is of another history", path=str(inside[0].path))
                yield record
                after = record.position
        while records := await ordered.read(after):
            for record in records:
                yield record
                after = record.position

    async def extend(self, ordered: OrderedLog, upto: Position) -> bool:
        """Keep the records up to `upto`; return False where some are missing, or nothing was kept before.

        Raises: NoSpace; Unavailable; what the log raises.
        """
        end = self.end()
        if end is None:
            return False
        after, unix_ms = end
        if after.index >= upto.index:
            return True
        try:
            await write_segment(
                self.directory,
                _upto(ordered, after, upto.index),
                log_id=self.log_id,
                after=after,
                unix_ms=unix_ms,
                moment=self.moment,
            )
        except (Trimmed, Diverged) as error:
            log.warning("the history has a gap: %s", error)
            return False
        return True

    async def add(self, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint of the replica, which may go then. Raises: NoSpace; Unavailable; CorruptData."""
        async with self.catalog.building() as part:
            await in_thread(lambda _check: _link(checkpoint, part))
            await self.catalog.complete(part, checkpoint.seal)

    async def complete(self, ordered: OrderedLog, last: Position, checkpoints: Sequence[Checkpoint]) -> None:
        """Keep all up to `last`, the end of the log, which may begin behind what is kept.

        `checkpoints`: of the replicas. A log that a restore let begin again, and that no replica has followed since,
        begins with one of them: the oldest that the log continues, and that is whole. Raises: as `extend` and `add`.
        """
        if await self.extend(ordered, last):
            return
        end = self.end()
        begins = (await ordered.bounds()).first - 1
        known = begins if end is None else max(begins, end[0].index + 1)
        for checkpoint in sorted(checkpoints, key=lambda each: each.seal.position.index):
            if checkpoint.seal.position.index < known:
                continue
            try:
                await self.catalog.verify(checkpoint)
            except (CorruptData, Unavailable) as error:
                log.warning("%s is left out: %s", checkpoint.directory, error)
                continue
            await self.add(checkpoint)
            await self.extend(ordered, last)
            return

    def end(self) -> tuple[Position, int] | None:
        """Return up to where the history has come, and the moment."""
        ends = [(segment.last, segment.unix_ms) for segment in self.segments()]
        ends += [(each.seal.position, self.moment_of(each)) for each in self.checkpoints()]
        return max(ends, key=lambda end: end[0].index, default=None)

    async def find(self, ordered: OrderedLog, at_ms: int) -> Target:
        """Return the newest state whose moment is not after `at_ms`.

        Raises: NotFound if the history does not reach back so far, or lacks records there; InvalidArgument if nothing
        was changed since; CorruptData; what the log raises.
        """
        checkpoints = [(self.moment_of(each), each) for each in self.checkpoints()]
        known = [each for each in checkpoints if each[0] <= at_ms]
        if not checkpoints:
            raise NotFound("the history is empty so far")
        if not known:
            raise NotFound(
                f"the history begins at {format_moment(min(unix_ms for unix_ms, _ in checkpoints))}"
            )
        unix_ms, base = max(known, key=lambda each: each[1].seal.position.index)
        reached, end, later_ms = Target(base, base.seal.position, unix_ms), base.seal.position, 0
        try:
            async for record in self.records(ordered, end):
                end = record.position
                found = self.moment.of_record(record.payload)
                if found is not None and found > at_ms:
                    later_ms = found
                    break
                if found is not None:
                    reached = Target(base, end, found)
        except (Trimmed, Diverged) as error:
            if not any(each.seal.position.index == end.index + 1 for each in self.checkpoints()):
                raise NotFound(
                    f"the history has a gap after {format_moment(reached.unix_ms)}: restore that, or a later state"
                ) from error
            later_ms = at_ms  # here the log began again, with another state
        if not reached.unix_ms:  # no moment was written before that checkpoint
            raise NotFound(
                f"the history begins at {format_moment(later_ms)}"
                if later_ms
                else "the history is empty so far"
            )
        # The last second before the services ended has no moment: it counts as later.
        if not later_ms and end == reached.position:
            raise InvalidArgument(
                f"nothing was changed after {format_moment(reached.unix_ms)}: that is the present state"
            )
        return reached


class History:
    """Keeps the history of the last `window_s` seconds. `source`: the replica's own checkpoints."""

    def __init__(
        self,
        archive: Archive,
        source: Catalog,
        *,
        window_s: float,
        room_bytes: int = ROOM_BYTES,
        clock: Clock = _SYSTEM_CLOCK,
    ) -> None:
        assert window_s > 0, "what is not kept needs no archive"
        self._archive = archive
        self._source = source
        self._room_bytes = room_bytes
        self._window_ms = int(window_s * 1000)
        self._clock = clock

    def is_empty(self) -> bool:
        """Return whether it has no checkpoint to begin with yet."""
        return not self._archive.checkpoints()

    async def archive(self, ordered: OrderedLog) -> None:
        """Keep the records up to the newest checkpoint (H1), and forget what is older than the window.

        Raises: Unavailable, Timeout: the log could not be read. What the disk refuses leaves a gap (H3).
        """
        newest = self._source.newest()
        if newest is None:
            return
        try:
            await self._make_room()
            is_whole = await self._archive.extend(ordered, newest.seal.position)
            await self._keep(newest, is_whole=is_whole)
            await self._forget()
        except (Unavailable, Timeout):
            raise
        except Error as error:
            log.warning("the history has a gap, and restores do not reach beyond it: %s", error)

    async def _keep(self, checkpoint: Checkpoint, *, is_whole: bool) -> None:
        """Keep a checkpoint where one is due."""
        kept = self._archive.checkpoints()
        if self._archive.catalog.find(checkpoint.seal) is not None:
            return
        if is_whole and kept:
            end = self._archive.end()
            assert end is not None, "something is kept"
            if end[1] - self._archive.moment_of(kept[-1]) < self._window_ms // PARTS:
                return
        await self._archive.add(checkpoint)

    async def _forget(self) -> None:
        """Forget what is before the newest checkpoint that is older than the window."""
        end = self._archive.end()
        if end is None:
            return
        # The clock of this machine may be ahead, and the moments are of another one.
        since_ms = min(self._clock.unix_ns() // NS_PER_MS, end[1]) - self._window_ms
        old = [each for each in self._archive.checkpoints() if self._archive.moment_of(each) <= since_ms]
        for checkpoint in old[:-1]:
            await self._archive.catalog.discard(checkpoint)
        if old:
            self._forget_segments(old[-1].seal.position.index)

    def _forget_segments(self, upto: int) -> None:
        for segment in self._archive.segments():
            if segment.last.index <= upto:
                segment.path.unlink()

    async def _make_room(self) -> None:
        """Forget the oldest parts while the disk has little room. Raises: NoSpace if that does not help."""
        while is_short_of_space(self._archive.directory, self._room_bytes):
            checkpoints = self._archive.checkpoints()
            if not checkpoints:
                raise NoSpace(f"less than {self._room_bytes} bytes would be left free")
            begins = checkpoints[0].seal.position.index
            log.warning("the history from record %d on is forgotten for want of room", begins)
            await self._archive.catalog.discard(checkpoints[0])
            left = checkpoints[1:]
            self._forget_segments(left[0].seal.position.index if left else 1 << 63)


async def _upto(ordered: OrderedLog, after: Position, index: int) -> AsyncIterator[Record]:
    while after.index < index:
        records = await ordered.read(after)
        if not records:
            raise Unavailable(f"the log ends with record {after.index}, and a checkpoint has {index}")
        for record in records:
            if record.index <= index:
                yield record
                after = record.position


def _link(checkpoint: Checkpoint, part: Path) -> None:
    part.mkdir(mode=0o700)
    for file in checkpoint.seal.files:
        place(checkpoint.directory / file.name, part / file.name)


__all__ = ["Archive", "History", "Target", "format_moment"]
