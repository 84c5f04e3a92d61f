"""The namespace of a cluster as it was at a time, while the cluster is stopped.

Made of the history that the metadata services keep (`[metadata] history_s`, kv/checkpoint/history.py): a checkpoint,
and the records after it. It is made beside the present store, and put in its place like the stores of a migration:
before migration.json is written nothing has changed, and after it the next command or `luciola up` completes it.

    T1  nothing is lost: the stores that are replaced are renamed, chunks are not touched, and the records that leave
        the log are in the history
    T2  the log begins again, without its records and behind a position that no other log has: who followed it before
        begins with a checkpoint of the restored store, and who led it is refused
    T3  ids of the abandoned state are not handed out again, and the store counts as newer than that state
    T4  a file that has grown since gets the length that its chunks have, as after a loss of metadata
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from ..clock import Clock, SystemClock
from ..errors import CorruptData, InvalidArgument, NotFound
from ..kv.applied import Applied, begin_again
from ..kv.checkpoint.catalog import Catalog
from ..kv.checkpoint.history import Archive, Target, format_moment
from ..kv.checkpoint.restore import restore
from ..kv.checkpoint.segment import MomentKey
from ..kv.log import Bounds, OrderedLog, Position, Trimmed
from ..kv.log.etcd import LogChange
from ..kv.replicated import checkpoints_of, history_of
from ..meta import moments
from ..meta.restored import Restored, replace_namespace
from .datadir import DataDir, Shape, with_free_ports
from .metadata_log import bounds_without_leader, etcd_of, log_id_of, log_of
from .metadata_stores import bring_up, furthest_first, make_durable, opened
from .metadata_switch import begin, clear, staged
from .supervisor import store_names

log = logging.getLogger(__name__)

KIND: Final = "meta"
CHECKPOINTS: Final = checkpoints_of(Path(KIND)).name
STAGED: Final = (KIND, CHECKPOINTS)
MOMENT: Final = MomentKey(moments.KEY)
_SYSTEM_CLOCK: Final = SystemClock()


@dataclass(frozen=True, slots=True)
class Staged:
    """A state that is ready beside the present one.

    `unix_ms`: the moment that was reached; `record`: the last one in it; `last`: of the present state, where its log
    has to end still; `begins`: behind which the log begins again.
    """

    unix_ms: int
    record: int
    last: Position
    begins: Position
    report: Restored


def parse_time(text: str, *, now_ms: int) -> int:
    """Return the moment, in milliseconds since 1970. Without an offset it is of this machine's time zone.

    Raises: InvalidArgument if it is no time, or in the future.
    """
    try:
        at_ms = int(datetime.fromisoformat(text).astimezone().timestamp() * 1000)
    except (ValueError, OverflowError) as error:
        raise InvalidArgument(
            f"--at {text!r} is not a time: write 2026-12-02T14:30:00, with +01:00 or Z behind it for another time zone"
        ) from error
    if at_ms > now_ms:
        raise InvalidArgument(f"--at {format_moment(at_ms)} is in the future: it is {format_moment(now_ms)}")
    return at_ms


def stage(data: DataDir, shape: Shape, at_ms: int, *, clock: Clock = _SYSTEM_CLOCK) -> Staged:
    """Make the newest state that is not after `at_ms`, beside the present one, which stays as it is.

    The caller holds the supervisor's lock, and no service runs.
    Raises: NotFound if no history reaches back so far, or all lack something; InvalidArgument if nothing was changed
    since; Busy if a process leads the log; CorruptData, NoSpace, Diverged; and as `up` where an etcd does not answer.
    """
    clear(data, STAGED)
    try:
        return asyncio.run(_stage(data, with_free_ports(shape), at_ms, clock))
    except BaseException:
        clear(data, STAGED)
        raise


def give_up(data: DataDir) -> None:
    """Remove what `stage` has made."""
    clear(data, STAGED)


def decide(data: DataDir, shape: Shape, made: Staged) -> str:
    """Decide on the switch, which `finish` carries out; return what is added to the names of the old stores."""
    stores = store_names(shape, KIND)
    old = [*stores, *(checkpoints_of(Path(name)).name for name in stores)]
    change = LogChange(shape.cluster.log_prefix(KIND), made.last, made.begins)
    return begin(data, shape, old=old, new=STAGED, logs=[change])


async def _stage(data: DataDir, shape: Shape, at_ms: int, clock: Clock) -> Staged:
    log_id = log_id_of(shape, KIND)
    stores = [data.root / name for name in store_names(shape, KIND)]
    async with etcd_of(data, shape) as client, log_of(client, shape, KIND) as ordered:
        bounds = await bounds_without_leader(ordered, KIND)
        archive, target = await _find(ordered, stores, at_ms, log_id)
        await _complete(ordered, bounds.last, stores, log_id)
        present = await _present(ordered, bounds, stores, log_id)
        await restore(target.checkpoint, staged(data, KIND))
        with opened(staged(data, KIND)) as engine, opened(present) as newest:
            applied = Applied(engine, log_id=log_id)
            async for record in archive.records(ordered, applied.position):
                if record.index > target.position.index:
                    break
                applied.apply(record)
            if applied.position != target.position:
                raise CorruptData(f"the history lacks records before {target.position.index}")
            report = await replace_namespace(engine, newest, clock=clock)
            begins = begin_again(applied, behind=bounds.last)
            await engine.sync()
            await Catalog(staged(data, CHECKPOINTS)).create(engine)
        make_durable(staged(data, KIND))
    return Staged(target.unix_ms, target.position.index, bounds.last, begins, report)


async def _complete(ordered: OrderedLog, last: Position, stores: Sequence[Path], log_id: bytes) -> None:
    """Archive what only the log and the replicas have so far (T1). Raises: NoSpace."""
    checkpoints = [
        each
        for directory in map(checkpoints_of, stores)
        if directory.is_dir()
        for each in Catalog(directory).checkpoints()
        if each.seal.log_id == log_id
    ]
    for directory in map(history_of, stores):
        if directory.is_dir():
            await Archive(directory, log_id=log_id, moment=MOMENT).complete(ordered, last, checkpoints)


async def _present(ordered: OrderedLog, bounds: Bounds, stores: Sequence[Path], log_id: bytes) -> Path:
    """Bring a store to the end of the log, and return it.

    Raises: Trimmed or CorruptData if none gets there; Diverged.
    """
    refused: Trimmed | CorruptData = CorruptData("no store of the metadata services is here")
    for store in furthest_first(stores, log_id):
        try:
            with opened(store) as engine:
                await bring_up(ordered, bounds, engine, log_id)
        except (Trimmed, CorruptData) as error:
            refused = type(error)(error.message, path=str(store))
            log.warning("%s is left out: %s", store, error.message)
        else:
            return store
    raise refused


async def _find(
    ordered: OrderedLog, stores: Sequence[Path], at_ms: int, log_id: bytes
) -> tuple[Archive, Target]:
    """Return the first history that has the state. Raises: NotFound; InvalidArgument; CorruptData."""
    refused: NotFound | CorruptData = NotFound(
        "no history is kept here: set `[metadata] history_s` in the configuration of the services"
    )
    for store in stores:
        directory = history_of(store)
        if not directory.is_dir():
            continue
        archive = Archive(directory, log_id=log_id, moment=MOMENT)
        try:
            return archive, await archive.find(ordered, at_ms)
        except (NotFound, CorruptData) as error:
            refused = type(error)(error.message, path=str(error.filename or directory))
            log.warning("%s is left out: %s", directory, error)
    raise refused


__all__ = ["Staged", "decide", "give_up", "parse_time", "stage"]
