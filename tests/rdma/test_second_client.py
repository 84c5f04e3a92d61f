"""A client on pyverbs against the native server: bytes, completions, and all that a hostile or broken client may do.

Whatever one client does, another that was there before continues, and the server keeps nothing of it.
"""

import re
import socket
import subprocess
from collections.abc import Iterator

import pytest

from rdma import cable, frames
from rdma.frames import Frame
from rdma.native import Native
from rdma.peer import Broken, Client, E, V, Wire, pattern, read_row

KIB = 1 << 10


@pytest.fixture(scope="module")
def server() -> Iterator[Native]:
    with Native("serve", "rxe1") as process:
        process.port = int(process.hear())
        yield process


@pytest.fixture
def other(server: Native) -> Iterator[None]:
    """Another client, which must not notice anything."""
    with connected(server) as client:
        yield
        assert write_and_read(client, 900, 5000)
    cable.wait_for("the server lets go of everybody", lambda: server.ask("connections") == "0")


def connected(server: Native, *, window: int | None = None, slots: bool = True, **options) -> Client:
    client = Client(("127.0.0.1", server.port))
    wire = Wire("rxe0", remote_access=True, **options)
    assert client.resume(wire, window=window) == 0
    if slots:
        client.register(0, wire.data.buf, wire.data.rkey, wire.data.length)
    return client


def write_and_read(client: Client, index: int, length: int) -> bool:
    """Writes a pattern, reads it back to elsewhere, compares every byte, and those around them."""
    wire, data = client.wire, pattern(length, index)
    wire.data.write(data, length, 0)
    assert client.write(index, data, sequence=index)[:1] == (frames.OK,)
    wire.data.write(b"\xee" * (length + 200), length + 200, 1 << 20)
    status, flags, count, version, crc, _ = client.read(index, length + 50, offset=(1 << 20) + 100)
    assert (status, flags, count) == (frames.OK, frames.CRC_IS_SET, length)
    assert version > 0
    assert crc == frames.crc32c(data)
    found = wire.data.read(length + 200, 1 << 20)
    return found == b"\xee" * 100 + data + b"\xee" * 100


def closed_by_server(client: Client) -> bool:
    """Whether the server ends the connection, over TCP, within the patience of the socket."""
    return client.is_closed()


def test_what_the_server_reads_and_writes_is_what_was_meant(server: Native, other: None) -> None:
    with connected(server) as client:
        for index, length in enumerate((1, 4095, 4096, 4097, 100 * KIB), start=1):
            assert write_and_read(client, index, length)
            assert bytes.fromhex(server.ask("chunk", 5, index)) == pattern(length, index)
        # One-sided operations of the server leave no completion here: only messages do.
        assert client.wire.one_sided == 0
        assert client.wire.messages_in >= 10


def test_a_mebibyte_crosses_whole(server: Native) -> None:
    with connected(server) as client:
        server.ask("put", 5, 70, 1 << 20, 3)
        status, _, count, *_ = client.read(70, 1 << 20)
        assert (status, count) == (frames.OK, 1 << 20)
        assert client.wire.data.read(1 << 20, 0) == pattern(1 << 20, 3)


def test_frames_of_several_messages_and_many_of_them_keep_to_the_credits(server: Native, other: None) -> None:
    with connected(server) as client:
        server.ask("put", 5, 71, 256, 4)
        for _ in range(3):
            rows = [read_row(71, 256, 256 * place) for place in range(256)]
            reply = client.call(frames.READ, rows)
            assert [row[0] for row in reply.rows] == [frames.OK] * 256
        assert client.wire.data.read(256 * 256, 0) == pattern(256, 4) * 256
        for _ in range(100):
            client.call(frames.PING, [])
        assert all(0 <= count <= 8 for count in client.wire.returned)


def test_a_chunk_that_is_not_there_writes_nothing(server: Native, other: None) -> None:
    with connected(server) as client:
        client.wire.data.write(b"\xee" * 1000, 1000, 0)
        assert client.read(4000, 1000)[0] == frames.NOT_FOUND
        assert client.wire.data.read(1000, 0) == b"\xee" * 1000


def test_a_wrong_checksum_is_refused_and_nothing_kept(server: Native, other: None) -> None:
    with connected(server) as client:
        client.wire.data.write(b"x" * 100, 100, 0)
        assert client.write(30, b"x" * 100, sequence=1, crc=7)[0] == frames.CHECKSUM
    assert server.ask("chunk", 5, 30) == "none"


