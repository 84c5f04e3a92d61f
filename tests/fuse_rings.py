"""The kernel's leave for FUSE over io_uring, which tests take for as long as they mount."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

PARAMETER: Final = Path("/sys/module/fuse/parameters/enable_uring")  # Linux 6.14


@contextmanager
def enable_uring(value: str) -> Iterator[None]:
    """Set the parameter to Y or N, and put it back. One process and thread at a time, as core/tests/rings does."""
    assert value in ("Y", "N"), "it is a Boolean"
    with PARAMETER.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        before = file.read(1)
        try:
            PARAMETER.write_text(value)
            yield
        finally:
            PARAMETER.write_text(before)


__all__ = ["PARAMETER", "enable_uring"]
