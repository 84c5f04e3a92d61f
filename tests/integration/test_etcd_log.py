"""The ordered log in a real etcd, whose members are killed, paused and filled."""

import asyncio
from contextlib import aclosing, asynccontextmanager
from itertools import count

import pytest

from etcd_members import EtcdMembers, require_etcd
from log_contract import LogContract
from luciola.clock import boot_s
from luciola.errors import (
    AlreadyExists,
    Busy,
    InvalidArgument,
    MaybeCommitted,
    NoSpace,
    NotFound,
    Timeout,
    Unavailable,
)
from luciola.kv.log import (
    START,
    Appender,
    Bounds,
    Contender,
    Deposed,
    Diverged,
    Ended,
    Position,
    Record,
    Trimmed,
)
from luciola.kv.log.etcd import RENEWALS_KEPT, EtcdLog, LogChange
from luciola.wire.etcd import Compacted

LEASE_S = 100.0  # longer than etcd needs for an election of its own, on the busiest machine
WAIT_S = 150.0
RECORD_BYTES = 2000
PATIENT_S = 100.0  # for one request, where an unknown outcome would fail the test
TRANSIENT = (Unavailable, Timeout, MaybeCommitted)
_numbers = count()


def fresh_prefix() -> str:
    return f"luciola/test/{next(_numbers)}/"


@asynccontextmanager
async def open_log(client, prefix=None, *, cluster="test"):
    """The log at `prefix`, made if need be; closed at the end."""
    log = None
    begun_s = boot_s()
    while log is None:
        try:
            log = await EtcdLog.open(client, prefix=prefix or fresh_prefix(), cluster=cluster, create=True)
        except TRANSIENT as error:
            assert boot_s() - begun_s < WAIT_S, f"etcd does not answer: {error}"
            await asyncio.sleep(0.1)
    try:
        yield log
    finally:
        await log.close()


@asynccontextmanager
async def leading(log, owner="first", *, lease_s=LEASE_S):
    """A leadership and its appender; another may lead at once after the end."""
    leadership = await asyncio.wait_for(Contender(log, owner, lease_s=lease_s).lead(), WAIT_S)
    try:
        yield leadership, Appender(log, leadership, (await eventually(log.bounds)).last, patience_s=WAIT_S)
    finally:
        await leadership.resign()


async def eventually(call):
    """What `call` returns once etcd answers."""
    begun_s = boot_s()
    while True:
        try:
            return await call()
        except TRANSIENT as error:
            assert boot_s() - begun_s < WAIT_S, f"etcd does not answer: {error}"
            await asyncio.sleep(0.1)


async def end_claim(log):
    claim = await log.claim()
    assert claim is None or await log.end_claim(claim)


async def read_all(log):
    records = []
    after = START
    while batch := await eventually(lambda after=after: log.read(after)):
        records += batch
        after = records[-1].position
    return records


def on_log(members, scenario):
    """Run `scenario(client, log)` on a new log, with a client that waits long."""

    async def prepared():
        async with members.client(request_s=PATIENT_S) as client, open_log(client) as log:
            await scenario(client, log)

    asyncio.run(prepared())


class TestEtcdLog(LogContract):
    @pytest.fixture(autouse=True)
    def _members(self, etcd):
        self.members = etcd

    def run(self, scenario):
        on_log(self.members, lambda _client, log: scenario(log))


def test_log_of_another_cluster_is_refused(etcd):
    async def scenario(client, _log):
        prefix = fresh_prefix()
        with pytest.raises(NotFound):
            await EtcdLog.open(client, prefix=prefix, cluster="one", create=False)
        async with open_log(client, prefix, cluster="one"), open_log(client, prefix, cluster="one"):
            pass
        for create in (False, True):
            with pytest.raises(InvalidArgument, match="cluster one"):
                await EtcdLog.open(client, prefix=prefix, cluster="two", create=create)
        await (await EtcdLog.open(client, prefix=prefix, cluster="one", create=False)).close()

    on_log(etcd, scenario)


