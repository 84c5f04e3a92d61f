"""The recovery driver against the real control service of its successor; engines in memory."""

import asyncio
import errno
from contextlib import asynccontextmanager
from threading import Event

import pytest

from luciola.config import StorageConfig
from luciola.errors import CorruptData, Error, NotFound, StaleRouting
from luciola.states import Local
from luciola.storage.directory import Directory
from luciola.storage.engine import PAGE_RECORDS, Engine
from luciola.storage.membership import Membership, Options
from luciola.storage.quarantine import Quarantine
from luciola.storage.recovery import Job, Pace, Recovery, job_of, require_order
from luciola.storage.scrub import Scrub
from luciola.storage.service import StorageService
from luciola.wire import SERVICE, RpcClients, RpcServer, methods, mint
from luciola.wire.pb.mgmtd_pb2 import (
    LASTSRV,
    OFFLINE,
    SERVING,
    SYNCING,
    WAITING,
    Chain,
    Node,
    Routing,
    Target,
)
from luciola.wire.pb.storage_pb2 import (
    ChainRef,
    ListChunksRequest,
    QuarantineChunksRequest,
    SyncDoneRequest,
    SyncStartRequest,
)

from .fake_node import FakeNode, record, unreadable

SECRET = bytes(range(32))
CHAIN = 7
CONFIG = StorageConfig(resync_interval_ms=5)


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 (what is waited for happens in other tasks and threads)
            await asyncio.sleep(0.005)


class Member:
    """One storage node without its process: everything but the native engine is real."""

    def __init__(self, number, peers, path, clients):
        self.fake = FakeNode(number, peers)
        self.about = Node(id=number)
        self.engine = Engine(self.fake)
        directory = Directory(path, node=number, cluster_id="test")
        self.directory = directory
        self.membership = Membership(self.engine, directory, clients, self.about, Options("127.0.0.1:1", 5))
        self.table = self.membership.table
        self.recovery = Recovery(self.engine, clients, self.table, node=number, config=CONFIG)
        scrub = Scrub(self.engine, directory, self.table, node=number, config=CONFIG)
        self.quarantine = Quarantine(self.engine, directory.quarantine, config=CONFIG)
        service = StorageService(self.engine, self.membership, self.recovery, scrub, self.quarantine)
        self.server = RpcServer(methods.bind(methods.Storage, service), secret=SECRET)
        self.membership.on_routing(self.recovery.routing_changed)

    def hear(self, routing):
        if self.table.apply(routing):
            self.membership.routing_changed(routing)

    @property
    def local(self):
        return next(iter(self.membership.state.targets.values())).local

    async def stop(self):
        await self.recovery.stop()
        await self.server.stop(grace_s=0.5)
        self.directory.close()


class Pair:
    """Node 1 serves the chain, node 2 comes back to it."""

    def __init__(self, first, second, clients):
        self.first, self.second, self.clients = first, second, clients
        self.version = 0

    def publish(self, *states, hold=()):
        """Routing with these states; `hold`: nodes that do not hear it."""
        self.version += 1
        targets = [Target(id=100 + node, node=node, state=state) for node, state in states]
        routing = Routing(
            version=self.version,
            nodes=[self.first.about, self.second.about],
            chains=[Chain(id=CHAIN, version=self.version, targets=targets)],
        )
        for member in (self.first, self.second):
            if member.about.id not in hold:
                member.hear(routing)

    def join(self):
        """The usual way of node 2: offline, then syncing."""
        self.publish((1, SERVING), (2, OFFLINE))
        self.publish((1, SERVING), (2, SYNCING))

    async def until_done(self):
        await until(lambda: self.second.local == Local.UPTODATE)

    async def call(self, method, request):
        return await self.clients.call(self.second.about.grpc_address, method, request)


