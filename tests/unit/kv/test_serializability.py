"""Random interleavings of transactions, explained by running them one after another.

A history says what every transaction read, wrote and when it committed. It is explained if

    K2  every read, committed or not, equals the store at the transaction's read version plus its own writes
    K1  every committed transaction, run again alone at its place in commit order, reads the same again
"""

import random
from dataclasses import dataclass, field
from itertools import takewhile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luciola.errors import Conflict
from luciola.kv import Engine, MemoryEngine, Transaction
from luciola.kv.conflicts import COMMITS_MAX
from luciola.kv.rocksdb import RocksEngine

from .replicated import primary
from .stored_now_and_then import StoredNowAndThen

KEYS = [b"a", b"b", b"c", b"d", b"e"]
WORKERS = 4
READS = ("get", "snapshot_get", "get_range", "snapshot_range")
GUARDED = ("get", "get_range")

keys = st.sampled_from(KEYS)
bounds = st.tuples(keys, st.sampled_from([*KEYS[1:], b"f"]))
actions = st.one_of(
    st.tuples(st.just("get"), keys),
    st.tuples(st.just("snapshot_get"), keys),
    st.tuples(st.just("get_range"), bounds, st.integers(1, 5)),
    st.tuples(st.just("snapshot_range"), bounds, st.integers(1, 5)),
    st.tuples(st.just("put"), keys),
    st.tuples(st.just("delete"), keys),
    st.tuples(st.just("delete_range"), bounds),
    st.tuples(st.just("commit")),
)
schedules = st.lists(st.tuples(st.integers(0, WORKERS - 1), actions), max_size=60)


@dataclass
class Record:
    """What one transaction did and saw."""

    actions: list[tuple] = field(default_factory=list)
    answers: list[object] = field(default_factory=list)
    read_version: int | None = None
    version: int | None = None  # set when it committed
    wrote: bool = False


class Model:
    """The store as a dict, for one transaction at a time."""

    def __init__(self, state: dict[bytes, bytes]) -> None:
        self.state = dict(state)

    def do(self, action: tuple) -> object:
        match action:
            case ("get" | "snapshot_get", key):
                return self.state.get(key)
            case ("get_range" | "snapshot_range", (begin, end), limit):
                found = sorted((k, v) for k, v in self.state.items() if begin <= k < end)
                return found[:limit]
            case ("put", key, value):
                self.state[key] = value
            case ("delete", key):
                self.state.pop(key, None)
            case ("delete_range", (begin, end)):
                self.state = {k: v for k, v in self.state.items() if not begin <= k < end}
        return None


def perform(transaction: Transaction, action: tuple) -> object:
    match action:
        case ("get", key):
            return transaction.get(key)
        case ("snapshot_get", key):
            return transaction.snapshot_get(key)
        case ("get_range", (begin, end), limit):
            return list(transaction.get_range(begin, end, limit=limit))
        case ("snapshot_range", (begin, end), limit):
            return list(transaction.snapshot_range(begin, end, limit=limit))
        case ("put", key, value):
            transaction.put(key, value)
        case ("delete", key):
            transaction.delete(key)
        case ("delete_range", (begin, end)):
            transaction.delete_range(begin, end)
    return None


def execute(engine: Engine, schedule) -> list[Record]:
    """Runs the schedule; every worker has one transaction at a time."""
    clear = engine.begin()
    clear.delete_range(b"", b"\xfe")
    clear.commit()
    history: list[Record] = []
    current: dict[int, tuple[Transaction, Record]] = {}
    for number, (worker, action) in enumerate(
        [*schedule, *((worker, ("commit",)) for worker in range(WORKERS))]
    ):
        if worker not in current:
            current[worker] = (engine.begin(), Record())
            history.append(current[worker][1])
        transaction, record = current[worker]
        if action == ("commit",):
            del current[worker]
            record.wrote = not transaction.is_read_only
            try:
                record.version = transaction.commit()
            except Conflict:
                continue
        else:
            done = (*action, b"%d" % number) if action[0] == "put" else action
            record.actions.append(done)
            record.answers.append(perform(transaction, done))
            if action[0] in READS and record.read_version is None:
                record.read_version = transaction.read_version
    return history


