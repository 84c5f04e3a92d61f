"""Luciola: a strongly consistent distributed file system for AI training and inference.

Programs start at `connect`. Everything else is a service of the cluster or a door to it:

    errors config ids states units clock tempname shared words; import nothing else of ours
    wire      protobuf messages, gRPC and lane channels, credentials
    kv        ordered transactional key-value engines
    mgmtd     cluster manager: leases, chains, routing
    meta      namespace: inodes, names, sessions, garbage collection
    storage   storage node around the Rust engine
    client    what programs import
    fuse      the mount
    cli       the `luciola` command

Importing `luciola` starts nothing and imports neither torch nor a service.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if __name__ != "luciola":
    raise ImportError(
        f"this package is 'luciola', not {__name__!r}: install the checkout with "
        "`pip install ./core -e .` and write `import luciola`"
    )

if TYPE_CHECKING:
    from .client import File, FileSystem, Ring, connect

__version__ = "0.1.0"

__all__ = ["File", "FileSystem", "Ring", "connect"]


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(import_module(".client", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
