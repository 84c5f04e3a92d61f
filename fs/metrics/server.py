"""An HTTP server for one thing: `GET /metrics`. A connection brings one request and gets one answer.

H1  a request has at most `HEAD_BYTES_MAX`, and `REQUEST_S` to arrive
H2  an answer is taken within `ANSWER_S`, or its connection is cut
H3  there are at most `CONNECTIONS_MAX`: for one more the oldest is cut, first of those that have asked for nothing
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Final, TypeAlias, cast

log = logging.getLogger(__name__)

HEAD_BYTES_MAX: Final = 8192  # scrapers send less than 1 KiB
REQUEST_S: Final = 5.0
ANSWER_S: Final = 10.0  # the time limit of most scrapers
CONNECTIONS_MAX: Final = 16  # a scraper has one, for some milliseconds
HEAD_END: Final = b"\r\n\r\n"
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

Text: TypeAlias = Callable[[], Awaitable[bytes]]


class MetricsServer:
    """Answers with `text`. The factory of connections for a server of asyncio: `connection`."""

    def __init__(self, text: Text, *, request_s: float = REQUEST_S, answer_s: float = ANSWER_S) -> None:
        self.text: Final = text
        self.request_s: Final = request_s
        self.answer_s: Final = answer_s
        self._waiting: dict[_Connection, None] = {}  # for their requests, in the order of arrival
        self._answered: dict[_Connection, None] = {}

    def connection(self) -> asyncio.Protocol:
        """Return what serves a new connection."""
        return _Connection(self)

    def admit(self, connection: "_Connection") -> None:
        """Take in a connection, in place of another if there are too many (H3)."""
        if self.connection_count >= CONNECTIONS_MAX:
            oldest = next(iter(self._waiting or self._answered))
            self.forget(oldest)
            oldest.cut()
        self._waiting[connection] = None
        assert self.connection_count <= CONNECTIONS_MAX, "H3: connections are bounded"

    def asked(self, connection: "_Connection") -> None:
        """Its request has arrived."""
        if connection in self._waiting:
            del self._waiting[connection]
            self._answered[connection] = None

    def forget(self, connection: "_Connection") -> None:
        """The connection is gone."""
        self._waiting.pop(connection, None)
        self._answered.pop(connection, None)

    @property
    def connection_count(self) -> int:
        """Connections now open."""
        return len(self._waiting) + len(self._answered)

    def close(self) -> None:
        """Cut all connections."""
        for connection in (*self._waiting, *self._answered):
            connection.cut()


class _Connection(asyncio.Protocol):
    def __init__(self, server: MetricsServer) -> None:
        self._server = server
        self._head = bytearray()
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)
        self._timer: asyncio.TimerHandle | None = None
        self._answering: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._server.admit(self)
        self._limit(self._server.request_s)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's interface)
        self._server.forget(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._answering is not None:
            self._answering.cancel()

    def cut(self) -> None:
        """End the connection at once."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._answering is not None:
            return  # one request is answered; what follows it is not read
        self._head += data[: HEAD_BYTES_MAX + 1 - len(self._head)]
        if HEAD_END in self._head:
            head = bytes(self._head.partition(HEAD_END)[0])
        elif len(self._head) > HEAD_BYTES_MAX:
            head = b""
        else:
            return
        self._server.asked(self)
        self._limit(self._server.answer_s)
        self._transport.pause_reading()
        self._answering = asyncio.get_running_loop().create_task(self._answer(head))

    def _limit(self, duration_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(duration_s, self.cut)

    async def _answer(self, head: bytes) -> None:
        status = status_for(head)
        body = f"{status.phrase}\n".encode()
        if status is HTTPStatus.OK:
            try:
                body = await self._server.text()
            except Exception:
                log.exception("metrics cannot be shown")
                status, body = HTTPStatus.INTERNAL_SERVER_ERROR, b"see the log\n"
        self._transport.write(_head(status, len(body)) + body)
        self._transport.close()  # when all is sent


def status_for(head: bytes) -> HTTPStatus:
    """Return how a request is answered; `head` is empty for one that is too long."""
    if not head:
        return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    words = head.partition(b"\r\n")[0].split(b" ")
    if len(words) != 3 or words[2] not in (b"HTTP/1.1", b"HTTP/1.0"):
        return HTTPStatus.BAD_REQUEST
    if words[1].partition(b"?")[0] != b"/metrics":
        return HTTPStatus.NOT_FOUND
    return HTTPStatus.OK if words[0] == b"GET" else HTTPStatus.METHOD_NOT_ALLOWED


def _head(status: HTTPStatus, length: int) -> bytes:
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Type: {CONTENT_TYPE}",
        f"Content-Length: {length}",
        "Connection: close",
    ]
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        lines.append("Allow: GET")
    return "\r\n".join([*lines, "", ""]).encode()


__all__ = ["ANSWER_S", "CONNECTIONS_MAX", "HEAD_BYTES_MAX", "REQUEST_S", "MetricsServer", "status_for"]
