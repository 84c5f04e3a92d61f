"""What a writer reports of a file: its length, its time, its bytes if they fit the inode."""

from ...errors import InvalidArgument, IsADirectory
from ...wire.pb.meta_pb2 import DIRECTORY, REGULAR, CloseOne, Inode, InodeReply, SyncRequest
from ..context import OperationContext
from ..permissions import WRITE, after_write, require, without_set_id
from ..replies import AnyInodeReply
from .length import absorb_inline, absorb_length, leave_inline, require_length, reserve_spare
from .set_attr import change_attributes


def sync(context: OperationContext, request: SyncRequest) -> AnyInodeReply:
    """Apply what the request reports. `exact` asks the chains for the length.

    A request without a report only asks for `durable`; so does every request for a directory.

    A retry that finds the file left inline already, or the same bytes there, is recognised by its record.
    Raises: NotFound; PermissionDenied; InvalidArgument; Conflict if inline bytes were made from an older
    state, or another client has moved the file out of its inode first.
    """
    inode = context.get_for_update(request.inode)
    if inode.type == DIRECTORY and not reports(request):
        # fsync of a directory: what `durable` asks for happens to the whole reply.
        return context.reply(inode)
    _require_file(inode)
    context.pause(inode)
    if reports(request):
        require_writer(context, inode, request.session)
    if request.leave_inline:
        spare = request.spare if request.HasField("spare") else None
        leave_inline(context, inode, base=request.inline_base, spare=spare)
    changed = absorb(context, inode, request, exact=request.exact)
    if request.HasField("attributes"):
        change_attributes(context, inode, request.attributes)
        changed = True
    if changed:
        context.change(inode)
    if request.reserve_spare:
        return InodeReply(inode=inode, spare=reserve_spare(context, inode, base=request.inline_base))
    return context.reply(inode)


def absorb(context: OperationContext, inode: Inode, report: SyncRequest | CloseOne, *, exact: bool) -> bool:
    """Apply a report to the inode. Return whether the inode has changed: the caller then stores it.

    A report of bytes is a change even where the length stays: other clients learn from it that bytes have changed.
    """
    wrote = report.has_inline or report.HasField("length") or bool(report.mtime_ns)
    before = inode.length
    if report.has_inline:
        absorb_inline(inode, report.inline_data, report.length, base=report.inline_base)
    elif not inode.is_inline and (exact or report.HasField("length")):
        absorb_length(context, inode, report.length, exact=exact)
    elif inode.is_inline and report.length.truncate_version == inode.truncate_version:
        # Zeros after the inline bytes: the file was extended without bytes of its own.
        require_length(inode, report.length.length)
        inode.length = max(inode.length, report.length.length)
    if report.mtime_ns:
        inode.mtime_ns = report.mtime_ns
    if report.clear_set_id:
        inode.permissions = without_set_id(inode.permissions)
    elif wrote:
        inode.permissions = after_write(context.user, inode)
    left = isinstance(report, SyncRequest) and report.leave_inline
    return wrote or left or report.clear_set_id or inode.length != before


def require_writer(context: OperationContext, inode: Inode, session: int) -> None:
    """Raises: PermissionDenied unless the caller has the file open for writing, or might open it."""
    if not context.owns_session(inode.id, session):
        require(context.user, inode, WRITE)


def reports(request: SyncRequest) -> bool:
    """Return whether this asks for a change. fsync of a descriptor that is open for reading does not."""
    changes = request.has_inline or request.leave_inline or request.HasField("attributes")
    measures = request.exact or request.HasField("length")
    return changes or measures or request.reserve_spare or request.clear_set_id or bool(request.mtime_ns)


def _require_file(inode: Inode) -> None:
    if inode.type == DIRECTORY:
        raise IsADirectory("is a directory", inode=inode.id)
    if inode.type != REGULAR:
        raise InvalidArgument("only regular files are written", inode=inode.id)


__all__ = ["absorb", "reports", "require_writer", "sync"]
