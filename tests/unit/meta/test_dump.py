"""Dump and load: a namespace that is loaded from a dump is the one that was dumped."""

import asyncio
import io
import random

import pytest

from luciola.cli.dump_text import TextReader, TextWriter
from luciola.cli.load import without_chunks
from luciola.errors import AlreadyExists, Busy, InvalidArgument, NotEmpty, NotFound, Unavailable
from luciola.kv import MemoryEngine
from luciola.kv.rocksdb import RocksEngine
from luciola.meta import schema
from luciola.meta.background import collect_once
from luciola.meta.bootstrap import raise_generation
from luciola.meta.dump import BATCH_RECORDS, DUMPS_MAX, SLICE_RECORDS
from luciola.meta.load import RECORDS_MAX
from luciola.meta.quarantine import REMOVALS_MAX
from luciola.wire import SERVICE, RpcClients, RpcServer, methods, mint
from luciola.wire.pb import meta_pb2 as pb
from luciola.wire.pb.common_pb2 import Empty

from .test_crash import PowerEngine, lose_power
from .world import CHAINS, CHUNK, World, check_store, dump, refused

NAMES = (b"plain", b"new\nline", b"\xff\xfe", b'"quoted"\\', "grün".encode(), b"\x01\x7f", b"n" * 255, b"-")


@pytest.fixture(params=["from memory to rocksdb", "from rocksdb to memory"])
def engines(request, tmp_path):
    """An engine that is dumped, and one of another kind that is loaded."""
    rocksdb = RocksEngine(tmp_path, cached=schema.INODES, create=True)
    pair = [MemoryEngine(), rocksdb]
    yield pair if request.param == "from memory to rocksdb" else pair[::-1]
    rocksdb.close()


def records(world, *, stored_lengths: bool = False) -> list[pb.DumpRecord]:
    """A dump of the namespace."""
    request = pb.DumpRequest(stored_lengths=stored_lengths)

    async def take():
        batches = world.service.dump(request, world.identity)
        return [record async for batch in batches for record in batch.records]

    return world.run(take())


def text(found) -> bytes:
    output = io.BytesIO()
    writer = TextWriter(output)
    for record in found:
        writer.write(record)
    return output.getvalue()


def begin(world, found, *, new_contents=False) -> pb.BeginLoadReply:
    request = pb.BeginLoadRequest(header=found[0].header, new_contents=new_contents)
    return world.run(world.service.begin_load(request, world.identity))


def put(world, begun, found, *, size=100):
    """Loads records between header and trailer; the files that were placed."""
    placed = []
    for first in range(0, len(found), size):
        request = pb.LoadRequest(load=begun.load, records=found[first : first + size])
        placed += world.run(world.service.load(request, world.identity)).placed
    return placed


def finish(world, begun, trailer):
    world.run(
        world.service.finish_load(pb.FinishLoadRequest(load=begun.load, trailer=trailer), world.identity)
    )


def load(world, found, *, new_contents=False):
    begun = begin(world, found, new_contents=new_contents)
    placed = put(world, begun, found[1:-1])
    finish(world, begun, found[-1].trailer)
    return placed


def successor(world, engine=None) -> World:
    """The same cluster, whose metadata store was lost: an empty one of the next generation, the chunks as they were."""
    empty = World(engine or MemoryEngine())
    empty.run(raise_generation(empty.engine, 2, clock=empty.clock))
    empty.control = world.control
    empty.start()
    return empty


