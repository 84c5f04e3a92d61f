"""What every ordered log does: subclass `LogContract` in a test module, and say how to run a scenario on a log."""

import asyncio
from contextlib import aclosing
from itertools import pairwise

import pytest

from luciola.errors import InvalidArgument
from luciola.kv.log import (
    RECORD_BYTES_MAX,
    START,
    Bounds,
    Deposed,
    Diverged,
    NotAtEnd,
    OrderedLog,
    Position,
    Record,
    Trimmed,
)

LEASE_S = 5.0
WAIT_S = 120.0  # for what must come at once, on a busy machine


async def claimed(log: OrderedLog, owner: str = "first"):
    claim = await log.create_claim(owner, lease_s=LEASE_S)
    assert claim is not None, "no other process claims this log"
    return claim


async def append(log: OrderedLog, epoch: int, *payloads: bytes, after: Position = START) -> list[Record]:
    records = []
    for payload in payloads:
        record = Record.create(payload, after=after, epoch=epoch)
        await log.append(record)
        records.append(record)
        after = record.position
    return records


async def soon(awaitable):
    return await asyncio.wait_for(awaitable, WAIT_S)


class LogContract:
    """The tests. `run(scenario)` calls `await scenario(log)` with an empty log and closes it."""

    def run(self, scenario):
        raise NotImplementedError

    def test_new_log_is_empty(self):
        async def scenario(log):
            assert await log.bounds() == Bounds(1, START)
            assert list(await log.read(START)) == []
            assert await log.claim() is None

        self.run(scenario)

    def test_what_was_announced_last_under_each_name_is_kept_beside_the_records(self):
        async def scenario(log):
            assert await log.announced() == {}
            await log.announce("a", b"1")
            await log.announce("b/\u00fc", bytes(1024))
            await log.announce("a", b"")
            assert await log.announced() == {"a": b"", "b/\u00fc": bytes(1024)}
            assert await log.bounds() == Bounds(1, START)
            claim = await claimed(log)
            await append(log, claim.epoch, b"one", b"two")
            await log.trim(2)
            assert (await log.bounds()).first == 2
            assert len(await log.announced()) == 2
            await log.withdraw("a")
            await log.withdraw("a")
            assert await log.announced() == {"b/\u00fc": bytes(1024)}
            for name, value in (("", b""), ("n" * 1025, b""), ("a", bytes(1025))):
                with pytest.raises(InvalidArgument):
                    await log.announce(name, value)

        self.run(scenario)

    def test_records_are_read_as_they_were_appended(self):
        async def scenario(log):
            claim = await claimed(log)
            payloads = (b"one", b"", b"\x00three\xff" * 7, bytes(RECORD_BYTES_MAX))
            records = await append(log, claim.epoch, *payloads)
            assert list(await log.read(START)) == records
            assert [record.payload for record in records] == list(payloads)
            assert [record.index for record in records] == [1, 2, 3, 4]
            assert await log.bounds() == Bounds(1, records[-1].position)
            assert list(await log.read(records[1].position)) == records[2:]
            assert list(await log.read(records[-1].position)) == []
            assert list(await log.read(START, limit=2)) == records[:2]

        self.run(scenario)

    def test_append_without_a_claim_is_refused(self):
        async def scenario(log):
            with pytest.raises(Deposed):
                await append(log, 1, b"x")
            assert (await log.bounds()).last == START

        self.run(scenario)

    def test_append_under_an_ended_claim_is_refused(self):
        async def scenario(log):
            old = await claimed(log)
            (record,) = await append(log, old.epoch, b"x")
            assert await log.end_claim(old)
            with pytest.raises(Deposed):
                await append(log, old.epoch, b"y", after=record.position)
            new = await claimed(log, "second")
            assert new.epoch > old.epoch
            with pytest.raises(Deposed):
                await append(log, old.epoch, b"y", after=record.position)
            (second,) = await append(log, new.epoch, b"z", after=record.position)
            assert list(await log.read(START)) == [record, second]

        self.run(scenario)

    def test_append_elsewhere_than_at_the_end_is_refused(self):
        async def scenario(log):
            claim = await claimed(log)
            first, second = await append(log, claim.epoch, b"one", b"two")
            other = Record.create(b"one of another log", after=START, epoch=claim.epoch)
            for after in (START, first.position, other.position):
                with pytest.raises(NotAtEnd):
                    await append(log, claim.epoch, b"x", after=after)
            beyond = Record.create(b"three", after=second.position, epoch=claim.epoch)
            with pytest.raises(NotAtEnd):
                await append(log, claim.epoch, b"four", after=beyond.position)
            same_index = Position(second.index, other.position.digest)
            with pytest.raises(NotAtEnd):
                await append(log, claim.epoch, b"x", after=same_index)
            assert list(await log.read(START)) == [first, second]

        self.run(scenario)

    def test_record_that_is_appended_again_is_refused(self):
        async def scenario(log):
            claim = await claimed(log)
            records = await append(log, claim.epoch, b"one")
            with pytest.raises(NotAtEnd):
                await log.append(records[0])
            assert list(await log.read(START)) == records

        self.run(scenario)

    def test_claim_is_created_once(self):
        async def scenario(log):
            claim = await claimed(log)
            assert await log.create_claim("second", lease_s=LEASE_S) is None
            assert await log.claim() == claim
            assert (claim.owner, claim.lease_s) == ("first", LEASE_S)

        self.run(scenario)

    def test_renewed_claim_has_a_new_revision_and_the_same_epoch(self):
        async def scenario(log):
            claim = await claimed(log)
            renewed = await log.renew_claim(claim)
            again = await log.renew_claim(claim)
            assert renewed.epoch == again.epoch == claim.epoch
            assert claim.revision < renewed.revision < again.revision
            assert await log.claim() == again
            await append(log, claim.epoch, b"one")

        self.run(scenario)

    def test_renewed_claim_is_not_ended(self):
        async def scenario(log):
            claim = await claimed(log)
            renewed = await log.renew_claim(claim)
            assert not await log.end_claim(claim)
            assert await log.claim() == renewed
            assert await log.end_claim(renewed)
            assert await log.claim() is None
            assert await log.end_claim(renewed), "it has gone"

        self.run(scenario)

    def test_ended_claim_is_not_renewed(self):
        async def scenario(log):
            claim = await claimed(log)
            await log.end_claim(claim)
            with pytest.raises(Deposed):
                await log.renew_claim(claim)
            second = await claimed(log, "second")
            with pytest.raises(Deposed):
                await log.renew_claim(claim)
            assert await log.claim() == second
            assert await log.end_claim(claim), "it has gone"
            assert await log.claim() == second

        self.run(scenario)

    def test_owner_has_a_name_within_bounds(self):
        async def scenario(log):
            for owner in ("", "x" * 1025):
                with pytest.raises(InvalidArgument):
                    await log.create_claim(owner, lease_s=LEASE_S)

        self.run(scenario)

    def test_record_has_a_limit(self):
        with pytest.raises(InvalidArgument):
            Record.create(bytes(RECORD_BYTES_MAX + 1), after=START, epoch=1)

    def test_trimmed_records_are_not_read(self):
        async def scenario(log):
            claim = await claimed(log)
            records = await append(log, claim.epoch, b"1", b"2", b"3", b"4")
            await log.trim(3)
            assert await log.bounds() == Bounds(3, records[-1].position)
            assert list(await log.read(records[1].position)) == records[2:]
            for record in (START, records[0].position):
                with pytest.raises(Trimmed):
                    await log.read(record)
            await log.trim(2)  # has been done
            assert (await log.bounds()).first == 3
            await append(log, claim.epoch, b"5", after=records[-1].position)

        self.run(scenario)

    def test_whole_log_is_trimmed_and_grows_again(self):
        async def scenario(log):
            claim = await claimed(log)
            records = await append(log, claim.epoch, b"1", b"2")
            await log.end_claim(claim)
            with pytest.raises(InvalidArgument):
                await log.trim(4)
            await log.trim(3)
            assert await log.bounds() == Bounds(3, records[-1].position)
            assert list(await log.read(records[-1].position)) == []
            claim = await claimed(log)
            last = await append(log, claim.epoch, b"3", after=records[-1].position)
            assert list(await log.read(records[-1].position)) == last

        self.run(scenario)

    def test_position_of_another_history_is_refused(self):
        async def scenario(log):
            claim = await claimed(log)
            records = await append(log, claim.epoch, b"1", b"2")
            fork = Record.create(b"another 1", after=START, epoch=claim.epoch)
            longer = Record.create(b"3", after=records[-1].position, epoch=claim.epoch)
            same_length = Record.create(b"another 2", after=fork.position, epoch=claim.epoch)
            for position in (fork.position, longer.position, same_length.position):
                with pytest.raises(Diverged):
                    await log.read(position)
                with pytest.raises(Diverged):
                    async with aclosing(log.follow(position)) as batches:
                        await soon(anext(batches))

        self.run(scenario)

    def test_follower_gets_every_record_once_in_order(self):
        async def scenario(log):
            claim = await claimed(log)
            first = await append(log, claim.epoch, b"1", b"2")
            got = []
            async with aclosing(log.follow(START)) as batches:
                got += await soon(anext(batches))
                later = asyncio.create_task(
                    append(log, claim.epoch, *(b"%d" % n for n in range(3, 60)), after=first[-1].position)
                )
                while len(got) < 59:
                    batch = await soon(anext(batches))
                    assert batch, "a batch is not empty"
                    got += batch
                assert got == first + await later
            assert all(one.position == two.after for one, two in pairwise(got))

        self.run(scenario)

    def test_follower_begins_at_its_position(self):
        async def scenario(log):
            claim = await claimed(log)
            records = await append(log, claim.epoch, b"1", b"2", b"3")
            async with aclosing(log.follow(records[1].position)) as batches:
                assert list(await soon(anext(batches))) == records[2:]
            await log.trim(3)
            with pytest.raises(Trimmed):
                async with aclosing(log.follow(START)) as batches:
                    await soon(anext(batches))

        self.run(scenario)

    def test_watcher_of_claims_sees_the_present_one_and_the_end(self):
        async def scenario(log):
            async with aclosing(log.claims()) as claims:
                assert await soon(anext(claims)) is None
                claim = await claimed(log)
                assert await soon(anext(claims)) == claim
                renewed = await log.renew_claim(claim)
                assert await soon(anext(claims)) == renewed
                await append(log, claim.epoch, b"1")
                await log.end_claim(renewed)
                while (seen := await soon(anext(claims))) is not None:
                    assert seen == renewed
            async with aclosing(log.claims()) as claims:
                assert await soon(anext(claims)) is None

        self.run(scenario)
