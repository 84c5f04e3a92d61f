"""Which nodes form which chain, and in which order.

    D1  a chain has at most m copies in one failure domain, where m is the smallest number with which there are enough
        nodes: 1 while there are as many domains as copies. This goes before all that follows
    D2  a node gets chains in proportion to its weight, the room on its disk: exactly, but for rounding
    D3  when a node fails, its work falls on those it shares chains with; so every pair of nodes shares about the same
        number of chains, of equal nodes λ = ⌈r(k-1)/(v-1)⌉ at most where v nodes hold r replicas each in chains of k
    D4  heads do more work than tails, so every node is head, middle and tail equally often

Numbers of chains are apportioned to domains and then to nodes. Each node in turn is dealt that many chains, of those
that lack most copies. What chains lack never differs by more than one, so what is dealt always comes out, and a domain
that is dealt no more chains than there are meets none twice. Exchanges between chains even out the pairs. Then each
chain is put in order. Everything is deterministic: the same question has the same answer (decision 0050).

`python -m luciola.mgmtd.placement` answers one question as JSON: a manager asks a process of its own for large tables.
"""

import asyncio
import json
import os
import random
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import ceil, gcd
from types import MappingProxyType
from typing import Final, NotRequired, TypedDict

from ..errors import InvalidArgument, Unavailable
from .domains import Domain

REPLICAS_MAX: Final = 6  # every replica adds a network hop to every write
CHAINS_MAX: Final = 100_000  # in one table; routing is held in memory by every client
CHAINS_DEFAULT_MIN: Final = 8  # as many as the default stripe, so that one file uses every head
EXCHANGES_PER_CHAIN: Final = 200
EXCHANGES_MAX: Final = 40_000  # about half a second a try
TRIES: Final = 6  # with fewer, some exact designs of ten nodes are missed

TRIES_SLOTS_MAX: Final = 2000  # beyond, one try comes close to the bound, and others take long
NICE: Final = 10  # of the process that answers a large question
WEIGHT_STEPS: Final = 16
CHOICES: Final = 16  # chains looked at for each copy that is dealt
NOTHING: Final[Mapping[int, int]] = MappingProxyType({})

Chain = tuple[int, ...]
Pair = tuple[int, int]
Vertex = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Site:
    """A storage node, as far as placement knows it. An empty `domain` is one of its own."""

    node: int
    domain: Domain = ()
    weight: int = 1  # its part of what is placed, beside those of the others

    @property
    def place(self) -> Domain:
        return self.domain or ("node", str(self.node))


def place(sites: Iterable[Site], *, replicas: int, chains: int) -> list[Chain]:
    """`chains` chains of `replicas` different nodes, head first.

    Raises: InvalidArgument if there are too few nodes, or numbers out of bounds.
    """
    known = sorted({site.node: site for site in sites}.values(), key=lambda site: site.node)
    if not 1 <= replicas <= REPLICAS_MAX:
        raise InvalidArgument(f"replicas must be between 1 and {REPLICAS_MAX}, not {replicas}")
    if not 1 <= chains <= CHAINS_MAX:
        raise InvalidArgument(f"chains must be between 1 and {CHAINS_MAX}, not {chains}")
    if len(known) < replicas:
        raise InvalidArgument(f"{replicas} replicas need as many storage nodes, but there are {len(known)}")
    assert all(site.weight > 0 for site in known), "a node that gets nothing is no place"
    share = copies_in_domain(Counter(site.place for site in known).values(), replicas)
    counts = apportion_sites(known, total=replicas * chains, chains=chains, share=share)
    domains = {site.node: site.place for site in known}
    bound = pair_bound(len(known), replicas, chains)
    best: list[Chain] = []
    for seed in range(TRIES if chains * replicas <= TRIES_SLOTS_MAX else 1):
        dealt = _deal(known, counts, replicas=replicas, chains=chains, dice=random.Random(seed))  # noqa: S311
        found = _exchange(dealt, domains, share=share, seed=seed)
        best = min(best or found, found, key=_unevenness)
        if _most_met(best) <= bound:
            break
    placed = _order(best)
    assert len(placed) == chains, "as many chains as asked for"
    assert all(len(set(chain)) == len(chain) == replicas for chain in placed), (
        "replicas of a chain are on other nodes"
    )
    assert all(max(Counter(domains[node] for node in chain).values()) <= share for chain in placed), "D1"
    return placed


