"""Attributes, extended attributes, listings, and the numbers of the whole."""

import pytest

from luciola.errors import (
    AlreadyExists,
    InvalidArgument,
    NotADirectory,
    NotFound,
    PermissionDenied,
    Unsupported,
)
from luciola.ids import ROOT_INODE
from luciola.meta import schema
from luciola.meta.operations.list import INLINE_DATA_TAG
from luciola.wire import ADMIN, TRUSTED, methods
from luciola.wire.pb import meta_pb2 as pb
from luciola.wire.pb.common_pb2 import Empty
from luciola.wire.pb.mgmtd_pb2 import ChainTable

from .world import ALICE, BOB, CHAINS, CHUNK, ROOT, refused


class TestSetAttr:
    def test_chmod(self, world):
        world.set_attr(b"", permissions=0o777)
        before = world.create(b"f", user=ALICE).inode
        after = world.set_attr(b"f", permissions=0o4751, user=ALICE)
        assert after.permissions == 0o4751
        assert after.ctime_ns > before.ctime_ns
        assert after.mtime_ns == before.mtime_ns
        assert after.change == before.change + 1
        with refused(PermissionDenied, 1):
            world.set_attr(b"f", permissions=0o777, user=BOB)
        assert world.set_attr(b"f", permissions=0o107777).permissions == 0o7777

    def test_chown(self, world):
        world.set_attr(b"", permissions=0o777)
        world.create(b"f", user=ALICE, permissions=0o755)
        world.set_attr(b"f", permissions=0o6755)
        mine = world.set_attr(b"f", gid=50, user=ALICE, groups=(50,))
        assert (mine.uid, mine.gid, mine.permissions) == (1000, 50, 0o755)
        for ids in ({"uid": 1001}, {"gid": 51}, {"uid": 1000, "gid": 51}):
            with refused(PermissionDenied, 1):
                world.set_attr(b"f", user=ALICE, groups=(50,), **ids)
        with refused(PermissionDenied, 1):
            world.set_attr(b"f", gid=1001, user=BOB)
        given = world.set_attr(b"f", uid=1001, gid=0xFFFFFFFF)
        assert (given.uid, given.gid) == (1001, 50)

    def test_an_empty_request_of_a_stranger_changes_nothing(self, world):
        world.set_attr(b"", permissions=0o777)
        before = world.create(b"f", user=ALICE, permissions=0o600).inode
        for nothing in ({}, {"uid": 0xFFFFFFFF, "gid": 0xFFFFFFFF}):
            after = world.set_attr(at=before.id, user=BOB, **nothing)
            assert (after.change, after.ctime_ns) == (before.change, before.ctime_ns)
        assert world.stat(at=before.id, user=ALICE) == before
        # As Linux: of the owner and of root it moves ctime.
        for number, user in enumerate((ALICE, ROOT), 1):
            assert world.set_attr(at=before.id, user=user).change == before.change + number

    def test_strangers_cannot_take_set_id_bits(self, world):
        world.set_attr(b"", permissions=0o777)
        number = world.create(b"f", user=ALICE, permissions=0o755).inode.id
        world.set_attr(b"f", permissions=0o6755)
        with refused(PermissionDenied, 13):
            world.set_attr(at=number, clear_set_id=True, user=BOB)
        assert world.stat(at=number).permissions == 0o6755
        assert world.set_attr(at=number, clear_set_id=True, user=ALICE).permissions == 0o755

    def test_times(self, world):
        world.set_attr(b"", permissions=0o777)
        world.create(b"f", user=ALICE, permissions=0o600)
        inode = world.set_attr(b"f", atime_ns=-5, mtime_ns=1 << 60, user=ALICE)
        assert (inode.atime_ns, inode.mtime_ns) == (-5, 1 << 60)
        with refused(PermissionDenied, 1):
            world.set_attr(b"f", mtime_ns=5, user=BOB)
        with refused(PermissionDenied, 13):
            world.set_attr(b"f", mtime_now=True, user=BOB)
        world.set_attr(b"f", permissions=0o666, user=ALICE)
        touched = world.set_attr(b"f", mtime_now=True, atime_now=True, user=BOB)
        assert touched.atime_ns == touched.mtime_ns == touched.ctime_ns

    def test_times_of_a_directory(self, world):
        world.mkdir(b"d")
        world.create(b"d/f")
        set_ = world.set_attr(b"d", mtime_ns=500)
        assert set_.mtime_ns == world.stat(b"d").mtime_ns == 500
        assert set_.ctime_ns > 500
        world.create(b"d/g")
        assert world.stat(b"d").mtime_ns > 500
        before = world.stat(b"d")
        after = world.set_attr(b"d", permissions=0o700)
        assert after.mtime_ns == before.mtime_ns
        assert after.ctime_ns > before.ctime_ns
        assert after.change > before.change

    def test_layout(self, world):
        world.mkdir(b"d")
        world.create(b"f")
        world.set_attr(b"d", layout=pb.Layout(chunk_bytes=CHUNK * 2, stripe=1, inline_bytes=0))
        made = world.create(b"d/f").inode
        assert (made.layout.chunk_bytes, made.layout.stripe, made.is_inline) == (CHUNK * 2, 1, False)
        world.set_attr(b"d", layout=pb.Layout(stripe=3))
        made = world.create(b"d/g").inode
        assert (made.layout.chunk_bytes, made.layout.stripe, made.is_inline) == (CHUNK * 2, 3, False)
        assert not world.set_attr(b"d", clear_layout=True).HasField("layout")
        configured = world.call("stat_fs", pb.StatFsRequest()).default_layout
        made = world.create(b"d/h").inode
        assert made.layout.chunk_bytes == configured.chunk_bytes != CHUNK * 2
        assert made.layout.inline_bytes == configured.inline_bytes > 0
        assert made.layout.table == configured.table == 1
        with refused(NotADirectory, 20):
            world.set_attr(b"f", layout=pb.Layout(stripe=1))
        with refused(NotADirectory, 20):
            world.set_attr(b"f", clear_layout=True)
        with refused(PermissionDenied, 1):
            world.set_attr(b"d", clear_layout=True, user=ALICE)
        with refused(InvalidArgument, 22):
            world.set_attr(b"d", layout=pb.Layout(chunk_bytes=5))
        with refused(PermissionDenied, 1):
            world.set_attr(b"d", layout=pb.Layout(stripe=1), user=ALICE)

    def test_all_or_nothing(self, world):
        world.set_attr(b"", permissions=0o777)
        world.create(b"f", user=ALICE)
        with refused(PermissionDenied, 1):
            world.set_attr(b"f", permissions=0o600, uid=0, user=ALICE)
        assert world.lookup(b"f").permissions == 0o644

    def test_link_itself_or_what_it_names(self, world):
        world.create(b"f")
        world.symlink(b"l", b"f")
        assert world.set_attr(b"l", uid=7, follow=False).type == pb.SYMLINK
        assert world.set_attr(b"l", uid=8).type == pb.REGULAR
        with refused(NotFound, 2):
            world.set_attr(b"none", uid=8)


