"""What meta knows of the cluster: routing, pushed by mgmtd; which clients live; and its own heartbeats."""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Final, NamedTuple

from ..clock import Clock
from ..errors import ConfigError, Error, InvalidArgument, StaleRouting, Unavailable
from ..ids import ChainId
from ..wire import Authority, RpcClients, methods
from ..wire.adoption import AdoptedConfig
from ..wire.pb.common_pb2 import Empty
from ..wire.pb.mgmtd_pb2 import (
    CONNECTED,
    NODE_STORAGE,
    SERVING,
    Chain,
    ChainTable,
    GetRoutingRequest,
    HeartbeatRequest,
    Node,
    Routing,
    StoreMark,
)

log: Final = logging.getLogger("luciola.meta")

RECONNECT_S: Final = 0.2
CHECK_INTERVAL_S: Final = 0.1  # mgmtd may wait for a heartbeat of a storage node
CALL_TIMEOUT_S: Final = 2.0
LEAVE_TIMEOUT_S: Final = 1.0


class RoutingTable:
    """The newest routing that mgmtd has sent."""

    def __init__(self) -> None:
        self.version = 0
        self.nodes: dict[int, Node] = {}
        self.chains: dict[int, Chain] = {}
        self.tables: dict[tuple[int, int], ChainTable] = {}

    def apply(self, routing: Routing) -> None:
        """Take over a snapshot, or what has changed. Raises: StaleRouting if it is older than what is known."""
        if routing.version < self.version:
            raise StaleRouting(
                f"routing version {routing.version} is older than {self.version}, which is known"
            )
        if not routing.delta:
            self.nodes.clear()
            self.chains.clear()
            self.tables.clear()
        self.nodes.update((node.id, node) for node in routing.nodes)
        self.chains.update((chain.id, chain) for chain in routing.chains)
        self.tables.update(((table.id, table.version), table) for table in routing.tables)
        for number in routing.removed_nodes:
            self.nodes.pop(number, None)
        self.version = routing.version

    def head(self, chain: ChainId) -> tuple[str, int]:
        """(gRPC address of the head, chain version). Raises: Unavailable."""
        known = self.chains.get(chain)
        if known is None:
            raise Unavailable(f"chain {chain} is not known")
        for target in known.targets:
            if target.state == SERVING:
                node = self.nodes.get(target.node)
                if node is None or not node.grpc_address:
                    raise Unavailable(f"the head of chain {chain} has no address")
                return node.grpc_address, known.version
        raise Unavailable(f"chain {chain} has no replica that serves")

    def storage_addresses(self) -> list[str]:
        """gRPC addresses of the storage nodes that are here."""
        return [
            node.grpc_address
            for node in self.nodes.values()
            if node.kind == NODE_STORAGE and node.status == CONNECTED and node.grpc_address
        ]


