"""Changes of names of all kinds in one request, with ids that the client has reserved."""

from itertools import pairwise

import pytest

from luciola.errors import InvalidArgument, NoSpace, Unavailable
from luciola.kv import MemoryEngine
from luciola.kv.faulty import Fault, FaultyEngine
from luciola.meta import execution, schema
from luciola.meta.allocator import RANGE
from luciola.meta.bootstrap import raise_generation
from luciola.meta.operations.apply import CHANGES_MAX, PAST_NS
from luciola.meta.reservations import COUNT_MAX
from luciola.wire.pb import meta_pb2 as pb

from .watched import WatchedWorld
from .world import ALICE, World, check_store, dump, refused

NS_PER_S = 1_000_000_000


def at(name, directory=1):
    return pb.Path(at=directory, path=name)


def create(name, inode=0, *, directory=1, write=False, **more):
    request = pb.CreateRequest(path=at(name, directory), permissions=0o644, exclusive=True, write=write)
    return pb.Change(create=request, new_inode=inode, **more)


def small(name, inode=0, data=b"x", **more):
    return pb.Change(
        create_small=pb.CreateSmall(path=at(name), permissions=0o644, data=data), new_inode=inode, **more
    )


def mkdir(name, inode=0, **more):
    return pb.Change(mkdir=pb.MkdirRequest(path=at(name), permissions=0o755), new_inode=inode, **more)


def symlink(name, target, inode=0, **more):
    return pb.Change(symlink=pb.SymlinkRequest(path=at(name), target=target), new_inode=inode, **more)


def unlink(name, found=0, *, directory=1):
    return pb.Change(unlink=pb.UnlinkRequest(path=at(name, directory)), found=found)


def rmdir(name, found=0):
    return pb.Change(rmdir=pb.RmdirRequest(path=at(name)), found=found)


def rename(source, target, found=0, replaced=0, *, exchange=False):
    request = pb.RenameRequest(source=at(source), target=at(target), exchange=exchange)
    return pb.Change(rename=request, found=found, replaced=replaced)


def apply(world, *changes, with_attributes=False, **who):
    """What the service says of each change."""
    request = pb.ApplyRequest(changes=changes, with_attributes=with_attributes)
    return world.call("apply", request, **who).results


def codes(results):
    return [result.error.code for result in results]


def reserve(world, count=16, **who):
    """The ids, as the client would give them to its inodes."""
    reply = world.call("reserve_inodes", pb.ReserveInodesRequest(count=count), **who)
    assert reply.count == count
    return iter(range(reply.first, reply.first + reply.count))


def test_changes_are_carried_out_in_their_order(world):
    ids = reserve(world)
    made = [next(ids) for _ in range(6)]
    results = apply(
        world,
        mkdir(b"d", made[0]),
        create(b"f", made[1], directory=made[0]),
        small(b"a", made[2]),
        symlink(b"s", b"a", made[3]),
        rename(b"a", b"b"),
        small(b"a", made[4], b"new"),
        rename(b"a", b"b"),
        unlink(b"s"),
        mkdir(b"gone", made[5]),
        rmdir(b"gone"),
    )
    assert codes(results) == [""] * 10
    assert [result.inode for result in results] == [*made[:4], 0, made[4], 0, 0, made[5], 0]
    assert world.names() == [b"b", b"d"]
    assert world.names(made[0]) == [b"f"]
    assert world.read(world.lookup(b"b")) == b"new"
    check_store(world)
    world.clock.advance(2)
    world.collect()
    check_store(world)


def test_namespace_is_that_of_single_requests(world):
    single = World()
    apply(
        world,
        mkdir(b"d"),
        create(b"f"),
        small(b"g", data=b"hello"),
        symlink(b"s", b"d/f"),
        rename(b"f", b"d/f"),
        unlink(b"g"),
        small(b"g", data=b"again"),
    )
    single.mkdir(b"d")
    single.create(b"f", write=False)
    single.apply((b"g", b"hello"))
    single.symlink(b"s", b"d/f")
    single.rename(b"f", b"d/f")
    single.unlink(b"g")
    single.apply((b"g", b"again"))
    names = [seen[:5] + seen[6:] for seen in dump(world).values()]
    assert names == [seen[:5] + seen[6:] for seen in dump(single).values()]
    assert dump(world).keys() == dump(single).keys()


