"""Layouts that users set: `luciola layout`, and the files that are then made."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import luciola
from cluster import LocalCluster
from cluster import luciola as command
from luciola.client import FileSystem, Layout
from luciola.errors import InvalidArgument, NotADirectory
from luciola.units import KIB, MIB
from luciola.wire import SERVICE, RpcClient, load_cluster, methods, mint
from luciola.wire.pb.mgmtd_pb2 import GetRoutingRequest
from luciola.wire.pb.storage_pb2 import ListChunksRequest

pytestmark = [pytest.mark.mount, pytest.mark.timeout(300)]

CONFIGURED = Layout(table=1, chunk_bytes=MIB, stripe=8, inline_bytes=4 * KIB)


@pytest.fixture(scope="module")
def fs(shared_cluster: LocalCluster) -> Iterator[FileSystem]:
    with luciola.connect(shared_cluster.data) as fs:
        yield fs


def layout(cluster: LocalCluster, *arguments: str, refused: int = 0) -> str:
    """Runs `luciola layout`. Returns its output; with an exit code instead of 0, what it says on standard error."""
    result = command("layout", arguments[0], "--data", str(cluster.data), *arguments[1:], check=False)
    assert result.returncode == refused, result.stderr
    return result.stderr if refused else result.stdout


def shown(cluster: LocalCluster, *paths: str) -> list[dict[str, Any]]:
    described: list[dict[str, Any]] = json.loads(layout(cluster, "show", "--json", *paths))
    return described


def chunks_of(cluster: LocalCluster) -> dict[tuple[int, int], tuple[int, int]]:
    """All chunks of the cluster: (content, index) to (chain, length)."""
    known = load_cluster(cluster.data / "cluster.json")
    token = mint(known.secret(), role=SERVICE)
    with RpcClient(known.mgmtd_grpc, token) as manager:
        routing = manager.call(methods.Mgmtd.get_routing, GetRoutingRequest())
    addresses = {node.id: node.grpc_address for node in routing.nodes}
    found = {}
    for chain in routing.chains:
        with RpcClient(addresses[chain.targets[0].node], token) as node:
            request = ListChunksRequest(chain=chain.id, limit=1024)
            while True:
                reply = node.call(methods.Storage.list_chunks, request)
                for each in reply.chunks:
                    if not each.removed:
                        found[each.chunk.content, each.chunk.index] = (chain.id, each.length)
                if not reply.more:
                    break
                request.after.CopyFrom(reply.chunks[-1].chunk)
    return found


def test_file_made_below_a_directory_has_the_layout_set_for_it(
    shared_cluster: LocalCluster, mounted_dir: Path, fs: FileSystem
) -> None:
    top = f"/{mounted_dir.name}"
    layout(
        shared_cluster,
        *("set", "--chunk-bytes", "64K", "--stripe", "2", "--inline-bytes", "0", top),
    )
    (mounted_dir / "below").mkdir()
    before = chunks_of(shared_cluster)
    (mounted_dir / "below" / "file").write_bytes(os.urandom(300_000))
    made = {name: place for name, place in chunks_of(shared_cluster).items() if name not in before}

    wanted = Layout(table=1, chunk_bytes=64 * KIB, stripe=2, inline_bytes=0)
    assert fs.layout(f"{top}/below/file") == wanted
    lengths = {index: length for (_, index), (_, length) in made.items()}
    assert lengths == {0: 65536, 1: 65536, 2: 65536, 3: 65536, 4: 300_000 - 4 * 65536}
    chains = {index: chain for (_, index), (chain, _) in made.items()}
    assert chains[0] == chains[2] == chains[4] != chains[1] == chains[3]

    before = chunks_of(shared_cluster)
    (mounted_dir / "below" / "short").write_bytes(b"not in its inode")
    made = {name: place for name, place in chunks_of(shared_cluster).items() if name not in before}
    assert [length for _, length in made.values()] == [16]


def test_what_is_there_keeps_its_layout(
    shared_cluster: LocalCluster, mounted_dir: Path, fs: FileSystem
) -> None:
    top = f"/{mounted_dir.name}"
    (mounted_dir / "file").write_bytes(b"old")
    (mounted_dir / "below").mkdir()
    layout(shared_cluster, "set", "--chunk-bytes", "4M", top)
    layout(shared_cluster, "set", "--stripe", "3", top)
    described = shown(shared_cluster, top, f"{top}/file", f"{top}/below")
    assert [each["source"] for each in described] == ["directory", "file", "cluster"]
    assert [(each["chunk_bytes"], each["stripe"]) for each in described] == [(4 * MIB, 3), (MIB, 8), (MIB, 8)]
    assert {each["table"] for each in described} == {1}
    assert {each["inline_bytes"] for each in described} == {4 * KIB}
    assert "4.0 MiB" in layout(shared_cluster, "show", top)

    layout(shared_cluster, "clear", top)
    assert [each["source"] for each in shown(shared_cluster, top)] == ["cluster"]
    (mounted_dir / "new").write_bytes(b"new")
    assert fs.layout(f"{top}/new") == fs.default_layout() == CONFIGURED


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--chunk-bytes", "100000"), 1, "power of two from 65536 to 67108864, not 100000"),
        (("--chunk-bytes", "128M"), 1, "power of two from 65536 to 67108864"),
        (("--chunk-bytes", "8G"), 1, "layout.chunk_bytes must be from 1 to 4294967295"),
        (("--chunk-bytes", "wide"), 2, "write a number and K, M, G or T"),
        (("--table", "7"), 1, "layout.table 7 does not exist; the cluster has 1"),
        (("--stripe", "0"), 2, "0 is not in the range"),
        (("--stripe", "5000"), 1, "between 1 and 1024, not 5000"),
        (("--inline-bytes", "1M"), 1, "at most 65536"),
        ((), 2, "say what to set"),
    ],
)
def test_layout_without_sense_is_refused_and_changes_nothing(
    shared_cluster: LocalCluster, fs: FileSystem, arguments: tuple[str, ...], code: int, said: str
) -> None:
    before = fs.layout("/")
    assert said in layout(shared_cluster, "set", *arguments, "/", refused=code)
    assert fs.layout("/") == before


def test_layout_of_a_file_is_fixed(shared_cluster: LocalCluster, mounted_dir: Path) -> None:
    (mounted_dir / "file").write_bytes(b"content")
    path = f"/{mounted_dir.name}/file"
    said = layout(shared_cluster, "set", "--stripe", "2", path, refused=1)
    assert "fixed when it is created: set that of its directory, and copy the file there" in said
    assert path in said
    os.mkfifo(mounted_dir / "fifo")
    said = layout(shared_cluster, "show", f"/{mounted_dir.name}/fifo", refused=1)
    assert "only files and directories have a layout" in said


def test_programs_give_a_layout_to_what_they_make(fs: FileSystem) -> None:
    fs.mkdir("/layouts", layout=Layout(stripe=2, inline_bytes=0))
    try:
        with fs.open("/layouts/wide", "xb", layout=Layout(chunk_bytes=4 * MIB)) as file:
            file.write(b"x")
        assert fs.layout("/layouts/wide") == Layout(table=1, chunk_bytes=4 * MIB, stripe=2, inline_bytes=0)
        assert fs.read("/layouts/wide") == b"x"
        fs.set_layout("/layouts", Layout(inline_bytes=100))
        fs.write("/layouts/plain", b"y")
        assert fs.layout("/layouts/plain") == Layout(table=1, chunk_bytes=MIB, stripe=2, inline_bytes=100)
        with pytest.raises(NotADirectory, match="fixed when it is created"):
            fs.set_layout("/layouts/plain", Layout(stripe=1))
        with pytest.raises(InvalidArgument, match=r"layout\.stripe must be from 1"):
            Layout(stripe=0)
    finally:
        fs.rmtree("/layouts")
