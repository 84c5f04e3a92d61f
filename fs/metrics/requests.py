"""How many requests a service has answered, how, and in what time, for each method and outcome.

Measured around the handlers, so it is the same over the lane and over gRPC, and holds what is under the service's
control: neither the time in which a request waits to be read, nor what is refused before a handler is called.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from functools import partial
from time import perf_counter
from typing import Final, cast

from google.protobuf.message import Message

from ..errors import Error
from ..wire import Identity
from ..wire.methods import Answer, AnyMethod, Bound, Handler, Sent
from ..wire.preserialized import Preserialized
from .families import Family, Histogram, Kind

OK: Final = "ok"
CANCELLED: Final = "cancelled"  # the caller is gone, or the service stops
UNEXPECTED: Final = "unexpected"  # a defect: the log has it
LABELS: Final = ("service", "method", "outcome")

Unary = Callable[[Message, Identity], Answer[Message]]
Stream = Callable[[Message, Identity], AsyncGenerator[Message, None]]


class RequestMeter:
    """Counts the requests of one process, in its event loop."""

    def __init__(self) -> None:
        self._durations: dict[tuple[AnyMethod, str], Histogram] = {}
        self._streams: dict[tuple[AnyMethod, str], int] = {}

    def measured(self, bound: Iterable[Bound]) -> tuple[Bound, ...]:
        """Return the same methods, with handlers that are measured."""
        return tuple(Bound(entry.method, self._measured(entry)) for entry in bound)

    def families(self) -> list[Family]:
        """Return what was measured so far."""
        totals = [(_labels(*key), float(each.count)) for key, each in self._durations.items()]
        totals += [(_labels(*key), float(count)) for key, count in self._streams.items()]
        return [
            Family(
                "luciola_requests_total",
                Kind.COUNTER,
                "Requests that were answered; streams are counted at their end.",
                LABELS,
                tuple(totals),
            ),
            Family(
                "luciola_request_duration_seconds",
                Kind.HISTOGRAM,
                "Time from a request to its answer; polls include the time for which they asked to wait.",
                LABELS,
                tuple((_labels(*key), each) for key, each in self._durations.items()),
            ),
        ]

    def _measured(self, entry: Bound) -> Handler:
        if entry.method.streams:
            return partial(self._stream, entry.method, cast("Stream", entry.handler))
        return self._unary(entry.method, cast("Unary", entry.handler))

    def _unary(self, method: AnyMethod, handler: Unary) -> Handler:
        done: Histogram | None = None

        def measured(request: Message, identity: Identity) -> Answer[Message]:
            nonlocal done
            begun_s = perf_counter()
            try:
                reply = handler(request, identity)
            except BaseException as error:
                self._durations_of(method, outcome_of(error)).observe(perf_counter() - begun_s)
                raise
            if not isinstance(reply, (Message, Preserialized)):
                return self._answered(method, reply, begun_s)
            if done is None:
                done = self._durations_of(method, OK)
            done.observe(perf_counter() - begun_s)
            return reply

        return measured

    async def _answered(
        self, method: AnyMethod, reply: Awaitable[Sent[Message]], begun_s: float
    ) -> Sent[Message]:
        outcome = OK
        try:
            return await reply
        except BaseException as error:
            outcome = outcome_of(error)
            raise
        finally:
            self._durations_of(method, outcome).observe(perf_counter() - begun_s)

    async def _stream(
        self, method: AnyMethod, handler: Stream, request: Message, identity: Identity
    ) -> AsyncIterator[Message]:
        outcome = OK
        try:
            async with aclosing(handler(request, identity)) as items:
                async for item in items:
                    yield item
        except BaseException as error:
            outcome = outcome_of(error)
            raise
        finally:
            self._streams[method, outcome] = self._streams.get((method, outcome), 0) + 1

    def _durations_of(self, method: AnyMethod, outcome: str) -> Histogram:
        found = self._durations.get((method, outcome))
        if found is None:
            found = self._durations[method, outcome] = Histogram()
        return found


def outcome_of(error: BaseException) -> str:
    """Return the label for how a request failed: the code of an operating error, or one of two others."""
    if isinstance(error, Error):
        return error.code
    return CANCELLED if isinstance(error, (asyncio.CancelledError, GeneratorExit)) else UNEXPECTED


def _labels(method: AnyMethod, outcome: str) -> tuple[str, str, str]:
    return method.service, method.name, outcome


__all__ = ["CANCELLED", "OK", "UNEXPECTED", "RequestMeter", "outcome_of"]
