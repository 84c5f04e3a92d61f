"""Token files: the published bytes, files by other writers, windows, and files that are damaged or hostile."""

import random
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luciola.errors import CorruptData, InvalidArgument
from luciola.plugins.dataset import Loader, MapDataset, TokenWriter, open_records
from luciola.plugins.dataset.reader import BatchReader
from luciola.plugins.dataset.tokens import DTYPES


def index_bytes(code: int, itemsize: int, lengths: list[int], documents: list[int]) -> bytes:
    """The format as its description says, independent of our code."""
    data = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(lengths), len(documents))
    data += struct.pack(f"<{len(lengths)}i", *lengths)
    data += struct.pack(
        f"<{len(lengths)}q", *(sum(lengths[:each]) * itemsize for each in range(len(lengths)))
    )
    return data + struct.pack(f"<{len(documents)}q", *documents)


def read_all(path, **options) -> list[list[int]]:
    records = open_records(path, **options)
    reader = BatchReader([records])
    try:
        numbers = np.arange(len(records))
        return [each.tolist() for each in records.samples(numbers, reader.read(numbers).arrays())]
    finally:
        reader.close()


def test_the_bytes_are_those_of_the_format(tmp_path) -> None:
    with TokenWriter(tmp_path / "text", dtype="uint16") as writer:
        writer.write([1, 2, 65535], ends_document=False)
        writer.write([])
        writer.write(np.array([7], np.int64), ends_document=False)
    assert (tmp_path / "text.bin").read_bytes() == bytes.fromhex("0100 0200 ffff 0700")
    assert (tmp_path / "text.idx").read_bytes() == index_bytes(8, 2, [3, 0, 1], [0, 2, 3])
    assert sorted(each.name for each in tmp_path.iterdir()) == ["text.bin", "text.idx"]
    for name in ("text", "text.idx", "text.bin"):
        assert read_all(tmp_path / name, format="tokens") == [[1, 2, 65535], [], [7]]
    assert read_all(tmp_path / "text.bin") == read_all(tmp_path) == [[1, 2, 65535], [], [7]]


@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_what_is_written_is_read(tmp_path_factory, data) -> None:
    code, name = data.draw(st.sampled_from(sorted(DTYPES.items())))
    low, high = (-100, 100) if name[0] in "if" else (0, 200)
    sequences = data.draw(st.lists(st.lists(st.integers(low, high), max_size=40), max_size=20))
    path = tmp_path_factory.mktemp("tokens") / "t"
    with TokenWriter(path, dtype=name) as writer:
        for sequence in sequences:
            writer.write(sequence)
    assert read_all(f"{path}.idx") == sequences
    itemsize = np.dtype(name).itemsize
    wanted = index_bytes(code, itemsize, [len(each) for each in sequences], list(range(len(sequences) + 1)))
    assert path.with_suffix(".idx").read_bytes() == wanted


def test_index_that_was_replaced_is_refused(tmp_path) -> None:
    with TokenWriter(tmp_path / "text", dtype="uint16") as writer:
        writer.write([1, 2])
    records = open_records(tmp_path / "text.bin")
    (tmp_path / "text.idx").unlink()
    (tmp_path / "text.idx").write_bytes(index_bytes(8, 2, [2], [0, 1]))
    with pytest.raises(CorruptData, match="was replaced"):
        records.read_index(records.files[0])


def test_windows_cross_documents_and_overlap_by_one(tmp_path) -> None:
    with TokenWriter(tmp_path / "a", dtype="int32") as writer:
        writer.write(np.arange(7))
        writer.write(np.arange(7, 13))
    assert read_all(tmp_path, window=4) == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8], [8, 9, 10, 11, 12]]
    assert read_all(tmp_path, window=5) == [[0, 1, 2, 3, 4, 5], [5, 6, 7, 8, 9, 10]]
    assert read_all(tmp_path, window=13) == []
    with pytest.raises(InvalidArgument, match="at least one token, not 0"):
        open_records(tmp_path, window=0)
    dataset = MapDataset(open_records(tmp_path, window=4))
    (batch,) = Loader(dataset, global_batch_size=3, shuffle=False)
    assert batch[:, 1:].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]], "labels"
    dataset.close()


def test_an_index_with_kinds_of_tokens_is_read(tmp_path) -> None:
    (tmp_path / "m.bin").write_bytes(bytes(range(5)))
    (tmp_path / "m.idx").write_bytes(index_bytes(1, 1, [2, 3], [0, 1, 2]) + b"\x00\x01")
    assert read_all(tmp_path / "m.idx") == [[0, 1], [2, 3, 4]]


