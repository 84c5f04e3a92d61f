"""Every engine passes the same tests."""

import pytest

from luciola.kv import Engine, MemoryEngine
from luciola.kv.faulty import Fault, FaultyEngine
from luciola.kv.rocksdb import RocksEngine

WINDOW = 64


@pytest.fixture(params=["memory", "rocksdb", "faulty"])
def engine(request: pytest.FixtureRequest, tmp_path):
    made: Engine
    if request.param == "rocksdb":
        made = RocksEngine(
            tmp_path / "kv", commits_max=WINDOW, cached=b"abk", create=True
        )  # c and others are not kept
    else:
        made = MemoryEngine(commits_max=WINDOW)
    if request.param == "faulty":  # without faults it must be what it wraps
        made = FaultyEngine(made, lambda _number: Fault.NONE)
    yield made
    made.close()
