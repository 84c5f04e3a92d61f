"""Checkpoints of one directory: complete or not there, sealed, and cheap."""

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from luciola.errors import Busy, CorruptData, NoSpace, Unavailable
from luciola.kv.applied import Applied
from luciola.kv.checkpoint import Catalog, Checkpoint
from luciola.kv.checkpoint import catalog as module
from luciola.kv.checkpoint.seal import SEAL_NAME, Seal, hash_file
from luciola.kv.rocksdb import RocksEngine

from ..records import chain

LOG = b"cluster 1, meta"


@pytest.fixture
def engine(tmp_path):
    made = RocksEngine(tmp_path / "kv", create=True)
    yield made
    made.close()


@pytest.fixture
def applied(engine):
    return Applied(engine, log_id=LOG, create=True)


@pytest.fixture
def catalog(tmp_path):
    return Catalog(tmp_path / "checkpoints")


def grow(applied: Applied, count: int) -> None:
    for each in chain(count, after=applied.position):
        applied.apply(each)


async def grown(applied: Applied, catalog: Catalog, count: int) -> Checkpoint:
    grow(applied, count)
    return await catalog.create(applied.engine)


def damage(path: Path, change: Callable[[bytearray], None]) -> None:
    """Put a changed copy in the place of a file, which others may have a link to."""
    content = bytearray(path.read_bytes())
    change(content)
    path.unlink()
    path.write_bytes(content)


def table_of(checkpoint: Checkpoint) -> Path:
    return next(iter(sorted(checkpoint.directory.glob("*.sst"))))


def test_checkpoint_has_the_position_of_the_store(applied, catalog):
    made = asyncio.run(grown(applied, catalog, 20))
    assert made.seal.position == applied.position
    assert (made.seal.log_id, made.seal.epoch) == (LOG, applied.epoch)
    assert list(catalog.checkpoints()) == [made]
    asyncio.run(catalog.verify(made))


def test_tables_of_a_checkpoint_are_links_to_those_of_the_store(applied, catalog, tmp_path):
    made = asyncio.run(grown(applied, catalog, 20))
    table = table_of(made)
    assert table.stat().st_ino == (tmp_path / "kv" / table.name).stat().st_ino


def test_checkpoint_stays_as_it_was_while_the_store_changes(applied, catalog):
    async def scenario() -> None:
        first = await grown(applied, catalog, 5)
        grow(applied, 500)
        await catalog.verify(first)
        assert first.seal.position.index == 5

    asyncio.run(scenario())


def test_second_checkpoint_of_one_position_is_the_first(applied, catalog):
    async def scenario() -> None:
        first = await grown(applied, catalog, 5)
        assert await catalog.create(applied.engine) == first
        assert [path.name for path in catalog.directory.iterdir()] == [first.name]

    asyncio.run(scenario())


def test_checkpoints_are_listed_oldest_first_and_the_newest_are_retained(applied, catalog):
    async def scenario() -> None:
        made = [await grown(applied, catalog, 9) for _ in range(4)]
        assert list(catalog.checkpoints()) == made
        assert catalog.newest() == made[-1]
        assert list(await catalog.retain(2)) == [made[0].name, made[1].name]
        assert list(catalog.checkpoints()) == made[2:]
        for each in made[2:]:
            await catalog.verify(each)

    asyncio.run(scenario())


def test_only_tables_that_are_new_are_read_to_seal_them(applied, catalog, monkeypatch):
    hashed: list[str] = []

    def counting(path: Path):
        hashed.append(path.name)
        return hash_file(path)

    async def scenario() -> None:
        first = await grown(applied, catalog, 50)
        monkeypatch.setattr(module, "hash_file", counting)
        second = await grown(applied, catalog, 50)
        old = {file.name for file in first.seal.files if file.name.endswith(".sst")}
        new = {file.name for file in second.seal.files if file.name.endswith(".sst")}
        assert old, "the first one has a table"
        assert {name for name in hashed if name.endswith(".sst")} == new - old
        assert {file for file in second.seal.files if file.name in old} <= set(first.seal.files)
        await catalog.verify(second)

    asyncio.run(scenario())


def test_file_that_only_has_the_name_of_a_sealed_one_is_read(applied, catalog, engine, tmp_path):
    """Another store's table may have the same name, and even the same length."""

    async def scenario() -> None:
        first = await grown(applied, catalog, 5)
        with RocksCopy(tmp_path / "other") as other:
            grow(other, 3)
            for each in chain(4, after=other.position, tag=b"other"):
                other.apply(each)
            second = await catalog.create(other.engine)
        assert first.seal.position != second.seal.position
        await catalog.verify(second)

    asyncio.run(scenario())


