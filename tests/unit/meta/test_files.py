"""Open files: sessions, holds, lengths, inline bytes, truncation."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luciola.errors import (
    Conflict,
    InvalidArgument,
    IsADirectory,
    NotADirectory,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from luciola.meta import schema
from luciola.meta.layout import chains_of
from luciola.meta.removal_queue import RETRY_S
from luciola.wire.pb import meta_pb2 as pb

from .world import ALICE, BOB, CHAINS, CHUNK, EVE, TIMEOUT_S, World, check_store, refused

DATA = bytes(range(256)) * (CHUNK // 256) * 3 + b"tail"


class TestOpen:
    def test_reading_registers_a_hold_and_closing_gives_it_back(self, world):
        number = world.create(b"f", write=False).inode.id
        world.open(b"f")
        world.open(b"f")
        world.open(b"f", client=2)
        assert world.dependencies.holds.count == 3
        world.close_one(number, read_hold=True)
        world.close_one(number, read_hold=True, client=2)
        assert world.dependencies.holds.count == 1
        assert number in world.dependencies.holds
        world.close_one(number, read_hold=True)
        assert number not in world.dependencies.holds
        world.close_one(number, read_hold=True)
        assert world.dependencies.holds.count == 0

    def test_requests_sent_twice_count_once(self, world):
        number = world.create(b"f", write=False).inode.id
        for _ in range(2):
            world.open(b"f", sequence=900)
        world.open(b"f", sequence=901)
        assert world.dependencies.holds.count == 2
        for _ in range(2):
            world.close_one(number, read_hold=True, sequence=902)
        assert world.dependencies.holds.count == 1

    def test_writing_records_a_session(self, world):
        number = world.create(b"f", write=False).inode.id
        session = world.open(b"f", write=True, client=7).session
        (key,) = world.keys(b"S")
        assert schema.split_two(key) == (number, session)
        assert world.dependencies.writers.count == 1
        assert not world.close_one(number, session, client=7)[1].code
        assert world.keys(b"S") == []
        assert world.dependencies.writers.count == 0

    def test_create_for_reading_and_writing(self, world):
        reply = world.create(b"f", read=True)
        assert reply.session
        assert reply.inode.id in world.dependencies.holds
        world.close_one(reply.inode.id, reply.session, read_hold=True)
        assert world.dependencies.holds.count == 0
        assert world.dependencies.writers.count == 0

    def test_errors(self, world):
        world.mkdir(b"d")
        world.create(b"f", permissions=0o600)
        world.symlink(b"l", b"f")
        world.mknod(b"fifo", pb.FIFO)
        with refused(NotFound, 2):
            world.open(b"none")
        with refused(IsADirectory, 21):
            world.open(b"d", write=True)
        with refused(IsADirectory, 21):
            world.open(b"d", truncate=True)
        with refused(InvalidArgument, 40):
            world.open(b"l", follow=False)
        for how in ({"read": True}, {"read": False, "write": True}, {"read": False, "truncate": True}):
            with refused(PermissionDenied, 13):
                world.open(b"f", user=ALICE, **how)
        assert world.open(b"d").inode.type == pb.DIRECTORY
        assert world.open(b"fifo", write=True).session == 0
        assert world.dependencies.holds.count == 2

    def test_session_of_another_client_is_no_permission(self, world):
        world.set_attr(b"", permissions=0o777)
        reply = world.create(b"f", user=ALICE, client=5, permissions=0o600)
        with refused(PermissionDenied, 13):
            world.sync(reply.inode.id, reply.session, length=9, user=BOB, client=6)
        _, error = world.close_one(reply.inode.id, reply.session, user=BOB, client=6, length=9)
        assert error.code == "permission_denied"
        assert world.dependencies.writers.count == 1
        world.set_attr(b"f", permissions=0o444, user=ALICE)
        assert world.sync(reply.inode.id, reply.session, mtime_ns=5, user=ALICE, client=5).mtime_ns == 5


class TestLimits:
    def test_a_client_has_so_many_files_open_for_writing_and_no_more(self, world, monkeypatch):
        monkeypatch.setattr("luciola.meta.execution.SESSIONS_MAX", 3)
        replies = [world.create(b"%d" % number, sequence=900 + number) for number in range(3)]
        with refused(InvalidArgument, 24) as caught:
            world.create(b"more")
        assert "close some" in str(caught.value)
        with refused(InvalidArgument, 24):
            world.open(b"0", write=True)
        with refused(NotFound):
            world.lookup(b"more")  # nothing is left of what was refused
        assert world.create(b"2", sequence=902).session == replies[2].session, "the answer to a retry"
        assert world.open(b"0").inode.id == replies[0].inode.id
        assert world.create(b"others", client=2).session
        world.close_one(replies[0].inode.id, replies[0].session)
        assert world.create(b"more").session
        world.crash()
        with refused(InvalidArgument, 24):
            world.open(b"0", write=True)

    def test_sessions_of_a_dead_client_make_room(self, world, monkeypatch):
        monkeypatch.setattr("luciola.meta.execution.SESSIONS_MAX", 2)
        for number in range(2):
            world.create(b"%d" % number, client=9)
        assert world.dependencies.writers.count_of(9) == 2
        world.members.known = set()
        world.collect()
        world.clock.advance(TIMEOUT_S + 1)
        world.collect()
        assert world.dependencies.writers.count_of(9) == 0
        assert world.create(b"again", client=9).session

    def test_a_client_has_so_many_files_open_for_reading_and_no_more(self, world, monkeypatch):
        monkeypatch.setattr("luciola.meta.service.HOLDS_MAX", 2)
        for number in range(2):
            world.create(b"%d" % number, read=True)
        with refused(InvalidArgument, 24):
            world.open(b"0")
        with refused(InvalidArgument, 24):
            world.create(b"2", read=True)
        assert world.open(b"0", client=2).inode.id


class TestByNumber:
    """An inode named by its number is guarded by its own mode bits, by whatever path it is reached."""

    def hidden(self, world, permissions, data=b"a secret"):
        world.set_attr(b"", permissions=0o777)
        directory = world.mkdir(b"private", permissions=0o700, user=ALICE)
        reply = world.create(b"f", at=directory.id, permissions=permissions, user=ALICE)
        result, error = world.close_one(
            reply.inode.id,
            reply.session,
            user=ALICE,
            has_inline=True,
            inline_data=data,
            inline_base=reply.inode.change,
        )
        assert not error.code
        return directory, result.inode

    def test_inline_bytes_are_sent_to_readers_only(self, world):
        directory, inode = self.hidden(world, 0o600)
        world.set_attr(b"private", permissions=0o755)
        asked = {
            "stat": lambda who: world.stat(b"", at=inode.id, **who),
            "lookup": lambda who: world.lookup(b"f", parent=directory.id, **who),
            "hold": lambda who: (
                world.call("hold", pb.HoldRequest(inodes=[inode.id]), **who),
                world.stat(b"", at=inode.id, **who),
            )[1],
        }
        for name, ask in asked.items():
            assert ask({"user": ALICE}).inline_data == b"a secret", name
            assert ask({}).inline_data == b"a secret", name
            theirs = ask({"user": BOB, "client": 2})
            assert (theirs.inline_data, theirs.length, theirs.bytes_withheld) == (b"", 8, True), name
        world.set_attr(b"", at=inode.id, permissions=0o644)
        assert asked["stat"]({"user": BOB, "client": 2}).inline_data == b"a secret"

    def test_who_has_a_file_open_keeps_reading_it(self, world):
        _, inode = self.hidden(world, 0o644)
        world.open(b"", at=inode.id, user=BOB, client=2)
        session = world.open(b"", at=inode.id, write=True, user=ALICE).session
        world.set_attr(b"", at=inode.id, permissions=0)
        for who in ({"user": BOB, "client": 2}, {"user": ALICE}):
            assert world.stat(b"", at=inode.id, **who).inline_data == b"a secret"
        world.close_one(inode.id, read_hold=True, user=BOB, client=2)
        world.close_one(inode.id, session, read_hold=True, user=ALICE)
        for who in ({"user": BOB, "client": 2}, {"user": ALICE}):
            assert world.stat(b"", at=inode.id, **who).inline_data == b""

    def test_what_another_user_may_not(self, world):
        directory, inode = self.hidden(world, 0o600)
        who = {"user": BOB, "client": 2}
        for attempt in (
            lambda: world.open(b"", at=inode.id, **who),
            lambda: world.open(b"", at=inode.id, write=True, read=False, **who),
            lambda: world.open(b"", at=inode.id, truncate=True, read=False, **who),
            lambda: world.set_attr(b"", at=inode.id, length=0, **who),
            lambda: world.set_attr(b"", at=inode.id, mtime_now=True, **who),
            lambda: world.set_attr(b"", at=inode.id, permissions=0o666, **who),
            lambda: world.set_attr(b"", at=inode.id, uid=BOB[0], **who),
            lambda: world.sync(inode.id, has_inline=True, inline_data=b"x", inline_base=inode.change, **who),
            lambda: world.sync(inode.id, length=5000, **who),
            lambda: world.reserve(inode, **who),
            lambda: world.xattr("get", inode.id, b"user.a", **who),
            lambda: world.xattr("set", inode.id, b"user.a", b"v", **who),
            lambda: world.list(directory.id, **who),
            lambda: world.lookup(b"f", parent=directory.id, **who),
            lambda: world.unlink(b"f", at=directory.id, **who),
            lambda: world.call(
                "link", pb.LinkRequest(source=pb.Path(at=inode.id), target=pb.Path(at=1, path=b"mine")), **who
            ),
        ):
            with refused(PermissionDenied):
                attempt()
        assert world.read(world.stat(b"", at=inode.id)) == b"a secret"
        assert world.open(b"", at=inode.id, user=ALICE).inode.id == inode.id

    def test_place_of_a_hidden_inode_is_not_sent_to_callers_who_give_its_number(self, world):
        directory, _ = self.hidden(world, 0o600)
        inner = world.mkdir(b"inner", at=directory.id, permissions=0o777, user=ALICE)
        link = world.symlink(b"link", b"a target", at=directory.id, user=ALICE)
        file = world.create(b"open", at=directory.id, permissions=0o666, user=ALICE).inode
        assert world.stat(at=inner.id).name == b"inner"
        assert world.stat(at=file.id).parent == directory.id
        assert world.stat(b"link", at=directory.id, follow=False, user=ALICE).symlink_target == b"a target"
        bob = {"user": BOB, "client": 2}
        for number in (directory.id, inner.id, link.id, file.id):
            seen = [world.stat(at=number, **bob), world.set_attr(at=number, **bob)]
            if number in (inner.id, file.id):
                seen.append(world.open(at=number, **bob).inode)
                seen.append(world.call("sync", pb.SyncRequest(inode=number), **bob).inode)
            for inode in seen:
                assert inode.id == number
                assert (inode.name, inode.parent, inode.symlink_target) == (b"", 0, b"")
        # A name of its own shows no other name of the file, and would show the target.
        plain = world.mknod(b"plain", pb.REGULAR, at=directory.id, permissions=0o666, user=ALICE)
        world.call(
            "link", pb.LinkRequest(source=pb.Path(at=plain.id), target=pb.Path(at=1, path=b"shared")), **bob
        )
        for entry in world.list(with_inodes=True, **bob).entries:
            assert (entry.attributes.name, entry.attributes.parent) == (b"", 0)
        own = pb.LinkRequest(source=pb.Path(at=link.id), target=pb.Path(at=1, path=b"mine"))
        with refused(PermissionDenied, 1):
            world.call("link", own, **bob)

    def test_names_of_directories_are_sent_to_callers_who_may_search_them(self, world):
        directory, _ = self.hidden(world, 0o600)
        inner = world.mkdir(b"inner", at=directory.id, permissions=0o777, user=ALICE)
        ask = pb.RealPathRequest(inode=inner.id)
        assert world.call("real_path", ask, user=ALICE).path == b"/private/inner"
        with refused(PermissionDenied, 13):
            world.call("real_path", ask, user=BOB, client=2)


class TestInline:
    def test_a_file_can_be_made_in_chunks_from_the_start(self, world):
        reply = world.create(b"f", in_chunks=True)
        assert not reply.inode.is_inline
        assert reply.inode.layout.inline_bytes
        with refused(Conflict):
            world.sync(
                reply.inode.id,
                reply.session,
                has_inline=True,
                inline_data=b"x",
                inline_base=reply.inode.change,
            )
        assert world.sync(reply.inode.id, reply.session, length=9).length == 9
        again = world.create(b"f", in_chunks=True, exclusive=False)
        assert again.inode.id == reply.inode.id

    def test_attributes_travel_with_the_rest_as_one_change(self, world):
        reply = world.create(b"f", permissions=0o600)
        wanted = pb.SetAttrRequest(permissions=0o4755, uid=7, gid=8, mtime_ns=5, atime_ns=6)
        inode = world.sync(reply.inode.id, reply.session, length=9, mtime_ns=99, attributes=wanted)
        assert (inode.permissions, inode.uid, inode.gid) == (0o4755, 7, 8)
        assert (inode.mtime_ns, inode.atime_ns, inode.length) == (5, 6, 9)
        assert inode.change == reply.inode.change + 1

    def test_attributes_are_refused_to_strangers_with_all_that_travels_with_them(self, world):
        world.mkdir(b"d", permissions=0o777)
        reply = world.create(b"d/f", user=ALICE, client=5)
        with refused(PermissionDenied):
            world.sync(
                reply.inode.id,
                reply.session,
                length=9,
                attributes=pb.SetAttrRequest(permissions=0o777),
                user=BOB,
                client=5,
            )
        assert world.stat(b"d/f").length == 0

    def test_small_content_lives_in_the_inode(self, world):
        reply = world.create(b"f")
        inode, error = world.close_one(
            reply.inode.id,
            reply.session,
            has_inline=True,
            inline_data=b"hello",
            inline_base=reply.inode.change,
            mtime_ns=77,
        )
        assert not error.code
        assert (inode.inode.length, inode.inode.mtime_ns) == (5, 77)
        assert inode.inode.change == reply.inode.change + 1
        assert world.read(world.lookup(b"f")) == b"hello"
        assert world.dependencies.writers.count == 0
        listed = world.list(with_inodes=True).entries[0].attributes
        assert (listed.is_inline, listed.inline_data) == (True, b"")

    def test_bytes_made_from_an_older_state_are_refused(self, world):
        reply = world.create(b"f")
        base = reply.inode.change
        world.sync(reply.inode.id, reply.session, has_inline=True, inline_data=b"one", inline_base=base)
        with refused(Conflict):
            world.sync(reply.inode.id, reply.session, has_inline=True, inline_data=b"two", inline_base=base)
        _, error = world.close_one(
            reply.inode.id, reply.session, has_inline=True, inline_data=b"two", inline_base=base
        )
        assert (error.code, error.retryable) == ("conflict", True)
        assert world.dependencies.writers.count == 1  # the session stays, so that its owner can merge
        assert world.read(world.lookup(b"f")) == b"one"

    def test_too_many_bytes(self, world):
        reply = world.create(b"f")
        with refused(InvalidArgument, 27):
            world.sync(
                reply.inode.id,
                reply.session,
                has_inline=True,
                inline_data=bytes(4097),
                inline_base=reply.inode.change,
            )

    def test_leaving_the_inode(self, world):
        reply = world.create(b"f")
        inode = world.sync(
            reply.inode.id, reply.session, has_inline=True, inline_data=b"abc", inline_base=reply.inode.change
        )
        with refused(Conflict):
            world.sync(inode.id, reply.session, leave_inline=True, inline_base=inode.change - 1)
        with refused(InvalidArgument):  # its bytes would be lost
            world.sync(inode.id, reply.session, leave_inline=True, inline_base=inode.change)
        left = world.leave(inode, reply.session)
        assert not left.is_inline
        assert left.content != inode.content
        assert world.read(left) == b"abc"
        assert world.keys(b"G") == []
        world.write(left, 3, bytes(CHUNK))
        assert world.read(world.sync(left.id, reply.session, length=CHUNK + 3)) == b"abc" + bytes(CHUNK)
        with refused(Conflict):
            world.sync(inode.id, reply.session, has_inline=True, inline_data=b"x", inline_base=left.change)

    def test_only_truncation_to_nothing_brings_it_back(self, world):
        reply = world.create(b"f")
        left = world.leave(reply.inode, reply.session)
        world.write(left, 0, b"x" * CHUNK)
        world.sync(left.id, reply.session, length=CHUNK)
        assert not world.set_attr(b"f", length=10, session=reply.session).is_inline
        empty = world.set_attr(b"f", length=0, session=reply.session)
        assert empty.is_inline
        assert empty.content != left.content

    def test_truncation(self, world):
        reply = world.create(b"f")
        world.sync(
            reply.inode.id,
            reply.session,
            has_inline=True,
            inline_data=b"hello",
            inline_base=reply.inode.change,
        )
        assert world.read(world.set_attr(b"f", length=3)) == b"hel"
        assert world.read(world.set_attr(b"f", length=5)) == b"hel\0\0"
        long = world.set_attr(b"f", length=10_000)
        assert long.is_inline
        assert world.read(long) == b"hel".ljust(10_000, b"\0")
        assert long.truncate_version == 3


class TestSpare:
    """A file leaves its inode for a content that no other client has written to."""

    def small(self, world, data=b"hello", client=1):
        reply = world.create(b"f", client=client)
        inode = world.sync(
            reply.inode.id,
            reply.session,
            client=client,
            has_inline=True,
            inline_data=data,
            inline_base=reply.inode.change,
        )
        return inode, reply.session

    def test_of_two_movers_one_moves_and_the_others_bytes_are_elsewhere(self, world):
        inode, session = self.small(world)
        other = world.open(b"f", write=True, read=False, client=2)
        mine, theirs = world.reserve(inode, session), world.reserve(inode, other.session, client=2)
        assert len({mine.content, theirs.content, inode.content}) == 3
        world.write_to(inode, mine.content, 0, b"HELLO")
        world.write_to(inode, theirs.content, 0, b"hello")
        left = world.sync(
            inode.id, other.session, client=2, leave_inline=True, inline_base=inode.change, spare=theirs
        )
        assert world.read(left) == b"hello"
        with refused(Conflict):
            world.sync(inode.id, session, leave_inline=True, inline_base=inode.change, spare=mine)
        world.clock.advance(2)
        world.collect()
        assert world.control.contents() == {theirs.content}
        check_store(world)

    def test_nothing_is_reserved_from_an_older_state(self, world):
        inode, session = self.small(world)
        world.set_attr(b"f", length=2)
        with refused(Conflict):
            world.reserve(inode, session)
        left = world.leave(world.lookup(b"f"), session)
        with refused(Conflict):
            world.reserve(left, session)
        assert world.keys(b"G") == []

    def test_truncation_before_the_move_wins(self, world):
        inode, session = self.small(world)
        spare = world.reserve(inode, session)
        world.write_to(inode, spare.content, 0, b"hello")
        assert world.open(b"f", write=True, truncate=True, client=2).inode.is_inline
        with refused(Conflict):
            world.sync(inode.id, session, leave_inline=True, inline_base=inode.change, spare=spare)
        assert world.read(world.lookup(b"f")) == b""
        world.clock.advance(2)
        world.collect()
        assert world.control.contents() == set()

    def test_a_dead_movers_content_is_collected(self, world):
        inode, session = self.small(world, client=9)
        spare = world.reserve(inode, session, client=9)
        world.write_to(inode, spare.content, 0, b"hello")
        world.crash()
        world.clock.advance(0.5)
        world.collect()
        assert world.control.contents() == {spare.content}, "its writer may still be about to move"
        world.clock.advance(2)
        world.collect()
        assert world.control.contents() == set()
        assert world.read(world.lookup(b"f")) == b"hello"
        # It was not dead after all: it has to reserve another one.
        with refused(Conflict):
            world.sync(inode.id, session, client=9, leave_inline=True, inline_base=inode.change, spare=spare)
        assert world.read(world.leave(inode, session, client=9)) == b"hello"
        check_store(world)

    def test_a_lost_session_blocks_no_other_client(self, world):
        inode, session = self.small(world, client=9)
        spare = world.reserve(inode, session, client=9)
        world.write_to(inode, spare.content, 0, b"hello")
        world.close_one(inode.id, session, client=9)
        left = world.sync(
            inode.id, session, client=9, leave_inline=True, inline_base=inode.change, spare=spare
        )
        assert world.read(left) == b"hello"

    def test_a_content_that_is_being_collected_is_not_moved_to(self, world):
        """The collector has taken it and stands before its chunks; the mover comes late."""
        inode, session = self.small(world)
        spare = world.reserve(inode, session)
        world.write_to(inode, spare.content, 0, b"hello")
        world.clock.advance(2)
        world.control.down.update(CHAINS)
        world.run(world.collector.round())
        world.run(world.collector.round())
        with refused(Conflict):
            world.sync(inode.id, session, leave_inline=True, inline_base=inode.change, spare=spare)
        world.control.down.clear()
        world.clock.advance(RETRY_S)
        world.collect()
        assert world.control.contents() == set()

    def test_only_what_was_reserved_for_this_file_is_moved_to(self, world):
        secret, _ = world.chunked(b"secret", b"s" * 100)
        world.unlink(b"secret")
        world.clock.advance(2)
        world.control.down.update(CHAINS)
        world.collect()
        (key,) = world.keys(b"G")
        removed_ms, content = schema.split_two(key)
        inode, session = self.small(world)
        other = world.create(b"g")
        foreign = world.reserve(other.inode, other.session)
        garbage = pb.Spare(content=content, reserved_ms=removed_ms)
        for spare in (garbage, foreign, pb.Spare(content=secret.content), pb.Spare()):
            with refused(Conflict):
                world.sync(inode.id, session, leave_inline=True, inline_base=inode.change, spare=spare)
        assert world.lookup(b"f").is_inline

    def test_reserving_needs_the_right_to_write(self, world):
        inode, session = self.small(world)
        with refused(PermissionDenied, 13):
            world.reserve(inode, session, user=BOB, client=2)

    @given(
        acts=st.lists(
            st.tuples(
                st.sampled_from(["open", "reserve", "leave", "small", "truncate", "die", "collect"]),
                st.integers(1, 3),
            ),
            max_size=25,
        )
    )
    @settings(max_examples=60, deadline=None, database=None)
    def test_movers_never_mix_and_leave_nothing_behind(self, acts):
        """Three clients in any order: what a reader sees is what one of them put there whole."""
        movers = Movers()
        for act, client in acts:
            getattr(movers, act)(client)
            movers.check()
        movers.end()


class Movers:
    """Clients of one small file, and what it must hold."""

    def __init__(self) -> None:
        self.world = World()
        self.number = self.world.create(b"f", write=False).inode.id
        self.expected = b""
        self.sessions: dict[int, int] = {}
        self.held: dict[int, tuple] = {}  # client → inode as it was, spare

    def now(self):
        return self.world.lookup(b"f")

    def sync(self, client, **report):
        return self.world.sync(self.number, self.sessions.get(client, 0), client=client, **report)

    def open(self, client):
        if client not in self.sessions:
            self.sessions[client] = self.world.open(b"f", write=True, client=client).session

    def small(self, client):
        now = self.now()
        if now.is_inline:
            self.expected = bytes([now.change % 255 + 1]) * (client * 10)
            self.sync(client, has_inline=True, inline_data=self.expected, inline_base=now.change)

    def reserve(self, client):
        now = self.now()
        if now.is_inline:
            spare = self.world.reserve(now, self.sessions.get(client, 0), client=client)
            self.world.write_to(now, spare.content, 0, now.inline_data)
            self.held[client] = (now, spare)

    def leave(self, client):
        if client not in self.held:
            return
        was, spare = self.held.pop(client)
        now = self.now()
        try:
            self.sync(client, leave_inline=True, inline_base=was.change, spare=spare)
        except Conflict:  # overtaken, or collected
            assert self.now() == now
        else:
            assert (was.change, was.inline_data) == (now.change, now.inline_data)

    def truncate(self, client):
        self.world.set_attr(b"f", length=0, client=client, session=self.sessions.get(client, 0))
        self.expected = b""

    def die(self, client):
        self.held.pop(client, None)
        session = self.sessions.pop(client, 0)
        if session:
            self.world.close_one(self.number, session, client=client)

    def collect(self, _client):
        self.world.clock.advance(1.5)
        self.world.collect()

    def check(self):
        assert self.world.read(self.now()) == self.expected
        check_store(self.world)

    def end(self):
        self.world.clock.advance(10)
        self.world.collect()
        self.check()
        assert self.world.control.contents() <= {self.now().content}
        assert self.world.keys(b"G") == []


class TestLength:
    def test_grows_with_hints_and_never_shrinks(self, world):
        inode, session = world.chunked(b"f", b"x" * 100, close=False)
        assert world.sync(inode.id, session, length=50).length == 100
        assert world.sync(inode.id, session, length=150).length == 150

    def test_a_file_in_its_inode_grows_by_hints_as_far_as_chunks_can_be_numbered(self, world):
        reply = world.create(b"f")
        inode, session = reply.inode, reply.session
        assert world.sync(inode.id, session, length=2 * CHUNK).length == 2 * CHUNK
        assert world.sync(inode.id, session, length=CHUNK).length == 2 * CHUNK
        with pytest.raises(InvalidArgument, match="too large"):
            world.sync(inode.id, session, length=(CHUNK << 32) + 1)

    def test_hint_of_an_older_truncation_is_void(self, world):
        inode, session = world.chunked(b"f", DATA, close=False)
        cut = world.set_attr(b"f", length=CHUNK, session=session)
        assert cut.truncate_version == 1
        assert world.sync(inode.id, session, length=len(DATA), truncate_version=0).length == CHUNK
        world.write(cut, CHUNK, b"new")
        assert world.sync(inode.id, session, length=len(DATA), truncate_version=0).length == CHUNK + 3
        assert world.sync(inode.id, session, length=2 * CHUNK, truncate_version=1).length == 2 * CHUNK

    def test_exact_asks_every_chain(self, world):
        inode, session = world.chunked(b"f", b"", close=False)
        world.write(inode, 2 * CHUNK, b"far")
        calls = world.control.calls
        assert world.sync(inode.id, session, exact=True).length == 2 * CHUNK + 3
        assert world.control.calls - calls == 4

    def test_exact_keeps_what_extension_added(self, world):
        inode, session = world.chunked(b"f", b"abc", close=False)
        world.set_attr(b"f", length=5 * CHUNK, session=session)
        assert world.sync(inode.id, session, exact=True).length == 5 * CHUNK

    def test_others_see_what_is_being_written(self, world):
        inode, session = world.chunked(b"f", b"", close=False)
        world.write(inode, 0, b"x" * 1000)
        assert world.stat(b"f", client=1).length == 0  # the writer knows better itself
        for look in (
            lambda: world.stat(b"f", client=2),
            lambda: world.lookup(b"f", client=2),
            lambda: world.list(with_inodes=True, client=2).entries[0].attributes,
            lambda: world.open(b"f", client=2).inode,
        ):
            assert look().length == 1000
        world.write(inode, 1000, b"x" * 500)
        world.clock.advance(0.051)
        assert world.stat(b"f", client=2).length == 1500
        world.close_one(inode.id, session, length=1500)
        calls = world.control.calls
        assert world.stat(b"f", client=2).length == 1500
        assert world.control.calls == calls

    def test_replies_to_writers_show_what_others_have_written(self, world):
        inode, session = world.chunked(b"f", b"", close=False)
        other = world.open(b"f", write=True, read=False, client=2)
        world.write(inode, 0, b"x" * 1000)
        assert other.inode.length == 0
        world.clock.advance(1)
        assert world.sync(inode.id, other.session, mtime_ns=5, client=2).length == 1000
        assert world.set_attr(b"f", permissions=0o600, client=2).length == 1000
        world.clock.advance(1)
        world.control.down.update(CHAINS)  # what was committed is answered, with the length that is stored
        assert world.sync(inode.id, other.session, mtime_ns=6, client=2).length == 0
        result, error = world.close_one(inode.id, other.session, client=2)
        assert not error.code
        assert result.inode.length == 0
        assert world.dependencies.writers.count == 1
        with refused(Unavailable):
            world.open(b"f", write=True, client=2)
        assert session

    def test_replies_say_whether_other_clients_write(self, world):
        inode, session = world.chunked(b"f", b"x", close=False)
        for look in (
            lambda client: world.stat(b"f", client=client),
            lambda client: world.open(b"f", client=client).inode,
            lambda client: world.sync(inode.id, client=client, durable=True),
            lambda client: world.set_attr(b"f", permissions=0o600, client=client),
        ):
            assert look(client=2).others_write
            assert not look(client=1).others_write
        world.close_one(inode.id, session, length=1)
        assert not world.stat(b"f", client=2).others_write

    def test_replies_say_whether_other_clients_write_a_file_in_its_inode(self, world):
        number = world.create(b"f").inode.id
        assert world.stat(b"f", client=2).others_write
        assert not schema.decode_inode(world.engine.begin().get(schema.inode_key(number))).others_write

    def test_a_report_of_bytes_is_a_change_also_at_the_same_length(self, world):
        inode, session = world.chunked(b"f", b"abc", close=False)
        before = world.sync(inode.id, session, length=3).change
        assert world.sync(inode.id, session, length=3).change == before + 1
        assert world.close_one(inode.id, session, length=3)[0].inode.change == before + 2

    def test_fsync_without_a_report_needs_no_permission_and_stores_nothing(self, world):
        inode, _ = world.chunked(b"f", b"abc", permissions=0o444)
        before = len(world.keys(b"R"))
        assert world.sync(inode.id, durable=True, user=ALICE) == world.stat(b"f", user=ALICE)
        assert len(world.keys(b"R")) == before
        for report in ({"length": 9}, {"mtime_ns": 9}, {"exact": True}):
            with refused(PermissionDenied):
                world.sync(inode.id, durable=True, user=ALICE, **report)

    def test_answers_are_used_again_for_a_moment(self, world):
        world.chunked(b"f", b"x", close=False)
        world.stat(b"f", client=2)
        calls = world.control.calls
        world.stat(b"f", client=3)
        assert world.control.calls == calls
        world.clock.advance(0.051)
        world.stat(b"f", client=3)
        assert world.control.calls > calls

    def test_exact_stat_and_open_ask_again_at_once(self, world):
        inode, _ = world.chunked(b"f", b"x", close=False)
        assert world.stat(b"f", client=2).length == 1
        world.write(inode, 0, b"x" * 1000)
        assert world.stat(b"f", client=2).length == 1
        assert world.stat(b"f", client=2, exact=True).length == 1000
        world.write(inode, 0, b"x" * 2000)
        assert world.open(b"f", client=2).inode.length == 2000

    def test_exact_answers_are_shared_by_callers_that_came_before_the_question(self, world):
        inode, _ = world.chunked(b"f", b"x", close=False)
        lengths = world.dependencies.lengths

        async def ask_six_times():
            return await asyncio.gather(*(lengths.exact(inode) for _ in range(6)))

        calls = world.control.calls
        world.run(lengths.exact(inode))
        once = world.control.calls - calls
        assert world.run(ask_six_times()) == [1] * 6
        assert world.control.calls - calls <= 3 * once

    def test_a_close_without_a_full_report_ends_when_the_chains_were_measured(self, world):
        inode, session = world.chunked(b"f", b"x", close=False)
        world.write(inode, 0, b"x" * 1000)
        world.control.down.update(CHAINS)
        world.close_one(inode.id, session, measure=True)
        world.run(world.collector.round())
        assert world.dependencies.writers.count == 1, "the chains do not answer"
        world.control.down.clear()
        world.clock.advance(RETRY_S)
        world.run(world.collector.round())
        assert world.dependencies.writers.count == 0
        assert world.keys(b"S") == []
        assert world.stat(b"f").length == 1000

    def test_session_closed_twice_in_one_request_leaves_no_work_for_the_collector(self, world):
        inode, session = world.chunked(b"f", b"x", close=False)
        measured = pb.CloseOne(inode=inode.id, session=session, measure=True)
        plain = pb.CloseOne(inode=inode.id, session=session)
        world.call("close", pb.CloseRequest(closes=[measured, plain]))
        world.collect()
        assert world.dependencies.writers.abandoned == []
        assert world.keys(b"S") == []

    def test_old_sessions_that_their_client_does_not_name_end(self, world):
        inode, session = world.chunked(b"f", b"x", close=False)
        unknown = world.open(b"f", write=True).session
        world.write(inode, 0, b"x" * 1000)
        named = [pb.WriteSession(inode=inode.id, session=session)]
        for _ in range(2):
            assert not world.hold(sessions=named, keep_holds=True).lost
            world.run(world.collector.round())
            assert len(world.keys(b"S")) == 2, "its open may be in flight"
        world.clock.advance(16 * 60)
        world.hold(sessions=named, keep_holds=True)
        world.run(world.collector.round())
        assert [schema.split_two(key) for key in world.keys(b"S")] == [(inode.id, session)]
        assert unknown

    def test_sessions_that_only_their_client_knows_are_reported_to_it(self, world):
        inode, session = world.chunked(b"f", b"x", close=False)
        named = [pb.WriteSession(inode=inode.id, session=number) for number in (session, 7)]
        assert list(world.hold(sessions=named, keep_holds=True).lost) == named[1:]
        assert list(world.hold(sessions=named[:1], client=2).lost) == named[:1], "another client's"

    def test_comparing_sessions_keeps_holds(self, world):
        world.create(b"f", write=False)
        world.open(b"f")
        world.hold(keep_holds=True)
        assert world.dependencies.holds.count == 1

    def test_silent_chain(self, world):
        world.chunked(b"f", b"x" * 10, close=False)
        world.control.down.update(CHAINS)
        with refused(Unavailable):
            world.stat(b"f", client=2)
        assert world.list(with_inodes=True, client=2).entries[0].attributes.length == 10

    def test_too_long(self, world):
        inode, session = world.chunked(b"f", b"", close=False)
        for length in ((1 << 48) + 1, 2**64 - 1):
            with refused(InvalidArgument, 27):
                world.sync(inode.id, session, length=length)
            with refused(InvalidArgument, 27):
                world.set_attr(b"f", length=length)
        assert world.sync(inode.id, session, length=1 << 48).length == 1 << 48

    def test_errors(self, world):
        world.mkdir(b"d")
        world.mknod(b"p", pb.FIFO)
        with refused(IsADirectory, 21):
            world.sync(world.stat(b"d").id, length=1)
        with refused(InvalidArgument, 22):
            world.sync(world.stat(b"p").id, length=1)
        with refused(NotFound, 2):
            world.sync(999, length=1)
        with refused(IsADirectory, 21):
            world.set_attr(b"d", length=1)
        with refused(InvalidArgument, 22):
            world.set_attr(b"p", length=1)

    def test_directory_is_synced_and_stays_as_it_is(self, world):
        world.mkdir(b"d")
        before = world.stat(b"d")
        assert world.sync(before.id, durable=True) == before

    def test_writing_clears_set_id_bits(self, world):
        world.set_attr(b"", permissions=0o777)
        inode, session = world.chunked(b"f", b"", close=False, user=ALICE, permissions=0o755)
        world.set_attr(b"f", permissions=0o6755, user=ALICE)
        assert world.sync(inode.id, session, length=3, user=ALICE).permissions == 0o755
        world.set_attr(b"f", permissions=0o6755)
        assert world.sync(inode.id, session, length=9).permissions == 0o6755


class TestTruncate:
    @pytest.mark.parametrize(
        "length", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK, len(DATA) - 1, len(DATA)]
    )
    @pytest.mark.parametrize("open_", [False, True])
    def test_no_old_byte_comes_back(self, world, length, open_):
        inode, session = world.chunked(b"f", DATA, close=not open_)
        cut = world.set_attr(b"f", length=length, session=session)
        assert world.read(cut) == DATA[:length]
        assert cut.truncate_version == 1
        assert cut.content == inode.content
        longer = world.set_attr(b"f", length=4 * CHUNK, session=session)
        assert world.read(longer) == DATA[:length].ljust(4 * CHUNK, b"\0")
        assert world.keys(b"P") == []

    def test_bytes_beyond_the_known_length_go_too(self, world):
        inode, session = world.chunked(b"f", b"", close=False)
        world.write(inode, 0, DATA)  # acknowledged by the chains, not yet reported
        world.set_attr(b"f", length=CHUNK + 5, session=session)
        assert world.read(world.set_attr(b"f", length=len(DATA), session=session)) == DATA[: CHUNK + 5].ljust(
            len(DATA), b"\0"
        )

    def test_extension_of_a_closed_file_asks_no_chain(self, world):
        world.chunked(b"f", DATA)
        calls = world.control.calls
        assert world.set_attr(b"f", length=10 * CHUNK).length == 10 * CHUNK
        assert world.control.calls == calls

    @pytest.mark.parametrize("length", [CHUNK << 32, (CHUNK << 32) - 1])
    def test_into_the_last_chunk_that_there_can_be(self, world, length):
        _, session = world.chunked(b"f", DATA, close=False)
        assert world.set_attr(b"f", length=length, session=session).length == length
        assert world.read(world.set_attr(b"f", length=5, session=session)) == DATA[:5]
        with pytest.raises(InvalidArgument, match="too large"):
            world.set_attr(b"f", length=(CHUNK << 32) + 1, session=session)

    def test_to_nothing_takes_a_new_content(self, world):
        inode, session = world.chunked(b"f", DATA, close=False)
        cut = world.set_attr(b"f", length=0, session=session)
        assert cut.content != inode.content
        assert world.control.contents() == {inode.content}
        assert len(world.keys(b"G")) == 1
        world.clock.advance(2)
        world.collect()
        assert world.control.contents() == set()
        assert world.keys(b"G") == []

    def test_to_nothing_while_others_write_removes_chunks_at_once(self, world):
        inode, _ = world.chunked(b"f", DATA, close=False, client=1)
        world.open(b"f", write=True, client=2)
        cut = world.set_attr(b"f", length=0, client=2)
        assert cut.content == inode.content
        assert not cut.is_inline
        assert world.control.contents() == set()
        world.clock.advance(0.1)
        world.write(cut, 0, b"again")  # by client 1, which does not know of it
        assert world.stat(b"f", client=3).length == 5

    def test_on_open(self, world):
        inode, _ = world.chunked(b"f", DATA)
        reply = world.open(b"f", write=True, truncate=True)
        assert reply.inode.length == 0
        assert reply.inode.content != inode.content
        assert reply.session
        again = world.create(b"f", truncate=True, client=2)
        assert again.inode.length == 0
        assert again.session not in (0, reply.session)

    def test_on_open_while_others_write(self, world):
        inode, _ = world.chunked(b"f", DATA, close=False)
        reply = world.create(b"f", truncate=True, client=2)
        assert reply.inode.content == inode.content
        assert (reply.inode.length, reply.inode.truncate_version) == (0, 1)
        assert world.control.contents() == set()
        assert world.keys(b"P") == []
        assert world.dependencies.writers.count == 2

    def test_permissions(self, world):
        world.set_attr(b"", permissions=0o777)
        world.chunked(b"f", DATA, user=ALICE)
        with refused(PermissionDenied, 13):
            world.set_attr(b"f", length=1, user=BOB)
        reply = world.open(b"f", write=True, user=ALICE)
        world.set_attr(b"f", permissions=0o444, user=ALICE)
        with refused(PermissionDenied, 13):
            world.set_attr(b"f", length=1, user=ALICE)
        assert world.set_attr(b"f", length=1, user=ALICE, session=reply.session).length == 1

    def test_chains_that_cannot_be_reached(self, world):
        inode, _ = world.chunked(b"f", DATA)
        world.control.down.add(chains_of(inode.layout, CHAINS)[1])
        with refused(Unavailable):
            world.set_attr(b"f", length=1)
        assert len(world.keys(b"P")) == 1
        assert inode.id in world.dependencies.truncations
        world.control.down.clear()
        world.run(world.dependencies.truncations.resume())
        assert world.keys(b"P") == []
        cut = world.stat(b"f")
        assert (cut.length, cut.truncate_version) == (1, 1)
        assert world.read(world.set_attr(b"f", length=len(DATA))) == DATA[:1].ljust(len(DATA), b"\0")

    @pytest.mark.parametrize(
        ("denied", "error"),
        [
            ({"uid": BOB[0]}, PermissionDenied),
            ({"gid": EVE[1]}, PermissionDenied),
            ({"permissions": 0o600}, PermissionDenied),
            ({"atime_ns": 5}, PermissionDenied),
            ({"layout": pb.Layout(chunk_bytes=CHUNK)}, NotADirectory),
        ],
        ids=["chown", "chgrp", "chmod", "utimes", "layout"],
    )
    def test_refused_change_of_attributes_cuts_nothing(self, world, denied, error):
        world.chunked(b"f", DATA)
        world.set_attr(b"f", permissions=0o666, uid=ALICE[0], gid=ALICE[1])
        with refused(error):
            world.set_attr(b"f", length=5, user=BOB, **denied)
        assert world.keys(b"P") == []
        assert world.read(world.stat(b"f")) == DATA

    @pytest.mark.parametrize("operation", ["open", "create"])
    def test_refused_open_cuts_nothing(self, world, monkeypatch, operation):
        world.chunked(b"f", DATA)
        world.open(b"f", write=True, client=2)  # another writer: O_TRUNC has to cut
        world.create(b"g", client=3)
        monkeypatch.setattr("luciola.meta.execution.SESSIONS_MAX", 1)
        with refused(InvalidArgument, 24):
            getattr(world, operation)(b"f", write=True, truncate=True, client=3)
        assert world.keys(b"P") == []
        assert world.read(world.stat(b"f")) == DATA

    def test_open_is_not_refused_once_its_chunks_are_cut(self, world, monkeypatch):
        inode, _ = world.chunked(b"f", DATA)
        world.open(b"f", write=True, client=2)
        original = world.control.remove_chunks

        async def remove(*args, **kwargs):
            monkeypatch.setattr(
                "luciola.meta.execution.SESSIONS_MAX", 0
            )  # as if other opens had come meanwhile
            return await original(*args, **kwargs)

        world.control.remove_chunks = remove
        assert world.open(b"f", write=True, truncate=True, client=3).inode.length == 0
        assert world.read(world.stat(b"f")) == b""
        assert world.stat(b"f").id == inode.id

    def test_requests_during_a_truncation_wait(self, world):
        inode, _ = world.chunked(b"f", DATA)

        async def both():
            slow = world.control.remove_chunks
            started = world.loop.create_future()
            gate = world.loop.create_future()

            async def remove(*args, **kwargs):
                if not started.done():
                    started.set_result(None)
                await gate
                return await slow(*args, **kwargs)

            world.control.remove_chunks = remove
            request = pb.SetAttrRequest(path=pb.Path(at=inode.id), length=5)
            request.caller.CopyFrom(world.caller())
            cutting = world.loop.create_task(world.service.set_attr(request, world.identity))
            await started
            look = pb.StatRequest(path=pb.Path(at=inode.id))
            look.caller.CopyFrom(world.caller(client=2))
            looking = world.loop.create_task(world.service.stat(look, world.identity))
            for _ in range(5):
                await asyncio.sleep(0)
            assert not looking.done()
            gate.set_result(None)
            return (await cutting).message().inode.length, (await looking).message().inode.length

        assert world.run(both()) == (5, 5)


class TestUnlinkedButOpen:
    def test_reader_keeps_it(self, world):
        inode, _ = world.chunked(b"f", DATA)
        world.open(b"f", client=2)
        world.unlink(b"f")
        world.clock.advance(100)
        world.collect()
        assert world.stat(b"", at=inode.id).link_count == 0
        assert world.read(world.stat(b"", at=inode.id)) == DATA
        world.close_one(inode.id, read_hold=True, client=2)
        world.clock.advance(RETRY_S)
        world.collect()
        assert world.control.contents() == set()
        with refused(NotFound):
            world.stat(b"", at=inode.id)

    def test_writer_keeps_its_session_and_continues(self, world):
        inode, session = world.chunked(b"f", b"abc", close=False)
        world.unlink(b"f")
        world.clock.advance(100)
        world.collect()
        world.write(inode, 3, b"def")
        assert world.sync(inode.id, session, length=6).length == 6
        assert world.set_attr(b"", at=inode.id, length=4, session=session).length == 4
        assert world.read(world.stat(b"", at=inode.id)) == b"abcd"
        again = world.open(b"", at=inode.id, write=True)
        world.close_one(inode.id, session, length=4, truncate_version=1)
        world.collect()
        assert world.stat(b"", at=inode.id).id
        world.close_one(inode.id, again.session, read_hold=True)
        world.clock.advance(RETRY_S)
        world.collect()
        assert world.control.contents() == set()
        assert world.keys(b"O") == world.keys(b"G") == world.keys(b"S") == []

    def test_after_a_restart_readers_have_time_to_say_so(self, world):
        inode, _ = world.chunked(b"f", DATA)
        world.open(b"f", client=2)
        world.unlink(b"f")
        world.clock.advance(100)
        before = world.dependencies.incarnation
        world.crash()
        world.collect()
        assert world.stat(b"", at=inode.id).id
        world.clock.advance(0.5)
        reply = world.call("hold", pb.HoldRequest(inodes=[inode.id], incarnation=before), client=2)
        assert reply.incarnation == world.dependencies.incarnation != before
        world.clock.advance(100)
        world.collect()
        assert world.read(world.stat(b"", at=inode.id)) == DATA
        world.call("hold", pb.HoldRequest(inodes=[]), client=2)
        world.clock.advance(RETRY_S)
        world.collect()
        with refused(NotFound):
            world.stat(b"", at=inode.id)

    def test_sessions_outlive_a_restart(self, world):
        inode, session = world.chunked(b"f", b"abc", close=False)
        world.unlink(b"f")
        world.crash()
        assert world.dependencies.writers.count == 1
        world.clock.advance(100)
        world.collect()
        assert world.stat(b"", at=inode.id).id
        assert not world.close_one(inode.id, session)[1].code
        world.clock.advance(RETRY_S)
        world.collect()
        assert world.control.contents() == set()

    def test_removed_directory_that_is_open(self, world):
        number = world.mkdir(b"d").id
        world.open(b"d", client=2)
        world.rmdir(b"d")
        world.clock.advance(100)
        world.collect()
        assert world.stat(b"", at=number).link_count == 0
        assert world.names(number) == []
        world.close_one(number, read_hold=True, client=2)
        world.clock.advance(RETRY_S)
        world.collect()
        with refused(NotFound):
            world.stat(b"", at=number)


class TestCloseMany:
    def test_one_failure_does_not_hinder_the_others(self, world):
        one = world.create(b"a")
        other = world.create(b"b")
        request = pb.CloseRequest(
            closes=[
                pb.CloseOne(inode=one.inode.id, session=one.session),
                pb.CloseOne(inode=999, session=5, mtime_ns=4),
                pb.CloseOne(inode=other.inode.id, session=other.session),
            ]
        )
        reply = world.call("close", request)
        assert [error.code for error in reply.errors] == ["", "not_found", ""]
        assert world.dependencies.writers.count == 0

    def test_too_many(self, world):
        with refused(InvalidArgument):
            world.call("close", pb.CloseRequest(closes=[pb.CloseOne(inode=1)] * 1025))

    def test_session_that_is_gone_already(self, world):
        reply = world.create(b"f")
        for _ in range(2):
            assert not world.close_one(reply.inode.id, reply.session)[1].code


class TestCloseWithoutNews:
    def test_leaves_no_record_and_does_no_harm_twice(self, world):
        reply = world.create(b"f", read=True, sequence=5)
        records = world.keys(b"R")
        for _ in range(2):
            result, error = world.close_one(reply.inode.id, reply.session, read_hold=True, sequence=6)
            assert not error.code
            assert not result.HasField("inode")
        assert world.keys(b"R") == records
        assert world.keys(b"S") == []
        assert world.dependencies.holds.count == 0

    def test_needs_no_permission_but_the_session(self, world):
        world.set_attr(b"", permissions=0o777)
        reply = world.create(b"f", user=ALICE, client=5, permissions=0o444)
        assert world.close_one(reply.inode.id, reply.session, user=BOB, client=6)[1].code == "not_found"
        assert world.dependencies.writers.count == 1
        for _ in range(2):
            assert not world.close_one(reply.inode.id, reply.session, user=ALICE, client=5)[1].code
        assert world.dependencies.writers.count == 0

    def test_of_an_inode_that_is_no_more(self, world):
        result, error = world.close_one(12345, 5)
        assert not error.code
        assert not result.HasField("inode")