def unexplained(history: list[Record], first_version: int) -> list[str]:
    """What no serial execution explains; empty if all is well."""
    wrong: list[str] = []
    states: list[tuple[int, dict[bytes, bytes]]] = [(first_version, {})]
    writers = [record for record in history if record.version is not None and record.wrote]
    for record in sorted(writers, key=lambda writer: writer.version or 0):
        model = Model(states[-1][1])
        for action, answer in zip(record.actions, record.answers, strict=True):
            expected = model.do(action)
            if action[0] in GUARDED and expected != answer:
                wrong.append(f"K1: {action} read {answer!r}, but at its commit it is {expected!r}")
        states.append((record.version or 0, model.state))
    for record in history:
        if record.read_version is None:
            continue
        visible = list(takewhile(lambda state, at=record.read_version: state[0] <= at, states))
        model = Model(visible[-1][1])
        for action, answer in zip(record.actions, record.answers, strict=True):
            expected = model.do(action)
            if action[0] in READS and expected != answer:
                wrong.append(f"K2: {action} read {answer!r}, but its picture has {expected!r}")
    return wrong


@pytest.fixture(scope="module", params=["memory", "rocksdb", "grouped", "replicated"])
def shared_engine(request, tmp_path_factory):
    """One engine for all examples: they begin by clearing it."""
    engine = (
        RocksEngine(tmp_path_factory.mktemp("kv") / "db", cached=b"ab", create=True)
        if request.param == "rocksdb"
        else MemoryEngine()
    )
    if request.param == "replicated":
        with primary(engine, stored=True, faulty=True) as replicated:
            yield replicated
        return
    if request.param == "grouped":
        engine = StoredNowAndThen(engine, commits_max=COMMITS_MAX)
    yield engine
    engine.close()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schedule=schedules)
def test_every_history_is_explained_by_a_serial_one(shared_engine, schedule):
    history = execute(shared_engine, schedule)
    begun_at = min((r.read_version for r in history if r.read_version is not None), default=0)
    assert unexplained(history, begun_at) == []


def some_schedule(seed: int, *, length: int = 80):
    """A schedule with many conflicts, from a seed."""
    dice = random.Random(seed)

    def action() -> tuple:
        kind = dice.choice(
            ("get", "snapshot_get", "get_range", "put", "put", "delete", "delete_range", "commit")
        )
        begin = dice.choice(KEYS)
        match kind:
            case "commit":
                return ("commit",)
            case "get_range":
                return (kind, (begin, dice.choice([*KEYS[1:], b"f"])), dice.randint(1, 5))
            case "delete_range":
                return (kind, (begin, dice.choice([*KEYS[1:], b"f"])))
            case _:
                return (kind, begin)

    return [(dice.randrange(WORKERS), action()) for _ in range(length)]


@pytest.mark.parametrize("seed", range(50))
def test_long_histories_with_a_small_window_are_explained(seed):
    engine = MemoryEngine(commits_max=6)
    try:
        history = execute(engine, some_schedule(seed, length=60))
    except Conflict:  # a read was too old: that is an answer, too
        return
    begun_at = min((r.read_version for r in history if r.read_version is not None), default=0)
    assert unexplained(history, begun_at) == []


def found_by_some_seed(make) -> bool:
    for seed in range(200):
        engine = make()
        history = execute(engine, some_schedule(seed))
        begun_at = min((r.read_version for r in history if r.read_version is not None), default=0)
        if unexplained(history, begun_at):
            return True
    return False


class NeverConflicts(MemoryEngine):
    """Planted bug: last writer wins."""

    def _check(self, transaction, read_version):
        return


class IgnoresPhantoms(MemoryEngine):
    """Planted bug: ranges are not checked."""

    def _check(self, transaction, read_version):
        if self.window.conflicts(read_version, transaction.read_keys, ()):
            raise Conflict("planted")


class ForgetsClearedRanges(MemoryEngine):
    """Planted bug: range deletions are not remembered."""

    def commit(self, transaction):
        version = super().commit(transaction)
        self.window._ranges.clear()
        return version


class ReadsTheNewest(MemoryEngine):
    """Planted bug: reads see commits made after the transaction began."""

    def read(self, key, version):
        return super().read(key, self.version)


@pytest.mark.parametrize("bug", [NeverConflicts, IgnoresPhantoms, ForgetsClearedRanges, ReadsTheNewest])
def test_checker_finds_planted_bugs(bug):
    assert found_by_some_seed(bug)


def test_checker_is_content_with_the_real_engine():
    assert not found_by_some_seed(MemoryEngine)
