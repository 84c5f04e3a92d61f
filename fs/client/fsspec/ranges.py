"""Many ranges of many files in one submission of a ring.

Ranges land in shared memory that storage nodes on this host fill themselves, and become `bytes` by one copy each.
Large ones are read straight into their `bytes`: there one operation keeps the nodes busy alone.
"""

import os
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from luciola_core import Buffer

from ..file import File
from ..file_system import FileSystem
from ..ring import Operation, Ring

ENTRIES: Final = 128  # ranges in flight
ARENA_BYTES: Final = 16 << 20
LARGE_BYTES: Final = 2 << 20  # from here on a copy costs more than what a batch saves


class Range(NamedTuple):
    """Bytes of an open file that are wanted."""

    file: File
    offset: int
    length: int


class RangeReader:
    """A ring and the memory that its reads land in. For one thread at a time, in one process."""

    def __init__(self, files: FileSystem) -> None:
        self.files = files
        self.process = os.getpid()
        self._ring: Ring = files.ring(ENTRIES)
        self._arena = memoryview(Buffer(ARENA_BYTES))

    def read(self, ranges: Sequence[Range]) -> list[bytes | OSError]:
        """Return the bytes of each range, or what went wrong with it."""
        results: list[bytes | OSError] = [b""] * len(ranges)
        wave: list[tuple[int, int]] = []  # index of the range, where it lands
        filled = 0
        for index, wanted in enumerate(ranges):
            if wanted.length >= LARGE_BYTES:
                results[index] = _read_alone(wanted)
                continue
            if len(wave) == ENTRIES or filled + wanted.length > ARENA_BYTES:
                self._carry_out(ranges, wave, results)
                wave, filled = [], 0
            wave.append((index, filled))
            filled += wanted.length
        self._carry_out(ranges, wave, results)
        return results

    def _carry_out(
        self, ranges: Sequence[Range], wave: Iterable[tuple[int, int]], results: list[bytes | OSError]
    ) -> None:
        operations = [
            Operation(
                ranges[index].file,
                ranges[index].offset,
                self._arena,
                at,
                ranges[index].length,
                user_data=(index, at),
            )
            for index, at in wave
            if ranges[index].length
        ]
        taken = self._ring.submit(operations)
        assert taken == len(operations), "the ring is empty between waves, and a wave fits it"
        for done in self._ring.drain(least=taken):
            index, at = done.user_data
            try:
                results[index] = bytes(self._arena[at : at + done.moved])
            except OSError as error:
                error.filename = ranges[index].file.name
                results[index] = error


def _read_alone(wanted: Range) -> bytes | OSError:
    try:
        return wanted.file.pread(wanted.length, wanted.offset)
    except OSError as error:
        return error


def bounds(start: int | None, end: int | None, length: int) -> tuple[int, int]:
    """Offset and length of the slice [start:end] of a file of `length` bytes."""
    first, last, _ = slice(start, end).indices(length)
    return first, max(0, last - first)


__all__ = ["Range", "RangeReader", "bounds"]
