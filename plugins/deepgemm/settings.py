"""Process-wide settings, under the original's names. They steer speed only, and are read at each call."""

from dataclasses import dataclass
from typing import Final

from ..kernels.errors import refuse

ALIGNMENT: Final = 128  # rows to which groups of a contiguous layout are aligned, on SM90


@dataclass
class _Settings:
    num_sms: int | None = None
    block_size_multiple_of: tuple[int, int] = (1, 1)
    alignment: int = ALIGNMENT


_settings: Final = _Settings()


def set_num_sms(num_sms: int) -> None:
    """Multiprocessors that a kernel may fill: fewer leave room for communication beside it."""
    if num_sms <= 0 or num_sms % 2:
        refuse("num_sms", num_sms, "it must be positive and even")
    _settings.num_sms = num_sms


def get_num_sms() -> int:
    """Return what `set_num_sms` set, else all multiprocessors of the current device (132, an H100's, without one)."""
    if _settings.num_sms is not None:
        return _settings.num_sms
    import torch

    from ..kernels import aot, layers

    here = torch.cuda.is_available() and not aot.is_compiling()
    return layers.multiprocessors(torch.device("cuda" if here else "cpu"))


def set_tc_util(tc_util: int) -> None:
    """The share of tensor-core time that kernels aim at: 100, all of it.

    Raises: BadArgument for less: kernels here are not slowed down (the original's are on SM100 only).
    """
    if tc_util != 100:
        refuse("tc_util", tc_util, "kernels on SM90 use all of the tensor cores: leave it at 100")


def get_tc_util() -> int:
    """100."""
    return 100


def set_pdl(enabled: bool) -> None:  # noqa: FBT001 (the original's)
    """Programmatic dependent launch: off.

    Raises: BadArgument for True: a kernel here begins when the one before has ended.
    """
    if enabled:
        refuse(
            "pdl",
            enabled,
            "kernels here do not overlap the one before: leave it off, capture a CUDA graph instead",
        )


def get_pdl() -> bool:
    """False."""
    return False


def set_ignore_compile_dims(ignore: bool) -> None:  # noqa: FBT001 (the original's)
    """Nothing: no size is compiled into a kernel here, so `compiled_dims` never makes one of its own."""


def set_block_size_multiple_of(size: int | tuple[int, int]) -> None:
    """Tiles are multiples of this (one number, or one for m and one for n)."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or any(each <= 0 or each & (each - 1) or each > ALIGNMENT for each in pair):
        refuse("size", size, f"tiles are powers of two up to {ALIGNMENT}")
    _settings.block_size_multiple_of = pair


def get_block_size_multiple_of() -> tuple[int, int]:
    """Return what `set_block_size_multiple_of` set, (1, 1) at first."""
    return _settings.block_size_multiple_of


def set_mk_alignment_for_contiguous_layout(alignment: int) -> None:
    """Rows to which each group of a contiguous layout is aligned."""
    if alignment not in {16, 32, 64, ALIGNMENT}:
        refuse("alignment", alignment, "it must be 16, 32, 64 or 128")
    _settings.alignment = alignment


def get_mk_alignment_for_contiguous_layout() -> int:
    """Return what `set_mk_alignment_for_contiguous_layout` set, 128 at first."""
    return _settings.alignment


def get_theoretical_mk_alignment_for_contiguous_layout(expected_m: int | None = None) -> int:  # noqa: ARG001
    """The alignment at which the original's SM90 kernels work: 128."""
    return ALIGNMENT


__all__ = [
    "ALIGNMENT", "get_block_size_multiple_of", "get_mk_alignment_for_contiguous_layout", "get_num_sms", "get_pdl",
    "get_tc_util", "get_theoretical_mk_alignment_for_contiguous_layout", "set_block_size_multiple_of",
    "set_ignore_compile_dims", "set_mk_alignment_for_contiguous_layout", "set_num_sms", "set_pdl", "set_tc_util",
]  # fmt: skip
