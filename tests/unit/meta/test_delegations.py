"""Delegations and read holds as the service's clients see them. Time stands still unless a test turns the clock."""

import asyncio
from dataclasses import replace

import pytest

from luciola.clock import ManualClock
from luciola.config import MetaConfig
from luciola.errors import NotFound, Unavailable
from luciola.kv.memory import MemoryEngine
from luciola.meta.delegations import DRIFT
from luciola.wire.pb import meta_pb2 as pb
from luciola.wire.preserialized import Preserialized

from .world import ALICE, PatientClock, World

LEASE_S = 5.0
LONGEST_S = LEASE_S / (1 - DRIFT)
READER, OTHER = 7, 8


class StillClock(PatientClock):
    """A sleep on it ends when the test turns it."""

    async def sleep(self, duration_s: float) -> None:
        await ManualClock.sleep(self, duration_s)


class StillWorld(World):
    clock_class = StillClock

    def __init__(self, engine=None, **config):
        super().__init__(engine, **{"delegation_lease_ms": int(LEASE_S * 1000)} | config)

    def poll(self, client=READER, *returned, incarnation=None, leaving=False):
        """What a client's poll is answered with; it must not wait."""
        known = self.dependencies.incarnation if incarnation is None else incarnation
        request = pb.AwaitRecallsRequest(
            incarnation=known,
            leaving=leaving,
            returned=[pb.Delegation(inode=inode, grant=grant) for inode, grant in returned],
        )
        return self.call("await_recalls", request, client=client, sequence=0)

    def lease(self, client=READER):
        assert not self.poll(client).recalled

    def delegate(self, inode, *, client=READER, **who):
        """The number of the grant, or 0."""
        self.sequence += 1
        number = self.sequence
        request = pb.OpenRequest(path=pb.Path(at=inode), read=True, delegate=True)
        reply = self.call("open", request, client=client, sequence=number, **who)
        return number if reply.delegated else 0

    def start_call(self, name, request, *, client=OTHER):
        """A request that may have to wait."""
        request.caller.CopyFrom(self.caller(client=client))
        task = self.loop.create_task(self._answer(name, request))
        self.turn()
        return task

    async def _answer(self, name, request):
        reply = getattr(self.service, name)(request, self.identity)
        reply = reply if isinstance(reply, Preserialized) or not hasattr(reply, "__await__") else await reply
        return reply.message() if isinstance(reply, Preserialized) else reply

    def turn(self, seconds=0.0):
        """Let time pass, and all tasks run that can."""
        self.clock.advance(seconds)
        for _ in range(50):
            self.loop.run_until_complete(asyncio.sleep(0))

    def collect_once(self):
        """A round of the collector, which rests now and then; how much it has done."""
        task = self.loop.create_task(self.collector.round())
        for _ in range(1000):
            if task.done():
                break
            self.turn(0.002)
        return task.result()

    def file(self, name=b"f", *, data=b"", client=OTHER):
        """Make a file that is open nowhere."""
        reply = self.create(name, client=client)
        self.close_one(
            reply.inode.id,
            reply.session,
            length=len(data),
            has_inline=True,
            inline_data=data,
            inline_base=reply.inode.change,
            client=client,
        )
        return reply.inode.id


@pytest.fixture
def world():
    return StillWorld()


def path(name=b"", at=1):
    return pb.Path(at=at, path=name)


CHANGES = {
    "chmod": lambda inode: ("set_attr", pb.SetAttrRequest(path=path(at=inode), permissions=0o600)),
    "chown": lambda inode: ("set_attr", pb.SetAttrRequest(path=path(at=inode), uid=5)),
    "times": lambda inode: ("set_attr", pb.SetAttrRequest(path=path(at=inode), mtime_ns=5)),
    "truncate": lambda inode: ("set_attr", pb.SetAttrRequest(path=path(at=inode), length=1)),
    "open to write": lambda inode: ("open", pb.OpenRequest(path=path(at=inode), write=True)),
    "open to empty": lambda inode: ("open", pb.OpenRequest(path=path(at=inode), write=True, truncate=True)),
    "create over it": lambda _: ("create", pb.CreateRequest(path=path(b"f"), write=True)),
    "sync": lambda inode: ("sync", pb.SyncRequest(inode=inode, mtime_ns=9)),
    "unlink": lambda _: ("unlink", pb.UnlinkRequest(path=path(b"f"))),
    "rename": lambda _: ("rename", pb.RenameRequest(source=path(b"f"), target=path(b"g"))),
    "rename over it": lambda _: ("rename", pb.RenameRequest(source=path(b"other"), target=path(b"f"))),
    "link": lambda inode: ("link", pb.LinkRequest(source=path(at=inode), target=path(b"g"))),
    "attribute": lambda inode: ("set_xattr", pb.XattrRequest(inode=inode, name=b"user.a", value=b"b")),
}