def run(tmp_path, test):
    """Runs `test(pair)`."""

    @asynccontextmanager
    async def pair():
        peers = {}
        async with RpcClients(mint(SECRET, role=SERVICE)) as clients:
            members = [Member(number, peers, tmp_path / str(number), clients) for number in (1, 2)]
            for member in members:
                member.about.grpc_address = await member.server.start()
                member.hear(Routing(version=0, bootstrapping=True))
            try:
                yield Pair(*members, clients)
            finally:
                for member in members:
                    await member.stop()

    async def main():
        async with pair() as both:
            await test(both)

    asyncio.run(main())


def equal(pair):
    return pair.first.fake.chain(CHAIN) == pair.second.fake.chain(CHAIN)


def test_empty_replica_gets_everything_page_by_page(tmp_path):
    async def test(pair):
        count = 2 * PAGE_RECORDS + 17
        pair.first.fake.put(CHAIN, *(record(1 + n // 50, n % 50) for n in range(count)))
        pair.join()
        await pair.until_done()
        assert equal(pair)
        assert pair.first.recovery.counters.sent == count
        sent_bytes = sum(each.length for each in pair.first.fake.chain(CHAIN).values())
        assert pair.first.recovery.counters.sent_bytes == sent_bytes > 0
        assert pair.first.recovery.pending_bytes == 0

    run(tmp_path, test)


def test_bytes_that_wait_to_be_sent_are_counted(tmp_path):
    async def test(pair):
        go_on = Event()
        pair.first.fake.before_sync = go_on.wait
        pair.first.fake.put(CHAIN, *(record(1, n) for n in range(10)))
        waiting = sum(each.length for each in pair.first.fake.chain(CHAIN).values())
        pair.join()
        await until(lambda: pair.first.recovery.pending_bytes == waiting)
        assert pair.first.recovery.chain_count == 1
        assert pair.first.recovery.counters.sent_bytes == 0
        go_on.set()
        await pair.until_done()
        await until(lambda: pair.first.recovery.chain_count == 0)
        assert (pair.first.recovery.pending_bytes, pair.first.recovery.counters.sent_bytes) == (0, waiting)

    run(tmp_path, test)


def test_returning_replica_gets_only_what_differs(tmp_path):
    async def test(pair):
        same = [record(1, n) for n in range(3 * PAGE_RECORDS)]
        buried = record(3, 2, version=2, removed=True)
        half = record(4, 0, version=0, pending=True, pending_version=1)
        pair.first.fake.put(CHAIN, *same, record(5, 0), record(3, 1, version=3), buried)
        pair.second.fake.put(CHAIN, *same, half, record(3, 1, version=2), record(3, 2))
        pair.join()
        await pair.until_done()
        assert equal(pair)
        names = {name for _, _, batch in pair.first.fake.calls for name in batch}
        assert names == {(3, 1), (3, 2), (4, 0), (5, 0)}
        assert pair.first.recovery.counters.removed == 1

    run(tmp_path, test)


def test_done_is_not_said_while_a_chunk_cannot_be_sent(tmp_path):
    async def test(pair):
        pair.first.fake.put(CHAIN, *(record(1, n) for n in range(40)))
        pair.first.fake.refuse = {(1, 33): "NoSpace"}
        pair.join()
        await until(lambda: pair.first.recovery.counters.rounds >= 3)
        assert pair.second.local == Local.ONLINE
        assert (1, 33) not in pair.second.fake.chain(CHAIN)
        assert len(pair.second.fake.chain(CHAIN)) == 39, "the others were sent"
        pair.first.fake.refuse = {}
        await pair.until_done()
        assert equal(pair)

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("strange", "names"),
    [
        (record(1, 7, chain_version=9), {(1, 7)}),
        (record(1, 7, version=2), {(1, 7)}),
        (record(1, 7, crc32c=1), {(1, 7)}),
        (record(9, 9), set()),
    ],
)
def test_chunk_that_its_chain_never_had_is_set_aside_and_no_other_is_sent(tmp_path, strange, names):
    async def test(pair):
        pair.first.fake.put(CHAIN, *(record(1, n) for n in range(40)))
        pair.second.fake.put(CHAIN, *(record(1, n) for n in range(40)), strange)
        pair.join()
        await pair.until_done()
        assert equal(pair)
        assert pair.second.fake.quarantined == [(CHAIN, strange)]
        assert pair.second.quarantine.counters.chunks == 1
        assert pair.second.fake.wiped == []
        assert {name for _, _, batch in pair.first.fake.calls for name in batch} == names
        assert pair.first.recovery.counters.rounds == 2, (
            "a round in which something was set aside is not the last"
        )

    run(tmp_path, test)


def test_unreadable_records_of_the_predecessor_neither_stop_a_sync_nor_cost_a_copy(tmp_path):
    async def test(pair):
        pair.first.fake.put(CHAIN, *(record(1, n) for n in range(10)), unreadable(2, 0), unreadable(2, 1))
        pair.second.fake.put(CHAIN, record(2, 0))
        pair.join()
        await pair.until_done()
        readable = {(1, n): record(1, n) for n in range(10)}
        assert pair.second.fake.chain(CHAIN) == readable | {
            (2, 0): record(2, 0),
            (2, 1): unreadable(2, 1),  # absent, it would be read as zeros
        }
        assert pair.second.fake.quarantined == []
        assert pair.second.quarantine.counters.chunks == 0

    run(tmp_path, test)


def test_unreadable_record_of_the_successor_is_replaced(tmp_path):
    async def test(pair):
        pair.first.fake.put(CHAIN, record(1, 1), record(1, 2))
        pair.second.fake.put(CHAIN, unreadable(1, 1), unreadable(1, 3))
        pair.join()
        await pair.until_done()
        assert equal(pair)

    run(tmp_path, test)


def test_late_request_to_set_a_chunk_aside_undoes_the_comparison_before(tmp_path):
    async def test(pair):
        pair.publish((1, SERVING), (2, OFFLINE))
        pair.publish((1, OFFLINE), (2, SYNCING))  # no other node drives the recovery
        pair.second.fake.put(CHAIN, record(1, 1))
        chain = ChainRef(chain=CHAIN, version=pair.version)
        address = pair.second.about.grpc_address

        async def listed():
            start = SyncStartRequest(chain=chain)
            stream = pair.clients.stream(address, methods.Storage.sync_start, start)
            return [item async for reply in stream for item in reply.chunks]

        records = await listed()
        late = QuarantineChunksRequest(chain=chain, chunks=records)
        assert (await pair.call(methods.Storage.quarantine_chunks, late)).quarantined == 1
        with pytest.raises(StaleRouting, match="again"):
            await pair.call(methods.Storage.sync_done, SyncDoneRequest(chain=chain))
        assert await listed() == []
        await pair.call(methods.Storage.sync_done, SyncDoneRequest(chain=chain))
        assert pair.second.local == Local.UPTODATE

    run(tmp_path, test)


def test_round_ends_when_the_chain_changes_and_starts_again_under_the_new_version(tmp_path):
    async def test(pair):
        loop = asyncio.get_running_loop()
        pair.first.fake.put(CHAIN, *(record(1, n) for n in range(200)))
        changed = []

        def change():
            if not changed:
                changed.append(True)
                asyncio.run_coroutine_threadsafe(again(), loop).result()

        async def again():
            pair.publish((1, SERVING), (2, SYNCING))

        pair.first.fake.before_sync = change
        pair.join()
        old = pair.version
        await pair.until_done()
        assert equal(pair)
        target = next(iter(pair.second.membership.state.targets.values()))
        assert target.chain_version == old + 1
        assert {version for _, version, _ in pair.first.fake.calls} == {old, old + 1}

    run(tmp_path, test)


@pytest.mark.parametrize("versions", [1, 2])
def test_comparison_continues_after_one_chain_change_and_restarts_after_two(tmp_path, versions):
    """Two versions on, the successor may have been away in between."""
    done = 3 * PAGE_RECORDS

    async def test(pair):
        loop = asyncio.get_running_loop()
        pair.first.fake.put(CHAIN, *(record(1, n) for n in range(done)), record(2, 0))
        pair.second.fake.put(CHAIN, *(record(1, n) for n in range(done)))

        async def change():
            if pair.version == 2:
                pair.second.fake.listed.clear()
                pair.version += versions - 1
                pair.publish((1, SERVING), (2, SYNCING))

        pair.first.fake.before_sync = lambda: asyncio.run_coroutine_threadsafe(change(), loop).result()
        pair.join()
        await pair.until_done()
        assert equal(pair)
        compared_again = pair.first.recovery.counters.compared - done
        assert compared_again == (0 if versions == 1 else done)
        assert pair.second.fake.listed[0] == ((1, done - 1) if versions == 1 else None)

    run(tmp_path, test)


@pytest.mark.parametrize("indexes", [(1, 1), (2, 1), (0, 1), (1, 2, 2)])
def test_page_of_the_successor_that_does_not_go_forward_is_refused(indexes):
    def page(*indexes):
        return [record(5, index) for index in indexes]

    require_order(page(1, 2, 3), (5, 0))
    require_order(page(), (5, 9))
    with pytest.raises(CorruptData, match="out of order"):
        require_order(page(*indexes), (5, 0))


def test_bytes_are_sent_at_the_rate_of_the_configuration():
    pace = Pace()
    assert [pace.reserve(100, bytes_per_s=50, now_s=now) for now in (0.0, 0.0, 1.0, 10.0)] == [0, 2, 3, 0]
    assert pace.reserve(100, bytes_per_s=0, now_s=10.0) == 0, "no limit"


def test_predecessor_that_hears_of_the_chain_first_waits_for_its_successor(tmp_path):
    async def test(pair):
        pair.first.fake.put(CHAIN, record(1, 1))
        pair.publish((1, SERVING), (2, OFFLINE))
        pair.publish((1, SERVING), (2, SYNCING), hold=[2])
        await until(lambda: pair.first.recovery.counters.rounds >= 2)
        assert not pair.second.fake.chain(CHAIN)
        pair.publish((1, SERVING), (2, SYNCING))
        await pair.until_done()
        assert equal(pair)

    run(tmp_path, test)


def test_writes_during_the_comparison_do_not_harm(tmp_path):
    async def test(pair):
        pair.first.fake.put(CHAIN, *(record(2, n) for n in range(2 * PAGE_RECORDS)))
        pair.second.fake.put(
            CHAIN,
            *(
                record(2, n, version=0, pending=True, pending_version=1)
                for n in range(0, 2 * PAGE_RECORDS, 7)
            ),
        )
        count = 0

        def write():  # what clients write reaches both, as whole chunks
            nonlocal count
            count += 1
            for name in ((1, count), (2, 3 * count), (3, count)):
                new = record(*name, version=count + 10, crc32c=count)
                with pair.second.fake.lock:
                    pair.first.fake.put(CHAIN, new)
                    pair.second.fake.put(CHAIN, new)

        pair.first.fake.before_sync = write
        pair.join()
        await pair.until_done()
        assert count > 10
        assert equal(pair)

    run(tmp_path, test)


def test_replica_is_up_to_date_only_when_what_it_was_sent_is_durable(tmp_path):
    async def test(pair):
        reported = []
        pair.second.fake.on_flush = lambda: reported.append(pair.second.local)
        pair.first.fake.put(CHAIN, *(record(1, n) for n in range(40)))
        pair.join()
        await pair.until_done()
        assert pair.second.fake.flushed[CHAIN] == pair.first.fake.chain(CHAIN)
        assert reported == [Local.ONLINE]

    run(tmp_path, test)


def test_replica_that_cannot_flush_or_is_not_syncing_any_more_is_not_up_to_date(tmp_path):
    async def test(pair):
        loop = asyncio.get_running_loop()
        pair.first.fake.put(CHAIN, record(1, 1))
        flushes = 0

        def fail_then_change():
            nonlocal flushes
            flushes += 1
            if flushes == 1:
                raise OSError(errno.EIO, "the flush failed")
            if flushes == 2:
                asyncio.run_coroutine_threadsafe(again(), loop).result()

        async def again():
            assert pair.second.local == Local.ONLINE
            pair.publish((1, SERVING), (2, OFFLINE))
            pair.publish((1, SERVING), (2, SYNCING))

        pair.second.fake.on_flush = fail_then_change
        pair.join()
        await pair.until_done()
        assert flushes == 3

    run(tmp_path, test)


def test_task_ends_when_the_successor_falls_out(tmp_path):
    async def test(pair):
        pair.first.fake.put(CHAIN, record(1, 1))
        pair.first.fake.refuse = {(1, 1): "Timeout"}
        recovery = pair.first.recovery
        pair.join()
        await until(lambda: recovery.counters.rounds >= 2)
        (task,) = recovery._tasks.values()
        pair.publish((1, SERVING), (2, OFFLINE))
        await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), 60)
        assert not recovery._tasks
        assert recovery.counters.done == 0

    run(tmp_path, test)


