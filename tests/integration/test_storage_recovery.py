"""Storage nodes as processes: they die, lose their disk, return, and are brought up to date under load."""

import json
import os
import random
import shutil
import signal
import threading

import pytest

from luciola.errors import StaleRouting, Unavailable
from luciola.wire import methods
from luciola.wire.pb import mgmtd_pb2, storage_pb2
from luciola.wire.pb.common_pb2 import Empty
from storage_cluster import WAIT_S, StorageCluster

pytestmark = pytest.mark.slow
CONTENT = 0x51


class Writer(threading.Thread):
    """Sets lengths of chunks of every chain, over and over, and remembers what was acknowledged."""

    def __init__(self, cluster: StorageCluster) -> None:
        super().__init__()
        self.cluster = cluster
        self.expected: dict[tuple[int, int], int] = {}
        self.acknowledged_count = 0
        self.ended = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        count = 0
        chains = list(self.cluster.chains())
        try:
            while not self.ended.is_set():
                count += 1
                chain, index = chains[count % len(chains)], count * 7 % 50
                self.cluster.write(chain, CONTENT, index, count % 60_000 + 1)
                self.expected[chain, index] = count % 60_000 + 1
                self.acknowledged_count = count
        except BaseException as error:  # noqa: BLE001 (handed to the test)
            self.error = error

    def advance(self, count: int) -> None:
        """Return after `count` more acknowledged writes."""
        target = self.acknowledged_count + count
        self.cluster.wait(lambda: self.acknowledged_count >= target or self.error, f"{count} more writes")
        if self.error is not None:
            raise self.error

    def finish(self) -> None:
        self.ended.set()
        self.join(WAIT_S)
        assert not self.is_alive()
        if self.error is not None:
            raise self.error

    def check(self) -> None:
        """Every acknowledged write is on every replica."""
        for chain in self.cluster.chains().values():
            wanted = {index: length for (which, index), length in self.expected.items() if which == chain.id}
            for target in chain.targets:
                records = self.cluster.records(target.node, chain.id)
                found = {index: length for (_, index), (_, length, _, _) in records.items()}
                assert found == wanted, f"chain {chain.id} on node {target.node}"


@pytest.fixture
def cluster(tmp_path):
    with StorageCluster(tmp_path) as running:
        yield running


def fill(cluster, *, chunks=20, contents=(1, 2)):
    for chain in cluster.chains():
        for content in contents:
            for index in range(chunks):
                cluster.write(chain, content, index, 100 * content + index + 1)


def test_killed_node_loses_nothing_and_catches_up_under_writes(cluster):
    fill(cluster, chunks=5)
    for chain in cluster.chains():
        cluster.remove(chain, 1)
        cluster.remove(chain, 2)
    writer = Writer(cluster)
    writer.start()
    writer.advance(100)
    cluster.kill(2)
    writer.advance(100)
    cluster.start(2)
    cluster.wait_healthy()
    writer.finish()
    for chain in cluster.chains():
        for node in {target.node for target in cluster.chains()[chain].targets}:
            records = cluster.records(node, chain)
            assert all(removed for (content, _), (_, _, removed, _) in records.items() if content in (1, 2))
    assert cluster.assert_replicas_equal() > 20


def test_node_that_dies_unreported_is_noticed_by_its_lease(cluster):
    writer = Writer(cluster)
    writer.start()
    writer.advance(50)
    cluster.kill(1, report=False)
    cluster.wait(lambda: not cluster._serves(1), "the end of its lease")
    cluster.start(1)
    cluster.wait_healthy()
    writer.finish()
    writer.check()


def test_stopped_process_serves_nothing_after_its_lease(cluster):
    """SIGSTOP for longer than the lease: the others continue, and the stopped node must not answer with old state."""
    fill(cluster, chunks=2)
    victim = 3
    chains = [c for c in cluster.chains().values() if any(t.node == victim for t in c.targets)]
    process = cluster._processes[f"storage-{victim}"]
    old = {chain.id: chain.version for chain in chains}
    process.send_signal(signal.SIGSTOP)
    cluster.wait(lambda: all(cluster.chains()[chain].version > old[chain] for chain in old), "other chains")
    for chain in chains:
        cluster.write(chain.id, 1, 0, 7777)
    address = next(node.grpc_address for node in cluster.routing().nodes if node.id == victim)
    process.send_signal(signal.SIGCONT)
    for chain, version in old.items():
        request = storage_pb2.LastChunkRequest(
            chain=storage_pb2.ChainRef(chain=chain, version=version), content=1
        )
        try:
            reply = cluster.call(address, methods.Storage.last_chunk, request)
        except (StaleRouting, Unavailable):
            continue
        pytest.fail(f"answered {reply} without a lease")
    cluster.wait_healthy()
    cluster.assert_replicas_equal()


