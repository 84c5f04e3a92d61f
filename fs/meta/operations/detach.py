"""What all operations share that take a name away."""

from ...errors import IsADirectory, NotADirectory, NotEmpty, NotFound
from ...wire.pb.meta_pb2 import DIRECTORY, Inode
from .. import schema
from ..context import OperationContext
from ..permissions import require_removal
from ..resolve import Place


def victim(context: OperationContext, place: Place) -> Inode:
    """Return the inode whose name is taken away; the commit fails if it or its entry changes meanwhile.

    Raises: NotFound, PermissionDenied.
    """
    directory = place.directory
    assert directory is not None, "checked by the caller: the path names an entry"
    if place.entry is None:
        raise NotFound("no such file or directory", name=place.name)
    context.add_read_conflict(directory.id, place.name)
    inode = context.get_for_update(place.entry.inode)
    require_removal(context.user, directory, inode)
    return inode


def require_file(place: Place, inode: Inode) -> None:
    """Raises: IsADirectory; NotADirectory if the path ended in a slash."""
    if inode.type == DIRECTORY:
        raise IsADirectory("is a directory", name=place.name)
    if place.as_directory:
        raise NotADirectory("not a directory", name=place.name)


def require_empty(context: OperationContext, inode: Inode) -> None:
    """Raises: NotADirectory, NotEmpty. The commit fails if an entry comes in meanwhile."""
    if inode.type != DIRECTORY:
        raise NotADirectory("not a directory", inode=inode.id)
    if context.txn.get_range(*schema.entry_range(inode.id), limit=1):
        raise NotEmpty("the directory is not empty", inode=inode.id)


def drop(context: OperationContext, place: Place, inode: Inode) -> None:
    """Take the name away, and one link off the inode; without any it is left to the collector."""
    directory, entry = place.directory, place.entry
    assert directory is not None, "only an entry can be dropped"
    assert entry is not None, "only an entry can be dropped"
    context.txn.may_use_reserve = True
    context.remove_entry(directory.id, place.name, entry)
    if inode.type == DIRECTORY:
        context.count_subdirectories(directory.id, -1)
        inode.link_count = 0
    else:
        assert inode.link_count > 0, "a name is one of the inode's links"
        inode.link_count -= 1
    if not inode.link_count:
        context.leave_orphan(inode)
    context.change(inode)


__all__ = ["drop", "require_empty", "require_file", "victim"]
