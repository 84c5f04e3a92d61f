from . import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FileType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TYPE_INVALID: _ClassVar[FileType]
    REGULAR: _ClassVar[FileType]
    DIRECTORY: _ClassVar[FileType]
    SYMLINK: _ClassVar[FileType]
    FIFO: _ClassVar[FileType]
    SOCKET: _ClassVar[FileType]
    CHAR_DEVICE: _ClassVar[FileType]
    BLOCK_DEVICE: _ClassVar[FileType]

class ChangeKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CHANGE_INVALID: _ClassVar[ChangeKind]
    CHANGE_CREATE: _ClassVar[ChangeKind]
    CHANGE_LINK: _ClassVar[ChangeKind]
    CHANGE_RENAME: _ClassVar[ChangeKind]
    CHANGE_REMOVE: _ClassVar[ChangeKind]
    CHANGE_ATTRIBUTES: _ClassVar[ChangeKind]
TYPE_INVALID: FileType
REGULAR: FileType
DIRECTORY: FileType
SYMLINK: FileType
FIFO: FileType
SOCKET: FileType
CHAR_DEVICE: FileType
BLOCK_DEVICE: FileType
CHANGE_INVALID: ChangeKind
CHANGE_CREATE: ChangeKind
CHANGE_LINK: ChangeKind
CHANGE_RENAME: ChangeKind
CHANGE_REMOVE: ChangeKind
CHANGE_ATTRIBUTES: ChangeKind

class Layout(_message.Message):
    __slots__ = ("table", "table_version", "chunk_bytes", "stripe", "permutation_version", "seed", "base", "inline_bytes")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    TABLE_VERSION_FIELD_NUMBER: _ClassVar[int]
    CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    STRIPE_FIELD_NUMBER: _ClassVar[int]
    PERMUTATION_VERSION_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    INLINE_BYTES_FIELD_NUMBER: _ClassVar[int]
    table: int
    table_version: int
    chunk_bytes: int
    stripe: int
    permutation_version: int
    seed: int
    base: int
    inline_bytes: int
    def __init__(self, table: _Optional[int] = ..., table_version: _Optional[int] = ..., chunk_bytes: _Optional[int] = ..., stripe: _Optional[int] = ..., permutation_version: _Optional[int] = ..., seed: _Optional[int] = ..., base: _Optional[int] = ..., inline_bytes: _Optional[int] = ...) -> None: ...

class Inode(_message.Message):
    __slots__ = ("id", "type", "permissions", "uid", "gid", "link_count", "length", "atime_ns", "mtime_ns", "ctime_ns", "device", "layout", "content", "truncate_version", "is_inline", "inline_data", "symlink_target", "parent", "name", "change", "birth_ns", "bytes_withheld", "open_for_writing", "others_write", "cookie")
    ID_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    PERMISSIONS_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    LINK_COUNT_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    ATIME_NS_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    CTIME_NS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    IS_INLINE_FIELD_NUMBER: _ClassVar[int]
    INLINE_DATA_FIELD_NUMBER: _ClassVar[int]
    SYMLINK_TARGET_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    BIRTH_NS_FIELD_NUMBER: _ClassVar[int]
    BYTES_WITHHELD_FIELD_NUMBER: _ClassVar[int]
    OPEN_FOR_WRITING_FIELD_NUMBER: _ClassVar[int]
    OTHERS_WRITE_FIELD_NUMBER: _ClassVar[int]
    COOKIE_FIELD_NUMBER: _ClassVar[int]
    id: int
    type: FileType
    permissions: int
    uid: int
    gid: int
    link_count: int
    length: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    device: int
    layout: Layout
    content: int
    truncate_version: int
    is_inline: bool
    inline_data: bytes
    symlink_target: bytes
    parent: int
    name: bytes
    change: int
    birth_ns: int
    bytes_withheld: bool
    open_for_writing: bool
    others_write: bool
    cookie: int
    def __init__(self, id: _Optional[int] = ..., type: _Optional[_Union[FileType, str]] = ..., permissions: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., link_count: _Optional[int] = ..., length: _Optional[int] = ..., atime_ns: _Optional[int] = ..., mtime_ns: _Optional[int] = ..., ctime_ns: _Optional[int] = ..., device: _Optional[int] = ..., layout: _Optional[_Union[Layout, _Mapping]] = ..., content: _Optional[int] = ..., truncate_version: _Optional[int] = ..., is_inline: _Optional[bool] = ..., inline_data: _Optional[bytes] = ..., symlink_target: _Optional[bytes] = ..., parent: _Optional[int] = ..., name: _Optional[bytes] = ..., change: _Optional[int] = ..., birth_ns: _Optional[int] = ..., bytes_withheld: _Optional[bool] = ..., open_for_writing: _Optional[bool] = ..., others_write: _Optional[bool] = ..., cookie: _Optional[int] = ...) -> None: ...