@pytest.mark.parametrize(
    ("offset", "length", "slot"),
    [(4 << 20, 1, 0), ((4 << 20) - 99, 100, 0), (1 << 63, 100, 0), ((1 << 64) - 50, 100, 0), (0, 100, 3)],
)
def test_a_place_outside_its_region_is_invalid(
    server: Native, other: None, offset: int, length: int, slot: int
) -> None:
    server.ask("put", 5, 72, 100, 1)
    with connected(server) as client:
        assert client.read(72, length, offset=offset, slot=slot)[0] == frames.INVALID
        assert client.write(31, b"x" * length, sequence=1, offset=offset, slot=slot)[0] == frames.INVALID
        # It was the operations that were wrong, not the connection.
        assert write_and_read(client, 73, 100)
    assert server.ask("chunk", 5, 31) == "none"


def test_bytes_that_would_follow_a_reply_are_refused(server: Native, other: None) -> None:
    server.ask("put", 5, 76, 100, 1)
    with connected(server) as client:
        assert client.read(76, 100, slot=0xFFFF)[0] == frames.INVALID
        assert write_and_read(client, 77, 100)


@pytest.mark.parametrize("wrong", ["key", "address", "length", "rights"])
def test_memory_that_the_device_refuses_ends_that_connection_only(
    server: Native, other: None, wrong: str
) -> None:
    server.ask("put", 5, 74, 100, 1)
    with connected(server) as client:
        wire = client.wire
        address, key, length = wire.data.buf, wire.data.rkey, wire.data.length
        if wrong == "key":
            key ^= 0x55
        elif wrong == "address":
            address -= 1 << 20
        elif wrong == "length":
            address, length = address + length - 50, 1 << 20
        else:
            client.readable = V.mr.MR(wire.domain, 4096, E.IBV_ACCESS_LOCAL_WRITE | E.IBV_ACCESS_REMOTE_READ)
            address, key, length = client.readable.buf, client.readable.rkey, 4096
        before = wire.data.read(wire.data.length, 0)
        client.register(1, address, key, length)
        client.put(Frame(frames.READ, 99, [read_row(74, 100, 0, slot=1)], deadline_ms=10_000))
        assert closed_by_server(client)
        if wrong != "length":
            assert wire.data.read(wire.data.length, 0) == before, "nothing was written anywhere"


def test_a_client_reaches_nothing_of_the_server(server: Native, other: None) -> None:
    for opcode in ("write_to", "read_from"):
        with connected(server) as client:
            with pytest.raises(Broken) as refused:
                getattr(client.wire, opcode)(0, 4096, client.wire.data.buf, client.wire.data.rkey)
            assert refused.value.status in (E.IBV_WC_REM_ACCESS_ERR, E.IBV_WC_REM_INV_REQ_ERR)
            assert closed_by_server(client)


GOOD = Frame(frames.PING, 1, []).encode()


@pytest.mark.parametrize(
    "garbage",
    [
        b"\0" * 32,
        b"LUC1" + GOOD[4:],
        GOOD[:28] + b"\0\0\0\0",
        GOOD[:4] + b"\x01" + GOOD[5:],
        Frame(frames.PING | frames.REPLY, 1, []).encode(),
        Frame(frames.READ, 1, []).encode(),
        Frame(frames.READ, 1, [read_row(1, 1 << 31, 0)]).encode(),
        Frame(frames.READ, 1, [read_row(1, 100, 0, slot=40)]).encode(),
        Frame(frames.REGISTER, 1, [(40, 1 << 20, 1, 4096)]).encode(),
        Frame(frames.REGISTER, 1, [(1, 1 << 20, 1, 1 << 40)]).encode(),
        Frame(frames.OFFER, 1, [(bytes(16), 2, 5, 0, 0)]).encode(),
        bytes(range(256)) * 16,
    ],
    ids=lambda garbage: garbage[:12].hex(),
)
def test_garbage_ends_that_connection_only(server: Native, other: None, garbage: bytes) -> None:
    with connected(server) as client:
        client.wire.send(garbage)
        assert closed_by_server(client)


