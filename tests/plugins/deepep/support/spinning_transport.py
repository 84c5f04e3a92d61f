"""The transport of GPUs over NVLink, between processes on CPUs: kernels in Triton's interpreter raise flags and wait.

All but the memory is the real one. A wait is a loop of the interpreter, which burns a core until the peer comes.
"""

from typing import Any, ClassVar

import torch

from luciola.plugins.deepep import Buffer
from luciola.plugins.deepep.transport.device import DeviceTransport, head_bytes
from luciola.plugins.deepep.transport.interface import Link
from luciola.plugins.deepep.transport.shared_memory import SharedMemory


class Spinning(DeviceTransport):
    """Regions that processes share."""

    name: ClassVar[str] = "spinning"
    looks: ClassVar[int] = 1_000_000

    @classmethod
    def open(cls, ranks: Any, num_bytes: int, *, device: torch.device, timeout_s: float) -> "Spinning":
        """All ranks together."""
        host = SharedMemory.open(
            ranks, head_bytes(ranks.size) + num_bytes, device=device, timeout_s=timeout_s
        )
        regions = [host.buffer(rank) for rank in range(ranks.size)]
        made = cls(ranks, regions, num_bytes=num_bytes, timeout_s=timeout_s)
        made.host = host
        return made

    def close(self) -> None:
        """As Transport.close."""
        super().close()
        self.host.close()


class SpinningBuffer(Buffer):
    """A buffer over it."""

    def _open(self, ranks: Any, num_bytes: int, **options: Any) -> Link:
        return Spinning.open(ranks, num_bytes, device=options["device"], timeout_s=options["timeout_s"])


__all__ = ["Spinning", "SpinningBuffer"]
