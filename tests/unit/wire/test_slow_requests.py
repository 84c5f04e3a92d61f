import asyncio
import logging

import pytest

from luciola.wire import slow_requests
from luciola.wire.pb.meta_pb2 import Path, StatRequest, SyncRequest
from luciola.wire.pb.mgmtd_pb2 import GetRoutingRequest
from luciola.wire.slow_requests import LINES_MAX, SLOW_S, PendingRequests

PEER = ("127.0.0.1", 4000)


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records]


class Bell(logging.Handler):
    """Rings after so many lines."""

    def __init__(self, count):
        super().__init__()
        self.left = count
        self.rung = asyncio.Event()

    def emit(self, record):
        self.left -= 1
        if self.left == 0:
            self.rung.set()


async def outer(gate):
    return await inner(gate)


async def inner(gate):
    await gate.wait()


def waiting(*requests):
    """Calls `with_them(requests in progress, seconds since they began → the loop's time, gate)` in a loop."""

    def run(with_them):
        async def main():
            gate, them = asyncio.Event(), PendingRequests()
            tasks = [asyncio.ensure_future(outer(gate)) for _ in requests]
            for task, request in zip(tasks, requests, strict=True):
                them.add(task, "/luciola.Meta/Sync", request, PEER)
            await asyncio.sleep(0)
            began_s = asyncio.get_running_loop().time()
            with_them(them, lambda seconds: began_s + seconds, tasks)
            gate.set()
            await asyncio.gather(*tasks)

        asyncio.run(main())

    return run


def test_slow_request_is_named_with_its_inode_and_what_it_waits_in(lines):
    @waiting(SyncRequest(inode=21))
    def _(them, after, tasks):
        them.report(after(SLOW_S / 2))
        assert not lines()
        them.report(after(SLOW_S + 2))
        (line,) = lines()
        assert line.startswith(
            f"slow request: /luciola.Meta/Sync about inode 21 from {PEER} not answered after 12 s; "
        )
        assert [call.split(":")[0] for call in line.split(" waits in ")[1].split(" > ")] == [
            "outer",
            "inner",
            "Event.wait",
        ]
        them.remove(tasks[0])
        them.report(after(10 * SLOW_S))
        assert len(lines()) == 1


def test_path_is_named_by_the_inode_that_it_begins_at(lines):
    @waiting(StatRequest(path=Path(at=7)), StatRequest())
    def _(them, after, _tasks):
        them.report(after(SLOW_S + 1))
        assert [" about inode 7 " in line for line in lines()] == [True, False]


def test_poll_may_wait_as_long_as_it_asks_for(lines):
    @waiting(GetRoutingRequest(wait_ms=20_000))
    def _(them, after, _tasks):
        them.report(after(SLOW_S + 19))
        assert not lines()
        them.report(after(SLOW_S + 21))
        assert len(lines()) == 1


def test_lines_of_one_look_are_bounded(lines):
    @waiting(*[SyncRequest(inode=1)] * (LINES_MAX + 5))
    def _(them, after, _tasks):
        them.report(after(SLOW_S + 1))
        assert len(lines()) == LINES_MAX + 1
        assert lines()[-1] == "suppressed 5 further slow requests"


def test_server_looks_by_itself_and_says_when_it_could_not(lines, monkeypatch):
    monkeypatch.setattr(slow_requests, "LOOK_S", 0.001)
    monkeypatch.setattr(slow_requests, "SLOW_S", 0.0)

    async def main():
        them, gate = PendingRequests(), asyncio.Event()
        task = asyncio.ensure_future(inner(gate))
        them.add(task, "/luciola.Meta/Sync", SyncRequest(inode=21), PEER)
        bell = Bell(4)
        slow_requests.log.addHandler(bell)
        them.start()
        async with asyncio.timeout(60):
            await bell.rung.wait()
        them.stop()
        slow_requests.log.removeHandler(bell)
        gate.set()
        await task

    asyncio.run(main())
    assert {line.split(" ")[0] for line in lines()} == {"event", "slow"}
