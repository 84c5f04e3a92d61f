"""The native storage node and the fake that tests of recovery use in its place: one suite for both."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol

import pytest
from luciola_core import StorageNode

from luciola.clock import boot_s
from luciola.errors import Busy, StaleRouting, Unavailable
from luciola.storage.compare import Record
from luciola.wire.pb.mgmtd_pb2 import (
    CONNECTED,
    NODE_STORAGE,
    OFFLINE,
    SERVING,
    SYNCING,
    Chain,
    Node,
    Routing,
    Target,
)

from .fake_node import FakeNode, record

CHAIN: Final = 7
REMOVED: Final = None
# What may have happened to a chunk on one replica: in which chain version, and how long that left it. The version of
# the chunk counts.
HISTORIES: Final = (
    (),
    ((1, 10),),
    ((1, 10), (1, 20)),
    ((2, 20),),
    ((1, 10), (2, 20)),
    ((1, 10), (1, REMOVED)),
    ((1, 10), (2, REMOVED)),
    ((1, 10), (1, REMOVED), (2, 5)),
)
History = Sequence[tuple[int, int | None]]


class Replicas(Protocol):
    """Two replicas of one chain."""

    nodes: tuple[Any, Any]

    def update(self, number: int, content: int, history: History, chain_version: int) -> None:
        """Does to chunk 0 of `content` on one replica what `history` says of `chain_version`."""


class Fakes:
    """`MemoryNode` twice."""

    def __init__(self) -> None:
        peers: dict[int, FakeNode] = {}
        self.nodes = FakeNode(1, peers), FakeNode(2, peers)

    def update(self, number: int, content: int, history: History, chain_version: int) -> None:
        so_far = [each for each in history if each[0] <= chain_version]
        if so_far:
            made, length = so_far[-1]
            stamp = {"version": len(so_far), "chain_version": made}
            last = record(content, 0, **stamp, length=length or 0, removed=length is REMOVED)
            self.nodes[number].put(CHAIN, last)


class Natives:
    """Two native nodes that speak over TCP."""

    def __init__(self, directory: Path) -> None:
        self.nodes = self._start(directory, 1), self._start(directory, 2)
        self._sequence = 0

    def _start(self, directory: Path, number: int) -> StorageNode:
        socket = directory / f"{number}.sock"
        return StorageNode(number, directory / str(number), secret=bytes(32), socket=socket, reserve_bytes=0)

    def update(self, number: int, content: int, history: History, chain_version: int) -> None:
        node = self.nodes[number]
        for _, length in (each for each in history if each[0] == chain_version):
            self._sequence += 1
            until_s = boot_s() + 1000
            if length is REMOVED:
                node.remove_chunks(CHAIN, chain_version, [(content, 0)], 1, 9, self._sequence, until_s)
            else:
                node.truncate_chunk(CHAIN, chain_version, content, 0, length, 9, self._sequence, until_s)

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()


@contextmanager
def _replicas(kind: str, directory: Path) -> Iterator[Replicas]:
    if kind == "fake":
        yield Fakes()
        return
    natives = Natives(directory)
    try:
        yield natives
    finally:
        natives.stop()


@pytest.fixture(params=["native", "fake"])
def replicas(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Replicas]:
    with _replicas(request.param, tmp_path) as both:
        yield both


def publish(replicas: Replicas, version: int, *targets: tuple[int, int], to: Sequence[int] = (0, 1)) -> None:
    """Publish version `version` of routing and of the chain, with these (node, state)."""
    addresses = [getattr(node, "tcp_address", lambda: "")() for node in replicas.nodes]
    routing = Routing(
        version=version,
        nodes=[
            Node(id=number, kind=NODE_STORAGE, status=CONNECTED, data_address=address)
            for number, address in enumerate(addresses, 1)
        ],
        chains=[
            Chain(
                id=CHAIN,
                version=version,
                targets=[Target(id=70 + node, node=node, state=state) for node, state in targets],
            )
        ],
    )
    for each in to:
        replicas.nodes[each].set_routing(routing.SerializeToString())
        replicas.nodes[each].set_lease(boot_s() + 10_000, version)


def live(replicas: Replicas, first: Sequence[History], second: Sequence[History]) -> None:
    """The replicas live through these histories, of contents 1, 2 …, each alone."""
    for version in (1, 2):
        for number, histories in enumerate((first, second)):
            publish(replicas, version, (number + 1, SERVING), to=[number])
            for content, history in enumerate(histories, 1):
                replicas.update(number, content, history, version)


def records(node: Any) -> list[Record]:
    """All chunks of a replica; what stands for their bytes is left out."""
    return [replace(Record(*fields), crc32c=0) for fields in node.list_chunks(CHAIN, None, 1000)]


def may_both_be(first: History, second: History) -> bool:
    """A version of a chunk is the same wherever it is."""
    if not first or not second:
        return True
    stamps = [(history[-1][0], len(history)) for history in (first, second)]
    return stamps[0] != stamps[1] or first == second


def outcomes(replicas: Replicas) -> dict[str, Any]:
    """What comes of sending each chunk of the first replica to the second, whatever both hold."""
    pairs = [pair for pair in itertools.product(HISTORIES, HISTORIES) if may_both_be(*pair)]
    live(replicas, [first for first, _ in pairs], [second for _, second in pairs])
    before = records(replicas.nodes[0])
    publish(replicas, 3, (1, SERVING), (2, SYNCING))
    names = [(content, 0) for content in range(1, len(pairs) + 1)]
    sent, failures = replicas.nodes[0].sync_chunks(CHAIN, 3, names)
    assert records(replicas.nodes[0]) == before, "the sender keeps what it has"
    found = {each.name: each for each in records(replicas.nodes[1])}
    refused = {(content, index): status for content, index, status in failures}
    return {"sent": sent} | {
        f"{first} over {second}": (found.get(name), refused.get(name))
        for name, (first, second) in zip(names, pairs, strict=True)
    }


def test_what_comes_of_any_chunk_that_is_sent_to_any_replica(tmp_path):
    with _replicas("native", tmp_path) as natives, _replicas("fake", tmp_path) as fakes:
        assert outcomes(natives) == outcomes(fakes)


def test_chunks_are_listed_in_order_page_by_page(replicas):
    live(replicas, [((1, length),) for length in (10, 20, 30)], [])
    node = replicas.nodes[0]
    names = [tuple(line[:2]) for line in node.list_chunks(CHAIN, None, 10)]
    assert names == [(1, 0), (2, 0), (3, 0)]
    assert [tuple(line[:2]) for line in node.list_chunks(CHAIN, (1, 0), 1)] == [(2, 0)]
    assert node.list_chunks(CHAIN, (3, 0), 1) == []
    assert node.targets()[0][:4] == (71, CHAIN, 2, 3)


def test_only_the_chunk_that_was_meant_is_set_aside(replicas, tmp_path):
    live(replicas, [], [((1, 10), (2, 20))])
    node = replicas.nodes[1]
    with pytest.raises(Unavailable):  # a replica that serves gives nothing away
        node.quarantine(CHAIN, 2, (1, 0), (2, 2), tmp_path)
    publish(replicas, 3, (1, SERVING), (2, SYNCING))
    with pytest.raises(StaleRouting):
        node.quarantine(CHAIN, 2, (1, 0), (2, 2), tmp_path)
    assert not node.quarantine(CHAIN, 3, (1, 0), (1, 1), tmp_path)
    assert not node.quarantine(CHAIN, 3, (9, 0), (1, 1), tmp_path)
    assert len(records(node)) == 1
    assert node.quarantine(CHAIN, 3, (1, 0), (2, 2), tmp_path)
    assert records(node) == []


def test_a_chunk_of_which_nothing_is_known_is_set_aside_as_one_that_cannot_be_read(replicas, tmp_path):
    live(replicas, [], [((1, 10),)])
    node = replicas.nodes[1]
    publish(replicas, 3, (1, SERVING), (2, SYNCING))
    assert node.quarantine(CHAIN, 3, (9, 0), (0, 0), tmp_path)
    assert [each.is_unreadable for each in records(node)] == [False, True]
    assert not node.quarantine(CHAIN, 3, (1, 0), (0, 0), tmp_path)


def test_a_chain_is_wiped_whole_where_it_is_not_served(replicas):
    live(replicas, [((1, 10),), ((1, 10), (1, REMOVED))], [])
    node = replicas.nodes[0]
    with pytest.raises(Busy):
        node.wipe_chain(CHAIN)
    assert len(records(node)) == 2
    publish(replicas, 3, (1, OFFLINE))
    assert node.stored_chains() == [CHAIN]
    node.wipe_chain(CHAIN)
    assert records(node) == []
    assert node.stored_chains() == []


def test_chunks_are_sent_under_the_version_of_the_chain_alone(replicas):
    live(replicas, [((1, 10),)], [()])
    publish(replicas, 3, (1, SERVING), (2, SYNCING))
    with pytest.raises(StaleRouting):
        replicas.nodes[0].sync_chunks(CHAIN, 2, [(1, 0)])
    assert replicas.nodes[0].sync_chunks(CHAIN, 3, []) == (0, [])


def test_tombstones_of_earlier_rounds_are_purged_and_nothing_else(replicas):
    live(replicas, [((1, 10), (1, REMOVED)), ((1, 10),), ((1, 10), (2, REMOVED))], [])
    node = replicas.nodes[0]
    node.sync()
    round_ = node.round()
    assert node.purge_tombstones(CHAIN, None, 0, 2) == (0, (2, 0))
    count, last = node.purge_tombstones(CHAIN, None, round_, 2)
    assert (count, last) == (1, (2, 0))
    count, last = node.purge_tombstones(CHAIN, last, round_, 2)
    assert (count, last) == (1, None)
    assert [each.name for each in records(node)] == [(2, 0)]
