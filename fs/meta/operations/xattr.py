"""Extended attributes."""

from typing import Final

from ...errors import AlreadyExists, InvalidArgument, NotFound, PermissionDenied, Unsupported
from ...wire.pb.common_pb2 import Empty
from ...wire.pb.meta_pb2 import DIRECTORY, REGULAR, Inode, XattrReply, XattrRequest
from .. import schema
from ..context import OperationContext
from ..permissions import READ, WRITE, require, require_owner

NAME_BYTES_MAX: Final = 255  # Linux XATTR_NAME_MAX
VALUE_BYTES_MAX: Final = 65_536  # Linux XATTR_SIZE_MAX
COUNT_MAX: Final = 256  # names of one inode; a listing of them fits 64 KiB
CREATE: Final = 1  # flags of setxattr(2)
REPLACE: Final = 2
ENODATA: Final = 61
E2BIG: Final = 7
ERANGE: Final = 34
ENOSPC: Final = 28


def get_xattr(context: OperationContext, request: XattrRequest) -> XattrReply:
    """Return the value. Raises: NotFound (ENODATA), Unsupported, PermissionDenied."""
    inode = context.load(request.inode)
    _require_namespace(request.name)
    if request.name.startswith(b"user."):
        _require_user_attribute(context, inode, READ)
    if request.name.startswith(b"trusted.") and context.user.uid != 0:
        raise NotFound("no such attribute", errno=ENODATA)
    value = context.txn.snapshot_get(schema.attribute_key(inode.id, request.name))
    if value is None:
        raise NotFound("no such attribute", errno=ENODATA)
    return XattrReply(value=value)


def set_xattr(context: OperationContext, request: XattrRequest) -> Empty:
    """Set the value; flags as of setxattr(2).

    Raises: AlreadyExists, NotFound (ENODATA), Unsupported, PermissionDenied, InvalidArgument (E2BIG, ERANGE).
    """
    inode = context.get_for_update(request.inode)
    _require_change(context, inode, request.name)
    if len(request.value) > VALUE_BYTES_MAX:
        raise InvalidArgument(f"a value has at most {VALUE_BYTES_MAX} bytes", errno=E2BIG)
    if request.flags not in (0, CREATE, REPLACE):
        raise InvalidArgument("unknown flags")
    key = schema.attribute_key(inode.id, request.name)
    exists = context.txn.get(key) is not None
    if exists and request.flags == CREATE:
        raise AlreadyExists("the attribute exists already")
    if not exists and request.flags == REPLACE:
        raise NotFound("no such attribute", errno=ENODATA)
    if (
        not exists
        and len(context.txn.get_range(*schema.attribute_range(inode.id), limit=COUNT_MAX)) == COUNT_MAX
    ):
        raise InvalidArgument(f"an inode has at most {COUNT_MAX} attributes", errno=ENOSPC)
    context.txn.put(key, request.value)
    context.change(inode)
    return Empty()


def list_xattr(context: OperationContext, request: XattrRequest) -> XattrReply:
    """Return the names that the caller may know of."""
    inode = context.load(request.inode)
    pairs = context.txn.snapshot_range(*schema.attribute_range(inode.id), limit=COUNT_MAX)
    names = [schema.split_one(key)[1] for key, _ in pairs]
    return XattrReply(
        names=[name for name in names if context.user.uid == 0 or not name.startswith(b"trusted.")]
    )


def remove_xattr(context: OperationContext, request: XattrRequest) -> Empty:
    """Raises: NotFound (ENODATA), Unsupported, PermissionDenied."""
    inode = context.get_for_update(request.inode)
    _require_change(context, inode, request.name)
    key = schema.attribute_key(inode.id, request.name)
    if context.txn.get(key) is None:
        raise NotFound("no such attribute", errno=ENODATA)
    context.txn.delete(key)
    context.change(inode)
    return Empty()


def _require_namespace(name: bytes) -> None:
    if not name or b"\0" in name:
        raise InvalidArgument("not a name of an attribute")
    if len(name) > NAME_BYTES_MAX:
        raise InvalidArgument("the name is too long", errno=ERANGE)
    prefix, dot, rest = name.partition(b".")
    if not dot or prefix not in (b"user", b"trusted", b"security"):
        # Access control lists would have to be obeyed, not only kept; so they are refused with the rest of
        # system.*.
        raise Unsupported("attributes are user.*, trusted.* and security.*")
    if not rest:
        raise InvalidArgument("not a name of an attribute")


def _require_change(context: OperationContext, inode: Inode, name: bytes) -> None:
    _require_namespace(name)
    if name.startswith(b"user."):
        _require_user_attribute(context, inode, WRITE)
    elif context.user.uid != 0:
        raise PermissionDenied("only root sets such attributes", errno=1)


def _require_user_attribute(context: OperationContext, inode: Inode, wanted: int) -> None:
    """As Linux: they belong to regular files and directories; a sticky directory's to its owner."""
    if inode.type not in (REGULAR, DIRECTORY):
        if wanted == READ:
            raise NotFound("no such attribute", errno=ENODATA)
        raise PermissionDenied("user attributes belong to files and directories", errno=1)
    if wanted == WRITE and inode.type == DIRECTORY and inode.permissions & 0o1000:
        require_owner(context.user, inode)
    require(context.user, inode, wanted)


__all__ = ["COUNT_MAX", "VALUE_BYTES_MAX", "get_xattr", "list_xattr", "remove_xattr", "set_xattr"]
