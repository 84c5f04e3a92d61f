import asyncio
import contextlib
import os
import socket
import struct
import threading
import time

import pytest
import uvloop

from cluster import until
from lane_client import AsyncLaneClient, LaneClient
from luciola.errors import (
    Error,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Timeout,
    Unauthenticated,
    Unavailable,
    Unsupported,
)
from luciola.wire import handshake, methods, slow_requests
from luciola.wire.addresses import format_address, parse_address
from luciola.wire.credentials import ADMIN, CLIENT, Token, mint
from luciola.wire.lane import LaneServer, frames
from luciola.wire.lane import server as lane_server
from luciola.wire.lane.frames import socket_name
from luciola.wire.pb import common_pb2
from luciola.wire.pb.common_pb2 import Empty
from luciola.wire.pb.meta_pb2 import (
    InodeReply,
    ListRequest,
    LookupRequest,
    MkdirRequest,
    Path,
    RmdirRequest,
    StatRequest,
)

from .service import SECRET, Service, bound

TOKEN = mint(SECRET, uid=42, gid=42, groups=())
LOOKUP = LookupRequest(parent=7, name=b"\xff\x00name")


@contextlib.contextmanager
def serving(**options):
    """A lane server in a thread of its own: (server, service, run(coroutine function))."""
    ready, box = threading.Event(), {}

    async def main() -> None:
        service = Service()
        server = LaneServer(bound(service), secret=SECRET, **options)
        await server.start()
        stop = asyncio.Event()
        box.update(server=server, service=service, loop=asyncio.get_running_loop(), stop=stop)
        ready.set()
        await stop.wait()
        service.gate.set()
        await server.stop()
        assert server.connection_count == 0 or await _drained(server)

    thread = threading.Thread(target=lambda: uvloop.run(main()))
    thread.start()
    assert ready.wait(60)
    try:
        yield box["server"], box["service"]
    finally:
        box["loop"].call_soon_threadsafe(box["stop"].set)
        thread.join(60)
        assert not thread.is_alive()


async def _drained(server: LaneServer) -> bool:
    for _ in range(6000):
        if server.connection_count == 0:
            return True
        await asyncio.sleep(0.01)
    return False


def client(server, token=TOKEN):
    return LaneClient(server.address, token)


def connect(server) -> socket.socket:
    return socket.create_connection(parse_address(server.address), timeout=60)


def shake(server, token=TOKEN) -> socket.socket:
    """A raw connection after a good handshake."""
    raw = connect(server)
    greet(raw, token)
    return raw


def greet(raw, token=TOKEN) -> None:
    side = handshake.ClientSide(token, kind=handshake.LANE)
    raw.sendall(side.answer(receive(raw, handshake.HELLO.size)))
    side.finish(receive(raw, handshake.WELCOME.size))


def receive(raw, count) -> bytes:
    data = b""
    while len(data) < count:
        piece = raw.recv(count - len(data))
        if not piece:
            raise ConnectionError(f"closed after {len(data)} bytes")
        data += piece
    return data


def is_closed(raw) -> bool:
    try:
        while raw.recv(4096):
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        return False
    return True


def frame(number, payload, request=1, flags=0):
    return struct.pack("<IHHQ", len(payload), number, flags, request) + payload


def reply_of(raw):
    length, number, flags, request = struct.unpack("<IHHQ", receive(raw, 16))
    return number, flags, request, receive(raw, length)


def test_request_and_reply_travel_whole():
    with serving() as (server, _), client(server) as lane_client:
        inode = lane_client.call(methods.Meta.lookup, LOOKUP).inode
        assert (inode.id, inode.name, inode.uid) == (7, b"\xff\x00name", 42)


def test_error_arrives_as_the_class_that_was_raised():
    with serving() as (server, _), client(server) as lane_client:
        with pytest.raises(NotFound, match="no such file") as caught:
            lane_client.call(methods.Meta.stat, StatRequest())
        assert (caught.value.errno, caught.value.filename, caught.value.fields) == (
            2,
            "/no/such",
            {"inode": "5"},
        )
        assert lane_client.call(methods.Meta.lookup, LOOKUP).inode.id == 7


