"""Every method of every service, once: its gRPC name, its lane number, its messages, and who may call it.

A service is an object with a method of the same name in snake case for each entry of its class here:

    def lookup(self, request: LookupRequest, identity: Identity) -> Answer[InodeReply]
    def scan_inodes(self, request: ScanRequest, identity: Identity) -> AsyncIterator[Inode]     (streams)

A plain function that answers at once costs the lane no task; one that may have to wait returns an awaitable
(or is an `async def`). Tests compare this table with `proto/`.
"""

import enum
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final, Generic, TypeAlias, TypeVar, cast

from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import Message

from .credentials import ADMIN, CLIENT, SERVICE, Identity
from .pb import common_pb2, meta_pb2, mgmtd_pb2, replicas_pb2, storage_pb2
from .pb.common_pb2 import Claims, Empty
from .preserialized import Preserialized

Request = TypeVar("Request", bound=Message)
Reply = TypeVar("Reply", bound=Message)

Sent: TypeAlias = Reply | Preserialized[Reply]
"""A reply, or its bytes."""
Answer: TypeAlias = Sent[Reply] | Awaitable[Sent[Reply]]
"""What a handler returns: a reply at once, or later."""
Handler: TypeAlias = Callable[[Message, Identity], Answer[Message] | AsyncIterator[Message]]
"""Serves one method: its request, which has the type that the method names, and who sends it."""
AnyMethod: TypeAlias = "Method[Message, Message]"
"""A method whose messages are known only when it runs."""


class Mode(enum.Enum):
    """What a request that names its `Caller` does: the `idempotency_level` of its method in `proto/`."""

    READ = MethodOptions.NO_SIDE_EFFECTS  # nothing is committed
    WRITE = MethodOptions.IDEMPOTENT  # carried out twice it does no harm
    # The reply is recorded with it, and sent again if asked again.
    RECORDED = MethodOptions.IDEMPOTENCY_UNKNOWN


@dataclass(frozen=True, slots=True)
class Method(Generic[Request, Reply]):
    """One method. `lane` is 0 where only gRPC carries it; `audited`: its calls are written down (audit.py)."""

    service: str
    name: str
    request: type[Request]
    reply: type[Reply]
    role: Claims.Role
    lane: int
    mode: Mode = Mode.RECORDED
    streams: bool = False
    audited: bool = False

    @property
    def path(self) -> str:
        """As gRPC names it."""
        return f"/luciola.{self.service}/{self.name}"

    @property
    def attribute(self) -> str:
        """The name of the service's Python method."""
        return _snake(self.name)


_LANE: Final = dict(common_pb2.Method.items())
_SERVICES: Final = {
    name: service
    for module in (meta_pb2, mgmtd_pb2, replicas_pb2, storage_pb2)
    for name, service in module.DESCRIPTOR.services_by_name.items()
}


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _method(
    where: str,
    request: type[Request],
    reply: type[Reply],
    role: Claims.Role = CLIENT,
    *,
    audited: bool = False,
) -> Method[Request, Reply]:
    service, _, name = where.partition(".")
    number = _LANE.get(f"{service}_{_snake(name)}".upper(), 0)
    defined = _SERVICES[service].methods_by_name[name]
    mode = Mode(defined.GetOptions().idempotency_level)
    return Method(service, name, request, reply, role, number, mode, defined.server_streaming, audited)


