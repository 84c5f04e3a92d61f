"""How a leader appends: one record at a time, until its outcome is known.

    A1  records are appended in the order of the calls, each behind the one before; one is in flight
    A2  `append` returns only for a stored record, and raises `Deposed` or `NoSpace` only for one that is not stored
        and never will be; what it does not know it calls `MaybeCommitted`
    A3  after the first failure but `NoSpace` nothing more is appended

One in flight is not for lack of trying: etcd executes the requests of one connection in any order, and refuses what
comes before its predecessor (docs/decisions/0040-metadata-log.md). Callers put many operations into a record instead.

A transaction whose answer was lost may be executed at any later time, so looking once and finding nothing proves
nothing. Its outcome is known as soon as something else has taken its place (the log has grown), or the claim that it
needs has gone: the log is read after that. Until then it is sent again, which does no harm: only one of them can find
its predecessor at the end of the log.
"""

import asyncio
import logging
from typing import Final

from ...clock import Clock, SystemClock
from ...errors import Error, MaybeCommitted, NoSpace, Timeout, Unavailable
from .leadership import Leadership
from .ordered_log import Deposed, NotAtEnd, OrderedLog, Position, Record, Trimmed

log = logging.getLogger(__name__)

RETRY_S: Final = 0.02  # between attempts
PATIENCE_S: Final = 10.0  # with an outcome that stays unknown; callers above have given up by then

_SYSTEM_CLOCK: Final = SystemClock()


class Appender:
    """Appends under `leadership` behind `last`, which the leader has read after it began to lead."""

    def __init__(
        self,
        log: OrderedLog,
        leadership: Leadership,
        last: Position,
        *,
        patience_s: float = PATIENCE_S,
        clock: Clock = _SYSTEM_CLOCK,
    ) -> None:
        self._log = log
        self._leadership = leadership
        self._patience_s = patience_s
        self._clock = clock
        self._turn = asyncio.Lock()
        self._failed: Error | None = None
        self.last = last  # the newest record that is known to be stored

    @property
    def log(self) -> OrderedLog:
        return self._log

    @property
    def failure(self) -> Error | None:
        """What ended it, if something did."""
        return self._failed

    async def append(self, payload: bytes) -> Position:
        """Store one record; return its position. A call that is cancelled ends the appender.

        Raises: Deposed, NoSpace: it is not stored. MaybeCommitted: it may be, now or later. Diverged: the log is not
        any more what it was. InvalidArgument: it is too large.
        """
        async with self._turn:
            if self._failed is not None:
                raise Deposed(f"nothing is appended any more: {self._failed}")
            if not self._leadership.holds():
                self._failed = Deposed(f"this process does not lead any more: {self._leadership.reason}")
                raise self._failed
            record = Record.create(payload, after=self.last, epoch=self._leadership.epoch)
            try:
                await self._store(record)
            except NoSpace:
                raise
            except Error as error:
                self._fail(error)
                raise
            except BaseException:  # cancelled, most likely; the record may be on its way
                self._fail(MaybeCommitted(f"appending record {record.index} was interrupted"))
                raise
            self.last = record.position
            return record.position

    def _fail(self, error: Error) -> None:
        self._failed = error
        self._leadership.lose(f"appending failed: {error}")

    async def _store(self, record: Record) -> None:
        """Return when `record` is stored. Raises: as `append`."""
        begun_s = self._clock.monotonic()
        uncertain = is_reported = False
        while True:
            try:
                await self._log.append(record)
            except NotAtEnd:  # this very record is there, from an attempt before
                return await self._recognize(record)
            except Deposed:
                if uncertain:
                    return await self._recognize(record)
                raise
            except (NoSpace, MaybeCommitted, Unavailable, Timeout) as error:
                uncertain = uncertain or isinstance(error, MaybeCommitted)
                self._give_up_early(error, uncertain=uncertain)
                if not is_reported:
                    log.warning(
                        "record %d is not known to be stored: %s; it is sent again", record.index, error
                    )
                    is_reported = True
            else:
                return None
            if self._clock.monotonic() - begun_s > self._patience_s:
                raise self._give_up(record, uncertain=uncertain)
            await self._clock.sleep(RETRY_S)

    def _give_up_early(self, error: Error, *, uncertain: bool) -> None:
        """Raise what is known after an attempt that had no effect, if another one is of no use."""
        if uncertain:
            return
        if isinstance(error, NoSpace):
            raise error
        if not self._leadership.holds():
            raise Deposed(f"the leadership ended before the record was stored: {error}") from error

    def _give_up(self, record: Record, *, uncertain: bool) -> Error:
        waited = f"for {self._patience_s:g} s: the log cannot be reached"
        if uncertain:
            return MaybeCommitted(f"the outcome of record {record.index} stays unknown {waited}")
        return Deposed(f"record {record.index} could not be sent {waited}")

    async def _recognize(self, record: Record) -> None:
        """Return if `record` is what the log has at its place, which is decided by now. Raises: as `append`."""
        begun_s = self._clock.monotonic()
        while True:
            try:
                records = await self._log.read(record.after, limit=1)
            except Trimmed as error:
                raise MaybeCommitted(
                    f"the outcome of record {record.index} is unknown: it was trimmed"
                ) from error
            except (Unavailable, Timeout) as error:
                if self._clock.monotonic() - begun_s > self._patience_s:
                    raise self._give_up(record, uncertain=True) from error
                await self._clock.sleep(RETRY_S)
            else:
                break
        if not records or records[0].position != record.position:
            raise Deposed(f"another process leads and has not seen record {record.index}")


__all__ = ["PATIENCE_S", "Appender"]
