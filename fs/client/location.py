"""The one way in which a program names a file somewhere.

    /data/model, model.safetensors      a plain path: this machine, a mount included
    luciola://HOST:PORT/path            the cluster whose manager listens there, with its secret file;
                                        several managers are HOST:PORT,HOST:PORT
    luciola:///DATA_DIR!/path           the cluster of that data directory on this machine, with its secret
    lu:/path                            the cluster that LUCIOLA_DATA or LUCIOLA_ADDRESS names

Credentials come from LUCIOLA_TOKEN, LUCIOLA_TOKEN_FILE (`luciola token create`) or LUCIOLA_SECRET_FILE, the first that
is set; `token=`, `token_file=` and `secret_file=` of a call come before them. A data directory needs none of them for
those who may read its secret.

Nothing is escaped: what follows the cluster is the path, byte by byte ('%', '?' and '#' are letters of it). A local
file whose name looks like one of the forms is written with "./" before it.

N1  Parsing has no effects; what it depends on (the environment) is an argument.
N2  One connection serves all locations of one cluster in one process, until it is closed.
N3  No text form of a location or a connection shows a token.
"""

import contextlib
import os
import posixpath
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from ..config import ClientConfig
from ..errors import InvalidArgument
from ..tempname import temp_beside
from ..wire.cluster import FILE_NAME, load_cluster
from .connection import connect
from .file import File
from .file_system import FileSystem
from .local import LocalFile, LocalFileSystem

SCHEME: Final = "luciola://"
SHORT: Final = "lu:"
FORMS: Final = "a plain path, luciola://HOST:PORT/path, luciola:///DATA_DIR!/path or lu:/path"

AnyFileSystem = FileSystem | LocalFileSystem


@dataclass(frozen=True)
class Location:
    """A path and where it is: `address` as `connect` takes it (data directory or "host:port"), None for local."""

    path: str
    address: str | None = None
    secret_file: str | None = None
    token: str | None = field(default=None, repr=False)
    token_file: str | None = None

    @property
    def is_local(self) -> bool:
        return self.address is None

    def join(self, *names: str) -> "Location":
        """Return the location of something below."""
        return replace(self, path=posixpath.join(self.path, *names))

    def with_credentials(
        self,
        *,
        secret_file: str | os.PathLike[str] | None = None,
        token: str | None = None,
        token_file: str | os.PathLike[str] | None = None,
    ) -> "Location":
        """Return the same place, opened with these credentials instead of the environment's, if any are given."""
        if secret_file is token is token_file is None:
            return self
        secret, of_token = (None if each is None else os.fspath(each) for each in (secret_file, token_file))
        return replace(self, secret_file=secret, token=token, token_file=of_token)

    def __str__(self) -> str:
        if self.address is None:
            return self.path
        mark = "!" if self.address.startswith("/") else ""
        return f"{SCHEME}{self.address}{mark}{self.path}"


def parse_location(text: str | os.PathLike[str], environment: Mapping[str, str]) -> Location:
    """Return what a text names. `environment` is read for the short form, and for the credentials of a HOST:PORT.

    Raises: InvalidArgument, which says what to write instead.
    """
    text = os.fspath(text)
    if not isinstance(text, str):
        raise InvalidArgument(f"a location is text, not {type(text).__name__}: write {FORMS}")
    if not text or "\0" in text:
        raise InvalidArgument(f"a location is not empty and has no NUL: write {FORMS}", path=text)
    if text.startswith(SCHEME):
        return _parse_url(text, environment)
    if text.startswith(SHORT):
        return _parse_short(text, environment)
    if text.startswith("luciola:"):
        raise InvalidArgument(
            "a location on a cluster has two slashes (and is given as str, not as Path): write "
            "luciola://HOST:PORT/path or luciola:///DATA_DIR!/path",
            path=text,
        )
    if scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text):
        raise InvalidArgument(f"not a scheme of Luciola, {scheme[1]!r}: write {FORMS}", path=text)
    return Location(text)


def _parse_url(text: str, environment: Mapping[str, str]) -> Location:
    rest = text.removeprefix(SCHEME)
    if rest.startswith("/"):
        data, mark, path = rest.partition("!/")
        if not mark:
            raise InvalidArgument(
                'no "!" between the data directory and the path: write luciola:///DATA_DIR!/path', path=text
            )
        return Location("/" + path, posixpath.normpath(data))
    address, slash, path = rest.partition("/")
    if not slash:
        raise InvalidArgument("no path after the address: write luciola://HOST:PORT/path", path=text)
    each = address.split(",")
    if not all(re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:@\[\]/]+):[0-9]{1,5}", one) for one in each):
        raise InvalidArgument(
            f"not HOST:PORT, {address!r}: write luciola://HOST:PORT/path ([…] around an IPv6 address)",
            path=text,
        )
    if not all(0 < int(one.rpartition(":")[2]) < 1 << 16 for one in each):
        raise InvalidArgument("a port is 1 to 65535: write luciola://HOST:PORT/path", path=text)
    return Location("/" + path, address, *environment_credentials(environment))