def test_change_that_is_refused_does_not_hinder_the_others(world):
    ids = reserve(world)
    world.mkdir(b"full")
    world.create(b"full/f", write=False)
    taken = world.create(b"taken", write=False).inode.id
    before = dump(world)
    results = apply(
        world,
        create(b"taken", next(ids)),
        mkdir(b"taken", next(ids)),
        symlink(b"e", b""),
        unlink(b"missing"),
        unlink(b"full"),
        rmdir(b"full"),
        rename(b"missing", b"x"),
        rename(b"taken", b"full"),
        create(b"n" * 256, next(ids)),
        create(b"f", 12345),
        create(b"f", taken),
        pb.Change(create=pb.CreateRequest(path=at(b"f"))),
        pb.Change(create=pb.CreateRequest(path=at(b"f"), exclusive=True, read=True)),
        pb.Change(mkdir=pb.MkdirRequest(path=at(b"f/g"), parents=True)),
        pb.Change(unlink=pb.UnlinkRequest(path=at(b"taken")), new_inode=next(ids)),
    )
    assert codes(results) == [
        "already_exists",
        "already_exists",
        "not_found",
        "not_found",
        "is_a_directory",
        "not_empty",
        "not_found",
        "is_a_directory",
        "invalid_argument",
        "invalid_argument",
        "invalid_argument",
        "invalid_argument",
        "invalid_argument",
        "invalid_argument",
        "invalid_argument",
    ]
    assert dump(world) == before
    check_store(world)


def test_change_after_a_directory_was_removed_in_the_same_request_is_refused(world):
    directory = world.mkdir(b"d").id
    results = apply(world, create(b"f", directory=directory), unlink(b"f", directory=directory), rmdir(b"d"))
    assert codes(results) == ["", "", ""]
    directory = world.mkdir(b"d").id
    results = apply(
        world, unlink(b"missing", directory=directory), rmdir(b"d"), create(b"f", directory=directory)
    )
    assert codes(results) == ["not_found", "", "not_found"]
    check_store(world)
    directory = world.mkdir(b"d").id
    world.mkdir(b"e")
    replaces = rename(b"e", b"d")
    results = apply(
        world, unlink(b"missing", directory=directory), replaces, create(b"f", directory=directory)
    )
    assert codes(results) == ["not_found", "", "not_found"]
    check_store(world)


def test_name_that_is_another_inodes_by_now_is_left_alone(world):
    mine = world.create(b"f", write=False).inode.id
    world.unlink(b"f")
    other = world.create(b"f", write=False).inode.id
    third = world.create(b"g", write=False).inode.id
    directory = world.mkdir(b"d").id
    results = apply(
        world,
        unlink(b"f", mine),
        rmdir(b"d", mine),
        rename(b"f", b"h", mine),
        rename(b"f", b"g", other),
        rename(b"f", b"g", other, mine),
        rename(b"missing", b"g", other, third),
    )
    assert codes(results) == ["not_found"] * 3 + ["already_exists", "not_found", "not_found"]
    assert world.names() == [b"d", b"f", b"g"]
    results = apply(
        world, rename(b"f", b"g", other, third), rename(b"g", b"f", other), rmdir(b"d", directory)
    )
    assert codes(results) == ["", "", ""]
    assert apply(world, unlink(b"f", other))[0].error.code == ""
    assert world.names() == []


def test_files_are_opened_for_writing(world):
    results = apply(world, create(b"a", write=True), create(b"b", write=True), create(b"c"))
    assert results[0].session
    assert results[1].session
    assert not results[2].session
    for result in results[:2]:
        _, error = world.close_one(result.inode, result.session, length=5)
        assert not error.code
    assert world.stat(b"a").length == 5
    assert world.keys(b"S") == []
    check_store(world)


def test_files_open_for_writing_are_limited_within_a_request(world, monkeypatch):
    world.create(b"first", write=True)
    monkeypatch.setattr(execution, "SESSIONS_MAX", 3)
    results = apply(
        world, create(b"a", write=True), create(b"b", write=True), create(b"c", write=True), create(b"d")
    )
    assert codes(results) == ["", "", "invalid_argument", ""]
    assert results[2].error.errno == 24  # EMFILE
    assert world.names() == [b"a", b"b", b"d", b"first"]
    check_store(world)


