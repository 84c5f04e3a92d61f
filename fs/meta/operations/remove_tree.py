"""Removing a directory with all that is in it: it loses its name at once, the collector does the rest."""

from typing import Final

from ...errors import InvalidArgument, Unsupported
from ...ids import ROOT_INODE
from ...wire.pb.common_pb2 import Empty
from ...wire.pb.meta_pb2 import DIRECTORY, Inode, RemoveTreeRequest
from .. import schema
from ..permissions import EXECUTE, READ, WRITE, require, require_removal
from ..resolve import EBUSY, locate
from ..work import Work
from .detach import drop, victim

DIRECTORIES_MAX: Final = 10_000  # looked at before a tree is removed for a user who is not root
PAGE: Final = 1024


def remove_tree(work: Work, request: RemoveTreeRequest) -> Empty:
    """Takes the name of a tree away; what lies below is out of reach from then on.

    A user who is not root must be permitted to remove every entry; directories that are being filled
    meanwhile may slip in. A file, or an empty directory, is removed as by unlink or rmdir. Files that have
    other names outside lose the links from the tree when the collector comes to them.
    Raises: NotFound, PermissionDenied, InvalidArgument for the root (EBUSY); Unsupported for a tree too large to check.
    """
    place = locate(work, request.path, follow=False)
    if place.directory is None:
        if place.entry is not None and place.entry.inode == ROOT_INODE:
            raise InvalidArgument("the root cannot be removed", errno=EBUSY)
        raise InvalidArgument("a name is needed to remove a tree")
    inode = victim(work, place)
    if inode.type == DIRECTORY and work.user.uid != 0:
        _require_all(work, inode)
    drop(work, place.directory.id, place.name, inode)
    return Empty()


def _require_all(work: Work, root: Inode) -> None:
    waiting = [root]
    seen = 0
    while waiting:
        directory = waiting.pop()
        seen += 1
        if seen > DIRECTORIES_MAX:
            raise Unsupported(f"more than {DIRECTORIES_MAX} directories: remove the tree in parts")
        waiting.extend(_require_entries(work, directory))


def _require_entries(work: Work, directory: Inode) -> list[Inode]:
    """The subdirectories of one whose entries the user may all remove. Raises: PermissionDenied."""
    below: list[Inode] = []
    after = b""
    while True:
        pairs = work.txn.snapshot_range(*schema.entry_range(directory.id, after=after), limit=PAGE)
        if pairs and not after:
            require(work.user, directory, READ | WRITE | EXECUTE)
        for key, value in pairs:
            _, after = schema.split_one(key)
            entry = schema.decode_entry(value)
            if entry.type == DIRECTORY or directory.permissions & 0o1000:
                inode = work.load(entry.inode)
                require_removal(work.user, directory, inode)
                if entry.type == DIRECTORY:
                    below.append(inode)
        if len(pairs) < PAGE:
            return below


__all__ = ["DIRECTORIES_MAX", "remove_tree"]
