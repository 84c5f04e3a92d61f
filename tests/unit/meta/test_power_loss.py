"""Power loss at every change that the metadata service makes to its disk, with `durability = "sync"`.

What was answered is there, the rest is there up to some transaction, and the namespace is whole.
"""

import random
from pathlib import Path

import pytest

from luciola.errors import Error
from luciola.kv.rocksdb import RocksEngine
from power_disk import PowerDisk, can_mount, every_state
from power_store import RecordedStore

from .world import World, check_store

pytestmark = [
    pytest.mark.mount,
    pytest.mark.crate("build", "--example", "power_disk"),
    pytest.mark.skipif(not can_mount(), reason="needs root and /dev/fuse"),
]
CUTS_MIN = 150  # of the recorded workload; fewer: a part of it is not tested any more
NAMES = (b"a", b"b", b"c", b"d")


def request(world: World, dice: random.Random) -> None:
    """One request of a client; most succeed."""
    name, other = dice.choice(NAMES), dice.choice(NAMES)
    match dice.randrange(8):
        case 0:
            world.mkdir(name)
        case 1 | 2:
            world.create(name)
        case 3:
            world.rename(name, other)
        case 4:
            world.link(name, other)
        case 5:
            world.unlink(name)
        case 6:
            world.set_attr(name, permissions=dice.choice((0o600, 0o644)))
        case _:
            world.remove_tree(name)


def live(world: World, store: RecordedStore, dice: random.Random, count: int) -> int:
    """So many requests, and rounds of the collector, which promises nothing; how many requests succeeded."""
    succeeded = 0
    for _ in range(count):
        try:
            request(world, dice)
        except Error:
            continue  # refused: there is no such name, or there is one
        store.acknowledge()
        succeeded += 1
        if succeeded % 5 == 0:
            world.clock.advance(2)
            world.collect(rounds=2)
    return succeeded


def test_answered_requests_are_there_whenever_power_is_lost(tmp_path):
    with PowerDisk(tmp_path / "disk") as disk:
        directory = disk.record("meta") / "store"
        store = RecordedStore(disk, "meta", directory)
        world = World(store, durability="sync")
        store.acknowledge()
        succeeded = live(world, store, random.Random(1), 60)
        world.close()
        store.close()
        assert succeeded > 20

        def check(path: Path, cut: int) -> None:
            store.check(path / "store", cut)
            engine = RocksEngine(path / "store")
            world = World(engine)  # the service starts with what is left
            check_store(world)
            world.close()
            engine.close()

        report = every_state(disk, "meta", check, promises=store.promises)
        print(report)
        assert report.cuts >= CUTS_MIN, report
