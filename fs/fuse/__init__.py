"""The mount: options, lifecycle and records around the native session of `core/src/fuse`.

    table      which file systems are mounted where; taking off mounts whose process is gone
    records    which process serves which mount
    lifecycle  one mount from its checks to its unmount

No byte of file data passes through here.
"""

from .lifecycle import Settings, check_mountpoint, serve, start_in_background, stop
from .records import Record, own_directory, read_records, record_of, source_of
from .table import Mounted, answers, clean_stale_mount, find_mount, is_mounted, mount_of, stale_mounts

__all__ = [
    "Mounted",
    "Record",
    "Settings",
    "answers",
    "check_mountpoint",
    "clean_stale_mount",
    "find_mount",
    "is_mounted",
    "mount_of",
    "own_directory",
    "read_records",
    "record_of",
    "serve",
    "source_of",
    "stale_mounts",
    "start_in_background",
    "stop",
]