def test_log_is_begun_where_a_store_already_is(etcd):
    first, second = Position(70, b"1" * 16), Position(80, b"2" * 16)

    async def scenario(client, _log):
        prefix = fresh_prefix()

        async def begin(position, cluster="test"):
            await EtcdLog.begin(client, prefix=prefix, cluster=cluster, position=position)

        await eventually(lambda: begin(first))
        await eventually(lambda: begin(second))  # nothing was kept in the first one
        await eventually(lambda: begin(second))
        with pytest.raises(InvalidArgument, match="is of cluster test"):
            await eventually(lambda: begin(second, "other"))
        async with open_log(client, prefix) as log:
            assert await eventually(log.bounds) == Bounds(81, second)
            with pytest.raises(Trimmed):
                await eventually(lambda: log.read(START))
            with pytest.raises(Diverged):
                await eventually(lambda: log.read(Position(80, first.digest)))
            async with leading(log) as (_, appender):
                assert (await appender.append(b"1")).index == 81
            with pytest.raises(AlreadyExists, match="up to record 81"):
                await eventually(lambda: begin(first))
            await eventually(lambda: log.trim(82))
            await eventually(lambda: log.announce("100", b"x"))
            with pytest.raises(AlreadyExists):
                await eventually(lambda: begin(first))

    on_log(etcd, scenario)


def test_log_that_was_removed_is_refused(etcd):
    async def scenario(client, _log):
        prefix = fresh_prefix()
        async with open_log(client, prefix) as log:
            async with leading(log) as (_, appender):
                position = await appender.append(b"1")
            await EtcdLog.remove(client, prefix=prefix)
            for call in (log.bounds, lambda: log.read(position)):
                with pytest.raises(Diverged):
                    await call()
            with pytest.raises(NotFound):
                await EtcdLog.open(client, prefix=prefix, cluster="test", create=False)

    on_log(etcd, scenario)


async def assert_compacted(client, revision):
    """Etcd has forgotten what was at `revision`."""
    with pytest.raises(Compacted):
        async with (
            aclosing(client.watch(b"luciola/", b"luciola0", start=revision)) as replies,
            asyncio.timeout(WAIT_S),
        ):
            async for _reply in replies:
                pass


def test_renewals_leave_nothing_behind(etcd):
    async def scenario(client, log):
        claim = first = await log.create_claim("idle", lease_s=LEASE_S)
        await log._compaction
        for _ in range(RENEWALS_KEPT):
            claim = await log.renew_claim(claim)
        await log._compaction
        await assert_compacted(client, first.revision + RENEWALS_KEPT // 2)
        await log.end_claim(claim)

    on_log(etcd, scenario)


def test_new_claim_compacts_what_the_last_one_left(etcd):
    async def scenario(client, log):
        for _ in range(3):
            claim = await log.create_claim("short", lease_s=LEASE_S)
            await log._compaction
            await assert_compacted(client, claim.revision - 1)
            await log.end_claim(claim)

    on_log(etcd, scenario)


def test_follower_survives_compactions(etcd):
    async def scenario(_client, log):
        async with leading(log) as (_, appender), aclosing(log.follow(START)) as batches:
            got = []
            for number in range(20):
                position = await appender.append(b"%d" % number)
                if number % 5 == 4:
                    await log.trim(position.index)
                while len(got) <= number:
                    got += await asyncio.wait_for(anext(batches), WAIT_S)
        assert [record.payload for record in got] == [b"%d" % number for number in range(20)]
        assert (await log.bounds()).first == 20

    on_log(etcd, scenario)


class Load:
    """A leader that appends numbered records, and a follower that collects them, while members fail."""

    def __init__(self, log, appender) -> None:
        self.log = log
        self.appender = appender
        self.appended = []
        self.followed = []

    async def append(self, number: int) -> None:
        for _ in range(number):
            payload = b"%d " % len(self.appended) + bytes(RECORD_BYTES)
            self.appended.append(Record.create(payload, after=self.appender.last, epoch=self.epoch))
            assert await self.appender.append(payload) == self.appended[-1].position

    @property
    def epoch(self) -> int:
        return self.appender._leadership.epoch

    async def follow(self) -> None:
        while True:
            after = self.followed[-1].position if self.followed else START
            try:
                async with aclosing(self.log.follow(after)) as batches:
                    async for batch in batches:
                        self.followed += batch
            except TRANSIENT:
                await asyncio.sleep(0.1)

    async def check(self) -> None:
        begun_s = boot_s()
        while len(self.followed) < len(self.appended):
            assert boot_s() - begun_s < WAIT_S, (
                f"{len(self.followed)} of {len(self.appended)} records followed"
            )
            await asyncio.sleep(0.1)
        assert self.followed == self.appended
        assert await read_all(self.log) == self.appended


def under_load(members, disturb):
    """Append before, during and after `await disturb(client)`, with clients that ask another member after failures."""

    async def scenario():
        async with members.client() as client, open_log(client) as log, leading(log) as (_, appender):
            load = Load(log, appender)
            following = asyncio.create_task(load.follow())
            try:
                await load.append(20)
                appending = asyncio.create_task(load.append(60))
                try:
                    async with members.client() as other:
                        await disturb(other)
                finally:
                    await asyncio.gather(appending, return_exceptions=True)
                await appending
                await load.append(20)
                await load.check()
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)

    asyncio.run(scenario())


