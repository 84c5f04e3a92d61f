"""A real storage node and the fake that tests of this service use in its place: one suite for both."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from luciola_core import StorageNode

from luciola.clock import SystemClock, boot_s
from luciola.errors import Unavailable
from luciola.ids import ChainId
from luciola.meta.cluster import Cluster
from luciola.meta.control import GrpcControl
from luciola.meta.fake_control import FakeControl
from luciola.meta.storage import ChunkRange, LastChunk, StorageControl
from luciola.storage.engine import Engine
from luciola.storage.service import StorageService
from luciola.wire import TRUSTED, Identity
from luciola.wire.pb.mgmtd_pb2 import CONNECTED, NODE_STORAGE, SERVING, Chain, Node, Routing, Target

CHAIN = ChainId(7)
SIZE_MAX = 64 * 1024
IDENTITY = Identity(TRUSTED, 0, 0, ())


class Side(Protocol):
    control: StorageControl

    def put(self, content: int, index: int, length: int) -> None:
        """Makes a chunk as long as that, as a client's writes do."""

    def chunks(self) -> dict[tuple[int, int], int]:
        """The length of every chunk."""

    def stop(self) -> None:
        """From now on the chain is not served."""


class Fake:
    """`FakeControl`."""

    def __init__(self) -> None:
        self.control = FakeControl()

    def put(self, content: int, index: int, length: int) -> None:
        self.control.write(CHAIN, content, index=index, data=bytes(length))

    def chunks(self) -> dict[tuple[int, int], int]:
        return {
            (content, index): len(data)
            for (_, content), chunks in self.control.chunks.items()
            for index, data in chunks.items()
        }

    def stop(self) -> None:
        self.control.down.add(CHAIN)


class Real:
    """A node, its service, and the control that asks it; only gRPC is left out."""

    def __init__(self, directory: Path) -> None:
        self.node = StorageNode(
            1, directory, secret=bytes(32), socket=directory / "data.sock", reserve_bytes=0
        )
        routing = Routing(
            version=1,
            nodes=[
                Node(
                    id=1,
                    kind=NODE_STORAGE,
                    status=CONNECTED,
                    grpc_address="node",
                    data_address=self.node.tcp_address(),
                )
            ],
            chains=[Chain(id=CHAIN, version=1, targets=[Target(id=70, node=1, state=SERVING)])],
        )
        self.node.set_routing(routing.SerializeToString())
        self.node.set_lease(boot_s() + 10_000, 1)
        unused: Any = None
        self.engine = Engine(self.node)
        self.service = StorageService(self.engine, unused, unused, unused, unused)
        clients: Any = self
        cluster = Cluster(clients, "mgmtd", SystemClock())
        cluster.routing.apply(routing)
        self.control = GrpcControl(clients, cluster, SystemClock())
        self.sequence = 0

    async def call(self, _: str, method: Any, request: Any, *, timeout_s: float) -> Any:
        """Carries a request as `RpcClients` do."""
        reply = getattr(self.service, method.attribute)(request, IDENTITY)
        return await reply if asyncio.iscoroutine(reply) else reply

    def put(self, content: int, index: int, length: int) -> None:
        known = self.chunks().get((content, index), 0)
        self.sequence += 1
        self.node.truncate_chunk(
            CHAIN, 1, content, index, max(known, length), 9, self.sequence, boot_s() + 1000
        )

    def chunks(self) -> dict[tuple[int, int], int]:
        lines = self.node.list_chunks(CHAIN, None, 100_000)
        return {
            (content, index): length
            for content, index, _, _, length, _, _, removed, _ in lines
            if not removed
        }

    def stop(self) -> None:
        self.node.drop_lease()


@pytest.fixture
def real(tmp_path: Path) -> Iterator[Real]:
    side = Real(tmp_path)
    yield side
    asyncio.run(side.engine.close())


@pytest.fixture(params=["real", "fake"])
def side(request: pytest.FixtureRequest) -> Side:
    return request.getfixturevalue("real") if request.param == "real" else Fake()


