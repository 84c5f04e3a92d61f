"""A checkpoint that another replica gives, and a store that begins from it."""

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from luciola.clock import SystemClock
from luciola.errors import AlreadyExists, CorruptData, NotFound, Timeout, Unavailable
from luciola.kv.applied import Applied
from luciola.kv.checkpoint import Catalog, DirectorySource, Seal, fetch, restore
from luciola.kv.checkpoint.fetch import TRIES
from luciola.kv.checkpoint.seal import SealedFile
from luciola.kv.rocksdb import RocksEngine
from store_content import content

from ..records import chain

LOG = b"cluster 1, meta"


class NoPause(SystemClock):
    """Waits between tries take no time."""

    async def sleep(self, duration_s: float) -> None:
        await asyncio.sleep(0)


@pytest.fixture
def applied(tmp_path):
    engine = RocksEngine(tmp_path / "kv", create=True)
    made = Applied(engine, log_id=LOG, create=True)
    for each in chain(300):
        made.apply(each)
    yield made
    engine.close()


@pytest.fixture
def theirs(tmp_path, applied):
    catalog = Catalog(tmp_path / "theirs")
    asyncio.run(catalog.create(applied.engine))
    return catalog


@pytest.fixture
def ours(tmp_path):
    return Catalog(tmp_path / "ours")


class Unreliable:
    """A source that fails after every few bytes, and hands out few at a time."""

    def __init__(self, inner: DirectorySource, *, bytes_between: int, error: type[Exception]) -> None:
        self._inner = inner
        self._between = bytes_between
        self._error = error
        self.offsets: list[int] = []

    async def seals(self):
        return await self._inner.seals()

    async def read(self, name: str, file: str, offset_bytes: int) -> AsyncGenerator[bytes]:
        self.offsets.append(offset_bytes)
        content = b"".join([chunk async for chunk in self._inner.read(name, file, offset_bytes)])
        for begin in range(0, min(len(content), self._between), 100):
            yield content[begin : min(begin + 100, self._between)]
        if len(content) > self._between:
            raise self._error("injected")


class Changed:
    """A source that changes what it reads, or its seals."""

    def __init__(
        self, inner: DirectorySource, *, change=lambda content: content, seal=lambda seal: seal
    ) -> None:
        self._inner = inner
        self._change = change
        self._seal = seal

    async def seals(self):
        return [self._seal(Seal.decode(encoded)).encode() for encoded in await self._inner.seals()]

    async def read(self, name: str, file: str, offset_bytes: int) -> AsyncGenerator[bytes]:
        async for chunk in self._inner.read(name, file, offset_bytes):
            yield self._change(chunk) if file.endswith(".sst") else chunk


def fetched(source, catalog: Catalog, *, log_id: bytes = LOG):
    return asyncio.run(fetch(source, catalog, log_id=log_id, clock=NoPause()))


def test_fetched_checkpoint_is_the_one_that_was_given(theirs, ours):
    made = fetched(DirectorySource(theirs), ours)
    assert made.seal == theirs.newest().seal
    asyncio.run(ours.verify(made))
    assert [path.name for path in ours.directory.iterdir()] == [made.name]


def test_newest_is_fetched_and_only_if_it_is_not_there(theirs, ours, applied):
    fetched(DirectorySource(theirs), ours)
    for each in chain(3, after=applied.position):
        applied.apply(each)
    asyncio.run(theirs.create(applied.engine))
    source = Unreliable(DirectorySource(theirs), bytes_between=1 << 30, error=Unavailable)
    assert fetched(source, ours).seal.position == applied.position
    asked = len(source.offsets)
    assert asked > 0
    fetched(source, ours)
    assert len(source.offsets) == asked


@pytest.mark.parametrize("error", [Unavailable, Timeout])
def test_source_that_fails_again_and_again_is_resumed(theirs, ours, error):
    source = Unreliable(DirectorySource(theirs), bytes_between=1000, error=error)
    made = fetched(source, ours)
    asyncio.run(ours.verify(made))
    assert {0, 1000, 2000} <= set(source.offsets)


def test_source_that_gives_nothing_any_more_is_given_up(theirs, ours):
    source = Unreliable(DirectorySource(theirs), bytes_between=0, error=Unavailable)
    with pytest.raises(Unavailable, match="injected"):
        fetched(source, ours)
    assert source.offsets == [0] * TRIES
    assert list(ours.directory.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: bytes([content[0] ^ 1]) + content[1:], "does not match its checksum"),
        (lambda content: content + b"more", "longer than its seal says"),
    ],
)
def test_content_that_does_not_match_is_refused_and_leaves_nothing(theirs, ours, change, message):
    with pytest.raises(CorruptData, match=message):
        fetched(Changed(DirectorySource(theirs), change=change), ours)
    assert list(ours.directory.iterdir()) == []


