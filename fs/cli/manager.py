"""What the command line asks of mgmtd, and of the nodes that mgmtd knows."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ..errors import NotFound, Timeout, Unavailable
from ..wire import SERVICE, RpcClients, load_secret, methods, mint
from ..wire.pb import mgmtd_pb2 as pb
from .datadir import Shape

CALL_S = 5.0  # everything asked here is answered from memory


class Manager:
    """An administrator's connection to a cluster."""

    def __init__(self, address: str, clients: RpcClients) -> None:
        self._address = address
        self.clients = clients

    @classmethod
    @asynccontextmanager
    async def connect(cls, shape: Shape) -> AsyncIterator["Manager"]:
        """A connection to the cluster of `shape`, as a member of it."""
        secret = load_secret(Path(shape.secret_file))
        async with RpcClients(mint(secret, role=SERVICE)) as clients:
            yield cls(shape.mgmtd_grpc, clients)

    async def routing(self) -> pb.Routing:
        """Everything mgmtd publishes."""
        return await self.clients.call(
            self._address, methods.Mgmtd.get_routing, pb.GetRoutingRequest(), timeout_s=CALL_S
        )

    async def answers(self) -> bool:
        """Whether mgmtd is there."""
        try:
            await self.routing()
        except (Unavailable, Timeout):
            return False
        return True

    async def are_connected(self, nodes: set[int]) -> bool:
        """Whether all of `nodes` have reported."""
        try:
            routing = await self.routing()
        except (Unavailable, Timeout):
            return False
        return nodes <= {node.id for node in routing.nodes if node.status == pb.CONNECTED}

    async def ensure_table(self, table: int, *, replicas: int) -> None:
        """Creates the chain table unless it exists."""
        routing = await self.routing()
        if any(each.id == table for each in routing.tables):
            return
        request = pb.CreateChainTableRequest(table=table, replicas=replicas, description="default")
        await self.clients.call(self._address, methods.Mgmtd.create_chain_table, request, timeout_s=CALL_S)

    async def are_serving(self, table: int) -> bool:
        """Whether every chain of the table has a replica that serves."""
        try:
            routing = await self.routing()
        except (Unavailable, Timeout):
            return False
        wanted = {chain for each in routing.tables if each.id == table for chain in each.chains}
        serving = {
            chain.id
            for chain in routing.chains
            if any(target.state == pb.SERVING for target in chain.targets)
        }
        return bool(wanted) and wanted <= serving and not routing.bootstrapping

    async def silent_pids(self) -> set[int]:
        """Processes that mgmtd has not heard of for longer than their lease."""
        routing = await self.routing()
        return {node.pid for node in routing.nodes if node.status == pb.FAILED}

    async def report_ended(self, node: int, pid: int) -> None:
        """Tells mgmtd that the process `pid` of `node` is gone, so that its lease need not be waited for."""
        routing = await self.routing()
        record = next((each for each in routing.nodes if each.id == node and each.pid == pid), None)
        if record is None:
            return
        request = pb.ProcessEndedRequest(node=node, incarnation=record.incarnation, pid=pid)
        await self.clients.call(self._address, methods.Mgmtd.process_ended, request, timeout_s=CALL_S)


def address_of(routing: pb.Routing, kind: "pb.NodeKind") -> str:
    """gRPC address of a connected node of that kind. Raises: NotFound."""
    for node in routing.nodes:
        if node.kind == kind and node.status == pb.CONNECTED and node.grpc_address:
            return node.grpc_address
    raise NotFound(f"no {pb.NodeKind.Name(kind).removeprefix('NODE_').lower()} service is connected")


def describe_chains(routing: pb.Routing) -> list[dict[str, Any]]:
    """Each chain with its members, and one word for it: serving, degraded, syncing or unavailable."""
    return [
        {
            "id": chain.id,
            "version": chain.version,
            "state": _state(chain),
            "targets": [
                {
                    "target": target.id,
                    "node": target.node,
                    "state": pb.PublicState.Name(target.state).lower(),
                    "used_bytes": target.used_bytes,
                }
                for target in chain.targets
            ],
        }
        for chain in routing.chains
    ]


def _state(chain: pb.Chain) -> str:
    states = [target.state for target in chain.targets]
    if all(state == pb.SERVING for state in states):
        return "serving"
    if pb.SERVING not in states:
        return "unavailable"
    return "syncing" if pb.SYNCING in states else "degraded"


__all__ = ["Manager", "address_of", "describe_chains"]
