"""Identities. Each is its own type, so that a chain cannot be passed where a node is meant."""

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

__all__ = [
    "ROOT_INODE",
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
]
