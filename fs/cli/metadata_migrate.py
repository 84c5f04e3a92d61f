"""From one store each for mgmtd and meta to logs in etcd, and back, while the cluster is stopped.

New stores are copies (of hard links where the file system has them), compared with the old ones pair by pair before
anything is switched. To a log: the copy begins to follow one, at a position of which a checkpoint is made; each other
process begins with that checkpoint. Back: a replica is brought to the end of its log, and forgets it. Claims on the
log, before and afterwards, show that no process leads it, and that it ended there all along.
"""

import asyncio
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Final

from ..errors import Busy, CorruptData, InvalidArgument
from ..kv.applied import Applied, adopt, release
from ..kv.checkpoint.catalog import Catalog
from ..kv.engine import KEY_END
from ..kv.log import Bounds, Diverged, OrderedLog, Position, Trimmed
from ..kv.log.etcd import EtcdLog, LogChange
from ..kv.log.ordered_log import check_position
from ..kv.replicated import checkpoints_of, history_of
from ..kv.rocksdb import RocksEngine
from . import private_etcd
from .datadir import DataDir, Shape, migrated_shape, with_free_ports
from .metadata_log import bounds_without_leader, etcd_of, log_id_of, log_of, patiently
from .metadata_options import MetadataWanted
from .metadata_stores import bring_up, furthest_first, make_durable, opened
from .metadata_switch import begin, clear, staged
from .stores import set_aside
from .supervisor import store_names

log = logging.getLogger(__name__)

KINDS: Final = ("mgmtd", "meta")
ENDED: Final = (
    "the metadata of this cluster were moved out of it (luciola metadata migrate), and this process has the cluster "
    "file of before: give it the present one"
)
STAGED: Final = (*KINDS, *(f"{kind}-checkpoints" for kind in KINDS))


@dataclass(frozen=True, slots=True)
class Migrated:
    """What a migration did: the index at which the log of each kind begins or ended, and what ends the old names."""

    positions: dict[str, int]
    suffix: str


def to_logs(data: DataDir, shape: Shape, wanted: MetadataWanted) -> Migrated:
    """Prepare a log each in etcd for mgmtd and meta, and decide on it: `finish` switches.

    The caller holds the supervisor's lock, and no service runs.

    Raises: CorruptData if a store cannot be opened; AlreadyExists if etcd has a log of this cluster; NoSpace; and as
    `up` where an etcd does not answer. The cluster is as before then.
    """
    assert shape.cluster.metadata is None, "it has one store each"
    if not shape.has_stores:
        raise InvalidArgument("this cluster was never up: there is nothing to migrate", path=str(data.root))
    moved = migrated_shape(data.root, shape, wanted)
    clear(data, STAGED)
    if wanted.is_private:
        _set_aside_etcd(data)
    with _removed_on_error(data, _etcd_names() if wanted.is_private else ()):
        positions = {kind: asyncio.run(_stage_adopted(data, moved, kind)) for kind in KINDS}
        asyncio.run(_begin_logs(data, moved, positions))
    suffix = begin(data, moved, old=_store_names(moved), new=STAGED)
    return Migrated({kind: position.index for kind, position in positions.items()}, suffix)


def to_stores(data: DataDir, shape: Shape) -> Migrated:
    """Prepare a store of their own each for mgmtd and meta, and decide on it: `finish` ends the logs, and switches.

    The caller holds the supervisor's lock, and no service runs.

    Raises: Busy if a process leads a log, or another program has a port of the private etcd's members; Trimmed if no
    replica here can come up with its log; Diverged if one does not fit its log; CorruptData; NoSpace; and as `up`
    where an etcd does not answer. The cluster is as before then.
    """
    assert shape.cluster.metadata is not None, "it has logs"
    clear(data, STAGED)
    with _removed_on_error(data, ()):
        positions = asyncio.run(_stage_released(data, with_free_ports(shape)))
    moved = migrated_shape(data.root, shape, MetadataWanted())
    if shape.etcd_peers:  # its members go aside
        suffix = begin(data, moved, old=[*_store_names(shape), *_etcd_names()], new=KINDS)
    else:
        ends = [LogChange(shape.cluster.log_prefix(kind), last, None) for kind, last in positions.items()]
        suffix = begin(data, moved, old=_store_names(shape), new=KINDS, logs=ends, reason=ENDED)
    return Migrated({kind: position.index for kind, position in positions.items()}, suffix)


def _store_names(shape: Shape) -> list[str]:
    """Directories of all stores of a cluster with logs, of their checkpoints and of their histories."""
    stores = [name for kind in KINDS for name in store_names(shape, kind)]
    beside = [place(Path(name)).name for name in stores for place in (checkpoints_of, history_of)]
    return [*stores, *beside]


def _etcd_names() -> list[str]:
    return ["etcd", *(f"etcd-{member}" for member in range(1, private_etcd.MEMBERS + 1))]