def populate(world, dice) -> None:
    """A namespace with some of everything."""
    directories = [b""]
    files = []
    for number in range(60):
        directory = dice.choice(directories)
        name = dice.choice(NAMES)[:200] + b"%d" % number
        path = directory + b"/" + name if directory else name
        user = dice.choice(((0, 0), (1000, 1000)))
        kind = dice.randrange(8)
        if kind <= 1:
            layout = dice.choice(
                (None, pb.Layout(stripe=2, inline_bytes=0), pb.Layout(chunk_bytes=2 * CHUNK))
            )
            world.mkdir(path, permissions=dice.choice((0o755, 0o1777, 0o2770)), layout=layout)
            directories.append(path)
        elif kind == 2:
            world.symlink(path, dice.choice(NAMES))
        elif kind == 3:
            world.mknod(
                path, dice.choice((pb.FIFO, pb.SOCKET, pb.CHAR_DEVICE)), device=dice.randrange(1 << 20)
            )
        elif kind == 4 and files:
            world.link(dice.choice(files), path)
        elif kind == 5:
            world.chunked(path, dice.randbytes(dice.choice((1, CHUNK, 3 * CHUNK + 7))))
            files.append(path)
        else:
            reply = world.create(path, layout=pb.Layout(inline_bytes=4096))
            data = dice.choice((b"", b"text\n", dice.randbytes(100)))
            base = reply.inode.change
            _, error = world.close_one(
                reply.inode.id, reply.session, has_inline=True, inline_data=data, inline_base=base
            )
            assert not error.code, error
            files.append(path)
        inode = world.lookup(name, parent=world.stat(directory).id)
        if dice.random() < 0.3 and inode.type in (pb.REGULAR, pb.DIRECTORY):
            world.xattr("set", inode.id, b"user.\xff%d" % number, dice.randbytes(dice.choice((0, 5, 3000))))
        if dice.random() < 0.3 and inode.type != pb.SYMLINK:
            times = {"atime_ns": dice.choice((-1, 0, 10**18 + 7)), "mtime_ns": dice.choice((-(10**9) - 1, 5))}
            world.set_attr(
                path, uid=user[0], gid=user[1], permissions=dice.choice((0, 0o4755, 0o640)), **times
            )
    if files:
        world.set_attr(files[0], length=10 * CHUNK)  # ends in a hole


@pytest.mark.parametrize("seed", range(6))
def test_loaded_namespace_is_dumped_as_the_same_text(engines, seed):
    source, target = engines
    world = World(source)
    populate(world, random.Random(seed))
    found = records(world)
    written = text(found)

    other = successor(world, target)
    loaded = list(TextReader(io.BytesIO(written)))
    assert loaded == found
    load(other, loaded)
    assert dump(other) == dump(world)
    check_store(other)
    again = text(records(other))
    assert again.splitlines()[1:-1] == written.splitlines()[1:-1]
    assert other.dependencies.inode_counter.count == found[-1].trailer.inodes


def test_dump_is_of_one_moment_while_requests_are_served(world):
    for number in range(3 * BATCH_RECORDS):
        world.create(b"f%04d" % number, write=False)
    before = dump(world)
    stream = world.service.dump(pb.DumpRequest(), world.identity)

    async def take():
        first = await anext(stream)
        return [*first.records]

    found = world.run(take())
    assert len(found) == BATCH_RECORDS
    for number in range(3 * BATCH_RECORDS):
        world.rename(b"f%04d" % number, b"g%04d" % number)
    world.create(b"later")

    async def rest():
        return [record async for batch in stream for record in batch.records]

    found += world.run(rest())
    other = successor(world)
    load(other, found)
    assert dump(other) == before


def test_requests_have_their_turn_during_a_dump(world):
    for number in range(3 * BATCH_RECORDS):
        world.create(b"f%04d" % number, write=False)
    turns = 0

    async def count():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def both():
        counting = asyncio.ensure_future(count())
        taken = [
            record
            async for batch in world.service.dump(pb.DumpRequest(), world.identity)
            for record in batch.records
        ]
        counting.cancel()
        return taken

    found = world.run(both())
    assert turns >= len(found) // SLICE_RECORDS


