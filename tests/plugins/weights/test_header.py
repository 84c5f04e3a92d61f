"""Headers of safetensors files: those of the library are understood, hostile ones refused with a reason."""

import json
import random

import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from luciola.errors import CorruptData
from luciola.plugins.weights.dtypes import DTYPES
from luciola.plugins.weights.header import encode_header, header_length, parse_header


def split(file: bytes):
    length = header_length(file[:8], len(file), "f")
    return parse_header(file[8 : 8 + length], len(file), "f")


def of(table, data_bytes=0, *, text=None):
    text = json.dumps(table).encode() if text is None else text
    return len(text).to_bytes(8, "little") + text + bytes(data_bytes)


def entry(dtype="U8", shape=(4,), offsets=(0, 4), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)} | more


def test_a_file_of_the_library():
    file = save(
        {"b": torch.zeros(2, 3, dtype=torch.bfloat16), "a": torch.zeros(()), "e": torch.zeros(0, 7)},
        {"k": "v"},
    )
    header = split(file)
    assert header.metadata == {"k": "v"}
    facts = {name: (info.dtype, info.shape, info.nbytes) for name, info in header.tensors.items()}
    assert facts == {"b": ("BF16", (2, 3), 12), "a": ("F32", (), 4), "e": ("F32", (0, 7), 0)}


GOOD = {"a": entry(), "b": entry(offsets=(4, 8))}


def test_the_good_one_is_good():
    file = of(GOOD | {"c": entry(shape=(0, 1 << 40), offsets=(8, 8)), "__metadata__": {}}, 8)
    assert list(split(file).tensors) == ["a", "b", "c"]
    assert split(of({})).tensors == {}


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (b"", "too few"),
        (b"\x01\0\0\0\0\0\0", "too few"),
        ((100_000_001).to_bytes(8, "little") + b"{", "at most 100000000"),
        ((1 << 63).to_bytes(8, "little") + b"{", "at most 100000000"),
        ((3).to_bytes(8, "little") + b"{}", "cut off"),
        (of(None, text=b""), "does not begin with"),
        (of(None, text=b" {}"), "does not begin with"),
        (of([]), "does not begin with"),
        (of(None, text=b"{"), "not JSON"),
        (of(None, text=b'{"\xff": 1}'), "not JSON"),
        (of(None, text=b"{} x"), "not JSON"),
        (of(None, text=b'{"a":' * 100_000), "not JSON"),
        (of(None, text=b'{"a": NaN}'), "NaN is not JSON"),
        (of(None, text=b'{"a": ' + b"9" * 5000 + b"}"), "not JSON"),
        (of(None, text=b'{"a": {}, "a": {}}'), "'a' occurs twice"),
        (
            of(None, 4, text=b'{"a": {"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]}}'),
            "occurs twice",
        ),
        (of(None, 4, text=b'{"\\ud800": {"dtype":"U8","shape":[4],"data_offsets":[0,4]}}'), "not Unicode"),
        (of({"__metadata__": {"a": 1}}), "not a table of texts"),
        (of({"__metadata__": "a"}), "not a table of texts"),
        (of({"a": 3}), "tensor 'a': needs dtype"),
        (of({"a": {"dtype": "U8", "shape": [4]}}, 4), "needs dtype"),
        (of({"a": entry("U9")}, 4), "unknown dtype 'U9'"),
        (of({"a": entry(["U8"])}, 4), "unknown dtype"),
        (of({"a": entry(shape=[-4])}, 4), "not a shape"),
        (of({"a": entry(shape=[4.0])}, 4), "not a shape"),
        (of({"a": entry(shape=[True, 4])}, 4), "not a shape"),
        (of({"a": entry(shape=[0, 1 << 63], offsets=(0, 0))}, 0), "not a shape"),
        (of({"a": entry(shape=[1] * 65, offsets=(0, 1))}, 1), "not a shape"),
        (of({"a": entry(offsets=(0,))}, 4), "not a pair of offsets"),
        (of({"a": entry(offsets=(0, 2, 4))}, 4), "not a pair of offsets"),
        (of({"a": entry(offsets=(-1, 3))}, 4), "not a pair of offsets"),
        (of({"a": entry(offsets=(4, 0))}, 4), "not within the 4 bytes"),
        (of({"a": entry(offsets=(0, 5))}, 4), "not within the 4 bytes"),
        (of({"a": entry(shape=(5,))}, 4), "has 5 bytes, its offsets say 4"),
        (of({"a": entry("F32", (1 << 31, 1 << 31))}, 4), "its offsets say 4"),
        (of({"a": entry("F6_E2M3", (1,), (0, 1))}, 1), "has 0.75 bytes"),
        (of({"a": entry("F4", (2, 3), (0, 3))}, 3), "a multiple of 2"),
        (of(GOOD, 9), "1 bytes behind tensor 'b' belong to no tensor"),
        (of({}, 1), "1 bytes behind the header"),
        (of(GOOD | {"b": entry(offsets=(5, 9))}, 9), "'b' leaves a gap behind tensor 'a'"),
        (of({"a": entry(offsets=(1, 5))}, 5), "'a' leaves a gap behind the header"),
        (of(GOOD | {"b": entry(offsets=(3, 7))}, 8), "'b' overlaps tensor 'a'"),
        (of(GOOD | {"b": entry(offsets=(0, 4))}, 4), "overlaps"),
    ],
)
def test_hostile_headers_are_refused(file, reason):
    with pytest.raises(CorruptData, match=reason) as caught:
        split(file)
    assert caught.value.filename == "f"


def test_flipped_bits_never_do_more_than_be_refused():
    """What we accept of damaged files, the library accepts too, and with the same tensors."""
    rng = random.Random(3)
    file = save({"weight": torch.zeros(3, 5), "bias": torch.zeros(7, dtype=torch.float16)}, {"k": "v"})
    accepted = 0
    for _ in range(3000):
        damaged = bytearray(file)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(8 + 150)] ^= 1 << rng.randrange(8)
        try:
            header = split(bytes(damaged))
        except CorruptData:
            continue
        accepted += 1
        theirs = {
            name: (each["dtype"], tuple(each["shape"]))
            for name, each in safetensors.deserialize(bytes(damaged))
        }
        assert {name: (info.dtype, info.shape) for name, info in header.tensors.items()} == theirs
    assert accepted > 50  # damage within a name is no damage to us


@settings(max_examples=40)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=("Cs",))).filter(lambda name: name != "__metadata__"),
        st.tuples(
            st.sampled_from(sorted(set(DTYPES) - {"F6_E2M3", "F6_E3M2"})),
            st.lists(st.integers(0, 4), max_size=4),
        ),
        max_size=5,
    ),
    st.dictionaries(st.text(st.characters(exclude_categories=("Cs",))), st.text(), max_size=2),
)
def test_encoding_and_parsing_are_inverse(tensors, metadata):
    entries = {}
    for name, (dtype, sizes) in tensors.items():
        shape = (*sizes, 2) if dtype == "F4" else tuple(sizes)
        count = 1
        for size in shape:
            count *= size
        entries[name] = (dtype, shape, count * DTYPES[dtype].bits // 8)
    metadata = {key: value.encode("utf-8", "replace").decode() for key, value in metadata.items()}
    head = encode_header(entries, metadata)
    assert len(head) % 8 == 0
    header = split(head + bytes(sum(nbytes for *_, nbytes in entries.values())))
    assert {name: (info.dtype, info.shape, info.nbytes) for name, info in header.tensors.items()} == entries
    assert header.metadata == metadata