def test_exception_in_a_handler_is_eio_for_its_caller_only(caplog):
    with serving() as (server, _), client(server) as lane_client:
        with pytest.raises(Error, match="internal error") as caught:
            lane_client.call(methods.Meta.rmdir, RmdirRequest())
        assert type(caught.value) is Error
        assert caught.value.errno == 5
        assert lane_client.call(methods.Meta.lookup, LOOKUP).inode.id == 7
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("at", [0, 1], ids=["message", "encoded"])
def test_reply_of_another_type_is_eio(caplog, at):
    with (
        serving() as (server, _),
        client(server) as lane_client,
        pytest.raises(Error, match="internal error"),
    ):
        lane_client.call(methods.Meta.unlink, methods.Meta.unlink.request(path=Path(at=at)))
    assert "Unlink" in caplog.text


def test_future_is_awaited():
    with serving() as (server, _), client(server) as lane_client:
        assert lane_client.call(methods.Meta.mkdir, MkdirRequest()).inode.id == 9


def test_method_of_a_higher_role_is_refused():
    with serving() as (server, _):
        raw = shake(server, mint(SECRET, role=CLIENT))
        raw.sendall(frame(methods.Meta.lookup.lane, b""))
        assert reply_of(raw)[1] == frames.REPLY
        raw.close()
    # No lane method needs more than CLIENT today; a service that carries one is checked here.
    needy = [methods.Bound(_admin_only(), lambda request, identity: Empty())]

    async def main() -> None:
        needy_server = LaneServer(needy, secret=SECRET)
        await needy_server.start()
        async with AsyncLaneClient(needy_server.address, TOKEN) as lane_client:
            with pytest.raises(PermissionDenied):
                await lane_client.call(_admin_only(), Empty())
        async with AsyncLaneClient(needy_server.address, mint(SECRET, role=ADMIN)) as lane_client:
            assert await lane_client.call(_admin_only(), Empty()) == Empty()
        await needy_server.stop()

    asyncio.run(main())


def _admin_only():
    return methods.Method("Test", "AdminOnly", Empty, Empty, ADMIN, 99)


def test_unknown_method_is_unsupported_and_the_connection_lives():
    with serving() as (server, _):
        raw = shake(server)
        raw.sendall(frame(60_000, b""))
        number, flags, request, payload = reply_of(raw)
        assert (number, flags, request) == (60_000, frames.REPLY | frames.FAILED, 1)
        assert common_pb2.Error.FromString(payload).code == Unsupported.code
        raw.sendall(frame(methods.Meta.lookup.lane, LOOKUP.SerializeToString()))
        assert reply_of(raw)[1] == frames.REPLY
        raw.close()


def test_payload_that_is_no_message_is_an_invalid_argument():
    with serving() as (server, _):
        raw = shake(server)
        raw.sendall(frame(methods.Meta.lookup.lane, b"\xff\xff\xff"))
        _, flags, _, payload = reply_of(raw)
        assert flags & frames.FAILED
        assert common_pb2.Error.FromString(payload).code == InvalidArgument.code
        raw.close()


@pytest.mark.parametrize(
    "bad",
    [
        frame(17, b"", flags=frames.REPLY),
        frame(17, b"", flags=0x8000),
        struct.pack("<IHHQ", frames.FRAME_BYTES_MAX + 1, 17, 0, 1),
        struct.pack("<IHHQ", 0xFFFFFFFF, 17, 0, 1),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\xff" * 64,
    ],
)
def test_malformed_frame_closes_its_connection_and_no_other(bad):
    with serving() as (server, _), client(server) as neighbour:
        neighbour.call(methods.Meta.lookup, LOOKUP)
        raw = shake(server)
        raw.sendall(frame(methods.Meta.lookup.lane, LOOKUP.SerializeToString()) + bad)
        assert reply_of(raw)[1] == frames.REPLY  # what was whole before it is answered
        assert is_closed(raw)
        raw.close()
        assert neighbour.call(methods.Meta.lookup, LOOKUP).inode.id == 7


def test_request_of_the_largest_size_passes():
    with serving() as (server, _), client(server) as lane_client:
        name = b"n" * (frames.FRAME_BYTES_MAX - 16)
        assert lane_client.call(methods.Meta.lookup, LookupRequest(name=name[:-64])).inode.name == name[:-64]
        with pytest.raises(InvalidArgument, match="too long"):
            lane_client.call(methods.Meta.lookup, LookupRequest(name=name + b"n" * 64))