def test_file_that_is_written_is_dumped_with_all_that_was_acknowledged(world):
    inode, _ = world.chunked(b"f", b"x" * CHUNK, close=False)
    world.write(inode, CHUNK, b"y" * 100)  # acknowledged by the chains, not yet reported
    (found,) = [record.inode for record in records(world) if record.inode.content == inode.content]
    assert found.length == CHUNK + 100
    assert found.open_for_writing
    found = [
        each.inode for each in records(world, stored_lengths=True) if each.inode.content == inode.content
    ]
    assert [(each.length, each.open_for_writing) for each in found] == [(CHUNK, True)]


def dump_beside(world, change) -> list[pb.Inode]:
    """The inodes of a dump; `change` is made after its moment, before the chains are asked about the newest files."""
    stream = world.service.dump(pb.DumpRequest(), world.identity)

    async def first():
        return [*(await anext(stream)).records]

    async def rest():
        return [record async for batch in stream for record in batch.records]

    found = world.run(first())
    change()
    return [record.inode for record in found + world.run(rest())]


@pytest.mark.parametrize("change", ["cut", "emptied", "cut halfway", "removed"])
def test_file_cut_after_the_moment_of_a_dump_has_the_length_that_was_stored_then(world, change):
    for number in range(BATCH_RECORDS):
        world.create(b"f%04d" % number, write=False)
    inode, session = world.chunked(b"cut", b"x" * CHUNK, close=False)
    grown, _ = world.chunked(b"grown", b"y" * CHUNK, close=False)
    for file in (inode, grown):
        world.write(file, CHUNK, b"z" * 2 * CHUNK)  # acknowledged by the chains, not yet reported

    def carry_out():
        world.write(grown, 3 * CHUNK, b"z")
        match change:
            case "cut":
                world.set_attr(b"cut", length=2 * CHUNK, client=2)
            case "emptied":
                world.set_attr(b"cut", length=0)
            case "cut halfway":
                world.control.fail_at = world.control.calls + 2
                with refused(Unavailable):
                    world.set_attr(b"cut", length=1, client=2)
                world.control.fail_at = None
            case "removed":
                world.unlink(b"cut")
                world.close_one(inode.id, session, measure=True)
                for _ in range(2):
                    world.clock.advance(10)
                    world.collect()
                assert inode.content not in world.control.contents()

    lengths = {
        each.id: (each.length, each.truncate_version)
        for each in dump_beside(world, carry_out)
        if each.id in (inode.id, grown.id)
    }
    assert lengths == {inode.id: (CHUNK, 0), grown.id: (3 * CHUNK + 1, 0)}


def test_chains_that_are_away_do_not_stop_a_dump(world):
    inode, _ = world.chunked(b"f", b"x" * CHUNK, close=False)
    world.write(inode, CHUNK, b"y" * 100)
    world.control.down.update(world.placer.chains(inode.layout))
    (found,) = [record.inode for record in records(world) if record.inode.content == inode.content]
    assert found.length == CHUNK
    assert found.open_for_writing


def test_truncation_in_progress_is_dumped_as_carried_out(world):
    inode, _ = world.chunked(b"f", b"x" * 3 * CHUNK)
    world.control.down.update(world.placer.chains(inode.layout))
    with refused(Unavailable):
        world.set_attr(b"f", length=CHUNK)
    world.control.down.clear()
    found = [record.inode for record in records(world) if record.inode.content == inode.content]
    assert found[0].length == CHUNK
    assert found[0].truncate_version == inode.truncate_version + 1


def test_removed_trees_and_open_files_are_loaded_to_be_collected(world):
    world.mkdir(b"tree/deep", parents=True)
    world.chunked(b"tree/deep/f", b"x" * CHUNK)
    world.remove_tree(b"tree")
    inode, _ = world.chunked(b"open", b"y" * CHUNK)
    world.open(b"open")
    world.unlink(b"open")
    world.create(b"kept")
    other = successor(world)
    load(other, records(world))
    assert other.names() == [b"kept"]
    assert other.run(other.dependencies.lengths.measure(inode)).length == CHUNK
    other.clock.advance(10)
    other.collect()
    other.clock.advance(10)
    other.collect()
    assert other.run(other.dependencies.lengths.measure(inode)).length == 0
    assert len(other.keys(b"I")) == 2
    check_store(other)


