"""Bring a SYNCING replica up to date: the work of its predecessor, the last SERVING one.

For every chain where this node is that predecessor, one task compares the successor's chunks with ours, range by
range, and has the data server send what differs. New writes reach the successor meanwhile, whole chunks of them,
so what differs only shrinks. When a round has left nothing to send, `SyncDone` ends it.

    V1  A round belongs to one chain version; a change of the chain ends it. The next one continues where it was only
        under the very next version, with the same successor SYNCING behind us: every write in between reached it.
    V2  `SyncDone` is sent only after every range was compared and every difference was sent without a failure.
    V3  At most `resync_batch` chunks are in flight, over all chains, and `resync_bytes_per_s` are begun.
    V4  A chunk of the successor that its chain never had is set aside there before ours is sent, and no other chunk is
        touched for it. A round with such a chunk is not the last one.
    V5  A chunk that we cannot read is never taken from the successor, and no reason for it to wait.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, NamedTuple

from ..config import StorageConfig
from ..errors import CorruptData, Error, Unavailable
from ..wire import RoutingTable, RpcClients, methods
from ..wire.pb.mgmtd_pb2 import SERVING, SYNCING, Chain, Target
from ..wire.pb.storage_pb2 import (
    ChainRef,
    ChunkName,
    ChunkRecord,
    QuarantineChunksRequest,
    SyncDoneRequest,
    SyncStartRequest,
)
from .compare import Name, Plan, Record, compare
from .engine import Engine

log = logging.getLogger(__name__)

BATCH: Final = 16  # chunks of one call to the data server
BACKOFF_S_MAX: Final = 5.0
QUARANTINE_S: Final = 60.0  # for `BATCH` chunks on a slow disk
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
    sent_bytes: int = 0
    removed: int = 0
    failed: int = 0
    conflicts: int = 0
    resumed: int = 0
    compared: int = 0  # records of successors


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one successor is known to have all that its predecessor has: through `after`, under `version`."""

    version: int
    successor: int
    after: Name

    def continues(self, job: Job) -> bool:
        """Return whether that is still so under `job` (V1)."""
        return job.successor == self.successor and job.version - self.version in (0, 1)


class Pace:
    """A rate of bytes, shared by all chains."""

    def __init__(self) -> None:
        self._free_s = 0.0

    def reserve(self, count: int, *, bytes_per_s: int, now_s: float) -> float:
        """Return how long to wait before `count` bytes may be sent. 0 bytes per second is no limit."""
        if not bytes_per_s:
            return 0.0
        assert count >= 0, "bytes are not given back"
        start_s = max(now_s, self._free_s)
        self._free_s = start_s + count / bytes_per_s
        assert start_s >= now_s, "a wait is not negative"
        return start_s - now_s


