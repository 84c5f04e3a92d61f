"""What meta asks of storage nodes, and the chunks of one content across the chains of its layout.

`StorageControl` is the narrow interface: one chain, one call. `control.GrpcControl` speaks to real nodes,
`control_memory.MemoryControl` is its twin for tests. `Chunks` says what an operation on a whole content is.
"""

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from typing import Final, NamedTuple, Protocol, TypeVar

from ..ids import ChainId
from ..wire.pb.meta_pb2 import Layout
from .layout import CHUNK_COUNT_MAX, Placer

T = TypeVar("T")

REQUEST_LIFE_S: Final = 5.0  # of one request to one chain: not begun later, wherever it was on its way
REMOVE_BATCH: Final = 64  # chunks in one request; each is an update that goes through its chain
CONCURRENCY: Final = 16  # chains asked at once for one content


class LastChunk(NamedTuple):
    """The last chunk of a content on one chain."""

    number: int
    length: int


class Space(NamedTuple):
    """Bytes of all storage nodes together."""

    capacity: int
    free: int


class StorageControl(Protocol):
    """One request to one chain. All raise Unavailable, Timeout or StaleRouting when it cannot be served now.

    Once `remove_chunks` or `truncate_chunk` has returned, nothing of it, nor of an earlier one of this process that
    was given up, is executed any more.
    """

    async def last_chunk(self, chain: ChainId, content: int) -> LastChunk | None:
        """The last committed chunk of `content` on this chain."""

    async def remove_chunks(self, chain: ChainId, content: int, *, first: int, limit: int) -> bool:
        """Removes up to `limit` chunks with index >= first; whether there are more."""

    async def truncate_chunk(self, chain: ChainId, content: int, *, index: int, length: int) -> None:
        """Cuts one chunk to `length` bytes."""

    async def space(self) -> Space:
        """The sum over all nodes."""


class Chunks:
    """All chunks of a content."""

    def __init__(self, control: StorageControl, placer: Placer) -> None:
        self._control = control
        self._placer = placer

    async def end(self, layout: Layout, content: int) -> int:
        """Where the last chunk ends: the length of what was written, without zeros that truncation added.

        Raises: Unavailable if one of the chains cannot be asked.
        """
        chains = self._placer.chains(layout)
        lasts = await _gather([self._control.last_chunk(chain, content) for chain in dict.fromkeys(chains)])
        return max(
            (last.number * layout.chunk_bytes + last.length for last in lasts if last is not None), default=0
        )

    async def cut(self, layout: Layout, content: int, length: int) -> None:
        """Removes every byte at or beyond `length`. May be repeated. Raises: Unavailable."""
        chains = self._placer.chains(layout)
        index, rest = divmod(length, layout.chunk_bytes)
        first = index + 1 if rest else index
        if first < CHUNK_COUNT_MAX:  # else the cut lies in or after the last chunk that there can be
            await _gather([self._remove(chain, content, first) for chain in dict.fromkeys(chains)])
        if not rest:
            return
        chain = chains[index % len(chains)]
        last = await self._control.last_chunk(chain, content)
        if last is not None and last >= (index, rest + 1):
            await self._control.truncate_chunk(chain, content, index=index, length=rest)

    async def remove(self, layout: Layout, content: int, length: int) -> None:
        """Removes all chunks, of which none begins at or beyond `length`. May be repeated. Raises: Unavailable.

        Asks only the chains that hold any: one for a file of one chunk.
        """
        chains = self._placer.chains(layout)[: -(-length // layout.chunk_bytes)]
        await _gather([self._remove(chain, content, 0) for chain in dict.fromkeys(chains)])

    async def remove_from(self, chains: Iterable[int], content: int) -> None:
        """Remove all chunks of a content without a layout. May be repeated. Raises: Unavailable."""
        await _gather([self._remove(ChainId(chain), content, 0) for chain in chains])

    async def _remove(self, chain: ChainId, content: int, first: int) -> None:
        while await self._control.remove_chunks(chain, content, first=first, limit=REMOVE_BATCH):
            pass


async def _gather(calls: Sequence[Awaitable[T]]) -> list[T]:
    """The results in order, at most `CONCURRENCY` at a time; the first error when all have ended."""
    slots = asyncio.Semaphore(CONCURRENCY)

    async def limited(call: Awaitable[T]) -> T:
        async with slots:
            return await call

    results = await asyncio.gather(*(limited(call) for call in calls), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]


__all__ = ["Chunks", "LastChunk", "Space", "StorageControl"]
