"""Requests that no honest client sends: every one is answered or refused with an operating error, and harms nothing."""

import asyncio
import random

import pytest
from google.protobuf.descriptor import FieldDescriptor

from luciola.errors import Error
from luciola.wire import ADMIN, CLIENT, TRUSTED, Identity, methods
from luciola.wire.pb import meta_pb2 as pb

from .world import CHUNK, World, check_store, dump

EDGES = (
    0,
    1,
    2,
    15,
    16,
    17,
    18,
    19,
    20,
    255,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
BYTES = (
    b"",
    b"a",
    b"d",
    b"d/f",
    b"link",
    b".",
    b"..",
    b"/",
    b"//",
    b"a\0b",
    b"\xff" * 255,
    b"x" * 256,
    b"y/" * 3000,
    b"user.a",
    b"trusted.a",
    b"system.posix_acl_access",
    bytes(70_000),
)
BOUNDS = {
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
}


def fill(message, dice, depth=0) -> None:
    """Puts edge values into some fields."""
    for field in message.DESCRIPTOR.fields:
        if dice.random() < 0.3:
            continue
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            if field.is_repeated:
                for _ in range(dice.randrange(4)):
                    fill(getattr(message, field.name).add(), dice, depth + 1)
            else:
                getattr(message, field.name).SetInParent()
                fill(getattr(message, field.name), dice, depth + 1)
        elif field.is_repeated:
            getattr(message, field.name).extend(_value(field, dice) for _ in range(dice.randrange(4)))
        else:
            setattr(message, field.name, _value(field, dice))


def _value(field, dice):
    if field.type == FieldDescriptor.TYPE_BYTES:
        return dice.choice(BYTES)
    if field.type == FieldDescriptor.TYPE_STRING:
        return dice.choice(("", "test", "\0", "x" * 1000))
    if field.type == FieldDescriptor.TYPE_BOOL:
        return dice.random() < 0.5
    if field.type == FieldDescriptor.TYPE_ENUM:
        return dice.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 99, -1))
    low, high = BOUNDS[field.type]
    return min(max(dice.choice(EDGES) * dice.choice((1, 1, 1, -1)), low), high)


async def send(world, method, request, identity):
    handler = getattr(world.service, method.attribute)
    reply = handler(request, identity)
    if method.streams:
        return [item async for item in reply]
    return await reply if asyncio.iscoroutine(reply) else reply


@pytest.mark.parametrize("seed", range(4))
def test_every_handler_answers_anything(seed):
    dice = random.Random(seed)
    world = World()
    world.mkdir(b"d")
    world.create(b"d/f")
    world.chunked(b"a", b"x" * (CHUNK + 1), close=False)
    world.symlink(b"link", b"link")
    known = methods.methods_of(methods.Meta)
    answered = refused = 0
    for _ in range(1000):
        method = dice.choice(known)
        request = method.request()
        fill(request, dice)
        role = dice.choice((CLIENT, TRUSTED, TRUSTED, ADMIN))
        identity = Identity(role, dice.choice((0, 1000)), 1000, ())
        try:
            reply = world.run(send(world, method, request, identity))
            answered += 1
            for message in reply if method.streams else [reply]:
                assert len(message.SerializeToString()) < 8 << 20
        except Error:
            refused += 1
    assert answered > 100
    assert refused > 100
    world.members.known = {1}
    for _ in range(8):
        world.clock.advance(31)
        world.collect(200)
    check_links(world)


def check_links(world):
    check_store(world)
    dump(world)


@pytest.mark.parametrize("number", [0, 5, 2**63, 2**64 - 1])
def test_ids_that_do_not_exist(world, number):
    for name, request in (
        ("lookup", pb.LookupRequest(parent=number or 5, name=b"x")),
        ("list", pb.ListRequest(inode=number or 5)),
        ("sync", pb.SyncRequest(inode=number)),
        ("get_xattr", pb.XattrRequest(inode=number, name=b"user.a")),
        ("real_path", pb.RealPathRequest(inode=number or 5)),
    ):
        with pytest.raises(Error) as caught:
            world.call(name, request)
        assert caught.value.errno == 2
    world.call("hold", pb.HoldRequest(inodes=[number]))


def test_clients_and_sequences_at_their_ends(world):
    world.mkdir(b"a", client=2**64 - 1, sequence=2**64 - 1)
    world.mkdir(b"a", client=2**64 - 1, sequence=2**64 - 1)
    assert len(world.keys(b"R")) == 1