@pytest.mark.parametrize("name", ["../../escape", "a/b", ".hidden", "", "SEAL", "x" * 101])
def test_name_that_leads_out_of_the_directory_is_refused(theirs, ours, name):
    def renamed(seal: Seal) -> Seal:
        return Seal(seal.log_id, seal.epoch, seal.position, (SealedFile(name, 1, "00"),))

    with pytest.raises(CorruptData, match="the file"):
        fetched(Changed(DirectorySource(theirs), seal=renamed), ours)


def test_checkpoint_of_another_log_is_refused(theirs, ours):
    with pytest.raises(CorruptData, match="another log"):
        fetched(DirectorySource(theirs), ours, log_id=b"cluster 2, meta")


def test_nothing_to_fetch_is_said(theirs, ours):
    with pytest.raises(NotFound):
        fetched(DirectorySource(ours), theirs)


def test_checkpoint_that_is_removed_meanwhile_is_not_found(theirs, ours):
    class Removed(DirectorySource):
        async def seals(self):
            seals = await super().seals()
            for path in list(theirs.directory.iterdir()):
                path.rename(path.with_name("gone.part"))
            return seals

    with pytest.raises(NotFound):
        fetched(Removed(theirs), ours)
    assert list(ours.directory.iterdir()) == []


def test_cancelled_fetch_leaves_nothing(theirs, ours):
    class Stuck(DirectorySource):
        def __init__(self) -> None:
            super().__init__(theirs)
            self.reached = asyncio.Event()

        async def read(self, name: str, file: str, offset_bytes: int) -> AsyncGenerator[bytes]:
            yield b"x"
            self.reached.set()
            await asyncio.Event().wait()

    async def scenario() -> None:
        source = Stuck()
        task = asyncio.create_task(fetch(source, ours, log_id=LOG))
        await source.reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert list(ours.directory.iterdir()) == []

    asyncio.run(scenario())


def test_restored_store_continues_from_the_position_of_the_checkpoint(theirs, ours, applied, tmp_path):
    made = fetched(DirectorySource(theirs), ours)
    asyncio.run(restore(made, tmp_path / "restored"))
    engine = RocksEngine(tmp_path / "restored")
    try:
        restored = Applied(engine, log_id=LOG)
        assert restored.position == applied.position
        assert content(engine) == content(applied.engine)
        (following,) = chain(1, after=applied.position)
        assert restored.apply(following)
        assert applied.apply(following)
        assert content(engine) == content(applied.engine)
    finally:
        engine.close()
    asyncio.run(ours.verify(made))  # what the store does leaves it alone


def test_restored_tables_are_copied_where_they_cannot_be_linked(theirs, applied, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(18, "another file system")

    monkeypatch.setattr(os, "link", refuse)
    asyncio.run(restore(theirs.newest(), tmp_path / "restored"))
    engine = RocksEngine(tmp_path / "restored")
    try:
        assert content(engine) == content(applied.engine)
    finally:
        engine.close()


def test_damaged_checkpoint_is_not_restored(theirs, tmp_path):
    made = theirs.newest()
    table = next(made.directory.glob("*.sst"))
    changed = bytearray(table.read_bytes())
    changed[10] ^= 1
    table.unlink()
    table.write_bytes(changed)
    with pytest.raises(CorruptData, match="damaged"):
        asyncio.run(restore(made, tmp_path / "restored"))
    assert not (tmp_path / "restored").exists()
    assert not (tmp_path / "restored.part").exists()


def test_nothing_is_restored_over_a_store(theirs, tmp_path):
    with pytest.raises(AlreadyExists):
        asyncio.run(restore(theirs.newest(), tmp_path / "kv"))


def test_half_restored_store_of_a_killed_process_is_replaced(theirs, applied, tmp_path):
    half = Path(tmp_path / "restored.part")
    half.mkdir()
    (half / "CURRENT").write_bytes(b"half")
    asyncio.run(restore(theirs.newest(), tmp_path / "restored"))
    engine = RocksEngine(tmp_path / "restored")
    try:
        assert content(engine) == content(applied.engine)
    finally:
        engine.close()
