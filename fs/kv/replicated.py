"""One process's replica of a store whose log is in etcd.

    await run_replica(ReplicaSettings(options, prefix="luciola/c1/mgmtd/", cluster_id="c1", ...), serve)

The directory of the store may be new or lost: the log is the truth, and the replica takes it all from there, or begins
with a checkpoint where the log has forgotten its beginning. Beside it, checkpoints are made and the log is trimmed.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from ..errors import MaybeCommitted, NoSpace, Timeout, Unavailable
from ..wire.etcd import EtcdClient, EtcdOptions
from .applied import Applied
from .checkpoint.catch_up import StoreDisk, open_store
from .checkpoint.fetch import Source
from .checkpoint.history import Archive, History
from .checkpoint.keeper import Keeper, Member, Policy, StoreCheckpoints
from .checkpoint.segment import MomentKey
from .log import LEASE_S, OrderedLog, Trimmed
from .log.etcd import EtcdLog
from .replica import Replica, Serve
from .replica_service import ReplicaService
from .rocksdb import CACHE_BYTES

log = logging.getLogger(__name__)

RETRY_S: Final = 0.5  # between attempts to open the log: etcd may be starting
RETRY_STORE_S: Final = 2.0  # between attempts to get a checkpoint: who has one may be starting


@dataclass(frozen=True, slots=True)
class ReplicaSettings:
    """What a replica is made of.

    `history_s`: how far back a history is kept, 0 for none, of moments that the store has under `moment_key`.
    `create`: the log may be new. `owner` says to others how to reach the process that leads; `member` is how this
    replica gives its checkpoints, those of `service`, and `source` how others do. `cached` and `cache_bytes`: see
    `RocksEngine`.
    """

    options: EtcdOptions
    prefix: str
    cluster_id: str
    data: Path
    service: ReplicaService
    owner: str
    member: Member
    policy: Policy
    source: Callable[[str], Source]
    create: bool
    cached: bytes = b""
    cache_bytes: int = CACHE_BYTES
    lease_s: float = LEASE_S
    history_s: float = 0.0
    moment_key: bytes = b""

    @property
    def log_id(self) -> bytes:
        """By which a store knows its log."""
        return f"{self.prefix}#{self.cluster_id}".encode()


def checkpoints_of(data: Path) -> Path:
    """Return the directory for the checkpoints of the store at `data`: beside it, where hard links are possible."""
    return data.with_name(f"{data.name}-checkpoints")


def history_of(data: Path) -> Path:
    """Return the directory for the history of the store at `data`: beside it, for hard links to its checkpoints."""
    return data.with_name(f"{data.name}-history")


async def run_replica(settings: ReplicaSettings, serve: Serve) -> NoReturn:
    """Follow the log, and serve when it is this process's turn, until cancelled.

    Raises: as `open_replica` and `Replica.run`, but Trimmed.
    """
    while True:
        try:
            async with open_replica(settings) as replica:
                await replica.run(serve)
        except Trimmed as error:  # it was paused, or cut off, for long
            log.warning("%s; beginning again", error)


@asynccontextmanager
async def open_replica(settings: ReplicaSettings) -> AsyncGenerator[Replica]:
    """The store, at a position from which the log can be followed. It waits for etcd and for who has a checkpoint.

    Raises: NotFound if there is no log; InvalidArgument if it is another cluster's; Diverged; CorruptData.
    """
    async with EtcdClient(settings.options) as client:
        ordered = await _open_log(settings, client)
        try:
            applied = await _open_store(settings, ordered)
            try:
                replica = Replica(ordered, applied, owner=settings.owner, lease_s=settings.lease_s)
                async with _keeping(settings, ordered, applied) as keeper:
                    with settings.service.running(replica, keeper):
                        yield replica
            finally:
                applied.engine.close()
        finally:
            await ordered.close()


@asynccontextmanager
async def _keeping(
    settings: ReplicaSettings, ordered: OrderedLog, applied: Applied
) -> AsyncGenerator[Keeper]:
    checkpoints = StoreCheckpoints(applied, settings.service.catalog)
    keeper = Keeper(
        ordered, checkpoints, member=settings.member, policy=settings.policy, history=_history(settings)
    )
    keeping = asyncio.create_task(keeper.run(), name="kv-keep")
    try:
        yield keeper
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


def _history(settings: ReplicaSettings) -> History | None:
    if not settings.history_s:
        return None
    assert settings.moment_key, "states are found by their moments"
    archive = Archive(
        history_of(settings.data), log_id=settings.log_id, moment=MomentKey(settings.moment_key)
    )
    return History(archive, settings.service.catalog, window_s=settings.history_s)


async def _open_log(settings: ReplicaSettings, client: EtcdClient) -> EtcdLog:
    last = ""
    while True:
        try:
            opened = await EtcdLog.open(
                client, prefix=settings.prefix, cluster=settings.cluster_id, create=settings.create
            )
        except (Unavailable, Timeout, MaybeCommitted, NoSpace) as error:
            if str(error) != last:
                last = str(error)
                log.warning("the metadata log cannot be opened yet: %s; trying again", error)
        else:
            opened.appends = settings.service.appends
            return opened
        await asyncio.sleep(RETRY_S)


async def _open_store(settings: ReplicaSettings, ordered: OrderedLog) -> Applied:
    disk = StoreDisk(
        settings.data,
        settings.service.catalog,
        settings.log_id,
        settings.source,
        cached=settings.cached,
        cache_bytes=settings.cache_bytes,
    )
    last = ""
    while True:
        try:
            return await open_store(ordered, disk, name=settings.member.name)
        except (Unavailable, Timeout, NoSpace) as error:
            if str(error) != last:
                last = str(error)
                log.warning("the store cannot be brought up to the log yet: %s; trying again", error)
        await asyncio.sleep(RETRY_STORE_S)


__all__ = ["ReplicaSettings", "checkpoints_of", "history_of", "open_replica", "run_replica"]
