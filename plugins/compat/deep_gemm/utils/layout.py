"""Layouts of scales, and the alignment of groups."""

from luciola.plugins.lazy import lazy

_HOMES = {
    "luciola.plugins.deepgemm.scales": (
        "get_k_grouped_mn_major_tma_aligned_packed_ue8m0_tensor",
        "get_mn_major_tma_aligned_packed_ue8m0_tensor",
        "get_mn_major_tma_aligned_tensor",
        "get_tma_aligned_size",
    ),
    "luciola.plugins.deepgemm.settings": (
        "get_mk_alignment_for_contiguous_layout",
        "get_theoretical_mk_alignment_for_contiguous_layout",
        "set_mk_alignment_for_contiguous_layout",
    ),
}

__all__: list[str] = sorted(name for names in _HOMES.values() for name in names)  # noqa: PLE0605 (of the table)

__getattr__ = lazy(__name__, _HOMES)