class Mgmtd:
    """The cluster manager."""

    get_routing: Final = _method("Mgmtd.GetRouting", mgmtd_pb2.GetRoutingRequest, mgmtd_pb2.Routing)
    stream_routing: Final = _method(
        "Mgmtd.StreamRouting", mgmtd_pb2.GetRoutingRequest, mgmtd_pb2.Routing, SERVICE
    )
    heartbeat: Final = _method(
        "Mgmtd.Heartbeat", mgmtd_pb2.HeartbeatRequest, mgmtd_pb2.HeartbeatReply, SERVICE
    )
    check_store: Final = _method("Mgmtd.CheckStore", mgmtd_pb2.StoreMark, mgmtd_pb2.CheckStoreReply, SERVICE)
    extend_client: Final = _method(
        "Mgmtd.ExtendClient", mgmtd_pb2.ExtendClientRequest, mgmtd_pb2.ExtendClientReply
    )
    list_clients: Final = _method("Mgmtd.ListClients", Empty, mgmtd_pb2.ListClientsReply, ADMIN)
    create_chain_table: Final = _method(
        "Mgmtd.CreateChainTable", mgmtd_pb2.CreateChainTableRequest, mgmtd_pb2.ChainTable, ADMIN, audited=True
    )
    update_chain: Final = _method(
        "Mgmtd.UpdateChain", mgmtd_pb2.UpdateChainRequest, mgmtd_pb2.Chain, ADMIN, audited=True
    )
    start_moves: Final = _method(
        "Mgmtd.StartMoves", mgmtd_pb2.StartMovesRequest, mgmtd_pb2.MovesStatus, ADMIN, audited=True
    )
    control_moves: Final = _method(
        "Mgmtd.ControlMoves", mgmtd_pb2.ControlMovesRequest, mgmtd_pb2.MovesStatus, ADMIN, audited=True
    )
    set_node_disabled: Final = _method(
        "Mgmtd.SetNodeDisabled", mgmtd_pb2.SetNodeDisabledRequest, mgmtd_pb2.Node, ADMIN, audited=True
    )
    drain_node: Final = _method(
        "Mgmtd.DrainNode", mgmtd_pb2.DrainNodeRequest, mgmtd_pb2.Node, ADMIN, audited=True
    )
    reserve_node: Final = _method(
        "Mgmtd.ReserveNode", mgmtd_pb2.ReserveNodeRequest, mgmtd_pb2.Node, SERVICE, audited=True
    )
    issue_certificate: Final = _method(
        "Mgmtd.IssueCertificate",
        mgmtd_pb2.IssueCertificateRequest,
        mgmtd_pb2.IssueCertificateReply,
        SERVICE,
        audited=True,
    )
    unregister_node: Final = _method(
        "Mgmtd.UnregisterNode", mgmtd_pb2.NodeRequest, Empty, ADMIN, audited=True
    )
    process_ended: Final = _method("Mgmtd.ProcessEnded", mgmtd_pb2.ProcessEndedRequest, Empty, ADMIN)
    revoke_tokens: Final = _method("Mgmtd.RevokeTokens", mgmtd_pb2.Revocations, Empty, ADMIN, audited=True)
    list_revoked: Final = _method("Mgmtd.ListRevoked", Empty, mgmtd_pb2.Revocations, ADMIN)
    set_config: Final = _method(
        "Mgmtd.SetConfig", mgmtd_pb2.SetConfigRequest, mgmtd_pb2.ConfigVersion, ADMIN, audited=True
    )
    get_config: Final = _method("Mgmtd.GetConfig", Empty, mgmtd_pb2.ConfigVersion, SERVICE)
    list_config: Final = _method("Mgmtd.ListConfig", Empty, mgmtd_pb2.ConfigStatus, ADMIN)


