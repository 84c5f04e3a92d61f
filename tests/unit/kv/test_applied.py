"""What a store does with the records of a log: each once, in order, of this log alone."""

import asyncio
import os
import random
import subprocess
import sys

import pytest

from luciola.errors import CorruptData, NoSpace
from luciola.kv import Engine, MemoryEngine
from luciola.kv import rocksdb as rocksdb_module
from luciola.kv.applied import POSITION_KEY, Applied, Gap, adopt, release
from luciola.kv.conflicts import KeyRange
from luciola.kv.log import START, Diverged, Record
from luciola.kv.record import Operation
from luciola.kv.rocksdb import RocksEngine
from store_content import content

from .records import chain, puts, record

LOG = b"cluster 1, meta"


@pytest.fixture(params=["memory", "rocksdb"])
def engine(request, tmp_path):
    made: Engine = MemoryEngine() if request.param == "memory" else RocksEngine(tmp_path / "kv", create=True)
    yield made
    made.close()


def applied_to(engine: Engine, *, log_id: bytes = LOG) -> Applied:
    return Applied(engine, log_id=log_id, create=True)


def test_records_are_carried_out_in_order_and_the_position_follows(engine):
    applied = applied_to(engine)
    assert applied.position == START
    records = chain(3)
    assert [applied.apply(each) for each in records] == [True, True, True]
    assert applied.position == records[-1].position
    assert engine.begin().get(b"key") == b"3"


def test_position_is_part_of_the_store(engine):
    applied = applied_to(engine)
    for each in chain(3, epoch=7):
        applied.apply(each)
    again = Applied(engine, log_id=LOG)
    assert (again.position, again.epoch) == (applied.position, 7)


def pairs(engine: Engine) -> list[tuple[bytes, bytes]]:
    """What the store holds but its own keys."""
    return list(engine.begin().get_range(b"", b"\xff"))


def written(engine: Engine, count: int = 3) -> None:
    for number in range(count):
        transaction = engine.begin()
        transaction.put(b"key", b"%d" % number)
        transaction.commit()


def test_store_without_a_log_is_adopted_at_a_position_of_its_own(engine):
    written(engine)
    before, version = pairs(engine), engine.version
    position = adopt(engine, log_id=LOG)
    assert position.index > version, "a store that looks older than before is refused"
    assert pairs(engine) == before
    applied = Applied(engine, log_id=LOG)
    assert applied.position == position
    for each in chain(3, after=position):
        assert applied.apply(each)
    with pytest.raises(CorruptData, match="follows a log already"):
        adopt(engine, log_id=LOG)


def test_two_adoptions_of_equal_stores_are_different_histories():
    first, second = MemoryEngine(), MemoryEngine()
    written(first)
    written(second)
    assert adopt(first, log_id=LOG).digest != adopt(second, log_id=LOG).digest


def test_empty_store_is_not_adopted(engine):
    with pytest.raises(CorruptData, match="empty"):
        adopt(engine, log_id=LOG)


def test_store_that_was_released_is_newer_than_its_log_and_can_be_adopted_again(tmp_path):
    engine = RocksEngine(tmp_path / "kv", create=True)
    try:
        applied = applied_to(engine)
        for each in chain(20):
            applied.apply(each)
        before = pairs(engine)
        release(applied)
        assert pairs(engine) == before
        assert engine.version >= applied.position.index, "a store that looks older than before is refused"
        with pytest.raises(CorruptData, match="follows no log"):
            Applied(engine, log_id=LOG, create=True)
        again = adopt(engine, log_id=LOG)
        assert again.index > applied.position.index
    finally:
        engine.close()


def test_record_is_carried_out_once_however_often_it_arrives(engine):
    applied = applied_to(engine)
    records = chain(4)
    for each in records:
        applied.apply(each)
    before, version = content(engine), engine.version
    assert [applied.apply(each) for each in records] == [False] * 4
    assert (content(engine), engine.version) == (before, version)


def test_record_behind_a_gap_is_refused(engine):
    applied = applied_to(engine)
    records = chain(4)
    applied.apply(records[0])
    before = content(engine)
    with pytest.raises(Gap, match="records 2 to 3 are missing"):
        applied.apply(records[3])
    assert content(engine) == before
    applied.apply(records[1])


def test_record_of_another_history_is_refused_at_its_own_index_and_behind_it(engine):
    applied = applied_to(engine)
    ours, theirs = chain(3), chain(4, tag=b"other")
    for each in ours:
        applied.apply(each)
    before = content(engine)
    for stranger in (theirs[2], theirs[3]):
        with pytest.raises(Diverged):
            applied.apply(stranger)
    assert content(engine) == before


def test_record_of_an_earlier_epoch_is_refused(engine):
    applied = applied_to(engine)
    (first,) = chain(1, epoch=5)
    applied.apply(first)
    with pytest.raises(Diverged, match="epoch 4"):
        applied.apply(puts(first.position, epoch=4, a=b"1"))
    assert applied.position == first.position


def test_damaged_record_changes_nothing(engine):
    applied = applied_to(engine)
    whole = puts(a=b"1")
    torn = Record.create(whole.payload[:-1], after=START, epoch=1)
    before = content(engine)
    with pytest.raises(CorruptData):
        applied.apply(torn)
    assert (content(engine), applied.position) == (before, START)


