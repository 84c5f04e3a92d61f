"""Events, and the stream on which a buffer's calls run. On a CPU all calls have ended when they return."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor


class EventHandle:
    """A point on the current CUDA stream; without CUDA, a point that has passed."""

    def __init__(self) -> None:
        self.event: torch.cuda.Event | None = None
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            self.event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.event.record()

    def current_stream_wait(self) -> None:
        """The current stream continues after this point."""
        if self.event is not None:
            torch.cuda.current_stream().wait_event(self.event)


class EventOverlap:
    """An event, and tensors that must live until it has passed.

    with event:
        ...          # overlaps
    ...              # after the event
    """

    def __init__(
        self, event: EventHandle | None = None, extra_tensors: tuple[Any, ...] | None = None
    ) -> None:
        self.event = event
        self.extra_tensors = extra_tensors
        self._hooks: list[Callable[[], None]] = []

    def current_stream_wait(self, release_handle: bool = False) -> None:  # noqa: FBT001, FBT002 (the original's)
        """The current stream continues after the event."""
        assert self.event is not None, "the call was not asynchronous: it has no event to wait for"
        self.event.current_stream_wait()
        if release_handle:
            self.event, self.extra_tensors = None, None
        hooks, self._hooks = self._hooks, []
        for hook in hooks:
            hook()

    def register_hook_after_wait(self, hook: Callable[[], None]) -> None:
        """`hook` is called once the event has been waited for."""
        self._hooks.append(hook)

    def __call__(self) -> None:
        self.current_stream_wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self.event is not None:
            self.current_stream_wait()


Event: TypeAlias = EventOverlap | EventHandle | None


class CommunicationStream:
    """A CUDA stream of a buffer's own; nothing on a CPU.

    A call begins after what the caller's stream has been given, or after `previous_event` if there is one. Its results
    belong to both streams: neither frees them under the other.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    @contextmanager
    def call(self, previous_event: Event = None) -> Iterator["Call"]:
        """The call's work goes inside. Afterwards the call has an event, or the caller's stream waits for it."""
        made = Call(self.stream)
        if self.stream is None:
            wait_for(previous_event)
            yield made
            return
        caller = torch.cuda.current_stream(self.stream.device)
        with torch.cuda.stream(self.stream):
            known = _handle_of(previous_event)
            if known is None:
                self.stream.wait_stream(caller)
            else:
                known.current_stream_wait()
            yield made
            made.event = EventHandle()
        for tensor in made.tensors:
            tensor.record_stream(self.stream)
            tensor.record_stream(caller)


class Call:
    """One call on a communication stream."""

    def __init__(self, stream: Any) -> None:
        self.event: EventHandle | None = None
        self.tensors: list[Tensor] = []
        self._stream = stream

    def keep(self, *values: Any) -> None:
        """Remember tensors that the call reads or returns, also inside tuples and lists."""
        for value in values if self._stream is not None else ():
            if isinstance(value, Tensor):
                self.tensors += [value] if value.is_cuda else []
            elif isinstance(value, Iterable) and not isinstance(value, str):
                self.keep(*value)

    def ended(self, *, asynchronous: bool) -> EventOverlap:
        """The event of the call; or none, and the current stream continues after it."""
        if asynchronous:
            return EventOverlap(self.event or EventHandle(), tuple(self.tensors))
        if self.event is not None:
            self.event.current_stream_wait()
        return EventOverlap()


def wait_for(event: Event) -> None:
    """The current stream continues after an event, if there is one."""
    known = _handle_of(event)
    if known is not None:
        known.current_stream_wait()


def _handle_of(event: Event) -> EventHandle | None:
    return event.event if isinstance(event, EventOverlap) else event


__all__ = ["Call", "CommunicationStream", "Event", "EventHandle", "EventOverlap", "wait_for"]
