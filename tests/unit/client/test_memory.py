"""What the native module offers for memory: checksums of pieces, and memory that another mapping shows too."""

import mmap
import random
import zlib

import luciola_core
import pytest


def test_checksums_of_pieces_are_zlibs() -> None:
    data = random.Random(1).randbytes(100_000)
    pieces = [(0, 100_000), (5, 0), (100_000, 0), (17, 4096), (17, 4096), (99_999, 1)]
    found = luciola_core.crc32s(data, *zip(*pieces, strict=True))
    assert found == [zlib.crc32(data[start : start + length]) for start, length in pieces]
    assert luciola_core.crc32s(b"", [], []) == []


@pytest.mark.parametrize(
    ("offsets", "lengths", "message"),
    [
        ([0], [11], "11 bytes at 0 are not inside 10"),
        ([2**63], [2**63], "are not inside 10"),
        ([0], [], "1 offsets and 0"),
    ],
)
def test_pieces_outside_are_refused(offsets: list[int], lengths: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        luciola_core.crc32s(b"0123456789", offsets, lengths)
    with pytest.raises(OverflowError):
        luciola_core.crc32s(b"0123456789", [-1], [1])


def test_another_mapping_of_a_buffer_shows_the_same_bytes() -> None:
    buffer = luciola_core.Buffer(5000)
    view = memoryview(buffer)
    with mmap.mmap(buffer.fileno(), 5000) as other:
        view[4999] = 7
        assert other[4999] == 7
        other[0] = 9
        assert view[0] == 9
