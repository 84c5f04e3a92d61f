"""Stat results and directory entries, as those of `os`."""

import os
import stat as modes
from typing import Final, NamedTuple, Protocol

TYPE_BITS: Final = {  # FileType in proto/meta.proto
    1: modes.S_IFREG,
    2: modes.S_IFDIR,
    3: modes.S_IFLNK,
    4: modes.S_IFIFO,
    5: modes.S_IFSOCK,
    6: modes.S_IFCHR,
    7: modes.S_IFBLK,
}
NS_PER_S: Final = 1_000_000_000
SECTOR_BYTES: Final = 512
BLOCK_BYTES: Final = 128 << 10  # as the mount says


class Stat(NamedTuple):
    """What the native client says of an inode."""

    inode: int
    type: int
    permissions: int
    links: int
    uid: int
    gid: int
    device: int
    length: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    birth_ns: int


def stat_result(fields: tuple[int, ...]) -> os.stat_result:
    """Return what `os.stat` would return for the same inode."""
    stat = Stat(*fields)
    times_ns = (stat.atime_ns, stat.mtime_ns, stat.ctime_ns)
    basic = (
        TYPE_BITS.get(stat.type, 0) | stat.permissions,
        stat.inode,
        0,
        stat.links,
        stat.uid,
        stat.gid,
        stat.length,
        *(time_ns // NS_PER_S for time_ns in times_ns),
    )
    more: dict[str, object] = {
        "st_blksize": BLOCK_BYTES,
        "st_blocks": -(-stat.length // SECTOR_BYTES),
        "st_rdev": stat.device,
    }
    for name, time_ns in zip(("st_atime", "st_mtime", "st_ctime"), times_ns, strict=True):
        more[name] = time_ns / NS_PER_S
        more[f"{name}_ns"] = time_ns
    return os.stat_result(basic, more)


class StatOf(Protocol):
    """`FileSystem.stat`."""

    def __call__(self, path: str, /, *, follow_symlinks: bool = True) -> os.stat_result: ...


class DirEntry:
    """One entry of a directory, with its attributes as they were when it was listed."""

    __slots__ = ("_attributes", "_inode", "_stat", "_type", "name", "path")

    def __init__(  # noqa: PLR0913 (made in one place)
        self,
        name: str,
        path: str,
        *,
        inode: int,
        file_type: int,
        attributes: tuple[int, ...] | None,
        stat: StatOf,
    ) -> None:
        self.name = name
        self.path = path
        self._inode = inode
        self._type = file_type
        self._attributes = attributes
        self._stat = stat

    def __fspath__(self) -> str:
        return self.path

    def __repr__(self) -> str:
        return f"<DirEntry {self.name!r}>"

    def inode(self) -> int:
        """Return the inode number."""
        return self._inode

    def is_symlink(self) -> bool:
        """Return whether this is a symbolic link."""
        return TYPE_BITS.get(self._type) == modes.S_IFLNK

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Return whether this is a directory, or a link to one."""
        return self._is(modes.S_IFDIR, follow_symlinks=follow_symlinks)

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Return whether this is a regular file, or a link to one."""
        return self._is(modes.S_IFREG, follow_symlinks=follow_symlinks)

    def _is(self, bits: int, *, follow_symlinks: bool) -> bool:
        if not (follow_symlinks and self.is_symlink()):
            return TYPE_BITS.get(self._type) == bits
        try:
            return modes.S_IFMT(self._stat(self.path).st_mode) == bits
        except FileNotFoundError:
            return False

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """As `os.DirEntry.stat`. Raises: NotFound for a link that leads nowhere."""
        if self._attributes is None or (follow_symlinks and self.is_symlink()):
            return self._stat(self.path, follow_symlinks=follow_symlinks)
        return stat_result(self._attributes)


__all__ = ["DirEntry", "Stat", "stat_result"]
