"""The chunks of a running cluster: listing them, reading them, holding updates.

S1  A chunk counts as read only if version, length and CRC32C are those of its listing: the checksum was computed by
    the chunk engine when the bytes were written, so everything between its disk and ours is checked.
S2  A hold counts only if every storage node says at its end that it had lasted, and no chain has changed meanwhile:
    a head that was not asked could have served under another chain version only.
"""

import asyncio
import secrets
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

from ...client.chunks import Chunks, buffer, crc32c
from ...errors import CorruptData, Error, Unavailable
from ...wire import methods
from ...wire.methods import Method, Reply, Request
from ...wire.pb import mgmtd_pb2
from ...wire.pb.meta_pb2 import DumpBatch, DumpRequest
from ...wire.pb.storage_pb2 import (
    ChunkName,
    ChunkRecord,
    HoldUpdatesRequest,
    ListChunksReply,
    ListChunksRequest,
    ReleaseUpdatesRequest,
)
from ..mgmtd_client import MgmtdClient, address_of

LIST_LIMIT: Final = 4096  # records a request: 250 KiB
CALL_S: Final = 60.0
DUMP_S: Final = 24 * 3600.0
READ_TRIES: Final = 3  # bytes that were damaged on the way may be whole the next time


class Got(Enum):
    """The outcome of reading a chunk."""

    WHOLE = "whole"
    CHANGED = "changed"  # it is not any more what was listed
    DAMAGED = "damaged"  # on every replica


@dataclass(frozen=True)
class Mark:
    """What a listing was of: which node's, under which chain version, from which round of sync on, and when."""

    node: int
    chain_version: int
    round: int
    at_s: float


class Source:
    """A cluster, as a backup sees it."""

    def __init__(self, manager: MgmtdClient, data_dir: str, *, deadline_ms: int) -> None:
        self._manager = manager
        self._chunks = Chunks(data_dir, deadline_ms=deadline_ms)
        self._holder = secrets.randbits(63) | 1
        self._local = threading.local()
        self.routing = mgmtd_pb2.Routing()

    async def refresh(self) -> None:
        """Routing as it is now. Raises: Unavailable if a chain has no replica that serves."""
        self.routing = await self._manager.routing()
        for chain in self.routing.chains:
            if not any(target.state == mgmtd_pb2.SERVING for target in chain.targets):
                raise Unavailable(
                    f"no replica of chain {chain.id} serves: its files cannot be read (`luciola status` says why)"
                )

    def close(self) -> None:
        self._chunks.close()

    # Listing.

    def head_of(self, chain: mgmtd_pb2.Chain) -> int:
        """Return the node whose listing of a chain is complete as soon as no update is in flight."""
        return chain.targets[0].node

    async def pages(self, chain: int, node: int, since_round: int = 0) -> AsyncIterator[ListChunksReply]:
        """Yield records of a chain by content and index, page by page; the last page may be empty."""
        request = ListChunksRequest(chain=chain, limit=LIST_LIMIT, since_round=since_round)
        while True:
            reply = await self._call_node(node, methods.Storage.list_chunks, request)
            yield reply
            if not reply.more:
                return
            request.after.CopyFrom(reply.chunks[-1].chunk)

    async def record(self, chain: int, node: int, chunk: ChunkName) -> ChunkRecord | None:
        """Return what a node has of one chunk."""
        request = ListChunksRequest(chain=chain, limit=1)
        if chunk.index:
            request.after.content, request.after.index = chunk.content, chunk.index - 1
        elif chunk.content:
            request.after.content, request.after.index = chunk.content - 1, (1 << 32) - 1
        reply = await self._call_node(node, methods.Storage.list_chunks, request)
        found = reply.chunks[0] if reply.chunks else None
        return found if found is not None and found.chunk == chunk else None

    # Reading.

    def read(self, chain: int, record: ChunkRecord) -> tuple[Got, memoryview]:
        """Return the bytes of a chunk as it was listed (S1). They are valid until this thread reads the next."""
        into = self._memory(record.length)[: record.length]
        name = record.chunk
        for _ in range(READ_TRIES):
            try:
                length, version = self._chunks.read(chain, name.content, name.index, into)
            except CorruptData:
                return Got.DAMAGED, into
            if version != record.version:
                return Got.CHANGED, into
            if length == record.length and crc32c(into) == record.crc32c:
                return Got.WHOLE, into
        return Got.DAMAGED, into

    # Writing.

    def write(self, chain: int, content: int, number: int, data: bytes) -> None:
        """Write a chunk that is not there yet."""
        self._chunks.write(chain, content, number, data)

    def sync_chains(self) -> None:
        """Everything written survives the loss of power, on every replica."""
        self._chunks.sync([chain.id for chain in self.routing.chains])

    def _memory(self, length: int) -> memoryview:
        """Of this thread."""
        known: memoryview | None = getattr(self._local, "memory", None)
        if known is None or len(known) < length:
            known = self._local.memory = buffer(length)
        return known

    # Holding.

    async def hold(self, limit_ms: int) -> float:
        """Hold updates of clients: none is in flight when this returns, nor begun until `release`.

        Return the monotonic time at which the hold ends by itself.

        Raises: Error if some node does not hold; then none does.
        """
        await self.refresh()
        until_s = time.monotonic() + limit_ms / 1000
        request = HoldUpdatesRequest(holder=self._holder, limit_ms=limit_ms)
        asked = [
            self._call_node(node, methods.Storage.hold_updates, request, timeout_s=limit_ms / 1000)
            for node in self._nodes()
        ]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                await self.release()
                raise answer
        return until_s

    async def release(self) -> bool:
        """Let updates continue. Return whether none had been executed since `hold` (S2)."""
        before = {chain.id: chain.version for chain in self.routing.chains}
        request = ReleaseUpdatesRequest(holder=self._holder)
        asked = [
            self._call_node(node, methods.Storage.release_updates, request, timeout_s=CALL_S)
            for node in self._nodes()
        ]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        try:
            routing = await self._manager.routing()
        except Error:
            return False
        lasted = all(not isinstance(answer, BaseException) and answer.lasted for answer in answers)
        return lasted and before == {chain.id: chain.version for chain in routing.chains}

    def _nodes(self) -> list[int]:
        return sorted(
            {
                target.node
                for chain in self.routing.chains
                for target in chain.targets
                if target.state == mgmtd_pb2.SERVING
            }
        )

    # Names.

    async def dump(self) -> AsyncGenerator[DumpBatch]:
        """The namespace as it is when the first batch comes."""
        address = address_of(self.routing, mgmtd_pb2.NODE_META)
        async for batch in self._manager.clients.stream(
            address, methods.Meta.dump, DumpRequest(stored_lengths=True), timeout_s=DUMP_S
        ):
            yield batch

    async def _call_node(
        self, node: int, method: Method[Request, Reply], request: Request, *, timeout_s: float = CALL_S
    ) -> Reply:
        for each in self.routing.nodes:
            if each.id == node:
                return await self._manager.clients.call(
                    each.grpc_address, method, request, timeout_s=timeout_s
                )
        raise Unavailable(f"routing names no node {node}")


__all__ = ["Got", "Mark", "Source"]
