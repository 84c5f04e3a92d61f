"""The file's bytes against their drawing in docs/formats.md: offsets and sizes come from that page."""

import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from luciola_core import crc32c

from luciola.errors import CorruptData, InvalidArgument
from luciola.plugins.flashmla.page_format import (
    Entry,
    Header,
    PageLayout,
    decode_entry,
    decode_header,
    encode_entry,
    encode_header,
    fingerprint,
)

DRAWING = Path(__file__).parents[3] / "docs" / "formats.md"


def drawn(title):
    """{first word of the meaning: (offset, size)} of the drawing under that title, as texts."""
    section = DRAWING.read_text().split("## A file of KV pages")[1]
    block = section.split(f"\n{title}")[1].split("```")[1]
    rows = re.findall(r"^(\S+) +(\S+) +(\w+)", block, re.MULTILINE)
    return {name: (offset, size) for offset, size, name in rows}


def field(data, place, layers=0, entry=0):
    known = {"L": layers, "E": entry}
    offset, size = (
        eval(re.sub(r"(\d)([LE])", r"\1*\2", text), {}, known)  # numbers of our own page
        for text in place
    )
    return data[offset : offset + size]


def number(data, place, **named):
    return int.from_bytes(field(data, place, **named), "little")


def entry_of(layers, **changes):
    values = {"tokens": 7, "generation": 1 << 40, "key": bytes(range(32)), "parent": b"\xee" * 32, "depth": 3}
    return Entry(**{**values, **changes}, checksums=tuple(range(100, 100 + layers)))


@given(
    layers=st.integers(1, 300),
    kind=st.sampled_from(["bf16", "fp16", "fp8-v32", "fp8-model1"]),
    tokens=st.integers(1, 200),
    capacity=st.integers(1, 10**6),
)
def test_header_is_as_drawn(layers, kind, tokens, capacity):
    layout = PageLayout(layers, kind, tokens)
    block = encode_header(Header(layout, capacity, fingerprint("m", layout)))
    rows = drawn("Header:")
    assert len(block) == 4096
    assert field(block, rows["magic"]) == b"luciola kv pages"
    values = {
        name: number(block, rows[name]) for name in rows if name not in {"magic", "model", "kind", "zeros"}
    }
    assert values["format"] == 1
    assert (values["layers"], values["page_tokens"], values["kv_heads"]) == (layers, tokens, 1)
    assert values["layer_stride"] == layout.layer_stride
    assert values["record_bytes"] == layout.record_bytes
    assert (values["capacity"], values["entry_bytes"]) == (capacity, layout.entry_bytes)
    assert field(block, rows["kind"]).rstrip(b"\0").decode() == kind
    assert not any(field(block, rows["zeros"]))
    assert values["checksum"] == crc32c(block[:4092])
    assert decode_header(block, "x") == Header(layout, capacity, fingerprint("m", layout))


@given(layers=st.integers(1, 300))
def test_entry_is_as_drawn(layers):
    layout = PageLayout(layers)
    data = encode_entry(entry_of(layers), layout)
    rows = drawn("Entry of a page")
    named = {"layers": layers, "entry": layout.entry_bytes}
    last = str(layout.entry_bytes - 4)
    assert number(data, rows["used"]) == 1
    assert number(data, rows["tokens"]) == 7
    assert number(data, rows["generation"]) == 1 << 40
    assert field(data, rows["key"]) == bytes(range(32))
    assert field(data, rows["parent"]) == b"\xee" * 32
    assert (number(data, rows["depth"]), number(data, rows["layers"])) == (3, layers)
    sums = struct.unpack(f"<{layers}I", field(data, ("88", "4L"), **named))
    assert sums == tuple(range(100, 100 + layers))
    assert rows["checksum"] == ("E-4", "4")
    assert number(data, (last, "4")) == crc32c(data[:-4])
    assert decode_entry(data, layout) == entry_of(layers)


@given(
    layers=st.integers(1, 1000),
    kind=st.sampled_from(["bf16", "fp8-v32", "fp8-model1"]),
    tokens=st.integers(1, 130),
)
def test_sizes_are_aligned_as_promised(layers, kind, tokens):
    layout = PageLayout(layers, kind, tokens)
    assert layout.layer_stride % 512 == 0
    assert layout.layer_stride >= layout.layer_bytes
    assert layout.record_bytes % 4096 == 0
    assert layout.record_bytes >= layers * layout.layer_stride
    least = 92 + 4 * layers
    entry = layout.entry_bytes
    assert entry >= least
    assert 512 % entry == 0 if least <= 512 else entry % 512 == 0, "no entry straddles a sector"
    header = Header(layout, 1000, bytes(32))
    assert header.clocks_offset == 4096
    assert header.entries_offset == 4096 + -(-8 * 1000 // 4096) * 4096
    assert header.records_offset == header.entries_offset + -(-entry * 1000 // 4096) * 4096
    assert header.record_offset(3) == header.records_offset + 3 * layout.record_bytes


@pytest.mark.parametrize(("kind", "size"), [("bf16", 73728), ("fp8-v32", 41984), ("fp8-model1", 37440)])
def test_a_page_is_what_the_kernels_work_on(kind, size):
    assert PageLayout(1, kind).layer_bytes == size


@given(place=st.integers(0, 4095), bit=st.integers(0, 7))
def test_a_changed_header_is_refused(place, bit):
    layout = PageLayout(2)
    block = bytearray(encode_header(Header(layout, 5, fingerprint("m", layout))))
    block[place] ^= 1 << bit
    with pytest.raises((CorruptData, InvalidArgument)) as caught:
        decode_header(bytes(block), "/some/file")
    assert caught.value.filename == "/some/file"


@given(place=st.integers(0, 127), bit=st.integers(0, 7))
def test_a_changed_entry_is_none(place, bit):
    layout = PageLayout(2)
    data = bytearray(encode_entry(entry_of(2), layout))
    data[place] ^= 1 << bit
    assert decode_entry(bytes(data), layout) is None


def test_a_newer_format_says_so():
    block = bytearray(encode_header(Header(PageLayout(1), 5, bytes(32))))
    block[16] = 2
    block[-4:] = crc32c(bytes(block[:-4])).to_bytes(4, "little")
    with pytest.raises(InvalidArgument, match="format 2 is not known here"):
        decode_header(bytes(block), "f")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": 0}, "layers is 0; it must be 1 to 4096"),
        ({"layers": 1, "kind": "int4"}, "kind is 'int4'; it must be one of bf16"),
        ({"layers": 1, "page_tokens": -1}, "page_tokens is -1"),
        ({"layers": 1, "kind": "fp8-v32", "kv_heads": 2}, "an FP8 cache has 1"),
    ],
)
def test_a_bad_layout_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PageLayout(**arguments)


def test_models_and_layouts_do_not_share_keys():
    layouts = [PageLayout(2), PageLayout(3), PageLayout(2, "fp16"), PageLayout(2, page_tokens=32)]
    assert len({fingerprint(model, layout) for layout in layouts for model in ("a", "b")}) == 8
