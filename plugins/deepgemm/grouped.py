"""Grouped products of mixture-of-experts layers: each token's row meets the weights of its group (expert).

contiguous   rows of all groups one after the other; a layout names the group of each row, or the ends of groups
masked       the same number of rows for each group, of which only the first ones are real
k-grouped    weight gradients: groups cut the dimension that is summed over
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels.errors import BadArgument, BadType, refuse
from ..kernels.layers import layer_for
from . import checks, reference, settings
from .dense import RECIPE_BLOCKS, RECIPE_ROWS, choose_recipe, launches_of
from .quantize import BLOCK, FP8, ceil_div
from .scales import check_scales
from .tiles import BF16_STEP


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
    (a_values, sfa), (b_values, sfb) = checks.unpack(a, "a"), checks.unpack(b, "b")
    _require_blocks(choose_recipe(recipe, recipe_a, recipe_b))
    groups, n = _check_fp8_groups(a_values, b_values, sfb, dims=2)
    m, k = a_values.shape
    check_scales(sfa, (m, ceil_div(k, BLOCK)), num_groups=None, name="a[1]")
    _check_contiguous(
        d, grouped_layout, (m, n), groups=groups, psum=use_psum_layout, compiled_dims=compiled_dims
    )
    _check_expected(expected_m_for_psum_layout, psum=use_psum_layout)
    checks.check_same_device(a_values, sfa, b_values, sfb, d, grouped_layout)
    if d.numel() == 0:
        return
    layer = layer_for(d)
    if layer == "reference" or k == 0:
        rows = _rows(grouped_layout, m, psum=use_psum_layout)
        _write(d, reference.fp8_grouped(a_values, sfa, b_values, sfb, rows), rows, psum=use_psum_layout)
        return
    launches = launches_of(
        layer, expected_m_for_psum_layout or m, alignment=settings.get_mk_alignment_for_contiguous_layout()
    )
    launches.gemm(
        a_values,
        b_values,
        d,
        scales=launches.Scales(sfa, sfb),
        layout=grouped_layout,
        psum=use_psum_layout,
        expected_m=expected_m_for_psum_layout,
    )


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
    (a_values, sfa), (b_values, sfb) = checks.unpack(a, "a"), checks.unpack(b, "b")
    _require_blocks(choose_recipe(recipe, recipe_a, recipe_b))
    groups, n = _check_fp8_groups(a_values, b_values, sfb, dims=3)
    k = a_values.shape[-1]
    check_scales(sfa, (a_values.shape[1], ceil_div(k, BLOCK)), num_groups=groups, name="a[1]")
    _check_masked(a_values, d, masked_m, expected_m, n=n, groups=groups, compiled_dims=compiled_dims)
    checks.check_same_device(a_values, sfa, b_values, sfb, d, masked_m)
    if d.numel() == 0:
        return
    layer = layer_for(d)
    if layer == "reference" or k == 0:
        for group, rows in enumerate(masked_m.tolist()):
            total = reference.fp8_gemm(
                a_values[group, :rows], sfa[group, :rows], b_values[group], sfb[group], gran_n=BLOCK
            )
            d[group, :rows] = total.to(d.dtype)
        return
    launches = launches_of(layer, min(expected_m, a_values.shape[1]))
    launches.masked_gemm(a_values, b_values, d, masked_m, expected_m, scales=launches.Scales(sfa, sfb))


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
    if c is None:
        raise BadArgument("k-grouped products accumulate: give c (float32)")
    checks.check_is_tensor(d, name="d")
    if d.dim() != 3 or d.shape[0] != len(ks_cpu):
        refuse("d", f"of shape {tuple(d.shape)}", f"it must be (groups = {len(ks_cpu)}, m, n)")
    checks.check_output(d, d.shape, dtypes=[torch.float32])
    checks.check_added(c, d)
    checks.check_index(grouped_layout, (len(ks_cpu),), name="grouped_layout")
    checks.check_compiled_dims(compiled_dims)
    _check_flat(a_values, sfa, ks_cpu, d.shape[1], name="a")
    _check_flat(b_values, sfb, ks_cpu, d.shape[2], name="b")
    checks.check_same_device(a_values, sfa, b_values, sfb, d, c, grouped_layout)
    if _is_trivial(ks_cpu, c, d):
        return
    layer = layer_for(d)
    if layer == "reference":
        d.copy_(c)
        reference.add_fp8_k_grouped(a_values, sfa, b_values, sfb, d, ks_cpu)
        return
    if layer == "hopper":
        from . import hopper

        if hopper.takes_k_groups(d.shape[1], ks_cpu):
            hopper.k_grouped_gemm(a_values.view(-1), b_values.view(-1), c, d, grouped_layout, (sfa, sfb))
            return
    from . import launch

    launch.k_grouped_gemm(
        a_values.view(-1),
        b_values.view(-1),
        c,
        d,
        grouped_layout,
        ks_cpu,
        scales=launch.Scales(sfa, sfb, row_scales=True),
    )


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
    _bf16_contiguous(
        a,
        b,
        d,
        grouped_layout,
        compiled_dims,
        use_psum_layout,
        expected_m_for_psum_layout,
        b_transposed=False,
    )


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
    _bf16_contiguous(a, b, d, grouped_layout, compiled_dims, use_psum_layout, None, b_transposed=True)


def m_grouped_bf16_gemm_nt_masked(  # noqa: PLR0913 (the original's)
    a: Tensor, b: Tensor, d: Tensor, masked_m: Tensor, expected_m: int, compiled_dims: str = "nk"
) -> None:
    """As `m_grouped_fp8_gemm_nt_masked` without scales. Shapes: a (groups, max_m, k), b (groups, n, k)."""
    groups, n = _check_bf16_groups(a, b, dims=3)
    _check_masked(a, d, masked_m, expected_m, n=n, groups=groups, compiled_dims=compiled_dims)
    checks.check_same_device(a, b, d, masked_m)
    if d.numel() == 0:
        return
    layer = layer_for(d)
    if layer == "reference" or a.shape[-1] == 0:
        for group, rows in enumerate(masked_m.tolist()):
            d[group, :rows] = reference.bf16_gemm(a[group, :rows], b[group]).to(d.dtype)
        return
    launches_of(layer, min(expected_m, a.shape[1])).masked_gemm(a, b, d, masked_m, expected_m)


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
    checks.check_operand(a, name="a", dtype=torch.bfloat16, dims=2, transposed=True)
    checks.check_operand(b, name="b", dtype=torch.bfloat16, dims=2, transposed=True)
    checks.check_sizes(ks_cpu)
    if min(ks_cpu) < 0 or sum(ks_cpu) != a.shape[0] or a.shape[0] != b.shape[0]:
        refuse(
            "ks_cpu", list(ks_cpu), f"it must sum up to the rows of a ({a.shape[0]}) and of b ({b.shape[0]})"
        )
    if c is None:
        raise BadArgument("k-grouped products accumulate: give c (float32)")
    shape = (len(ks_cpu), a.shape[1], b.shape[1])
    checks.check_output(d, shape, dtypes=[torch.float32])
    checks.check_added(c, d)
    checks.check_index(grouped_layout, (len(ks_cpu),), name="grouped_layout")
    checks.check_compiled_dims(compiled_dims)
    checks.check_same_device(a, b, d, c, grouped_layout)
    if _is_trivial(ks_cpu, c, d):
        return
    layer = layer_for(d)
    if layer == "reference":
        d.copy_(c)
        reference.add_bf16_k_grouped(a, b, d, ks_cpu)
        return
    if layer == "hopper":
        from . import hopper

        if hopper.takes_k_groups(d.shape[1], ks_cpu):
            hopper.k_grouped_gemm(a, b, c, d, grouped_layout)
            return
    from . import launch

    launch.k_grouped_gemm(a, b, c, d, grouped_layout, ks_cpu)


def m_grouped_fp8_gemm_nn_contiguous(*_arguments: object, **_keywords: object) -> None:
    """Raises BadArgument: see `m_grouped_fp8_gemm_nt_contiguous`."""
    raise BadArgument(
        "FP8 on SM90 takes operands contiguous along k: store b as (groups, n, k) and call the nt form"
    )


def k_grouped_fp8_gemm_tn_contiguous(*_arguments: object, **_keywords: object) -> None:
    """Raises BadArgument: see `k_grouped_fp8_gemm_nt_contiguous`."""
    raise BadArgument("FP8 on SM90 takes operands contiguous along k: call k_grouped_fp8_gemm_nt_contiguous")


def _is_trivial(ks: Sequence[int], c: Tensor, d: Tensor) -> bool:
    """Whether nothing is to be summed, and d has what there is."""
    if sum(ks) == 0 and c is not d:
        d.copy_(c)
    return sum(ks) == 0 or d.numel() == 0


def _bf16_contiguous(  # noqa: PLR0913 (one call in two forms)
    a: Tensor,
    b: Tensor,
    d: Tensor,
    grouped_layout: Tensor,
    compiled_dims: str,
    psum: bool,  # noqa: FBT001
    expected_m: int | None,
    *,
    b_transposed: bool,
) -> None:
    groups, n = _check_bf16_groups(a, b, dims=2, b_transposed=b_transposed)
    m = a.shape[0]
    _check_contiguous(d, grouped_layout, (m, n), groups=groups, psum=psum, compiled_dims=compiled_dims)
    _check_expected(expected_m, psum=psum)
    checks.check_same_device(a, b, d, grouped_layout)
    if d.numel() == 0:
        return
    layer = layer_for(d)
    if layer == "reference" or a.shape[1] == 0:
        rows = _rows(grouped_layout, m, psum=psum)
        _write(d, reference.bf16_grouped(a, b.mT if b_transposed else b, rows), rows, psum=psum)
        return
    # A step of K that ends beyond its group would meet rows of the next group's B, which the Triton kernels mask.
    ragged = b_transposed and a.shape[1] % BF16_STEP != 0
    launches = launches_of(
        "triton" if ragged else layer,
        expected_m or m,
        alignment=settings.get_mk_alignment_for_contiguous_layout(),
    )
    launches.gemm(a, b, d, layout=grouped_layout, psum=psum, b_transposed=b_transposed, expected_m=expected_m)


def _require_groups(groups: int) -> None:
    if groups == 0:
        raise BadArgument("b has no groups; it must be (groups, n, k) with at least one")


def _require_blocks(recipe: tuple[int, ...]) -> None:
    if recipe != RECIPE_BLOCKS:
        refuse("recipe", recipe, f"grouped products on SM90 know {RECIPE_BLOCKS}")


def _check_fp8_groups(a: Tensor, b: Tensor, sfb: Tensor, *, dims: int) -> tuple[int, int]:
    checks.check_operand(b, name="b[0]", dtype=FP8, dims=3)
    groups, n, k = b.shape
    _require_groups(groups)
    checks.check_operand(a, name="a[0]", dtype=FP8, dims=dims)
    checks.check_same_k(a.shape[-1], k)
    if n % 8:
        refuse("n", n, "it must be a multiple of 8")
    check_scales(sfb, (ceil_div(n, BLOCK), ceil_div(k, BLOCK)), num_groups=groups, name="b[1]")
    return groups, n


def _check_bf16_groups(a: Tensor, b: Tensor, *, dims: int, b_transposed: bool = False) -> tuple[int, int]:
    checks.check_operand(b, name="b", dtype=torch.bfloat16, dims=3, transposed=b_transposed)
    checks.check_operand(a, name="a", dtype=torch.bfloat16, dims=dims)
    groups, n, k = b.mT.shape if b_transposed else b.shape
    _require_groups(groups)
    checks.check_same_k(a.shape[-1], k)
    return groups, n


def _check_contiguous(  # noqa: PLR0913 (one call's arguments)
    d: Tensor, layout: Tensor, shape: tuple[int, int], *, groups: int, psum: bool, compiled_dims: str
) -> None:
    checks.check_output(d, shape, dtypes=[torch.bfloat16])
    checks.check_index(layout, (groups if psum else shape[0],), name="grouped_layout")
    checks.check_compiled_dims(compiled_dims)


def _check_expected(expected_m: int | None, *, psum: bool) -> None:
    if expected_m is None:
        return
    if not psum:
        raise BadArgument("expected_m_for_psum_layout goes with use_psum_layout")
    if expected_m <= 0:
        refuse("expected_m_for_psum_layout", expected_m, "it must be positive")


def _check_masked(  # noqa: PLR0913 (one call's arguments)
    a: Tensor, d: Tensor, masked_m: Tensor, expected_m: int, *, n: int, groups: int, compiled_dims: str
) -> None:
    if a.shape[0] != groups:
        refuse("a", f"of shape {tuple(a.shape)}", f"it must be (groups = {groups}, max_m, k)")
    if expected_m <= 0 and a.shape[1]:
        refuse("expected_m", expected_m, "it must be positive")
    checks.check_output(d, (groups, a.shape[1], n), dtypes=[torch.bfloat16])
    checks.check_index(masked_m, (groups,), name="masked_m")
    checks.check_compiled_dims(compiled_dims)


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
    if sf.dtype != torch.float32:
        raise BadType(f"{name}[1] is {sf.dtype}; SM90 kernels take float32 scales")
    if tuple(sf.shape) != (rows, sum(ks) // BLOCK):
        refuse(f"{name}[1]", f"of shape {tuple(sf.shape)}", f"it must be {(rows, sum(ks) // BLOCK)}")


def _rows(layout: Tensor, m: int, *, psum: bool) -> Tensor:
    alignment = settings.get_mk_alignment_for_contiguous_layout()
    return reference.group_of_rows(layout, m, psum=psum, alignment=alignment)


def _write(d: Tensor, total: Tensor, groups: Tensor, *, psum: bool) -> None:
    if psum:
        real = groups >= 0
        d[real] = total[real].to(d.dtype)
    else:
        d.copy_(total)


__all__ = [
    "k_grouped_bf16_gemm_tn_contiguous",
    "k_grouped_fp8_gemm_nt_contiguous",
    "k_grouped_fp8_gemm_tn_contiguous",
    "m_grouped_bf16_gemm_nn_contiguous",
    "m_grouped_bf16_gemm_nt_contiguous",
    "m_grouped_bf16_gemm_nt_masked",
    "m_grouped_fp8_gemm_nn_contiguous",
    "m_grouped_fp8_gemm_nt_contiguous",
    "m_grouped_fp8_gemm_nt_masked",
]
