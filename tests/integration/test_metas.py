"""Two metadata services over one log in a real etcd: the primary is killed and paused while a program works."""

import asyncio
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import luciola
from etcd_members import EtcdMembers
from luciola.config import ClientConfig
from luciola.ids import EMBEDDED_EPOCH
from luciola.kv.applied import Applied
from luciola.kv.log.etcd import EtcdLog
from luciola.kv.rocksdb import RocksEngine
from luciola.meta import schema
from luciola.wire import Metadata, save_cluster
from luciola.wire.pb.mgmtd_pb2 import CONNECTED, NODE_META, Node
from storage_cluster import WAIT_S, StorageCluster
from store_content import content

METAS = (100, 101)
FILE_BYTES = 20_000
ROUNDS = 3  # that the program makes between two faults
CONFIG = "[meta]\ngc_delay_ms = 60000\n"


class Metas(StorageCluster):
    """mgmtd, a storage node, and the metadata services. Only they use etcd."""

    def __init__(self, root: Path, members: EtcdMembers) -> None:
        super().__init__(root, nodes=1, replicas=1, config=CONFIG)
        self.members = members
        metadata = Metadata(endpoints=tuple(f"http://{each}" for each in members.endpoints))
        self.replicated = replace(self.cluster, metadata=metadata)
        save_cluster(root / "replicated.json", self.replicated)

    def start_meta(self, number: int) -> None:
        name = f"meta-{number}"
        options = ["--data", str(self.root / name), "--node-id", str(number), "--create"]
        self._start(name, "luciola.meta", *options, cluster="replicated.json")

    def signal(self, number: int, which: int) -> None:
        process = self._processes[f"meta-{number}"]
        process.send_signal(which)
        if which in (signal.SIGKILL, signal.SIGTERM):
            process.wait(WAIT_S)

    def primary(self) -> Node | None:
        nodes = [each for each in self.routing().nodes if each.kind == NODE_META and each.status == CONNECTED]
        leading = [each for each in nodes if each.epoch > EMBEDDED_EPOCH]
        return max(leading, key=lambda each: each.epoch, default=None)

    def wait_primary(self, *, above: int = EMBEDDED_EPOCH) -> Node:
        def newer() -> bool:
            found = self.primary()
            return found is not None and found.epoch > above

        self.wait(newer, f"a primary with an epoch above {above}: {self.last_words()}")
        found = self.primary()
        assert found is not None
        return found

    def last_words(self) -> str:
        return " | ".join((self.root / f"meta-{number}.log").read_text()[-600:] for number in METAS)


class Program(threading.Thread):
    """Makes files that must not exist, writes, renames, reads and removes them, and appends to one that stays open."""

    def __init__(self, cluster: Metas) -> None:
        super().__init__()
        self.fs = luciola.connect(
            cluster.cluster.mgmtd_lane,
            secret_file=cluster.root / cluster.cluster.secret_file,
            config=ClientConfig(deadline_ms=100_000),
        )
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
        for number in METAS:
            cluster.start_meta(number)
        cluster.wait_primary()
        yield cluster


async def complete(cluster: Metas, number: int) -> list[tuple[bytes, bytes]]:
    """What the store of a service holds after the rest of the log."""
    prefix = cluster.replicated.log_prefix("meta")
    engine = RocksEngine(cluster.root / f"meta-{number}", create=False, cached=schema.INODES)
    try:
        applied = Applied(engine, log_id=f"{prefix}#{cluster.replicated.cluster_id}".encode())
        assert applied.position.index, f"meta {number} has carried out nothing"
        async with cluster.members.client() as client:
            log = await EtcdLog.open(
                client, prefix=prefix, cluster=cluster.replicated.cluster_id, create=False
            )
            try:
                while records := await log.read(applied.position):
                    for record in records:
                        applied.apply(record)
            finally:
                await log.close()
        return list(content(engine))
    finally:
        engine.close()


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
    for number in METAS:
        cluster.signal(number, signal.SIGTERM)
    first, second = (asyncio.run(complete(cluster, number)) for number in METAS)
    assert first == second
