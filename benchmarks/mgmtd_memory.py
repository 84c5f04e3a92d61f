"""What the cluster manager holds in memory: nodes, chains, clients, and clients that wait for updates of routing.

    PYTHONPATH=src python benchmarks/mgmtd_memory.py [--nodes 100] [--chains 10000] [--clients 1000]

Starts a manager of its own in a temporary directory, plays all nodes and clients over gRPC and the lane, and prints its
resident memory (now, and at most so far) after each step.
"""

import argparse
import asyncio
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from typing import Any

from luciola.cli.datadir import free_ports
from luciola.errors import Error
from luciola.wire import (
    SERVICE,
    Cluster,
    RpcClients,
    create_secret,
    methods,
    mint,
    save_cluster,
)
from luciola.wire.pb import mgmtd_pb2 as pb

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from lane_client import AsyncLaneClient

Call = Callable[[Any, Any], Awaitable[Any]]

TABLE = 1
FIRST_NODE = 201
HEARTBEAT_S = 1.0
REPLICAS = 3
START_S = 30.0
CALL_S = 60.0
TOGETHER = 64  # connections opened at once


class Manager:
    """A manager in a process of its own."""

    def __init__(self, directory: Path) -> None:
        create_secret(directory / "secret")
        lane, grpc = free_ports(2)
        self.cluster = Cluster(
            "benchmark", f"127.0.0.1:{lane}", f"127.0.0.1:{grpc}", str(directory / "secret")
        )
        save_cluster(directory / "cluster.json", self.cluster)
        command = ["-m", "luciola.mgmtd", "--data", str(directory / "mgmtd"), "--create"]
        self.process = subprocess.Popen(
            [sys.executable, *command, "--cluster", str(directory / "cluster.json")],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            stderr=subprocess.DEVNULL,
        )

    def memory_mib(self) -> tuple[float, float]:
        """Resident now, and at most so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        return int(found["VmRSS"].split()[0]) / 1024, int(found["VmHWM"].split()[0]) / 1024

    def show(self, what: str) -> None:
        now, most = self.memory_mib()
        print(f"{what:<58}{now:>8.0f}{most:>8.0f}", flush=True)


async def measure(manager: Manager, *, nodes: int, chains: int, clients: int) -> None:
    token = mint(manager.cluster.secret(), role=SERVICE)
    async with RpcClients(token) as rpc:

        async def call(method: Any, request: Any) -> Any:
            return await rpc.call(manager.cluster.mgmtd_grpc, method, request, timeout_s=CALL_S)

        await answers(call)
        manager.show("started")
        for node in range(nodes):
            await call(methods.Mgmtd.heartbeat, heartbeat(node, 1, []))
        manager.show(f"{nodes} storage nodes")
        request = pb.CreateChainTableRequest(table=TABLE, replicas=REPLICAS, chains=chains)
        await call(methods.Mgmtd.create_chain_table, request)
        manager.show(f"{chains} chains of {REPLICAS}")
        routing = await call(methods.Mgmtd.get_routing, pb.GetRoutingRequest())
        print(f"  (routing is {routing.ByteSize() / 2**20:.1f} MiB)")
        held: dict[int, list[tuple[Any, Any]]] = {}
        for chain in routing.chains:
            for target in chain.targets:
                held.setdefault(target.node, []).append((chain, target))
        await beat(call, 2, held)
        manager.show("a heartbeat of each node, with all its replicas")
        beating = asyncio.create_task(keep_beating(call, held))
        for _ in range(clients):
            await call(methods.Mgmtd.extend_client, session(random.getrandbits(63) | 1))
        manager.show(f"{clients} clients that are known")
        await followers(manager, token, clients)
        beating.cancel()


async def beat(call: Call, sequence: int, held: dict[int, list[tuple[Any, Any]]]) -> None:
    for node, replicas in held.items():
        await call(methods.Mgmtd.heartbeat, heartbeat(node - FIRST_NODE, sequence, replicas))


async def keep_beating(call: Call, held: dict[int, list[tuple[Any, Any]]]) -> None:
    for sequence in count(3):
        await beat(call, sequence, held)
        await asyncio.sleep(HEARTBEAT_S)


async def answers(call: Call) -> None:
    """Returns when the manager does."""
    deadline = asyncio.get_running_loop().time() + START_S
    while True:
        try:
            await call(methods.Mgmtd.get_routing, pb.GetRoutingRequest())
        except Error:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(0.1)
        else:
            return


async def followers(manager: Manager, token: Any, clients: int) -> None:
    """Each client has its own connection, has fetched all of routing, and waits for news."""
    async with AsyncExitStack() as stack:
        lanes = [
            await stack.enter_async_context(AsyncLaneClient(manager.cluster.mgmtd_lane, token))
            for _ in range(clients)
        ]
        for first in range(0, clients, TOGETHER):
            some = lanes[first : first + TOGETHER]
            await asyncio.gather(
                *(
                    lane.call(methods.Mgmtd.get_routing, pb.GetRoutingRequest(), timeout_s=CALL_S)
                    for lane in some
                )
            )
        manager.show(f"{clients} connections, each has asked for all of routing")


def heartbeat(index: int, sequence: int, held: list[tuple[Any, Any]]) -> pb.HeartbeatRequest:
    node = pb.Node(
        id=FIRST_NODE + index,
        kind=pb.NODE_STORAGE,
        incarnation=7,
        pid=1000 + index,
        host=f"storage-{index}.cluster.example",
        grpc_address=f"10.0.{index // 250}.{index % 250}:4711",
        data_address=f"10.0.{index // 250}.{index % 250}:4712",
        data_socket="/var/lib/luciola/data.sock",
        boot_id="6f2c1c1e-6c1c-4e1c-9a57-0123456789ab",
        release="0.1.0",
    )
    request = pb.HeartbeatRequest(node=node, sequence=sequence)
    for chain, target in held:
        request.targets.add(
            id=target.id,
            chain=chain.id,
            chain_version=chain.version,
            state=pb.LOCAL_UPTODATE,
            used_bytes=123_456_789 + sequence,
        )
    return request


def session(number: int) -> pb.ExtendClientRequest:
    return pb.ExtendClientRequest(
        client=number,
        host=f"worker-{number % 1000}.cluster.example",
        description="python 123456",
        kind=pb.NODE_CLIENT,
        started_unix_ms=1_700_000_000_000,
        pid=number % 100_000,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--chains", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=1000)
    options = parser.parse_args()
    print(f"{'resident memory of mgmtd, MiB':<58}{'now':>8}{'most':>8}")
    with tempfile.TemporaryDirectory() as directory:
        manager = Manager(Path(directory))
        try:
            asyncio.run(measure(manager, nodes=options.nodes, chains=options.chains, clients=options.clients))
        finally:
            manager.process.terminate()
            manager.process.wait()


if __name__ == "__main__":
    main()
