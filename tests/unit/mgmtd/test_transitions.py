"""The table of chain states, explored completely for chains of one to three replicas.

Ghosts say which replicas hold everything that was acknowledged: a write is acknowledged by all that serve and
synchronise; a replica that synchronises holds everything once it says UPTODATE. The search takes every combination
of local states at every step, with and without a write in between, until nothing new is reached. So it covers
sequences of every length.
"""

from collections.abc import Callable, Sequence
from itertools import product

import pytest

from luciola.ids import TargetId
from luciola.mgmtd.transitions import Member, advance, ordered
from luciola.states import Local, Public

Chain = tuple[Member, ...]
Advance = Callable[[Sequence[Member], dict[TargetId, Local]], Chain]
World = tuple[Chain, frozenset[TargetId]]  # and the replicas that hold all acknowledged data

SERVING, LASTSRV, SYNCING, WAITING, OFFLINE = Public
UPTODATE, ONLINE, DOWN = Local


def chain(*states: Public) -> Chain:
    return tuple(Member(TargetId(index + 1), index + 1, state) for index, state in enumerate(states))


def states(members: Chain) -> list[tuple[int, Public]]:
    return [(member.target, member.state) for member in members]


def serving(members: Chain) -> set[TargetId]:
    return {member.target for member in members if member.state is SERVING}


def step(world: World, local: dict[TargetId, Local], *, write: bool, table: Advance) -> World:
    members, complete = world
    complete |= {m.target for m in members if m.state is SYNCING and local[m.target] is UPTODATE}
    after = table(members, local)
    if write and serving(after):
        complete &= {m.target for m in after if m.state in (SERVING, SYNCING)}
        complete |= serving(after)
    return after, complete


def problems(before: World, after: World, local: dict[TargetId, Local]) -> list[str]:
    return [*shape_problems(before[0], after[0]), *data_problems(before, after, local)]


def shape_problems(old: Chain, members: Chain) -> list[str]:
    now = {member.target: member for member in members}
    if now.keys() != {member.target for member in old}:
        return ["a replica appeared or disappeared"]
    found = []
    if sum(m.state is SYNCING for m in members) > 1:
        found.append("C1: two replicas synchronise")
    if members != ordered([now[member.target] for member in old]):
        found.append("C4: wrong order")
    return found


def data_problems(before: World, after: World, local: dict[TargetId, Local]) -> list[str]:
    was = {m.target: m.state for m in before[0]}
    synced = {target for target, state in was.items() if state is SYNCING and local[target] is UPTODATE}
    members, complete = after
    now_serving = serving(members)
    able = {m.target for m in members if m.state in (SERVING, LASTSRV)}
    found = [
        f"C2: {was[target].name} became SERVING"
        for target in now_serving
        if was[target] not in (SERVING, LASTSRV) and target not in synced
    ]
    if not now_serving <= before[1] | synced:
        found.append("data loss: a replica that serves has not all that was acknowledged")
    if not able:
        found.append("data loss: no replica may ever serve again")
    if not able <= complete:
        found.append("data loss: a replica that may serve has not all that was acknowledged")
    if any(local[target] is DOWN for target in now_serving):
        found.append("a replica that is down serves")
    return found


def explore(length: int, table: Advance) -> tuple[set[World], list[str]]:
    start: World = (chain(*[SERVING] * length), frozenset(TargetId(n + 1) for n in range(length)))
    seen, todo = {start}, [start]
    while todo:
        world = todo.pop()
        targets = [member.target for member in world[0]]
        for choice, write in product(product(Local, repeat=length), (False, True)):
            local = dict(zip(targets, choice, strict=True))
            after = step(world, local, write=write, table=table)
            wrong = problems(world, after, local)
            if wrong:
                return seen, [f"{world} with {local}: {text}" for text in wrong]
            if after not in seen:
                seen.add(after)
                todo.append(after)
    return seen, []


@pytest.mark.parametrize(("length", "least"), [(1, 2), (2, 20), (3, 200)])
def test_no_sequence_of_local_states_breaks_an_invariant(length, least):
    seen, wrong = explore(length, advance)
    assert wrong == []
    assert len(seen) >= least, "the search has not reached what it should"


def cooperate(members: Chain) -> dict[TargetId, Local]:
    """What healthy nodes say: SYNCING replicas are done in the next round."""
    return {m.target: UPTODATE if m.state in (SERVING, SYNCING) else ONLINE for m in members}


