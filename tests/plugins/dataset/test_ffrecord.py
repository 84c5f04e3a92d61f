"""FFRecord files: the published bytes, files by other writers, and files that are damaged or hostile."""

import random
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luciola.client import LocalFileSystem
from luciola.errors import CorruptData, InvalidArgument
from luciola.plugins.dataset import FFRecords, FFRecordWriter, open_records
from luciola.plugins.dataset.reader import BatchReader
from luciola.plugins.dataset.records import Place


def written_elsewhere(records: list[bytes], *, old: bool = False) -> bytes:
    """The format as its description says, independent of our code."""
    count = len(records)
    position = 12 + 12 * count
    offsets = []
    for record in records:
        offsets.append(position)
        position += len(record)
    rest = struct.pack("<q", count)
    rest += b"".join(struct.pack("<I", zlib.crc32(record)) for record in records)
    rest += b"".join(struct.pack("<q", offset) for offset in offsets)
    return struct.pack("<I", 0 if old else zlib.crc32(rest)) + rest + b"".join(records)


def read_all(path) -> list[bytes]:
    records = open_records(path)
    reader = BatchReader([records])
    try:
        return [array.tobytes() for array in reader.read(np.arange(len(records))).arrays()]
    finally:
        reader.close()


RECORDS = [b"first", b"", b"third record" * 1000, b"\x00" * 64, b"x"]
GOLDEN = bytes.fromhex(
    "488d1796 0200000000000000 ac2a93d8 16786b66 2400000000000000 2600000000000000 6869796f75"
)


def test_the_bytes_are_those_of_the_format(tmp_path) -> None:
    path = tmp_path / "golden.ffr"
    with FFRecordWriter(path, 2) as writer:
        writer.write(b"hi")
        writer.write(bytearray(b"you"))
    assert path.read_bytes() == written_elsewhere([b"hi", b"you"])
    assert path.read_bytes()[4:12] == (2).to_bytes(8, "little")
    assert path.read_bytes()[:4] == zlib.crc32(path.read_bytes()[4:36]).to_bytes(4, "little")
    assert path.read_bytes().hex() == GOLDEN.hex()


@given(records=st.lists(st.binary(max_size=300), max_size=30), announced=st.booleans())
@settings(deadline=None, max_examples=40)
def test_what_is_written_is_read(tmp_path_factory, records: list[bytes], announced: bool) -> None:
    path = tmp_path_factory.mktemp("ffr") / "a.ffr"
    with FFRecordWriter(path, len(records) if announced else None) as writer:
        for record in records:
            writer.write(record)
    assert path.read_bytes() == written_elsewhere(records)
    assert read_all(path) == records


def test_large_records_and_memoryviews(tmp_path) -> None:
    large = np.random.default_rng(1).integers(0, 255, 9 << 20, np.uint8)
    for count in (3, None):
        with FFRecordWriter(tmp_path / "a.ffr", count) as writer:
            writer.write(b"before")
            writer.write(large.reshape(-1, 1024).view(np.uint32))
            writer.write(b"after")
        assert read_all(tmp_path / "a.ffr") == [b"before", large.tobytes(), b"after"]


def test_old_files_are_read_with_a_warning(tmp_path) -> None:
    (tmp_path / "old.ffr").write_bytes(written_elsewhere(RECORDS, old=True))
    with pytest.warns(UserWarning, match=r"old\.ffr: an old FFRecord file without a checksum"):
        assert read_all(tmp_path / "old.ffr") == RECORDS


def test_a_directory_is_one_data_set_in_the_order_of_names(tmp_path) -> None:
    for number in (2, 0, 1):
        (tmp_path / f"PART_{number:05}.ffr").write_bytes(written_elsewhere([b"%d" % number] * (number + 1)))
    (tmp_path / ".hidden.ffr").write_bytes(b"")
    (tmp_path / "notes.txt").write_bytes(b"")
    assert read_all(tmp_path) == [b"0", b"1", b"1", b"2", b"2", b"2"]


def test_a_file_appears_complete_or_not_at_all(tmp_path) -> None:
    path = tmp_path / "a.ffr"
    with FFRecordWriter(path, 1) as writer:
        writer.write(b"old")
        assert not path.exists()
    for count in (2, None):
        with pytest.raises(RuntimeError, match="stop"), FFRecordWriter(path, count) as writer:
            writer.write(b"new")
            raise RuntimeError("stop")
        with pytest.raises(ValueError, match="closed"):
            writer.write(b"more")
    with (
        pytest.raises(ValueError, match="1 records were written, 2 were announced"),
        FFRecordWriter(path, 2) as writer,
    ):
        writer.write(b"new")
    with pytest.raises(ValueError, match="more records than the 1"), FFRecordWriter(path, 1) as writer:
        writer.write(b"new")
        writer.write(b"new")
    assert read_all(path) == [b"old"]
    assert [each.name for each in tmp_path.iterdir()] == ["a.ffr"]


def test_names_end_as_other_readers_insist(tmp_path) -> None:
    with pytest.raises(InvalidArgument, match=r"end in \.ffr"):
        FFRecordWriter(tmp_path / "a.bin", 1)
    with pytest.raises(InvalidArgument, match="0 to"):
        FFRecordWriter(tmp_path / "a.ffr", -1)


# ---- damage


