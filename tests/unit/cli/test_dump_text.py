"""Dumps as text: what was written is read again, and anything else is refused with its line."""

import gzip
import hashlib
import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luciola.cli.dump import open_output
from luciola.cli.dump_text import LINE_BYTES_MAX, TextReader, TextWriter
from luciola.cli.load import _verify, without_chunks
from luciola.errors import InvalidArgument, IsADirectory
from luciola.meta.load_checks import RecordChecks
from luciola.wire.pb import meta_pb2 as pb

FORMATS = Path(__file__).parents[3] / "docs" / "formats.md"
ROOT = pb.Inode(id=1, type=pb.DIRECTORY, permissions=0o755, link_count=2, parent=1, change=5)
LAYOUT = pb.Layout(
    table=1, table_version=2, chunk_bytes=1 << 20, stripe=3, permutation_version=1, seed=2**64 - 1
)
FILE = pb.Inode(
    id=16, type=pb.REGULAR, permissions=0o4644, link_count=1, length=9, content=16, layout=LAYOUT, mtime_ns=-1
)


def a_dump(*records: pb.DumpRecord) -> list[pb.DumpRecord]:
    header = pb.DumpHeader(
        format=1,
        cluster="c",
        store=2**63 + 1,
        generation=1,
        next_inode=100,
        next_content=100,
        moment_ns=10**18 + 1,
    )
    counts = {
        f"{kind}s" if kind != "entry" else "entries": sum(record.HasField(kind) for record in records)
        for kind in ("inode", "attribute", "entry")
    }
    trailer = pb.DumpTrailer(**counts)
    return [pb.DumpRecord(header=header), *records, pb.DumpRecord(trailer=trailer)]


def write(records) -> bytes:
    output = io.BytesIO()
    writer = TextWriter(output)
    for record in records:
        writer.write(record)
    return output.getvalue()


def read(text: bytes) -> list[pb.DumpRecord]:
    return list(TextReader(io.BytesIO(text)))


def signed(lines: list[bytes]) -> bytes:
    """Lines up to the trailer, with a checksum that fits them."""
    body = b"".join(line + b"\n" for line in lines[:-1])
    trailer = json.loads(lines[-1]) | {"sha256": hashlib.sha256(body).hexdigest()}
    return body + json.dumps(trailer).encode() + b"\n"


anything = st.binary(max_size=20) | st.text(max_size=10).map(lambda text: text.encode(errors="surrogatepass"))
nanoseconds = st.integers(-(2**63), 2**63 - 1)
inodes = st.builds(
    pb.Inode,
    id=st.integers(0, 2**64 - 1),
    type=st.just(pb.REGULAR),
    permissions=st.integers(0, 0o7777),
    uid=st.integers(0, 2**32 - 1),
    length=st.integers(0, 2**64 - 1),
    atime_ns=nanoseconds,
    mtime_ns=nanoseconds,
    ctime_ns=nanoseconds,
    birth_ns=st.integers(0, 2**64 - 1),
    change=st.integers(0, 2**64 - 1),
    content=st.integers(0, 2**64 - 1),
    is_inline=st.just(True),
    inline_data=anything,
    open_for_writing=st.booleans(),
    layout=st.builds(
        pb.Layout, seed=st.integers(0, 2**64 - 1), stripe=st.integers(0, 9), inline_bytes=st.just(0)
    ),
)
attributes = st.builds(pb.DumpedAttribute, inode=st.integers(0, 2**64 - 1), name=anything, value=anything)
dentries = st.builds(
    pb.Dentry,
    name=anything,
    inode=st.integers(0, 99),
    type=st.just(pb.FIFO),
    cookie=st.integers(0, 2**63 - 1),
)
entries = st.builds(pb.ScannedDentry, parent=st.integers(0, 2**63 - 1), entry=dentries)


@given(
    st.lists(
        st.builds(pb.DumpRecord, inode=inodes)
        | st.builds(pb.DumpRecord, attribute=attributes)
        | st.builds(pb.DumpRecord, entry=entries),
        max_size=5,
    )
)
def test_records_are_read_as_they_were_written(records):
    found = a_dump(*records)
    text = write(found)
    assert read(text) == found
    assert text.count(b"\n") == len(found)
    assert text.decode() == text.decode().encode().decode()


def test_example_in_the_documents_is_a_dump():
    (example,) = re.findall(r"```json\n(.*?)```", FORMATS.read_text(), re.DOTALL)
    header, *found, trailer = read(signed(example.encode().splitlines()))
    checks = RecordChecks(header.header, new_contents=False, is_known=lambda _: True)
    for record in found:
        checks.check(record)
    assert checks.seen == trailer.trailer


def test_other_readers_of_json_lose_no_digit():
    """Many of them keep 53 bits of a number."""

    def numbers(value):
        if isinstance(value, dict):
            return [number for each in value.values() for number in numbers(each)]
        return [value] if isinstance(value, int) else []

    for line in write(a_dump(pb.DumpRecord(inode=ROOT), pb.DumpRecord(inode=FILE))).splitlines():
        assert all(number < 2**53 for number in numbers(json.loads(line)))


def test_dump_that_was_cut_off_anywhere_is_refused():
    text = write(a_dump(pb.DumpRecord(inode=ROOT), pb.DumpRecord(inode=FILE)))
    for length in range(len(text)):
        with pytest.raises(InvalidArgument, match=r"line [1-4] of the dump: "):
            read(text[:length])


