"""mgmtd and storage nodes as real processes, without meta and clients, for tests of replication and recovery."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from luciola.cli.datadir import free_ports
from luciola.errors import Error
from luciola.storage.recovery import records_of
from luciola.wire import SERVICE, Cluster, RpcClient, create_secret, methods, mint, save_cluster
from luciola.wire.pb import mgmtd_pb2, storage_pb2
from luciola.wire.pb.common_pb2 import Empty

TABLE = 1
WAIT_S = 120.0
CALL_S = 20.0


class StorageCluster:
    """Use as a context manager: every process that was started is ended."""

    def __init__(
        self,
        root: Path,
        *,
        nodes: int = 3,
        replicas: int = 2,
        chains: int = 0,
        config: str = "",
        cluster_id: str = "test",
    ) -> None:
        self.root = root
        self.nodes = range(1, nodes + 1)
        self._replicas, self._chains = replicas, chains
        self._config = root / "config.toml"
        self._config.write_text(config)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._clients: dict[str, RpcClient] = {}
        self.secret = create_secret(root / "secret")
        ports = free_ports(2)
        self.cluster = Cluster(cluster_id, f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}", "secret")
        save_cluster(root / "cluster.json", self.cluster)
        self.token = mint(self.secret, role=SERVICE)
        self._sequence = 0
        self.client = int.from_bytes(os.urandom(8), "little") | 1

    def __enter__(self) -> Self:
        try:
            self._start_all()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start_all(self) -> None:
        self.start_mgmtd()
        for node in self.nodes:
            self.start(node)
        self.wait(lambda: self._connected() >= set(self.nodes), "all nodes")
        request = mgmtd_pb2.CreateChainTableRequest(
            table=TABLE, replicas=self._replicas, chains=self._chains, description="test"
        )
        self.mgmtd(methods.Mgmtd.create_chain_table, request)
        self.wait_healthy()

    def __exit__(self, *exception: object) -> None:
        for client in self._clients.values():
            client.close()
        for process in self._processes.values():
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()

    # Processes.

    def start_mgmtd(self) -> None:
        self._start("mgmtd", "luciola.mgmtd", *self.store("mgmtd"), "--node-id", "1000")

    def kill_mgmtd(self) -> None:
        process = self._processes["mgmtd"]
        process.kill()
        process.wait()

    def start(self, node: int) -> None:
        data = self.data(node)
        self._start(f"storage-{node}", "luciola.storage", "--data", str(data), "--node-id", str(node))

    def _start(self, name: str, module: str, *options: str, cluster: str = "cluster.json") -> None:
        common = ["--cluster", str(self.root / cluster), "--config", str(self._config)]
        with (self.root / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", module, *options, *common], stdout=log, stderr=log
            )

    def store(self, name: str) -> list[str]:
        """Options that name the store of mgmtd or meta; it is created where there is none."""
        path = self.root / name
        return ["--data", str(path), *([] if path.exists() else ["--create"])]

    def data(self, node: int) -> Path:
        return self.root / f"storage-{node}"

    def pid(self, node: int) -> int:
        return self._processes[f"storage-{node}"].pid

    def log(self, node: int) -> str:
        return (self.root / f"storage-{node}.log").read_text()

    def kill(self, node: int, number: int = signal.SIGKILL, *, report: bool = True) -> int:
        """Ends the node's process with that signal; its exit code. `report`: mgmtd is notified, as by a supervisor."""
        process = self._processes[f"storage-{node}"]
        process.send_signal(number)
        code = process.wait(WAIT_S)
        if report and number == signal.SIGKILL:
            record = next(each for each in self.routing().nodes if each.id == node)
            self.mgmtd(
                methods.Mgmtd.process_ended,
                mgmtd_pb2.ProcessEndedRequest(node=node, incarnation=record.incarnation, pid=process.pid),
            )
        if report:
            self.wait(lambda: not self._serves(node), f"the fall of node {node}")
        return code

    def kill_together(self, *nodes: int) -> None:
        """End nodes whose leases mgmtd finds over in one look, so that all were the last that served.

        One after the other, the leases of two nodes that are killed at once may end in two looks, and the last alone
        was the last. A manager that has just started gives all of them the same time.
        """
        self.kill_mgmtd()
        for node in nodes:
            self.kill(node, report=False)
        self.start_mgmtd()
        self.wait(lambda: not any(self._serves(node) for node in nodes), "the end of their leases")

    def restart_kernel(self, node: int) -> None:
        """Let the node, whose process has ended, find another kernel than before, as after a loss of power.

        Nothing is lost with it: that takes a machine.
        """
        path = self.data(node) / "node.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"boot": "before the power was lost"}))

    def _serves(self, node: int) -> bool:
        states = {
            target.state
            for chain in self.chains().values()
            for target in chain.targets
            if target.node == node
        }
        return bool(states & {mgmtd_pb2.SERVING, mgmtd_pb2.SYNCING})

    # Calls.

    def call(self, address: str, method: methods.Method[Any, Any], request: Any) -> Any:
        if address not in self._clients:
            self._clients[address] = RpcClient(address, self.token)
        return self._clients[address].call(method, request, timeout_s=CALL_S)

    def mgmtd(self, method: methods.Method[Any, Any], request: Any) -> Any:
        """What mgmtd replies, as soon as it is there."""
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                return self.call(self.cluster.mgmtd_grpc, method, request)
            except Error as error:
                if not error.retryable or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def storage(self, node: int, method: methods.Method[Any, Any], request: Any) -> Any:
        record = next(each for each in self.routing().nodes if each.id == node)
        return self.call(record.grpc_address, method, request)

    def routing(self) -> mgmtd_pb2.Routing:
        reply: mgmtd_pb2.Routing = self.mgmtd(methods.Mgmtd.get_routing, mgmtd_pb2.GetRoutingRequest())
        return reply

    def chains(self) -> dict[int, mgmtd_pb2.Chain]:
        return {chain.id: chain for chain in self.routing().chains}

    # Data: whole chunks of zeros, whose length distinguishes them.

    def write(self, chain: int, content: int, index: int, length: int) -> None:
        """Sets a chunk's length through the head of its chain, however long that takes."""
        self._through_head(
            chain,
            methods.Storage.truncate_chunk,
            lambda ref, expiry: storage_pb2.TruncateChunkRequest(
                chain=ref,
                expiry=expiry,
                chunk=storage_pb2.ChunkName(content=content, index=index),
                length=length,
                client=self.client,
                sequence=self._sequence,
            ),
        )

    def remove(self, chain: int, content: int) -> int:
        """Removes all chunks of a content."""
        reply = self._through_head(
            chain,
            methods.Storage.remove_chunks,
            lambda ref, expiry: storage_pb2.RemoveChunksRequest(
                chain=ref,
                expiry=expiry,
                removals=[storage_pb2.ChunkName(content=content)],
                client=self.client,
                sequence=self._sequence,
            ),
        )
        return int(reply.removed)

    def _through_head(
        self, chain: int, method: methods.Method[Any, Any], request: Callable[[Any, Any], Any]
    ) -> Any:
        self._sequence += 1000
        deadline = time.monotonic() + WAIT_S
        while True:
            known = self.chains()[chain]
            head = known.targets[0]
            ref = storage_pb2.ChainRef(chain=chain, version=known.version)
            try:
                clock = self.storage(head.node, methods.Storage.clock, Empty())
                expiry = storage_pb2.Expiry(life=clock.life, at_ms=clock.now_ms + int(CALL_S * 1000))
                return self.storage(head.node, method, request(ref, expiry))
            except Error as error:
                if not error.retryable or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def records(
        self, node: int, chain: int, *, settled: bool = True
    ) -> dict[tuple[int, int], tuple[int, int, bool, int]]:
        """The node's committed chunks of a chain: name to (version, length, removed, crc).

        `settled`: no update is in progress.
        """
        found = {}
        after = None
        while True:
            request = storage_pb2.ListChunksRequest(chain=chain, limit=1000, after=after)
            reply = self.storage(node, methods.Storage.list_chunks, request)
            for item in records_of(reply.chunks):
                assert not (settled and item.pending), f"chunk {item.name} is pending on node {node}"
                found[item.name] = (item.version, item.length, item.removed, item.crc32c)
            if not reply.more:
                return found
            after = reply.chunks[-1].chunk

    def status(self, node: int) -> storage_pb2.StorageStatus:
        reply: storage_pb2.StorageStatus = self.storage(node, methods.Storage.status, Empty())
        return reply

    # Waiting.

    def wait(self, condition: Callable[[], object], what: str, *, timeout_s: float = WAIT_S) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                if condition():
                    return
            except Error as error:
                if not error.retryable and time.monotonic() > deadline:
                    raise
            assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}: {self.routing()}"
            time.sleep(0.05)

    def wait_healthy(self) -> None:
        """Every replica of every chain serves."""
        self.wait(self._is_healthy, "a healthy cluster")

    def _is_healthy(self) -> bool:
        """By mgmtd, and by each node itself: mgmtd may not know yet that one has just been replaced."""
        chains = self.chains()
        if not chains or any(t.state != mgmtd_pb2.SERVING for c in chains.values() for t in c.targets):
            return False
        reports = [target for node in self.nodes for target in self.status(node).targets]
        return all(
            (report.local, report.chain_version) == ("UPTODATE", chains[report.chain].version)
            for report in reports
        ) and len(reports) == sum(len(chain.targets) for chain in chains.values())

    def _connected(self) -> set[int]:
        return {node.id for node in self.routing().nodes if node.status == mgmtd_pb2.CONNECTED}

    def assert_replicas_equal(self) -> int:
        """Compares all replicas of all chains, chunk by chunk; how many chunks there are."""
        count = 0
        for chain in self.chains().values():
            replicas = {target.node: self.records(target.node, chain.id) for target in chain.targets}
            first = next(iter(replicas.values()))
            for node, records in replicas.items():
                assert records == first, f"chain {chain.id}: node {node} differs"
            count += len(first)
        return count