class Cluster:
    """Keeps in touch with mgmtd. `run` and `beat` are tasks."""

    def __init__(self, clients: RpcClients, mgmtd: str, clock: Clock) -> None:
        self.routing = RoutingTable()
        self._clients = clients
        self._mgmtd = mgmtd
        self._clock = clock
        self._changed = asyncio.Event()
        self._hurried = asyncio.Event()

    async def watch(self, listener: Callable[[RoutingTable], None], authority: Authority) -> None:
        """Follow routing, and call `listener` with every change. Return never.

        `authority` is given what is revoked.
        """
        while True:
            try:
                request = GetRoutingRequest(known_version=self.routing.version)
                stream = self._clients.stream(self._mgmtd, methods.Mgmtd.stream_routing, request)
                async for routing in stream:
                    self.routing.apply(routing)
                    if routing.HasField("revocations"):
                        authority.set_revocations(routing.revocations)
                    self._changed.set()
                    self._changed = asyncio.Event()
                    listener(self.routing)
            except Error as error:
                log.warning("following routing failed: %s; the last known routing stays in use", error)
            await self._clock.sleep(RECONNECT_S)

    async def changed(self, timeout_s: float) -> None:
        """Return at the next change of routing, or after a while."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return

    async def check_store(self, mark: StoreMark) -> None:
        """Return when mgmtd lets this store be served. Raises: ConfigError if it is older than the cluster."""
        was_heard = True
        while True:
            try:
                reply = await self._clients.call(
                    self._mgmtd, methods.Mgmtd.check_store, mark, timeout_s=CALL_TIMEOUT_S
                )
                if reply.may_serve:
                    return
            except ConfigError:
                raise
            except Error as error:
                if was_heard:
                    log.warning(
                        "comparing the store with the cluster failed: %s; serving waits for mgmtd", error
                    )
                was_heard = False
            await self._clock.sleep(CHECK_INTERVAL_S)

    def hurry(self) -> None:
        """Send the next heartbeat at once: the node has changed."""
        self._hurried.set()

    async def beat(
        self, node: Node, mark: Callable[[], StoreMark | None], adopted: AdoptedConfig | None = None
    ) -> None:
        """Send heartbeats indefinitely, each with `node` as it is then, and with how far its store has come.

        `mark` says nothing of a store that others may have continued. `adopted`: of the cluster's settings.
        Raises: InvalidArgument when another process has taken this one's place; ConfigError as `check_store`.
        """
        sequence = 0
        while True:
            sequence += 1
            interval_s = 1.0
            self._hurried.clear()
            try:
                request = HeartbeatRequest(
                    node=node,
                    sequence=sequence,
                    meta_store=mark(),
                    config=None if adopted is None else adopted.state(),
                )
                reply = await self._clients.call(
                    self._mgmtd, methods.Mgmtd.heartbeat, request, timeout_s=CALL_TIMEOUT_S
                )
                if adopted is not None:
                    adopted.heard(reply.config_version)
                interval_s = max(0.05, (reply.interval_ms or 1000) / 1000)
            except InvalidArgument:
                raise
            except ConfigError as error:
                if mark() is not None:
                    raise
                # Sent before another process took over, whose store has come further meanwhile.
                log.warning("heartbeat of a term that has ended was refused: %s", error)
            except Error as error:
                log.warning("heartbeat failed: %s", error)
            with suppress(TimeoutError):
                async with asyncio.timeout(interval_s):
                    await self._hurried.wait()

    async def leave(self, node: Node, mark: StoreMark | None) -> None:
        """Report to mgmtd that this process stops, and how far its store has come."""
        request = HeartbeatRequest(node=node, sequence=1 << 62, leaving=True, meta_store=mark)
        try:
            await self._clients.call(self._mgmtd, methods.Mgmtd.heartbeat, request, timeout_s=LEAVE_TIMEOUT_S)
        except Error as error:
            log.warning(
                "shutdown notice to mgmtd failed: %s; failover will wait for the lease to expire", error
            )

    async def clients(self) -> Collection[int] | None:
        """Clients that mgmtd knows, or None while it cannot say."""
        try:
            reply = await self._clients.call(
                self._mgmtd, methods.Mgmtd.list_clients, Empty(), timeout_s=CALL_TIMEOUT_S
            )
        except Error as error:
            log.warning("listing clients of mgmtd failed: %s; no session is ended for now", error)
            return None
        return None if reply.bootstrapping else {session.client for session in reply.clients}


def boot_id() -> str:
    """The id of this host's boot, as the kernel has it."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


class Addresses(NamedTuple):
    """Where a process listens."""

    lane: str
    rpc: str


def describe(  # noqa: PLR0913, fields of a message
    kind: int, *, number: int, incarnation: int, addresses: Addresses, release: str, epoch: int
) -> Node:
    """This process as mgmtd shall know it."""
    return Node(
        id=number,
        kind=kind,  # type: ignore[arg-type] # an enum's number
        host=socket.gethostname(),
        pid=os.getpid(),
        incarnation=incarnation,
        grpc_address=addresses.rpc,
        lane_address=addresses.lane,
        boot_id=boot_id(),
        release=release,
        epoch=epoch,
    )


__all__ = ["Addresses", "Cluster", "RoutingTable", "describe"]