@pytest.mark.parametrize("length", [1, 2, 3])
def test_every_chain_recovers_when_its_nodes_are_healthy(length):
    seen, _ = explore(length, advance)
    for members, _ in seen:
        now = members
        for _ in range(2 * length + 2):
            now = advance(now, cooperate(now))
        assert serving(now) == {m.target for m in members}, f"from {members}"
        assert advance(now, cooperate(now)) == now


def waiting_may_serve_alone(members, local):
    after = advance(members, local)
    if serving(after):
        return after
    return ordered([Member(m.target, m.node, SERVING) if m.state is WAITING else m for m in after])


def synced_without_being_told(members, local):
    syncing = {m.target for m in members if m.state is SYNCING}
    return advance(
        members, {t: UPTODATE if t in syncing and said is ONLINE else said for t, said in local.items()}
    )


def last_is_forgotten(members, local):
    return ordered(
        [Member(m.target, m.node, OFFLINE) if m.state is LASTSRV else m for m in advance(members, local)]
    )


def last_stays_beside_serving(members, local):
    after = advance(members, local)
    fell = {m.target for m in members if m.state is SERVING and local[m.target] is DOWN}
    return ordered([Member(m.target, m.node, LASTSRV) if m.target in fell else m for m in after])


def two_may_sync(members, local):
    after = advance(members, local)
    if not serving(after):
        return after
    return ordered([Member(m.target, m.node, SYNCING) if m.state is WAITING else m for m in after])


@pytest.mark.parametrize(
    "bug",
    [
        waiting_may_serve_alone,
        synced_without_being_told,
        last_is_forgotten,
        last_stays_beside_serving,
        two_may_sync,
    ],
)
def test_search_finds_planted_bugs(bug):
    _, wrong = explore(3, bug)
    assert wrong


@pytest.mark.parametrize(
    ("before", "local", "after"),
    [
        # A tail, a head, everybody fails.
        ([SERVING, SERVING], [UPTODATE, DOWN], [(1, SERVING), (2, OFFLINE)]),
        ([SERVING, SERVING], [DOWN, UPTODATE], [(2, SERVING), (1, OFFLINE)]),
        ([SERVING], [DOWN], [(1, LASTSRV)]),
        ([SERVING, SERVING, SERVING], [DOWN, DOWN, DOWN], [(1, LASTSRV), (2, LASTSRV), (3, LASTSRV)]),
        # The first that returns serves; the others are compared with it.
        ([LASTSRV, LASTSRV], [DOWN, ONLINE], [(2, SERVING), (1, OFFLINE)]),
        ([LASTSRV, LASTSRV], [ONLINE, ONLINE], [(1, SERVING), (2, OFFLINE)]),
        ([LASTSRV, LASTSRV], [DOWN, DOWN], [(1, LASTSRV), (2, LASTSRV)]),
        ([LASTSRV, OFFLINE], [DOWN, ONLINE], [(1, LASTSRV), (2, WAITING)]),
        # Coming back, one at a time.
        ([SERVING, OFFLINE], [UPTODATE, ONLINE], [(1, SERVING), (2, SYNCING)]),
        ([SERVING, OFFLINE, OFFLINE], [UPTODATE, ONLINE, ONLINE], [(1, SERVING), (2, SYNCING), (3, WAITING)]),
        ([SERVING, SYNCING, WAITING], [UPTODATE, ONLINE, ONLINE], [(1, SERVING), (2, SYNCING), (3, WAITING)]),
        (
            [SERVING, SYNCING, WAITING],
            [UPTODATE, UPTODATE, ONLINE],
            [(1, SERVING), (2, SERVING), (3, SYNCING)],
        ),
        ([SERVING, OFFLINE], [UPTODATE, UPTODATE], [(1, SERVING), (2, WAITING)]),
        # The source of a synchronisation fails.
        ([SERVING, SYNCING], [DOWN, ONLINE], [(1, LASTSRV), (2, WAITING)]),
        ([SERVING, SYNCING], [DOWN, UPTODATE], [(2, SERVING), (1, OFFLINE)]),
        ([SERVING, SYNCING], [UPTODATE, DOWN], [(1, SERVING), (2, OFFLINE)]),
    ],
)
def test_transition(before, local, after):
    members = chain(*before)
    said = {member.target: state for member, state in zip(members, local, strict=True)}
    assert states(advance(members, said)) == after
