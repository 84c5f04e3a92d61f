"""The life of one storage process: open, join, serve, leave."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from luciola_core import StorageNode

from .. import __version__
from ..clock import SystemClock
from ..config import ClusterConfig, rdma_options
from ..errors import Error
from ..ids import NodeId, new_incarnation
from ..metrics import Exposition, RequestMeter, exposed
from ..wire import (
    NO_AUDIT,
    AuditLog,
    Authority,
    Cluster,
    RpcClients,
    RpcServer,
    follow_routing,
    format_address,
    methods,
    require_loopback,
)
from ..wire.addresses import second_port
from ..wire.adoption import AdoptedConfig
from ..wire.pb.mgmtd_pb2 import NODE_STORAGE, Labels, Node, Routing
from ..wire.tls import Tls
from . import slow_ops
from .directory import Directory, boot_id
from .disk_watch import DiskWatch
from .engine import Engine
from .leftovers import Leftovers
from .membership import Membership, Options
from .metrics import StorageMetrics
from .quarantine import Quarantine
from .recovery import Recovery
from .scrub import Scrub
from .service import StorageService

log = logging.getLogger(__name__)

CERTIFICATE_LOOK_S: Final = 1.0  # as often as clients look
LAST_SYNC_S: Final = 5.0  # half of what a supervisor waits for the end
FIRST_ROUTING_S: Final = 1.0  # heartbeats begin after routing is known, or after this long


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line says."""

    node: NodeId
    data: Path
    cluster: Cluster
    adopted: AdoptedConfig
    host: str = "127.0.0.1"
    port: int = 0  # of the data plane; gRPC has the next one
    insecure: bool = False  # listen for other machines, though in clear text
    labels: Mapping[str, str] = field(default_factory=dict)  # instead of those of the configuration
    audit: AuditLog = NO_AUDIT

    @property
    def config(self) -> ClusterConfig:
        return self.adopted.config


