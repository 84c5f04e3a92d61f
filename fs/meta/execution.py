"""One request, over all attempts at it.

The usual case is one attempt: a plain function, without a task. All else goes on in `_persist`.

S1  A request with a sequence number leaves a record in the transaction that carries it out; sent again, also to a
    process that has started since, it gets the same answer and changes nothing. Once its client has settled it, it is
    void, and its record goes (requests.py).
S2  `Writers` is what the store holds: it changes after a commit, and is read again after a commit whose outcome was
    unknown.
S3  A reply is sent after the commit; with `durability = "sync"`, or `durable` in the request, when it is on disk.
S4  A small file's bytes, which lie in its inode, are told only to a caller who may read it, or has it open.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, cast

from google.protobuf.message import Message

from ..clock import Clock
from ..config import MetaConfig
from ..errors import Busy, Conflict, Error, InvalidArgument, MaybeCommitted
from ..kv import Engine, Transaction
from ..wire import Identity
from ..wire.pb import common_pb2 as lane
from ..wire.pb import meta_pb2 as pb
from ..wire.pb.common_pb2 import Caller
from . import schema
from .allocator import RetryAfterRefill
from .context import (
    Measured,
    OperationContext,
    RetryAfterCheck,
    RetryAfterMeasure,
    RetryAfterTruncate,
    RetryAfterWait,
    RetryLater,
    SharedState,
)
from .dump import Dumps
from .inode_counter import InodeCounter
from .lengths import Lengths
from .load import Load
from .operations.length import Overtaken
from .operations.list import list_directory
from .operations.remove_tree import check_tree
from .permissions import READ, User, may
from .quarantine import Quarantine
from .replies import RECORDED, StoredReply, inodes_of, without_data
from .requests import ClientRequests, Requests
from .sessions import SESSIONS_MAX, Holds, Writers
from .storage import StorageControl
from .truncation import Truncations

log: Final = logging.getLogger("luciola.meta")

R = TypeVar("R", bound=Message | StoredReply[Any])
Operation = Callable[[OperationContext, Any], R]

TRIES_MAX: Final = 16  # conflicts of one request before its caller is told
FIRST_WAIT_S: Final = 0.001
LONGEST_WAIT_S: Final = 0.2
UNRECORDED: Final = 0  # in place of a method's number: carried out twice it does no harm


@dataclass(slots=True)
class Call:
    """One request, over all attempts at it."""

    operation: Callable[[OperationContext, Any], Any]
    request: Any
    user: User
    client: int
    sequence: int
    number: int  # of the method on the lane, or UNRECORDED
    client_requests: ClientRequests | None = None  # of a request with a sequence number
    session: int = 0
    measured: dict[int, Measured] = field(default_factory=dict)
    intents: dict[int, schema.TruncateIntent] = field(default_factory=dict)
    checked: set[int] = field(default_factory=set)  # trees that the user may remove
    uncertain: set[int] = field(default_factory=set)  # inodes whose sessions may have changed
    wants_length: bool = False  # rather no answer than a length that others have outgrown
    exact: bool = False  # rather a slow answer than such a length
    made: int = 0  # new inodes of an attempt whose outcome was unknown


@dataclass(slots=True)
class Dependencies:
    """What the service is made of."""

    engine: Engine
    clock: Clock
    config: MetaConfig
    shared: SharedState
    control: StorageControl
    lengths: Lengths
    truncations: Truncations
    writers: Writers
    holds: Holds
    requests: Requests
    inode_counter: InodeCounter
    quarantine: Quarantine
    dumps: Dumps
    load: Load
    incarnation: int


class Execution:
    """Runs operations."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies
        self._engine = dependencies.engine
        self._clock = dependencies.clock
        self._shared = dependencies.shared
        self._writers = dependencies.writers
        self._requests = dependencies.requests
        self._inode_counter = dependencies.inode_counter
        self._require_open = dependencies.load.require_open
        self._durable = dependencies.config.durability == "sync"
        self._last_ns = 0
        self._random = random.Random(random.SystemRandom().getrandbits(128))  # noqa: S311, ids, not secrets
        self._background: set[asyncio.Task[None]] = set()
        self.count = 0

    def admit(self, caller: Caller) -> ClientRequests | None:
        """Raises: InvalidArgument for a request that its client has given up."""
        return self._requests.admit(caller, self._clock) if caller.sequence else None

    def read(self, operation: Operation[R], request: Any, identity: Identity) -> R | Awaitable[R]:
        caller: Caller = request.caller
        call = Call(operation, request, User(*identity.user(caller)), caller.client, 0, UNRECORDED)
        self.admit(caller)
        self.count += 1
        call.wants_length = operation is not list_directory  # which shows what is stored rather than nothing
        call.exact = isinstance(request, pb.OpenRequest) or (
            isinstance(request, pb.StatRequest) and request.exact
        )
        try:
            reply: R = self._look(call)
        except (RetryAfterWait, Conflict):
            return self._persist(call, self._look)
        return self._lengthened(call, reply)

    def write(
        self, operation: Operation[R], request: Any, identity: Identity, number: int
    ) -> R | Awaitable[R]:
        caller: Caller = request.caller
        user = User(*identity.user(caller))
        admitted = self.admit(caller)
        call = Call(operation, request, user, caller.client, caller.sequence, number, admitted)
        if number in (lane.META_CREATE, lane.META_OPEN):
            call.wants_length = call.exact = True
            if request.write:
                call.session = self._random.getrandbits(63) | 1
        self.count += 1
        try:
            reply: R = self._attempt(call)
        except Overtaken:
            raise
        except (RetryAfterRefill, RetryLater, Conflict, MaybeCommitted) as reason:
            return self._persist(call, self._attempt, reason)
        if self._shared.inodes.is_low or self._shared.contents.is_low:
            self._refill()
        longer = self._lengthened(call, reply)
        return self.on_disk(longer) if self._durable else longer

    def _look(self, call: Call) -> Any:
        self._require_open()
        context = OperationContext(self._shared, self._engine.begin(), call.user, call.client, self._now_ns())
        return call.operation(context, call.request)

    def _attempt(self, call: Call) -> Any:
        """One transaction. Raises a `Need`, Conflict or MaybeCommitted if it has to be done again."""
        self._require_open()
        txn = self._engine.begin()
        try:
            return self._attempt_in(txn, call)
        finally:
            txn.cancel()  # the reason for another attempt holds the frames of this one

    def _attempt_in(self, txn: Transaction, call: Call) -> Any:
        requests = call.client_requests
        if requests is not None:
            requests.check(call.sequence)
            slot = requests.find(call.sequence)
            record = None if slot is None else _find_record(txn, call, slot)
            if record is not None:
                return self._answer_again(call, record)
        context = OperationContext(
            self._shared,
            txn,
            call.user,
            call.client,
            self._now_ns(),
            call.session,
            # Once chunks were removed for it, the operation is not refused any more.
            bool(call.session) and not call.intents and self._writers.count_of(call.client) >= SESSIONS_MAX,
            call.measured,
            call.intents,
            checked=call.checked,
        )
        reply = call.operation(context, call.request)
        if context.pending_truncate is not None:
            raise context.pending_truncate
        dropped = () if requests is None or not call.number else _record(txn, call, requests, reply)
        try:
            txn.commit()
        except MaybeCommitted:
            call.uncertain.update(inode for inode, _ in (*context.opened, *context.closed))
            call.made = context.made
            raise
        if dropped and requests is not None:
            requests.dropped(dropped)
        for inode, session in context.opened:
            self._writers.add(inode, session, call.client)
        for inode, session in context.closed:
            self._writers.remove(inode, session)
        for inode, session in context.abandoned:
            self._writers.abandon(inode, session)
        if context.made:
            self._inode_counter.added(context.made)
        return reply

    def _answer_again(self, call: Call, record: schema.Record) -> Any:
        """The answer that this request got before; inodes as they are now, where they still exist."""
        if record.method != call.number:
            raise InvalidArgument("this sequence number was used for another request")
        self._inode_counter.added(call.made)
        reply = RECORDED[record.method].FromString(record.reply)
        context = OperationContext(self._shared, self._engine.begin(), call.user, call.client, self._now_ns())
        for inode in inodes_of(reply):
            now = context.find(inode.id)
            if now is not None:
                inode.CopyFrom(context.visible(now))
        return reply

    async def _persist(self, call: Call, attempt: Callable[[Call], R], reason: Exception | None = None) -> R:
        """Goes on until the operation is carried out or refused."""
        try:
            reply = await self._try_again(call, attempt, reason)
        finally:
            for inode in call.uncertain:
                self._writers.reload(self._engine, inode)
        if self._durable:
            await self._engine.sync()
        longer = self._lengthened(call, reply)
        return await longer if isinstance(longer, Awaitable) else longer

    async def _try_again(self, call: Call, attempt: Callable[[Call], R], reason: Exception | None) -> R:
        for tries in range(1, TRIES_MAX + 1):
            if isinstance(reason, RetryAfterTruncate):
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
            except (RetryAfterRefill, RetryLater, Conflict, MaybeCommitted) as again:
                reason = again
        if isinstance(reason, Error):
            raise reason
        raise Busy("the file is changing all the time")

    async def _attempt_after_cut(
        self, call: Call, attempt: Callable[[Call], R], need: RetryAfterTruncate
    ) -> tuple[Exception | None, R | None]:
        """Removes chunks, then tries while nobody else may touch the file; why it failed, or the reply."""
        async with self._dependencies.truncations.truncate(need.inode, need.length) as intent:
            if intent is not None:
                call.intents[need.inode] = intent
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
                    except (RetryAfterRefill, RetryLater) as again:
                        return again, None
            finally:
                call.intents.pop(need.inode, None)
        raise AssertionError("the loop returns or raises")

    async def _satisfy(self, call: Call, reason: Exception, tries: int) -> None:
        match reason:
            case RetryAfterRefill():
                await reason.allocator.refill()
            case RetryAfterMeasure():
                call.measured[reason.inode] = await self._dependencies.lengths.measure(reason.file)
            case RetryAfterWait():
                await self._dependencies.truncations.wait(reason.inode)
            case RetryAfterCheck():
                await check_tree(self._engine, call.user, reason.inode)
                call.checked.add(reason.inode)
            case _:
                longest_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**tries)
                await self._clock.sleep(self._random.uniform(longest_s / 2, longest_s))

    # After the operation.

    def _lengthened(self, call: Call, reply: R) -> R | Coroutine[Any, Any, R]:
        """Mark files that other clients are writing, and give those in chunks the length that the chains report."""
        user, writers = call.user, self._writers
        if isinstance(reply, StoredReply):  # nearly always this is what its caller gets
            is_written = writers.count and writers.have_other(reply.inodes, call.client)
            if not is_written and not (user.uid and reply.has_data):
                return reply
            reply = cast("R", reply.message())
        if user.uid:
            self._withhold(call, reply)
        if not writers.count:
            return reply
        written = [inode for inode in inodes_of(reply) if writers.has_other(inode.id, call.client)]
        for inode in written:
            inode.others_write = True
        chunked = [inode for inode in written if inode.type == pb.REGULAR and not inode.is_inline]
        return self._ask_lengths(call, reply, chunked) if chunked else reply

    async def _ask_lengths(self, call: Call, reply: R, written: Sequence[pb.Inode]) -> R:
        ask = self._dependencies.lengths.exact if call.exact else self._dependencies.lengths.recent
        lengths = await asyncio.gather(*(ask(inode) for inode in written), return_exceptions=True)
        for inode, length in zip(written, lengths, strict=True):
            if isinstance(length, int):
                inode.length = max(inode.length, length)
            elif not isinstance(length, Error) or call.wants_length:
                raise length
        return reply

    def _withhold(self, call: Call, reply: object) -> None:
        """S4: takes out the bytes of small files that the caller may not read. Listings bring none."""
        for inode in inodes_of(reply):
            if inode.inline_data and not may(call.user, inode, READ) and not self._has_open(call, inode.id):
                inode.ClearField("inline_data")
                inode.bytes_withheld = True

    def _has_open(self, call: Call, inode: int) -> bool:
        return self._dependencies.holds.has(inode, call.client) or self._writers.has(inode, call.client)

    def on_disk(self, reply: Any) -> Awaitable[Any]:
        async def wait() -> Any:
            answered = reply if isinstance(reply, (Message, StoredReply)) else await reply
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
            try:
                await self._shared.inodes.refill()
                await self._shared.contents.refill()
            except Error as error:
                log.warning("ids cannot be reserved now: %s", error)

        task = asyncio.ensure_future(fetch())
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _find_record(txn: Transaction, call: Call, slot: int) -> schema.Record | None:
    value = txn.get(schema.record_key(call.client, slot))
    if value is None:
        return None
    record = schema.decode_record(value)
    # After an attempt that failed, an older answer is there still.
    return record if record.sequence == call.sequence else None


def _record(txn: Transaction, call: Call, requests: ClientRequests, reply: Any) -> Sequence[int]:
    """Store the answer in the operation's transaction. Return the client's slots that it deletes."""
    key = schema.record_key(call.client, requests.take(call.sequence))
    txn.put(key, schema.encode_record(call.sequence, call.number, without_data(reply)))
    dropped = requests.surplus()
    for slot in dropped:
        txn.delete(schema.record_key(call.client, slot))
    return dropped


__all__ = ["UNRECORDED", "Call", "Dependencies", "Execution", "Operation"]
