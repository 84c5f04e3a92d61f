"""Operations that overlap, as those of several meta processes over one store would, and conflict sets."""

import asyncio

import pytest

from luciola.errors import Error
from luciola.kv import MemoryEngine
from luciola.kv.faulty import Fault, FaultyEngine
from luciola.meta import schema
from luciola.meta.context import OperationContext, Request
from luciola.meta.operations.create import create
from luciola.meta.operations.mkdir import mkdir
from luciola.meta.operations.rename import rename
from luciola.meta.operations.rmdir import rmdir
from luciola.meta.operations.set_attr import set_attr
from luciola.meta.operations.unlink import unlink
from luciola.meta.permissions import User
from luciola.meta.replies import StoredReply
from luciola.wire.pb import meta_pb2 as pb

from .scenarios import SCENARIOS, SEQUENCE
from .world import CHUNK, World, check_store, dump

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}

# Operations over one prepared world that may meet; each changes something that another one reads.
MEETING = [scenario for scenario in SCENARIOS if scenario.prepare is BY_NAME["unlink the last"].prepare]

# Those that commit without waiting for chains first, and whose request does not depend on what they find.
READY = [scenario for scenario in MEETING if scenario.name != "truncate" and "xattr" not in scenario.name]


def attempt(world, operation, request):
    """One transaction of an operation, carried out but not committed."""
    asked = Request(request, User(0, 0, ()), 1, session=99)
    context = OperationContext(
        world.dependencies.shared, world.engine.begin(), asked, now_ns=world.clock.unix_ns()
    )
    operation(context, request)
    return context.txn


def path(text, at=1):
    return pb.Path(at=at, path=text)


def overlap(world, first, second):
    """Whether `second` is refused when `first` commits after both have read."""
    one, other = attempt(world, *first), attempt(world, *second)
    one.commit()
    try:
        other.commit()
    except Error as error:
        assert error.code == "conflict"
        return True
    return False


CREATE_A = (create, pb.CreateRequest(path=path(b"d/a"), write=True))
CREATE_B = (create, pb.CreateRequest(path=path(b"d/b"), write=True))
MKDIR_A = (mkdir, pb.MkdirRequest(path=path(b"d/a")))
MKDIR_B = (mkdir, pb.MkdirRequest(path=path(b"d/b")))
RMDIR = (rmdir, pb.RmdirRequest(path=path(b"d")))
CHMOD = (set_attr, pb.SetAttrRequest(path=path(b"d"), permissions=0o700))
UNLINK = (unlink, pb.UnlinkRequest(path=path(b"f")))
RENAME = (rename, pb.RenameRequest(source=path(b"f"), target=path(b"d/f")))
DOWN = (rename, pb.RenameRequest(source=path(b"d"), target=path(b"e/d")))
UP = (rename, pb.RenameRequest(source=path(b"e"), target=path(b"d/e")))
OPEN_F = (create, pb.CreateRequest(path=path(b"f"), write=True))


@pytest.mark.parametrize(
    ("first", "second", "conflict"),
    [
        (CREATE_A, CREATE_B, False),  # the rule that makes large directories fast
        (CREATE_A, CREATE_A, True),
        (CREATE_A, MKDIR_A, True),
        (CREATE_A, MKDIR_B, False),
        (MKDIR_A, MKDIR_B, True),  # both change the number of subdirectories
        (CREATE_A, RMDIR, True),
        (RMDIR, CREATE_A, True),
        (MKDIR_A, RMDIR, True),
        (RMDIR, MKDIR_A, True),
        (CHMOD, CREATE_A, True),  # permissions that were checked must still hold
        (CREATE_A, CHMOD, False),
        (UNLINK, RENAME, True),
        (RENAME, UNLINK, True),
        (UNLINK, UNLINK, True),
        (RENAME, RMDIR, True),
        (RMDIR, RENAME, True),
        (DOWN, UP, True),  # together they would cut a loop off the tree
        (UP, DOWN, True),
        (UNLINK, OPEN_F, True),
        (CREATE_A, UNLINK, False),
        (OPEN_F, OPEN_F, False),
    ],
)
def test_who_conflicts_with_whom(world, first, second, conflict):
    world.mkdir(b"d")
    world.mkdir(b"e")
    world.create(b"f", write=False)
    assert overlap(world, first, second) == conflict
    world.crash()  # these transactions went past the service
    check_store(world)


def test_create_reads_and_writes_what_the_page_says(world):
    number = world.mkdir(b"d").id
    transaction = attempt(world, *CREATE_A)
    assert transaction.read_keys == {schema.inode_key(number), schema.entry_key(number, b"a")}
    assert not transaction.read_ranges
    kinds = sorted(key[:1] for key in transaction.writes)
    assert kinds == [b"C", b"D", b"I", b"S", b"T"]
    assert schema.inode_key(number) not in transaction.writes


