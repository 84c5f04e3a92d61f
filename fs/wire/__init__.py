"""How processes talk: protobuf messages (`pb`), credentials, and two carriers for the same handlers.

    credentials   the cluster secret, tokens, identities
    authority     which tokens a service believes
    audit         who changed the cluster, and what was refused
    cluster       the cluster file
    addresses     host and port, and back
    atomic_write  files that only their owner may read, replaced as a whole
    methods       one table of all methods
    preserialized replies that are made of stored bytes
    handshake     who is at the other end of a stream
    lane/         framed messages: what clients speak to mgmtd and meta
    rpc           gRPC: what services and administrators speak
    grpc_fork     children that are forked from a process with gRPC
    slow_requests requests that are not answered yet
    expiry        until when a request to a storage node may be begun
    routing       the routing table, kept fresh by a streaming call
    errors        operating errors as messages

A service is an object with one function per method (methods.py), served by both carriers:

    class MetaService:
        def lookup(self, request: LookupRequest, identity: Identity) -> InodeReply: ...     # answers at once
        async def list(self, request: ListRequest, identity: Identity) -> ListReply: ...    # may wait
        async def scan_inodes(self, request, identity) -> AsyncIterator[Inode]: yield ...   # gRPC streams

    async def serve(cluster: Cluster) -> None:
        bound = methods.bind(methods.Meta, MetaService(...))
        secret = cluster.secret()
        lane, rpc = LaneServer(bound, secret=secret), RpcServer(bound, secret=secret)
        lane_address, grpc_address = await lane.start(), await rpc.start()      # loopback, a free port
        async with RpcClients(Minter(secret, role=SERVICE)) as clients:
            reply = await clients.call(cluster.mgmtd_grpc, methods.Mgmtd.heartbeat, HeartbeatRequest(...))
            async for routing in clients.stream(cluster.mgmtd_grpc, methods.Mgmtd.stream_routing, ...): ...
        await lane.stop()
        await rpc.stop()

    uvloop.run(serve(load_cluster(path)))

A handler raises members of `luciola.errors`; the caller gets the same class back. On the lane a plain
function is fastest, then one that returns an asyncio.Future, then `async def` (which costs a task).
"""

from importlib import import_module
from typing import TYPE_CHECKING

from . import methods
from .addresses import format_address, parse_address, parse_addresses, require_loopback
from .atomic_write import read_private, write_private
from .audit import NO_AUDIT, AuditLog
from .authority import Authority
from .cluster import Cluster, Metadata, encode_cluster, load_cluster, parse_cluster, save_cluster
from .credentials import (
    ADMIN,
    CLIENT,
    SERVICE,
    TRUSTED,
    Identity,
    Minter,
    Token,
    create_secret,
    load_current_token,
    load_secret,
    mint,
    verify,
)
from .lane import LaneServer
from .tls import Material, Tls, tls_of

if TYPE_CHECKING:
    from .expiry import Expiries
    from .routing import RoutingTable, follow_routing
    from .rpc import RpcClient, RpcClients, RpcServer

# What needs gRPC is imported when it is used: programs that only connect do not wait for it.
_LATER = {
    "Expiries": "expiry",
    "RoutingTable": "routing",
    "RpcClient": "rpc",
    "RpcClients": "rpc",
    "RpcServer": "rpc",
    "follow_routing": "routing",
}

__all__ = [
    "ADMIN",
    "CLIENT",
    "NO_AUDIT",
    "SERVICE",
    "TRUSTED",
    "AuditLog",
    "Authority",
    "Cluster",
    "Expiries",
    "Identity",
    "LaneServer",
    "Material",
    "Metadata",
    "Minter",
    "RoutingTable",
    "RpcClient",
    "RpcClients",
    "RpcServer",
    "Tls",
    "Token",
    "create_secret",
    "encode_cluster",
    "follow_routing",
    "format_address",
    "load_cluster",
    "load_current_token",
    "load_secret",
    "methods",
    "mint",
    "parse_address",
    "parse_addresses",
    "parse_cluster",
    "read_private",
    "require_loopback",
    "save_cluster",
    "tls_of",
    "verify",
    "write_private",
]


def __getattr__(name: str) -> object:
    if name in _LATER:
        return getattr(import_module(f".{_LATER[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