def test_more_returned_buffers_than_there_are_end_that_connection(server: Native, other: None) -> None:
    for returned in (9, 0xFFFF, 1 << 20):
        with connected(server) as client:
            client.wire.send_message(b"", returned=returned)
            assert closed_by_server(client)


def test_a_message_without_a_buffer_ends_that_connection() -> None:
    """The server is busy, so it posts no buffers; a client that sends beyond its credits finds none."""
    with Native("serve", "rxe1") as server:
        server.port = int(server.hear())
        server.ask("put", 5, 75, 100, 1)
        with connected(server) as client, connected(server) as another:
            server.ask("hang")
            client.put(Frame(frames.READ, 99, [read_row(75, 100, 0)], deadline_ms=60_000))
            with pytest.raises(Broken) as broken:
                for number in range(32):
                    client.wire.send_message(Frame(frames.PING, number, []).encode())
                client.wire.wait(lambda: client.wire.done == client.wire.asked)
            assert broken.value.status == E.IBV_WC_RNR_RETRY_EXC_ERR
            server.ask("release")
            assert closed_by_server(client)
            assert write_and_read(another, 1, 5000)


def test_a_window_that_is_not_there_ends_that_connection(server: Native, other: None) -> None:
    """The client says it has 256 buffers and posts 4: the server's replies find none."""
    with connected(server, window=256, slots=False, data_bytes=1 << 20) as client:
        wire = client.wire
        wire.post_receive = lambda slot: None
        with pytest.raises((Broken, AssertionError, ConnectionError)):
            for number in range(20):
                wire.send(Frame(frames.PING, number, []).encode())
                wire.pump()
        assert closed_by_server(client)


def test_no_common_fabric_continues_over_tcp(server: Native, other: None) -> None:
    with Client(("127.0.0.1", server.port)) as client:
        offer = (bytes(16), frames.INFINIBAND, 5, 7, 0)
        ((status, *_),) = client.call(frames.OFFER, [offer]).rows
        assert status == 2
        assert client.call(frames.PING, []).rows == []


def test_an_end_without_an_offer_is_malformed(server: Native, other: None) -> None:
    with Wire("rxe0", remote_access=True) as wire, Client(("127.0.0.1", server.port)) as client:
        client.put(Frame(frames.CONNECT, 1, [wire.end()]))
        assert closed_by_server(client)


def test_bytes_over_tcp_after_the_upgrade_to_rdma_end_it(server: Native, other: None) -> None:
    with connected(server) as client:
        client.connection.sendall(GOOD)
        assert closed_by_server(client)


@pytest.mark.slow
def test_a_client_that_is_gone_leaves_no_queue_pair(server: Native) -> None:
    before = queue_pairs()
    for number in range(20):
        client = connected(server)
        if number % 2:
            client.connection.shutdown(socket.SHUT_RDWR)
        client.__exit__()
    cable.wait_for("the server lets go", lambda: server.ask("connections") == "0")
    cable.wait_for("all queue pairs are gone", lambda: queue_pairs() == before)


def queue_pairs() -> list[int]:
    """Queue pairs of each device, as the kernel counts them."""
    shown = subprocess.run(["rdma", "resource"], capture_output=True, text=True, check=True).stdout
    return [int(count) for count in re.findall(r"qp (\d+)", shown)]


@pytest.mark.slow
def test_a_cut_cable_ends_connections_and_a_mended_one_serves_again(
    server: Native, whole_cable: None
) -> None:
    with connected(server) as client:
        cable.cut("ve0")
        with pytest.raises(Broken):
            for _ in range(100):
                client.call(frames.PING, [])
    cable.wait_for("the server lets go", lambda: server.ask("connections") == "0")
    cable.mend()
    with connected(server) as client:
        assert write_and_read(client, 80, 1000)


@pytest.mark.slow
def test_loss_delay_and_reordering_change_no_byte(server: Native, whole_cable: None) -> None:
    cable.disturb("ve0", "delay", "2ms", "1ms", "loss", "1%", "reorder", "25%")
    with connected(server) as client:
        for index in range(90, 94):
            assert write_and_read(client, index, 50 * KIB)


def test_a_killed_server_is_noticed_at_once() -> None:
    with Native("serve", "rxe1") as server:
        server.port = int(server.hear())
        with connected(server) as client:
            assert write_and_read(client, 1, 100)
            server.kill()
            assert closed_by_server(client)
