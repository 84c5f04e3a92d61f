"""The server for metrics answers scrapers, and hostile clients do not prevent that."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from luciola.metrics.server import CONNECTIONS_MAX, HEAD_BYTES_MAX, MetricsServer, Text

GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
SHORT_S = 0.05
LONG_S = 1000.0


async def some_text() -> bytes:
    return b"some 1\n"


@asynccontextmanager
async def serving(
    text: Text = some_text, *, request_s: float = LONG_S, answer_s: float = LONG_S
) -> AsyncIterator[tuple[MetricsServer, int]]:
    """A server, and its port."""
    server = MetricsServer(text, request_s=request_s, answer_s=answer_s)
    listening = await asyncio.get_running_loop().create_server(
        server.connection, "127.0.0.1", 0, backlog=1024
    )
    try:
        yield server, listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        server.close()


async def answer(port: int, request: bytes) -> bytes:
    """All that comes back for `request`, until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        return await reader.read()
    except ConnectionResetError:  # it did not read all of a request that is too long
        return b""
    finally:
        writer.close()


def asked(request: bytes, text: Text = some_text) -> bytes:
    async def run() -> bytes:
        async with serving(text) as (_, port):
            return await answer(port, request)

    return asyncio.run(run())


def test_metrics_are_sent_with_their_type_and_length() -> None:
    head, _, body = asked(GET).partition(b"\r\n\r\n")
    assert body == b"some 1\n"
    lines = head.split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 200 OK"
    assert b"Content-Type: text/plain; version=0.0.4; charset=utf-8" in lines
    assert b"Content-Length: 7" in lines


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /metrics/x HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /metrics?name[]=a HTTP/1.1\r\n\r\n", b"200"),
        (b"GET /metrics HTTP/1.0\r\n\r\n", b"200"),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 4\r\n\r\nabcd", b"405"),
        (b"DELETE /metrics HTTP/1.1\r\n\r\n", b"405"),
        (b"GET /metrics\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/2.0\r\n\r\n", b"400"),
        (b"\0\xff\r\n\r\n", b"400"),
        (b"\r\n\r\n", b"431"),
        (b"GET /" + b"a" * (HEAD_BYTES_MAX - 4), b"431"),
    ],
    ids=["root", "below", "query", "1.0", "post", "delete", "0.9", "2.0", "binary", "empty", "long line"],
)
def test_only_a_get_of_metrics_is_answered_with_them(request_: bytes, status: bytes) -> None:
    assert asked(request_).split()[1] == status


def test_request_in_many_pieces_is_answered() -> None:
    async def run() -> bytes:
        async with serving() as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for byte in GET:
                writer.write(bytes((byte,)))
                await writer.drain()
            found = await reader.read()
            writer.close()
            return found

    assert asyncio.run(run()).startswith(b"HTTP/1.1 200 OK")


def test_text_that_cannot_be_made_is_an_answer_too(caplog: pytest.LogCaptureFixture) -> None:
    async def broken() -> bytes:
        raise AssertionError

    assert asked(GET, broken).startswith(b"HTTP/1.1 500 ")
    assert "metrics cannot be shown" in caplog.text


def test_client_that_asks_for_nothing_is_cut() -> None:
    async def run() -> bytes:
        async with serving(request_s=SHORT_S) as (_, port):
            return await answer(port, GET[:-2])

    assert asyncio.run(run()) == b""


def test_client_that_does_not_take_its_answer_is_cut() -> None:
    text = b"a" * (64 << 20)  # more than sockets hold

    async def long_text() -> bytes:
        return text

    async def run() -> tuple[bytes, int]:
        async with serving(long_text, answer_s=SHORT_S) as (server, port):
            loop = asyncio.get_running_loop()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(GET)
            taken = await reader.readexactly(1)  # and nothing more, until the server has cut it
            while server.connection_count:
                await loop.run_in_executor(None, int)
            with suppress(ConnectionResetError):
                taken += await reader.read()
            writer.close()
            return taken, server.connection_count

    taken, left = asyncio.run(run())
    assert 0 < len(taken) < len(text)
    assert left == 0


def test_a_thousand_connections_leave_room_for_a_scraper() -> None:
    async def run() -> bytes:
        async with serving() as (server, port):
            idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(1000)]
            assert server.connection_count <= CONNECTIONS_MAX
            found = await answer(port, GET)
            assert server.connection_count <= CONNECTIONS_MAX
            for _, writer in idle:
                writer.transport.abort()
            return found

    assert asyncio.run(run()).startswith(b"HTTP/1.1 200 OK")


def test_connection_that_is_being_answered_outlives_those_that_ask_for_nothing() -> None:
    async def run() -> bytes:
        go_on = asyncio.Event()

        async def late() -> bytes:
            await go_on.wait()
            return b"late 1\n"

        async with serving(late) as (_, port):
            scraper = asyncio.create_task(answer(port, GET))
            idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3 * CONNECTIONS_MAX)]
            await idle[CONNECTIONS_MAX][0].read()  # it was cut, so many came after the scraper
            go_on.set()
            found = await scraper
            for _, writer in idle:
                writer.transport.abort()
            return found

    assert asyncio.run(run()).endswith(b"late 1\n")
