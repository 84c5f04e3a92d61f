"""Replicas on storage nodes that are to be empty, or stay away: which of them move now, and where to.

A node is drained because an administrator wants it empty, or is out because it has not reported for `down_out_s`. Its
replicas move as those of an administrator's plan do (`moves`), a few at a time, chains with the fewest copies first.

    H1  a node that is leaving gets no replica
    H2  a node becomes out only while most nodes report: else the network is more likely at fault than the nodes, and
        those that are left would hardly have room
    H3  a node that reports is not out any more: moves that have not begun are dropped, and of the others those
        completed whose new replica serves; the rest is undone
    H4  a copy in a failure domain that has one is made only where no other domain can take it: copies go before domains
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from heapq import nsmallest
from typing import TYPE_CHECKING, Final

from ..errors import InvalidArgument, NotFound
from ..ids import ChainId, NodeId
from ..wire.pb import mgmtd_pb2 as pb
from .domains import domain_of
from .moves import LOOKED_MAX
from .records import ChainRecord, Change, Move, NodeRecord

if TYPE_CHECKING:
    from .model import Model

INTERVAL_S: Final = 1.0  # between looks: one costs as much as there are nodes, and chains on those that leave
AHEAD: Final = 2  # times as many moves are planned as may be made at once: what comes later is decided later


class Healing:
    """What a `Model` does for nodes that are leaving."""

    def __init__(self, model: "Model") -> None:
        self._model = model
        self._due_s = float("-inf")
        self.is_active = True  # whether a node is leaving

    def drained(self, request: pb.DrainNodeRequest) -> Change:
        """Return the node marked as one that is to be empty, or not any more. Raises: NotFound, InvalidArgument."""
        records = self._model.records
        node = self._storage(request.node)
        self._due_s = float("-inf")
        if not request.drained:
            if node.leaving == pb.OUT:
                raise InvalidArgument(f"node {node.id} is not drained but out: it does not report; start it")
            return _changed(node, leaving=pb.STAYS, successor=NodeId(0))
        if request.successor:
            successor = self._storage(request.successor)
            if successor.id == node.id or successor.leaving or successor.disabled:
                raise InvalidArgument(f"node {successor.id} cannot take replicas: it is leaving or disabled")
        others = sum(
            each.kind == pb.NODE_STORAGE and not each.leaving and not each.disabled and each.id != node.id
            for each in records.nodes.values()
        )
        needed = max((table.replicas for table in records.tables.values()), default=0)
        if others < needed:
            raise InvalidArgument(
                f"node {node.id} cannot be drained: chains of {needed} replicas need as many other nodes, and there "
                f"are {others}; add one first"
            )
        return _changed(node, leaving=pb.DRAINED, successor=NodeId(request.successor))

    def _storage(self, number: int) -> NodeRecord:
        node = self._model.records.nodes.get(NodeId(number))
        if node is None or node.kind != pb.NODE_STORAGE:
            raise NotFound(f"no storage node {number}; `luciola node list` shows all nodes")
        return node

    def look(self, now_s: float) -> Change:
        """Return nodes that are out from now on, and moves that are planned or dropped."""
        if now_s < self._due_s:
            return Change()
        self._due_s = now_s + INTERVAL_S
        self.is_active = any(node.leaving for node in self._model.records.nodes.values())
        dropped = self._stale()
        plain = sum(not move.heals for move in dropped)
        known = self._model.records.rebalance
        return Change(
            nodes=tuple(self._overdue(now_s)),
            moves=() if dropped else tuple(self._planned()),
            ended_moves=tuple(move.chain for move in dropped),
            rebalance=replace(known, total=known.total - plain) if plain else None,
        )

    def _overdue(self, now_s: float) -> list[NodeRecord]:
        model = self._model
        if not model.config.down_out_s:
            return []
        known = [
            node
            for node in model.records.nodes.values()
            if node.kind == pb.NODE_STORAGE and node.incarnation and not node.disabled
            if model.lives[node.id].status == pb.CONNECTED or model.records.has_chains(node.id)
        ]
        away = [node for node in known if model.lives[node.id].status == pb.FAILED]
        if 2 * len(away) >= len(known):
            return []  # H2
        return [
            replace(node, leaving=pb.OUT)
            for node in away
            if not node.leaving and model.away_s(node.id, now_s) >= model.config.down_out_s
        ]

    def _leaving(self) -> list[NodeRecord]:
        """Return leaving nodes that still have replicas."""
        records = self._model.records
        return [node for node in records.nodes.values() if node.leaving and records.has_chains(node.id)]

    def _stale(self) -> list[Move]:
        """Return moves that have not begun, and have lost their reason or their place, or are in the way."""
        model = self._model
        if not self.is_active and not any(move.heals for move in model.records.moves.values()):
            return []
        takers = {node.id for node in self._takers()}
        stale = []
        for move in model.records.moves.values():
            if model.moves.has_begun(move):
                continue
            members = model.records.chains[move.chain].members
            must = move.heals or any(model.is_leaving(each.node) for each in members)
            if (
                model.is_leaving(move.node)
                or (must and move.node not in takers)
                or (move.heals and not self.is_needed(move))
            ):
                stale.append(move)
        return stale

    def is_needed(self, move: Move) -> bool:
        """Return whether the replica that `move` takes away is on a node that is leaving (H3)."""
        records = self._model.records
        source = next(
            (each.node for each in records.chains[move.chain].members if each.target == move.target), None
        )
        return source is not None and self._model.is_leaving(source)

    def _planned(self) -> list[Move]:
        records = self._model.records
        leaving = self._leaving()
        if not leaving or records.rebalance.paused:
            return []
        room = AHEAD * records.rebalance.concurrent - sum(move.heals for move in records.moves.values())
        wanted = [
            (len(chain.serving), chain.id, node)
            for node in leaving
            for chain in records.chains_of(node.id)
            if chain.id not in records.moves and chain.serving
        ]
        takers = self._takers()
        load = Counter({node.id: len(records.chains_of(node.id)) for node in takers})
        load.update(move.node for move in records.moves.values() if not self._model.moves.has_begun(move))
        planned: dict[ChainId, Move] = {}
        for _serving, chain_id, node in nsmallest(max(0, room), wanted, key=lambda each: each[:2]):
            chain = records.chains[chain_id]
            taker = self._choose(chain, node, takers, load)
            if taker is not None and chain_id not in planned:
                leaves = next(each.target for each in chain.members if each.node == node.id)
                planned[chain_id] = Move(chain_id, leaves, taker, heals=True)
                load[taker] += 1
        return list(planned.values())

    def _takers(self) -> list[NodeRecord]:
        model = self._model
        return [
            node
            for node in model.records.nodes.values()
            if node.kind == pb.NODE_STORAGE and not node.leaving and not node.disabled  # H1
            if model.lives[node.id].status == pb.CONNECTED and not model.is_full(node.id)
        ]

    def _choose(
        self, chain: ChainRecord, source: NodeRecord, takers: Sequence[NodeRecord], load: Counter[NodeId]
    ) -> NodeId | None:
        """Return the node for a new replica of `chain` instead of that on `source`; None if no node can take one."""
        model = self._model
        holding = {member.node for member in chain.members}
        fit = [node for node in takers if node.id not in holding]
        if any(node.id == source.successor for node in fit):
            return source.successor
        level = model.domain_level(chain.id)
        crowded = Counter(
            domain_of(model.records.nodes[NodeId(node)], level) for node in holding - {source.id}
        )
        sizes = {node.id: model.lives[node.id].capacity_bytes for node in fit}
        weigh = all(sizes.values())
        best = min(
            fit,
            key=lambda node: (
                crowded[domain_of(node, level)],
                load[node.id] / (sizes[node.id] if weigh else 1),
                node.id,
            ),
            default=None,
        )
        return None if best is None else best.id

    def status(self) -> list[pb.LeavingNode]:
        """Return the nodes that still have to get rid of replicas, and what is in the way."""
        takers = self._takers()
        found = []
        for node in self._leaving():
            chains = self._model.records.chains_of(node.id)
            reasons = (self._obstacle(chain, node, takers) for chain in chains[:LOOKED_MAX])
            first = next(reasons)
            obstacle = first and ("" if any(not reason for reason in reasons) else first)
            found.append(pb.LeavingNode(node=node.id, replicas=len(chains), obstacle=obstacle))
        return found

    def _obstacle(self, chain: ChainRecord, node: NodeRecord, takers: Sequence[NodeRecord]) -> str:
        """Return why the replica of `chain` on `node` does not move now; empty if it does, or soon will."""
        model = self._model
        move = model.records.moves.get(chain.id)
        if move is not None and model.moves.has_begun(move):
            return ""
        if model.records.rebalance.paused:
            return "moves are paused; luciola rebalance resume"
        if not chain.serving:
            return f"chain {chain.id} does not serve"
        if move is not None:
            return model.moves.obstacle(move)
        if self._choose(chain, node, takers, Counter()) is None:
            return "every other node holds a copy already, is full, does not report or is leaving; add a node"
        return ""


def _changed(node: NodeRecord, *, leaving: int, successor: NodeId) -> Change:
    after = replace(node, leaving=leaving, successor=successor)
    return Change() if after == node else Change(nodes=(after,))


__all__ = ["Healing"]
