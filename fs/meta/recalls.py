"""Polls of clients, which carry recalls of delegations to them, and extend their leases.

W1  A client has a lease only once that is on disk (`W`, docs/formats.md): after a crash, and in the next term, the
    service knows for whom it has to wait, and how long (D5 of `delegations`).
W2  A poll is answered at once while something is to be returned; so a recall whose reply was lost is sent again.
W3  A change waits for the answers of clients, and at most for their leases.
W4  A poll is answered only while this service has its store. So a client counts no lease from a moment at which the
    service of the next term already waits (terms.py, M1).
"""

import asyncio
from collections.abc import Collection, Iterable
from functools import partial
from typing import Final

from ..clock import Clock
from ..kv import Durability, Engine, Transaction, run
from ..wire.pb import meta_pb2 as pb
from . import schema
from .delegations import Delegations

POLLS: Final = 3  # of one lease: two may fail before it ends
PAGE: Final = 10_000


class Recalls:
    """Sends recalls, and keeps changes that wait for them. `load` before use."""

    def __init__(self, delegations: Delegations, engine: Engine, clock: Clock, *, incarnation: int) -> None:
        self._delegations = delegations
        self._engine = engine
        self._clock = clock
        self._incarnation = incarnation
        self._lease_ms = int(delegations.lease_s * 1000)
        self._polls: dict[int, asyncio.Future[None]] = {}  # client → its poll, which waits
        self._waiters: set[asyncio.Future[None]] = set()  # changes that wait for clients
        self._recorded: dict[int, int] = {}  # client → length of its lease in ms, as on disk
        self._records = asyncio.Lock()
        self._is_closed = False

    def load(self, *, below: int) -> None:
        """Read who had a lease of the process before this one, which made all inodes below that."""
        leases: dict[int, int] = {}
        begin, end = schema.kind_range(schema.LEASES)
        while pairs := self._engine.begin().snapshot_range(begin, end, limit=PAGE):
            leases.update((schema.split_one(key)[0], schema.decode_next(value)) for key, value in pairs)
            begin = pairs[-1][0] + b"\x00"
        self._recorded = leases
        inherited = [(client, lease_ms / 1000) for client, lease_ms in leases.items()]
        self._delegations.inherit(inherited, below=below, now_s=self._clock.monotonic())

    async def poll(self, request: pb.AwaitRecallsRequest) -> pb.AwaitRecallsReply:
        """Extend the client's lease, and answer when it has to return something, or after a part of the lease.

        Raises: Unavailable if the store cannot be used (W4).
        """
        client, now_s = request.caller.client, self._clock.monotonic()
        delegations = self._delegations
        if request.leaving:
            delegations.leave(client)
            self._wake()
            if client in self._polls:  # the client waits for its end
                _answer(self._polls[client])
            await self._forget([client])
            return self._reply(client)
        if not delegations.lease_s or request.incarnation != self._incarnation:
            return self._reply(client)
        if self._recorded.get(client, 0) < self._lease_ms:
            await self._record(client)
        is_new = not delegations.has_lease(client, now_s)
        if not delegations.extend(client, [(one.inode, one.grant) for one in request.returned], now_s=now_s):
            return pb.AwaitRecallsReply(incarnation=self._incarnation)
        self._wake()
        # A poll that returns something is answered at once: those that are answered with recalls extend nothing, and
        # where files are recalled again and again no other might be answered before the lease ends.
        waits = not is_new and not request.returned and not delegations.to_return(client)
        if waits and not self._is_closed:
            await self._wait_for_recall(client)
        return self._reply(client)

    async def recall(self, inodes: Collection[int]) -> None:
        """Return when these inodes, of which nothing is granted meanwhile, may change."""
        while True:
            now_s = self._clock.monotonic()
            until_s = max(self._delegations.blocked_until(inode, now_s) for inode in inodes)
            if until_s <= now_s:
                return
            self.send_recalls(inodes)
            await self._wait(until_s - now_s)

    def send_recalls(self, inodes: Iterable[int]) -> None:
        """Have clients return their delegations of these inodes."""
        for inode in inodes:
            for client in self._delegations.recall(inode):
                poll = self._polls.get(client)
                if poll is not None:
                    _answer(poll)

    async def expire(self) -> None:
        """End leases that have run out, and forget them on disk."""
        now_s = self._clock.monotonic()
        if self._delegations.expire(now_s):
            self._wake()
        # Some have ended before, when a change looked at them.
        await self._forget(
            [client for client in self._recorded if not self._delegations.knows(client, now_s)]
        )

    def close(self) -> None:
        """Answer all polls: the service stops."""
        self._is_closed = True
        for poll in self._polls.values():
            _answer(poll)

    # Inside.

    def _reply(self, client: int) -> pb.AwaitRecallsReply:
        recalled = [
            pb.Delegation(inode=inode, grant=grant) for inode, grant in self._delegations.to_return(client)
        ]
        self._engine.begin()  # W4
        return pb.AwaitRecallsReply(incarnation=self._incarnation, lease_ms=self._lease_ms, recalled=recalled)

    async def _wait_for_recall(self, client: int) -> None:
        """Wait for a recall. An older poll of the client, which has been replaced, ends."""
        loop = asyncio.get_running_loop()
        before = self._polls.get(client)
        if before is not None:
            _answer(before)
        poll = self._polls[client] = loop.create_future()
        timer = loop.call_later(self._delegations.lease_s / POLLS, _answer, poll)
        try:
            await poll
        finally:
            timer.cancel()
            if self._polls.get(client) is poll:
                del self._polls[client]

    async def _wait(self, longest_s: float) -> None:
        """Return when a client has answered, or after that time."""
        answered = asyncio.get_running_loop().create_future()
        self._waiters.add(answered)
        passed = asyncio.ensure_future(self._clock.sleep(longest_s))
        try:
            await asyncio.wait((answered, passed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._waiters.discard(answered)
            answered.cancel()
            passed.cancel()

    def _wake(self) -> None:
        for waiter in self._waiters:
            _answer(waiter)

    async def _record(self, client: int) -> None:
        """W1."""
        lease = schema.encode_next(self._lease_ms)
        async with self._records:
            await run(
                self._engine,
                partial(_put, client=client, lease=lease),
                durability=Durability.SYNC,
                clock=self._clock,
            )
            self._recorded[client] = self._lease_ms

    async def _forget(self, clients: Collection[int]) -> None:
        """Delete records of clients that have no lease any more."""
        if not clients:
            return
        async with self._records:
            now_s = self._clock.monotonic()
            gone = [
                client
                for client in clients
                if client in self._recorded and not self._delegations.knows(client, now_s)
            ]
            if gone:
                for client in gone:
                    del self._recorded[client]
                await run(self._engine, partial(_delete, clients=gone), clock=self._clock)


def _put(txn: Transaction, *, client: int, lease: bytes) -> None:
    txn.put(schema.lease_key(client), lease)


def _delete(txn: Transaction, *, clients: Collection[int]) -> None:
    txn.may_use_reserve = True
    for client in clients:
        txn.delete(schema.lease_key(client))


def _answer(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


__all__ = ["Recalls"]
