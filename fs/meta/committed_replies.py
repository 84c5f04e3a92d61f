"""Replies over an engine that stores commits later (`Engine.commits_later`).

    R1  a reply leaves when all that it may have seen is stored. That holds for refusals, for replies that only read,
        and for each item of a stream: they may show, or be refused because of, what another request has just changed.
    R2  when that is lost, the caller gets the engine's error in place of the reply
    R3  once commits were lost nothing is answered: what the service has in memory follows them (kv/grouped.py, G3)

It is enough to wait for what is not stored when the reply is known. An engine that stores at once needs none of this:
`committed` returns its service as it is.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Final

from google.protobuf.message import Message

from ..errors import Error, Unavailable
from ..kv import Engine
from ..kv.engine import Unstored
from ..units import KIB
from ..wire import Identity
from ..wire.methods import Answer, Meta, Sent, methods_of
from ..wire.preserialized import Preserialized

# Items of a stream wait together up to this size: about a hundred inodes of a scan, which has millions, while storing a
# record takes milliseconds. A batch of a dump is larger.
WAITING_BYTES: Final = 16 * KIB

Unary = Callable[[Message, Identity], Answer[Message]]
Stream = Callable[[Message, Identity], AsyncGenerator[Message, None]]


class CommittedReplies:
    """The handlers of `service`, each of whose replies waits for what it has seen."""

    def __init__(self, service: object, engine: Engine) -> None:
        self._engine = engine
        for method in methods_of(Meta):
            handler = getattr(service, method.attribute)
            answer = self._stream if method.streams else self._unary
            setattr(self, method.attribute, partial(answer, handler))

    def _unary(self, handler: Unary, request: Message, identity: Identity) -> Answer[Message]:
        self._require_engine()
        try:
            reply = handler(request, identity)
        except Error as error:
            unstored = self._engine.unstored
            if unstored is None:
                raise
            return _refused(unstored, error)
        if not isinstance(reply, (Message, Preserialized)):
            return self._answered(reply)
        unstored = self._engine.unstored
        return reply if unstored is None else _stored(unstored, reply)

    async def _answered(self, answer: Awaitable[Sent[Message]]) -> Sent[Message]:
        try:
            reply = await answer
        except Error:
            await self._stored()
            raise
        await self._stored()
        return reply

    async def _stream(self, handler: Stream, request: Message, identity: Identity) -> AsyncIterator[Message]:
        self._require_engine()
        waiting: list[Message] = []
        size_bytes = 0
        refusal: Error | None = None
        async with aclosing(handler(request, identity)) as items:
            try:
                async for item in items:
                    waiting.append(item)
                    size_bytes += item.ByteSize()
                    if size_bytes >= WAITING_BYTES:
                        await self._stored()
                        for each in waiting:
                            yield each
                        waiting, size_bytes = [], 0
            except Error as error:
                refusal = error
        await self._stored()
        for each in waiting:
            yield each
        if refusal is not None:
            raise refusal

    async def _stored(self) -> None:
        unstored = self._engine.unstored
        if unstored is not None:
            await unstored.stored()

    def _require_engine(self) -> None:
        failure = self._engine.failure
        if failure is not None:
            raise Unavailable(f"the metadata store has failed: {failure}") from failure


async def _stored(unstored: Unstored, reply: Sent[Message]) -> Sent[Message]:
    await unstored.stored()
    return reply


async def _refused(unstored: Unstored, error: Error) -> Sent[Message]:
    await unstored.stored()
    raise error


def committed(service: object, engine: Engine) -> object:
    """Return what serves requests: the service, or its `CommittedReplies`."""
    return CommittedReplies(service, engine) if engine.commits_later else service


__all__ = ["CommittedReplies", "committed"]
