"""The control methods of one storage node (proto/storage.proto). File data never passes here."""

import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Final

from ..clock import boot_s
from ..errors import InvalidArgument, NotFound, StaleRouting
from ..ids import ChainId, ChainVersion, new_incarnation
from ..wire import Identity
from ..wire.pb.common_pb2 import Empty
from ..wire.pb.storage_pb2 import (
    ChunkName,
    ClockReply,
    Expiry,
    HoldUpdatesRequest,
    LastChunkReply,
    LastChunkRequest,
    ListChunksReply,
    ListChunksRequest,
    QuarantineChunksReply,
    QuarantineChunksRequest,
    ReleaseUpdatesReply,
    ReleaseUpdatesRequest,
    RemoveChunksReply,
    RemoveChunksRequest,
    ScrubReply,
    ScrubRequest,
    SpaceReply,
    StorageStatus,
    SyncDoneRequest,
    SyncStartRequest,
    TargetStatus,
    TruncateChunkRequest,
)
from . import model
from .engine import PAGE_RECORDS, Engine, is_full
from .membership import Membership
from .quarantine import Quarantine
from .recovery import Recovery, message_of, records_of
from .scrub import Scrub

LIST_MAX: Final = 10_000  # records in one reply: about 600 KiB
REMOVE_DEFAULT: Final = 1000
REMOVE_MAX: Final = 10_000
HOLD_MAX_MS: Final = 8000  # far less than a client's deadline, and than meta waits for a chain
CONTENTS_MAX: Final = 1024  # of which chunks are removed by one request


