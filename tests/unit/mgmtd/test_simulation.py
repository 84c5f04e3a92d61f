"""Random clusters under one hour of trouble each: the manager's real model and storage nodes that obey its rules.

Nodes crash, lose their memory of what is allowed, restart, are cut off from the manager or leave cleanly; clocks
run at different speeds; heartbeats and routing are delayed, duplicated, lost and overtaken; the manager crashes and
reads its records again. Clients write and read through any node that believes it may serve. Checked always:

    S1  a read returns every write that was acknowledged before it began (leases, chain versions)
    S2  at the end, with everybody healthy, every chain is SERVING on all its nodes and has every such write
    S4  a replica that serves is not removed; a move, however often it is interrupted, ends with the new replica in the
        place of the old one
    S5  at the end nodes that are drained have nothing, where others can take it, and every chain has all its copies
    S3  chain versions grow exactly when members change; a replica never serves without having been up to date
"""

import contextlib
import copy
import random
from dataclasses import dataclass, field

import pytest

from luciola.config import MgmtdConfig
from luciola.errors import Busy, Conflict, InvalidArgument
from luciola.ids import ChainId, NodeId
from luciola.mgmtd.model import Model
from luciola.mgmtd.placement import Site, place
from luciola.mgmtd.records import ChainRecord, Change, Move, Records
from luciola.states import Local, Public
from luciola.wire.pb import mgmtd_pb2 as pb

CONFIG = MgmtdConfig(down_out_s=8)
TICK_S = 0.1
CALM_TURNS_MAX = 3000
SERVES = (Public.SERVING,)
ACTIVE = (Public.SERVING, Public.SYNCING)


@dataclass
class Replica:
    """One replica on a node: its data lives on the disk, the rest in the process."""

    data: set[int] = field(default_factory=set)
    view: ChainRecord | None = None
    local: Local = Local.OFFLINE


@dataclass
class Node:
    """A storage node: `lease_until` is on its own clock, which runs `speed` times as fast as real time."""

    id: int
    speed: float
    is_up: bool = True
    is_cut: bool = False
    incarnation: int = 1
    sequence: int = 0
    is_back: bool = False
    lease_until: float = float("-inf")
    lease_version: int = 0
    routing_version: int = 0
    beat_at: float = 0.0
    replicas: dict[int, Replica] = field(default_factory=dict)  # by chain

    def clock(self, now: float) -> float:
        return now * self.speed

    def may_serve(self, chain: int, now: float) -> ChainRecord | None:
        """The chain as this node sees it, if it believes that it may serve it (R4)."""
        replica = self.replicas.get(chain)
        if not self.is_up or not self.is_back or replica is None or replica.view is None:
            return None
        if self.clock(now) >= self.lease_until or replica.local is not Local.UPTODATE:
            return None
        member = next((m for m in replica.view.members if m.node == self.id), None)
        return replica.view if member is not None and member.state in SERVES else None


