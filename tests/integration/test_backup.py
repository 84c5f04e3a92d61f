"""Backups of a running cluster, and what comes back from them."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cluster import LocalCluster, luciola, until
from disk_bytes import find, small_disk
from luciola import connect
from luciola.cli.backup.repository import Repository
from luciola.config import ClientConfig
from luciola.errors import Error

pytestmark = [pytest.mark.mount, pytest.mark.slow]

KIB, MIB = 1 << 10, 1 << 20
CHUNK = MIB


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    root = tmp_path_factory.mktemp("source")
    with LocalCluster(root, mount=True) as cluster:
        yield cluster


@pytest.fixture
def tree(source: LocalCluster, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory with one of everything; removed afterwards."""
    assert source.mountpoint is not None, "it was started with a mount"
    root = source.mountpoint / request.node.originalname
    (root / "empty").mkdir(parents=True)
    for name, size in (("inline", 100), ("small", 9000), ("large", 3 * CHUNK + 7), ("nothing", 0)):
        (root / name).write_bytes(os.urandom(size))
    with (root / "sparse").open("wb") as file:
        file.truncate(5 * CHUNK)
        file.seek(2 * CHUNK + 5)
        file.write(b"in the middle")
    (root / "link").symlink_to("large")
    os.link(root / "large", root / "empty" / "second name")
    os.mkfifo(root / "fifo", 0o600)
    os.setxattr(root / "small", "user.colour", b"blue")
    (root / "small").chmod(0o640)
    os.chown(root / "small", 1000, 1001)
    os.utime(root / "small", ns=(1_000_000_007, 2_000_000_009))
    yield root
    subprocess.run(["rm", "-rf", str(root)], check=True)


@contextmanager
def restored(root: Path, backups: Path, *, nodes: int = 1, replicas: int = 1) -> Iterator[Path]:
    """The mount of another cluster, of another shape, into which the newest backup was restored."""
    cluster = LocalCluster(root, storage_nodes=nodes, replicas=replicas)
    with cluster:
        luciola("restore", "--data", str(cluster.data), str(backups))
        assert cluster.fsck("--scrub")["problems"] == []
        with cluster.mounted("restored") as mountpoint:
            yield mountpoint


def take(source: LocalCluster, backups: Path, *options: str) -> dict[str, Any]:
    """Take a backup. Returns its manifest."""
    luciola("backup", "take", "--data", str(source.data), *options, str(backups))
    return vars(Repository.open(backups).manifest())


def described(root: Path) -> dict[str, tuple[Any, ...]]:
    """Everything below `root`: attributes, and a digest of what is in it."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in sorted([root, *root.rglob("*")]):
        info = path.lstat()
        content: Any = ""
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        attributes = {} if path.is_symlink() else {n: os.getxattr(path, n) for n in os.listxattr(path)}
        times = info.st_mtime_ns, 0 if path.is_dir() else info.st_ctime_ns
        size = 0 if path.is_dir() else info.st_size
        name = str(path.relative_to(root))
        found[name] = (
            info.st_mode,
            info.st_nlink,
            info.st_uid,
            info.st_gid,
            size,
            *times,
            content,
            attributes,
        )
    return found


class Writer(threading.Thread):
    """Writes a rising number into files in turn, each acknowledged before the next: chunks, inline, chunks.

    And appends it to a log that stays open, 8 bytes each.
    """

    def __init__(self, cluster: LocalCluster, directory: str) -> None:
        super().__init__()
        self._data, self._directory = str(cluster.data), directory
        self.names = ["1-chunks", "2-inline", "3-chunks"]
        self.sizes = [2 * CHUNK, 64, 9000]
        self.log = "0-log"
        self.count = 0
        self.error: BaseException | None = None
        self._ending = threading.Event()

    def run(self) -> None:
        try:
            with connect(self._data) as fs, ExitStack() as stack:
                made = [fs.open(f"{self._directory}/{name}", "xb") for name in (self.log, *self.names)]
                log, *files = [stack.enter_context(file) for file in made]
                log.write(b"%08d" % 0 * 1000)  # more than fits an inode
                for file, size in zip(files, self.sizes, strict=True):
                    file.write(b"%08d" % 0 * (size // 8))
                while not self._ending.is_set():
                    self.count += 1
                    number = b"%08d" % self.count
                    log.write(number)
                    log.flush()
                    for file, size in zip(files, self.sizes, strict=True):
                        file.pwrite(number, 0)
                        file.pwrite(number, size - 8)
                        file.flush()
        except BaseException as error:  # noqa: BLE001, the test raises it
            self.error = error

    def stop(self) -> None:
        self._ending.set()
        self.join()
        if self.error is not None:
            raise self.error


@contextmanager
def writing(cluster: LocalCluster, directory: str) -> Iterator[Writer]:
    writer = Writer(cluster, directory)
    writer.start()
    try:
        until(lambda: writer.count > 2 or not writer.is_alive(), what="writes")
        yield writer
    finally:
        writer.stop()


def numbers(directory: Path, writer: Writer) -> list[tuple[int, int]]:
    """The lesser and the greater number in each of the writer's files."""
    said = []
    for name, size in zip(writer.names, writer.sizes, strict=True):
        data = (directory / name).read_bytes()
        assert len(data) == size
        found = int(data[:8]), int(data[-8:])
        said.append((min(found), max(found)))
    return said


