"""A namespace of before in place of the present one: ids, lengths, and what cannot be brought back."""

import pytest

from luciola.errors import CorruptData
from luciola.kv import MemoryEngine
from luciola.kv.engine import KEY_END
from luciola.meta import schema
from luciola.meta.moments import KEY as MOMENT
from luciola.meta.moments import Moments
from luciola.meta.restored import replace_namespace

from .world import CHUNK, World, check_store

DATA = b"x" * (2 * CHUNK)


def copy_of(engine):
    (pairs,) = engine.snapshot([(b"\x00", KEY_END)])
    copy = MemoryEngine()
    transaction = copy.begin()
    for key, value in pairs:
        transaction.put(key, value)
    transaction.commit()
    return copy


def put_back(world, before):
    """Restore `before`, and serve it."""
    report = world.run(replace_namespace(before, world.engine, clock=world.clock))
    world.engine = before
    world.crash()
    return report


def length(world, name):
    return world.stat(name).length


def test_removed_replaced_and_grown_files_are_there_and_measured():
    world = World(history_s=1e6)
    for name in (b"same", b"removed", b"replaced", b"grown"):
        world.chunked(name, DATA)
    before = copy_of(world.engine)
    world.unlink(b"removed")
    world.set_attr(b"replaced", length=0)
    grown = world.open(b"grown", write=True)
    world.write(grown.inode, 2 * CHUNK, b"more")
    world.close_one(grown.inode.id, grown.session, length=2 * CHUNK + 4)
    world.clock.advance(100)
    world.collect()
    report = put_back(world, before)
    assert (report.files, report.grown, report.gone_count) == (4, 1, 0)
    world.clock.advance(100)
    world.collect()
    world.clock.advance(100)
    world.collect()
    assert [length(world, name) for name in (b"same", b"removed", b"replaced")] == [2 * CHUNK] * 3
    assert length(world, b"grown") == 2 * CHUNK + 4
    assert len(world.control.contents()) == 4
    check_store(world)


def test_files_whose_chunks_were_collected_are_named():
    world = World()
    gone, _ = world.chunked(b"gone", DATA)
    before = copy_of(world.engine)
    world.unlink(b"gone")
    world.clock.advance(100)
    world.collect()
    report = put_back(world, before)
    assert (report.gone_count, report.gone) == (1, (gone.id,))


def test_ids_of_the_abandoned_state_are_not_used_again():
    world = World()
    world.chunked(b"old", DATA)
    before = copy_of(world.engine)
    later = [world.chunked(b"%d" % number, DATA)[0] for number in range(5)]
    change = max(inode.change for inode in later)
    generation = schema.decode_superblock(before.begin().snapshot_get(schema.SUPERBLOCK)).generation
    put_back(world, before)
    superblock = schema.decode_superblock(world.engine.begin().snapshot_get(schema.SUPERBLOCK))
    assert superblock.generation == generation + 1
    again, _ = world.chunked(b"new", DATA)
    assert again.id > max(inode.id for inode in later)
    assert again.content > max(inode.content for inode in later)
    assert world.set_attr(b"old", permissions=0o600).change > change


def test_moments_continue_after_those_of_the_abandoned_state():
    world = World()
    before = copy_of(world.engine)
    world.clock.offset_ns = 10**15
    Moments(world.engine, world.clock).write()
    known = schema.decode_next(world.engine.begin().snapshot_get(MOMENT))
    world.clock.offset_ns = 0
    put_back(world, before)
    assert schema.decode_next(world.engine.begin().snapshot_get(MOMENT)) == known


def test_state_of_another_store_is_refused():
    one, other = World(), World()
    for restored in (copy_of(other.engine), MemoryEngine()):
        with pytest.raises(CorruptData):
            one.run(replace_namespace(restored, one.engine, clock=one.clock))