def test_namespace_is_closed_before_the_load_is_finished(world):
    world.create(b"f")
    found = records(world)
    other = successor(world)
    begun = begin(other, found)
    put(other, begun, found[1:2])
    for _ in range(2):
        with refused(Unavailable):
            other.lookup(b"f")
        with refused(Unavailable):
            other.create(b"other")
        with refused(Unavailable):
            other.hold(5)
        with refused(Unavailable):
            records(other)
        other.crash()
    begun = begin(other, found)
    assert begun.again
    put(other, begun, found[1:-1])
    finish(other, begun, found[-1].trailer)
    assert other.names() == [b"f"]
    other.crash()
    assert other.names() == [b"f"]


def test_operation_in_progress_does_not_get_into_a_loaded_namespace(world):
    other = successor(world)
    found = records(world)
    allocator = other.dependencies.shared.inodes
    allocator._reserve, allocator._next, allocator._end = [], 0, 0

    async def race():
        request = pb.CreateRequest(path=pb.Path(at=1, path=b"late"), permissions=0o644, caller=other.caller())
        late = asyncio.ensure_future(other.service.create(request, other.identity))
        await other.service.begin_load(pb.BeginLoadRequest(header=found[0].header), other.identity)
        return (await asyncio.gather(late, return_exceptions=True))[0]

    assert isinstance(other.run(race()), Unavailable)


def test_load_that_breaks_off_is_finished_by_the_same_dump_or_discarded(world):
    world.mkdir(b"d")
    world.xattr("set", 1, b"user.a", b"1")
    found = records(world)
    other = successor(world)
    other.set_attr(permissions=0o700)
    put(other, begin(other, found), found[1:4])
    world.create(b"e")
    with refused(AlreadyExists) as caught:
        begin(other, records(world))
    assert "luciola load --discard" in str(caught.value)
    with refused(AlreadyExists):
        begin(other, found, new_contents=True)
    other.run(other.service.discard_load(Empty(), other.identity))
    assert other.names() == []
    assert other.stat().permissions == 0o700
    assert other.xattr("list", 1).names == []
    check_store(other)
    with refused(NotFound):
        other.run(other.service.discard_load(Empty(), other.identity))
    load(other, found)
    assert other.names() == [b"d"]


def slow_disk(engine):
    async def sync():
        for _ in range(3):
            await asyncio.sleep(0)

    engine.sync = sync


@pytest.mark.parametrize("turns", range(12))
def test_load_that_is_discarded_while_it_begins_stores_nothing(world, turns):
    world.mkdir(b"d")
    found = records(world)
    other = successor(world)
    slow_disk(other.engine)

    async def race():
        request = pb.BeginLoadRequest(header=found[0].header)
        begun = asyncio.ensure_future(other.service.begin_load(request, other.identity))
        for _ in range(turns):
            await asyncio.sleep(0)
        discarded = asyncio.ensure_future(other.service.discard_load(Empty(), other.identity))
        reply = await begun
        outcome = (await asyncio.gather(discarded, return_exceptions=True))[0]
        assert outcome == Empty() or isinstance(outcome, NotFound)
        if isinstance(outcome, NotFound):  # it came first
            return
        with refused(Unavailable):
            await other.service.load(pb.LoadRequest(load=reply.load, records=found[1:2]), other.identity)

    other.run(race())
    assert other.dependencies.load.is_active is other.dependencies.load._is_stored()


