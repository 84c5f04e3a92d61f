"""The metadata service as a process, beside mgmtd and storage nodes: it dies, returns, and forgets nothing."""

import random
import resource
import signal
import subprocess
import sys
import threading
import time

import pytest

from lane_client import LaneClient
from luciola.errors import AlreadyExists, Error, NotFound, Unauthenticated, Unavailable
from luciola.meta.layout import chains_of
from luciola.wire import CLIENT, TRUSTED, methods, mint
from luciola.wire.pb import meta_pb2 as pb
from luciola.wire.pb import mgmtd_pb2
from luciola.wire.pb.common_pb2 import Caller, Empty
from storage_cluster import TABLE, WAIT_S, StorageCluster

pytestmark = pytest.mark.slow

CHUNK = 64 * 1024
NODE = 100
CONFIG = """
[mgmtd]
client_session_timeout_ms = 2000
client_extend_interval_ms = 200
[meta]
chunk_bytes = 65536
stripe = 4
gc_delay_ms = 20000
gc_interval_ms = 100
"""
CHUNKED = pb.Layout(chunk_bytes=CHUNK, stripe=4, inline_bytes=0)
NAMESPACE = methods.Meta


class MetaCluster(StorageCluster):
    """A storage cluster with a metadata service."""

    def __init__(self, root) -> None:
        super().__init__(root, config=CONFIG)
        self.clients: list[Client] = []

    def __enter__(self):
        super().__enter__()
        self.start_meta()
        self.wait(self.meta_address, "the metadata service")
        return self

    def __exit__(self, *exception) -> None:
        for client in self.clients:
            client.close()
        super().__exit__(*exception)

    def start_meta(self) -> None:
        self._start("meta", "luciola.meta", *self.store("meta"))

    def end_meta(self, number: int = signal.SIGKILL) -> int:
        process = self._processes["meta"]
        process.send_signal(number)
        return process.wait(WAIT_S)

    def meta_address(self) -> str:
        pid = self._processes["meta"].pid
        nodes = [node for node in self.routing().nodes if node.id == NODE and node.pid == pid]
        return nodes[0].lane_address if nodes and nodes[0].status == mgmtd_pb2.CONNECTED else ""

    def meta_grpc(self) -> str:
        return next(node.grpc_address for node in self.routing().nodes if node.id == NODE)

    def connect(self, **options):
        client = Client(self, **options)
        self.clients.append(client)
        return client

    def table(self):
        return next(table.chains for table in self.routing().tables if table.id == TABLE)

    def chunks(self, content: int) -> int:
        """Chunks of a content on all nodes, those that are being removed too."""
        count = 0
        for chain in self.chains().values():
            for target in chain.targets:
                records = self.records(target.node, chain.id, settled=False)
                count += sum(name[0] == content and not record[2] for name, record in records.items())
        return count


class Client:
    """Sends requests again, with the same sequence, until it hears an answer."""

    def __init__(self, cluster: MetaCluster, *, token=None, uid: int = 0) -> None:
        self.cluster = cluster
        self.id = random.SystemRandom().getrandbits(63) | 1
        self.sequence = 0
        self.retries = 0
        self.uid = uid
        self._token = token or mint(cluster.secret, role=TRUSTED)
        self._lane: LaneClient | None = None

    def call(self, method, request, *, timeout_s: float = WAIT_S):
        self.sequence += 1
        request.caller.CopyFrom(Caller(uid=self.uid, gid=self.uid, client=self.id, sequence=self.sequence))
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                if self._lane is None:
                    self._lane = LaneClient(self.cluster.meta_address(), self._token)
                return self._lane.call(method, request, timeout_s=20)
            except Error as error:
                if not error.retryable and not isinstance(error, Unauthenticated | ValueError):
                    raise
                if time.monotonic() > deadline:
                    raise
                self.retries += 1
                self.close()
                time.sleep(0.02)

    def extend(self) -> None:
        """Report to mgmtd that this client lives."""
        request = mgmtd_pb2.ExtendClientRequest(client=self.id, kind=mgmtd_pb2.NODE_CLIENT)
        self.cluster.mgmtd(methods.Mgmtd.extend_client, request)

    def close(self) -> None:
        if self._lane is not None:
            self._lane.close()
            self._lane = None

    def create(self, path: bytes, *, layout=None, exclusive=True, write=True):
        request = pb.CreateRequest(
            path=pb.Path(at=1, path=path), permissions=0o644, exclusive=exclusive, write=write, layout=layout
        )
        return self.call(NAMESPACE.create, request)

    def stat(self, path: bytes = b"", *, at: int = 1):
        return self.call(NAMESPACE.stat, pb.StatRequest(path=pb.Path(at=at, path=path))).inode

    def truncate(self, path: bytes, length: int, session: int = 0):
        request = pb.SetAttrRequest(path=pb.Path(at=1, path=path), length=length, session=session)
        return self.call(NAMESPACE.set_attr, request).inode

    def names(self, path: bytes) -> list[bytes]:
        number, found = self.stat(path).id, []
        while True:
            request = pb.ListRequest(inode=number, after=found[-1] if found else b"", limit=100)
            reply = self.call(NAMESPACE.list, request)
            found += [entry.name for entry in reply.entries]
            if not reply.more:
                return found

    def unlink(self, path: bytes):
        return self.call(NAMESPACE.unlink, pb.UnlinkRequest(path=pb.Path(at=1, path=path)))

    def finish(self, inode, session: int, *, length: int | None = None, read_hold: bool = False):
        one = pb.CloseOne(inode=inode.id, session=session, read_hold=read_hold)
        if length is not None:
            one.length.CopyFrom(pb.LengthHint(length=length, truncate_version=inode.truncate_version))
        reply = self.call(NAMESPACE.close, pb.CloseRequest(closes=[one]))
        assert not reply.errors[0].code, reply.errors[0]
        return reply.results[0].inode

    def write(self, inode, index: int, length: int) -> None:
        """A chunk of zeros, through the chain that the layout names."""
        chains = chains_of(inode.layout, self.cluster.table())
        self.cluster.write(chains[index % len(chains)], inode.content, index, length)

    def extend_session(self, *, leaving: bool = False) -> None:
        """Extend the session of this client with mgmtd."""
        self.cluster.mgmtd(
            methods.Mgmtd.extend_client,
            mgmtd_pb2.ExtendClientRequest(client=self.id, kind=mgmtd_pb2.NODE_CLIENT, leaving=leaving),
        )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with MetaCluster(tmp_path_factory.mktemp("meta")) as running:
        yield running