class World:
    """Everything, driven by one seed."""

    def __init__(self, seed: int, *, model_class: type[Model] = Model, drift: float = 0.05) -> None:
        self.dice = random.Random(seed)
        self.model_class = model_class
        self.now = 1000.0
        self.stored = Records()
        self.model = self.start_manager()
        self.manager_up = True
        self.is_calm = False
        self.down_until = 0.0
        self.messages: list[tuple[float, int, object]] = []
        self.count = 0
        self.replicas = self.dice.randint(1, 3)
        self.nodes = {
            1000 + n: Node(1000 + n, 1 + self.dice.uniform(-drift, drift))
            for n in range(self.replicas + self.dice.randint(0, 2))
        }
        self.acknowledged: dict[int, set[int]] = {}
        self.reads = self.writes = self.falls = self.rotations = 0
        self.wanted: dict[
            int, tuple[int, int]
        ] = {}  # by chain: which replica was to leave, and for which node
        self.routing_version = 1
        for node in self.nodes.values():
            node.is_back = True
            self.beat(node, at_once=True)
        sites = [Site(node) for node in sorted(self.nodes)]
        placed = place(sites, replicas=self.replicas, chains=2 * len(self.nodes))
        request = pb.CreateChainTableRequest(table=1, replicas=self.replicas)
        self.keep(self.model.new_table(request, placed, now_s=self.now))
        for chain in self.stored.chains:
            self.acknowledged[chain] = set()

    # The manager.

    def start_manager(self) -> Model:
        return self.model_class(CONFIG, copy.deepcopy(self.stored), now_s=self.now)

    def keep(self, change: Change) -> None:
        for chain in change.chains:
            before = self.stored.chains.get(chain.id)
            if before is not None:
                served = {m.target for m in before.members if m.state in SERVES}
                assert served <= {m.target for m in chain.members}, "S4"
                assert chain.version == before.version + 1, "S3"
                assert chain.members != before.members, "S3"
        self.stored.apply(change)
        self.model.apply(change)
        for move in change.moves:
            if move.heals or not move.node:  # undone, or another one followed
                self.wanted.pop(move.chain, None)
        for chain_id in change.ended_moves:
            members = self.stored.chains[chain_id].members
            if self.wanted.get(chain_id, (0, 0))[1] not in {member.node for member in members}:
                self.wanted.pop(chain_id, None)
        if change:
            self.routing_version += 1
            for node in self.nodes.values():
                self.send_routing(node)

    def send_routing(self, node: Node) -> None:
        chains = {c.id: c for c in self.stored.chains.values() if any(m.node == node.id for m in c.members)}
        delay = 0.01 if self.is_calm else self.dice.choice((0.01, 0.1, self.dice.expovariate(1)))
        self.post(delay, (self.take_routing, node.id, node.incarnation, self.routing_version, chains))

    def hear(self, request: pb.HeartbeatRequest, sent: float) -> None:
        if not self.manager_up:
            return
        node = self.nodes[request.node.id]
        try:
            change = self.model.registration(request.node)
            if change:
                self.keep(change)
            heard = self.model.receive(request, now_s=self.now)
        except (Conflict, InvalidArgument):
            return
        reply = (
            self.take_reply,
            node.id,
            request.node.incarnation,
            heard.lease_ms,
            sent,
            self.routing_version,
        )
        self.post(self.delay(), reply)
        self.send_routing(node)

    def tick_manager(self) -> None:
        if not self.manager_up:
            if self.now >= self.down_until:
                self.model = self.start_manager()
                self.manager_up = True
            return
        self.keep(self.model.look(now_s=self.now))

    # The network.

    def delay(self) -> float:
        if self.is_calm:
            return 0.01
        return self.dice.choice((0.001, 0.01, 0.05, self.dice.expovariate(1 / 0.5)))

    def post(self, delay: float, message: tuple) -> None:
        self.count += 1
        self.messages.append((self.now + delay, self.count, message))

    def deliver(self) -> None:
        due = sorted(entry for entry in self.messages if entry[0] <= self.now)
        self.messages = [entry for entry in self.messages if entry[0] > self.now]
        for _, _, (action, *arguments) in due:
            action(*arguments)

    # Nodes.

    def beat(self, node: Node, *, at_once: bool = False, leaving: bool = False) -> None:
        node.sequence += 1
        request = pb.HeartbeatRequest(
            node=pb.Node(id=node.id, kind=pb.NODE_STORAGE, incarnation=node.incarnation),
            sequence=node.sequence,
            leaving=leaving,
        )
        for chain, replica in node.replicas.items():
            if replica.view is not None:
                target = next(m.target for m in replica.view.members if m.node == node.id)
                local = replica.local if node.is_back and not leaving else Local.OFFLINE
                request.targets.add(
                    id=target, chain=chain, state=int(local), chain_version=replica.view.version
                )
        sent = node.clock(self.now)
        node.beat_at = self.now + self.dice.uniform(0.5, 1.0)
        if node.is_cut:
            return
        if at_once:
            self.hear(request, sent)
            return
        for _ in range(1 if self.is_calm else self.dice.choice((1, 1, 1, 1, 0, 2))):
            self.post(self.delay(), (self.hear, request, sent))

    def take_reply(self, node_id: int, incarnation: int, lease_ms: int, sent: float, version: int) -> None:
        node = self.nodes[node_id]
        if node.is_up and not node.is_cut and node.incarnation == incarnation and lease_ms:
            node.lease_until = max(node.lease_until, sent + lease_ms / 1000)

    def take_routing(
        self, node_id: int, incarnation: int, version: int, chains: dict[ChainId, ChainRecord]
    ) -> None:
        """An answer to a process that has ended reaches no other: a connection belongs to a process."""
        node = self.nodes[node_id]
        if not node.is_up or node.is_cut or node.incarnation != incarnation or version < node.routing_version:
            return
        node.routing_version = version
        changed = False
        for chain_id, chain in chains.items():
            replica = node.replicas.setdefault(chain_id, Replica())
            if replica.view is None or chain.version > replica.view.version:
                changed = True
                was = replica.view and next(m.state for m in replica.view.members if m.node == node_id)
                replica.view = chain
                public = next(m.state for m in chain.members if m.node == node_id)
                synced = (
                    was is Public.SYNCING and replica.local is Local.UPTODATE and public is Public.SERVING
                )
                replica.local = Local.UPTODATE if synced or public is Public.SERVING else Local.ONLINE
        for chain_id in node.replicas.keys() - chains.keys():
            del node.replicas[chain_id]  # removed from its chain; its chunks are dropped
        mine = [next(m.state for m in chain.members if m.node == node_id) for chain in chains.values()]
        node.is_back = node.is_back or not any(state in ACTIVE for state in mine)
        if changed:
            self.beat(node)

    def synchronise(self) -> None:
        """Predecessors compare and send, when both see the same chain version."""
        for node in self.nodes.values():
            for chain, replica in node.replicas.items():
                view = node.may_serve(chain, self.now)
                if view is None or view.serving[-1].node != node.id or self.dice.random() < 0.7:
                    continue
                syncing = next((m for m in view.members if m.state is Public.SYNCING), None)
                if syncing is None:
                    continue
                successor = self.nodes[syncing.node]
                theirs = successor.replicas.get(chain)
                if successor.is_up and successor.is_back and theirs is not None and theirs.view == view:
                    theirs.data = set(replica.data)
                    theirs.local = Local.UPTODATE
                    self.beat(successor)

    # Clients.

    def write(self, chain: int) -> None:
        """Through a node that believes it is the head; acknowledged if every member of its view takes it."""
        for node in self.nodes.values():
            view = node.may_serve(chain, self.now)
            if view is None or view.serving[0].node != node.id:
                continue
            self.writes += 1
            number = self.writes
            for member in view.members:
                if member.state not in ACTIVE:
                    continue
                replica = self.nodes[member.node].replicas.get(chain)
                other = self.nodes[member.node]
                if not other.is_up or replica is None or replica.view != view or not other.is_back:
                    return  # refused: not acknowledged; those before have it, which is allowed
                replica.data.add(number)
            self.acknowledged[chain].add(number)

    def read(self, chain: int) -> None:
        for node in self.nodes.values():
            if node.may_serve(chain, self.now) is not None:
                self.reads += 1
                missing = self.acknowledged[chain] - node.replicas[chain].data
                assert not missing, f"S1: node {node.id} serves chain {chain} without {len(missing)} writes"

    # Trouble.

    def trouble(self) -> None:
        node = self.dice.choice(list(self.nodes.values()))
        weights = {
            self.crash_once: 4,
            self.crash_and_report: 2,
            self.leave: 2,
            self.cut: 2,
            self.heal: 2,
            self.lose_everything: 1,
            self.rotate: 3,
            self.disable: 1,
            self.enable: 2,
            self.move: 3,
            self.drain: 2,
            self.undrain: 2,
            self.stay_away: 1,
            lambda _node: self.stop_manager(): 2,
        }
        self.dice.choices(list(weights), list(weights.values()))[0](node)

    def crash_once(self, node: Node) -> None:
        if node.is_up:
            self.crash(node)

    def crash_and_report(self, node: Node) -> None:
        """A supervisor reaps it and says so."""
        if not node.is_up:
            return
        self.crash(node)
        if self.manager_up:
            self.model.ended(pb.ProcessEndedRequest(node=node.id, incarnation=node.incarnation))

    def leave(self, node: Node) -> None:
        if node.is_up:
            node.is_back = False
            node.lease_until = float("-inf")
            self.beat(node, leaving=True)
            self.crash(node)

    def cut(self, node: Node) -> None:
        node.is_cut = True

    def heal(self, node: Node) -> None:
        node.is_cut = False

    def lose_everything(self, _node: Node) -> None:
        self.stop_manager()
        for each in self.nodes.values():
            self.crash_once(each)

    def rotate(self, _node: Node) -> None:
        if not self.manager_up:
            return
        chain = self.dice.choice(list(self.stored.chains))
        request = pb.UpdateChainRequest(chain=chain, action=pb.UpdateChainRequest.ROTATE_PREFERRED)
        with contextlib.suppress(Busy):
            change = self.model.updated_chain(request, now_s=self.now)
            self.rotations += bool(change)
            self.keep(change)

    def move(self, node: Node) -> None:
        """A replica is to leave one chain for `node`."""
        if not self.manager_up:
            return
        chain = self.dice.choice(list(self.stored.chains.values()))
        if chain.id not in self.stored.moves and all(member.node != node.id for member in chain.members):
            target = self.dice.choice(chain.members).target
            self.keep(Change(moves=(Move(chain.id, target, NodeId(node.id)),)))
            self.wanted[chain.id] = (target, node.id)

    def drain(self, node: Node) -> None:
        if self.manager_up:
            with contextlib.suppress(InvalidArgument):  # too few others
                successor = self.dice.choice((0, 0, *self.nodes))
                request = pb.DrainNodeRequest(node=node.id, drained=True, successor=successor)
                self.keep(self.model.healing.drained(request))

    def undrain(self, node: Node) -> None:
        if self.manager_up:
            with contextlib.suppress(InvalidArgument):  # it is out
                self.keep(self.model.healing.drained(pb.DrainNodeRequest(node=node.id)))

    def stay_away(self, node: Node) -> None:
        """Longer than `down_out_s`."""
        if node.is_up and len(self.nodes) > self.replicas:
            self.crash(node)
            node.beat_at = self.now + self.dice.uniform(10, 60)

    def disable(self, node: Node) -> None:
        if self.manager_up:
            self.keep(self.model.disabled_node(node.id, disabled=True))

    def enable(self, _node: Node) -> None:
        if self.manager_up:
            for each in self.nodes.values():
                self.keep(self.model.disabled_node(each.id, disabled=False))

    def stop_manager(self) -> None:
        if not self.manager_up:
            return
        self.manager_up = False
        self.down_until = self.now + self.dice.choice((0.1, 1.0, 5.0))

    def crash(self, node: Node) -> None:
        self.falls += 1
        node.is_up = False
        node.is_back = False
        node.lease_until = float("-inf")
        node.beat_at = self.now + self.dice.choice((0.05, 0.3, 2.0, 10.0))

    def restart(self, node: Node) -> None:
        node.is_up = True
        node.incarnation += 1
        node.sequence = 0
        node.routing_version = 0
        for replica in node.replicas.values():
            replica.view, replica.local = None, Local.OFFLINE
        self.beat(node)

    # Time.

    def turn(self, *, troubled: bool) -> None:
        self.now += TICK_S
        if troubled and self.dice.random() < 0.05:
            self.trouble()
        self.deliver()
        self.tick_manager()
        for node in self.nodes.values():
            if self.now >= node.beat_at:
                if not node.is_up:
                    self.restart(node)
                else:
                    self.beat(node)
        self.synchronise()
        for chain in self.stored.chains:
            self.read(chain)
            self.write(chain)
            self.read(chain)

    def run(self, turns: int) -> None:
        for _ in range(turns):
            self.turn(troubled=True)
        for node in self.nodes.values():
            node.is_cut = False
        self.is_calm = True
        for _ in range(CALM_TURNS_MAX):
            self.enable(node)
            self.turn(troubled=False)
            if not self.stored.moves and not self.unhealthy() and not any(self.left()):
                break

    def left(self) -> list[int]:
        """Replicas on nodes that are leaving, though a node could take them."""
        staying = {node.id for node in self.stored.nodes.values() if not node.leaving}
        return [
            chain.id
            for chain in self.stored.chains.values()
            if any(m.node not in staying for m in chain.members) and staying - {m.node for m in chain.members}
        ]

    def unhealthy(self) -> list[ChainRecord]:
        return [chain for chain in self.stored.chains.values() if len(chain.serving) != len(chain.members)]


