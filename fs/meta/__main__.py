"""The process: `python -m luciola.meta --data DIR --config FILE --cluster FILE [--node-id N] [--create]`."""

import argparse
import asyncio
import logging
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Final

import uvloop

from .. import __version__
from ..clock import Clock, SystemClock
from ..config import ClusterConfig, load
from ..errors import ConfigError, CorruptData, Error, Unavailable
from ..kv.rocksdb import RocksEngine
from ..logfile import rotate_output
from ..wire import SERVICE, LaneServer, RpcClients, RpcServer, load_cluster, methods, mint
from ..wire.pb.mgmtd_pb2 import NODE_META, StoreMark
from . import schema
from .bootstrap import build, format_store, raise_generation
from .cluster import Cluster, RoutingTable, describe
from .collector import Collector
from .committed_replies import committed
from .control import GrpcControl
from .dependencies import Dependencies
from .layout import Placer

log: Final = logging.getLogger("luciola.meta")

NODE_ID: Final = 100
GUARD_INTERVAL_S: Final = 0.1


async def collect(collector: Collector, dependencies: Dependencies, clock: Clock) -> None:
    """Remove garbage in the background; return never."""
    interval_s = dependencies.config.gc_interval_ms / 1000
    await dependencies.inode_counter.count_all(dependencies.engine)
    while True:
        try:
            while await collect_once(collector, dependencies):
                await clock.sleep(0.001)
        except Exception:  # the top of a task: a defect here must not take the namespace down
            log.exception("garbage collection round failed")
        await clock.sleep(interval_s)


async def collect_once(collector: Collector, dependencies: Dependencies) -> int:
    """Run a round of the collector, unless the namespace is being loaded; return how much was done."""
    async with dependencies.load.lock:
        return 0 if dependencies.load.is_active else await collector.round()


async def resume_truncations(dependencies: Dependencies, clock: Clock) -> None:
    """Complete interrupted truncations, apart from collection: each waits for its chains. Return never."""
    while True:
        try:
            await dependencies.truncations.resume()
        except Exception:  # the top of a task: a defect here must not take the namespace down
            log.exception("resuming truncations failed")
        await clock.sleep(dependencies.config.gc_interval_ms / 1000)


async def guard_store(engine: RocksEngine, clock: Clock) -> None:
    """Return never. Raises: Unavailable when a write of the store has failed.

    What was written since the last sync may be lost, and reads would show it: only opening the store again shows which.
    """
    while engine.failure is None:
        await clock.sleep(GUARD_INTERVAL_S)
    raise Unavailable(
        f"the store has failed, and has to be opened again: {engine.failure}"
    ) from engine.failure


async def admit_store(
    engine: RocksEngine, cluster: Cluster, cluster_id: str, clock: Clock, arguments: argparse.Namespace
) -> schema.Superblock:
    """Return the superblock of the store, once mgmtd has compared it with what the cluster has seen.

    Raises: ConfigError if it is older, unless the operator accepts that; CorruptData if it is empty.
    """
    create = arguments.create or arguments.accept_loss
    owner = os.geteuid(), os.getegid()  # the user who runs `luciola up` can write into a new cluster
    superblock = await format_store(engine, cluster_id=cluster_id, clock=clock, create=create, owner=owner)
    if arguments.accept_loss:
        known = superblock.generation
        try:
            await cluster.check_store(mark_of(engine, superblock))
        except ConfigError as error:
            if "generation" not in error.fields:
                raise
            known = max(known, int(error.fields["generation"]))
            log.warning("%s; accepted by the operator", error)
        superblock = await raise_generation(engine, known + 1, clock=clock)
    await cluster.check_store(mark_of(engine, superblock))
    return superblock


def mark_of(engine: RocksEngine, superblock: schema.Superblock) -> StoreMark:
    """Return how far the store has come, as far as it survives power loss."""
    return StoreMark(
        store=superblock.store, generation=superblock.generation, position=engine.synced_position
    )


async def serve(arguments: argparse.Namespace) -> None:
    """Run the service until SIGTERM or SIGINT."""
    config = ClusterConfig() if arguments.config is None else load(arguments.config)
    cluster_file = load_cluster(arguments.cluster)
    secret = cluster_file.secret()
    clock = SystemClock()
    engine = RocksEngine(
        arguments.data,
        create=arguments.create or arguments.accept_loss,
        sync_interval_s=config.meta.sync_interval_ms / 1000,
        cached=schema.INODES,
    )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        async with RpcClients(mint(secret, role=SERVICE)) as clients:
            cluster = Cluster(clients, cluster_file.mgmtd_grpc, clock)
            admitted = asyncio.ensure_future(
                admit_store(engine, cluster, cluster_file.cluster_id, clock, arguments)
            )
            stopped = asyncio.ensure_future(stop.wait())
            await asyncio.wait((admitted, stopped), return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
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
            bound = methods.bind(methods.Meta, committed(service, engine))
            lane, rpc = LaneServer(bound, secret=secret), RpcServer(bound, secret=secret)
            lane_address = await lane.start(arguments.listen)
            rpc_address = await rpc.start(arguments.listen)
            node = describe(
                NODE_META,
                number=arguments.node_id,
                incarnation=dependencies.incarnation,
                rpc=rpc_address,
                lane=lane_address,
                release=__version__,
            )

            def routed(routing: RoutingTable) -> None:
                placer.set_tables(routing.tables.values())

            tasks = [
                asyncio.create_task(cluster.watch(routed), name="routing"),
                asyncio.create_task(
                    cluster.beat(node, partial(mark_of, engine, superblock)), name="heartbeat"
                ),
                asyncio.create_task(collect(collector, dependencies, clock), name="collector"),
                asyncio.create_task(resume_truncations(dependencies, clock), name="truncations"),
                asyncio.create_task(guard_store(engine, clock), name="store"),
            ]
            log.info("meta %d serves: lane %s, gRPC %s", arguments.node_id, lane_address, rpc_address)
            try:
                await _until(stop, tasks)
            finally:  # no request is answered from a store that is closed
                await lane.stop()
                await rpc.stop()
            await engine.sync()
            await cluster.leave(node, mark_of(engine, superblock))
    finally:
        engine.close()
    log.info("meta %d has stopped", arguments.node_id)


async def _until(stop: asyncio.Event, tasks: list[asyncio.Task[None]]) -> None:
    """Wait for the end; a task that ends before is a defect and ends the process with it."""
    stopped = asyncio.create_task(stop.wait(), name="stop")
    try:
        done, _ = await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if task is not stopped:
                task.result()
    finally:
        for task in (stopped, *tasks):
            task.cancel()
        await asyncio.gather(stopped, *tasks, return_exceptions=True)


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
        "--node-id", type=int, default=NODE_ID, help=f"number of this node (default {NODE_ID})"
    )
    parser.add_argument("--create", action="store_true", help="create the store of a new cluster")
    parser.add_argument("--listen", default="127.0.0.1", metavar="HOST", help="where to listen (%(default)s)")
    parser.add_argument("--rotate-log", action="store_true", help="keep the file on standard error short")
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
