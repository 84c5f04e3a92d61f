"""What keeps a cluster from being complete, in words, with the command that mends it. Pure: from routing alone."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final, TypeAlias

from ..mgmtd.domains import level_name, shares_domain
from ..units import format_bytes
from ..wire.pb import mgmtd_pb2 as pb
from ..wire.pb.storage_pb2 import SpaceReply

NAMED_MAX: Final = 5  # chains in one line
SPACE_WARNING: Final = 0.9  # of a disk in use: time left to remove files or to add space

Statuses: TypeAlias = Mapping[int, "pb.NodeStatus"]


def awaited(routing: pb.Routing, nodes: Iterable[int]) -> set[str]:
    """Return what time alone may bring: `nodes` that have not reported, chains that are about to serve."""
    if routing.bootstrapping:
        return {"mgmtd"}
    expected = set(nodes)
    known = {node.id: node.status for node in routing.nodes}
    waiting = {f"node {node}" for node in expected if known.get(node) not in (pb.CONNECTED, pb.DISABLED)}
    return waiting | {
        f"chain {chain.id}"
        for chain in routing.chains
        if not _serves(chain) and not _is_stuck(chain, known, expected)
    }


def describe_trouble(routing: pb.Routing, nodes: Iterable[int]) -> list[str]:
    """One line for each cause, with its remedy; none if `nodes` report and every chain is complete."""
    known = {node.id: node.status for node in routing.nodes}
    lines = [_node_line(node, known.get(node)) for node in sorted(set(nodes))]
    lines += _fallen_lines(routing, known)
    groups: dict[tuple[int, ...], list[pb.Chain]] = defaultdict(list)
    for chain in sorted(routing.chains, key=lambda chain: chain.id):
        if not _serves(chain):
            groups[tuple(target.node for target in _served_last(chain))].append(chain)
    lines += [_wait_line(waits_for, chains, known) for waits_for, chains in sorted(groups.items())]
    return [line for line in lines if line]


def describe_progress(routing: pb.Routing) -> list[str]:
    """Return what gets complete by itself."""
    syncing = [chain for chain in routing.chains if any(each.state == pb.SYNCING for each in chain.targets)]
    return [f"{_named(syncing)}: a replica is being brought up to date"] if syncing else []


def describe_domains(routing: pb.Routing) -> list[str]:
    """Return which tables have chains of which copies share a failure domain, with what helps."""
    nodes = {node.id: node for node in routing.nodes if node.kind == pb.NODE_STORAGE}
    chains = {chain.id: chain for chain in routing.chains}
    lines = []
    for table in routing.tables:
        members = ([nodes.get(each.node) for each in chains[chain].targets] for chain in table.chains)
        shared = sum(shares_domain(filter(None, each), table.domain) for each in members)
        if shared:
            level = level_name(table.domain)
            lines.append(
                f"table {table.id}: {shared} of {len(table.chains)} chains have copies that share a {level}, and may "
                "be lost with it"
            )
    return lines


def describe_space(spaces: Mapping[int, SpaceReply]) -> list[str]:
    """Nodes whose disks are full, or nearly."""
    return [line for node, space in sorted(spaces.items()) if (line := _space_line(node, space))]


def _space_line(node: int, space: SpaceReply) -> str:
    if space.full:
        return f"node {node}: disk full, writes to its chains fail with ENOSPC: remove files, or enlarge the disk"
    if space.free_bytes < (1 - SPACE_WARNING) * space.capacity_bytes:
        used = 1 - space.free_bytes / space.capacity_bytes
        return f"node {node}: disk {used:.0%} full, {format_bytes(space.free_bytes)} free"
    return ""


def _serves(chain: pb.Chain) -> bool:
    return any(target.state == pb.SERVING for target in chain.targets)


def _served_last(chain: pb.Chain) -> list[pb.Target]:
    """Return the replicas of which a chain that does not serve needs one."""
    return [target for target in chain.targets if target.state == pb.LASTSRV]


def _is_stuck(chain: pb.Chain, known: Statuses, expected: Collection[int]) -> bool:
    """Return whether the chain serves only after an administrator has done something."""
    return all(
        target.node not in expected or known.get(target.node) == pb.DISABLED or _is_lost(target, known)
        for target in _served_last(chain)
    ) and bool(_served_last(chain))


def _is_lost(target: pb.Target, known: Statuses) -> bool:
    return known.get(target.node) == pb.CONNECTED and target.local == pb.LOCAL_OFFLINE


def _node_line(node: int, status: "pb.NodeStatus | None") -> str:
    if status == pb.CONNECTED:
        return ""
    if status == pb.DISABLED:
        return f"node {node} is disabled; to let it take part: luciola node enable {node}"
    return f"node {node} does not report; its log says why: log/storage-{node}.log"


def _fallen_lines(routing: pb.Routing, known: Statuses) -> Iterator[str]:
    """Replicas that their own nodes, which report, call unusable."""
    fallen = Counter(
        target.node
        for chain in routing.chains
        for target in chain.targets
        if target.state == pb.OFFLINE and _is_lost(target, known)
    )
    for node, count in sorted(fallen.items()):
        yield f"node {node}: {count} replicas are offline; its log says why: log/storage-{node}.log"


def _wait_line(nodes: tuple[int, ...], chains: list[pb.Chain], known: Statuses) -> str:
    if not nodes:
        return f"{_named(chains)}: no replica serves: luciola chain list --incomplete"
    names = " or ".join(f"node {node}" for node in nodes)
    what = f"{_named(chains)}: cannot be read or written, waiting for {names}"
    disabled = [node for node in nodes if known.get(node) == pb.DISABLED]
    if disabled:
        return f"{what}: luciola node enable {disabled[0]}"
    rotation = f"luciola chain rotate {_numbers(chains)} --last-serving"
    last = [target for chain in chains for target in _served_last(chain)]
    if all(_is_lost(target, known) for target in last):
        if all(len(chain.targets) == 1 for chain in chains):
            rotation = f"luciola chain add CHAIN NODE for each, then {rotation}"
        return (
            f"{what}, whose data are gone (an empty or failed disk): put the disk back and restart the node. If it is "
            f"lost for good, another replica serves what it has (nothing, if all disks were replaced) after: {rotation}"
        )
    absent = [node for node in nodes if known.get(node) != pb.CONNECTED]
    present = [target for target in last if target.node not in absent and not _is_lost(target, known)]
    if absent and present:
        names = " and ".join(f"node {node}" for node in absent)
        return (
            f"{_named(chains)}: cannot be read or written: a replica that is there may lack writes, and waits for "
            f"{names}; if it never returns: {rotation}"
        )
    return what


def _named(chains: list[pb.Chain]) -> str:
    return f"chain{'s' if len(chains) > 1 else ''} {_numbers(chains).replace(' ', ', ')}"


def _numbers(chains: list[pb.Chain]) -> str:
    numbers = [str(chain.id) for chain in chains]
    return " ".join([*numbers[:NAMED_MAX], "..."] if len(numbers) > NAMED_MAX else numbers)


__all__ = [
    "NAMED_MAX",
    "awaited",
    "describe_domains",
    "describe_progress",
    "describe_space",
    "describe_trouble",
]