def test_load_that_is_discarded_while_a_file_is_placed_stores_nothing(world):
    world.create(b"f")
    found = records(world)
    other = successor(world)
    slow_disk(other.engine)
    reply = begin(other, found, new_contents=True)
    allocator = other.dependencies.shared.contents
    allocator._reserve, allocator._next, allocator._end = [], 0, 0
    file = next(record.inode for record in found if record.inode.type == pb.REGULAR)
    file.ClearField("content")

    async def race():
        request = pb.LoadRequest(load=reply.load, records=found[1:-1])
        late = asyncio.ensure_future(other.service.load(request, other.identity))
        await asyncio.sleep(0)
        await other.service.discard_load(Empty(), other.identity)
        return (await asyncio.gather(late, return_exceptions=True))[0]

    assert isinstance(other.run(race()), Unavailable)
    assert other.names() == []


def test_attempt_that_was_overtaken_stores_nothing_more(world):
    world.create(b"f")
    found = records(world)
    other = successor(world)
    first = begin(other, found)
    put(other, first, found[1:2])
    second = begin(other, found)
    with refused(Unavailable):
        put(other, first, found[2:-1])
    put(other, second, found[1:-1])
    with refused(Unavailable):
        finish(other, first, found[-1].trailer)
    finish(other, second, found[-1].trailer)
    assert other.names() == [b"f"]


def test_only_an_empty_namespace_is_filled(world):
    found = records(world)
    other = successor(world)
    other.create(b"f", write=False)
    with refused(NotEmpty):
        begin(other, found)
    other.unlink(b"f")
    with refused(Busy):
        begin(other, found)
    other.clock.advance(10)
    other.collect()
    other.xattr("set", 1, b"user.own", b"1")
    load(other, found)
    assert other.names() == []
    assert other.stat() == world.stat()
    assert other.xattr("list", 1).names == []


def test_dump_of_another_cluster_is_refused_without_new_contents(world):
    world.chunked(b"f", b"x" * CHUNK)
    found = records(world)
    found[0].header.cluster = "elsewhere"
    other = successor(world)
    with refused(InvalidArgument) as caught:
        begin(other, found)
    assert "--names-only" in str(caught.value)
    assert other.names() == []


def test_store_of_no_later_generation_is_refused(world):
    """Ids that the lost store handed out after the dump could be handed out again."""
    found = records(world)
    other = World()
    other.control = world.control
    with refused(InvalidArgument) as caught:
        begin(other, found)
    assert "--accept-metadata-loss" in str(caught.value)
    load(world, found)  # the store that was dumped itself


def test_ids_continue_above_all_ids_of_the_dump(world):
    for number in range(5):
        world.create(b"f%d" % number, write=False)
    inode = world.lookup(b"f4")
    world.unlink(b"f4")
    other = World()
    found = records(world)
    for record in found:
        if record.HasField("inode"):
            without_chunks(record.inode)
    load(other, found, new_contents=True)
    made = other.create(b"new").inode
    assert made.id > inode.id
    assert made.content > inode.content