def test_attributes_come_on_request_also_when_it_is_sent_again(world):
    ids = reserve(world)
    changes = [create(b"f", next(ids), write=True), mkdir(b"d", next(ids)), symlink(b"s", b"f"), small(b"g")]
    first = apply(world, *changes, unlink(b"g"), with_attributes=True, sequence=900)
    assert [each.attributes for each in first[:3]] == [world.lookup(name) for name in (b"f", b"d", b"s")]
    assert first[3].attributes.link_count == 0
    assert first[2].attributes.symlink_target == b"f"
    world.set_attr(b"f", permissions=0o600)
    world.clock.advance(2)
    world.collect()
    again = apply(world, *changes, unlink(b"g"), with_attributes=True, sequence=900)
    assert [each.attributes for each in again[:3]] == [world.lookup(name) for name in (b"f", b"d", b"s")]
    assert again[0].attributes.permissions == 0o600
    assert not again[3].HasField("attributes")  # it was collected
    assert [(each.inode, each.session) for each in again] == [(each.inode, each.session) for each in first]
    assert not apply(world, small(b"h"))[0].HasField("attributes")


def test_user_gets_no_name_and_no_bytes_that_it_may_not_read(world):
    world.mkdir(b"d", permissions=0o777)
    request = pb.CreateSmall(path=at(b"d/f"), permissions=0o200, data=b"secret")
    link = pb.SymlinkRequest(path=at(b"d/s"), target=b"there")
    results = apply(
        world, pb.Change(create_small=request), pb.Change(symlink=link), with_attributes=True, user=ALICE
    )
    assert results[0].attributes.bytes_withheld
    assert not results[0].attributes.inline_data
    assert results[1].attributes.symlink_target == b"there"


@pytest.mark.parametrize("fault", [Fault.MAYBE_DONE, Fault.MAYBE_LOST, Fault.CONFLICT])
def test_request_whose_commit_fails_is_carried_out_once(fault):
    engine = FaultyEngine(MemoryEngine(), lambda _: Fault.NONE)
    world = World(engine)
    ids = reserve(world)
    world.create(b"old", write=False)
    failing = engine.commits
    engine.plan = lambda number: fault if number == failing else Fault.NONE
    results = apply(
        world,
        create(b"a", next(ids), write=True),
        rename(b"old", b"new"),
        mkdir(b"d", next(ids)),
        unlink(b"new"),
    )
    assert codes(results) == [""] * 4
    assert world.names() == [b"a", b"d"]
    check_store(world)


def test_request_is_recognised_by_the_next_process(world):
    ids = reserve(world)
    changes = [create(b"a", next(ids), write=True), mkdir(b"d", next(ids))]
    first = apply(world, *changes, sequence=500)
    world.crash()
    again = apply(world, *changes, sequence=500)
    assert [(each.inode, each.session, each.error.code) for each in again] == [
        (each.inode, each.session, "") for each in first
    ]
    assert codes(apply(world, create(b"b", next(ids)), sequence=501)) == [""]  # the reservation is known too
    check_store(world)


def test_limits(world):
    with refused(InvalidArgument):
        apply(world, *(create(b"%d" % number) for number in range(CHANGES_MAX + 1)))
    for count in (0, COUNT_MAX + 1):
        with refused(InvalidArgument):
            reserve(world, count)
    with refused(InvalidArgument):
        reserve(world, client=0)
    assert world.names() == []


def test_times_are_those_of_the_client_within_bounds(world):
    now_ns = world.clock.unix_ns()
    world.clock.advance(1000)
    now_ns = world.clock.unix_ns()
    wanted = (now_ns - NS_PER_S, now_ns + NS_PER_S, now_ns - PAST_NS - NS_PER_S, 0)
    names = (b"past", b"future", b"long ago", b"unset")
    apply(world, *(create(name, time_ns=when) for name, when in zip(names, wanted, strict=True)))
    past, future, long_ago, unset = (world.lookup(name) for name in names)
    assert past.mtime_ns == past.ctime_ns == past.birth_ns == past.atime_ns == wanted[0]
    assert now_ns <= future.mtime_ns < now_ns + NS_PER_S
    assert now_ns - PAST_NS <= long_ago.mtime_ns <= now_ns - PAST_NS + CHANGES_MAX
    assert now_ns <= unset.mtime_ns < now_ns + NS_PER_S


