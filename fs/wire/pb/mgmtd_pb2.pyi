from . import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NodeKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NODE_MGMTD: _ClassVar[NodeKind]
    NODE_META: _ClassVar[NodeKind]
    NODE_STORAGE: _ClassVar[NodeKind]
    NODE_CLIENT: _ClassVar[NodeKind]
    NODE_MOUNT: _ClassVar[NodeKind]

class NodeStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONNECTING: _ClassVar[NodeStatus]
    CONNECTED: _ClassVar[NodeStatus]
    FAILED: _ClassVar[NodeStatus]
    DISABLED: _ClassVar[NodeStatus]

class Leaving(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STAYS: _ClassVar[Leaving]
    DRAINED: _ClassVar[Leaving]
    OUT: _ClassVar[Leaving]

class PublicState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PUBLIC_INVALID: _ClassVar[PublicState]
    SERVING: _ClassVar[PublicState]
    LASTSRV: _ClassVar[PublicState]
    SYNCING: _ClassVar[PublicState]
    WAITING: _ClassVar[PublicState]
    OFFLINE: _ClassVar[PublicState]

class LocalState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOCAL_INVALID: _ClassVar[LocalState]
    LOCAL_UPTODATE: _ClassVar[LocalState]
    LOCAL_ONLINE: _ClassVar[LocalState]
    LOCAL_OFFLINE: _ClassVar[LocalState]

class DomainLevel(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DOMAIN_UNSET: _ClassVar[DomainLevel]
    DOMAIN_NODE: _ClassVar[DomainLevel]
    DOMAIN_HOST: _ClassVar[DomainLevel]
    DOMAIN_RACK: _ClassVar[DomainLevel]
    DOMAIN_ROOM: _ClassVar[DomainLevel]

class ReplicaData(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DATA_COMPLETE: _ClassVar[ReplicaData]
    DATA_PARTIAL: _ClassVar[ReplicaData]
    DATA_LOST: _ClassVar[ReplicaData]
NODE_MGMTD: NodeKind
NODE_META: NodeKind
NODE_STORAGE: NodeKind
NODE_CLIENT: NodeKind
NODE_MOUNT: NodeKind
CONNECTING: NodeStatus
CONNECTED: NodeStatus
FAILED: NodeStatus
DISABLED: NodeStatus
STAYS: Leaving
DRAINED: Leaving
OUT: Leaving
PUBLIC_INVALID: PublicState
SERVING: PublicState
LASTSRV: PublicState
SYNCING: PublicState
WAITING: PublicState
OFFLINE: PublicState
LOCAL_INVALID: LocalState
LOCAL_UPTODATE: LocalState
LOCAL_ONLINE: LocalState
LOCAL_OFFLINE: LocalState
DOMAIN_UNSET: DomainLevel
DOMAIN_NODE: DomainLevel
DOMAIN_HOST: DomainLevel
DOMAIN_RACK: DomainLevel
DOMAIN_ROOM: DomainLevel
DATA_COMPLETE: ReplicaData
DATA_PARTIAL: ReplicaData
DATA_LOST: ReplicaData

class Labels(_message.Message):
    __slots__ = ("room", "rack", "host")
    ROOM_FIELD_NUMBER: _ClassVar[int]
    RACK_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    room: str
    rack: str
    host: str
    def __init__(self, room: _Optional[str] = ..., rack: _Optional[str] = ..., host: _Optional[str] = ...) -> None: ...

class Node(_message.Message):
    __slots__ = ("id", "kind", "status", "host", "pid", "incarnation", "grpc_address", "lane_address", "data_address", "data_socket", "boot_id", "release", "changed_at", "epoch", "labels", "leaving", "successor")
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    GRPC_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LANE_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    DATA_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    DATA_SOCKET_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    CHANGED_AT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    SUCCESSOR_FIELD_NUMBER: _ClassVar[int]
    id: int
    kind: NodeKind
    status: NodeStatus
    host: str
    pid: int
    incarnation: int
    grpc_address: str
    lane_address: str
    data_address: str
    data_socket: str
    boot_id: str
    release: str
    changed_at: int
    epoch: int
    labels: Labels
    leaving: Leaving
    successor: int
    def __init__(self, id: _Optional[int] = ..., kind: _Optional[_Union[NodeKind, str]] = ..., status: _Optional[_Union[NodeStatus, str]] = ..., host: _Optional[str] = ..., pid: _Optional[int] = ..., incarnation: _Optional[int] = ..., grpc_address: _Optional[str] = ..., lane_address: _Optional[str] = ..., data_address: _Optional[str] = ..., data_socket: _Optional[str] = ..., boot_id: _Optional[str] = ..., release: _Optional[str] = ..., changed_at: _Optional[int] = ..., epoch: _Optional[int] = ..., labels: _Optional[_Union[Labels, _Mapping]] = ..., leaving: _Optional[_Union[Leaving, str]] = ..., successor: _Optional[int] = ...) -> None: ...

class Target(_message.Message):
    __slots__ = ("id", "node", "state", "local", "used_bytes")
    ID_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    LOCAL_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    id: int
    node: int
    state: PublicState
    local: LocalState
    used_bytes: int
    def __init__(self, id: _Optional[int] = ..., node: _Optional[int] = ..., state: _Optional[_Union[PublicState, str]] = ..., local: _Optional[_Union[LocalState, str]] = ..., used_bytes: _Optional[int] = ...) -> None: ...

class Chain(_message.Message):
    __slots__ = ("id", "version", "targets", "changed_at", "preferred_order")
    ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    CHANGED_AT_FIELD_NUMBER: _ClassVar[int]
    PREFERRED_ORDER_FIELD_NUMBER: _ClassVar[int]
    id: int
    version: int
    targets: _containers.RepeatedCompositeFieldContainer[Target]
    changed_at: int
    preferred_order: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, id: _Optional[int] = ..., version: _Optional[int] = ..., targets: _Optional[_Iterable[_Union[Target, _Mapping]]] = ..., changed_at: _Optional[int] = ..., preferred_order: _Optional[_Iterable[int]] = ...) -> None: ...

class ChainTable(_message.Message):
    __slots__ = ("id", "version", "chains", "replicas", "description", "changed_at", "domain")
    ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    CHANGED_AT_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    id: int
    version: int
    chains: _containers.RepeatedScalarFieldContainer[int]
    replicas: int
    description: str
    changed_at: int
    domain: DomainLevel
    def __init__(self, id: _Optional[int] = ..., version: _Optional[int] = ..., chains: _Optional[_Iterable[int]] = ..., replicas: _Optional[int] = ..., description: _Optional[str] = ..., changed_at: _Optional[int] = ..., domain: _Optional[_Union[DomainLevel, str]] = ...) -> None: ...

class Routing(_message.Message):
    __slots__ = ("version", "bootstrapping", "nodes", "chains", "tables", "cluster_id", "delta", "removed_nodes", "manager", "revocations")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BOOTSTRAPPING_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    REMOVED_NODES_FIELD_NUMBER: _ClassVar[int]
    MANAGER_FIELD_NUMBER: _ClassVar[int]
    REVOCATIONS_FIELD_NUMBER: _ClassVar[int]
    version: int
    bootstrapping: bool
    nodes: _containers.RepeatedCompositeFieldContainer[Node]
    chains: _containers.RepeatedCompositeFieldContainer[Chain]
    tables: _containers.RepeatedCompositeFieldContainer[ChainTable]
    cluster_id: str
    delta: bool
    removed_nodes: _containers.RepeatedScalarFieldContainer[int]
    manager: int
    revocations: Revocations
    def __init__(self, version: _Optional[int] = ..., bootstrapping: _Optional[bool] = ..., nodes: _Optional[_Iterable[_Union[Node, _Mapping]]] = ..., chains: _Optional[_Iterable[_Union[Chain, _Mapping]]] = ..., tables: _Optional[_Iterable[_Union[ChainTable, _Mapping]]] = ..., cluster_id: _Optional[str] = ..., delta: _Optional[bool] = ..., removed_nodes: _Optional[_Iterable[int]] = ..., manager: _Optional[int] = ..., revocations: _Optional[_Union[Revocations, _Mapping]] = ...) -> None: ...

class RevokedToken(_message.Message):
    __slots__ = ("id", "expires_unix_s")
    ID_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    expires_unix_s: int
    def __init__(self, id: _Optional[bytes] = ..., expires_unix_s: _Optional[int] = ...) -> None: ...

class MintedBefore(_message.Message):
    __slots__ = ("key_id", "minted_unix_s")
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    MINTED_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    key_id: int
    minted_unix_s: int
    def __init__(self, key_id: _Optional[int] = ..., minted_unix_s: _Optional[int] = ...) -> None: ...

class Revocations(_message.Message):
    __slots__ = ("tokens", "minted_before")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    MINTED_BEFORE_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[RevokedToken]
    minted_before: _containers.RepeatedCompositeFieldContainer[MintedBefore]
    def __init__(self, tokens: _Optional[_Iterable[_Union[RevokedToken, _Mapping]]] = ..., minted_before: _Optional[_Iterable[_Union[MintedBefore, _Mapping]]] = ...) -> None: ...

class GetRoutingRequest(_message.Message):
    __slots__ = ("known_version", "wait_ms")
    KNOWN_VERSION_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    known_version: int
    wait_ms: int
    def __init__(self, known_version: _Optional[int] = ..., wait_ms: _Optional[int] = ...) -> None: ...

class LocalTarget(_message.Message):
    __slots__ = ("id", "state", "chain_version", "used_bytes", "chain", "data", "updates")
    ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    UPDATES_FIELD_NUMBER: _ClassVar[int]
    id: int
    state: LocalState
    chain_version: int
    used_bytes: int
    chain: int
    data: ReplicaData
    updates: int
    def __init__(self, id: _Optional[int] = ..., state: _Optional[_Union[LocalState, str]] = ..., chain_version: _Optional[int] = ..., used_bytes: _Optional[int] = ..., chain: _Optional[int] = ..., data: _Optional[_Union[ReplicaData, str]] = ..., updates: _Optional[int] = ...) -> None: ...

class StoreMark(_message.Message):
    __slots__ = ("store", "generation", "position")
    STORE_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    store: int
    generation: int
    position: int
    def __init__(self, store: _Optional[int] = ..., generation: _Optional[int] = ..., position: _Optional[int] = ...) -> None: ...

class EngineMark(_message.Message):
    __slots__ = ("identity", "opened", "round")
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    identity: str
    opened: int
    round: int
    def __init__(self, identity: _Optional[str] = ..., opened: _Optional[int] = ..., round: _Optional[int] = ...) -> None: ...

class CheckStoreReply(_message.Message):
    __slots__ = ("may_serve",)
    MAY_SERVE_FIELD_NUMBER: _ClassVar[int]
    may_serve: bool
    def __init__(self, may_serve: _Optional[bool] = ...) -> None: ...

class Marks(_message.Message):
    __slots__ = ("format", "term", "manager", "meta_store", "chains", "tables", "revocations")
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    MANAGER_FIELD_NUMBER: _ClassVar[int]
    META_STORE_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    REVOCATIONS_FIELD_NUMBER: _ClassVar[int]
    format: int
    term: int
    manager: int
    meta_store: StoreMark
    chains: _containers.RepeatedCompositeFieldContainer[Chain]
    tables: _containers.RepeatedCompositeFieldContainer[ChainTable]
    revocations: Revocations
    def __init__(self, format: _Optional[int] = ..., term: _Optional[int] = ..., manager: _Optional[int] = ..., meta_store: _Optional[_Union[StoreMark, _Mapping]] = ..., chains: _Optional[_Iterable[_Union[Chain, _Mapping]]] = ..., tables: _Optional[_Iterable[_Union[ChainTable, _Mapping]]] = ..., revocations: _Optional[_Union[Revocations, _Mapping]] = ...) -> None: ...

class DiskSpace(_message.Message):
    __slots__ = ("capacity_bytes", "free_bytes")
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    capacity_bytes: int
    free_bytes: int
    def __init__(self, capacity_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ...) -> None: ...

class ConfigVersion(_message.Message):
    __slots__ = ("version", "toml", "unix_ms", "author")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TOML_FIELD_NUMBER: _ClassVar[int]
    UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    AUTHOR_FIELD_NUMBER: _ClassVar[int]
    version: int
    toml: str
    unix_ms: int
    author: str
    def __init__(self, version: _Optional[int] = ..., toml: _Optional[str] = ..., unix_ms: _Optional[int] = ..., author: _Optional[str] = ...) -> None: ...

class SetConfigRequest(_message.Message):
    __slots__ = ("toml", "unset", "revert_to")
    TOML_FIELD_NUMBER: _ClassVar[int]
    UNSET_FIELD_NUMBER: _ClassVar[int]
    REVERT_TO_FIELD_NUMBER: _ClassVar[int]
    toml: str
    unset: _containers.RepeatedScalarFieldContainer[str]
    revert_to: int
    def __init__(self, toml: _Optional[str] = ..., unset: _Optional[_Iterable[str]] = ..., revert_to: _Optional[int] = ...) -> None: ...

class ConfigState(_message.Message):
    __slots__ = ("version", "waiting", "own_toml", "problem")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    OWN_TOML_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    version: int
    waiting: _containers.RepeatedScalarFieldContainer[str]
    own_toml: str
    problem: str
    def __init__(self, version: _Optional[int] = ..., waiting: _Optional[_Iterable[str]] = ..., own_toml: _Optional[str] = ..., problem: _Optional[str] = ...) -> None: ...

class NodeConfig(_message.Message):
    __slots__ = ("node", "kind", "status", "state")
    NODE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    node: int
    kind: NodeKind
    status: NodeStatus
    state: ConfigState
    def __init__(self, node: _Optional[int] = ..., kind: _Optional[_Union[NodeKind, str]] = ..., status: _Optional[_Union[NodeStatus, str]] = ..., state: _Optional[_Union[ConfigState, _Mapping]] = ...) -> None: ...

class ConfigStatus(_message.Message):
    __slots__ = ("history", "nodes")
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    history: _containers.RepeatedCompositeFieldContainer[ConfigVersion]
    nodes: _containers.RepeatedCompositeFieldContainer[NodeConfig]
    def __init__(self, history: _Optional[_Iterable[_Union[ConfigVersion, _Mapping]]] = ..., nodes: _Optional[_Iterable[_Union[NodeConfig, _Mapping]]] = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("node", "sequence", "targets", "leaving", "meta_store", "outdated", "directory_incarnations", "engine", "disk", "config")
    NODE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    META_STORE_FIELD_NUMBER: _ClassVar[int]
    OUTDATED_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_INCARNATIONS_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    DISK_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    node: Node
    sequence: int
    targets: _containers.RepeatedCompositeFieldContainer[LocalTarget]
    leaving: bool
    meta_store: StoreMark
    outdated: str
    directory_incarnations: _containers.RepeatedScalarFieldContainer[int]
    engine: EngineMark
    disk: DiskSpace
    config: ConfigState
    def __init__(self, node: _Optional[_Union[Node, _Mapping]] = ..., sequence: _Optional[int] = ..., targets: _Optional[_Iterable[_Union[LocalTarget, _Mapping]]] = ..., leaving: _Optional[bool] = ..., meta_store: _Optional[_Union[StoreMark, _Mapping]] = ..., outdated: _Optional[str] = ..., directory_incarnations: _Optional[_Iterable[int]] = ..., engine: _Optional[_Union[EngineMark, _Mapping]] = ..., disk: _Optional[_Union[DiskSpace, _Mapping]] = ..., config: _Optional[_Union[ConfigState, _Mapping]] = ...) -> None: ...

class HeartbeatReply(_message.Message):
    __slots__ = ("routing_version", "lease_ms", "interval_ms", "meta_store", "config_version")
    ROUTING_VERSION_FIELD_NUMBER: _ClassVar[int]
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    META_STORE_FIELD_NUMBER: _ClassVar[int]
    CONFIG_VERSION_FIELD_NUMBER: _ClassVar[int]
    routing_version: int
    lease_ms: int
    interval_ms: int
    meta_store: StoreMark
    config_version: int
    def __init__(self, routing_version: _Optional[int] = ..., lease_ms: _Optional[int] = ..., interval_ms: _Optional[int] = ..., meta_store: _Optional[_Union[StoreMark, _Mapping]] = ..., config_version: _Optional[int] = ...) -> None: ...

class ExtendClientRequest(_message.Message):
    __slots__ = ("client", "host", "description", "kind", "started_unix_ms", "leaving", "pid", "release")
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STARTED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    client: int
    host: str
    description: str
    kind: NodeKind
    started_unix_ms: int
    leaving: bool
    pid: int
    release: str
    def __init__(self, client: _Optional[int] = ..., host: _Optional[str] = ..., description: _Optional[str] = ..., kind: _Optional[_Union[NodeKind, str]] = ..., started_unix_ms: _Optional[int] = ..., leaving: _Optional[bool] = ..., pid: _Optional[int] = ..., release: _Optional[str] = ...) -> None: ...

class ExtendClientReply(_message.Message):
    __slots__ = ("interval_ms", "session_timeout_ms")
    INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    SESSION_TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    interval_ms: int
    session_timeout_ms: int
    def __init__(self, interval_ms: _Optional[int] = ..., session_timeout_ms: _Optional[int] = ...) -> None: ...

class ClientSession(_message.Message):
    __slots__ = ("client", "host", "description", "kind", "started_unix_ms", "last_seen_unix_ms", "pid", "release", "role", "uid", "token")
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STARTED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    client: int
    host: str
    description: str
    kind: NodeKind
    started_unix_ms: int
    last_seen_unix_ms: int
    pid: int
    release: str
    role: _common_pb2.Claims.Role
    uid: int
    token: bytes
    def __init__(self, client: _Optional[int] = ..., host: _Optional[str] = ..., description: _Optional[str] = ..., kind: _Optional[_Union[NodeKind, str]] = ..., started_unix_ms: _Optional[int] = ..., last_seen_unix_ms: _Optional[int] = ..., pid: _Optional[int] = ..., release: _Optional[str] = ..., role: _Optional[_Union[_common_pb2.Claims.Role, str]] = ..., uid: _Optional[int] = ..., token: _Optional[bytes] = ...) -> None: ...

class ListClientsReply(_message.Message):
    __slots__ = ("clients", "bootstrapping", "unix_ms")
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    BOOTSTRAPPING_FIELD_NUMBER: _ClassVar[int]
    UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    clients: _containers.RepeatedCompositeFieldContainer[ClientSession]
    bootstrapping: bool
    unix_ms: int
    def __init__(self, clients: _Optional[_Iterable[_Union[ClientSession, _Mapping]]] = ..., bootstrapping: _Optional[bool] = ..., unix_ms: _Optional[int] = ...) -> None: ...

class CreateChainTableRequest(_message.Message):
    __slots__ = ("table", "replicas", "chains", "description", "domain")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    table: int
    replicas: int
    chains: int
    description: str
    domain: DomainLevel
    def __init__(self, table: _Optional[int] = ..., replicas: _Optional[int] = ..., chains: _Optional[int] = ..., description: _Optional[str] = ..., domain: _Optional[_Union[DomainLevel, str]] = ...) -> None: ...

class UpdateChainRequest(_message.Message):
    __slots__ = ("chain", "action", "target", "node")
    class Action(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ADD: _ClassVar[UpdateChainRequest.Action]
        REMOVE: _ClassVar[UpdateChainRequest.Action]
        ROTATE_LASTSRV: _ClassVar[UpdateChainRequest.Action]
        ROTATE_PREFERRED: _ClassVar[UpdateChainRequest.Action]
    ADD: UpdateChainRequest.Action
    REMOVE: UpdateChainRequest.Action
    ROTATE_LASTSRV: UpdateChainRequest.Action
    ROTATE_PREFERRED: UpdateChainRequest.Action
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    chain: int
    action: UpdateChainRequest.Action
    target: int
    node: int
    def __init__(self, chain: _Optional[int] = ..., action: _Optional[_Union[UpdateChainRequest.Action, str]] = ..., target: _Optional[int] = ..., node: _Optional[int] = ...) -> None: ...

class NodeRequest(_message.Message):
    __slots__ = ("node",)
    NODE_FIELD_NUMBER: _ClassVar[int]
    node: int
    def __init__(self, node: _Optional[int] = ...) -> None: ...

class ReserveNodeRequest(_message.Message):
    __slots__ = ("kind", "host")
    KIND_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    kind: NodeKind
    host: str
    def __init__(self, kind: _Optional[_Union[NodeKind, str]] = ..., host: _Optional[str] = ...) -> None: ...

class IssueCertificateRequest(_message.Message):
    __slots__ = ("request", "name", "address", "roles", "lifetime_s")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    LIFETIME_S_FIELD_NUMBER: _ClassVar[int]
    request: bytes
    name: str
    address: str
    roles: _containers.RepeatedScalarFieldContainer[str]
    lifetime_s: int
    def __init__(self, request: _Optional[bytes] = ..., name: _Optional[str] = ..., address: _Optional[str] = ..., roles: _Optional[_Iterable[str]] = ..., lifetime_s: _Optional[int] = ...) -> None: ...

class IssueCertificateReply(_message.Message):
    __slots__ = ("certificate", "authority_key")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_KEY_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    authority_key: bytes
    def __init__(self, certificate: _Optional[bytes] = ..., authority_key: _Optional[bytes] = ...) -> None: ...

class SetNodeDisabledRequest(_message.Message):
    __slots__ = ("node", "disabled", "accept_unavailable")
    NODE_FIELD_NUMBER: _ClassVar[int]
    DISABLED_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_UNAVAILABLE_FIELD_NUMBER: _ClassVar[int]
    node: int
    disabled: bool
    accept_unavailable: bool
    def __init__(self, node: _Optional[int] = ..., disabled: _Optional[bool] = ..., accept_unavailable: _Optional[bool] = ...) -> None: ...

class DrainNodeRequest(_message.Message):
    __slots__ = ("node", "drained", "successor")
    NODE_FIELD_NUMBER: _ClassVar[int]
    DRAINED_FIELD_NUMBER: _ClassVar[int]
    SUCCESSOR_FIELD_NUMBER: _ClassVar[int]
    node: int
    drained: bool
    successor: int
    def __init__(self, node: _Optional[int] = ..., drained: _Optional[bool] = ..., successor: _Optional[int] = ...) -> None: ...

class Move(_message.Message):
    __slots__ = ("chain", "target", "node", "heals")
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    HEALS_FIELD_NUMBER: _ClassVar[int]
    chain: int
    target: int
    node: int
    heals: bool
    def __init__(self, chain: _Optional[int] = ..., target: _Optional[int] = ..., node: _Optional[int] = ..., heals: _Optional[bool] = ...) -> None: ...

class Rebalance(_message.Message):
    __slots__ = ("paused", "concurrent", "total", "done")
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    CONCURRENT_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    paused: bool
    concurrent: int
    total: int
    done: int
    def __init__(self, paused: _Optional[bool] = ..., concurrent: _Optional[int] = ..., total: _Optional[int] = ..., done: _Optional[int] = ...) -> None: ...

class StartMovesRequest(_message.Message):
    __slots__ = ("moves", "concurrent")
    MOVES_FIELD_NUMBER: _ClassVar[int]
    CONCURRENT_FIELD_NUMBER: _ClassVar[int]
    moves: _containers.RepeatedCompositeFieldContainer[Move]
    concurrent: int
    def __init__(self, moves: _Optional[_Iterable[_Union[Move, _Mapping]]] = ..., concurrent: _Optional[int] = ...) -> None: ...

class ControlMovesRequest(_message.Message):
    __slots__ = ("action",)
    class Action(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATUS: _ClassVar[ControlMovesRequest.Action]
        PAUSE: _ClassVar[ControlMovesRequest.Action]
        RESUME: _ClassVar[ControlMovesRequest.Action]
        CANCEL: _ClassVar[ControlMovesRequest.Action]
    STATUS: ControlMovesRequest.Action
    PAUSE: ControlMovesRequest.Action
    RESUME: ControlMovesRequest.Action
    CANCEL: ControlMovesRequest.Action
    ACTION_FIELD_NUMBER: _ClassVar[int]
    action: ControlMovesRequest.Action
    def __init__(self, action: _Optional[_Union[ControlMovesRequest.Action, str]] = ...) -> None: ...

class MovesStatus(_message.Message):
    __slots__ = ("rebalance", "active", "waiting", "obstacle", "leaving")
    REBALANCE_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    OBSTACLE_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    rebalance: Rebalance
    active: _containers.RepeatedCompositeFieldContainer[Move]
    waiting: int
    obstacle: str
    leaving: _containers.RepeatedCompositeFieldContainer[LeavingNode]
    def __init__(self, rebalance: _Optional[_Union[Rebalance, _Mapping]] = ..., active: _Optional[_Iterable[_Union[Move, _Mapping]]] = ..., waiting: _Optional[int] = ..., obstacle: _Optional[str] = ..., leaving: _Optional[_Iterable[_Union[LeavingNode, _Mapping]]] = ...) -> None: ...

class LeavingNode(_message.Message):
    __slots__ = ("node", "replicas", "obstacle")
    NODE_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    OBSTACLE_FIELD_NUMBER: _ClassVar[int]
    node: int
    replicas: int
    obstacle: str
    def __init__(self, node: _Optional[int] = ..., replicas: _Optional[int] = ..., obstacle: _Optional[str] = ...) -> None: ...

class ProcessEndedRequest(_message.Message):
    __slots__ = ("node", "incarnation", "pid")
    NODE_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    node: int
    incarnation: int
    pid: int
    def __init__(self, node: _Optional[int] = ..., incarnation: _Optional[int] = ..., pid: _Optional[int] = ...) -> None: ...
