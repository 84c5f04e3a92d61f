"""What all operations share that give a new inode a name."""

from ...errors import AlreadyExists, InvalidArgument, IsADirectory, NotFound
from ...wire.pb.meta_pb2 import DIRECTORY, REGULAR, SYMLINK, FileType, Inode, Layout, Path
from .. import schema
from ..permissions import EXECUTE, WRITE, inherit, require
from ..resolve import Place, locate
from ..schema import Entry
from ..work import DIRECTORY_LINKS, Work


def free_place(work: Work, path: Path) -> tuple[Inode, bytes]:
    """The directory and the free name that `path` leads to; the commit fails if either changes.

    Raises: AlreadyExists, NotFound, PermissionDenied, and what `locate` raises.
    """
    place = locate(work, path, follow=False)
    if place.directory is None or place.entry is not None:
        raise AlreadyExists("the name exists already", name=place.name)
    return claim(work, place), place.name


def claim(work: Work, place: Place) -> Inode:
    """The directory of a free place, guarded: the commit fails if it or the name changes meanwhile."""
    directory = place.directory
    assert directory is not None, "only an entry's place can be claimed"
    if not directory.link_count:
        raise NotFound("the directory has been removed", inode=directory.id)
    require(work.user, directory, WRITE | EXECUTE)
    work.txn.add_read_conflict(schema.inode_key(directory.id))
    work.guard(directory.id, place.name)
    return directory


def new_inode(work: Work, directory: Inode, *, kind: FileType, permissions: int) -> Inode:
    """An inode that the caller makes in `directory`; not stored yet."""
    gid, permissions = inherit(work.user, directory, permissions, kind=kind)
    now_ns = work.now_ns
    return Inode(
        id=work.scene.inodes.take(),
        type=kind,
        permissions=permissions,
        uid=work.user.uid,
        gid=gid,
        link_count=1,
        atime_ns=now_ns,
        mtime_ns=now_ns,
        ctime_ns=now_ns,
        birth_ns=now_ns,
        change=work.scene.removal_clock.first_change + 1,
    )


def new_file(work: Work, directory: Inode, *, permissions: int, layout: Layout | None) -> Inode:
    """An empty regular file. Raises: InvalidArgument for a bad layout; Unavailable without a chain table."""
    inherited = directory.layout if directory.HasField("layout") else None
    inode = new_inode(work, directory, kind=REGULAR, permissions=permissions)
    inode.layout.CopyFrom(work.scene.placer.place(work.scene.placer.template(layout, inherited)))
    inode.content = work.scene.contents.take()
    inode.is_inline = inode.layout.inline_bytes > 0
    return inode


def new_directory(
    work: Work, directory: Inode, name: bytes, *, permissions: int, layout: Layout | None
) -> Inode:
    """An empty directory whose files follow `layout`, or the parent's."""
    inode = new_inode(work, directory, kind=DIRECTORY, permissions=permissions)
    inode.link_count = DIRECTORY_LINKS
    inode.parent = directory.id
    inode.name = name
    if layout is not None:
        inherited = directory.layout if directory.HasField("layout") else None
        inode.layout.CopyFrom(work.scene.placer.template(layout, inherited))
    elif directory.HasField("layout"):
        inode.layout.CopyFrom(directory.layout)
    return inode


def attach(work: Work, directory: Inode, name: bytes, inode: Inode) -> None:
    """Stores a new inode and gives it its name."""
    work.put(inode)
    work.made += 1
    work.add_entry(directory.id, name, Entry(inode.id, inode.type, cookie=inode.id))
    if inode.type == DIRECTORY:
        work.count_subdirectories(directory.id, +1)


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
