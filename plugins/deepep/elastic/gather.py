"""All-gather in sessions: each rank puts its tensor into all regions, and results are views of the own one.

    region   [ tensor 0 of rank 0 | … of rank R - 1 | tensor 1 of rank 0 | … ]   each begins at a multiple of 32 bytes

A session ends when all ranks have read its results; until then nothing is written twice.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

from ...kernels.errors import BadCall, refuse
from ..transport.interface import SPANS_MAX, Span, Transport
from .sizes import ROW_BYTES

DATA_SLOT: Final = 4
END_SLOT: Final = 5
UNANSWERED_MAX: Final = 16
"""Signals that may be on their way to a peer: transports of messages have room for 32."""


class Sessions:
    """Of one buffer, through the first `num_bytes` of each region."""

    def __init__(self, transport: Transport, num_bytes: int) -> None:
        self._transport, self._room = transport, num_bytes
        self._limits = (0, 0)
        self._calls = self._ends = 0
        self._at = self._gathers = 0
        self.is_open = False

    def configure(self, num_bytes: int, gathers: int) -> None:
        """Limits of a session."""
        if self.is_open:
            raise BadCall("a session is open: end it first")
        if not 0 < num_bytes <= self._room:
            refuse(
                "num_max_session_bytes", num_bytes, f"it must be 1 to {self._room}, the bytes of this buffer"
            )
        if gathers < 1:
            refuse("num_max_all_gathers_per_session", gathers, "it must be positive")
        self._limits = (num_bytes, gathers)

    def begin(self) -> None:
        """All ranks have ended the last one."""
        if self.is_open:
            raise BadCall("a session is open: end it first")
        if not self._limits[0]:
            raise BadCall("call agrs_set_config before the first session")
        self.is_open, self._at, self._gathers = True, 0, 0

    def end(self) -> None:
        """Results are not read any more, on any rank."""
        self._need_session()
        self.is_open = False
        self._ends += 1
        for peer in self._transport.peers:
            self._transport.signal(peer, END_SLOT, self._ends)
        for peer in self._transport.peers:
            self._transport.wait(peer, END_SLOT, self._ends, what="end of an AGRS session")

    def own_parts(self, shapes: Sequence[Sequence[int]], dtype: torch.dtype) -> list[Tensor]:
        """Where this rank's tensors of the next all-gather lie."""
        self._need_session()
        parts, at = [], self._at
        for shape in shapes:
            size = self._size(math.prod(shape) * dtype.itemsize)
            self._check_room(at + size * self._transport.size)
            start = at + size * self._transport.rank
            parts.append(self._own()[start : start + size].view(dtype).view(tuple(shape)))
            at += size * self._transport.size
        return parts

    def gather(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], Callable[[], None]]:
        """Results (R, …) and what waits until they are there."""
        self._need_session()
        if not tensors:
            refuse("t", "of no tensor", "give one or more")
        if self._gathers == self._limits[1]:
            raise BadCall(
                f"this session has made its {self._limits[1]} all-gathers: end it, or call agrs_set_config"
            )
        results, spans, at = [], [], self._at
        for each in tensors:
            size = self._size(each.numel() * each.element_size())
            self._check_room(at + size * self._transport.size)
            spans.append((at + size * self._transport.rank, size))
            whole = self._own()[at : at + size * self._transport.size]
            results.append(whole.view(each.dtype).view(self._transport.size, *each.shape))
            at += size * self._transport.size
        self._at = at
        self._gathers += 1
        self._put(tensors, spans)
        if self._calls > UNANSWERED_MAX:
            self._waiter(self._calls - UNANSWERED_MAX)()
        return results, self._waiter(self._calls)

    def _put(self, tensors: Sequence[Tensor], spans: Sequence[Span]) -> None:
        own = self._own()
        for each, (start, size) in zip(tensors, spans, strict=True):
            part = own[start : start + size]
            if part.data_ptr() != each.data_ptr():
                part.copy_(each.contiguous().view(-1).view(torch.uint8))
        for first in range(0, len(spans), SPANS_MAX):
            some = spans[first : first + SPANS_MAX]
            self._calls += 1
            for peer in self._transport.peers:
                home = self._transport.buffer(peer)
                for start, size in some:
                    home[start : start + size].copy_(own[start : start + size])
                self._transport.signal(peer, DATA_SLOT, self._calls, spans=some)

    def _waiter(self, call: int) -> Callable[[], None]:
        def wait() -> None:
            for peer in self._transport.peers:
                self._transport.wait(peer, DATA_SLOT, call, what="all-gather: waiting for tensors")

        return wait

    def _own(self) -> Tensor:
        return self._transport.buffer(self._transport.rank)

    def _need_session(self) -> None:
        if not self.is_open:
            raise BadCall("there is no session: use `with buffer.agrs_new_session():`")

    def _check_room(self, end: int) -> None:
        if end > self._limits[0]:
            refuse(
                "t", f"{end} bytes with what this session has", f"agrs_set_config allows {self._limits[0]}"
            )

    @staticmethod
    def _size(size: int) -> int:
        if size < 1 or size % ROW_BYTES:
            refuse("t", f"of {size} bytes", f"it must be a multiple of {ROW_BYTES}")
        return size


__all__ = ["Sessions"]
