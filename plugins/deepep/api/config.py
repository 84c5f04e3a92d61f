"""`Config`: the original's tuning knobs of normal mode, and how much memory a buffer needs.

`num_sms` is how many programs move data. Chunk sizes of the original's queues change the hints of `get_*_size_hint` and
nothing else.
"""

from dataclasses import dataclass
from typing import Final

from ...kernels.errors import refuse
from ...kernels.quantize import align

NODE_RANKS: Final = 8
"""Ranks that share NVLink, in the original's size hints."""
TOKEN_BYTES: Final = 1024
"""Beside its row: scales, indices and weights of up to 32 experts."""


@dataclass(frozen=True)
class Config:
    """How a call in normal mode moves data."""

    num_sms: int = 20
    num_max_nvl_chunked_send_tokens: int = 6
    num_max_nvl_chunked_recv_tokens: int = 256
    num_max_rdma_chunked_send_tokens: int = 6
    num_max_rdma_chunked_recv_tokens: int = 256

    def __post_init__(self) -> None:
        if self.num_sms < 0 or self.num_sms % 2:
            refuse("num_sms", self.num_sms, "it must be even: one half sends and one receives")
        for kind in ("nvl", "rdma"):
            send = getattr(self, f"num_max_{kind}_chunked_send_tokens")
            receive = getattr(self, f"num_max_{kind}_chunked_recv_tokens")
            if not 0 < send < receive:
                refuse(f"num_max_{kind}_chunked_send_tokens", send, f"it must be 1 to {receive - 1}")

    def get_nvl_buffer_size_hint(self, hidden_bytes: int, num_ranks: int) -> int:
        """Bytes for `num_nvl_bytes`: the original's worst case of its queues, which is more than is needed here."""
        _check_ranks(num_ranks)
        ranks = min(num_ranks, NODE_RANKS)
        tokens = self._channels * ranks * self.num_max_nvl_chunked_recv_tokens
        return align(tokens * (hidden_bytes + TOKEN_BYTES), 128)

    def get_rdma_buffer_size_hint(self, hidden_bytes: int, num_ranks: int) -> int:
        """Bytes for `num_rdma_bytes`: nothing for the ranks of one node."""
        _check_ranks(num_ranks)
        if num_ranks <= NODE_RANKS:
            return 0
        nodes = num_ranks // NODE_RANKS
        tokens = 2 * self._channels * nodes * self.num_max_rdma_chunked_recv_tokens
        return align(tokens * (hidden_bytes + TOKEN_BYTES), 128)

    @property
    def _channels(self) -> int:
        return max(self.num_sms // 2, 1)


def _check_ranks(num_ranks: int) -> None:
    if num_ranks <= 0 or (num_ranks > NODE_RANKS and num_ranks % NODE_RANKS):
        refuse("num_ranks", num_ranks, f"it must be 1 to {NODE_RANKS}, or a multiple of {NODE_RANKS}")


__all__ = ["Config"]
