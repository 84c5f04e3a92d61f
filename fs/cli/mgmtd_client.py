"""What the command line asks of mgmtd, and of the nodes that mgmtd knows."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from contextlib import asynccontextmanager
from typing import Final, NamedTuple, TypedDict, TypeVar

from ..errors import Error, NotFound, Timeout, Unavailable
from ..ids import ROOT_INODE, STANDBY_EPOCH
from ..wire import SERVICE, Cluster, Minter, RpcClients, Tls, Token, methods, parse_addresses
from ..wire.certificates import Subject
from ..wire.methods import Method, Reply, Request
from ..wire.pb import mgmtd_pb2 as pb
from ..wire.pb.common_pb2 import Empty
from ..wire.pb.meta_pb2 import ClientFilesReply, Inode, Path, StatRequest
from ..wire.pb.storage_pb2 import ChunkName, ChunkRecord, ListChunksRequest, SpaceReply, StorageStatus

REPORTED = {  # what a node says of its replica
    pb.LOCAL_INVALID: "unknown",  # not reported since mgmtd started
    pb.LOCAL_UPTODATE: "uptodate",
    pb.LOCAL_ONLINE: "online",
    pb.LOCAL_OFFLINE: "offline",
}
SPACE_S = 2.0  # of a number that is shown if it is there
LIST_LIMIT = 4096  # chunk records a request
LIST_S = 60.0
CALL_S = 10.0  # everything asked here is answered from memory, but the machine may be overloaded
ATTEMPT_S: Final = 3.0  # before another of several managers is asked: this one may be stopped
TAKE_OVER_S: Final = 20.0  # until one of several managers is primary: some leases
POLL_S: Final = 0.1

Answer = TypeVar("Answer")


class TimedStatus(NamedTuple):
    """The status of a storage node. `ahead_s`: of its clock, how far it is ahead of the one here."""

    status: StorageStatus
    ahead_s: float


class MgmtdClient:
    """An administrator's connection to a cluster."""

    def __init__(self, address: str, clients: RpcClients) -> None:
        self._address = address
        self._managers = len(parse_addresses(address))
        self.clients = clients

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, cluster: Cluster, token: Token | None = None, *, tls: Tls | None = None
    ) -> AsyncIterator["MgmtdClient"]:
        """A connection to the cluster with `token`, or as a member of it. `tls`: not what the cluster's file says."""
        shown = Minter(cluster.secret(), role=SERVICE) if token is None else token
        async with RpcClients(shown, tls=tls or cluster.tls()) as clients:
            yield cls(cluster.mgmtd_grpc, clients)

    async def routing(self, *, patience_s: float = TAKE_OVER_S) -> pb.Routing:
        """Everything mgmtd publishes. Calls that follow go to the manager that answered.

        Each of several managers is asked at least once, and again for `patience_s` while none of them is primary.
        Raises: Unavailable, Timeout.
        """
        loop = asyncio.get_running_loop()
        deadline_s, timeout_s = loop.time() + patience_s, CALL_S if self._managers == 1 else ATTEMPT_S
        request = pb.GetRoutingRequest()
        left = self._managers
        while True:
            left -= 1
            try:
                return await self._call(methods.Mgmtd.get_routing, request, timeout_s=timeout_s)
            except (Unavailable, Timeout):
                if self._managers == 1 or (left <= 0 and loop.time() >= deadline_s):
                    raise
            await asyncio.sleep(POLL_S)

    async def _change(self, method: Method[Request, Reply], request: Request) -> Reply:
        """Have the primary do something: it is found first, as a change is not sent twice."""
        if self._managers > 1:
            await self.routing()
        return await self._call(method, request)

    async def _call(
        self, method: Method[Request, Reply], request: Request, *, timeout_s: float = CALL_S
    ) -> Reply:
        return await self.clients.call(self._address, method, request, timeout_s=timeout_s)

    async def update_chain(
        self, chain: int, action: "pb.UpdateChainRequest.Action", *, target: int = 0, node: int = 0
    ) -> pb.Chain:
        """Change the members of a chain or their order. Raises: NotFound, Busy, InvalidArgument."""
        request = pb.UpdateChainRequest(chain=chain, action=action, target=target, node=node)
        return await self._change(methods.Mgmtd.update_chain, request)

    async def start_moves(self, moves: Iterable[pb.Move], *, concurrent: int) -> pb.MovesStatus:
        """Move replicas to other nodes, instead of all moves that have not begun. Raises: NotFound, InvalidArgument."""
        request = pb.StartMovesRequest(moves=moves, concurrent=concurrent)
        return await self._change(methods.Mgmtd.start_moves, request)

    async def control_moves(self, action: "pb.ControlMovesRequest.Action") -> pb.MovesStatus:
        """Return how far moves have come; pause, resume or cancel them."""
        return await self._change(methods.Mgmtd.control_moves, pb.ControlMovesRequest(action=action))

    async def disable_node(self, node: int, *, disabled: bool, accept_unavailable: bool = False) -> pb.Node:
        """Take a node's lease away, or let it have one again.

        Raises: NotFound; InvalidArgument (`unavailable` in its fields) if it alone serves some chain.
        """
        request = pb.SetNodeDisabledRequest(
            node=node, disabled=disabled, accept_unavailable=accept_unavailable
        )
        return await self._change(methods.Mgmtd.set_node_disabled, request)

    async def drain_node(self, node: int, *, drained: bool, successor: int = 0) -> pb.Node:
        """Have the replicas of a node moved to others, or not any more. Raises: NotFound, InvalidArgument."""
        request = pb.DrainNodeRequest(node=node, drained=drained, successor=successor)
        return await self._change(methods.Mgmtd.drain_node, request)

    async def reserve_node(self, kind: "pb.NodeKind", *, host: str) -> int:
        """Return the number of a service that will be started on `host`. Raises: Busy."""
        request = pb.ReserveNodeRequest(kind=kind, host=host)
        return (await self._change(methods.Mgmtd.reserve_node, request)).id

    async def issue_certificate(
        self, request: bytes, subject: Subject, *, lifetime_s: int = 0
    ) -> pb.IssueCertificateReply:
        """Return a certificate for the key in the request. Raises: PermissionDenied, InvalidArgument, Unsupported."""
        asked = pb.IssueCertificateRequest(
            request=request,
            name=subject.name,
            address=subject.address,
            roles=subject.roles,
            lifetime_s=lifetime_s,
        )
        return await self._change(methods.Mgmtd.issue_certificate, asked)

    async def forget_node(self, node: int) -> None:
        """Raises: NotFound; Busy if it may be alive or has replicas."""
        request = pb.NodeRequest(node=node)
        await self._change(methods.Mgmtd.unregister_node, request)

    async def revoke(self, revocations: pb.Revocations) -> None:
        """Make tokens void, for good. Raises: InvalidArgument beyond a limit."""
        await self._change(methods.Mgmtd.revoke_tokens, revocations)

    async def revoked(self) -> pb.Revocations:
        """Return what is revoked."""
        return await self._change(methods.Mgmtd.list_revoked, Empty())

    async def set_config(self, request: pb.SetConfigRequest) -> pb.ConfigVersion:
        """Store what all services are to run with. Raises: ConfigError naming all bad keys; NotFound."""
        return await self._change(methods.Mgmtd.set_config, request)

    async def config(self) -> pb.ConfigStatus:
        """Return the versions of the cluster's configuration, and what each process has adopted."""
        return await self._change(methods.Mgmtd.list_config, Empty())

    async def sessions(self) -> pb.ListClientsReply:
        """Return the clients that are alive."""
        return await self._change(methods.Mgmtd.list_clients, Empty())

    async def answers(self) -> bool:
        """Return whether mgmtd is there."""
        try:
            await self.routing(patience_s=0)
        except (Unavailable, Timeout):
            return False
        return True

    async def are_connected(self, nodes: set[int]) -> bool:
        """Return whether all of `nodes` have reported."""
        try:
            routing = await self.routing(patience_s=0)
        except (Unavailable, Timeout):
            return False
        return nodes <= {node.id for node in routing.nodes if node.status == pb.CONNECTED}

    async def has_meta(self) -> bool:
        """Return whether a metadata service is connected that serves."""
        try:
            return serving_meta(await self.routing(patience_s=0)) is not None
        except (Unavailable, Timeout):
            return False

    async def has_storage(self, count: int) -> bool:
        """Return whether so many storage nodes are connected, or more."""
        try:
            routing = await self.routing(patience_s=0)
        except (Unavailable, Timeout):
            return False
        nodes = (node for node in routing.nodes if node.kind == pb.NODE_STORAGE)
        return sum(node.status == pb.CONNECTED for node in nodes) >= count

    async def has_table(self, table: int, *, replicas: int) -> bool:
        """Return whether the chain table is there; it is created if not. False: mgmtd is away or late, ask again."""
        request = pb.CreateChainTableRequest(table=table, replicas=replicas, description="default")
        try:
            routing = await self.routing(patience_s=0)
            if not any(each.id == table for each in routing.tables):
                await self._call(methods.Mgmtd.create_chain_table, request)
        except (Unavailable, Timeout):
            return False
        return True

    async def counters(self, node: int) -> dict[str, int]:
        """Return what a storage node has counted since it started. Raises: NotFound."""
        routing = await self.routing()
        known = (each for each in routing.nodes if each.id == node and each.kind == pb.NODE_STORAGE)
        found = next(known, None)
        if found is None:
            raise NotFound(f"no storage node {node}; `luciola node list` shows all nodes")
        status = await self.clients.call(
            found.grpc_address, methods.Storage.status, Empty(), timeout_s=CALL_S
        )
        return dict(sorted(status.counters.items()))

    async def spaces(self, routing: pb.Routing) -> dict[int, SpaceReply]:
        """Size and free space of each storage node that answers at once."""

        async def ask(address: str) -> SpaceReply:
            return await self.clients.call(address, methods.Storage.space, Empty(), timeout_s=SPACE_S)

        nodes = [node for node in routing.nodes if node.kind == pb.NODE_STORAGE and node.status != pb.FAILED]
        return await _ask_each(nodes, ask)

    async def storage_statuses(
        self, routing: pb.Routing, *, nodes: Collection[int] | None = None
    ) -> dict[int, TimedStatus]:
        """What each of these storage nodes (None: of all) that answers at once holds and has counted, and its clock."""

        async def ask(address: str) -> TimedStatus:
            asked_s = time.time()
            status = await self.clients.call(address, methods.Storage.status, Empty(), timeout_s=SPACE_S)
            return TimedStatus(status, clock_ahead_s(status.unix_ms, asked_s=asked_s))

        storage = [node for node in routing.nodes if node.kind == pb.NODE_STORAGE]
        return await _ask_each([node for node in storage if nodes is None or node.id in nodes], ask)

    async def inode(self, routing: pb.Routing, path: Path, *, follow: bool) -> Inode:
        """Return the inode of a path, of a file that others write with its length now. Raises: NotFound, and others."""
        request = StatRequest(path=path, follow=follow, exact=True)
        address = address_of(routing, pb.NODE_META)
        return (await self.clients.call(address, methods.Meta.stat, request, timeout_s=CALL_S)).inode

    async def client_files(self, routing: pb.Routing) -> ClientFilesReply | None:
        """Return what each client has open, if the metadata service answers at once: `luciola health` says why not."""
        try:
            address = address_of(routing, pb.NODE_META)
            return await self.clients.call(
                address, methods.Meta.list_client_files, Empty(), timeout_s=SPACE_S
            )
        except Error:
            return None

    async def chunks(
        self,
        routing: pb.Routing,
        chain: int,
        node: int,
        *,
        after: ChunkName | None = None,
        limit: int = LIST_LIMIT,
    ) -> AsyncIterator[ChunkRecord]:
        """A node's records of a chain behind `after`, removed chunks too, by content and index. Raises: NotFound.

        `limit`: records that are asked for at once.
        """
        address = node_address(routing, node)
        request = ListChunksRequest(chain=chain, limit=limit, after=after)
        while True:
            reply = await self.clients.call(address, methods.Storage.list_chunks, request, timeout_s=LIST_S)
            for record in reply.chunks:
                yield record
            if not reply.more:
                return
            request.after.CopyFrom(reply.chunks[-1].chunk)

    async def load_in_progress(self, routing: pb.Routing) -> str:
        """Return what the metadata service replies while a dump is being loaded; empty if none is."""
        request = StatRequest(path=Path(at=ROOT_INODE))
        try:
            address = address_of(routing, pb.NODE_META)
            await self.clients.call(address, methods.Meta.stat, request, timeout_s=SPACE_S)
        except Error as error:  # what else may be wrong with it is said of its process
            return error.message if "loading" in error.fields else ""
        return ""

    async def silent_processes(self) -> set[tuple[int, int]]:
        """Return the processes whose lease has expired without a heartbeat, with the numbers of their nodes."""
        routing = await self.routing(patience_s=0)
        return {(node.id, node.pid) for node in routing.nodes if node.status == pb.FAILED}

    async def report_ended(self, node: int, pid: int) -> None:
        """Report to mgmtd that the process `pid` of `node` has ended, so that failover need not wait for its lease."""
        routing = await self.routing()
        record = next((each for each in routing.nodes if each.id == node and each.pid == pid), None)
        if record is None:
            return
        request = pb.ProcessEndedRequest(node=node, incarnation=record.incarnation, pid=pid)
        await self._call(methods.Mgmtd.process_ended, request)


