"""What meta asks of storage nodes, and the chunks of one content across the chains of its layout.

`StorageControl` is the narrow interface: one chain, one call. `control.GrpcControl` speaks to real nodes,
`fake_control.FakeControl` is its fake for tests. `Chunks` says what an operation on a whole content is.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Final, NamedTuple, Protocol, TypeVar

from ..ids import ChainId
from ..wire.pb.meta_pb2 import Layout
from .layout import CHUNK_COUNT_MAX, Placer

T = TypeVar("T")

REQUEST_LIFE_S: Final = 5.0  # of one request to one chain: not begun later, wherever it was on its way
REMOVE_BATCH: Final = 512  # chunks in one request; each is an update that goes through its chain
REMOVE_CONTENTS: Final = 512  # in one request
REMOVE_REQUESTS: Final = 8  # one after the other, before other contents have their turn
CONCURRENCY: Final = 16  # chains asked at once for one content


class ChunkRange(NamedTuple):
    """The chunks of one content from an index on."""

    content: int
    first: int


class LastChunk(NamedTuple):
    """The last chunk of a content on one chain."""

    number: int
    length: int


class Space(NamedTuple):
    """Bytes of all storage nodes together."""

    capacity: int
    free: int


class StorageControl(Protocol):
    """One request to one chain. All raise Unavailable, with the field `chain`, when it cannot be served now.

    `retry`: try again for a while if the chain cannot be asked.

    Once `remove_chunks` or `truncate_chunk` has returned, nothing of it, nor of an earlier one of this process that
    was given up, is executed any more.
    """

    async def last_chunk(self, chain: ChainId, content: int, *, retry: bool) -> LastChunk | None:
        """Return the last committed chunk of `content` on this chain."""

    async def remove_chunks(
        self, chain: ChainId, removals: Sequence[ChunkRange], *, limit: int, durable: bool, retry: bool
    ) -> Sequence[ChunkRange]:
        """Remove up to `limit` chunks. Returns what is left to remove.

        `durable`: if nothing is left, all that the chain has acknowledged survives power loss.
        """

    async def truncate_chunk(self, chain: ChainId, content: int, *, index: int, length: int) -> None:
        """Cut one chunk to `length` bytes."""

    async def space(self) -> Space:
        """Return the sum over all nodes."""


class Chunks:
    """All chunks of a content."""

    def __init__(self, control: StorageControl, placer: Placer) -> None:
        self._control = control
        self._placer = placer

    def chains(self, layout: Layout) -> Sequence[ChainId]:
        """Return the chains of a layout. Raises: Unavailable while the table is not known."""
        return tuple(dict.fromkeys(self._placer.chains(layout)))

    async def end(self, layout: Layout, content: int, *, retry: bool = True) -> int:
        """Return where the last chunk ends: the length of what was written, without zeros that truncation added.

        Raises: Unavailable if one of the chains cannot be asked.
        """
        lasts = await _gather(
            [self._control.last_chunk(chain, content, retry=retry) for chain in self.chains(layout)]
        )
        return max(
            (last.number * layout.chunk_bytes + last.length for last in lasts if last is not None), default=0
        )

    async def truncate(self, layout: Layout, content: int, length: int) -> None:
        """Remove every byte at or beyond `length`, durably. May be repeated. Raises: Unavailable."""
        assert length >= 0, "a length is not negative"
        chains = self._placer.chains(layout)
        index, rest = divmod(length, layout.chunk_bytes)
        first = index + 1 if rest else index
        # A cut in or after the last chunk that there can be removes none.
        removals = [ChunkRange(content, first)] if first < CHUNK_COUNT_MAX else []
        last = chains[index % len(chains)] if rest else None
        await _gather(
            [self._remove(chain, removals, durable=chain != last) for chain in dict.fromkeys(chains)]
        )
        if last is None:
            return
        found = await self._control.last_chunk(last, content, retry=True)
        if found is not None and found >= (index, rest + 1):
            await self._control.truncate_chunk(last, content, index=index, length=rest)
        await self._remove(last, [], durable=True)

    def holders(self, layout: Layout, length: int) -> Sequence[ChainId]:
        """Return the chains with chunks of a content whose bytes are all below `length`: one for a file of one chunk.

        Raises: Unavailable while the table is not known.
        """
        return tuple(dict.fromkeys(self._placer.chains(layout)[: -(-length // layout.chunk_bytes)]))

    async def remove(self, chain: ChainId, removals: Sequence[ChunkRange]) -> Sequence[ChunkRange]:
        """Remove chunks of one chain, some requests long. Returns what is left; the rest is gone durably.

        May be repeated. Raises: Unavailable at once when the chain cannot be asked.
        """
        left = list(removals)
        for _ in range(REMOVE_REQUESTS):
            asked, later = left[:REMOVE_CONTENTS], left[REMOVE_CONTENTS:]
            rest = await self._control.remove_chunks(
                chain, asked, limit=REMOVE_BATCH, durable=not later, retry=False
            )
            left = [*rest, *later]
            if not left:
                return left
        await self._control.remove_chunks(chain, [], limit=1, durable=True, retry=False)
        return left

    async def _remove(self, chain: ChainId, removals: Sequence[ChunkRange], *, durable: bool) -> None:
        left = removals
        while left or durable:
            left = await self._control.remove_chunks(
                chain, left, limit=REMOVE_BATCH, durable=durable, retry=True
            )
            if not left:
                return


async def _gather(calls: Sequence[Awaitable[T]]) -> list[T]:
    """Return the results in order, at most `CONCURRENCY` at a time; the first error when all have ended."""
    slots = asyncio.Semaphore(CONCURRENCY)

    async def limited(call: Awaitable[T]) -> T:
        async with slots:
            return await call

    results = await asyncio.gather(*(limited(call) for call in calls), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]


__all__ = ["ChunkRange", "Chunks", "LastChunk", "Space", "StorageControl"]
