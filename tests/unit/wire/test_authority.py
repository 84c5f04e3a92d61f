"""Which tokens a service believes, and the connections of those that it believes no more."""

import asyncio
from pathlib import Path

import pytest

import lane_client
from luciola.errors import InvalidArgument, Unauthenticated, Unavailable
from luciola.wire import RpcClients, RpcServer, credentials, methods
from luciola.wire.authority import Authority
from luciola.wire.credentials import ADMIN, CLIENT, SERVICE, TRUSTED, Identity, Limits, Token, mint, verify
from luciola.wire.lane import LaneServer
from luciola.wire.pb.common_pb2 import Claims
from luciola.wire.pb.meta_pb2 import LookupRequest, ScanRequest
from luciola.wire.pb.mgmtd_pb2 import MintedBefore, Revocations, RevokedToken

from .service import SECRET, Service, bound

VECTORS = [
    line.split()
    for line in (Path(__file__).parent / "tokens.txt").read_text().splitlines()
    if not line.startswith("#")
]


def revoked(*tokens, before=()):
    return Revocations(
        tokens=[RevokedToken(id=bytes.fromhex(token.id)) for token in tokens],
        minted_before=[MintedBefore(key_id=key, minted_unix_s=time) for key, time in before],
    )


@pytest.mark.parametrize(("name", "says", "claims", "key"), VECTORS)
def test_vectors_are_read_as_the_data_plane_reads_them(name, says, claims, key):
    """core/src/wire/authority.rs has the same test."""
    token = Token(bytes.fromhex(claims.strip("-")), bytes.fromhex(key))
    authority = Authority({0: SECRET, 5: bytes(32)}, cluster="here")
    try:
        identity = authority.verify(token)
    except Unauthenticated:
        assert says == "refused", name
        return
    limits = identity.limits
    assert identity.may_call_from("127.0.0.1")
    found = f"role={identity.role},uid={identity.uid},read_only={limits.read_only:d},root={limits.root}"
    assert says == found, name


def test_limits_survive_and_need_their_version():
    limits = Limits(True, 9, b"/datasets", "cluster", ("10.0.0.0/8", "fd00::/8"))
    token = mint(SECRET, limits=limits)
    assert verify(SECRET, token).limits == limits
    claims = token.described()
    assert claims.version == credentials.VERSION
    plain = credentials.derive_key(SECRET, token.claims, version=0)
    with pytest.raises(Unauthenticated):  # as a release that knows no limits derives it
        verify(SECRET, Token(token.claims, plain))
    assert token.key != plain
    assert mint(SECRET).described().version == 0


@pytest.mark.parametrize("fields", [{"version": 3}, {"version": 2}, {"read_only": True}])
def test_claims_of_another_version_than_their_limits_are_refused(fields):
    claims = Claims(**fields).SerializeToString()
    for version in (0, 2):
        token = Token(claims, credentials.derive_key(SECRET, claims, version=version))
        with pytest.raises(Unauthenticated):
            verify(SECRET, token)


def test_administrators_have_no_limits_that_they_could_go_around():
    for limits in (Limits(read_only=True), Limits(root=2)):
        with pytest.raises(InvalidArgument, match="administrator"):
            mint(SECRET, role=ADMIN, limits=limits)
        assert not Identity(SERVICE, 0, 0, (), limits=limits).may(ADMIN)
        assert Identity(SERVICE, 0, 0, (), limits=limits).may(TRUSTED)
    assert mint(SECRET, role=ADMIN, limits=Limits(networks=("10.0.0.0/8",)))


@pytest.mark.parametrize("network", ["", "10.0.0.0/33", "10.0.0.1/8", "host", "10.0.0.0/8 "])
def test_what_is_no_network_is_refused(network):
    with pytest.raises(InvalidArgument, match="not a network"):
        mint(SECRET, limits=Limits(networks=(network,)))


def test_token_is_good_in_its_networks_alone():
    identity = verify(SECRET, mint(SECRET, limits=Limits(networks=("10.0.0.0/8", "fd00::/8"))))
    for host, expected in [
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("fd12::1", True),
        ("fd12::1%eth0", True),
        ("11.0.0.1", False),
        ("fe80::1", False),
        ("", False),
        ("name", False),
    ]:
        assert identity.may_call_from(host) == expected, host


@pytest.mark.parametrize(
    ("network", "is_inside"),
    [("10.1.2.3/8", True), ("10.0.0.0/99", False), ("c", False), ("", False), ("::/0", False)],
)
def test_network_that_is_none_holds_nothing(network, is_inside):
    """As on storage nodes (core/src/wire/authority.rs). The holder of the secret can sign any text."""
    identity = Identity(CLIENT, 1, 1, (), limits=Limits(networks=(network,)))
    assert identity.may_call_from("10.0.0.1") == is_inside


def test_revoked_token_is_refused_and_others_are_not():
    authority = Authority({0: SECRET})
    token, other = mint(SECRET), mint(SECRET)
    authority.set_revocations(revoked(token))
    with pytest.raises(Unauthenticated, match="revoked"):
        authority.verify(token)
    assert authority.verify(other)


