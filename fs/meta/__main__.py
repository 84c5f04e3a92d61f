"""The process: `python -m luciola.meta --data DIR --config FILE --cluster FILE [--node-id N] [--create]`.

Its store is its own, or, if the cluster file names an etcd, one of several that follow a log there (terms.py).
"""

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import uvloop

from .. import __version__
from ..clock import Clock, SystemClock
from ..config import ClusterConfig
from ..descriptors import raise_limit
from ..errors import ConfigError, CorruptData, Error, Unavailable
from ..ids import EMBEDDED_EPOCH, META_NODE, STANDBY_EPOCH, new_incarnation
from ..kv.checkpoint.catalog import Catalog
from ..kv.checkpoint.keeper import Member, Policy
from ..kv.checkpoint.remote import RemoteSource
from ..kv.metrics import engine_families
from ..kv.replica_service import ReplicaService
from ..kv.replicated import ReplicaSettings, checkpoints_of, run_replica
from ..kv.rocksdb import RocksEngine
from ..logfile import rotate_output
from ..metrics import Exposition, RequestMeter, exposed
from ..settings import META
from ..tasks import first_end
from ..wire import (
    AuditLog,
    Authority,
    LaneServer,
    RpcClients,
    RpcServer,
    Tls,
    load_cluster,
    methods,
    require_loopback,
)
from ..wire import Cluster as ClusterFile
from ..wire.addresses import port_argument, second_port
from ..wire.adoption import AdoptedConfig
from ..wire.current_service import CurrentService
from ..wire.pb.mgmtd_pb2 import NODE_META
from . import moments, schema
from .admission import admit_store, mark_of
from .background import collect, configure, resume_truncations
from .bootstrap import build
from .cluster import Addresses, Cluster, RoutingTable, describe
from .committed_replies import committed
from .control import GrpcControl
from .layout import Placer
from .metrics import meta_families
from .terms import Settings, Terms, standby

log: Final = logging.getLogger("luciola.meta")

GUARD_INTERVAL_S: Final = 0.1


async def guard_store(engine: RocksEngine, clock: Clock) -> None:
    """Return never. Raises: Unavailable when a write of the store has failed.

    What was written since the last sync may be lost, and reads would show it: only opening the store again shows which.
    """
    while engine.failure is None:
        await clock.sleep(GUARD_INTERVAL_S)
    raise Unavailable(
        f"the store has failed, and has to be opened again: {engine.failure}"
    ) from engine.failure


async def serve(arguments: argparse.Namespace) -> None:
    """Run the service until SIGTERM or SIGINT."""
    adopted = AdoptedConfig(META, arguments.config, arguments.data)
    cluster_file = load_cluster(arguments.cluster)
    protected = bool(cluster_file.tls_directory)
    require_loopback(arguments.listen, protected=protected, insecure=arguments.insecure)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    run = serve_alone if cluster_file.metadata is None else serve_in_turn
    shown = Exposition("meta")
    labels = {"kind": "meta", "id": str(arguments.node_id)}
    async with cluster_file.clients() as clients:
        await adopted.refresh(clients, cluster_file.mgmtd_grpc)
        async with exposed(adopted.config.metrics, arguments.data, shown, labels=labels):
            await run(arguments, adopted, cluster_file, clients, shown, stop)
    log.info("meta %d has stopped", arguments.node_id)


