"""The node's own machine: its rules one by one, then together with mgmtd's, exhaustively for two replicas."""

from collections import deque
from dataclasses import dataclass, replace

import pytest

from luciola.ids import ChainId, ChainVersion, TargetId
from luciola.mgmtd import transitions
from luciola.states import Data, Local, Public
from luciola.storage.model import (
    DataMissing,
    DiskFailed,
    Report,
    Restored,
    RoutingChanged,
    Seen,
    State,
    SyncDone,
    may_serve,
    may_sync,
    step,
)

CHAIN = ChainId(7)
TARGET = TargetId(101)


def routing(public, version=1, target=TARGET, data=Data.COMPLETE):
    return RoutingChanged({target: Seen(CHAIN, ChainVersion(version), Public(public))}, {target: data})


def after(*events, state=None):
    state = state or State()
    for event in events:
        state, _ = step(state, event)
    return state


def local(state, target=TARGET):
    return state.targets[target].local


@pytest.mark.parametrize("public", [Public.SERVING, Public.SYNCING])
def test_after_a_start_nothing_is_reported_until_mgmtd_has_noticed(public):
    state = after(routing(public))
    assert local(state) == Local.OFFLINE
    assert not state.is_back
    assert local(after(routing(Public.OFFLINE, 2), state=state)) == Local.ONLINE


def test_one_replica_that_still_serves_keeps_all_others_offline():
    other = TargetId(202)
    both = RoutingChanged(
        {
            TARGET: Seen(CHAIN, ChainVersion(3), Public.OFFLINE),
            other: Seen(ChainId(8), ChainVersion(1), Public.SERVING),
        }
    )
    state = after(both)
    assert {target.local for target in state.targets.values()} == {Local.OFFLINE}


def test_last_one_that_served_returns_at_once():
    state = after(routing(Public.LASTSRV))
    assert local(state) == Local.ONLINE
    assert local(after(routing(Public.SERVING, 2), state=state)) == Local.UPTODATE


def test_new_chain_serves_at_once_when_the_node_is_already_there():
    state = after(RoutingChanged({}), routing(Public.SERVING))
    assert local(state) == Local.UPTODATE


def test_replica_that_fell_out_comes_back_without_its_claim():
    state = after(RoutingChanged({}), routing(Public.SERVING), routing(Public.OFFLINE, 2))
    assert local(state) == Local.ONLINE
    assert local(after(routing(Public.SYNCING, 3), state=state)) == Local.ONLINE


def test_replica_is_up_to_date_only_under_the_version_that_was_synced():
    syncing = after(routing(Public.OFFLINE), routing(Public.SYNCING, 2))
    assert may_sync(syncing, CHAIN, ChainVersion(2))
    assert not may_sync(syncing, CHAIN, ChainVersion(1))
    assert not may_sync(syncing, CHAIN, ChainVersion(3))
    assert not may_sync(syncing, ChainId(9), ChainVersion(2))
    assert local(after(SyncDone(CHAIN, ChainVersion(1)), state=syncing)) == Local.ONLINE
    done = after(SyncDone(CHAIN, ChainVersion(2)), state=syncing)
    assert local(done) == Local.UPTODATE
    assert local(after(routing(Public.SYNCING, 2), state=done)) == Local.UPTODATE, "heard again"
    assert local(after(routing(Public.SYNCING, 3), state=done)) == Local.ONLINE, "another version: sync again"
    assert local(after(routing(Public.SERVING, 3), state=done)) == Local.UPTODATE


def test_sync_of_a_replica_that_is_not_syncing_is_refused():
    for public in Public:
        state = after(RoutingChanged({}), routing(public, 2))
        assert may_sync(state, CHAIN, ChainVersion(2)) == (public == Public.SYNCING)


def test_failed_disk_stays_offline():
    state = after(RoutingChanged({}), routing(Public.SERVING), DiskFailed())
    assert local(state) == Local.OFFLINE
    for version, public in enumerate(Public, 2):
        state = after(routing(public, version), state=state)
        assert local(state) == Local.OFFLINE
        assert not may_sync(state, CHAIN, ChainVersion(version))


def test_older_routing_changes_nothing():
    state = after(RoutingChanged({}), routing(Public.SERVING, 5))
    assert after(routing(Public.OFFLINE, 4), state=state) == state


def test_lost_replica_is_not_the_last_one_that_served():
    state, effects = step(State(), routing(Public.LASTSRV, data=Data.LOST))
    assert local(state) == Local.OFFLINE
    assert DataMissing(TARGET, CHAIN, Data.LOST) in effects
    _, again = step(state, routing(Public.LASTSRV, data=Data.LOST))
    assert again == [], "said once"


def test_partial_replica_says_so_until_it_serves_or_is_synced():
    state, effects = step(State(), routing(Public.LASTSRV, data=Data.PARTIAL))
    assert (local(state), state.targets[TARGET].data) == (Local.ONLINE, Data.PARTIAL)
    assert DataMissing(TARGET, CHAIN, Data.PARTIAL) in effects
    served, effects = step(state, routing(Public.SERVING, 2))
    assert served.targets[TARGET].data == Data.COMPLETE
    assert Restored(TARGET) in effects
    synced = after(routing(Public.SYNCING, 2), SyncDone(CHAIN, ChainVersion(2)), state=state)
    assert synced.targets[TARGET].data == Data.COMPLETE


