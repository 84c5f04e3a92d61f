"""A meta service over an engine in memory, with fakes of storage and mgmtd; tests call its handlers."""

import asyncio
import contextlib
import inspect
from collections.abc import Callable, Collection

import pytest

from luciola.clock import ManualClock
from luciola.config import MetaConfig
from luciola.errors import Error
from luciola.kv import Engine, MemoryEngine
from luciola.meta import schema
from luciola.meta.bootstrap import build
from luciola.meta.committed_replies import committed
from luciola.meta.fake_control import FakeControl
from luciola.meta.layout import Placer, chains_of
from luciola.wire import TRUSTED, Identity
from luciola.wire.pb import meta_pb2 as pb
from luciola.wire.pb.common_pb2 import Caller, Claims
from luciola.wire.pb.mgmtd_pb2 import ChainTable
from luciola.wire.preserialized import Preserialized

CHAINS = tuple(range(100, 108))
CHUNK = 64 * 1024
TIMEOUT_S = 60.0

ROOT = (0, 0)
ALICE = (1000, 1000)
BOB = (1001, 1001)
EVE = (1002, 1002)

READING = ("lookup", "stat", "list", "real_path", "stat_fs", "get_xattr", "list_xattr")


class PatientClock(ManualClock):
    """A sleep on it finds that the time has passed. Its wall clock can be set."""

    offset_ns = 0

    def unix_ns(self) -> int:
        return super().unix_ns() + self.offset_ns

    async def sleep(self, duration_s: float) -> None:
        self.advance(duration_s)
        await asyncio.sleep(0)


class KnownClients:
    """Plays mgmtd's list of clients."""

    def __init__(self) -> None:
        self.known: set[int] | None = None

    async def clients(self) -> Collection[int] | None:
        return self.known


OPENED: list["World"] = []  # closed after each test, however it ends