def test_reply_that_is_too_long_is_an_error(caplog):
    with serving() as (server, service), client(server) as lane_client:
        service.gate.set()
        with pytest.raises(Error, match="internal error"):
            lane_client.call(methods.Meta.list, ListRequest(limit=frames.FRAME_BYTES_MAX + 1))
        assert lane_client.call(methods.Meta.list, ListRequest(limit=1)).entries[0].name == b"x"
    assert "too long" in caplog.text


def test_frames_may_arrive_byte_by_byte():
    with serving() as (server, _):
        raw = shake(server)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in frame(methods.Meta.lookup.lane, LOOKUP.SerializeToString(), request=5):
            raw.sendall(bytes((byte,)))
        assert reply_of(raw)[2] == 5
        raw.close()


def test_replies_overtake_a_request_that_waits():
    with serving() as (server, service):
        raw = shake(server)
        raw.sendall(
            frame(methods.Meta.list.lane, ListRequest(inode=3).SerializeToString(), request=1)
            + frame(methods.Meta.lookup.lane, LOOKUP.SerializeToString(), request=2)
        )
        assert reply_of(raw)[2] == 2
        _open(service)
        assert reply_of(raw)[2] == 1
        raw.close()


def test_request_that_takes_long_is_named_until_it_is_answered(caplog, monkeypatch):
    monkeypatch.setattr(slow_requests, "LOOK_S", 0.001)
    monkeypatch.setattr(slow_requests, "SLOW_S", 0.0)
    with serving() as (server, service):
        raw = shake(server)
        raw.sendall(frame(methods.Meta.list.lane, ListRequest(inode=3).SerializeToString()))
        deadline = time.monotonic() + 60
        while "/luciola.Meta/List about inode 3 " not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert "waits in Service.list:" in caplog.text
        _open(service)
        reply_of(raw)
        raw.sendall(frame(methods.Meta.lookup.lane, LOOKUP.SerializeToString()))
        reply_of(raw)
        assert not server.pending._waiting
        raw.close()


def _open(service):
    service.loop.call_soon_threadsafe(service.gate.set)


def test_connection_has_a_bounded_number_of_requests_in_flight():
    with serving() as (server, service):
        raw = shake(server)
        count = 3 * lane_server.IN_FLIGHT_MAX
        request = ListRequest(inode=3).SerializeToString()
        raw.sendall(b"".join(frame(methods.Meta.list.lane, request, request=n) for n in range(count)))
        until(
            lambda: service.waiting >= lane_server.IN_FLIGHT_MAX, what="as many requests as may be in flight"
        )
        with client(server) as other:  # two round trips later everything that is read has been served
            other.call(methods.Meta.lookup, LOOKUP)
            other.call(methods.Meta.lookup, LOOKUP)
        assert service.waiting == lane_server.IN_FLIGHT_MAX
        _open(service)
        assert {reply_of(raw)[2] for _ in range(count)} == set(range(count))
        raw.close()


def test_client_that_does_not_read_is_not_served_further():
    with serving() as (server, service):
        raw = shake(server)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        raw.settimeout(1)
        data = frame(methods.Meta.lookup.lane, LookupRequest(name=b"n" * 100_000).SerializeToString())
        with pytest.raises(TimeoutError):
            raw.sendall(2000 * data)
        assert service.calls < 1000
        raw.close()


@pytest.mark.parametrize(
    "token",
    [
        mint(bytes(32)),
        Token(TOKEN.claims + b"\x08\x03", TOKEN.key),  # role=SERVICE appended to signed claims
        Token(b"", b"\0" * 32),
    ],
)
def test_wrong_secret_and_tampered_claims_are_refused(token):
    with serving() as (server, service), client(server, token) as lane_client:
        with pytest.raises(Unauthenticated):
            lane_client.call(methods.Meta.lookup, LOOKUP)
        assert service.calls == 0


def test_expired_token_is_refused():
    token = mint(SECRET, lifetime_s=-10)
    with serving() as (server, _), client(server, token) as old, pytest.raises(Unauthenticated):
        old.call(methods.Meta.lookup, LOOKUP)


def test_connection_ends_when_its_token_expires():
    token = mint(SECRET, lifetime_s=1)
    with serving() as (server, _):
        raw = shake(server, token)
        raw.sendall(frame(methods.Meta.lookup.lane, b""))
        assert reply_of(raw)[1] == frames.REPLY
        assert is_closed(raw)
        raw.close()