def test_tokens_made_before_a_time_are_void_but_not_those_of_services():
    authority = Authority({0: SECRET})
    authority.set_revocations(revoked(before=[(0, 1000)]))
    with pytest.raises(Unauthenticated, match="of its time"):
        authority.verify(mint(SECRET, now_unix_s=999.5))
    assert authority.verify(mint(SECRET, now_unix_s=1000))
    assert authority.verify(mint(SECRET, role=SERVICE, now_unix_s=999))
    old = Claims(nonce=bytes(16)).SerializeToString()  # of a release that did not say when
    with pytest.raises(Unauthenticated, match="of its time"):
        authority.verify(Token(old, credentials.derive_key(SECRET, old, version=0)))


def test_token_for_another_cluster_with_the_same_secret_is_refused():
    token = mint(SECRET, limits=Limits(audience="a"))
    assert Authority({0: SECRET}, cluster="a").verify(token)
    with pytest.raises(Unauthenticated, match="another cluster"):
        Authority({0: SECRET}, cluster="b").verify(token)


def test_service_that_does_not_know_what_is_revoked_believes_services_alone():
    authority = Authority({0: SECRET}, waits=True)
    with pytest.raises(Unavailable, match="revoked"):
        authority.verify(mint(SECRET))
    assert authority.verify(mint(SECRET, role=SERVICE))
    authority.set_revocations(Revocations())
    assert authority.verify(mint(SECRET))


def test_token_of_each_key_is_believed_and_of_none_other():
    keys = {0: SECRET, 7: bytes(32)}
    for key_id, secret in keys.items():
        assert Authority(keys).verify(mint(secret, key_id=key_id)).key_id == key_id
    for key_id, secret in ((0, bytes(32)), (7, SECRET), (8, SECRET), (7, b"x" * 32)):
        with pytest.raises(Unauthenticated):
            Authority(keys).verify(mint(secret, key_id=key_id))


def ask(client):
    return client.call(methods.Meta.lookup, LookupRequest(parent=7, name=b"name"))


def test_connection_ends_when_its_token_is_revoked():
    async def play() -> None:
        authority = Authority({0: SECRET})
        server = LaneServer(bound(Service()), secret=authority)
        address = await server.start()
        void, good = mint(SECRET), mint(SECRET)
        try:
            with lane_client.LaneClient(address, void) as one, lane_client.LaneClient(address, good) as other:
                await asyncio.to_thread(ask, one)
                await asyncio.to_thread(ask, other)
                authority.set_revocations(revoked(void))
                with pytest.raises((Unavailable, Unauthenticated)):
                    await asyncio.to_thread(ask, one)
                with pytest.raises(Unauthenticated):
                    await asyncio.to_thread(ask, one)
                await asyncio.to_thread(ask, other)
        finally:
            await server.stop(grace_s=0)

    asyncio.run(play())


def test_connection_from_outside_the_networks_of_its_token_is_refused():
    async def play() -> None:
        server = LaneServer(bound(Service()), secret=SECRET)
        address = await server.start()
        inside = mint(SECRET, limits=Limits(networks=("127.0.0.0/8",)))
        outside = mint(SECRET, limits=Limits(networks=("10.0.0.0/8",)))
        try:
            with (
                lane_client.LaneClient(address, inside) as one,
                lane_client.LaneClient(address, outside) as other,
            ):
                await asyncio.to_thread(ask, one)
                with pytest.raises(Unauthenticated):
                    await asyncio.to_thread(ask, other)
        finally:
            await server.stop(grace_s=0)

    asyncio.run(play())


def test_call_over_grpc_from_outside_the_networks_of_its_token_is_refused():
    async def play() -> None:
        server = RpcServer(bound(Service()), secret=SECRET)
        address = await server.start()
        request = LookupRequest(parent=7, name=b"name")
        inside = mint(SECRET, limits=Limits(networks=("127.0.0.0/8",)))
        outside = mint(SECRET, limits=Limits(networks=("10.0.0.0/8",)))
        try:
            async with RpcClients(inside) as one, RpcClients(outside) as other:
                await one.call(address, methods.Meta.lookup, request)
                with pytest.raises(Unauthenticated, match=r"may not be used from 127\.0\.0\.1"):
                    await other.call(address, methods.Meta.lookup, request)
        finally:
            await server.stop(grace_s=0)

    asyncio.run(play())


def test_stream_of_a_revoked_token_ends():
    async def play() -> None:
        authority = Authority({0: SECRET})
        server = RpcServer(bound(Service()), secret=authority)
        address = await server.start()
        token = mint(SECRET, role=ADMIN)
        try:
            async with RpcClients(token) as clients:
                stream = clients.stream(address, methods.Meta.scan_inodes, ScanRequest(limit=1 << 20))
                await anext(stream)
                authority.set_revocations(revoked(token))
                with pytest.raises(Unauthenticated, match="revoked"):
                    async for _ in stream:
                        pass
        finally:
            await server.stop(grace_s=0)

    asyncio.run(play())
