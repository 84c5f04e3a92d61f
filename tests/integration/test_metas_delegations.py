"""Two metadata services over one log in a real etcd: killed and paused while a mount opens by itself."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import luciola
from cluster import luciola as run_luciola
from etcd_members import EtcdMembers
from luciola.config import ClientConfig
from luciola.wire import methods
from luciola.wire.pb.common_pb2 import Empty
from luciola.wire.pb.meta_pb2 import MetaStatus
from meta_processes import Metas
from storage_cluster import WAIT_S

pytestmark = pytest.mark.mount

NAME = "shared"


@pytest.fixture
def cluster(etcd_members: EtcdMembers, tmp_path: Path) -> Iterator[Metas]:
    with Metas(tmp_path, etcd_members, config="delegation_lease_ms = 4000\n") as cluster:
        yield cluster


@contextmanager
def mounted(cluster: Metas, mountpoint: Path) -> Iterator[Path]:
    config = mountpoint.with_suffix(".toml")
    config.write_text("[client]\ndeadline_ms = 100000\n")
    mountpoint.mkdir()
    secret = str(cluster.root / cluster.cluster.secret_file)
    options = ("--secret-file", secret, "--config", str(config))
    run_luciola("mount", *options, cluster.cluster.mgmtd_lane, str(mountpoint))
    try:
        yield mountpoint
    finally:
        run_luciola("umount", str(mountpoint))


def status(cluster: Metas) -> MetaStatus:
    """Return what the primary counts."""
    reply: MetaStatus = cluster.call(cluster.wait_primary().grpc_address, methods.Meta.status, Empty())
    return reply


def write(fs: luciola.FileSystem, number: int) -> None:
    with fs.open(f"/{NAME}", "wb") as file:
        file.write(b"%08d" % number)


class Reader(threading.Thread):
    """Opens and reads a file again and again. An open that begins after a write has ended shows what that wrote."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.written = 0  # the newest write that has ended
        self.failure: BaseException | None = None
        self.ending = threading.Event()

    def run(self) -> None:
        try:
            while not self.ending.is_set():
                least = self.written
                data = self.path.read_bytes()
                # An open for writing empties the file first.
                assert not data or int(data) >= least, f"{data!r} is shown after {least} was written"
        except BaseException as error:  # noqa: BLE001 (the test judges)
            self.failure = error

    def wait_delegated(self, cluster: Metas) -> None:
        end_s = time.monotonic() + WAIT_S
        while not status(cluster).delegations:
            assert self.failure is None, repr(self.failure)
            assert time.monotonic() < end_s, "nothing is delegated"
            self.ending.wait(0.01)


@pytest.mark.timeout(1500)
def test_open_shows_the_newest_write_through_take_overs(cluster: Metas) -> None:
    address, secret = cluster.cluster.mgmtd_lane, str(cluster.root / cluster.cluster.secret_file)
    config = ClientConfig(deadline_ms=100_000)
    with (
        luciola.connect(address, secret_file=secret, config=config) as fs,
        mounted(cluster, cluster.root / "mount") as mountpoint,
    ):
        write(fs, 0)
        reader = Reader(mountpoint / NAME)
        reader.start()
        try:
            faults = (signal.SIGKILL, signal.SIGSTOP, signal.SIGKILL)
            for number, fault in enumerate(faults, start=1):
                reader.wait_delegated(cluster)
                primary = cluster.wait_primary()
                cluster.signal(primary.id, fault)
                write(fs, number)
                reader.written = number
                assert (mountpoint / NAME).read_bytes() == b"%08d" % number
                cluster.wait_primary(above=primary.epoch)
                if fault == signal.SIGKILL:
                    cluster.start_meta(primary.id)
                else:
                    cluster.signal(primary.id, signal.SIGCONT)
                reader.wait_delegated(cluster)
        finally:
            reader.ending.set()
            reader.join()
        assert reader.failure is None, repr(reader.failure)
