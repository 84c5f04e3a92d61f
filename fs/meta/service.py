"""The handlers of `service Meta`.

names, attributes, open files   the rows of `verbs`, run by `execution.Execution`
read holds                      counted here, when the reply is known
the whole                       space, scans for fsck, dumps and loads, numbers
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from functools import partial
from typing import Final

from google.protobuf.message import Message

from ..errors import InvalidArgument, NotADirectory, PermissionDenied, Unsupported
from ..ids import ROOT_INODE
from ..kv import Pair, Transaction
from ..wire import Identity
from ..wire.credentials import Limits
from ..wire.methods import Answer, Meta, Sent
from ..wire.pb import meta_pb2 as pb
from ..wire.pb.common_pb2 import Caller, Empty
from ..wire.preserialized import Preserialized
from . import schema
from .confinement import context_of
from .context import EMFILE, NS_PER_MS, OperationContext, Request
from .dependencies import Dependencies
from .execution import Execution
from .feed import Feed, Watched
from .permissions import EXECUTE, READ, User, may, require
from .replies import StoredReply
from .resolve import inode_at
from .sessions import SESSIONS_MAX
from .storage import Space
from .verbs import VERBS, verb_of

SPACE_FRESH_S: Final = 1.0
# Inodes that one client may have open for reading: 100 MiB of memory here. The kernel allows a process as many files.
HOLDS_MAX: Final = 1 << 20
OPEN_LASTS_MS: Final = 15 * 60_000  # longer than a client tries (10 minutes, the bound of `deadline_ms`)
HOLDS_SLICE: Final = 128  # holds looked at, about a millisecond, before other requests are served
SCAN_PAGE: Final = 1024
COUNTED_MAX: Final = 10_000  # five milliseconds

CREATE: Final = verb_of(Meta.create)
OPEN: Final = verb_of(Meta.open)
CLOSE: Final = verb_of(Meta.close)
SYNC: Final = verb_of(Meta.sync)
RESERVE_INODES: Final = verb_of(Meta.reserve_inodes)


class MetaService:
    """Answers requests. `bootstrap.build` puts one together.

    It has a handler for each row of `verbs`: the ones below, which do more than run the verb, and derived ones.
    """

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies
        self._execution = Execution(dependencies)
        self._engine = dependencies.engine
        self._clock = dependencies.clock
        self._writers = dependencies.writers
        self._holds = dependencies.holds
        self._space: tuple[float, Space] | None = None
        self.feed: Feed | None = None  # where the store follows a log
        for verb in VERBS:
            if not hasattr(type(self), verb.method.attribute):
                setattr(self, verb.method.attribute, partial(self._execution.run, verb))

    # Open files: what a verb does besides its transaction.

    def create(self, request: pb.CreateRequest, identity: Identity) -> Answer[pb.InodeReply]:
        """Run the verb, and count a file that is opened for reading."""
        self._limit_holds(request)
        reply = self._execution.run(CREATE, request, identity)
        return self._held(reply, request) if request.read else reply

    def open(self, request: pb.OpenRequest, identity: Identity) -> Answer[pb.InodeReply]:
        """As `create`."""
        self._limit_holds(request)
        reply = self._execution.run(OPEN, request, identity)
        return self._held(reply, request) if request.read else reply

    def close(self, request: pb.CloseRequest, identity: Identity) -> Answer[pb.CloseReply]:
        """Run the verb, and release read holds."""
        reply = self._execution.run(CLOSE, request, identity)
        released = [one.inode for one in request.closes if one.read_hold]
        if released:
            self._holds.release(request.caller.client, released, request.caller.sequence)
        return reply

    def sync(self, request: pb.SyncRequest, identity: Identity) -> Answer[pb.InodeReply]:
        """Run the verb; with `durable`, reply when all is on disk."""
        reply = self._execution.run(SYNC, request, identity)
        return self._execution.on_disk(reply) if request.durable else reply

    def reserve_inodes(
        self, request: pb.ReserveInodesRequest, identity: Identity
    ) -> Answer[pb.ReserveInodesReply]:
        """Run the verb, and reply when the reservation is on disk (Y2)."""
        return self._execution.on_disk(self._execution.run(RESERVE_INODES, request, identity))

    def hold(self, request: pb.HoldRequest, identity: Identity) -> Answer[pb.HoldReply]:
        """Replace all that the client holds, and compare its write sessions. Raises: InvalidArgument for too many."""
        self._dependencies.load.require_open()
        user = User(*identity.user(request.caller))
        self._execution.admit(request.caller, identity)
        if len(request.inodes) > HOLDS_MAX or len(request.sessions) > SESSIONS_MAX:
            raise InvalidArgument(
                f"a client holds at most {HOLDS_MAX} inodes and {SESSIONS_MAX} write sessions"
            )
        limits = identity.limits
        if (user.uid or limits.root) and not request.keep_holds:
            return self._hold_readable(request, user, limits)
        if not request.keep_holds:
            self._holds.replace(request.caller.client, request.inodes)
        return self._compare_sessions(request, limits)

    async def _hold_readable(self, request: pb.HoldRequest, user: User, limits: Limits) -> pb.HoldReply:
        """Hold what the user may read now, and nothing else: a hold lets its client read."""
        held: list[int] = []
        asked = Request(request, user, request.caller.client, root=limits.root)
        for number, inode in enumerate(request.inodes):
            if number % HOLDS_SLICE == HOLDS_SLICE - 1:
                await asyncio.sleep(0)
            found = self._context(self._engine.begin(), asked).find(inode)
            if found is not None and may(user, found, READ):
                held.append(inode)
        self._holds.replace(request.caller.client, held)
        return self._compare_sessions(request, limits)

    def _compare_sessions(self, request: pb.HoldRequest, limits: Limits) -> pb.HoldReply:
        """Abandon write sessions that their client does not know, and report those that only the client knows.

        A token that is read-only ends no session, whatever client it names.

        A session younger than an open can last may be that of an open whose reply is on its way.
        """
        known = set() if limits.read_only else self._writers.of_client(request.caller.client)
        named = {(each.inode, each.session) for each in request.sessions}
        opened_before_ms = self._clock.unix_ns() // NS_PER_MS - OPEN_LASTS_MS
        snapshot = self._engine.begin()
        for inode, session in known - named:
            value = snapshot.snapshot_get(schema.session_key(inode, session))
            if value is not None and schema.decode_session(value).opened_unix_ms < opened_before_ms:
                self._writers.abandon(inode, session)
        lost = [pb.WriteSession(inode=inode, session=session) for inode, session in sorted(named - known)]
        return pb.HoldReply(incarnation=self._dependencies.incarnation, lost=lost)

    def _limit_holds(self, request: pb.CreateRequest | pb.OpenRequest) -> None:
        if request.read and self._holds.count_of(request.caller.client) >= HOLDS_MAX:
            raise InvalidArgument(
                f"this client has {HOLDS_MAX} files open for reading: close some, or use another client",
                errno=EMFILE,
            )

    # The whole.

    def stat_fs(
        self,
        request: pb.StatFsRequest,  # noqa: ARG002, a handler
        identity: Identity,  # noqa: ARG002, a handler
    ) -> Answer[pb.StatFsReply]:
        """Space of the storage nodes, as of at most `SPACE_FRESH_S` ago."""
        known = self._space
        if known is not None and self._clock.monotonic() - known[0] <= SPACE_FRESH_S:
            return self._filled(known[1])
        return self._ask_space()

    async def scan_inodes(
        self,
        request: pb.ScanRequest,
        identity: Identity,  # noqa: ARG002, a handler
    ) -> AsyncIterator[pb.Inode]:
        """Every inode, directories with all their links."""
        async for _, value in self._scan(b"I", request.limit):
            inode = schema.decode_inode(value)
            if inode.type == pb.DIRECTORY and inode.link_count:
                count = self._engine.begin().snapshot_get(schema.subdirectories_key(inode.id))
                inode.link_count += schema.decode_count(count)
            inode.open_for_writing = inode.id in self._writers
            yield inode

    async def scan_dentries(
        self,
        request: pb.ScanRequest,
        identity: Identity,  # noqa: ARG002, a handler
    ) -> AsyncIterator[pb.ScannedDentry]:
        """Every entry of every directory."""
        async for key, value in self._scan(b"D", request.limit):
            parent, _ = schema.split_one(key)
            yield pb.ScannedDentry(parent=parent, entry=schema.decode_dentry(value))

    async def scan_removed(
        self,
        request: pb.ScanRequest,
        identity: Identity,  # noqa: ARG002, a handler
    ) -> AsyncIterator[pb.RemovedContent]:
        """Every content whose chunks wait to be removed."""
        left = request.limit or 1 << 62
        for kind in (schema.GARBAGE, schema.KEPT):
            if left <= 0:
                return
            async for _, value in self._scan(kind, left):
                left -= 1
                yield schema.decode_garbage(value)

    async def scan_quarantined(
        self,
        request: pb.ScanRequest,
        identity: Identity,  # noqa: ARG002, a handler
    ) -> AsyncIterator[pb.QuarantinedContent]:
        """Every content in quarantine, by due time."""
        async for _, value in self._scan(schema.QUARANTINE, request.limit):
            yield schema.decode_quarantined(value)

    async def quarantine(
        self,
        request: pb.QuarantineRequest,
        identity: Identity,  # noqa: ARG002, a handler
    ) -> Empty:
        """Remove chunks of contents that no file names, but not now. Raises: InvalidArgument."""
        self._dependencies.load.require_open()
        await self._dependencies.quarantine.add(request.contents, request.delay_ms)
        return Empty()

    async def release_quarantined(
        self,
        request: pb.ReleaseQuarantinedRequest,
        identity: Identity,  # noqa: ARG002, a handler
    ) -> Empty:
        """Keep chunks that are in quarantine. Raises: InvalidArgument."""
        await self._dependencies.quarantine.release(request.contents)
        return Empty()

    async def dump(
        self,
        request: pb.DumpRequest,
        identity: Identity,  # noqa: ARG002, a handler
    ) -> AsyncIterator[pb.DumpBatch]:
        """All of the namespace, as of now. Raises: Busy for too many at one time; Unavailable during a load."""
        self._dependencies.load.require_open()
        async for batch in self._dependencies.dumps.run(
            self._dependencies.inode_counter.count, stored_lengths=request.stored_lengths
        ):
            yield batch

    async def begin_load(
        self,
        request: pb.BeginLoadRequest,
        identity: Identity,  # noqa: ARG002, a handler
    ) -> pb.BeginLoadReply:
        """Close the namespace and wait for records. Raises: as `Load.begin`."""
        return await self._dependencies.load.begin(request)

    async def load(
        self,
        request: pb.LoadRequest,
        identity: Identity,  # noqa: ARG002, a handler
    ) -> pb.LoadReply:
        """Store records of a dump. Raises: as `Load.put`."""
        return await self._dependencies.load.put(request)

    async def finish_load(
        self,
        request: pb.FinishLoadRequest,
        identity: Identity,  # noqa: ARG002, a handler
    ) -> Empty:
        """Open the namespace that was loaded. Raises: as `Load.finish`."""
        await self._dependencies.load.finish(request)
        return Empty()

    async def discard_load(self, request: Empty, identity: Identity) -> Empty:  # noqa: ARG002, a handler
        """Give up a load, and open the namespace, empty. Raises: NotFound if there is none."""
        await self._dependencies.load.discard()
        return Empty()

    def watch(self, request: pb.WatchRequest, identity: Identity) -> Answer[pb.WatchReply]:
        """Wait for changes below a directory, which the caller must be permitted to list. Raises: as `Feed.changes`."""
        if self.feed is None:
            raise Unsupported(
                "changes can be watched where the metadata has a log: start the cluster with --metadata etcd"
            )
        self._dependencies.load.require_open()
        user = User(*identity.user(request.user))
        watched = Watched(self._watched_directory(request.path, user, identity), user, request.children_only)
        return self.feed.changes(watched, request.after, wait_s=request.wait_ms / 1000)

    def _context(self, txn: Transaction, request: Request[Message]) -> OperationContext:
        return context_of(self._dependencies.shared, txn, request, now_ns=self._clock.unix_ns())

    def _watched_directory(self, path: pb.Path, user: User, identity: Identity) -> int:
        """Return the directory at `path`. One that is named by its number may be gone. Raises: as `locate`."""
        assert self.feed is not None, "the caller has looked"
        root = identity.limits.root
        context = self._context(self.feed.begin(), Request(pb.WatchRequest(), user, client=0, root=root))
        found = inode_at(context, path, follow=True) if path.path else context.find(path.at or ROOT_INODE)
        if root and (found is None or context.only_entry(found.id) is not None):
            raise PermissionDenied("the token does not open this directory: it is not below its path")
        if found is None:
            return path.at
        if found.type != pb.DIRECTORY:
            raise NotADirectory("only directories are watched: watch the one that the file is in")
        require(user, found, READ | EXECUTE)
        return found.id

    def list_client_files(self, request: Empty, identity: Identity) -> pb.ClientFilesReply:  # noqa: ARG002
        """Return how many files each client has open."""
        writes, holds = self._writers.counts(), self._holds
        reply = pb.ClientFilesReply(unix_ms=self._dependencies.clock.unix_ns() // 1_000_000)
        for client in sorted({*writes, *holds.clients}):
            reply.clients.add(
                client=client, write_sessions=writes.get(client, 0), read_holds=holds.count_of(client)
            )
        return reply

    def status(self, request: Empty, identity: Identity) -> pb.MetaStatus:  # noqa: ARG002, a handler
        """Return counts, for operators and tests."""
        return self.counts()

    def counts(self) -> pb.MetaStatus:
        """Return counts. Of each queue at most `COUNTED_MAX` are counted."""
        return pb.MetaStatus(
            incarnation=self._dependencies.incarnation,
            gc_queue=self._count(b"O") + self._count(b"G"),
            write_sessions=self._writers.count,
            read_holds=self._holds.count,
            operations=self._execution.count,
        )

    @property
    def inode_count(self) -> int:
        """How many inodes there are."""
        return self._dependencies.inode_counter.count

    # After the operation.

    def _held(
        self, reply: Answer[pb.InodeReply], request: pb.CreateRequest | pb.OpenRequest
    ) -> Answer[pb.InodeReply]:
        """Count a file that was opened for reading, once the reply is there."""
        if isinstance(reply, (Message, Preserialized)):
            self._count_hold(reply, request.caller)
            return reply
        return self._held_later(reply, request.caller)

    async def _held_later(self, reply: Awaitable[Sent[pb.InodeReply]], caller: Caller) -> Sent[pb.InodeReply]:
        answered = await reply
        self._count_hold(answered, caller)
        return answered

    def _count_hold(self, reply: Sent[pb.InodeReply], caller: Caller) -> None:
        if isinstance(reply, StoredReply):
            inode = reply.inodes[0]
        else:
            assert isinstance(reply, pb.InodeReply), "an open replies with an inode"
            inode = reply.inode.id
        self._holds.acquire(caller.client, inode, caller.sequence)

    # The whole.

    async def _ask_space(self) -> pb.StatFsReply:
        space = await self._dependencies.control.space()
        self._space = (self._clock.monotonic(), space)
        return self._filled(space)

    def _filled(self, space: Space) -> pb.StatFsReply:
        placer = self._dependencies.shared.placer
        return pb.StatFsReply(
            capacity_bytes=space.capacity // placer.copies,
            free_bytes=space.free // placer.copies,
            inode_count=self._dependencies.inode_counter.count,
            default_layout=placer.default,
        )

    async def _scan(self, kind: bytes, limit: int) -> AsyncIterator[Pair]:
        """Pairs of one kind, page by page; each page is of one moment. Raises: Unavailable during a load."""
        self._dependencies.load.require_open()
        begin, end = schema.kind_range(kind)
        left = limit or 1 << 62
        while left > 0:
            pairs = self._engine.begin().snapshot_range(begin, end, limit=min(SCAN_PAGE, left))
            for pair in pairs:
                yield pair
            if len(pairs) < SCAN_PAGE:
                return
            left -= len(pairs)
            begin = pairs[-1][0] + b"\x00"
            await asyncio.sleep(0)

    def _count(self, kind: bytes) -> int:
        begin, end = schema.kind_range(kind)
        return len(self._engine.begin().snapshot_range(begin, end, limit=COUNTED_MAX))


__all__ = ["MetaService"]