class RocksCopy:
    """A second store of the same log."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __enter__(self) -> Applied:
        self._engine = RocksEngine(self._directory, create=True)
        return Applied(self._engine, log_id=LOG, create=True)

    def __exit__(self, *_: object) -> None:
        self._engine.close()


@pytest.mark.parametrize("what", ["flipped", "cut", "gone", "stranger", "a link"])
def test_damage_is_found(applied, catalog, tmp_path, what):
    made = asyncio.run(grown(applied, catalog, 50))
    table = table_of(made)
    match what:
        case "flipped":
            damage(
                table, lambda content: content.__setitem__(len(content) // 2, content[len(content) // 2] ^ 1)
            )
        case "cut":
            damage(table, lambda content: content.pop())
        case "gone":
            table.unlink()
        case "stranger":
            (made.directory / "000999.sst").write_bytes(b"")
        case "a link":
            moved = tmp_path / "moved"
            table.rename(moved)
            table.symlink_to(moved)
    with pytest.raises(CorruptData, match="sealed" if what == "stranger" else f"damaged: {table.name}"):
        asyncio.run(catalog.verify(made))


def test_checkpoint_without_a_whole_seal_is_not_listed_and_makes_room(applied, catalog, caplog):
    async def scenario() -> None:
        made = await grown(applied, catalog, 5)
        damage(made.directory / SEAL_NAME, lambda content: content.__setitem__(20, content[20] ^ 1))
        assert list(catalog.checkpoints()) == []
        assert "skipped" in caplog.text
        again = await catalog.create(applied.engine)
        await catalog.verify(again)
        assert list(catalog.checkpoints()) == [again]

    asyncio.run(scenario())


@pytest.mark.parametrize("cut", [0, 1, 40, -1, -30])
def test_torn_seal_is_refused(applied, catalog, cut):
    encoded = asyncio.run(grown(applied, catalog, 5)).seal.encode()
    assert Seal.decode(encoded).encode() == encoded
    with pytest.raises(CorruptData):
        Seal.decode(encoded[:cut])


def test_what_a_killed_process_left_is_removed(applied, catalog):
    made = asyncio.run(grown(applied, catalog, 5))
    for name in ("new.part", "new.part.tmp", "00000000000000000003.part"):
        (catalog.directory / name).mkdir()
        (catalog.directory / name / "000001.sst").write_bytes(b"x")
    assert list(Catalog(catalog.directory).checkpoints()) == [made]
    assert [path.name for path in catalog.directory.iterdir()] == [made.name]


class Held:
    """An engine whose checkpoint is made, and then waits for the test, in its thread."""

    def __init__(self, engine: RocksEngine, loop: asyncio.AbstractEventLoop) -> None:
        self._engine = engine
        self._loop = loop
        self.begun = asyncio.Event()
        self.released = threading.Event()

    def checkpoint(self, directory: Path) -> None:
        self._engine.checkpoint(directory)
        self._loop.call_soon_threadsafe(self.begun.set)
        assert self.released.wait(200), "the test releases it"


def test_cancelled_checkpoint_leaves_nothing(applied, catalog):
    async def scenario() -> None:
        grow(applied, 5)
        held = Held(applied.engine, asyncio.get_running_loop())
        try:
            task = asyncio.create_task(catalog.create(held))
            await held.begun.wait()
            for _ in range(3):  # who cancels is impatient
                task.cancel()
                await asyncio.sleep(0)
            assert not task.done(), "the thread still works in the directory"
        finally:
            held.released.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert list(catalog.directory.iterdir()) == []
        made = await catalog.create(applied.engine)
        await catalog.verify(made)

    asyncio.run(scenario())


def test_only_one_checkpoint_is_made_at_a_time(applied, catalog):
    async def scenario() -> None:
        grow(applied, 5)
        held = Held(applied.engine, asyncio.get_running_loop())
        try:
            task = asyncio.create_task(catalog.create(held))
            await held.begun.wait()
            with pytest.raises(Busy):
                await catalog.create(applied.engine)
        finally:
            held.released.set()
        made = await task
        assert list(catalog.checkpoints()) == [made]

    asyncio.run(scenario())


class Failing:
    """An engine that cannot make a checkpoint, and leaves half of one."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def checkpoint(self, directory: Path) -> None:
        half = directory.with_name(directory.name + ".tmp")
        half.mkdir()
        (half / "000001.sst").write_bytes(b"half")
        raise self._error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(28, os.strerror(28)), NoSpace),
        (OSError(5, os.strerror(5)), Unavailable),
        (CorruptData("refused"), CorruptData),
    ],
)
def test_failed_checkpoint_is_an_error_and_leaves_nothing(catalog, error, expected):
    with pytest.raises(expected):
        asyncio.run(catalog.create(Failing(error)))
    assert list(catalog.directory.iterdir()) == []


def test_store_that_follows_no_log_has_no_checkpoint(engine, catalog):
    transaction = engine.begin()
    transaction.put(b"a", b"1")
    transaction.commit()
    with pytest.raises(CorruptData, match="follows no log"):
        asyncio.run(catalog.create(engine))
    assert list(catalog.directory.iterdir()) == []


def test_name_is_durable_before_create_returns(applied, catalog, monkeypatch):
    """Synced in this order: the files, the directory that holds them, and after the rename the one with its name."""
    events: list[str] = []

    def recording(name, original):
        def call(path, *arguments):
            events.append(f"{name} {Path(path).name}")
            return original(path, *arguments)

        return call

    grow(applied, 5)
    monkeypatch.setattr(module, "sync_file", recording("file", module.sync_file))
    monkeypatch.setattr(module, "sync_directory", recording("directory", module.sync_directory))
    monkeypatch.setattr(Path, "rename", recording("rename", Path.rename))
    made = asyncio.run(catalog.create(applied.engine))
    copied = {file.name for file in made.seal.files if not file.name.endswith(".sst")} | {SEAL_NAME}
    assert {event.removeprefix("file ") for event in events[: len(copied)]} == copied
    assert events[len(copied) :] == ["directory new.part", "rename new.part", "directory checkpoints"]
