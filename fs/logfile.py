"""Log files that stay bounded while their processes run.

A background process writes its log to standard error, a file it was started with; so do its native threads. When the
file has grown long, it is moved to NAME.1 and standard output and error continue in a new one: by dup2, so no line is
lost. Several processes may share a file: each follows the name, and one of them moves it, under a lock.
"""

import contextlib
import fcntl
import os
import threading
import time
from typing import Final

LOG_BYTES_MAX: Final = 16 << 20  # a log and its predecessor together are at most twice as long
CHECK_S: Final = 5.0  # at a flood of 10 MiB/s a log is a few times too long


def rotate_output(*, limit: int = LOG_BYTES_MAX, interval_s: float = CHECK_S) -> None:
    """Keep the file that standard error goes to below `limit` from now on, if it is a regular file."""
    path = os.readlink("/proc/self/fd/2")
    if os.path.isfile(path):
        watch = threading.Thread(target=_watch, args=(path, limit, interval_s), name="log", daemon=True)
        watch.start()


def _watch(path: str, limit: int, interval_s: float) -> None:
    while True:
        time.sleep(interval_s)
        with contextlib.suppress(OSError):  # a full disk: the old file stays in use
            follow(path, limit)


def follow(path: str, limit: int) -> bool:
    """Continue in the file that `path` names, a new one if that is too long; whether the file changed."""
    fcntl.flock(2, fcntl.LOCK_EX)
    try:
        mine = os.fstat(2)
        if _inode(path) == mine.st_ino:
            if mine.st_size <= limit:
                return False
            os.replace(path, f"{path}.1")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    finally:
        fcntl.flock(2, fcntl.LOCK_UN)
    try:
        for standard in (1, 2):
            if os.fstat(standard).st_ino == mine.st_ino:
                os.dup2(descriptor, standard)
    finally:
        os.close(descriptor)
    return True


def _inode(path: str) -> int | None:
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return None


__all__ = ["LOG_BYTES_MAX", "follow", "rotate_output"]
