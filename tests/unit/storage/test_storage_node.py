"""The native storage node as Python drives it: its life, its lease, its refusals."""

import shutil
import sys
import threading
from pathlib import Path

import pytest
from luciola_core import StorageNode

from luciola.clock import boot_s
from luciola.errors import (
    Busy,
    ConfigError,
    CorruptData,
    Error,
    InvalidArgument,
    StaleRouting,
    Timeout,
    Unavailable,
)
from luciola.storage.directory import Directory
from luciola.wire.pb.mgmtd_pb2 import CONNECTED, NODE_STORAGE, SERVING, Chain, Node, Routing, Target

SECRET = bytes(range(32))


def start(directory: Path, node: int = 1) -> StorageNode:
    return StorageNode(
        node, directory, secret=SECRET, socket=directory.parent / f"{node}.sock", reserve_bytes=0
    )


def routing(node: StorageNode, *, version: int = 1, chain_version: int = 1) -> bytes:
    return Routing(
        version=version,
        nodes=[Node(id=1, kind=NODE_STORAGE, status=CONNECTED, data_address=node.tcp_address())],
        chains=[Chain(id=7, version=chain_version, targets=[Target(id=70, node=1, state=SERVING)])],
    ).SerializeToString()


def soon() -> float:
    return boot_s() + 60


@pytest.fixture
def node(tmp_path):
    node = start(tmp_path / "chunks")
    yield node
    node.stop()


def serve(node: StorageNode) -> None:
    assert node.set_routing(routing(node)) == 1
    node.set_lease(boot_s() + 60, 1)


def test_chunks_are_made_cut_listed_and_removed_through_the_chain(node):
    serve(node)
    node.truncate_chunk(7, 1, 5, 0, 1000, 9, 1, soon())
    node.truncate_chunk(7, 1, 5, 3, 2000, 9, 1, soon())
    lines = node.list_chunks(7, None, 10)
    assert [(line[0], line[1], line[2], line[4]) for line in lines] == [(5, 0, 1, 1000), (5, 3, 1, 2000)]
    assert node.list_chunks(7, (5, 0), 10) == lines[1:]
    assert node.last_chunk(7, 1, 5) == (3, 2000)
    assert node.remove_chunks(7, 1, [(4, 0), (5, 1)], 10, 9, 2, soon()) == (1, None)
    node.sync_chain(7, 1)
    assert node.last_chunk(7, 1, 5) == (0, 1000)
    assert node.last_chunk(7, 1, 6) is None
    assert node.scrub(7, None, 10, repair=True) == (1, 1000, [], 0, None)
    assert node.targets()[0][:4] == (70, 7, 1, 1)
    assert node.chain_states() == [(7, 1, SERVING, 0)]
    assert node.commit_pending(7) == 0
    assert node.counters()["machines"] == 0


def test_a_request_that_has_expired_changes_nothing(node):
    serve(node)
    node.truncate_chunk(7, 1, 5, 0, 1000, 9, 1, soon())
    with pytest.raises(Timeout, match="expired"):
        node.remove_chunks(7, 1, [(5, 0)], 10, 9, 2, boot_s() - 1)
    with pytest.raises(Timeout, match="expired"):
        node.truncate_chunk(7, 1, 5, 0, 10, 9, 2, boot_s() - 1)
    assert node.last_chunk(7, 1, 5) == (0, 1000)


def test_retry_of_a_request_is_recognised_after_a_restart(tmp_path):
    node = start(tmp_path / "chunks")
    serve(node)
    node.truncate_chunk(7, 1, 5, 0, 1000, 9, 1, soon())
    node.truncate_chunk(7, 1, 5, 0, 10, 9, 2, soon())
    node.stop()
    node = start(tmp_path / "chunks")
    serve(node)
    node.truncate_chunk(7, 1, 5, 0, 10, 9, 2, soon())
    assert node.list_chunks(7, None, 10)[0][2] == 2
    with pytest.raises(Error, match="older request"):
        node.truncate_chunk(7, 1, 5, 0, 1000, 9, 1, soon())
    node.stop()


def test_nothing_is_served_without_routing_and_lease(node):
    with pytest.raises(StaleRouting):
        node.last_chunk(7, 1, 5)
    node.set_routing(routing(node))
    with pytest.raises(Unavailable, match="lease"):
        node.last_chunk(7, 1, 5)
    node.set_lease(boot_s() + 60, 2)  # the manager knows of routing that we do not have yet
    with pytest.raises(Unavailable, match="lease"):
        node.last_chunk(7, 1, 5)
    node.set_routing(routing(node, version=2, chain_version=3))
    assert node.last_chunk(7, 3, 5) is None
    with pytest.raises(StaleRouting):
        node.last_chunk(7, 1, 5)
    assert 50 < node.lease_left_s() <= 60
    node.drop_lease()
    assert node.lease_left_s() == 0
    with pytest.raises(Unavailable, match="lease"):
        node.last_chunk(7, 3, 5)


