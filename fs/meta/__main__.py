"""The process: `python -m luciola.meta --data DIR --config FILE --cluster FILE [--node-id N] [--create]`."""

import argparse
import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Final

import uvloop

from .. import __version__
from ..clock import Clock, SystemClock
from ..config import ClusterConfig, load
from ..errors import ConfigError, CorruptData, Error
from ..kv.rocksdb import RocksEngine
from ..logfile import rotate_output
from ..wire import SERVICE, LaneServer, RpcClients, RpcServer, load_cluster, methods, mint
from ..wire.pb.mgmtd_pb2 import NODE_META
from . import schema
from .cluster import Cluster, RoutingTable, describe
from .collector import Collector
from .control import GrpcControl
from .execution import Parts
from .layout import Placer
from .parts import build

log: Final = logging.getLogger("luciola.meta")

NODE_ID: Final = 100


async def collect(collector: Collector, parts: Parts, clock: Clock) -> None:
    """The work that nobody waits for, for ever."""
    interval_s = parts.config.gc_interval_ms / 1000
    await parts.census.take(parts.engine)
    while True:
        try:
            await parts.truncations.resume()
            while await collector.round():
                await clock.sleep(0.001)
        except Exception:  # the top of a task: a defect here must not take the namespace down
            log.exception("a round of collection failed")
        await clock.sleep(interval_s)


async def serve(arguments: argparse.Namespace) -> None:
    """Runs the service until SIGTERM or SIGINT."""
    config = ClusterConfig() if arguments.config is None else load(arguments.config)
    cluster_file = load_cluster(arguments.cluster)
    secret = cluster_file.secret()
    clock = SystemClock()
    engine = RocksEngine(
        arguments.data,
        create=arguments.create,
        sync_interval_s=config.meta.sync_interval_ms / 1000,
        kept=schema.INODES,
    )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        async with RpcClients(mint(secret, role=SERVICE)) as clients:
            cluster = Cluster(clients, cluster_file.mgmtd_grpc, clock)
            placer = Placer(config.meta)
            service, collector, parts = await build(
                engine,
                GrpcControl(clients, cluster, clock),
                cluster,
                config=config.meta,
                clock=clock,
                cluster_id=cluster_file.cluster_id,
                session_timeout_s=config.mgmtd.client_session_timeout_ms / 1000,
                placer=placer,
                create=arguments.create,
            )
            bound = methods.bind(methods.Meta, service)
            lane, rpc = LaneServer(bound, secret=secret), RpcServer(bound, secret=secret)
            lane_address, rpc_address = await lane.start(), await rpc.start()
            node = describe(
                NODE_META,
                number=arguments.node_id,
                incarnation=parts.incarnation,
                rpc=rpc_address,
                lane=lane_address,
                release=__version__,
            )

            def routed(routing: RoutingTable) -> None:
                placer.set_tables(routing.tables.values())

            tasks = [
                asyncio.create_task(cluster.watch(routed), name="routing"),
                asyncio.create_task(cluster.beat(node), name="heartbeat"),
                asyncio.create_task(collect(collector, parts, clock), name="collector"),
            ]
            log.info("meta %d serves: lane %s, gRPC %s", arguments.node_id, lane_address, rpc_address)
            await _until(stop, tasks)
            await cluster.leave(node)
            await lane.stop()
            await rpc.stop()
    finally:
        engine.close()
    log.info("meta %d has stopped", arguments.node_id)


async def _until(stop: asyncio.Event, tasks: list[asyncio.Task[None]]) -> None:
    """Waits for the end; a task that ends before is a defect and ends the process with it."""
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
    parser.add_argument("--rotate-log", action="store_true", help="keep the file on standard error short")
    arguments = parser.parse_args()
    if arguments.rotate_log:
        rotate_output()
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    try:
        uvloop.run(serve(arguments))
    except CorruptData as error:
        log.critical(
            "%s; stop the cluster and put back the newest copy of %s", error, arguments.data.absolute()
        )
        return os.EX_CONFIG
    except ConfigError as error:
        log.critical("%s", error)
        return os.EX_CONFIG
    except Error as error:
        log.critical("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
