"""Two metadata services over one log in a real etcd: the primary is killed and paused while a program works."""

import asyncio
import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import luciola
from etcd_members import EtcdMembers
from luciola.cli import cli
from luciola.client import Watch
from luciola.config import ClientConfig
from luciola.errors import InvalidArgument, NotFound, Timeout, Unavailable
from meta_processes import Metas
from storage_cluster import WAIT_S

FILE_BYTES = 20_000
ROUNDS = 3  # that the program makes between two faults


class Program(threading.Thread):
    """Makes files that must not exist, writes, renames, reads and removes them, and appends to one that stays open."""

    def __init__(self, cluster: Metas) -> None:
        super().__init__()
        self.fs = connected(cluster)
        self.made: set[str] = set()
        self.rounds = 0
        self.failure: BaseException | None = None
        self.ending = threading.Event()
        self.progress = threading.Condition()

    def run(self) -> None:
        try:
            with self.fs.open("/stays", "xb") as file:
                while not self.ending.is_set():
                    self._round(self.rounds)
                    file.write(b"%08d" % self.rounds)
                    file.fsync()
                    with self.progress:
                        self.rounds += 1
                        self.progress.notify_all()
        except BaseException as error:  # noqa: BLE001 (the test judges)
            self.failure = error
            with self.progress:
                self.progress.notify_all()

    def _round(self, number: int) -> None:
        name = f"/{number}"
        data = b"%d " % number * FILE_BYTES
        with self.fs.open(name, "xb") as file:
            file.write(data)
        self.fs.rename(name, f"{name}.r")
        assert self.fs.read(f"{name}.r") == data, f"{name}: wrong bytes"
        self.made.add(f"{number}.r")
        if number % 3 == 2:
            self.fs.unlink(f"{name}.r")
            self.made.discard(f"{number}.r")

    def proceed(self, cluster: Metas) -> None:
        """Return when it has made some more rounds."""
        with self.progress:
            target = self.rounds + ROUNDS
            came = self.progress.wait_for(lambda: self.failure or self.rounds >= target, WAIT_S)
        assert self.failure is None, f"{self.failure!r}: {cluster.last_words()}"
        assert came, f"the program waits in round {self.rounds}: {cluster.last_words()}"

    def end(self) -> None:
        self.ending.set()
        self.join()


@pytest.fixture
def cluster(etcd_members: EtcdMembers, tmp_path: Path) -> Iterator[Metas]:
    with Metas(tmp_path, etcd_members) as cluster:
        yield cluster


def connected(cluster: Metas, *, deadline_ms: int = 100_000) -> luciola.FileSystem:
    secret = cluster.root / cluster.cluster.secret_file
    config = ClientConfig(deadline_ms=deadline_ms)
    return luciola.connect(cluster.cluster.mgmtd_lane, secret_file=secret, config=config)


def seen_until(watch: Watch, last: tuple[str, str | None]) -> list[tuple[str, str | None]]:
    """What happened to names, up to `last`."""
    seen: list[tuple[str, str | None]] = []
    end_s = time.monotonic() + WAIT_S
    while last not in seen:
        assert time.monotonic() < end_s, f"seen so far: {seen}"
        seen += [(change.kind, change.path) for change in watch.read(wait_s=5.0) if change.kind != "change"]
    return seen


async def seen_by_async(fs: luciola.FileSystem, manager: str, after: str, count: int) -> list[str]:
    async with await fs.aio.watch("/d", after=after, manager=manager) as watch:
        kinds = []
        async for change in watch:
            kinds += [change.kind] * (change.kind != "change")
            if len(kinds) == count:
                break
    return kinds


