"""What an operator does about a lost store of mgmtd or meta, while the cluster is down."""

import asyncio
import time
from pathlib import Path
from typing import Final

from ..errors import NotFound
from ..kv.rocksdb import RocksEngine
from ..mgmtd.rebuild import missing, rebuild
from ..mgmtd.store import Store
from ..storage.marks import load
from ..wire.pb.mgmtd_pb2 import Marks
from .datadir import DataDir

META_QUESTION: Final = (
    "Files and directories that only a newer metadata store knew are lost, and so is what was written to them since. "
    "Accept that?"
)


def rebuild_question(data: DataDir) -> str:
    """Return what rebuilding mgmtd's store may lose. Raises: NotFound if there is nothing to rebuild it of."""
    marks = _marks(data)
    change, _ = rebuild(marks)
    gone = missing(change, marks)
    question = (
        f"mgmtd's store is made of what {len(marks)} storage nodes remember of {len(change.chains)} chains."
    )
    if gone:
        names = ", ".join(map(str, gone))
        question += f" Nothing is known of node {names}: what it alone had when it last served is lost."
    return f"{question} Nodes that were disabled are enabled. Rebuild it?"


def rebuild_mgmtd(data: DataDir, cluster_id: str) -> None:
    """Put the store of mgmtd aside, and make another of what the storage nodes remember. Raises: NotFound."""
    change, term = rebuild(_marks(data))
    store = data.root / "mgmtd"
    set_aside(store)
    engine = RocksEngine(store, create=True)
    try:
        asyncio.run(Store(engine, cluster_id=cluster_id).rebuild(change, term))
    finally:
        engine.close()


def set_aside_broken_meta(data: DataDir) -> None:
    """Put directories aside that RocksDB would not open, so that empty stores can be made in their place."""
    for store in (data.root / "meta", *data.root.glob("meta-*")):
        if not (store / "CURRENT").exists() and ".aside-" not in store.name:
            set_aside(store)


def set_aside(store: Path) -> None:
    """Rename a store, so that nothing of it is lost."""
    if store.exists():
        store.rename(store.with_name(f"{store.name}.aside-{time.time_ns()}"))


def _marks(data: DataDir) -> dict[int, Marks]:
    """Return what each storage node of this data directory remembers."""
    found = {}
    for directory in sorted(data.root.glob("storage-*")):
        number = directory.name.removeprefix("storage-")
        marks = load(directory) if number.isdecimal() else None
        if marks is not None:
            found[int(number)] = marks
    if not found:
        raise NotFound(
            "no storage directory has marks: there is nothing to rebuild mgmtd's store of",
            path=str(data.root),
        )
    return found


__all__ = ["META_QUESTION", "rebuild_mgmtd", "rebuild_question", "set_aside_broken_meta"]