class TestNumbersOfChanges:
    """Clients judge what they know by `change`: a number that they know from a lost state must not come again."""

    @pytest.fixture
    def worn(self) -> World:
        """A namespace with a small file, whose store has seen several boots."""
        world = World(PowerEngine())
        self.create(world)
        world.run(world.engine.sync())
        for _ in range(3):
            lose_power(world)
        self.change(world)
        return world

    def create(self, world: World) -> None:
        inode = world.create(b"f", layout=pb.Layout(inline_bytes=4096)).inode
        self.number = inode.id

    def change(self, world: World) -> int:
        """The file's number after a change of its owner."""
        inode = world.set_attr(at=self.number, uid=world.stat(at=self.number).uid + 1)
        return inode.change

    def test_numbers_after_a_load_and_a_loss_of_power_are_new(self, worn):
        other = successor(worn, PowerEngine())
        load(other, records(worn))
        known = [other.stat(b"f").change]
        other.run(other.engine.sync())
        for _ in range(3):
            known += [self.change(other) for _ in range(3)]  # lost with power
            lose_power(other)
            known.append(other.stat(b"f").change)
            assert self.change(other) > max(known)

    def test_numbers_after_a_load_are_above_those_that_the_lost_store_gave_after_the_dump(self, worn):
        found = records(worn)
        for _ in range(5):
            known = self.change(worn)
            worn.run(worn.engine.sync())
            lose_power(worn)
        other = successor(worn)
        load(other, found)
        assert other.stat(b"f").change > known

    def test_numbers_after_a_load_are_above_those_that_the_same_store_has_given(self, worn):
        found = records(worn)
        known = [self.change(worn) for _ in range(3)]
        worn.unlink(b"f")
        for one in (1, 2):
            worn.close_one(self.number, one)
        worn.members.known = set()
        for _ in range(4):
            worn.clock.advance(60)
            worn.collect()
        load(worn, found)
        assert worn.stat(b"f").change > max(known)

    def test_numbers_of_an_older_copy_whose_loss_was_accepted_are_above_those_of_the_lost_state(self, worn):
        worn.run(worn.engine.sync())
        copy = worn.engine.restore()
        for _ in range(5):
            known = self.change(worn)
            worn.run(worn.engine.sync())
            lose_power(worn)
        older = World(copy)
        older.run(raise_generation(older.engine, 2, clock=older.clock))
        older.start()
        assert older.stat(b"f").change > known

    def test_number_that_leaves_none_above_it_is_refused(self, worn):
        found = records(worn)
        files = [record.inode for record in found if record.inode.type == pb.REGULAR]
        files[0].change = (1 << 64) - 1
        other = successor(worn)
        with refused(InvalidArgument):
            load(other, found)


def test_files_of_another_cluster_get_contents_and_chains_of_this_one(world):
    world.chunked(b"f", b"x" * CHUNK)
    world.create(b"small")
    before = {name: world.lookup(name) for name in (b"f", b"small")}
    found = records(world)
    for record in found:
        if record.HasField("inode"):
            without_chunks(record.inode)
    other = World()
    placed = load(other, found, new_contents=True)
    assert {inode.id for inode in placed} == {inode.id for inode in before.values()}
    for inode in placed:
        assert inode.content >= found[0].header.next_content
        assert other.placer.knows(inode.layout)
        assert inode.layout.table_version
    assert other.lookup(b"f").length == 0
    assert other.lookup(b"f").layout.chunk_bytes == CHUNK


def test_file_in_chunks_may_keep_its_length_under_a_new_content(world):
    world.chunked(b"f", b"x" * CHUNK)
    found = records(world)
    for record in found:
        if record.inode.content:
            record.inode.content = 0
            record.inode.layout.table = record.inode.layout.table_version = 0
    other = World()
    (inode,) = load(other, found, new_contents=True)
    other.write(inode, 0, b"y" * CHUNK)
    assert other.read(other.lookup(b"f")) == b"y" * CHUNK


def test_quarantined_content_that_a_loaded_file_names_keeps_its_chunks(world):
    """Before the load the collector had found that no inode names it."""
    inode, _ = world.chunked(b"f", b"x" * CHUNK)
    found = records(world)
    other = successor(world)
    for contents in (range(1000, 1000 + REMOVALS_MAX), [inode.content]):
        listed = [pb.QuarantinedContent(content=content, chains=CHAINS, chunks=1) for content in contents]
        other.run(other.service.quarantine(pb.QuarantineRequest(contents=listed), other.identity))
        other.clock.advance(1)
    other.run(other.collector.round())  # has removed the others, and looked at all
    assert len(other.keys(schema.QUARANTINE)) == 1
    load(other, found)
    for _ in range(3):
        other.clock.advance(100)
        other.run(other.collector.round())
    assert not other.keys(schema.QUARANTINE)
    assert other.read(other.lookup(b"f")) == b"x" * CHUNK


