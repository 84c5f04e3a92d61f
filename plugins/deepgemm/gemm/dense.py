"""Dense products: D = C + A · B.

The two letters of a name say how A and B are stored: "n" as in the formula, "t" transposed. So in "nt" A is (m, k) and
B is (n, k), both contiguous along k. FP8 on SM90 knows only that one.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from ...kernels.errors import BadArgument, BadType, refuse
from ...kernels.quantize import BLOCK, FP8, ceil_div
from .. import checks
from ..scales import check_scales
from ..unsupported import unsupported
from .call import DENSE, Call, Heads, Scales, run

RECIPE_BLOCKS: Final = (1, 128, 128)  # "1D2D": B has a scale for 128 x 128
RECIPE_ROWS: Final = (1, 1, 128)  # "1D1D": B has a scale for 1 x 128; accumulates in float32
_MAJORS: Final = (
    "FP8 on SM90 takes operands contiguous along k: store A as (m, k) and B as (n, k) and call fp8_gemm_nt"
)


def fp8_gemm_nt(  # noqa: PLR0913 (the original's)
    a: tuple[Tensor, Tensor],
    b: tuple[Tensor, Tensor],
    d: Tensor,
    c: Tensor | None = None,
    recipe: tuple[int, int, int] | None = None,
    recipe_a: tuple[int, int] | None = None,
    recipe_b: tuple[int, int] | None = None,
    compiled_dims: str = "nk",
    disable_ue8m0_cast: bool = False,  # noqa: ARG001, FBT001, FBT002 (SM90 takes float32 scales as they are)
) -> None:
    """D = C + A · Bᵀ of FP8 operands.

    Shapes: a (m, k) e4m3 and (m, ceil(k/128)) float32; b (n, k) e4m3 and (ceil(n/128), ceil(k/128)) float32; d (m, n)
    bfloat16. With recipe (1, 1, 128): b's scales (n, ceil(k/128)), d and c float32, c required.
    Limits: n % 8 == 0, rows at multiples of 16 bytes.
    Raises: BadArgument (ValueError, RuntimeError) and BadType (TypeError, RuntimeError).
    Source: DeepGEMM `fp8_gemm_nt` on SM90.
    """
    of_rows = choose_recipe(recipe, recipe_a, recipe_b) == RECIPE_ROWS
    m, n, scales = _check_fp8(a, b, gran_n=1 if of_rows else BLOCK)
    if of_rows:
        if c is None:
            raise BadArgument("recipe (1, 1, 128) accumulates: give c (float32)")
        checks.check_output(d, (m, n), dtypes=[torch.float32])
    else:
        if c is not None:
            raise BadArgument(
                "recipe (1, 128, 128) does not accumulate: leave c out, or use recipe (1, 1, 128)"
            )
        checks.check_output(d, (m, n), dtypes=[torch.bfloat16])
    checks.check_compiled_dims(compiled_dims)
    checks.check_same_device(a[0], *scales[:2], b[0], d)
    _run(Call(DENSE, a[0], b[0], d, scales, rows=m), c)


def fp8_gemm_nt_skip_head_mid(  # noqa: PLR0913 (the original's)
    a: tuple[Tensor, Tensor],
    b: tuple[Tensor, Tensor],
    d: Tensor,
    head_splits: tuple[int, int, int],
    recipe: tuple[int, int, int] | None = None,
    compiled_dims: str = "nk",
    disable_ue8m0_cast: bool = False,  # noqa: ARG001, FBT001, FBT002
) -> None:
    """As `fp8_gemm_nt`, but every left + right columns make a head of D with a hole of `mid` between them.

    Shapes: d (m, n + n / (left + right) · mid) for head_splits (left, mid, right); the holes are left as they are.
    """
    if choose_recipe(recipe, None, None) != RECIPE_BLOCKS:
        refuse("recipe", recipe, f"it must be {RECIPE_BLOCKS}")
    m, n, scales = _check_fp8(a, b, gran_n=BLOCK)
    heads = Heads(*head_splits)
    if min(heads) < 0 or heads.left + heads.right == 0 or n % (heads.left + heads.right):
        refuse("head_splits", head_splits, f"left + right must divide n = {n}")
    columns = n + n // (heads.left + heads.right) * heads.mid
    checks.check_output(d, (m, columns), dtypes=[torch.bfloat16])
    checks.check_compiled_dims(compiled_dims)
    checks.check_same_device(a[0], *scales[:2], b[0], d)
    if d.numel():
        run(Call(DENSE, a[0], b[0], d, scales, rows=m, heads=heads))


def wgrad_gemm_fp8_fp8_fp32_nt(lhs: tuple[Tensor, Tensor], rhs: tuple[Tensor, Tensor], out: Tensor) -> None:
    """D += A · Bᵀ, by its older name: `fp8_gemm_nt` with recipe (1, 1, 128), added to `out` (float32)."""
    fp8_gemm_nt(lhs, rhs, out, out, recipe=RECIPE_ROWS)


fp8_gemm_nn = unsupported("fp8_gemm_nn", _MAJORS)
fp8_gemm_tn = unsupported("fp8_gemm_tn", _MAJORS)
fp8_gemm_tt = unsupported("fp8_gemm_tt", _MAJORS)


def bf16_gemm_nt(a: Tensor, b: Tensor, d: Tensor, c: Tensor | None = None, compiled_dims: str = "nk") -> None:
    """D = C + A · Bᵀ. Shapes: a (m, k), b (n, k) bfloat16; d (m, n) bfloat16 or float32, c like d."""
    _bf16(a, b, d, c, compiled_dims, "nt")


def bf16_gemm_nn(a: Tensor, b: Tensor, d: Tensor, c: Tensor | None = None, compiled_dims: str = "nk") -> None:
    """D = C + A · B. Shapes: a (m, k), b (k, n) bfloat16; d (m, n) bfloat16 or float32, c like d."""
    _bf16(a, b, d, c, compiled_dims, "nn")


def bf16_gemm_tn(a: Tensor, b: Tensor, d: Tensor, c: Tensor | None = None, compiled_dims: str = "mn") -> None:
    """D = C + Aᵀ · B. Shapes: a (k, m), b (k, n) bfloat16; d (m, n) bfloat16 or float32, c like d."""
    _bf16(a, b, d, c, compiled_dims, "tn")


def bf16_gemm_tt(a: Tensor, b: Tensor, d: Tensor, c: Tensor | None = None, compiled_dims: str = "mn") -> None:
    """D = C + Aᵀ · Bᵀ. Shapes: a (k, m), b (n, k) bfloat16; d (m, n) bfloat16 or float32, c like d."""
    _bf16(a, b, d, c, compiled_dims, "tt")


def cublaslt_gemm_nt(a: Tensor, b: Tensor, d: Tensor, c: Tensor | None = None) -> None:
    """D = C + A · Bᵀ by torch's own product, as a baseline; also takes e4m3 operands (scale 1)."""
    _torch_product(a, b.T, d, c)


