"""Requests to chains that are answered late, twice, or not at all."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from luciola.clock import ManualClock
from luciola.errors import StaleRouting, Timeout, Unavailable
from luciola.ids import ChainId
from luciola.meta.cluster import Cluster
from luciola.meta.control import GrpcControl, together
from luciola.meta.storage import REQUEST_LIFE_S, ChunkRange
from luciola.wire import methods
from luciola.wire.pb.mgmtd_pb2 import SERVING, Chain, Node, Routing, Target
from luciola.wire.pb.storage_pb2 import ClockReply, RemoveChunksReply, SpaceReply

CHAIN = ChainId(7)
CONTENT = 5
SERVER_RATE = 0.96  # its clock is slower than ours, by less than the bound


class Head:
    """The head of a chain behind a network that keeps requests for later; what `GrpcControl` sees of `RpcClients`."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.life = 1
        self.lost: list[Any] = []  # requests whose answer will not come; they arrive when the test says so
        self.losing = 0
        self.all_lost = asyncio.Event()
        self.answering = asyncio.Event()  # answers to requests for CONTENT wait for it
        self.answering.set()
        self.executed = 0
        self.refused = 0

    def now_ms(self) -> int:
        return 1_000_000 + int(self.clock.monotonic() * SERVER_RATE * 1000)

    async def call(self, _: str, method: Any, request: Any, *, timeout_s: float) -> Any:
        await asyncio.sleep(0)
        if method is methods.Storage.clock:
            return ClockReply(life=self.life, now_ms=self.now_ms())
        if self.losing:
            self.losing -= 1
            self.lost.append(request)
            if not self.losing:
                self.all_lost.set()
            if self.losing % 2:
                self.clock.advance(timeout_s)
                raise Timeout("no answer")
            raise Unavailable("the connection was lost")
        reply = self.arrives(request)
        if request.removals[0].content == CONTENT and not self.answering.is_set():
            await self.answering.wait()
            for _ in range(20):  # others take their steps before the answer arrives
                await asyncio.sleep(0)
        return reply

    def arrives(self, request: Any) -> RemoveChunksReply:
        if request.expiry.life != self.life:
            self.refused += 1
            raise StaleRouting("another life")
        if self.now_ms() >= request.expiry.at_ms:
            self.refused += 1
            raise Timeout("expired")
        self.executed += 1
        return RemoveChunksReply(removed=1)


class World:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.head = Head(self.clock)
        self.cluster = Cluster(self.head, "mgmtd", self.clock)  # type: ignore[arg-type] # its `call`
        self.leased_until_s = float("inf")
        self.control = GrpcControl(
            self.head,  # type: ignore[arg-type]
            self.cluster,
            self.clock,
            leased_until_s=lambda: self.leased_until_s,
        )
        self.publish(1)

    def publish(self, version: int) -> None:
        node = Node(id=1, grpc_address="head:1")
        chain = Chain(id=CHAIN, version=version, targets=[Target(id=70, node=1, state=SERVING)])
        self.cluster.routing.apply(Routing(version=version, nodes=[node], chains=[chain]))

    async def remove(self) -> Sequence[ChunkRange]:
        return await self.remove_from(CONTENT)

    async def remove_from(self, *contents: int) -> Sequence[ChunkRange]:
        removals = [ChunkRange(content, 1) for content in contents]
        return await self.control.remove_chunks(CHAIN, removals, limit=10, durable=False, retry=True)

    async def settled(self, task: "asyncio.Task[Any]") -> bool:
        """Whether the request is done without time passing."""
        for _ in range(30):  # a busy machine may use up any time before the request has taken a step
            await asyncio.wait([task], timeout=0.01)
        return task.done()