def test_clean_stop_hands_over_at_once_and_exits_with_0(tmp_path):
    """With leases that outlast every deadline."""
    lease_ms = int(2 * WAIT_S * 1000)
    config = f"[mgmtd]\nlease_ms = {lease_ms}\nbootstrap_ms = {2 * lease_ms}\n"
    with StorageCluster(tmp_path, config=config) as cluster:
        fill(cluster, chunks=2)
        assert cluster.kill(1, signal.SIGTERM) == 0
        for chain in cluster.chains():
            cluster.write(chain, 1, 0, 4242)
        cluster.start(1)
        cluster.wait_healthy()
        cluster.assert_replicas_equal()


def test_replaced_disk_is_filled_again(cluster):
    fill(cluster)
    before = cluster.assert_replicas_equal()
    cluster.kill(2)
    shutil.rmtree(cluster.data(2))
    cluster.start(2)
    cluster.wait_healthy()
    assert cluster.assert_replicas_equal() == before
    assert "is up to date" in cluster.log(1) + cluster.log(3)


def test_directory_of_another_node_is_refused(cluster):
    cluster.kill(1)
    cluster.kill(2)
    cluster.data(1).rename(cluster.root / "aside")
    cluster.data(2).rename(cluster.data(1))
    cluster.start(1)
    assert cluster._processes["storage-1"].wait(WAIT_S) == os.EX_CONFIG
    assert "belongs to node 2" in cluster.log(1)
    cluster.data(1).rename(cluster.data(2))
    (cluster.root / "aside").rename(cluster.data(1))
    cluster.start(1)
    cluster.start(2)
    cluster.wait_healthy()


def test_everything_killed_at_once_comes_back_with_everything(cluster):
    writer = Writer(cluster)
    writer.start()
    writer.advance(300)
    writer.finish()
    for node in cluster.nodes:
        cluster.kill(node)
    for node in cluster.nodes:
        cluster.start(node)
    cluster.wait_healthy()
    writer.check()
    cluster.assert_replicas_equal()


def test_first_that_was_only_killed_serves_at_once(tmp_path):
    with StorageCluster(tmp_path, nodes=2, replicas=2, chains=2) as cluster:
        fill(cluster, chunks=2)
        cluster.kill_together(1, 2)
        cluster.start(2)
        for chain in cluster.chains():
            cluster.write(chain, 1, 0, 4242)
        cluster.start(1)
        cluster.wait_healthy()
        cluster.assert_replicas_equal()


def test_chain_whose_machines_lost_power_waits_for_all_and_resumes_with_the_newest(tmp_path):
    with StorageCluster(tmp_path, nodes=2, replicas=2, chains=1) as cluster:
        (chain,) = cluster.chains()
        head, tail = (target.node for target in cluster.chains()[chain].targets)
        for index in range(4):
            cluster.write(chain, 1, index, 100)
        cluster.kill(head, signal.SIGTERM)
        shutil.copytree(cluster.data(head), tmp_path / "old", ignore=shutil.ignore_patterns("*.sock"))
        cluster.start(head)
        cluster.wait_healthy()
        # Back to the preferred order, so that the head is the one that will lack something.
        request = mgmtd_pb2.UpdateChainRequest(
            chain=chain, action=mgmtd_pb2.UpdateChainRequest.ROTATE_PREFERRED
        )
        cluster.mgmtd(methods.Mgmtd.update_chain, request)
        cluster.wait_healthy()
        cluster.write(chain, 1, 0, 200)  # as if it had not reached the head's disk
        cluster.kill_together(head, tail)
        shutil.rmtree(cluster.data(head) / "chunks")
        (tmp_path / "old" / "chunks").rename(cluster.data(head) / "chunks")
        for node in (head, tail):
            record = cluster.data(node) / "node.json"
            record.write_text(json.dumps(json.loads(record.read_text()) | {"is_clean": False}))
            cluster.restart_kernel(node)
        cluster.start(head)
        cluster.wait(lambda: "waits for the other replicas" in cluster.log(head), "its report")
        cluster.wait(lambda: head in cluster._connected(), "its connection")
        states = {target.node: target.state for target in cluster.chains()[chain].targets}
        assert states == {head: mgmtd_pb2.LASTSRV, tail: mgmtd_pb2.LASTSRV}
        cluster.start(tail)
        cluster.wait(lambda: cluster._serves(tail), "the newest")
        assert cluster.chains()[chain].targets[0].node == tail
        cluster.wait_healthy()
        cluster.assert_replicas_equal()
        assert cluster.records(head, chain)[1, 0][1] == 200
        assert not list(cluster.data(tail).glob("quarantine/*"))


