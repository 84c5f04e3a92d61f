"""The control of real storage nodes, over gRPC, at the heads of chains."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from ..clock import Clock
from ..errors import Error, StaleRouting, Timeout, Unavailable
from ..ids import ChainId
from ..wire import Expiries, RpcClients, methods
from ..wire.pb.common_pb2 import Empty
from ..wire.pb.storage_pb2 import (
    ChainRef,
    ChunkName,
    Expiry,
    LastChunkRequest,
    RemoveChunksRequest,
    SpaceReply,
    TruncateChunkRequest,
)
from .cluster import Cluster
from .storage import REQUEST_LIFE_S, ChunkRange, LastChunk, Space

T = TypeVar("T")

RETRY_FOR_S: Final = 10.0  # longer than it takes a chain to lose a member and serve again
RETRY_S: Final = 0.1
SYNC_TIMEOUT_S: Final = 30.0  # of a request that waits for disks: they may have much to write


@dataclass(slots=True, eq=False)
class Attempt:
    """A request that changes chunks and of which no answer has come: it may be begun until then."""

    version: int
    until_s: float


class GrpcControl:
    """Sends each request to the head of its chain, and again when the chain has changed.

    G1  A request that changes chunks of a content is done only when no earlier attempt, of this request or of one
        that was given up, can still be begun: otherwise that would remove what is written afterwards. An attempt is
        void when it has expired (wire/expiry.py), or when the chain has answered under a newer version: what the
        old head had not passed on by then is refused, and what it had, comes first.
    G2  It is void at the end of the lease under which it was sent, too: what the next primary does after that would be
        undone by it. `leased_until_s` says when that is; without others that can serve the store it never is.
    """

    def __init__(
        self,
        clients: RpcClients,
        cluster: Cluster,
        clock: Clock,
        *,
        leased_until_s: Callable[[], float] = lambda: float("inf"),
    ) -> None:
        self._clients = clients
        self._cluster = cluster
        self._clock = clock
        self._leased_until_s = leased_until_s
        self._client = random.SystemRandom().getrandbits(63) | 1
        self._sequence = 0
        self._expiries = Expiries(clients, clock)
        self._open: dict[tuple[int, int], list[Attempt]] = {}

    async def last_chunk(self, chain: ChainId, content: int, *, retry: bool) -> LastChunk | None:
        async def ask(address: str, ref: ChainRef) -> LastChunk | None:
            request = LastChunkRequest(chain=ref, content=content)
            reply = await self._clients.call(
                address, methods.Storage.last_chunk, request, timeout_s=REQUEST_LIFE_S
            )
            return LastChunk(reply.chunk.index, reply.length) if reply.found else None

        return await self._persist(chain, ask, retry_s=RETRY_FOR_S if retry else 0.0)

    async def remove_chunks(
        self, chain: ChainId, removals: Sequence[ChunkRange], *, limit: int, durable: bool, retry: bool
    ) -> Sequence[ChunkRange]:
        sequence = self._next()
        names = [ChunkName(content=each.content, index=each.first) for each in removals]

        async def ask(address: str, ref: ChainRef, expiry: Expiry) -> Sequence[ChunkRange]:
            request = RemoveChunksRequest(
                chain=ref,
                removals=names,
                durable=durable,
                limit=limit,
                client=self._client,
                sequence=sequence,
                expiry=expiry,
            )
            reply = await self._clients.call(
                address,
                methods.Storage.remove_chunks,
                request,
                timeout_s=SYNC_TIMEOUT_S if durable else REQUEST_LIFE_S,
            )
            if not reply.more:
                return ()
            unfinished = removals[reply.finished]
            return (unfinished._replace(first=reply.next_index), *removals[reply.finished + 1 :])

        contents = [each.content for each in removals]
        return await self._change(chain, contents, ask, retry_s=RETRY_FOR_S if retry else 0.0)

    async def truncate_chunk(self, chain: ChainId, content: int, *, index: int, length: int) -> None:
        sequence = self._next()

        async def ask(address: str, ref: ChainRef, expiry: Expiry) -> None:
            request = TruncateChunkRequest(
                chain=ref,
                chunk=ChunkName(content=content, index=index),
                length=length,
                client=self._client,
                sequence=sequence,
                expiry=expiry,
            )
            await self._clients.call(
                address, methods.Storage.truncate_chunk, request, timeout_s=REQUEST_LIFE_S
            )

        await self._change(chain, [content], ask, retry_s=RETRY_FOR_S)

    async def space(self) -> Space:
        async def ask(address: str) -> SpaceReply:
            try:
                return await self._clients.call(
                    address, methods.Storage.space, Empty(), timeout_s=REQUEST_LIFE_S
                )
            except Error:
                return SpaceReply()  # a node that does not answer holds nothing that could be used now

        return together(
            await asyncio.gather(*(ask(each) for each in self._cluster.routing.storage_addresses()))
        )

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence

    async def _change(
        self,
        chain: ChainId,
        contents: Sequence[int],
        ask: Callable[[str, ChainRef, Expiry], Awaitable[T]],
        *,
        retry_s: float,
    ) -> T:
        """As `_persist`, for a request that changes chunks of `contents`; G1."""
        keys = [(chain, content) for content in contents]

        async def attempt(address: str, ref: ChainRef) -> tuple[T, int]:
            until_s = min(self._clock.monotonic() + REQUEST_LIFE_S, self._leased_until_s())  # G2
            try:
                expiry = await self._expiries.expiry(address, until_s)
            except Error:
                self._expiries.forget(address)
                raise
            mine = Attempt(ref.version, until_s)
            for key in keys:
                self._open.setdefault(key, []).append(mine)
            try:
                answer = await ask(address, ref, expiry)
            except Error:
                self._expiries.forget(address)
                raise
            for key in keys:
                self._close(key, mine)
            return answer, ref.version

        try:
            answer, version = await self._persist(chain, attempt, retry_s=retry_s)
            opened = [
                each.until_s for key in keys for each in self._open.get(key, ()) if each.version >= version
            ]
            wait_s = max(opened, default=0.0) - self._clock.monotonic()
            if wait_s > 0:
                await self._clock.sleep(wait_s)
            return answer
        finally:
            self._forget_void()

    def _close(self, key: tuple[int, int], attempt: Attempt) -> None:
        """The attempt was answered. It may have been forgotten as void by then."""
        attempts = self._open.get(key, [])
        if attempt in attempts:
            attempts.remove(attempt)
        if not attempts:
            self._open.pop(key, None)

    def _forget_void(self) -> None:
        now_s = self._clock.monotonic()
        void = [
            key
            for key, attempts in self._open.items()
            if all(attempt.until_s <= now_s for attempt in attempts)
        ]
        for key in void:
            del self._open[key]

    async def _persist(
        self, chain: ChainId, ask: Callable[[str, ChainRef], Awaitable[T]], *, retry_s: float
    ) -> T:
        """Ask the head that the chain has by then, until `retry_s` have passed."""
        deadline_s = self._clock.monotonic() + retry_s
        while True:
            if self._leased_until_s() <= self._clock.monotonic():
                raise Unavailable("this metadata service does not lead any more", chain=chain)
            try:
                address, version = self._cluster.routing.head(chain)
                return await ask(address, ChainRef(chain=chain, version=version))
            except (Unavailable, StaleRouting, Timeout) as error:
                if self._clock.monotonic() >= deadline_s:
                    message = f"chain {chain} cannot be asked: {error.message}"
                    raise Unavailable(message, chain=chain) from error
            await self._cluster.changed(RETRY_S)


def together(replies: Iterable[SpaceReply]) -> Space:
    """Return the space of all nodes. What is free on a disk that several of them share is free once."""
    capacity = 0
    unused: dict[str, int] = {}
    free: dict[str, int] = {}
    for number, reply in enumerate(replies):
        disk = reply.disk or f"the own one of {number}"
        capacity += reply.used_bytes
        unused[disk] = max(unused.get(disk, 0), reply.capacity_bytes - reply.used_bytes)
        free[disk] = max(free.get(disk, 0), reply.free_bytes)
    return Space(capacity + sum(unused.values()), sum(free.values()))


__all__ = ["GrpcControl", "together"]
