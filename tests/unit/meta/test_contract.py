"""The metadata service and the fake that the Rust client's tests use in its place: one suite for both.

What the fake leaves out, and clients under test with it do without: names other than "f" and a number below the root,
users other than root, directories, links, extended attributes, removal. It fails an assertion where a client breaks a
rule that the service cannot check: bytes that leave their inode are those of the inode, under a spare used once.
"""

import errno
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from luciola.errors import AlreadyExists, Conflict, Error, InvalidArgument
from luciola.wire.pb import meta_pb2 as pb
from luciola.wire.pb.common_pb2 import Caller
from luciola.wire.preserialized import Preserialized

from .fakes import Fakes, FakeWorld, serve_fakes
from .world import CHUNK, World

pytestmark = pytest.mark.crate("test", "--lib", "--no-run")  # the fakes

INLINE = 4096
CLIENTS = st.integers(1, 2)
NUMBERS = st.integers(0, 1000)  # which of several: what there is to choose from is not known before
FLAGS = st.booleans()
LENGTHS = st.sampled_from([0, 1, 5, INLINE, INLINE + 1, CHUNK - 1, CHUNK, 2 * CHUNK + 1])
MTIMES = st.sampled_from([0, 7, 8])
EXPLICIT_NS = 1000  # times below were set, others are the clock's
# All that a reply may show of a regular file, less its ids and times.
COMPARED = (
    "type",
    "permissions",
    "uid",
    "gid",
    "link_count",
    "length",
    "device",
    "truncate_version",
    "is_inline",
    "inline_data",
    "symlink_target",
    "parent",
    "name",
    "change",
    "bytes_withheld",
    "open_for_writing",
    "others_write",
)


@pytest.fixture(scope="module")
def fakes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fakes]:
    with serve_fakes(tmp_path_factory.mktemp("fakes")) as served:
        yield served


def service() -> World:
    """The service, with chains and layouts as the fake has them, and garbage that stays."""
    return World(stripe=1, gc_delay_ms=3_600_000)


@pytest.fixture(params=["service", "fake"])
def world(request: pytest.FixtureRequest) -> World:
    return service() if request.param == "service" else FakeWorld(request.getfixturevalue("fakes"))


class File(NamedTuple):
    """A file's number: the service's, and the fake's."""

    ids: tuple[int, int]


class Session(NamedTuple):
    """A write session: the service's number, and the fake's."""

    client: int
    file: File
    ids: tuple[int, int]


class Report(NamedTuple):
    """What a writer reports. `is_stale`: made from an inode that has changed since."""

    length: int | None
    data: bytes | None
    mtime_ns: int
    clear_set_id: bool
    is_stale: bool

    def fields(self, seen: pb.Inode) -> dict[str, Any]:
        fields: dict[str, Any] = {"mtime_ns": self.mtime_ns, "clear_set_id": self.clear_set_id}
        if self.length is not None:
            version = max(0, seen.truncate_version - self.is_stale)
            fields["length"] = pb.LengthHint(length=self.length, truncate_version=version)
        if self.data is not None:
            base = seen.change - self.is_stale
            fields |= {"has_inline": True, "inline_data": self.data, "inline_base": base}
        return fields


REPORTS = st.builds(
    Report,
    length=st.none() | LENGTHS,
    data=st.none() | st.sampled_from([b"", b"small", bytes(range(256)) * 16, b"x" * (INLINE + 1)]),
    mtime_ns=MTIMES,
    clear_set_id=FLAGS,
    is_stale=FLAGS,
)


