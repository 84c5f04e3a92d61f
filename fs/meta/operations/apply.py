"""Many changes of one client in one transaction."""

from typing import Final

from ...errors import AlreadyExists, InvalidArgument
from ...errors import Error as OperatingError
from ...wire.pb.common_pb2 import Error
from ...wire.pb.meta_pb2 import ApplyReply, ApplyRequest, Change, ChangeResult, CreateSmall
from ..context import OperationContext
from ..permissions import after_write
from ..resolve import locate
from .length import EFBIG
from .make import attach, claim, new_file, refuse_slash

CHANGES_MAX: Final = 64  # in one transaction: one to two milliseconds, in which no other request is served
DATA_BYTES_MAX: Final = 1 << 20  # of all changes: as much as a record of a group commit holds


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
    return ApplyReply(results=[_result(context, change) for change in request.changes])


def _result(context: OperationContext, change: Change) -> ChangeResult:
    written = context.txn.size_bytes
    try:
        return ChangeResult(inode=_apply_one(context, change))
    except OperatingError as error:
        if error.retryable:
            raise
        assert context.txn.size_bytes == written, "a change that is refused has written nothing"
        return ChangeResult(
            error=Error(code=error.code, message=error.message, errno=error.errno or 0, retryable=False)
        )


def _apply_one(context: OperationContext, change: Change) -> int:
    kind = change.WhichOneof("change")
    if kind != "create_small":
        raise InvalidArgument("this service does not know that kind of change")
    return _create_small(context, change.create_small)


def _create_small(context: OperationContext, request: CreateSmall) -> int:
    """Make a file with its content; return its inode.

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
    return inode.id


__all__ = ["CHANGES_MAX", "DATA_BYTES_MAX", "apply"]
