"""Heartbeats, leases and routing against a manager that answers what the test says; the engine is in memory."""

import asyncio
import json
import shutil
import threading

import pytest

from luciola.clock import boot_s
from luciola.errors import ConfigError, InvalidArgument, Unavailable
from luciola.states import Local
from luciola.storage.directory import Directory
from luciola.storage.engine import Engine
from luciola.storage.marks import MarkFile, load
from luciola.storage.membership import Membership, Options
from luciola.wire import SERVICE, RpcClients, RpcServer, methods, mint
from luciola.wire.pb.mgmtd_pb2 import (
    OFFLINE,
    SERVING,
    Chain,
    HeartbeatReply,
    HeartbeatRequest,
    Node,
    Routing,
    StoreMark,
    Target,
)

from .fake_node import FakeNode

SECRET = bytes(range(32))
LEASE_MS = 60_000
OURS = Target(id=101, node=1, state=SERVING)


class Manager:
    """mgmtd as a script: `answer(request)` is what the next heartbeats get."""

    def __init__(self):
        self.heard: list[HeartbeatRequest] = []
        self.answer = lambda _: HeartbeatReply(lease_ms=LEASE_MS, interval_ms=20, routing_version=1)
        self.delay_s = 0.0

    async def heartbeat(self, request, _):
        self.heard.append(request)
        await asyncio.sleep(self.delay_s)
        return self.answer(request)

    def __getattr__(self, name):
        if name not in vars(methods.Mgmtd):
            raise AttributeError(name)
        return lambda request, identity: Routing()


class World:
    def __init__(self, manager, membership, fake, directory):
        self.manager, self.membership, self.fake, self.directory = manager, membership, fake, directory
        self.version = 0

    def routing(self, *states):
        """Routing in which chain n of this node is in the n-th state."""
        self.version += 1
        chains = [
            Chain(id=n, version=self.version, targets=[Target(id=100 + n, node=1, state=state)])
            for n, state in enumerate(states, 1)
        ]
        routing = Routing(version=self.version, chains=chains)
        assert self.membership.table.apply(routing)
        self.membership.routing_changed(routing)

    async def beats(self, count=2):
        """Returns after that many more heartbeats."""
        wanted = len(self.manager.heard) + count
        async with asyncio.timeout(60):
            while len(self.manager.heard) < wanted:  # noqa: ASYNC110 (the manager's task counts)
                await asyncio.sleep(0.005)


def run(tmp_path, test):
    async def main():
        manager = Manager()
        server = RpcServer(methods.bind(methods.Mgmtd, manager), secret=SECRET)
        address = await server.start()
        fake = FakeNode(1, {})
        directory = Directory(tmp_path, node=1, cluster_id="test")
        clients = RpcClients(mint(SECRET, role=SERVICE))
        about = Node(id=1, incarnation=5)
        membership = Membership(Engine(fake), directory, clients, about, Options(address, 5))
        task = asyncio.create_task(membership.run())
        try:
            await test(World(manager, membership, fake, directory), task)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await clients.close()
            await server.stop(grace_s=0.5)
            directory.close()

    asyncio.run(main())


def states(request):
    return {target.id: target.state for target in request.targets}


def test_lease_is_counted_from_before_the_heartbeat_was_sent(tmp_path):
    async def test(world, _):
        world.manager.delay_s = 0.3
        world.routing()
        await world.beats(1)
        sent_s = boot_s()
        await world.beats(1)
        # The lease in force is that of the heartbeat before the last one.
        assert 0 < world.fake.lease_until_s <= sent_s + LEASE_MS / 1000 * 0.95

    run(tmp_path, test)


def test_a_heartbeat_may_take_half_of_a_long_lease(tmp_path):
    """Where leases are long because machines are slow, an answer that comes late still counts."""

    async def test(world, _):
        world.routing()
        await world.beats(2)
        world.manager.delay_s = 2.0
        await world.beats(1)
        before = world.fake.lease_until_s
        await world.beats(2)
        assert world.fake.lease_until_s > before

    run(tmp_path, test)


def test_heartbeats_continue_while_the_disk_does_not_report_space(tmp_path):
    async def test(world, _):
        hang = threading.Event()
        world.fake.on_space = lambda: hang.wait(60)
        try:
            world.routing(OFFLINE)
            await world.beats(2)
            world.membership.disk_failed("it hangs")
            await world.beats(2)
            assert states(world.manager.heard[-1]) == {101: Local.OFFLINE}
            assert (world.fake.gave_up, world.fake.lease_until_s) == (True, 0)
        finally:
            hang.set()

    run(tmp_path, test)


def test_heartbeats_say_how_large_the_disk_is_and_what_is_free(tmp_path):
    async def test(world, _):
        await world.beats()
        capacity, free, _ = world.fake.space()
        disk = world.manager.heard[-1].disk
        assert (disk.capacity_bytes, disk.free_bytes) == (capacity, free)

    run(tmp_path, test)