def test_changed_byte_is_refused():
    text = bytearray(write(a_dump(pb.DumpRecord(inode=ROOT), pb.DumpRecord(inode=FILE))))
    for index in range(len(text)):
        text[index] ^= 1
        with pytest.raises(InvalidArgument, match=r"line [1-5] of the dump: "):
            read(bytes(text))
        text[index] ^= 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"garbage", "not JSON"),
        (b"[]", '"record" must be one of'),
        (b'{"record":"dentry"}', '"record" must be one of'),
        (b'{"record":["inode"]}', '"record" must be one of'),
        (b"[" * 100_000, "not JSON"),
        (b'{"record":"header"}', "must be a number"),
        (b'{"record":"entry","directory":1,"name":"a","inode":2,"type":"door"}', "'type' must be one of"),
        (
            b'{"record":"entry","directory":1,"name":"a","inode":2,"type":"fifo","x":1}',
            "unknown fields of entry: x",
        ),
        (
            b'{"record":"entry","directory":1,"name":"a","inode":true,"type":"fifo"}',
            "'inode' must be a number",
        ),
        (b'{"record":"entry","directory":-1,"name":"a","inode":2,"type":"fifo"}', "out of range"),
        (b'{"record":"entry","directory":1,"name":7,"inode":2,"type":"fifo"}', "'name' must be a string or"),
        (b'{"record":"entry","directory":1,"name":{"base64":"#"},"inode":2,"type":"fifo"}', "'name'"),
        (b'{"record":"entry","directory":1,"name":{"base64":1},"inode":2,"type":"fifo"}', "'name'"),
        (b'{"record":"entry","directory":1,"name":"\\udcff","inode":2,"type":"fifo"}', "'name'"),
        (b'{"record":"attribute","inode":1,"name":"user.a"}', "'value' must be a string or"),
        (b'"' + b"x" * LINE_BYTES_MAX + b'"', "longer than"),
    ],
)
def test_line_that_is_no_record_is_refused_with_its_number(line, reason):
    lines = write(a_dump(pb.DumpRecord(inode=ROOT))).splitlines()
    text = signed([*lines[:2], line, lines[-1]])
    with pytest.raises(InvalidArgument, match="line 3 of the dump: ") as caught:
        read(text)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mode": "8"}, "'mode' must be digits"),
        ({"mode": 420}, "'mode' must be a string"),
        ({"mtime": "1.5"}, "'mtime' must be seconds with nine digits"),
        ({"mtime": "99999999999.000000000"}, "out of range"),
        ({"change": "1e5"}, "'change' must be digits"),
        ({"layout": {"seed": 5}}, "'seed' must be a string"),
        ({"layout": {"colour": 5}}, "unknown field of 'layout': colour"),
        ({"layout": []}, "'layout' must be an object"),
        ({"target": "x"}, "unknown fields of inode: target"),
        ({"writing": 1}, "'writing' must be true or false"),
    ],
)
def test_inode_that_is_none_is_refused(change, reason):
    lines = write(a_dump(pb.DumpRecord(inode=ROOT), pb.DumpRecord(inode=FILE))).splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | change).encode()
    with pytest.raises(InvalidArgument, match="line 3 of the dump: ") as caught:
        read(signed(lines))
    assert reason in str(caught.value)


def test_header_comes_first_and_once_and_the_trailer_last():
    lines = write(a_dump(pb.DumpRecord(inode=ROOT))).splitlines()
    for wrong, line in (([lines[1], lines[2]], 1), ([lines[0], lines[0], lines[2]], 2)):
        with pytest.raises(InvalidArgument, match=f"line {line} of the dump: .*header"):
            read(signed(wrong))
    with pytest.raises(InvalidArgument, match="line 3 of the dump: something follows"):
        read(signed(lines) + b"\n")


def test_whole_file_is_read_before_anything_is_changed(tmp_path):
    whole = write(a_dump(pb.DumpRecord(inode=ROOT), pb.DumpRecord(inode=FILE)))
    path = tmp_path / "dump"
    path.write_bytes(whole)
    _verify(str(path))
    packed = gzip.compress(whole)
    path = tmp_path / "dump.gz"
    path.write_bytes(packed)
    _verify(str(path))
    for damaged in (packed[:-20], packed[:-8] + b"12345678", packed[:20] + bytes(20) + packed[40:], whole):
        path.write_bytes(damaged)
        with pytest.raises(InvalidArgument, match="damaged or cut off"):
            _verify(str(path))
    second = pb.DumpRecord(inode=pb.Inode(id=15, type=pb.FIFO))
    (tmp_path / "low").write_bytes(write(a_dump(pb.DumpRecord(inode=ROOT), second)))
    with pytest.raises(InvalidArgument, match="line 3 of the dump: no inode but the root"):
        _verify(str(tmp_path / "low"))


def test_output_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "dump.gz"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), open_output(str(path)) as output:
        output.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    with open_output(str(path)) as output:
        output.write(b"whole")
    assert gzip.decompress(path.read_bytes()) == b"whole"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["dump.gz"]
    with pytest.raises(IsADirectory), open_output(str(tmp_path)):
        pass


def test_files_without_their_chunks_are_empty_so_that_a_copy_fills_them():
    file = pb.Inode()
    file.CopyFrom(FILE)
    assert without_chunks(file)
    assert (file.length, file.content, file.layout.table, file.layout.stripe) == (0, 0, 0, 3)
    small = pb.Inode(
        id=17, type=pb.REGULAR, is_inline=True, inline_data=b"x", length=1, content=7, layout=LAYOUT
    )
    assert not without_chunks(small)
    assert (small.inline_data, small.length, small.content) == (b"x", 1, 0)
    directory = pb.Inode(id=18, type=pb.DIRECTORY, layout=pb.Layout(table=3, stripe=2))
    assert not without_chunks(directory)
    assert directory.layout == pb.Layout(stripe=2)