class Both(RuleBasedStateMachine):
    """Asks both the same, at random, and compares all answers."""

    fakes: Fakes

    def __init__(self) -> None:
        super().__init__()
        self.worlds = (service(), FakeWorld(self.fakes))
        self.sequence = 0
        self.pairs: dict[tuple[str, int, int], int] = {}
        self.files: list[File] = []
        self.sessions: list[Session] = []  # that there ever were
        self.writing: list[Session] = []  # those that are open
        self.sent: tuple[str, tuple[Any, Any]] = "", (None, None)

    def teardown(self) -> None:
        self.worlds[0].close()

    # Asking.

    def ask(self, method: str, make: Callable[[int], Any], client: int) -> tuple[Any, Any] | None:
        """Sends what `make` makes for each side; the replies, or None if both have refused it."""
        self.sequence += 1
        requests = make(0), make(1)
        for request in requests:
            request.caller.CopyFrom(Caller(client=client, sequence=self.sequence))
        self.sent = method, requests
        return self.send(method, requests)

    def send(self, method: str, requests: tuple[Any, Any]) -> tuple[Any, Any] | None:
        self.worlds[0].clock.advance(1.0)  # lengths that were measured before are old
        real, fake = map(self.outcome, self.worlds, (method, method), requests)
        if isinstance(real, Error) or isinstance(fake, Error):
            assert _refusal(real) == _refusal(fake), (real, fake)
            return None
        self.compare(real, fake)
        return real, fake

    def outcome(self, world: World, method: str, request: Any) -> Any:
        try:
            reply = world.run(getattr(world.service, method)(request, world.identity))
            return reply.message() if isinstance(reply, Preserialized) else reply
        except Error as error:
            return error

    # Comparing.

    def compare(self, real: Any, fake: Any) -> None:
        match real:
            case pb.InodeReply():
                self.compare_inodes(real.inode, fake.inode)
                self.pair("session", real.session, fake.session)
                self.pair("content", real.spare.content, fake.spare.content)
                assert real.created == fake.created
            case pb.CloseReply():
                assert [_refusal(each) for each in real.errors] == [_refusal(each) for each in fake.errors]
                for one, other in zip(real.results, fake.results, strict=True):
                    assert one.HasField("inode") == other.HasField("inode")
                    self.compare_inodes(one.inode, other.inode)
            case pb.HoldReply():
                known = {each.ids for each in self.sessions}
                lost = [{each.session for each in reply.lost} for reply in (real, fake)]
                assert all((ids[0] in lost[0]) == (ids[1] in lost[1]) for ids in known), (real, fake)
            case pb.ListReply():
                assert real.more == fake.more
                for one, other in zip(real.entries, fake.entries, strict=True):
                    assert (one.name, one.type) == (other.name, other.type)
                    self.pair("inode", one.inode, other.inode)
                    assert one.HasField("attributes") == other.HasField("attributes")
                    self.compare_inodes(one.attributes, other.attributes)
            case _:
                raise AssertionError(f"how is {real} compared?")

    def compare_inodes(self, real: pb.Inode, fake: pb.Inode) -> None:
        self.pair("inode", real.id, fake.id)
        self.pair("content", real.content, fake.content)
        for name in COMPARED:
            assert getattr(real, name) == getattr(fake, name), (name, real, fake)
        for name in ("atime_ns", "mtime_ns", "ctime_ns", "birth_ns"):
            assert _time(real, name) == _time(fake, name), (name, real, fake)
        for name in ("chunk_bytes", "inline_bytes", "stripe"):
            assert getattr(real.layout, name) == getattr(fake.layout, name), name

    def pair(self, kind: str, real: int, fake: int) -> None:
        """What one side distinguishes, or treats as the same, so does the other."""
        assert bool(real) == bool(fake), (kind, real, fake)
        assert self.pairs.setdefault((kind, 0, real), fake) == fake, (kind, real, fake)
        assert self.pairs.setdefault((kind, 1, fake), real) == real, (kind, real, fake)

    def look(self, file: File) -> tuple[pb.Inode, pb.Inode]:
        """The file as a reader sees it; without a trace."""

        def stat(side: int) -> pb.StatRequest:
            return pb.StatRequest(path=pb.Path(at=file.ids[side]), exact=True, caller=Caller(client=9))

        replies = self.send("stat", (stat(0), stat(1)))
        assert replies is not None
        return replies[0].inode, replies[1].inode

    def opened(self, replies: tuple[Any, Any] | None, client: int) -> None:
        if replies is None:
            return
        real, fake = replies
        file = File((real.inode.id, fake.inode.id))
        if file not in self.files:
            self.files.append(file)
        if real.session:
            session = Session(client, file, (real.session, fake.session))
            if session not in self.sessions:  # a reply may come twice
                self.sessions.append(session)
                self.writing.append(session)

    # Requests.

    @initialize(client=CLIENTS, write=FLAGS)
    def begin(self, client, write):
        self.create(1, client, write=write)

    @rule(
        number=st.integers(1, 2),
        client=CLIENTS,
        write=FLAGS,
        truncate=FLAGS,
        exclusive=FLAGS,
        in_chunks=FLAGS,
        permissions=st.sampled_from([0o644, 0o6755]),
    )
    def create(self, number, client, **fields):
        path = pb.Path(at=1, path=b"f%d" % number)
        self.opened(self.ask("create", lambda _: pb.CreateRequest(path=path, **fields), client), client)

    @rule(which=NUMBERS, client=CLIENTS, read=FLAGS, write=FLAGS, truncate=FLAGS)
    def open(self, which, client, **flags):
        file = self.file(which)
        make = lambda side: pb.OpenRequest(path=pb.Path(at=file.ids[side]), **flags)  # noqa: E731
        self.opened(self.ask("open", make, client), client)

    @precondition(lambda self: self.writing)
    @rule(which=NUMBERS, offset=LENGTHS, data=st.sampled_from([b"bytes", b"more" * 5000]))
    def write(self, which, offset, data):
        """The client with this session writes to the chains."""
        file = self.writing[which % len(self.writing)].file
        seen = self.look(file)
        if not seen[0].is_inline:
            for world, inode in zip(self.worlds, seen, strict=True):
                world.write(inode, offset, data)

    @rule(
        which=NUMBERS,
        client=CLIENTS,
        length=st.none() | LENGTHS | st.just(1 << 62),
        permissions=st.none() | st.sampled_from([0o600, 0o6755, 0o102755]),
        owner=st.sampled_from([{}, {"uid": 5}, {"gid": 6}, {"uid": 0xFFFF_FFFF}]),
        times=st.sampled_from([{}, {"atime_ns": 3}, {"mtime_ns": 4}, {"atime_now": True, "mtime_now": True}]),
        clear_set_id=FLAGS,
    )
    def set_attr(self, which, client, owner, times, **fields):
        file = self.file(which)
        fields |= owner | times
        make = lambda side: pb.SetAttrRequest(path=pb.Path(at=file.ids[side]), **fields)  # noqa: E731
        self.ask("set_attr", make, client)

    @rule(which=NUMBERS, client=CLIENTS, report=REPORTS, durable=FLAGS, exact=FLAGS, attributes=FLAGS)
    def sync(self, which, client, report, attributes, **flags):
        file = self.file(which)
        fields = report.fields(self.look(file)[0])
        if attributes:
            fields["attributes"] = pb.SetAttrRequest(permissions=0o4711, mtime_ns=5, uid=5)
        make = lambda side: pb.SyncRequest(inode=file.ids[side], **fields, **flags)  # noqa: E731
        self.ask("sync", make, client)

    @precondition(lambda self: self.sessions)
    @rule(which=NUMBERS, report=st.none() | REPORTS, measure=FLAGS, client=st.none() | CLIENTS)
    def close(self, which, report, measure, client):
        session = self.sessions[which % len(self.sessions)]
        client = client or session.client
        fields = report.fields(self.look(session.file)[0]) if report else {}

        def make(side: int) -> pb.CloseRequest:
            ids = {"inode": session.file.ids[side], "session": session.ids[side]}
            return pb.CloseRequest(closes=[pb.CloseOne(**ids, **fields, measure=measure)])

        replies = self.ask("close", make, client)
        self.worlds[0].collect()
        if replies and not replies[0].errors[0].code and client == session.client and session in self.writing:
            self.writing.remove(session)

    @rule(which=NUMBERS, client=CLIENTS, is_stale=FLAGS, report=st.none() | REPORTS, stops=FLAGS)
    def leave_inline(self, which, client, is_stale, report, stops):
        """A client moves a small file out of its inode: a spare, its bytes, the move."""
        file = self.file(which)
        inode = self.look(file)[0]
        base = inode.change - is_stale
        spares: tuple[Any, Any] = (None, None)
        if inode.inline_data or is_stale:
            reserve = lambda side: pb.SyncRequest(  # noqa: E731
                inode=file.ids[side], reserve_spare=True, inline_base=base
            )
            replies = self.ask("sync", reserve, client)
            if replies is None or stops:
                return
            spares = replies[0].spare, replies[1].spare
            for world, spare in zip(self.worlds, spares, strict=True):
                world.write_to(inode, spare.content, 0, inode.inline_data)
        fields = report._replace(data=None).fields(inode) if report else {}
        fields |= {"leave_inline": True, "inline_base": base}
        self.ask(
            "sync", lambda side: pb.SyncRequest(inode=file.ids[side], spare=spares[side], **fields), client
        )

    @rule(client=CLIENTS)
    def hold(self, client):
        """A client names sessions: all that there ever were."""

        def make(side: int) -> pb.HoldRequest:
            named = [
                pb.WriteSession(inode=each.file.ids[side], session=each.ids[side]) for each in self.sessions
            ]
            return pb.HoldRequest(sessions=named)

        self.ask("hold", make, client)

    @rule(
        client=CLIENTS,
        after=st.sampled_from([b"", b"f1", b"f3"]),
        limit=st.integers(0, 2),
        with_inodes=FLAGS,
    )
    def list_root(self, client, **fields):
        request = pb.ListRequest(inode=1, caller=Caller(client=client), **fields)
        reply = self.send("list", (request, request))
        assert reply is not None

    @rule()
    def send_again(self):
        """The last answer was lost."""
        self.send(*self.sent)

    @precondition(lambda self: self.sent[0] in ("create", "set_attr"))
    @rule()
    def use_a_number_twice(self):
        """A client gives another request the number of the last one."""
        file, (_, requests) = self.files[0], self.sent
        method = {"create": "set_attr", "set_attr": "sync"}[self.sent[0]]
        caller = requests[0].caller

        def make(side: int) -> Any:
            if method == "sync":
                return pb.SyncRequest(inode=file.ids[side], mtime_ns=8, caller=caller)
            return pb.SetAttrRequest(path=pb.Path(at=file.ids[side]), caller=caller)

        self.send(method, (make(0), make(1)))

    @rule(below=st.integers(-1, 2))
    def settle(self, below):
        """The last request of a client once more, after one that has settled those `below` it, or itself."""
        method, requests = self.sent
        caller = requests[0].caller
        self.sequence += 1
        later = Caller(
            client=caller.client, sequence=self.sequence, settled_below=max(0, caller.sequence + below)
        )
        self.send("hold", (pb.HoldRequest(caller=later), pb.HoldRequest(caller=later)))
        self.send(method, requests)

    def file(self, which: int) -> File:
        return self.files[which % len(self.files)]

    @invariant()
    def files_are_the_same(self):
        for file in self.files:
            seen = self.look(file)
            contents = [world.read(inode) for world, inode in zip(self.worlds, seen, strict=True)]
            assert contents[0] == contents[1], seen


