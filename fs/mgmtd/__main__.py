"""`python -m luciola.mgmtd`: the cluster manager, until SIGTERM."""

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from pathlib import Path

import uvloop

from .. import __version__
from ..config import ClusterConfig, MgmtdConfig, load
from ..errors import ConfigError, CorruptData, Error
from ..ids import NodeId, new_incarnation
from ..kv.rocksdb import RocksEngine
from ..logfile import rotate_output
from ..wire import Cluster, LaneServer, RpcServer, load_cluster, methods, parse_address
from ..wire.pb import mgmtd_pb2 as pb
from .records import NodeRecord
from .service import Service, Settings
from .store import Store

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
    parser.add_argument("--rotate-log", action="store_true", help="keep the file on standard error short")
    options = parser.parse_args(arguments)
    if options.rotate_log:
        rotate_output()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname).1s mgmtd %(message)s", stream=sys.stderr
    )
    try:
        cluster = load_cluster(options.cluster)
        config = ClusterConfig() if options.config is None else load(options.config)
        uvloop.run(serve(options.data, cluster, config.mgmtd, NodeId(options.node_id), create=options.create))
    except CorruptData as error:
        log.error("cannot run: %s; %s", error, remedy(options.data))  # noqa: TRY400 (an operating error needs no traceback)
        return os.EX_CONFIG
    except ConfigError as error:
        message = f"{error}; {remedy(options.data)}" if "older" in error.fields else str(error)
        log.error("cannot run: %s", message)  # noqa: TRY400 (an operating error needs no traceback)
        return os.EX_CONFIG
    except Error as error:
        log.error("cannot run: %s", error)  # noqa: TRY400 (an operating error needs no traceback)
        return 1
    return 0


def remedy(data: Path) -> str:
    """Return what an operator can do about a store that is missing, damaged or older than the cluster."""
    return (
        f"stop the cluster and rebuild {data.absolute()} from what the storage nodes remember: `luciola up --data "
        f"{data.absolute().parent} --rebuild-mgmtd` (a copy made before mgmtd last started is refused)"
    )


async def serve(data: Path, cluster: Cluster, config: MgmtdConfig, node_id: NodeId, *, create: bool) -> None:
    """Manage the cluster until SIGTERM or SIGINT."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    engine = RocksEngine(data, create=create)
    try:
        service = Service(
            Store(engine, cluster_id=cluster.cluster_id, create=create),
            Settings(
                cluster_id=cluster.cluster_id,
                node=_node(cluster, node_id),
                config=config,
                sole=True,  # one process at a time has a RocksDB open
            ),
        )
        await _serve(service, cluster, stopping)
    finally:
        engine.close()


async def _serve(service: Service, cluster: Cluster, stopping: asyncio.Event) -> None:
    bound = methods.bind(methods.Mgmtd, service)
    secret = cluster.secret()
    lane, rpc = LaneServer(bound, secret=secret), RpcServer(bound, secret=secret)
    running = asyncio.ensure_future(service.run())
    stop = asyncio.ensure_future(stopping.wait())
    try:
        await lane.start(*parse_address(cluster.mgmtd_lane))
        await rpc.start(*parse_address(cluster.mgmtd_grpc))
        log.info("listening on %s (lane) and %s (gRPC)", lane.address, rpc.address)
        await asyncio.wait((running, stop), return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
    finally:
        log.info("stopping")
        running.cancel()
        stop.cancel()
        await asyncio.gather(lane.stop(grace_s=0.5), rpc.stop(grace_s=0.5))
        await asyncio.gather(running, stop, return_exceptions=True)
        await service.finish_writes()
        await service.keep_engines()


def _node(cluster: Cluster, node_id: NodeId) -> NodeRecord:
    return NodeRecord(
        id=node_id,
        kind=pb.NODE_MGMTD,
        host=socket.gethostname(),
        pid=os.getpid(),
        incarnation=new_incarnation(),
        lane_address=cluster.mgmtd_lane,
        grpc_address=cluster.mgmtd_grpc,
        boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        release=__version__,
    )


if __name__ == "__main__":
    sys.exit(main())