def test_lease_ends_by_itself(node):
    node.set_routing(routing(node))
    node.set_lease(boot_s() - 1, 1)
    assert node.lease_left_s() == 0
    node.set_lease(float("nan"), 1)
    assert node.lease_left_s() == 0


def test_bad_arguments_are_refused(tmp_path, node):
    with pytest.raises(InvalidArgument, match="32 bytes"):
        StorageNode(1, tmp_path / "other", secret=b"short")
    with pytest.raises(InvalidArgument, match="address"):
        StorageNode(1, tmp_path / "other", secret=SECRET, tcp="nowhere")
    with pytest.raises(InvalidArgument, match="durability"):
        StorageNode(1, tmp_path / "other", secret=SECRET, durability="perhaps")
    with pytest.raises(Busy, match="another process"):
        StorageNode(1, tmp_path / "chunks", secret=SECRET)
    with pytest.raises(CorruptData):
        node.set_routing(b"\xff\xff\xff")
    with pytest.raises(InvalidArgument):
        node.commit_pending(7, timeout_s=-1)


def test_served_chain_is_not_wiped(node):
    serve(node)
    node.truncate_chunk(7, 1, 5, 0, 1000, 9, 1, soon())
    with pytest.raises(Busy):
        node.wipe_chain(7)
    elsewhere = Routing(
        version=2, chains=[Chain(id=7, version=2, targets=[Target(id=71, node=2, state=SERVING)])]
    )
    node.set_routing(elsewhere.SerializeToString())
    node.wipe_chain(7)
    assert node.list_chunks(7, None, 10) == []


def open_as_a_process_does(path: Path) -> None:
    directory = Directory(path, node=1, cluster_id="test")
    try:
        StorageNode(
            1,
            directory.chunks,
            secret=SECRET,
            reserve_bytes=0,
            identity=directory.engine_identity,
            create=directory.may_create_engine,
        ).stop()
        directory.join([5])
    finally:
        directory.close()


def test_chunks_that_are_not_mounted_are_not_made_again(tmp_path):
    open_as_a_process_does(tmp_path / "data")
    chunks = tmp_path / "data" / "chunks"
    chunks.rename(tmp_path / "unmounted")
    for _ in range(2):  # the first attempt leaves an empty mount point
        with pytest.raises(ConfigError, match="mount their disk; if it is lost, empty the whole directory"):
            open_as_a_process_does(tmp_path / "data")
    chunks.rmdir()
    (tmp_path / "unmounted").rename(chunks)
    open_as_a_process_does(tmp_path / "data")


def test_chunks_of_another_directory_are_refused(tmp_path):
    for name in ("data", "other"):
        open_as_a_process_does(tmp_path / name)
    (tmp_path / "data" / "chunks").rename(tmp_path / "aside")
    (tmp_path / "other" / "chunks").rename(tmp_path / "data" / "chunks")
    with pytest.raises(ConfigError, match="mount the disk that belongs here"):
        open_as_a_process_does(tmp_path / "data")


def test_chunks_without_their_node_record_are_refused(tmp_path):
    open_as_a_process_does(tmp_path / "data")
    (tmp_path / "data" / "node.json").unlink()
    with pytest.raises(ConfigError, match=r"put back its node\.json"):
        open_as_a_process_does(tmp_path / "data")


def test_emptied_directory_gets_another_engine(tmp_path):
    open_as_a_process_does(tmp_path / "data")
    before = (tmp_path / "data" / "chunks" / "FORMAT").read_text()
    for path in (tmp_path / "data").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    open_as_a_process_does(tmp_path / "data")
    assert (tmp_path / "data" / "chunks" / "FORMAT").read_text() != before


def test_start_that_crashed_before_the_engine_was_made_is_repeated(tmp_path):
    Directory(tmp_path / "data", node=1, cluster_id="test").close()
    open_as_a_process_does(tmp_path / "data")


def test_stopped_node_says_so_and_stops_twice(tmp_path):
    node = start(tmp_path / "chunks")
    node.stop()
    node.stop()
    with pytest.raises(Unavailable, match="stopped"):
        node.space()
    start(tmp_path / "chunks").stop()  # the directory is free again


def test_waiting_calls_do_not_hold_the_interpreter(node):
    """Other threads run while a call waits, though the interpreter takes nothing away from a running thread."""
    serve(node)
    began, ran = threading.Event(), threading.Event()

    def wait() -> None:
        began.set()
        while not ran.is_set():
            node.sync()

    before = sys.getswitchinterval()
    sys.setswitchinterval(3600)
    thread = threading.Thread(target=wait)
    try:
        thread.start()
        assert began.wait(60)
    finally:
        ran.set()
        sys.setswitchinterval(before)
    thread.join()
