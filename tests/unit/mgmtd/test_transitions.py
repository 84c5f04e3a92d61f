"""The table of chain states, explored completely for chains of one to three replicas.

Ghosts say which replicas hold everything that was acknowledged: a write is acknowledged by all that serve and
synchronise, and synced there; a replica that synchronises holds everything once it says UPTODATE. Replicas that
served last may lose power (what was synced is there), or their disk, while they are away. The search takes every
combination of local states at every step, with and without a write in between, until nothing new is reached. So it
covers sequences of every length.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import pytest

from luciola.ids import TargetId
from luciola.mgmtd.transitions import Held, Member, advance, ordered
from luciola.states import Data, Local, Public

Chain = tuple[Member, ...]
Damage = frozenset[tuple[TargetId, Data]]
Advance = Callable[[Sequence[Member], dict[TargetId, Local], dict[TargetId, Held]], Chain]
# And the replicas that hold all that was synced, and what those that served last lack.
World = tuple[Chain, frozenset[TargetId], Damage]

SERVING, LASTSRV, SYNCING, WAITING, OFFLINE = Public
UPTODATE, ONLINE, DOWN = Local


def chain(*states: Public) -> Chain:
    return tuple(Member(TargetId(index + 1), index + 1, state) for index, state in enumerate(states))


def states(members: Chain) -> list[tuple[int, Public]]:
    return [(member.target, member.state) for member in members]


def serving(members: Chain) -> set[TargetId]:
    return {member.target for member in members if member.state is SERVING}


def step(world: World, local: dict[TargetId, Local], *, write: bool, table: Advance) -> World:
    members, complete, damage = world
    complete |= {m.target for m in members if m.state is SYNCING and local[m.target] is UPTODATE}
    complete -= {target for target, data in damage if data is Data.LOST}
    after = table(members, local, {target: Held(data, updates=target) for target, data in damage})
    if write and serving(after):
        complete &= {m.target for m in after if m.state in (SERVING, SYNCING)}
        complete |= serving(after)
    last = {m.target for m in after if m.state is LASTSRV}
    return after, complete, frozenset(item for item in damage if item[0] in last)


def choices(world: World) -> Iterator[tuple[World, dict[TargetId, Local]]]:
    """Every combination of local states, and of what those that served last and are away lose meanwhile."""
    members, complete, damage = world
    known = dict(damage)
    for states in product(Local, repeat=len(members)):
        local = dict(zip([member.target for member in members], states, strict=True))
        away = [m.target for m in members if m.state is LASTSRV and local[m.target] is DOWN]
        if any(data is Data.LOST and target not in away for target, data in damage):
            continue  # a node says OFFLINE of those
        for lost in product(Data, repeat=len(away)):
            now = known | {
                target: max(data, known.get(target, Data.COMPLETE))
                for target, data in zip(away, lost, strict=True)
            }
            held = frozenset((target, data) for target, data in now.items() if data is not Data.COMPLETE)
            yield (members, complete, held), local


def problems(before: World, after: World, local: dict[TargetId, Local]) -> list[str]:
    return [
        *shape_problems(before[0], after[0]),
        *data_problems(before, after, local),
        *resume_problems(before, after, local),
    ]


def resume_problems(before: World, after: World, local: dict[TargetId, Local]) -> list[str]:
    """C5, of a chain that no replica serves."""
    last = [m.target for m in before[0] if m.state is LASTSRV]
    if not last:
        return []
    damage = dict(before[2])
    whole = [target for target in last if target not in damage]
    kept = [target for target in last if damage.get(target) is not Data.LOST]
    now = serving(after[0])
    if any(local[target] is not DOWN for target in whole) and not now:
        return ["C5: a chain waits although a complete replica is there"]
    if kept and all(local[target] is not DOWN for target in kept) and not now:
        return ["C5: a chain waits although every replica that can come is there"]
    if now & set(damage) and whole:
        return ["C5: a replica that lost power serves, and another has all that was acknowledged"]
    if now & set(damage) and any(local[target] is DOWN for target in kept):
        return ["C5: a replica that lost power serves before all others are there"]
    return []


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
    members, complete, damage = after
    now_serving = serving(members)
    gone = {target for target, data in damage if data is Data.LOST}
    able = {m.target for m in members if m.state in (SERVING, LASTSRV)} - gone
    found = [
        f"C2: {was[target].name} became SERVING"
        for target in now_serving
        if was[target] not in (SERVING, LASTSRV) and target not in synced
    ]
    if not now_serving <= before[1] | synced:
        found.append("data loss: a replica that serves has not all that was acknowledged")
    if not able and not gone:
        found.append("data loss: no replica may ever serve again")
    if not able <= complete:
        found.append("data loss: a replica that may serve has not all that was acknowledged")
    if any(local[target] is DOWN for target in now_serving):
        found.append("a replica that is down serves")
    return found


def explore(length: int, table: Advance) -> tuple[set[World], list[str]]:
    members = chain(*[SERVING] * length)
    start: World = (members, frozenset(member.target for member in members), frozenset())
    seen, todo = {start}, [start]
    while todo:
        reached = todo.pop()
        for world, local in choices(reached):
            for write in (False, True):
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
    for members, _, _ in seen:
        now = members
        for _ in range(2 * length + 2):
            now = advance(now, cooperate(now))
        assert serving(now) == {m.target for m in members}, f"from {members}"
        assert advance(now, cooperate(now)) == now


def waiting_may_serve_alone(members, local, held):
    after = advance(members, local, held)
    if serving(after):
        return after
    return ordered([Member(m.target, m.node, SERVING) if m.state is WAITING else m for m in after])


def synced_without_a_report(members, local, held):
    syncing = {m.target for m in members if m.state is SYNCING}
    said = {t: UPTODATE if t in syncing and state is ONLINE else state for t, state in local.items()}
    return advance(members, said, held)


def last_is_forgotten(members, local, held):
    return ordered(
        [
            Member(m.target, m.node, OFFLINE) if m.state is LASTSRV else m
            for m in advance(members, local, held)
        ]
    )


def last_stays_beside_serving(members, local, held):
    after = advance(members, local, held)
    fell = {m.target for m in members if m.state is SERVING and local[m.target] is DOWN}
    return ordered([Member(m.target, m.node, LASTSRV) if m.target in fell else m for m in after])


def two_may_sync(members, local, held):
    after = advance(members, local, held)
    if not serving(after):
        return after
    return ordered([Member(m.target, m.node, SYNCING) if m.state is WAITING else m for m in after])


def first_that_returns_serves(members, local, held):
    return advance(members, local)


def only_present_ones_are_asked(members, local, held):
    there = [m for m in members if m.state is not LASTSRV or local[m.target] is not DOWN]
    resumed = serving(advance(there, local, held)) if there else set()
    return advance(
        members, local, {t: Held() for t in resumed} | {t: h for t, h in held.items() if t not in resumed}
    )


@pytest.mark.parametrize(
    "bug",
    [
        waiting_may_serve_alone,
        synced_without_a_report,
        last_is_forgotten,
        last_stays_beside_serving,
        two_may_sync,
        first_that_returns_serves,
        only_present_ones_are_asked,
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
        # The first that returns with everything serves; the others are compared with it.
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


PARTIAL, LOST = Held(Data.PARTIAL, updates=5), Held(Data.LOST)


@pytest.mark.parametrize(
    ("local", "held", "after"),
    [
        # A complete one is enough, wherever it stands.
        ([ONLINE, ONLINE], [PARTIAL, None], [(2, SERVING), (1, OFFLINE)]),
        ([DOWN, ONLINE], [None, None], [(2, SERVING), (1, OFFLINE)]),
        # The power was lost: all must be there, and the one that saw the most updates serves.
        ([ONLINE, DOWN], [PARTIAL, None], [(1, LASTSRV), (2, LASTSRV)]),
        ([ONLINE, DOWN], [PARTIAL, PARTIAL], [(1, LASTSRV), (2, LASTSRV)]),
        ([ONLINE, ONLINE], [PARTIAL, PARTIAL], [(1, SERVING), (2, OFFLINE)]),
        ([ONLINE, ONLINE], [PARTIAL, Held(Data.PARTIAL, updates=6)], [(2, SERVING), (1, OFFLINE)]),
        # A disk that was replaced has nothing to wait for.
        ([ONLINE, DOWN], [PARTIAL, LOST], [(1, SERVING), (2, OFFLINE)]),
        ([DOWN, DOWN], [LOST, LOST], [(1, LASTSRV), (2, LASTSRV)]),
    ],
)
def test_chain_resumes_with_the_newest_state_that_is_known(local, held, after):
    members = chain(LASTSRV, LASTSRV)
    said = {member.target: state for member, state in zip(members, local, strict=True)}
    known = {member.target: what for member, what in zip(members, held, strict=True) if what}
    assert states(advance(members, said, known)) == after


def test_only_replica_serves_at_once_also_after_a_loss_of_power():
    assert states(advance(chain(LASTSRV), {TargetId(1): ONLINE}, {TargetId(1): PARTIAL})) == [(1, SERVING)]