def weights_of(sizes: Sequence[int]) -> list[int]:
    """Return the weights of nodes by the room on their disks, in bytes; all are alike if that of one is unknown (0).

    In steps of a sixteenth of the largest, so that nodes that differ by what is stored just now are alike.
    """
    if not all(sizes):
        return [1] * len(sizes)
    return [max(1, round(WEIGHT_STEPS * size / max(sizes))) for size in sizes]


class Answer(TypedDict):
    """What the process of its own answers. `error`: why nothing can be placed."""

    chains: list[list[int]]
    error: NotRequired[str]


async def place_aside(sites: Sequence[Site], *, replicas: int, chains: int) -> list[Chain]:
    """As `place`, while the event loop is free: a small question on a thread, a large one in a process of its own."""
    if replicas * chains <= TRIES_SLOTS_MAX or chains > CHAINS_MAX:
        return await asyncio.to_thread(place, sites, replicas=replicas, chains=chains)
    question = json.dumps([[(site.node, site.domain, site.weight) for site in sites], replicas, chains])
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        answer, _ = await process.communicate(question.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise Unavailable(f"the process that places chains ended with status {process.returncode}; try again")
    answered: Answer = json.loads(answer)
    if "error" in answered:
        raise InvalidArgument(answered["error"])
    return [tuple(chain) for chain in answered["chains"]]


def main() -> None:
    """Answer the question on standard input, when nothing more urgent has to be done."""
    os.nice(NICE)
    sites, replicas, chains = json.load(sys.stdin)
    known = [Site(node, tuple(domain), weight) for node, domain, weight in sites]
    try:
        answer: Answer = {"chains": [list(chain) for chain in place(known, replicas=replicas, chains=chains)]}
    except InvalidArgument as error:
        answer = {"chains": [], "error": error.message}
    json.dump(answer, sys.stdout)


def copies_in_domain(nodes: Collection[int], replicas: int) -> int:
    """Return how many copies of a chain share a domain in the worst case (D1). `nodes`: how many each domain has."""
    return next(
        share for share in range(1, replicas + 1) if sum(min(share, count) for count in nodes) >= replicas
    )


def apportion_sites(
    sites: Sequence[Site], *, total: int, chains: int, share: int, held: Mapping[int, int] = NOTHING
) -> dict[int, int]:
    """Return how many replicas each node gets (D2). `held`: what nodes have now, for which rounding decides."""
    domains: dict[Domain, list[Site]] = defaultdict(list)
    for site in sites:
        domains[site.place].append(site)
    groups = list(domains.values())
    parts = apportion(
        total,
        [sum(site.weight for site in group) for group in groups],
        [min(share, len(group)) * chains for group in groups],
        [sum(held.get(site.node, 0) for site in group) for group in groups],
    )
    counts: dict[int, int] = {}
    for group, part in zip(groups, parts, strict=True):
        weights, limits = [site.weight for site in group], [chains] * len(group)
        own = apportion(part, weights, limits, [held.get(site.node, 0) for site in group])
        counts |= {site.node: count for site, count in zip(group, own, strict=True)}
    return counts


def apportion(
    total: int, weights: Sequence[int], limits: Sequence[int], held: Sequence[int] = ()
) -> list[int]:
    """Divide `total` in proportion to `weights`, no part above its limit; what is left over goes where more is held."""
    assert sum(limits) >= total, "there is room for all"
    parts = [0] * len(weights)
    free = list(range(len(weights)))
    left = total
    while free:
        weight = sum(weights[index] for index in free)
        full = [index for index in free if weights[index] * left >= limits[index] * weight]
        if not full:
            break
        for index in full:
            parts[index] = limits[index]
        left -= sum(limits[index] for index in full)
        free = [index for index in free if parts[index] < limits[index]]
    if free:
        weight = sum(weights[index] for index in free)
        for index in free:
            parts[index] = weights[index] * left // weight
        over = left - sum(parts[index] for index in free)

        def claim(index: int) -> tuple[bool, int, int]:
            keeps = bool(held) and held[index] > parts[index]
            return not keeps, -(weights[index] * left % weight), index

        for index in sorted(free, key=claim)[:over]:
            parts[index] += 1
    assert sum(parts) == total, "all is divided"
    return parts


def default_chains(nodes: int, replicas: int) -> int:
    """Return how many chains let everything balance exactly, or nearly so for many nodes."""
    period = 1 if nodes < 2 or replicas < 2 else (nodes - 1) // gcd(nodes - 1, replicas * (replicas - 1))
    per_node = max(period, ceil(CHAINS_DEFAULT_MIN / nodes))
    if per_node % period:
        per_node += period - per_node % period
    return min(nodes * min(per_node, 16), CHAINS_MAX)


def pair_bound(nodes: int, replicas: int, chains: int) -> int:
    """λ: how many chains two nodes share at least, in the worst pair of the best placement."""
    per_node = chains * replicas / nodes
    return ceil(per_node * (replicas - 1) / (nodes - 1)) if nodes > 1 else 0


def pairs_of(chains: Sequence[Chain]) -> Counter[Pair]:
    """Return how many chains each pair of nodes shares; pairs are written in ascending order."""
    return Counter(pair for chain in chains for pair in combinations(sorted(chain), 2))


def _deal(
    sites: Sequence[Site], counts: Mapping[int, int], *, replicas: int, chains: int, dice: random.Random
) -> list[Chain]:
    """Groups of nodes: each node in as many as it counts, none twice in one (above)."""
    groups: list[list[int]] = [[] for _ in range(chains)]
    met: Counter[Pair] = Counter()
    domains: dict[Domain, list[int]] = defaultdict(list)
    for site in sites:
        domains[site.place].append(site.node)
    # Chains that lack most copies, and those that have one more.
    short, full = list(range(chains)), list[int]()
    for nodes in sorted(domains.values(), key=lambda nodes: (-sum(counts[node] for node in nodes), nodes)):
        slots = [node for node in nodes for _ in range(counts[node])]
        if len(slots) > chains:
            # Several copies share the domain: in turn, so that no chain gets a node twice.
            order = [*short, *full]
            for turn, node in enumerate(slots):
                groups[order[turn % chains]].append(node)
            fewest = min(map(len, groups))
            short = [index for index in order if len(groups[index]) == fewest]
            full = [index for index in order if len(groups[index]) > fewest]
            continue
        # Chains that get their copy from this domain, of those that were short, and of the others.
        once, twice = list[int](), list[int]()
        for node in slots:
            pool, dealt = (short, once) if short else (full, twice)
            index = _take_least_met(pool, node, groups, met, dice)
            met.update(_pair(node, other) for other in groups[index])
            groups[index].append(node)
            dealt.append(index)
        full += once
        if not short:
            short, full = full, twice
    assert all(len(group) == replicas for group in groups), "what is dealt comes out"
    return [tuple(sorted(group)) for group in groups]


def _take_least_met(
    pool: list[int], node: int, groups: Sequence[Sequence[int]], met: Counter[Pair], dice: random.Random
) -> int:
    """Take a chain out of `pool`: of some, the one whose nodes share fewest chains with `node`."""
    some = range(len(pool)) if len(pool) <= CHOICES else dice.sample(range(len(pool)), CHOICES)
    at = min(some, key=lambda at: sum(met[_pair(node, other)] for other in groups[pool[at]]))
    pool[at], pool[-1] = pool[-1], pool[at]
    return pool.pop()


def _unevenness(groups: Sequence[Chain]) -> tuple[int, int]:
    counts = pairs_of(groups).values()
    return max(counts, default=0), sum(count * count for count in counts)


def _most_met(groups: Sequence[Chain]) -> int:
    return max(pairs_of(groups).values(), default=0)


def _exchange(groups: list[Chain], domains: Mapping[int, Domain], *, share: int, seed: int) -> list[Chain]:
    """Swaps nodes between groups unless that makes the pairs less even; equal swaps lead out of dead ends."""
    dice = random.Random(seed)  # noqa: S311, the same every time is the point
    met = pairs_of(groups)
    if len(groups) < 2:
        return groups
    for _ in range(min(EXCHANGES_PER_CHAIN * len(groups), EXCHANGES_MAX)):
        left, right = dice.sample(range(len(groups)), 2)
        give, take = dice.choice(groups[left]), dice.choice(groups[right])
        if give in groups[right] or take in groups[left]:
            continue
        stay_left = [node for node in groups[left] if node != give]
        stay_right = [node for node in groups[right] if node != take]
        if domains[give] != domains[take] and (
            sum(domains[node] == domains[take] for node in stay_left) >= share
            or sum(domains[node] == domains[give] for node in stay_right) >= share
        ):
            continue
        apart = [_pair(give, node) for node in stay_left] + [_pair(take, node) for node in stay_right]
        together = [_pair(take, node) for node in stay_left] + [_pair(give, node) for node in stay_right]
        if _gain(met, apart, together) < 0:
            continue
        met.subtract(apart)
        met.update(together)
        groups[left] = tuple(sorted((*stay_left, take)))
        groups[right] = tuple(sorted((*stay_right, give)))
    return groups


def _gain(met: Counter[Pair], apart: list[Pair], together: list[Pair]) -> int:
    """By how much the sum of squares of all meetings falls: less is more even."""
    change: Counter[Pair] = Counter()
    change.subtract(apart)
    change.update(together)
    return -sum(2 * met[pair] * delta + delta * delta for pair, delta in change.items())


def _order(groups: Sequence[Chain]) -> list[Chain]:
    """Each group in an order such that every node has every position equally often, or once more.

    Positions are the colours of an edge colouring: groups on one side, on the other each node, once for every
    `replicas` groups it is in. That graph is bipartite with degrees of at most `replicas`, so as many colours do
    (König), found edge by edge along alternating paths.
    """
    colours = range(len(groups[0]))
    seen: Counter[int] = Counter()
    edges: dict[Vertex, dict[int, Vertex]] = defaultdict(dict)  # of each vertex, by colour
    for index, group in enumerate(groups):
        for node in group:
            ours, theirs = ("group", index, 0), ("node", node, seen[node] // len(group))
            seen[node] += 1
            mine = next(colour for colour in colours if colour not in edges[ours])
            free = next(colour for colour in colours if colour not in edges[theirs])
            if mine in edges[theirs]:
                _flip(edges, theirs, mine, free)
            edges[ours][mine], edges[theirs][mine] = theirs, ours
    return [tuple(edges["group", index, 0][colour][1] for colour in colours) for index in range(len(groups))]


def _flip(edges: dict[Vertex, dict[int, Vertex]], start: Vertex, colour: int, other: int) -> None:
    """Exchange two colours along the path from `start` that begins with `colour`."""
    path = [start]
    wanted = colour
    while wanted in edges[path[-1]]:
        path.append(edges[path[-1]][wanted])
        wanted = other if wanted == colour else colour
    steps = [
        (one, two, colour if index % 2 == 0 else other) for index, (one, two) in enumerate(pairwise(path))
    ]
    for one, two, old in steps:
        del edges[one][old], edges[two][old]
    for one, two, old in steps:
        new = other if old == colour else colour
        edges[one][new], edges[two][new] = two, one


def _pair(one: int, other: int) -> Pair:
    return (one, other) if one < other else (other, one)


__all__ = [
    "CHAINS_MAX",
    "REPLICAS_MAX",
    "Site",
    "apportion",
    "apportion_sites",
    "copies_in_domain",
    "default_chains",
    "pair_bound",
    "pairs_of",
    "place",
    "place_aside",
    "weights_of",
]


if __name__ == "__main__":
    main()
