"""Process-wide settings, under the original's names.

They steer speed only, and are read at each call. `tc_util`, `pdl`, `compile_dims` are kept for callers that set them:
Triton has nothing they could change.
"""

from dataclasses import dataclass
from typing import Final

from ..kernels.errors import refuse

ALIGNMENT: Final = 128  # rows to which groups of a contiguous layout are aligned, on SM90


@dataclass
class _Settings:
    num_sms: int | None = None
    tc_util: int = 100
    pdl: bool = False
    ignore_compile_dims: bool = False
    block_size_multiple_of: tuple[int, int] = (1, 1)
    alignment: int = ALIGNMENT


_settings: Final = _Settings()


def set_num_sms(num_sms: int) -> None:
    """Multiprocessors that a kernel may fill: fewer leave room for communication beside it."""
    if num_sms <= 0 or num_sms % 2:
        refuse("num_sms", num_sms, "it must be positive and even")
    _settings.num_sms = num_sms


def get_num_sms() -> int:
    """What `set_num_sms` said, else all multiprocessors of the current device (132, an H100's, without one)."""
    if _settings.num_sms is not None:
        return _settings.num_sms
    import torch

    from ..kernels import ahead, layers

    here = torch.cuda.is_available() and not ahead.is_compiling()
    return layers.multiprocessors(
        torch.device("cuda", torch.cuda.current_device()) if here else torch.device("cpu")
    )


def set_tc_util(tc_util: int) -> None:
    """Share of tensor-core time that the original's kernels aim at, 0-100."""
    if not 0 <= tc_util <= 100:
        refuse("tc_util", tc_util, "it must be between 0 and 100")
    _settings.tc_util = tc_util


def get_tc_util() -> int:
    """What `set_tc_util` said, 100 at first."""
    return _settings.tc_util


def set_pdl(enabled: bool) -> None:  # noqa: FBT001 (the original's)
    """Programmatic dependent launch."""
    _settings.pdl = bool(enabled)


def get_pdl() -> bool:
    """What `set_pdl` said, False at first."""
    return _settings.pdl


def set_ignore_compile_dims(ignore: bool) -> None:  # noqa: FBT001 (the original's)
    """Whether `compiled_dims` of calls is ignored."""
    _settings.ignore_compile_dims = bool(ignore)


def set_block_size_multiple_of(size: int | tuple[int, int]) -> None:
    """Tiles are multiples of this (one number, or one for m and one for n)."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or any(each <= 0 or each & (each - 1) or each > ALIGNMENT for each in pair):
        refuse("size", size, f"tiles are powers of two up to {ALIGNMENT}")
    _settings.block_size_multiple_of = pair


def get_block_size_multiple_of() -> tuple[int, int]:
    """What `set_block_size_multiple_of` said, (1, 1) at first."""
    return _settings.block_size_multiple_of


def set_mk_alignment_for_contiguous_layout(alignment: int) -> None:
    """Rows to which each group of a contiguous layout is aligned."""
    if alignment not in {16, 32, 64, ALIGNMENT}:
        refuse("alignment", alignment, "it must be 16, 32, 64 or 128")
    _settings.alignment = alignment


def get_mk_alignment_for_contiguous_layout() -> int:
    """What `set_mk_alignment_for_contiguous_layout` said, 128 at first."""
    return _settings.alignment


def get_theoretical_mk_alignment_for_contiguous_layout(expected_m: int | None = None) -> int:  # noqa: ARG001
    """The alignment at which the original's SM90 kernels work: 128."""
    return ALIGNMENT


__all__ = [
    "ALIGNMENT",
    "get_block_size_multiple_of",
    "get_mk_alignment_for_contiguous_layout",
    "get_num_sms",
    "get_pdl",
    "get_tc_util",
    "get_theoretical_mk_alignment_for_contiguous_layout",
    "set_block_size_multiple_of",
    "set_ignore_compile_dims",
    "set_mk_alignment_for_contiguous_layout",
    "set_num_sms",
    "set_pdl",
    "set_tc_util",
]
