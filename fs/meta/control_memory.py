"""The twin of the storage nodes' control: chunks in memory, with faults on demand. For tests and
simulation."""

from ..errors import Unavailable
from ..ids import ChainId
from .layout import CHUNK_COUNT_MAX
from .storage import LastChunk, Space


class MemoryControl:
    """Chunks of all chains. `write` stands for what clients do through the data plane."""

    def __init__(self, *, capacity_bytes: int = 1 << 40) -> None:
        self.chunks: dict[tuple[int, int], dict[int, bytes]] = {}  # (chain, content) → index → bytes
        self.capacity_bytes = capacity_bytes
        self.calls = 0
        self.fail_at: int | None = None  # the call with this number, and those after it, fail
        self.down: set[int] = set()  # chains that do not answer

    def write(self, chain: int, content: int, *, index: int, data: bytes, offset: int = 0) -> None:
        """Puts bytes into one chunk, as a client's acknowledged write does."""
        chunks = self.chunks.setdefault((chain, content), {})
        old = chunks.get(index, b"").ljust(offset, b"\0")
        chunks[index] = old[:offset] + data + old[offset + len(data) :]

    def read(self, chain: int, content: int, *, index: int) -> bytes:
        """The bytes of one chunk; none if it does not exist."""
        return self.chunks.get((chain, content), {}).get(index, b"")

    def contents(self) -> set[int]:
        """Contents of which any chunk exists."""
        return {content for (_, content), chunks in self.chunks.items() if chunks}

    async def last_chunk(self, chain: ChainId, content: int) -> LastChunk | None:
        self._call(chain)
        chunks = self.chunks.get((chain, content))
        if not chunks:
            return None
        index = max(chunks)
        return LastChunk(index, len(chunks[index]))

    async def remove_chunks(self, chain: ChainId, content: int, *, first: int, limit: int) -> bool:
        assert 0 <= first < CHUNK_COUNT_MAX, "the real one sends 32 bits"
        self._call(chain)
        chunks = self.chunks.get((chain, content), {})
        found = sorted(index for index in chunks if index >= first)
        for index in found[:limit]:
            del chunks[index]
        return len(found) > limit

    async def truncate_chunk(self, chain: ChainId, content: int, *, index: int, length: int) -> None:
        self._call(chain)
        chunks = self.chunks.setdefault((chain, content), {})
        chunks[index] = chunks.get(index, b"")[:length].ljust(length, b"\0")

    async def space(self) -> Space:
        used = sum(len(data) for chunks in self.chunks.values() for data in chunks.values())
        return Space(self.capacity_bytes, self.capacity_bytes - used)

    def _call(self, chain: int) -> None:
        number = self.calls
        self.calls += 1
        if chain in self.down or (self.fail_at is not None and number >= self.fail_at):
            raise Unavailable(f"chain {chain} is not served")


__all__ = ["MemoryControl"]
