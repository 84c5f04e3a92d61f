"""What an operator does about a lost store of mgmtd or meta, while the cluster is down."""

import asyncio
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from ..config import MetadataConfig
from ..errors import NotFound
from ..kv.checkpoint.catalog import Catalog
from ..kv.checkpoint.keeper import Member, Policy
from ..kv.checkpoint.remote import RemoteSource
from ..kv.log.etcd import EtcdLog
from ..kv.replica import PrimaryEngine
from ..kv.replica_service import ReplicaService
from ..kv.replicated import ReplicaSettings, checkpoints_of, open_replica
from ..kv.rocksdb import RocksEngine
from ..mgmtd.rebuild import CONFIG_GAP, missing, rebuild
from ..mgmtd.records import Change
from ..mgmtd.store import Store
from ..storage.marks import load
from ..tasks import first_end
from ..wire import Cluster
from ..wire.adoption import newest_copy
from ..wire.etcd import EtcdClient, EtcdOptions
from ..wire.pb.mgmtd_pb2 import ConfigVersion, Marks
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


async def rebuild_mgmtd(data: DataDir, cluster: Cluster) -> None:
    """Put the stores of mgmtd aside, and make another of what the storage nodes remember. No manager runs.

    Of several managers the first gets the store, and the others follow the new log. A process that is killed here is
    repeated. Raises: NotFound; what etcd raises.
    """
    change, term = rebuild(_marks(data))
    change = replace(change, configs=_config(data))
    options = cluster.metadata_options()
    if options is not None:  # first: without its log a store that is left follows no log
        async with EtcdClient(options) as client:
            await EtcdLog.remove(client, prefix=cluster.log_prefix("mgmtd"))
    for store in data.root.glob("mgmtd*"):
        if store.is_dir() and ".aside-" not in store.name:
            set_aside(store)
    if options is not None:
        await _rebuild_log(data.root / "mgmtd", cluster, options, change, term)
        return
    engine = RocksEngine(data.root / "mgmtd", create=True)
    try:
        await Store(engine, cluster_id=cluster.cluster_id).rebuild(change, term)
    finally:
        engine.close()


async def _rebuild_log(
    store: Path, cluster: Cluster, options: EtcdOptions, change: Change, term: int
) -> None:
    """Begin a log with `change`, as the first manager, whose store is at `store`."""
    lane, rpc = cluster.manager_addresses(1)
    stored = asyncio.Event()

    async def serve(engine: PrimaryEngine) -> None:
        await Store(engine, cluster_id=cluster.cluster_id).rebuild(change, term)
        stored.set()

    async with cluster.clients() as clients:
        settings = ReplicaSettings(
            options,
            prefix=cluster.log_prefix("mgmtd"),
            cluster_id=cluster.cluster_id,
            data=store,
            service=ReplicaService(Catalog(checkpoints_of(store))),
            owner=lane,
            member=Member("1", rpc),
            policy=Policy.of(MetadataConfig()),
            source=partial(RemoteSource, clients),
            create=True,
        )
        async with open_replica(settings) as replica:
            await first_end(replica.run(serve), stored.wait())


def set_aside_broken_meta(data: DataDir) -> None:
    """Put directories aside that RocksDB would not open, so that empty stores can be made in their place."""
    for store in (data.root / "meta", *data.root.glob("meta-*")):
        is_store = store.name.removeprefix("meta-").isdecimal() or store.name == "meta"
        if is_store and not (store / "CURRENT").exists():
            set_aside(store)


def set_aside(store: Path) -> Path | None:
    """Rename a store, if it is there, so that nothing of it is lost; return where it is then."""
    if not store.exists():
        return None
    return store.rename(store.with_name(f"{store.name}.aside-{time.time_ns()}"))


def _config(data: DataDir) -> tuple[ConfigVersion, ...]:
    """Return the settings of the cluster as its processes have them, if any were set."""
    newest = newest_copy(data.root)
    if not newest.version:
        return ()
    newest.version += CONFIG_GAP
    newest.unix_ms, newest.author = time.time_ns() // 1_000_000, "rebuild"
    return (newest,)


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


__all__ = ["META_QUESTION", "rebuild_mgmtd", "rebuild_question", "set_aside", "set_aside_broken_meta"]
