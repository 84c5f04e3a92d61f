"""`luciola dump` and `luciola load` on clusters that run, are used meanwhile, and lose their metadata."""

import gzip
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import luciola as client
from cluster import LocalCluster, luciola, until

pytestmark = pytest.mark.slow

LARGE = 3_000_000  # bytes: three chunks
PIECE = b"0123456789abcdef" * 4096  # that the program writes again and again
ODD = os.fsdecode(b"line\nbreak \xff\xfe")


def populate(fs: client.FileSystem) -> None:
    fs.makedirs("/d/deep")
    fs.write("/d/small", b"text\n")  # before the large ones: a client takes a file for like the one before
    fs.write(f"/d/{ODD}", b"\x00\xff")
    for name in ("large", "grown", "cut", "removed", "rewritten", "sparse"):
        fs.write(f"/d/{name}", os.urandom(LARGE))
    fs.truncate("/d/sparse", 10 << 20)
    fs.link("/d/large", "/d/deep/second name")
    fs.symlink(f"../{ODD}", "/d/deep/link")
    fs.setxattr("/d/large", "user.note", b"\x00\xff")
    fs.chmod("/d/small", 0o4751)
    fs.utime("/d/small", ns=(1, 10**18 + 1))
    fs.chmod("/d/deep", 0o1777)


