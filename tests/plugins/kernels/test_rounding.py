"""Results leave kernels rounded as torch rounds them, in the interpreter too."""

import pytest
import torch
import triton
import triton.language as tl

from luciola.plugins import deepgemm
from luciola.plugins.kernels import using_layer
from luciola.plugins.kernels.kernel import narrow, rounded_to_e4m3
from luciola.plugins.kernels.layers import is_interpreting


@triton.jit
def copy_kernel(x, y, SIZE: tl.constexpr, INTERPRET: tl.constexpr):
    place = tl.arange(0, SIZE)
    tl.store(y + place, narrow(tl.load(x + place), y.dtype.element_ty, INTERPRET))


@triton.jit
def e4m3_kernel(x, y, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)
    tl.store(y + place, rounded_to_e4m3(tl.load(x + place)))


def test_e4m3_numbers_are_those_of_torch_bit_by_bit(kernel_device):
    """Numbers below half of the smallest one become zeros of their sign."""
    torch.manual_seed(9)
    small = torch.tensor([2.0**-10, 2.0**-11, 1.5 * 2.0**-9, 2.0**-6, 2.0**-6 - 2.0**-11, 0.0])
    x = torch.cat([small, -small, torch.randn(500) * 40, torch.randn(512) * 2.0**-8]).clamp(-448, 448)
    y = torch.empty(1024)
    e4m3_kernel[(1,)](x, y, 1024)
    want = x.to(torch.float8_e4m3fn)
    assert torch.equal(y.to(torch.float8_e4m3fn).view(torch.uint8), want.view(torch.uint8))
    assert torch.equal(y, want.float()), "e4m3 holds them exactly"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_narrow_rounds_to_the_nearest_and_ties_to_even(dtype, kernel_device):
    torch.manual_seed(7)
    special = [0.0, -0.0, float("inf"), float("-inf"), float("nan"), 3.4e38, 1 + 2**-8, 1 + 3 * 2**-8]
    x = torch.cat([torch.tensor(special), torch.randn(1024 - len(special))])
    y = torch.empty(1024, dtype=dtype)
    copy_kernel[(1,)](x, y, 1024, is_interpreting())
    want = x.to(dtype)
    number = ~want.isnan()
    assert torch.equal(y[number], want[number])
    assert torch.equal(y.isnan(), want.isnan())


def test_a_product_is_rounded_once(kernel_device):
    """One column of K: the sum is exact, so that each result is what torch rounds it to, bit for bit."""
    torch.manual_seed(8)
    a, b = torch.zeros(48, 8).bfloat16(), torch.zeros(40, 8).bfloat16()
    a[:, 0], b[:, 0] = torch.randn(48).bfloat16(), torch.randn(40).bfloat16()
    d = torch.empty(48, 40, dtype=torch.bfloat16)
    with using_layer("triton"):
        deepgemm.bf16_gemm_nt(a, b, d)
    assert torch.equal(d, (a[:, :1].float() * b[:, 0].float()).bfloat16())
