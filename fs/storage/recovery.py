"""Brings a SYNCING replica up to date: the work of its predecessor, the last SERVING one.

For every chain where this node is that predecessor, one task compares the successor's chunks with ours, range by
range, and has the data server send what differs. New writes reach the successor meanwhile, whole chunks of them,
so what differs only shrinks. When a round has left nothing to send, `SyncDone` ends it.

    V1  A round belongs to one chain version; a change of the chain ends it, and the next one begins from the start.
    V2  `SyncDone` is sent only after every range was compared and every difference was sent without a failure.
    V3  At most `resync_batch` chunks are in flight, over all chains.
    V4  A successor that holds what its chain never had is told to forget everything first, and gets every chunk.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from ..config import StorageConfig
from ..errors import Error, Unavailable
from ..wire import RoutingTable, RpcClients, methods
from ..wire.pb.mgmtd_pb2 import SERVING, SYNCING, Chain, Target
from ..wire.pb.storage_pb2 import ChainRef, ListChunksReply, SyncDoneRequest, SyncStartRequest
from .compare import Name, Plan, Record, compare
from .engine import Engine

log = logging.getLogger(__name__)

BATCH: Final = 16  # chunks of one call to the data server
BACKOFF_S_MAX: Final = 5.0
STALE: Final = "Stale"  # the data server's word for a successor that is ahead of its chain
FLUSH_S: Final = 300.0  # the successor flushes all that it was sent before it answers `SyncDone`
LOGGED_MAX: Final = 10  # conflicts of one page that are logged one by one


class Job(NamedTuple):
    """One chain under one version, and the successor to bring up to date."""

    chain: int
    version: int
    successor: int
    node: int


@dataclass(slots=True)
class Counters:
    """Since the process started."""

    rounds: int = 0
    done: int = 0
    sent: int = 0
    removed: int = 0
    failed: int = 0
    conflicts: int = 0


class Recovery:
    """Runs one task per successor that needs us."""

    def __init__(
        self, engine: Engine, clients: RpcClients, table: RoutingTable, *, node: int, config: StorageConfig
    ) -> None:
        self.counters: Final = Counters()
        self.config = config
        self._engine = engine
        self._clients = clients
        self._table = table
        self._node = node
        self._tasks: dict[Job, asyncio.Task[None]] = {}
        self._batches = asyncio.Semaphore(max(1, config.resync_batch // BATCH))

    def routing_changed(self) -> None:
        """Starts and ends tasks so that they fit the chains (V1)."""
        wanted = {job for chain in self._table.chains.values() if (job := job_of(chain, self._node))}
        for job in [job for job in self._tasks if job not in wanted]:
            self._tasks.pop(job).cancel()
        for job in wanted - self._tasks.keys():
            self._tasks[job] = asyncio.create_task(self._drive(job), name=f"resync chain {job.chain}")

    async def stop(self) -> None:
        """Ends all tasks."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _drive(self, job: Job) -> None:
        wipe = False
        pause_s = self.config.resync_interval_ms / 1000
        while True:
            try:
                outcome = await self._round(job, wipe=wipe)
            except Error as error:
                log.info("chain %d version %d: resync is tried again: %s", job.chain, job.version, error)
                outcome = Outcome()
            except Exception:
                log.exception("chain %d version %d: resync failed", job.chain, job.version)
                outcome = Outcome()
            if outcome.is_done:
                self.counters.done += 1
                log.info(
                    "chain %d version %d: target %d is up to date", job.chain, job.version, job.successor
                )
                return
            wipe = outcome.is_ahead
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, BACKOFF_S_MAX)

    async def _round(self, job: Job, *, wipe: bool) -> "Outcome":
        self.counters.rounds += 1
        address = self._address(job)
        request = SyncStartRequest(chain=ChainRef(chain=job.chain, version=job.version), wipe=wipe)
        outcome = Outcome(is_done=True)
        after: Name | None = None
        async for reply in self._clients.stream(address, methods.Storage.sync_start, request):
            page = records_of(reply)
            if page:
                plan = compare(await self._range(job.chain, after, page[-1].name), page)
                if plan.conflicts:  # V4: nothing that is sent would take the place of a newer state
                    self._log(job, plan)
                    return Outcome(is_ahead=True)
                await self._send(job, plan, outcome)
                after = page[-1].name
        async for local in self._engine.pages(job.chain, after):
            await self._send(job, compare(local, ()), outcome)
        if outcome.is_done:  # V2
            await self._clients.call(
                address,
                methods.Storage.sync_done,
                SyncDoneRequest(chain=ChainRef(chain=job.chain, version=job.version)),
                timeout_s=FLUSH_S,
            )
        return outcome

    def _address(self, job: Job) -> str:
        node = self._table.nodes.get(job.node)
        if node is None or not node.grpc_address:
            raise Unavailable(f"node {job.node} has no address yet")
        return node.grpc_address

    async def _range(self, chain: int, after: Name | None, through: Name) -> list[Record]:
        """Our records in (after, through], read now: later than the successor's."""
        found: list[Record] = []
        async for page in self._engine.pages(chain, after):
            found += [record for record in page if record.name <= through]
            if page[-1].name >= through:
                break
        return found

    async def _send(self, job: Job, plan: Plan, outcome: "Outcome") -> None:
        self.counters.removed += len(plan.removes)
        for names in (plan.removes, plan.transfers):
            batches = [names[start : start + BATCH] for start in range(0, len(names), BATCH)]
            async with asyncio.TaskGroup() as group:
                for batch in batches:
                    group.create_task(self._send_batch(job, batch, outcome))
            if outcome.broken is not None:
                raise outcome.broken

    async def _send_batch(self, job: Job, batch: Sequence[Name], outcome: "Outcome") -> None:
        async with self._batches:  # V3
            if outcome.broken is not None:
                return
            try:
                sent, failures = await self._engine.run(
                    self._engine.node.sync_chunks, job.chain, job.version, list(batch)
                )
            except Error as error:  # the chain has changed (V1), or this node is in trouble
                outcome.broken = error
                return
        self.counters.sent += sent
        self.counters.failed += len(failures)
        for content, index, status in failures:
            outcome.is_done = False
            outcome.is_ahead |= status == STALE
            log.warning("chain %d: chunk %x.%d was not sent: %s", job.chain, content, index, status)

    def _log(self, job: Job, plan: Plan) -> None:
        self.counters.conflicts += len(plan.conflicts)
        for conflict in plan.conflicts[:LOGGED_MAX]:
            log.error(
                "chain %d: chunk %x.%d of target %d: %s; the whole replica is sent again",
                *(job.chain, *conflict.name, job.successor, conflict.reason),
            )


@dataclass(slots=True)
class Outcome:
    """How a round ends. `is_ahead`: the successor holds what the chain never had (V4). `broken`: why to give up."""

    is_done: bool = False
    is_ahead: bool = False
    broken: Error | None = None


def job_of(chain: Chain, node: int) -> Job | None:
    """What `node` has to do for the chain: something if it is the last SERVING one and a SYNCING one follows."""
    serving = [target for target in chain.targets if target.state == SERVING]
    syncing: list[Target] = [target for target in chain.targets if target.state == SYNCING]
    if not serving or not syncing or serving[-1].node != node:
        return None
    return Job(chain.id, chain.version, syncing[0].id, syncing[0].node)


def records_of(reply: ListChunksReply) -> list[Record]:
    """The records in a message."""
    return [
        Record(
            record.chunk.content,
            record.chunk.index,
            record.version,
            record.chain_version,
            record.length,
            record.crc32c,
            record.pending,
            record.removed,
            record.pending_version,
        )
        for record in reply.chunks
    ]


__all__ = ["Counters", "Job", "Outcome", "Recovery", "job_of", "records_of"]
