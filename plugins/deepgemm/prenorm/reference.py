"""The specification of the product before the norm, in plain torch."""

from torch import Tensor


def prenorm_gemm(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 A · Bᵀ, and the sum of squares of each row of A. Shapes: a (m, k), b (n, k); results (m, n) and (m,)."""
    return a.float() @ b.T, a.float().square().sum(1)


__all__ = ["prenorm_gemm"]