class Worker(threading.Thread):
    """Creates, renames and removes in a directory of its own, and remembers the replies."""

    def __init__(self, cluster: MetaCluster, number: int) -> None:
        super().__init__()
        self.client = cluster.connect()
        self.directory = b"kill-%d" % number
        self.there: set[bytes] = set()
        self.gone: set[bytes] = set()
        self.ended = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.client.call(NAMESPACE.mkdir, pb.MkdirRequest(path=pb.Path(at=1, path=self.directory)))
            count = 0
            while not self.ended.is_set():
                count += 1
                self._one(self.directory + b"/%d" % count, count % 3)
        except BaseException as error:  # noqa: BLE001, handed to the test
            self.error = error

    def _one(self, name: bytes, what: int) -> None:
        reply = self.client.create(name)
        assert reply.created
        self.client.finish(reply.inode, reply.session)
        self.there.add(name)
        if what == 1:
            request = pb.RenameRequest(
                source=pb.Path(at=1, path=name), target=pb.Path(at=1, path=name + b"x")
            )
            self.client.call(NAMESPACE.rename, request)
            self.there.add(name + b"x")
        if what == 2:
            assert self.client.unlink(name).inode.link_count == 0
        if what:
            self.there.remove(name)
            self.gone.add(name)

    def finish(self) -> None:
        self.ended.set()
        self.join(WAIT_S)
        if self.error is not None:
            raise self.error


def test_names_survive_kills(cluster):
    """While three clients work the service is killed, again and again: every answer that was given is true."""
    workers = [Worker(cluster, number) for number in range(3)]
    for worker in workers:
        worker.start()
    for _ in range(4):
        done = [len(each.gone) for each in workers]
        cluster.wait(
            lambda done=done: all(
                len(each.gone) > before + 20 or each.error for each, before in zip(workers, done, strict=True)
            ),
            "more names",
        )
        assert cluster.end_meta() == -signal.SIGKILL
        cluster.start_meta()
        cluster.wait(cluster.meta_address, "the metadata service")
    cluster.wait(lambda: all(len(each.there) > 20 or each.error for each in workers), "more names")
    for worker in workers:
        worker.finish()
    client = cluster.connect()
    for worker in workers:
        found = {worker.directory + b"/" + name for name in client.names(worker.directory)}
        assert found == worker.there
        assert not found & worker.gone
    assert sum(worker.client.retries for worker in workers)


