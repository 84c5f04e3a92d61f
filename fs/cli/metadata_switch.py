"""Put new stores of mgmtd and meta, and the cluster file that goes with them, in the places of the old ones.

A migration makes everything new beside the old, as NAME.new. `begin` writes migration.json: before it nothing has
changed, and after it `finish` completes the switch, however often it is killed. `up` calls it too.

    W1  nothing is removed that a service wrote: what was in a place is renamed to NAME.aside-TIME
    W2  cluster.json names the new stores only when they are in their places
"""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, TypedDict

from ..errors import InvalidArgument
from ..kv.checkpoint.catalog import sync_directory
from ..wire import write_private
from .datadir import DataDir, Shape, encode_shape

NEW: Final = ".new"
ASIDE: Final = ".aside-"
FORMAT: Final = 1


def staged(data: DataDir, name: str) -> Path:
    """Return where what will be `name` is made."""
    return data.root / f"{name}{NEW}"


def clear(data: DataDir, names: Sequence[str]) -> None:
    """Remove what a migration left that was killed before `begin`."""
    for name in names:
        for path in data.root.glob(f"{name}{NEW}*"):
            shutil.rmtree(path)


def begin(data: DataDir, shape: Shape, *, old: Sequence[str], new: Sequence[str]) -> str:
    """Decide on the switch: `old` go aside, `new`, which are staged and durable, take their places.

    Return what is added to the names of the old ones.
    """
    suffix = f"{ASIDE}{time.time_ns()}"
    record: _Record = {
        "format": FORMAT,
        "suffix": suffix,
        "old": [name for name in old if (data.root / name).exists()],
        "new": list(new),
        "cluster": encode_shape(shape),
    }
    sync_directory(data.root)
    write_private(_plan(data), json.dumps(record, indent=1) + "\n")
    sync_directory(data.root)
    return suffix


def finish(data: DataDir) -> bool:
    """Complete a switch that was begun; return whether there was one. No service runs meanwhile.

    Raises: InvalidArgument if migration.json is damaged.
    """
    return sum(1 for _ in steps(data)) > 0


def steps(data: DataDir) -> Iterator[None]:
    """Do what `finish` does; yield after each step, after which it may be begun again."""
    path = _plan(data)
    if not path.exists():
        return
    record = _read(path)
    for name in record["old"]:
        aside = data.root / f"{name}{record['suffix']}"
        if not aside.exists():  # else what is there now is new
            (data.root / name).rename(aside)
            yield
    for name in record["new"]:
        if staged(data, name).exists():
            staged(data, name).rename(data.root / name)
            yield
    sync_directory(data.root)
    if data.cluster.read_text() != record["cluster"]:
        write_private(data.cluster, record["cluster"])
        yield
    sync_directory(data.root)
    path.unlink()
    sync_directory(data.root)
    yield


class _Record(TypedDict):
    """What migration.json says."""

    format: int
    suffix: str
    old: list[str]
    new: list[str]
    cluster: str


def _read(path: Path) -> _Record:
    try:
        record: _Record = json.loads(path.read_text())
        known = record["format"] == FORMAT and record.keys() == _Record.__annotations__.keys()
    except (ValueError, KeyError, TypeError, AttributeError):
        known = False
    if not known:
        raise InvalidArgument("damaged, or written by another release: nothing is changed", path=str(path))
    return record


def _plan(data: DataDir) -> Path:
    return data.root / "migration.json"


__all__ = ["ASIDE", "begin", "clear", "finish", "staged", "steps"]
