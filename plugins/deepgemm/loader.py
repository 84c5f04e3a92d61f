"""Weights of a checkpoint in the form the products want, a rank's part of them, without a copy on the way.

    checkpoint = Checkpoint.open("lu:/models/v3")
    b = load_weights(checkpoint, "layers.3.mlp.down_proj.weight", shard=Shard(rank, ranks, "columns"), device="cuda")
    fp8_gemm_nt(a, b, out)

FP8 checkpoints of DeepSeek keep weights (n, k) e4m3 and, under the name + "_scale_inv", float32 scales of 128 × 128
blocks: already what the kernels read, so bytes go from storage into the operands. Reads, many in flight, and their
checksums are those of `luciola.plugins.weights`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import torch
from torch import Tensor

from ..kernels.errors import BadArgument, refuse
from ..kernels.quantize import BLOCK, FP8, ceil_div

if TYPE_CHECKING:  # the products work without the file system's native module
    from ..weights import Checkpoint

SCALE_SUFFIX: Final = "_scale_inv"
_TORCH: Final = {"F8_E4M3": FP8, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Shard:
    """The part of a matrix that one of `ranks` owns: an equal share of its rows (n) or columns (k)."""

    rank: int
    ranks: int
    by: Literal["rows", "columns"]

    def __post_init__(self) -> None:
        if self.by not in {"rows", "columns"}:
            refuse("by", repr(self.by), "it must be 'rows' or 'columns'")
        if not 0 <= self.rank < self.ranks:
            refuse("rank", self.rank, f"it must be from 0 to {self.ranks - 1}")

    def index(self, shape: tuple[int, int], *, unit: int) -> tuple[slice, slice]:
        """The share of a matrix of that shape. `unit`: borders between shares are multiples of it.

        Raises: BadArgument if there are no such equal shares.
        """
        dimension = 0 if self.by == "rows" else 1
        size = shape[dimension]
        if size % (self.ranks * unit):
            refuse(
                f"matrix of {size} {self.by}",
                f"to be cut into {self.ranks}",
                f"shares must be multiples of {unit}",
            )
        share = size // self.ranks
        part = slice(self.rank * share, (self.rank + 1) * share)
        return (part, slice(0, shape[1])) if dimension == 0 else (slice(0, shape[0]), part)


def load_weights(
    checkpoint: "Checkpoint",
    names: str | Sequence[str],
    *,
    shard: Shard | None = None,
    device: str | torch.device = "cpu",
    into: tuple[Tensor, Tensor] | Tensor | None = None,
) -> tuple[Tensor, Tensor] | Tensor:
    """The second operand of a product: (values, scales) of an FP8 weight, or one BF16 tensor.

    One name gives a matrix (n, k); several, of equal shape and type, the stack (groups, n, k) of a grouped product, in
    that order: the experts a rank serves. `into`: fills these instead of new tensors (shapes and types as returned).
    Shares of FP8 weights begin at whole blocks of 128.
    Raises: KeyError for a name that is not there, BadArgument for what does not fit, CorruptData, OSError.
    """
    from ..weights import Slice

    wanted = [names] if isinstance(names, str) else list(names)
    if not wanted:
        raise BadArgument("names is empty; name at least one weight")
    info = checkpoint.info(wanted[0])
    for name in wanted:
        other = checkpoint.info(name)
        if (other.dtype, other.shape) != (info.dtype, info.shape):
            refuse(
                name, f"{other.dtype} {other.shape}", f"it must be as {info.name}, {info.dtype} {info.shape}"
            )
    if info.dtype not in _TORCH or len(info.shape) != 2:
        refuse(info.name, f"{info.dtype} {info.shape}", "a weight is a matrix of F8_E4M3 or BF16")
    n, k = info.shape
    fp8 = info.dtype == "F8_E4M3"
    index = shard.index((n, k), unit=BLOCK if fp8 else 1) if shard else (slice(0, n), slice(0, k))
    stack = () if isinstance(names, str) else (len(wanted),)
    given = (into,) if isinstance(into, Tensor) else into
    values = _target(given, 0, (*stack, *_shape(index)), _TORCH[info.dtype], device)
    slices = [Slice(name, part, index) for name, part in zip(wanted, _parts(values, stack), strict=True)]
    if not fp8:
        checkpoint.read_slices(slices)
        return values
    blocks = tuple(slice(each.start // BLOCK, ceil_div(each.stop, BLOCK)) for each in index)
    scales = _target(given, 1, (*stack, *_shape(blocks)), torch.float32, device)
    for name, part in zip(wanted, _parts(scales, stack), strict=True):
        found = checkpoint.info(name + SCALE_SUFFIX)
        if found.dtype != "F32" or found.shape != (ceil_div(n, BLOCK), ceil_div(k, BLOCK)):
            refuse(
                found.name,
                f"{found.dtype} {found.shape}",
                f"it must be F32, one for each 128 x 128 of {name}",
            )
        slices.append(Slice(found.name, part, blocks))
    checkpoint.read_slices(slices)
    return values, scales


def _shape(index: Sequence[slice]) -> tuple[int, ...]:
    return tuple(each.stop - each.start for each in index)


def _parts(target: Tensor, stack: tuple[int, ...]) -> list[Tensor]:
    return list(target) if stack else [target]


def _target(
    given: tuple[Tensor, ...] | None,
    place: int,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: str | torch.device,
) -> Tensor:
    if given is None:
        return torch.empty(shape, dtype=dtype, device=device)
    if place >= len(given):
        raise BadArgument("into lacks scales: FP8 weights fill a pair of tensors")
    target = given[place]
    if tuple(target.shape) != shape or target.dtype != dtype:
        refuse(f"into[{place}]", f"{target.dtype} {tuple(target.shape)}", f"it must be {dtype} {shape}")
    return target


__all__ = ["SCALE_SUFFIX", "Shard", "load_weights"]