def test_length_truncation_and_removal_reach_the_chains_in_spite_of_kills(cluster):
    removed_before_a_kill = truncate_and_remove_under_kills(cluster)
    writer, reader = cluster.connect(), cluster.connect()
    reply = writer.create(b"data", layout=CHUNKED)
    inode, session = reply.inode, reply.session
    for index in range(6):
        writer.write(inode, index, CHUNK)
    writer.write(inode, 6, 100)
    assert reader.stat(b"data").length == 6 * CHUNK + 100
    cut = writer.truncate(b"data", 2 * CHUNK + 50, session)
    assert cut.truncate_version == 1
    assert cluster.chunks(inode.content) == 3 * 2
    cluster.wait(lambda: reader.stat(b"data").length == 2 * CHUNK + 50, "the cut to be seen by others")
    writer.write(cut, 3, 7)
    assert writer.finish(cut, session, length=3 * CHUNK + 7).length == 3 * CHUNK + 7
    hold = reader.call(NAMESPACE.open, pb.OpenRequest(path=pb.Path(at=1, path=b"data"), read=True)).inode
    writer.unlink(b"data")
    later = writer.create(b"removed-later", layout=CHUNKED)
    writer.write(later.inode, 0, CHUNK)
    writer.finish(later.inode, later.session, length=CHUNK)
    writer.unlink(b"removed-later")

    def is_collected() -> bool:
        reader.extend()  # a client that mgmtd does not know loses its read holds
        return not cluster.chunks(later.inode.content)

    cluster.wait(is_collected, "a file removed later to be collected")
    cluster.wait(
        lambda: not cluster.chunks(removed_before_a_kill), "one removed before a kill to be collected"
    )
    assert cluster.chunks(inode.content) == 4 * 2
    reader.finish(hold, 0, read_hold=True)
    cluster.wait(lambda: not cluster.chunks(inode.content), "the chunks to go")
    with pytest.raises(NotFound):
        reader.stat(at=inode.id)


def truncate_and_remove_under_kills(cluster: MetaCluster) -> int:
    """Kill the service while it truncates a file, and when it has removed it. Return the content, to be collected."""
    client = cluster.connect()
    reply = client.create(b"big", layout=CHUNKED)
    for index in range(40):
        client.write(reply.inode, index, CHUNK)
    client.finish(reply.inode, reply.session, length=40 * CHUNK)
    thread = threading.Thread(target=client.truncate, args=(b"big", 5))
    thread.start()
    cluster.wait(lambda: cluster.chunks(reply.inode.content) < 40 * 2, "the first removals")
    cluster.end_meta()
    cluster.start_meta()
    thread.join(WAIT_S)
    assert client.stat(b"big").length == 5
    assert cluster.chunks(reply.inode.content) == 2
    client.unlink(b"big")
    cluster.end_meta()
    cluster.start_meta()
    return int(reply.inode.content)


def test_sessions_of_a_dead_client_end_and_its_bytes_count(cluster):
    dead, alive = cluster.connect(), cluster.connect()
    dead.extend_session()
    reply = dead.create(b"orphaned", layout=CHUNKED)
    dead.write(reply.inode, 2, 33)
    alive.extend_session()
    before = cluster.call(cluster.meta_grpc(), NAMESPACE.status, Empty()).write_sessions
    assert before >= 1

    def ended() -> bool:
        alive.extend_session()
        return (
            cluster.call(cluster.meta_grpc(), NAMESPACE.status, Empty()).write_sessions < before
            and alive.stat(b"orphaned").length == 2 * CHUNK + 33
        )

    cluster.wait(ended, "the session to end")


def test_only_who_holds_the_secret_gets_in(cluster):
    stranger = mint(bytes(32), role=TRUSTED)
    with pytest.raises(Error) as caught:
        LaneClient(cluster.meta_address(), stranger).call(NAMESPACE.stat, pb.StatRequest(), timeout_s=60)
    assert isinstance(caught.value, Unauthenticated | Unavailable)
    user = cluster.connect(token=mint(cluster.secret, role=CLIENT, uid=1234, gid=1234), uid=1234)
    with pytest.raises(PermissionError):
        user.create(b"not mine")


def test_clean_stop(cluster):
    client = cluster.connect()
    client.create(b"before the stop")
    assert cluster.end_meta(signal.SIGTERM) == 0
    cluster.start_meta()
    cluster.wait(cluster.meta_address, "the metadata service")
    with pytest.raises(AlreadyExists):
        client.create(b"before the stop")


def test_second_process_on_the_same_store_is_refused(cluster):
    command = [
        *(sys.executable, "-m", "luciola.meta", "--data", str(cluster.root / "meta")),
        *("--cluster", str(cluster.root / "cluster.json")),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr


def test_process_ends_when_its_store_fails_and_the_next_one_has_what_was_acknowledged(tmp_path):
    with MetaCluster(tmp_path) as cluster:
        client = cluster.connect()
        client.create(b"before")
        process = cluster._processes["meta"]
        resource.prlimit(
            process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY)
        )  # as a disk that fails
        with pytest.raises(Unavailable):
            client.call(NAMESPACE.create, pb.CreateRequest(path=pb.Path(at=1, path=b"after")), timeout_s=0)
        assert process.wait(WAIT_S) == 1
        cluster.start_meta()
        cluster.wait(cluster.meta_address, "the metadata service")
        assert client.names(b"") == [b"before"]
