"""What a URL names, and what is told of a file: the two forms in which fsspec's callers speak of files.

    luciola://HOST:PORT/path            the cluster whose manager listens there
    luciola:///DATA_DIR!/path           the cluster of that data directory on this machine
    luciola:///path, lu:/path, /path    the cluster that the storage options or the environment name

A path within a file system is absolute, without "//" and without "/" at its end. Nothing is escaped.
"""

import os
import re
import stat as modes
from typing import Any, Final

from ...errors import InvalidArgument
from ..attributes import NS_PER_S, TYPE_BITS, Stat
from ..location import SCHEME, SHORT, parse_location

KINDS: Final = {modes.S_IFREG: "file", modes.S_IFDIR: "directory", modes.S_IFLNK: "link"}

Info = dict[str, Any]


def split_url(text: str) -> tuple[str | None, str]:
    """The cluster that a URL names (None if it names none), and the path there.

    Raises: InvalidArgument for luciola:// with something else behind it.
    """
    if text.startswith(SHORT):
        return None, normal(text.removeprefix(SHORT))
    if not text.startswith(SCHEME):
        return None, normal(text)
    rest = text.removeprefix(SCHEME) + "/"
    if rest.startswith("/") and "!/" not in rest:
        return None, normal(rest)
    location = parse_location(SCHEME + rest, {})
    return location.address, normal(location.path)


def normal(path: str) -> str:
    """Absolute, no slash twice, none at the end."""
    return "/" + re.sub("//+", "/", path).strip("/")


def resolved_cluster(cluster: str | os.PathLike[str] | None, secret_file: Any) -> tuple[str, str | None]:
    """A cluster and its secret file as `connect` takes them, whatever the environment becomes later.

    Raises: InvalidArgument if neither the caller nor the environment names a cluster.
    """
    if cluster is None:
        try:
            location = parse_location("lu:/", os.environ)
        except InvalidArgument as error:
            raise InvalidArgument(
                f"{error.message}; or give the storage option cluster=DATA_DIR or cluster=HOST:PORT"
            ) from error
        cluster, found = location.address, location.secret_file
        assert cluster is not None, "the short form is never local"
    else:
        cluster = os.fspath(cluster)
        is_address = "/" not in cluster and re.search(r":[0-9]+$", cluster)
        cluster = cluster if is_address else os.path.abspath(cluster)
        found = (os.environ.get("LUCIOLA_SECRET_FILE") or None) if is_address else None
    return cluster, found if secret_file is None else os.path.abspath(os.fspath(secret_file))


def kind(stat: Stat) -> str:
    """The type as fsspec names it."""
    return KINDS.get(TYPE_BITS.get(stat.type, 0), "other")


def info_of(path: str, own: Stat, *, target: Stat | None = None, destination: str | None = None) -> Info:
    """What `info` and `ls` tell. `target`: what a link `own` leads to, whose size and kind count then."""
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


__all__ = ["Info", "info_of", "kind", "normal", "resolved_cluster", "split_url"]
