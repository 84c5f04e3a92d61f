"""JSON lines (`.jsonl`): each line is a record, read at random. A sample is the value of its JSON.

The places of lines are found by reading a file once and stored beside it, as for tars (`tar`). An empty line is no
record.
"""

import json
import zlib
from typing import Any, Final

import numpy as np

from ...errors import CorruptData
from .records import Bytes, Integers
from .tar import Progress, ScannedRecords, Stream, Table

LINE_BYTES_MAX: Final = 1 << 30  # a line is one record, which is in memory as a whole


class JsonlRecords(ScannedRecords):
    """The lines of files of JSON lines."""

    format = "jsonl"
    suffix = ".jsonl"
    is_plain = False

    def scan(self, file: Any, size: int, progress: Progress | None) -> Table:
        return scan(file, size, progress)

    def marks(self, file: Any, size: int) -> tuple[int, int]:
        return super().marks(file, size) if size else (0, 0)

    def samples(self, numbers: Integers, arrays: list[Bytes]) -> list[Any]:
        return [self._sample(int(number), array) for number, array in zip(numbers, arrays, strict=True)]

    def _sample(self, number: int, array: Bytes) -> Any:
        try:
            return json.loads(array.tobytes())
        except ValueError as error:
            file, _ = self.in_file(number)
            raise CorruptData(f"{self.name(number)} is not JSON: {error}", path=file.path) from error


def scan(file: Any, size: int, progress: Progress | None) -> Table:
    """Find the lines of a file, by reading all of it. Raises: CorruptData for a line that is too long."""
    stream = Stream(file, size, progress)
    starts: list[int] = []
    lengths: list[int] = []
    checksums: list[int] = []
    begin = 0
    unfinished: list[bytes] = []  # of the last line, joined once
    for piece in stream.pieces(size):
        *lines, rest = bytes(piece).split(b"\n")
        if lines:
            lines[0] = b"".join([*unfinished, lines[0]])
            unfinished = []
        for line in lines:
            _add(line, begin, starts, lengths, checksums)
            begin += len(line) + 1
        unfinished.append(rest)
        if stream.position - begin > LINE_BYTES_MAX:
            raise CorruptData(f"the line that begins at byte {begin} is longer than 1 GiB", path=stream.path)
    _add(b"".join(unfinished), begin, starts, lengths, checksums)
    count = len(starts)
    return Table(
        np.arange(count + 1),
        np.array(starts, np.int64),
        np.array(lengths, np.int64),
        [""] * count,
        np.array(checksums, np.uint32),
    )


def _add(line: bytes, begin: int, starts: list[int], lengths: list[int], checksums: list[int]) -> None:
    if line.strip():
        starts.append(begin)
        lengths.append(len(line))
        checksums.append(zlib.crc32(line))


__all__ = ["JsonlRecords"]
