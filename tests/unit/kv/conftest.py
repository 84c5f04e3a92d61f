"""Every engine passes the same tests."""

import pytest

from luciola.kv import Engine, MemoryEngine
from luciola.kv.faulty import Fault, FaultyEngine
from luciola.kv.grouped import GroupedEngine
from luciola.kv.rocksdb import RocksEngine

from .replicated import primary
from .stored_now_and_then import StoredNowAndThen

WINDOW = 64


@pytest.fixture(
    params=[
        "memory",
        "rocksdb",
        "faulty",
        "grouped",
        "grouped over rocksdb",
        "grouped and stored",
        "replicated",
        "replicated and stored",
        "replicated over rocksdb",
    ]
)
def engine(request: pytest.FixtureRequest, tmp_path):
    made: Engine
    if "rocksdb" in request.param:
        made = RocksEngine(
            tmp_path / "kv", commits_max=WINDOW, cached=b"abk", create=True
        )  # c and others are not kept
    else:
        made = MemoryEngine(commits_max=WINDOW)
    if "replicated" in request.param:
        stored = request.param != "replicated"
        faulty = "rocksdb" not in request.param
        with primary(made, stored=stored, faulty=faulty, commits_max=WINDOW) as replicated:
            yield replicated
        return
    if request.param == "faulty":  # without faults it must be what it wraps
        made = FaultyEngine(made, lambda _number: Fault.NONE)
    elif request.param == "grouped and stored":
        made = StoredNowAndThen(made, commits_max=WINDOW)
    elif "grouped" in request.param:  # nothing is stored where no event loop runs: all is seen before
        made = GroupedEngine(made, commits_max=WINDOW)
    yield made
    made.close()