def test_sync_of_a_replica_that_is_not_syncing_is_refused(tmp_path):
    async def test(pair):
        pair.publish((1, SERVING), (2, OFFLINE))
        for version in (pair.version, pair.version + 1):
            chain = ChainRef(chain=CHAIN, version=version)
            with pytest.raises(StaleRouting):
                await pair.call(methods.Storage.sync_done, SyncDoneRequest(chain=chain))
            stream = pair.clients.stream(
                pair.second.about.grpc_address,
                methods.Storage.sync_start,
                SyncStartRequest(chain=chain),
            )
            with pytest.raises(StaleRouting):
                await anext(stream)
            with pytest.raises(StaleRouting):
                await pair.call(methods.Storage.quarantine_chunks, QuarantineChunksRequest(chain=chain))
        with pytest.raises(NotFound):
            await pair.call(methods.Storage.sync_done, SyncDoneRequest(chain=ChainRef(chain=99)))
        assert pair.second.fake.quarantined == []

    run(tmp_path, test)


def test_listing_is_paged(tmp_path):
    async def test(pair):
        pair.second.fake.put(CHAIN, *(record(1, n) for n in range(25)))
        first = await pair.call(methods.Storage.list_chunks, ListChunksRequest(chain=CHAIN, limit=20))
        assert (len(first.chunks), first.more) == (20, True)
        rest = ListChunksRequest(chain=CHAIN, limit=20, after=first.chunks[-1].chunk)
        second = await pair.call(methods.Storage.list_chunks, rest)
        assert [chunk.chunk.index for chunk in second.chunks] == list(range(20, 25))
        assert not second.more
        with pytest.raises(Error):
            await pair.call(methods.Storage.list_chunks, ListChunksRequest(chain=CHAIN, limit=1 << 20))

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ([(1, SERVING), (2, SYNCING)], {1: 2}),
        ([(1, SERVING), (2, SERVING), (3, SYNCING)], {2: 3}),
        ([(2, SERVING), (1, SERVING), (3, SYNCING), (4, WAITING)], {1: 3}),
        ([(1, SERVING), (2, WAITING)], {}),
        ([(1, LASTSRV), (2, WAITING)], {}),
        ([(1, SERVING)], {}),
        ([(2, SYNCING)], {}),
    ],
)
def test_last_serving_member_brings_the_syncing_one_up(states, expected):
    chain = Chain(id=CHAIN, version=3, targets=[Target(id=n, node=n, state=state) for n, state in states])
    jobs = {node: job_of(chain, node) for node in range(1, 5)}
    assert {node: job.successor for node, job in jobs.items() if job} == expected
    assert all(job == Job(CHAIN, 3, job.successor, job.node) for job in jobs.values() if job)