async def _ask_each(nodes: Iterable[pb.Node], ask: Callable[[str], Awaitable[Answer]]) -> dict[int, Answer]:
    """Return the answers of those that answer at once; of the others, their status in routing says the rest."""

    async def answer(node: pb.Node) -> Answer | None:
        try:
            return await ask(node.grpc_address)
        except Error:
            return None

    reached = [node for node in nodes if node.grpc_address]
    answers = await asyncio.gather(*map(answer, reached))
    return {node.id: got for node, got in zip(reached, answers, strict=True) if got is not None}


def clock_ahead_s(unix_ms: int, *, asked_s: float) -> float:
    """Return how far the clock of a service that has just answered is ahead of the one here, in seconds.

    `unix_ms`: what it says its clock shows; `asked_s`: when it was asked, by the clock here. It is taken to have
    answered half-way.
    """
    return unix_ms / 1000 - (asked_s + time.time()) / 2


def address_of(routing: pb.Routing, kind: "pb.NodeKind") -> str:
    """gRPC address of a connected node of that kind: of several, the one with the newest term. Raises: NotFound."""
    known = [
        node
        for node in routing.nodes
        if node.kind == kind and node.status == pb.CONNECTED and node.grpc_address
    ]
    if known:
        return max(known, key=lambda node: node.epoch).grpc_address
    raise NotFound(f"no {pb.NodeKind.Name(kind).removeprefix('NODE_').lower()} service is connected")


