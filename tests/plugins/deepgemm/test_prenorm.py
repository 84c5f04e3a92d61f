"""The product before the norm of hyper-connections: kernel and reference against float64, with NaN around."""

import pytest
import torch

from luciola.plugins import deepgemm
from luciola.plugins.kernels.errors import BadArgument, BadType
from luciola.plugins.kernels.layers import recording, using_layer

ON_GPU = torch.cuda.is_available()
POISON = float("nan")


@pytest.mark.parametrize("layer", ["reference", "triton"])
@pytest.mark.parametrize(("m", "n", "k", "splits"), [(13, 24, 200, None), (70, 24, 136, 3), (1, 130, 8, 1)])
def test_products_and_squares_are_sums_of_their_parts(m, n, k, splits, layer):
    wide = torch.full((m, k + 8), POISON, dtype=torch.bfloat16)
    wide[:, :k] = torch.randn(m, k)
    a, b = wide[:, :k], torch.randn(n, k)
    parts = () if splits is None else (splits,)
    d, squares = torch.full((*parts, m, n), POISON), torch.full((*parts, m), POISON)
    with using_layer(layer):
        deepgemm.tf32_hc_prenorm_gemm(a, b, d, squares, num_splits=splits)
    if splits is not None:
        d, squares = d.sum(0), squares.sum(0)
    # A GPU cuts b to 10 bits.
    assert deepgemm.calc_diff(d, a.double() @ b.double().T) < (1e-6 if ON_GPU else 1e-12)
    assert deepgemm.calc_diff(squares, a.double().square().sum(1)) < 1e-12


def test_no_rows_start_no_kernel():
    a, b = torch.ones(8, 64, dtype=torch.bfloat16), torch.ones(24, 64)
    with using_layer("triton"), recording() as launches:
        deepgemm.tf32_hc_prenorm_gemm(a[:0], b, torch.empty(0, 24), torch.empty(0))
        deepgemm.tf32_hc_prenorm_gemm(a[:0], b, torch.empty(3, 0, 24), torch.empty(3, 0), 3)
        assert launches == []
        deepgemm.tf32_hc_prenorm_gemm(a, b, torch.empty(8, 24), torch.empty(8))
    assert [each.kernel for each in launches] == ["tf32_hc_prenorm_gemm_kernel"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a": torch.ones(4, 64)}, "a has dtype torch.float32; it must be torch.bfloat16"),
        ({"b": torch.ones(24, 32)}, r"b.shape is \(24, 32\); it must be \(any, 64\)"),
        ({"b": torch.ones(24, 64).half()}, "b has dtype torch.float16"),
        ({"b": torch.ones(0, 64)}, "n and k must be positive"),
        ({"d": torch.ones(4, 23)}, r"d.shape is \(4, 23\); it must be \(4, 24\)"),
        ({"d": torch.ones(24, 4).T}, "last dimension must be contiguous"),
        ({"d": torch.ones(24).expand(4, 24)}, "overlap"),
        ({"squares": torch.ones(8)[::2]}, "sqr_sum.stride"),
        ({"num_splits": 0}, "num_splits is 0; it must be 1 to"),
        ({"num_splits": 2}, r"d.shape is \(4, 24\); it must be \(2, 4, 24\)"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    given = {
        "a": torch.ones(4, 64, dtype=torch.bfloat16), "b": torch.ones(24, 64), "d": torch.ones(4, 24),
        "squares": torch.ones(4), "num_splits": None,
    }  # fmt: skip
    given |= {
        name: each.to(given["b"].device) if isinstance(each, torch.Tensor) else each
        for name, each in changes.items()
    }
    with pytest.raises((BadArgument, BadType), match=message):
        deepgemm.tf32_hc_prenorm_gemm(*given.values())
