"""Layouts of scales. "MN-major, aligned" means column-major with columns padded to 16 bytes.

Our kernels take float32 scales of any stride; these functions give the strides the original's kernels need, and the
packed form of its newer ones (four UE8M0 exponents in an int32).
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from ..kernels.errors import BadType, refuse
from ..kernels.quantize import BLOCK, align, ceil_div, pack_ue8m0_to_int

TMA_BYTES: Final = 16


def get_tma_aligned_size(x: int, elem_size: int) -> int:
    """x elements of `elem_size` bytes, rounded up to a multiple of 16 bytes."""
    if TMA_BYTES % elem_size:
        refuse("elem_size", elem_size, "it must divide 16")
    return align(x, TMA_BYTES // elem_size)


def get_mn_major_tma_aligned_tensor(sf: Tensor) -> Tensor:
    """The same float32 scales, MN-major and aligned; returns `sf` itself if it is so already.

    Shapes: sf (mn, sk) or (groups, mn, sk); the result's strides are (aligned · sk,) 1, aligned.
    """
    _check_scales(sf, torch.float32)
    return _mn_major(sf)


def get_mn_major_tma_aligned_packed_ue8m0_tensor(sf: Tensor, psum_layout: Tensor | None = None) -> Tensor:
    """Scales that are powers of two, four to an int32 along K (missing ones are zero bytes), MN-major and aligned.

    Shapes: sf (mn, sk) or (groups, mn, sk) float32; the result has ceil(sk / 4) columns. With `psum_layout`
    ((groups,) int32 ends of real rows), rows between groups may hold anything.
    """
    _check_scales(sf, torch.float32)
    if psum_layout is not None:
        sf = torch.where(_real_rows(psum_layout, sf.shape[-2])[:, None], sf, 1.0)
    missing = -sf.shape[-1] % 4
    ones = sf.new_ones((*sf.shape[:-1], missing))
    packed = pack_ue8m0_to_int(torch.cat([sf, ones], -1))
    if missing:
        packed[..., -1] &= (1 << (8 * (4 - missing))) - 1
    return _mn_major(packed)


def get_k_grouped_mn_major_tma_aligned_packed_ue8m0_tensor(  # noqa: PLR0913 (the original's)
    sf: Tensor,
    grouped_layout: Tensor,  # noqa: ARG001 (device copy of ks_cpu)
    ks_cpu: Sequence[int],
    gran_k: int = BLOCK,
    k_alignment: int = BLOCK,
    use_psum_layout: bool = False,  # noqa: FBT001, FBT002
) -> Tensor:
    """Scales of k-grouped operands, packed group by group.

    Shapes: sf (sum of k / gran_k, mn) float32; result (mn, sum of ceil(k / (4 · gran_k))) int32, MN-major and aligned.
    """
    if use_psum_layout:
        refuse("use_psum_layout", True, "SM90 has no such layout for k-grouped operands")
    _check_scales(sf, torch.float32)
    rows = [ceil_div(align(k, k_alignment), gran_k) for k in ks_cpu]
    if sum(rows) != sf.shape[0]:
        refuse("sf", f"of {sf.shape[0]} rows", f"ks_cpu {list(ks_cpu)} asks for {sum(rows)}")
    parts = [
        get_mn_major_tma_aligned_packed_ue8m0_tensor(part.T)
        for part in torch.split(sf, rows)
        if part.shape[0]
    ]
    if not parts:
        return sf.new_empty((sf.shape[1], 0), dtype=torch.int32)
    return _mn_major(torch.cat(parts, -1))


def transform_sf_into_required_layout(  # noqa: PLR0913 (the original's)
    sf: Tensor,
    mn: int,
    k: int,
    recipe: tuple[int, ...],
    num_groups: int | None = None,
    is_sfa: bool | None = None,  # noqa: FBT001
    disable_ue8m0_cast: bool = False,  # noqa: ARG001, FBT001, FBT002 (SM90 takes float32 as it is)
    psum_layout: Tensor | None = None,  # noqa: ARG001
) -> Tensor:
    """Scales as SM90 kernels want them: one row a token MN-major and aligned, 128-row blocks unchanged.

    `recipe` is (gran_m, gran_n, gran_k) with `is_sfa`, or (gran_mn, gran_k).
    """
    if len(recipe) == 3 and is_sfa is not None:
        gran_mn, gran_k = recipe[0 if is_sfa else 1], recipe[2]
    elif len(recipe) == 2 and is_sfa is None:
        gran_mn, gran_k = recipe
    else:
        refuse("recipe", recipe, "it has three numbers with is_sfa, or two without")
    if gran_mn not in {1, BLOCK} or gran_k != BLOCK:
        refuse("recipe", recipe, "SM90 kernels take blocks of 1 or 128 rows and 128 columns")
    check_scales(sf, (ceil_div(mn, gran_mn), ceil_div(k, gran_k)), num_groups=num_groups, name="sf")
    return _mn_major(sf) if gran_mn == 1 else sf


def check_scales(sf: Tensor, shape: tuple[int, int], *, num_groups: int | None, name: str) -> None:
    """Check that these are float32 scales of that shape."""
    wanted = shape if num_groups is None else (num_groups, *shape)
    if sf.dtype != torch.float32:
        raise BadType(
            f"{name} is {sf.dtype}; SM90 kernels take float32 scales (packed UE8M0 is for later GPUs)"
        )
    if tuple(sf.shape) != wanted:
        refuse(name, f"of shape {tuple(sf.shape)}", f"it must be {wanted}")


def _check_scales(sf: Tensor, dtype: torch.dtype) -> None:
    if sf.dtype != dtype:
        raise BadType(f"sf is {sf.dtype}; it must be {dtype}")
    if sf.dim() not in {2, 3}:
        refuse("sf", f"of shape {tuple(sf.shape)}", "it must have two or three dimensions")


def _mn_major(sf: Tensor) -> Tensor:
    mn, sk = sf.shape[-2:]
    aligned = get_tma_aligned_size(mn, sf.element_size())
    strides = (1, aligned) if sf.dim() == 2 else (aligned * sk, 1, aligned)
    if sf.stride() == strides:
        return sf
    result = torch.empty_strided(sf.shape, strides, dtype=sf.dtype, device=sf.device)
    result.copy_(sf)
    return result


def _real_rows(ends: Tensor, rows: int) -> Tensor:
    from .settings import get_mk_alignment_for_contiguous_layout

    row = torch.arange(rows, device=ends.device)
    alignment = get_mk_alignment_for_contiguous_layout()
    starts = torch.cat([ends.new_zeros(1), (ends[:-1] + alignment - 1) // alignment * alignment])
    return ((row[:, None] >= starts) & (row[:, None] < ends)).any(1)


__all__ = [
    "TMA_BYTES", "check_scales", "get_k_grouped_mn_major_tma_aligned_packed_ue8m0_tensor",
    "get_mn_major_tma_aligned_packed_ue8m0_tensor", "get_mn_major_tma_aligned_tensor", "get_tma_aligned_size",
    "transform_sf_into_required_layout",
]  # fmt: skip