def node_address(routing: pb.Routing, node: int) -> str:
    """gRPC address of a node. Raises: NotFound."""
    for each in routing.nodes:
        if each.id == node:
            return each.grpc_address
    raise NotFound(f"routing names no node {node}")


def serving_meta(routing: pb.Routing) -> pb.Node | None:
    """Return the metadata service that is primary: of those connected the one with the highest epoch."""
    connected = [
        node
        for node in routing.nodes
        if node.kind == pb.NODE_META and node.status == pb.CONNECTED and node.epoch != STANDBY_EPOCH
    ]
    return max(connected, key=lambda node: node.epoch, default=None)


def serving_node(chain: pb.Chain) -> int | None:
    """Return the first node of a chain that serves."""
    return next((target.node for target in chain.targets if target.state == pb.SERVING), None)


class TargetState(TypedDict):
    """One replica of a chain, as commands print it."""

    target: int
    node: int
    state: str
    reported: str
    used_bytes: int


class ChainState(TypedDict):
    """One chain, as commands print it."""

    id: int
    version: int
    state: str
    preferred_order: list[int]
    targets: list[TargetState]


def describe_chains(routing: pb.Routing) -> list[ChainState]:
    """Each chain with its members, and one word for it: serving, degraded, syncing or unavailable. By number."""
    return [describe_chain(chain) for chain in sorted(routing.chains, key=lambda chain: chain.id)]


def describe_chain(chain: pb.Chain) -> ChainState:
    """Return a chain with its members, in their order, and one word for it."""
    return {
        "id": chain.id,
        "version": chain.version,
        "state": _state(chain),
        "preferred_order": list(chain.preferred_order),
        "targets": [
            {
                "target": target.id,
                "node": target.node,
                "state": pb.PublicState.Name(target.state).lower(),
                "reported": REPORTED[target.local],
                "used_bytes": target.used_bytes,
            }
            for target in chain.targets
        ],
    }


def _state(chain: pb.Chain) -> str:
    states = [target.state for target in chain.targets]
    if all(state == pb.SERVING for state in states):
        return "serving"
    if pb.SERVING not in states:
        return "unavailable"
    return "syncing" if pb.SYNCING in states else "degraded"


__all__ = [
    "TAKE_OVER_S",
    "ChainState",
    "MgmtdClient",
    "TargetState",
    "TimedStatus",
    "address_of",
    "clock_ahead_s",
    "describe_chain",
    "describe_chains",
    "node_address",
    "serving_meta",
    "serving_node",
]
