"""Many changes of one client in one transaction."""

from collections.abc import Callable
from typing import Final

from ...errors import AlreadyExists, InvalidArgument, NotFound
from ...errors import Error as OperatingError
from ...wire.pb.common_pb2 import Error
from ...wire.pb.meta_pb2 import (
    ApplyReply,
    ApplyRequest,
    Change,
    ChangeResult,
    CreateRequest,
    CreateSmall,
    MkdirRequest,
    Path,
)
from ..context import OperationContext
from ..permissions import after_write
from ..reservations import ReservedInodes
from ..resolve import locate
from .create import create
from .length import EFBIG
from .make import attach, claim, new_file, refuse_slash
from .mkdir import mkdir
from .rename import rename
from .rmdir import rmdir
from .symlink import symlink
from .unlink import unlink

CHANGES_MAX: Final = 64  # in one transaction: one to three milliseconds, in which no other request is served
DATA_BYTES_MAX: Final = 1 << 20  # of all changes: as much as a record of a group commit holds
PAST_NS: Final = (
    10 * 60 * 1_000_000_000
)  # which a client may give to what it makes: as long as a client tries


def apply(context: OperationContext, request: ApplyRequest) -> ApplyReply:
    """Carry out the changes in their order, each with its own outcome.

    All that are not refused come at once: no other client sees some without the others, and the request sent again
    is recognised as a whole. A failure that a retry may mend (`Error.retryable`) fails the whole request.
    Raises: InvalidArgument beyond a limit.
    """
    if len(request.changes) > CHANGES_MAX:
        raise InvalidArgument(f"at most {CHANGES_MAX} changes are made in one request")
    if sum(len(change.create_small.data) for change in request.changes) > DATA_BYTES_MAX:
        raise InvalidArgument(f"the changes of one request carry at most {DATA_BYTES_MAX} bytes")
    reserved = ReservedInodes(context.txn, context.request.client)
    results = [_result(context, reserved, change) for change in request.changes]
    reserved.store()
    if not all(change.WhichOneof("change") in REMOVALS for change in request.changes):
        context.txn.may_use_reserve = False  # which a removal beside it would have opened to what is made
    if request.with_attributes:
        for result in results:
            _add_attributes(context, result)
    return ApplyReply(results=results)


def _add_attributes(context: OperationContext, result: ChangeResult) -> None:
    inode = context.find(result.inode) if result.inode else None
    if inode is not None:
        result.attributes.CopyFrom(context.visible(inode))


def _result(context: OperationContext, reserved: ReservedInodes, change: Change) -> ChangeResult:
    written = context.txn.size_bytes
    try:
        result = _apply_one(context, reserved, change)
    except OperatingError as error:
        if error.retryable:
            raise
        assert context.txn.size_bytes == written, "a change that is refused has written nothing"
        return ChangeResult(
            error=Error(code=error.code, message=error.message, errno=error.errno or 0, retryable=False)
        )
    context.end_change()
    return result


def _apply_one(context: OperationContext, reserved: ReservedInodes, change: Change) -> ChangeResult:
    kind = change.WhichOneof("change")
    if kind is None:
        raise InvalidArgument("this service does not know that kind of change")
    if kind in _MAKES:
        return _make(context, reserved, change, kind)
    if change.new_inode:
        raise InvalidArgument("only what makes an inode has an id for it")
    if change.found:
        _require_found(context, change, kind)
    _OTHERS[kind](context, change)
    return ChangeResult()


def _make(context: OperationContext, reserved: ReservedInodes, change: Change, kind: str) -> ChangeResult:
    if change.new_inode:
        reserved.require(change.new_inode)
    context.next_inode = change.new_inode
    context.birth_ns = _birth_ns(change.time_ns, now_ns=context.now_ns)
    opened = len(context.opened)
    _MAKES[kind](context, change)
    made = context.new_inodes[-1]
    if change.new_inode:
        assert made == change.new_inode, "the inode has the id that was asked for"
        reserved.use(made)
    return ChangeResult(inode=made, session=context.request.session if len(context.opened) > opened else 0)


def _birth_ns(wanted_ns: int, *, now_ns: int) -> int:
    return min(max(wanted_ns, now_ns - PAST_NS), now_ns) if wanted_ns else 0


def _require_found(context: OperationContext, change: Change, kind: str) -> None:
    """Raises: NotFound, AlreadyExists if a name is not that of the inode which the caller has found under it."""
    if kind != "rename":
        path = change.unlink.path if kind == "unlink" else change.rmdir.path
        _require_name_of(context, path, change.found)
        return
    _require_name_of(context, change.rename.source, change.found)
    if change.replaced:
        _require_name_of(context, change.rename.target, change.replaced)
    elif locate(context, change.rename.target, follow=False).entry is not None:
        raise AlreadyExists("the name exists already", name=change.rename.target.path)


def _require_name_of(context: OperationContext, path: Path, inode: int) -> None:
    entry = locate(context, path, follow=False).entry
    if entry is None or entry.inode != inode:
        raise NotFound("the name is not that of the inode any more", name=path.path, inode=inode)


def _create(context: OperationContext, request: CreateRequest) -> None:
    if not request.exclusive or request.read:
        raise InvalidArgument(
            "a change makes a new file, which is not open for reading: exclusive, without read"
        )
    if request.write:
        context.require_session()
    create(context, request)


def _mkdir(context: OperationContext, request: MkdirRequest) -> None:
    if request.parents:
        raise InvalidArgument("a change makes one directory: without parents")
    mkdir(context, request)


def _create_small(context: OperationContext, request: CreateSmall) -> None:
    """Make a file with its content.

    Raises: AlreadyExists, NotFound, NotADirectory, IsADirectory, PermissionDenied, InvalidArgument (EFBIG: the data do
    not fit an inode); Unavailable without a chain table.
    """
    place = locate(context, request.path, follow=False)
    if place.directory is None or place.entry is not None:
        raise AlreadyExists("the name exists already", name=place.name)
    refuse_slash(place)
    directory = claim(context, place)
    inode = new_file(context, directory, permissions=request.permissions, layout=None)
    if len(request.data) > inode.layout.inline_bytes:
        raise InvalidArgument(
            f"a small file has at most {inode.layout.inline_bytes} bytes in this directory, not {len(request.data)}",
            errno=EFBIG,
        )
    inode.inline_data = request.data
    inode.length = len(request.data)
    if request.data:
        inode.permissions = after_write(context.user, inode)
    attach(context, directory, place.name, inode)


_Operation = Callable[[OperationContext, Change], object]
_MAKES: Final[dict[str, _Operation]] = {
    "create": lambda context, change: _create(context, change.create),
    "create_small": lambda context, change: _create_small(context, change.create_small),
    "mkdir": lambda context, change: _mkdir(context, change.mkdir),
    "symlink": lambda context, change: symlink(context, change.symlink),
}
_OTHERS: Final[dict[str, _Operation]] = {
    "rename": lambda context, change: rename(context, change.rename),
    "rmdir": lambda context, change: rmdir(context, change.rmdir),
    "unlink": lambda context, change: unlink(context, change.unlink),
}
REMOVALS: Final = frozenset({"rmdir", "unlink"})  # they free space
assert _MAKES.keys() | _OTHERS.keys() == {field.name for field in Change.DESCRIPTOR.oneofs[0].fields}, (
    "every kind of change is carried out"
)


__all__ = ["CHANGES_MAX", "DATA_BYTES_MAX", "PAST_NS", "apply"]
