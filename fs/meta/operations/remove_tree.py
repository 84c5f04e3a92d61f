"""Removing a directory with all that is in it: it loses its name at once, the collector does the rest."""

import asyncio
import stat
from collections.abc import Sequence
from typing import Final

from ...errors import InvalidArgument, NotFound, Unsupported
from ...ids import ROOT_INODE
from ...kv import Engine, Transaction
from ...wire.pb.common_pb2 import Empty
from ...wire.pb.meta_pb2 import DIRECTORY, RemoveTreeRequest
from .. import schema
from ..context import OperationContext
from ..permissions import EXECUTE, READ, WRITE, User, require, require_removal
from ..resolve import EBUSY, locate
from ..retry import RetryAfterCheck
from .detach import drop, victim

DIRECTORIES_MAX: Final = 10_000  # looked at before a tree is removed for a user who is not root
PAGE: Final = 64  # entries looked at, a fraction of a millisecond, before others have a turn


def remove_tree(context: OperationContext, request: RemoveTreeRequest) -> Empty:
    """Take the name of a tree away; what is below it cannot be reached from then on.

    A user who is not root must be permitted to remove every entry; directories that are being filled
    meanwhile may slip in. A file, or an empty directory, is removed as by unlink or rmdir. Files that have
    other names outside lose the links from the tree when the collector comes to them.
    Raises: NotFound, PermissionDenied, InvalidArgument for the root (EBUSY); Unsupported for a tree too large to check.
    """
    place = locate(context, request.path, follow=False)
    if place.directory is None:
        if place.entry is not None and place.entry.inode == ROOT_INODE:
            raise InvalidArgument("the root cannot be removed", errno=EBUSY)
        raise InvalidArgument("a name is needed to remove a tree")
    inode = victim(context, place)
    if inode.type == DIRECTORY and context.user.uid != 0 and inode.id not in context.request.checked:
        raise RetryAfterCheck(inode.id)
    drop(context, place, inode)
    return Empty()


async def check_tree(engine: Engine, user: User, root: int) -> None:
    """Find out whether `user` may remove everything below `root`, page by page: other requests are served meanwhile.

    Raises: PermissionDenied; Unsupported for a tree too large to check.
    """
    waiting = [root]
    seen = 0
    while waiting:
        directory = waiting.pop()
        seen += 1
        if seen > DIRECTORIES_MAX:
            raise Unsupported(f"more than {DIRECTORIES_MAX} directories: remove the tree in parts")
        after = b""
        while True:
            below, last = _check_page(engine.begin(), user, directory, after)
            waiting += below
            await asyncio.sleep(0)
            if last is None:
                break
            after = last


def _check_page(
    txn: Transaction, user: User, number: int, after: bytes
) -> tuple[Sequence[int], bytes | None]:
    """Check some entries of a directory. Returns the directories among them, and the last name if more follow."""
    value = txn.snapshot_get(schema.inode_key(number))
    if value is None:  # removed meanwhile
        return (), None
    directory = schema.decode_inode(value)
    pairs = txn.snapshot_range(*schema.entry_range(number, after=after), limit=PAGE)
    if pairs and not after:
        require(user, directory, READ | WRITE | EXECUTE)
    below: list[int] = []
    for _, value in pairs:
        entry = schema.decode_entry(value)
        if entry.type != DIRECTORY and not directory.permissions & stat.S_ISVTX:
            continue
        stored = txn.snapshot_get(schema.inode_key(entry.inode))
        if stored is None:
            raise NotFound("no such inode", inode=entry.inode)
        require_removal(user, directory, schema.decode_inode(stored))
        if entry.type == DIRECTORY:
            below.append(entry.inode)
    return below, schema.split_one(pairs[-1][0])[1] if len(pairs) == PAGE else None


__all__ = ["DIRECTORIES_MAX", "check_tree", "remove_tree"]
