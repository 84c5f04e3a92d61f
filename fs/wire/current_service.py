"""The handlers of a service that this process has only at times: while it is the primary of several.

What answers requests is made for each term. Between terms every request is refused, before anything is executed:
its caller asks the next process (failover.py).
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from functools import partial
from typing import cast

from google.protobuf.message import Message

from ..errors import Unavailable
from .credentials import Identity
from .methods import Answer, Handler, methods_of


class CurrentService:
    """The handlers of `interface` (methods.py); `service` answers, and without one requests get `refusal`."""

    def __init__(self, interface: type, refusal: Callable[[], Unavailable]) -> None:
        self.service: object | None = None
        self._refusal = refusal
        for method in methods_of(interface):
            answer = self._stream if method.streams else self._unary
            setattr(self, method.attribute, partial(answer, method.attribute))

    def _unary(self, name: str, request: Message, identity: Identity) -> Answer[Message]:
        return cast("Answer[Message]", self._handler(name)(request, identity))

    async def _stream(self, name: str, request: Message, identity: Identity) -> AsyncIterator[Message]:
        stream = cast("AsyncGenerator[Message, None]", self._handler(name)(request, identity))
        async with aclosing(stream) as items:
            async for item in items:
                yield item

    def _handler(self, name: str) -> Handler:
        if self.service is None:
            raise self._refusal()
        handler: Handler = getattr(self.service, name)
        return handler


__all__ = ["CurrentService"]
