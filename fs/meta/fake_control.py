"""A fake of the storage nodes' control: chunks in memory, with faults on demand. For tests and simulation."""

from collections.abc import Sequence

from ..errors import Unavailable
from ..ids import ChainId
from .layout import CHUNK_COUNT_MAX
from .storage import ChunkRange, LastChunk, Space


class FakeControl:
    """Chunks of all chains. `write` stands for what clients do through the data plane."""

    def __init__(self, *, capacity_bytes: int = 1 << 40) -> None:
        self.chunks: dict[tuple[int, int], dict[int, bytes]] = {}  # (chain, content) → index → bytes
        self.capacity_bytes = capacity_bytes
        self._unsynced: dict[
            int, dict[tuple[int, int], bytes]
        ] = {}  # chain → (content, index) → what is on disk
        self.calls = 0
        self.retried_calls = 0  # this fake answers or fails at once all the same
        self.fail_at: int | None = None  # the call with this number, and those after it, fail
        self.down: set[int] = set()  # chains that do not answer

    def write(self, chain: int, content: int, *, index: int, data: bytes, offset: int = 0) -> None:
        """Put bytes into one chunk, as a client's acknowledged write does."""
        chunks = self.chunks.setdefault((chain, content), {})
        self._unsynced.get(chain, {}).pop((content, index), None)
        old = chunks.get(index, b"").ljust(offset, b"\0")
        chunks[index] = old[:offset] + data + old[offset + len(data) :]

    def read(self, chain: int, content: int, *, index: int) -> bytes:
        """Return the bytes of one chunk; none if it does not exist."""
        return self.chunks.get((chain, content), {}).get(index, b"")

    def contents(self) -> set[int]:
        """Contents of which any chunk exists."""
        return {content for (_, content), chunks in self.chunks.items() if chunks}

    async def last_chunk(
        self,
        chain: ChainId,
        content: int,
        *,
        retry: bool,
    ) -> LastChunk | None:
        self.retried_calls += retry
        self._call(chain)
        chunks = self.chunks.get((chain, content))
        if not chunks:
            return None
        index = max(chunks)
        return LastChunk(index, len(chunks[index]))

    async def remove_chunks(
        self,
        chain: ChainId,
        removals: Sequence[ChunkRange],
        *,
        limit: int,
        durable: bool,
        retry: bool,
    ) -> Sequence[ChunkRange]:
        self.retried_calls += retry
        self._call(chain)
        for place, (content, first) in enumerate(removals):
            assert 0 <= first < CHUNK_COUNT_MAX, "the real one sends 32 bits"
            chunks = self.chunks.get((chain, content), {})
            found = sorted(index for index in chunks if index >= first)
            for index in found[:limit]:
                self._unsynced.setdefault(chain, {}).setdefault((content, index), chunks[index])
                del chunks[index]
            if len(found) > limit:
                return [ChunkRange(content, found[limit]), *removals[place + 1 :]]
            limit -= len(found)
        if durable:
            self._unsynced.pop(chain, None)
        return ()

    async def truncate_chunk(self, chain: ChainId, content: int, *, index: int, length: int) -> None:
        self._call(chain)
        chunks = self.chunks.setdefault((chain, content), {})
        self._unsynced.setdefault(chain, {}).setdefault((content, index), chunks.get(index, b""))
        chunks[index] = chunks.get(index, b"")[:length].ljust(length, b"\0")

    def lose_power(self) -> None:
        """All nodes lose power: removals and cuts that were not synced are undone. What clients wrote is durable."""
        for chain, undone in self._unsynced.items():
            for (content, index), data in undone.items():
                self.chunks.setdefault((chain, content), {})[index] = data
        self._unsynced.clear()

    async def space(self) -> Space:
        used = sum(len(data) for chunks in self.chunks.values() for data in chunks.values())
        return Space(self.capacity_bytes, self.capacity_bytes - used)

    def _call(self, chain: int) -> None:
        number = self.calls
        self.calls += 1
        if chain in self.down or (self.fail_at is not None and number >= self.fail_at):
            raise Unavailable(f"chain {chain} is not served", chain=chain)


__all__ = ["FakeControl"]
