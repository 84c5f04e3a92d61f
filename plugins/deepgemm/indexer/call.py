"""Calls of the indexer whose arguments have been checked, and the layer that runs them."""

from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from ...kernels.layers import layer_for

PAGE_TOKENS: Final = 64
PIECE_TOKENS: Final = 256  # what the paged schedule deals out


@dataclass(frozen=True)
class Logits:
    """Logits of queries against the tokens of one sequence.

    Shapes: q (s, heads, d), kv (tokens, d) e4m3; sf (tokens,), weights (s, heads) float32; starts, ends (s,) int32;
    logits (s, tokens), or (s, most) if `compressed`: column j - start. `clean`: -inf where nothing is visible.
    """

    q: Tensor
    kv: Tensor
    sf: Tensor
    weights: Tensor
    starts: Tensor
    ends: Tensor
    logits: Tensor
    compressed: bool
    clean: bool


@dataclass(frozen=True)
class PagedLogits:
    """Logits of the newest tokens of many requests against their caches.

    Shapes: q (b, next_n, heads, d) e4m3; cache (blocks, 64, 1, d + 4) uint8: 64 · d values, then 64 float32 scales;
    weights (b · next_n, heads) float32; lengths (b, next_n), table (b, blocks of a request), schedule (programs + 1, 2)
    int32; logits (b · next_n, width).
    """

    q: Tensor
    cache: Tensor
    weights: Tensor
    lengths: Tensor
    table: Tensor
    schedule: Tensor
    logits: Tensor


def run(name: str, device_of: Tensor, *call: Any) -> None:
    """Call the function of that name in the layer for a tensor: the fast path if it has one that takes the call."""
    layer = layer_for(device_of)
    if layer == "reference":
        from . import reference

        getattr(reference, name)(*call)
        return
    from . import kernel

    if layer == "hopper":
        from . import hopper

        if hopper.takes(*call):
            getattr(hopper, name)(*call)
            return
    getattr(kernel, name)(*call)


__all__ = ["PAGE_TOKENS", "PIECE_TOKENS", "Logits", "PagedLogits", "run"]
