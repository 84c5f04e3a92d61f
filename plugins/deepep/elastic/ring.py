"""Tensors to and from the neighbours of a ring of all ranks, several on the way.

    region   [ from the previous rank: place 0 | place 1 | … | from the next rank: place 0 | … ]
    place    [ bytes of the tensor, 8 | to 64 | the tensor, to a multiple of 64 ]

A place is written again when its reader has told that it has taken what was there.
"""

from typing import Final

import torch
from torch import Tensor

from ...kernels.errors import BadCall, refuse
from ...kernels.quantize import align
from ..transport.interface import Transport

DATA_SLOT: Final = 6
TAKEN_SLOT: Final = 7
HEAD_BYTES: Final = 64
INFLIGHT_MAX: Final = 16
"""Where signals are messages: they have room for 32."""


def place_bytes(tensor_bytes: int) -> int:
    """Of a tensor on its way."""
    return HEAD_BYTES + align(tensor_bytes, HEAD_BYTES)


class Ring:
    """Of one buffer, through the first `num_bytes` of each region."""

    def __init__(self, transport: Transport, num_bytes: int) -> None:
        self._transport, self._room = transport, num_bytes
        self._tensor_bytes = self._inflight = 0
        self._sent: dict[int, int] = {}
        self._taken: dict[int, int] = {}

    @property
    def previous(self) -> int:
        """Rank before this one."""
        return (self._transport.rank - 1) % self._transport.size

    @property
    def next(self) -> int:
        """Rank after this one."""
        return (self._transport.rank + 1) % self._transport.size

    def configure(self, tensor_bytes: int, inflight: int) -> None:
        """Limits; all that was sent has been received."""
        if tensor_bytes < 1 or inflight < 1:
            refuse(
                "num_max_tensor_bytes, num_max_inflight_tensors",
                (tensor_bytes, inflight),
                "they must be positive",
            )
        if inflight > INFLIGHT_MAX and not self._transport.all_mapped:
            refuse("num_max_inflight_tensors", inflight, f"{self._transport} takes at most {INFLIGHT_MAX}")
        needed = 2 * inflight * place_bytes(tensor_bytes)
        if needed > self._room:
            refuse("num_max_tensor_bytes, num_max_inflight_tensors", (tensor_bytes, inflight),
                   f"they need {needed} bytes, and the buffer has {self._room}")  # fmt: skip
        self._tensor_bytes, self._inflight = tensor_bytes, inflight

    def send(self, t: Tensor, peer: int) -> None:
        """Waits for room, not for the receiver."""
        size = self._check(t, peer, "dst_rank_idx")
        number = self._sent.get(peer, 0)
        if number >= self._inflight:
            self._transport.wait(
                peer, TAKEN_SLOT, number - self._inflight + 1, what="pp_send: waiting for room"
            )
        self._sent[peer] = number + 1
        # This rank is the next one of its previous one.
        start = self._start(number, from_previous=peer == self.next)
        home = self._transport.buffer(peer)
        head = torch.tensor([size], dtype=torch.int64).view(torch.uint8)
        home[start : start + 8].copy_(head)
        home[start + HEAD_BYTES : start + HEAD_BYTES + size].copy_(t.reshape(-1).view(torch.uint8))
        self._transport.signal(peer, DATA_SLOT, number + 1, spans=[(start, HEAD_BYTES + size)])

    def receive(self, t: Tensor, peer: int) -> None:
        """Into `t`."""
        size = self._check(t, peer, "src_rank_idx")
        number = self._taken.get(peer, 0)
        self._transport.wait(peer, DATA_SLOT, number + 1, what="pp_recv: waiting for a tensor")
        start = self._start(number, from_previous=peer == self.previous)
        home = self._transport.buffer(self._transport.rank)
        came = int(home[start : start + 8].view(torch.int64))
        if came != size:
            refuse("t", f"of {size} bytes", f"rank {peer} has sent {came}")
        t.view(-1).view(torch.uint8).copy_(home[start + HEAD_BYTES : start + HEAD_BYTES + size])
        self._taken[peer] = number + 1
        self._transport.signal(peer, TAKEN_SLOT, number + 1)

    def _check(self, t: Tensor, peer: int, name: str) -> int:
        if not self._inflight:
            raise BadCall("call pp_set_config first")
        if peer not in {self.previous, self.next} - {self._transport.rank}:
            refuse(
                name, peer, f"neighbours of rank {self._transport.rank} are {self.previous} and {self.next}"
            )
        size = t.numel() * t.element_size()
        if not t.is_contiguous() or not 0 < size <= self._tensor_bytes:
            refuse("t", f"of {size} bytes and strides {t.stride()}",
                   f"it must be contiguous and of 1 to {self._tensor_bytes} bytes")  # fmt: skip
        return size

    def _start(self, number: int, *, from_previous: bool) -> int:
        # Two ranks are each other's previous and next one: there all goes by the first half.
        half = 0 if from_previous or self.previous == self.next else self._inflight
        return (half + number % self._inflight) * place_bytes(self._tensor_bytes)


__all__ = ["Ring", "place_bytes"]