def environment_credentials(environment: Mapping[str, str]) -> tuple[str | None, str | None, str | None]:
    """Secret file, token and the token's file."""
    names = ("LUCIOLA_SECRET_FILE", "LUCIOLA_TOKEN", "LUCIOLA_TOKEN_FILE")
    secret_file, token, token_file = (environment.get(name) or None for name in names)
    return secret_file, token, token_file


def _parse_short(text: str, environment: Mapping[str, str]) -> Location:
    path = text.removeprefix(SHORT)
    if not path.startswith("/") or path.startswith("//"):
        raise InvalidArgument(
            "paths on the cluster are absolute: write lu:/dir/file (./lu:… for a local file of that name)",
            path=text,
        )
    data = environment.get("LUCIOLA_DATA") or None
    address = environment.get("LUCIOLA_ADDRESS") or None
    if (data is None) == (address is None):
        count = "no cluster is" if data is None else "two clusters are"
        raise InvalidArgument(
            f"{count} named: set either LUCIOLA_DATA (data directory), or LUCIOLA_ADDRESS (HOST:PORT) and "
            "LUCIOLA_TOKEN_FILE, LUCIOLA_TOKEN or LUCIOLA_SECRET_FILE; or write luciola://HOST:PORT/path or luciola:///DATA_DIR!/path",
            path=text,
        )
    secret_file, token, token_file = environment_credentials(environment)
    if data is not None:
        return Location(path, os.path.abspath(data), token=token, token_file=token_file)
    return Location(path, address, secret_file, token, token_file)


@dataclass(frozen=True)
class _Key:
    """What one connection is kept for."""

    address: str
    secret_file: str | None
    token: str | None = field(repr=False)
    token_file: str | None
    config: ClientConfig | None
    manager: str  # where it listens: a cluster that came back elsewhere is another one


class _Shared:
    """The connection for one key. Its lock is held while it is made, which may take long if no service answers."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.file_system: FileSystem | None = None


_shared: dict[_Key, _Shared] = {}  # setdefault and clear are atomic
_local: Final = LocalFileSystem()


def _after_fork() -> None:
    # Threads that are not here may hold the locks. The file systems reconnect by themselves.
    for shared in list(_shared.values()):
        shared.lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def open_location(
    location: str | os.PathLike[str] | Location,
    *,
    secret_file: str | os.PathLike[str] | None = None,
    token: str | None = None,
    token_file: str | os.PathLike[str] | None = None,
    config: ClientConfig | None = None,
) -> tuple[AnyFileSystem, str]:
    """Return the file system that a location is on, and the path there.

    The file system is shared by all callers in this process that name the same cluster: leave it open
    (`close_locations` ends all of them). `secret_file`, `token` and `token_file` come before the environment's; of
    several, the token is used, then the token's file.

    Raises: InvalidArgument for a text that names nothing; as `connect` raises.
    """
    if not isinstance(location, Location):
        location = parse_location(location, os.environ)
    location = location.with_credentials(secret_file=secret_file, token=token, token_file=token_file)
    if location.address is None:
        return _local, location.path
    manager = _manager(location.address)
    key = _Key(location.address, location.secret_file, location.token, location.token_file, config, manager)
    shared = _shared.setdefault(key, _Shared())
    with shared.lock:
        found = shared.file_system
        if found is None or found.connection.is_closed:
            found = connect(
                location.address,
                secret_file=location.secret_file,
                token=location.token,
                token_file=location.token_file,
                config=config,
            )
            shared.file_system = found
    return found, location.path


def _manager(address: str) -> str:
    if not address.startswith("/") or not os.path.isdir(address):
        return address  # `connect` says what is wrong with it
    return load_cluster(Path(address) / FILE_NAME).mgmtd_lane


def close_locations() -> None:
    """End the connections that `open_location` has made. Raises: the first error of a write-back."""
    with contextlib.ExitStack() as stack:
        while _shared:
            _, shared = _shared.popitem()
            with shared.lock:
                if shared.file_system is not None:
                    stack.callback(shared.file_system.close)


@contextlib.contextmanager
def replacing(file_system: AnyFileSystem, path: str) -> Iterator[File | LocalFile]:
    """A new file, open for writing, that takes the name `path` when the block ends, complete and durable.

    Until then, and after an error, the name is what it was. Missing directories above are made.
    """
    directory = os.path.dirname(path)
    if directory.strip("/"):
        file_system.makedirs(directory, exist_ok=True)
    temporary = temp_beside(path)
    file = file_system.open(temporary, "xb")
    assert isinstance(file, File | LocalFile), "binary files are not wrapped"
    try:
        with file:
            yield file
            file.flush()
            file.fsync()
            file_system.replace(temporary, path)
            if isinstance(file_system, LocalFileSystem):
                file_system.sync_directory(directory)
            else:
                file.fsync()  # the name is as durable as the inode
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            file_system.remove(temporary)
        raise


__all__ = [
    "AnyFileSystem",
    "Location",
    "close_locations",
    "environment_credentials",
    "open_location",
    "parse_location",
    "replacing",
]