class StorageService:
    """Serves `methods.Storage`."""

    def __init__(
        self,
        engine: Engine,
        membership: Membership,
        recovery: Recovery,
        scrub: Scrub,
        quarantine: Quarantine,
    ) -> None:
        self._engine = engine
        self._membership = membership
        self._recovery = recovery
        self._scrub = scrub
        self._quarantine = quarantine
        self._started_s = time.monotonic()
        self._life = new_incarnation()
        self._rounds: dict[int, _Round] = {}

    async def last_chunk(self, request: LastChunkRequest, _: Identity) -> LastChunkReply:
        """Find the last chunk of a content on one chain."""
        found = await self._engine.run(
            self._engine.node.last_chunk, request.chain.chain, request.chain.version, request.content
        )
        if found is None:
            return LastChunkReply(found=False)
        index, length = found
        return LastChunkReply(
            found=True, chunk=ChunkName(content=request.content, index=index), length=length
        )

    def clock(self, _: Empty, __: Identity) -> ClockReply:
        """Return the clock in which requests that change chunks say when they expire."""
        return ClockReply(life=self._life, now_ms=int(boot_s() * 1000))

    async def remove_chunks(self, request: RemoveChunksRequest, _: Identity) -> RemoveChunksReply:
        """Remove chunks of contents through the chain. Raises: InvalidArgument for too many contents."""
        removals = [(each.content, each.index) for each in request.removals]
        if len(removals) > CONTENTS_MAX:
            raise InvalidArgument(f"at most {CONTENTS_MAX} contents in one request, not {len(removals)}")
        chain, version = request.chain.chain, request.chain.version
        removed, rest = await self._engine.run(
            self._engine.node.remove_chunks,
            chain,
            version,
            removals,
            min(request.limit or REMOVE_DEFAULT, REMOVE_MAX),
            request.client,
            request.sequence,
            self._expires_s(request),
        )
        if rest is not None:
            return RemoveChunksReply(removed=removed, more=True, finished=rest[0], next_index=rest[1])
        if request.durable:
            await self._engine.run(self._engine.node.sync_chain, chain, version)
        return RemoveChunksReply(removed=removed, finished=len(removals))

    async def truncate_chunk(self, request: TruncateChunkRequest, _: Identity) -> Empty:
        """Cut or extend one chunk through the chain."""
        await self._engine.run(
            self._engine.node.truncate_chunk,
            request.chain.chain,
            request.chain.version,
            request.chunk.content,
            request.chunk.index,
            request.length,
            request.client,
            request.sequence,
            self._expires_s(request),
        )
        return Empty()

    async def list_chunks(self, request: ListChunksRequest, _: Identity) -> ListChunksReply:
        """One page of this node's chunks of a chain, for fsck and backups."""
        if request.limit > LIST_MAX:
            raise InvalidArgument(f"at most {LIST_MAX} records are listed at once, not {request.limit}")
        limit = request.limit or PAGE_RECORDS
        after = (request.after.content, request.after.index) if request.HasField("after") else None
        round_ = self._engine.node.round()
        records = await self._engine.records(request.chain, after, limit=limit, since=request.since_round)
        return ListChunksReply(chunks=map(message_of, records), more=len(records) == limit, round=round_)

    async def hold_updates(self, request: HoldUpdatesRequest, _: Identity) -> Empty:
        """Keep updates of clients waiting for a moment. Raises: InvalidArgument, Busy, Timeout."""
        if not 0 < request.limit_ms <= HOLD_MAX_MS:
            raise InvalidArgument(f"updates are held for 1 to {HOLD_MAX_MS} ms, not {request.limit_ms}")
        await self._engine.run(self._engine.node.hold_updates, request.holder, request.limit_ms / 1000)
        return Empty()

    def release_updates(self, request: ReleaseUpdatesRequest, _: Identity) -> ReleaseUpdatesReply:
        """End that hold."""
        return ReleaseUpdatesReply(lasted=self._engine.node.release_updates(request.holder))

    async def sync_start(self, request: SyncStartRequest, _: Identity) -> AsyncIterator[ListChunksReply]:
        """The predecessor compares its chunks with ours: all our records, page by page."""
        chain = request.chain
        self._check_syncing(chain.chain, chain.version)
        mine = self._rounds[chain.chain] = _Round(chain.version)
        after = (request.after.content, request.after.index) if request.HasField("after") else None
        async for page in self._engine.pages(chain.chain, after):
            self._check_round(chain.chain, mine)
            yield ListChunksReply(chunks=map(message_of, page), more=True)
        mine.is_listed = True
        yield ListChunksReply()

    async def quarantine_chunks(self, request: QuarantineChunksRequest, _: Identity) -> QuarantineChunksReply:
        """Set aside chunks that our predecessor finds in no history of the chain."""
        chain = request.chain
        self._check_syncing(chain.chain, chain.version)
        if latest := self._rounds.get(chain.chain):
            latest.is_spoilt = True  # the request may be late, and about what that round has found equal
        kept = [
            await self._quarantine.keep(chain.chain, chain.version, record)
            for record in records_of(request.chunks)
        ]
        return QuarantineChunksReply(quarantined=sum(kept))

    async def sync_done(self, request: SyncDoneRequest, _: Identity) -> Empty:
        """Declare this replica up to date: its predecessor is done. What it was given is made durable first."""
        chain = request.chain
        self._check_syncing(chain.chain, chain.version)
        latest = self._rounds.get(chain.chain)
        if latest is None or latest.version != chain.version or not latest.is_listed:
            raise StaleRouting(f"chain {chain.chain} is being compared again")
        # What was synced on the chain before this replica had it is durable on the others only.
        await self._engine.run(self._engine.node.sync)
        self._check_round(chain.chain, latest)
        if latest.is_spoilt:
            raise StaleRouting(f"chain {chain.chain} is being compared again")
        if not self._membership.sync_done(ChainId(chain.chain), ChainVersion(chain.version)):
            raise self._not_syncing(chain.chain)
        return Empty()

    async def space(self, _: Empty, __: Identity) -> SpaceReply:
        """Capacity, free and used bytes of this node's disk."""
        capacity, free, used = await self._engine.quick(self._engine.node.space)
        return SpaceReply(
            capacity_bytes=capacity,
            free_bytes=free,
            used_bytes=used,
            disk=self._membership.disk,
            full=is_full(free),
        )

    async def scrub(self, request: ScrubRequest, _: Identity) -> ScrubReply:
        """Verify every chunk of a chain now."""
        return await self._scrub.chain(request.chain, repair=request.repair)

    async def status(self, _: Empty, identity: Identity) -> StorageStatus:
        """Return what this node holds and has done."""
        status = StorageStatus(
            space=await self.space(Empty(), identity),
            directory=self._membership.directory,
            unix_ms=time.time_ns() // 1_000_000,
        )
        held = {target: (chunks, used) for target, _, _, chunks, used, _, _ in await self._targets()}
        for target, about in self._membership.state.targets.items():
            chunks, used = held.get(target, (0, 0))
            status.targets.append(
                TargetStatus(
                    id=target,
                    chain=about.chain,
                    chain_version=about.chain_version,
                    local=about.local.name,
                    public=about.public.name,
                    chunks=chunks,
                    used_bytes=used,
                )
            )
        counters = dict(await self._engine.quick(self._engine.node.counters))
        counters |= {f"recovery_{name}": value for name, value in asdict(self._recovery.counters).items()}
        counters |= {f"scrub_{name}": value for name, value in asdict(self._scrub.counters).items()}
        counters |= {f"quarantine_{name}": value for name, value in asdict(self._quarantine.counters).items()}
        counters["uptime_s"] = int(time.monotonic() - self._started_s)
        counters["lease_left_ms"] = max(0, int(self._engine.node.lease_left_s() * 1000))
        for name, value in counters.items():
            status.counters[name] = value
        return status

    async def _targets(self) -> list[tuple[int, int, int, int, int, int, bool]]:
        return await self._engine.quick(self._engine.node.targets)

    def _expires_s(self, request: RemoveChunksRequest | TruncateChunkRequest) -> float:
        """Return the moment when the request expires. Raises: InvalidArgument if it names none."""
        if not request.client or not request.sequence:
            raise InvalidArgument("a request that changes chunks needs a client and a sequence number, not 0")
        expiry: Expiry = request.expiry
        if not expiry.life:
            raise InvalidArgument("a request that changes chunks must say when it expires (Storage.Clock)")
        if expiry.life != self._life:
            raise StaleRouting("the request was meant for an earlier life of this node")
        return expiry.at_ms / 1000

    def _check_syncing(self, chain: int, version: int) -> None:
        if not model.may_sync(self._membership.state, ChainId(chain), ChainVersion(version)):
            raise self._not_syncing(chain)

    def _check_round(self, chain: int, mine: "_Round") -> None:
        self._check_syncing(chain, mine.version)
        if self._rounds[chain] is not mine:
            raise StaleRouting(f"chain {chain} is being compared again")

    def _not_syncing(self, chain: int) -> StaleRouting | NotFound:
        for target in self._membership.state.targets.values():
            if target.chain == chain:
                return StaleRouting(
                    f"chain {chain} version {target.chain_version} is {target.public.name} here, not to be synced",
                    version=target.chain_version,
                )
        return NotFound(f"no replica of chain {chain} is on this node", chain=chain)


@dataclass(slots=True, eq=False)
class _Round:
    """One comparison of our chunks of a chain, the latest that was begun. `is_spoilt`: chunks were set aside since."""

    version: int
    is_listed: bool = False
    is_spoilt: bool = False


__all__ = ["StorageService", "message_of"]
