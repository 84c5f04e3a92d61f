"""`luciola info` on a real cluster: where the bytes of a file are."""

from pathlib import Path

import pytest

from cluster import LocalCluster, luciola
from luciola.client import connect
from luciola.wire import load_cluster
from luciola.wire.cluster import FILE_NAME
from luciola.wire.credentials import TRUSTED, load_secret, mint, save_token

MIB = 1 << 20


@pytest.fixture(scope="module")
def file(shared_cluster: LocalCluster):
    """A file of 9 MiB with a hole from 4 to 8 MiB."""
    with connect(str(shared_cluster.data)) as fs:
        fs.makedirs("/info", exist_ok=True)
        with fs.open("/info/file", "wb") as written:
            written.write(b"a" * 4 * MIB)
            written.seek(8 * MIB)
            written.write(b"b" * MIB)
            written.fsync()
        fs.write("/info/small", b"few")
        yield fs
        fs.rmtree("/info")


def test_every_chunk_is_on_the_replicas_of_its_chain(shared_cluster: LocalCluster, file) -> None:
    found = shared_cluster.ask("info", "/info/file")
    assert (found["type"], found["length"], found["is_inline"]) == ("file", 9 * MIB, False)
    chunk_bytes = found["layout"]["chunk_bytes"]
    assert found["chunk_count"] == len(found["chunks"]) == -(-9 * MIB // chunk_bytes)
    chains = {chain["id"]: chain for chain in found["chains"]}
    for chunk in found["chunks"]:
        is_hole = 4 * MIB <= chunk["offset"] < 8 * MIB
        assert chunk["state"] == ("hole" if is_hole else "in sync"), chunk
        nodes = [target["node"] for target in chains[chunk["chain"]]["targets"]]
        assert [copy["node"] for copy in chunk["copies"]] == nodes
        assert {copy["state"] for copy in chunk["copies"]} == {"missing" if is_hole else "whole"}
        if not is_hole:
            assert len({(copy["version"], copy["length"], copy["crc32c"]) for copy in chunk["copies"]}) == 1
    for chain in found["chains"]:
        for target in chain["targets"]:
            assert Path(target["directory"]) == shared_cluster.data / f"storage-{target['node']}"
            assert target["disk"]
            assert target["host"]
    assert found["problems"] == []


def test_part_of_a_file_is_shown(shared_cluster: LocalCluster, file) -> None:
    found = shared_cluster.ask("info", "/info/file", "--offset", "8M", "--limit", "1")
    assert (found["first_chunk"], len(found["chunks"])) == (8 * MIB // found["layout"]["chunk_bytes"], 1)
    assert found["chunks"][0]["state"] == "in sync"
    assert shared_cluster.ask("info", "/info/file", "--offset", "1G")["chunks"] == []


def test_path_on_a_mount_is_the_same_file(shared_cluster: LocalCluster, file) -> None:
    assert shared_cluster.mountpoint is not None
    on_mount = shared_cluster.ask("info", str(shared_cluster.mountpoint / "info" / "file"))
    in_cluster = shared_cluster.ask("info", "lu:/info/file")
    for key in ("inode", "content", "length", "layout", "chunks"):
        assert on_mount[key] == in_cluster[key]


def test_link_elsewhere_is_followed_onto_a_mount_and_one_there_is_shown_itself(
    shared_cluster: LocalCluster, file, tmp_path
) -> None:
    assert shared_cluster.mountpoint is not None
    (tmp_path / "link").symlink_to(shared_cluster.mountpoint / "info" / "file")
    (shared_cluster.mountpoint / "info" / "link").symlink_to("file")
    inode = shared_cluster.ask("info", "lu:/info/file")["inode"]
    assert shared_cluster.ask("info", str(tmp_path / "link"))["inode"] == inode
    on_mount = shared_cluster.ask("info", str(shared_cluster.mountpoint / "info" / "link"))
    assert (on_mount["type"], on_mount["inode"]) == (
        "symlink",
        shared_cluster.ask("info", "lu:/info/link")["inode"],
    )


def test_path_beside_a_manager_is_never_looked_up_on_a_mount(shared_cluster: LocalCluster, file) -> None:
    manager = load_cluster(shared_cluster.data / FILE_NAME).mgmtd_grpc
    named = ("--manager", manager, "--secret-file", str(shared_cluster.data / "secret"))
    refused = luciola("info", *named, str(shared_cluster.mountpoint / "info" / "file"), check=False)
    assert "no such directory" in refused.stderr
    assert "in sync" in luciola("info", *named, "/info/file").stdout


def test_token_that_may_not_list_chunks_is_refused_by_name(
    shared_cluster: LocalCluster, file, tmp_path
) -> None:
    cluster = load_cluster(shared_cluster.data / FILE_NAME)
    save_token(tmp_path / "token", mint(load_secret(shared_cluster.data / "secret"), role=TRUSTED))
    named = ("--manager", cluster.mgmtd_grpc, "--token-file", str(tmp_path / "token"))
    refused = luciola("info", *named, "/info/file", check=False)
    assert "not for this token's role" in refused.stderr


def test_small_file_and_directory_have_no_chunks(shared_cluster: LocalCluster, file) -> None:
    small = shared_cluster.ask("info", "/info/small")
    assert (small["is_inline"], small["chunks"], small["chains"]) == (True, [], [])
    assert shared_cluster.ask("info", "/info")["type"] == "directory"
