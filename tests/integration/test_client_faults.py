"""Services that are killed while a client uses them: a pause, never an error or a wrong byte."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

import pytest

import luciola
from cluster import WAIT_S, LocalCluster, meta_status, until
from luciola.config import ClientConfig
from luciola.errors import Error

MIB = 1 << 20
CONFIG = "[meta]\ngc_delay_ms = 20000\n"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("faults"), config=CONFIG) as cluster:
        yield cluster


class Load:
    """Threads that write, read back, overwrite and rename, and check every byte."""

    def __init__(self, cluster: LocalCluster, top: str) -> None:
        self.fs = luciola.connect(cluster.data)
        self.fs.makedirs(top)
        self._top = top
        self._ending = threading.Event()
        self.failures: list[BaseException] = []
        self.rounds = 0
        self.longest_s = 0.0
        self._threads = [threading.Thread(target=self._run, args=(seed,)) for seed in range(3)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()
        self.fs.rmtree(self._top)
        self.fs.close()

    def _run(self, seed: int) -> None:
        rng = random.Random(seed)
        try:
            while not self._ending.is_set():
                began = time.monotonic()
                self._round(rng, f"{self._top}/{seed}-{rng.randrange(5)}")
                self.longest_s = max(self.longest_s, time.monotonic() - began)
                self.rounds += 1
        except BaseException as error:  # noqa: BLE001 (the test judges)
            self.failures.append(error)

    def _round(self, rng: random.Random, path: str) -> None:
        data = bytearray(rng.randbytes(rng.choice([100, 5000, 200_000, 3 * MIB])))
        with self.fs.open(path, "w+b") as file:
            file.write(data)
            for _ in range(3):
                patch = rng.randbytes(rng.randrange(1, 3000))
                at = rng.randrange(len(data))
                file.pwrite(patch, at)
                data[at : at + len(patch)] = patch
            if rng.random() < 0.3:
                file.fsync()
        self.fs.rename(path, f"{path}-moved")
        assert self.fs.read(f"{path}-moved") == data, f"{path}: wrong bytes"

    def resume(self, rounds: int, limit_s: float = 150.0) -> None:
        """Returns when so many more rounds have been made."""
        target = self.rounds + rounds
        deadline = time.monotonic() + limit_s
        while self.rounds < target and not self.failures:
            assert time.monotonic() < deadline, "the load makes no progress"
            time.sleep(0.05)
        assert self.failures == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["meta", "mgmtd", "storage"])
def test_a_killed_service_is_a_pause(cluster, kind):
    cluster.wait_healthy()
    with Load(cluster, f"/load-{kind}") as load:
        load.resume(10)
        cluster.kill(kind)
        load.resume(30)
    assert load.failures == []
    assert load.longest_s < 60  # what a client tries for


def read_holds(cluster: LocalCluster) -> int:
    """Return how many read holds the metadata service that runs now knows of."""
    status = meta_status(cluster)
    return 0 if status is None else status.read_holds


def is_collected_but_for(cluster: LocalCluster, held_count: int) -> bool:
    """Whether only that many removed files wait to be collected."""
    status = meta_status(cluster)
    return status is not None and status.gc_queue == held_count


@pytest.mark.slow
def test_a_file_open_for_reading_stays_readable_after_meta_forgot_who_reads(cluster):
    cluster.wait_healthy()
    data = random.Random(3).randbytes(3 * MIB)
    with luciola.connect(cluster.data) as reader, luciola.connect(cluster.data) as other:
        other.write("/held", data)
        with reader.open("/held", "rb") as file:
            assert file.pread(10, 0) == data[:10]
            before = {service["pid"] for service in cluster.services("meta")}
            cluster.kill("meta")
            other.listdir("/")
            assert {service["pid"] for service in cluster.services("meta")} != before
            until(lambda: read_holds(cluster), what="the reader to notice the new service through routing")
            other.remove("/held")
            other.write("/removed-later", data)
            other.remove("/removed-later")
            until(lambda: is_collected_but_for(cluster, 1), what="the file removed later to be collected")
            assert file.pread(3 * MIB, 0) == data


@pytest.mark.slow
def test_errors_come_within_the_deadline_without_a_cluster(cluster):
    fs = luciola.connect(cluster.data, config=ClientConfig(deadline_ms=1000))
    file = patiently(lambda: fs.open("/f", "wb"))
    patiently(lambda: file.write(b"x" * 300_000))
    cluster.down()
    try:
        for call in (lambda: fs.stat("/"), file.flush, file.close, lambda: fs.write("/g", b"")):
            began = time.monotonic()
            with pytest.raises((Error, ValueError)):
                call()
            assert time.monotonic() - began < 50, "sooner than with the deadline that clients have by default"
        began = time.monotonic()
        fs.close()
        assert time.monotonic() - began < 50
    finally:
        cluster.up()


def patiently(call: Callable[[], Any]) -> Any:
    """What a call returns in spite of a deadline that a busy machine may miss."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            return call()
        except Error:
            if time.monotonic() > deadline:
                raise
