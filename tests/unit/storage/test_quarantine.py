"""Chunks that were set aside are deleted when they are old enough."""

import os

from luciola.config import StorageConfig
from luciola.storage.quarantine import Quarantine

CONFIG = StorageConfig(quarantine_s=100)


def test_only_what_is_old_enough_is_deleted(tmp_path):
    quarantine = Quarantine(None, tmp_path / "quarantine", config=CONFIG)
    assert quarantine.expire(0.0) == 0, "nothing was ever set aside"
    (tmp_path / "quarantine").mkdir()
    for name, unix_s in (("old", 1000), ("new", 1050)):
        path = tmp_path / "quarantine" / name
        path.write_bytes(b"kept")
        os.utime(path, (unix_s, unix_s))
    assert quarantine.expire(1100.0) == 1
    assert [path.name for path in (tmp_path / "quarantine").iterdir()] == ["new"]
