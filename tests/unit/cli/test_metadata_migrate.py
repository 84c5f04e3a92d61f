"""What a migration leaves when it fails, which replica it takes, and when it knows that a log has ended."""

import asyncio
import os

import pytest

from luciola.cli.datadir import DataDir, Shape
from luciola.cli.metadata_log import CLAIMS_MAX, bounds_without_leader
from luciola.cli.metadata_migrate import KINDS, stage_released, to_logs
from luciola.cli.metadata_options import PRIVATE, MetadataWanted
from luciola.errors import Busy, CorruptData, Unavailable
from luciola.kv.applied import IDENTITY_KEY, Applied
from luciola.kv.log import START, Contender, Diverged, MemoryLog, Record, Trimmed
from luciola.kv.record import Operation, encode_record
from luciola.kv.rocksdb import RocksEngine
from luciola.wire import Cluster
from virtual_loop import LoopClock, simulate

LOG = b"cluster 1, meta"
KEYS = 400  # more than a block of a table
SILENCE_S = 10.0  # longer than a lease


class SilentLog(MemoryLog):
    """Its first `silences` answers to `bounds` take longer than a lease, and no renewal arrives meanwhile."""

    def __init__(self, silences: int) -> None:
        super().__init__()
        self.silences = silences
        self.is_silent = False
        self.epochs: list[int] = []

    async def bounds(self):
        claim = await self.claim()
        if claim is not None:
            self.epochs.append(claim.epoch)
        if self.silences > 0:
            self.silences -= 1
            self.is_silent = True
            await asyncio.sleep(SILENCE_S)
            self.is_silent = False
        return await super().bounds()

    async def renew_claim(self, claim):
        if self.is_silent:
            raise Unavailable("no answer")
        return await super().renew_claim(claim)


def test_another_claim_follows_one_that_is_lost_meanwhile():
    async def scenario():
        log = SilentLog(1)
        bounds = await bounds_without_leader(log, "meta", clock=LoopClock())
        assert bounds.last == START
        first, second = log.epochs
        assert first < second
        assert await log.claim() is None, "others need not wait for it"

    simulate(scenario())


def test_claims_that_are_lost_are_counted():
    async def scenario():
        log = SilentLog(CLAIMS_MAX)
        with pytest.raises(
            Unavailable, match=r"claim on the log of meta was lost .* \(its lease has run out\)"
        ):
            await bounds_without_leader(log, "meta", clock=LoopClock())
        assert len(set(log.epochs)) == CLAIMS_MAX

    simulate(scenario())


def test_log_that_is_led_is_refused_by_the_name_of_the_leader():
    async def scenario():
        log = MemoryLog()
        leadership = await Contender(log, "127.0.0.1:7000", clock=LoopClock()).lead()
        with pytest.raises(Busy, match=r"127\.0\.0\.1:7000 leads the log of meta"):
            await bounds_without_leader(log, "meta", clock=LoopClock())
        assert leadership.holds()
        await leadership.close()

    simulate(scenario())


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A stopped cluster with one store each; programs are there for a private etcd, and openssl fails."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("etcd", "openssl"):
        (programs / name).write_text("#!/bin/sh\nexit 1\n")
        (programs / name).chmod(0o700)
    monkeypatch.setenv("PATH", str(programs))
    data = DataDir(tmp_path / "data")
    data.create()
    data.write_shape(Shape(Cluster("c1", "127.0.0.1:1", "127.0.0.1:2", "/secret"), 1, 1, has_stores=True))
    for kind in KINDS:
        engine = RocksEngine(data.root / kind, create=True)
        transaction = engine.begin()
        transaction.put(b"key", kind.encode())
        transaction.commit()
        engine.close()
    return data


def test_attempt_that_fails_leaves_nothing_behind(data):
    before = {path.name for path in data.root.iterdir()}
    with pytest.raises(Unavailable, match="openssl made no certificate"):
        to_logs(data, data.read_shape(), MetadataWanted(PRIVATE))
    assert {path.name for path in data.root.iterdir()} == before


def test_what_a_killed_attempt_left_is_kept_and_named(data, caplog):
    member = data.root / "etcd-1"
    member.mkdir()
    (member / "content").write_text("of somebody")
    with pytest.raises(Unavailable, match="openssl made no certificate"):
        to_logs(data, data.read_shape(), MetadataWanted(PRIVATE))
    (aside,) = data.root.glob("etcd-1.aside-*")
    assert (aside / "content").read_text() == "of somebody"
    assert f"{member} belongs to no cluster, and is kept as {aside.name}" in caplog.text


