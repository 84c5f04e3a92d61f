"""Two managers over one log in a real etcd: the primary is killed and paused, while a client writes and reads."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import luciola
from etcd_members import EtcdMembers
from luciola.cli.datadir import free_ports
from luciola.config import ClientConfig
from luciola.errors import Error
from luciola.wire import Metadata, save_cluster
from luciola.wire.failover import Endpoints
from luciola.wire.pb.mgmtd_pb2 import CONNECTED, NODE_MGMTD, SERVING, Node, Routing
from storage_cluster import StorageCluster

MANAGERS = (1, 2)
DATA = b"0123456789" * 3000


class Managers(StorageCluster):
    """Managers, a storage node and meta. Only the managers use etcd."""

    def __init__(self, root: Path, members: EtcdMembers, *, cluster_id: str = "test") -> None:
        super().__init__(root, nodes=1, replicas=1, cluster_id=cluster_id)
        self.nodes = range(11, 12)
        ports = free_ports(2 * len(MANAGERS))
        lanes, rpcs = (
            ",".join(f"127.0.0.1:{port}" for port in half)
            for half in (ports[: len(MANAGERS)], ports[len(MANAGERS) :])
        )
        self.cluster = replace(self.cluster, mgmtd_lane=lanes, mgmtd_grpc=rpcs)
        save_cluster(root / "cluster.json", self.cluster)
        metadata = Metadata(endpoints=tuple(f"http://{each}" for each in members.endpoints))
        save_cluster(root / "replicated.json", replace(self.cluster, metadata=metadata))
        self._managers = Endpoints(rpcs)

    def start_mgmtd(self) -> None:
        for number in MANAGERS:
            self.start_manager(number)

    def start_manager(self, number: int) -> None:
        name = f"mgmtd-{number}"
        options = ["--data", str(self.root / name), "--node-id", str(number), "--create"]
        self._start(name, "luciola.mgmtd", *options, cluster="replicated.json")

    def start_meta(self) -> None:
        self._start("meta", "luciola.meta", *self.store("meta"))

    def signal(self, number: int, which: int) -> None:
        process = self._processes[f"mgmtd-{number}"]
        process.send_signal(which)
        if which == signal.SIGKILL:
            process.wait()

    def call(self, address, method, request):
        if address != self.cluster.mgmtd_grpc:
            return super().call(address, method, request)
        current = self._managers.current
        try:
            return super().call(current, method, request)
        except Error as error:
            self._managers.failed(current, error)
            raise

    def primary(self, routing: Routing) -> Node | None:
        nodes = (each for each in routing.nodes if each.kind == NODE_MGMTD)
        return next((each for each in nodes if each.incarnation == routing.manager), None)

    def wait_successor(self, primary: Node) -> None:
        def is_replaced() -> bool:
            found = self.primary(self.routing())
            return found is not None and found.id != primary.id

        self.wait(is_replaced, f"a successor of manager {primary.id}")

    def settled(self) -> Routing | None:
        """Routing once a primary has heard of everybody."""
        routing = self.routing()
        connected = {each.id for each in routing.nodes if each.status == CONNECTED}
        all_there = len(connected) == len(routing.nodes) and connected.issuperset(MANAGERS)
        serving = all(target.state == SERVING for chain in routing.chains for target in chain.targets)
        return routing if all_there and serving and not routing.bootstrapping else None


@pytest.fixture
def cluster(etcd_members: EtcdMembers, tmp_path: Path) -> Iterator[Managers]:
    with Managers(tmp_path, etcd_members) as cluster:
        cluster.start_meta()
        yield cluster


@pytest.mark.timeout(1500)
def test_manager_that_is_killed_or_paused_is_replaced_and_nothing_is_forgotten(cluster: Managers) -> None:
    fs = luciola.connect(
        cluster.cluster.mgmtd_lane,
        secret_file=cluster.root / cluster.cluster.secret_file,
        config=ClientConfig(deadline_ms=100_000),
    )
    with fs, fs.open("/stays", "xb") as stays:
        for turn, fault in enumerate((signal.SIGKILL, signal.SIGSTOP, signal.SIGKILL)):
            cluster.wait(lambda: cluster.settled() is not None, "everybody to be heard")
            before = cluster.routing()
            primary = cluster.primary(before)
            assert primary is not None
            cluster.signal(primary.id, fault)
            with fs.open(f"/{turn}", "xb") as file:
                file.write(DATA)
            cluster.wait_successor(primary)
            after = cluster.routing()
            assert after.version >> 32 > before.version >> 32
            assert {each.id for each in after.nodes} == {each.id for each in before.nodes}
            assert list(after.tables[0].chains) == list(before.tables[0].chains)
            assert fs.read(f"/{turn}") == DATA
            stays.write(b"%d" % turn)
            stays.fsync()
            if fault == signal.SIGKILL:
                cluster.start_manager(primary.id)
            else:
                cluster.signal(primary.id, signal.SIGCONT)
        cluster.wait(lambda: cluster.settled() is not None, "everybody to be heard")
        chains = {chain.id: chain.version for chain in cluster.routing().chains}
        assert set(chains.values()) == {1}, "no replica fell"
    assert not any("Traceback" in path.read_text() for path in cluster.root.glob("*.log"))


def test_lost_log_is_no_new_one_and_the_remedy_is_named(etcd_members: EtcdMembers, tmp_path: Path) -> None:
    managers = Managers(tmp_path, etcd_members, cluster_id="without-log")
    command = [sys.executable, "-m", "luciola.mgmtd", "--data", str(tmp_path / "mgmtd")]
    command += ["--cluster", str(tmp_path / "replicated.json"), "--node-id", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert managers.cluster.cluster_id in ended.stderr
    assert ended.returncode == os.EX_CONFIG
    assert "etcd has no log at" in ended.stderr
    assert f"luciola up --data {tmp_path} --rebuild-mgmtd" in ended.stderr
