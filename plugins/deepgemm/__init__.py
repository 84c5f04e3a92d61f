# ruff: noqa: F403 (types of all names come from their homes)
"""DeepGEMM: FP8 and BF16 products for dense and mixture-of-experts layers, and the lightning indexer's logits.

    import luciola.plugins.deepgemm as deep_gemm        # the one import that its users change

    gemm                          products, dense and grouped
    indexer einsums prenorm       the lightning indexer's logits, sums over heads, products before a norm
    activations                   casts (those in torch: `plugins/kernels/quantize`)
    scales settings checks        layouts of scales, knobs, what is asked of operands
    loader                        operands from a checkpoint, a rank's part of them
    aot_cache                     kernels compiled ahead of time into a cache that many machines share
    unsupported                   names that say why there is nothing behind them

An operator is a package: its public functions check a call and hand it to a layer, `reference` (torch), `kernel`
(Triton) or `hopper` (Gluon), which checks nothing again.

Names, arguments and semantics are those of DeepGEMM on SM90. Importing this package imports torch only when one of its
names is used.
"""

from typing import TYPE_CHECKING, Any, Final

from ..lazy import lazy

if TYPE_CHECKING:
    from ..kernels.quantize import *
    from .activations import *
    from .aot_cache import *
    from .einsums import *
    from .gemm.dense import *
    from .gemm.grouped import *
    from .indexer import *
    from .loader import *
    from .prenorm import *
    from .scales import *
    from .settings import *
    from .unsupported import *

_HOMES: Final = {
    ".gemm.dense": """
        bf16_gemm_nn bf16_gemm_nt bf16_gemm_tn bf16_gemm_tt cublaslt_gemm_nn cublaslt_gemm_nt
        cublaslt_gemm_tn cublaslt_gemm_tt fp8_gemm_nn fp8_gemm_nt fp8_gemm_nt_skip_head_mid fp8_gemm_tn
        fp8_gemm_tt wgrad_gemm_fp8_fp8_fp32_nt
    """,
    ".gemm.grouped": """
        k_grouped_bf16_gemm_tn_contiguous k_grouped_fp8_gemm_nt_contiguous k_grouped_fp8_gemm_tn_contiguous
        m_grouped_bf16_gemm_nn_contiguous m_grouped_bf16_gemm_nt_contiguous m_grouped_bf16_gemm_nt_masked
        m_grouped_fp8_gemm_nn_contiguous m_grouped_fp8_gemm_nt_contiguous m_grouped_fp8_gemm_nt_masked
    """,
    ".indexer": """
        fp8_fp4_mqa_logits fp8_fp4_paged_mqa_logits fp8_mqa_logits fp8_paged_mqa_logits
        get_paged_mqa_logits_metadata
    """,
    ".einsums": "einsum fp8_einsum",
    ".prenorm": "tf32_hc_prenorm_gemm",
    ".activations": "quantize_activations",
    "..kernels.quantize": """
        align calc_diff ceil_div ceil_to_ue8m0 pack_ue8m0_to_int per_block_cast_to_fp8
        per_channel_cast_to_fp8 per_custom_dims_cast_to_fp8 per_token_cast_to_fp8 unpack_ue8m0_from_int
    """,
    ".scales": """
        get_k_grouped_mn_major_tma_aligned_packed_ue8m0_tensor get_mn_major_tma_aligned_packed_ue8m0_tensor
        get_mn_major_tma_aligned_tensor get_tma_aligned_size transform_sf_into_required_layout
    """,
    ".settings": """
        get_block_size_multiple_of get_mk_alignment_for_contiguous_layout get_num_sms get_pdl get_tc_util
        get_theoretical_mk_alignment_for_contiguous_layout set_block_size_multiple_of
        set_ignore_compile_dims set_mk_alignment_for_contiguous_layout set_num_sms set_pdl set_tc_util
    """,
    ".loader": "load_weights",
    ".aot_cache": "set_cache_dir",
    ".unsupported": """
        SymmBuffer bf16_mega_moe cast_back_from_fp4 fp8_fp4_mega_moe get_best_configs
        get_symm_buffer_for_mega_moe k_grouped_wgrad_gemm_fp8_fp8_fp32_nt per_token_cast_to_fp4
        transform_weights_for_mega_moe transpose_packed_fp4
    """,
}
_find: Final = lazy(__name__, _HOMES)

# Older names of the same functions, which frameworks still call.
_OLD_NAMES: Final = {
    "fp8_fp4_gemm_nn": "fp8_gemm_nn",
    "fp8_fp4_gemm_nt": "fp8_gemm_nt",
    "fp8_fp4_gemm_tn": "fp8_gemm_tn",
    "fp8_fp4_gemm_tt": "fp8_gemm_tt",
    "bf16_m_grouped_gemm_nt_masked": "m_grouped_bf16_gemm_nt_masked",
    "fp8_m_grouped_gemm_nt_masked": "m_grouped_fp8_gemm_nt_masked",
    "gemm_fp8_fp8_bf16_nt": "fp8_gemm_nt",
    "get_col_major_tma_aligned_tensor": "get_mn_major_tma_aligned_tensor",
    "get_k_alignment_for_contiguous_layout": "get_mk_alignment_for_contiguous_layout",
    "get_m_alignment_for_contiguous_layout": "get_mk_alignment_for_contiguous_layout",
    "m_grouped_fp8_fp4_gemm_nn_contiguous": "m_grouped_fp8_gemm_nn_contiguous",
    "m_grouped_fp8_fp4_gemm_nt_contiguous": "m_grouped_fp8_gemm_nt_contiguous",
    "m_grouped_fp8_fp4_gemm_nt_masked": "m_grouped_fp8_gemm_nt_masked",
    "m_grouped_gemm_fp8_fp8_bf16_nt_contiguous": "m_grouped_fp8_gemm_nt_contiguous",
    "m_grouped_gemm_fp8_fp8_bf16_nt_masked": "m_grouped_fp8_gemm_nt_masked",
}

__all__: list[str] = sorted(" ".join(_HOMES.values()).split())  # noqa: PLE0605 (of the table)


def describe() -> dict[str, str]:
    """Return what the plugin can use on this machine."""
    from ..kernels import status

    return status.describe("deepgemm")


def __getattr__(name: str) -> Any:
    return _find(_OLD_NAMES.get(name, name))


def __dir__() -> list[str]:
    return sorted({*__all__, *_OLD_NAMES, *globals()})
