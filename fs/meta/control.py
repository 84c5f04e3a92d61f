"""The control of real storage nodes, over gRPC, at the heads of chains."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from ..clock import Clock
from ..errors import Error, StaleRouting, Timeout, Unavailable
from ..ids import ChainId
from ..wire import RpcClients, methods
from ..wire.pb.common_pb2 import Empty
from ..wire.pb.storage_pb2 import (
    ChainRef,
    ChunkName,
    LastChunkRequest,
    RemoveChunksRequest,
    TruncateChunkRequest,
)
from .cluster import Cluster
from .storage import LastChunk, Space

T = TypeVar("T")

CALL_TIMEOUT_S: Final = 5.0
PATIENCE_S: Final = 10.0  # longer than it takes a chain to lose a member and go on
RETRY_S: Final = 0.1


class GrpcControl:
    """Sends each request to the head of its chain, and again when the chain has changed."""

    def __init__(self, clients: RpcClients, cluster: Cluster, clock: Clock) -> None:
        self._clients = clients
        self._cluster = cluster
        self._clock = clock
        self._client = random.SystemRandom().getrandbits(63) | 1
        self._sequence = 0

    async def last_chunk(self, chain: ChainId, content: int) -> LastChunk | None:
        async def ask(address: str, ref: ChainRef) -> LastChunk | None:
            request = LastChunkRequest(chain=ref, content=content)
            reply = await self._clients.call(
                address, methods.Storage.last_chunk, request, timeout_s=CALL_TIMEOUT_S
            )
            return LastChunk(reply.chunk.index, reply.length) if reply.found else None

        return await self._persist(chain, ask)

    async def remove_chunks(self, chain: ChainId, content: int, *, first: int, limit: int) -> bool:
        sequence = self._next()

        async def ask(address: str, ref: ChainRef) -> bool:
            request = RemoveChunksRequest(
                chain=ref,
                content=content,
                first_index=first,
                limit=limit,
                client=self._client,
                sequence=sequence,
            )
            reply = await self._clients.call(
                address, methods.Storage.remove_chunks, request, timeout_s=CALL_TIMEOUT_S
            )
            return reply.more

        return await self._persist(chain, ask)

    async def truncate_chunk(self, chain: ChainId, content: int, *, index: int, length: int) -> None:
        sequence = self._next()

        async def ask(address: str, ref: ChainRef) -> None:
            request = TruncateChunkRequest(
                chain=ref,
                chunk=ChunkName(content=content, index=index),
                length=length,
                client=self._client,
                sequence=sequence,
            )
            await self._clients.call(
                address, methods.Storage.truncate_chunk, request, timeout_s=CALL_TIMEOUT_S
            )

        await self._persist(chain, ask)

    async def space(self) -> Space:
        async def ask(address: str) -> Space:
            try:
                reply = await self._clients.call(
                    address, methods.Storage.space, Empty(), timeout_s=CALL_TIMEOUT_S
                )
            except Error:
                return Space(0, 0)  # a node that does not answer holds nothing that could be used now
            return Space(reply.capacity_bytes, reply.free_bytes)

        spaces = await asyncio.gather(*(ask(each) for each in self._cluster.routing.storage_addresses()))
        return Space(sum(space.capacity for space in spaces), sum(space.free for space in spaces))

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence

    async def _persist(self, chain: ChainId, ask: Callable[[str, ChainRef], Awaitable[T]]) -> T:
        """Asks the head, whoever it is by then, until `PATIENCE_S` have passed."""
        deadline_s = self._clock.monotonic() + PATIENCE_S
        while True:
            try:
                address, version = self._cluster.routing.head(chain)
                return await ask(address, ChainRef(chain=chain, version=version))
            except (Unavailable, StaleRouting, Timeout) as error:
                if self._clock.monotonic() >= deadline_s:
                    raise Unavailable(f"chain {chain} cannot be asked: {error.message}") from error
            await self._cluster.changed(RETRY_S)


__all__ = ["GrpcControl"]