class Recovery:
    """Runs one task per successor that needs us."""

    def __init__(
        self, engine: Engine, clients: RpcClients, table: RoutingTable, *, node: int, config: StorageConfig
    ) -> None:
        self.counters: Final = Counters()
        self.pending_bytes = 0  # of chunks that were found to differ, and are not sent yet
        self.config = config
        self._engine = engine
        self._clients = clients
        self._table = table
        self._node = node
        self._tasks: dict[Job, asyncio.Task[None]] = {}
        self._progress: dict[int, Progress] = {}  # by chain
        self._pace = Pace()
        self._batches = asyncio.Semaphore(max(1, config.resync_batch // BATCH))

    @property
    def chain_count(self) -> int:
        """Chains whose successor is being brought up to date."""
        return sum(not task.done() for task in self._tasks.values())

    def routing_changed(self) -> None:
        """Start and end tasks so that they fit the chains (V1)."""
        wanted = {job for chain in self._table.chains.values() if (job := job_of(chain, self._node))}
        assert len({job.chain for job in wanted}) == len(wanted), "V1: one round a chain"
        for job in [job for job in self._tasks if job not in wanted]:
            self._tasks.pop(job).cancel()
        self._progress = {
            job.chain: replace(known, version=job.version)
            for job in wanted
            if (known := self._progress.get(job.chain)) and known.continues(job)
        }
        for job in wanted - self._tasks.keys():
            self._tasks[job] = asyncio.create_task(self._drive(job), name=f"resync chain {job.chain}")

    async def stop(self) -> None:
        """End all tasks."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _drive(self, job: Job) -> None:
        pause_s = self.config.resync_interval_ms / 1000
        while True:
            is_done = False
            try:
                is_done = await self._round(job)
            except Error as error:
                log.info(
                    "chain %d version %d: resync interrupted: %s; tried again", job.chain, job.version, error
                )
            except Exception:
                log.exception("chain %d version %d: resync failed", job.chain, job.version)
            if is_done:
                self.counters.done += 1
                log.info(
                    "chain %d version %d: target %d is up to date", job.chain, job.version, job.successor
                )
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, BACKOFF_S_MAX)

    async def _round(self, job: Job) -> bool:
        """Compare everything that is not known to be equal; return whether the successor is up to date then."""
        self.counters.rounds += 1
        address, chain = self._address(job), ChainRef(chain=job.chain, version=job.version)
        outcome = Outcome()
        after: Name | None = None
        if known := self._progress.get(job.chain):
            after = known.after
            self.counters.resumed += 1
        async for reply in self._clients.stream(
            address, methods.Storage.sync_start, SyncStartRequest(chain=chain, after=_name(after))
        ):
            page = records_of(reply.chunks)
            require_order(page, after)
            if page:
                self.counters.compared += len(page)
                plan = compare(await self._range(job.chain, after, page[-1].name), page)
                await self._quarantine(job, plan, outcome)
                await self._report_unreadable(job, plan, outcome)
                await self._send(job, plan, outcome)
                after = page[-1].name
                self._note(job, after, outcome)
        async for local in self._engine.pages(job.chain, after):
            plan = compare(local, ())
            await self._report_unreadable(job, plan, outcome)
            await self._send(job, plan, outcome)
            self._note(job, local[-1].name, outcome)
        if outcome.is_done:  # V2
            assert outcome.broken is None, "V2: every difference was sent without a failure"
            # If that is refused the successor has reason to be compared as a whole.
            self._progress.pop(job.chain, None)
            await self._clients.call(
                address, methods.Storage.sync_done, SyncDoneRequest(chain=chain), timeout_s=FLUSH_S
            )
        return outcome.is_done

    def _note(self, job: Job, after: Name, outcome: "Outcome") -> None:
        if outcome.is_done:
            known = self._progress.get(job.chain)
            assert known is None or after > known.after, "a round goes through the chunks in order"
            self._progress[job.chain] = Progress(job.version, job.successor, after)

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
                    size = sum(plan.lengths.get(name, 0) for name in batch)
                    group.create_task(self._send_batch(job, batch, size, outcome))
            if outcome.broken is not None:
                raise outcome.broken

    async def _send_batch(self, job: Job, batch: Sequence[Name], size: int, outcome: "Outcome") -> None:
        self.pending_bytes += size
        try:
            await self._send_in_turn(job, batch, size, outcome)
        finally:
            self.pending_bytes -= size

    async def _send_in_turn(self, job: Job, batch: Sequence[Name], size: int, outcome: "Outcome") -> None:
        assert 0 < len(batch) <= BATCH, "V3: a batch counts as one"
        async with self._batches:  # V3
            rate = self.config.resync_bytes_per_s
            await asyncio.sleep(self._pace.reserve(size, bytes_per_s=rate, now_s=time.monotonic()))
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
        self.counters.sent_bytes += 0 if failures else size
        self.counters.failed += len(failures)
        for content, index, status in failures:
            outcome.is_done = False
            log.warning(
                "chain %d: sending chunk %x.%d failed: %s; tried again", job.chain, content, index, status
            )

    async def _quarantine(self, job: Job, plan: Plan, outcome: "Outcome") -> None:
        """Have the successor set aside what its chain never had (V4)."""
        if not plan.conflicts:
            return
        outcome.is_done = False
        self.counters.conflicts += len(plan.conflicts)
        for conflict in plan.conflicts[:LOGGED_MAX]:
            log.error(
                "chain %d: chunk %x.%d of target %d: %s; it is set aside there, and replaced by ours",
                *(job.chain, *conflict.record.name, job.successor, conflict.reason),
            )
        if len(plan.conflicts) > LOGGED_MAX:
            log.error("chain %d: suppressed %d similar messages", job.chain, len(plan.conflicts) - LOGGED_MAX)
        await self._set_aside(job, [conflict.record for conflict in plan.conflicts])

    async def _report_unreadable(self, job: Job, plan: Plan, outcome: "Outcome") -> None:
        """Have what we cannot read, and the successor has not, become unreadable there (V5)."""
        for names, consequence in (
            (plan.kept, "the replica's copy stays, and may lack the latest updates"),
            ([record.name for record in plan.lost], "the chunk is lost"),
        ):
            for name in names[:LOGGED_MAX]:
                log.error(
                    "chain %d: index record of chunk %x.%d cannot be read while target %d is synced: %s",
                    *(job.chain, *name, job.successor, consequence),
                )
        if plan.lost:
            outcome.is_done = False
            await self._set_aside(job, plan.lost)

    async def _set_aside(self, job: Job, found: Sequence[Record]) -> None:
        records = [message_of(record) for record in found]
        for start in range(0, len(records), BATCH):
            await self._clients.call(
                self._address(job),
                methods.Storage.quarantine_chunks,
                QuarantineChunksRequest(
                    chain=ChainRef(chain=job.chain, version=job.version),
                    chunks=records[start : start + BATCH],
                ),
                timeout_s=QUARANTINE_S,
            )


@dataclass(slots=True)
class Outcome:
    """How a round goes. `broken`: why to give up."""

    is_done: bool = True
    broken: Error | None = None


def job_of(chain: Chain, node: int) -> Job | None:
    """Return what `node` has to do for the chain: something if it is the last SERVING one and a SYNCING one follows."""
    serving = [target for target in chain.targets if target.state == SERVING]
    syncing: list[Target] = [target for target in chain.targets if target.state == SYNCING]
    if not serving or not syncing or serving[-1].node != node:
        return None
    return Job(chain.id, chain.version, syncing[0].id, syncing[0].node)


def _name(name: Name | None) -> ChunkName | None:
    return None if name is None else ChunkName(content=name[0], index=name[1])


def records_of(messages: Iterable[ChunkRecord]) -> list[Record]:
    """Return the records in a message."""
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
        for record in messages
    ]


def require_order(page: Sequence[Record], after: Name | None) -> None:
    """Raises: CorruptData if a page of the successor does not go forward from `after`.

    A record that came twice would count as one that we do not have, and its chunk be removed.
    """
    names = [record.name for record in page]
    before = names if after is None else [after, *names]
    if any(name >= following for name, following in pairwise(before)):
        raise CorruptData("the successor lists its chunks out of order: nothing is compared with them")


def message_of(record: Record) -> ChunkRecord:
    """Return the record as a message."""
    return ChunkRecord(
        chunk=ChunkName(content=record.content, index=record.index),
        version=record.version,
        chain_version=record.chain_version,
        length=record.length,
        crc32c=record.crc32c,
        pending=record.pending,
        removed=record.removed,
        pending_version=record.pending_version,
    )


__all__ = [
    "Counters",
    "Job",
    "Outcome",
    "Pace",
    "Progress",
    "Recovery",
    "job_of",
    "message_of",
    "records_of",
    "require_order",
]
