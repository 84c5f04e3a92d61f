import asyncio
import logging

from luciola.storage import held_up
from luciola.storage.engine import Engine
from luciola.storage.held_up import LINES_MAX
from storage_twin import MemoryNode


def test_chunks_that_do_not_get_on_are_named_a_bounded_number_at_a_time(caplog):
    caplog.set_level(logging.WARNING)
    node = MemoryNode(1, {})
    node.stuck = {f"chunk {number}": 12.0 for number in range(LINES_MAX + 3)} | {"quick": 0.1}
    asyncio.run(held_up.look(Engine(node), patience_s=10.0))
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        *(f"held up: chunk {number}" for number in range(LINES_MAX)),
        "held up: 3 further chunks",
    ]
