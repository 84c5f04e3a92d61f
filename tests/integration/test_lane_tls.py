"""A client and the lane of other machines: a sniffer reads nothing, and strangers get nothing."""

import asyncio
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import luciola_core
import pytest
import uvloop

import luciola
from lane_world import SECRET, TOKEN, LoopThread, SniffedServices
from luciola.config import ClientConfig
from luciola.errors import Unavailable
from luciola.wire import LaneServer
from luciola.wire.addresses import parse_address
from luciola.wire.lane.server import HANDSHAKES_MAX
from luciola.wire.tls import Material, Tls, encode_holding
from unit.wire.tls_world import World, tls

CONFIG = ClientConfig(attribute_timeout_ms=0, transport="tcp", deadline_ms=3000)


Start = Callable[..., SniffedServices]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[SniffedServices] = []

    def begin(mgmtd: Tls | None, meta: Tls | None = None) -> SniffedServices:
        started.append(SniffedServices(mgmtd, meta))
        return started[-1]

    yield begin
    for services in started:
        services.close()


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def refused(services: SniffedServices, material: Material | None) -> str:
    """Return why a client that shows this gets no connection."""
    with pytest.raises(Unavailable) as caught:
        luciola_core.Client(
            [services.mgmtd.address],
            TOKEN.claims,
            TOKEN.key,
            certificates=None if material is None else material.native(),
            deadline_ms=300,
        )
    return str(caught.value)


def connect(services: SniffedServices, holder: Material) -> "luciola.FileSystem":
    text = f"{TOKEN.encode()}\n{encode_holding(holder)}"
    return luciola.connect(services.mgmtd.address, token=text, config=CONFIG)


def test_a_sniffer_sees_neither_names_nor_bytes_nor_tokens(world: World, start: Start):
    services = start(tls(world.machine("mgmtd")), tls(world.machine("meta")))
    with connect(services, world.holder()) as fs:
        fs.write("/a secret name", b"bytes of a small file")
        assert fs.read("/a secret name") == b"bytes of a small file"
    seen = bytes(services.mgmtd.seen + services.meta.seen)
    assert len(services.meta.seen) > 1000
    for secret in (b"a secret name", b"bytes of a small file", TOKEN.claims, b"LUC1"):
        assert secret not in seen


def test_a_server_of_another_role_machine_or_cluster_or_one_that_expired_is_refused(
    world: World, start: Start
):
    for shown in (
        world.machine("meta"),
        world.machine("mgmtd", address="10.0.0.1"),
        World().machine("mgmtd"),
        world.machine("mgmtd", ago_s=7200, lifetime_s=3600),
    ):
        services = start(tls(shown))
        assert "TLS: invalid peer certificate" in refused(services, world.holder())
        assert TOKEN.claims not in services.mgmtd.seen


def test_a_client_with_a_strangers_certificate_or_an_expired_one_is_refused(world: World, start: Start):
    services = start(tls(world.machine("mgmtd")))
    stranger = World().holder()
    mixed = Material(stranger.cluster_id, world.issuer.certificate, stranger.key, stranger.certificate)
    for shown in (mixed, world.machine("storage", ago_s=7200, lifetime_s=3600)):
        assert "does not accept this machine's" in refused(services, shown)
    assert TOKEN.claims not in services.mgmtd.seen


def test_clear_text_and_tls_do_not_meet_and_say_so(world: World, start: Start):
    services = start(None)
    assert "clear text" in refused(services, world.holder())
    assert TOKEN.claims not in services.mgmtd.seen
    assert "luciola token create" in refused(start(tls(world.machine("mgmtd"))), None)


def test_renewed_certificates_are_used_by_the_next_connection(world: World, start: Start):
    shown = [world.machine("meta", ago_s=3597, lifetime_s=3600)]
    end_s = time.monotonic() + 3.5
    services = start(tls(world.machine("mgmtd")), tls(lambda: shown[0]))
    with connect(services, world.holder()) as fs:
        fs.write("/f", b"before")
        shown[0] = world.machine("meta")
        time.sleep(max(0.0, end_s - time.monotonic()))
        with connect(services, world.holder()) as other:
            assert other.read("/f") == b"before"
        assert fs.read("/f") == b"before"


@pytest.mark.parametrize("wire", ["encrypt", "mac", "none"])
def test_bytes_are_protected_as_their_storage_node_says(
    wire: str, world: World, start: Start, tmp_path: Path
):
    services = start(tls(world.machine("mgmtd")), tls(world.machine("meta")))
    sniffer = services.sniff(services.add_storage(tmp_path / "chunks", world.machine("storage"), wire))
    services.route(sniffer.address)
    content = b"bytes of a large file" * 20_000
    with connect(services, world.holder()) as fs:
        fs.write("/large", content)
        assert fs.read("/large") == content
        seen = bytes(sniffer.seen)
        assert TOKEN.claims not in seen
        assert (content[:1000] in seen) == (wire != "encrypt")
        sniffer.flips = True
        if wire != "none":
            with pytest.raises(OSError):
                fs.read("/large")


def test_a_storage_node_that_is_another_machine_gets_neither_token_nor_bytes(
    world: World, start: Start, tmp_path: Path
):
    services = start(tls(world.machine("mgmtd")), tls(world.machine("meta")))
    elsewhere = world.machine("storage", address="10.0.0.1")
    sniffer = services.sniff(services.add_storage(tmp_path / "chunks", elsewhere, "none"))
    services.route(sniffer.address)
    with connect(services, world.holder()) as fs, pytest.raises(OSError):
        fs.write("/large", b"bytes" * 20_000)
    assert sniffer.seen
    assert TOKEN.claims not in sniffer.seen
    assert b"bytes" not in sniffer.seen


def test_clients_that_come_while_their_server_is_busy_begin_tls(world: World, tmp_path: Path):
    holder, pem = world.holder(), tmp_path / "holder.pem"
    pem.write_bytes(holder.key + holder.certificate)
    context = ssl.create_default_context(cadata=holder.authority.decode())
    context.load_cert_chain(pem)
    context.check_hostname = False
    services = LoopThread()
    address = services.run(services.serve((), tls(world.machine("mgmtd"))))
    is_busy = True

    def work() -> None:
        time.sleep(0.02)
        if is_busy:
            services.loop.call_soon(work)

    services.loop.call_soon_threadsafe(work)
    try:
        for _ in range(5):
            with socket.create_connection(parse_address(address)) as raw, context.wrap_socket(raw) as stream:
                assert stream.recv(4), "a greeting"
    finally:
        is_busy = False
        services.close()


@pytest.mark.parametrize("loops", [asyncio, uvloop])
def test_strangers_who_leave_or_stay_silent_before_tls_keep_no_place(world: World, loops: ModuleType):
    async def attack() -> None:
        server = LaneServer((), secret=SECRET, tls=tls(world.machine("meta")), handshake_s=0.5)
        host, port = parse_address(await server.start())
        for many in (3, HANDSHAKES_MAX + 3):  # the oldest make room for the rest
            strangers = [await asyncio.open_connection(host, port) for _ in range(many)]
            resets = strangers[::2]
            while not 0 < server.connection_count <= HANDSHAKES_MAX:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            for _, writer in resets:
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
                writer.transport.abort()
            while server.connection_count:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            for _, writer in strangers:
                writer.close()
        await server.stop(grace_s=0)

    loop = loops.new_event_loop()
    try:
        loop.run_until_complete(asyncio.wait_for(attack(), 60))
    finally:
        loop.close()