def cublaslt_gemm_nn(a: Tensor, b: Tensor, d: Tensor, c: Tensor | None = None) -> None:
    """D = C + A · B by torch's own product."""
    _torch_product(a, b, d, c)


def cublaslt_gemm_tn(a: Tensor, b: Tensor, d: Tensor, c: Tensor | None = None) -> None:
    """D = C + Aᵀ · B by torch's own product."""
    _torch_product(a.T, b, d, c)


def cublaslt_gemm_tt(a: Tensor, b: Tensor, d: Tensor, c: Tensor | None = None) -> None:
    """D = C + Aᵀ · Bᵀ by torch's own product."""
    _torch_product(a.T, b.T, d, c)


def _bf16(a: Tensor, b: Tensor, d: Tensor, c: Tensor | None, compiled_dims: str, form: str) -> None:  # noqa: PLR0913
    a_transposed, b_transposed = form[0] == "t", form[1] == "n"
    checks.check_operand(a, name="a", dtype=torch.bfloat16, dims=2)
    checks.check_operand(b, name="b", dtype=torch.bfloat16, dims=2)
    m, k = a.shape[::-1] if a_transposed else a.shape
    n, k_of_b = b.shape[::-1] if b_transposed else b.shape
    checks.check_same_k(k, k_of_b)
    checks.check_output(d, (m, n), dtypes=[torch.bfloat16, torch.float32])
    checks.check_compiled_dims(compiled_dims)
    checks.check_same_device(a, b, d)
    _run(Call(DENSE, a, b, d, rows=m, a_transposed=a_transposed, b_transposed=b_transposed), c)


