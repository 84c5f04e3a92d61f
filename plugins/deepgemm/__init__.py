"""DeepGEMM: FP8 and BF16 products for dense and mixture-of-experts layers, and the lightning indexer's logits.

    import luciola.plugins.deepgemm as deep_gemm        # the one import that its users change

    dense grouped sums indexer prenorm activations   operators: check, choose a layer
    reference                           their specification in torch
    kernel launch tiles                 Triton kernels, how they are started, which tile
    hopper                              fast path, taken by using_layer("hopper"): which products, how started
    hopper_products hopper_k_groups     its kernels, in Gluon
    hopper_walk                         how their warps go through tiles
    quantize fp4 scales settings        casts, layouts of scales, knobs
    loader                              operands from a checkpoint, a rank's part of them
    warm                                kernels compiled ahead of time into a cache that many machines share
    distributed                         ranks of a run
    absent                              names that say why there is nothing behind them
    shim                                `import deep_gemm` in programs that cannot be changed

Names, arguments and semantics are those of DeepGEMM on SM90. Importing this package imports torch only when one of its
names is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .absent import (
        SymmBuffer,
        bf16_mega_moe,
        fp8_fp4_mega_moe,
        get_best_configs,
        get_symm_buffer_for_mega_moe,
        k_grouped_wgrad_gemm_fp8_fp8_fp32_nt,
        transform_weights_for_mega_moe,
    )
    from .activations import quantize_activations
    from .dense import (
        bf16_gemm_nn,
        bf16_gemm_nt,
        bf16_gemm_tn,
        bf16_gemm_tt,
        cublaslt_gemm_nn,
        cublaslt_gemm_nt,
        cublaslt_gemm_tn,
        cublaslt_gemm_tt,
        fp8_gemm_nn,
        fp8_gemm_nt,
        fp8_gemm_nt_skip_head_mid,
        fp8_gemm_tn,
        fp8_gemm_tt,
        wgrad_gemm_fp8_fp8_fp32_nt,
    )
    from .fp4 import cast_back_from_fp4, per_token_cast_to_fp4, transpose_packed_fp4
    from .grouped import (
        k_grouped_bf16_gemm_tn_contiguous,
        k_grouped_fp8_gemm_nt_contiguous,
        k_grouped_fp8_gemm_tn_contiguous,
        m_grouped_bf16_gemm_nn_contiguous,
        m_grouped_bf16_gemm_nt_contiguous,
        m_grouped_bf16_gemm_nt_masked,
        m_grouped_fp8_gemm_nn_contiguous,
        m_grouped_fp8_gemm_nt_contiguous,
        m_grouped_fp8_gemm_nt_masked,
    )
    from .indexer import (
        fp8_fp4_mqa_logits,
        fp8_fp4_paged_mqa_logits,
        fp8_mqa_logits,
        fp8_paged_mqa_logits,
        get_paged_mqa_logits_metadata,
    )
    from .loader import Shard, load_weights
    from .prenorm import tf32_hc_prenorm_gemm
    from .quantize import (
        align,
        calc_diff,
        ceil_div,
        ceil_to_ue8m0,
        pack_ue8m0_to_int,
        per_block_cast_to_fp8,
        per_channel_cast_to_fp8,
        per_custom_dims_cast_to_fp8,
        per_token_cast_to_fp8,
        unpack_ue8m0_from_int,
    )
    from .scales import (
        get_k_grouped_mn_major_tma_aligned_packed_ue8m0_tensor,
        get_mn_major_tma_aligned_packed_ue8m0_tensor,
        get_mn_major_tma_aligned_tensor,
        get_tma_aligned_size,
        transform_sf_into_required_layout,
    )
    from .settings import (
        get_block_size_multiple_of,
        get_mk_alignment_for_contiguous_layout,
        get_num_sms,
        get_pdl,
        get_tc_util,
        get_theoretical_mk_alignment_for_contiguous_layout,
        set_block_size_multiple_of,
        set_ignore_compile_dims,
        set_mk_alignment_for_contiguous_layout,
        set_num_sms,
        set_pdl,
        set_tc_util,
    )
    from .sums import einsum, fp8_einsum
    from .warm import set_cache_dir

_HOMES: Final = (
    "absent",
    "dense",
    "fp4",
    "grouped",
    "indexer",
    "activations",
    "loader",
    "prenorm",
    "quantize",
    "scales",
    "settings",
    "sums",
    "warm",
)

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

__all__ = [
    "Shard",
    "SymmBuffer",
    "align",
    "bf16_gemm_nn",
    "bf16_gemm_nt",
    "bf16_gemm_tn",
    "bf16_gemm_tt",
    "bf16_mega_moe",
    "calc_diff",
    "cast_back_from_fp4",
    "ceil_div",
    "ceil_to_ue8m0",
    "cublaslt_gemm_nn",
    "cublaslt_gemm_nt",
    "cublaslt_gemm_tn",
    "cublaslt_gemm_tt",
    "einsum",
    "fp8_einsum",
    "fp8_fp4_mega_moe",
    "fp8_fp4_mqa_logits",
    "fp8_fp4_paged_mqa_logits",
    "fp8_gemm_nn",
    "fp8_gemm_nt",
    "fp8_gemm_nt_skip_head_mid",
    "fp8_gemm_tn",
    "fp8_gemm_tt",
    "fp8_mqa_logits",
    "fp8_paged_mqa_logits",
    "get_best_configs",
    "get_block_size_multiple_of",
    "get_k_grouped_mn_major_tma_aligned_packed_ue8m0_tensor",
    "get_mk_alignment_for_contiguous_layout",
    "get_mn_major_tma_aligned_packed_ue8m0_tensor",
    "get_mn_major_tma_aligned_tensor",
    "get_num_sms",
    "get_paged_mqa_logits_metadata",
    "get_pdl",
    "get_symm_buffer_for_mega_moe",
    "get_tc_util",
    "get_theoretical_mk_alignment_for_contiguous_layout",
    "get_tma_aligned_size",
    "k_grouped_bf16_gemm_tn_contiguous",
    "k_grouped_fp8_gemm_nt_contiguous",
    "k_grouped_fp8_gemm_tn_contiguous",
    "k_grouped_wgrad_gemm_fp8_fp8_fp32_nt",
    "load_weights",
    "m_grouped_bf16_gemm_nn_contiguous",
    "m_grouped_bf16_gemm_nt_contiguous",
    "m_grouped_bf16_gemm_nt_masked",
    "m_grouped_fp8_gemm_nn_contiguous",
    "m_grouped_fp8_gemm_nt_contiguous",
    "m_grouped_fp8_gemm_nt_masked",
    "pack_ue8m0_to_int",
    "per_block_cast_to_fp8",
    "per_channel_cast_to_fp8",
    "per_custom_dims_cast_to_fp8",
    "per_token_cast_to_fp4",
    "per_token_cast_to_fp8",
    "quantize_activations",
    "set_block_size_multiple_of",
    "set_cache_dir",
    "set_ignore_compile_dims",
    "set_mk_alignment_for_contiguous_layout",
    "set_num_sms",
    "set_pdl",
    "set_tc_util",
    "tf32_hc_prenorm_gemm",
    "transform_sf_into_required_layout",
    "transform_weights_for_mega_moe",
    "transpose_packed_fp4",
    "unpack_ue8m0_from_int",
    "wgrad_gemm_fp8_fp8_fp32_nt",
]


def describe() -> dict[str, str]:
    """What the plugin can use on this machine."""
    from ..kernels import status

    return status.describe("deepgemm")


def __getattr__(name: str) -> Any:
    wanted = _OLD_NAMES.get(name, name)
    if wanted in __all__:
        for home in _HOMES:
            module = import_module(f".{home}", __name__)
            if wanted in module.__all__:
                return getattr(module, wanted)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_OLD_NAMES, *globals()})
