"""Regions for ranks whose memory is not reached: what is written for a peer lies here until it travels (T5)."""

import torch
from torch import Tensor

from ..failure import CommunicationError
from .interface import SLOTS, Transport


class Outboxes(Transport):
    """This rank's own region and, for each peer, one of equal size to write into."""

    def __init__(
        self, rank: int, size: int, *, num_bytes: int, device: torch.device, timeout_s: float
    ) -> None:
        super().__init__(rank, size, num_bytes=num_bytes, device=device, timeout_s=timeout_s)
        # On a CPU memory is taken when it is first written, so an outbox costs what is sent from it.
        self._regions = [torch.zeros(num_bytes, dtype=torch.uint8, device=device) for _ in range(size)]
        """Of nobody, once this transport is closed."""
        self._epochs = [[0] * SLOTS for _ in range(size)]
        """That each peer has come to."""
        self._failure: CommunicationError | None = None

    def buffer(self, rank: int) -> Tensor:
        """As Transport.buffer."""
        self._require_usable()
        return self._regions[rank]

    def maps(self, rank: int) -> bool:
        """This rank's own alone."""
        assert 0 <= rank < self.size, "a rank of this transport"
        return rank == self.rank

    def _require_usable(self) -> None:
        if self._failure is not None:
            raise self._failure
        if not self._regions:
            raise ValueError("this buffer is closed")


__all__ = ["Outboxes"]
