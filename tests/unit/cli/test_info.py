"""One chunk and its copies, as `luciola info` shows them."""

import pytest

from luciola.cli.info import Records, describe_chunk
from luciola.wire.pb import meta_pb2
from luciola.wire.pb import mgmtd_pb2 as pb
from luciola.wire.pb.storage_pb2 import ChunkName, ChunkRecord

FILE = meta_pb2.Inode(content=7, layout=meta_pb2.Layout(chunk_bytes=1 << 20))
CHAIN = pb.Chain(id=5, version=3)
CHAIN.targets.add(node=201, state=pb.SERVING)
CHAIN.targets.add(node=202, state=pb.SERVING)


def copy(version: int, *, length: int = 9, pending: bool = False, removed: bool = False) -> Records:
    """What a node has of chunk 4."""
    name = ChunkName(content=7, index=4)
    return {4: ChunkRecord(chunk=name, version=version, length=length, pending=pending, removed=removed)}


@pytest.mark.parametrize(
    ("held", "state", "said"),
    [
        ({201: copy(2), 202: copy(2)}, "in sync", ""),
        ({201: {}, 202: {}}, "hole", ""),
        ({201: copy(2, removed=True), 202: copy(2, removed=True)}, "hole", ""),
        ({201: copy(2), 202: copy(1)}, "differs", "replicas differ: node 201 version 0.2"),
        ({201: copy(2), 202: {}}, "differs", "replicas differ"),
        ({201: copy(2), 202: copy(2, pending=True)}, "pending", "run again when nothing writes"),
        ({201: copy(2), 202: None}, "in sync", "node 202 does not answer"),
        ({201: None, 202: None}, "unknown", "node 201 does not answer"),
    ],
)
def test_copies_of_a_chunk_are_compared(held: dict[int, Records | None], state: str, said: str) -> None:
    chunk, problems = describe_chunk(CHAIN, FILE, 4, held)
    assert (chunk["state"], chunk["offset"], chunk["chain"]) == (state, 4 << 20, 5)
    assert (said in "; ".join(problems)) if said else problems == []


def test_update_in_progress_of_an_open_file_is_no_problem() -> None:
    file = meta_pb2.Inode(content=7, layout=FILE.layout, open_for_writing=True)
    chunk, problems = describe_chunk(CHAIN, file, 4, {201: copy(2, pending=True), 202: copy(2)})
    assert (chunk["state"], problems) == ("pending", [])


def test_replica_that_does_not_serve_is_shown_and_not_compared() -> None:
    chain = pb.Chain(id=5)
    chain.CopyFrom(CHAIN)
    chain.targets[1].state = pb.SYNCING
    chunk, problems = describe_chunk(chain, FILE, 4, {201: copy(2), 202: copy(1)})
    assert (chunk["state"], problems) == ("in sync", [])
    assert [each["version"] for each in chunk["copies"]] == [2, 1]


def test_chain_without_a_serving_replica_names_the_command() -> None:
    chain = pb.Chain(id=5)
    chain.targets.add(node=201, state=pb.LASTSRV)
    chunk, problems = describe_chunk(chain, FILE, 4, {201: copy(2)})
    assert chunk["state"] == "unknown"
    assert "luciola chain list --incomplete" in problems[0]
