"""What a service waits for before it serves a store."""

from luciola.kv import MemoryEngine
from luciola.kv.grouped import Group, GroupedEngine
from luciola.kv.record import replay

from .world import World


def test_a_service_over_a_store_that_is_there_begins_with_one_record():
    inner = MemoryEngine()
    stored: list[int] = []

    async def store(group: Group) -> None:
        group.record()
        transaction = inner.begin()
        replay(group.operations, transaction)
        transaction.commit()
        stored.append(len(group.operations))

    world = World(GroupedEngine(inner, store))
    stored.clear()
    world.crash()
    assert len(stored) == 1, "a take-over waits for the log once, for all that is reserved"
    assert stored[0] == 3, "moments, inodes and contents"
