"""Failure domains: which storage nodes fail together.

A node has labels for the room, the rack and the host that it is in; without a label for the host, the name that the
host gives itself counts. The domain of a node at a level is its path down to there, so racks of the same name in two
rooms are two. A node that lacks the label is a domain of its own: nothing is known of what it shares.
"""

from collections.abc import Collection, Iterable
from typing import Final, Protocol, TypeAlias

from ..errors import InvalidArgument
from ..wire.pb import mgmtd_pb2 as pb

Domain: TypeAlias = tuple[str, ...]
WIDEST_FIRST: Final = (pb.DOMAIN_ROOM, pb.DOMAIN_RACK, pb.DOMAIN_HOST, pb.DOMAIN_NODE)
NAMES: Final[dict[str, "pb.DomainLevel"]] = {
    "node": pb.DOMAIN_NODE,
    "host": pb.DOMAIN_HOST,
    "rack": pb.DOMAIN_RACK,
    "room": pb.DOMAIN_ROOM,
}


class Labelled(Protocol):
    """What the labels of a node say. Empty: not said."""

    @property
    def room(self) -> str: ...
    @property
    def rack(self) -> str: ...
    @property
    def host(self) -> str: ...


class Placed(Protocol):
    """A node with labels: a record, or what is published of it."""

    @property
    def id(self) -> int: ...
    @property
    def host(self) -> str: ...
    @property
    def labels(self) -> Labelled: ...


def domain_of(node: Placed, level: int) -> Domain:
    """Return the domain of `node` at `level`; UNSET is as NODE."""
    room, rack, host = node.labels.room, node.labels.rack, node.labels.host or node.host
    if level == pb.DOMAIN_ROOM and room:
        return ("room", room)
    if level == pb.DOMAIN_RACK and rack:
        return ("rack", room, rack)
    if level == pb.DOMAIN_HOST and host:
        return ("host", room, rack, host)
    return ("node", str(node.id))


def widest_level(nodes: Collection[Placed], *, domains: int) -> "pb.DomainLevel":
    """Return the widest level at which every node is labelled and there are so many `domains`; else NODE."""
    for level in WIDEST_FIRST:
        found = {domain_of(node, level) for node in nodes}
        if len(found) >= domains and not any(domain[0] == "node" for domain in found):
            return level
    return pb.DOMAIN_NODE


def shares_domain(nodes: Iterable[Placed], level: int) -> bool:
    """Return whether two of the nodes are in one domain."""
    domains = [domain_of(node, level) for node in nodes]
    return len(set(domains)) < len(domains)


def level_name(level: int) -> str:
    """Return the word for a level."""
    return next((name for name, known in NAMES.items() if known == level), "node")


def parse_level(text: str) -> "pb.DomainLevel":
    """Return the level that a word names. Raises: InvalidArgument."""
    if text not in NAMES:
        raise InvalidArgument(f"a level of failure domains is one of {', '.join(NAMES)}, not {text!r}")
    return NAMES[text]


__all__ = [
    "NAMES",
    "Domain",
    "Placed",
    "domain_of",
    "level_name",
    "parse_level",
    "shares_domain",
    "widest_level",
]