def _set_aside_etcd(data: DataDir) -> None:
    """Make room for a private etcd. What is there no service uses: a migration that was killed left it, or a person."""
    for name in _etcd_names():
        aside = set_aside(data.root / name)
        if aside is not None:
            log.warning(
                "%s belongs to no cluster, and is kept as %s: remove it", data.root / name, aside.name
            )


@contextmanager
def _removed_on_error(data: DataDir, more: Sequence[str]) -> Iterator[None]:
    """Remove what was staged, and directories that did not exist before, if the block fails."""
    try:
        yield
    except BaseException:
        clear(data, STAGED)
        for name in more:
            shutil.rmtree(data.root / name, ignore_errors=True)
        raise


# To logs.


async def _stage_adopted(data: DataDir, moved: Shape, kind: str) -> Position:
    """Make the store of the first replica, and its first checkpoint; return where its log has to begin."""
    with opened(data.root / kind) as source, _copied(source, staged(data, kind)) as copy:
        position = adopt(copy, log_id=log_id_of(moved, kind))
        await copy.sync()
        _require_equal(source, copy)
        await Catalog(staged(data, checkpoints_of(data.root / kind).name)).create(copy)
    make_durable(staged(data, kind))
    return position


async def _begin_logs(data: DataDir, moved: Shape, positions: dict[str, Position]) -> None:
    cluster = moved.cluster
    async with etcd_of(data, replace(moved, has_stores=False)) as client:  # members without data are new ones
        for kind, position in positions.items():
            prefix = cluster.log_prefix(kind)

            async def make(prefix: str = prefix, position: Position = position) -> None:
                await EtcdLog.begin(client, prefix=prefix, cluster=cluster.cluster_id, position=position)

            await patiently(make)
            async with log_of(client, moved, kind) as ordered:
                check_position(position, await patiently(ordered.bounds))


# To stores.


async def _stage_released(data: DataDir, shape: Shape) -> dict[str, Position]:
    positions = {}
    async with etcd_of(data, shape) as client:
        for kind in KINDS:
            async with log_of(client, shape, kind) as ordered:
                bounds = await bounds_without_leader(ordered, kind)
                stores = [data.root / name for name in store_names(shape, kind)]
                await stage_released(
                    ordered, bounds, stores, staged(data, kind), log_id=log_id_of(shape, kind)
                )
                positions[kind] = bounds.last
        for kind, position in positions.items():
            async with log_of(client, shape, kind) as ordered:
                if (await bounds_without_leader(ordered, kind)).last != position:
                    raise Busy(
                        f"the log of {kind} has grown meanwhile: stop every process of this cluster first"
                    )
    return positions


async def stage_released(
    ordered: OrderedLog, bounds: Bounds, stores: Sequence[Path], target: Path, *, log_id: bytes
) -> None:
    """Bring the replica that is furthest to the end of its log, and make a store of it at `target`.

    One that is damaged, or too old, is left out: every other that gets to the end has everything.
    Raises: Trimmed or CorruptData if there is no other; Diverged; NoSpace.
    """
    refused: Trimmed | CorruptData = CorruptData(
        "no store is here to continue with: start the cluster, and stop it when all replicas have come up with the log "
        "(`luciola metadata status`)"
    )
    for store in furthest_first(stores, log_id):
        try:
            await _stage_one(ordered, bounds, store, target, log_id)
        except Diverged as error:  # which may have what the log has lost
            raise Diverged(error.message, path=str(store)) from error
        except (Trimmed, CorruptData) as error:
            # Not kept itself: the iterators of its traceback would hold the copy open.
            refused = type(error)(error.message, path=str(store))
            log.warning("%s is left out: %s", store, error.message)
            shutil.rmtree(target, ignore_errors=True)
            continue
        make_durable(target)
        return
    raise refused


async def _stage_one(ordered: OrderedLog, bounds: Bounds, store: Path, target: Path, log_id: bytes) -> None:
    with opened(store) as source:
        await bring_up(ordered, bounds, source, log_id)
        with _copied(source, target) as copy:
            release(Applied(copy, log_id=log_id))
            await copy.sync()
            _require_equal(source, copy)


# Both ways.


@contextmanager
def _copied(source: RocksEngine, target: Path) -> Iterator[RocksEngine]:
    """A copy of the store at `target`, open."""
    source.checkpoint(target)
    target.chmod(0o700)
    with opened(target) as copy:
        yield copy


def _require_equal(first: RocksEngine, second: RocksEngine) -> None:
    """Compare all pairs. Raises: CorruptData."""
    (left,), (right,) = (engine.snapshot(((b"\x00", KEY_END),)) for engine in (first, second))
    for one, other in zip_longest(left, right):
        if one != other:
            raise CorruptData(f"the copy of {first.directory} differs from it: its disk is not to be trusted")


__all__ = ["KINDS", "Migrated", "stage_released", "to_logs", "to_stores"]