class TestXattr:
    def test_set_get_list_remove(self, world):
        number = world.create(b"f").inode.id
        world.xattr("set", number, b"user.b", b"two")
        world.xattr("set", number, b"user.a", b"")
        assert world.xattr("get", number, b"user.b").value == b"two"
        assert world.xattr("get", number, b"user.a").value == b""
        assert list(world.xattr("list", number).names) == [b"user.a", b"user.b"]
        world.xattr("remove", number, b"user.a")
        assert list(world.xattr("list", number).names) == [b"user.b"]

    def test_flags(self, world):
        number = world.mkdir(b"d").id
        with refused(NotFound, 61):
            world.xattr("set", number, b"user.a", b"x", flags=2)
        world.xattr("set", number, b"user.a", b"x", flags=1)
        with refused(AlreadyExists, 17):
            world.xattr("set", number, b"user.a", b"y", flags=1)
        world.xattr("set", number, b"user.a", b"z", flags=2)
        with refused(InvalidArgument, 22):
            world.xattr("set", number, b"user.a", b"x", flags=4)
        assert world.xattr("get", number, b"user.a").value == b"z"

    def test_errors(self, world):
        number = world.create(b"f").inode.id
        with refused(NotFound, 61):
            world.xattr("get", number, b"user.none")
        with refused(NotFound, 61):
            world.xattr("remove", number, b"user.none")
        for name in (b"system.posix_acl_access", b"system.x", b"plain", b"other.x"):
            for what in ("get", "set", "remove"):
                with refused(Unsupported, 95):
                    world.xattr(what, number, name, b"v" if what == "set" else b"")
        with refused(InvalidArgument, 34):
            world.xattr("set", number, b"user." + b"x" * 251)
        with refused(InvalidArgument, 22):
            world.xattr("set", number, b"user.")
        with refused(InvalidArgument, 7):
            world.xattr("set", number, b"user.x", bytes(65_537))
        world.xattr("set", number, b"user.x", bytes(65_536))
        with refused(NotFound, 2):
            world.xattr("get", 999, b"user.x")

    def test_number_is_limited(self, world):
        number = world.create(b"f").inode.id
        for index in range(256):
            world.xattr("set", number, b"user.%d" % index, b"v")
        with refused(InvalidArgument, 28):
            world.xattr("set", number, b"user.more", b"v")
        world.xattr("set", number, b"user.5", b"other")

    def test_namespaces_and_permissions(self, world):
        world.set_attr(b"", permissions=0o777)
        number = world.create(b"f", user=ALICE, permissions=0o640).inode.id
        for name in (b"trusted.t", b"security.s"):
            with refused(PermissionDenied, 1):
                world.xattr("set", number, name, b"v", user=ALICE)
            world.xattr("set", number, name, b"v")
        assert list(world.xattr("list", number, user=ALICE).names) == [b"security.s"]
        with refused(NotFound, 61):
            world.xattr("get", number, b"trusted.t", user=ALICE)
        assert world.xattr("get", number, b"security.s", user=BOB).value == b"v"
        world.xattr("set", number, b"user.u", b"v", user=ALICE)
        for what in ("get", "set", "remove"):
            with refused(PermissionDenied, 13):
                world.xattr(what, number, b"user.u", user=BOB)
        link = world.symlink(b"l", b"f").id
        with refused(PermissionDenied, 1):
            world.xattr("set", link, b"user.u", b"v")
        with refused(NotFound, 61):
            world.xattr("get", link, b"user.u")
        sticky = world.mkdir(b"tmp").id
        world.set_attr(b"tmp", permissions=0o1777)
        with refused(PermissionDenied, 1):
            world.xattr("set", sticky, b"user.u", b"v", user=ALICE)

    def test_they_go_with_their_inode(self, world):
        number = world.create(b"f", write=False).inode.id
        world.xattr("set", number, b"user.a", b"x")
        world.unlink(b"f")
        world.clock.advance(2)
        world.collect()
        assert world.keys(b"X") == []


