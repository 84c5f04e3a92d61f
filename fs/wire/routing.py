"""The routing table as services hold it, and the call that keeps it fresh.

follow_routing   snapshot, then deltas, over one streaming call that is opened again when it breaks
RoutingTable     what was received so far, by id
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from ..errors import Error
from . import methods
from .pb.mgmtd_pb2 import Chain, ChainTable, GetRoutingRequest, Node, Routing
from .rpc import RpcClients

log = logging.getLogger(__name__)

RETRY_S: Final = 0.2  # between two attempts to reach mgmtd; it may be starting


class RoutingTable:
    """Nodes, chains and chain tables, by id. Versions only grow."""

    def __init__(self) -> None:
        self.version = 0
        self.cluster_id = ""
        self.is_bootstrapping = True
        self.nodes: dict[int, Node] = {}
        self.chains: dict[int, Chain] = {}
        self.tables: dict[tuple[int, int], ChainTable] = {}

    def apply(self, routing: Routing) -> bool:
        """Take in a snapshot or a delta. False: it is older than what is known, and was left out."""
        if routing.version < self.version:
            return False
        if not routing.delta:
            self.nodes.clear()
            self.chains.clear()
            self.tables.clear()
        self.version = routing.version
        self.is_bootstrapping = routing.bootstrapping
        self.cluster_id = routing.cluster_id or self.cluster_id
        for node in routing.nodes:
            self.nodes[node.id] = node
        for gone in routing.removed_nodes:
            self.nodes.pop(gone, None)
        for chain in routing.chains:
            known = self.chains.get(chain.id)
            assert known is None or known.version <= chain.version, "a chain's version only grows"
            self.chains[chain.id] = chain
        for table in routing.tables:
            self.tables[table.id, table.version] = table
        return True


async def _admit_all(_: Routing) -> bool:
    return True


async def follow_routing(
    clients: RpcClients,
    address: str,
    table: RoutingTable,
    changed: Callable[[Routing], None],
    *,
    admit: Callable[[Routing], Awaitable[bool]] = _admit_all,
) -> None:
    """Keep `table` like that of the mgmtd at `address`, indefinitely; call `changed` after each change.

    What `admit` refuses is left out. Operating errors are logged, and the call is made again, with what is known
    already.
    """
    was_heard = True
    while True:
        try:
            request = GetRoutingRequest(known_version=table.version)
            async for routing in clients.stream(address, methods.Mgmtd.stream_routing, request):
                was_heard = True
                if await admit(routing) and table.apply(routing):
                    changed(routing)
        except Error as error:
            if was_heard:
                log.warning("stream of routing from mgmtd failed: %s; connecting again", error)
            was_heard = False
        await asyncio.sleep(RETRY_S)


__all__ = ["RoutingTable", "follow_routing"]
