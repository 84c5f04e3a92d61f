"""Moments in the log: when one is written, and that they never decrease."""

from luciola.clock import ManualClock
from luciola.kv import MemoryEngine
from luciola.meta import schema
from luciola.meta.moments import KEY, Moments


def moment(engine):
    value = engine.begin().snapshot_get(KEY)
    return None if value is None else schema.decode_next(value)


def put(engine):
    transaction = engine.begin()
    transaction.put(b"k", b"v")
    transaction.commit()


def test_a_moment_follows_what_was_committed_and_nothing_follows_a_moment():
    engine, clock = MemoryEngine(), ManualClock()
    moments = Moments(engine, clock)
    for _ in range(3):
        put(engine)
        clock.advance(1)
        moments.write()
        assert moment(engine) == clock.unix_ns() // 1_000_000
        version = engine.version
        clock.advance(1)
        moments.write()
        assert engine.version == version


def test_moments_do_not_decrease_when_the_next_primary_has_another_clock():
    engine, ahead, behind = MemoryEngine(), ManualClock(start_s=2000), ManualClock(start_s=1000)
    put(engine)
    Moments(engine, ahead).write()
    known = moment(engine)
    put(engine)
    Moments(engine, behind).write()
    assert moment(engine) == known
