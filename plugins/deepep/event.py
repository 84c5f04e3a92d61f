"""Events: what a call on one stream has done, for another stream to wait for. On a CPU all calls have ended."""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import torch


class EventHandle:
    """A point on the current CUDA stream; without CUDA, a point that has passed."""

    def __init__(self) -> None:
        self.event: torch.cuda.Event | None = None
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            self.event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.event.record()

    def current_stream_wait(self) -> None:
        """The current stream goes on after this point."""
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
        """The current stream goes on after the event."""
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


__all__ = ["EventHandle", "EventOverlap"]
