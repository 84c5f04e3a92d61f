from . import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ChainRef(_message.Message):
    __slots__ = ("chain", "version")
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    chain: int
    version: int
    def __init__(self, chain: _Optional[int] = ..., version: _Optional[int] = ...) -> None: ...

class ChunkName(_message.Message):
    __slots__ = ("content", "index")
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    content: int
    index: int
    def __init__(self, content: _Optional[int] = ..., index: _Optional[int] = ...) -> None: ...

class LastChunkRequest(_message.Message):
    __slots__ = ("chain", "content")
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    chain: ChainRef
    content: int
    def __init__(self, chain: _Optional[_Union[ChainRef, _Mapping]] = ..., content: _Optional[int] = ...) -> None: ...

class LastChunkReply(_message.Message):
    __slots__ = ("found", "chunk", "length")
    FOUND_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    found: bool
    chunk: ChunkName
    length: int
    def __init__(self, found: _Optional[bool] = ..., chunk: _Optional[_Union[ChunkName, _Mapping]] = ..., length: _Optional[int] = ...) -> None: ...

class ClockReply(_message.Message):
    __slots__ = ("life", "now_ms")
    LIFE_FIELD_NUMBER: _ClassVar[int]
    NOW_MS_FIELD_NUMBER: _ClassVar[int]
    life: int
    now_ms: int
    def __init__(self, life: _Optional[int] = ..., now_ms: _Optional[int] = ...) -> None: ...

class Expiry(_message.Message):
    __slots__ = ("life", "at_ms")
    LIFE_FIELD_NUMBER: _ClassVar[int]
    AT_MS_FIELD_NUMBER: _ClassVar[int]
    life: int
    at_ms: int
    def __init__(self, life: _Optional[int] = ..., at_ms: _Optional[int] = ...) -> None: ...

class RemoveChunksRequest(_message.Message):
    __slots__ = ("chain", "removals", "durable", "limit", "client", "sequence", "expiry")
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    REMOVALS_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    EXPIRY_FIELD_NUMBER: _ClassVar[int]
    chain: ChainRef
    removals: _containers.RepeatedCompositeFieldContainer[ChunkName]
    durable: bool
    limit: int
    client: int
    sequence: int
    expiry: Expiry
    def __init__(self, chain: _Optional[_Union[ChainRef, _Mapping]] = ..., removals: _Optional[_Iterable[_Union[ChunkName, _Mapping]]] = ..., durable: _Optional[bool] = ..., limit: _Optional[int] = ..., client: _Optional[int] = ..., sequence: _Optional[int] = ..., expiry: _Optional[_Union[Expiry, _Mapping]] = ...) -> None: ...

class RemoveChunksReply(_message.Message):
    __slots__ = ("removed", "more", "finished", "next_index")
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    NEXT_INDEX_FIELD_NUMBER: _ClassVar[int]
    removed: int
    more: bool
    finished: int
    next_index: int
    def __init__(self, removed: _Optional[int] = ..., more: _Optional[bool] = ..., finished: _Optional[int] = ..., next_index: _Optional[int] = ...) -> None: ...

class TruncateChunkRequest(_message.Message):
    __slots__ = ("chain", "chunk", "length", "client", "sequence", "expiry")
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    EXPIRY_FIELD_NUMBER: _ClassVar[int]
    chain: ChainRef
    chunk: ChunkName
    length: int
    client: int
    sequence: int
    expiry: Expiry
    def __init__(self, chain: _Optional[_Union[ChainRef, _Mapping]] = ..., chunk: _Optional[_Union[ChunkName, _Mapping]] = ..., length: _Optional[int] = ..., client: _Optional[int] = ..., sequence: _Optional[int] = ..., expiry: _Optional[_Union[Expiry, _Mapping]] = ...) -> None: ...

class ChunkRecord(_message.Message):
    __slots__ = ("chunk", "version", "chain_version", "length", "crc32c", "pending", "removed", "pending_version")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    PENDING_VERSION_FIELD_NUMBER: _ClassVar[int]
    chunk: ChunkName
    version: int
    chain_version: int
    length: int
    crc32c: int
    pending: bool
    removed: bool
    pending_version: int
    def __init__(self, chunk: _Optional[_Union[ChunkName, _Mapping]] = ..., version: _Optional[int] = ..., chain_version: _Optional[int] = ..., length: _Optional[int] = ..., crc32c: _Optional[int] = ..., pending: _Optional[bool] = ..., removed: _Optional[bool] = ..., pending_version: _Optional[int] = ...) -> None: ...

class ListChunksRequest(_message.Message):
    __slots__ = ("chain", "after", "limit", "since_round")
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    SINCE_ROUND_FIELD_NUMBER: _ClassVar[int]
    chain: int
    after: ChunkName
    limit: int
    since_round: int
    def __init__(self, chain: _Optional[int] = ..., after: _Optional[_Union[ChunkName, _Mapping]] = ..., limit: _Optional[int] = ..., since_round: _Optional[int] = ...) -> None: ...