def test_a_flipped_bit_names_file_and_record(tmp_path) -> None:
    path = tmp_path / "a.ffr"
    data = bytearray(written_elsewhere(RECORDS))
    data[-2] ^= 1  # the last byte of the record before the last
    path.write_bytes(data)
    with pytest.raises(CorruptData, match="record 3 does not match its checksum") as caught:
        read_all(path)
    assert caught.value.filename == str(path)
    reader = BatchReader([open_records(path)])
    assert reader.read([4, 0]).arrays()[1].tobytes() == b"first", "others are read"
    reader.close()
    reader = BatchReader([open_records(path)], check=False)
    assert len(reader.read([3])) == 1
    reader.close()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 bytes are less than its header"),
        (b"short", "5 bytes are less"),
        (bytes(1000), "its writer was stopped"),
        (struct.pack("<Iq", 5, -1) + bytes(100), "a header of -1 records does not fit"),
        (struct.pack("<Iq", 5, 1 << 62) + bytes(100), "does not fit into 112 bytes"),
        (written_elsewhere(RECORDS)[:60], "a header of 5 records does not fit"),
        (struct.pack("<Iq", zlib.crc32(bytes(8)), 0) + b"rest", "4 bytes follow it"),
    ],
)
def test_what_is_no_file_of_the_format_is_refused(tmp_path, data: bytes, words: str) -> None:
    (tmp_path / "a.ffr").write_bytes(data)
    with pytest.raises(CorruptData, match=words) as caught:
        read_all(tmp_path / "a.ffr")
    assert caught.value.filename == str(tmp_path / "a.ffr")


@pytest.mark.parametrize(
    ("offsets", "words"),
    [
        ([37, 38], "record 0 begins at byte 37, not behind the header at 36"),
        ([36, 30], "record 0 ends before it begins"),
        ([36, 1 << 60], "record 1 begins behind the end"),
        ([36, -5], "record 0 ends before it begins"),
    ],
)
def test_offsets_that_lead_elsewhere_are_refused(tmp_path, offsets: list[int], words: str) -> None:
    """With a right checksum: the writer intended it."""
    rest = struct.pack("<q2I2q", 2, 0, 0, *offsets)
    (tmp_path / "a.ffr").write_bytes(struct.pack("<I", zlib.crc32(rest)) + rest + b"abc")
    with pytest.raises(CorruptData, match=words):
        read_all(tmp_path / "a.ffr")


def test_a_file_that_was_cut_off_names_what_is_missing(tmp_path) -> None:
    whole = written_elsewhere(RECORDS)
    for length in range(len(whole)):
        if length < 100 or length > len(whole) - 100 or length % 1000 == 0:
            (tmp_path / "a.ffr").write_bytes(whole[:length])
            with pytest.raises(CorruptData, match=r"record|header"):
                read_all(tmp_path / "a.ffr")


def test_no_mutation_of_a_file_goes_unnoticed(tmp_path) -> None:
    """Every byte of the header and of the records is covered by a checksum or a check."""
    random_source = random.Random(4)
    whole = written_elsewhere(RECORDS)
    path = tmp_path / "a.ffr"
    for position in [*range(80), *(random_source.randrange(80, len(whole)) for _ in range(60))]:
        data = bytearray(whole)
        data[position] ^= random_source.randrange(1, 256)
        path.write_bytes(data)
        with pytest.raises(CorruptData):
            read_all(path)
    for _ in range(200):
        data = bytearray(random_source.randbytes(random_source.randrange(12, 200)))
        data[4:12] = struct.pack("<q", random_source.choice([0, 1, 2, 5, -1, 1 << 40]))
        if random_source.random() < 0.5:
            data[:4] = bytes(4)
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(CorruptData):
                read_all(path)


def test_a_file_that_was_replaced_is_refused(tmp_path) -> None:
    path = tmp_path / "a.ffr"
    path.write_bytes(written_elsewhere([b"one"]))
    records = open_records(path)
    reader = BatchReader([records])
    path.unlink()
    path.write_bytes(written_elsewhere([b"another"]))
    with pytest.raises(CorruptData, match="was replaced"):
        reader.read([0])
    reader.close()


@pytest.mark.parametrize("number", [-1, 5, 1 << 40])
def test_numbers_outside_are_refused(tmp_path, number: int) -> None:
    (tmp_path / "a.ffr").write_bytes(written_elsewhere(RECORDS))
    records = open_records(tmp_path / "a.ffr")
    with pytest.raises(IndexError, match=f"records are 0 to 4, not {number}"):
        records.locate(np.array([1, number]))


def test_what_is_not_there_and_what_is_mixed(tmp_path) -> None:
    with pytest.raises(FileNotFoundError):
        open_records(tmp_path / "none.ffr")
    with pytest.raises(InvalidArgument, match="no file of a known format"):
        open_records(tmp_path)
    with pytest.raises(InvalidArgument, match=r"no \*\.ffr there"):
        open_records(tmp_path, format="ffrecord")
    with pytest.raises(InvalidArgument, match="not a format: 'csv'"):
        open_records(tmp_path, format="csv")
    with pytest.raises(InvalidArgument, match="several clusters"):
        open_records([tmp_path / "a.ffr", "luciola://h:1/a.ffr"])
    with pytest.raises(InvalidArgument, match="at least one file"):
        FFRecords(Place(None, LocalFileSystem()), [])
