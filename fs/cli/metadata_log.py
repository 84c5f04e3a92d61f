"""The logs in etcd of a cluster that is stopped, as commands use them that move or restore its metadata."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from ..clock import Clock, SystemClock
from ..errors import Busy, MaybeCommitted, Timeout, Unavailable
from ..kv.log import Bounds, Contender, Leadership, OrderedLog
from ..kv.log.etcd import EtcdLog, LogChange
from ..wire.etcd import EtcdClient, EtcdOptions
from .datadir import DataDir, Shape, with_free_ports
from .supervisor import Supervisor

OWNER: Final = "luciola metadata"
CLAIM_S: Final = 20.0  # for a process that was killed to lose its lease, several times over
CLAIMS_MAX: Final = 5  # of which each was lost during one read of etcd: a machine so busy will not do it
TRY_S: Final = 30.0  # for etcd to take a key: it may be electing a leader
RETRY_S: Final = 0.2
T = TypeVar("T")
_SYSTEM_CLOCK: Final = SystemClock()


def log_id_of(shape: Shape, kind: str) -> bytes:
    """Return by what a store knows that it follows this log (`ReplicaSettings.log_id`)."""
    return f"{shape.cluster.log_prefix(kind)}#{shape.cluster.cluster_id}".encode()


@asynccontextmanager
async def etcd_of(data: DataDir, shape: Shape) -> AsyncGenerator[EtcdClient]:
    """Reach the etcd of a cluster inside the block; a private one runs as long.

    Raises: as `up` where it does not answer.
    """
    options: EtcdOptions | None = shape.cluster.metadata_options()
    assert options is not None, "logs are in etcd"
    async with Supervisor(data, shape).etcd_alone(), EtcdClient(options) as client:
        yield client


@asynccontextmanager
async def log_of(client: EtcdClient, shape: Shape, kind: str) -> AsyncGenerator[EtcdLog]:
    """Open the log of mgmtd or meta inside the block. Raises: as `EtcdLog.open`."""
    prefix, cluster = shape.cluster.log_prefix(kind), shape.cluster.cluster_id
    ordered = await patiently(lambda: EtcdLog.open(client, prefix=prefix, cluster=cluster, create=False))
    try:
        yield ordered
    finally:
        await ordered.close()


async def patiently(call: Callable[[], Awaitable[T]]) -> T:
    """Return what `call` returns, which may be repeated, once etcd answers. Raises: the last error."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + TRY_S
    while True:
        try:
            return await call()
        except (Unavailable, Timeout, MaybeCommitted):
            if loop.time() > until_s:
                raise
        await asyncio.sleep(RETRY_S)


async def bounds_without_leader(ordered: OrderedLog, kind: str, *, clock: Clock = _SYSTEM_CLOCK) -> Bounds:
    """Return the bounds of a log at a moment when no process leads it: there was a claim on it meanwhile.

    On a busy machine a claim may be lost before they are known: another one follows.
    Raises: Busy if another process leads the log for CLAIM_S; Unavailable after CLAIMS_MAX claims.
    """
    for _ in range(CLAIMS_MAX):
        leadership = await _lead(ordered, kind, clock)
        try:
            bounds = await patiently(ordered.bounds)
            if leadership.holds():
                return bounds
        finally:
            await leadership.resign()
    raise Unavailable(
        f"the claim on the log of {kind} was lost {CLAIMS_MAX} times ({leadership.reason}): try again"
    )


async def _lead(ordered: OrderedLog, kind: str, clock: Clock) -> Leadership:
    try:
        async with asyncio.timeout(CLAIM_S):
            return await Contender(ordered, OWNER, clock=clock).lead()
    except TimeoutError as error:
        claim = await patiently(ordered.claim)
        owner = "another process" if claim is None else claim.owner
        raise Busy(f"{owner} leads the log of {kind}: stop every process of this cluster first") from error


def change_logs(data: DataDir, shape: Shape, changes: Sequence[LogChange], *, reason: str) -> None:
    """As `EtcdLog.change`, once etcd answers. No service runs.

    Raises: Busy; and as `up` where an etcd does not answer.
    """

    async def change() -> None:
        async with etcd_of(data, with_free_ports(shape)) as client:
            await patiently(lambda: EtcdLog.change(client, changes, reason=reason))

    asyncio.run(change())


__all__ = [
    "CLAIMS_MAX",
    "bounds_without_leader",
    "change_logs",
    "etcd_of",
    "log_id_of",
    "log_of",
    "patiently",
]
