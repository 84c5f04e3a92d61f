"""Disks that tests make, and bytes that they look for on the disks of storage nodes."""

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def written(descriptor: int) -> Iterator[tuple[int, int]]:
    """Where a file of many GiB, most of them holes, has something."""
    end = 0
    while True:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            assert error.errno == errno.ENXIO, error
            return
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end


def find(directory: Path, needle: bytes) -> tuple[Path, int]:
    """Where on that node's disk the bytes lie."""
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.stat().st_size >= len(needle):
            with path.open("rb") as file:
                for start, end in written(file.fileno()):
                    where = os.pread(file.fileno(), end - start, start).find(needle)
                    if where >= 0:
                        return path, start + where
    raise AssertionError("not on this disk")


def forget_pages(path: Path) -> None:
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def small_disk(directory: Path, size: str) -> Iterator[None]:
    directory.mkdir(parents=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(directory)], check=True
    )
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True)