def test_payloads_that_wait_are_bounded_together():
    with serving() as (server, service):
        raw = shake(server)
        request = ListRequest(after=b"n" * (4 << 20)).SerializeToString()
        sender = threading.Thread(
            target=lambda: [raw.sendall(frame(methods.Meta.list.lane, request, request=n)) for n in range(30)]
        )
        sender.start()
        with client(server) as other:
            deadline = time.monotonic() + 60
            while (
                service.waiting < lane_server.HELD_BYTES_MAX // len(request) and time.monotonic() < deadline
            ):
                other.call(methods.Meta.lookup, LOOKUP)
            for _ in range(20):
                other.call(methods.Meta.lookup, LOOKUP)
        assert service.waiting <= lane_server.HELD_BYTES_MAX // len(request) + 1
        _open(service)
        assert {reply_of(raw)[2] for _ in range(30)} == set(range(30))
        sender.join()
        raw.close()


def test_recorded_answer_cannot_be_replayed():
    with serving() as (server, _):
        first = connect(server)
        answer = handshake.ClientSide(TOKEN, kind=handshake.LANE).answer(receive(first, handshake.HELLO.size))
        first.sendall(answer)
        assert receive(first, handshake.WELCOME.size)[0] == 0
        second = connect(server)
        receive(second, handshake.HELLO.size)
        second.sendall(answer)
        assert receive(second, handshake.WELCOME.size) == handshake.REFUSAL
        assert is_closed(second)
        first.close()
        second.close()


def test_proof_for_another_kind_of_connection_is_refused():
    with serving() as (server, _):
        raw = connect(server)
        hello = bytearray(receive(raw, handshake.HELLO.size))
        assert hello[4] == handshake.LANE
        hello[4] = handshake.DATA
        answer = bytearray(handshake.ClientSide(TOKEN, kind=handshake.DATA).answer(bytes(hello)))
        raw.sendall(bytes(answer))
        assert receive(raw, handshake.WELCOME.size) == handshake.REFUSAL
        raw.close()
        raw = connect(server)
        hello = bytearray(receive(raw, handshake.HELLO.size))
        hello[4] = handshake.DATA
        answer = bytearray(handshake.ClientSide(TOKEN, kind=handshake.DATA).answer(bytes(hello)))
        answer[4] = handshake.LANE  # the kind is part of the proof
        raw.sendall(bytes(answer))
        assert receive(raw, handshake.WELCOME.size) == handshake.REFUSAL
        raw.close()


@pytest.mark.parametrize(
    "garbage",
    [
        b"\0",
        os.urandom(64),
        b"GET / HTTP/1.0\r\n\r\n",
        b"LUC1" + b"\xff" * 200,
        b"LUC1\x01\x01\xff\xff" + b"\0" * 32,
    ],
)
def test_garbage_before_the_handshake_is_refused_and_closed(garbage):
    with serving() as (server, _):
        raw = connect(server)
        receive(raw, handshake.HELLO.size)
        raw.sendall(garbage)
        assert is_closed(raw)
        raw.close()


def test_frames_before_the_handshake_reach_no_handler():
    with serving() as (server, service):
        raw = connect(server)
        raw.sendall(frame(methods.Meta.lookup.lane, LOOKUP.SerializeToString()))
        assert is_closed(raw)
        assert service.calls == 0
        raw.close()


def test_request_sent_together_with_the_answer_is_served():
    with serving() as (server, _):
        raw = connect(server)
        side = handshake.ClientSide(TOKEN, kind=handshake.LANE)
        answer = side.answer(receive(raw, handshake.HELLO.size))
        raw.sendall(answer + frame(methods.Meta.lookup.lane, LOOKUP.SerializeToString()))
        side.finish(receive(raw, handshake.WELCOME.size))
        assert reply_of(raw)[1] == frames.REPLY
        raw.close()


def test_slow_handshake_is_cut_off():
    with serving(handshake_s=0.3) as (server, _):
        raw = connect(server)
        receive(raw, handshake.HELLO.size)
        started = time.monotonic()
        with contextlib.suppress(OSError):
            for byte in b"LUC1\x01\x01\x00\x00" + b"\0" * 60:
                raw.sendall(bytes((byte,)))
                time.sleep(0.02)
        assert is_closed(raw)
        assert time.monotonic() - started < 60
        raw.close()