class Path(_message.Message):
    __slots__ = ("at", "path")
    AT_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    at: int
    path: bytes
    def __init__(self, at: _Optional[int] = ..., path: _Optional[bytes] = ...) -> None: ...

class LookupRequest(_message.Message):
    __slots__ = ("caller", "parent", "name")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    parent: int
    name: bytes
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., parent: _Optional[int] = ..., name: _Optional[bytes] = ...) -> None: ...

class StatRequest(_message.Message):
    __slots__ = ("caller", "path", "follow", "exact")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    path: Path
    follow: bool
    exact: bool
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., path: _Optional[_Union[Path, _Mapping]] = ..., follow: _Optional[bool] = ..., exact: _Optional[bool] = ...) -> None: ...

class InodeReply(_message.Message):
    __slots__ = ("inode", "session", "created", "spare")
    INODE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    SPARE_FIELD_NUMBER: _ClassVar[int]
    inode: Inode
    session: int
    created: bool
    spare: Spare
    def __init__(self, inode: _Optional[_Union[Inode, _Mapping]] = ..., session: _Optional[int] = ..., created: _Optional[bool] = ..., spare: _Optional[_Union[Spare, _Mapping]] = ...) -> None: ...

class Spare(_message.Message):
    __slots__ = ("content", "reserved_ms")
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    RESERVED_MS_FIELD_NUMBER: _ClassVar[int]
    content: int
    reserved_ms: int
    def __init__(self, content: _Optional[int] = ..., reserved_ms: _Optional[int] = ...) -> None: ...

class CreateRequest(_message.Message):
    __slots__ = ("caller", "path", "permissions", "exclusive", "truncate", "write", "layout", "read", "in_chunks")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    PERMISSIONS_FIELD_NUMBER: _ClassVar[int]
    EXCLUSIVE_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    WRITE_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    READ_FIELD_NUMBER: _ClassVar[int]
    IN_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    path: Path
    permissions: int
    exclusive: bool
    truncate: bool
    write: bool
    layout: Layout
    read: bool
    in_chunks: bool
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., path: _Optional[_Union[Path, _Mapping]] = ..., permissions: _Optional[int] = ..., exclusive: _Optional[bool] = ..., truncate: _Optional[bool] = ..., write: _Optional[bool] = ..., layout: _Optional[_Union[Layout, _Mapping]] = ..., read: _Optional[bool] = ..., in_chunks: _Optional[bool] = ...) -> None: ...

class OpenRequest(_message.Message):
    __slots__ = ("caller", "path", "read", "write", "truncate", "follow")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    READ_FIELD_NUMBER: _ClassVar[int]
    WRITE_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    path: Path
    read: bool
    write: bool
    truncate: bool
    follow: bool
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., path: _Optional[_Union[Path, _Mapping]] = ..., read: _Optional[bool] = ..., write: _Optional[bool] = ..., truncate: _Optional[bool] = ..., follow: _Optional[bool] = ...) -> None: ...

class LengthHint(_message.Message):
    __slots__ = ("length", "truncate_version")
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    length: int
    truncate_version: int
    def __init__(self, length: _Optional[int] = ..., truncate_version: _Optional[int] = ...) -> None: ...

class CloseRequest(_message.Message):
    __slots__ = ("caller", "closes")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    CLOSES_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    closes: _containers.RepeatedCompositeFieldContainer[CloseOne]
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., closes: _Optional[_Iterable[_Union[CloseOne, _Mapping]]] = ...) -> None: ...