@pytest.mark.parametrize("other", MEETING, ids=lambda scenario: scenario.name)
@pytest.mark.parametrize("one", READY, ids=lambda scenario: scenario.name)
def test_overlapping_operations_are_as_if_one_came_first(one, other):
    """`other` is carried out, whole, between what `one` reads and what it commits."""
    found = _outcome(one, other, overlapping=True)
    if found != _outcome(one, other, overlapping=False):
        # Directories on the way are read without conflicts: the one that began first may have been first.
        assert found == _outcome(other, one, overlapping=False)


def _outcome(one, other, *, overlapping):
    engine = FaultyEngine(MemoryEngine(), lambda _: Fault.NONE)
    world = World(engine)
    one.prepare(world)
    replies = []

    def act(scenario, sequence):
        world.sequence += 100
        try:
            replies.append((scenario.name, type(_send(world, scenario, sequence)).__name__))
        except Error as error:
            replies.append((scenario.name, f"errno {error.errno}"))

    if overlapping:

        def plan(_):
            if not world.loop.is_running():
                engine.plan = lambda _: Fault.NONE
                act(other, SEQUENCE + 1)
            return Fault.NONE

        engine.plan = plan
        act(one, SEQUENCE)
    else:
        act(other, SEQUENCE + 1)
        act(one, SEQUENCE)
    assert len(replies) == 2
    result = sorted(replies), dump(world)
    check_store(world)
    world.close()
    return result


def _send(world, scenario, sequence):
    """The scenario's request, as another request than the one with the usual sequence."""
    caller = world.caller
    world.caller = lambda *args, **kwargs: caller(
        *args, **kwargs | ({"sequence": sequence} if kwargs.get("sequence") == SEQUENCE else {})
    )
    try:
        return scenario.act(world)
    finally:
        world.caller = caller


def test_many_truncations_and_writers_of_one_file(world):
    """Truncations of one file queue up; the last one that commits decides, and no old byte comes back."""
    inode, _ = world.chunked(b"f", b"x" * (3 * CHUNK))
    lengths = [CHUNK * 2 + 5, CHUNK + 1, 7, CHUNK, 2 * CHUNK]

    async def truncate(length):
        request = pb.SetAttrRequest(path=pb.Path(at=inode.id), length=length)
        request.caller.CopyFrom(world.caller())
        reply = world.service.set_attr(request, world.identity)
        reply = reply if isinstance(reply, StoredReply) else await reply
        return reply.message()

    async def all_():
        return await asyncio.gather(*(truncate(length) for length in lengths))

    replies = world.run(all_())
    assert sorted(reply.inode.truncate_version for reply in replies) == [1, 2, 3, 4, 5]
    final = world.stat(b"f")
    assert final.length == max(replies, key=lambda reply: reply.inode.truncate_version).inode.length
    shortest = min(lengths)
    assert world.read(world.set_attr(b"f", length=3 * CHUNK)) == b"x" * shortest + bytes(3 * CHUNK - shortest)
    check_store(world)


def test_a_write_that_is_acknowledged_while_the_file_is_truncated_is_not_hidden(world):
    """Its chunk survived the truncation, so it counts as written after it: the length says so."""
    inode, session = world.chunked(b"f", b"x" * (2 * CHUNK), close=False)
    world.open(b"f", write=True, client=2)
    original = world.control.remove_chunks
    left = [4]

    async def remove(*args, **kwargs):
        rest = await original(*args, **kwargs)
        left[0] -= 1
        if not left[0]:
            world.write(inode, 3 * CHUNK, b"late")
        return rest

    world.control.remove_chunks = remove
    world.set_attr(b"f", length=0, client=2)
    world.clock.advance(1)
    assert world.stat(b"f", client=3).length == 3 * CHUNK + 4
    world.close_one(inode.id, session, length=3 * CHUNK + 4)
    assert world.stat(b"f", client=3).length == 3 * CHUNK + 4
    assert world.read(world.stat(b"f", client=3)) == bytes(3 * CHUNK) + b"late"


def test_cancelled_truncation_is_completed(world):
    inode, _ = world.chunked(b"f", b"x" * (2 * CHUNK))

    async def cancel():
        begun = world.loop.create_future()
        original = world.control.remove_chunks

        async def remove(*args, **kwargs):
            if not begun.done():
                begun.set_result(None)
            await world.loop.create_future()

        world.control.remove_chunks = remove
        request = pb.SetAttrRequest(path=pb.Path(at=inode.id), length=5)
        request.caller.CopyFrom(world.caller())
        task = asyncio.ensure_future(world.service.set_attr(request, world.identity))
        await begun
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        world.control.remove_chunks = original

    world.run(cancel())
    assert len(world.keys(b"P")) == 1
    assert world.stat(b"f").length == 5
    assert world.keys(b"P") == []
    check_store(world)
