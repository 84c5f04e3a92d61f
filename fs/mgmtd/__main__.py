"""`python -m luciola.mgmtd`: the cluster manager, until SIGTERM.

Its store is its own, or, if the cluster file names an etcd, one of several that follow a log there (terms.py).
"""

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import uvloop

from .. import __version__
from ..clock import SystemClock
from ..descriptors import raise_limit
from ..errors import ConfigError, CorruptData, Error, NotFound
from ..ids import NodeId, new_incarnation
from ..kv.checkpoint.catalog import Catalog
from ..kv.checkpoint.keeper import Member, Policy
from ..kv.checkpoint.remote import RemoteSource
from ..kv.metrics import engine_families
from ..kv.replica_service import ReplicaService
from ..kv.replicated import ReplicaSettings, checkpoints_of, run_replica
from ..kv.rocksdb import RocksEngine
from ..logfile import rotate_output
from ..metrics import Exposition, Family, RequestMeter, exposed
from ..settings import MGMTD
from ..tasks import first_end
from ..wire import (
    AuditLog,
    Authority,
    Cluster,
    LaneServer,
    RpcServer,
    load_cluster,
    methods,
    parse_address,
    parse_addresses,
    require_loopback,
)
from ..wire.adoption import AdoptedConfig
from ..wire.pb import mgmtd_pb2 as pb
from .certificates import Certificates
from .metrics import manager_families
from .records import NodeRecord
from .service import Service, Settings
from .store import Store
from .terms import Terms

log = logging.getLogger("luciola.mgmtd")


def main(arguments: list[str] | None = None) -> int:
    """Run the manager; the exit code: EX_CONFIG (78) where an operator has to act before another start."""
    parser = argparse.ArgumentParser(
        prog="python -m luciola.mgmtd",
        description="The manager of a Luciola cluster. `luciola up` starts it.",
        epilog="example: python -m luciola.mgmtd --data /data/mgmtd --cluster /data/cluster.json",
    )
    parser.add_argument("--data", type=Path, required=True, help="directory that holds what it knows")
    parser.add_argument(
        "--cluster", type=Path, required=True, help="the cluster file, with its two addresses"
    )
    parser.add_argument("--config", type=Path, help="TOML with what differs from the defaults")
    parser.add_argument("--node-id", type=int, default=1, help="number of this node (%(default)s)")
    parser.add_argument("--create", action="store_true", help="create the store of a new cluster")
    parser.add_argument(
        "--insecure", action="store_true", help="listen for other machines, though in clear text"
    )
    parser.add_argument("--rotate-log", action="store_true", help="keep the file on standard error short")
    parser.add_argument("--audit", type=Path, metavar="DIR", help="write down there who changed the cluster")
    options = parser.parse_args(arguments)
    if options.rotate_log:
        rotate_output()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname).1s mgmtd %(message)s", stream=sys.stderr
    )
    raise_limit()
    several = False
    try:
        cluster = load_cluster(options.cluster)
        several = cluster.metadata is not None
        adopted = AdoptedConfig(MGMTD, options.config, options.data)
        for address in cluster.manager_addresses(options.node_id if several else 1):
            host, protected = parse_address(address)[0], bool(cluster.tls_directory)
            require_loopback(host, protected=protected, insecure=options.insecure)
        audit = AuditLog(options.audit, f"mgmtd-{options.node_id}")
        uvloop.run(
            serve(options.data, cluster, adopted, NodeId(options.node_id), audit, create=options.create)
        )
    except CorruptData as error:
        log.error("cannot run: %s; %s", error, remedy(options.data, several=several))  # noqa: TRY400 (an operating error needs no traceback)
        return os.EX_CONFIG
    except ConfigError as error:
        message = (
            f"{error}; {remedy(options.data, several=several)}" if "older" in error.fields else str(error)
        )
        log.error("cannot run: %s", message)  # noqa: TRY400 (an operating error needs no traceback)
        return os.EX_CONFIG
    except Error as error:
        log.error("cannot run: %s", error)  # noqa: TRY400 (an operating error needs no traceback)
        return 1
    return 0


def remedy(data: Path, *, several: bool) -> str:
    """Return what an operator can do about a store that is missing, damaged or older than the cluster."""
    command = f"`luciola up --data {data.absolute().parent} --rebuild-mgmtd`"
    if several:
        return (
            f"if another manager runs, move {data.absolute()} away and start this one, which follows the log; "
            f"else stop the cluster and rebuild the log from what the storage nodes remember: {command}"
        )
    return (
        f"stop the cluster and rebuild {data.absolute()} from what the storage nodes remember: {command} "
        "(a copy made before mgmtd last started is refused)"
    )


