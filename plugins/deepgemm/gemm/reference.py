"""The specification of every product in plain torch: float32 arithmetic on unquantised values, any device."""

from typing import Any

import torch
from torch import Tensor

from ...kernels.quantize import BLOCK, dequantize
from .call import DENSE, K_GROUPED, MASKED, PSUM, Call


def run(call: Call) -> None:
    """Fill D."""
    if call.mode == K_GROUPED:
        assert call.c is not None
        if call.c is not call.d:
            call.d.copy_(call.c)
        add_k_grouped(call)
    elif call.mode == DENSE:
        total = _product(call)
        d = call.d
        if call.heads is None:
            d.copy_(total + d.float() if call.accumulate else total)
        else:
            left, mid, right = call.heads
            columns = torch.arange(call.n, device=d.device)
            d[:, columns + (columns + right) // (left + right) * mid] = total.to(d.dtype)
    elif call.mode == MASKED:
        assert call.layout is not None
        for group, rows in enumerate(call.layout.tolist()):
            call.d[group, :rows] = _product(call, group, (group, slice(rows))).to(call.d.dtype)
    else:
        _contiguous(call)


def _contiguous(call: Call) -> None:
    """Each row of A times the B of its group; rows of group -1 become zeros, with ends of groups they stay."""
    assert call.layout is not None
    psum = call.mode == PSUM
    groups = group_of_rows(call.layout, len(call.a), psum=psum, alignment=call.alignment)
    if not psum:
        call.d[groups < 0] = 0
    for group in range(call.groups):
        rows = (groups == group).nonzero().squeeze(1)
        call.d[rows] = _product(call, group, rows).to(call.d.dtype)


def _product(call: Call, group: int | None = None, rows: Any = slice(None)) -> Tensor:
    """Float32 product of these rows of A with the B of a group."""
    a = (call.a.T if call.a_transposed else call.a)[rows]
    b = call.b if group is None else call.b[group]
    if call.scales is None:
        return bf16_gemm(a, b.T if call.b_transposed else b)
    sfa, sfb, of_rows = call.scales
    return fp8_gemm(a, sfa[rows], b, sfb if group is None else sfb[group], gran_n=1 if of_rows else BLOCK)


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


def add_k_grouped(call: Call) -> None:
    """D[g] += A_g · B_gᵀ, where group g owns ks[g] of the summed dimension."""
    _, m, n = call.d.shape
    start = 0
    for group, k in enumerate(call.ks):
        end = start + k
        if call.scales is None:
            call.d[group] += bf16_gemm(call.a[start:end].T, call.b[start:end].T)
        else:
            left, right = call.a[start * m : end * m].view(m, k), call.b[start * n : end * n].view(n, k)
            sfa, sfb = (each[:, start // BLOCK : end // BLOCK] for each in call.scales[:2])
            call.d[group] += fp8_gemm(left, sfa, right, sfb, gran_n=1)
        start = end


__all__ = ["bf16_gemm", "fp8_gemm", "group_of_rows", "run"]
