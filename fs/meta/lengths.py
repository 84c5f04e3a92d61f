"""The length of a file that is being written, which only the chains know.

A length that the store holds is brought up to date by its writers at `sync` and `close`. While another
client has the file open for writing, the chains are asked. Names and attributes are shown with an answer up
to `FRESH_S` old, which is below the staleness that clients allow for attributes; an open, and a `stat` that
wants it exactly, with every write that was acknowledged before.
"""

import asyncio
from collections import OrderedDict
from typing import Final

from ..clock import Clock
from ..wire.pb.meta_pb2 import Inode
from .context import Measured
from .storage import Chunks

FRESH_S: Final = 0.05
REMEMBERED_MAX: Final = 4096


class Lengths:
    """Asks the chains, and remembers for a moment."""

    def __init__(self, chunks: Chunks, clock: Clock) -> None:
        self._chunks = chunks
        self._clock = clock
        self._known: OrderedDict[tuple[int, int], tuple[float, int]] = OrderedDict()
        self._asking: dict[tuple[int, int], asyncio.Task[int]] = {}

    async def measure(self, inode: Inode, *, retry: bool = True) -> Measured:
        """Return where the file's chunks end, asked now. `retry`: as in `StorageControl`. Raises: Unavailable."""
        assert not inode.is_inline, "L6: an inline file has no chunks to ask for"
        length = await self._chunks.end(inode.layout, inode.content, retry=retry)
        return Measured(inode.content, inode.truncate_version, length)

    async def recent(self, inode: Inode) -> int:
        """Return where the file's chunks end, or ended at most `FRESH_S` ago. Raises: Unavailable."""
        key = (inode.content, inode.truncate_version)
        known = self._known.get(key)
        if known is not None and self._clock.monotonic() - known[0] <= FRESH_S:
            return known[1]
        return await asyncio.shield(self._asking.get(key) or self._begin(key, inode))

    async def exact(self, inode: Inode) -> int:
        """Return where the file's chunks end, asked since this call. Callers that come meanwhile share one answer.

        Raises: Unavailable.
        """
        key = (inode.content, inode.truncate_version)
        if key in self._asking:  # perhaps before the last write
            await asyncio.wait([self._asking[key]])
        return await asyncio.shield(self._asking.get(key) or self._begin(key, inode))

    def _begin(self, key: tuple[int, int], inode: Inode) -> asyncio.Task[int]:
        task = asyncio.ensure_future(self._ask(key, inode))
        self._asking[key] = task
        task.add_done_callback(lambda done: self._answered(key, done))
        return task

    def _answered(self, key: tuple[int, int], task: asyncio.Task[int]) -> None:
        if self._asking.get(key) is task:
            del self._asking[key]
        if not task.cancelled():
            task.exception()  # retrieved here, because no caller may be left to wait for it

    async def _ask(self, key: tuple[int, int], inode: Inode) -> int:
        asked_s = self._clock.monotonic()
        assert not inode.is_inline, "L6: an inline file has no chunks to ask for"
        length = await self._chunks.end(inode.layout, inode.content)
        self._known[key] = (asked_s, length)
        self._known.move_to_end(key)
        if len(self._known) > REMEMBERED_MAX:
            self._known.popitem(last=False)
        return length


__all__ = ["FRESH_S", "Lengths"]