@pytest.mark.parametrize("seed", range(6))
def test_cluster_under_trouble_is_consistent_and_recovers(seed):
    world = World(seed)
    world.run(turns=1500)
    assert world.unhealthy() == [], f"S2 (seed {seed})"
    for chain, numbers in world.acknowledged.items():
        for member in world.stored.chains[chain].members:
            node = world.nodes[member.node]
            if chain in node.replicas:
                assert numbers <= node.replicas[chain].data, f"S2 (seed {seed})"
    assert world.stored.moves == {}, f"S4 (seed {seed})"
    assert world.left() == [], f"S5 (seed {seed})"
    assert all(len(chain.members) == world.replicas for chain in world.stored.chains.values()), (
        f"S5 (seed {seed})"
    )
    for chain, (target, node) in world.wanted.items():
        members = world.stored.chains[chain].members
        assert len(members) == world.replicas, f"S4 (seed {seed})"
        assert node in {m.node for m in members}, f"S4 (seed {seed})"
        assert target not in {m.target for m in members}, f"S4 (seed {seed})"
    assert world.stored.rebalance.done >= len(world.wanted)
    assert world.reads > 1000
    assert world.falls > 5


class GrantsToTheIgnorant(Model):
    """Planted: L2 is not kept."""

    def _may_lease(self, node, reports):
        return True


class Impatient(Model):
    """Planted: L1 is not kept."""

    @property
    def lease_s(self):
        return self.config.lease_ms / 1000 * 0.5


class DoesNotWaitAfterStart(Model):
    """Planted: L3 is not kept."""

    def __init__(self, config, records, *, now_s):
        super().__init__(config, records, now_s=now_s)
        self.bootstrap_until_s = now_s
        self.newborn_until = dict.fromkeys(self.newborn_until, now_s)


class RemovesAtOnce(Model):
    """Planted: V2 is not kept: the node of a replica that leaves may still serve."""

    def demoted(self, chain, member, *, now_s):
        after = super().demoted(chain, member, now_s=now_s)
        self.targets[member.target].serves_until_s = float("-inf")
        return after


@pytest.mark.parametrize("bug", [GrantsToTheIgnorant, Impatient, DoesNotWaitAfterStart, RemovesAtOnce])
def test_simulation_finds_planted_bugs(bug):
    for seed in range(100):
        try:
            World(seed, model_class=bug).run(turns=1500)
        except AssertionError as error:
            assert "S1" in str(error)
            return
    pytest.fail("not found")