def test_replica_that_still_serves_publicly_stays_partial_after_a_start():
    state = after(routing(Public.SERVING, data=Data.PARTIAL))
    assert (local(state), state.targets[TARGET].data) == (Local.OFFLINE, Data.PARTIAL)


def test_lost_replica_is_synced_and_then_forgotten_as_lost():
    state = after(routing(Public.OFFLINE, data=Data.LOST))
    assert local(state) == Local.ONLINE
    state = after(routing(Public.SYNCING, 2), state=state)
    state, effects = step(state, SyncDone(CHAIN, ChainVersion(2)))
    assert effects == [Report(TARGET), Restored(TARGET)]
    assert local(after(routing(Public.LASTSRV, 4), state=state)) == Local.ONLINE


def test_replica_whose_place_was_taken_from_it_is_synced_from_the_start():
    state = after(RoutingChanged({}), routing(Public.SERVING), routing(Public.SYNCING, 2))
    assert local(state) == Local.ONLINE


def test_lease_is_not_used_before_our_absence_was_noticed():
    assert not may_serve(after(routing(Public.SERVING)))
    assert may_serve(after(routing(Public.SERVING), routing(Public.OFFLINE, 2)))
    assert not may_serve(after(RoutingChanged({}), DiskFailed()))


def test_target_that_left_its_chain_is_forgotten():
    state = after(RoutingChanged({}), routing(Public.SERVING))
    state, effects = step(state, RoutingChanged({}))
    assert effects == []
    assert not state.targets


def test_heartbeat_is_asked_for_exactly_when_the_report_changes():
    state = after(RoutingChanged({}))
    for event in (
        routing(Public.SERVING),
        routing(Public.SERVING),
        routing(Public.SERVING, 2),
        routing(Public.OFFLINE, 3),
        routing(Public.SYNCING, 4),
        SyncDone(CHAIN, ChainVersion(4)),
        SyncDone(CHAIN, ChainVersion(4)),
        DiskFailed(),
        DiskFailed(),
    ):
        before = {id_: (target.local, target.chain_version) for id_, target in state.targets.items()}
        state, effects = step(state, event)
        now = {id_: (target.local, target.chain_version) for id_, target in state.targets.items()}
        assert (before != now) == any(isinstance(effect, Report) for effect in effects), event


# Together with mgmtd: one chain of two replicas on two nodes, every order of events.

NODES = (0, 1)


@dataclass(frozen=True)
class World:
    """`members`: (node, public) in chain order. `complete`: nodes that hold every acknowledged write, or as much of it
    as there was on all disks when a chain resumed after the power was lost everywhere.

    `states`: per node what `key` keeps of its State, so that equal worlds are found equal.
    """

    version: int = 1
    members: tuple = ((0, Public.SERVING), (1, Public.SERVING))
    reports: tuple = ((Local.UPTODATE, Data.COMPLETE),) * 2
    is_up: tuple = (True, True)
    states: tuple = ()
    data: tuple = (Data.COMPLETE, Data.COMPLETE)
    complete: frozenset = frozenset(NODES)
    crashes: int = 0
    acknowledged: int = 0


def key(state):
    return state.is_back, state.has_failed, tuple(sorted(state.targets.items()))


def state_of(packed):
    is_back, has_failed, targets = packed
    return State(is_back, has_failed, dict(targets))


def put(values, index, value):
    return (*values[:index], value, *values[index + 1 :])


