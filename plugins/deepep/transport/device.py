"""Regions in the memory of GPUs, and flags that kernels raise and wait for: what IPC and symmetric memory share.

A signal or a wait is a kernel on the current stream; the host waits for nothing. A wait that runs out is recorded where
the host reads it without asking the device, and raised by the next call: a kernel cannot raise. Kernels that follow it
do nothing.
"""

from typing import ClassVar, Final

import torch
from torch import Tensor

from ...kernels.layers import is_interpreting, on_device
from ..failure import CommunicationError, PeerTimeout
from .interface import SLOTS, Transport
from .members import Members

WORD: Final = 8
PAGE: Final = 4096
WARPS: Final = 1


def head_bytes(size: int) -> int:
    """Bytes of flags before the data of a region."""
    return -(-size * SLOTS * WORD // PAGE) * PAGE


class DeviceTransport(Transport):
    """Whole regions, flags first, as this process maps them."""

    looks: ClassVar[int] = 1000
    """That a wait takes in the interpreter, where nobody comes meanwhile."""

    def __init__(self, members: Members, regions: list[Tensor], *, num_bytes: int, timeout_s: float) -> None:
        device = regions[members.rank].device
        super().__init__(members.rank, members.size, num_bytes=num_bytes, device=device, timeout_s=timeout_s)
        head = head_bytes(self.size)
        self._regions = [each[head : head + num_bytes] for each in regions]
        self._flags = [each[: self.size * SLOTS * WORD].view(torch.int64) for each in regions]
        self._flag_table = torch.tensor(
            [each.data_ptr() for each in self._flags], dtype=torch.int64, device=device
        )
        self._sent = torch.zeros(SLOTS, self.size, dtype=torch.int64, device=device)
        self._waited = torch.zeros(SLOTS, self.size, dtype=torch.int64, device=device)
        self._nobody = torch.zeros(self.size, dtype=torch.int32, device=device)
        self._status = torch.zeros(1, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._phases = [f"slot {slot}" for slot in range(SLOTS)]

    @property
    def spins(self) -> bool:
        """Whether kernels wait, and counts are kept on the device."""
        return True

    def buffer(self, rank: int) -> Tensor:
        """As Transport.buffer."""
        self.check()
        return self._regions[rank]

    def signal(self, peer: int, slot: int, epoch: int) -> None:
        """As Transport.signal, on the current stream."""
        self.check()
        self._signal(1, peer, slot, epoch, self._nobody, counted=False)

    def wait(self, peer: int, slot: int, epoch: int, *, what: str, fatal: bool = True) -> None:
        """As Transport.wait, for the current stream: this returns at once, and a later call raises."""
        assert fatal, "a kernel drops a rank through its mask, see wait_all"
        self.check()
        self._phases[slot] = what
        self._wait(1, peer, slot, epoch, self._nobody, counted=False, less=0, drop=False, costs=None)

    def signal_all(self, slot: int, inactive: Tensor) -> None:
        """The next epoch, counted on the device, to every other rank that is not marked in `inactive` (ranks,)."""
        self.check()
        if self.size > 1:
            self._signal(self.size - 1, self.rank + 1, slot, 0, inactive, counted=True)

    def wait_all(  # noqa: PLR0913 (a wait and its variants)
        self, slot: int, inactive: Tensor, *, what: str, less: int, drop: bool, costs: Tensor | None = None
    ) -> None:
        """For the next epoch, or `less` before it, of every other rank. `drop`: who does not come is marked."""
        self.check()
        self._phases[slot] = what
        if self.size > 1:
            self._wait(
                self.size - 1, self.rank + 1, slot, 0, inactive,
                counted=True, less=less, drop=drop, costs=costs,
            )  # fmt: skip

    def check(self) -> None:
        """Raises what a kernel has recorded: PeerTimeout. Does not wait for the device."""
        if self._is_closed:
            raise ValueError("this buffer is closed")
        recorded = int(self._status[0])
        if self._failure is None and recorded:
            slot, peer = divmod(recorded - 1, self.size)
            text = f"timeout: rank {peer} did not come within {self.timeout_s:g} s"
            self._failure = PeerTimeout(text, rank=self.rank, phase=self._phases[slot], peer=peer)
        if self._failure is not None:
            raise self._failure

    def fail(self, error: CommunicationError) -> None:
        """As Transport.fail. Peers find out by their time-outs: there is nobody who would read a reason."""
        if self._failure is None:
            self._failure = error

    def close(self) -> None:
        """As Transport.close."""
        if not self._is_closed:
            self._is_closed = True
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self._regions.clear()
            self._flags.clear()

    def _signal(  # noqa: PLR0913 (the kernel's own)
        self, count: int, first: int, slot: int, epoch: int, inactive: Tensor, *, counted: bool
    ) -> None:
        from ...kernels.aot import start
        from . import kernel

        with on_device(self._flag_table):
            start(
                kernel.signal_kernel, (count,), self._flag_table, self._sent, inactive, self.stopped, self.rank, first,
                slot, epoch,
                RANKS=self.size, COUNTED=counted, num_warps=WARPS,
            )  # fmt: skip

    def _wait(  # noqa: PLR0913 (the kernel's own)
        self, count: int, first: int, slot: int, epoch: int, inactive: Tensor, *,
        counted: bool, less: int, drop: bool, costs: Tensor | None,
    ) -> None:  # fmt: skip
        from ...kernels.aot import start
        from . import kernel

        limit = self.looks if is_interpreting() else int(self.timeout_s * 1e9)
        with on_device(self._flag_table):
            start(
                kernel.wait_kernel, (count,), self._flag_table, self._waited, inactive, self.stopped,
                self._status.data_ptr(), self._waited if costs is None else costs, self.rank, first, slot, epoch, limit,
                RANKS=self.size, COUNTED=counted, LESS=less, DROP=drop, COSTS=costs is not None,
                CLOCK=not is_interpreting(), num_warps=WARPS,
            )  # fmt: skip


__all__ = ["DeviceTransport", "head_bytes"]
