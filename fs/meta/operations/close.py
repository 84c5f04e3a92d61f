"""The end of sessions: many files in one transaction."""

from typing import Final

from ...errors import Error as OperatingError
from ...errors import InvalidArgument, NotFound
from ...wire.pb.common_pb2 import Error
from ...wire.pb.meta_pb2 import CloseOne, CloseReply, CloseRequest
from .. import schema
from ..context import OperationContext
from ..replies import FIRST, INLINE_DATA_TAG, SECOND, StoredReply, by_id
from .sync import absorb, require_writer

CLOSES_MAX: Final = 1024  # sessions closed in one transaction


def close(context: OperationContext, request: CloseRequest) -> StoredReply[CloseReply]:
    """Close each session and take over what its writer reports. One that fails does not hinder the others.

    A session that fails to close because its report is refused (Conflict for inline bytes) stays open.
    """
    if len(request.closes) > CLOSES_MAX:
        raise InvalidArgument(f"at most {CLOSES_MAX} files are closed in one request")
    context.txn.may_use_reserve = (
        True  # a full disk must not keep sessions open, which keep files from removal
    )
    results: list[bytes] = []
    recorded: list[bytes] = []
    errors: list[bytes] = []
    inodes: list[int] = []
    has_data = False
    for one in request.closes:
        result = short = failure = b""
        try:
            stored = _close_one(context, one)
        except OperatingError as error:
            failure = _encode_error(error)
        else:
            if stored is not None:
                inodes.append(one.inode)
                has_data = has_data or INLINE_DATA_TAG in stored
                result = FIRST[len(stored)] + stored
                short = by_id(one.inode)
        results += (FIRST[len(result)], result)
        recorded += (FIRST[len(short)], short)
        errors += (SECOND[len(failure)], failure)
    return StoredReply(
        CloseReply,
        b"".join(results + errors),
        inodes,
        has_data=has_data,
        recorded=b"".join(recorded + errors),
    )


def _encode_error(error: OperatingError) -> bytes:
    return Error(
        code=error.code, message=error.message, errno=error.errno or 0, retryable=error.retryable
    ).SerializeToString()


def _close_one(context: OperationContext, one: CloseOne) -> bytes | None:
    """Return the inode as it is stored now, if it was asked for by a report."""
    end = _abandon_session if one.measure else _end_session
    if not reports(one):
        end(context, one)
        return None  # hundreds of these come in one request: an inode without a report is not looked up
    inode = context.get_for_update(one.inode)
    context.pause(inode)
    require_writer(context, inode, one.session)
    if absorb(context, inode, one, exact=False):
        context.change(inode)
    end(context, one)
    return context.stored(inode.id)


def reports(one: CloseOne) -> bool:
    """Return whether this close reports a change. One that does not may be carried out twice without harm."""
    return one.HasField("length") or one.has_inline or one.clear_set_id or bool(one.mtime_ns)


def _abandon_session(context: OperationContext, one: CloseOne) -> None:
    """Leave the session to the collector, which measures the file before it ends it."""
    if context.owns_session(one.inode, one.session):
        context.abandoned.append((one.inode, one.session))


def _end_session(context: OperationContext, one: CloseOne) -> None:
    if not one.session:
        return
    key = schema.session_key(one.inode, one.session)
    value = context.txn.get(key)
    if value is None:  # closed before, or ended by the collector because its client was declared failed
        return
    if schema.decode_session(value).client != context.request.client:
        raise NotFound("not this client's session", inode=one.inode)
    context.txn.delete(key)
    context.closed.append((one.inode, one.session))


__all__ = ["CLOSES_MAX", "close", "reports"]