class TestList:
    def test_pages(self, world):
        names = sorted(b"%03d" % number for number in range(25))
        for name in names:
            world.create(name, write=False)
        seen, after, pages = [], b"", 0
        while True:
            page = world.list(after=after, limit=10)
            seen += [entry.name for entry in page.entries]
            pages += 1
            if not page.more:
                break
            after = page.entries[-1].name
        assert seen == names
        assert pages == 3
        assert not world.list(limit=25).more
        assert world.list(limit=24).more

    def test_with_inodes(self, world):
        world.mkdir(b"d/e", parents=True)
        made = world.create(b"d/f").inode
        page = world.list(world.stat(b"d").id, with_inodes=True)
        assert page.parent == 1
        assert [entry.type for entry in page.entries] == [pb.DIRECTORY, pb.REGULAR]
        assert page.entries[1].attributes == made
        assert page.entries[0].attributes == world.stat(b"d/e")

    def test_entries_of_every_length_are_as_protobuf_has_them(self, world):
        expected = []
        numbers = (2, 127, 128, 130, 300, 1 << 14, (1 << 35) + 5, (1 << 63) + 1)
        cookies = (2, 1 << 14, (1 << 63) - 1, 130, 127, 1 << 35, (1 << 35) + 5, 16)
        for number, cookie in zip(numbers, cookies, strict=True):
            target = b"t" * min(number, 4000)
            name = b"%020d" % number + b"n" * (number % 236)
            inode = pb.Inode(id=number, type=pb.SYMLINK, link_count=1, symlink_target=target)
            txn = world.engine.begin()
            value = schema.encode_entry(schema.Entry(number, pb.SYMLINK, cookie), name)
            txn.put(schema.entry_key(ROOT_INODE, name), value)
            txn.put(schema.cookie_key(ROOT_INODE, cookie), value)
            txn.put(schema.inode_key(number), schema.encode_inode(inode))
            txn.commit()
            shown = 0 if cookie == number else cookie
            expected.append(
                pb.Dentry(name=name, inode=number, type=pb.SYMLINK, attributes=inode, cookie=shown)
            )
        by_cookie = sorted(expected, key=lambda entry: entry.cookie or entry.inode)
        assert list(world.list(with_inodes=True).entries) == expected
        assert list(world.list(with_inodes=True, after_cookie=0).entries) == by_cookie
        for entry in expected:
            entry.ClearField("attributes")
        assert list(world.list().entries) == expected
        assert list(world.list(after_cookie=0).entries) == by_cookie

    def test_records_that_look_as_if_they_had_bytes_are_shown_as_they_are(self, world):
        for number in range(150):
            world.mkdir(b"%03d/sub" % number, parents=True)
        entries = world.list(with_inodes=True, limit=1000).entries
        assert any(INLINE_DATA_TAG in entry.attributes.SerializeToString() for entry in entries)
        for entry in entries:
            assert entry.attributes == world.stat(entry.name)

    def test_attributes_come_without_the_bytes_of_small_files(self, world):
        layout = pb.Layout(chunk_bytes=CHUNK, stripe=1, inline_bytes=65_536)
        for number in range(60):
            reply = world.create(b"%d" % number, layout=layout)
            world.close_one(
                reply.inode.id,
                reply.session,
                has_inline=True,
                inline_data=bytes(65_536),
                inline_base=reply.inode.change,
            )
        page = world.list(with_inodes=True)
        assert len(page.entries) == 60
        assert not page.more
        assert page.ByteSize() < 60 * 600
        assert {entry.attributes.length for entry in page.entries} == {65_536}

    def test_pages_of_long_symbolic_links_fit_a_frame(self, world):
        for number in range(1100):
            world.symlink(b"%04d" % number, b"x" * 4095)
        page = world.list(with_inodes=True, limit=1100)
        assert page.more
        assert page.ByteSize() < 5 << 20
        rest = world.list(with_inodes=True, limit=1100, after=page.entries[-1].name)
        assert not rest.more
        assert len(page.entries) + len(rest.entries) == 1100

    def test_order_is_of_bytes(self, world):
        for name in (b"\xff", b"a", b"B", b"\x01", b"a\xc3\xa9"):
            world.create(name)
        assert world.names() == [b"\x01", b"B", b"a", b"a\xc3\xa9", b"\xff"]

    def test_errors(self, world):
        file = world.create(b"f").inode.id
        directory = world.mkdir(b"d", permissions=0o711).id
        with refused(NotADirectory, 20):
            world.list(file)
        with refused(NotFound, 2):
            world.list(999)
        with refused(PermissionDenied, 13):
            world.list(directory, user=ALICE)
        with refused(InvalidArgument, 22):
            world.list(after=b"x" * 256)
        world.set_attr(b"d", permissions=0o744)
        world.list(directory, user=ALICE)
        with refused(PermissionDenied, 13):
            world.list(directory, with_inodes=True, user=ALICE)


