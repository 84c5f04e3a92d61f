"""The id of a client belongs to the token that used it first, and to those that renew that."""

import pytest

from luciola.errors import PermissionDenied
from luciola.wire import CLIENT, Identity
from luciola.wire.credentials import Limits
from luciola.wire.pb import meta_pb2 as pb
from unit.meta.world import ALICE, BOB

HERS = 77
ALICES = Identity(CLIENT, *ALICE, ())
BOBS = Identity(CLIENT, *BOB, ())
REFUSED = {"match": "belongs to another token"}


@pytest.fixture
def hers(world):
    """Her private file, which her client has open, and the request that made it."""
    world.mkdir(b"home", permissions=0o777)
    number = world.sequence + 1
    made = world.create(
        b"home/diary", permissions=0o600, read=True, user=ALICE, identity=ALICES, client=HERS, sequence=number
    )
    return number, made


def test_another_token_reads_nothing_under_the_id_of_a_client(world, hers):
    _, made = hers
    assert world.stat(at=made.inode.id, user=ALICE, identity=ALICES, client=HERS).id == made.inode.id
    with pytest.raises(PermissionDenied, **REFUSED):
        world.stat(at=made.inode.id, user=BOB, identity=BOBS, client=HERS)
    with pytest.raises(PermissionDenied, **REFUSED):
        world.open(at=made.inode.id, user=BOB, identity=BOBS, client=HERS)


def test_another_token_ends_neither_holds_nor_sessions_of_a_client(world, hers):
    _, made = hers
    for keep in (False, True):
        with pytest.raises(PermissionDenied, **REFUSED):
            world.hold(keep_holds=keep, user=BOB, identity=BOBS, client=HERS)
    closed = pb.CloseRequest(closes=[pb.CloseOne(inode=made.inode.id, session=made.session)])
    with pytest.raises(PermissionDenied, **REFUSED):
        world.call("close", closed, user=BOB, identity=BOBS, client=HERS)
    assert world.stat(at=made.inode.id, user=ALICE, identity=ALICES).others_write, "her session is there"


def test_another_token_gets_no_answer_of_a_client_and_voids_none_of_its_requests(world, hers):
    number, made = hers
    again = {"permissions": 0o600, "read": True, "client": HERS, "sequence": number}
    with pytest.raises(PermissionDenied, **REFUSED):
        world.create(b"home/diary", user=BOB, identity=BOBS, **again)
    assert world.create(b"home/diary", user=ALICE, identity=ALICES, **again).inode.id == made.inode.id


def test_a_token_with_other_limits_is_another_and_one_that_renews_is_not(world, hers):
    _, made = hers
    read_only = Identity(CLIENT, *ALICE, (), limits=Limits(read_only=True))
    with pytest.raises(PermissionDenied, **REFUSED):
        world.stat(at=made.inode.id, user=ALICE, identity=read_only, client=HERS)
    renewed = Identity(CLIENT, *ALICE, (5,), 1 << 40, b"another id", minted_unix_s=1 << 30)
    assert world.stat(at=made.inode.id, user=ALICE, identity=renewed, client=HERS).id == made.inode.id


def test_a_client_that_only_reads_owns_its_id_too(world):
    world.stat(user=ALICE, identity=ALICES, client=HERS)
    with pytest.raises(PermissionDenied, **REFUSED):
        world.stat(user=BOB, identity=BOBS, client=HERS)
