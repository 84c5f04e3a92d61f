"""The Einstein sums of attention with absorbed projections, and of their gradients.

bmk,bnk->mn     one product, summed over batch and k
bhr,hdr->bhd    a product for each head h, as are the next two
bhd,hdr->bhr
bhd,bhr->hdr    its weight gradient
"""

from typing import Final

import torch
from torch import Tensor

from ...kernels.errors import BadArgument, refuse
from ...kernels.layers import layer_for
from ...kernels.quantize import BLOCK, FP8, ceil_div
from .. import checks
from ..gemm.call import Scales
from ..gemm.dense import RECIPE_BLOCKS
from ..scales import check_scales
from . import reference

FP8_EXPRESSION: Final = "bhr,hdr->bhd"


def einsum(  # noqa: PLR0913 (the original's)
    expr: str,
    a: Tensor,
    b: Tensor,
    d: Tensor,
    c: Tensor | None = None,
    use_cublaslt: bool = False,  # noqa: FBT001, FBT002
) -> None:
    """D = C + the sum that `expr` names, of bfloat16 operands.

    Shapes: by the letters of `expr`. d and c: bfloat16 or float32 for "bmk,bnk->mn", where c goes with float32 and
    has d's memory; bfloat16 without c for the two products of heads; float32 for "bhd,bhr->hdr".
    Limits: the last dimensions are contiguous, other strides multiples of 16 bytes. `use_cublaslt`: torch's product.
    Raises: BadArgument (ValueError, RuntimeError) and BadType (TypeError, RuntimeError).
    Source: DeepGEMM `einsum` on SM90.
    """
    if expr not in _OUTPUTS:
        refuse("expr", repr(expr), f"it must be one of {', '.join(_OUTPUTS)}")
    for name, each in (("a", a), ("b", b)):
        checks.check_operand(each, name=name, dtype=torch.bfloat16, dims=3, packed=False)
    sizes = _sizes(expr, a, b)
    checks.check_output(d, [sizes[letter] for letter in expr.partition("->")[2]], dtypes=_OUTPUTS[expr])
    if c is not None:
        if d.dtype != torch.float32:
            raise BadArgument(f"{expr} accumulates in float32 alone, and d is {d.dtype}: leave c out")
        checks.check_added(c, d)
    checks.check_same_device(a, b, d)
    if d.numel() == 0:
        return
    if a.numel() == 0:
        d.copy_(torch.zeros_like(d) if c is None else c)
        return
    if use_cublaslt or layer_for(d) == "reference":
        total = reference.einsum(expr, a, b)
        d.copy_(total if c is None else total + c)
        return
    _run(expr, a, b, d, c)


def fp8_einsum(  # noqa: PLR0913 (the original's)
    expr: str,
    a: tuple[Tensor, Tensor],
    b: tuple[Tensor, Tensor],
    d: Tensor,
    c: Tensor | None = None,
    recipe: tuple[int, int, int] = RECIPE_BLOCKS,
) -> None:
    """D = the sum "bhr,hdr->bhd" of FP8 operands, the one that SM90's FP8 instruction can do.

    Shapes: a (b, h, r) e4m3 and (b, h, ceil(r/128)) float32; b (h, d, r) e4m3 and (h, ceil(d/128), ceil(r/128))
    float32; d (b, h, d) bfloat16.
    Raises: as `einsum`.
    """
    if expr != FP8_EXPRESSION:
        refuse(
            "expr", repr(expr), f"SM90 takes FP8 operands contiguous along what is summed: {FP8_EXPRESSION}"
        )
    (a_values, sfa), (b_values, sfb) = checks.unpack(a, "a"), checks.unpack(b, "b")
    if tuple(recipe) != RECIPE_BLOCKS:
        refuse("recipe", recipe, f"it must be {RECIPE_BLOCKS}")
    if c is not None:
        raise BadArgument("FP8 sums do not accumulate on SM90: leave c out")
    for name, each in (("a[0]", a_values), ("b[0]", b_values)):
        checks.check_operand(each, name=name, dtype=FP8, dims=3, packed=False)
    sizes = _sizes(expr, a_values, b_values)
    rows, heads, columns = sizes["b"], sizes["h"], sizes["d"]
    blocks = ceil_div(sizes["r"], BLOCK)
    check_scales(sfa, (heads, blocks), num_groups=rows, name="a[1]")
    check_scales(sfb, (ceil_div(columns, BLOCK), blocks), num_groups=heads, name="b[1]")
    checks.check_output(d, (rows, heads, columns), dtypes=[torch.bfloat16])
    checks.check_same_device(a_values, sfa, b_values, sfb, d)
    if d.numel() == 0:
        return
    if blocks == 0:
        d.zero_()
        return
    if layer_for(d) == "reference":
        d.copy_(reference.fp8_einsum(expr, a_values, sfa, b_values, sfb))
        return
    from . import kernel

    by_heads = [each.transpose(0, 1) for each in (a_values, sfa, d)]
    kernel.batched_gemm(by_heads[0], b_values, by_heads[2], scales=Scales(by_heads[1], sfb))


def _run(expr: str, a: Tensor, b: Tensor, d: Tensor, c: Tensor | None) -> None:
    """The kernel of that sum."""
    from . import kernel

    if expr == "bmk,bnk->mn":
        total = kernel.summed_gemm(a, b)
        d.copy_(total if c is None else total + c)
        return
    left = a.transpose(0, 1)
    if expr == "bhd,bhr->hdr":
        if c is not None and c is not d:
            d.copy_(c)
        right = b.transpose(0, 1)
        kernel.batched_gemm(left, right, d, a_transposed=True, b_transposed=True, accumulate=c is not None)
    else:
        kernel.batched_gemm(left, b, d.transpose(0, 1), b_transposed=expr == "bhd,hdr->bhr")


_OUTPUTS: Final = {
    "bmk,bnk->mn": (torch.bfloat16, torch.float32),
    "bhr,hdr->bhd": (torch.bfloat16,),
    "bhd,hdr->bhr": (torch.bfloat16,),
    "bhd,bhr->hdr": (torch.float32,),
}


def _sizes(expr: str, a: Tensor, b: Tensor) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for letters, tensor in zip(expr.partition("->")[0].split(","), (a, b), strict=True):
        for letter, size in zip(letters, tensor.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise BadArgument(
                    f'"{letter}" of {expr} is {sizes[letter]} in a and {size} in b; they must be equal'
                )
    return sizes


__all__ = ["FP8_EXPRESSION", "einsum", "fp8_einsum"]