class CloseOne(_message.Message):
    __slots__ = ("inode", "session", "length", "mtime_ns", "has_inline", "inline_data", "read_hold", "inline_base", "clear_set_id", "measure")
    INODE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    HAS_INLINE_FIELD_NUMBER: _ClassVar[int]
    INLINE_DATA_FIELD_NUMBER: _ClassVar[int]
    READ_HOLD_FIELD_NUMBER: _ClassVar[int]
    INLINE_BASE_FIELD_NUMBER: _ClassVar[int]
    CLEAR_SET_ID_FIELD_NUMBER: _ClassVar[int]
    MEASURE_FIELD_NUMBER: _ClassVar[int]
    inode: int
    session: int
    length: LengthHint
    mtime_ns: int
    has_inline: bool
    inline_data: bytes
    read_hold: bool
    inline_base: int
    clear_set_id: bool
    measure: bool
    def __init__(self, inode: _Optional[int] = ..., session: _Optional[int] = ..., length: _Optional[_Union[LengthHint, _Mapping]] = ..., mtime_ns: _Optional[int] = ..., has_inline: _Optional[bool] = ..., inline_data: _Optional[bytes] = ..., read_hold: _Optional[bool] = ..., inline_base: _Optional[int] = ..., clear_set_id: _Optional[bool] = ..., measure: _Optional[bool] = ...) -> None: ...

class CloseReply(_message.Message):
    __slots__ = ("results", "errors")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[InodeReply]
    errors: _containers.RepeatedCompositeFieldContainer[_common_pb2.Error]
    def __init__(self, results: _Optional[_Iterable[_Union[InodeReply, _Mapping]]] = ..., errors: _Optional[_Iterable[_Union[_common_pb2.Error, _Mapping]]] = ...) -> None: ...

class SyncRequest(_message.Message):
    __slots__ = ("caller", "inode", "length", "mtime_ns", "exact", "has_inline", "inline_data", "leave_inline", "durable", "session", "inline_base", "attributes", "reserve_spare", "spare", "clear_set_id")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    HAS_INLINE_FIELD_NUMBER: _ClassVar[int]
    INLINE_DATA_FIELD_NUMBER: _ClassVar[int]
    LEAVE_INLINE_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    INLINE_BASE_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    RESERVE_SPARE_FIELD_NUMBER: _ClassVar[int]
    SPARE_FIELD_NUMBER: _ClassVar[int]
    CLEAR_SET_ID_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    inode: int
    length: LengthHint
    mtime_ns: int
    exact: bool
    has_inline: bool
    inline_data: bytes
    leave_inline: bool
    durable: bool
    session: int
    inline_base: int
    attributes: SetAttrRequest
    reserve_spare: bool
    spare: Spare
    clear_set_id: bool
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., inode: _Optional[int] = ..., length: _Optional[_Union[LengthHint, _Mapping]] = ..., mtime_ns: _Optional[int] = ..., exact: _Optional[bool] = ..., has_inline: _Optional[bool] = ..., inline_data: _Optional[bytes] = ..., leave_inline: _Optional[bool] = ..., durable: _Optional[bool] = ..., session: _Optional[int] = ..., inline_base: _Optional[int] = ..., attributes: _Optional[_Union[SetAttrRequest, _Mapping]] = ..., reserve_spare: _Optional[bool] = ..., spare: _Optional[_Union[Spare, _Mapping]] = ..., clear_set_id: _Optional[bool] = ...) -> None: ...

class MknodRequest(_message.Message):
    __slots__ = ("caller", "path", "type", "permissions", "device")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    PERMISSIONS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    path: Path
    type: FileType
    permissions: int
    device: int
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., path: _Optional[_Union[Path, _Mapping]] = ..., type: _Optional[_Union[FileType, str]] = ..., permissions: _Optional[int] = ..., device: _Optional[int] = ...) -> None: ...

class MkdirRequest(_message.Message):
    __slots__ = ("caller", "path", "permissions", "parents", "layout")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    PERMISSIONS_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    path: Path
    permissions: int
    parents: bool
    layout: Layout
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., path: _Optional[_Union[Path, _Mapping]] = ..., permissions: _Optional[int] = ..., parents: _Optional[bool] = ..., layout: _Optional[_Union[Layout, _Mapping]] = ...) -> None: ...

class SymlinkRequest(_message.Message):
    __slots__ = ("caller", "path", "target")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    path: Path
    target: bytes
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., path: _Optional[_Union[Path, _Mapping]] = ..., target: _Optional[bytes] = ...) -> None: ...

