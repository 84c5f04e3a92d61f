"""Grouped products of mixture-of-experts layers: each token's row meets the weights of its group (expert).

contiguous   rows of all groups one after the other; a layout names the group of each row, or the ends of groups
masked       the same number of rows for each group, of which only the first ones are real
k-grouped    weight gradients: groups cut the dimension that is summed over
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...kernels.checks import check_tensor
from ...kernels.errors import BadArgument, refuse
from ...kernels.quantize import BLOCK, FP8, ceil_div
from .. import checks, settings
from ..scales import check_scales
from ..unsupported import unsupported
from .call import CONTIGUOUS, K_GROUPED, MASKED, PSUM, Call, Scales, run
from .dense import RECIPE_BLOCKS, RECIPE_ROWS, choose_recipe


def m_grouped_fp8_gemm_nt_contiguous(  # noqa: PLR0913 (the original's)
    a: tuple[Tensor, Tensor],
    b: tuple[Tensor, Tensor],
    d: Tensor,
    grouped_layout: Tensor,
    recipe: tuple[int, int, int] | None = None,
    recipe_a: tuple[int, int] | None = None,
    recipe_b: tuple[int, int] | None = None,
    compiled_dims: str = "nk",
    disable_ue8m0_cast: bool = False,  # noqa: ARG001, FBT001, FBT002
    use_psum_layout: bool = False,  # noqa: FBT001, FBT002
    ensure_zero_padding: bool = True,  # noqa: ARG001, FBT001, FBT002 (as on SM90: rows between groups are left alone)
    expected_m_for_psum_layout: int | None = None,
) -> None:
    """Row r of D = row r of A times the weights of its group.

    Shapes: a (m, k) e4m3 and (m, ceil(k/128)) float32; b (groups, n, k) e4m3 and (groups, ceil(n/128), ceil(k/128))
    float32; d (m, n) bfloat16. grouped_layout (m,) int32 is the group of each row, -1 for padding, whose rows of D
    become zeros; with `use_psum_layout` (groups,) int32, the end of each group's real rows, and rows between groups
    may hold anything and are left as they are.
    Limits: a group starts at a multiple of `get_mk_alignment_for_contiguous_layout()`; n % 8 == 0.
    Source: DeepGEMM `m_grouped_fp8_gemm_nt_contiguous` on SM90.
    """
    operands = _unpack(a, b, choose_recipe(recipe, recipe_a, recipe_b))
    _contiguous(
        *operands, d, grouped_layout, compiled_dims, psum=use_psum_layout, expected_m=expected_m_for_psum_layout
    )  # fmt: skip


def m_grouped_fp8_gemm_nt_masked(  # noqa: PLR0913 (the original's)
    a: tuple[Tensor, Tensor],
    b: tuple[Tensor, Tensor],
    d: Tensor,
    masked_m: Tensor,
    expected_m: int,
    recipe: tuple[int, int, int] | None = None,
    recipe_a: tuple[int, int] | None = None,
    recipe_b: tuple[int, int] | None = None,
    compiled_dims: str = "nk",
    disable_ue8m0_cast: bool = False,  # noqa: ARG001, FBT001, FBT002
) -> None:
    """D[g] = A[g] · B[g]ᵀ for the first masked_m[g] rows; the others of D are left as they are.

    Shapes: a (groups, max_m, k) e4m3 and (groups, max_m, ceil(k/128)) float32; b as in the contiguous form;
    d (groups, max_m, n) bfloat16; masked_m (groups,) int32 on the device. `expected_m` is a hint of its mean.
    The host reads no count, so the call can be captured in a CUDA graph.
    """
    operands = _unpack(a, b, choose_recipe(recipe, recipe_a, recipe_b))
    _masked(*operands, d, masked_m, expected_m, compiled_dims)


def k_grouped_fp8_gemm_nt_contiguous(  # noqa: PLR0913 (the original's)
    a: tuple[Tensor, Tensor],
    b: tuple[Tensor, Tensor],
    d: Tensor,
    ks_cpu: Sequence[int],
    grouped_layout: Tensor,
    c: Tensor | None = None,
    recipe: tuple[int, int, int] = RECIPE_ROWS,
    compiled_dims: str = "mn",
    use_psum_layout: bool = False,  # noqa: FBT001, FBT002
) -> None:
    """D[g] = C[g] + A_g · B_gᵀ: weight gradients, where group g owns ks_cpu[g] of the summed dimension.

    Shapes: a, b flat e4m3: blocks (m, k_g) and (n, k_g) one after the other; their scales (m, sum k / 128) and
    (n, sum k / 128) float32; grouped_layout (groups,) int32 = ks_cpu on the device; d, c (groups, m, n) float32.
    Limits: every k_g is a multiple of 128, 0 among them; m and n multiples of 8.
    """
    (a_values, sfa), (b_values, sfb) = checks.unpack(a, "a"), checks.unpack(b, "b")
    if use_psum_layout:
        refuse("use_psum_layout", True, "SM90 has no such layout for k-grouped operands")
    if tuple(recipe) != RECIPE_ROWS:
        refuse("recipe", recipe, f"it must be {RECIPE_ROWS}")
    checks.check_sizes(ks_cpu)
    check_tensor("d", d, (len(ks_cpu), None, None), (torch.float32,))
    _check_flat(a_values, sfa, ks_cpu, d.shape[1], name="a")
    _check_flat(b_values, sfb, ks_cpu, d.shape[2], name="b")
    checks.check_same_device(a_values, sfa, b_values, sfb, d)
    scales = Scales(sfa, sfb, of_rows=True)
    _k_grouped(a_values.view(-1), b_values.view(-1), d, c, ks_cpu, grouped_layout, compiled_dims, scales)


def m_grouped_bf16_gemm_nt_contiguous(  # noqa: PLR0913 (the original's)
    a: Tensor,
    b: Tensor,
    d: Tensor,
    grouped_layout: Tensor,
    compiled_dims: str = "nk",
    use_psum_layout: bool = False,  # noqa: FBT001, FBT002
    ensure_zero_padding: bool = True,  # noqa: ARG001, FBT001, FBT002 (as in the FP8 form)
    expected_m_for_psum_layout: int | None = None,
) -> None:
    """As `m_grouped_fp8_gemm_nt_contiguous` without scales. Shapes: a (m, k), b (groups, n, k), d (m, n) bfloat16."""
    _contiguous(
        a, b, None, d, grouped_layout, compiled_dims, psum=use_psum_layout, expected_m=expected_m_for_psum_layout
    )  # fmt: skip


def m_grouped_bf16_gemm_nn_contiguous(  # noqa: PLR0913 (the original's)
    a: Tensor,
    b: Tensor,
    d: Tensor,
    grouped_layout: Tensor,
    compiled_dims: str = "nk",
    use_psum_layout: bool = False,  # noqa: FBT001, FBT002
    ensure_zero_padding: bool = True,  # noqa: ARG001, FBT001, FBT002 (as in the FP8 form)
) -> None:
    """As the "nt" form with b (groups, k, n)."""
    _contiguous(a, b, None, d, grouped_layout, compiled_dims, psum=use_psum_layout, b_transposed=True)


def m_grouped_bf16_gemm_nt_masked(  # noqa: PLR0913 (the original's)
    a: Tensor, b: Tensor, d: Tensor, masked_m: Tensor, expected_m: int, compiled_dims: str = "nk"
) -> None:
    """As `m_grouped_fp8_gemm_nt_masked` without scales. Shapes: a (groups, max_m, k), b (groups, n, k)."""
    _masked(a, b, None, d, masked_m, expected_m, compiled_dims)


def k_grouped_bf16_gemm_tn_contiguous(  # noqa: PLR0913 (the original's)
    a: Tensor,
    b: Tensor,
    d: Tensor,
    ks_cpu: Sequence[int],
    grouped_layout: Tensor,
    c: Tensor | None = None,
    compiled_dims: str = "mn",
) -> None:
    """D[g] = C[g] + A_gᵀ · B_g. Shapes: a (sum k, m), b (sum k, n) bfloat16; d, c (groups, m, n) float32."""
    checks.check_operand(a, name="a", dtype=torch.bfloat16, dims=2)
    checks.check_operand(b, name="b", dtype=torch.bfloat16, dims=2)
    checks.check_sizes(ks_cpu)
    if min(ks_cpu) < 0 or sum(ks_cpu) != a.shape[0] or a.shape[0] != b.shape[0]:
        refuse(
            "ks_cpu", list(ks_cpu), f"it must sum up to the rows of a ({a.shape[0]}) and of b ({b.shape[0]})"
        )
    checks.check_output(d, (len(ks_cpu), a.shape[1], b.shape[1]), dtypes=[torch.float32])
    checks.check_same_device(a, b, d)
    _k_grouped(a, b, d, c, ks_cpu, grouped_layout, compiled_dims)


m_grouped_fp8_gemm_nn_contiguous = unsupported(
    "m_grouped_fp8_gemm_nn_contiguous",
    "FP8 on SM90 takes operands contiguous along k: store b as (groups, n, k) and call the nt form",
)
k_grouped_fp8_gemm_tn_contiguous = unsupported(
    "k_grouped_fp8_gemm_tn_contiguous",
    "FP8 on SM90 takes operands contiguous along k: call k_grouped_fp8_gemm_nt_contiguous",
)


def _run(call: Call) -> None:
    if call.d.numel():
        run(call)


def _unpack(
    a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], recipe: tuple[int, ...]
) -> tuple[Tensor, Tensor, Scales]:
    (a_values, sfa), (b_values, sfb) = checks.unpack(a, "a"), checks.unpack(b, "b")
    if recipe != RECIPE_BLOCKS:
        refuse("recipe", recipe, f"grouped products on SM90 know {RECIPE_BLOCKS}")
    return a_values, b_values, Scales(sfa, sfb)


def _check_groups(
    a: Tensor, b: Tensor, scales: Scales | None, *, dims: int, b_transposed: bool = False
) -> tuple[int, int]:
    """Return groups and n of operands that fit."""
    part, dtype = ("", torch.bfloat16) if scales is None else ("[0]", FP8)
    checks.check_operand(b, name=f"b{part}", dtype=dtype, dims=3)
    checks.check_operand(a, name=f"a{part}", dtype=dtype, dims=dims)
    groups, n, k = b.mT.shape if b_transposed else b.shape
    if groups == 0:
        raise BadArgument("b has no groups; it must be (groups, n, k) with at least one")
    checks.check_same_k(a.shape[-1], k)
    if dims == 3 and a.shape[0] != groups:
        refuse("a", f"of shape {tuple(a.shape)}", f"it must be (groups = {groups}, max_m, k)")
    if scales is not None:
        if n % 8:
            refuse("n", n, "it must be a multiple of 8")
        blocks = ceil_div(k, BLOCK)
        check_scales(scales.b, (ceil_div(n, BLOCK), blocks), num_groups=groups, name="b[1]")
        check_scales(scales.a, (a.shape[-2], blocks), num_groups=groups if dims == 3 else None, name="a[1]")
        checks.check_same_device(a, scales.a, scales.b)
    return groups, n


def _contiguous(  # noqa: PLR0913 (one call's arguments)
    a: Tensor, b: Tensor, scales: Scales | None, d: Tensor, layout: Tensor, compiled_dims: str,
    *, psum: bool, expected_m: int | None = None, b_transposed: bool = False,
) -> None:  # fmt: skip
    m, (groups, n) = a.shape[0], _check_groups(a, b, scales, dims=2, b_transposed=b_transposed)
    checks.check_output(d, (m, n), dtypes=[torch.bfloat16])
    checks.check_index(layout, (groups if psum else m,), name="grouped_layout")
    checks.check_compiled_dims(compiled_dims)
    if expected_m is not None and not psum:
        raise BadArgument("expected_m_for_psum_layout goes with use_psum_layout")
    if expected_m is not None and expected_m <= 0:
        refuse("expected_m_for_psum_layout", expected_m, "it must be positive")
    checks.check_same_device(a, b, d, layout)
    mode, rows = PSUM if psum else CONTIGUOUS, m if expected_m is None else expected_m * groups
    alignment = settings.get_mk_alignment_for_contiguous_layout()
    _run(Call(mode, a, b, d, scales, layout, rows=rows, alignment=alignment, b_transposed=b_transposed))


def _masked(  # noqa: PLR0913 (one call's arguments)
    a: Tensor, b: Tensor, scales: Scales | None, d: Tensor, masked_m: Tensor, expected_m: int, compiled_dims: str
) -> None:  # fmt: skip
    groups, n = _check_groups(a, b, scales, dims=3)
    max_m = a.shape[1]
    if expected_m <= 0 and max_m:
        refuse("expected_m", expected_m, "it must be positive")
    checks.check_output(d, (groups, max_m, n), dtypes=[torch.bfloat16])
    checks.check_index(masked_m, (groups,), name="masked_m")
    checks.check_compiled_dims(compiled_dims)
    checks.check_same_device(a, b, d, masked_m)
    _run(Call(MASKED, a, b, d, scales, masked_m, rows=min(expected_m, max_m)))


def _k_grouped(  # noqa: PLR0913 (one call's arguments)
    a: Tensor, b: Tensor, d: Tensor, c: Tensor | None, ks: Sequence[int], layout: Tensor, compiled_dims: str,
    scales: Scales | None = None,
) -> None:  # fmt: skip
    """Check what both forms have in common, and run."""
    if c is None:
        raise BadArgument("k-grouped products accumulate: give c (float32)")
    checks.check_output(d, d.shape, dtypes=[torch.float32])
    checks.check_added(c, d)
    checks.check_index(layout, (len(ks),), name="grouped_layout")
    checks.check_compiled_dims(compiled_dims)
    checks.check_same_device(d, c, layout)
    _run(Call(K_GROUPED, a, b, d, scales, layout, rows=d.shape[1], c=c, ks=ks))


def _check_flat(values: Tensor, sf: Tensor, ks: Sequence[int], rows: int, *, name: str) -> None:
    if any(k < 0 or k % BLOCK for k in ks):
        refuse("ks_cpu", list(ks), f"every size must be a multiple of {BLOCK}")
    if rows % 8:
        refuse(f"rows of {name}", rows, "they must be a multiple of 8")
    if not values.is_contiguous() or values.numel() != rows * sum(ks):
        refuse(
            f"{name}[0]",
            f"of shape {tuple(values.shape)}",
            f"it must hold {rows} · {sum(ks)} values without gaps",
        )
    check_scales(sf, (rows, sum(ks) // BLOCK), num_groups=None, name=f"{name}[1]")


__all__ = [
    "k_grouped_bf16_gemm_tn_contiguous", "k_grouped_fp8_gemm_nt_contiguous", "k_grouped_fp8_gemm_tn_contiguous",
    "m_grouped_bf16_gemm_nn_contiguous", "m_grouped_bf16_gemm_nt_contiguous", "m_grouped_bf16_gemm_nt_masked",
    "m_grouped_fp8_gemm_nn_contiguous", "m_grouped_fp8_gemm_nt_contiguous", "m_grouped_fp8_gemm_nt_masked",
]  # fmt: skip