def tree(root: Path, *, without: tuple[str, ...] = ()) -> dict[str, tuple[Any, ...]]:
    """Everything that a program sees below a directory of a mount."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if name in without:
            continue
        seen = path.lstat()
        data = b""
        if path.is_symlink():
            data = os.fsencode(path.readlink())
        elif path.is_file():
            data = hashlib.sha256(path.read_bytes()).digest()
        attributes = (
            [] if path.is_symlink() else [(each, os.getxattr(path, each)) for each in os.listxattr(path)]
        )
        found[name] = (
            stat.filemode(seen.st_mode),
            (seen.st_ino, seen.st_nlink, seen.st_uid, seen.st_gid),
            (seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns),
            data,
            attributes,
        )
    return found


class Writer(threading.Thread):
    """Appends to a file, and makes and renames others, until it is stopped."""

    def __init__(self, cluster: LocalCluster) -> None:
        super().__init__()
        self._data = cluster.data
        self._ended = threading.Event()
        self.appended = 0  # acknowledged pieces
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            with client.connect(self._data) as fs:
                fs.mkdir("/busy")
                with fs.open("/log", "wb", buffering=0) as log:
                    while not self._ended.is_set():
                        log.write(PIECE)
                        log.flush()
                        self.appended += 1
                        fs.write("/busy/part", b"x" * 100)
                        fs.rename("/busy/part", f"/busy/{self.appended}")
        except BaseException as error:  # noqa: BLE001, shown by the test
            self.failure = error

    def end(self) -> None:
        self._ended.set()
        self.join()
        assert self.failure is None, self.failure


def is_closed(cluster: LocalCluster) -> bool:
    """Whether the metadata service refuses requests because of a load, and `luciola status` says so."""
    status = cluster.status()
    assert not (status["loading"] and status["healthy"])
    assert status["loading"] == any("luciola load" in note for note in status["notes"])
    return bool(status["loading"])


def signed(lines: list[bytes]) -> bytes:
    """Lines of a dump with a checksum that fits them."""
    body = b"".join(line + b"\n" for line in lines[:-1])
    return (
        body
        + json.dumps(json.loads(lines[-1]) | {"sha256": hashlib.sha256(body).hexdigest()}).encode()
        + b"\n"
    )


def load(cluster: LocalCluster, source: Path, *options: str) -> Any:
    result = luciola("load", "--data", str(cluster.data), *options, "--json", str(source))
    return json.loads(result.stdout)


def refused(cluster: LocalCluster, source: Path, *options: str) -> str:
    result = luciola("load", "--data", str(cluster.data), *options, str(source), check=False)
    assert result.returncode == 1, result.stdout
    return result.stderr


def lose_metadata(cluster: LocalCluster) -> None:
    cluster.kill_everything()
    shutil.rmtree(cluster.data / "meta")
    luciola("up", "--data", str(cluster.data), "--detach", "--accept-metadata-loss", "--yes")


def change_after_the_dump(fs: client.FileSystem, more: bytes) -> None:
    with fs.open("/d/grown", "ab") as file:
        file.write(more)
    fs.truncate("/d/cut", 100)
    fs.remove("/d/removed")
    fs.write("/d/rewritten", b"r" * LARGE)
    fs.write("/d/small", b"other")
    fs.write("/new", b"n" * LARGE)


def break_off(cluster: LocalCluster, lines: list[bytes]) -> None:
    """Half a load, which leaves the namespace closed, also for the next process that serves it."""
    broken = subprocess.run(
        [sys.executable, "-m", "luciola", "load", "--data", str(cluster.data), "-"],
        input=b"".join(line + b"\n" for line in lines[: len(lines) // 2]),
        capture_output=True,
        check=False,
    )
    assert broken.returncode == 1
    assert b"before its trailer: it was cut off" in broken.stderr
    assert is_closed(cluster)
    killed = cluster.kill("meta")
    until(lambda: cluster.services("meta")[0]["pid"] not in (None, killed["pid"]), what="another process")
    until(lambda: is_closed(cluster), what="its refusal")


@pytest.mark.timeout(300)
def test_lost_metadata_are_loaded_beside_the_chunks(tmp_path: Path) -> None:
    dumped, more = tmp_path / "dump.jsonl.gz", os.urandom(LARGE)
    with LocalCluster(tmp_path, storage_nodes=2, replicas=2) as cluster:
        with client.connect(cluster.data) as fs:
            populate(fs)
        with cluster.mounted("before") as root:
            before = tree(root / "d", without=("grown", "cut"))
        writer = Writer(cluster)
        writer.start()
        until(lambda: writer.appended > 20 or writer.failure, what="a busy program")
        acknowledged = writer.appended
        luciola("dump", "--data", str(cluster.data), str(dumped))
        until(lambda: writer.appended > acknowledged + 20 or writer.failure, what="a busy program")
        writer.end()
        with client.connect(cluster.data) as fs:
            change_after_the_dump(fs, more)
        lose_metadata(cluster)

        lines = gzip.decompress(dumped.read_bytes()).splitlines()
        in_dump = [json.loads(line) for line in lines]
        assert acknowledged * len(PIECE) <= length_of("log", in_dump), "older than what it was asked for"
        refuse_damaged(cluster, tmp_path, dumped.read_bytes(), lines)
        break_off(cluster, lines)
        report = load(cluster, dumped)
        cluster.wait_healthy()

        assert report["entries"] == in_dump[-1]["entries"]
        assert {each["path"] for each in report["short"]} == {"/d/cut", "/d/sparse"}
        assert report["grown"] >= 2  # with the log; and with a file that was being made at that moment
        assert report["unowned_contents"] >= 2
        with cluster.mounted("after") as root:
            assert tree(root / "d", without=("grown", "cut")) == before
            assert (root / "d" / "grown").read_bytes().endswith(more)
            assert (root / "d" / "cut").stat().st_size == LARGE
            assert (root / "log").read_bytes() == PIECE * writer.appended
            (root / "next").write_bytes(b"x")
            assert (root / "next").stat().st_ino > max(each.get("inode", 0) for each in in_dump)
        problems = [problem["what"] for problem in cluster.fsck()["problems"]]
        assert len(problems) == report["unowned_contents"]
        assert all("belong to no file" in what for what in problems)
        assert "not empty" in refused(cluster, dumped)


def length_of(name: str, in_dump: list[dict[str, Any]]) -> int:
    (entry,) = [each for each in in_dump if each["record"] == "entry" and each["name"] == name]
    (inode,) = [each for each in in_dump if each["record"] == "inode" and each["inode"] == entry["inode"]]
    return int(inode["length"])


def refuse_damaged(cluster: LocalCluster, folder: Path, packed: bytes, lines: list[bytes]) -> None:
    """None of these reaches the cluster, which stays open."""
    other_version = json.dumps(json.loads(lines[0]) | {"format": 2}).encode()
    for name, content, reason in (
        ("cut.gz", packed[: len(packed) // 2], "the dump is damaged or cut off"),
        ("cut", b"\n".join(lines[:-1]) + b"\n", f"line {len(lines)} of the dump: the dump ends here"),
        ("garbage", signed([*lines[:5], b"garbage", *lines[6:]]), "line 6 of the dump: not JSON"),
        (
            "changed",
            b"\n".join(lines).replace(b'"uid":0', b'"uid":7', 1) + b"\n",
            "the checksum does not fit",
        ),
        (
            "version",
            signed([other_version, *lines[1:]]),
            "the dump has format 2, and this release loads format 1",
        ),
    ):
        path = folder / name
        path.write_bytes(content)
        assert reason in refused(cluster, path)
        path.unlink()
    assert not is_closed(cluster)


@pytest.mark.timeout(300)
def test_names_are_loaded_into_another_cluster(tmp_path: Path) -> None:
    dumped = tmp_path / "dump.jsonl"
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with LocalCluster(tmp_path / "one", storage_nodes=1, replicas=1) as one:
        with client.connect(one.data) as fs:
            populate(fs)
        luciola("dump", "--data", str(one.data), str(dumped))
        with LocalCluster(tmp_path / "two", storage_nodes=1, replicas=1) as two:
            assert "--names-only" in refused(two, dumped)
            assert load(two, dumped, "--names-only")["emptied"] == 6
            with client.connect(one.data) as source, client.connect(two.data) as target:
                assert sorted(target.listdir("/d")) == sorted(source.listdir("/d"))
                assert target.read("/d/small") == b"text\n"
                assert target.read(f"/d/{ODD}") == b"\x00\xff"
                assert target.stat("/d/small").st_mtime_ns == 10**18 + 1
                assert target.stat("/d/large").st_size == 0
                assert target.stat("/d/large").st_nlink == 2
                target.write("/d/large", source.read("/d/large"))
                assert target.read("/d/deep/second name") == source.read("/d/large")
            assert two.fsck()["problems"] == []
            luciola("rm", "-r", "lu:/d", "--data", str(two.data))
            result = luciola("load", "--data", str(two.data), "--discard", check=False)
            assert "no load is in progress" in result.stderr
