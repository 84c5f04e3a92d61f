"""Records that no dump has are refused, each with its reason."""

import pytest

from luciola.errors import Error, InvalidArgument
from luciola.meta.load_checks import RecordChecks
from luciola.wire.pb import meta_pb2 as pb

HEADER = pb.DumpHeader(next_inode=1000, next_content=1000)
LAYOUT = pb.Layout(table=1, table_version=1, chunk_bytes=1 << 20, stripe=1, permutation_version=1)


def inode(number: int, kind=pb.FIFO, **fields) -> pb.DumpRecord:
    fields = {"link_count": 2 if kind == pb.DIRECTORY else 1} | fields
    return pb.DumpRecord(inode=pb.Inode(id=number, type=kind, **fields))


def file(number: int = 16, **fields) -> pb.DumpRecord:
    return inode(number, pb.REGULAR, **({"content": 20, "layout": LAYOUT} | fields))


def link(target: bytes, **fields) -> pb.DumpRecord:
    return inode(16, pb.SYMLINK, symlink_target=target, **({"length": len(target)} | fields))


def attribute(of: int, name: bytes, value: bytes = b"") -> pb.DumpRecord:
    return pb.DumpRecord(attribute=pb.DumpedAttribute(inode=of, name=name, value=value))


def entry(directory: int, name: bytes, to: int = 16, kind=pb.FIFO, cookie=0) -> pb.DumpRecord:
    return pb.DumpRecord(
        entry=pb.ScannedDentry(
            parent=directory, entry=pb.Dentry(name=name, inode=to, type=kind, cookie=cookie)
        )
    )


ROOT = inode(1, pb.DIRECTORY)


def check(*records: pb.DumpRecord, new_contents: bool = False) -> pb.DumpTrailer:
    checks = RecordChecks(HEADER, new_contents=new_contents, is_known=lambda layout: layout.table == 1)
    for record in records:
        checks.check(record)
    return checks.seen


def test_records_of_a_dump_are_counted():
    found = [
        inode(1, pb.DIRECTORY, link_count=3),
        attribute(1, b"trusted.x"),
        attribute(1, b"user.a", bytes(65_536)),
        entry(1, b"a"),
        entry(1, b"b", cookie=17),
        inode(16, link_count=2),
        inode(17, pb.DIRECTORY),
        file(18, length=5, is_inline=True, inline_data=b"12345"),
        file(19, length=1 << 40),
        inode(21, pb.DIRECTORY, link_count=0),
    ]
    assert check(*found) == pb.DumpTrailer(inodes=6, attributes=2, entries=2)
    assert check(ROOT, link(b"x" * 4095)).inodes == 2


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ([inode(16)], "first inode is the root"),
        ([inode(1)], "first inode is the root"),
        ([entry(1, b"a")], "does not follow its directory"),
        ([ROOT, ROOT], "ids grow"),
        ([ROOT, inode(17), inode(16)], "ids grow"),
        ([ROOT, inode(15)], "id below"),
        ([ROOT, inode(1000)], "next_inode"),
        ([ROOT, inode(16, pb.TYPE_INVALID)], "type"),
        ([ROOT, inode(16, permissions=0o10000)], "permissions"),
        ([ROOT, inode(16, content=5)], "only files"),
        ([ROOT, inode(16, inline_data=b"x")], "only files"),
        ([ROOT, inode(16, symlink_target=b"x")], "only symbolic links"),
        ([ROOT, inode(16, layout=LAYOUT)], "only files and directories"),
        ([ROOT, inode(16, pb.DIRECTORY, link_count=1)], "at least 2"),
        ([ROOT, inode(16, link_count=65_536)], "at most 65535"),
        ([ROOT, link(b"")], "target"),
        ([ROOT, link(b"x" * 4096)], "target"),
        ([ROOT, link(b"a\0")], "target"),
        ([ROOT, link(b"a", length=2)], "length of a link"),
        ([ROOT, file(content=0)], "next_content"),
        ([ROOT, file(content=1000)], "next_content"),
        ([ROOT, file(layout=None)], "has a layout"),
        ([ROOT, file(layout=pb.Layout(table=1, chunk_bytes=5, stripe=1))], "layout.chunk_bytes"),
        ([ROOT, file(layout=pb.Layout(table=2, chunk_bytes=1 << 20, stripe=1))], "chain table 2"),
        ([ROOT, file(length=1 << 63)], "too long"),
        ([ROOT, file(inline_data=b"x", length=1)], "in chunks"),
        ([ROOT, file(is_inline=True, inline_data=b"xy", length=1)], "than the file"),
        ([ROOT, file(is_inline=True, inline_data=bytes(65_537), length=1 << 20)], "inline bytes"),
        ([ROOT, inode(16), attribute(1, b"user.a")], "does not follow its inode"),
        ([ROOT, attribute(1, b"")], "name of an attribute"),
        ([ROOT, attribute(1, b"user." + b"x" * 251)], "name of an attribute"),
        ([ROOT, attribute(1, b"user.b"), attribute(1, b"user.a")], "by name"),
        ([ROOT, attribute(1, b"user.a"), attribute(1, b"user.a")], "by name"),
        ([ROOT, attribute(1, b"user.a", bytes(65_537))], "value"),
        ([ROOT, entry(1, b"a"), attribute(1, b"user.a")], "before entries"),
        ([ROOT, inode(16), entry(16, b"a")], "does not follow its directory"),
        ([ROOT, inode(16, pb.DIRECTORY), entry(1, b"a")], "does not follow its directory"),
        ([ROOT, entry(1, b"a/b")], "not a file name"),
        ([ROOT, entry(1, b"..")], "not a file name"),
        ([ROOT, entry(1, b"x" * 256)], "too long"),
        ([ROOT, entry(1, b"b"), entry(1, b"a")], "by name"),
        ([ROOT, entry(1, b"a"), entry(1, b"a")], "by name"),
        ([ROOT, entry(1, b"a", to=1000)], "next_inode"),
        ([ROOT, entry(1, b"a", to=1)], "next_inode"),
        ([ROOT, entry(1, b"a", cookie=1000)], "cookie"),
        ([ROOT, entry(1, b"a", cookie=2)], "cookie"),
        ([ROOT, entry(1, b"a", kind=pb.TYPE_INVALID)], "type"),
        ([ROOT, pb.DumpRecord()], "no such record"),
        ([ROOT, pb.DumpRecord(header=HEADER)], "no header"),
        ([ROOT, pb.DumpRecord(trailer=pb.DumpTrailer())], "no trailer"),
        ([ROOT, pb.DumpRecord(inode=inode(16).inode, entry=entry(1, b"a").entry)], "no such record"),
    ],
)
def test_record_that_cannot_be_is_refused(records, reason):
    check(*records[:-1])
    with pytest.raises(InvalidArgument, match=reason):
        check(*records)


def test_new_contents_are_given_here():
    check(ROOT, file(content=0), new_contents=True)
    with pytest.raises(Error, match="must have none"):
        check(ROOT, file(), new_contents=True)
