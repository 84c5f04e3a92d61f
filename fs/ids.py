"""Identities. Each is its own type, so that a chain cannot be passed where a node is meant."""

import time
from typing import Final, NewType

NodeId = NewType("NodeId", int)
TargetId = NewType("TargetId", int)
ChainId = NewType("ChainId", int)
ChainVersion = NewType("ChainVersion", int)
RoutingVersion = NewType("RoutingVersion", int)
TableId = NewType("TableId", int)
InodeId = NewType("InodeId", int)
ContentId = NewType("ContentId", int)
SessionId = NewType("SessionId", int)
ClientId = NewType("ClientId", int)

ROOT_INODE: Final = InodeId(1)
STANDBY_EPOCH: Final = 0  # of a metadata service that is not the primary
EMBEDDED_EPOCH: Final = 1  # of a metadata service whose store is its own; terms over a log have larger ones


def new_incarnation() -> int:
    """Return a name for one run of a process; a later run on the same machine gets a larger one."""
    return time.time_ns()


__all__ = [
    "EMBEDDED_EPOCH",
    "ROOT_INODE",
    "STANDBY_EPOCH",
    "ChainId",
    "ChainVersion",
    "ClientId",
    "ContentId",
    "InodeId",
    "NodeId",
    "RoutingVersion",
    "SessionId",
    "TableId",
    "TargetId",
    "new_incarnation",
]
