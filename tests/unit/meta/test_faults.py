"""Commits that fail, and fail to say whether they did: every operation has its effect once, and gives its answer."""

import pytest

from luciola.errors import Busy, Conflict, Error, InvalidArgument, MaybeCommitted
from luciola.kv import MemoryEngine
from luciola.kv.faulty import Fault, FaultyEngine, at, every

from .scenarios import CLEANING, SCENARIOS, SEQUENCE, Scenario
from .world import World, check_store, dump, refused

FAULTS = (Fault.CONFLICT, Fault.MAYBE_DONE, Fault.MAYBE_LOST)


def plain(reply):
    """A reply without what differs from run to run: ids, times, change numbers."""
    return None if reply is None else type(reply).__name__


def outcome(scenario: Scenario, plan=None):
    """(number of commits of the act, its reply's kind, what can be seen then, and after collecting)."""
    engine = FaultyEngine(MemoryEngine(), lambda _: Fault.NONE)
    world = World(engine)
    scenario.prepare(world)
    if plan is not None:
        engine.plan = plan(engine.commits)
    before = engine.commits
    try:
        reply = scenario.act(world)
    except Error as error:
        reply = error
    commits = engine.commits - before
    engine.plan = lambda _: Fault.NONE
    check_store(world)
    seen = dump(world)
    queues = tuple(len(world.keys(kind)) for kind in (b"S", b"O", b"G", b"P", b"R"))
    holds = world.dependencies.holds.count
    world.clock.advance(5)
    world.collect()
    check_store(world)
    result = (plain(reply), seen, queues, holds, dump(world))
    world.close()
    return commits, result


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.value)
@pytest.mark.parametrize("scenario", SCENARIOS + CLEANING, ids=lambda scenario: scenario.name)
def test_one_fault_at_any_commit_changes_nothing(scenario, fault):
    commits, expected = outcome(scenario)
    assert commits, "a scenario changes something"
    for number in range(commits):
        _, result = outcome(scenario, lambda first, n=number: at(first + n, fault))
        assert result == expected, f"{fault} at commit {number} of {commits}"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.value)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_second_commit_fails(scenario, fault):
    _, expected = outcome(scenario)
    for first in range(2):
        _, result = outcome(scenario, lambda start, f=first: every(fault, first=start + f))
        assert result == expected


@pytest.mark.parametrize("restart", [False, True], ids=["same process", "after a restart"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_request_sent_twice_is_carried_out_once(scenario, restart):
    world = World()
    scenario.prepare(world)
    first = scenario.act(world)
    seen = dump(world)
    queues = [len(world.keys(kind)) for kind in (b"I", b"D", b"C", b"S", b"O", b"G", b"P", b"R")]
    if restart:
        world.crash()
    second = scenario.act(world)
    assert type(second) is type(first)
    if hasattr(first, "session"):
        assert (second.session, second.created) == (first.session, first.created)
        assert second.inode.id == first.inode.id
    if hasattr(first, "moved"):
        assert (second.moved, second.replaced) == (first.moved, first.replaced)
    assert dump(world) == seen
    assert [len(world.keys(kind)) for kind in (b"I", b"D", b"C", b"S", b"O", b"G", b"P", b"R")] == queues
    check_store(world)
    world.close()


def test_requests_without_a_sequence_leave_no_record(world):
    world.mkdir(b"d", sequence=0)
    assert world.keys(b"R") == []


def test_sequences_are_each_clients_own(world):
    world.mkdir(b"a", client=1, sequence=5)
    world.mkdir(b"b", client=2, sequence=5)
    assert world.names() == [b"a", b"b"]


def test_one_sequence_for_two_requests_is_refused(world):
    world.mkdir(b"a", sequence=5)
    with refused(InvalidArgument):
        world.create(b"f", sequence=5)


def test_failed_requests_may_be_sent_again(world):
    with refused(Error, 2):
        world.create(b"d/f", sequence=5)
    world.mkdir(b"d")
    assert world.create(b"d/f", sequence=5).created


def test_repeated_answer_shows_the_inode_as_it_is_now(world):
    reply = world.create(b"f", sequence=5)
    world.sync(reply.inode.id, reply.session, has_inline=True, inline_data=b"abc", inline_base=1)
    again = world.create(b"f", sequence=5)
    assert again.created
    assert again.session == reply.session
    assert again.inode.inline_data == b"abc"


@pytest.mark.parametrize(
    ("fault", "error"), [(Fault.CONFLICT, Conflict), (Fault.MAYBE_LOST, MaybeCommitted)], ids=str
)
def test_endless_faults_reach_the_caller(fault, error):
    engine = FaultyEngine(MemoryEngine(), lambda _: Fault.NONE)
    world = World(engine)
    engine.plan = lambda _: fault
    with refused(error):
        world.create(b"f", sequence=SEQUENCE)
    engine.plan = lambda _: Fault.NONE
    check_store(world)
    assert world.create(b"f", sequence=SEQUENCE).created
    check_store(world)
    world.close()
    assert error.retryable
    assert Busy.retryable