async def serve_alone(  # noqa: PLR0913, it puts these together
    arguments: argparse.Namespace,
    adopted: AdoptedConfig,
    cluster_file: ClusterFile,
    clients: RpcClients,
    shown: Exposition,
    stop: asyncio.Event,
) -> None:
    """Serve a store that no other process has."""
    config = adopted.config
    clock = SystemClock()
    engine = RocksEngine(
        arguments.data,
        create=arguments.create or arguments.accept_loss,
        sync_interval_s=config.meta.sync_interval_ms / 1000,
        cached=schema.INODES,
        cache_bytes=config.meta.cache_bytes,
    )
    try:
        cluster = Cluster(clients, cluster_file.mgmtd_grpc, clock)

        def position() -> int:
            return engine.synced_position

        admitted = asyncio.ensure_future(
            admit_store(
                engine,
                position,
                cluster,
                cluster_id=cluster_file.cluster_id,
                clock=clock,
                create=arguments.create,
                accept_loss=arguments.accept_loss,
            )
        )
        await first_end(asyncio.wait((admitted,)), stop.wait())
        if not admitted.done():
            admitted.cancel()
            return
        superblock = admitted.result()
        placer = Placer(config.meta)
        service, collector, dependencies = await build(
            engine,
            GrpcControl(clients, cluster, clock),
            cluster,
            config=config.meta,
            clock=clock,
            cluster_id=cluster_file.cluster_id,
            session_timeout_s=config.mgmtd.client_session_timeout_ms / 1000,
            placer=placer,
            create=False,
        )
        adopted.on_change(lambda now: configure(collector, dependencies, now.meta))
        configure(collector, dependencies, adopted.config.meta)
        mark = partial(mark_of, superblock, position)
        authority = Authority.of_cluster(cluster_file, waits=True)
        shown.add("store", partial(engine_families, engine))
        shown.add("service", partial(meta_families, service))
        async with listening(
            arguments, authority, committed(service, engine), shown, tls=cluster_file.tls()
        ) as addresses:
            node = describe(
                NODE_META,
                number=arguments.node_id,
                incarnation=dependencies.incarnation,
                addresses=addresses,
                release=__version__,
                epoch=EMBEDDED_EPOCH,
            )
            await first_end(
                stop.wait(),
                cluster.watch(partial(follow, placer), authority),
                cluster.beat(node, mark, adopted),
                adopted.follow(clients, cluster_file.mgmtd_grpc),
                collect(collector, dependencies, clock),
                resume_truncations(dependencies, clock),
                guard_store(engine, clock),
            )
        await engine.sync()
        await cluster.leave(node, mark())
    finally:
        engine.close()


async def serve_in_turn(  # noqa: PLR0913, it puts these together
    arguments: argparse.Namespace,
    adopted: AdoptedConfig,
    cluster_file: ClusterFile,
    clients: RpcClients,
    shown: Exposition,
    stop: asyncio.Event,
) -> None:
    """Follow the log of the store, which other processes follow too, and serve it in the terms of this one."""
    config = adopted.config
    clock = SystemClock()
    cluster = Cluster(clients, cluster_file.mgmtd_grpc, clock)
    placer = Placer(config.meta)
    current = CurrentService(methods.Meta, standby)
    replicas = ReplicaService(Catalog(checkpoints_of(arguments.data)))
    given = methods.bind(methods.Replicas, replicas)
    authority = Authority.of_cluster(cluster_file, waits=True)
    async with listening(arguments, authority, current, shown, given, tls=cluster_file.tls()) as addresses:
        node = describe(
            NODE_META,
            number=arguments.node_id,
            incarnation=new_incarnation(),
            addresses=addresses,
            release=__version__,
            epoch=STANDBY_EPOCH,
        )
        terms = Terms(
            Settings(
                config,
                cluster_file.cluster_id,
                placer,
                control=lambda until_s: GrpcControl(clients, cluster, clock, leased_until_s=until_s),
                create=arguments.create,
            ),
            current,
            cluster,
            node,
            clock,
            accept_loss=arguments.accept_loss,
        )
        shown.add("store", replicas.families)
        adopted.on_change(terms.configure)
        shown.add("service", lambda: meta_families(terms.service))
        await first_end(
            stop.wait(),
            cluster.watch(partial(follow, placer), authority),
            cluster.beat(node, terms.mark, adopted),
            adopted.follow(clients, cluster_file.mgmtd_grpc),
            run_replica(
                replica_settings(arguments, config, cluster_file, addresses, replicas, clients), terms.serve
            ),
        )
        await cluster.leave(node, None)