@pytest.mark.parametrize("failed_before", [False, True])
def test_a_directory_that_takes_nothing_ends_no_process(tmp_path, failed_before):
    """The node keeps reporting that it does not serve."""

    async def test(world, task):
        if failed_before:
            world.routing()
            world.membership.disk_failed("test")
            await world.beats(2)
        shutil.rmtree(tmp_path)
        world.routing(OFFLINE)
        await world.beats(3)
        assert states(world.manager.heard[-1]) == {101: Local.OFFLINE}
        assert (world.fake.gave_up, world.fake.lease_until_s) == (True, 0)
        assert not task.done()

    run(tmp_path, test)


def test_what_a_failed_disk_held_is_suspect_until_it_is_opened_again(tmp_path):
    async def test(world, _):
        world.routing(OFFLINE)
        world.membership.disk_failed("test")
        await world.beats(2)
        world.routing(OFFLINE)
        await world.beats(2)
        record = json.loads((tmp_path / "node.json").read_text())
        assert (record["is_suspect"], record["partial"]) == (True, [])

    run(tmp_path, test)


def test_no_lease_is_used_while_our_absence_is_unnoticed(tmp_path):
    async def test(world, _):
        world.routing(SERVING)
        await world.beats(3)
        assert world.fake.lease_until_s == 0
        assert states(world.manager.heard[-1]) == {101: Local.OFFLINE}
        world.routing(OFFLINE)
        await world.beats(3)
        assert world.fake.lease_until_s > boot_s()
        assert states(world.manager.heard[-1]) == {101: Local.ONLINE}

    run(tmp_path, test)


def test_lease_is_dropped_before_a_serving_replica_is_reported_offline(tmp_path):
    async def test(world, _):
        world.routing()
        world.routing(SERVING)
        await world.beats(3)
        assert world.fake.lease_until_s > 0
        world.membership.disk_failed("test")

        def answer(request):
            assert set(states(request).values()) == {Local.OFFLINE}
            assert world.fake.lease_until_s == 0, "reported while it could still serve"
            return HeartbeatReply(lease_ms=LEASE_MS, interval_ms=20)

        world.manager.answer = answer
        await world.beats(3)
        assert world.fake.lease_until_s == 0

    run(tmp_path, test)


def test_reply_without_a_lease_grants_none(tmp_path):
    async def test(world, _):
        world.manager.answer = lambda _: HeartbeatReply(lease_ms=0, interval_ms=20)
        world.routing()
        await world.beats(3)
        assert world.fake.lease_until_s == 0

    run(tmp_path, test)


def test_sequence_grows_and_every_report_names_its_chain_version(tmp_path):
    async def test(world, _):
        world.routing()
        world.routing(SERVING, OFFLINE)
        await world.beats(3)
        sequences = [request.sequence for request in world.manager.heard]
        assert sequences == sorted(set(sequences))
        last = world.manager.heard[-1]
        assert {(target.chain, target.chain_version) for target in last.targets} == {(1, 2), (2, 2)}
        assert states(last) == {101: Local.UPTODATE, 102: Local.ONLINE}

    run(tmp_path, test)


def test_change_is_reported_at_once(tmp_path):
    async def test(world, _):
        world.manager.answer = lambda _: HeartbeatReply(lease_ms=LEASE_MS, interval_ms=1_000_000)
        world.routing()
        await world.beats(1)
        world.routing(SERVING)
        await world.beats(1)

    run(tmp_path, test)


def test_silent_manager_is_asked_again(tmp_path):
    async def test(world, task):
        def refuse(_):
            raise Unavailable("starting")

        world.manager.answer = refuse
        world.routing()
        await world.beats(3)
        assert not task.done()

    run(tmp_path, test)


def test_process_whose_place_was_taken_ends(tmp_path):
    async def test(world, task):
        def refuse(_):
            raise InvalidArgument("this process of node 1 was replaced")

        world.manager.answer = refuse
        world.routing()
        with pytest.raises(InvalidArgument, match="replaced"):
            await asyncio.wait_for(task, 60)

    run(tmp_path, test)


def test_delta_changes_what_it_brings_and_keeps_the_rest(tmp_path):
    async def test(world, _):
        def adopt(version, *chains, delta):
            routing = Routing(version=version, chains=chains, delta=delta)
            assert world.membership.table.apply(routing)
            world.membership.routing_changed(routing)
            return {id_: seen.public for id_, seen in world.membership.state.targets.items()}

        def chain(number, version, state, node=1):
            target = Target(id=100 + number, node=node, state=state)
            return Chain(id=number, version=version, targets=[target])

        assert adopt(1, chain(1, 1, OFFLINE), chain(2, 1, OFFLINE), delta=False) == {101: 16, 102: 16}
        assert adopt(2, chain(2, 2, SERVING), delta=True) == {101: 16, 102: 1}
        assert adopt(3, delta=True) == {101: 16, 102: 1}
        assert adopt(4, chain(1, 2, SERVING, node=2), delta=True) == {102: 1}
        assert adopt(5, chain(1, 3, OFFLINE), chain(2, 2, SERVING), delta=False) == {101: 16, 102: 1}

    run(tmp_path, test)