async def serve(  # noqa: PLR0913, what the command line says
    data: Path, cluster: Cluster, adopted: AdoptedConfig, node_id: NodeId, audit: AuditLog, *, create: bool
) -> None:
    """Manage the cluster until SIGTERM or SIGINT."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    settings = Settings(
        cluster_id=cluster.cluster_id,
        node=_node(cluster, node_id),
        adopted=adopted,
        sole=True,  # one process at a time has a RocksDB open, or leads a log
        authority=Authority.of_cluster(cluster),
        tls=cluster.tls(),
        certificates=Certificates.of_cluster(cluster),
        audit=audit,
    )
    shown = Exposition("mgmtd")
    async with exposed(adopted.config.metrics, data, shown, labels={"kind": "mgmtd", "id": str(node_id)}):
        if cluster.metadata is None:
            await serve_alone(data, cluster, adopted, settings, shown, stopping, create=create)
        else:
            await serve_in_turn(data, cluster, adopted, settings, shown, stopping, create=create)


async def serve_alone(  # noqa: PLR0913, it puts these together
    data: Path,
    cluster: Cluster,
    adopted: AdoptedConfig,
    settings: Settings,
    shown: Exposition,
    stopping: asyncio.Event,
    *,
    create: bool,
) -> None:
    """Manage the cluster with a store that no other process has."""
    if len(parse_addresses(cluster.mgmtd_lane)) > 1:
        raise ConfigError("several managers need a log that they share: the cluster file has no `metadata`")
    engine = RocksEngine(data, create=create)
    service = Service(Store(engine, cluster_id=cluster.cluster_id, create=create), settings)
    try:
        shown.add("store", partial(engine_families, engine))
        shown.add("service", partial(_families_of, lambda: service))
        async with listening(settings, service, shown):
            await first_end(stopping.wait(), service.run(), adopted.keep())
            log.info("stopping")
            service.release_waiting()
    finally:
        await service.finish_writes()
        await service.keep_engines()
        engine.close()


async def serve_in_turn(  # noqa: PLR0913, it puts these together
    data: Path,
    cluster: Cluster,
    adopted: AdoptedConfig,
    settings: Settings,
    shown: Exposition,
    stopping: asyncio.Event,
    *,
    create: bool,
) -> None:
    """Follow the log of the store, which other managers follow too, and manage in the terms of this one."""
    replicas = ReplicaService(Catalog(checkpoints_of(data)))
    terms = Terms(settings, replicas.engine, clock=SystemClock(), create=create)
    given = methods.bind(methods.Replicas, replicas)
    async with (
        cluster.clients() as clients,
        listening(settings, terms.current, shown, given),
    ):
        shown.add("store", replicas.families)
        shown.add("service", partial(_families_of, lambda: terms.service))
        options = cluster.metadata_options()
        assert options is not None, "a store with several copies has a log"
        replica = ReplicaSettings(
            options,
            prefix=cluster.log_prefix("mgmtd"),
            cluster_id=cluster.cluster_id,
            data=data,
            service=replicas,
            owner=settings.node.lane_address,
            member=Member(str(settings.node.id), settings.node.grpc_address),
            policy=Policy.of(adopted.config.metadata),
            source=partial(RemoteSource, clients),
            create=create,
        )
        await first_end(
            _stopped(stopping, terms),
            _follow(replica, terms),
            terms.report(clients, cluster.mgmtd_grpc),
            adopted.follow(clients, cluster.mgmtd_grpc),
        )
        await terms.finish()


async def _families_of(service: Callable[[], Service | None]) -> Sequence[Family]:
    return await manager_families(service(), now_s=SystemClock().monotonic())


async def _follow(replica: ReplicaSettings, terms: Terms) -> None:
    try:
        await run_replica(replica, terms.serve)
    except NotFound as error:
        raise CorruptData(f"the log of mgmtd is lost: {error}") from error


async def _stopped(stopping: asyncio.Event, terms: Terms) -> None:
    await stopping.wait()
    log.info("stopping")
    await terms.leave()


@asynccontextmanager
async def listening(
    settings: Settings,
    service: object,
    shown: Exposition,
    more: Sequence[methods.Bound] = (),
) -> AsyncIterator[None]:
    """Answer requests inside the block: none is answered from a store that is closed. `more`: over gRPC."""
    meter = RequestMeter()
    shown.add("requests", meter.families)
    node, authority, audit = settings.node, settings.authority, settings.audit
    bound = audit.watched(meter.measured(methods.bind(methods.Mgmtd, service)))
    lane = LaneServer(bound, secret=authority, tls=settings.tls, audit=audit)
    rpc = RpcServer((*bound, *audit.watched(more)), secret=authority, tls=settings.tls, audit=audit)
    try:
        await lane.start(*parse_address(node.lane_address))
        await rpc.start(*parse_address(node.grpc_address))
        log.info("listening on %s (lane) and %s (gRPC)", lane.address, rpc.address)
        yield
    finally:
        await asyncio.gather(lane.stop(grace_s=0.5), rpc.stop(grace_s=0.5))


def _node(cluster: Cluster, node_id: NodeId) -> NodeRecord:
    lane, rpc = cluster.manager_addresses(node_id if cluster.metadata is not None else 1)
    return NodeRecord(
        id=node_id,
        kind=pb.NODE_MGMTD,
        host=socket.gethostname(),
        pid=os.getpid(),
        incarnation=new_incarnation(),
        lane_address=lane,
        grpc_address=rpc,
        boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        release=__version__,
    )


if __name__ == "__main__":
    sys.exit(main())
