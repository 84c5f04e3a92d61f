"""Weights of a checkpoint in the form the products want, a rank's part of them, without a copy on the way.

    checkpoint = Checkpoint.open("lu:/models/v3")
    part = checkpoint.info("layers.3.mlp.down_proj.weight").shard(rank, ranks, dimension=1)
    b = load_weights(checkpoint, "layers.3.mlp.down_proj.weight", index=part, device="cuda")
    fp8_gemm_nt(a, b, out)

FP8 checkpoints of DeepSeek keep weights (n, k) e4m3 and, under the name + "_scale_inv", float32 scales of 128 × 128
blocks: already what the kernels read, so bytes go from storage into the operands. Reads, many in flight, and their
checksums are those of `luciola.plugins.weights`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from ..kernels.errors import BadArgument, refuse
from ..kernels.quantize import BLOCK, FP8, ceil_div

if TYPE_CHECKING:  # the products work without the file system's native module
    from ..weights import Checkpoint

SCALE_SUFFIX: Final = "_scale_inv"
_TORCH: Final = {"F8_E4M3": FP8, "BF16": torch.bfloat16}


def load_weights(
    checkpoint: "Checkpoint",
    names: str | Sequence[str],
    *,
    index: Sequence[slice] = (),
    device: str | torch.device = "cpu",
) -> tuple[Tensor, Tensor] | Tensor:
    """The second operand of a product: (values, scales) of an FP8 weight, or one BF16 tensor.

    One name gives a matrix (n, k); several, of equal shape and type, the stack (groups, n, k) of a grouped product, in
    that order: the experts a rank serves. `index`: which rows and columns of each, as `TensorInfo.shard` gives them for
    a rank; of FP8 weights, whole blocks of 128.
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
    part = _part(index, info.shape, unit=BLOCK if fp8 else 1)
    stack = () if isinstance(names, str) else (len(wanted),)

    def target(part: Sequence[slice], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        """What is returned, and its parts by name."""
        sizes = [each.stop - each.start for each in part]
        made = torch.empty(*stack, *sizes, dtype=dtype, device=device)
        return made, list(made) if stack else [made]

    values, targets = target(part, _TORCH[info.dtype])
    slices = [Slice(name, each, part) for name, each in zip(wanted, targets, strict=True)]
    if not fp8:
        checkpoint.read_slices(slices)
        return values
    blocks = tuple(slice(each.start // BLOCK, ceil_div(each.stop, BLOCK)) for each in part)
    scales, targets = target(blocks, torch.float32)
    for name, each in zip(wanted, targets, strict=True):
        found = checkpoint.info(name + SCALE_SUFFIX)
        if found.dtype != "F32" or found.shape != (ceil_div(n, BLOCK), ceil_div(k, BLOCK)):
            refuse(
                found.name,
                f"{found.dtype} {found.shape}",
                f"it must be F32, one for each 128 x 128 of {name}",
            )
        slices.append(Slice(found.name, each, blocks))
    checkpoint.read_slices(slices)
    return values, scales


def _part(index: Sequence[slice], shape: Sequence[int], *, unit: int) -> tuple[slice, ...]:
    """Both slices, from a number to a number. Raises: BadArgument unless they are of whole units."""
    part = tuple(
        slice(each.start or 0, size if each.stop is None else each.stop, each.step)
        for each, size in zip((*index, slice(None), slice(None)), shape, strict=False)
    )
    for each, size in zip(part, shape, strict=True):
        inside = 0 <= each.start <= each.stop <= size and each.step in {None, 1}
        if not inside or any(at % unit and at != size for at in (each.start, each.stop)):
            refuse("index", index, f"it must lie within {tuple(shape)}, at multiples of {unit}")
    return part


__all__ = ["SCALE_SUFFIX", "load_weights"]
