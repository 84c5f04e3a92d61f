"""What a rank computes with the tokens it has got: grouped products of DeepGEMM over the rows of its experts.

Rows are permuted so that those of an expert follow each other, each expert beginning at a multiple of DeepGEMM's
alignment: the contiguous layout. Rows between are padding, of group -1.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function

from luciola.plugins.deepgemm import (
    get_mk_alignment_for_contiguous_layout,
    k_grouped_bf16_gemm_tn_contiguous,
    m_grouped_bf16_gemm_nn_contiguous,
    m_grouped_bf16_gemm_nt_contiguous,
    m_grouped_fp8_gemm_nt_contiguous,
    per_block_cast_to_fp8,
    quantize_activations,
)
from luciola.plugins.kernels.errors import refuse

Precision = Literal["bf16", "fp8"]
PRECISIONS: Final = ("bf16", "fp8")
Operand: TypeAlias = Tensor | tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Grouped:
    """Where the rows of a rank's experts are.

    row_of (rows,): the received row of each permuted one, or N, which stands for a row of zeros. place (N, K): its
    inverse, or `rows`, which stands for nothing. layout (rows,) int32: the group of each row. sizes: the aligned rows
    of each group.
    """

    row_of: Tensor
    place: Tensor
    layout: Tensor
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, local_idx: Tensor, counts: Tensor) -> "Grouped":
        """From the local expert of each (row, k), -1 for others', and the rows of each expert, on the host."""
        alignment = get_mk_alignment_for_contiguous_layout()
        device, (received, topk) = local_idx.device, local_idx.shape
        sizes = (counts + alignment - 1) // alignment * alignment
        starts = (sizes.cumsum(0) - sizes).to(device)
        rows = int(sizes.sum())
        flat = local_idx.reshape(-1)
        entries = (flat >= 0).nonzero().view(-1)
        entries = entries[flat[entries].argsort(stable=True)]
        expert = flat[entries]
        firsts = (counts.cumsum(0) - counts).to(device)
        at = starts[expert] + torch.arange(len(entries), device=device) - firsts[expert]
        row_of = torch.full((rows,), received, dtype=torch.int64, device=device)
        row_of[at] = entries // topk
        layout = torch.full((rows,), -1, dtype=torch.int32, device=device)
        layout[at] = expert.to(torch.int32)
        place = torch.full((received * topk,), rows, dtype=torch.int64, device=device)
        place[entries] = at
        return cls(row_of, place.view(received, topk), layout, tuple(sizes.tolist()))

    def gather(self, rows: Tensor) -> Tensor:
        """Received rows (N, H) in the order of experts, zeros between."""
        return torch.cat([rows, rows.new_zeros(1, rows.shape[1])])[self.row_of]

    def reduce(self, results: Tensor, weights: Tensor) -> Tensor:
        """For each received row the sum of its experts' results (rows, H) times weights (N, K), in float32."""
        padded = torch.cat([results, results.new_zeros(1, results.shape[1])])
        total = torch.zeros(self.place.shape[0], results.shape[1], device=results.device)
        for k in range(self.place.shape[1]):
            total = total + padded[self.place[:, k]].float() * weights[:, k, None]
        return total.to(results.dtype)


def as_operand(weight: Tensor, precision: Precision) -> Operand:
    """A weight (groups, n, k) as products take it."""
    low = weight.detach().to(torch.bfloat16)
    return low if precision == "bf16" else fp8_operand(low)


def fp8_operand(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight (groups, n, k) as e4m3 and float32 scales of 128 × 128."""
    parts = [per_block_cast_to_fp8(each, use_ue8m0=False) for each in weight]
    return torch.stack([values for values, _ in parts]), torch.stack([scales for _, scales in parts])


class GroupedLinear(Function):
    """Rows of each group times its weight, transposed: gradients are products of DeepGEMM too, always of BF16."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, grouped: Grouped, precision: Precision) -> Tensor:
        """Shapes: rows (m, k) bfloat16, weight (groups, n, k) of any float type; result (m, n) bfloat16."""
        low = weight.to(torch.bfloat16)
        ctx.save_for_backward(rows, low)
        ctx.grouped, ctx.weight_dtype = grouped, weight.dtype
        result = rows.new_zeros(rows.shape[0], weight.shape[1])
        if precision == "fp8":
            m_grouped_fp8_gemm_nt_contiguous(
                quantize_activations(rows), fp8_operand(low), result, grouped.layout
            )
        else:
            m_grouped_bf16_gemm_nt_contiguous(rows, low, result, grouped.layout)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of rows and weight."""
        rows, low = ctx.saved_tensors
        grouped: Grouped = ctx.grouped
        grad = grads[0].to(torch.bfloat16).contiguous()
        row_grad = weight_grad = None
        if ctx.needs_input_grad[0]:
            row_grad = torch.zeros_like(rows)
            m_grouped_bf16_gemm_nn_contiguous(grad, low, row_grad, grouped.layout)
        if ctx.needs_input_grad[1]:
            weight_grad = torch.zeros(low.shape, dtype=torch.float32, device=low.device)
            sizes = torch.tensor(grouped.sizes, dtype=torch.int32, device=low.device)
            if rows.shape[0]:
                k_grouped_bf16_gemm_tn_contiguous(
                    grad, rows, weight_grad, grouped.sizes, sizes, c=weight_grad
                )
            weight_grad = weight_grad.to(ctx.weight_dtype)
        return row_grad, weight_grad, None, None


def grouped_linear(
    rows: Tensor, weight: Tensor, grouped: Grouped, *, precision: Precision = "bf16"
) -> Tensor:
    """`GroupedLinear`, checked."""
    if precision not in PRECISIONS:
        refuse("precision", repr(precision), f"it must be one of {', '.join(PRECISIONS)}")
    result: Tensor = GroupedLinear.apply(rows, weight, grouped, precision)
    return result


__all__ = [
    "PRECISIONS",
    "Grouped",
    "GroupedLinear",
    "Operand",
    "Precision",
    "as_operand",
    "fp8_operand",
    "grouped_linear",
]