class TestWhole:
    def test_space_is_asked_once_a_second(self, world):
        request = pb.StatFsRequest()
        reply = world.call("stat_fs", request)
        assert reply.capacity_bytes == reply.free_bytes == 1 << 40
        inode, _ = world.chunked(b"f", b"x" * 1000)
        assert world.call("stat_fs", request).free_bytes == 1 << 40
        world.clock.advance(1.1)
        assert world.call("stat_fs", request).free_bytes == (1 << 40) - 1000
        assert inode.length == 1000

    @pytest.mark.parametrize("copies", [2, 3])
    def test_space_is_what_can_be_written(self, world, copies):
        tables = [
            ChainTable(id=1, version=1, chains=CHAINS, replicas=1),
            ChainTable(id=1, version=2, chains=CHAINS, replicas=copies),  # what new files get
            ChainTable(id=2, version=1, chains=CHAINS, replicas=1),
        ]
        world.placer.set_tables(tables)
        reply = world.call("stat_fs", pb.StatFsRequest())
        assert reply.capacity_bytes == reply.free_bytes == (1 << 40) // copies

    def test_scans_for_fsck(self, world):
        world.mkdir(b"d")
        inode, _ = world.chunked(b"d/f", b"x")
        world.chunked(b"g", b"x")
        world.set_attr(b"g", length=0)

        async def scan(name, limit=0):
            handler = getattr(world.service, name)
            return [item async for item in handler(pb.ScanRequest(limit=limit), world.identity)]

        assert {found.id for found in world.run(scan("scan_inodes"))} >= {1, inode.id}
        entries = {(found.parent, found.entry.name) for found in world.run(scan("scan_dentries"))}
        assert entries == {(1, b"d"), (1, b"g"), (world.stat(b"d").id, b"f")}
        (removed,) = world.run(scan("scan_removed"))
        assert removed.content
        assert removed.layout.chunk_bytes == CHUNK
        assert len(world.run(scan("scan_inodes", 2))) == 2

    def test_status(self, world):
        world.create(b"f", read=True)
        world.unlink(b"f")
        status = world.service.status(Empty(), world.identity)
        assert (status.gc_queue, status.write_sessions, status.read_holds) == (1, 1, 1)
        assert status.operations == 2
        assert status.incarnation == world.dependencies.incarnation

    def test_every_method_has_a_handler_and_the_dangerous_ones_a_role(self, world):
        bound = methods.bind(methods.Meta, world.service)
        assert len(bound) == len(methods.methods_of(methods.Meta))
        roles = {method.name: method.role for method in methods.methods_of(methods.Meta)}
        for name in ("ScanInodes", "ScanDentries", "ScanRemoved", "Status"):
            assert roles[name] == ADMIN
        assert TRUSTED < ADMIN
