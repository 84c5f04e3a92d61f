"""Replicas that go to other nodes while their chains serve.

A move adds a replica to its chain, waits until it serves, and then removes the one that leaves. What has been done is
seen from the chain itself, so a move continues wherever a manager finds it. One chain has one move.

    V1  the replica that leaves stops serving only while all others of its chain serve
    V2  it is removed only when its node has received that it does not serve, or its lease has expired; until then it
        takes part in every write, as after a rotation (L6)
    V3  a replica that served last is never removed
    V4  at most `concurrent` moves have begun and not ended
    V5  nothing waits for a replica that does not serve on a node that is out: its own move comes later. One that was
        to come to such a node is removed instead
"""

from collections.abc import Iterable
from dataclasses import replace
from itertools import chain as joined
from itertools import islice
from typing import TYPE_CHECKING, Final

from ..errors import InvalidArgument, NotFound
from ..ids import NodeId
from ..states import Local, Public
from ..wire.pb import mgmtd_pb2 as pb
from .records import ChainRecord, Change, Move, Rebalance
from .transitions import Member

if TYPE_CHECKING:
    from .model import Model

CONCURRENT_DEFAULT: Final = 4
CONCURRENT_MAX: Final = 1000
MOVES_MAX: Final = 100_000  # of one plan, as chains of a cluster
AWAY: Final = (Public.OFFLINE, Public.WAITING)  # states of replicas that may miss writes
LOOKED_MAX: Final = 64  # moves that wait, looked at each time: the first may wait for a node


