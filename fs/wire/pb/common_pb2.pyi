from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Method(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    METHOD_UNSPECIFIED: _ClassVar[Method]
    MGMTD_GET_ROUTING: _ClassVar[Method]
    MGMTD_EXTEND_CLIENT: _ClassVar[Method]
    META_LOOKUP: _ClassVar[Method]
    META_STAT: _ClassVar[Method]
    META_CREATE: _ClassVar[Method]
    META_OPEN: _ClassVar[Method]
    META_CLOSE: _ClassVar[Method]
    META_SYNC: _ClassVar[Method]
    META_MKNOD: _ClassVar[Method]
    META_MKDIR: _ClassVar[Method]
    META_SYMLINK: _ClassVar[Method]
    META_LINK: _ClassVar[Method]
    META_UNLINK: _ClassVar[Method]
    META_RMDIR: _ClassVar[Method]
    META_RENAME: _ClassVar[Method]
    META_SET_ATTR: _ClassVar[Method]
    META_LIST: _ClassVar[Method]
    META_STAT_FS: _ClassVar[Method]
    META_REMOVE_TREE: _ClassVar[Method]
    META_GET_XATTR: _ClassVar[Method]
    META_SET_XATTR: _ClassVar[Method]
    META_LIST_XATTR: _ClassVar[Method]
    META_REMOVE_XATTR: _ClassVar[Method]
    META_HOLD: _ClassVar[Method]
    META_REAL_PATH: _ClassVar[Method]
    META_APPLY: _ClassVar[Method]
    META_RESERVE_INODES: _ClassVar[Method]
METHOD_UNSPECIFIED: Method
MGMTD_GET_ROUTING: Method
MGMTD_EXTEND_CLIENT: Method
META_LOOKUP: Method
META_STAT: Method
META_CREATE: Method
META_OPEN: Method
META_CLOSE: Method
META_SYNC: Method
META_MKNOD: Method
META_MKDIR: Method
META_SYMLINK: Method
META_LINK: Method
META_UNLINK: Method
META_RMDIR: Method
META_RENAME: Method
META_SET_ATTR: Method
META_LIST: Method
META_STAT_FS: Method
META_REMOVE_TREE: Method
META_GET_XATTR: Method
META_SET_XATTR: Method
META_LIST_XATTR: Method
META_REMOVE_XATTR: Method
META_HOLD: Method
META_REAL_PATH: Method
META_APPLY: Method
META_RESERVE_INODES: Method

class Claims(_message.Message):
    __slots__ = ("role", "uid", "gid", "groups", "expires_unix_s", "nonce", "key_id", "audience", "path", "read_only", "networks", "minted_unix_s", "version", "root")
    class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        CLIENT: _ClassVar[Claims.Role]
        TRUSTED: _ClassVar[Claims.Role]
        ADMIN: _ClassVar[Claims.Role]
        SERVICE: _ClassVar[Claims.Role]
    CLIENT: Claims.Role
    TRUSTED: Claims.Role
    ADMIN: Claims.Role
    SERVICE: Claims.Role
    ROLE_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    AUDIENCE_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    READ_ONLY_FIELD_NUMBER: _ClassVar[int]
    NETWORKS_FIELD_NUMBER: _ClassVar[int]
    MINTED_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    role: Claims.Role
    uid: int
    gid: int
    groups: _containers.RepeatedScalarFieldContainer[int]
    expires_unix_s: int
    nonce: bytes
    key_id: int
    audience: str
    path: bytes
    read_only: bool
    networks: _containers.RepeatedScalarFieldContainer[str]
    minted_unix_s: int
    version: int
    root: int
    def __init__(self, role: _Optional[_Union[Claims.Role, str]] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., groups: _Optional[_Iterable[int]] = ..., expires_unix_s: _Optional[int] = ..., nonce: _Optional[bytes] = ..., key_id: _Optional[int] = ..., audience: _Optional[str] = ..., path: _Optional[bytes] = ..., read_only: _Optional[bool] = ..., networks: _Optional[_Iterable[str]] = ..., minted_unix_s: _Optional[int] = ..., version: _Optional[int] = ..., root: _Optional[int] = ...) -> None: ...

class Caller(_message.Message):
    __slots__ = ("uid", "gid", "groups", "client", "sequence", "settled_below")
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SETTLED_BELOW_FIELD_NUMBER: _ClassVar[int]
    uid: int
    gid: int
    groups: _containers.RepeatedScalarFieldContainer[int]
    client: int
    sequence: int
    settled_below: int
    def __init__(self, uid: _Optional[int] = ..., gid: _Optional[int] = ..., groups: _Optional[_Iterable[int]] = ..., client: _Optional[int] = ..., sequence: _Optional[int] = ..., settled_below: _Optional[int] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "message", "errno", "retryable", "fields")
    class FieldsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ERRNO_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    errno: int
    retryable: bool
    fields: _containers.ScalarMap[str, str]
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., errno: _Optional[int] = ..., retryable: _Optional[bool] = ..., fields: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Empty(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
