"""From one store each for mgmtd and meta to logs in etcd, and back, while the cluster is stopped.

New stores are copies (of hard links where the file system has them), compared with the old ones pair by pair before
anything is switched. To a log: the copy begins to follow one, at a position of which a checkpoint is made; every other
process begins with that checkpoint. Back: a replica is brought to the end of its log, under a lease, and forgets it.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Final, TypeVar

from ..errors import Busy, CorruptData, InvalidArgument, MaybeCommitted, Timeout, Unavailable
from ..kv.applied import Applied, adopt, release
from ..kv.checkpoint.catalog import Catalog, sync_directory, sync_file
from ..kv.engine import KEY_END
from ..kv.log import Contender, OrderedLog, Position, Trimmed
from ..kv.log.etcd import EtcdLog
from ..kv.log.ordered_log import check_position
from ..kv.replicated import checkpoints_of
from ..kv.rocksdb import RocksEngine
from ..wire.etcd import EtcdClient, EtcdOptions
from . import private_etcd
from .datadir import DataDir, Shape, migrated_shape
from .metadata_options import MetadataWanted
from .metadata_switch import begin, clear, finish, staged
from .stores import set_aside
from .supervisor import Supervisor, store_names

log = logging.getLogger(__name__)

KINDS: Final = ("mgmtd", "meta")
OWNER: Final = "luciola metadata migrate"
CLAIM_S: Final = 20.0  # for a process that was killed to lose its lease, several times over
TRY_S: Final = 30.0  # for etcd to take a key: it may be electing a leader
RETRY_S: Final = 0.2
STAGED: Final = (*KINDS, *(f"{kind}-checkpoints" for kind in KINDS))
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Migrated:
    """What a migration did: how far the log of each kind is, and where the old stores are: files that end so."""

    positions: dict[str, int]
    suffix: str


def to_logs(data: DataDir, shape: Shape, wanted: MetadataWanted) -> Migrated:
    """Give mgmtd and meta a log each in etcd. The caller holds the supervisor's lock, and no service runs.

    Raises: CorruptData if a store cannot be opened; AlreadyExists if etcd has a log of this cluster; NoSpace; and as
    `up` where an etcd does not answer. The cluster is as before then.
    """
    assert shape.cluster.metadata is None, "it has one store each"
    if not shape.has_stores:
        raise InvalidArgument("this cluster was never up: there is nothing to migrate", path=str(data.root))
    moved = migrated_shape(data.root, shape, wanted)
    clear(data, STAGED)
    if wanted.is_private:
        for name in _etcd_names():  # of a migration that was given up: services never used it
            set_aside(data.root / name)
    positions = {kind: asyncio.run(_stage_adopted(data, moved, kind)) for kind in KINDS}
    asyncio.run(_begin_logs(data, moved, positions))
    suffix = begin(data, moved, old=STAGED, new=STAGED)
    finish(data)
    return Migrated({kind: position.index for kind, position in positions.items()}, suffix)


def to_stores(data: DataDir, shape: Shape) -> Migrated:
    """Give mgmtd and meta a store of their own each. The caller holds the supervisor's lock, and no service runs.

    Raises: Busy if a process leads a log; Trimmed if no replica here can come up with its log; CorruptData; NoSpace;
    and as `up` where an etcd does not answer. The cluster is as before then.
    """
    assert shape.cluster.metadata is not None, "it has logs"
    clear(data, STAGED)
    positions = asyncio.run(_stage_released(data, shape))
    stores = [name for kind in KINDS for name in store_names(shape, kind)]
    old = [*stores, *(f"{name}-checkpoints" for name in stores)]
    if shape.etcd_peers:
        old += _etcd_names()
    suffix = begin(data, migrated_shape(data.root, shape, MetadataWanted()), old=old, new=KINDS)
    finish(data)
    return Migrated({kind: position.index for kind, position in positions.items()}, suffix)


def _etcd_names() -> list[str]:
    return ["etcd", *(f"etcd-{member}" for member in range(1, private_etcd.MEMBERS + 1))]


def _log_id(shape: Shape, kind: str) -> bytes:
    return f"{shape.cluster.log_prefix(kind)}#{shape.cluster.cluster_id}".encode()


# To logs.


async def _stage_adopted(data: DataDir, moved: Shape, kind: str) -> Position:
    """Make the store of the first replica, and its first checkpoint; return where its log has to begin."""
    with _opened(data.root / kind) as source, _copied(source, staged(data, kind)) as copy:
        position = adopt(copy, log_id=_log_id(moved, kind))
        await copy.sync()
        _require_equal(source, copy)
        await Catalog(staged(data, checkpoints_of(data.root / kind).name)).create(copy)
    _make_durable(staged(data, kind))
    return position


async def _begin_logs(data: DataDir, moved: Shape, positions: dict[str, Position]) -> None:
    cluster = moved.cluster
    async with _etcd(data, replace(moved, has_stores=False)) as client:  # members without data are new ones
        for kind, position in positions.items():
            prefix = cluster.log_prefix(kind)

            async def make(prefix: str = prefix, position: Position = position) -> None:
                await EtcdLog.begin(client, prefix=prefix, cluster=cluster.cluster_id, position=position)

            await _patiently(make)
            ordered = await EtcdLog.open(client, prefix=prefix, cluster=cluster.cluster_id, create=False)
            try:
                check_position(position, await _patiently(ordered.bounds))
            finally:
                await ordered.close()


# To stores.


async def _stage_released(data: DataDir, shape: Shape) -> dict[str, Position]:
    positions = {}
    async with _etcd(data, shape) as client:
        for kind in KINDS:
            ordered = await EtcdLog.open(
                client, prefix=shape.cluster.log_prefix(kind), cluster=shape.cluster.cluster_id, create=False
            )
            try:
                async with _claimed(ordered, kind):
                    positions[kind] = await _stage_one(data, shape, kind, ordered)
            finally:
                await ordered.close()
    return positions


async def _stage_one(data: DataDir, shape: Shape, kind: str, ordered: OrderedLog) -> Position:
    """Bring the replica that is furthest to the end of its log, and make a store of it."""
    log_id = _log_id(shape, kind)
    refused: Trimmed | None = None
    for store in _furthest_first([data.root / name for name in store_names(shape, kind)], log_id):
        with _opened(store) as source:
            applied = Applied(source, log_id=log_id)
            try:
                await follow_to_end(ordered, applied)
            except Trimmed as error:
                refused = error
                continue
            await source.sync()
            with _copied(source, staged(data, kind)) as copy:
                release(Applied(copy, log_id=log_id))
                await copy.sync()
                _require_equal(source, copy)
        _make_durable(staged(data, kind))
        return applied.position
    raise refused or CorruptData(
        f"no store of {kind} is here to continue with: start the cluster, and stop it when all replicas have come up "
        "with the log (`luciola metadata status`)"
    )


def _furthest_first(stores: Sequence[Path], log_id: bytes) -> Sequence[Path]:
    found = []
    for store in stores:
        if not (store / "CURRENT").exists():
            continue
        try:
            with _opened(store) as engine:
                found.append((Applied(engine, log_id=log_id).position.index, store))
        except CorruptData as error:  # another replica will do
            log.warning("%s is left out: %s", store, error)
    return [store for _, store in sorted(found, reverse=True)]


async def follow_to_end(ordered: OrderedLog, applied: Applied) -> None:
    """Carry out all that the log holds, to which no process appends.

    Raises: Trimmed; Diverged; CorruptData; NoSpace.
    """
    bounds = await _patiently(ordered.bounds)
    while applied.position.index < bounds.last.index:
        for record in await _patiently(lambda: ordered.read(applied.position)):
            applied.apply(record)
    check_position(applied.position, bounds)


@asynccontextmanager
async def _claimed(ordered: OrderedLog, kind: str) -> AsyncGenerator[None]:
    """Hold the claim on the log, so that no other process appends; check at the end that it was held."""
    try:
        async with asyncio.timeout(CLAIM_S):
            leadership = await Contender(ordered, OWNER).lead()
    except TimeoutError as error:
        claim = await ordered.claim()
        owner = "another process" if claim is None else claim.owner
        raise Busy(f"{owner} leads the log of {kind}: stop every process of this cluster first") from error
    try:
        yield
        if not leadership.holds():
            raise Unavailable(f"the log of {kind} may have grown meanwhile ({leadership.reason}): try again")
    finally:
        await leadership.resign()


# Both ways.


@asynccontextmanager
async def _etcd(data: DataDir, shape: Shape) -> AsyncGenerator[EtcdClient]:
    options: EtcdOptions | None = shape.cluster.metadata_options()
    assert options is not None, "logs are in etcd"
    async with Supervisor(data, shape).etcd_alone(), EtcdClient(options) as client:
        yield client


async def _patiently(call: Callable[[], Awaitable[T]]) -> T:
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


@contextmanager
def _opened(store: Path) -> Iterator[RocksEngine]:
    engine = RocksEngine(store)
    try:
        yield engine
    finally:
        engine.close()


@contextmanager
def _copied(source: RocksEngine, target: Path) -> Iterator[RocksEngine]:
    """A copy of the store at `target`, open."""
    source.checkpoint(target)
    target.chmod(0o700)
    with _opened(target) as copy:
        yield copy


def _require_equal(first: RocksEngine, second: RocksEngine) -> None:
    """Compare all pairs. Raises: CorruptData."""
    (left,), (right,) = (engine.snapshot(((b"\x00", KEY_END),)) for engine in (first, second))
    for one, other in zip_longest(left, right):
        if one != other:
            raise CorruptData(f"the copy of {first.directory} differs from it: its disk is not to be trusted")


def _make_durable(store: Path) -> None:
    """See to it that files and names of a closed store survive power loss."""
    for path in store.iterdir():
        sync_file(path)
    sync_directory(store)


__all__ = ["KINDS", "Migrated", "follow_to_end", "to_logs", "to_stores"]
