"""Which nodes form which chain, and in which order.

When a node fails, its work falls on those it shares chains with; so every pair of nodes should share the same
number of chains, λ = ⌈r(k-1)/(v-1)⌉ at most, where v nodes hold r replicas each in chains of k. Heads do more work
than tails, so every node should also be head, middle and tail equally often.

Chains are built one at a time. Each takes the nodes that have been used least, and among those the ones that
have met least. A few hundred exchanges between chains remove what greed left uneven. Then each chain is put in
order. Everything is deterministic: the same question has the same answer.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations, pairwise
from math import ceil, gcd
from typing import Final

from ..errors import InvalidArgument

REPLICAS_MAX: Final = 6  # every replica adds a network hop to every write
CHAINS_MAX: Final = 10_000  # in one table; routing is held in memory by every client
CHAINS_DEFAULT_MIN: Final = 8  # as many as the default stripe, so that one file uses every head
EXCHANGES_PER_CHAIN: Final = 200
EXCHANGES_MAX: Final = 40_000  # about half a second a try
TRIES: Final = 6  # with fewer, some exact designs of ten nodes are missed

Chain = tuple[int, ...]
Vertex = tuple[str, int, int]


def place(nodes: Iterable[int], *, replicas: int, chains: int) -> list[Chain]:
    """`chains` chains of `replicas` different nodes, head first.

    Raises: InvalidArgument if there are too few nodes, or numbers out of bounds.
    """
    known = sorted(set(nodes))
    if not 1 <= replicas <= REPLICAS_MAX:
        raise InvalidArgument(f"replicas must be between 1 and {REPLICAS_MAX}, not {replicas}")
    if not 1 <= chains <= CHAINS_MAX:
        raise InvalidArgument(f"chains must be between 1 and {CHAINS_MAX}, not {chains}")
    if len(known) < replicas:
        raise InvalidArgument(f"{replicas} replicas need as many storage nodes, but there are {len(known)}")
    groups = _groups(known, replicas, chains)
    bound = pair_bound(len(known), replicas, chains)
    best = groups
    for seed in range(TRIES):
        if _most_met(best) <= bound:
            break
        best = min(best, _exchange(list(groups), seed), key=_most_met)
    placed = _order(best)
    assert len(placed) == chains, "as many chains as asked for"
    assert all(len(set(chain)) == len(chain) == replicas for chain in placed), (
        "replicas of a chain are on other nodes"
    )
    return placed


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


def pairs_of(chains: Sequence[Chain]) -> Counter[tuple[int, int]]:
    """Return how many chains each pair of nodes shares; pairs are written in ascending order."""
    return Counter(pair for chain in chains for pair in combinations(sorted(chain), 2))


def _groups(nodes: Sequence[int], replicas: int, chains: int) -> list[Chain]:
    """Groups of nodes, each node in as many as any other, or one more."""
    used: Counter[int] = Counter()
    met: Counter[tuple[int, int]] = Counter()
    groups: list[Chain] = []
    for _ in range(chains):
        group: list[int] = []
        while len(group) < replicas:
            group.append(
                min(
                    (node for node in nodes if node not in group),
                    key=lambda node: (used[node], sum(met[_pair(node, other)] for other in group), node),
                )
            )
            used[group[-1]] += 1
        met.update(combinations(sorted(group), 2))
        groups.append(tuple(sorted(group)))
    return groups


def _most_met(groups: Sequence[Chain]) -> int:
    return max(pairs_of(groups).values(), default=0)


def _exchange(groups: list[Chain], seed: int) -> list[Chain]:
    """Swaps nodes between groups unless that makes the pairs less even; equal swaps lead out of dead ends."""
    dice = random.Random(seed)  # noqa: S311, the same every time is the point
    met = pairs_of(groups)
    for _ in range(min(EXCHANGES_PER_CHAIN * len(groups), EXCHANGES_MAX)):
        left, right = dice.sample(range(len(groups)), 2)
        give, take = dice.choice(groups[left]), dice.choice(groups[right])
        if give in groups[right] or take in groups[left]:
            continue
        stay_left = [node for node in groups[left] if node != give]
        stay_right = [node for node in groups[right] if node != take]
        apart = [_pair(give, node) for node in stay_left] + [_pair(take, node) for node in stay_right]
        together = [_pair(take, node) for node in stay_left] + [_pair(give, node) for node in stay_right]
        if _gain(met, apart, together) < 0:
            continue
        met.subtract(apart)
        met.update(together)
        groups[left] = tuple(sorted((*stay_left, take)))
        groups[right] = tuple(sorted((*stay_right, give)))
    return groups


def _gain(
    met: Counter[tuple[int, int]], apart: list[tuple[int, int]], together: list[tuple[int, int]]
) -> int:
    """By how much the sum of squares of all meetings falls: less is more even."""
    change: Counter[tuple[int, int]] = Counter()
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


def _pair(one: int, other: int) -> tuple[int, int]:
    return (one, other) if one < other else (other, one)


__all__ = ["CHAINS_MAX", "REPLICAS_MAX", "default_chains", "pair_bound", "pairs_of", "place"]