class LinkRequest(_message.Message):
    __slots__ = ("caller", "source", "target", "follow")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    source: Path
    target: Path
    follow: bool
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., source: _Optional[_Union[Path, _Mapping]] = ..., target: _Optional[_Union[Path, _Mapping]] = ..., follow: _Optional[bool] = ...) -> None: ...

class UnlinkRequest(_message.Message):
    __slots__ = ("caller", "path")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    path: Path
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., path: _Optional[_Union[Path, _Mapping]] = ...) -> None: ...

class RmdirRequest(_message.Message):
    __slots__ = ("caller", "path")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    path: Path
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., path: _Optional[_Union[Path, _Mapping]] = ...) -> None: ...

class RenameRequest(_message.Message):
    __slots__ = ("caller", "source", "target", "no_replace", "exchange")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    NO_REPLACE_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    source: Path
    target: Path
    no_replace: bool
    exchange: bool
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., source: _Optional[_Union[Path, _Mapping]] = ..., target: _Optional[_Union[Path, _Mapping]] = ..., no_replace: _Optional[bool] = ..., exchange: _Optional[bool] = ...) -> None: ...

class RenameReply(_message.Message):
    __slots__ = ("moved", "replaced")
    MOVED_FIELD_NUMBER: _ClassVar[int]
    REPLACED_FIELD_NUMBER: _ClassVar[int]
    moved: Inode
    replaced: Inode
    def __init__(self, moved: _Optional[_Union[Inode, _Mapping]] = ..., replaced: _Optional[_Union[Inode, _Mapping]] = ...) -> None: ...

class SetAttrRequest(_message.Message):
    __slots__ = ("caller", "path", "follow", "permissions", "uid", "gid", "length", "atime_ns", "mtime_ns", "atime_now", "mtime_now", "layout", "session", "clear_set_id", "clear_layout")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    PERMISSIONS_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    ATIME_NS_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    ATIME_NOW_FIELD_NUMBER: _ClassVar[int]
    MTIME_NOW_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    CLEAR_SET_ID_FIELD_NUMBER: _ClassVar[int]
    CLEAR_LAYOUT_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    path: Path
    follow: bool
    permissions: int
    uid: int
    gid: int
    length: int
    atime_ns: int
    mtime_ns: int
    atime_now: bool
    mtime_now: bool
    layout: Layout
    session: int
    clear_set_id: bool
    clear_layout: bool
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., path: _Optional[_Union[Path, _Mapping]] = ..., follow: _Optional[bool] = ..., permissions: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., length: _Optional[int] = ..., atime_ns: _Optional[int] = ..., mtime_ns: _Optional[int] = ..., atime_now: _Optional[bool] = ..., mtime_now: _Optional[bool] = ..., layout: _Optional[_Union[Layout, _Mapping]] = ..., session: _Optional[int] = ..., clear_set_id: _Optional[bool] = ..., clear_layout: _Optional[bool] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("caller", "inode", "after", "limit", "with_inodes", "by_cookie", "after_cookie")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    WITH_INODES_FIELD_NUMBER: _ClassVar[int]
    BY_COOKIE_FIELD_NUMBER: _ClassVar[int]
    AFTER_COOKIE_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    inode: int
    after: bytes
    limit: int
    with_inodes: bool
    by_cookie: bool
    after_cookie: int
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., inode: _Optional[int] = ..., after: _Optional[bytes] = ..., limit: _Optional[int] = ..., with_inodes: _Optional[bool] = ..., by_cookie: _Optional[bool] = ..., after_cookie: _Optional[int] = ...) -> None: ...

class Dentry(_message.Message):
    __slots__ = ("name", "inode", "type", "attributes", "cookie")
    NAME_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    COOKIE_FIELD_NUMBER: _ClassVar[int]
    name: bytes
    inode: int
    type: FileType
    attributes: Inode
    cookie: int
    def __init__(self, name: _Optional[bytes] = ..., inode: _Optional[int] = ..., type: _Optional[_Union[FileType, str]] = ..., attributes: _Optional[_Union[Inode, _Mapping]] = ..., cookie: _Optional[int] = ...) -> None: ...

