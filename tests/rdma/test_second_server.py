"""A server on pyverbs against the native client: it moves bytes as it should, and then as it should not.

The client's process is driven by lines while the server runs here, one frame at a time, so that every order of events
is chosen by the test.
"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rdma import cable, frames
from rdma.native import Native
from rdma.peer import PATIENCE_S, Broken, E, Server, Wire, pattern

# The native client waits 3 s for its first answer over RDMA: on a quiet machine more than enough.
pytestmark = pytest.mark.slow
# A deadline that passes while a test waits for that, and not before the request has arrived on a busy machine.
SHORT_MS = 8000


class Driven:
    """A native client and the listener that it connects to."""

    def __init__(self, listener: socket.socket, client: Native) -> None:
        self.listener = listener
        self.client = client

    @contextmanager
    def accepted(self, *, upgrade: bool = True) -> Iterator[Server]:
        """The next connection of the client, gone on by RDMA."""
        connection, _ = self.listener.accept()
        with Server(connection) as server:
            if upgrade:
                server.accept(Wire("rxe1", remote_access=False))
            yield server


@contextmanager
def driven(*options: str) -> Iterator[Driven]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE_S)
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with Native("drive", "rxe0", address, *options) as client:
            yield Driven(listener, client)


def serve_until(server: Server, *kinds: int) -> None:
    """Answers requests up to and including one of these kinds."""
    while True:
        request = server.take()
        server.serve(request)
        if request.kind in kinds:
            return


def connect(each: Driven, server: Server) -> None:
    """The first ping, after which the client calls itself connected."""
    serve_until(server, frames.PING)
    assert each.client.hear() == "rdma"


@pytest.mark.parametrize("length", [1, 4096, 100_000])
def test_what_the_client_writes_is_fetched_and_what_it_reads_is_placed(length: int) -> None:
    with driven("strict") as each:
        each.client.say("connect")
        with each.accepted() as server:
            connect(each, server)
            each.client.say("write", 5, 1, length, 3)
            serve_until(server, frames.UPDATE)
            assert each.client.hear() == f"Ok {length}"
            assert server.chunks[5, 1] == pattern(length, 3)
            each.client.say("read", 5, 1, length + 30, 60_000)
            serve_until(server, frames.READ)
            assert each.client.hear() == f"Ok {length}"
            found = bytes.fromhex(each.client.ask("peek"))
            assert found == pattern(length, 3) + b"\xee" * 30, "nothing beyond what there is"
            # Two one-sided operations, one a fetch and one a placement; everything else were messages.
            assert server.wire.one_sided == 2


def test_many_requests_keep_to_the_credits() -> None:
    with driven("strict") as each:
        each.client.say("connect")
        with each.accepted() as server:
            connect(each, server)
            for _ in range(60):
                each.client.say("ping")
                serve_until(server, frames.PING)
                assert each.client.hear() == "Ok"
            assert all(0 <= count <= 8 for count in server.wire.returned)


def test_damage_on_the_way_is_noticed() -> None:
    with driven("strict") as each:
        each.client.say("connect")
        with each.accepted() as server:
            connect(each, server)
            server.chunks[5, 1] = pattern(500, 1)
            each.client.say("read", 5, 1, 500, 60_000)
            while (request := server.take()).kind != frames.READ:
                server.serve(request)
            server.reply(request, [server.read(row, damage=1) for row in request.rows])
            assert each.client.hear() == "Checksum"


def test_a_placement_after_the_deadline_lands_nowhere() -> None:
    """The client has given the read up, its memory is its own again; the server, late, writes where it was asked to."""
    with driven("strict") as each:
        each.client.say("connect")
        with each.accepted() as server:
            connect(each, server)
            server.chunks[5, 1] = b"\x11" * 4096
            each.client.say("read", 5, 1, 4096, SHORT_MS)
            while (request := server.take()).kind != frames.READ:
                server.serve(request)
            assert each.client.hear() == "Timeout"
            with pytest.raises(Broken) as refused:
                server.read(request.rows[0])
            assert refused.value.status != E.IBV_WC_SUCCESS
            assert each.client.ask("peek") == "ee" * 4096


def test_a_fetch_after_the_client_gave_up_brings_nothing() -> None:
    with driven("strict") as each:
        each.client.say("connect")
        with each.accepted() as server:
            connect(each, server)
            server.chunks[5, 1] = b"\x11" * 4096
            each.client.say("read", 5, 1, 4096, SHORT_MS)
            while (request := server.take()).kind != frames.READ:
                server.serve(request)
            assert each.client.hear() == "Timeout"
            _, slot, *_, length, _, offset = request.rows[0]
            address, rkey = server.place(slot, offset, length)
            with pytest.raises(Broken):
                server.wire.read_from(0, length, address, rkey)


@pytest.mark.parametrize("status", [1, 2, 3])
def test_a_refused_offer_is_no_connection_where_rdma_must_be(status: int) -> None:
    with driven("strict") as each:
        each.client.say("connect")
        with each.accepted(upgrade=False) as server, Wire("rxe1", remote_access=False) as wire:
            server.accept(wire, status=status)
            assert each.client.hear().startswith("error no RDMA")


def test_a_refused_offer_falls_back_to_tcp() -> None:
    with driven() as each:
        each.client.say("connect")
        with each.accepted(upgrade=False) as server, Wire("rxe1", remote_access=False) as wire:
            server.accept(wire, status=2)
            with each.accepted(upgrade=False):
                assert each.client.hear() == "tcp"


def test_a_first_ping_without_an_answer_falls_back_to_tcp() -> None:
    """TCP works and RDMA does not: packets are dropped between the two."""
    with driven() as each:
        each.client.say("connect")
        with each.accepted() as silent:
            with each.accepted(upgrade=False):
                assert each.client.hear() == "tcp"
            assert silent.wire is not None


@pytest.mark.parametrize("garbage", [b"\0" * 32, b"LUCF" + bytes(28), bytes(range(256)) * 8])
def test_a_garbled_reply_ends_the_connection(garbage: bytes) -> None:
    with driven("strict") as each:
        each.client.say("connect")
        with each.accepted() as server:
            connect(each, server)
            each.client.say("ping")
            server.take()
            server.wire.send(garbage)
            assert each.client.hear() == "Disconnected"
            assert server.is_closed()


def test_a_server_that_goes_is_noticed_and_another_found() -> None:
    with driven("strict") as each:
        each.client.say("connect")
        with each.accepted() as server:
            connect(each, server)
            each.client.say("ping")
            server.take()
            server.connection.close()
            assert each.client.hear() == "Disconnected"
        each.client.say("connect")
        with each.accepted() as server:
            connect(each, server)


def test_a_cut_cable_is_an_error_and_not_a_wait(whole_cable: None) -> None:
    with driven("strict") as each:
        each.client.say("connect")
        with each.accepted() as server:
            connect(each, server)
            cable.cut("ve1")
            each.client.say("ping")
            assert each.client.hear() == "Disconnected"
            assert server.is_closed()
