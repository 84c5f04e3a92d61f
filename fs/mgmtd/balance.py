"""Which replicas have to go where, so that chains that exist are placed as new ones would be (`placement`, D1 and D2).

As few replicas move as these rules need: those on nodes that are to be empty, those that share a domain without need,
and then those that a node has beyond its part. A plan has at most one move of a chain; what is left is in the next
plan. The same question has the same answer.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ..errors import InvalidArgument
from .placement import Site, apportion_sites, copies_in_domain

NONE: Final = 0  # in place of a node
CHOICES: Final = 16  # chains of a node that has too many, looked at for each move


@dataclass(frozen=True, slots=True)
class Step:
    """One move: the replica on `source` leaves (or NONE), `node` gets a new one (or NONE)."""

    chain: int
    source: int
    node: int


@dataclass(frozen=True, slots=True)
class Balance:
    """What a plan changes. Counts of replicas are by node."""

    steps: tuple[Step, ...]
    before: Mapping[int, int]
    after: Mapping[int, int]


def plan(
    sites: Sequence[Site],
    chains: Mapping[int, Sequence[int]],
    *,
    replicas: int,
    closed: Collection[int] = (),
    leaving: Collection[int] = (),
) -> Balance:
    """Return the moves that bring the nodes of `chains` in accordance with the rules.

    `sites`: every node that may be known; `closed`: of these, nodes that keep what they have and get nothing (full or
    absent); `leaving`: nodes that keep nothing. Raises: InvalidArgument if the others are too few.
    """
    return _Planner(sites, chains, replicas=replicas, closed=closed, leaving=leaving).run()


class _Planner:
    def __init__(
        self,
        sites: Sequence[Site],
        chains: Mapping[int, Sequence[int]],
        *,
        replicas: int,
        closed: Collection[int],
        leaving: Collection[int],
    ) -> None:
        self._replicas = replicas
        self._leaving = set(leaving)
        self._domains = {site.node: site.place for site in sites}
        self._chains = {chain: list(nodes) for chain, nodes in sorted(chains.items())}
        staying = [site for site in sites if site.node not in self._leaving]
        taking = sorted((site for site in staying if site.node not in closed), key=lambda site: site.node)
        self._counts = Counter(node for nodes in self._chains.values() for node in nodes)
        kept = sum(
            self._counts[node] for node in self._counts if node in closed and node not in self._leaving
        )
        if len(staying) < replicas or not taking:
            raise InvalidArgument(f"{replicas} replicas need as many storage nodes that can take some")
        self._share = copies_in_domain(Counter(site.place for site in staying).values(), replicas)
        total = max(0, replicas * len(self._chains) - kept)
        self._parts = apportion_sites(
            taking, total=total, chains=len(self._chains), share=self._share, held=self._counts
        )
        self._met: Counter[tuple[int, int]] = Counter()
        for nodes in self._chains.values():
            for index, node in enumerate(nodes):
                self._meet(node, nodes[:index], 1)
        self._steps: dict[int, Step] = {}

    def run(self) -> Balance:
        before = dict(self._counts)
        for chain, nodes in self._chains.items():
            if len(nodes) > self._replicas:
                self._take(chain, max(nodes, key=lambda node: self._unwanted(node, nodes)), NONE)
                continue
            leaves = NONE if len(nodes) < self._replicas else self._must_leave(nodes)
            if leaves is not None and (node := self._best(nodes, leaves)) is not None:
                self._take(chain, leaves, node)
        held: dict[int, list[int]] = {}
        for chain, nodes in self._chains.items():
            for node in nodes:
                held.setdefault(node, []).append(chain)
        for source in sorted(self._parts, key=lambda node: (self._parts[node] - self._counts[node], node)):
            self._relieve(source, held.get(source, []))
        return Balance(tuple(self._steps.values()), before, dict(self._counts))

    def _relieve(self, source: int, chains: list[int]) -> None:
        """Move what a node has beyond its part to nodes that have less than theirs."""
        while self._counts[source] > self._parts[source]:
            found: tuple[tuple[int, int, int], int, int] | None = None
            looked = 0
            for chain in chains:
                nodes = self._chains[chain]
                if chain in self._steps or source not in nodes:
                    continue
                node = self._best(nodes, source, lacking=True)
                if node is None:
                    continue
                looked += 1
                worth = (
                    self._meetings(node, nodes, source) - self._meetings(source, nodes, source),
                    chain,
                    node,
                )
                if found is None or worth < found[0]:
                    found = worth, chain, node
                if looked == CHOICES:
                    break
            if found is None:
                return
            self._take(found[1], source, found[2])

    def _must_leave(self, nodes: Sequence[int]) -> int | None:
        """Return the replica that cannot stay: on a node that is to be empty, or one too many in a domain."""
        gone = [node for node in nodes if node in self._leaving]
        if gone:
            return gone[0]
        crowded = Counter(self._domains.get(node) for node in nodes)
        over = [node for node in nodes if crowded[self._domains.get(node)] > self._share]
        return max(over, key=lambda node: self._unwanted(node, nodes), default=None)

    def _unwanted(self, node: int, nodes: Sequence[int]) -> tuple[bool, int, int, int]:
        crowded = sum(self._domains.get(other) == self._domains.get(node) for other in nodes)
        return node in self._leaving, crowded, self._counts[node] - self._parts.get(node, 0), node

    def _best(self, nodes: Sequence[int], leaves: int, *, lacking: bool = False) -> int | None:
        """Return the node for a new replica: of those whose domain is free the one that lacks most."""
        stay = [node for node in nodes if node != leaves]
        crowded = Counter(self._domains.get(node) for node in stay)
        fit = [
            node
            for node in self._parts
            if node not in nodes and crowded[self._domains[node]] < self._share
            if not lacking or self._counts[node] < self._parts[node]
        ]
        return min(
            fit,
            key=lambda node: (
                self._counts[node] - self._parts[node],
                self._meetings(node, nodes, leaves),
                node,
            ),
            default=None,
        )

    def _take(self, chain: int, leaves: int, node: int) -> None:
        nodes = self._chains[chain]
        if leaves != NONE:
            self._meet(leaves, nodes, -1)
            nodes.remove(leaves)
            self._counts[leaves] -= 1
        if node != NONE:
            nodes.append(node)
            self._meet(node, nodes, 1)
            self._counts[node] += 1
        self._steps[chain] = Step(chain, leaves, node)

    def _meet(self, node: int, nodes: Sequence[int], by: int) -> None:
        for other in nodes:
            if other != node:
                self._met[_pair(node, other)] += by

    def _meetings(self, node: int, nodes: Sequence[int], leaves: int) -> int:
        return sum(self._met[_pair(node, other)] for other in nodes if other not in (node, leaves))


def _pair(one: int, other: int) -> tuple[int, int]:
    return (one, other) if one < other else (other, one)


__all__ = ["NONE", "Balance", "Step", "plan"]