@pytest.mark.parametrize("client", [READER, OTHER])
@pytest.mark.parametrize("change", CHANGES)
def test_change_waits_until_its_reader_has_returned_the_delegation(world, change, client):
    inode = world.file(data=b"bytes")
    world.file(b"other")
    world.lease()
    grant = world.delegate(inode)
    assert grant
    task = world.start_call(*CHANGES[change](inode), client=client)
    assert not task.done()
    assert not world.delegate(inode, client=READER), "while something waits nothing is delegated"
    (recalled,) = world.poll().recalled
    assert (recalled.inode, recalled.grant) == (inode, grant)
    assert world.poll().recalled, "it is named again until it is returned"
    assert not task.done()
    world.start_call("await_recalls", polling(world, (inode, grant)), client=READER)
    assert task.done()
    task.result()
    assert world.dependencies.delegations.recalls == 1


def polling(world, *returned):
    request = pb.AwaitRecallsRequest(incarnation=world.dependencies.incarnation)
    for inode, grant in returned:
        request.returned.add(inode=inode, grant=grant)
    return request


def test_poll_that_waits_is_answered_by_a_recall(world):
    inode = world.file()
    world.lease()
    grant = world.delegate(inode)
    poll = world.start_call("await_recalls", polling(world), client=READER)
    assert not poll.done()
    task = world.start_call(*CHANGES["chmod"](inode))
    world.turn()
    assert [(one.inode, one.grant) for one in poll.result().recalled] == [(inode, grant)]
    assert not task.done()


def test_poll_that_returns_something_is_answered_at_once_and_extends_the_lease(world):
    inode = world.file()
    world.lease()
    grant = world.delegate(inode)
    task = world.start_call(*CHANGES["chmod"](inode))
    world.turn(LEASE_S / 2)
    assert not world.poll(READER, (inode, grant)).recalled
    world.turn()
    task.result()
    world.turn(LEASE_S * 0.9)
    assert world.delegate(inode), "its lease is counted from that poll"


def test_polls_are_answered_when_the_service_stops(world):
    world.lease()
    poll = world.start_call("await_recalls", polling(world), client=READER)
    world.dependencies.recalls.close()
    world.turn()
    assert poll.done()
    assert not world.poll().recalled, "and wait no more"


def test_change_waits_for_the_lease_of_a_silent_reader_and_no_longer(world):
    inode = world.file()
    world.lease()
    assert world.delegate(inode)
    task = world.start_call(*CHANGES["chmod"](inode))
    world.turn(LONGEST_S - 0.01)
    assert not task.done()
    world.turn(0.02)
    task.result()
    assert world.dependencies.delegations.expired == 1
    assert not world.delegate(inode), "its lease has ended"


def test_reader_that_leaves_is_not_waited_for(world):
    inode = world.file()
    world.lease()
    assert world.delegate(inode)
    poll = world.start_call("await_recalls", polling(world), client=READER)
    task = world.start_call(*CHANGES["chmod"](inode))
    world.poll(leaving=True)
    world.turn()
    task.result()
    poll.result()


def test_poll_of_a_reader_that_leaves_ends(world):
    world.lease()
    poll = world.start_call("await_recalls", polling(world), client=READER)
    assert not poll.done()
    world.poll(leaving=True)
    world.turn()
    assert poll.done(), "the client waits for it before it ends"


