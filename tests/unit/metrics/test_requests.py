"""Requests are counted by method and outcome, however their handler answers."""

import asyncio
from collections.abc import AsyncIterator, Awaitable

import pytest

from luciola.errors import Busy, NotFound
from luciola.metrics import Family, Histogram, RequestMeter
from luciola.wire import Identity
from luciola.wire.methods import Bound, Meta, Mgmtd
from luciola.wire.pb import meta_pb2, mgmtd_pb2
from luciola.wire.pb.common_pb2 import Claims, Empty
from luciola.wire.preserialized import Preserialized

IDENTITY = Identity(Claims.ADMIN, 0, 0, ())


class Handlers:
    """Each answers in another way."""

    def __init__(self) -> None:
        self.meter = RequestMeter()
        meta = [
            (Meta.rmdir, lambda *_: Empty()),
            (Meta.stat, lambda *_: Preserialized(meta_pb2.InodeReply, b"")),
            (Meta.open, self.refuse),
            (Meta.mkdir, self.later),
            (Meta.rename, self.refuse_later),
            (Meta.apply, self.defect),
            (Meta.watch, self.hang),
            (Mgmtd.stream_routing, self.stream),
        ]
        bound = [Bound(method, handler) for method, handler in meta]  # type: ignore[arg-type]
        self.measured = {each.method: each.handler for each in self.meter.measured(bound)}

    def refuse(self, *_: object) -> Empty:
        raise NotFound("no such file")

    async def later(self, *_: object) -> meta_pb2.InodeReply:
        await asyncio.sleep(0)
        return meta_pb2.InodeReply()

    async def refuse_later(self, *_: object) -> meta_pb2.RenameReply:
        await asyncio.sleep(0)
        raise Busy("changes again and again")

    def defect(self, *_: object) -> Empty:
        raise AssertionError

    async def hang(self, *_: object) -> Empty:
        await asyncio.Event().wait()
        raise AssertionError

    async def stream(self, *_: object) -> AsyncIterator[mgmtd_pb2.Routing]:
        for version in range(3):
            yield mgmtd_pb2.Routing(version=version)

    def call(self, method: object) -> object:
        return self.measured[method](Empty(), IDENTITY)  # type: ignore[index]

    def counted(self) -> dict[tuple[str, ...], float]:
        totals, durations = self.meter.families()
        assert {
            labels: value.count for labels, value in durations.samples if isinstance(value, Histogram)
        } == {labels: value for labels, value in totals.samples if labels[1] != "StreamRouting"}
        return values(totals)


def values(family: Family) -> dict[tuple[str, ...], float]:
    return {labels: value for labels, value in family.samples if isinstance(value, float)}


def test_replies_and_refusals_are_counted_by_method() -> None:
    handlers = Handlers()

    async def run() -> None:
        for _ in range(3):
            handlers.call(Meta.rmdir)
        handlers.call(Meta.stat)
        with pytest.raises(NotFound):
            handlers.call(Meta.open)
        later = handlers.call(Meta.mkdir)
        assert isinstance(later, Awaitable)
        assert isinstance(await later, meta_pb2.InodeReply)
        refused = handlers.call(Meta.rename)
        assert isinstance(refused, Awaitable)
        with pytest.raises(Busy):
            await refused
        with pytest.raises(AssertionError):
            handlers.call(Meta.apply)

    asyncio.run(run())
    assert handlers.counted() == {
        ("Meta", "Rmdir", "ok"): 3.0,
        ("Meta", "Stat", "ok"): 1.0,
        ("Meta", "Open", "not_found"): 1.0,
        ("Meta", "Mkdir", "ok"): 1.0,
        ("Meta", "Rename", "busy"): 1.0,
        ("Meta", "Apply", "unexpected"): 1.0,
    }


def test_request_whose_caller_is_gone_counts_as_cancelled() -> None:
    handlers = Handlers()

    async def run() -> None:
        waiting = asyncio.ensure_future(handlers.call(Meta.watch))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    asyncio.run(run())
    assert handlers.counted() == {("Meta", "Watch", "cancelled"): 1.0}


def test_streams_are_counted_at_their_end() -> None:
    handlers = Handlers()

    async def run() -> None:
        whole = [item async for item in handlers.call(Mgmtd.stream_routing)]  # type: ignore[attr-defined]
        assert [item.version for item in whole] == [0, 1, 2]
        left = handlers.call(Mgmtd.stream_routing)
        await anext(left)  # type: ignore[call-overload]
        await left.aclose()  # type: ignore[attr-defined]

    asyncio.run(run())
    assert handlers.counted() == {
        ("Mgmtd", "StreamRouting", "ok"): 1.0,
        ("Mgmtd", "StreamRouting", "cancelled"): 1.0,
    }