async def serve(settings: Settings) -> None:
    """Run one storage node until SIGTERM or SIGINT.

    Raises: Busy, ConfigError, NotFound and other operating errors of the start; afterwards only mistakes.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with settings.cluster.clients() as clients:
        await settings.adopted.refresh(clients, settings.cluster.mgmtd_grpc)
    protected = bool(settings.cluster.tls_directory) and settings.config.storage.wire != "none"
    require_loopback(settings.host, protected=protected, insecure=settings.insecure)
    directory = Directory(settings.data, node=settings.node, cluster_id=settings.cluster.cluster_id)
    try:
        await _serve(settings, directory, stop)
    finally:
        directory.close()


async def _serve(settings: Settings, directory: Directory, stop: asyncio.Event) -> None:
    config, adopted, mgmtd = settings.config.storage, settings.adopted, settings.cluster.mgmtd_grpc
    tls = settings.cluster.tls()
    engine = _open(settings, directory, tls)
    clients = settings.cluster.clients()
    about = _about(settings, engine, directory)
    options = Options(mgmtd, settings.config.mgmtd.lease_drift_percent, adopted)
    membership = Membership(engine, directory, clients, about, options)
    recovery = Recovery(engine, clients, membership.table, node=settings.node, config=config)
    scrub = Scrub(engine, directory, membership.table, node=settings.node, config=config)
    quarantine = Quarantine(engine, directory.quarantine, config=config)
    leftovers = Leftovers(engine, membership.table, node=settings.node)
    adopted.on_change(partial(_configure, recovery, scrub, quarantine))
    service = StorageService(engine, membership, recovery, scrub, quarantine)
    authority = Authority.of_cluster(settings.cluster, waits=True)
    membership.on_revocations(authority.set_revocations)
    meter = RequestMeter()
    server = RpcServer(
        settings.audit.watched(meter.measured(methods.bind(methods.Storage, service))),
        secret=authority,
        tls=tls,
        audit=settings.audit,
    )
    metrics = StorageMetrics(engine.node, membership, recovery, scrub, quarantine)
    shown = Exposition("storage")
    shown.add("engine", metrics.engine_families)
    shown.add("work", metrics.work_families)
    shown.add("requests", meter.families)
    about.grpc_address = await server.start(settings.host, second_port(settings.port))
    membership.on_routing(recovery.routing_changed)
    membership.on_routing(leftovers.routing_changed)
    log.info("node %d serves: control %s, data %s", settings.node, about.grpc_address, about.data_address)
    try:
        reports = slow_ops.report(engine)
        probes = ThreadPoolExecutor(1, thread_name_prefix="probe")
        watch = DiskWatch(
            partial(probes.submit, directory.probe),
            engine.node.oldest_access_s,
            membership.disk_failed,
            clock=SystemClock(),
            limit_s=config.disk_timeout_ms / 1000,
        )
        background = [
            scrub.run(),
            leftovers.run(),
            quarantine.run(),
            reports,
            watch.run(),
            adopted.follow(clients, mgmtd),
            *([] if tls is None else [_renew_certificates(engine.node, tls)]),
        ]
        labels = {"kind": "storage", "id": str(settings.node)}
        async with exposed(settings.config.metrics, settings.data, shown, labels=labels):
            await _work(membership, clients, background, mgmtd, _synced(stop, engine))
    finally:  # serve nothing, report that, finish what is in progress
        log.info("node %d stops", settings.node)
        metrics.close()
        await recovery.stop()
        await engine.quick(engine.node.drop_lease)
        await membership.leave()
        await server.stop(grace_s=1.0)
        await clients.close()
        try:
            await engine.close()
        except Error as error:
            log.error("last sync failed: %s; the stop was not clean", error)  # noqa: TRY400
        else:
            directory.set_clean()
        log.info("node %d has stopped", settings.node)


def _open(settings: Settings, directory: Directory, tls: Tls | None) -> Engine:
    config = settings.config.storage
    return Engine(
        StorageNode(
            settings.node,
            directory.chunks,
            secret=settings.cluster.secret(),
            tcp=format_address(settings.host, settings.port),
            socket=directory.socket,
            threads_max=config.threads_max,
            reserve_bytes=config.reserve_bytes,
            durability=config.durability,
            index_cache_bytes=config.index_cache_bytes,
            identity=directory.engine_identity,
            create=directory.may_create_engine,
            **rdma_options(config),
            certificates=None if tls is None else tls.current().native(),
            wire=config.wire,
        )
    )


async def _renew_certificates(node: StorageNode, tls: Tls) -> None:
    """Give the data plane what gRPC reads for each connection."""
    used = tls.current()
    while True:
        await asyncio.sleep(CERTIFICATE_LOOK_S)
        try:
            if (material := tls.current()) != used:
                node.set_certificates(material.native())
                used = material
        except (Error, OSError) as error:
            log.warning("renewed certificate: cannot be used, %s; the last one stays", error)


def _configure(recovery: Recovery, scrub: Scrub, quarantine: Quarantine, config: ClusterConfig) -> None:
    """Use the hot keys of `config` from now on."""
    recovery.config = scrub.config = quarantine.config = config.storage


async def _synced(stop: asyncio.Event, engine: Engine) -> None:
    """Return after `stop`, when what was acknowledged by then is on the disk: the shutdown notice reports that.

    Clients are served meanwhile; a disk that hangs does not keep the process.
    """
    await stop.wait()
    syncing = asyncio.ensure_future(engine.run(engine.node.sync))
    await asyncio.wait({syncing}, timeout=LAST_SYNC_S)
    if syncing.done() and (error := syncing.exception()) is not None:
        log.warning("sync before the stop failed: %s", error)


async def _work(
    membership: Membership,
    clients: RpcClients,
    others: Sequence[Coroutine[object, None, None]],
    mgmtd: str,
    stopped: Coroutine[object, None, None],
) -> None:
    """Run all background loops until `stopped` ends; an error in one of them ends them all."""
    received = asyncio.Event()

    def changed(routing: Routing) -> None:
        membership.routing_changed(routing)
        received.set()

    async def beat() -> None:
        try:
            async with asyncio.timeout(FIRST_ROUTING_S):
                await received.wait()
        except TimeoutError:
            log.warning("no routing from mgmtd yet; waiting")
        await membership.run()

    endless: list[Coroutine[object, None, None]] = [
        follow_routing(clients, mgmtd, membership.table, changed, admit=membership.admit),
        beat(),
        *others,
    ]
    tasks = [asyncio.create_task(work) for work in endless]
    stopping = asyncio.create_task(stopped)
    done, _ = await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
    for task in (*tasks, stopping):
        task.cancel()
    await asyncio.gather(*tasks, stopping, return_exceptions=True)
    for task in done:
        task.result()


def _about(settings: Settings, engine: Engine, directory: Directory) -> Node:
    config = settings.config.storage
    labels = {"room": config.room, "rack": config.rack, "host": config.host, **settings.labels}
    return Node(
        id=settings.node,
        kind=NODE_STORAGE,
        host=socket.gethostname(),
        pid=os.getpid(),
        incarnation=new_incarnation(),
        data_address=engine.node.tcp_address(),
        data_socket=str(directory.socket or ""),
        boot_id=boot_id(),
        release=__version__,
        labels=Labels(**labels) if any(labels.values()) else None,
    )


__all__ = ["Settings", "serve"]