def test_operations_of_one_record_are_as_if_committed_one_after_another(engine):
    applied = applied_to(engine)
    first = puts(a=b"old", b=b"old", c=b"old")
    applied.apply(first)
    applied.apply(
        record(
            Operation({b"a": b"1", b"ab": b"1"}),
            Operation({b"b": None, b"ac": b"2"}, (KeyRange(b"a", b"ac"),)),  # also what this record put
            Operation({b"a": b"3"}),
            after=first.position,
        )
    )
    assert engine.begin().get_range(b"a", b"d") == [(b"a", b"3"), (b"ac", b"2"), (b"c", b"old")]


def test_store_of_another_log_is_refused(engine):
    applied_to(engine)
    with pytest.raises(Diverged, match="cluster 2"):
        Applied(engine, log_id=b"cluster 2, meta")


def test_store_that_follows_no_log_is_refused(engine):
    with pytest.raises(CorruptData, match="follows no log"):
        Applied(engine, log_id=LOG)
    transaction = engine.begin()
    transaction.put(b"a", b"written without a log")
    transaction.commit()
    with pytest.raises(CorruptData, match="follows no log"):
        applied_to(engine)


def test_store_without_its_position_is_refused(engine):
    applied_to(engine)
    transaction = engine.begin()
    transaction._writes[POSITION_KEY] = None
    transaction.commit()
    with pytest.raises(CorruptData):
        applied_to(engine)


def test_stores_of_one_log_are_equal_byte_by_byte(tmp_path):
    dice = random.Random(11)
    after, records = START, []
    for _ in range(60):
        operations = [some_operation(dice) for _ in range(dice.randint(1, 5))]
        made = record(*operations, after=after)
        records.append(made)
        after = made.position
    memory = MemoryEngine()
    rocks = RocksEngine(tmp_path / "kv", create=True)
    try:
        for engine in (memory, rocks):
            applied = applied_to(engine)
            for each in records:
                applied.apply(each)
        assert content(memory) == content(rocks)
    finally:
        rocks.close()


def some_operation(dice: random.Random) -> Operation:
    keys = [b"%c%d" % (letter, number) for letter in b"abc" for number in range(5)]
    writes = {dice.choice(keys): dice.choice([None, b"%d" % dice.randrange(99)]) for _ in range(4)}
    begin, end = sorted(dice.sample(keys, 2))
    return Operation(writes, (KeyRange(begin, end),) if dice.random() < 0.3 else ())


def test_agreed_record_is_carried_out_with_the_last_space(tmp_path, monkeypatch):
    engine = RocksEngine(tmp_path / "kv", create=True)
    try:
        applied = applied_to(engine)
        monkeypatch.setattr(rocksdb_module, "RESERVE_BYTES", 1 << 60)
        monkeypatch.setattr(rocksdb_module, "SPACE_CHECK_BYTES", 0)
        transaction = engine.begin()
        transaction.put(b"a", b"1")
        with pytest.raises(NoSpace):
            transaction.commit()
        assert applied.apply(puts(a=b"1"))
    finally:
        engine.close()


def test_durable_position_is_that_of_the_call_not_of_the_return(tmp_path):
    async def scenario() -> None:
        engine = RocksEngine(tmp_path / "kv", create=True, sync_interval_s=60)
        try:
            applied = applied_to(engine)
            records = chain(2)
            applied.apply(records[0])
            assert applied.durable == START
            waiting = asyncio.create_task(applied.sync())
            await asyncio.sleep(0)  # it has asked
            applied.apply(records[1])
            assert (await waiting).index >= 1
            assert applied.durable == records[0].position
            assert await applied.sync() == records[1].position
        finally:
            engine.close()

    asyncio.run(scenario())


# Carries out records until it is killed.
CHILD = """
import sys
from pathlib import Path
from luciola.kv.applied import Applied
from luciola.kv.rocksdb import RocksEngine
from records import chain
applied = Applied(RocksEngine(Path(sys.argv[1]), create=True), log_id=b"log", create=True)
for record in chain(2000):
    applied.apply(record)
    sys.stdout.buffer.write(b"%d\\n" % record.index)
    sys.stdout.buffer.flush()
"""


def test_killed_store_is_at_a_record_and_says_at_which(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "kv")],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.path.dirname(__file__)},  # for `records`
    ) as child:
        assert child.stdout is not None
        try:
            acknowledged = 0
            for line in child.stdout:
                acknowledged = int(line)
                if acknowledged >= 500:
                    break
        finally:
            child.kill()
            rest = child.stdout.read().splitlines(keepends=True)
    acknowledged = max([acknowledged, *(int(line) for line in rest if line.endswith(b"\n"))])
    engine = RocksEngine(tmp_path / "kv")
    try:
        applied = Applied(engine, log_id=b"log")
        records = chain(2000)
        assert applied.position.index >= acknowledged >= 500
        assert applied.position == records[applied.position.index - 1].position
        assert engine.begin().get(b"key") == b"%d" % applied.position.index
        assert len(engine.begin().get_range(b"own", b"owo")) == applied.position.index
        for each in records:
            applied.apply(each)
        assert engine.begin().get(b"key") == b"2000"
    finally:
        engine.close()
