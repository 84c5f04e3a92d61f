"""One of several processes that hold the same store: it follows an ordered log, and leads it when it is its turn.

The log is the truth; the local store is what the records up to some position give (`applied`). A standby carries out
records as they appear. The primary groups commits (`grouped`), appends each group as one record, and carries it out
when it is stored, so that the local store never holds what may be lost.

    F1  a store that is equal to the log up to the end is served, by one process at a time, and only under its lease
    F2  what is reported as stored is in the log; what is reported as thrown away never will be
    F3  when a term ends, all that was not stored is thrown away with its engine; the store continues from the log
    F4  a store whose position is not in the log (`Diverged`), or before what is kept (`Trimmed`), is not served
    F5  the log is trimmed behind checkpoints that enough replicas have

A term is the time in which one process leads without interruption. Each has an engine of its own: what its user has
derived from commits that were lost ends with it.

    standby      follows the log; wants to lead once it has come up with it
    taking over  holds the leadership; carries out what is left of the log
    primary      serves a `PrimaryEngine`
    stopped      `run` has ended

Not done here: checkpoints (`checkpoint`), and what the store is used for.
"""

import asyncio
import contextlib
import enum
import logging
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import aclosing
from typing import Final, NoReturn

from ..clock import Clock, SystemClock
from ..errors import Error, MaybeCommitted, NoSpace, Timeout, Unavailable
from .applied import Applied
from .conflicts import COMMITS_MAX
from .engine import Pair, Transaction
from .grouped import Group, GroupedEngine
from .log import LEASE_S, Appender, Bounds, Contender, Deposed, Leadership, OrderedLog, Record
from .log.ordered_log import check_position
from .overlay import LayeredView

log = logging.getLogger(__name__)

RETRY_S: Final = (
    0.05  # between attempts to read the log: etcd answers again some milliseconds after an election
)
CHECK_S: Final = 1.0  # between looks at the local store, whose flushes may fail at any time
RETRY_FULL_S: Final = 1.0  # between attempts to claim a log that has no room for the claim
HELD: Final = "another replica is to lead"

_SYSTEM_CLOCK: Final = SystemClock()


class Role(enum.Enum):
    """What a replica does."""

    STANDBY = "standby"
    TAKING_OVER = "taking over"
    PRIMARY = "primary"
    STOPPED = "stopped"


class PrimaryEngine(GroupedEngine):
    """The store during one term. It refuses everything once the lease has run out (F1)."""

    def __init__(
        self,
        applied: Applied,
        leadership: Leadership,
        appender: Appender,
        *,
        commits_max: int = COMMITS_MAX,
    ) -> None:
        super().__init__(applied.engine, self._store_in_log, commits_max=commits_max)
        self._applied = applied
        self._leadership = leadership
        self._appender = appender
        self._failed = asyncio.Event()

    @property
    def epoch(self) -> int:
        """Of the term: larger than of any before."""
        return self._leadership.epoch

    @property
    def applied(self) -> Applied:
        """What is in the log, and nothing else."""
        return self._applied

    @property
    def log(self) -> OrderedLog:
        """The log that the term appends to, to be read."""
        return self._appender.log

    @property
    def position(self) -> int:
        """Of the last commit that survives the loss of any machine: the index of its record."""
        return self._applied.position.index

    @property
    def is_leased(self) -> bool:
        """Whether no other process can lead at this moment."""
        return self._leadership.holds()

    @property
    def leased_until_s(self) -> float:
        """Return until when, by the clock of the lease, no other process can lead; the past, when one may already."""
        return self._leadership.until_s if self._leadership.holds() else float("-inf")

    def begin(self) -> Transaction:
        """As `Engine.begin`. Raises: Unavailable if this process does not lead any more."""
        self._require_lease()
        return super().begin()

    def look(self) -> LayeredView:
        self._require_lease()
        return super().look()

    def commit(self, transaction: Transaction) -> int:
        self._require_lease()
        return super().commit(transaction)

    def snapshot(self, ranges: Sequence[tuple[bytes, bytes]]) -> tuple[Iterator[Pair], ...]:
        self._require_lease()
        return super().snapshot(ranges)

    async def sync(self) -> None:
        """Return when all that was committed before the call is in the log, which survives the loss of any machine.

        Raises: MaybeCommitted; Unavailable.
        """
        if (unstored := self.unstored) is not None:
            await unstored.stored()

    def fail(self, error: BaseException) -> None:
        super().fail(error)
        self._failed.set()

    async def failed(self) -> None:
        """Return when the engine has failed, or the local store below it."""
        while self.failure is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CHECK_S):
                    await self._failed.wait()

    def close(self) -> None:
        """Throw away what is not stored (F3). The local store stays open, it is the replica's."""
        reason = Unavailable(f"this process does not lead any more: {self._leadership.reason}")
        self._throw_away(MaybeCommitted(f"the outcome of the commit is unknown: {reason}"))
        if self._broken is None:
            self.fail(reason)

    async def ended(self) -> None:
        """After `close`: return when nothing is appended or carried out any more."""
        if self._storing is not None:
            self._storing.cancel()
            await asyncio.gather(self._storing, return_exceptions=True)

    def _require_lease(self) -> None:
        if not self._leadership.holds():
            raise Unavailable(f"this process does not lead any more: {self._leadership.reason}")

    async def _store_in_log(self, group: Group) -> None:
        """See `StoreGroup`: what is not known to be refused by the log may be in it (F2)."""
        try:
            await self._append(group.record())
        except (Deposed, NoSpace, MaybeCommitted):
            raise
        except (Error, asyncio.CancelledError) as error:
            raise MaybeCommitted(f"a record may be in the log, and is not carried out: {error!r}") from error

    async def _append(self, payload: bytes) -> None:
        after = self._applied.position
        assert after == self._appender.last, "F1: the store is equal to the log up to the end"
        position = await self._appender.append(payload)
        record = Record.create(payload, after=after, epoch=self.epoch)
        assert record.position == position, "what was appended is what is carried out"
        self._applied.apply(record)