def test_unauthenticated_connections_cannot_lock_clients_out():
    with serving(handshake_s=60) as (server, _):
        strangers = [connect(server) for _ in range(lane_server.HANDSHAKES_MAX + 20)]
        with client(server) as lane_client:
            assert lane_client.call(methods.Meta.lookup, LOOKUP).inode.id == 7
        assert is_closed(strangers[0])
        for raw in strangers:
            raw.close()


def test_client_refuses_a_server_without_the_secret():
    def squat(listener):
        raw, _ = listener.accept()
        raw.sendall(handshake.ServerSide(bytes(32), kind=handshake.LANE).hello)
        raw.recv(4096)
        raw.sendall(handshake.WELCOME.pack(0, b"\x11" * 32))
        raw.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=squat, args=(listener,))
        thread.start()
        address = format_address(*listener.getsockname())
        with LaneClient(address, TOKEN) as lane_client, pytest.raises(Unauthenticated, match="does not hold"):
            lane_client.call(methods.Meta.lookup, LOOKUP)
        thread.join()


def test_client_gives_up_on_a_server_that_says_nothing():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = format_address(*listener.getsockname())
        with LaneClient(address, TOKEN, connect_s=0.2) as lane_client, pytest.raises(Timeout):
            lane_client.call(methods.Meta.lookup, LOOKUP)

        async def main():
            async with AsyncLaneClient(address, TOKEN, connect_s=0.2) as lane_client:
                with pytest.raises(Timeout):
                    await lane_client.call(methods.Meta.lookup, LOOKUP)

        asyncio.run(main())


def test_client_works_after_a_timeout():
    with serving() as (server, service), client(server) as lane_client:
        with pytest.raises(Timeout, match="Meta/List"):
            lane_client.call(methods.Meta.list, ListRequest(), timeout_s=0.1)
        assert lane_client.call(methods.Meta.lookup, LOOKUP).inode.id == 7
        _open(service)


def test_client_connects_again_after_the_server_came_back():
    with serving() as (server, _):
        port = parse_address(server.address)[1]
        lane_client = client(server)
        lane_client.call(methods.Meta.lookup, LOOKUP)
    with pytest.raises(Unavailable):
        lane_client.call(methods.Meta.lookup, LOOKUP)

    async def main() -> None:
        again = LaneServer(bound(Service()), secret=SECRET)
        await again.start(port=port)
        assert (await asyncio.to_thread(lane_client.call, methods.Meta.lookup, LOOKUP)).inode.id == 7
        await again.stop()

    asyncio.run(main())
    lane_client.close()