class ListReply(_message.Message):
    __slots__ = ("entries", "more", "parent", "next_cookie")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    NEXT_COOKIE_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[Dentry]
    more: bool
    parent: int
    next_cookie: int
    def __init__(self, entries: _Optional[_Iterable[_Union[Dentry, _Mapping]]] = ..., more: _Optional[bool] = ..., parent: _Optional[int] = ..., next_cookie: _Optional[int] = ...) -> None: ...

class StatFsRequest(_message.Message):
    __slots__ = ("caller",)
    CALLER_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ...) -> None: ...

class StatFsReply(_message.Message):
    __slots__ = ("capacity_bytes", "free_bytes", "inode_count", "default_layout")
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    INODE_COUNT_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_LAYOUT_FIELD_NUMBER: _ClassVar[int]
    capacity_bytes: int
    free_bytes: int
    inode_count: int
    default_layout: Layout
    def __init__(self, capacity_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., inode_count: _Optional[int] = ..., default_layout: _Optional[_Union[Layout, _Mapping]] = ...) -> None: ...

class RemoveTreeRequest(_message.Message):
    __slots__ = ("caller", "path")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    path: Path
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., path: _Optional[_Union[Path, _Mapping]] = ...) -> None: ...

class XattrRequest(_message.Message):
    __slots__ = ("caller", "inode", "name", "value", "flags")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    inode: int
    name: bytes
    value: bytes
    flags: int
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., inode: _Optional[int] = ..., name: _Optional[bytes] = ..., value: _Optional[bytes] = ..., flags: _Optional[int] = ...) -> None: ...

class XattrReply(_message.Message):
    __slots__ = ("value", "names")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    value: bytes
    names: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, value: _Optional[bytes] = ..., names: _Optional[_Iterable[bytes]] = ...) -> None: ...

class HoldRequest(_message.Message):
    __slots__ = ("caller", "inodes", "incarnation", "sessions", "keep_holds")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    INODES_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    KEEP_HOLDS_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    inodes: _containers.RepeatedScalarFieldContainer[int]
    incarnation: int
    sessions: _containers.RepeatedCompositeFieldContainer[WriteSession]
    keep_holds: bool
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., inodes: _Optional[_Iterable[int]] = ..., incarnation: _Optional[int] = ..., sessions: _Optional[_Iterable[_Union[WriteSession, _Mapping]]] = ..., keep_holds: _Optional[bool] = ...) -> None: ...

class WriteSession(_message.Message):
    __slots__ = ("inode", "session")
    INODE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    inode: int
    session: int
    def __init__(self, inode: _Optional[int] = ..., session: _Optional[int] = ...) -> None: ...

class HoldReply(_message.Message):
    __slots__ = ("incarnation", "lost")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    incarnation: int
    lost: _containers.RepeatedCompositeFieldContainer[WriteSession]
    def __init__(self, incarnation: _Optional[int] = ..., lost: _Optional[_Iterable[_Union[WriteSession, _Mapping]]] = ...) -> None: ...

class RealPathRequest(_message.Message):
    __slots__ = ("caller", "inode")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    inode: int
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., inode: _Optional[int] = ...) -> None: ...

class RealPathReply(_message.Message):
    __slots__ = ("path",)
    PATH_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    def __init__(self, path: _Optional[bytes] = ...) -> None: ...

class ApplyRequest(_message.Message):
    __slots__ = ("caller", "changes", "with_attributes")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    WITH_ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    changes: _containers.RepeatedCompositeFieldContainer[Change]
    with_attributes: bool
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., changes: _Optional[_Iterable[_Union[Change, _Mapping]]] = ..., with_attributes: _Optional[bool] = ...) -> None: ...

