"""The native storage node, called from asyncio.

Every call may wait for a disk or for another node, so each runs on a thread of a pool of our own; its size bounds
how many wait at once. Recovery uses a few of them (`resync_batch`), so that other calls do not queue behind it.
What heartbeats need has threads of its own: a node must not lose its lease because calls wait for other nodes.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from .compare import Name, Record

if TYPE_CHECKING:
    from luciola_core import StorageNode  # only `node` loads the native module

P = ParamSpec("P")
T = TypeVar("T")

THREADS: Final = 16
QUICK_THREADS: Final = 2
FULL_BYTES: Final = 4 << 20  # free, less the reserve; large writes that come together ask for as much
PAGE_RECORDS: Final = 1000  # of a listing: about 60 KiB as a message, well below every limit


class Engine:
    """A `StorageNode` whose calls are awaited."""

    def __init__(self, node: "StorageNode") -> None:
        self.node: Final = node
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="engine")
        self._quick = ThreadPoolExecutor(QUICK_THREADS, thread_name_prefix="quick")

    async def run(self, call: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Return what `call`, a method of the node, returns."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: call(*arguments, **named))

    async def quick(self, call: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """As `run`, for calls that never wait."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._quick, lambda: call(*arguments, **named))

    async def records(
        self, chain: int, after: Name | None = None, *, limit: int = PAGE_RECORDS, since: int = 0
    ) -> list[Record]:
        """Up to `limit` chunks of a chain after that one, in order; `since`: what came since that round of sync."""
        listed = await self.run(self.node.list_chunks, chain, after, limit, since)
        return [Record(*fields) for fields in listed]

    async def pages(self, chain: int, after: Name | None = None) -> AsyncIterator[list[Record]]:
        """All chunks of a chain after that one, page by page; no page is empty."""
        while True:
            page = await self.records(chain, after)
            if page:
                yield page
            if len(page) < PAGE_RECORDS:
                return
            after = page[-1].name

    async def close(self) -> None:
        """Stop the node: connections end, everything is synced and closed. Raises: Error if it is not synced."""
        try:
            await self.run(self.node.stop)
        finally:
            self._threads.shutdown(wait=False)
            self._quick.shutdown(wait=False)


def is_full(free_bytes: int) -> bool:
    """Return whether large writes are refused for want of space. `free_bytes`: less the reserve."""
    return free_bytes < FULL_BYTES


__all__ = ["PAGE_RECORDS", "Engine", "is_full"]
