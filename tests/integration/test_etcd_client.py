"""The client of etcd: TLS, passwords, and members that are not there."""

import asyncio
import socket
from contextlib import aclosing, closing

import pytest

from etcd_members import EtcdMembers, require_etcd
from luciola.errors import ConfigError, Error, InvalidArgument, PermissionDenied, Unauthenticated, Unavailable
from luciola.wire.etcd import EtcdClient, EtcdOptions, changed_at, created_at, delete, put, read

PATIENT_S = 100.0
ROOT = "root:of the tests"


@pytest.fixture(scope="module")
def secured(tmp_path_factory):
    """A member with TLS and passwords, and a user who may use what begins with `luciola/`."""
    require_etcd()
    with EtcdMembers(tmp_path_factory.mktemp("secured"), count=1, tls=True) as members:
        members.control("user", "add", ROOT)
        members.control("role", "add", "root")
        members.control("user", "grant-role", "root", "root")
        members.control("role", "add", "luciola")
        members.control("role", "grant-permission", "luciola", "--prefix=true", "readwrite", "luciola/")
        members.control("user", "add", "luciola:secret")
        members.control("user", "grant-role", "luciola", "luciola")
        members.control("auth", "enable")
        members.client_options |= {"user": "luciola", "password": "secret"}
        yield members


def options(members, **changes):
    return EtcdOptions(members.endpoints, **{**members.client_options, **changes})


def with_client(wanted, scenario):
    async def prepared():
        async with EtcdClient(wanted, request_s=PATIENT_S) as client:
            return await scenario(client)

    return asyncio.run(prepared())


def test_user_with_a_password_reads_writes_and_watches(secured):
    async def scenario(client):
        reply = await client.transact([created_at(b"luciola/a", 0)], [put(b"luciola/a", b"1")])
        assert reply.succeeded
        async with aclosing(client.watch(b"luciola/a", b"", start=reply.header.revision)) as replies:
            async for watched in replies:
                if watched.events:
                    assert watched.events[0].kv.value == b"1"
                    break
        revision = reply.header.revision
        reply = await client.transact([changed_at(b"luciola/a", revision)], [delete(b"luciola/a")])
        assert reply.succeeded

    with_client(options(secured), scenario)


def test_user_may_not_touch_the_keys_of_others(secured):
    async def scenario(client):
        with pytest.raises(PermissionDenied):
            await client.transact([], [put(b"other/a", b"1")])
        with pytest.raises(PermissionDenied):
            await client.range(b"other/a", limit=1)

    with_client(options(secured), scenario)


def test_wrong_password_is_refused(secured):
    async def scenario(client):
        with pytest.raises(Unauthenticated, match="luciola"):
            await client.range(b"luciola/a", limit=1)

    with_client(options(secured, password="wrong"), scenario)


def test_client_without_a_user_is_refused(secured):
    async def scenario(client):
        with pytest.raises((InvalidArgument, PermissionDenied, Unauthenticated)):
            await client.range(b"luciola/a", limit=1)

    with_client(options(secured, user="", password=""), scenario)


def test_token_that_the_member_has_forgotten_is_renewed(secured):
    async def scenario(client):
        await client.range(b"luciola/a", limit=1)
        token = client._token
        for call in (
            lambda: client.range(b"luciola/a", limit=1),
            lambda: client.transact([], [put(b"luciola/b", b"1"), delete(b"luciola/b2")]),
            lambda: client.delete(b"luciola/b", b"luciola/c"),
        ):
            client._token = "forgotten.1"
            await call()
            assert client._token not in (token, "forgotten.1")

    with_client(options(secured), scenario)


def test_client_without_a_certificate_cannot_connect(secured):
    async def scenario(client):
        with pytest.raises(Error):
            await client.range(b"luciola/a", limit=1)

    with_client(options(secured, certificate=None, key=None), scenario)


def test_client_without_tls_cannot_connect(secured):
    async def scenario(client):
        with pytest.raises(Error):
            await client.range(b"luciola/a", limit=1)

    with_client(options(secured, ca=None, certificate=None, key=None), scenario)


def test_members_that_are_not_there_are_passed_over(etcd):
    with closing(socket.socket()) as unused:  # bound, and nothing listens
        unused.bind(("127.0.0.1", 0))
        absent = f"127.0.0.1:{unused.getsockname()[1]}"

        async def scenario(client):
            reply = await client.transact([], [put(b"passed over", b"1"), read(b"passed over")])
            assert reply.succeeded

        with_client(EtcdOptions((absent, *etcd.endpoints)), scenario)


def test_write_that_reaches_no_member_was_not_sent():
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        absent = f"127.0.0.1:{unused.getsockname()[1]}"

        async def scenario(client):
            with pytest.raises(Unavailable, match="cannot be reached"):
                await client.transact([], [put(b"a", b"1")])

        with_client(EtcdOptions((absent,)), scenario)


def test_alarms_and_status_are_read(etcd):
    async def scenario(client):
        assert list(await client.alarms()) == []
        status = await client.status(etcd.endpoints[0])
        assert status.version.startswith("3.")
        assert status.leader == status.header.member_id

    with_client(EtcdOptions(etcd.endpoints), scenario)


@pytest.mark.parametrize(
    ("endpoints", "changes"),
    [
        ((), {}),
        (("127.0.0.1:1",) * 17, {}),
        (("127.0.0.1:1",), {"certificate": "x", "ca": "y"}),
        (("127.0.0.1:1",), {"certificate": "x", "key": "y"}),
    ],
)
def test_options_that_contradict_themselves_are_refused(endpoints, changes):
    with pytest.raises(ConfigError):
        EtcdOptions(endpoints, **changes)


def test_address_without_a_port_is_refused():
    with pytest.raises(InvalidArgument):
        EtcdOptions(("localhost",))


def test_missing_file_for_tls_is_named(tmp_path):
    with pytest.raises(ConfigError, match="absent"):
        EtcdClient(EtcdOptions(("127.0.0.1:1",), ca=tmp_path / "absent"))
