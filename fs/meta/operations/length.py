"""Setting and learning the length of a regular file.

Three homes of bytes:
- inline: they are `inline_data`; a longer `length` means zeros after them;
- chunks under the inode's `content`;
- none: a content that was never written.

L1  A file's length never shrinks except by truncation, and each truncation makes `truncate_version` grow.
L2  A length reported under an older `truncate_version` is not believed; the chains are asked.
L3  When a truncation commits, no byte beyond its length is left under the content that the file then has, except
    bytes written while it ran, which are within the length that is settled before their writer's session ends.
L4  While no client has a file open for writing, all chunks of its content are below its length.
L5  A file in chunks becomes inline again only by truncation to nothing.
L6  Nothing is written under the content of an inline file. A client that moves a file out of its inode writes the
    inode's bytes under a spare content of its own; the transaction that installs it fails if the inode has changed, so
    the bytes of one of two clients are never among the other's. A spare that is not installed is collected as garbage.
"""

from typing import Final

from ...errors import Conflict, InvalidArgument
from ...wire.pb.meta_pb2 import Inode, LengthHint, Spare
from .. import schema
from ..context import OperationContext
from ..layout import length_max
from ..permissions import after_write
from ..retry import RetryAfterMeasure, RetryAfterTruncate

EFBIG: Final = 27


class Overtaken(Conflict):
    """The caller made its bytes from an older state of the file: only the caller can try again."""


def set_length(context: OperationContext, inode: Inode, length: int) -> None:
    """Truncate or extend `inode`, which was taken; the caller stores it.

    Where chunks must be removed first, the rest of the operation runs as if they were, and the attempt ends with
    RetryAfterTruncate: nothing is removed for an operation that is refused.
    Raises: InvalidArgument (EFBIG).
    """
    require_length(inode, length)
    context.txn.may_use_reserve = length < inode.length
    if inode.is_inline:
        _cut_inline(inode, length)
    elif length == 0 and not context.others_write(inode.id):
        _replace_content(context, inode)
    elif length < inode.length or context.is_written(inode.id):
        _require_cut(context, inode, length)
    if inode.id in context.request.intents:
        context.txn.delete(schema.intent_key(inode.id))
    assert inode.is_inline or not inode.inline_data, "L5: bytes are inline or in chunks"
    assert len(inode.inline_data) <= length, "inline bytes are below the length"
    inode.length = length
    inode.truncate_version += 1  # L1
    inode.mtime_ns = context.now_ns
    inode.permissions = after_write(context.user, inode)


def require_length(inode: Inode, length: int) -> None:
    """Raises: InvalidArgument (EFBIG) for more than chunks can be numbered for."""
    if length > length_max(inode.layout):
        raise InvalidArgument("the file would be too large", errno=EFBIG)


def _cut_inline(inode: Inode, length: int) -> None:
    kept = inode.inline_data[:length]
    inode.inline_data = kept.ljust(min(length, inode.layout.inline_bytes), b"\0")


def _replace_content(context: OperationContext, inode: Inode) -> None:
    assert not inode.is_inline, "an inline file has no chunks to leave"
    if context.is_written(inode.id):  # by this client: it may have written more than it has reported
        _discard(context, inode, length=length_max(inode.layout))
    elif inode.length:
        _discard(context, inode, length=inode.length)
    inode.is_inline = inode.layout.inline_bytes > 0
    inode.inline_data = b""


def _discard(context: OperationContext, inode: Inode, *, length: int) -> None:
    context.discard_content(inode, length=length)
    inode.content = context.shared.contents.take()


def _require_cut(context: OperationContext, inode: Inode, length: int) -> None:
    intent = context.request.intents.get(inode.id)
    if intent is None or intent.content != inode.content or intent.length != length:
        context.pending_truncate = RetryAfterTruncate(inode.id, length)


def absorb_length(context: OperationContext, inode: Inode, hint: LengthHint, *, exact: bool) -> None:
    """Let a file in chunks grow to what a writer reports, or to what the chains hold.

    Raises: RetryAfterMeasure where the chains must be asked.
    """
    if not exact and hint.truncate_version == inode.truncate_version:
        require_length(inode, hint.length)
        inode.length = max(inode.length, hint.length)  # L1
        return
    assert exact or hint.truncate_version != inode.truncate_version, "L2: only an old report asks the chains"
    measured = context.request.measured.get(inode.id)
    known = (inode.content, inode.truncate_version)
    if measured is None or (measured.content, measured.truncate_version) != known:
        raise RetryAfterMeasure(inode)
    inode.length = max(inode.length, measured.length)


def absorb_inline(inode: Inode, data: bytes, hint: LengthHint, *, base: int) -> None:
    """Replace the content of an inline file.

    Raises: Conflict if the caller made it from an older state; InvalidArgument if it does not fit.
    """
    if not inode.is_inline or inode.change != base:
        raise Overtaken("the file has changed since these bytes were made", inode=inode.id)
    if len(data) > inode.layout.inline_bytes:
        raise InvalidArgument(f"at most {inode.layout.inline_bytes} bytes fit this inode", errno=EFBIG)
    inode.inline_data = data
    inode.length = len(data)
    if hint.truncate_version == inode.truncate_version:
        inode.length = max(inode.length, min(hint.length, length_max(inode.layout)))


def reserve_spare(context: OperationContext, inode: Inode, *, base: int) -> Spare:
    """Reserve a content for the bytes of an inline file that is to leave its inode. It starts as garbage (L6).

    Raises: Conflict if the caller would write the bytes of an older state there.
    """
    _require_inline(inode, base)
    return context.reserve_content(inode)


def leave_inline(context: OperationContext, inode: Inode, *, base: int, spare: Spare | None) -> None:
    """From here on the file is in chunks: those of `spare`, which hold its bytes, or none if it has no bytes.

    Raises: Conflict if the inode has changed since, or the spare has been given up; InvalidArgument.
    """
    _require_inline(inode, base)
    if spare is not None:
        if not context.claim_spare(inode, content=spare.content, reserved_ms=spare.reserved_ms):
            raise Overtaken("the content was reserved too long ago: reserve another one", inode=inode.id)
        inode.content = spare.content
    elif inode.inline_data:
        raise InvalidArgument(
            "bytes leave their inode with a spare content: reserve one, and write them there"
        )
    assert spare is None or spare.content == inode.content, (
        "L6: the file has the content that its bytes are under"
    )
    inode.is_inline = False
    inode.inline_data = b""


def _require_inline(inode: Inode, base: int) -> None:
    if not inode.is_inline or inode.change != base:
        raise Overtaken("the file has changed since its bytes were read", inode=inode.id)


__all__ = [
    "EFBIG",
    "Overtaken",
    "absorb_inline",
    "absorb_length",
    "leave_inline",
    "require_length",
    "reserve_spare",
    "set_length",
]