def remove(side: Side, *removals: ChunkRange, limit: int) -> bool:
    """Whether nothing is left to remove."""
    left = asyncio.run(side.control.remove_chunks(CHAIN, removals, limit=limit, durable=True, retry=False))
    return not left


OPERATIONS = st.one_of(
    st.tuples(st.just("put"), st.integers(1, 3), st.integers(0, 4), st.integers(0, SIZE_MAX)),
    st.tuples(st.just("cut"), st.integers(1, 3), st.integers(0, 4), st.integers(0, SIZE_MAX)),
    st.tuples(st.just("last"), st.integers(1, 3)),
    st.tuples(
        st.just("remove"),
        st.lists(st.tuples(st.integers(1, 3), st.integers(0, 5)), max_size=3, unique_by=lambda each: each[0]),
        st.integers(1, 6),
        st.booleans(),
    ),
)


def carry_out(side: Side, operation: tuple[Any, ...], first: int) -> Any:
    """What an operation finds, in contents from `first` on."""
    control = side.control
    match operation:
        case "put", content, index, length:
            return side.put(first + content, index, length)
        case "cut", content, index, length:
            return asyncio.run(control.truncate_chunk(CHAIN, first + content, index=index, length=length))
        case "last", content:
            return asyncio.run(control.last_chunk(CHAIN, first + content, retry=False))
        case "remove", removals, limit, durable:
            ranges = [ChunkRange(first + content, index) for content, index in removals]
            left = asyncio.run(
                control.remove_chunks(CHAIN, ranges, limit=limit, durable=durable, retry=False)
            )
            # Where a removal continues may be said in several ways.
            return [each.content for each in left]
    raise AssertionError(operation)


def test_random_requests_are_answered_alike(real: Real) -> None:
    fake = Fake()
    contents = iter(range(0, 1 << 40, 1000))

    @settings(max_examples=100)
    @given(st.lists(OPERATIONS, min_size=1, max_size=20))
    def compare(operations: list[tuple[Any, ...]]) -> None:
        first = next(contents)  # every example has contents of its own
        for operation in operations:
            answers = carry_out(real, operation, first), carry_out(fake, operation, first)
            assert answers[0] == answers[1], operation
            assert real.chunks() == fake.chunks(), operation

    compare()


def test_a_removal_takes_as_many_chunks_as_it_may_and_says_what_is_left(side: Side) -> None:
    for content in (1, 2):
        for index in range(3):
            side.put(content, index, 10)
    ranges = ChunkRange(1, 1), ChunkRange(2, 0)
    assert not remove(side, *ranges, limit=4)
    assert side.chunks() == {(1, 0): 10, (2, 2): 10}
    assert remove(side, *ranges, limit=4)
    assert side.chunks() == {(1, 0): 10}


def test_the_last_chunk_is_the_one_that_is_there(side: Side) -> None:
    assert asyncio.run(side.control.last_chunk(CHAIN, 1, retry=False)) is None
    side.put(1, 4, 100)
    asyncio.run(side.control.truncate_chunk(CHAIN, 1, index=2, length=SIZE_MAX))
    assert asyncio.run(side.control.last_chunk(CHAIN, 1, retry=False)) == LastChunk(4, 100)
    assert remove(side, ChunkRange(1, 3), limit=10)
    assert asyncio.run(side.control.last_chunk(CHAIN, 1, retry=False)) == LastChunk(2, SIZE_MAX)


def test_a_chain_that_is_not_served_is_named(side: Side) -> None:
    side.stop()
    with pytest.raises(Unavailable) as refused:
        asyncio.run(side.control.last_chunk(CHAIN, 1, retry=False))
    assert refused.value.fields["chain"] == str(CHAIN)
    with pytest.raises(Unavailable) as refused:
        remove(side, ChunkRange(1, 0), limit=1)
    assert refused.value.fields["chain"] == str(CHAIN)