@pytest.mark.timeout(900)
def test_watcher_sees_each_change_once_through_a_take_over(cluster: Metas) -> None:
    address, manager = cluster.cluster.mgmtd_lane, cluster.cluster.mgmtd_grpc
    secret = str(cluster.root / cluster.cluster.secret_file)
    config = ClientConfig(deadline_ms=100_000)
    with luciola.connect(address, secret_file=secret, config=config) as fs:
        fs.mkdir("/d")
        with fs.watch("/d", manager=manager) as watch:
            start = watch.position
            fs.create_small({"/d/a": b"a"})
            assert seen_until(watch, ("create", "/d/a")) == [("create", "/d/a")]
            primary = cluster.wait_primary()
            cluster.signal(primary.id, signal.SIGKILL)
            fs.create_small({"/d/b": b"b"})
            fs.rename("/d/a", "/d/c")
            fs.unlink("/d/b")
            expected = [("create", "/d/b"), ("rename", "/d/c"), ("remove", "/d/b")]
            assert seen_until(watch, expected[-1]) == expected
        kinds = ["create", "create", "rename", "remove"]
        assert asyncio.run(seen_by_async(fs, manager, start, 4)) == kinds
        with pytest.raises(InvalidArgument, match="manager"):
            fs.watch("/d")
    options = ["--address", address, "--secret-file", secret, "--manager", manager]
    arguments = ["watch", *options, "--after", start, "--limit", "4", "/d"]
    plain = CliRunner().invoke(cli, arguments)
    assert plain.exit_code == 0, plain.output
    assert "create  /d/a\ncreate  /d/b\nrename  /d/a -> /d/c\nremove  /d/b\n" in plain.output
    lines = [json.loads(line) for line in CliRunner().invoke(cli, [*arguments, "--json"]).output.splitlines()]
    assert [line["kind"] for line in lines] == ["start", *kinds]
    for wrong, error in (("x", InvalidArgument), (f"0-0-{'ab' * 16}", NotFound)):
        refused = CliRunner().invoke(cli, ["watch", *options, "--after", wrong, "/d"])
        assert isinstance(refused.exception, error), refused.exception


@pytest.mark.timeout(1500)
def test_primary_that_is_killed_or_paused_is_replaced_without_an_error(cluster: Metas) -> None:
    program = Program(cluster)
    program.start()
    try:
        for fault in (signal.SIGKILL, signal.SIGSTOP, signal.SIGKILL, signal.SIGSTOP):
            program.proceed(cluster)
            primary = cluster.wait_primary()
            cluster.signal(primary.id, fault)
            cluster.wait_primary(above=primary.epoch)
            program.proceed(cluster)
            if fault == signal.SIGKILL:
                cluster.start_meta(primary.id)
            else:
                cluster.signal(primary.id, signal.SIGCONT)
        program.end()
        assert program.failure is None, repr(program.failure)
        assert set(program.fs.listdir("/")) == {*program.made, "stays"}
        assert program.fs.read("/stays") == b"".join(b"%08d" % number for number in range(program.rounds))
    finally:
        program.end()
        program.fs.close()
    first, second = cluster.end_metas()
    assert first == second


@pytest.mark.timeout(900)
def test_files_that_are_open_outlive_the_primary_that_knew_of_them(
    etcd_members: EtcdMembers, tmp_path: Path
) -> None:
    data = b"held" * FILE_BYTES
    with (
        Metas(tmp_path, etcd_members, gc_delay_ms=20_000) as cluster,
        connected(cluster) as fs,
        connected(cluster) as other,
    ):
        other.write("/held", data)
        with fs.open("/held", "rb") as held, fs.open("/written", "xb") as written:
            written.write(data)
            written.fsync()
            other.unlink("/held")
            primary = cluster.wait_primary()
            cluster.signal(primary.id, signal.SIGKILL)
            cluster.wait_primary(above=primary.epoch)
            other.write("/removed", data)
            other.unlink("/removed")
            cluster.wait(
                lambda: cluster.meta_status().gc_queue == 1, "the file removed later to be collected"
            )
            written.write(data)
            written.fsync()
            assert held.pread(2 * len(data), 0) == data
        assert other.read("/written") == data + data
        cluster.wait(lambda: cluster.meta_status().gc_queue == 0, "the file to be collected")


@pytest.mark.timeout(900)
def test_calls_fail_within_their_deadline_without_a_majority_of_etcd(
    cluster: Metas, etcd_members: EtcdMembers
) -> None:
    with connected(cluster, deadline_ms=8_000) as fs, connected(cluster) as patient:
        fs.write("/before", b"1")
        for member in (0, 1):
            etcd_members.kill(member)
        with pytest.raises((Timeout, Unavailable)):
            fs.write("/during", b"2")
        with pytest.raises((Timeout, Unavailable)):
            fs.stat("/before")  # no lease is left: another may lead
        etcd_members.heal()
        patient.write("/after", b"3")
        assert patient.read("/before") == b"1"
        assert set(patient.listdir("/")) - {"during"} == {"before", "after"}
