"""Making, linking and removing names: results, errors, times and link counts."""

import asyncio

import pytest

from luciola.errors import (
    AlreadyExists,
    InvalidArgument,
    IsADirectory,
    NotADirectory,
    NotEmpty,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from luciola.wire import CLIENT
from luciola.wire.pb import meta_pb2 as pb

from .world import ALICE, BOB, CHUNK, World, _await, refused, trusted


class TestCreate:
    def test_new_file(self, world):
        reply = world.create(b"f", permissions=0o640, user=ROOT_LIKE)
        inode = reply.inode
        assert reply.created
        assert reply.session
        assert (inode.type, inode.permissions, inode.link_count, inode.length) == (pb.REGULAR, 0o640, 1, 0)
        assert inode.is_inline
        assert inode.content
        assert inode.atime_ns == inode.mtime_ns == inode.ctime_ns == inode.birth_ns
        assert world.lookup(b"f") == inode

    def test_read_only_create_has_no_session(self, world):
        assert world.create(b"f", write=False).session == 0
        assert world.dependencies.writers.count == 0

    def test_existing_file_is_opened(self, world):
        first = world.create(b"f")
        second = world.create(b"f")
        assert second.inode.id == first.inode.id
        assert not second.created
        assert second.session not in (0, first.session)

    def test_exclusive(self, world):
        world.create(b"f", exclusive=True)
        world.symlink(b"dangling", b"nowhere")
        for name in (b"f", b"dangling", b"", b"."):
            with refused(AlreadyExists, 17):
                world.create(name, exclusive=True)

    def test_through_a_dangling_link(self, world):
        world.mkdir(b"d")
        world.symlink(b"link", b"d/real")
        made = world.create(b"link")
        assert made.created
        assert world.lookup(b"real", parent=world.stat(b"d").id).id == made.inode.id

    def test_errors(self, world):
        world.mkdir(b"d")
        world.create(b"f", permissions=0o600)
        world.symlink(b"loop", b"loop")
        with refused(IsADirectory, 21):
            world.create(b"d")
        with refused(IsADirectory, 21):
            world.create(b"new/")
        with refused(NotFound, 2):
            world.create(b"none/f")
        with refused(NotADirectory, 20):
            world.create(b"f/x")
        with refused(InvalidArgument, 40):
            world.create(b"loop")
        with refused(InvalidArgument, 36):
            world.create(b"x" * 256)
        with refused(PermissionDenied, 13):
            world.create(b"g", user=ALICE)
        with refused(PermissionDenied, 13):
            world.create(b"f", user=ALICE)
        with refused(InvalidArgument, 22):
            world.create(b"g", layout=pb.Layout(chunk_bytes=12345))

    def test_not_before_a_table_is_known(self, world):
        world.placer.set_tables([])
        with refused(Unavailable):
            world.create(b"f")
        assert world.names() == []
        world.mkdir(b"directories need none")

    def test_in_a_removed_directory(self, world):
        number = world.mkdir(b"d").id
        world.rmdir(b"d")
        for make in (
            lambda: world.create(b"f", at=number),
            lambda: world.mkdir(b"f", at=number),
            lambda: world.mkdir(b"f/g", at=number, parents=True),
            lambda: world.symlink(b"f", b"x", at=number),
            lambda: world.mknod(b"f", pb.FIFO, at=number),
        ):
            with refused(NotFound, 2):
                make()

    def test_layout_of_the_request_the_directory_or_the_configuration(self, world):
        world.mkdir(b"d", layout=pb.Layout(chunk_bytes=CHUNK * 2, stripe=2, inline_bytes=100))
        world.mkdir(b"d/e")
        assert world.create(b"f").inode.layout.chunk_bytes == CHUNK
        inherited = world.create(b"d/e/f").inode
        assert (inherited.layout.chunk_bytes, inherited.layout.stripe) == (CHUNK * 2, 2)
        assert inherited.layout.inline_bytes == 100
        own = world.create(b"d/g", layout=pb.Layout(chunk_bytes=CHUNK * 4)).inode
        assert (own.layout.chunk_bytes, own.layout.stripe, own.layout.inline_bytes) == (CHUNK * 4, 2, 100)
        assert not world.create(b"d/h", layout=pb.Layout(inline_bytes=0)).inode.is_inline
        assert own.layout.table == 1

    def test_parents_times_change_and_its_record_does_not(self, world):
        world.mkdir(b"d")
        before = world.stat(b"d")
        world.clock.advance(5)
        world.create(b"d/f")
        after = world.stat(b"d")
        assert after.mtime_ns == after.ctime_ns >= before.mtime_ns + 5 * 10**9
        assert after.change > before.change
        assert after.atime_ns == before.atime_ns

    def test_group_of_a_set_group_id_directory(self, world):
        world.mkdir(b"d")
        world.set_attr(b"d", permissions=0o2777, gid=50)
        made = world.create(b"d/f", user=ALICE).inode
        assert (made.uid, made.gid) == (1000, 50)
        assert world.mkdir(b"d/e", user=ALICE).permissions == 0o2755


ROOT_LIKE = (0, 5)


class TestMknod:
    def test_kinds(self, world):
        assert world.mknod(b"fifo", pb.FIFO).type == pb.FIFO
        assert world.mknod(b"socket", pb.SOCKET).type == pb.SOCKET
        device = world.mknod(b"null", pb.CHAR_DEVICE, device=0x103)
        assert (device.type, device.device) == (pb.CHAR_DEVICE, 0x103)
        regular = world.mknod(b"file", pb.REGULAR)
        assert regular.is_inline
        assert regular.content
        assert world.lookup(b"null") == device

    def test_errors(self, world):
        world.set_attr(b"", permissions=0o777)
        with refused(PermissionDenied, 1):
            world.mknod(b"null", pb.CHAR_DEVICE, user=ALICE)
        with refused(PermissionDenied, 1):
            world.mknod(b"disk", pb.BLOCK_DEVICE, user=ALICE)
        for kind in (pb.DIRECTORY, pb.SYMLINK, pb.TYPE_INVALID, 99):
            with refused(InvalidArgument, 22):
                world.mknod(b"x", kind)
        world.mknod(b"fifo", pb.FIFO, user=ALICE)
        with refused(AlreadyExists, 17):
            world.mknod(b"fifo", pb.FIFO)


class TestMkdir:
    def test_links_of_parents(self, world):
        assert world.stat(b"").link_count == 2
        made = world.mkdir(b"a")
        assert (made.type, made.link_count, made.parent, made.name) == (pb.DIRECTORY, 2, 1, b"a")
        assert world.stat(b"").link_count == 3
        world.mkdir(b"a/b")
        world.mkdir(b"a/c")
        world.create(b"a/f")
        assert world.stat(b"a").link_count == 4
        assert world.stat(b"").link_count == 3
        world.rmdir(b"a/b")
        assert world.stat(b"a").link_count == 3

    def test_parents(self, world):
        made = world.mkdir(b"a/b/c", parents=True)
        assert world.stat(b"a/b/c").id == made.id
        again = world.mkdir(b"a/b/c/", parents=True)
        assert again.id == made.id
        assert world.mkdir(b"a/b/d/e", parents=True).id == world.stat(b"a/b/d/e").id
        assert world.stat(b"a/b").link_count == 4
        assert world.mkdir(b"/", parents=True).id == 1

    def test_parents_through_a_link(self, world):
        world.mkdir(b"real")
        world.symlink(b"link", b"real")
        world.mkdir(b"link/x/y", parents=True)
        assert world.stat(b"real/x/y").id

    def test_errors(self, world):
        world.mkdir(b"d")
        world.create(b"f")
        world.symlink(b"dangling", b"nowhere")
        for path in (b"d", b"f", b"dangling", b"", b".", b"/", b"d/"):
            with refused(AlreadyExists, 17):
                world.mkdir(path)
        with refused(NotFound, 2):
            world.mkdir(b"x/y")
        with refused(NotADirectory, 20):
            world.mkdir(b"f/x")
        with refused(NotADirectory, 20):
            world.mkdir(b"f/x/y", parents=True)
        with refused(AlreadyExists, 17):
            world.mkdir(b"f", parents=True)
        with refused(AlreadyExists, 17):
            world.mkdir(b"dangling/x", parents=True)
        with refused(PermissionDenied, 13):
            world.mkdir(b"x", user=ALICE)
        with refused(PermissionDenied, 13):
            world.mkdir(b"d/x/y", parents=True, user=ALICE)
        with refused(InvalidArgument, 36):
            world.mkdir(b"x" * 256)
        assert world.names() == [b"d", b"dangling", b"f"]


class TestSymlink:
    def test_target_is_kept(self, world):
        made = world.symlink(b"l", b"../any/where")
        assert (made.type, made.permissions, made.length) == (pb.SYMLINK, 0o777, 12)
        assert world.stat(b"l", follow=False).symlink_target == b"../any/where"

    def test_errors(self, world):
        with refused(AlreadyExists, 17):
            world.symlink(b"", b"x")
        with refused(NotFound, 2):
            world.symlink(b"l", b"")
        with refused(InvalidArgument, 22):
            world.symlink(b"l", b"a\0")
        with refused(InvalidArgument, 36):
            world.symlink(b"l", b"x" * 4096)
        world.symlink(b"l", b"x" * 4095)


class TestLink:
    def test_two_names_one_inode(self, world):
        first = world.create(b"f").inode
        second = world.link(b"f", b"g")
        assert second.id == first.id
        assert second.link_count == 2
        assert second.ctime_ns > first.ctime_ns
        assert world.unlink(b"f").link_count == 1
        assert world.lookup(b"g").link_count == 1

    def test_links_are_followed_only_on_request(self, world):
        target = world.create(b"f").inode.id
        link = world.symlink(b"l", b"f").id
        assert world.link(b"l", b"hard").id == link
        assert world.link(b"l", b"soft", follow=True).id == target

    def test_errors(self, world):
        world.mkdir(b"d")
        number = world.create(b"f", read=True).inode.id
        with refused(PermissionDenied, 1):
            world.link(b"d", b"e")
        with refused(AlreadyExists, 17):
            world.link(b"f", b"d")
        with refused(NotFound, 2):
            world.link(b"none", b"g")
        with refused(NotFound, 2):
            world.link(b"f", b"none/g")
        with refused(PermissionDenied, 13):
            world.link(b"f", b"g", user=ALICE)
        world.unlink(b"f")
        request = pb.LinkRequest(source=pb.Path(at=number), target=pb.Path(at=1, path=b"back"))
        with refused(NotFound, 2):
            world.call("link", request)

    def test_too_many(self, world, monkeypatch):
        from luciola.meta.operations import link

        monkeypatch.setattr(link, "LINKS_MAX", 3)
        world.create(b"f")
        world.link(b"f", b"g")
        world.link(b"f", b"h")
        with refused(InvalidArgument, 31):
            world.link(b"f", b"i")


class TestUnlink:
    def test_name_goes_and_inode_stays_for_a_while(self, world):
        number = world.create(b"f", write=False).inode.id
        gone = world.unlink(b"f")
        assert (gone.id, gone.link_count) == (number, 0)
        assert world.names() == []
        assert world.stat(b"", at=number).link_count == 0
        world.clock.advance(2)
        world.collect()
        with refused(NotFound, 2):
            world.stat(b"", at=number)
        assert world.keys(b"O") == []

    def test_link_itself_is_removed(self, world):
        world.create(b"f")
        world.symlink(b"l", b"f")
        world.unlink(b"l")
        assert world.names() == [b"f"]

    def test_errors(self, world):
        world.mkdir(b"d")
        world.create(b"f")
        with refused(IsADirectory, 21):
            world.unlink(b"d")
        with refused(IsADirectory, 21):
            world.unlink(b".")
        with refused(NotADirectory, 20):
            world.unlink(b"f/")
        with refused(NotFound, 2):
            world.unlink(b"g")
        with refused(InvalidArgument, 22):
            world.unlink(b"")
        with refused(PermissionDenied, 13):
            world.unlink(b"f", user=ALICE)

    def test_sticky(self, world):
        world.mkdir(b"tmp")
        world.set_attr(b"tmp", permissions=0o1777)
        world.create(b"tmp/alice", user=ALICE)
        with refused(PermissionDenied, 1):
            world.unlink(b"tmp/alice", user=BOB)
        with refused(PermissionDenied, 1):
            world.rename(b"tmp/alice", b"tmp/bob", user=BOB)
        world.create(b"tmp/bob", user=BOB)
        with refused(PermissionDenied, 1):
            world.rename(b"tmp/bob", b"tmp/alice", user=BOB)
        world.unlink(b"tmp/alice", user=ALICE)


class TestRmdir:
    def test_errors(self, world):
        world.mkdir(b"d/e", parents=True)
        world.create(b"f")
        with refused(NotEmpty, 39):
            world.rmdir(b"d")
        with refused(NotADirectory, 20):
            world.rmdir(b"f")
        with refused(NotFound, 2):
            world.rmdir(b"g")
        with refused(InvalidArgument, 16):
            world.rmdir(b"/")
        with refused(InvalidArgument, 22):
            world.rmdir(b"d/.")
        with refused(NotEmpty, 39):
            world.rmdir(b"d/e/..")
        with refused(PermissionDenied, 13):
            world.rmdir(b"d/e", user=ALICE)
        world.rmdir(b"d/e/")
        world.rmdir(b"d")

    def test_nothing_of_it_is_left(self, world):
        number = world.mkdir(b"d").id
        world.create(b"d/f")
        world.mkdir(b"d/e")
        world.unlink(b"d/f")
        world.rmdir(b"d/e")
        world.rmdir(b"d")
        assert world.stat(b"", at=number).link_count == 0
        world.members.known = {2}
        for _ in range(30):
            world.clock.advance(6)
            world.collect()
        assert world.keys(b"I") == world.keys(b"I")[:1]
        assert len(world.keys(b"T")) == len(world.keys(b"N")) == 1
        for kind in (b"D", b"C", b"O", b"S", b"X"):
            assert world.keys(kind) == []


class TestRename:
    def test_file(self, world):
        number = world.create(b"f").inode.id
        world.mkdir(b"d")
        reply = world.rename(b"f", b"d/g")
        assert reply.moved.id == number
        assert not reply.replaced.id
        assert world.names() == [b"d"]
        assert world.names(world.stat(b"d").id) == [b"g"]

    def test_directory_moves_its_link(self, world):
        world.mkdir(b"a/x", parents=True)
        world.mkdir(b"b")
        moved = world.rename(b"a/x", b"b/y").moved
        assert (moved.parent, moved.name) == (world.stat(b"b").id, b"y")
        assert world.stat(b"a").link_count == 2
        assert world.stat(b"b").link_count == 3
        assert world.stat(b"b/y/..").id == world.stat(b"b").id
        assert world.call("real_path", pb.RealPathRequest(inode=moved.id)).path == b"/b/y"

    def test_replaces_a_file(self, world):
        old = world.create(b"old", write=False).inode.id
        new = world.create(b"new").inode.id
        reply = world.rename(b"new", b"old")
        assert (reply.moved.id, reply.replaced.id, reply.replaced.link_count) == (new, old, 0)
        assert world.lookup(b"old").id == new
        world.clock.advance(2)
        world.collect()
        with refused(NotFound):
            world.stat(b"", at=old)

    def test_replaces_an_empty_directory(self, world):
        world.mkdir(b"a/x", parents=True)
        world.mkdir(b"b")
        world.rename(b"a", b"b")
        assert world.names() == [b"b"]
        assert world.stat(b"").link_count == 3
        assert world.stat(b"b").link_count == 3

    def test_replaces_a_link_without_leaking_it(self, world):
        link = world.symlink(b"l", b"x").id
        world.create(b"f")
        world.rename(b"f", b"l")
        world.clock.advance(2)
        world.collect()
        with refused(NotFound):
            world.stat(b"", at=link)

    def test_two_names_of_one_inode_stay(self, world):
        world.create(b"f")
        world.link(b"f", b"g")
        world.rename(b"f", b"g")
        assert world.names() == [b"f", b"g"]
        assert world.lookup(b"f").link_count == 2
        world.rename(b"f", b"f")
        assert world.names() == [b"f", b"g"]

    def test_exchange(self, world):
        world.mkdir(b"a/x", parents=True)
        file = world.create(b"f").inode.id
        world.rename(b"a/x", b"f", exchange=True)
        assert world.stat(b"a/x").id == file
        assert world.stat(b"f").type == pb.DIRECTORY
        assert world.stat(b"f/..").id == 1
        assert world.stat(b"a").link_count == 2
        assert world.stat(b"").link_count == 4

    def test_exchange_of_two_directories(self, world):
        world.mkdir(b"a/x", parents=True)
        world.mkdir(b"b/y/z", parents=True)
        one, other = world.stat(b"a/x").id, world.stat(b"b/y").id
        world.rename(b"a/x", b"b/y", exchange=True)
        assert (world.stat(b"a/x").id, world.stat(b"b/y").id) == (other, one)
        assert world.stat(b"a/x/z/../..").id == world.stat(b"a").id

    def test_errors(self, world):
        world.mkdir(b"d/e/g", parents=True)
        world.create(b"f")
        world.create(b"h")
        world.mkdir(b"empty")
        with refused(NotFound, 2):
            world.rename(b"none", b"x")
        with refused(NotFound, 2):
            world.rename(b"f", b"none/x")
        with refused(NotADirectory, 20):
            world.rename(b"f", b"h/x")
        with refused(NotADirectory, 20):
            world.rename(b"d", b"f")
        with refused(IsADirectory, 21):
            world.rename(b"f", b"empty")
        with refused(NotEmpty, 39):
            world.rename(b"empty", b"d")
        with refused(NotADirectory, 20):
            world.rename(b"f", b"x/")
        with refused(InvalidArgument, 22):
            world.rename(b"d", b"d/e/x")
        with refused(InvalidArgument, 22):
            world.rename(b"d", b"d/e/g")
        with refused(NotEmpty, 39):
            world.rename(b"d/e/g", b"d")
        for source, target in ((b"/", b"x"), (b".", b"x"), (b"f", b".."), (b"f", b"/"), (b"", b"x")):
            with refused(InvalidArgument, 16):
                world.rename(source, target)
        with refused(AlreadyExists, 17):
            world.rename(b"f", b"h", no_replace=True)
        with refused(NotFound, 2):
            world.rename(b"f", b"x", exchange=True)
        with refused(InvalidArgument, 22):
            world.rename(b"f", b"h", exchange=True, no_replace=True)
        with refused(InvalidArgument, 22):
            world.rename(b"d", b"d/e", exchange=True)
        with refused(InvalidArgument, 22):
            world.rename(b"d/e", b"d", exchange=True)
        with refused(PermissionDenied, 13):
            world.rename(b"f", b"x", user=ALICE)
        with refused(InvalidArgument, 36):
            world.rename(b"f", b"x" * 256)
        assert world.names() == [b"d", b"empty", b"f", b"h"]

    def test_moving_a_directory_needs_write_permission_on_it(self, world):
        world.mkdir(b"open")
        world.set_attr(b"open", permissions=0o777)
        world.set_attr(b"", permissions=0o777)
        world.mkdir(b"root-owned")
        with refused(PermissionDenied, 13):
            world.rename(b"root-owned", b"open/x", user=ALICE)
        world.rename(b"root-owned", b"renamed", user=ALICE)

    def test_into_a_removed_directory(self, world):
        number = world.mkdir(b"d").id
        world.create(b"f")
        world.rmdir(b"d")
        with refused(NotFound, 2):
            world.rename(b"f", b"g", to=number)


class TestRemoveTree:
    def fill(self, world):
        for path in (b"t/a/b/c", b"t/d", b"t/e/f"):
            world.mkdir(path, parents=True)
        for path in (b"t/x", b"t/a/x", b"t/a/b/y", b"t/e/z"):
            world.chunked(path, b"data")
        world.link(b"t/x", b"kept")
        world.symlink(b"t/link", b"nowhere")

    def test_everything_goes_but_what_has_another_name(self, world):
        self.fill(world)
        world.remove_tree(b"t")
        assert world.names() == [b"kept"]
        assert world.stat(b"").link_count == 2
        world.clock.advance(2)
        world.collect()
        assert len(world.keys(b"I")) == 2
        assert world.control.contents() == {world.lookup(b"kept").content}
        assert world.lookup(b"kept").link_count == 1
        for kind in (b"O", b"G", b"X"):
            assert world.keys(kind) == []
        assert (
            len(world.keys(b"D"))
            == len(world.keys(b"C"))
            == len(world.keys(b"T"))
            == len(world.keys(b"N"))
            == 1
        )

    def test_large_directory(self, world):
        world.mkdir(b"t")
        for number in range(700):
            world.create(b"t/%d" % number, write=False)
        world.remove_tree(b"t")
        world.clock.advance(2)
        world.collect()
        assert len(world.keys(b"I")) == 1

    def test_check_of_a_large_tree_lets_others_go_first(self, world):
        world.set_attr(b"", permissions=0o777)
        world.mkdir(b"t", user=ALICE)
        for number in range(50):
            world.mkdir(b"t/%d" % number, user=ALICE)
        for number in range(300):
            world.create(b"t/0/%d" % number, write=False, user=ALICE)
        turns = []

        async def both():
            request = pb.RemoveTreeRequest(path=pb.Path(at=1, path=b"t"))
            request.caller.CopyFrom(world.caller(ALICE))
            removal = asyncio.ensure_future(_await(world.service.remove_tree(request, world.identity)))
            while not removal.done():
                turns.append(world.engine.version)
                await asyncio.sleep(0)
            await removal

        world.run(both())
        assert len(turns) > 50
        assert world.names() == []

    def test_every_directory_must_permit_it(self, world):
        world.set_attr(b"", permissions=0o777)
        world.mkdir(b"t/a/b", parents=True, user=ALICE)
        world.create(b"t/a/b/f", user=ALICE)
        world.set_attr(b"t/a/b", permissions=0o555)
        for user in (ALICE, BOB):
            with refused(PermissionDenied, 13):
                world.remove_tree(b"t", user=user)
        assert world.stat(b"t/a/b/f").id
        world.set_attr(b"t/a/b", permissions=0o755, user=ALICE)
        world.remove_tree(b"t", user=ALICE)
        assert world.names() == []

    def test_sticky_directories_inside(self, world):
        world.set_attr(b"", permissions=0o777)
        world.mkdir(b"t/s", parents=True, user=ALICE)
        world.set_attr(b"t/s", permissions=0o1777)
        world.set_attr(b"t/s", uid=0)
        world.create(b"t/s/bobs", user=BOB)
        with refused(PermissionDenied):
            world.remove_tree(b"t", user=ALICE)

    def test_files_and_errors(self, world):
        world.create(b"f")
        world.remove_tree(b"f")
        assert world.names() == []
        with refused(NotFound, 2):
            world.remove_tree(b"f")
        with refused(InvalidArgument, 16):
            world.remove_tree(b"/")
        with refused(InvalidArgument, 16):
            world.remove_tree(b"..")  # the root is its own parent
        world.mkdir(b"d")
        with refused(InvalidArgument, 22):
            world.remove_tree(b"d/.")


class TestRealPath:
    def test_of_directories(self, world):
        number = world.mkdir(b"a/b/c", parents=True).id
        assert world.call("real_path", pb.RealPathRequest(inode=number)).path == b"/a/b/c"
        assert world.call("real_path", pb.RealPathRequest(inode=1)).path == b"/"
        file = world.create(b"f").inode.id
        with refused(NotADirectory, 20):
            world.call("real_path", pb.RealPathRequest(inode=file))
        world.rmdir(b"a/b/c")
        with refused(NotFound, 2):
            world.call("real_path", pb.RealPathRequest(inode=number))
        with refused(NotFound, 2):
            world.call("real_path", pb.RealPathRequest(inode=999))


class TestWhoAsks:
    def test_a_clients_token_is_never_root(self, world):
        squashed = trusted(CLIENT, 0, 0)
        with refused(PermissionDenied, 13):
            world.create(b"f", identity=squashed)
        world.set_attr(b"", permissions=0o777)
        assert world.create(b"f", identity=squashed).inode.uid == 65534

    def test_a_clients_token_speaks_for_its_own_user(self, world):
        world.set_attr(b"", permissions=0o777)
        token = trusted(CLIENT, 1000, 100, groups=(7,))
        made = world.create(b"f", user=(1000, 0), groups=(0,), identity=token).inode
        assert (made.uid, made.gid) == (1000, 100)
        with refused(PermissionDenied):
            world.create(b"g", user=(0, 0), identity=token)

    def test_supplementary_groups_count(self, world):
        world.mkdir(b"d")
        world.set_attr(b"d", permissions=0o770, gid=50)
        with refused(PermissionDenied, 13):
            world.create(b"d/f", user=ALICE)
        world.create(b"d/f", user=ALICE, groups=(49, 50))


@pytest.mark.parametrize("durability", ["write", "sync"])
def test_every_durability(durability):
    world = World(durability=durability)
    world.mkdir(b"d")
    assert world.create(b"d/f", read=True).inode.id == world.stat(b"d/f").id
    world.close()
