"""What is in a cluster: listings, attributes, and the changes of names."""

import contextlib
import datetime as dt
import hashlib
import os
import posixpath
from collections.abc import AsyncIterator, Iterator
from glob import has_magic
from typing import TypeAlias

from fsspec.spec import AbstractFileSystem

from ...errors import AlreadyExists, InvalidArgument, IsADirectory, NotADirectory, NotEmpty, NotFound
from ..attributes import Stat
from ..connection import naming
from .base import Cluster
from .paths import Info, Place, info_of, kind

Walked: TypeAlias = tuple[str, dict[str, Info], dict[str, Info]] | tuple[str, list[str], list[str]]


class Names(Cluster):
    """Every method without an event loop."""

    def info(self, path: str, **_: object) -> Info:
        """name, size, type ("file", "directory", "link", "other"), created, mtime, mode, uid, gid, ino, nlink, islink.

        For a link, those of what it leads to. Raises: FileNotFoundError, also for a link that leads nowhere.
        """
        place = self._place(path)
        return self._info_of(place, self._stat(place.path, follow=False))

    def _stat(self, path: str, *, follow: bool) -> Stat:
        with naming(path):
            return Stat(*self.files.connection.client.stat(os.fsencode(path), follow=follow))

    def _info_of(self, place: Place, stat: Stat) -> Info:
        if kind(stat) != "link":
            return info_of(place.name, stat)
        target = self._stat(place.path, follow=True)
        return info_of(place.name, stat, target=target, destination=self.files.readlink(place.path))

    def ls(
        self, path: str, detail: bool = True, *, follow_links: bool = True, **_: object
    ) -> list[Info] | list[str]:
        """Return what is in a directory, in the order of the names' bytes; of a file, the file itself.

        `follow_links`: whether a link to a directory is shown as "directory"; else it is a "link".
        """
        place = self._place(path)
        stat = self._stat(place.path, follow=True)
        if kind(stat) != "directory":
            return [self.info(path)] if detail else [place.name]
        if not detail:
            return [
                place.child(name).name for name, _ in self._list(place.path, stat.inode, attributes=False)
            ]
        found: list[Info] | None = self.dircache.get(place.name) if self.dircache.use_listings_cache else None
        if found is None:
            found = list(self._entries(place, stat.inode))
            self.dircache[place.name] = found
        if follow_links:
            return list(found)
        return [_unfollowed(each) for each in found]

    def _entries(self, directory: Place, inode: int) -> Iterator[Info]:
        for name, attributes in self._list(directory.path, inode, attributes=True):
            place = directory.child(name)
            try:
                stat = self._stat(place.path, follow=False) if attributes is None else Stat(*attributes)
            except NotFound:
                continue  # removed since it was listed
            try:
                yield self._info_of(place, stat)
            except (NotFound, NotADirectory, InvalidArgument):
                yield info_of(place.name, stat)  # a link that leads nowhere

    def _list(
        self, path: str, inode: int, *, attributes: bool
    ) -> Iterator[tuple[bytes, tuple[int, ...] | None]]:
        client = self.files.connection.client
        after, more = b"", True
        while more:
            with naming(path):
                page, more = client.list(inode, after, with_attributes=attributes)
            yield from ((name, found) for name, _, _, found in page)
            more = more and bool(page)
            after = page[-1][0] if page else b""

    def exists(self, path: str, **_: object) -> bool:
        """False for a link that leads nowhere. Raises: what is not about the path, such as a cluster that is down."""
        return self._kind(path) is not None

    def lexists(self, path: str, **_: object) -> bool:
        return self._kind(path, follow=False) is not None

    def isdir(self, path: str) -> bool:
        return self._kind(path) == "directory"

    def isfile(self, path: str) -> bool:
        return self._kind(path) == "file"

    def islink(self, path: str) -> bool:
        return self._kind(path, follow=False) == "link"

    def _kind(self, path: str, *, follow: bool = True) -> str | None:
        _ = self.files.connection.client  # a cluster that is not found is not a file that is not found
        try:
            return kind(self._stat(self._path(path), follow=follow))
        except (NotFound, NotADirectory):
            return None

    def walk(
        self,
        path: str,
        maxdepth: int | None = None,
        topdown: bool = True,
        on_error: object = "omit",
        **options: object,
    ) -> Iterator[Walked]:
        """As `os.walk`; links to directories are not followed and count as files."""
        options.setdefault("follow_links", False)
        return AbstractFileSystem.walk(self, path, maxdepth, topdown, on_error, **options)  # type: ignore[no-any-return]

    async def _walk(
        self,
        path: str,
        maxdepth: int | None = None,
        topdown: bool = True,
        on_error: object = "omit",
        **options: object,
    ) -> AsyncIterator[Walked]:
        options.setdefault("follow_links", False)
        async for each in super()._walk(path, maxdepth, topdown, on_error, **options):
            yield each

    def find(
        self,
        path: str,
        maxdepth: int | None = None,
        withdirs: bool = False,
        detail: bool = False,
        **options: object,
    ) -> list[str] | dict[str, Info]:
        """Return the files below a directory (or the file itself), sorted."""
        found: list[str] | dict[str, Info] = AbstractFileSystem.find(
            self, path, maxdepth, withdirs, detail, **options
        )
        return found

    def glob(self, path: str, maxdepth: int | None = None, **options: object) -> list[str] | dict[str, Info]:
        found: list[str] | dict[str, Info] = AbstractFileSystem.glob(self, path, maxdepth, **options)
        return found

    def expand_path(
        self, path: object, recursive: bool = False, maxdepth: int | None = None, **options: object
    ) -> list[str]:
        return AbstractFileSystem.expand_path(self, path, recursive, maxdepth, **options)  # type: ignore[no-any-return]

    def du(
        self,
        path: str,
        total: bool = True,
        maxdepth: int | None = None,
        withdirs: bool = False,
        **options: object,
    ) -> int | dict[str, int]:
        """Bytes in the files below a path, or a dictionary of them by path."""
        found = self.find(path, maxdepth, withdirs, detail=True, **options)
        assert isinstance(found, dict), "details were asked for"
        sizes = {name: (info or self.info(name))["size"] for name, info in found.items()}
        return sum(sizes.values()) if total else sizes

    def size(self, path: str) -> int:
        return int(self.info(path)["size"])

    def created(self, path: str) -> dt.datetime:
        return dt.datetime.fromtimestamp(self.info(path)["created"], tz=dt.UTC)

    def modified(self, path: str) -> dt.datetime:
        return dt.datetime.fromtimestamp(self.info(path)["mtime"], tz=dt.UTC)

    def ukey(self, path: str) -> str:
        """Change with every change of the file that others can see."""
        info = self.info(path)
        parts = [info[name] for name in ("ino", "size", "mtime_ns", "ctime_ns")]
        return hashlib.sha256(repr((self.fsid, parts)).encode()).hexdigest()

    def checksum(self, path: str) -> int:
        """`ukey` as a number."""
        return int(self.ukey(path), 16)

    # Changes.

    def mkdir(self, path: str, create_parents: bool = True, **_: object) -> None:
        """Raises: FileExistsError."""
        path = self._path(path)
        self.invalidate_cache(path)
        if create_parents:
            self.files.makedirs(path)
        else:
            self.files.mkdir(path)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Raises: FileExistsError, also with `exist_ok` for something that is not a directory."""
        path = self._path(path)
        self.invalidate_cache(path)
        try:
            self.files.makedirs(path, exist_ok=exist_ok)
        except NotADirectory as error:
            if self.isfile(path):
                raise AlreadyExists("a file of this name is there", path=path) from error
            raise

    def rmdir(self, path: str) -> None:
        """Raises: OSError (ENOTEMPTY) if something is in it."""
        path = self._path(path)
        self.files.rmdir(path)
        self.invalidate_cache(path)

    def rm_file(self, path: str) -> None:
        """Remove a file or a link. Raises: IsADirectoryError."""
        path = self._path(path)
        self.files.remove(path)
        self.invalidate_cache(path)

    def rm(self, path: object, recursive: bool = False, maxdepth: int | None = None, **_: object) -> None:
        """Remove files, and with `recursive` directories and all that is in them (the metadata service does it)."""
        if recursive and maxdepth is not None:
            self._rm_down_to(path, maxdepth)
            return
        for name in self.expand_path(path):
            if self._kind(name, follow=False) != "directory":
                self.rm_file(name)
            elif recursive:
                self.files.rmtree(name)
                self.invalidate_cache(name)
            else:
                raise IsADirectory("a directory: give recursive=True", path=name)

    def _rm_down_to(self, path: object, maxdepth: int) -> None:
        for name in reversed(self.expand_path(path, recursive=True, maxdepth=maxdepth)):
            if self._kind(name, follow=False) != "directory":
                self.rm_file(name)
                continue
            with contextlib.suppress(NotEmpty):
                self.rmdir(name)

    def mv_file(self, path1: str, path2: str, **_: object) -> None:
        """Give a file or a directory another name, in one step. A file at `path2` is replaced."""
        path1, path2 = self._path(path1), self._path(path2)
        try:
            self.files.rename(path1, path2)
        except NotFound:
            if not self.lexists(path1) or not self._make_parent(path2):
                raise
            self.files.rename(path1, path2)
        self.invalidate_cache(path1)
        self.invalidate_cache(path2)

    def mv(
        self,
        path1: str | list[str],
        path2: str | list[str],
        recursive: bool = True,
        maxdepth: int | None = None,
        **_: object,
    ) -> None:
        """Rename; into `path2` where that is a directory. Nothing is copied, and a directory goes with all in it."""
        if isinstance(path2, list):
            if not isinstance(path1, list):
                raise TypeError("a list of new names takes a list of paths")
            for source, name in zip(path1, path2, strict=True):
                self.mv_file(source, name)
            return
        if isinstance(path1, list) or has_magic(self._path(path1)):
            sources, into = self.expand_path(path1), True
        else:
            sources, into = [path1], path2.endswith("/") or self.isdir(path2)
        target = self._place(path2)
        for source in sources:
            name = posixpath.basename(self._path(source))
            self.mv_file(source, (target.child(name) if into else target).name)

    def link(self, src: str, dst: str, **_: object) -> None:
        self.files.link(self._path(src), self._path(dst))
        self.invalidate_cache(dst)

    def symlink(self, src: str, dst: str, **_: object) -> None:
        """Make `dst` a link to the path `src`."""
        self.files.symlink(self._path(src), self._path(dst))
        self.invalidate_cache(dst)

    def chmod(self, path: str, mode: int) -> None:
        self.files.chmod(self._path(path), mode)
        self.invalidate_cache(path)

    def _make_parent(self, path: str) -> bool:
        """Return whether the directory above is there now: this call may have made it, or another one."""
        if self.auto_mkdir:
            self.files.makedirs(posixpath.dirname(path), exist_ok=True)
        return self.auto_mkdir

    def invalidate_cache(self, path: str | None = None) -> None:
        """Forget listings: of a path, of the directory it is in, and of what is below it."""
        super().invalidate_cache(path)
        if not self.dircache.use_listings_cache:
            return
        if path is None:
            self.dircache.clear()
            return
        changed = self._path(path)
        for name in list(self.dircache):
            known = self._path(name)
            if known in (changed, posixpath.dirname(changed)) or known.startswith(changed.rstrip("/") + "/"):
                self.dircache.pop(name, None)


def _unfollowed(info: Info) -> Info:
    """Return `info`, where a link to a directory is a link."""
    return {**info, "type": "link"} if info["islink"] and info["type"] == "directory" else info


__all__ = ["Names"]
