"""URLs and file information, in the two forms that fsspec's callers use.

    luciola://HOST:PORT/path            the cluster whose manager listens there
    luciola:///DATA_DIR!/path           the cluster of that data directory on this machine
    luciola:///path, lu:/path, /path    the cluster that the storage options or the environment name

A name is absolute, without "//" and without "/" at its end; nothing is escaped. Names that come from a URL with a
cluster keep it ("/DATA_DIR!/path", "HOST:PORT/path"), and so do the names of what is found there.
"""

import os
import re
import stat as modes
from dataclasses import replace
from typing import Final, NamedTuple, NotRequired, TypedDict

from fsspec.utils import stringify_path

from ...errors import InvalidArgument
from ..attributes import NS_PER_S, TYPE_BITS, Stat
from ..location import SCHEME, SHORT, Location, environment_credentials, parse_location

KINDS: Final = {modes.S_IFREG: "file", modes.S_IFDIR: "directory", modes.S_IFLNK: "link"}

ADDRESS: Final = re.compile(r"[^/]*:[0-9]+(/|$)")


class Info(TypedDict):
    """What `info` and `ls` show of one name."""

    name: str
    size: int
    type: str
    created: float
    mtime: float
    mtime_ns: int
    ctime_ns: int
    mode: int
    uid: int
    gid: int
    ino: int
    nlink: int
    islink: bool
    destination: NotRequired[str]


def split_url(text: str) -> tuple[str | None, str]:
    """Return the cluster that a URL names (None if it names none), and the path there.

    Raises: InvalidArgument for luciola:// with something else behind it.
    """
    if text.startswith(SHORT):
        return None, normal(text.removeprefix(SHORT))
    if not text.startswith(SCHEME):
        return None, normal(text)
    rest = text.removeprefix(SCHEME) + "/"
    if rest.startswith("/") and "!/" not in rest:
        return None, normal(rest)
    if "!/" in rest and not ADDRESS.match(rest):
        rest = f"/{rest.lstrip('/')}"  # libraries that hold URLs in a pathlib.Path lose the third slash
    location = parse_location(SCHEME + rest, {})
    return location.address, normal(location.path)


def normal(path: str) -> str:
    """Absolute, no slash twice, none at the end."""
    return "/" + re.sub("//+", "/", path).strip("/")


class Place(NamedTuple):
    """A file as its caller names it, and its path on the cluster."""

    name: str
    path: str

    def child(self, name: bytes | str) -> "Place":
        """Something in this directory."""
        text = os.fsdecode(name)
        return Place(f"{self.name.rstrip('/')}/{text}", f"{self.path.rstrip('/')}/{text}")


def text_of(path: object) -> str:
    """Raises: InvalidArgument for what is no path."""
    text = stringify_path(path)
    if not isinstance(text, str):
        raise InvalidArgument(f"a path is text, not {type(path).__name__}")
    return text


def canonical(text: str) -> str:
    """The name within fsspec: the URL without "luciola://", which put before the name gives the URL again."""
    cluster, path = split_url(text)
    if cluster is None and not text.startswith((SCHEME, SHORT)) and ADDRESS.match(text):
        cluster, path = split_url(SCHEME + text)
    if cluster is None:
        return path
    return f"{cluster}{'!' if cluster.startswith('/') else ''}{path.rstrip('/')}"


def resolved_cluster(
    cluster: str | os.PathLike[str] | None,
    secret_file: str | os.PathLike[str] | None,
    token: str | None = None,
    token_file: str | os.PathLike[str] | None = None,
) -> tuple[str, str | None, str | None, str | None]:
    """Return a cluster, its secret file, token and the token's file for `connect`.

    They are independent of later changes of the environment.

    The environment's token is left out, and what it comes before: see `location_of`.
    Raises: InvalidArgument if neither the caller nor the environment names a cluster.
    """
    if cluster is None:
        try:
            location = parse_location("lu:/", os.environ)
        except InvalidArgument as error:
            raise InvalidArgument(
                f"{error.message}; or give the storage option cluster=DATA_DIR or cluster=HOST:PORT"
            ) from error
    else:
        cluster = os.fspath(cluster)
        is_address = "/" not in cluster and re.search(r":[0-9]+$", cluster)
        cluster = cluster if is_address else os.path.abspath(cluster)
        location = Location("/", cluster, *(environment_credentials(os.environ) if is_address else ()))
    assert location.address is not None, "a cluster is never local"
    if secret_file is token is token_file is location.token is None:
        secret_file, token_file = location.secret_file, location.token_file
    secret, of_token = (None if each is None else os.path.abspath(each) for each in (secret_file, token_file))
    return location.address, secret, token, of_token


def location_of(
    cluster: str, secret_file: str | None, token: str | None, token_file: str | None = None
) -> Location:
    """Return what to connect to: with the credentials of the environment where the options have none.

    A data directory is opened with the environment's token where the environment names it too, as lu: is.
    """
    location = Location("/", cluster, secret_file, token, token_file)
    if any(each is not None for each in (secret_file, token, token_file)):
        return location
    of_environment = environment_credentials(os.environ)
    if not cluster.startswith("/"):
        return Location("/", cluster, *of_environment)
    data = os.environ.get("LUCIOLA_DATA")
    if not data or os.path.abspath(data) != cluster:
        return location
    _, token, token_file = of_environment
    return replace(location, token=token, token_file=token_file)


def kind(stat: Stat) -> str:
    """Return the type as fsspec names it."""
    return KINDS.get(TYPE_BITS.get(stat.type, 0), "other")


def info_of(path: str, own: Stat, *, target: Stat | None = None, destination: str | None = None) -> Info:
    """Return what `info` and `ls` show. `target`: what a link `own` leads to, whose size and kind count then."""
    seen = own if target is None else target
    info: Info = {
        "name": path,
        "size": seen.length if kind(seen) == "file" else 0,
        "type": kind(seen),
        "created": seen.birth_ns / NS_PER_S,
        "mtime": seen.mtime_ns / NS_PER_S,
        "mtime_ns": seen.mtime_ns,
        "ctime_ns": seen.ctime_ns,
        "mode": TYPE_BITS.get(seen.type, 0) | seen.permissions,
        "uid": seen.uid,
        "gid": seen.gid,
        "ino": seen.inode,
        "nlink": seen.links,
        "islink": kind(own) == "link",
    }
    if destination is not None:
        info["destination"] = destination
    return info


__all__ = [
    "Info",
    "Place",
    "canonical",
    "info_of",
    "kind",
    "normal",
    "resolved_cluster",
    "split_url",
    "text_of",
]