async def answers(client):
    await eventually(lambda: client.range(b"x", limit=1))


@pytest.mark.timeout(900)
def test_every_record_is_there_once_when_the_leading_member_is_killed(etcd_members):
    victim = etcd_members.leader()

    async def disturb(client):
        etcd_members.kill(victim)
        await answers(client)
        etcd_members.start(victim)
        await answers(client)

    under_load(etcd_members, disturb)


@pytest.mark.timeout(900)
def test_every_record_is_there_once_when_the_members_are_paused_in_turn(etcd_members):
    async def disturb(client):
        for index in range(etcd_members.count):
            etcd_members.pause(index)
            await answers(client)
            etcd_members.resume(index)
            await answers(client)

    under_load(etcd_members, disturb)


@pytest.mark.timeout(900)
def test_append_without_a_quorum_has_an_unknown_outcome_until_it_is_back(etcd_members):
    prefix = fresh_prefix()

    async def lose():
        async with etcd_members.client() as client, open_log(client, prefix) as log:
            leadership = await asyncio.wait_for(Contender(log, "first", lease_s=LEASE_S).lead(), WAIT_S)
            try:
                last = await Appender(log, leadership, START, patience_s=WAIT_S).append(b"1")
                etcd_members.kill(0)
                etcd_members.kill(1)
                with pytest.raises((MaybeCommitted, Deposed)) as error:
                    await Appender(log, leadership, last, patience_s=1.0).append(b"2")
                assert not leadership.holds()
                await asyncio.wait_for(leadership.lost(), WAIT_S)
                return error.type
            finally:
                await leadership.close()

    async def regain(outcome):
        async with etcd_members.client(request_s=PATIENT_S) as client, open_log(client, prefix) as log:
            await eventually(lambda: end_claim(log))
            async with leading(log, "second") as (_, appender):
                before = [record.payload for record in await read_all(log)]
                assert before in ([b"1"], [b"1", b"2"])
                assert outcome is MaybeCommitted or before == [b"1"]
                await appender.append(b"3")
                assert [record.payload for record in await read_all(log)] == [*before, b"3"]

    outcome = asyncio.run(lose())
    etcd_members.heal()
    asyncio.run(regain(outcome))


def test_contender_takes_over_from_a_leader_that_is_gone(etcd):
    async def scenario(_client, log):
        first = await asyncio.wait_for(Contender(log, "first", lease_s=2.0).lead(), WAIT_S)
        one = Record.create(b"1", after=START, epoch=first.epoch)
        await log.append(one)
        await first.close()  # its claim stays
        async with leading(log, "second") as (second, appender):
            assert second.epoch > first.epoch
            assert not first.holds()
            last = await appender.append(b"2")
            with pytest.raises(Deposed):
                await log.append(Record.create(b"late", after=last, epoch=first.epoch))
        assert [record.payload for record in await read_all(log)] == [b"1", b"2"]

    on_log(etcd, scenario)


class FullClient:
    """A client of an etcd that refuses for lack of space what it has executed, or has not."""

    def __init__(self, client, *, executes):
        self.range = client.range
        self.client = client
        self.executes = executes

    async def transact(self, compare, success, failure=()):
        if self.executes:
            await self.client.transact(compare, success, failure)
        raise NoSpace("injected")


