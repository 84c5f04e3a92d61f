"""Names of the original that have no meaning here: each says why, and what to use, when it is called."""

from typing import NoReturn

from ..kernels.errors import BadArgument

_MEGA = (
    "the fused mixture of experts runs on SM100 alone; see examples/moe, or use the m_grouped products with "
    "luciola.plugins.deepep"
)


def _refuse(name: str, reason: str) -> NoReturn:
    raise BadArgument(f"{name} is not here: {reason}")


class SymmBuffer:
    """Raises BadArgument when it is made: memory of several GPUs for the fused mixture of experts."""

    def __init__(self, *_arguments: object, **_keywords: object) -> None:
        _refuse("SymmBuffer", _MEGA)


def get_symm_buffer_for_mega_moe(*_arguments: object, **_keywords: object) -> NoReturn:
    """Raises BadArgument: see `SymmBuffer`."""
    _refuse("get_symm_buffer_for_mega_moe", _MEGA)


def transform_weights_for_mega_moe(*_arguments: object, **_keywords: object) -> NoReturn:
    """Raises BadArgument: see `SymmBuffer`."""
    _refuse("transform_weights_for_mega_moe", _MEGA)


def fp8_fp4_mega_moe(*_arguments: object, **_keywords: object) -> NoReturn:
    """Raises BadArgument: see `SymmBuffer`."""
    _refuse("fp8_fp4_mega_moe", _MEGA)


def bf16_mega_moe(*_arguments: object, **_keywords: object) -> NoReturn:
    """Raises BadArgument: see `SymmBuffer`."""
    _refuse("bf16_mega_moe", _MEGA)


def get_best_configs(*_arguments: object, **_keywords: object) -> NoReturn:
    """Raises BadArgument: the tiles of these kernels are chosen by `tiles.choose`, in another form."""
    _refuse("get_best_configs", "it told the tiles of the original's kernels; the ones here choose theirs")


def k_grouped_wgrad_gemm_fp8_fp8_fp32_nt(*_arguments: object, **_keywords: object) -> NoReturn:
    """Raises BadArgument: `k_grouped_fp8_gemm_nt_contiguous` has taken its place, with other layouts."""
    _refuse("k_grouped_wgrad_gemm_fp8_fp8_fp32_nt", "call k_grouped_fp8_gemm_nt_contiguous")


__all__ = [
    "SymmBuffer",
    "bf16_mega_moe",
    "fp8_fp4_mega_moe",
    "get_best_configs",
    "get_symm_buffer_for_mega_moe",
    "k_grouped_wgrad_gemm_fp8_fp8_fp32_nt",
    "transform_weights_for_mega_moe",
]
