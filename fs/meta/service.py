"""The handlers of `service Meta`: each runs one operation on one transaction, and again where that is needed.

An operation that neither waits nor fails to commit is answered by a plain function, without a task: this is
what makes a lookup cheap. All else goes on in `_persist`.

S1  A request with a sequence number leaves a record in the transaction that carries it out; sent again, also
to a
    process that has started since, it gets the same answer and changes nothing.
S2  `Writers` is what the store holds: it changes after a commit, and is read again after a commit whose
outcome was
    unknown.
S3  A reply is sent after the commit; with `durability = "sync"`, or `durable` in the request, when it is on
disk.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from google.protobuf.message import Message

from ..clock import Clock
from ..config import MetaConfig
from ..errors import Busy, Conflict, Error, InvalidArgument, MaybeCommitted
from ..kv import Engine, Pair
from ..wire import Identity
from ..wire.pb import common_pb2 as lane
from ..wire.pb import meta_pb2 as pb
from ..wire.pb.common_pb2 import Caller, Empty
from . import schema
from .census import Census
from .lengths import Lengths
from .operations.close import close
from .operations.create import create
from .operations.length import Overtaken
from .operations.link import link
from .operations.list import list_directory
from .operations.lookup import lookup
from .operations.mkdir import mkdir
from .operations.mknod import mknod
from .operations.open import open_path
from .operations.real_path import real_path
from .operations.remove_tree import remove_tree
from .operations.rename import rename
from .operations.rmdir import rmdir
from .operations.set_attr import set_attr
from .operations.stat import batch_stat, stat
from .operations.symlink import symlink
from .operations.sync import sync
from .operations.unlink import unlink
from .operations.xattr import get_xattr, list_xattr, remove_xattr, set_xattr
from .permissions import User
from .sessions import Holds, Writers
from .storage import Space, StorageControl
from .truncation import Truncations
from .work import Measured, NeedCut, NeedIds, NeedLength, NeedPause, Scene, Work

R = TypeVar("R", bound=Message)
Operation = Callable[[Work, Any], R]

TRIES_MAX: Final = 16  # conflicts of one request before its caller is told
FIRST_WAIT_S: Final = 0.001
LONGEST_WAIT_S: Final = 0.2
SPACE_FRESH_S: Final = 1.0
HOLDS_MAX: Final = 1 << 20  # inodes that one client may have open for reading
SCAN_PAGE: Final = 1024
COUNTED_MAX: Final = 10_000  # five milliseconds


@dataclass(slots=True)
class Call:
    """One request, over all attempts at it."""

    operation: Callable[[Work, Any], Any]
    request: Any
    user: User
    client: int
    sequence: int
    number: int  # of the method on the lane; 0: never recorded
    session: int = 0
    measured: dict[int, Measured] = field(default_factory=dict)
    cuts: dict[int, schema.Cut] = field(default_factory=dict)
    uncertain: set[int] = field(default_factory=set)  # inodes whose sessions may have changed
    made: int = 0  # new inodes of an attempt whose outcome was unknown


@dataclass(slots=True)
class Parts:
    """What the service is made of."""

    engine: Engine
    clock: Clock
    config: MetaConfig
    scene: Scene
    control: StorageControl
    lengths: Lengths
    truncations: Truncations
    writers: Writers
    holds: Holds
    census: Census
    incarnation: int


class MetaService:
    """Answers requests. `parts.build` puts one together."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._engine = parts.engine
        self._clock = parts.clock
        self._scene = parts.scene
        self._writers = parts.writers
        self._holds = parts.holds
        self._census = parts.census
        self._durable = parts.config.durability == "sync"
        self._last_ns = 0
        self._random = random.Random(random.SystemRandom().getrandbits(128))  # noqa: S311, ids, not secrets
        self._space: tuple[float, Space] | None = None
        self._background: set[asyncio.Task[None]] = set()
        self.operations = 0

    # Reading.

    def lookup(self, request: pb.LookupRequest, identity: Identity) -> Any:
        return self._read(lookup, request, identity)

    def stat(self, request: pb.StatRequest, identity: Identity) -> Any:
        return self._read(stat, request, identity)

    def batch_stat(self, request: pb.BatchStatRequest, identity: Identity) -> Any:
        return self._read(batch_stat, request, identity)

    def list(self, request: pb.ListRequest, identity: Identity) -> Any:
        return self._read(list_directory, request, identity)

    def real_path(self, request: pb.RealPathRequest, identity: Identity) -> Any:
        return self._read(real_path, request, identity)

    def get_xattr(self, request: pb.XattrRequest, identity: Identity) -> Any:
        return self._read(get_xattr, request, identity)

    def list_xattr(self, request: pb.XattrRequest, identity: Identity) -> Any:
        return self._read(list_xattr, request, identity)

    # Names.

    def create(self, request: pb.CreateRequest, identity: Identity) -> Any:
        reply = self._write(create, request, identity, lane.META_CREATE)
        return self._held(reply, request) if request.read else reply

    def mknod(self, request: pb.MknodRequest, identity: Identity) -> Any:
        return self._write(mknod, request, identity, lane.META_MKNOD)

    def mkdir(self, request: pb.MkdirRequest, identity: Identity) -> Any:
        return self._write(mkdir, request, identity, lane.META_MKDIR)

    def symlink(self, request: pb.SymlinkRequest, identity: Identity) -> Any:
        return self._write(symlink, request, identity, lane.META_SYMLINK)

    def link(self, request: pb.LinkRequest, identity: Identity) -> Any:
        return self._write(link, request, identity, lane.META_LINK)

    def unlink(self, request: pb.UnlinkRequest, identity: Identity) -> Any:
        return self._write(unlink, request, identity, lane.META_UNLINK)

    def rmdir(self, request: pb.RmdirRequest, identity: Identity) -> Any:
        return self._write(rmdir, request, identity, lane.META_RMDIR)

    def rename(self, request: pb.RenameRequest, identity: Identity) -> Any:
        return self._write(rename, request, identity, lane.META_RENAME)

    def remove_tree(self, request: pb.RemoveTreeRequest, identity: Identity) -> Any:
        return self._write(remove_tree, request, identity, lane.META_REMOVE_TREE)

    # Attributes.

    def set_attr(self, request: pb.SetAttrRequest, identity: Identity) -> Any:
        return self._write(set_attr, request, identity, lane.META_SET_ATTR)

    def set_xattr(self, request: pb.XattrRequest, identity: Identity) -> Any:
        return self._write(set_xattr, request, identity, lane.META_SET_XATTR)

    def remove_xattr(self, request: pb.XattrRequest, identity: Identity) -> Any:
        return self._write(remove_xattr, request, identity, lane.META_REMOVE_XATTR)

    # Open files.

    def open(self, request: pb.OpenRequest, identity: Identity) -> Any:
        if request.write or request.truncate:
            reply = self._write(open_path, request, identity, lane.META_OPEN)
        else:
            reply = self._read(open_path, request, identity)
        return self._held(reply, request) if request.read else reply

    def close(self, request: pb.CloseRequest, identity: Identity) -> Any:
        caller = request.caller
        if len(request.closes) == 1 and _is_hold_only(request.closes[0]):
            reply = self._read(close, request, identity)
        else:
            reply = self._write(close, request, identity, lane.META_CLOSE)
        released = [one.inode for one in request.closes if one.read_hold]
        if released:
            self._holds.release(caller.client, released, caller.sequence)
        return reply

    def sync(self, request: pb.SyncRequest, identity: Identity) -> Any:
        reply = self._write(sync, request, identity, lane.META_SYNC)
        return self._on_disk(reply) if request.durable and not self._durable else reply

    def hold(self, request: pb.HoldRequest, identity: Identity) -> pb.HoldReply:
        """Replaces all that the client holds. Raises: InvalidArgument for too many inodes."""
        identity.user(request.caller)
        if len(request.inodes) > HOLDS_MAX:
            raise InvalidArgument(f"a client holds at most {HOLDS_MAX} inodes")
        self._holds.replace(request.caller.client, request.inodes)
        return pb.HoldReply(incarnation=self._parts.incarnation)

    # The whole.

    def stat_fs(self, request: pb.StatFsRequest, identity: Identity) -> Any:  # noqa: ARG002, a handler
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
            yield inode

    async def scan_dentries(
        self,
        request: pb.ScanRequest,
        identity: Identity,  # noqa: ARG002, a handler
    ) -> AsyncIterator[pb.ScannedDentry]:
        """Every entry of every directory."""
        async for key, value in self._scan(b"D", request.limit):
            parent, name = schema.split_one(key)
            entry = schema.decode_entry(value)
            yield pb.ScannedDentry(
                parent=parent,
                entry=pb.Dentry(name=name, inode=entry.inode, type=entry.type),  # type: ignore[arg-type]
            )

    async def scan_removed(
        self,
        request: pb.ScanRequest,
        identity: Identity,  # noqa: ARG002, a handler
    ) -> AsyncIterator[pb.RemovedContent]:
        """Every content whose chunks wait to be removed."""
        async for _, value in self._scan(b"G", request.limit):
            yield schema.decode_garbage(value)

    def status(self, request: Empty, identity: Identity) -> pb.MetaStatus:  # noqa: ARG002, a handler
        """Numbers for people. Of each queue at most `COUNTED_MAX` are counted."""
        return pb.MetaStatus(
            incarnation=self._parts.incarnation,
            gc_queue=self._count(b"O") + self._count(b"G"),
            write_sessions=self._writers.count,
            read_holds=self._holds.count,
            operations=self.operations,
        )

    # One operation.

    def _read(self, operation: Operation[R], request: Any, identity: Identity) -> R | Awaitable[R]:
        caller: Caller = request.caller
        call = Call(operation, request, User(*identity.user(caller)), caller.client, 0, 0)
        self.operations += 1
        try:
            reply: R = self._look(call)
        except (NeedPause, Conflict):
            return self._persist(call, self._look)
        return self._lengthened(reply, caller.client)

    def _write(
        self, operation: Operation[R], request: Any, identity: Identity, number: int
    ) -> R | Awaitable[R]:
        caller: Caller = request.caller
        call = Call(operation, request, User(*identity.user(caller)), caller.client, caller.sequence, number)
        if number in (lane.META_CREATE, lane.META_OPEN) and request.write:
            call.session = self._random.getrandbits(63) | 1
        self.operations += 1
        try:
            reply: R = self._attempt(call)
        except Overtaken:
            raise
        except (NeedIds, NeedLength, NeedPause, NeedCut, Conflict, MaybeCommitted) as reason:
            return self._persist(call, self._attempt, reason)
        if self._scene.inodes.is_low or self._scene.contents.is_low:
            self._refill()
        if self._durable:
            return self._on_disk(reply)
        return self._lengthened(reply, caller.client) if number == lane.META_OPEN else reply

    def _look(self, call: Call) -> Any:
        work = Work(self._scene, self._engine.begin(), call.user, call.client, self._now_ns())
        return call.operation(work, call.request)

    def _attempt(self, call: Call) -> Any:
        """One transaction. Raises a `Need`, Conflict or MaybeCommitted if it has to be done again."""
        txn = self._engine.begin()
        record = schema.record_key(call.client, call.sequence) if call.sequence else b""
        if record:
            answered = txn.get(record)
            if answered is not None:
                return self._answer_again(call, answered)
        work = Work(
            self._scene,
            txn,
            call.user,
            call.client,
            self._now_ns(),
            call.session,
            call.measured,
            call.cuts,
        )
        reply = call.operation(work, call.request)
        if record:
            txn.put(record, schema.encode_record(work.now_ms, call.number, _without_data(reply)))
        try:
            txn.commit()
        except MaybeCommitted:
            call.uncertain.update(inode for inode, _ in (*work.opened, *work.closed))
            call.made = work.made
            raise
        for inode, session in work.opened:
            self._writers.add(inode, session, call.client)
        for inode, session in work.closed:
            self._writers.remove(inode, session)
        if work.made:
            self._census.added(work.made)
        return reply

    def _answer_again(self, call: Call, record: bytes) -> Any:
        """The answer that this request got before; inodes as they are now, where they still exist."""
        _, number, reply_bytes = schema.decode_record(record)
        if number != call.number:
            raise InvalidArgument("this sequence number was used for another request")
        self._census.added(call.made)
        reply = _REPLIES[number].FromString(reply_bytes)
        work = Work(self._scene, self._engine.begin(), call.user, call.client, self._now_ns())
        for inode in _inodes(reply):
            now = work.find(inode.id)
            if now is not None:
                inode.CopyFrom(work.visible(now))
        return reply

    async def _persist(self, call: Call, attempt: Callable[[Call], R], reason: Exception | None = None) -> R:
        """Goes on until the operation is carried out or refused."""
        try:
            reply = await self._try_again(call, attempt, reason)
        finally:
            for inode in call.uncertain:
                self._writers.reload(self._engine, inode)
        if self._durable and call.number:
            await self._engine.sync()
        longer = self._lengthened(reply, call.client)
        return longer if isinstance(longer, Message) else await longer

    async def _try_again(self, call: Call, attempt: Callable[[Call], R], reason: Exception | None) -> R:
        for tries in range(1, TRIES_MAX + 1):
            if isinstance(reason, NeedCut):
                reason, reply = await self._attempt_after_cut(call, attempt, reason)
                if reply is not None:
                    return reply
                continue
            if reason is not None:
                await self._satisfy(call, reason, tries)
            try:
                return attempt(call)
            except Overtaken:
                raise
            except (NeedIds, NeedLength, NeedPause, NeedCut, Conflict, MaybeCommitted) as again:
                reason = again
        if isinstance(reason, Error):
            raise reason
        raise Busy("the file is changing all the time")

    async def _attempt_after_cut(
        self, call: Call, attempt: Callable[[Call], R], need: NeedCut
    ) -> tuple[Exception | None, R | None]:
        """Removes chunks, then tries while nobody else may touch the file; why it failed, or the reply."""
        async with self._parts.truncations.cut(need.inode, need.length) as cut:
            if cut is not None:
                call.cuts[need.inode] = cut
            try:
                for tries in range(1, TRIES_MAX + 1):
                    try:
                        return None, attempt(call)
                    except Overtaken:
                        raise
                    except (Conflict, MaybeCommitted) as again:
                        if tries == TRIES_MAX:
                            raise
                        await self._satisfy(call, again, tries)
                    except (NeedIds, NeedLength, NeedPause, NeedCut) as again:
                        return again, None
            finally:
                call.cuts.pop(need.inode, None)
        raise AssertionError("the loop returns or raises")

    async def _satisfy(self, call: Call, reason: Exception, tries: int) -> None:
        match reason:
            case NeedIds():
                await reason.allocator.refill()
            case NeedLength():
                await self._measure(call, reason.inode)
            case NeedPause():
                await self._parts.truncations.wait(reason.inode)
            case _:
                longest_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**tries)
                await self._clock.sleep(self._random.uniform(longest_s / 2, longest_s))

    async def _measure(self, call: Call, inode: int) -> None:
        value = self._engine.begin().snapshot_get(schema.inode_key(inode))
        if value is not None:
            call.measured[inode] = await self._parts.lengths.measure(schema.decode_inode(value))

    # After the operation.

    def _lengthened(self, reply: R, client: int) -> R | Coroutine[Any, Any, R]:
        """The reply, with the lengths of files that other clients are writing as the chains tell them."""
        if not self._writers.count:
            return reply
        written = [
            inode
            for inode in _inodes(reply)
            if inode.type == pb.REGULAR and not inode.is_inline and self._writers.has_other(inode.id, client)
        ]
        return self._ask_lengths(reply, written) if written else reply

    async def _ask_lengths(self, reply: R, written: "Sequence[pb.Inode]") -> R:
        lengths = await asyncio.gather(
            *(self._parts.lengths.recent(inode) for inode in written), return_exceptions=True
        )
        for inode, length in zip(written, lengths, strict=True):
            if isinstance(length, int):
                inode.length = max(inode.length, length)
            elif not isinstance(length, Error) or not isinstance(reply, pb.ListReply):
                raise length  # a listing shows what is stored rather than nothing
        return reply

    def _held(self, reply: Any, request: Any) -> Any:
        """Counts a file opened for reading, once the reply is there."""
        if isinstance(reply, Message):
            self._count_hold(reply, request)
            return reply
        return self._held_later(reply, request)

    async def _held_later(self, reply: Awaitable[Any], request: Any) -> Any:
        answered = await reply
        self._count_hold(answered, request)
        return answered

    def _count_hold(self, reply: Any, request: Any) -> None:
        self._holds.acquire(request.caller.client, reply.inode.id, request.caller.sequence)

    def _on_disk(self, reply: Any) -> Awaitable[Any]:
        async def wait() -> Any:
            answered = reply if isinstance(reply, Message) else await reply
            await self._engine.sync()
            return answered

        return wait()

    def _now_ns(self) -> int:
        """Grows with every attempt, so that times and `change` of directories do."""
        now_ns = self._clock.unix_ns()
        if now_ns <= self._last_ns:
            now_ns = self._last_ns + 1
        self._last_ns = now_ns
        return now_ns

    def _refill(self) -> None:
        """Fetches ids in the background, before they are missed."""
        if self._background:
            return

        async def fetch() -> None:
            await self._scene.inodes.refill()
            await self._scene.contents.refill()

        task = asyncio.ensure_future(fetch())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # The whole.

    async def _ask_space(self) -> pb.StatFsReply:
        space = await self._parts.control.space()
        self._space = (self._clock.monotonic(), space)
        return self._filled(space)

    def _filled(self, space: Space) -> pb.StatFsReply:
        return pb.StatFsReply(
            capacity_bytes=space.capacity, free_bytes=space.free, inode_count=self._census.count
        )

    async def _scan(self, kind: bytes, limit: int) -> AsyncIterator[Pair]:
        """Pairs of one kind, page by page; each page is of one moment."""
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


