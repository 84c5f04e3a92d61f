"""From a path to a place: the directory, the name, and what the name means now.

Every directory on the way must be executable for the caller. Entries and inodes on the way are read without
conflicts; an operation adds a read conflict for what it depends on (`add_read_conflict`, `get_for_update`).
"""

from typing import Final, NamedTuple

from ..errors import InvalidArgument, NotADirectory, NotFound
from ..ids import ROOT_INODE
from ..wire.pb.meta_pb2 import DIRECTORY, SYMLINK, Inode, Path
from .context import OperationContext
from .permissions import EXECUTE, require
from .schema import Entry

NAME_BYTES_MAX: Final = 255  # Linux NAME_MAX
PATH_BYTES_MAX: Final = 4096  # Linux PATH_MAX
LINKS_MAX: Final = 40  # Linux MAXSYMLINKS
EBUSY: Final = 16  # of a name that stays: `Busy` means that trying again helps
ENAMETOOLONG: Final = 36
ELOOP: Final = 40


class Place(NamedTuple):
    """Where a path leads."""

    directory: Inode | None  # None: the path names no entry (the root, ".", "..", an inode by its id)
    name: bytes
    entry: Entry | None  # None: the name is free
    as_directory: bool  # the path ended in a slash


def check_name(name: bytes) -> None:
    """Raises: InvalidArgument for what cannot be the name of an entry."""
    if not name or b"/" in name or b"\0" in name:
        raise InvalidArgument("not a file name")
    if len(name) > NAME_BYTES_MAX:
        raise InvalidArgument("the name is too long", errno=ENAMETOOLONG)


def locate(context: OperationContext, path: Path, *, follow: bool) -> Place:
    """Return where `path` leads; a symbolic link at its end is followed if `follow`.

    Raises: NotFound, NotADirectory, PermissionDenied for a directory on the way; InvalidArgument (EINVAL,
    ENAMETOOLONG, ELOOP).
    """
    name = path.path
    if not name:
        return _by_id(context, path.at)
    if b"/" in name or name in (b".", b".."):
        return _walk(context, path, follow=follow)
    check_name(name)
    directory = context.directory(path.at)
    require(context.user, directory, EXECUTE)
    entry = context.peek(directory.id, name)
    if follow and entry is not None and entry.type == SYMLINK:
        return _walk(context, path, follow=True)
    return Place(directory, name, entry, as_directory=False)


def inode_at(context: OperationContext, path: Path, *, follow: bool) -> Inode:
    """Return the inode that `path` leads to, read without a conflict.

    Raises: what `locate` raises; NotFound if there is none.
    """
    place = locate(context, path, follow=follow)
    if place.entry is None:
        raise NotFound("no such file or directory", name=place.name)
    return context.load(place.entry.inode)


def _by_id(context: OperationContext, inode: int) -> Place:
    found = context.load(inode or ROOT_INODE)
    return Place(None, b"", Entry(found.id, found.type), as_directory=False)


def _split(path: bytes) -> list[bytes]:
    """Return the names in a path, last one first."""
    return [name for name in reversed(path.split(b"/")) if name]


def _walk(context: OperationContext, path: Path, *, follow: bool) -> Place:  # noqa: C901, one loop over one path
    if len(path.path) > PATH_BYTES_MAX:
        raise InvalidArgument("the path is too long", errno=ENAMETOOLONG)
    directory = context.directory(ROOT_INODE if path.path.startswith(b"/") else path.at)
    names = _split(path.path)
    as_directory = path.path.endswith(b"/")
    links = steps = 0
    name = b""
    while names:
        name = names.pop()
        steps += 1
        if steps > context.shared.config.path_depth_max:
            raise InvalidArgument("the path has too many parts", errno=ENAMETOOLONG)
        check_name(name)
        require(context.user, directory, EXECUTE)
        if name == b".":
            continue
        if name == b"..":
            directory = context.directory(directory.parent)
            continue
        entry = context.peek(directory.id, name)
        if entry is None:
            if names:
                raise NotFound("no such directory", name=name)
            return Place(directory, name, None, as_directory)
        if entry.type == SYMLINK and (names or follow or as_directory):
            links += 1
            if links > LINKS_MAX:
                raise InvalidArgument("too many symbolic links", errno=ELOOP)
            target = context.load(entry.inode).symlink_target
            if target.startswith(b"/"):
                directory = context.directory(ROOT_INODE)
            as_directory = as_directory or (not names and target.endswith(b"/"))
            names.extend(_split(target))
            name = b""
            continue
        if not names and (entry.type == DIRECTORY or not as_directory):
            return Place(directory, name, entry, as_directory)
        if entry.type != DIRECTORY:
            raise NotADirectory("not a directory", name=name)
        directory = context.directory(entry.inode)
    return Place(None, name, Entry(directory.id, DIRECTORY), as_directory)


__all__ = [
    "EBUSY",
    "ELOOP",
    "ENAMETOOLONG",
    "LINKS_MAX",
    "NAME_BYTES_MAX",
    "PATH_BYTES_MAX",
    "Place",
    "check_name",
    "inode_at",
    "locate",
]
