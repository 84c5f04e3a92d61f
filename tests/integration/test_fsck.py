"""`luciola fsck --repair` never destroys what may be the only trace of a file."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import luciola as client
from cluster import LocalCluster, luciola, until
from luciola.kv.rocksdb import RocksEngine
from luciola.meta import schema

FILES = 70  # chunks, above what --repair takes without a question
DATA = b"x" * 5000  # too long for an inode


@contextmanager
def stopped(cluster: LocalCluster) -> Iterator[RocksEngine]:
    """The metadata store while no service runs."""
    cluster.down()
    engine = RocksEngine(cluster.data / "meta")
    try:
        yield engine
    finally:
        engine.close()
    cluster.up()


def change(engine: RocksEngine, pairs: list[tuple[bytes, bytes]], *, put: bool) -> None:
    txn = engine.begin()
    for key, value in pairs:
        if put:
            txn.put(key, value)
        else:
            txn.delete(key)
    txn.commit()


def names_of(engine: RocksEngine) -> list[tuple[bytes, bytes]]:
    """All entries and inodes but the root."""
    txn = engine.begin()
    pairs = [pair for kind in (b"I", b"D", b"C") for pair in txn.snapshot_range(*schema.kind_range(kind))]
    return [(key, value) for key, value in pairs if key != schema.inode_key(1)]


@pytest.mark.timeout(300)
def test_namespace_without_its_files_loses_no_chunk(tmp_path: Path) -> None:
    with LocalCluster(tmp_path, storage_nodes=1, replicas=1) as cluster:
        with client.connect(cluster.data) as fs:
            for number in range(FILES):
                fs.write(f"/{number}", DATA)
        with stopped(cluster) as engine:
            names = names_of(engine)
            change(engine, names, put=False)

        report = cluster.fsck("--repair")
        assert (report["chunks"], report["inodes"], len(report["problems"])) == (FILES, 1, FILES)
        (refusal,) = report["repaired"]
        assert refusal.startswith("failed: 70 of 70 chunks belong to no file")
        assert "put it back" in refusal
        assert report["quarantined"] == []

        assert cluster.fsck("--repair", "--allow-mass-removal")["problems"] == []
        report = cluster.fsck()
        assert (len(report["quarantined"]), report["chunks"], report["problems"]) == (FILES, FILES, [])
        said = luciola("fsck", "--data", str(cluster.data)).stdout
        assert "quarantine: 70 chunks of 70 contents are removed after 20" in said

        assert len(cluster.fsck("--release-quarantine")["problems"]) == FILES
        assert cluster.fsck()["quarantined"] == []

        assert cluster.fsck("--repair", "--allow-mass-removal")["problems"] == []
        with stopped(cluster) as engine:
            change(engine, names, put=True)
        with client.connect(cluster.data) as fs:
            assert [fs.read(f"/{number}") for number in range(FILES)] == [DATA] * FILES


@pytest.mark.timeout(300)
def test_few_chunks_of_no_file_are_removed_when_they_are_due(tmp_path: Path) -> None:
    with LocalCluster(tmp_path, storage_nodes=1, replicas=1) as cluster:
        with client.connect(cluster.data) as fs:
            for name in ("/kept", "/lost"):
                fs.write(name, DATA)
        with stopped(cluster) as engine:
            (lost,) = [pair for pair in names_of(engine) if pair[0] == schema.entry_key(1, b"lost")]
            entry = schema.decode_entry(lost[1])
            keys = (lost[0], schema.cookie_key(1, entry.cookie), schema.inode_key(entry.inode))
            change(engine, [(key, b"") for key in keys], put=False)
        (problem,) = cluster.fsck()["problems"]
        assert "belong to no file" in problem["what"]
        assert cluster.fsck("--repair", "--quarantine-hours", "0")["problems"] == []
        until(lambda: cluster.fsck()["chunks"] == 1, what="the collector")
        with client.connect(cluster.data) as fs:
            assert fs.read("/kept") == DATA


@pytest.mark.timeout(300)
def test_file_of_a_writer_that_died_is_no_problem(tmp_path: Path) -> None:
    with LocalCluster(tmp_path, storage_nodes=1, replicas=1) as cluster:
        program = (
            "import os, sys, luciola\n"
            "file = luciola.connect(sys.argv[1]).open('/open', 'wb', direct=True)\n"
            "file.write(bytes(300_000))\n"
            "os.kill(os.getpid(), 9)\n"
        )
        result = subprocess.run([sys.executable, "-c", program, str(cluster.data)], check=False)
        assert result.returncode == -signal.SIGKILL
        report = cluster.fsck()
        assert report["problems"] == []
        assert report["chunks"] == 1


def refused(*options: str) -> str:
    result = luciola("fsck", "--data", "/nonexistent", *options, check=False)
    assert result.returncode == 2
    return result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--repair", "--release-quarantine"), "exclude one another"),
        (("--allow-mass-removal",), "give both"),
        (("--repair", "--quarantine-hours", "-1"), "not in the range"),
        (("--repair", "--quarantine-hours", "day"), "not a valid float"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: tuple[str, ...], message: str) -> None:
    assert message in refused(*options)
