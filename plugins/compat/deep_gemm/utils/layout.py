"""Layouts of scales, and the alignment of groups."""

from luciola.plugins.lazy import lazy

_HOMES = {
    "luciola.plugins.deepgemm": """
        get_k_grouped_mn_major_tma_aligned_packed_ue8m0_tensor get_mk_alignment_for_contiguous_layout
        get_mn_major_tma_aligned_packed_ue8m0_tensor get_mn_major_tma_aligned_tensor
        get_theoretical_mk_alignment_for_contiguous_layout get_tma_aligned_size
        set_mk_alignment_for_contiguous_layout
    """
}

__all__: list[str] = sorted(" ".join(_HOMES.values()).split())  # noqa: PLE0605 (of the table)

__getattr__ = lazy(__name__, _HOMES)