class ListChunksReply(_message.Message):
    __slots__ = ("chunks", "more", "round")
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    chunks: _containers.RepeatedCompositeFieldContainer[ChunkRecord]
    more: bool
    round: int
    def __init__(self, chunks: _Optional[_Iterable[_Union[ChunkRecord, _Mapping]]] = ..., more: _Optional[bool] = ..., round: _Optional[int] = ...) -> None: ...

class HoldUpdatesRequest(_message.Message):
    __slots__ = ("holder", "limit_ms")
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_MS_FIELD_NUMBER: _ClassVar[int]
    holder: int
    limit_ms: int
    def __init__(self, holder: _Optional[int] = ..., limit_ms: _Optional[int] = ...) -> None: ...

class ReleaseUpdatesRequest(_message.Message):
    __slots__ = ("holder",)
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    holder: int
    def __init__(self, holder: _Optional[int] = ...) -> None: ...

class ReleaseUpdatesReply(_message.Message):
    __slots__ = ("lasted",)
    LASTED_FIELD_NUMBER: _ClassVar[int]
    lasted: bool
    def __init__(self, lasted: _Optional[bool] = ...) -> None: ...

class SyncStartRequest(_message.Message):
    __slots__ = ("chain", "after")
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    chain: ChainRef
    after: ChunkName
    def __init__(self, chain: _Optional[_Union[ChainRef, _Mapping]] = ..., after: _Optional[_Union[ChunkName, _Mapping]] = ...) -> None: ...

class QuarantineChunksRequest(_message.Message):
    __slots__ = ("chain", "chunks")
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    chain: ChainRef
    chunks: _containers.RepeatedCompositeFieldContainer[ChunkRecord]
    def __init__(self, chain: _Optional[_Union[ChainRef, _Mapping]] = ..., chunks: _Optional[_Iterable[_Union[ChunkRecord, _Mapping]]] = ...) -> None: ...

class QuarantineChunksReply(_message.Message):
    __slots__ = ("quarantined",)
    QUARANTINED_FIELD_NUMBER: _ClassVar[int]
    quarantined: int
    def __init__(self, quarantined: _Optional[int] = ...) -> None: ...

class SyncDoneRequest(_message.Message):
    __slots__ = ("chain",)
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    chain: ChainRef
    def __init__(self, chain: _Optional[_Union[ChainRef, _Mapping]] = ...) -> None: ...

class SpaceReply(_message.Message):
    __slots__ = ("capacity_bytes", "free_bytes", "used_bytes", "disk", "full")
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_FIELD_NUMBER: _ClassVar[int]
    FULL_FIELD_NUMBER: _ClassVar[int]
    capacity_bytes: int
    free_bytes: int
    used_bytes: int
    disk: str
    full: bool
    def __init__(self, capacity_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., used_bytes: _Optional[int] = ..., disk: _Optional[str] = ..., full: _Optional[bool] = ...) -> None: ...

class ScrubRequest(_message.Message):
    __slots__ = ("chain", "repair")
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    REPAIR_FIELD_NUMBER: _ClassVar[int]
    chain: int
    repair: bool
    def __init__(self, chain: _Optional[int] = ..., repair: _Optional[bool] = ...) -> None: ...

class ScrubReply(_message.Message):
    __slots__ = ("chunks", "bytes", "damaged", "repaired")
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    REPAIRED_FIELD_NUMBER: _ClassVar[int]
    chunks: int
    bytes: int
    damaged: _containers.RepeatedCompositeFieldContainer[ChunkRecord]
    repaired: int
    def __init__(self, chunks: _Optional[int] = ..., bytes: _Optional[int] = ..., damaged: _Optional[_Iterable[_Union[ChunkRecord, _Mapping]]] = ..., repaired: _Optional[int] = ...) -> None: ...

class StorageStatus(_message.Message):
    __slots__ = ("space", "counters", "targets", "directory", "unix_ms")
    class CountersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    SPACE_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    space: SpaceReply
    counters: _containers.ScalarMap[str, int]
    targets: _containers.RepeatedCompositeFieldContainer[TargetStatus]
    directory: str
    unix_ms: int
    def __init__(self, space: _Optional[_Union[SpaceReply, _Mapping]] = ..., counters: _Optional[_Mapping[str, int]] = ..., targets: _Optional[_Iterable[_Union[TargetStatus, _Mapping]]] = ..., directory: _Optional[str] = ..., unix_ms: _Optional[int] = ...) -> None: ...

class TargetStatus(_message.Message):
    __slots__ = ("id", "chain", "chain_version", "local", "public", "chunks", "used_bytes", "synced_chunks")
    ID_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    LOCAL_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    SYNCED_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    id: int
    chain: int
    chain_version: int
    local: str
    public: str
    chunks: int
    used_bytes: int
    synced_chunks: int
    def __init__(self, id: _Optional[int] = ..., chain: _Optional[int] = ..., chain_version: _Optional[int] = ..., local: _Optional[str] = ..., public: _Optional[str] = ..., chunks: _Optional[int] = ..., used_bytes: _Optional[int] = ..., synced_chunks: _Optional[int] = ...) -> None: ...