class Rules:
    """How the world moves. Subclasses plant bugs."""

    crashes_max = 2

    def restarted(self):
        return State()

    table = staticmethod(transitions.advance)

    def data(self, world, node):
        return world.data[node]

    def next(self, world):
        """Every world that one event leads to, with the event's name."""
        public = dict(world.members)
        for node in NODES:
            if world.is_up[node]:
                yield from self._up(world, node, public)
            else:
                yield from self._down(world, node)
        yield "chains", self._chains(world)
        yield from self._write(world)

    def _down(self, world, node):
        yield (
            f"start {node}",
            replace(
                world,
                is_up=put(world.is_up, node, True),
                states=put(world.states, node, key(self.restarted())),
            ),
        )
        for data in (Data.PARTIAL, Data.LOST):
            if world.data[node] < data and (node in world.complete or data is Data.PARTIAL):
                complete = world.complete - {node}
                yield (
                    f"{data.name} {node}",
                    replace(world, data=put(world.data, node, data), complete=complete),
                )
        gone = (Local.OFFLINE, Data.COMPLETE)
        yield f"expire {node}", replace(world, reports=put(world.reports, node, gone))

    def _up(self, world, node, public):
        if world.crashes < self.crashes_max:
            is_up = put(world.is_up, node, False)
            yield f"crash {node}", replace(world, is_up=is_up, crashes=world.crashes + 1)
        seen = routing(public[node], world.version, TargetId(node), data=self.data(world, node))
        state, effects = step(state_of(world.states[node]), seen)
        heard = replace(world, states=put(world.states, node, key(state)))
        if any(isinstance(effect, Restored) for effect in effects):
            heard = replace(heard, data=put(heard.data, node, Data.COMPLETE))
        yield f"routing {node}", heard
        target = state_of(world.states[node]).targets.get(TargetId(node))
        if target is not None and target.chain_version == world.version:
            yield (
                f"heartbeat {node}",
                replace(world, reports=put(world.reports, node, (target.local, target.data))),
            )
        yield from self._sync(world, node, public)

    def _sync(self, world, node, public):
        """`node` is brought up to date by its predecessor."""
        serving = [member for member, state in world.members if state == Public.SERVING]
        if not serving or public[node] != Public.SYNCING or not self.can_serve(world, serving[-1]):
            return
        state = state_of(world.states[node])
        if may_sync(state, CHAIN, ChainVersion(world.version)):
            state, _ = step(state, SyncDone(CHAIN, ChainVersion(world.version)))
            has_it = world.complete | {node} if serving[-1] in world.complete else world.complete - {node}
            states = put(world.states, node, key(state))
            data = put(world.data, node, Data.COMPLETE)
            yield f"sync {node}", replace(world, states=states, data=data, complete=has_it)

    def _write(self, world):
        """A write that every SERVING member has; those which are not in the chain miss it."""
        serving = [member for member, state in world.members if state == Public.SERVING]
        if serving and all(self.can_serve(world, member) for member in serving) and world.acknowledged < 2:
            takes = {member for member, state in world.members if state == Public.SYNCING}
            complete = frozenset(serving) | (world.complete & takes)
            yield "write", replace(world, complete=complete, acknowledged=world.acknowledged + 1)

    def can_serve(self, world, node):
        """The data server of `node` would answer: SERVING and UPTODATE under the present chain version."""
        if not world.is_up[node]:
            return False
        target = state_of(world.states[node]).targets.get(TargetId(node))
        return (
            target is not None
            and target.chain_version == world.version
            and target.public == Public.SERVING
            and target.local == Local.UPTODATE
        )

    def _chains(self, world):
        """mgmtd looks at what was reported."""
        local = {TargetId(node): report[0] for node, report in enumerate(world.reports)}
        held = {TargetId(node): transitions.Held(report[1]) for node, report in enumerate(world.reports)}
        members = [transitions.Member(TargetId(node), node, public) for node, public in world.members]
        changed = tuple((m.node, m.state) for m in self.table(members, local, held))
        if changed == world.members:
            return world
        last = [node for node, public in world.members if public == Public.LASTSRV]
        serving = {node for node, public in changed if public == Public.SERVING}
        complete = world.complete
        if last and serving and all(world.data[node] for node in last):
            complete = frozenset(serving)
        return replace(world, members=changed, version=world.version + 1, complete=complete)


def explore(rules, *, version_max):
    """Every reachable world; the first bad one's history, or None; and how many there are."""
    seen = [after(RoutingChanged({}), routing(Public.SERVING, 1, TargetId(node))) for node in NODES]
    first = World(states=tuple(key(state) for state in seen))
    came_from = {first: None}
    queue = deque([first])
    while queue:
        world = queue.popleft()
        if any(rules.can_serve(world, node) and node not in world.complete for node in NODES):
            return history(came_from, world), len(came_from)
        if world.version >= version_max:
            continue
        for name, reached in rules.next(world):
            if reached not in came_from:
                came_from[reached] = (name, world)
                queue.append(reached)
    return None, len(came_from)


def history(came_from, world):
    names = []
    while came_from[world] is not None:
        name, world = came_from[world]
        names.append(name)
    return names[::-1]


def test_replica_that_misses_a_write_never_serves():
    bad, count = explore(Rules(), version_max=6)
    assert bad is None, bad
    assert count > 2000


class BackAtOnce(Rules):
    """Planted: a restarted process does not wait until its absence was noticed."""

    def restarted(self):
        return State(is_back=True)


class ForgetsDamage(Rules):
    """Planted: a replaced disk, or a lost power, is not recognised."""

    def data(self, world, node):
        return Data.COMPLETE


class FirstServes(Rules):
    """Planted: a chain resumes with the first replica that returns."""

    @staticmethod
    def table(members, local, held):
        return transitions.advance(members, local)


class DoneTooEarly(Rules):
    """Planted: SyncDone arrives without the comparison having been made."""

    def _sync(self, world, node, public):
        for name, reached in super()._sync(world, node, public):
            yield name, replace(reached, complete=world.complete)


@pytest.mark.parametrize("rules", [BackAtOnce, ForgetsDamage, FirstServes, DoneTooEarly])
def test_planted_bugs_are_found(rules):
    bad, _ = explore(rules(), version_max=6)
    assert bad is not None