_REPLIES: Final[dict[int, type[Message]]] = {
    lane.META_CREATE: pb.InodeReply,
    lane.META_OPEN: pb.InodeReply,
    lane.META_CLOSE: pb.CloseReply,
    lane.META_SYNC: pb.InodeReply,
    lane.META_MKNOD: pb.InodeReply,
    lane.META_MKDIR: pb.InodeReply,
    lane.META_SYMLINK: pb.InodeReply,
    lane.META_LINK: pb.InodeReply,
    lane.META_UNLINK: pb.InodeReply,
    lane.META_RMDIR: Empty,
    lane.META_RENAME: pb.RenameReply,
    lane.META_SET_ATTR: pb.InodeReply,
    lane.META_REMOVE_TREE: Empty,
    lane.META_SET_XATTR: Empty,
    lane.META_REMOVE_XATTR: Empty,
}


def _inodes(reply: Message) -> "Sequence[pb.Inode]":
    """The inodes in a reply."""
    match reply:
        case pb.InodeReply():
            return [reply.inode]
        case pb.CloseReply():
            return [result.inode for result in reply.results if result.HasField("inode")]
        case pb.RenameReply():
            return [reply.moved, reply.replaced] if reply.HasField("replaced") else [reply.moved]
        case pb.BatchStatReply():
            return list(reply.inodes)
        case pb.ListReply():
            return [entry.attributes for entry in reply.entries if entry.HasField("attributes")]
    return []


def _without_data(reply: Message) -> bytes:
    """The reply as it is recorded: inline data is in the inode, and may be large."""
    if not any(inode.inline_data for inode in _inodes(reply)):
        return reply.SerializeToString()
    kept = type(reply)()
    kept.CopyFrom(reply)
    for inode in _inodes(kept):
        inode.ClearField("inline_data")
    return kept.SerializeToString()


def _is_hold_only(one: pb.CloseOne) -> bool:
    return not (one.session or one.HasField("length") or one.has_inline or one.mtime_ns)


__all__ = ["Call", "MetaService", "Parts"]
