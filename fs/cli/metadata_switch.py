"""Put new stores of mgmtd and meta, and the cluster file that goes with them, in the places of the old ones.

A migration makes everything new beside the old, as NAME.new. `begin` writes migration.json: before it nothing has
changed, and after it `finish` completes the switch, however often it is killed. `up` calls it too.

    W1  nothing is removed that a service wrote: what was in a place is renamed to NAME.aside-TIME
    W2  cluster.json names the new stores only when they are in their places
    W3  logs in etcd change first, all in one transaction, and only if they end where they did: if a process has added
        to one since, the switch is given up, and nothing has changed
"""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, TypedDict

from ..errors import Busy, InvalidArgument, NotFound
from ..kv.checkpoint.catalog import RAW, sync_directory
from ..kv.log import Position
from ..kv.log.etcd import LogChange
from ..wire import read_private, write_private
from .datadir import DataDir, Shape, encode_shape
from .metadata_log import change_logs

NEW: Final = ".new"
ASIDE: Final = ".aside-"
FORMAT: Final = 2


def staged(data: DataDir, name: str) -> Path:
    """Return where what will be `name` is made."""
    return data.root / f"{name}{NEW}"


def clear(data: DataDir, names: Sequence[str]) -> None:
    """Remove what a migration left that ended before `begin`. It would hold the room of tables that are dropped."""
    for name in names:
        for path in (staged(data, name), data.root / f"{name}{NEW}{RAW}"):
            if path.exists():
                shutil.rmtree(path)


def begin(
    data: DataDir,
    shape: Shape,
    *,
    old: Sequence[str],
    new: Sequence[str],
    logs: Sequence[LogChange] = (),
    reason: str = "",
) -> str:
    """Decide on the switch: `old` go aside, `new`, which are staged and durable, take their places.

    `logs` change in the present etcd of the cluster, for `reason`. Return what is added to the names of the old ones.
    """
    suffix = f"{ASIDE}{time.time_ns()}"
    record: _Record = {
        "format": FORMAT,
        "suffix": suffix,
        "old": [name for name in old if (data.root / name).exists()],
        "new": list(new),
        "cluster": encode_shape(shape),
        "logs": [_encode_change(change) for change in logs],
        "reason": reason,
        "is_placed": False,
    }
    sync_directory(data.root)
    _write(data, record)
    return suffix


def finish(data: DataDir) -> bool:
    """Complete a switch that was begun; return whether there was one. No service runs meanwhile.

    Raises: InvalidArgument if migration.json is damaged; NotFound if a store was removed meanwhile; Busy if a log has
    grown meanwhile: then the switch is given up; and as `up` where an etcd does not answer.
    """
    return sum(1 for _ in steps(data)) > 0


def steps(data: DataDir) -> Iterator[None]:
    """Do what `finish` does; yield after each step, after which it may be begun again."""
    path = _plan(data)
    if not path.exists():
        return
    record = _read(path)
    if not record["is_placed"]:
        if record["logs"]:
            _change_logs(data, record)
            yield
        yield from _place(data, record)
        record["is_placed"] = True
        _write(data, record)
        yield
    if data.cluster.read_text() != record["cluster"]:
        write_private(data.cluster, record["cluster"])
        sync_directory(data.root)
        yield
    path.unlink()
    sync_directory(data.root)
    yield


def _change_logs(data: DataDir, record: "_Record") -> None:
    """Raises: Busy if another process has changed one (W3)."""
    changes = [_decode_change(change) for change in record["logs"]]
    try:
        change_logs(data, data.read_shape(), changes, reason=record["reason"])
    except Busy:
        _plan(data).unlink()
        sync_directory(data.root)
        clear(data, record["new"])
        raise


def _place(data: DataDir, record: "_Record") -> Iterator[None]:
    """Put the new stores in their places; yield after each step. Raises: NotFound."""
    for name in record["old"]:
        place, aside = data.root / name, data.root / f"{name}{record['suffix']}"
        if aside.exists() or not place.exists():
            continue
        if name in record["new"]:  # without both, what is here may be the old one or the new one
            _require(staged(data, name), aside)
        place.rename(aside)
        yield
    sync_directory(data.root)
    for name in record["new"]:
        _require(staged(data, name), data.root / name)
        if staged(data, name).exists():
            staged(data, name).rename(data.root / name)
            yield
    sync_directory(data.root)


def _require(*paths: Path) -> None:
    """Raises: NotFound if there is none of them."""
    if not any(path.exists() for path in paths):
        names = " and ".join(path.name for path in paths)
        raise NotFound(
            f"a migration or restore was interrupted, and {names} were removed: put one back",
            path=str(paths[0].parent),
        )


class _Record(TypedDict):
    """What migration.json says."""

    format: int
    suffix: str
    old: list[str]
    new: list[str]
    cluster: str
    logs: list["_Change"]
    reason: str
    is_placed: bool


class _Change(TypedDict):
    """A `LogChange`; positions as hexadecimal digits, empty for none."""

    prefix: str
    last: str
    begins: str


def _encode_change(change: LogChange) -> _Change:
    begins = "" if change.begins is None else change.begins.encode().hex()
    return {"prefix": change.prefix, "last": change.last.encode().hex(), "begins": begins}


def _decode_change(change: _Change) -> LogChange:
    begins = Position.decode(bytes.fromhex(change["begins"])) if change["begins"] else None
    return LogChange(change["prefix"], Position.decode(bytes.fromhex(change["last"])), begins)


def _write(data: DataDir, record: _Record) -> None:
    write_private(_plan(data), json.dumps(record, indent=1) + "\n")
    sync_directory(data.root)


def _read(path: Path) -> _Record:
    try:
        record: _Record = json.loads(read_private(path))
        known = record["format"] == FORMAT and record.keys() == _Record.__annotations__.keys()
    except (ValueError, KeyError, TypeError, AttributeError):
        known = False
    if not known:
        raise InvalidArgument("damaged, or written by another release: nothing is changed", path=str(path))
    return record


def _plan(data: DataDir) -> Path:
    return data.root / "migration.json"


__all__ = ["ASIDE", "begin", "clear", "finish", "staged", "steps"]