class Moves:
    """The moves of a `Model`'s records."""

    def __init__(self, model: "Model") -> None:
        self._model = model
        self._begun = {chain for chain, move in model.records.moves.items() if self.has_begun(move)}

    def started(self, request: pb.StartMovesRequest) -> Change:
        """Return the moves of a plan, in the place of all that have not begun. Raises: InvalidArgument, NotFound."""
        records = self._model.records
        concurrent = request.concurrent or CONCURRENT_DEFAULT
        if concurrent > CONCURRENT_MAX or len(request.moves) > MOVES_MAX:
            raise InvalidArgument(f"at most {MOVES_MAX} moves, and {CONCURRENT_MAX} of them at once")
        moves = tuple(map(Move.from_pb, request.moves))
        if len({move.chain for move in moves}) < len(moves):
            raise InvalidArgument("a chain has at most one move")
        new = tuple(move for move in moves if move.chain not in self._begun)
        for move in new:
            self._check(move)
        replaced = {chain for chain, move in records.moves.items() if not move.heals}
        dropped = replaced - self._begun - {move.chain for move in new}
        total = len(self._begun & replaced) + len(new)
        return Change(
            moves=new,
            ended_moves=tuple(sorted(dropped)),
            rebalance=Rebalance(concurrent=concurrent, total=total),
        )

    def _check(self, move: Move) -> None:
        records = self._model.records
        chain = records.chains.get(move.chain)
        if chain is None or (move.target and chain.state_of(move.target) is None):
            raise NotFound(
                f"no replica {move.target} of a chain {move.chain}; the plan is out of date, make a new one"
            )
        if not move.target and not move.node:
            raise InvalidArgument(f"a move of chain {move.chain} that names no replica and no node")
        node = records.nodes.get(move.node)
        if move.node and (node is None or node.kind != pb.NODE_STORAGE):
            raise NotFound(f"no storage node {move.node}")
        if node is not None and node.leaving:
            raise InvalidArgument(f"node {move.node} is leaving; the plan is out of date, make a new one")
        if any(member.node == move.node for member in chain.members):
            raise InvalidArgument(f"node {move.node} holds a replica of chain {move.chain} already")

    def controlled(self, action: int) -> Change:
        """Return what an administrator's order changes. Raises: InvalidArgument."""
        records = self._model.records
        match action:
            case pb.ControlMovesRequest.PAUSE:
                return Change(rebalance=replace(records.rebalance, paused=True))
            case pb.ControlMovesRequest.RESUME:
                return Change(rebalance=replace(records.rebalance, paused=False))
            case pb.ControlMovesRequest.CANCEL:
                left = {
                    chain: cancelled(move, records.chains[chain])
                    for chain, move in records.moves.items()
                    if not move.heals
                }
                return Change(
                    moves=tuple(move for move in left.values() if move is not None),
                    ended_moves=tuple(chain for chain, move in left.items() if move is None),
                    rebalance=replace(records.rebalance, paused=False),
                )
            case pb.ControlMovesRequest.STATUS:
                return Change()
        raise InvalidArgument(f"no action {action}")

    def status(self) -> pb.MovesStatus:
        """Return how far moves have come."""
        moves = self._model.records.moves
        waiting = list(self._waiting())
        return pb.MovesStatus(
            rebalance=self._model.records.rebalance.to_pb(),
            active=[move.to_pb() for chain, move in sorted(moves.items()) if chain in self._begun],
            waiting=len(waiting),
            obstacle=self.obstacle(waiting[0]) if waiting else "",
            leaving=self._model.healing.status(),
        )

    def advance(self, now_s: float) -> Change:
        """Return the chains that moves change now, the moves that are undone from now on, and those that have ended."""
        records = self._model.records
        changed: list[ChainRecord] = []
        ended: list[Move] = []
        undone: list[Move] = []
        self._begun &= records.moves.keys()
        for chain_id in sorted(self._begun):
            move, chain = records.moves[chain_id], records.chains[chain_id]
            if not self.has_begun(move):  # the replica that came was removed by an administrator
                self._begun.discard(chain_id)
            elif self._is_pointless(move, chain):
                undone.append(replace(move, target=_arrival(move, chain).target, node=NodeId(0)))
            elif self._is_complete(move, chain):
                ended.append(move)
            elif (after := self._continued(move, chain, now_s)) is not None:
                changed.append(after)
        if not records.rebalance.paused:
            changed += self._begin()
        assert len({chain.id for chain in changed}) == len(changed), "a chain has one move"
        known, done = records.rebalance, sum(not move.heals for move in ended)
        return Change(
            chains=tuple(changed),
            moves=tuple(undone),
            ended_moves=tuple(move.chain for move in ended),
            rebalance=replace(known, done=known.done + done) if done else None,
        )

    def _waiting(self) -> Iterable[Move]:
        """Return moves that have not begun; first those for copies that are missing."""
        moves = self._model.records.moves
        kinds = (True, False) if self._model.healing.is_active else (False,)
        return joined.from_iterable(
            (move for chain, move in moves.items() if move.heals is heals and chain not in self._begun)
            for heals in kinds
        )

    def _begin(self) -> Iterable[ChainRecord]:
        records = self._model.records
        for move in list(islice(self._waiting(), LOOKED_MAX)):
            if len(self._begun) >= records.rebalance.concurrent:  # V4
                return
            if not self.obstacle(move):
                self._begun.add(move.chain)
                if move.node:
                    yield self._with_arrival(move, records.chains[move.chain])

    def obstacle(self, move: Move) -> str:
        """Return why a move that waits cannot begin now; empty if it can."""
        model, chain = self._model, self._model.records.chains[move.chain]
        leaving = next((member for member in chain.members if member.target == move.target), None)
        if leaving is not None and leaving.state is Public.LASTSRV:
            return "the chain does not serve"
        if not self._is_settled(chain) or not self._others_serve(move, chain):
            return "a replica of the chain does not serve"
        if not move.node:
            return ""
        node = model.records.nodes.get(NodeId(move.node))
        if node is None or node.disabled or node.leaving or model.lives[node.id].status != pb.CONNECTED:
            return f"node {move.node} is leaving or not connected"
        life = model.lives[node.id]
        size = max((model.targets[member.target].used_bytes for member in chain.members), default=0)
        if model.is_full(node.id) or (life.capacity_bytes and life.free_bytes < size):
            return f"the disk of node {move.node} is full"
        return ""

    def _is_settled(self, chain: ChainRecord) -> bool:
        """Return whether what is published of all replicas is what is known: else that changes first (L4, L5)."""
        for member in chain.members:
            target = self._model.targets[member.target]
            if target.local is None or target.must_fall:
                return False
            if member.state is Public.SERVING and target.local is Local.OFFLINE:
                return False
        return True

    def has_begun(self, move: Move) -> bool:
        """Return whether the replica that is to come is in its chain."""
        chain = self._model.records.chains[move.chain]
        return not move.node or any(member.node == move.node for member in chain.members)

    def _is_complete(self, move: Move, chain: ChainRecord) -> bool:
        if chain.state_of(move.target) is not None or not self._others_serve(move, chain):
            return False
        return len(chain.serving) < len(chain.members) or not _misplaced(chain)

    def _others_serve(self, move: Move, chain: ChainRecord) -> bool:
        """Return whether all replicas serve that stay, but for those that nothing waits for (V5)."""
        needed = (
            move.node if chain.state_of(move.target) is not None else 0
        )  # to take the place of what leaves
        return bool(chain.serving) and all(
            member.state is Public.SERVING
            or (member.state in AWAY and member.node != needed and self._model.is_out(member.node))
            for member in chain.members
            if member.target != move.target
        )

    def _is_pointless(self, move: Move, chain: ChainRecord) -> bool:
        """Return whether the replica that has come does not serve, and its node is leaving, or its reason has gone."""
        if (
            not move.node
            or chain.state_of(move.target) is None
            or _arrival(move, chain).state is Public.SERVING
        ):
            return False
        return self._model.is_leaving(move.node) or (move.heals and not self._model.healing.is_needed(move))

    def _with_arrival(self, move: Move, chain: ChainRecord) -> ChainRecord:
        """Return the chain with the new replica, which gets the place of the one that leaves in the preferred order."""
        added = self._model.with_target(chain, NodeId(move.node))
        arrived = added.preferred[-1]
        if move.target not in chain.preferred:
            return added
        return replace(
            added, preferred=tuple(arrived if target == move.target else target for target in chain.preferred)
        )

    def _continued(self, move: Move, chain: ChainRecord, now_s: float) -> ChainRecord | None:
        """Return the chain after the next step; None while it has to wait."""
        model = self._model
        if not self._is_settled(chain):
            return None
        leaving = next((member for member in chain.members if member.target == move.target), None)
        others = tuple(member for member in chain.members if member != leaving)
        if not any(member.state is Public.SERVING for member in others) or not self._others_serve(
            move, chain
        ):
            return None  # V1
        if leaving is None:
            return next(iter(model.rotated_as_preferred(chain, now_s=now_s)), None)
        if leaving.state is Public.SERVING:
            return model.demoted(chain, leaving, now_s=now_s)
        if leaving.state is Public.LASTSRV or now_s < model.targets[leaving.target].serves_until_s:
            return None  # V2, V3
        return chain.changed(others)


def _arrival(move: Move, chain: ChainRecord) -> Member:
    return next(member for member in chain.members if member.node == move.node)


def _misplaced(chain: ChainRecord) -> bool:
    """Return whether the replicas are in another order than preferred."""
    wanted = [target for target in chain.preferred if chain.state_of(target) is not None]
    return any(member.target != target for member, target in zip(chain.members, wanted, strict=False))


def cancelled(move: Move, chain: ChainRecord) -> Move | None:
    """Return what is left to do of a move that is cancelled: nothing, its completion, or the removal of what came."""
    arrived = next((member for member in chain.members if member.node == move.node), None)
    if move.node and arrived is None:
        return None
    if arrived is None or arrived.state is Public.SERVING or chain.state_of(move.target) is None:
        return move
    return replace(move, target=arrived.target, node=NodeId(0))


__all__ = ["CONCURRENT_DEFAULT", "CONCURRENT_MAX", "Moves", "cancelled"]