def test_backup_while_programs_write_is_of_one_moment_and_restores_into_another_shape(
    source: LocalCluster, tree: Path, tmp_path: Path
) -> None:
    backups = tmp_path / "backups"
    for number in range(600):  # so that the names are not all sent with the first of them
        (tree / f"name-{number}").touch()
    live = tree / "live"
    live.mkdir()
    with writing(source, f"/{tree.name}/live") as writer:
        first = writer.count
        take(source, backups)
        between = writer.count
        manifest = take(source, backups)
        last = writer.count
    assert first < between < last, "programs keep running"
    assert manifest["copied_bytes"] < 10 * CHUNK, "what changed"
    expected = described(tree)
    with restored(tmp_path / "target", backups) as mountpoint:
        root = mountpoint / tree.name
        said = numbers(root / "live", writer)
        for (earlier, _), (_, later) in pairwise(said):
            assert later <= earlier, f"a write is there whose cause is missing: {said}"
        logged = (root / "live" / writer.log).read_bytes()
        entries = [int(logged[at : at + 8]) for at in range(8000, len(logged), 8)]
        assert entries == list(range(1, len(entries) + 1)), "as long as what was acknowledged, and no longer"
        assert said[0][1] <= len(entries)
        assert said[0][1] - said[-1][0] <= 1, f"an earlier write is missing: {said}"
        assert between - 1 <= said[0][0] <= last
        found = described(root)
        for path in ("live", *(f"live/{each}" for each in (*writer.names, writer.log))):
            del expected[path], found[path]
        assert found == expected


def test_incremental_backup_copies_what_changed_and_forgets_what_is_gone(
    source: LocalCluster, tree: Path, tmp_path: Path
) -> None:
    backups = tmp_path / "backups"
    take(source, backups)
    before = sum(path.stat().st_size for path in (backups / "packs").iterdir())
    assert take(source, backups)["copied_bytes"] == 0
    with (tree / "large").open("r+b") as file:
        file.seek(CHUNK + 10)
        file.write(b"changed")
    with (tree / "sparse").open("r+b") as file:
        file.truncate(CHUNK)
        file.truncate(3 * CHUNK)
    (tree / "small").unlink()
    (tree / "new").write_bytes(b"n" * 10_000)
    os.sync()
    assert take(source, backups)["copied_bytes"] == CHUNK + 10_000
    after = sum(path.stat().st_size for path in (backups / "packs").iterdir())
    assert after - before == CHUNK + 10_000
    expected = described(tree)
    with restored(tmp_path / "target", backups, nodes=2, replicas=2) as mountpoint:
        assert described(mountpoint / tree.name) == expected
    luciola("backup", "prune", "--keep", "1", str(backups))
    assert Repository.open(backups).numbers() == [3]
    luciola("backup", "verify", str(backups))


