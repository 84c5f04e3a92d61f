"""Names of the original that have no meaning here: each says why, and what to use, when it is called."""

from collections.abc import Callable
from typing import Final, NoReturn

from ..kernels.errors import BadArgument

_MEGA: Final = (
    "the fused mixture of experts runs on SM100 alone; use the m_grouped products with luciola.plugins.deepep"
)


def unsupported(name: str, reason: str) -> Callable[..., NoReturn]:
    """A function of that name that raises BadArgument with the reason."""

    def call(*_arguments: object, **_keywords: object) -> NoReturn:
        raise BadArgument(f"{name} is not here: {reason}")

    call.__name__ = call.__qualname__ = name
    call.__doc__ = f"Raises BadArgument: {reason}."
    return call


SymmBuffer = unsupported("SymmBuffer", _MEGA)
get_symm_buffer_for_mega_moe = unsupported("get_symm_buffer_for_mega_moe", _MEGA)
transform_weights_for_mega_moe = unsupported("transform_weights_for_mega_moe", _MEGA)
fp8_fp4_mega_moe = unsupported("fp8_fp4_mega_moe", _MEGA)
bf16_mega_moe = unsupported("bf16_mega_moe", _MEGA)
get_best_configs = unsupported(
    "get_best_configs",
    "it returns the tiles of the original's kernels; those of these kernels are chosen by shape",
)
k_grouped_wgrad_gemm_fp8_fp8_fp32_nt = unsupported(
    "k_grouped_wgrad_gemm_fp8_fp8_fp32_nt", "call k_grouped_fp8_gemm_nt_contiguous"
)
_FP4: Final = "SM90 has no instruction for FP4; cast to FP8 with per_token_cast_to_fp8"
cast_back_from_fp4 = unsupported("cast_back_from_fp4", _FP4)
per_token_cast_to_fp4 = unsupported("per_token_cast_to_fp4", _FP4)
transpose_packed_fp4 = unsupported("transpose_packed_fp4", _FP4)

__all__ = [
    "SymmBuffer", "bf16_mega_moe", "cast_back_from_fp4", "fp8_fp4_mega_moe", "get_best_configs",
    "get_symm_buffer_for_mega_moe", "k_grouped_wgrad_gemm_fp8_fp8_fp32_nt", "per_token_cast_to_fp4",
    "transform_weights_for_mega_moe", "transpose_packed_fp4",
]  # fmt: skip