def test_nothing_is_collected_during_a_load(world):
    found = records(world)
    other = successor(world)
    begun = begin(other, found)
    orphan = pb.Inode(id=20, type=pb.FIFO)
    found[0].header.next_inode = max(found[0].header.next_inode, 21)
    put(other, begun, [found[1], pb.DumpRecord(inode=orphan)])
    other.clock.advance(10)
    assert other.run(collect_once(other.collector, other.dependencies)) == 0
    assert len(other.keys(b"I")) == 2
    finish(other, begun, pb.DumpTrailer(inodes=2))
    assert other.run(collect_once(other.collector, other.dependencies)) > 0


def test_load_waits_for_chain_tables(world):
    """Right after its start a service knows none, and every layout of the dump would look wrong."""
    found = records(world)
    other = successor(world)
    other.placer.set_tables([])
    with refused(Unavailable):
        begin(other, found)
    assert other.names() == []


def test_trailer_with_other_counts_keeps_the_namespace_closed(world):
    world.create(b"f")
    found = records(world)
    other = successor(world)
    begun = begin(other, found)
    put(other, begun, found[1:-2])
    with refused(InvalidArgument):
        finish(other, begun, found[-1].trailer)
    with refused(Unavailable):
        other.names()


def test_dumps_are_limited(world):
    async def take():
        streams = [world.service.dump(pb.DumpRequest(), world.identity) for _ in range(DUMPS_MAX + 1)]
        for stream in streams[:-1]:
            await anext(stream)
        try:
            await anext(streams[-1])
        finally:
            for stream in streams:
                await stream.aclose()

    for number in range(2 * BATCH_RECORDS):
        world.create(b"f%d" % number, write=False)
    with refused(Busy):
        world.run(take())
    assert records(world)


def test_entries_keep_their_cookies_and_no_two_have_the_same(world):
    world.create(b"a", write=False)
    world.link(b"a", b"b")
    world.create(b"c", write=False)
    world.rename(b"c", b"a")
    found = records(world)
    other = successor(world)
    load(other, list(TextReader(io.BytesIO(text(found)))))
    assert list(other.list(after_cookie=0).entries) == list(world.list(after_cookie=0).entries)
    check_store(other)

    entries = [record.entry.entry for record in found if record.HasField("entry")]
    for cookie, message in ((entries[0].cookie or entries[0].inode, "cookie"), (1 << 50, "next_inode")):
        entries[1].cookie = cookie
        with pytest.raises(InvalidArgument, match=message):
            load(successor(world), found)


def test_dumps_that_their_clients_leave_end(world):
    """Else each would keep its snapshot of the store indefinitely."""
    for number in range(6 * BATCH_RECORDS):  # more than fits what a connection buffers
        world.create(b"f%d" % number, write=False)

    async def leave_and_take() -> int:
        secret = bytes(32)
        server = RpcServer(methods.bind(methods.Meta, world.service), secret=secret)
        address = await server.start()
        try:
            async with RpcClients(mint(secret, role=SERVICE)) as clients:
                for _ in range(DUMPS_MAX):
                    stream = clients.stream(address, methods.Meta.dump, pb.DumpRequest())
                    await anext(stream)
                    await stream.aclose()
                while True:
                    try:
                        stream = clients.stream(address, methods.Meta.dump, pb.DumpRequest())
                        return sum([len(batch.records) async for batch in stream])
                    except Busy:  # the server hears of it in a moment
                        await asyncio.sleep(0.01)
        finally:
            await server.stop()

    assert world.run(leave_and_take()) == 2 * 6 * BATCH_RECORDS + 3


def test_too_many_records_in_one_request_are_refused(world):
    found = records(world)
    other = successor(world)
    begun = begin(other, found)
    with refused(InvalidArgument):
        put(other, begun, [found[1]] * (RECORDS_MAX + 1), size=RECORDS_MAX + 1)