def started(source: LocalCluster, backups: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "luciola", "backup", "take", "--data", str(source.data), str(backups)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


STAGES: list[Callable[[Path], bool]] = [
    lambda backups: (backups / "lock").exists(),
    lambda backups: any(backups.glob("*.db")),
    lambda backups: any(path.stat().st_size > CHUNK for path in (backups / "packs").glob("*")),
    lambda backups: any(backups.glob("*.manifest*")),
]


def test_backup_that_is_killed_is_not_mistaken_for_a_finished_one(
    source: LocalCluster, tree: Path, tmp_path: Path
) -> None:
    backups = tmp_path / "backups"
    for stage in STAGES:
        process = started(source, backups)
        while process.poll() is None and not stage(backups):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        with suppress(FileNotFoundError):  # nothing was made yet
            for number in Repository(backups).numbers():
                luciola("backup", "verify", "--backup", str(number), str(backups))
        (tree / "small").write_bytes(os.urandom(9000))  # a hold of the dead one has ended, or ends by itself
    manifest = take(source, backups)
    luciola("backup", "verify", str(backups))
    needed = {
        f"{pack:08}"
        for number in Repository.open(backups).numbers()
        for pack in Repository.open(backups).manifest(number).packs
    }
    assert {path.name for path in (backups / "packs").iterdir()} == needed, "nothing of the dead is left"
    assert {path.name for path in backups.glob("*.db")} == {
        f"{number:06}.db" for number in range(1, manifest["number"] + 1)
    }


def test_flipped_bit_is_found_and_refused_and_a_restore_that_broke_off_is_begun_again(
    source: LocalCluster, tree: Path, tmp_path: Path
) -> None:
    backups = tmp_path / "backups"
    take(source, backups)
    pack = next((backups / "packs").iterdir())
    place = pack.read_bytes().find((tree / "small").read_bytes())
    assert place >= 0
    flip(pack, place + 4000)
    verified = luciola("backup", "verify", str(backups), check=False)
    assert verified.returncode == 1
    assert f"damaged: restore from another backup: '{pack}'" in verified.stderr
    taken_out = luciola(
        "restore", "--path", f"/{tree.name}/small", "--into", str(tmp_path / "out"), str(backups), check=False
    )
    assert taken_out.returncode == 1
    assert not (tmp_path / "out").exists()
    target = LocalCluster(tmp_path / "target", storage_nodes=1, replicas=1)
    with target:
        refused = luciola("restore", "--data", str(target.data), str(backups), check=False)
        assert refused.returncode == 1
        assert "are damaged" in refused.stderr
        with (
            connect(str(target.data), config=ClientConfig(deadline_ms=500)) as fs,
            pytest.raises(Error) as closed,
        ):
            fs.listdir("/")
        assert "being loaded" in str(closed.value), "half a namespace is served"
        flip(pack, place + 4000)
        again = luciola("restore", "--data", str(target.data), str(backups))
        assert "an earlier attempt had broken off" in again.stdout
        with target.mounted("mnt") as mountpoint:
            assert described(mountpoint / tree.name) == described(tree)
        refused = luciola("restore", "--data", str(target.data), str(backups), check=False)
        assert "not empty" in refused.stderr
    for name in ("000001.db", "000001.manifest"):
        flip(backups / name, 100)
        assert "damaged" in luciola("backup", "verify", str(backups), check=False).stderr
        assert (
            "damaged"
            in luciola(
                "restore", "--path", "/", "--into", str(tmp_path / "all"), str(backups), check=False
            ).stderr
        )
        flip(backups / name, 100)


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


def test_one_directory_is_restored_into_a_living_cluster_and_into_a_local_directory(
    source: LocalCluster, tree: Path, tmp_path: Path
) -> None:
    backups = tmp_path / "backups"
    take(source, backups)
    expected = described(tree)
    (tree / "large").write_bytes(b"overwritten by mistake")
    assert source.mountpoint is not None
    copy, local = source.mountpoint / "copy", tmp_path / "local"
    fifo = luciola(
        "restore",
        "--data",
        str(source.data),
        "--path",
        f"/{tree.name}",
        "--into",
        "lu:/copy",
        str(backups),
        check=False,
    )
    assert fifo.returncode == 1
    assert "fifo: not a file, directory or symbolic link" in fifo.stderr
    luciola("restore", "--path", f"/{tree.name}", "--into", str(local), str(backups), check=False)
    taken = luciola("restore", "--path", f"/{tree.name}", "--into", str(local), str(backups), check=False)
    assert "there is something already" in taken.stderr
    for root in (copy, local):
        until(root.exists)
        found = described(root)
        assert found.keys() == expected.keys() - {"fifo"}
        for path, (mode, links, uid, gid, size, mtime, _, content, attributes) in found.items():
            same = expected[path]
            assert (mode, links, uid, gid, size, mtime) == same[:6], path
            assert (content, attributes) == same[7:], path
    subprocess.run(["rm", "-rf", str(copy)], check=True)


@pytest.mark.root
def test_full_destination_is_reported_and_a_later_backup_succeeds(
    source: LocalCluster, tree: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "2m"):
        full = luciola(
            "backup", "take", "--data", str(source.data), str(tmp_path / "disk" / "b"), check=False
        )
        assert full.returncode == 1
        assert "No space left on device: '" in full.stderr
        assert luciola("backup", "list", "--json", str(tmp_path / "disk" / "b")).stdout.strip() == "[]"
        subprocess.run(["mount", "-o", "remount,size=64m", str(tmp_path / "disk")], check=True)
        take(source, tmp_path / "disk" / "b")
        luciola("backup", "verify", str(tmp_path / "disk" / "b"))


def test_damaged_replica_is_passed_over_and_a_chunk_without_one_is_named(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path, storage_nodes=2, replicas=2)
    contents = {name: os.urandom(20_000) for name in ("first", "second")}
    with cluster:
        for name, content in contents.items():
            (tmp_path / name).write_bytes(content)
            luciola("cp", str(tmp_path / name), f"lu:/{name}", "--data", str(cluster.data))
        blocks = sorted(cluster.data.glob("storage-*/chunks/blocks"))
        flip(*find(blocks[0], contents["first"][:4096]))
        for each in blocks:
            flip(*find(each, contents["second"][:4096]))
        backups = tmp_path / "backups"
        result = luciola("backup", "take", "--data", str(cluster.data), str(backups), check=False)
        assert result.returncode == 1
        assert "not in the backup: /second: chunk 0" in result.stderr
        assert Repository.open(backups).manifest().chunks == 1
        luciola("backup", "verify", str(backups))
        arguments = ["restore", "--path", "/first", "--into", str(tmp_path / "out"), str(backups)]
        refused = luciola(*arguments, check=False)
        assert refused.returncode == 1
        assert "lacks 1 chunks, such as of /second" in refused.stderr
        luciola(*arguments, "--incomplete")
        assert (tmp_path / "out").read_bytes() == contents["first"]
