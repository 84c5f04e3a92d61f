"""The specification of every operator in plain torch: float32 arithmetic on unquantised values, any device.

Operands are always A (m, k) and B (n, k), "NT"; the callers have transposed the others and checked everything.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .quantize import BLOCK, dequantize


def fp8_gemm(a: Tensor, sfa: Tensor, b: Tensor, sfb: Tensor, *, gran_n: int) -> Tensor:
    """Float32 A · Bᵀ of FP8 operands: one scale for 128 neighbours of a row of A, and for `gran_n` such rows of B.

    Shapes: a (m, k), sfa (m, ceil(k/128)), b (n, k), sfb (ceil(n/gran_n), ceil(k/128)); result (m, n).
    """
    return dequantize(a, sfa) @ dequantize(b, sfb, gran_m=gran_n).T


def bf16_gemm(a: Tensor, b: Tensor) -> Tensor:
    """Float32 A · Bᵀ. Shapes: a (m, k), b (n, k); result (m, n)."""
    return a.float() @ b.float().T


def group_of_rows(layout: Tensor, rows: int, *, psum: bool, alignment: int) -> Tensor:
    """The group of each row of a contiguous layout, -1 for rows of none.

    Shapes: layout (rows,) int32, the answer itself, or with `psum` (groups,) int32: the end of each group's real rows,
    whose start is the end of the group before it, aligned. Result (rows,) int64.
    """
    if not psum:
        return layout.long()
    groups = torch.full((rows,), -1, dtype=torch.long, device=layout.device)
    start = 0
    for group, end in enumerate(layout.tolist()):
        groups[start:end] = group
        start = -(-end // alignment) * alignment
    return groups


def fp8_grouped(a: Tensor, sfa: Tensor, b: Tensor, sfb: Tensor, groups: Tensor) -> Tensor:
    """Each row of A times the B of its group; rows of group -1 give zeros, whatever they hold.

    Shapes: a (m, k), sfa (m, ceil(k/128)), b (groups, n, k), sfb (groups, ceil(n/128), ceil(k/128)), groups (m,);
    result (m, n) float32.
    """
    result = torch.zeros((a.shape[0], b.shape[1]), dtype=torch.float32, device=a.device)
    for group in range(b.shape[0]):
        rows = (groups == group).nonzero().squeeze(1)
        if len(rows):
            result[rows] = fp8_gemm(a[rows], sfa[rows], b[group], sfb[group], gran_n=BLOCK)
    return result


def bf16_grouped(a: Tensor, b: Tensor, groups: Tensor) -> Tensor:
    """As `fp8_grouped`. Shapes: a (m, k), b (groups, n, k), groups (m,); result (m, n) float32."""
    result = torch.zeros((a.shape[0], b.shape[1]), dtype=torch.float32, device=a.device)
    for group in range(b.shape[0]):
        rows = (groups == group).nonzero().squeeze(1)
        if len(rows):
            result[rows] = bf16_gemm(a[rows], b[group])
    return result


def add_fp8_k_grouped(  # noqa: PLR0913 (a product's operands)
    a: Tensor, sfa: Tensor, b: Tensor, sfb: Tensor, d: Tensor, ks: Sequence[int]
) -> None:
    """D[g] += A_g · B_gᵀ, where group g owns ks[g] of the summed dimension.

    Shapes: a and b flat: blocks (m, k_g) and (n, k_g) one after the other; sfa (m, sum k / 128), sfb (n, sum k / 128);
    d (groups, m, n) float32.
    """
    _, m, n = d.shape
    start = 0
    for group, k in enumerate(ks):
        blocks = slice(start // BLOCK, (start + k) // BLOCK)
        left = a.view(-1)[start * m : (start + k) * m].view(m, k)
        right = b.view(-1)[start * n : (start + k) * n].view(n, k)
        d[group] += fp8_gemm(left, sfa[:, blocks], right, sfb[:, blocks], gran_n=1)
        start += k


def add_bf16_k_grouped(a: Tensor, b: Tensor, d: Tensor, ks: Sequence[int]) -> None:
    """As `add_fp8_k_grouped`. Shapes: a (sum k, m), b (sum k, n); d (groups, m, n) float32."""
    for group, (left, right) in enumerate(
        zip(torch.split(a, list(ks)), torch.split(b, list(ks)), strict=True)
    ):
        d[group] += bf16_gemm(left.T, right.T)


def prenorm_gemm(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 A · Bᵀ, and the sum of squares of each row of A. Shapes: a (m, k), b (n, k); results (m, n) and (m,)."""
    return a.float() @ b.T, a.float().square().sum(1)


def mqa_logits(q: Tensor, kv: Tensor, sf: Tensor, weights: Tensor) -> Tensor:
    """Sum over heads of relu(q · kv) · weight, times the token's scale, for all pairs of query and token.

    Shapes: q (s, heads, d) e4m3, kv (tokens, d) e4m3, sf (tokens,) float32, weights (s, heads) float32;
    result (s, tokens) float32.
    """
    scores = torch.einsum("shd,td->sht", q.float(), kv.float()).relu_()
    return torch.einsum("sht,sh->st", scores, weights.float()) * sf


def unpack_paged(cache: Tensor) -> tuple[Tensor, Tensor]:
    """Values and scales of a paged indexer cache: each block holds all its values first, then all its scales.

    Shapes: cache (blocks, block, 1, d + 4) uint8; results (blocks, block, d) e4m3 and (blocks, block) float32.
    """
    blocks, block, _, width = cache.shape
    flat = cache.reshape(blocks, block * width)
    split = block * (width - 4)
    values = flat[:, :split].view(torch.float8_e4m3fn).view(blocks, block, width - 4)
    return values, flat[:, split:].contiguous().view(torch.float32)


__all__ = [
    "add_bf16_k_grouped",
    "add_fp8_k_grouped",
    "bf16_gemm",
    "bf16_grouped",
    "fp8_gemm",
    "fp8_grouped",
    "group_of_rows",
    "mqa_logits",
    "prenorm_gemm",
    "unpack_paged",
]
