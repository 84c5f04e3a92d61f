"""What is wrong with a cluster, each cause with the command that mends it. Pure: from what its services reply."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final, TypeAlias

from ..ids import STANDBY_EPOCH
from ..mgmtd.domains import level_name, shares_domain
from ..units import format_bytes
from ..wire.pb import mgmtd_pb2 as pb
from ..wire.pb.storage_pb2 import SpaceReply, StorageStatus
from .findings import Finding

NAMED_MAX: Final = 5  # chains in one line
SPACE_WARNING: Final = 0.9  # of a disk in use: time left to remove files or to add space

SKEW_S: Final = (
    1.0  # between clocks: tokens are valid to the second, and measuring over a network takes some of it
)

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
    """One line for each cause, with its remedy; none if `nodes` report and every chain can be used."""
    return [finding.line for finding in find_trouble(routing, nodes)]


def describe_progress(routing: pb.Routing) -> list[str]:
    """Return what gets complete by itself."""
    return [finding.what for finding in find_incomplete(routing) if finding.code == "CHAIN_SYNCING"]


def describe_domains(routing: pb.Routing) -> list[str]:
    """Return which tables have chains of which copies share a failure domain."""
    return [finding.what for finding in find_domains(routing)]


def find_domains(routing: pb.Routing) -> list[Finding]:
    """Return tables that have chains of which copies share a failure domain."""
    nodes = {node.id: node for node in routing.nodes if node.kind == pb.NODE_STORAGE}
    chains = {chain.id: chain for chain in routing.chains}
    found = []
    for table in routing.tables:
        members = ([nodes.get(each.node) for each in chains[chain].targets] for chain in table.chains)
        shared = sum(shares_domain(filter(None, each), table.domain) for each in members)
        if shared:
            level = level_name(table.domain)
            what = (
                f"table {table.id}: {shared} of {len(table.chains)} chains have copies that share a {level}, and may "
                "be lost with it"
            )
            found.append(Finding("DOMAIN_SHARED", what, f"table {table.id}"))
    return found


def describe_space(spaces: Mapping[int, SpaceReply]) -> list[str]:
    """Nodes whose disks are full, or nearly."""
    return [finding.line for finding in find_space(spaces)]


def find_trouble(routing: pb.Routing, nodes: Iterable[int]) -> list[Finding]:
    """Return what an administrator has to mend: `nodes` that do not report, replicas and chains that cannot be used."""
    known = {node.id: node.status for node in routing.nodes}
    found = [finding for node in sorted(set(nodes)) if (finding := _find_node(node, known.get(node)))]
    found += _find_fallen(routing, known)
    groups: dict[tuple[int, ...], list[pb.Chain]] = defaultdict(list)
    for chain in sorted(routing.chains, key=lambda chain: chain.id):
        if not _serves(chain):
            groups[tuple(target.node for target in _served_last(chain))].append(chain)
    return found + [_find_waiting(waits_for, chains, known) for waits_for, chains in sorted(groups.items())]


def find_leaving(routing: pb.Routing, moves: pb.MovesStatus) -> list[Finding]:
    """Return nodes that are out, and those that cannot get rid of their replicas."""
    left = {each.node: each for each in moves.leaving}
    found = []
    for node in sorted(routing.nodes, key=lambda node: node.id):
        where, waits = f"node {node.id}", left.get(node.id)
        if node.leaving == pb.OUT:
            what = f"{where} is out: {waits.replicas if waits else 0} replicas of it are left to be made on others"
            remedy = "start it" if waits else f"start it, or luciola node forget {node.id}"
            found.append(Finding("NODE_OUT", what, where, remedy))
        if waits and waits.obstacle:
            what = f"{where}: its {waits.replicas} replicas cannot move: {waits.obstacle}"
            found.append(Finding("HEALING_WAITS", what, where))
    return found


def find_incomplete(routing: pb.Routing) -> list[Finding]:
    """Return chains that lack copies: those with a replica that is being brought up to date, and the others."""
    chains = sorted(routing.chains, key=lambda chain: chain.id)
    lacking = [
        chain
        for chain in chains
        if _serves(chain) and any(target.state != pb.SERVING for target in chain.targets)
    ]
    syncing = [chain for chain in chains if any(each.state == pb.SYNCING for each in chain.targets)]
    degraded = [chain for chain in lacking if chain not in syncing]
    found = []
    if syncing:
        what = f"{_named(syncing)}: a replica is being brought up to date"
        found.append(Finding("CHAIN_SYNCING", what, _named(syncing)))
    if degraded:
        what = f"{_named(degraded)}: fewer copies than there should be"
        found.append(Finding("CHAIN_DEGRADED", what, _named(degraded)))
    return found


def find_space(spaces: Mapping[int, SpaceReply]) -> list[Finding]:
    """Return nodes whose disks are full, or nearly."""
    return [finding for node, space in sorted(spaces.items()) if (finding := _find_space(node, space))]


def find_services(routing: pb.Routing) -> list[Finding]:
    """Return what is wrong with mgmtd and the metadata services, and with releases."""
    found = []
    if routing.bootstrapping:
        found.append(Finding("MGMTD_STARTING", "mgmtd waits for nodes to report", "mgmtd"))
    metas = [node for node in routing.nodes if node.kind == pb.NODE_META]
    connected = [node for node in metas if node.status == pb.CONNECTED]
    if all(node.epoch == STANDBY_EPOCH for node in connected):
        found.append(Finding("META_DOWN", "no metadata service serves", "meta"))
    elif len(connected) == 1 < len(metas):
        absent = _nodes([node.id for node in metas if node not in connected])
        found.append(
            Finding(
                "META_NO_STANDBY", f"no standby for meta {connected[0].id}: {absent} does not report", "meta"
            )
        )
    services = (pb.NODE_MGMTD, pb.NODE_META, pb.NODE_STORAGE)
    releases: dict[str, list[int]] = defaultdict(list)
    for node in routing.nodes:
        if node.kind in services and node.status == pb.CONNECTED and node.release:
            releases[node.release].append(node.id)
    if len(releases) > 1:
        each = ", ".join(f"{release} on {_nodes(ids)}" for release, ids in sorted(releases.items()))
        found.append(Finding("RELEASES_DIFFER", f"services are of different releases: {each}", "releases"))
    return found


def find_disk_errors(statuses: Mapping[int, StorageStatus]) -> list[Finding]:
    """Return what storage nodes have counted since they started that must not happen."""
    found = []
    for node, status in sorted(statuses.items()):
        if errors := status.counters["io_errors"]:
            what = f"node {node}: {errors} errors of the disk"
            found.append(Finding("DISK_ERRORS", what, f"node {node}: {status.directory}"))
        if failed := status.counters["repairs_failed"]:
            what = f"node {node}: {failed} damaged chunks without a good copy"
            found.append(Finding("CHUNK_DAMAGED", what, f"node {node}"))
    return found


def find_clock_skew(offsets_s: Mapping[str, float]) -> list[Finding]:
    """Return clocks that differ by more than `SKEW_S`. `offsets_s`: of each service from the clock here."""
    if not offsets_s:
        return []
    middle = sorted(offsets_s.values())[len(offsets_s) // 2]
    return [
        Finding(
            "CLOCK_SKEW", f"the clock of {name} is {abs(offset - middle):.1f} s {_way(offset - middle)}", name
        )
        for name, offset in sorted(offsets_s.items())
        if abs(offset - middle) > SKEW_S
    ]


def _way(difference_s: float) -> str:
    return "ahead of the others" if difference_s > 0 else "behind the others"


def _nodes(ids: Iterable[int]) -> str:
    return ", ".join(f"node {number}" for number in sorted(ids))


def _find_space(node: int, space: SpaceReply) -> Finding | None:
    if space.full:
        what = f"node {node}: disk full, writes to its chains fail with ENOSPC"
        return Finding("DISK_FULL", what, f"node {node}")
    if space.free_bytes < (1 - SPACE_WARNING) * space.capacity_bytes:
        used = 1 - space.free_bytes / space.capacity_bytes
        what = f"node {node}: disk {used:.0%} full, {format_bytes(space.free_bytes)} free"
        return Finding("DISK_NEARLY_FULL", what, f"node {node}")
    return None


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


def _find_node(node: int, status: "pb.NodeStatus | None") -> Finding | None:
    where = f"node {node}"
    if status == pb.CONNECTED:
        return None
    if status == pb.DISABLED:
        remedy = f"to let it take part: luciola node enable {node}"
        return Finding("NODE_DISABLED", f"node {node} is disabled", where, remedy)
    return Finding("NODE_DOWN", f"node {node} does not report", where, _see_log(node))


def _see_log(node: int) -> str:
    return f"its log says why: log/storage-{node}.log"


def _find_fallen(routing: pb.Routing, known: Statuses) -> Iterator[Finding]:
    """Replicas that their own nodes, which report, call unusable."""
    fallen = Counter(
        target.node
        for chain in routing.chains
        for target in chain.targets
        if target.state == pb.OFFLINE and _is_lost(target, known)
    )
    for node, count in sorted(fallen.items()):
        what = f"node {node}: {count} replicas are offline"
        yield Finding("REPLICA_OFFLINE", what, f"node {node}", _see_log(node))


def _find_waiting(nodes: tuple[int, ...], chains: list[pb.Chain], known: Statuses) -> Finding:
    """Return why `chains`, of which only `nodes` served last, do not serve."""
    where = _named(chains)
    if not nodes:
        return Finding("CHAIN_UNAVAILABLE", f"{where}: no replica serves", where)
    names = " or ".join(f"node {node}" for node in nodes)
    what = f"{where}: cannot be read or written, waiting for {names}"
    disabled = [node for node in nodes if known.get(node) == pb.DISABLED]
    if disabled:
        return Finding("CHAIN_UNAVAILABLE", what, where, f"luciola node enable {disabled[0]}")
    rotation = f"luciola chain rotate {_numbers(chains)} --last-serving"
    last = [target for chain in chains for target in _served_last(chain)]
    if all(_is_lost(target, known) for target in last):
        if all(len(chain.targets) == 1 for chain in chains):
            rotation = f"luciola chain add CHAIN NODE for each, then {rotation}"
        remedy = (
            "put the disk back and restart the node. If it is lost for good, another replica serves what it has "
            f"(nothing, if all disks were replaced) after: {rotation}"
        )
        what = f"{what}, whose data are gone (an empty or failed disk)"
        return Finding("CHAIN_UNAVAILABLE", what, where, remedy)
    absent = [node for node in nodes if known.get(node) != pb.CONNECTED]
    present = [target for target in last if target.node not in absent and not _is_lost(target, known)]
    if absent and present:
        names = " and ".join(f"node {node}" for node in absent)
        what = f"{where}: cannot be read or written: a replica that is there may lack writes, and waits for {names}"
        return Finding("CHAIN_UNAVAILABLE", what, where, f"if it never returns: {rotation}")
    return Finding("CHAIN_UNAVAILABLE", what, where, f"start {names}")


def _named(chains: list[pb.Chain]) -> str:
    return f"chain{'s' if len(chains) > 1 else ''} {_numbers(chains).replace(' ', ', ')}"


def _numbers(chains: list[pb.Chain]) -> str:
    numbers = [str(chain.id) for chain in chains]
    return " ".join([*numbers[:NAMED_MAX], "..."] if len(numbers) > NAMED_MAX else numbers)


__all__ = [
    "NAMED_MAX",
    "SKEW_S",
    "awaited",
    "describe_domains",
    "describe_progress",
    "describe_space",
    "describe_trouble",
    "find_clock_skew",
    "find_disk_errors",
    "find_domains",
    "find_incomplete",
    "find_leaving",
    "find_services",
    "find_space",
    "find_trouble",
]