def _refusal(outcome: Any) -> tuple[str, int] | None:
    """The code of an error, and the errno that a program gets."""
    return (outcome.code, outcome.errno or 0) if hasattr(outcome, "code") else None


def _time(inode: pb.Inode, name: str) -> int | str:
    time_ns = getattr(inode, name)
    return time_ns if time_ns < EXPLICIT_NS else "now"


def test_random_requests_are_answered_alike(fakes):
    Both.fakes = fakes
    run_state_machine_as_test(
        Both, settings=settings(max_examples=100, stateful_step_count=30, report_multiple_bugs=False)
    )


class TestPromises:
    """What tests of the client lean on most, by name."""

    def test_create_is_exclusive_only_where_it_says_so(self, world):
        first = world.create(b"f1").inode
        again = world.create(b"f1")
        assert (again.inode.id, again.created) == (first.id, False)
        with pytest.raises(AlreadyExists):
            world.create(b"f1", exclusive=True)

    def test_a_request_sent_again_changes_nothing_and_shows_the_inode_as_it_is(self, world):
        created = world.create(b"f1", sequence=1)
        world.set_attr(at=created.inode.id, permissions=0o600, sequence=2)
        again = world.create(b"f1", sequence=1)
        assert (again.session, again.created) == (created.session, True)
        assert (again.inode.permissions, again.inode.change) == (0o600, 2)

    def test_a_request_that_was_given_up_is_void(self, world):
        number = world.create(b"f1", sequence=1).inode.id
        caller = Caller(client=1, sequence=3, settled_below=3)
        world.run(world.service.hold(pb.HoldRequest(caller=caller), world.identity))
        with pytest.raises(InvalidArgument):
            world.set_attr(at=number, permissions=0o600, sequence=2)
        assert world.stat(at=number).permissions == 0o644

    def test_bytes_of_an_older_inode_conflict(self, world):
        created = world.create(b"f1")
        seen = world.sync(
            created.inode.id, created.session, has_inline=True, inline_data=b"one", inline_base=1
        )
        assert (seen.inline_data, seen.length, seen.change) == (b"one", 3, 2)
        with pytest.raises(Conflict):
            world.sync(seen.id, created.session, has_inline=True, inline_data=b"two", inline_base=1)

    def test_more_bytes_than_an_inode_takes_are_refused(self, world):
        created = world.create(b"f1")
        with pytest.raises(InvalidArgument) as refused:
            world.sync(created.inode.id, has_inline=True, inline_data=b"x" * (INLINE + 1), inline_base=1)
        assert refused.value.errno == errno.EFBIG

    def test_a_length_from_before_a_truncation_is_not_believed(self, world):
        created = world.create(b"f1", in_chunks=True)
        number, session = created.inode.id, created.session
        world.write(created.inode, 0, b"acknowledged")
        world.set_attr(at=number, length=3, client=2)
        seen = world.sync(number, session, length=12, truncate_version=0)
        assert (seen.length, seen.truncate_version) == (3, 1)

    def test_a_file_that_leaves_its_inode_is_as_long_as_the_content_that_it_moves_to(self, world):
        created = world.create(b"f1")
        number = created.inode.id
        world.set_attr(at=number, length=0)
        seen = world.sync(number, has_inline=True, inline_data=b"small", inline_base=2)
        spare = world.reserve(seen)
        world.write_to(seen, spare.content, 0, b"small")
        left = world.sync(
            number, leave_inline=True, inline_base=seen.change, spare=spare, length=9, truncate_version=0
        )
        assert (left.length, left.content, left.is_inline) == (5, spare.content, False)

    def test_a_file_that_another_client_writes_is_as_long_as_its_chunks(self, world):
        created = world.create(b"f1", in_chunks=True)
        world.write(created.inode, 0, b"acknowledged")
        seen = world.stat(at=created.inode.id, exact=True, client=2)
        assert (seen.length, seen.others_write) == (12, True)
        assert not world.stat(at=created.inode.id, exact=True, client=1).others_write

    def test_chunks_are_kept_at_truncation_to_nothing_only_while_others_write(self, world):
        created = world.create(b"f1", in_chunks=True)
        number, content = created.inode.id, created.inode.content
        assert world.set_attr(at=number, length=0, client=2).content == content
        cut = world.set_attr(at=number, length=0, client=1)
        assert cut.content != content
        assert cut.is_inline

    def test_a_listing_by_cookie_shows_each_name_once(self, world):
        for number in (1, 2, 3):
            world.create(b"f%d" % number)
        names, after = [], 0
        while True:
            page = world.list(after_cookie=after, limit=1, with_inodes=True)
            names += [entry.name for entry in page.entries]
            after = page.entries[-1].cookie or page.entries[-1].inode
            assert after < page.next_cookie
            if not page.more:
                break
        assert names == [b"f1", b"f2", b"f3"]

    def test_a_session_is_ended_by_its_client_alone(self, world):
        created = world.create(b"f1", client=1)
        number, session = created.inode.id, created.session
        _, error = world.close_one(number, session, client=2)
        assert error.code == "not_found"
        named = [pb.WriteSession(inode=number, session=session)]
        assert not world.hold(sessions=named, client=1).lost
        assert list(world.hold(sessions=named, client=2).lost) == named
        _, error = world.close_one(number, session, client=1)
        assert not error.code
        assert list(world.hold(sessions=named, client=1).lost) == named

    def test_a_new_owner_and_a_writer_take_the_set_id_bits(self, world):
        number = world.create(b"f1", permissions=0o6755).inode.id
        assert world.set_attr(at=number, uid=5).permissions == 0o755
        world.set_attr(at=number, permissions=0o6755)
        assert world.sync(number, clear_set_id=True).permissions == 0o755
        world.set_attr(at=number, permissions=0o6755)
        assert world.set_attr(at=number, clear_set_id=True).permissions == 0o755
