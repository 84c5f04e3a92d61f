"""A product whose arguments have been checked, and the layer that runs it.

Public functions check shapes, strides, dtypes, addresses and devices, and say the rule in their errors. Layers get a
`Call` and check nothing again: `run(call)` of `reference`, `launch` (Triton) and `hopper` (Gluon).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from torch import Tensor

from ...kernels.layers import layer_for

DENSE: Final = 0
CONTIGUOUS: Final = 1
PSUM: Final = 2
MASKED: Final = 3
K_GROUPED: Final = 4
NAME_PREFIXES: Final = {
    DENSE: "",
    CONTIGUOUS: "m_grouped_contiguous_",
    PSUM: "m_grouped_psum_",
    MASKED: "m_grouped_masked_",
}


class Scales(NamedTuple):
    """Scales of both operands of an FP8 product; `of_rows`: B has one a row, not one for 128 rows."""

    a: Tensor
    b: Tensor
    of_rows: bool = False


class Heads(NamedTuple):
    """Output columns with a hole of `mid` in each head of left + right columns."""

    left: int
    mid: int
    right: int


@dataclass(frozen=True)
class Call:
    """D = A · Bᵀ; with `accumulate` added to D. FP8 if it has scales, else bfloat16.

    mode          a                     b                 layout: int32 on the device
    DENSE         (m, k)                (n, k)            none
    CONTIGUOUS    (m, k)                (groups, n, k)    the group of each row, -1 for none
    PSUM          (m, k)                (groups, n, k)    where each group's rows end
    MASKED        (groups, max_m, k)    (groups, n, k)    how many rows of each group are real
    K_GROUPED     (sum k, m)            (sum k, n)        k of each group; FP8: flat blocks (m, k) and (n, k)

    A or B that is transposed is stored (k, m), or (…, k, n). `rows`: about how many rows of D a group has, a hint for
    the choice of tiles. `alignment`: of groups in a contiguous layout. K_GROUPED: D = C + …, d (groups, m, n).
    """

    mode: int
    a: Tensor
    b: Tensor
    d: Tensor
    scales: Scales | None = None
    layout: Tensor | None = None
    rows: int = 0
    alignment: int = 128
    a_transposed: bool = False
    b_transposed: bool = False
    accumulate: bool = False
    heads: Heads | None = None
    c: Tensor | None = None
    ks: Sequence[int] = ()

    @property
    def k(self) -> int:
        """Columns that are summed over, of all groups."""
        if self.mode == K_GROUPED:
            return sum(self.ks)
        return self.a.shape[-2 if self.a_transposed else -1]

    @property
    def n(self) -> int:
        """Columns of A · Bᵀ."""
        return self.d.shape[-1] if self.heads is None else self.b.shape[-2]

    @property
    def groups(self) -> int:
        """Groups of B, or of D."""
        return self.d.shape[0] if self.mode == K_GROUPED else self.b.shape[0] if self.b.dim() == 3 else 1

    @property
    def fp8(self) -> bool:
        """Whether operands are e4m3 with scales."""
        return self.scales is not None

    def strides(self, sfa: Tensor, sfb: Tensor) -> tuple[int, ...]:
        """Return those of groups and rows of D, of groups, rows and columns of both operands' scales."""
        masked = self.mode == MASKED
        return (
            self.d.stride(0) if masked else 0, self.d.stride(-2),
            sfa.stride(0) if masked else 0, sfa.stride(-2), sfa.stride(-1),
            sfb.stride(0) if sfb.dim() == 3 else 0, sfb.stride(-2), sfb.stride(-1),
        )  # fmt: skip


def run(call: Call) -> None:
    """Fill D in the layer for its device: the fast path if it takes the product."""
    layer = layer_for(call.d)
    if layer == "reference" or call.k == 0:
        from . import reference

        reference.run(call)
        return
    from . import launch

    if layer == "hopper":
        from . import hopper

        if hopper.takes(call):
            hopper.run(call)
            return
    launch.run(call)


__all__ = [
    "CONTIGUOUS", "DENSE", "K_GROUPED", "MASKED", "NAME_PREFIXES", "PSUM", "Call", "Heads", "Scales", "run",
]  # fmt: skip