class World:
    """One meta service, and what it talks to. `crash` replaces the process; the store stays."""

    def __init__(self, engine: Engine | None = None, *, history_s: float = 0.0, **config: object) -> None:
        self.loop = asyncio.new_event_loop()
        OPENED.append(self)
        self.clock = PatientClock()
        self.engine = engine or MemoryEngine()
        self.control = FakeControl()
        self.members = KnownClients()
        self.config = MetaConfig(**{"chunk_bytes": CHUNK, "stripe": 4, "gc_delay_ms": 1000} | config)  # type: ignore[arg-type]
        self.identity = Identity(TRUSTED, 0, 0, ())
        self.history_s = history_s
        self.sequence = 0
        self._principals = {self.identity.principal: 0}
        self.start()

    def start(self) -> None:
        """Starts the service; what it knew in memory is gone."""
        placer = Placer(self.config, seed=1)
        placer.set_tables([ChainTable(id=1, version=1, chains=CHAINS, replicas=1)])
        self.placer = placer
        service, self.collector, self.dependencies = self.run(
            build(
                self.engine,
                self.control,
                self.members,
                config=self.config,
                clock=self.clock,
                cluster_id="test",
                session_timeout_s=TIMEOUT_S,
                history_s=self.history_s,
                placer=placer,
            )
        )

        self.uncommitted = service
        self.service = committed(service, self.engine)
        self.run(self.dependencies.inode_counter.count_all(self.engine))

    crash = start

    def close(self) -> None:
        if not self.loop.is_closed():
            self.loop.run_until_complete(self._cancel())
            self.loop.close()

    async def _cancel(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def run(self, reply):
        """The outcome of a handler: the reply itself, or what it promises."""
        if inspect.isawaitable(reply):
            return self.loop.run_until_complete(_await(reply))
        return reply

    # Requests, as a client makes them.

    def caller(self, user=ROOT, client: int = 1, *, groups=(), sequence: int | None = None) -> Caller:
        if sequence is None:
            self.sequence += 1
            sequence = self.sequence
        return Caller(uid=user[0], gid=user[1], groups=groups, client=client, sequence=sequence)

    def call(
        self,
        name: str,
        request,
        *,
        user=ROOT,
        client: int | None = None,
        groups=(),
        sequence=None,
        identity=None,
    ):
        """Sends one request; `user` and `client` say whose. Like clients, numbers only those that change something.

        The first principal is client 1, another one 1001 and so on, where no client is named.
        """
        identity = identity or self.identity
        if client is None:
            client = 1 + 1000 * self._principals.setdefault(identity.principal, len(self._principals))
        if sequence is None and name in READING:
            sequence = 0
        request.caller.CopyFrom(self.caller(user, client, groups=groups, sequence=sequence))
        reply = self.run(getattr(self.service, name)(request, identity))
        return reply.message() if isinstance(reply, Preserialized) else reply

    def create(
        self,
        path,
        *,
        at=1,
        permissions=0o644,
        write=True,
        read=False,
        exclusive=False,
        truncate=False,
        layout=None,
        in_chunks=False,
        **who,
    ):
        request = pb.CreateRequest(
            path=pb.Path(at=at, path=path),
            permissions=permissions,
            write=write,
            read=read,
            exclusive=exclusive,
            truncate=truncate,
            layout=layout,
            in_chunks=in_chunks,
        )
        return self.call("create", request, **who)

    def open(self, path=b"", *, at=1, read=True, write=False, truncate=False, follow=True, **who):
        request = pb.OpenRequest(
            path=pb.Path(at=at, path=path), read=read, write=write, truncate=truncate, follow=follow
        )
        return self.call("open", request, **who)

    def close_one(
        self, inode, session=0, *, length=None, truncate_version=0, user=ROOT, client=1, sequence=None, **more
    ):
        one = pb.CloseOne(inode=inode, session=session, **more)
        if length is not None:
            one.length.CopyFrom(pb.LengthHint(length=length, truncate_version=truncate_version))
        reply = self.call("close", pb.CloseRequest(closes=[one]), user=user, client=client, sequence=sequence)
        return reply.results[0], reply.errors[0]

    def sync(
        self, inode, session=0, *, length=None, truncate_version=0, user=ROOT, client=1, sequence=None, **more
    ):
        request = pb.SyncRequest(inode=inode, session=session, **more)
        if length is not None:
            request.length.CopyFrom(pb.LengthHint(length=length, truncate_version=truncate_version))
        return self.call("sync", request, user=user, client=client, sequence=sequence).inode

    def hold(self, *inodes, sessions=(), keep_holds=False, **who):
        return self.call(
            "hold", pb.HoldRequest(inodes=inodes, sessions=sessions, keep_holds=keep_holds), **who
        )

    def lookup(self, name, *, parent=1, **who):
        return self.call("lookup", pb.LookupRequest(parent=parent, name=name), **who).inode

    def stat(self, path=b"", *, at=1, follow=True, exact=False, **who):
        request = pb.StatRequest(path=pb.Path(at=at, path=path), follow=follow, exact=exact)
        return self.call("stat", request, **who).inode

    def apply(self, *files, permissions=0o644, at=1, **who):
        """Make small files, (path, data) each; their inodes, or what their errors say."""
        changes = [
            pb.Change(
                create_small=pb.CreateSmall(
                    path=pb.Path(at=at, path=path), permissions=permissions, data=data
                )
            )
            for path, data in files
        ]
        reply = self.call("apply", pb.ApplyRequest(changes=changes), **who)
        return [result.error.code if result.HasField("error") else result.inode for result in reply.results]

    def mkdir(self, path, *, at=1, permissions=0o755, parents=False, layout=None, **who):
        request = pb.MkdirRequest(
            path=pb.Path(at=at, path=path), permissions=permissions, parents=parents, layout=layout
        )
        return self.call("mkdir", request, **who).inode

    def mknod(self, path, kind, *, at=1, permissions=0o644, device=0, **who):
        request = pb.MknodRequest(
            path=pb.Path(at=at, path=path), type=kind, permissions=permissions, device=device
        )
        return self.call("mknod", request, **who).inode

    def symlink(self, path, target, *, at=1, **who):
        return self.call(
            "symlink", pb.SymlinkRequest(path=pb.Path(at=at, path=path), target=target), **who
        ).inode

    def link(self, source, target, *, at=1, follow=False, **who):
        request = pb.LinkRequest(
            source=pb.Path(at=at, path=source), target=pb.Path(at=at, path=target), follow=follow
        )
        return self.call("link", request, **who).inode

    def unlink(self, path, *, at=1, **who):
        return self.call("unlink", pb.UnlinkRequest(path=pb.Path(at=at, path=path)), **who).inode

    def rmdir(self, path, *, at=1, **who):
        return self.call("rmdir", pb.RmdirRequest(path=pb.Path(at=at, path=path)), **who)

    def remove_tree(self, path, *, at=1, **who):
        return self.call("remove_tree", pb.RemoveTreeRequest(path=pb.Path(at=at, path=path)), **who)

    def rename(self, source, target, *, at=1, to=None, no_replace=False, exchange=False, **who):
        request = pb.RenameRequest(
            source=pb.Path(at=at, path=source),
            target=pb.Path(at=at if to is None else to, path=target),
            no_replace=no_replace,
            exchange=exchange,
        )
        return self.call("rename", request, **who)

    def set_attr(
        self, path=b"", *, at=1, follow=True, user=ROOT, client=1, groups=(), sequence=None, **fields
    ):
        request = pb.SetAttrRequest(path=pb.Path(at=at, path=path), follow=follow, **fields)
        return self.call(
            "set_attr", request, user=user, client=client, groups=groups, sequence=sequence
        ).inode

    def list(self, inode=1, *, after=b"", after_cookie=None, limit=0, with_inodes=False, **who):
        request = pb.ListRequest(inode=inode, after=after, limit=limit, with_inodes=with_inodes)
        if after_cookie is not None:
            request.by_cookie = True
            request.after_cookie = after_cookie
        return self.call("list", request, **who)

    def names(self, inode=1, **who):
        return [entry.name for entry in self.list(inode, **who).entries]

    def xattr(self, what, inode, name=b"", value=b"", flags=0, **who):
        return self.call(
            f"{what}_xattr", pb.XattrRequest(inode=inode, name=name, value=value, flags=flags), **who
        )

    def reserve(self, inode, session=0, *, client=1, user=ROOT):
        """A spare content for the bytes of an inline file, as it is in `inode`."""
        request = pb.SyncRequest(
            inode=inode.id, session=session, reserve_spare=True, inline_base=inode.change
        )
        return self.call("sync", request, user=user, client=client).spare

    def leave(self, inode, session=0, *, client=1, **hint):
        """Moves an inline file out of its inode, as a client does."""
        spare = None
        if inode.inline_data:
            spare = self.reserve(inode, session, client=client)
            self.write_to(inode, spare.content, 0, inode.inline_data)
        return self.sync(
            inode.id,
            session,
            client=client,
            leave_inline=True,
            inline_base=inode.change,
            spare=spare,
            **hint,
        )

    # Files with chunks.

    def write(self, inode, offset: int, data: bytes) -> None:
        """Puts bytes into the chains, as the data plane does for a client."""
        self.write_to(inode, inode.content, offset, data)

    def write_to(self, inode, content: int, offset: int, data: bytes) -> None:
        """As `write`, under a content that the file perhaps does not have yet."""
        while data:
            index, start = divmod(offset, inode.layout.chunk_bytes)
            piece = data[: inode.layout.chunk_bytes - start]
            chains = chains_of(inode.layout, CHAINS)
            self.control.write(chains[index % len(chains)], content, index=index, data=piece, offset=start)
            offset += len(piece)
            data = data[len(piece) :]

    def read(self, inode) -> bytes:
        """All bytes of a file, as a client reads them."""
        if inode.is_inline:
            return inode.inline_data[: inode.length].ljust(inode.length, b"\0")
        size = inode.layout.chunk_bytes
        chains = chains_of(inode.layout, CHAINS)
        pieces = []
        for index in range(-(-inode.length // size)):
            piece = self.control.read(chains[index % len(chains)], inode.content, index=index)
            pieces.append(piece.ljust(size, b"\0"))
        return b"".join(pieces)[: inode.length]

    def chunked(self, path=b"f", data: bytes = b"", *, close=True, **who):
        """Make a file whose bytes are in chunks; return (inode, session)."""
        reply = self.create(path, layout=pb.Layout(chunk_bytes=CHUNK, stripe=4, inline_bytes=0), **who)
        client = who.get("client", 1)
        user = who.get("user", ROOT)
        self.write(reply.inode, 0, data)
        if not close:
            inode = self.sync(reply.inode.id, reply.session, length=len(data), client=client, user=user)
            return inode, reply.session
        result, error = self.close_one(
            reply.inode.id, reply.session, length=len(data), client=client, user=user
        )
        assert not error.code, error
        return result.inode, 0

    # Time, and what it brings.

    def collect(self, rounds: int = 50) -> None:
        """Lets the collector do all that is due."""
        for _ in range(rounds):
            self.run(self.dependencies.truncations.resume())
            if not self.run(self.collector.round()):
                return
        raise AssertionError("the collector does not come to an end")

    def keys(self, kind: bytes):
        """All keys of one kind in the store."""
        return [key for key, _ in self.engine.begin().snapshot_range(*schema.kind_range(kind))]


async def _await(awaitable):
    return await awaitable


def trusted(role: Claims.Role = TRUSTED, uid: int = 0, gid: int = 0, groups=()) -> Identity:
    return Identity(role, uid, gid, tuple(groups))


@contextlib.contextmanager
def refused(kind: type[Error], errno: int | None = None):
    """The request inside is refused with this error, and this errno if one is given."""
    with pytest.raises(kind) as caught:
        yield caught
    assert type(caught.value) is kind or issubclass(type(caught.value), kind)
    if errno is not None:
        assert caught.value.errno == errno, caught.value


Action = Callable[[World], object]


def dump(world: World) -> dict[bytes, tuple]:
    """Everything that can be seen of a namespace, by path, without ids and times."""
    seen: dict[bytes, tuple] = {}
    numbers: dict[int, bytes] = {}

    def visit(path: bytes, inode) -> None:
        first = numbers.setdefault(inode.id, path)
        seen[path] = (
            inode.type,
            oct(inode.permissions),
            (inode.uid, inode.gid),
            inode.link_count,
            inode.length,
            first,
            inode.symlink_target,
            world.read(inode) if inode.type == pb.REGULAR else b"",
            tuple(
                (name, world.xattr("get", inode.id, name).value)
                for name in world.xattr("list", inode.id).names
            ),
        )
        if inode.type == pb.DIRECTORY:
            for entry in world.list(inode.id, with_inodes=True, limit=1000).entries:
                child = world.stat(b"", at=entry.inode, sequence=0)
                listed = entry.attributes
                assert entry.inode == child.id == listed.id, (path, entry)
                listed.inline_data = child.inline_data  # listings come without the bytes of small files
                assert listed.change <= child.change, "which another boot counts from"
                listed.change = child.change
                assert listed == child, (path, entry)
                assert entry.type == child.type, (path, entry)
                if child.type == pb.DIRECTORY:
                    assert (child.parent, child.name) == (inode.id, entry.name), (path, entry)
                visit(path + b"/" + entry.name, child)

    visit(b"", world.stat(b"", sequence=0))
    return seen


def check_store(world: World) -> None:
    """Assert what must always hold of the store when nothing is in flight."""
    links: dict[int, int] = {}
    subdirectories: dict[int, int] = {}
    inodes = {
        schema.split_one(key)[0]: schema.decode_inode(value)
        for key, value in world.engine.begin().snapshot_range(*schema.kind_range(b"I"))
    }
    listed = dict(world.engine.begin().snapshot_range(*schema.kind_range(b"C")))
    cookies = [schema.split_two(key)[1] for key in listed]
    assert len(set(cookies)) == len(cookies), "a cookie is that of one entry"
    for key, value in world.engine.begin().snapshot_range(*schema.kind_range(b"D")):
        parent, name = schema.split_one(key)
        entry = schema.decode_entry(value)
        by_cookie = listed.pop(schema.cookie_key(parent, entry.cookie), None)
        assert by_cookie == value == schema.encode_entry(entry, name), name
        assert parent in inodes, f"{name!r} is in inode {parent}, which does not exist"
        assert entry.inode in inodes, f"{name!r} names inode {entry.inode}, which does not exist"
        assert inodes[entry.inode].type == entry.type
        links[entry.inode] = links.get(entry.inode, 0) + 1
        subdirectories[parent] = subdirectories.get(parent, 0) + (entry.type == pb.DIRECTORY)
    assert not listed, "cookies of no entry"
    orphans = [schema.split_two(key)[1] for key in world.keys(b"O")]
    assert len(set(orphans)) == len(orphans), "an inode is an orphan once"
    for number, inode in inodes.items():
        named = links.get(number, 0) + (number == 1)
        if inode.type == pb.DIRECTORY:
            assert inode.link_count == (2 if named else 0), number
            assert named <= 1, f"directory {number} has {named} names"
            counted = schema.decode_count(
                world.engine.begin().snapshot_get(schema.subdirectories_key(number))
            )
            if named and number not in orphans:
                assert counted == subdirectories.get(number, 0), number
        else:
            assert inode.link_count == named, number
        assert (number in orphans) == (not inode.link_count), number
    for kind in (b"S", b"X", b"T", b"N", b"P"):
        for key in world.keys(kind):
            assert schema.split_one(key)[0] in inodes, key
    stored = {schema.split_two(key) for key in world.keys(b"S")}
    mirrored = {
        (inode, session) for inode, session, _ in world.dependencies.writers.of_clients_outside(frozenset())
    }
    assert stored == mirrored
    assert world.call("stat_fs", pb.StatFsRequest()).inode_count == len(inodes)
    known = {inode.content for inode in inodes.values() if inode.content}
    waiting = {schema.split_two(key)[1] for key in world.keys(b"G") + world.keys(b"H")}
    assert not known & waiting, "content in use waits to be removed"
    assert world.control.contents() <= known | waiting, "chunks that will never be removed"
    for number, inode in inodes.items():
        if inode.content and not inode.is_inline and number not in world.dependencies.writers:
            end = world.run(world.dependencies.lengths.measure(inode)).length
            assert end <= inode.length, f"L4: inode {number} has chunks beyond its length"
