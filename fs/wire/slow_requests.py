"""Requests that are not answered yet; slow ones are logged with what they wait for."""

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from types import CoroutineType
from typing import Final

from google.protobuf.message import Message

log = logging.getLogger(__name__)

SLOW_S: Final = 10.0  # far longer than any request without a fault, far shorter than a client's deadline
LOOK_S: Final = 10.0
LINES_MAX: Final = 8  # per look: hundreds of requests may wait for the same
DEPTH_MAX: Final = 12  # of the calls that are named for one request


@dataclass(frozen=True, slots=True)
class Waiting:
    """One request. `peer` is who sent it."""

    path: str
    request: Message
    peer: object
    since_s: float

    @property
    def slow_at_s(self) -> float:
        """From when it counts as slow: a poll may wait as long as it asks for."""
        return self.since_s + SLOW_S + getattr(self.request, "wait_ms", 0) / 1000


class PendingRequests:
    """The requests of one server. `start` in its event loop, `stop` before that ends."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[object], Waiting] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, future: "asyncio.Future[object]", path: str, request: Message, peer: object) -> None:
        """Add a request whose reply will come from `future`."""
        self._waiting[future] = Waiting(path, request, peer, asyncio.get_running_loop().time())

    def remove(self, future: "asyncio.Future[object]") -> None:
        """Drop a request that was answered, or whose connection is gone."""
        self._waiting.pop(future, None)

    def start(self) -> None:
        """Look periodically until `stop`."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(LOOK_S, self._look, loop.time() + LOOK_S)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, due_s: float) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s - due_s >= SLOW_S:
            log.warning("event loop blocked for %.1f s: no request was served meanwhile", now_s - due_s)
        self.report(now_s)
        self.start()

    def report(self, now_s: float) -> None:
        """Log a warning for each request that is slow at `now_s`, the oldest first."""
        slow = [(future, each) for future, each in self._waiting.items() if now_s >= each.slow_at_s]
        for future, each in slow[:LINES_MAX]:
            log.warning(
                "slow request: %s%s from %s not answered after %.0f s; waits in %s",
                each.path,
                _about(each.request),
                each.peer,
                now_s - each.since_s,
                " > ".join(_calls(future)) or "a future",
            )
        if len(slow) > LINES_MAX:
            log.warning("suppressed %d further slow requests", len(slow) - LINES_MAX)


def _about(request: Message) -> str:
    """Return the inode that a request is about, where one is named."""
    for name in ("inode", "parent", "path", "source"):
        value = getattr(request, name, None)
        inode = getattr(value, "at", value)
        if isinstance(inode, int) and inode:
            return f" about inode {inode}"
    return ""


def _calls(future: "asyncio.Future[object]") -> Iterator[str]:
    """The calls that a task is in, outermost first, each with its line."""
    coroutine: object = future.get_coro() if isinstance(future, asyncio.Task) else None
    for _ in range(DEPTH_MAX):
        if not isinstance(coroutine, CoroutineType) or coroutine.cr_frame is None:
            return
        yield f"{coroutine.__qualname__}:{coroutine.cr_frame.f_lineno}"
        coroutine = coroutine.cr_await


__all__ = ["PendingRequests"]
