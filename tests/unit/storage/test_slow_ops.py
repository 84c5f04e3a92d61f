import asyncio
import logging

from luciola.storage import slow_ops
from luciola.storage.engine import Engine
from luciola.storage.slow_ops import LINES_MAX

from .fake_node import FakeNode


def test_slow_chunks_are_logged_a_bounded_number_at_a_time(caplog):
    caplog.set_level(logging.WARNING)
    node = FakeNode(1, {})
    node.stuck = {f"chunk {number}": 12.0 for number in range(LINES_MAX + 3)} | {"quick": 0.1}
    asyncio.run(slow_ops.look(Engine(node), slow_s=10.0))
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        *(f"slow update: chunk {number}" for number in range(LINES_MAX)),
        "slow update: suppressed 3 further chunks",
    ]
