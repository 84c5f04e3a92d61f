"""Chunks that were set aside are deleted when they are old enough."""

import os

from luciola.clock import ManualClock
from luciola.config import StorageConfig
from luciola.storage.quarantine import SETTLE_S, Quarantine

CONFIG = StorageConfig(quarantine_s=100_000)
OLD_S = 200_000


def opened(tmp_path, clock: ManualClock) -> Quarantine:
    return Quarantine(None, tmp_path / "quarantine", config=CONFIG, clock=clock)


def set_aside(tmp_path, clock: ManualClock, name: str, *, age_s: float) -> None:
    path = tmp_path / "quarantine" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"kept")
    unix_s = clock.unix_ns() / 1e9 - age_s
    os.utime(path, (unix_s, unix_s))


def names(tmp_path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "quarantine").iterdir())


def test_only_what_is_old_enough_is_deleted(tmp_path):
    clock = ManualClock()
    set_aside(tmp_path, clock, "old", age_s=OLD_S)
    set_aside(tmp_path, clock, "new", age_s=0)
    quarantine = opened(tmp_path, clock)
    assert quarantine.expire() == 0, "a wrong clock has not been noticed yet"
    clock.advance(SETTLE_S)
    assert quarantine.expire() == 1
    assert names(tmp_path) == ["new"]
    clock.advance(CONFIG.quarantine_s)
    assert quarantine.expire() == 1
    assert names(tmp_path) == []


def test_wall_clock_set_forwards_deletes_nothing_that_this_process_set_aside(tmp_path):
    clock = ManualClock()
    quarantine = opened(tmp_path, clock)
    assert quarantine.expire() == 0, "nothing was ever set aside"
    set_aside(tmp_path, clock, "chunk", age_s=OLD_S)  # as the wall clock says by now
    assert quarantine.expire() == 0
    clock.advance(SETTLE_S)
    assert quarantine.expire() == 0
    clock.advance(CONFIG.quarantine_s - SETTLE_S)
    assert quarantine.expire() == 1
