"""Many changes in one request: each has its own outcome, and all that are made are made at once."""

import pytest

from luciola.errors import InvalidArgument, NotFound, Unavailable
from luciola.kv import MemoryEngine
from luciola.kv.faulty import Fault, FaultyEngine
from luciola.meta.operations.apply import CHANGES_MAX, DATA_BYTES_MAX
from luciola.wire.pb import meta_pb2 as pb

from .world import ALICE, World, check_store, refused

INLINE_BYTES = 4096


def test_files_are_made_with_their_contents(world):
    world.mkdir(b"d")
    made = world.apply((b"d/a", b"hello"), (b"d/empty", b""), (b"/d/b", b"x" * INLINE_BYTES))
    found = [world.stat(path) for path in (b"d/a", b"d/empty", b"d/b")]
    assert [inode.id for inode in found] == made
    assert [world.read(inode) for inode in found] == [b"hello", b"", b"x" * INLINE_BYTES]
    assert [inode.length for inode in found] == [5, 0, INLINE_BYTES]
    assert all(inode.is_inline and inode.link_count == 1 for inode in found)
    assert world.keys(b"S") == []
    check_store(world)


def test_one_that_is_refused_does_not_hinder_the_others(world):
    world.create(b"there", write=False)
    world.mkdir(b"d")
    before = world.stat(b"there")
    outcome = world.apply(
        (b"a", b"1"),
        (b"there", b"new"),
        (b"d", b""),
        (b"missing/b", b""),
        (b"there/c", b""),
        (b"big", b"x" * (INLINE_BYTES + 1)),
        (b"slash/", b""),
        (b"n" * 256, b""),
        (b"a", b"again"),
        (b"b", b"2"),
    )
    assert [each for each in outcome if isinstance(each, str)] == [
        "already_exists",
        "already_exists",
        "not_found",
        "not_a_directory",
        "invalid_argument",
        "is_a_directory",
        "invalid_argument",
        "already_exists",
    ]
    assert world.names() == [b"a", b"b", b"d", b"there"]
    assert (world.read(world.lookup(b"a")), world.read(world.lookup(b"b"))) == (b"1", b"2")
    assert world.stat(b"there") == before
    check_store(world)


def test_file_is_made_with_the_rights_of_a_create(world):
    world.mkdir(b"closed", permissions=0o755)
    world.mkdir(b"open", permissions=0o777)
    world.mkdir(b"group", permissions=0o777)
    world.set_attr(b"group", permissions=0o2777, gid=77)
    assert world.apply((b"closed/a", b"x"), user=ALICE) == ["permission_denied"]
    made = world.apply((b"open/a", b"x"), (b"group/a", b"x"), user=ALICE, permissions=0o640)
    assert all(isinstance(each, int) for each in made)
    assert world.names(world.stat(b"open").id) == [b"a"]
    for path in (b"open/a", b"group/a"):
        single = world.create(path + b"2", user=ALICE, permissions=0o640, write=False).inode
        inode = world.stat(path)
        assert (inode.permissions, inode.uid, inode.gid) == (single.permissions, single.uid, single.gid)


def test_content_that_is_written_takes_the_set_id_bits(world):
    world.mkdir(b"d", permissions=0o777)
    world.apply((b"d/with", b"x"), (b"d/without", b""), user=ALICE, permissions=0o4755)
    assert oct(world.stat(b"d/with").permissions) == oct(0o755)
    assert oct(world.stat(b"d/without").permissions) == oct(0o4755)


def test_request_sent_again_gets_its_answer_and_changes_nothing(world):
    first = world.apply((b"a", b"1"), (b"a", b"2"), sequence=77)
    assert first[1] == "already_exists"
    world.unlink(b"a")
    assert world.apply((b"a", b"1"), (b"a", b"2"), sequence=77) == first
    assert world.names() == []


@pytest.mark.parametrize("fault", [Fault.MAYBE_DONE, Fault.MAYBE_LOST, Fault.CONFLICT])
def test_request_whose_commit_fails_is_carried_out_once(fault):
    engine = FaultyEngine(MemoryEngine(), lambda _: Fault.NONE)
    world = World(engine)
    failing = engine.commits
    engine.plan = lambda number: fault if number == failing else Fault.NONE
    made = world.apply((b"a", b"1"), (b"b", b"2"))
    assert [world.lookup(name).id for name in (b"a", b"b")] == made
    check_store(world)


def test_limits(world):
    many = [(b"f%d" % number, b"") for number in range(CHANGES_MAX + 1)]
    with refused(InvalidArgument):
        world.apply(*many)
    assert world.names() == []
    assert len(world.apply(*many[:-1])) == CHANGES_MAX
    half = b"x" * (DATA_BYTES_MAX // 2)
    assert world.apply((b"p", half), (b"q", half)) == ["invalid_argument"] * 2
    with refused(InvalidArgument):
        world.apply((b"p", half), (b"q", half + b"x"))
    assert world.apply() == []


def test_change_of_a_kind_that_the_service_does_not_know_is_refused(world):
    reply = world.call("apply", pb.ApplyRequest(changes=[pb.Change()]))
    assert reply.results[0].error.code == "invalid_argument"


def test_failure_that_a_retry_may_mend_fails_the_whole_request(world):
    world.placer.set_tables([])
    world.mkdir(b"d")
    with refused(Unavailable):
        world.apply((b"a", b"1"), (b"missing/b", b""))
    with refused(NotFound):
        world.lookup(b"a")
    check_store(world)