def local_call(address: str) -> InodeReply:
    """A call over the Unix socket beside `address`, byte by byte."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as raw:
        raw.settimeout(60)
        raw.connect(socket_name(*parse_address(address)))
        greet(raw)
        raw.sendall(frame(methods.Meta.lookup.lane, LOOKUP.SerializeToString(), 5))
        number, flags, request, payload = reply_of(raw)
        assert (number, flags, request) == (methods.Meta.lookup.lane, frames.REPLY, 5)
        return InodeReply.FromString(payload)


def test_clients_on_this_host_are_served_over_a_unix_socket():
    with serving() as (server, _):
        inode = local_call(server.address).inode
        assert (inode.id, inode.uid) == (7, 42)


@pytest.mark.parametrize("run", [uvloop.run, asyncio.run])
def test_unix_socket_is_gone_when_the_server_has_stopped(run):
    async def main() -> None:
        server = LaneServer(bound(Service()), secret=SECRET)
        address = await server.start()
        assert (await asyncio.to_thread(local_call, address)).inode.id == 7
        await server.stop()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.to_thread(local_call, address)
        again = LaneServer(bound(Service()), secret=SECRET)
        await again.start(port=parse_address(address)[1])
        assert (await asyncio.to_thread(local_call, address)).inode.id == 7
        await again.stop()

    run(main())


def test_server_whose_unix_name_is_taken_serves_over_tcp(caplog):
    with serving() as (server, _):
        port = parse_address(server.address)[1]

    async def main() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as taken:
            taken.bind(socket_name("127.0.0.1", port))
            second = LaneServer(bound(Service()), secret=SECRET)
            address = await second.start(port=port)
            with LaneClient(address, TOKEN) as lane_client:
                reply = await asyncio.to_thread(lane_client.call, methods.Meta.lookup, LOOKUP)
            assert reply.inode.id == 7
            await second.stop()

    asyncio.run(main())
    assert "clients on this host use TCP" in caplog.text


def test_port_in_use_is_unavailable():
    async def main() -> None:
        first, second = (LaneServer(bound(Service()), secret=SECRET) for _ in range(2))
        address = await first.start()
        with pytest.raises(Unavailable, match="cannot listen"):
            await second.start(port=parse_address(address)[1])
        await first.stop()

    asyncio.run(main())


def test_asynchronous_client_has_many_requests_in_flight():
    with serving() as (server, service):

        async def main() -> None:
            async with AsyncLaneClient(server.address, TOKEN) as lane_client:
                calls = [
                    asyncio.create_task(lane_client.call(methods.Meta.list, ListRequest(inode=n)))
                    for n in range(50)
                ]
                quick = await lane_client.call(methods.Meta.lookup, LOOKUP)
                assert quick == InodeReply(inode=quick.inode)
                _open(service)
                assert [reply.parent for reply in await asyncio.gather(*calls)] == list(range(50))
                with pytest.raises(NotFound):
                    await lane_client.call(methods.Meta.stat, StatRequest())

        asyncio.run(main())


def test_asynchronous_calls_fail_when_the_connection_is_lost():
    async def main() -> None:
        service = Service()
        server = LaneServer(bound(service), secret=SECRET)
        await server.start()
        async with AsyncLaneClient(server.address, TOKEN) as lane_client:
            call = asyncio.create_task(lane_client.call(methods.Meta.list, ListRequest()))
            await service.has_waiter.wait()
            await server.stop(grace_s=0)
            with pytest.raises(Unavailable):
                await call
            with pytest.raises(Unavailable):
                await lane_client.call(methods.Meta.lookup, LOOKUP)
        service.gate.set()
        await asyncio.sleep(0.01)

    asyncio.run(main())


def test_stop_lets_requests_in_flight_finish():
    async def main() -> None:
        service = Service()
        server = LaneServer(bound(service), secret=SECRET)
        await server.start()
        async with AsyncLaneClient(server.address, TOKEN) as lane_client:
            call = asyncio.create_task(lane_client.call(methods.Meta.list, ListRequest(inode=4)))
            await service.has_waiter.wait()
            stopping = asyncio.create_task(server.stop())
            await asyncio.sleep(0.01)
            service.gate.set()
            assert (await call).parent == 4
            await stopping

    asyncio.run(main())


def test_connection_that_vanishes_in_the_middle_leaves_nothing_behind():
    with serving() as (server, _):
        for cut in (0, 1, 40, 80, 150):
            raw = connect(server)
            answer = handshake.ClientSide(TOKEN, kind=handshake.LANE).answer(
                receive(raw, handshake.HELLO.size)
            )
            raw.sendall((answer + frame(17, b"12345"))[:cut])
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raw.close()
        with client(server) as lane_client:
            assert lane_client.call(methods.Meta.lookup, LOOKUP).inode.id == 7


@pytest.mark.parametrize(
    "text", ["", "127.0.0.1", ":80", "host:", "host:x", "host:-1", "host:65536", "host:٣"]
)
def test_text_that_is_no_address_is_refused(text):
    with pytest.raises(InvalidArgument):
        parse_address(text)


def test_addresses_survive_their_text_form():
    for pair in (("127.0.0.1", 1), ("::1", 65535), ("host", 0)):
        assert parse_address(format_address(*pair)) == pair


def test_idle_connections_make_room_for_new_ones_and_busy_ones_stay(monkeypatch):
    monkeypatch.setattr(lane_server, "CONNECTIONS_MAX", 3)
    monkeypatch.setattr(lane_server, "IDLE_CLOSED", 1)
    with serving() as (server, service), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(LaneClient(server.address, TOKEN)) for _ in range(4)]
        waits = threading.Thread(target=lambda: clients[0].call(methods.Meta.list, ListRequest(inode=1)))
        waits.start()
        asyncio.run_coroutine_threadsafe(service.has_waiter.wait(), service.loop).result(60)
        for client in clients[1:]:
            assert client.call(methods.Meta.lookup, LOOKUP).inode.id == 7
        assert server.connection_count <= 3
        assert clients[1].call(methods.Meta.lookup, LOOKUP).inode.id == 7, "it was closed, and opens another"
        service.loop.call_soon_threadsafe(service.gate.set)
        waits.join(60)
        assert not waits.is_alive(), "the connection with a call in flight was kept"