def test_routing_of_an_older_store_is_left_out_and_reported(tmp_path):
    async def test(world, _):
        adopted = Routing(version=5 << 32 | 1, manager=1, chains=[Chain(id=1, version=9, targets=[OURS])])
        assert await world.membership.admit(adopted)
        older = Routing(version=6 << 32 | 1, manager=2, chains=[Chain(id=1, version=3, targets=[OURS])])
        assert not await world.membership.admit(older)
        await world.beats(2)
        assert world.manager.heard[-1].outdated == "version 9 of chain 1, not 3"
        world.fake.lease_until_s = 0
        await world.beats(2)
        assert world.fake.lease_until_s == 0, "no lease of that manager is used"
        assert await world.membership.admit(Routing(version=7 << 32 | 1, manager=3, chains=adopted.chains))
        await world.beats(2)
        assert world.manager.heard[-1].outdated == ""
        assert world.fake.lease_until_s > 0

    run(tmp_path, test)


class HangingMarks(MarkFile):
    """Marks on a disk that hangs until `disk` is set."""

    def __init__(self, path) -> None:
        super().__init__(path, node=1)
        self.disk = threading.Event()

    def save(self) -> None:
        self.disk.wait()
        super().save()


def test_disk_that_hangs_keeps_no_routing_out(tmp_path):
    """Its node must hear that it is out of its chains, and report its replicas under their present versions."""

    async def test(world, _):
        marks = HangingMarks(tmp_path)
        world.directory.marks = marks
        try:
            for version in (1, 2, 3):
                chain = Chain(id=1, version=version, targets=[OURS])
                assert await world.membership.admit(
                    Routing(version=version, chains=[chain], delta=version > 1)
                )
            assert load(tmp_path) is None
        finally:
            marks.disk.set()
        assert await world.membership.admit(Routing(version=4, delta=True))
        async with asyncio.timeout(60):
            while not marks.is_saved:
                await world.beats(1)
        assert load(tmp_path).chains[0].version == 3

    run(tmp_path, test)


class RisingMarks(MarkFile):
    """Marks that are raised again before callers that wait for them know that they were saved."""

    def save(self) -> None:
        first = not self.marks.HasField("meta_store")
        super().save()
        if first:
            self.raise_meta_store(StoreMark(store=7, generation=1, position=50))


def test_marks_that_are_raised_meanwhile_are_saved_for_all_who_wait(tmp_path):
    async def test(world, _):
        world.directory.marks = RisingMarks(tmp_path, node=1)
        routings = [
            Routing(version=version, chains=[Chain(id=1, version=version, targets=[OURS])], delta=version > 1)
            for version in (1, 2)
        ]
        assert all(await asyncio.gather(*(world.membership.admit(each) for each in routings)))
        assert load(tmp_path).meta_store.position == 50

    run(tmp_path, test)


def test_mark_of_the_metadata_store_is_remembered_and_reported(tmp_path):
    mark = StoreMark(store=7, generation=1, position=50)

    async def test(world, _):
        world.manager.answer = lambda _: HeartbeatReply(lease_ms=LEASE_MS, interval_ms=20, meta_store=mark)
        async with asyncio.timeout(60):
            while not world.manager.heard or world.manager.heard[-1].meta_store != mark:
                await world.beats(1)

    run(tmp_path, test)
    assert load(tmp_path).meta_store == mark


def test_leaving_says_that_nothing_is_served(tmp_path):
    async def test(world, task):
        world.routing()
        world.routing(SERVING)
        await world.beats(2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await world.membership.leave()
        last = world.manager.heard[-1]
        assert last.leaving
        assert states(last) == {101: Local.OFFLINE}

    run(tmp_path, test)


def test_directory_knows_what_mgmtd_has_stored_before_a_lease_is_used(tmp_path):
    async def test(world, _):
        known = []
        set_lease = world.fake.set_lease

        def note(*arguments):
            known.append(json.loads((tmp_path / "node.json").read_text())["incarnations"])
            set_lease(*arguments)

        world.fake.set_lease = note
        world.routing()
        await world.beats()
        assert world.manager.heard[0].directory_incarnations == [0, 5]
        assert world.manager.heard[-1].directory_incarnations == [5]
        assert known[0] == [5]

    run(tmp_path, test)


def test_node_with_an_older_directory_ends_and_says_what_to_do(tmp_path):
    async def test(world, task):
        def refuse(_):
            raise ConfigError("the directory of node 1 is an older copy", older="storage")

        world.manager.answer = refuse
        with pytest.raises(ConfigError, match=f"older copy; put back the newest {tmp_path}, or empty it"):
            await task
        await world.membership.leave()
        assert world.manager.heard[-1].leaving
        assert world.manager.heard[-1].directory_incarnations == [0, 5]

    run(tmp_path, test)