def test_after_a_restart_changes_wait_for_readers_that_had_a_lease(world):
    inode = world.file()
    world.lease()
    world.lease(OTHER)
    world.poll(OTHER, leaving=True)
    assert world.delegate(inode)
    before = world.dependencies.incarnation
    world.crash()
    task = world.start_call(*CHANGES["chmod"](inode))
    made = world.start_call("create", pb.CreateRequest(path=path(b"new"), write=True))
    assert made.done(), "nothing was delegated of what was made since"
    assert world.poll(incarnation=before).incarnation != before
    world.turn()
    assert not task.done(), "it may not have known that it has lost everything"
    world.lease()
    world.turn()
    task.result()


def test_after_a_restart_changes_wait_no_longer_than_a_lease(world):
    inode = world.file()
    world.lease()
    world.crash()
    task = world.start_call(*CHANGES["chmod"](inode))
    world.turn(LONGEST_S - 0.01)
    assert not task.done()
    world.turn(0.02)
    task.result()
    world.run(world.dependencies.recalls.expire())
    world.crash()
    world.start_call("unlink", pb.UnlinkRequest(path=path(b"f"))).result()


def test_a_lease_that_has_ended_is_forgotten_on_disk(world):
    inode = world.file()
    world.lease()
    world.turn(LONGEST_S + 0.01)
    world.run(world.dependencies.recalls.expire())
    world.crash()
    world.start_call(*CHANGES["chmod"](inode)).result()


def test_a_lease_that_a_change_has_waited_for_is_forgotten_on_disk(world):
    inode = world.file()
    world.lease()
    assert world.delegate(inode)
    task = world.start_call(*CHANGES["chmod"](inode))
    world.turn(LONGEST_S + 0.01)
    task.result()
    world.run(world.dependencies.recalls.expire())
    world.crash()
    world.start_call(*CHANGES["times"](inode)).result()


def test_after_leases_became_longer_a_restart_waits_for_the_longer_one(world):
    inode = world.file()
    world.lease()
    world.config = replace(world.config, delegation_lease_ms=int(3 * LEASE_S * 1000))
    world.crash()
    world.lease()
    world.crash()
    task = world.start_call(*CHANGES["chmod"](inode))
    world.turn(3 * LONGEST_S - 0.01)
    assert not task.done()
    world.turn(0.02)
    task.result()


class LostEngine(MemoryEngine):
    """Another process may have continued it once `is_lost`: as the engine of a term that has ended."""

    is_lost = False

    def begin(self):
        if self.is_lost:
            raise Unavailable("this process does not lead any more")
        return super().begin()


@pytest.mark.parametrize("is_waiting", [False, True])
def test_poll_is_not_answered_when_another_process_may_have_the_store(is_waiting):
    world = StillWorld(LostEngine())
    world.lease()
    if is_waiting:
        poll = world.start_call("await_recalls", polling(world), client=READER)
    world.turn(1.0)
    world.engine.is_lost = True
    if not is_waiting:
        poll = world.start_call("await_recalls", polling(world), client=READER)
    world.dependencies.recalls.close()
    world.turn()
    assert isinstance(poll.exception(), Unavailable)


def test_what_is_not_delegated(world):
    inode = world.file(data=b"bytes")
    assert not world.delegate(inode), "without a lease"
    world.lease()
    world.mkdir(b"d")
    assert not world.delegate(world.lookup(b"d").id), "a directory"
    assert not world.delegate(inode, user=ALICE), "bytes that are checked for each reply"
    session = world.open(at=inode, write=True, client=OTHER).session
    assert not world.delegate(inode), "what another client writes"
    world.close_one(inode, session, client=OTHER)
    assert world.delegate(inode)
    assert not world.delegate(inode), "it has it already"


def test_by_default_nothing_is_delegated_and_no_reply_says_to_ask():
    world = StillWorld(delegation_lease_ms=MetaConfig().delegation_lease_ms)
    inode = world.file()
    reply = world.open(at=inode, client=READER)
    assert not reply.delegates
    assert not world.poll().lease_ms
    assert not world.delegate(inode)
    assert not world.dependencies.delegations.is_possible
    assert not world.dependencies.shared.notes_changes


def test_reply_to_an_open_for_reading_says_that_clients_may_ask(world):
    inode = world.file()
    assert world.open(at=inode, client=READER).delegates
    assert not world.open(at=inode, client=READER, write=True).delegates


