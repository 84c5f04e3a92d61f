"""Group commit: one flush to disk serves all callers that wait for it.

A thread sleeps until something was written. If a caller waits for durability it flushes at once, otherwise it
lets `interval_s` pass, so that many writes share a flush. A call during a flush is served by the next one.

    S1  `await sync()` returns only after a flush that began after the call has ended
    S2  a write is flushed at most `interval_s` plus one flush after `wrote`
    S3  after a failed flush nothing is ever called durable again: the kernel may have dropped the dirty pages
"""

import asyncio
import threading
from collections.abc import Callable

from ..errors import Unavailable


class Syncer:
    """Calls `flush` in its own thread; `flush` may run while others write."""

    def __init__(self, flush: Callable[[], None], *, interval_s: float) -> None:
        self._flush = flush
        self._interval_s = interval_s
        self._changed = threading.Condition()
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._dirty = False
        self._flushing = False
        self._closing = False
        self.error: BaseException | None = None
        self.flushes = 0
        self._thread = threading.Thread(target=self._run, name="kv-sync", daemon=True)
        self._thread.start()

    def wrote(self) -> None:
        """Something is to be flushed. Cheap: called after every commit."""
        if self._dirty:  # no flush has begun since it was set, so the one to come covers this write too
            return
        with self._changed:
            self._dirty = True
            self._changed.notify()

    async def sync(self) -> None:
        """Return when all that was written before the call is on disk. Raises: Unavailable."""
        with self._changed:
            self._refuse_after_error()
            assert not self._closing, "the engine is closed"
            if not self._dirty and not self._flushing:
                return
            loop = asyncio.get_running_loop()
            done: asyncio.Future[None] = loop.create_future()
            self._waiting.append((loop, done))
            self._changed.notify()
        await done

    def close(self) -> None:
        """Flush a last time and end the thread. Raises: Unavailable if flushing has ever failed."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        self._refuse_after_error()

    def _refuse_after_error(self) -> None:
        if self.error is not None:
            raise Unavailable(f"the log could not be written to disk: {self.error}") from self.error

    def _run(self) -> None:
        waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        try:
            while (selected := self._select()) is not None:
                waiting = selected
                self._flush()
                with self._changed:
                    self._flushing = False
                    self.flushes += 1
                self._deliver(waiting)
        except BaseException as error:  # noqa: BLE001, whatever it is must reach the callers that wait
            with self._changed:
                self.error = error  # S3
                waiting += self._waiting
                self._waiting = []
            self._deliver(waiting)

    def _select(self) -> list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] | None:
        """Wait for a reason to flush; return the futures it will serve, or None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._dirty or self._waiting or self._closing)
            if not self._waiting and not self._closing:
                self._changed.wait_for(lambda: self._waiting or self._closing, timeout=self._interval_s)
            if not self._dirty and not self._waiting:
                return None
            assert not self._flushing, "one flush at a time"
            waiting, self._waiting = self._waiting, []
            self._dirty = False
            self._flushing = True
            return waiting

    def _deliver(self, waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
        for loop, future in waiting:
            by_loop.setdefault(loop, []).append(future)
        for loop, futures in by_loop.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._settle, futures)

    def _settle(self, futures: list[asyncio.Future[None]]) -> None:
        for future in futures:
            if future.done():  # cancelled
                continue
            if self.error is None:
                future.set_result(None)
            else:
                failure = Unavailable(f"the log could not be written to disk: {self.error}")
                failure.__cause__ = self.error
                future.set_exception(failure)


__all__ = ["Syncer"]