Serve = Callable[[PrimaryEngine], Awaitable[None]]
"""Serves the store during one term. Cancelled when the term ends; when it returns or raises, the term ends."""


class Replica:
    """`applied`, kept equal to `log`. `owner` says to others who leads, and how to reach it."""

    def __init__(
        self,
        log: OrderedLog,
        applied: Applied,
        *,
        owner: str,
        lease_s: float = LEASE_S,
        clock: Clock = _SYSTEM_CLOCK,
    ) -> None:
        self._log = log
        self.applied = applied
        self._lease_s = lease_s
        self._clock = clock
        self._contender = Contender(log, owner, lease_s=lease_s, clock=clock)
        self._owner = owner
        self._caught_up = asyncio.Event()  # with the log's end as it was when this process began to follow
        self._leadership: Leadership | None = None  # of the present term
        self.role = Role.STANDBY
        self.terms = 0  # in which this process was primary

    def hold_back(self, duration_s: float) -> None:
        """Let another lead: end the term of this process, if it leads, and begin none for `duration_s`.

        0: hold back no more.
        """
        self._contender.hold_back(duration_s)
        if duration_s > 0 and self._leadership is not None:
            self._leadership.lose(HELD)

    async def bounds(self) -> Bounds:
        """Return what the log has. Raises: as `OrderedLog.bounds`."""
        return await self._log.bounds()

    async def run(self, serve: Serve) -> NoReturn:
        """Follow and lead until cancelled.

        Raises: Trimmed if a newer checkpoint is needed; Diverged if the store does not follow this log (F4);
        CorruptData; Unavailable if the local store has failed; what `serve` raises.
        """
        try:
            while True:
                self.role = Role.STANDBY
                self._leadership = leadership = await self._stand_by()
                if self._contender.is_held:  # since it has asked for the claim
                    leadership.lose(HELD)
                try:
                    await self._lead(leadership, serve)
                finally:
                    self._leadership = None
                    await self._resign(leadership)
        finally:
            self.role = Role.STOPPED

    async def _resign(self, leadership: Leadership) -> None:
        """Let another begin at once, if the log can be reached; by the end of the lease, otherwise."""
        leadership.lose("its term has ended")
        with contextlib.suppress(TimeoutError, NoSpace):
            async with asyncio.timeout(self._lease_s):
                await leadership.resign()
        await leadership.close()

    def begin_term(self, leadership: Leadership, appender: Appender) -> PrimaryEngine:
        """Return the engine of a new term."""
        return PrimaryEngine(self.applied, leadership, appender)

    # Standby.

    async def _stand_by(self) -> Leadership:
        """Follow the log until this process leads it."""
        following = asyncio.create_task(self._follow(), name="kv-follow")
        contending = asyncio.create_task(self._contend(), name="kv-contend")
        try:
            await asyncio.wait((following, contending), return_when=asyncio.FIRST_COMPLETED)
            if following.done():
                following.result()
            leadership = contending.result()
            following.cancel()
            await asyncio.wait((following,))  # two that carry out records would be in each other's way
        except BaseException:  # also of who is ended between winning and leading
            for task in (following, contending):
                task.cancel()
            if contending.done() and not contending.cancelled() and contending.exception() is None:
                await self._resign(contending.result())
            await asyncio.gather(following, contending, return_exceptions=True)
            raise
        if not following.cancelled() and (error := following.exception()) is not None:
            log.info("following the log ended with %r", error)  # who takes over reads it once more
        return leadership

    async def _follow(self) -> NoReturn:
        while True:
            with contextlib.suppress(Unavailable, Timeout):
                goal = (await self._log.bounds()).last.index
                self._note_catching_up(goal)
                async with aclosing(self._log.follow(self.applied.position)) as batches:
                    async for records in batches:
                        await self._apply(records)
                        self._note_catching_up(goal)
            self._require_store()
            await self._clock.sleep(RETRY_S)

    def _note_catching_up(self, goal: int) -> None:
        if self.applied.position.index >= goal:
            self._caught_up.set()

    async def _contend(self) -> Leadership:
        await self._caught_up.wait()  # who is far behind would not be able to serve for long
        while True:
            try:
                return await self._contender.lead()
            except NoSpace as error:
                log.warning("the log is full: no process can lead it (%s)", error)
                await self._clock.sleep(RETRY_FULL_S)

    async def _apply(self, records: Sequence[Record]) -> None:
        for record in records:
            self.applied.apply(record)
            await asyncio.sleep(0)  # so that other tasks run, such as the renewal of the lease

    def _require_store(self) -> None:
        """An error of the log passes, one of the local store does not. Raises: Unavailable."""
        failure = self.applied.engine.failure
        if failure is not None:
            raise Unavailable(f"the local key-value store has failed: {failure}") from failure

    # Primary.

    async def _lead(self, leadership: Leadership, serve: Serve) -> None:
        """Return when the leadership has ended."""
        self.role = Role.TAKING_OVER
        if not await self._come_up(leadership):
            return
        appender = Appender(self._log, leadership, self.applied.position, clock=self._clock)
        engine = self.begin_term(leadership, appender)
        self.role = Role.PRIMARY
        self.terms += 1
        log.info("primary as %s from %d on, epoch %d", self._owner, self.applied.position.index, engine.epoch)
        try:
            await self._serve(engine, leadership, serve)
        finally:
            engine.close()
            await engine.ended()
            log.info("term of epoch %d ended: %s", engine.epoch, leadership.reason)
        self._require_store()

    async def _come_up(self, leadership: Leadership) -> bool:
        """Carry out what the log holds; no other process appends. Returns False if the leadership ends."""
        while leadership.holds():
            try:
                bounds = await self._log.bounds()
                while self.applied.position.index < bounds.last.index:
                    await self._apply(await self._log.read(self.applied.position))
                if leadership.holds():  # else another may have appended since, which is no other history
                    check_position(self.applied.position, bounds)
            except (Unavailable, Timeout) as error:
                self._require_store()
                log.warning("the log cannot be read during take-over (%s); trying again", error)
                await self._clock.sleep(RETRY_S)
            else:
                return leadership.holds()
        return False

    async def _serve(self, engine: PrimaryEngine, leadership: Leadership, serve: Serve) -> None:
        """Return when the leadership or the engine has ended. Raises: what `serve` raises."""
        serving = asyncio.ensure_future(serve(engine))
        ends = [asyncio.create_task(leadership.lost()), asyncio.create_task(engine.failed())]
        try:
            await asyncio.wait((serving, *ends), return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()
        finally:
            leadership.lose("its term has ended")  # if it was the engine, or `serve`
            for task in (serving, *ends):
                task.cancel()
            outcomes = await asyncio.gather(serving, *ends, return_exceptions=True)
            if isinstance(outcomes[0], Exception):
                log.warning("what served the term of epoch %d ended with %r", engine.epoch, outcomes[0])


def first_to_keep(checkpoints: Collection[int], *, copies: int, kept: int) -> int:
    """Return the index of the first record that the log has to keep (F5).

    `checkpoints`: of each replica that is known, the index of its newest checkpoint, or 0. A record may go when
    `copies` of them have it in one, and `kept` newer ones are there.
    """
    assert copies > 0, "a record without a copy is never trimmed"
    if len(checkpoints) < copies:
        return 1
    held = sorted(checkpoints, reverse=True)[copies - 1]
    return max(1, held + 1 - kept)


__all__ = ["PrimaryEngine", "Replica", "Role", "Serve", "first_to_keep"]
