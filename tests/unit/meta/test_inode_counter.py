import asyncio

from luciola.kv import MemoryEngine
from luciola.meta import inode_counter
from luciola.meta.inode_counter import InodeCounter
from luciola.wire.pb import meta_pb2 as pb

from .world import World


def test_counts_while_inodes_are_made_and_removed(world, monkeypatch):
    monkeypatch.setattr(inode_counter, "PAGE", 4)
    for number in range(20):
        world.mkdir(b"%02d" % number)
    count = InodeCounter()
    counting = count.count_all(world.engine)
    counting.send(None)  # the root and three directories are counted
    low, high = world.stat(b"00").id, world.stat(b"15").id
    world.rmdir(b"00")
    world.rmdir(b"15")
    world.clock.advance(2)
    world.collect()
    count.removed(low)
    count.removed(high)
    world.mkdir(b"new")
    count.added([world.stat(b"new").id])
    try:
        while True:
            counting.send(None)
    except StopIteration:
        pass
    assert count.count == 20
    count.added([high + 1, high + 2])
    count.removed(high)
    assert count.count == 21


def test_second_count_ends_the_first(world, monkeypatch):
    monkeypatch.setattr(inode_counter, "PAGE", 4)
    for number in range(20):
        world.mkdir(b"%02d" % number)
    count = InodeCounter()

    async def both():
        await asyncio.gather(count.count_all(world.engine), count.count_all(world.engine))

    world.run(both())
    assert count.count == 21


def test_statfs_shows_the_count_after_a_restart():
    world = World(MemoryEngine())
    world.mkdir(b"a/b", parents=True)
    world.create(b"f", write=False)
    assert world.call("stat_fs", pb.StatFsRequest()).inode_count == 4
    world.unlink(b"f")
    world.clock.advance(2)
    world.collect()
    assert world.call("stat_fs", pb.StatFsRequest()).inode_count == 3
    world.crash()
    assert world.call("stat_fs", pb.StatFsRequest()).inode_count == 3
