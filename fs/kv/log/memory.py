"""An ordered log in memory, for tests and simulation: all processes of one event loop share the object."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace

from ...errors import InvalidArgument
from .ordered_log import (
    READ_RECORDS_MAX,
    START,
    Bounds,
    Claim,
    Deposed,
    NotAtEnd,
    OrderedLog,
    Position,
    Record,
    check_announced,
    check_chain,
    check_owner,
    check_position,
)


class MemoryLog(OrderedLog):
    """The log itself. Calls take no time; wrap it in `FaultyLog` for one process's unreliable access to it."""

    def __init__(self) -> None:
        self._records: list[Record] = []  # what is kept, in order
        self._last = START
        self._claim: Claim | None = None
        self._announced: dict[str, bytes] = {}
        self._revision = 0  # grows with every change, as etcd's does
        self._changed = asyncio.Event()  # replaced with each change

    async def bounds(self) -> Bounds:
        return Bounds(self._last.index + 1 - len(self._records), self._last)

    async def read(self, after: Position, *, limit: int = READ_RECORDS_MAX) -> Sequence[Record]:
        bounds = await self.bounds()
        check_position(after, bounds)
        begin = after.index + 1 - bounds.first
        records = self._records[begin : begin + limit]
        check_chain(after, records)
        return records

    async def follow(self, after: Position) -> AsyncGenerator[Sequence[Record]]:
        while True:
            changed = self._changed
            records = await self.read(after)
            if records:
                after = records[-1].position
                yield records
            else:
                await changed.wait()

    async def append(self, record: Record) -> None:
        if self._claim is None or self._claim.epoch != record.epoch:
            raise Deposed(f"the claim with epoch {record.epoch} has ended")
        if self._last != record.after:
            raise NotAtEnd(f"the log ends with record {self._last.index}: {record.index} does not follow it")
        self._records.append(record)
        self._last = record.position
        self._touch()

    async def trim(self, first: int) -> None:
        bounds = await self.bounds()
        if first > bounds.last.index + 1:
            raise InvalidArgument(f"the log ends with record {bounds.last.index}; {first} is beyond it")
        if first > bounds.first:
            del self._records[: first - bounds.first]
            self._touch()

    async def announce(self, name: str, value: bytes) -> None:
        check_announced(name, value)
        self._announced[name] = value

    async def withdraw(self, name: str) -> None:
        self._announced.pop(name, None)

    async def announced(self) -> Mapping[str, bytes]:
        return dict(self._announced)

    async def claim(self) -> Claim | None:
        return self._claim

    async def claims(self) -> AsyncGenerator[Claim | None]:
        while True:
            seen = self._claim
            yield seen
            while self._claim == seen:
                await self._changed.wait()

    async def create_claim(self, owner: str, *, lease_s: float) -> Claim | None:
        check_owner(owner)
        if self._claim is not None:
            return None
        revision = self._touch()
        self._claim = Claim(revision, revision, owner, lease_s)
        return self._claim

    async def renew_claim(self, claim: Claim) -> Claim:
        if self._claim is None or self._claim.epoch != claim.epoch:
            raise Deposed(f"the claim with epoch {claim.epoch} has ended")
        self._claim = replace(self._claim, revision=self._touch())
        return self._claim

    async def end_claim(self, claim: Claim) -> bool:
        if self._claim is not None and self._claim.revision == claim.revision:
            self._claim = None
            self._touch()
        return self._claim is None or self._claim.epoch != claim.epoch

    async def close(self) -> None:
        """Nothing works in the background."""

    def _touch(self) -> int:
        self._revision += 1
        self._changed.set()
        self._changed = asyncio.Event()
        return self._revision


__all__ = ["MemoryLog"]
