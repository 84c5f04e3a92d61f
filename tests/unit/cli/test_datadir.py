"""The data directory: shape, privacy, lock."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from luciola.cli.datadir import DataDir, Shape, check_shape, choose_shape
from luciola.cli.metadata_options import MetadataWanted
from luciola.errors import Busy, InvalidArgument, NotFound, PermissionDenied
from luciola.wire import load_cluster, write_private


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    data = DataDir(tmp_path / "data")
    data.create()
    return data


def test_defaults_are_three_nodes_and_two_copies(data: DataDir) -> None:
    shape = choose_shape(data, storage_nodes=None, replicas=None)
    assert (shape.storage_nodes, shape.replicas) == (3, 2)
    assert choose_shape(data, storage_nodes=None, replicas=None) == shape


def test_one_node_keeps_one_copy(data: DataDir) -> None:
    assert choose_shape(data, storage_nodes=1, replicas=None).replicas == 1


def test_more_copies_than_nodes_are_refused(data: DataDir) -> None:
    with pytest.raises(InvalidArgument, match="3 replicas need at least 3 storage nodes"):
        choose_shape(data, storage_nodes=2, replicas=3)
    assert not data.cluster.exists()


def test_copies_and_fewer_nodes_cannot_be_asked_for_later(data: DataDir) -> None:
    choose_shape(data, storage_nodes=3, replicas=2)
    with pytest.raises(InvalidArgument, match="was created with 2 replicas"):
        choose_shape(data, storage_nodes=None, replicas=3)
    with pytest.raises(InvalidArgument, match="has 3 storage nodes, which may become more, not fewer"):
        choose_shape(data, storage_nodes=2, replicas=None)


def test_more_nodes_and_racks_are_kept_for_the_next_start(data: DataDir) -> None:
    choose_shape(data, storage_nodes=3, replicas=2)
    grown = choose_shape(data, storage_nodes=5, replicas=None, racks=2)
    assert (grown.storage_nodes, grown.racks) == (5, 2)
    assert choose_shape(data, storage_nodes=None, replicas=None) == grown == data.read_shape()


def test_a_taken_port_is_replaced(data: DataDir) -> None:
    old = choose_shape(data, storage_nodes=None, replicas=None)
    host, _, port = old.cluster.mgmtd_lane.rpartition(":")
    with socket.socket() as squatter:
        squatter.bind((host, int(port)))
        squatter.listen()
        new = choose_shape(data, storage_nodes=None, replicas=None)
    assert new.cluster.mgmtd_lane != old.cluster.mgmtd_lane
    places = {"mgmtd_lane": new.cluster.mgmtd_lane, "mgmtd_grpc": new.cluster.mgmtd_grpc}
    assert new == replace(old, cluster=replace(old.cluster, **places))
    assert data.read_shape() == new


def test_everything_is_closed_to_other_users(data: DataDir) -> None:
    choose_shape(data, storage_nodes=None, replicas=None)
    for path in (data.root, data.root / "run", data.root / "log", data.mounts):
        assert path.stat().st_mode & 0o077 == 0
    assert data.cluster.stat().st_mode & 0o777 == 0o600


def test_only_one_supervisor_at_a_time(data: DataDir) -> None:
    assert not data.is_supervised()
    with data.supervised():
        assert data.is_supervised()
        assert data.lock.read_text() == f"{os.getpid()}\n"
        with pytest.raises(Busy, match="running already"), data.supervised():
            pass
        assert data.lock.read_text() == f"{os.getpid()}\n"
    assert not data.is_supervised()


@contextlib.contextmanager
def process(code: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """One that has run `code`, and waits."""
    code += "; print(flush=True); import signal; signal.pause()"
    with subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        try:
            yield child
        finally:
            child.kill()


HOLDS = "import fcntl, sys; lock = open(sys.argv[1], 'r+'); fcntl.flock(lock, fcntl.LOCK_EX)"


def test_only_the_process_that_holds_the_lock_is_signalled(data: DataDir) -> None:
    """Between taking the lock and writing its id there, a supervisor has that of an earlier one in it."""
    assert not data.signal_supervisor(signal.SIGTERM)
    data.lock.touch()
    with process("pass") as stranger, process(HOLDS, str(data.lock)) as supervisor:
        for stale in (str(stranger.pid), "", "0", "a word", "9" * 30):
            data.lock.write_text(f"{stale}\n")
            assert not data.signal_supervisor(signal.SIGTERM)
        data.lock.write_text(f"{supervisor.pid}\n")
        assert data.signal_supervisor(signal.SIGTERM)
        assert supervisor.wait() == -signal.SIGTERM
        assert not data.signal_supervisor(signal.SIGTERM)
        assert stranger.poll() is None


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InvalidArgument, match="holds no cluster"):
        DataDir(tmp_path).create()
    with pytest.raises(InvalidArgument, match="not a directory"):
        DataDir(tmp_path / "thesis.tex").create()


def test_missing_and_damaged_records_say_what_to_do(data: DataDir) -> None:
    with pytest.raises(NotFound, match="luciola up"):
        data.read_shape()
    for damaged in ("{", "[]", "3", '{"replicas": 2}', '{"storage_nodes": "many", "replicas": 2}'):
        data.cluster.write_text(damaged)
        with pytest.raises(InvalidArgument, match="damaged"):
            data.read_shape()


def test_lost_record_is_made_again_of_what_the_storage_nodes_know(data: DataDir) -> None:
    shape = choose_shape(data, storage_nodes=2, replicas=1)
    for node in (201, 202):
        (data.root / f"storage-{node}").mkdir()
        record = {"node": node, "cluster": shape.cluster.cluster_id, "joined": True, "lost": []}
        (data.root / f"storage-{node}" / "node.json").write_text(json.dumps(record))
        (data.root / f"storage-{node}.config.json").write_text("{}")
    data.cluster.unlink()
    with pytest.raises(InvalidArgument, match="created with 2 storage nodes"):
        choose_shape(data, storage_nodes=3, replicas=1)
    (data.root / "storage-201" / "node.json").unlink()  # on a disk that was replaced
    again = choose_shape(data, storage_nodes=None, replicas=1)
    assert (again.cluster.cluster_id, again.storage_nodes) == (shape.cluster.cluster_id, 2)
    assert (shape.has_stores, again.has_stores) == (False, True)
    data.cluster.unlink()
    (data.root / "storage-202" / "node.json").write_text("{")
    with pytest.raises(InvalidArgument, match="damaged"):
        choose_shape(data, storage_nodes=None, replicas=1)


def test_disks_that_wait_for_their_cluster_do_not_say_how_many_nodes_it_has(data: DataDir) -> None:
    (data.root / "storage-201").mkdir()
    assert choose_shape(data, storage_nodes=2, replicas=2).storage_nodes == 2


def test_every_process_reads_the_cluster_out_of_the_same_file(data: DataDir) -> None:
    shape = choose_shape(data, storage_nodes=None, replicas=None)
    assert load_cluster(data.cluster) == shape.cluster


PRIVATE = MetadataWanted("etcd")
ELSEWHERE = MetadataWanted("etcd://one:2379,two:2379", metas=3)


def _choose(data: DataDir, wanted: MetadataWanted) -> Shape:
    return choose_shape(data, storage_nodes=None, replicas=None, metadata=wanted)


def test_private_etcd_has_three_members_and_two_processes_of_each_kind(data: DataDir) -> None:
    shape = _choose(data, PRIVATE)
    known = shape.cluster.metadata
    assert known is not None
    assert (shape.metas, shape.managers) == (2, 2)
    addresses = [
        *shape.cluster.mgmtd_lane.split(","),
        *shape.cluster.mgmtd_grpc.split(","),
        *(endpoint.removeprefix("https://") for endpoint in known.endpoints),
        *shape.etcd_peers,
    ]
    assert len(set(addresses)) == len(addresses) == 2 + 2 + 3 + 3
    assert all(address.startswith("127.0.0.1:") for address in addresses)
    assert known.ca_file == known.certificate_file == str(data.root / "etcd" / "certificate.pem")
    assert data.read_shape() == shape
    assert load_cluster(data.cluster) == shape.cluster
    assert _choose(data, MetadataWanted()) == shape  # a later `up` need not repeat it


def test_etcd_elsewhere_is_recorded_and_may_move(data: DataDir) -> None:
    shape = _choose(data, ELSEWHERE)
    assert shape.cluster.metadata is not None
    assert shape.cluster.metadata.endpoints == ("http://one:2379", "http://two:2379")
    assert (shape.metas, shape.managers, shape.etcd_peers) == (3, 2, ())
    moved = _choose(data, MetadataWanted("etcd://three:2379"))
    assert moved.cluster.metadata is not None
    assert moved.cluster.metadata.endpoints == ("http://three:2379",)
    assert data.read_shape() == moved
    assert (moved.metas, moved.cluster.cluster_id) == (3, shape.cluster.cluster_id)


@pytest.mark.parametrize(
    ("created", "later", "reason"),
    [
        (MetadataWanted(), PRIVATE, "metadata in one store each"),
        (MetadataWanted(), ELSEWHERE, "metadata in one store each"),
        (
            PRIVATE,
            ELSEWHERE,
            "has a private etcd, not an etcd that runs elsewhere: `luciola metadata migrate` moves them",
        ),
        (ELSEWHERE, PRIVATE, "has an etcd that runs elsewhere, not a private etcd"),
        (PRIVATE, MetadataWanted(metas=3), "with --metas 2"),
        (PRIVATE, MetadataWanted(managers=3), "with --managers 2"),
        (MetadataWanted(), MetadataWanted(metas=2), "with --metas 1"),
    ],
)
def test_kind_of_metadata_cannot_be_changed(
    data: DataDir, created: MetadataWanted, later: MetadataWanted, reason: str
) -> None:
    shape = _choose(data, created)
    with pytest.raises(InvalidArgument, match=reason):
        _choose(data, later)
    assert data.read_shape() == shape


def test_several_services_need_replicated_metadata(data: DataDir) -> None:
    with pytest.raises(InvalidArgument, match="need replicated metadata"):
        _choose(data, MetadataWanted(metas=2))
    with pytest.raises(InvalidArgument, match="need replicated metadata"):
        _choose(data, MetadataWanted(managers=2))
    assert not data.cluster.exists()
    assert _choose(data, MetadataWanted(metas=1, managers=1)).cluster.metadata is None


def test_taken_ports_of_clients_of_etcd_are_replaced_and_of_its_members_refused(data: DataDir) -> None:
    old = _choose(data, PRIVATE)
    assert old.cluster.metadata is not None
    client = old.cluster.metadata.endpoints[1].removeprefix("https://")
    with _listening(client):
        new = _choose(data, MetadataWanted())
    assert new.cluster.metadata is not None
    endpoints = zip(old.cluster.metadata.endpoints, new.cluster.metadata.endpoints, strict=True)
    changed = [one != other for one, other in endpoints]
    assert changed == [False, True, False]
    assert replace(new, cluster=old.cluster) == old
    with _listening(old.etcd_peers[2]), pytest.raises(Busy, match="member 3"):
        _choose(data, MetadataWanted())
    assert data.read_shape() == new


def test_members_of_etcd_without_the_cluster_file_are_refused(data: DataDir) -> None:
    _choose(data, PRIVATE)
    (data.root / "etcd-1").mkdir()
    data.cluster.unlink()
    with pytest.raises(InvalidArgument, match=r"put cluster\.json back"):
        check_shape(data, storage_nodes=None, replicas=None)


@contextlib.contextmanager
def _listening(address: str) -> Iterator[None]:
    host, _, port = address.rpartition(":")
    with socket.socket() as squatter:
        squatter.bind((host, int(port)))
        squatter.listen()
        yield


def test_private_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "record"
    write_private(path, json.dumps([1]))
    write_private(path, json.dumps([2]))
    assert json.loads(path.read_text()) == [2]
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["record"]


def test_cluster_file_that_is_a_fifo_is_refused(data: DataDir) -> None:
    choose_shape(data, storage_nodes=None, replicas=None)
    data.cluster.unlink()
    os.mkfifo(data.cluster)
    with pytest.raises(PermissionDenied, match="not a regular file"):
        load_cluster(data.cluster)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_data_of_another_user_are_refused(data: DataDir) -> None:
    choose_shape(data, storage_nodes=None, replicas=None)
    os.chown(data.cluster, 65534, 65534)
    with pytest.raises(PermissionDenied, match="belongs to uid 65534"):
        data.read_shape()
    with pytest.raises(PermissionDenied, match="belongs to uid 65534"):
        load_cluster(data.cluster)
    os.chown(data.root, 65534, 65534)
    with pytest.raises(InvalidArgument, match="belongs to uid 65534"):
        data.create()