def test_times_of_a_file_never_go_back(world):
    made = [result.inode for result in apply(world, *(create(b"%d" % each) for each in range(8)))]
    last = world.stat(at=made[-1])
    assert world.set_attr(b"7", permissions=0o600).ctime_ns > last.ctime_ns


def test_times_of_a_directory_grow_from_request_to_request(world):
    """Also where the clock does not: a change number that stays would hide an entry from caches."""
    seen = []
    for number in range(5):
        apply(world, *(create(b"%d-%d" % (number, each)) for each in range(8)))
        seen.append(world.stat(b"").change)
        world.create(b"s%d" % number, write=False)
        seen.append(world.stat(b"").change)
    assert seen == sorted(set(seen))


# Reserved ids.


def test_id_is_its_clients_and_is_used_once(world):
    ids = reserve(world, client=7)
    first, second, third = next(ids), next(ids), next(ids)
    assert codes(apply(world, create(b"a", first), client=8)) == ["invalid_argument"]
    assert codes(apply(world, create(b"a", second), create(b"b", second), client=7)) == [
        "",
        "invalid_argument",
    ]
    apply(world, unlink(b"a"), client=7)
    world.clock.advance(2)
    world.collect()
    world.crash()
    for used in (first, second):  # passed over, and used
        assert codes(apply(world, create(b"c", used), client=7)) == ["invalid_argument"]
    assert codes(apply(world, create(b"c", third), client=7)) == [""]
    check_store(world)


def test_id_of_a_change_that_was_refused_may_be_used(world):
    number = next(reserve(world))
    world.create(b"taken", write=False)
    assert codes(apply(world, create(b"taken", number), create(b"f", number))) == ["already_exists", ""]


def test_last_two_ranges_are_kept(world):
    first, second = reserve(world), reserve(world)
    assert codes(apply(world, create(b"a", next(second)), create(b"b", next(first)))) == ["", ""]
    third = reserve(world)
    assert codes(apply(world, create(b"c", next(first)))) == ["invalid_argument"]
    assert codes(apply(world, create(b"c", next(second)), create(b"d", next(third)))) == ["", ""]


def test_range_that_is_used_up_makes_room_for_another(world):
    first, second = reserve(world, 1), reserve(world)
    apply(world, create(b"a", next(first)))
    third = reserve(world)
    assert codes(apply(world, create(b"b", next(second)), create(b"c", next(third)))) == ["", ""]