def test_damaged_store_is_not_given_a_log(data):
    destroy(data.root / "meta")
    before = {path.name for path in data.root.iterdir()}
    with pytest.raises(CorruptData):
        to_logs(data, data.read_shape(), MetadataWanted(PRIVATE))
    assert {path.name for path in data.root.iterdir()} == before


@pytest.fixture
def records():
    made, after = [], START
    for index in range(4):
        pairs = {b"%d-%04d" % (index, number): os.urandom(200) for number in range(KEYS)}
        made.append(Record.create(encode_record([Operation(pairs)]), after=after, epoch=1))
        after = made[-1].position
    return made


def replica(directory, records, *, log_id=LOG):
    """A store that has carried out `records`, all of it in tables."""
    engine = RocksEngine(directory, create=True)
    applied = Applied(engine, log_id=log_id, create=True)
    for record in records:
        applied.apply(record)
    engine.close()
    RocksEngine(directory).close()  # makes a table of what the log held
    return directory


def damage(store):
    """Overwrite a block in the middle of the store's only large table."""
    table = max(store.glob("*.sst"), key=lambda path: path.stat().st_size)
    with table.open("r+b") as file:
        file.seek(table.stat().st_size // 2)
        file.write(b"\xff" * 64)


def release_one(records, stores, target, *, trimmed=0):
    """What `stage_released` does with a log of `records`, the first `trimmed` of which are gone."""

    async def scenario():
        log = MemoryLog()
        claim = await log.create_claim("a leader", lease_s=1.0)
        for record in records:
            await log.append(record)
        await log.end_claim(claim)
        await log.trim(trimmed + 1)
        await stage_released(log, await log.bounds(), stores, target, log_id=LOG)

    asyncio.run(scenario())


def require_everything(store, records):
    engine = RocksEngine(store)
    try:
        reader = engine.begin()
        assert [int(key[:1]) for key, _ in reader.get_range(b"", b"\xff")] == [
            number for number in range(len(records)) for _ in range(KEYS)
        ]
        assert reader.snapshot_get(IDENTITY_KEY) is None, "it follows a log"
        reader.cancel()
    finally:
        engine.close()


def test_furthest_replica_is_brought_to_the_end(tmp_path, records):
    stores = [replica(tmp_path / "meta", records[:1]), replica(tmp_path / "meta-2", records[:3])]
    release_one(records, stores, tmp_path / "meta.new", trimmed=2)
    require_everything(tmp_path / "meta.new", records)


def destroy(store):
    (store / "CURRENT").write_text("nothing\n")


@pytest.mark.parametrize("hurt", [damage, destroy])
def test_damaged_replica_is_left_out(tmp_path, records, caplog, hurt):
    stores = [replica(tmp_path / "meta", records[:3]), replica(tmp_path / "meta-2", records)]
    hurt(stores[1])
    release_one(records, stores, tmp_path / "meta.new")
    require_everything(tmp_path / "meta.new", records)
    assert f"{stores[1]} is left out" in caplog.text


@pytest.mark.parametrize("hurt", [damage, destroy])
def test_last_replica_is_refused_if_it_is_damaged(tmp_path, records, hurt):
    store = replica(tmp_path / "meta", records)
    hurt(store)
    with pytest.raises(CorruptData):
        release_one(records, [store], tmp_path / "meta.new")
    assert not (tmp_path / "meta.new").exists()


def test_replica_that_has_what_its_log_lost_is_refused(tmp_path, records):
    """Another fits the log, but is older: to take it would lose the last record for good."""
    stores = [replica(tmp_path / "meta", records[:3]), replica(tmp_path / "meta-2", records)]
    with pytest.raises(Diverged, match=r"restored from an old snapshot.*meta-2"):
        release_one(records[:3], stores, tmp_path / "meta.new")


def test_replicas_that_are_too_old_are_refused(tmp_path, records):
    stores = [replica(tmp_path / "meta", records[:1]), replica(tmp_path / "meta-2", [], log_id=b"another")]
    with pytest.raises(Trimmed, match="records 2 to 2 of the log are not kept"):
        release_one(records, stores, tmp_path / "meta.new", trimmed=2)


def test_no_replica_is_refused(tmp_path, records):
    with pytest.raises(CorruptData, match="no store is here"):
        release_one(records, [tmp_path / "meta"], tmp_path / "meta.new")
