"""The directory of backups: what counts as finished, what is removed, what is refused."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from luciola.cli.backup.repository import (
    SCHEMA,
    Manifest,
    PackReader,
    PackWriter,
    Place,
    Repository,
    opened,
    sha256_of,
)
from luciola.client.chunks import crc32c
from luciola.errors import Busy, CorruptData, InvalidArgument, NotFound


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.create(tmp_path / "backups", "c1")


def add(repository: Repository, content: bytes, *, keep: tuple[int, ...] = ()) -> Manifest:
    """A finished backup with one chunk in a new pack, which needs the packs `keep` as well."""
    number, first_pack = repository.begin()
    packs = PackWriter(repository, first_pack)
    pack, offset = packs.add(memoryview(content))
    packs.sync()
    packs.close()
    path = repository.database(number)
    with opened(path, create=True) as base:
        base.executescript(SCHEMA)
        row = (1, 2, 3, 4, 5, len(content), crc32c(content), pack, offset)
        base.execute("INSERT INTO chunk VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        base.commit()
    manifest = Manifest(
        number=number,
        cluster="c1",
        moment_ns=1,
        consistency="moment",
        database_bytes=path.stat().st_size,
        database_sha256=sha256_of(path),
        packs=dict.fromkeys((*keep, pack), len(content)),
        files=1,
        chunks=1,
        bytes=len(content),
        copied_chunks=1,
        copied_bytes=len(content),
        held_ms=1,
    )
    repository.finish(manifest)
    return manifest


def names(repository: Repository) -> set[str]:
    return {path.name for path in (*repository.root.iterdir(), *repository.packs.iterdir())} - {"lock"}


def test_manifest_comes_back_as_it_was_written(repository: Repository) -> None:
    first, second = add(repository, b"one"), add(repository, b"two")
    assert repository.numbers() == [1, 2]
    assert repository.manifest() == second
    assert repository.manifest(1) == first
    assert Repository.open(repository.root).cluster == "c1"
    with pytest.raises(NotFound, match="no backup 3"):
        repository.manifest(3)


def test_what_a_broken_off_run_has_left_is_no_backup_and_is_removed(repository: Repository) -> None:
    add(repository, b"one")
    kept = names(repository)
    repository.database(2).write_bytes(b"half")
    (repository.root / "000002.manifest.new").write_bytes(b"half")
    repository.pack(2).write_bytes(b"half")
    assert repository.numbers() == [1]
    assert repository.begin() == (2, 2)
    assert names(repository) == kept


def test_prune_keeps_packs_that_a_backup_needs(repository: Repository) -> None:
    add(repository, b"one")
    add(repository, b"second")
    add(repository, b"three", keep=(1,))
    assert repository.prune(1) == ([1, 2], len(b"second"))
    assert names(repository) == {
        "luciola-backup",
        "packs",
        "000003.db",
        "000003.manifest",
        "00000001",
        "00000003",
    }
    assert repository.prune(1) == ([], 0)


@pytest.mark.parametrize("place", [0, 30, -3])
def test_damaged_manifest_is_refused(repository: Repository, place: int) -> None:
    add(repository, b"one")
    path = repository.root / "000001.manifest"
    text = bytearray(path.read_bytes())
    text[place] ^= 1
    path.write_bytes(text)
    with pytest.raises(CorruptData, match="manifest is damaged"):
        repository.manifest()


def test_damaged_or_missing_database_is_refused(repository: Repository) -> None:
    manifest = add(repository, b"one")
    repository.check_database(manifest)
    path = repository.database(1)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptData, match="database of the backup is damaged"):
        repository.check_database(manifest)
    path.unlink()
    with pytest.raises(CorruptData, match="missing"):
        repository.check_database(manifest)


def test_pack_gives_only_bytes_that_were_written(repository: Repository) -> None:
    packs = PackWriter(repository, 1)
    content = b"some bytes"
    pack, offset = packs.add(memoryview(content))
    packs.close()
    place = Place(pack, offset, len(content), crc32c(content))
    with PackReader(repository) as reader:
        assert reader.read(place) == content
        for wrong in (place._replace(crc32c=1), place._replace(length=99), place._replace(pack=7)):
            with pytest.raises(CorruptData):
                reader.read(wrong)


class PausedAtTheFirstPack(Repository):
    """Calls `pause` where a pack is about to be opened."""

    def pack(self, number: int) -> Path:
        self.pause()
        return super().pack(number)

    pause: Callable[[], None]


class WatchedLock:
    """A lock that says who asks for it."""

    def __init__(self, asked: Callable[[], None]) -> None:
        self._asked = asked
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._asked()
        self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        self._lock.release()


def test_pack_that_is_being_opened_is_closed(repository: Repository) -> None:
    paused = PausedAtTheFirstPack(repository.root)
    packs = PackWriter(paused, 1)
    came = threading.Semaphore(0)  # `close` has asked for the lock, or has ended without
    packs._lock = WatchedLock(lambda: threading.current_thread() is closing and came.release())

    def close() -> None:
        packs.close()
        came.release()

    closing = threading.Thread(target=close)

    def pause() -> None:
        closing.start()
        came.acquire()

    paused.pause = pause
    packs.add(memoryview(b"some bytes"))
    closing.join()
    assert packs._file == -1


def test_packs_are_of_bounded_size(repository: Repository) -> None:
    packs = PackWriter(repository, 4, pack_bytes=10)
    assert [packs.add(memoryview(b"sixsix")) for _ in range(3)] == [(4, 0), (4, 6), (5, 0)]
    packs.close()


def test_directory_of_something_else_is_refused(tmp_path: Path, repository: Repository) -> None:
    with pytest.raises(InvalidArgument, match="of cluster 'c1', not of 'c2'"):
        Repository.create(repository.root, "c2")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").touch()
    with pytest.raises(InvalidArgument, match="not empty"):
        Repository.create(tmp_path / "full", "c1")
    with pytest.raises(NotFound, match="no directory of backups"):
        Repository.open(tmp_path / "full")
    (repository.root / "luciola-backup").write_text("luciola backups\nformat 2\ncluster c1\n")
    with pytest.raises(InvalidArgument, match="format 1"):
        Repository.open(repository.root)


def test_one_run_at_a_time(repository: Repository) -> None:
    with repository.locked(), pytest.raises(Busy), Repository(repository.root).locked():
        pass
    with repository.locked():
        pass