@pytest.mark.parametrize("losses", [1, 2])
def test_a_request_is_done_only_when_its_lost_attempts_are_void(losses: int) -> None:
    async def scenario() -> None:
        world = World()
        world.head.losing = losses
        task = asyncio.ensure_future(world.remove())
        assert not await world.settled(task)
        assert world.head.executed == 1
        world.head.arrives(world.head.lost[-1])  # in time: the caller has not continued yet
        world.clock.advance(REQUEST_LIFE_S)
        assert not await task
        executed = world.head.executed
        for request in world.head.lost:
            with pytest.raises(Timeout):
                world.head.arrives(request)
        assert world.head.executed == executed

    asyncio.run(scenario())


def test_request_is_void_at_the_end_of_the_lease_under_which_it_was_sent() -> None:
    async def scenario() -> None:
        world = World()
        world.leased_until_s = world.clock.monotonic() + REQUEST_LIFE_S / 4
        world.head.losing = 1
        task = asyncio.ensure_future(world.remove())
        assert not await world.settled(task)
        (lost,) = world.head.lost
        world.clock.advance(REQUEST_LIFE_S / 4)
        with pytest.raises(Timeout, match="expired"):
            world.head.arrives(lost)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        executed = world.head.executed
        with pytest.raises(Unavailable, match="does not lead"):
            await world.remove()
        assert world.head.executed == executed, "without a lease nothing is sent"

    asyncio.run(scenario())


def test_what_was_given_up_is_waited_for_by_the_next_request_for_that_content() -> None:
    async def scenario() -> None:
        world = World()
        world.head.losing = 2
        task = asyncio.ensure_future(world.remove())
        await world.head.all_lost.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        again = asyncio.ensure_future(world.remove())
        assert not await world.settled(again)
        other = asyncio.ensure_future(world.remove_from(CONTENT + 1))
        assert await world.settled(other), "another content has nothing to wait for"
        world.clock.advance(REQUEST_LIFE_S)
        assert await again == ()

    asyncio.run(scenario())


def test_answer_after_its_request_expired_is_taken_though_another_request_forgot_it() -> None:
    async def scenario() -> None:
        world = World()
        world.head.answering.clear()
        task = asyncio.ensure_future(world.remove())
        assert not await world.settled(task)
        world.clock.advance(REQUEST_LIFE_S)
        world.head.answering.set()
        assert not await world.remove_from(CONTENT + 1)
        assert not await task

    asyncio.run(scenario())


def test_an_answer_under_a_newer_chain_version_need_not_wait() -> None:
    async def scenario() -> None:
        world = World()
        world.head.losing = 1
        task = asyncio.ensure_future(world.remove())
        await world.head.all_lost.wait()
        world.publish(2)
        assert await world.settled(task)

    asyncio.run(scenario())


def test_clock_is_asked_again_after_a_node_restart() -> None:
    async def scenario() -> None:
        world = World()
        assert await world.remove() == ()
        world.head.life = 2
        task = asyncio.ensure_future(world.remove())
        await world.settled(task)
        assert (world.head.executed, world.head.refused) == (2, 1)
        world.clock.advance(REQUEST_LIFE_S)
        assert not await task

    asyncio.run(scenario())


def test_what_is_free_on_a_shared_disk_is_free_once() -> None:
    shared = [
        SpaceReply(capacity_bytes=70 + used, free_bytes=60, used_bytes=used, disk="a") for used in (5, 10)
    ]
    own = SpaceReply(capacity_bytes=100, free_bytes=80, used_bytes=10, disk="b")
    old = SpaceReply(capacity_bytes=1000, free_bytes=800, used_bytes=100)  # says nothing of its disk
    assert together(shared) == (85, 60)
    assert together([*shared, own, old, old]) == (85 + 100 + 2000, 60 + 80 + 1600)
    assert together([]) == (0, 0)


def test_older_routing_is_refused_as_a_snapshot_too() -> None:
    world = World()
    world.publish(5)
    with pytest.raises(StaleRouting):
        world.publish(4)
    assert world.cluster.routing.head(CHAIN) == ("head:1", 5)
