"""What all operations share that give a new inode a name."""

from ...errors import AlreadyExists, InvalidArgument, IsADirectory, NotFound
from ...wire.pb.meta_pb2 import DIRECTORY, REGULAR, SYMLINK, FileType, Inode, Layout, Path
from .. import schema
from ..allocator import FIRST_ID
from ..context import DIRECTORY_LINKS, OperationContext
from ..permissions import EXECUTE, WRITE, inherit, require
from ..resolve import Place, locate
from ..schema import Entry


def free_place(context: OperationContext, path: Path) -> tuple[Inode, bytes]:
    """Return the directory and the free name that `path` leads to; the commit fails if either changes.

    Raises: AlreadyExists, NotFound, PermissionDenied, and what `locate` raises.
    """
    place = locate(context, path, follow=False)
    if place.directory is None or place.entry is not None:
        raise AlreadyExists("the name exists already", name=place.name)
    return claim(context, place), place.name


def claim(context: OperationContext, place: Place) -> Inode:
    """Return the directory of a free place; the commit fails if it or the name changes meanwhile."""
    directory = place.directory
    assert directory is not None, "only an entry's place can be claimed"
    if not directory.link_count:
        raise NotFound("the directory has been removed", inode=directory.id)
    require(context.user, directory, WRITE | EXECUTE)
    context.txn.add_read_conflict(schema.inode_key(directory.id))
    context.add_read_conflict(directory.id, place.name)
    return directory


def new_inode(context: OperationContext, directory: Inode, *, kind: FileType, permissions: int) -> Inode:
    """Return an inode that the caller makes in `directory`; not stored yet."""
    gid, permissions = inherit(context.user, directory, permissions, kind=kind)
    now_ns = context.birth_ns or context.now_ns
    return Inode(
        id=context.next_inode or context.shared.inodes.take(),
        type=kind,
        permissions=permissions,
        uid=context.user.uid,
        gid=gid,
        link_count=1,
        parent=directory.id,
        atime_ns=now_ns,
        mtime_ns=now_ns,
        ctime_ns=now_ns,
        birth_ns=now_ns,
        change=context.shared.removal_clock.first_change + 1,
    )


def new_file(
    context: OperationContext, directory: Inode, *, permissions: int, layout: Layout | None
) -> Inode:
    """Return an empty regular file. Raises: InvalidArgument for a bad layout; Unavailable without a chain table."""
    inherited = directory.layout if directory.HasField("layout") else None
    inode = new_inode(context, directory, kind=REGULAR, permissions=permissions)
    inode.layout.CopyFrom(context.shared.placer.place(context.shared.placer.template(layout, inherited)))
    inode.content = context.shared.contents.take()
    inode.is_inline = inode.layout.inline_bytes > 0
    return inode


def new_directory(
    context: OperationContext, directory: Inode, name: bytes, *, permissions: int, layout: Layout | None
) -> Inode:
    """Return an empty directory whose files follow `layout`, or the parent's."""
    inode = new_inode(context, directory, kind=DIRECTORY, permissions=permissions)
    inode.link_count = DIRECTORY_LINKS
    inode.name = name
    if layout is not None:
        inherited = directory.layout if directory.HasField("layout") else None
        inode.layout.CopyFrom(context.shared.placer.template(layout, inherited))
    elif directory.HasField("layout"):
        inode.layout.CopyFrom(directory.layout)
    return inode


def attach(context: OperationContext, directory: Inode, name: bytes, inode: Inode) -> None:
    """Store a new inode and give it its name."""
    assert inode.id >= FIRST_ID, "ids below have a meaning of their own"
    cookie = inode.id
    if context.next_inode:  # reserved a while ago: a listing in progress may be past it
        cookie = context.shared.inodes.take()
        if inode.type != DIRECTORY:
            inode.cookie = cookie
    context.put(inode)
    context.new_inodes.append(inode.id)
    context.add_entry(directory.id, name, Entry(inode.id, inode.type, cookie))
    if inode.type == DIRECTORY:
        context.count_subdirectories(directory.id, +1)


def refuse_slash(place: Place) -> None:
    """Raises: IsADirectory where a path that ends in a slash would name something else than a directory."""
    if place.as_directory:
        raise IsADirectory("a path that ends in a slash names a directory", name=place.name)


def check_kind(kind: FileType) -> None:
    """Raises: InvalidArgument for a type that has its own operation, or none."""
    if kind in (DIRECTORY, SYMLINK) or kind not in FileType.values() or not kind:
        raise InvalidArgument("mknod makes regular files, FIFOs, sockets and devices", kind=kind)


__all__ = [
    "attach",
    "check_kind",
    "claim",
    "free_place",
    "new_directory",
    "new_file",
    "new_inode",
    "refuse_slash",
]