def replica_settings(  # noqa: PLR0913, it puts these together
    arguments: argparse.Namespace,
    config: ClusterConfig,
    cluster_file: ClusterFile,
    addresses: Addresses,
    replicas: ReplicaService,
    clients: RpcClients,
) -> ReplicaSettings:
    """Return how the store is kept equal to its log."""
    options = cluster_file.metadata_options()
    assert options is not None, "a store with several copies has a log"
    return ReplicaSettings(
        options,
        prefix=cluster_file.log_prefix("meta"),
        cluster_id=cluster_file.cluster_id,
        data=arguments.data,
        service=replicas,
        owner=addresses.lane,
        member=Member(str(arguments.node_id), addresses.rpc),
        policy=Policy.of(config.metadata),
        source=partial(RemoteSource, clients),
        create=arguments.create or arguments.accept_loss,
        cached=schema.INODES,
        cache_bytes=config.meta.cache_bytes,
        history_s=config.metadata.history_s,
        moment_key=moments.KEY,
    )


def follow(placer: Placer, routing: RoutingTable) -> None:
    """Place new files by the chain tables that there are now."""
    placer.set_tables(routing.tables.values())


@asynccontextmanager
async def listening(  # noqa: PLR0913, it puts these together
    arguments: argparse.Namespace,
    authority: Authority,
    service: object,
    shown: Exposition,
    more: Sequence[methods.Bound] = (),
    *,
    tls: Tls | None,
) -> AsyncIterator[Addresses]:
    """Answer requests inside the block: none is answered from a store that is closed. `more`: over gRPC."""
    meter = RequestMeter()
    shown.add("requests", meter.families)
    audit = AuditLog(arguments.audit, f"meta-{arguments.node_id}")
    bound = audit.watched(meter.measured(methods.bind(methods.Meta, service)))
    lane = LaneServer(bound, secret=authority, tls=tls, audit=audit)
    rpc = RpcServer((*bound, *audit.watched(more)), secret=authority, tls=tls, audit=audit)
    try:
        addresses = Addresses(
            lane=await lane.start(arguments.listen, arguments.port),
            rpc=await rpc.start(arguments.listen, second_port(arguments.port)),
        )
        log.info("meta %d listens: lane %s, gRPC %s", arguments.node_id, addresses.lane, addresses.rpc)
        yield addresses
    finally:
        await lane.stop()
        await rpc.stop()


def remedy(data: Path) -> str:
    """Return what an operator can do about a store that is missing, damaged or older than the cluster."""
    return (
        f"stop the cluster and put back the newest copy of {data.absolute()}, or accept that everything newer is lost: "
        f"`luciola up --data {data.absolute().parent} --accept-metadata-loss`"
    )


def main() -> int:
    """Parse the command line and run.

    The exit code is 0 after a clean stop, EX_CONFIG (78) where an operator has to act before another start.
    """
    parser = argparse.ArgumentParser(prog="python -m luciola.meta", description="The metadata service.")
    parser.add_argument("--data", type=Path, required=True, help="directory of the key-value store")
    parser.add_argument("--config", type=Path, help="TOML file; defaults without it")
    parser.add_argument("--cluster", type=Path, required=True, help="the cluster file")
    parser.add_argument(
        "--node-id", type=int, default=META_NODE, help=f"number of this node (default {META_NODE})"
    )
    parser.add_argument("--create", action="store_true", help="create the store of a new cluster")
    parser.add_argument("--listen", default="127.0.0.1", metavar="HOST", help="where to listen (%(default)s)")
    parser.add_argument(
        "--port",
        type=port_argument,
        default=0,
        help="the lane's; the next one is gRPC's (%(default)s: free ones)",
    )
    parser.add_argument(
        "--insecure", action="store_true", help="listen for other machines, though in clear text"
    )
    parser.add_argument("--rotate-log", action="store_true", help="keep the file on standard error short")
    parser.add_argument("--audit", type=Path, metavar="DIR", help="write down there who changed the cluster")
    parser.add_argument(
        "--accept-loss",
        action="store_true",
        help="serve a store that is older than the cluster, or an empty one",
    )
    arguments = parser.parse_args()
    if arguments.rotate_log:
        rotate_output()
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    raise_limit()
    try:
        uvloop.run(serve(arguments))
    except CorruptData as error:
        log.critical("%s; %s", error, remedy(arguments.data))
        return os.EX_CONFIG
    except ConfigError as error:
        log.critical("%s", f"{error}; {remedy(arguments.data)}" if "older" in error.fields else error)
        return os.EX_CONFIG
    except Error as error:
        log.critical("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