class Change(_message.Message):
    __slots__ = ("create_small", "create", "mkdir", "symlink", "unlink", "rmdir", "rename", "new_inode", "time_ns", "found", "replaced")
    CREATE_SMALL_FIELD_NUMBER: _ClassVar[int]
    CREATE_FIELD_NUMBER: _ClassVar[int]
    MKDIR_FIELD_NUMBER: _ClassVar[int]
    SYMLINK_FIELD_NUMBER: _ClassVar[int]
    UNLINK_FIELD_NUMBER: _ClassVar[int]
    RMDIR_FIELD_NUMBER: _ClassVar[int]
    RENAME_FIELD_NUMBER: _ClassVar[int]
    NEW_INODE_FIELD_NUMBER: _ClassVar[int]
    TIME_NS_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    REPLACED_FIELD_NUMBER: _ClassVar[int]
    create_small: CreateSmall
    create: CreateRequest
    mkdir: MkdirRequest
    symlink: SymlinkRequest
    unlink: UnlinkRequest
    rmdir: RmdirRequest
    rename: RenameRequest
    new_inode: int
    time_ns: int
    found: int
    replaced: int
    def __init__(self, create_small: _Optional[_Union[CreateSmall, _Mapping]] = ..., create: _Optional[_Union[CreateRequest, _Mapping]] = ..., mkdir: _Optional[_Union[MkdirRequest, _Mapping]] = ..., symlink: _Optional[_Union[SymlinkRequest, _Mapping]] = ..., unlink: _Optional[_Union[UnlinkRequest, _Mapping]] = ..., rmdir: _Optional[_Union[RmdirRequest, _Mapping]] = ..., rename: _Optional[_Union[RenameRequest, _Mapping]] = ..., new_inode: _Optional[int] = ..., time_ns: _Optional[int] = ..., found: _Optional[int] = ..., replaced: _Optional[int] = ...) -> None: ...

