"""Making directories."""

from ...errors import AlreadyExists, NotADirectory, NotFound
from ...wire.pb.meta_pb2 import DIRECTORY, Inode, InodeReply, Layout, MkdirRequest, Path
from .. import schema
from ..context import OperationContext
from ..permissions import EXECUTE, WRITE, require
from ..resolve import Place, check_name, locate
from .make import attach, free_place, new_directory


def mkdir(context: OperationContext, request: MkdirRequest) -> InodeReply:
    """Make a directory; with `parents` also those above it, and one that exists already is no error.

    Reads with conflict: the parent, the entry, the parent's number of subdirectories.
    Raises: AlreadyExists, NotFound, NotADirectory, PermissionDenied, InvalidArgument.
    """
    layout = request.layout if request.HasField("layout") else None
    if request.parents:
        return _with_parents(context, request, layout)
    directory, name = free_place(context, request.path)
    inode = new_directory(context, directory, name, permissions=request.permissions, layout=layout)
    attach(context, directory, name, inode)
    return InodeReply(inode=context.visible(inode), created=True)


def _with_parents(context: OperationContext, request: MkdirRequest, layout: Layout | None) -> InodeReply:
    """Resolve the longest part of the path that exists, then make the rest in the same transaction."""
    missing: list[bytes] = []
    inode = _deepest(context, request.path, missing)
    created = bool(missing)
    while missing:
        inode = _make_in(context, inode, missing.pop(), request.permissions, layout)
    return InodeReply(inode=context.visible(inode), created=created)


def _deepest(context: OperationContext, path: Path, missing: list[bytes]) -> Inode:
    """Return the end of the part of `path` that exists; the names after it go to `missing`, last first."""
    start = b"/" if path.path.startswith(b"/") else b""
    names = [name for name in path.path.split(b"/") if name]
    while True:
        place = _existing(context, Path(at=path.at, path=start + b"/".join(names)))
        if place is None or place.entry is None:
            if not names:
                raise NotFound("no such directory", inode=path.at)
            missing.append(names.pop())
            continue
        if place.entry.type != DIRECTORY:
            error = NotADirectory if missing else AlreadyExists
            raise error("exists and is not a directory", name=place.name)
        return context.directory(place.entry.inode)


def _existing(context: OperationContext, path: Path) -> Place | None:
    try:
        return locate(context, path, follow=True)
    except NotFound:
        return None


def _make_in(
    context: OperationContext, directory: Inode, name: bytes, permissions: int, layout: Layout | None
) -> Inode:
    check_name(name)
    if name in (b".", b".."):
        raise NotFound("no such directory", name=name)
    if not directory.link_count:
        raise NotFound("the directory has been removed", inode=directory.id)
    require(context.user, directory, WRITE | EXECUTE)
    context.txn.add_read_conflict(schema.inode_key(directory.id))
    if context.entry(directory.id, name) is not None:  # a dangling symbolic link
        raise AlreadyExists("exists and is not a directory", name=name)
    inode = new_directory(context, directory, name, permissions=permissions, layout=layout)
    attach(context, directory, name, inode)
    return inode


__all__ = ["mkdir"]