def _run(call: Call, c: Tensor | None) -> None:
    """Copy c into d, and add the product to it."""
    d = call.d
    if c is not None:
        checks.check_added(c, d)
        if c is not d:
            d.copy_(c)
        call = replace(call, accumulate=True)
    if d.numel():
        run(call)


def _check_fp8(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], *, gran_n: int) -> tuple[int, int, Scales]:
    """Return m, n and the scales of operands that fit."""
    (a_values, sfa), (b_values, sfb) = checks.unpack(a, "a"), checks.unpack(b, "b")
    checks.check_operand(a_values, name="a[0]", dtype=FP8, dims=2)
    checks.check_operand(b_values, name="b[0]", dtype=FP8, dims=2)
    (m, k), (n, k_of_b) = a_values.shape, b_values.shape
    checks.check_same_k(k, k_of_b)
    if n % 8:
        refuse("n", n, "it must be a multiple of 8")
    check_scales(sfa, (m, ceil_div(k, BLOCK)), num_groups=None, name="a[1]")
    check_scales(sfb, (ceil_div(n, gran_n), ceil_div(k, BLOCK)), num_groups=None, name="b[1]")
    return m, n, Scales(sfa, sfb, gran_n == 1)


def choose_recipe(
    recipe: Sequence[int] | None, recipe_a: Sequence[int] | None, recipe_b: Sequence[int] | None
) -> tuple[int, ...]:
    """Return the recipe that a call means: (gran_m, gran_n, gran_k), one of those that SM90 knows."""
    if (recipe_a is None) != (recipe_b is None):
        raise BadArgument("recipe_a and recipe_b go together")
    if recipe_a is not None and recipe_b is not None:
        if recipe is not None:
            raise BadArgument("give either recipe, or recipe_a and recipe_b")
        recipe = (recipe_a[0], recipe_b[0], recipe_a[1])
        if recipe_a[1] != recipe_b[1]:
            refuse("recipe_b", tuple(recipe_b), f"its second number must be recipe_a's, {recipe_a[1]}")
    if recipe is not None and not isinstance(recipe, list | tuple):
        raise BadType(f"recipe is {type(recipe).__name__}; it must be a tuple of three numbers")
    chosen = RECIPE_BLOCKS if recipe is None else tuple(recipe)
    if chosen not in {RECIPE_BLOCKS, RECIPE_ROWS}:
        refuse("recipe", chosen, f"SM90 knows {RECIPE_BLOCKS} and {RECIPE_ROWS}")
    return chosen


def _torch_product(a: Tensor, b: Tensor, d: Tensor, c: Tensor | None) -> None:
    for name, each in (("a", a), ("b", b)):
        if not isinstance(each, Tensor) or each.dim() != 2 or each.dtype not in {torch.bfloat16, FP8}:
            raise BadType(f"{name} must be a matrix of bfloat16 or {FP8}")
    checks.check_same_k(a.shape[1], b.shape[0])
    checks.check_output(d, (a.shape[0], b.shape[1]), dtypes=[torch.bfloat16, torch.float32])
    if c is not None:
        checks.check_added(c, d)
    if a.dtype == FP8 or d.dtype != a.dtype or d.device.type == "cpu":
        a, b = a.float(), b.float()
    total = a @ b
    d.copy_(total if c is None else total.float() + c.float())


__all__ = [
    "bf16_gemm_nn", "bf16_gemm_nt", "bf16_gemm_tn", "bf16_gemm_tt", "cublaslt_gemm_nn", "cublaslt_gemm_nt",
    "cublaslt_gemm_tn", "cublaslt_gemm_tt", "fp8_gemm_nn", "fp8_gemm_nt", "fp8_gemm_nt_skip_head_mid",
    "fp8_gemm_tn", "fp8_gemm_tt", "wgrad_gemm_fp8_fp8_fp32_nt",
]  # fmt: skip