class CreateSmall(_message.Message):
    __slots__ = ("path", "permissions", "data")
    PATH_FIELD_NUMBER: _ClassVar[int]
    PERMISSIONS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    path: Path
    permissions: int
    data: bytes
    def __init__(self, path: _Optional[_Union[Path, _Mapping]] = ..., permissions: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class ApplyReply(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[ChangeResult]
    def __init__(self, results: _Optional[_Iterable[_Union[ChangeResult, _Mapping]]] = ...) -> None: ...

class ChangeResult(_message.Message):
    __slots__ = ("error", "inode", "session", "attributes")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    error: _common_pb2.Error
    inode: int
    session: int
    attributes: Inode
    def __init__(self, error: _Optional[_Union[_common_pb2.Error, _Mapping]] = ..., inode: _Optional[int] = ..., session: _Optional[int] = ..., attributes: _Optional[_Union[Inode, _Mapping]] = ...) -> None: ...

class ReserveInodesRequest(_message.Message):
    __slots__ = ("caller", "count")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    count: int
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., count: _Optional[int] = ...) -> None: ...

class ReserveInodesReply(_message.Message):
    __slots__ = ("first", "count")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    first: int
    count: int
    def __init__(self, first: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("user", "path", "after", "children_only", "wait_ms")
    USER_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    CHILDREN_ONLY_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    user: _common_pb2.Caller
    path: Path
    after: str
    children_only: bool
    wait_ms: int
    def __init__(self, user: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., path: _Optional[_Union[Path, _Mapping]] = ..., after: _Optional[str] = ..., children_only: _Optional[bool] = ..., wait_ms: _Optional[int] = ...) -> None: ...

class NamespaceChange(_message.Message):
    __slots__ = ("kind", "path", "old_path", "inode", "type", "replaced", "position", "exchanged")
    KIND_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    OLD_PATH_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    REPLACED_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    EXCHANGED_FIELD_NUMBER: _ClassVar[int]
    kind: ChangeKind
    path: bytes
    old_path: bytes
    inode: int
    type: FileType
    replaced: int
    position: str
    exchanged: bool
    def __init__(self, kind: _Optional[_Union[ChangeKind, str]] = ..., path: _Optional[bytes] = ..., old_path: _Optional[bytes] = ..., inode: _Optional[int] = ..., type: _Optional[_Union[FileType, str]] = ..., replaced: _Optional[int] = ..., position: _Optional[str] = ..., exchanged: _Optional[bool] = ...) -> None: ...

class WatchReply(_message.Message):
    __slots__ = ("directory", "position", "changes")
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    directory: int
    position: str
    changes: _containers.RepeatedCompositeFieldContainer[NamespaceChange]
    def __init__(self, directory: _Optional[int] = ..., position: _Optional[str] = ..., changes: _Optional[_Iterable[_Union[NamespaceChange, _Mapping]]] = ...) -> None: ...

class ScanRequest(_message.Message):
    __slots__ = ("limit",)
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    limit: int
    def __init__(self, limit: _Optional[int] = ...) -> None: ...

class ScannedDentry(_message.Message):
    __slots__ = ("parent", "entry")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    parent: int
    entry: Dentry
    def __init__(self, parent: _Optional[int] = ..., entry: _Optional[_Union[Dentry, _Mapping]] = ...) -> None: ...

class RemovedContent(_message.Message):
    __slots__ = ("content", "inode", "layout", "removed_unix_ms", "length", "spare")
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    REMOVED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    SPARE_FIELD_NUMBER: _ClassVar[int]
    content: int
    inode: int
    layout: Layout
    removed_unix_ms: int
    length: int
    spare: bool
    def __init__(self, content: _Optional[int] = ..., inode: _Optional[int] = ..., layout: _Optional[_Union[Layout, _Mapping]] = ..., removed_unix_ms: _Optional[int] = ..., length: _Optional[int] = ..., spare: _Optional[bool] = ...) -> None: ...

class QuarantinedContent(_message.Message):
    __slots__ = ("content", "chains", "chunks", "due_unix_ms")
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    DUE_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    content: int
    chains: _containers.RepeatedScalarFieldContainer[int]
    chunks: int
    due_unix_ms: int
    def __init__(self, content: _Optional[int] = ..., chains: _Optional[_Iterable[int]] = ..., chunks: _Optional[int] = ..., due_unix_ms: _Optional[int] = ...) -> None: ...

class QuarantineRequest(_message.Message):
    __slots__ = ("contents", "delay_ms")
    CONTENTS_FIELD_NUMBER: _ClassVar[int]
    DELAY_MS_FIELD_NUMBER: _ClassVar[int]
    contents: _containers.RepeatedCompositeFieldContainer[QuarantinedContent]
    delay_ms: int
    def __init__(self, contents: _Optional[_Iterable[_Union[QuarantinedContent, _Mapping]]] = ..., delay_ms: _Optional[int] = ...) -> None: ...

class ReleaseQuarantinedRequest(_message.Message):
    __slots__ = ("contents",)
    CONTENTS_FIELD_NUMBER: _ClassVar[int]
    contents: _containers.RepeatedCompositeFieldContainer[QuarantinedContent]
    def __init__(self, contents: _Optional[_Iterable[_Union[QuarantinedContent, _Mapping]]] = ...) -> None: ...

class ClientFiles(_message.Message):
    __slots__ = ("client", "write_sessions", "read_holds")
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    WRITE_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    READ_HOLDS_FIELD_NUMBER: _ClassVar[int]
    client: int
    write_sessions: int
    read_holds: int
    def __init__(self, client: _Optional[int] = ..., write_sessions: _Optional[int] = ..., read_holds: _Optional[int] = ...) -> None: ...

class ClientFilesReply(_message.Message):
    __slots__ = ("clients", "unix_ms")
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    clients: _containers.RepeatedCompositeFieldContainer[ClientFiles]
    unix_ms: int
    def __init__(self, clients: _Optional[_Iterable[_Union[ClientFiles, _Mapping]]] = ..., unix_ms: _Optional[int] = ...) -> None: ...

class MetaStatus(_message.Message):
    __slots__ = ("incarnation", "gc_queue", "write_sessions", "read_holds", "operations")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    GC_QUEUE_FIELD_NUMBER: _ClassVar[int]
    WRITE_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    READ_HOLDS_FIELD_NUMBER: _ClassVar[int]
    OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    incarnation: int
    gc_queue: int
    write_sessions: int
    read_holds: int
    operations: int
    def __init__(self, incarnation: _Optional[int] = ..., gc_queue: _Optional[int] = ..., write_sessions: _Optional[int] = ..., read_holds: _Optional[int] = ..., operations: _Optional[int] = ...) -> None: ...

class DumpRequest(_message.Message):
    __slots__ = ("stored_lengths",)
    STORED_LENGTHS_FIELD_NUMBER: _ClassVar[int]
    stored_lengths: bool
    def __init__(self, stored_lengths: _Optional[bool] = ...) -> None: ...

class DumpHeader(_message.Message):
    __slots__ = ("format", "cluster", "store", "generation", "position", "moment_ns", "next_inode", "next_content", "inode_count")
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    MOMENT_NS_FIELD_NUMBER: _ClassVar[int]
    NEXT_INODE_FIELD_NUMBER: _ClassVar[int]
    NEXT_CONTENT_FIELD_NUMBER: _ClassVar[int]
    INODE_COUNT_FIELD_NUMBER: _ClassVar[int]
    format: int
    cluster: str
    store: int
    generation: int
    position: int
    moment_ns: int
    next_inode: int
    next_content: int
    inode_count: int
    def __init__(self, format: _Optional[int] = ..., cluster: _Optional[str] = ..., store: _Optional[int] = ..., generation: _Optional[int] = ..., position: _Optional[int] = ..., moment_ns: _Optional[int] = ..., next_inode: _Optional[int] = ..., next_content: _Optional[int] = ..., inode_count: _Optional[int] = ...) -> None: ...

class DumpedAttribute(_message.Message):
    __slots__ = ("inode", "name", "value")
    INODE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    inode: int
    name: bytes
    value: bytes
    def __init__(self, inode: _Optional[int] = ..., name: _Optional[bytes] = ..., value: _Optional[bytes] = ...) -> None: ...

class DumpTrailer(_message.Message):
    __slots__ = ("inodes", "attributes", "entries")
    INODES_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    inodes: int
    attributes: int
    entries: int
    def __init__(self, inodes: _Optional[int] = ..., attributes: _Optional[int] = ..., entries: _Optional[int] = ...) -> None: ...

class DumpRecord(_message.Message):
    __slots__ = ("header", "inode", "attribute", "entry", "trailer")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTE_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    TRAILER_FIELD_NUMBER: _ClassVar[int]
    header: DumpHeader
    inode: Inode
    attribute: DumpedAttribute
    entry: ScannedDentry
    trailer: DumpTrailer
    def __init__(self, header: _Optional[_Union[DumpHeader, _Mapping]] = ..., inode: _Optional[_Union[Inode, _Mapping]] = ..., attribute: _Optional[_Union[DumpedAttribute, _Mapping]] = ..., entry: _Optional[_Union[ScannedDentry, _Mapping]] = ..., trailer: _Optional[_Union[DumpTrailer, _Mapping]] = ...) -> None: ...

class DumpBatch(_message.Message):
    __slots__ = ("records",)
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[DumpRecord]
    def __init__(self, records: _Optional[_Iterable[_Union[DumpRecord, _Mapping]]] = ...) -> None: ...

class BeginLoadRequest(_message.Message):
    __slots__ = ("header", "new_contents")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    NEW_CONTENTS_FIELD_NUMBER: _ClassVar[int]
    header: DumpHeader
    new_contents: bool
    def __init__(self, header: _Optional[_Union[DumpHeader, _Mapping]] = ..., new_contents: _Optional[bool] = ...) -> None: ...

class BeginLoadReply(_message.Message):
    __slots__ = ("load", "again")
    LOAD_FIELD_NUMBER: _ClassVar[int]
    AGAIN_FIELD_NUMBER: _ClassVar[int]
    load: int
    again: bool
    def __init__(self, load: _Optional[int] = ..., again: _Optional[bool] = ...) -> None: ...

class LoadRequest(_message.Message):
    __slots__ = ("load", "records")
    LOAD_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    load: int
    records: _containers.RepeatedCompositeFieldContainer[DumpRecord]
    def __init__(self, load: _Optional[int] = ..., records: _Optional[_Iterable[_Union[DumpRecord, _Mapping]]] = ...) -> None: ...

class LoadReply(_message.Message):
    __slots__ = ("placed",)
    PLACED_FIELD_NUMBER: _ClassVar[int]
    placed: _containers.RepeatedCompositeFieldContainer[Inode]
    def __init__(self, placed: _Optional[_Iterable[_Union[Inode, _Mapping]]] = ...) -> None: ...

class FinishLoadRequest(_message.Message):
    __slots__ = ("load", "trailer")
    LOAD_FIELD_NUMBER: _ClassVar[int]
    TRAILER_FIELD_NUMBER: _ClassVar[int]
    load: int
    trailer: DumpTrailer
    def __init__(self, load: _Optional[int] = ..., trailer: _Optional[_Union[DumpTrailer, _Mapping]] = ...) -> None: ...

class LoadState(_message.Message):
    __slots__ = ("header", "new_contents", "root")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    NEW_CONTENTS_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    header: DumpHeader
    new_contents: bool
    root: Inode
    def __init__(self, header: _Optional[_Union[DumpHeader, _Mapping]] = ..., new_contents: _Optional[bool] = ..., root: _Optional[_Union[Inode, _Mapping]] = ...) -> None: ...