def test_files_of_several_types_are_refused(tmp_path) -> None:
    for name in ("int32", "uint16"):
        with TokenWriter(tmp_path / name, dtype=name) as writer:
            writer.write([1])
    with pytest.raises(InvalidArgument, match="several types: i4, u2"):
        open_records(tmp_path)


@pytest.mark.parametrize(
    ("dtype", "tokens", "words"),
    [
        ("uint16", [65536], "tokens of 65536 to 65536 do not fit into uint16"),
        ("uint8", [-1, 3], "tokens of -1 to 3 do not fit"),
        ("int32", [1.5], "do not fit into int32"),
        ("int32", [[1]], "one dimension, not 2"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(tmp_path, dtype: str, tokens, words: str) -> None:
    with pytest.raises(ValueError, match=words), TokenWriter(tmp_path / "t", dtype=dtype) as writer:
        writer.write(tokens)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="the writer is closed"):
        writer.write([1])
    with pytest.raises(InvalidArgument, match="no tokens of complex128"):
        TokenWriter(tmp_path / "t", dtype="complex128")


def test_replacing_a_data_set_leaves_no_index_of_other_tokens(tmp_path) -> None:
    with TokenWriter(tmp_path / "t", dtype="uint8") as writer:
        writer.write([1, 2])
    with TokenWriter(tmp_path / "t", dtype="uint8") as writer:
        writer.write([3])
        assert read_all(tmp_path) == [[1, 2]], "until the new one is complete"
    assert read_all(tmp_path) == [[3]]


# ---- damage

GOOD = index_bytes(1, 1, [2, 3], [0, 1, 2])


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (b"", "0 bytes are less than its header"),
        (b"X" + GOOD[1:], "does not begin with MMIDIDX"),
        (GOOD[:9] + b"\x02" + GOOD[10:], "an index of version 2"),
        (GOOD[:17] + b"\x09" + GOOD[18:], "tokens of type 9: types are 1, 2, 3, 4, 5, 6, 7, 8"),
        (GOOD[:-1], "the index was cut off or is damaged"),
        (
            GOOD[:18] + struct.pack("<Q", 1 << 63) + GOOD[26:],
            "cut off or is damaged: 9223372036854775808 sequences",
        ),
        (index_bytes(1, 1, [2, -3], [0, 2]), "sequence 1 is at bytes 2 to -1"),
        (index_bytes(1, 1, [2, 4], [0, 2]), "sequence 1 is at bytes 2 to 6, but the tokens are 5 bytes"),
        (index_bytes(1, 1, [2, 2], [0, 2]), "ends at byte 4, but there are 5 bytes"),
        (index_bytes(1, 1, [2, 3], [0, 3]), "documents do not grow from 0 to 2"),
        (index_bytes(1, 1, [2, 3], [1, 2]), "documents do not grow"),
        (index_bytes(3, 1, [1, 1], [0, 2]), "sequence 1 is at bytes 1 to 3"),
        (index_bytes(1, 1, [], [0]), "ends at byte 0, but there are 5 bytes"),
    ],
)
def test_forged_index_is_refused(tmp_path, index: bytes, words: str) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(5))
    (tmp_path / "a.idx").write_bytes(index)
    for options in ({}, {"window": 2}):
        with pytest.raises(CorruptData, match=words) as caught:
            read_all(tmp_path / "a.idx", **options)
        assert caught.value.filename == str(tmp_path / "a.idx")


def test_no_mutation_leads_outside(tmp_path) -> None:
    """Either an error that names the file, or tokens that are in it."""
    random_source = random.Random(6)
    (tmp_path / "a.bin").write_bytes(bytes(range(5)))
    refused = 0
    for _ in range(400):
        data = bytearray(GOOD)
        for _ in range(random_source.choice([1, 1, 2, 8])):
            data[random_source.randrange(len(data))] = random_source.choice([0, 1, 5, 127, 128, 255])
        if random_source.random() < 0.2:
            del data[random_source.randrange(len(data)) :]
        (tmp_path / "a.idx").write_bytes(data)
        try:
            sequences = read_all(tmp_path / "a.idx")
        except CorruptData:
            refused += 1
        else:
            assert {token for each in sequences for token in each} <= set(range(256))
    assert refused > 300


def test_missing_half_is_an_error(tmp_path) -> None:
    (tmp_path / "a.idx").write_bytes(GOOD)
    with pytest.raises(FileNotFoundError, match=r"a\.bin"):
        open_records(tmp_path / "a.idx")
    (tmp_path / "b.bin").write_bytes(b"12345")
    with pytest.raises(FileNotFoundError, match=r"b\.idx"):
        open_records(tmp_path / "b.bin")