class Meta:
    """The namespace."""

    lookup: Final = _method("Meta.Lookup", meta_pb2.LookupRequest, meta_pb2.InodeReply)
    stat: Final = _method("Meta.Stat", meta_pb2.StatRequest, meta_pb2.InodeReply)
    create: Final = _method("Meta.Create", meta_pb2.CreateRequest, meta_pb2.InodeReply)
    open: Final = _method("Meta.Open", meta_pb2.OpenRequest, meta_pb2.InodeReply)
    close: Final = _method("Meta.Close", meta_pb2.CloseRequest, meta_pb2.CloseReply)
    sync: Final = _method("Meta.Sync", meta_pb2.SyncRequest, meta_pb2.InodeReply)
    mknod: Final = _method("Meta.Mknod", meta_pb2.MknodRequest, meta_pb2.InodeReply)
    mkdir: Final = _method("Meta.Mkdir", meta_pb2.MkdirRequest, meta_pb2.InodeReply)
    symlink: Final = _method("Meta.Symlink", meta_pb2.SymlinkRequest, meta_pb2.InodeReply)
    link: Final = _method("Meta.Link", meta_pb2.LinkRequest, meta_pb2.InodeReply)
    unlink: Final = _method("Meta.Unlink", meta_pb2.UnlinkRequest, meta_pb2.InodeReply)
    rmdir: Final = _method("Meta.Rmdir", meta_pb2.RmdirRequest, Empty)
    rename: Final = _method("Meta.Rename", meta_pb2.RenameRequest, meta_pb2.RenameReply)
    set_attr: Final = _method("Meta.SetAttr", meta_pb2.SetAttrRequest, meta_pb2.InodeReply)
    list: Final = _method("Meta.List", meta_pb2.ListRequest, meta_pb2.ListReply)
    stat_fs: Final = _method("Meta.StatFs", meta_pb2.StatFsRequest, meta_pb2.StatFsReply)
    remove_tree: Final = _method("Meta.RemoveTree", meta_pb2.RemoveTreeRequest, Empty)
    get_xattr: Final = _method("Meta.GetXattr", meta_pb2.XattrRequest, meta_pb2.XattrReply)
    set_xattr: Final = _method("Meta.SetXattr", meta_pb2.XattrRequest, Empty)
    list_xattr: Final = _method("Meta.ListXattr", meta_pb2.XattrRequest, meta_pb2.XattrReply)
    remove_xattr: Final = _method("Meta.RemoveXattr", meta_pb2.XattrRequest, Empty)
    hold: Final = _method("Meta.Hold", meta_pb2.HoldRequest, meta_pb2.HoldReply)
    real_path: Final = _method("Meta.RealPath", meta_pb2.RealPathRequest, meta_pb2.RealPathReply)
    apply: Final = _method("Meta.Apply", meta_pb2.ApplyRequest, meta_pb2.ApplyReply)
    reserve_inodes: Final = _method(
        "Meta.ReserveInodes", meta_pb2.ReserveInodesRequest, meta_pb2.ReserveInodesReply
    )
    watch: Final = _method("Meta.Watch", meta_pb2.WatchRequest, meta_pb2.WatchReply)
    scan_inodes: Final = _method("Meta.ScanInodes", meta_pb2.ScanRequest, meta_pb2.Inode, ADMIN)
    scan_dentries: Final = _method("Meta.ScanDentries", meta_pb2.ScanRequest, meta_pb2.ScannedDentry, ADMIN)
    scan_removed: Final = _method("Meta.ScanRemoved", meta_pb2.ScanRequest, meta_pb2.RemovedContent, ADMIN)
    quarantine: Final = _method("Meta.Quarantine", meta_pb2.QuarantineRequest, Empty, ADMIN, audited=True)
    scan_quarantined: Final = _method(
        "Meta.ScanQuarantined", meta_pb2.ScanRequest, meta_pb2.QuarantinedContent, ADMIN
    )
    release_quarantined: Final = _method(
        "Meta.ReleaseQuarantined", meta_pb2.ReleaseQuarantinedRequest, Empty, ADMIN, audited=True
    )
    dump: Final = _method("Meta.Dump", meta_pb2.DumpRequest, meta_pb2.DumpBatch, ADMIN, audited=True)
    begin_load: Final = _method(
        "Meta.BeginLoad", meta_pb2.BeginLoadRequest, meta_pb2.BeginLoadReply, ADMIN, audited=True
    )
    load: Final = _method("Meta.Load", meta_pb2.LoadRequest, meta_pb2.LoadReply, ADMIN)
    finish_load: Final = _method("Meta.FinishLoad", meta_pb2.FinishLoadRequest, Empty, ADMIN, audited=True)
    discard_load: Final = _method("Meta.DiscardLoad", Empty, Empty, ADMIN, audited=True)
    list_client_files: Final = _method("Meta.ListClientFiles", Empty, meta_pb2.ClientFilesReply, ADMIN)
    status: Final = _method("Meta.Status", Empty, meta_pb2.MetaStatus, ADMIN)


