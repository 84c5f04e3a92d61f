"""One request, over all attempts at it.

The usual case is one attempt: a plain function, without a task. All else is done in `_persist`.

S1  A request with a sequence number leaves a record in the transaction that carries it out; sent again, also to a
    process that has started since, it gets the same answer and changes nothing. Once its client has settled it, it is
    void, and its record goes (requests.py).
S2  `Writers` is what the store holds: it changes after a commit, and is read again after a commit whose outcome was
    unknown.
S3  A reply is sent after the commit; with `durability = "sync"`, or `durable` in the request, when it is on disk.
S4  A small file's bytes, which are stored in its inode, are sent only to a caller who may read it, or has it open.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias, TypeVar, cast

from google.protobuf.message import Message

from ..errors import (
    Busy,
    Conflict,
    Error,
    InvalidArgument,
    MaybeCommitted,
    NotFound,
    PermissionDenied,
)
from ..kv import Transaction
from ..wire import Identity
from ..wire.methods import Answer, Sent
from ..wire.pb import meta_pb2 as pb
from ..wire.pb.common_pb2 import Caller
from ..wire.preserialized import Preserialized
from . import schema
from .confinement import context_of
from .context import OperationContext, Request
from .dependencies import Dependencies
from .operations.length import Overtaken
from .operations.remove_tree import check_tree
from .permissions import READ as MAY_READ
from .permissions import User, may
from .replies import StoredReply, inodes_of, is_by_id, without_collected, without_data
from .requests import ClientRequests
from .retry import (
    RetryAfterCheck,
    RetryAfterMeasure,
    RetryAfterRefill,
    RetryAfterTruncate,
    RetryAfterWait,
    RetryLater,
)
from .sessions import SESSIONS_MAX
from .verbs import READ, RECORDED, Length, Verb

log: Final = logging.getLogger("luciola.meta")

EROFS: Final = 30
Body = TypeVar("Body", bound=Message)
Reply = TypeVar("Reply", bound=Message)
Attempt: TypeAlias = Callable[[Verb[Body, Reply], Request[Body]], Sent[Reply]]

TRIES_MAX: Final = 16  # conflicts of one request before its caller gets the error
FIRST_WAIT_S: Final = 0.001
LONGEST_WAIT_S: Final = 0.2


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
        self._durable = dependencies.shared.config.durability == "sync"
        self._last_ns = 0
        self._random = random.Random(random.SystemRandom().getrandbits(128))  # noqa: S311, ids, not secrets
        self._background: set[asyncio.Task[None]] = set()
        self.count = 0

    def admit(self, caller: Caller, identity: Identity) -> ClientRequests | None:
        """Raises: InvalidArgument for a request that its client has given up; PermissionDenied for another's client."""
        if caller.client:
            self._requests.require_owner(caller.client, identity.principal, self._clock)
        elif caller.sequence:
            raise InvalidArgument("a request with a number says which client it is of: an id that is not 0")
        return self._requests.admit(caller) if caller.sequence else None

    def run(self, verb: Verb[Body, Reply], message: Body, identity: Identity) -> Answer[Reply]:
        """Carry out a request. Raises: what the operation raises, Conflict or Busy after `TRIES_MAX` attempts."""
        caller: Caller = message.caller  # type: ignore[attr-defined] # which the requests of all verbs have
        user = User(*identity.user(caller))
        if identity.limits.read_only and verb.changes_of(message):
            raise PermissionDenied("the token is read-only", errno=EROFS)
        root = identity.limits.root
        admitted = self.admit(caller, identity)
        self.count += 1
        mode = verb.mode_of(message)
        if mode is READ:
            return self._run_read(verb, Request(message, user, caller.client, root=root))
        request = Request(
            message, user, caller.client, caller.sequence, mode is RECORDED, admitted, root=root
        )
        if verb.opens_session is not None and verb.opens_session(message):
            request.session = self._random.getrandbits(63) | 1
        return self._run_write(verb, request)

    def _run_read(self, verb: Verb[Body, Reply], request: Request[Body]) -> Answer[Reply]:
        try:
            reply = self._look(verb, request)
        except (RetryAfterWait, Conflict):
            return self._persist(verb, request, self._look)
        return self._lengthened(verb, request, reply)

    def _run_write(self, verb: Verb[Body, Reply], request: Request[Body]) -> Answer[Reply]:
        try:
            reply = self._attempt(verb, request)
        except Overtaken:
            raise
        except (RetryLater, Conflict, MaybeCommitted) as reason:
            return self._persist(verb, request, self._attempt, reason)
        if self._shared.inodes.is_low or self._shared.contents.is_low:
            self._refill()
        longer = self._lengthened(verb, request, reply)
        return self.on_disk(longer) if self._durable else longer

    def _look(self, verb: Verb[Body, Reply], request: Request[Body]) -> Sent[Reply]:
        self._require_open()
        context = context_of(self._shared, self._engine.begin(), request, now_ns=self._now_ns())
        reply = verb.operation(context, request.message)
        assert context.txn.is_read_only, f"{verb.method.path} is a reading verb"
        return reply

    def _attempt(self, verb: Verb[Body, Reply], request: Request[Body]) -> Sent[Reply]:
        """One transaction. Raises: RetryLater, Conflict, MaybeCommitted if it must be done again."""
        self._require_open()
        txn = self._engine.begin()
        try:
            return self._attempt_in(txn, verb, request)
        finally:
            txn.cancel()  # the reason for another attempt holds the frames of this one

    def _attempt_in(self, txn: Transaction, verb: Verb[Body, Reply], request: Request[Body]) -> Sent[Reply]:
        record = _find_record(txn, request)
        if record is not None:
            return self._answer_again(verb, request, record)
        context = context_of(
            self._shared,
            txn,
            request,
            now_ns=self._now_ns(),
            sessions_left=self._sessions_left(request),
        )
        reply = verb.operation(context, request.message)
        self._last_ns = max(self._last_ns, context.now_ns)
        if context.pending_truncate is not None:
            raise context.pending_truncate
        dropped = _record(txn, verb, request, reply) if request.is_recorded else ()
        try:
            txn.commit()
        except MaybeCommitted:
            request.uncertain.update(inode for inode, _ in (*context.opened, *context.closed))
            request.uncertain_inodes = context.new_inodes
            raise
        try:
            self._committed(context, dropped)
        except BaseException as error:  # S2 does not hold: only opening the store again shows what is in it
            self._engine.fail(error)
            raise
        return reply

    def _sessions_left(self, request: Request[Message]) -> int:
        """Return how many more files the client may open for writing."""
        if not request.session or request.intents:  # once chunks were removed for it, an open is not refused
            return 1
        return SESSIONS_MAX - self._writers.count_of(request.client)

    def _committed(self, context: OperationContext, dropped: Sequence[int]) -> None:
        """What is in memory follows what was stored (S2)."""
        client = context.request.client
        if dropped and context.request.client_requests is not None:
            context.request.client_requests.dropped(dropped)
        for inode, session in context.opened:
            self._writers.add(inode, session, client)
        for inode, session in context.closed:
            self._writers.remove(inode, session)
        for inode, session in context.abandoned:
            self._writers.abandon(inode, session)
        if context.new_inodes:
            self._inode_counter.added(context.new_inodes)

    def _answer_again(self, verb: Verb[Body, Reply], request: Request[Body], record: schema.Record) -> Reply:
        """Return the answer that this request got before; inodes as they are now, where they still exist."""
        if record.method != verb.method.lane or not request.is_recorded:
            raise InvalidArgument("this sequence number was used for another request")
        self._inode_counter.added(request.uncertain_inodes)
        reply = verb.method.reply.FromString(record.reply)
        context = context_of(self._shared, self._engine.begin(), request, now_ns=self._now_ns())
        for inode in inodes_of(reply):
            now = context.find(inode.id)
            if now is not None:
                inode.CopyFrom(context.visible(now))
            elif is_by_id(inode) and not isinstance(reply, (pb.ApplyReply, pb.CloseReply)):
                raise NotFound("the file was removed after the request was carried out", inode=inode.id)
        without_collected(reply)
        return reply

    async def _persist(
        self,
        verb: Verb[Body, Reply],
        request: Request[Body],
        attempt: Attempt[Body, Reply],
        reason: Exception | None = None,
    ) -> Sent[Reply]:
        """Try again until the operation is carried out or refused."""
        try:
            reply = await self._try_again(verb, request, attempt, reason)
        finally:
            for inode in request.uncertain:
                self._writers.reload(self._engine, inode)
        if self._durable:
            await self._engine.sync()
        longer = self._lengthened(verb, request, reply)
        return await longer if isinstance(longer, Awaitable) else longer

    async def _try_again(
        self,
        verb: Verb[Body, Reply],
        request: Request[Body],
        attempt: Attempt[Body, Reply],
        reason: Exception | None,
    ) -> Sent[Reply]:
        for tries in range(1, TRIES_MAX + 1):
            if isinstance(reason, RetryAfterTruncate):
                reason, reply = await self._attempt_after_truncate(verb, request, attempt, reason)
                if reply is not None:
                    return reply
                continue
            if reason is not None:
                await self._satisfy(request, reason, tries)
            try:
                return attempt(verb, request)
            except Overtaken:
                raise
            except (RetryLater, Conflict, MaybeCommitted) as again:
                reason = again
        if isinstance(reason, Error):
            raise reason
        raise Busy(f"the file changed during each of {TRIES_MAX} attempts; try again")

    async def _attempt_after_truncate(
        self,
        verb: Verb[Body, Reply],
        request: Request[Body],
        attempt: Attempt[Body, Reply],
        reason: RetryAfterTruncate,
    ) -> tuple[Exception | None, Sent[Reply] | None]:
        """Remove chunks, then try while no other request may touch the file; why it failed, or the reply."""
        async with self._dependencies.truncations.truncate(reason.inode, reason.length) as intent:
            if intent is not None:
                request.intents[reason.inode] = intent
            try:
                for tries in range(1, TRIES_MAX + 1):
                    try:
                        return None, attempt(verb, request)
                    except Overtaken:
                        raise
                    except (Conflict, MaybeCommitted) as again:
                        if tries == TRIES_MAX:
                            raise
                        await self._satisfy(request, again, tries)
                    except RetryLater as again:
                        return again, None
            finally:
                request.intents.pop(reason.inode, None)
        raise AssertionError("the loop returns or raises")

    async def _satisfy(self, request: Request[Message], reason: Exception, tries: int) -> None:
        match reason:
            case RetryAfterRefill():
                await reason.refill()
            case RetryAfterMeasure():
                request.measured[reason.file.id] = await self._dependencies.lengths.measure(reason.file)
            case RetryAfterWait():
                await self._dependencies.truncations.wait(reason.inode)
            case RetryAfterCheck():
                await check_tree(self._engine, request.user, reason.inode)
                request.checked.add(reason.inode)
            case _:
                assert isinstance(reason, (Conflict, MaybeCommitted)), "every RetryLater has its case"
                longest_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**tries)
                await self._clock.sleep(self._random.uniform(longest_s / 2, longest_s))

    # After the operation.

    def _lengthened(
        self, verb: Verb[Body, Reply], request: Request[Body], reply: Sent[Reply]
    ) -> Answer[Reply]:
        """Mark files that other clients are writing, and give those in chunks the length that the chains report."""
        user, writers = request.user, self._writers
        if isinstance(reply, StoredReply):  # nearly always this is what its caller gets
            is_written = writers.count and writers.have_other(reply.inodes, request.client)
            if not user.uid and not is_written:
                return reply
            reply = cast("Reply", reply.message())
        assert isinstance(reply, Message), f"{verb.method.path} replies with a message or a StoredReply"
        if user.uid:
            self._withhold(verb, request, reply)
        if not writers.count:
            return reply
        written = [inode for inode in inodes_of(reply) if writers.has_other(inode.id, request.client)]
        for inode in written:
            inode.others_write = True
        chunked = [inode for inode in written if inode.type == pb.REGULAR and not inode.is_inline]
        if not chunked:
            return reply
        return self._ask_lengths(verb.length_of(request.message), reply, chunked)

    async def _ask_lengths(self, wanted: Length, reply: Reply, written: Sequence[pb.Inode]) -> Reply:
        lengths = self._dependencies.lengths
        ask = lengths.exact if wanted is Length.EXACT else lengths.recent
        found = await asyncio.gather(*(ask(inode) for inode in written), return_exceptions=True)
        for inode, length in zip(written, found, strict=True):
            if isinstance(length, int):
                inode.length = max(inode.length, length)
            elif not isinstance(length, Error) or wanted is not Length.BEST_EFFORT:
                raise length
        return reply

    def _withhold(self, verb: Verb[Body, Reply], request: Request[Body], reply: Reply) -> None:
        """Take out what is not for the caller.

        S4: the bytes of small files that it may not read. The name and parent of every inode, because the caller may
        have guessed its number, and a link to it shows one name of several; RealPath checks who may. The target of a
        symbolic link unless the caller gave a name of it.
        """
        for inode in inodes_of(reply):
            inode.ClearField("name")
            inode.ClearField("parent")
            if inode.symlink_target and not verb.has_name_of(request.message):
                inode.ClearField("symlink_target")
            is_readable = not inode.inline_data or may(request.user, inode, MAY_READ)
            if not is_readable and not self._has_open(request.client, inode.id):
                inode.ClearField("inline_data")
                inode.bytes_withheld = True

    def _has_open(self, client: int, inode: int) -> bool:
        return self._dependencies.holds.has(inode, client) or self._writers.has(inode, client)

    async def on_disk(self, reply: Answer[Reply]) -> Sent[Reply]:
        """Return the reply when all that was committed until it was known survives power loss."""
        answered = reply if isinstance(reply, (Message, Preserialized)) else await reply
        await self._engine.sync()
        return answered

    def _now_ns(self) -> int:
        """Return the time; it grows with every attempt, so that times and `change` of directories do."""
        now_ns = self._clock.unix_ns()
        if now_ns <= self._last_ns:
            now_ns = self._last_ns + 1
        self._last_ns = now_ns
        return now_ns

    def _refill(self) -> None:
        """Reserve ids in the background, before the last one is handed out."""
        if self._background:
            return

        async def fetch() -> None:
            try:
                await self._shared.inodes.refill()
                await self._shared.contents.refill()
            except Error as error:
                log.warning("reserving ids failed: %s; the next request that needs one tries again", error)

        task = asyncio.ensure_future(fetch())
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _find_record(txn: Transaction, request: Request[Message]) -> schema.Record | None:
    """Return the record of an earlier attempt that was committed. Raises: InvalidArgument if the request is void."""
    requests = request.client_requests
    if requests is None:
        return None
    requests.check(request.sequence)
    slot = requests.find(request.sequence)
    value = None if slot is None else txn.get(schema.record_key(request.client, slot))
    if value is None:
        return None
    record = schema.decode_record(value)
    # After an attempt that failed, an older answer is there still.
    return record if record.sequence == request.sequence else None


def _record(
    txn: Transaction, verb: Verb[Body, Reply], request: Request[Body], reply: Sent[Reply]
) -> Sequence[int]:
    """Store the answer in the operation's transaction. Return the client's slots that it deletes."""
    requests = request.client_requests
    if requests is None:
        return ()
    key = schema.record_key(request.client, requests.take(request.sequence))
    txn.put(key, schema.encode_record(request.sequence, verb.method.lane, without_data(reply)))
    dropped = requests.surplus()
    for slot in dropped:
        txn.delete(schema.record_key(request.client, slot))
    return dropped


__all__ = ["Execution"]
