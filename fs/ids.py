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
MANAGER_NODE: Final = NodeId(1)  # the first manager; the others have the numbers that follow
META_NODE: Final = NodeId(100)  # the first metadata service
STORAGE_NODE: Final = NodeId(201)  # the first storage node
STANDBY_EPOCH: Final = 0  # of a metadata service that is not the primary
EMBEDDED_EPOCH: Final = 1  # of a metadata service whose store is its own; terms over a log have larger ones


def new_incarnation() -> int:
    """Return a name for one run of a process; a later run on the same machine gets a larger one."""
    return time.time_ns()


__all__ = [
    "EMBEDDED_EPOCH",
    "MANAGER_NODE",
    "META_NODE",
    "ROOT_INODE",
    "STANDBY_EPOCH",
    "STORAGE_NODE",
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
