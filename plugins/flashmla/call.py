"""Calls whose arguments have been checked: what `reference`, `launch` and the fast paths are given."""

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from .schedule import BLOCK_TOKENS, FlashMLASchedMeta, part_count

LATENT: Final = 512  # numbers of V
_LOG2E: Final = math.log2(math.e)

Results = tuple[Tensor, Tensor, Tensor, Tensor]  # output, log-sum-exp, and those of the pieces of sequences


class _Scaled:
    """A call whose logits are multiplied with `scale`; kernels keep them in base 2."""

    scale: float

    @property
    def scale_log2(self) -> float:
        return self.scale * _LOG2E


@dataclass(frozen=True)
class Scope:
    """A cache (pages, P, 1, bytes) of FP8 rows, and which of its tokens count.

    Shapes: names (b, s_q, topk) int32 slots, or (b, pages of a sequence) a block table; length (b) int32 or None: so
    many names, or tokens of the table, count.
    """

    cache: Tensor
    names: Tensor
    length: Tensor | None

    def counted(self) -> Tensor:
        """Return how many names of each sequence count, (b) int32."""
        b, _, most = self.names.shape
        if self.length is None:
            return torch.full((b,), most, dtype=torch.int32, device=self.names.device)
        return self.length.clamp(0, most)


@dataclass(frozen=True)
class DenseDecode(_Scaled):
    """Shapes: q (b, s_q, h_q, 576); cache (pages, P, h_kv, 576), or of 656 bytes; table (b, pages); lengths (b).

    Result: (b, s_q, h_q, 512) and (b, h_q, s_q).
    """

    q: Tensor
    cache: Tensor
    table: Tensor
    lengths: Tensor
    schedule: FlashMLASchedMeta
    scale: float
    causal: bool

    @property
    def group(self) -> int:
        """Query heads of a KV head."""
        return self.q.shape[2] // self.cache.shape[2]

    @property
    def rows(self) -> int:
        """Query rows that share the tokens of a KV head."""
        return self.q.shape[1] * self.group

    def parts(self, multiprocessors: int) -> int:
        """Return into how many parts the schedule deals the work."""
        return part_count(multiprocessors, kv_heads=self.cache.shape[2], rows=self.rows)


@dataclass(frozen=True)
class SparseDecode(_Scaled):
    """Shapes: q (b, s_q, h, 576 or 512); one or two scopes; sink (h) float32 or None. Result as `DenseDecode`."""

    q: Tensor
    scopes: tuple[Scope, ...]
    schedule: FlashMLASchedMeta
    scale: float
    sink: Tensor | None

    @property
    def lengths(self) -> Tensor:
        """Tokens of each sequence, the first scope's rounded up to whole blocks if there is a second."""
        total, *more = (each.counted() for each in self.scopes)
        for count in more:
            blocks = torch.div(total + (BLOCK_TOKENS - 1), BLOCK_TOKENS, rounding_mode="floor")
            total = (blocks * BLOCK_TOKENS + count).to(torch.int32)
        return total

    def parts(self, multiprocessors: int) -> int:
        """Return into how many parts the schedule deals the work."""
        _, s_q, h_q, _ = self.q.shape
        return part_count(multiprocessors // max(s_q, 1), kv_heads=1, rows=h_q)


@dataclass(frozen=True)
class SparsePrefill(_Scaled):
    """Shapes: q (s_q, h, d); kv (s_kv, 1, d); indices (s_q, 1, topk); length (s_q) and sink (h), or None.

    Result: (s_q, h, 512), largest logit and log-sum-exp (s_q, h).
    """

    q: Tensor
    kv: Tensor
    indices: Tensor
    length: Tensor | None
    scale: float
    sink: Tensor | None


@dataclass(frozen=True)
class Varlen(_Scaled):
    """Sequences laid end to end. Shapes: q (total_q, h, d); k (total, h_kv, d); v (total, h_kv, 128); starts (n + 1).

    `longest`: the most queries and tokens of a sequence. Result: (total_q, h, 128) and (total_q, h), the second stored
    head by head.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    starts_q: Tensor
    starts_kv: Tensor
    longest: tuple[int, int]
    scale: float
    causal: bool


def or_none(tensor: Tensor | None, none: Tensor) -> Tensor:
    """Return the tensor, or one that stands for a pointer which a kernel does not follow."""
    return none if tensor is None else tensor


__all__ = ["LATENT", "DenseDecode", "Results", "Scope", "SparseDecode", "SparsePrefill", "Varlen", "or_none"]
