"""Stat results and directory entries without a cluster."""

import os
import stat

from luciola.client import DirEntry
from luciola.client.attributes import stat_result

FIELDS = (77, 1, 0o4640, 2, 10, 20, 0, 1025, 1_500_000_000_000_000_001, -1, 3_000_000_000, 0)


def entry(file_type, *, attributes=FIELDS, target=None):
    def follow(path, *, follow_symlinks=True):
        if target is None:
            raise FileNotFoundError(path)
        return stat_result((88, target, *FIELDS[2:]))

    return DirEntry("n", "/d/n", inode=77, file_type=file_type, attributes=attributes, stat=follow)


def test_fields_of_a_stat_result():
    result = stat_result(FIELDS)
    assert isinstance(result, os.stat_result)
    assert result.st_mode == stat.S_IFREG | 0o4640
    assert (result.st_ino, result.st_nlink, result.st_uid, result.st_gid, result.st_size) == (
        77,
        2,
        10,
        20,
        1025,
    )
    assert (result.st_atime_ns, result.st_mtime_ns, result.st_ctime_ns) == FIELDS[8:11]
    assert (result.st_mtime, result.st_ctime) == (-1e-9, 3.0)
    assert result.st_blocks == 3


def test_types_of_entries():
    assert entry(1).is_file()
    assert not entry(1).is_dir()
    assert entry(2).is_dir()
    assert entry(3, target=2).is_dir()
    assert not entry(3, target=2).is_dir(follow_symlinks=False)
    assert entry(3, target=1).is_file()
    assert entry(3).is_symlink()
    assert not entry(3).is_file()
    assert os.fspath(entry(1)) == "/d/n"
    assert entry(1).stat().st_ino == 77
    assert entry(3, target=1).stat().st_ino == 88
    assert entry(3, target=1).stat(follow_symlinks=False).st_ino == 77