def test_no_id_is_handed_out_twice(world):
    """Also where a range of the store's ends, and the next one is fetched meanwhile."""

    async def reserve_many() -> list[range]:
        ranges = []
        for client in range(1, 3 * RANGE // COUNT_MAX):
            request = pb.ReserveInodesRequest(caller=world.caller(client=client), count=COUNT_MAX - client)
            reply = await world.service.reserve_inodes(request, world.identity)
            assert reply.count == COUNT_MAX - client
            ranges.append(range(reply.first, reply.first + reply.count))
        return ranges

    ranges = sorted(world.run(reserve_many()), key=lambda ids: ids.start)
    assert all(before.stop <= after.start for before, after in pairwise(ranges))
    assert world.create(b"f", write=False).inode.id >= ranges[-1].stop


def test_request_for_ids_that_is_sent_again_gets_the_same(world):
    first = world.call("reserve_inodes", pb.ReserveInodesRequest(count=5), sequence=77)
    world.crash()
    assert world.call("reserve_inodes", pb.ReserveInodesRequest(count=5), sequence=77) == first


def test_listing_by_cookies_that_is_past_a_reserved_id_shows_what_gets_it(world):
    number = next(reserve(world))
    world.create(b"later", write=False)
    page = world.list(after_cookie=0)
    apply(world, create(b"f", number), small(b"g", next(reserve(world))))
    rest = world.list(after_cookie=page.next_cookie - 1)
    assert [entry.name for entry in rest.entries] == [b"f", b"g"]
    for name in (b"f", b"g"):
        world.rename(name, name + b"2")
    check_store(world)


def test_count_of_inodes_is_right_with_ids_of_earlier(world, monkeypatch):
    ids = reserve(world)
    for number in range(20):
        world.mkdir(b"%02d" % number)
    apply(world, create(b"a", next(ids)), create(b"b", next(ids)))
    check_store(world)
    monkeypatch.setattr("luciola.meta.inode_counter.PAGE", 4)
    counter = world.dependencies.inode_counter
    counting = counter.count_all(world.engine)
    for _ in range(3):
        counting.send(None)
    apply(world, create(b"c", next(ids)))
    world.create(b"new", write=False)
    with pytest.raises(StopIteration):
        while True:
            counting.send(None)
    check_store(world)


def test_reservations_go_with_their_client(world):
    reserve(world, client=5)
    assert world.keys(schema.RESERVATIONS)
    world.dependencies.requests.end([5])
    world.run(world.collector.forget_requests())
    assert not world.keys(schema.RESERVATIONS)


def test_reservations_end_when_the_loss_of_a_newer_state_is_accepted(world):
    """The newer state may have used them, and their inodes may be known to clients."""
    ids = reserve(world)
    world.run(raise_generation(world.engine, 1, clock=world.clock))
    world.crash()
    assert codes(apply(world, create(b"f", next(ids)))) == ["invalid_argument"]


def test_reservations_end_when_a_dump_is_loaded(world):
    ids = reserve(world)
    world.run(
        world.service.begin_load(
            pb.BeginLoadRequest(
                header=pb.DumpHeader(format=1, cluster="other", next_inode=1000, next_content=1000),
                new_contents=True,
            ),
            world.identity,
        )
    )
    with refused(Unavailable):
        apply(world, create(b"f", next(ids)))
    assert not world.keys(schema.RESERVATIONS)


def test_removal_beside_a_create_does_not_open_the_reserve_of_a_full_disk():
    class FullEngine(MemoryEngine):
        is_full = False

        def apply(self, transaction):
            if self.is_full and not transaction.may_use_reserve:
                raise NoSpace("the disk is full")
            return super().apply(transaction)

    engine = FullEngine()
    world = World(engine)
    for name in (b"a", b"b"):
        world.create(name, write=False)
    engine.is_full = True
    with refused(NoSpace):
        apply(world, unlink(b"a"), create(b"c"))
    assert world.names() == [b"a", b"b"]
    assert codes(apply(world, unlink(b"a"), unlink(b"b"))) == ["", ""]


def test_watcher_sees_each_change(tmp_path):
    world = WatchedWorld()
    ids = reserve(world)
    world.mkdir(b"old")
    world.create(b"x", write=False)
    world.create(b"y", write=False)
    start = world.watch().position
    apply(
        world,
        create(b"a", next(ids), write=True),
        mkdir(b"d", next(ids)),
        symlink(b"s", b"a"),
        rename(b"a", b"b"),
        unlink(b"s"),
        unlink(b"missing"),
        rename(b"x", b"y", exchange=True),
        create(b"m", next(ids)),
        create(b"n", next(ids)),
        rename(b"m", b"n", exchange=True),
        small(b"c", next(ids)),
        rmdir(b"old"),
        unlink(b"c"),
    )
    shown = [
        (each.kind, each.path, each.old_path, each.exchanged) for each in world.watch(after=start).changes
    ]
    assert shown == [
        (pb.CHANGE_CREATE, b"a", b"", False),
        (pb.CHANGE_CREATE, b"d", b"", False),
        (pb.CHANGE_CREATE, b"s", b"", False),
        (pb.CHANGE_RENAME, b"b", b"a", False),
        (pb.CHANGE_REMOVE, b"s", b"", False),
        (pb.CHANGE_RENAME, b"y", b"x", True),
        (pb.CHANGE_CREATE, b"m", b"", False),
        (pb.CHANGE_CREATE, b"n", b"", False),
        (pb.CHANGE_RENAME, b"n", b"m", True),
        (pb.CHANGE_CREATE, b"c", b"", False),
        (pb.CHANGE_REMOVE, b"old", b"", False),
        (pb.CHANGE_REMOVE, b"c", b"", False),
    ]
