"""The places of all records of a data set in one file on this machine, which every process that reads them maps.

    records = open_records("lu:/data/train", index_directory="/dev/shm/me")

    ┌ 0 ──────────┬ 8 ───────────────┬ 40 ─────────────┬ 48 ──────────┬ 56 ──────────────────────────────────────────┐
    │ "LUSHIDX1"  │ SHA-256 of what  │ elements of     │ records      │ offsets E × int64; lengths N × int64, if the │
    │             │ is indexed       │ offsets E, u64  │ N, u64       │ format has them; CRC32 N × u32, if it has    │
    └─────────────┴──────────────────┴─────────────────┴──────────────┴──────────────────────────────────────────────┘

In the byte order of the machine: it does not leave it. The indexes of files are stored in the order of the files.

H1  One process makes the file, under a lock, while the others wait; it takes its name complete. It is named for the
    data (names, sizes, dates, checksums of indexes), so one that exists is the right one.
H2  Places were checked when the file was made (`records`, R1). It is trusted because it and its directory belong to
    this user, and others cannot write them.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np

from ...errors import InvalidArgument

MAGIC: Final = b"LUSHIDX1"
HEAD: Final = struct.Struct("=8s32sQQ")
SUFFIX: Final = ".lushidx"
FILES_TOGETHER: Final = 64  # whose indexes are in the memory of the maker at once


class SharedIndex:
    """The indexes of files of these numbers of records, mapped."""

    def __init__(self, path: str, key: bytes, counts: Sequence[int]) -> None:
        array = _mapped(path)
        magic, found, elements, records = HEAD.unpack_from(array[: HEAD.size].tobytes())
        has_ends = elements == records + len(counts)
        rest = array.nbytes - HEAD.size - 8 * elements
        lengths = 0 if has_ends else records
        checksums = (rest - 8 * lengths) // 4
        if (
            magic != MAGIC
            or found != key
            or records != sum(counts)
            or elements not in {records, records + len(counts)}
            or rest != 8 * lengths + 4 * checksums
            or checksums not in {0, records}
        ):
            raise _foreign(path)
        at = HEAD.size + 8 * elements
        self.offsets = array[HEAD.size : at].view(np.int64)
        self.lengths = array[at : at + 8 * lengths].view(np.int64) if lengths else None
        self.checksums = array[at + 8 * lengths :].view(np.uint32) if checksums else None
        self._starts = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
        self._has_ends = has_ends

    def locate(self, numbers: Any, files: Any) -> tuple[Any, Any, Any]:
        """Return (offsets, lengths, checksums) of records of all files, by their numbers and those of their files."""
        at = numbers + files if self._has_ends else numbers
        offsets = self.offsets[at]
        lengths = self.offsets[at + 1] - offsets if self.lengths is None else self.lengths[numbers]
        return offsets, lengths, None if self.checksums is None else self.checksums[numbers]

    def of(self, number: int) -> tuple[Any, Any, Any]:
        """Return (offsets, lengths, checksums) of a file's records, as in its `Index`."""
        start, stop = int(self._starts[number]), int(self._starts[number + 1])
        shift = number if self._has_ends else 0
        return (
            self.offsets[start + shift : stop + shift + self._has_ends],
            None if self.lengths is None else self.lengths[start:stop],
            None if self.checksums is None else self.checksums[start:stop],
        )


def _mapped(path: str) -> Any:
    """Map the bytes of a file that only this user can have written. Raises: InvalidArgument."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise _foreign(path) from None
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        is_own = stat.S_ISREG(status.st_mode) and _is_of_this_user_alone(status)
        if not is_own or status.st_size < HEAD.size:
            raise _foreign(path)
        return np.asarray(np.memmap(file, np.uint8, mode="r"))


def _is_of_this_user_alone(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _foreign(path: str) -> InvalidArgument:
    return InvalidArgument("not the index of this data set: remove it, and it is made again", path=path)


def shared_index(
    directory: str, identity: str, counts: Sequence[int], read: Callable[[Sequence[int]], Sequence[Any]]
) -> SharedIndex:
    """Map the index of the data set `identity`; if missing, make it of what `read` returns for numbers of files.

    Raises: InvalidArgument for a directory that others can write, or a file that is not the index; OSError where there
    is no room.
    """
    os.makedirs(directory, mode=0o700, exist_ok=True)
    if not _is_of_this_user_alone(os.stat(directory)):
        raise InvalidArgument(
            "a directory for indexes must belong to this user and be writable by no other: name one below it",
            path=directory,
        )
    key = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).digest()
    path = os.path.join(directory, key.hex()[:32] + SUFFIX)
    if not os.path.exists(path):
        with _locked(path + ".lock"):
            if not os.path.exists(path):  # another process may have made it meanwhile
                _make(path, key, counts, read)
    return SharedIndex(path, key, counts)


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _make(
    path: str, key: bytes, counts: Sequence[int], read: Callable[[Sequence[int]], Sequence[Any]]
) -> None:
    """Write the indexes of some files at a time, each array to its own part of the file."""
    records = sum(counts)
    temporary = path + ".part"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)  # of a maker that was killed: the lock is ours
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        places: list[int] = []  # where the next of each array goes
        for first in range(0, len(counts), FILES_TOGETHER):
            numbers = range(first, min(first + FILES_TOGETHER, len(counts)))
            for number, index in zip(numbers, read(numbers), strict=True):
                assert len(index) == counts[number], "an index has the records that its file has"
                if not places:
                    elements = records + (len(counts) if index.lengths is None else 0)
                    lengths = HEAD.size + 8 * elements
                    places = [HEAD.size, lengths, lengths + (0 if index.lengths is None else 8 * records)]
                    size = places[2] + (0 if index.checksums is None else 4 * records)
                    os.posix_fallocate(descriptor, 0, size)  # no room is an error now, not a signal later
                    os.pwrite(descriptor, HEAD.pack(MAGIC, key, elements, records), 0)
                for place, array in enumerate((index.offsets, index.lengths, index.checksums)):
                    if array is not None:
                        places[place] = _written(descriptor, array, places[place])
        os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    finally:
        os.close(descriptor)


def _written(descriptor: int, array: Any, offset: int) -> int:
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count
    return offset


__all__ = ["SharedIndex", "shared_index"]