def test_after_delegations_were_switched_off_changes_wait_for_those_of_the_process_before(world):
    inode = world.file()
    world.lease()
    assert world.delegate(inode)
    world.config = replace(world.config, delegation_lease_ms=0)
    world.crash()
    task = world.start_call(*CHANGES["chmod"](inode))
    world.turn(LONGEST_S - 0.01)
    assert not task.done()
    world.turn(0.02)
    task.result()


def test_files_of_a_removed_tree_go_when_their_reader_has_returned_them(world):
    world.mkdir(b"d")
    inode = world.file(b"d/f")
    world.lease()
    grant = world.delegate(inode)
    world.start_call("remove_tree", pb.RemoveTreeRequest(path=path(b"d"))).result()
    world.turn(2.0)
    world.collect_once()
    assert world.stat(at=inode).link_count == 1, "its reader may show this"
    assert [one.grant for one in world.poll().recalled] == [grant]
    world.start_call("await_recalls", polling(world, (inode, grant)), client=READER)
    world.collect_once()
    assert world.stat(at=inode).link_count == 0, "it is held"
    world.close_one(inode, read_hold=True, hold=grant, client=READER)
    world.turn(2.0)
    world.collect_once()
    world.turn(2.0)
    world.collect_once()
    with pytest.raises(NotFound):
        world.stat(at=inode)


def test_removed_tree_waits_for_its_readers_at_rest_and_recalls_all_its_files_at_once(world):
    world.mkdir(b"d")
    files = [world.file(b"d/f%d" % number) for number in range(3)]
    world.lease()
    grants = [world.delegate(inode) for inode in files]
    world.start_call("remove_tree", pb.RemoveTreeRequest(path=path(b"d"))).result()
    world.turn(2.0)
    assert not world.collect_once()
    assert sorted(one.grant for one in world.poll().recalled) == grants
    assert not world.collect_once()
    world.start_call("await_recalls", polling(world, *zip(files, grants, strict=True)), client=READER)
    assert world.collect_once()
    assert [world.stat(at=inode).link_count for inode in files] == [0, 0, 0]


# Read holds.


def hold(world, *holds, below):
    request = pb.HoldRequest(
        inodes=[inode for inode, _ in holds], holds=[number for _, number in holds], has_numbers=True
    )
    request.caller.CopyFrom(world.caller(client=READER))
    request.caller.settled_below = below
    world.run(world.service.hold(request, world.identity))


def open_as(world, number, inode):
    world.open(at=inode, client=READER, sequence=number)


def is_held(world, inode):
    return world.dependencies.holds.has(inode, READER)


def test_report_does_not_end_the_hold_of_an_open_whose_reply_is_on_its_way(world):
    inode, other = world.file(), world.file(b"other")
    world.sequence = 200
    open_as(world, 100, inode)
    open_as(world, 101, other)
    hold(world, below=101)
    assert not is_held(world, inode), "its client has settled that, and does not have it open"
    assert is_held(world, other)


def test_close_that_waited_during_a_report_ends_no_other_hold(world):
    inode = world.file()
    world.sequence = 200
    open_as(world, 100, inode)
    open_as(world, 101, inode)
    hold(world, (inode, 101), below=102)
    world.close_one(inode, read_hold=True, hold=100, client=READER)
    assert is_held(world, inode)
    world.close_one(inode, read_hold=True, hold=101, client=READER)
    assert not is_held(world, inode)


def test_report_that_arrives_after_a_close_does_not_bring_its_hold_back(world):
    inode = world.file()
    world.sequence = 200
    open_as(world, 100, inode)
    world.close_one(inode, read_hold=True, hold=100, client=READER)
    hold(world, (inode, 100), below=90)
    assert not is_held(world, inode)


def test_open_that_is_carried_out_again_after_its_close_holds_nothing(world):
    inode = world.file()
    world.sequence = 200
    open_as(world, 100, inode)
    open_as(world, 100, inode)
    world.close_one(inode, read_hold=True, hold=100, client=READER)
    assert not is_held(world, inode)
    open_as(world, 100, inode)
    assert not is_held(world, inode)