def test_record_that_fills_etcd_is_stored_in_spite_of_the_refusal(etcd):
    async def scenario(client, log):
        claim = await log.create_claim("first", lease_s=LEASE_S)
        one = Record.create(b"1", after=START, epoch=claim.epoch)
        two = Record.create(b"2", after=one.position, epoch=claim.epoch)
        log._client = FullClient(client, executes=True)
        await log.append(one)
        log._client = FullClient(client, executes=False)
        with pytest.raises(NoSpace):
            await log.append(two)
        log._client = client
        assert await read_all(log) == [one]

    on_log(etcd, scenario)


@pytest.mark.timeout(600)
def test_full_etcd_refuses_records_and_takes_them_after_a_trim(tmp_path):
    require_etcd()

    async def scenario(client, log):
        async with leading(log) as (leadership, appender):
            with pytest.raises(NoSpace):
                for _ in range(100):
                    await appender.append(bytes(500_000))
            assert leadership.holds()
            last = appender.last
            assert (await log.bounds()).last == last
            assert [record.position for record in await read_all(log)][-1] == last
            await log.trim(last.index)
            for endpoint in members.endpoints:
                await client.defragment(endpoint, timeout_s=PATIENT_S)
            for alarm in await client.alarms():
                await client.disarm(alarm)
            position = await appender.append(b"last")
            assert await log.bounds() == Bounds(last.index, position)

    with EtcdMembers(tmp_path / "etcd", count=1, options=("--quota-backend-bytes", str(8 << 20))) as members:
        on_log(members, scenario)


async def grown(client, prefix, count=3):
    """Where a new log ends, with records and what was announced, and without a claim."""
    async with open_log(client, prefix) as log, leading(log) as (_, appender):
        for index in range(count):
            await appender.append(b"%d" % index)
        await log.announce("a", b"a checkpoint")
        return appender.last


def test_log_that_has_ended_is_neither_opened_nor_led(etcd):
    async def scenario(client, _log):
        one, two = fresh_prefix(), fresh_prefix()
        ends = [LogChange(prefix, await grown(client, prefix), None) for prefix in (one, two)]
        async with open_log(client, one) as follower:
            for _ in range(2):  # whose answer was lost
                await EtcdLog.change(client, ends, reason="it was moved")
            with pytest.raises(Ended, match="has ended: it was moved"):
                await Contender(follower, "first", lease_s=LEASE_S).lead()
        for prefix in (one, two):
            with pytest.raises(Ended, match="has ended: it was moved"):
                await EtcdLog.open(client, prefix=prefix, cluster="test", create=True)

    on_log(etcd, scenario)


def test_logs_of_which_one_has_grown_or_is_led_do_not_end(etcd):
    async def scenario(client, _log):
        one, two = fresh_prefix(), fresh_prefix()
        ends = [LogChange(prefix, await grown(client, prefix), None) for prefix in (one, two)]
        async with open_log(client, two) as log:
            async with leading(log) as (_, appender):
                with pytest.raises(Busy, match="a process leads the log"):
                    await EtcdLog.change(client, ends, reason="")
                await appender.append(b"more")
            with pytest.raises(Busy, match="has added to it"):
                await EtcdLog.change(client, ends, reason="")
        for prefix in (one, two):
            async with open_log(client, prefix):
                pass

    on_log(etcd, scenario)


def test_log_that_begins_again_has_none_of_its_records_and_refuses_who_led_it(etcd):
    async def scenario(client, _log):
        prefix = fresh_prefix()
        last = await grown(client, prefix)
        begins = Position(last.index + 1, bytes(range(16)))
        async with open_log(client, prefix) as log:
            before = Record.create(b"late", after=last, epoch=1)
            for _ in range(2):  # whose answer was lost
                await EtcdLog.change(client, [LogChange(prefix, last, begins)], reason="")
            assert await log.bounds() == Bounds(begins.index + 1, begins)
            assert await log.announced() == {}
            with pytest.raises(Deposed):
                await log.append(before)
            for known in (last, START):
                with pytest.raises(Trimmed):
                    await log.read(known)
            with pytest.raises(Diverged):
                await log.read(Position(begins.index, last.digest))
            async with leading(log, "second") as (_, appender):
                position = await appender.append(b"new")
            assert position.index == begins.index + 1

    on_log(etcd, scenario)