def test_lost_disk_of_the_only_replica_does_not_come_back_empty(tmp_path):
    with StorageCluster(tmp_path, nodes=1, replicas=1, chains=2) as cluster:
        fill(cluster, chunks=2)
        cluster.kill(1)
        shutil.rmtree(cluster.data(1))
        cluster.start(1)
        cluster.wait(lambda: "its data is gone" in cluster.log(1), "the complaint")
        cluster.wait(lambda: 1 in cluster._connected(), "its report to the manager")
        states = {target.state for chain in cluster.chains().values() for target in chain.targets}
        assert states == {mgmtd_pb2.LASTSRV}


def test_status_space_and_scrub_report_what_is_stored(cluster):
    fill(cluster, chunks=3)
    status = cluster.status(1)
    mine = [c for c in cluster.chains().values() if any(t.node == 1 for t in c.targets)]
    assert {target.chain for target in status.targets} == {chain.id for chain in mine}
    assert {target.local for target in status.targets} == {"UPTODATE"}
    assert {target.public for target in status.targets} == {"SERVING"}
    assert sum(target.chunks for target in status.targets) == 6 * len(mine)
    assert status.counters["lease_left_ms"] > 0
    space = cluster.storage(1, methods.Storage.space, Empty())
    assert 0 < space.free_bytes < space.capacity_bytes
    for chain in mine:
        reply = cluster.storage(1, methods.Storage.scrub, storage_pb2.ScrubRequest(chain=chain.id))
        assert (reply.chunks, len(reply.damaged)) == (6, 0)


@pytest.mark.parametrize("replicas", [2, 3])
def test_random_kills_under_writes_lose_nothing(tmp_path, replicas):
    seed = int(os.environ.get("LUCIOLA_SEED") or random.randrange(1 << 30))
    choose = random.Random(seed)
    kills = []
    with StorageCluster(tmp_path, nodes=3, replicas=replicas, chains=4) as cluster:
        writer = Writer(cluster)
        writer.start()
        try:
            for _ in range(5):
                writer.advance(choose.randrange(20, 200))
                victims = choose.sample(list(cluster.nodes), choose.choice([1, 1, 2]))
                kills.append(victims)
                for node in victims:
                    cluster.kill(node, report=choose.random() < 0.8)
                if choose.random() < 0.4:
                    kills.append("mgmtd")
                    cluster.kill_mgmtd()
                    cluster.start_mgmtd()
                for node in victims:
                    cluster.start(node)
                if choose.random() < 0.6:
                    cluster.wait_healthy()
            cluster.wait_healthy()
            writer.finish()
            writer.check()
            cluster.assert_replicas_equal()
        except BaseException as error:
            error.add_note(f"killed {kills}; repeat with LUCIOLA_SEED={seed}")
            raise
        finally:
            writer.ended.set()
            writer.join(WAIT_S)


def test_predecessor_with_an_older_disk_serves_and_what_its_successor_has_beyond_is_set_aside(tmp_path):
    """Its chunks alone are those of an old copy: replicas become equal, and nothing is destroyed."""
    with StorageCluster(tmp_path, nodes=2, replicas=2, chains=1) as cluster:
        (chain,) = cluster.chains()
        for index in range(20):
            cluster.write(chain, 1, index, 100)
        cluster.kill(1, signal.SIGTERM)
        shutil.copytree(cluster.data(1), tmp_path / "old", ignore=shutil.ignore_patterns("*.sock"))
        cluster.start(1)
        cluster.wait_healthy()
        for index in range(10):
            cluster.write(chain, 1, index, 200 + index)
        cluster.write(chain, 2, 0, 77)
        cluster.kill(2, signal.SIGTERM)
        cluster.kill(1)  # before it has synced: the cluster manager would refuse what is older than that
        shutil.rmtree(cluster.data(1) / "chunks")
        (tmp_path / "old" / "chunks").rename(cluster.data(1) / "chunks")
        cluster.start(1)
        cluster.wait(lambda: cluster.chains()[chain].targets[0].state == mgmtd_pb2.SERVING, "the old disk")
        cluster.start(2)
        cluster.wait_healthy()
        assert cluster.assert_replicas_equal() == 20
        assert "is ahead of its predecessor" in cluster.log(1)
        kept = {path.name.split("-")[1]: path.stat().st_size for path in cluster.data(2).glob("quarantine/*")}
        assert kept == {f"1.{index}": 200 + index for index in range(10)} | {"2.0": 77}
        assert cluster.status(2).counters["quarantine_chunks"] == 11
        assert cluster.status(1).counters["recovery_sent"] == 10, "no other chunk was sent"
        for index in range(20):
            cluster.write(chain, 1, index, 300 + index)
        cluster.assert_replicas_equal()