class Storage:
    """Control of one storage node."""

    last_chunk: Final = _method(
        "Storage.LastChunk", storage_pb2.LastChunkRequest, storage_pb2.LastChunkReply, SERVICE
    )
    clock: Final = _method("Storage.Clock", Empty, storage_pb2.ClockReply, SERVICE)
    remove_chunks: Final = _method(
        "Storage.RemoveChunks", storage_pb2.RemoveChunksRequest, storage_pb2.RemoveChunksReply, SERVICE
    )
    truncate_chunk: Final = _method("Storage.TruncateChunk", storage_pb2.TruncateChunkRequest, Empty, SERVICE)
    list_chunks: Final = _method(
        "Storage.ListChunks", storage_pb2.ListChunksRequest, storage_pb2.ListChunksReply, ADMIN
    )
    hold_updates: Final = _method(
        "Storage.HoldUpdates", storage_pb2.HoldUpdatesRequest, Empty, ADMIN, audited=True
    )
    release_updates: Final = _method(
        "Storage.ReleaseUpdates",
        storage_pb2.ReleaseUpdatesRequest,
        storage_pb2.ReleaseUpdatesReply,
        ADMIN,
        audited=True,
    )
    sync_start: Final = _method(
        "Storage.SyncStart", storage_pb2.SyncStartRequest, storage_pb2.ListChunksReply, SERVICE
    )
    quarantine_chunks: Final = _method(
        "Storage.QuarantineChunks",
        storage_pb2.QuarantineChunksRequest,
        storage_pb2.QuarantineChunksReply,
        SERVICE,
    )
    sync_done: Final = _method("Storage.SyncDone", storage_pb2.SyncDoneRequest, Empty, SERVICE)
    space: Final = _method("Storage.Space", Empty, storage_pb2.SpaceReply, ADMIN)
    scrub: Final = _method(
        "Storage.Scrub", storage_pb2.ScrubRequest, storage_pb2.ScrubReply, ADMIN, audited=True
    )
    status: Final = _method("Storage.Status", Empty, storage_pb2.StorageStatus, ADMIN)


class Replicas:
    """What each replica of a store gives to the others, and does for an administrator."""

    list_seals: Final = _method("Replicas.ListSeals", Empty, replicas_pb2.Seals, SERVICE)
    read_file: Final = _method(
        "Replicas.ReadFile", replicas_pb2.ReadFileRequest, replicas_pb2.FileBytes, SERVICE
    )
    state: Final = _method("Replicas.State", Empty, replicas_pb2.ReplicaState, ADMIN)
    make_checkpoint: Final = _method(
        "Replicas.MakeCheckpoint", Empty, replicas_pb2.ReplicaState, ADMIN, audited=True
    )
    hold_back: Final = _method(
        "Replicas.HoldBack", replicas_pb2.HoldBackRequest, replicas_pb2.ReplicaState, ADMIN, audited=True
    )


def methods_of(service: type) -> tuple[AnyMethod, ...]:
    """Return all methods of one of the classes above."""
    return tuple(entry for entry in vars(service).values() if isinstance(entry, Method))


ALL: Final = (*methods_of(Mgmtd), *methods_of(Meta), *methods_of(Replicas), *methods_of(Storage))


@dataclass(frozen=True, slots=True)
class Bound:
    """A method and the function that serves it."""

    method: AnyMethod
    handler: Handler


def bind(service: type, implementation: object) -> tuple[Bound, ...]:
    """Return every method of `service` with the function of `implementation` that serves it.

    A method that the implementation lacks is a programmer error.
    """
    bound = []
    for method in methods_of(service):
        handler = getattr(implementation, method.attribute, None)
        assert callable(handler), f"{type(implementation).__name__} does not serve {method.path}"
        bound.append(Bound(method, cast("Handler", handler)))
    return tuple(bound)


def by_lane(bound: Iterable[Bound]) -> dict[int, Bound]:
    """Those of `bound` that the lane carries, by number."""
    return {entry.method.lane: entry for entry in bound if entry.method.lane}


__all__ = [
    "ALL",
    "Answer",
    "AnyMethod",
    "Bound",
    "Handler",
    "Meta",
    "Method",
    "Mgmtd",
    "Replicas",
    "Sent",
    "Storage",
    "bind",
    "by_lane",
    "methods_of",
]
