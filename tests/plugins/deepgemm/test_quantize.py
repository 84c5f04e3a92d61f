"""Casts to FP8 against an independent decoder, and the edges of their scales."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luciola.plugins import deepgemm
from luciola.plugins.kernels.errors import BadArgument
from luciola.plugins.kernels.layers import using_layer
from luciola.plugins.kernels.quantize import FP8, dequantize


def decoded(values: torch.Tensor) -> np.ndarray:
    """E4M3 by its definition: sign, four exponent bits of bias 7, three of mantissa."""
    bits = values.view(torch.uint8).cpu().numpy().astype(np.int64)
    sign, exponent, mantissa = np.where(bits >> 7, -1.0, 1.0), (bits >> 3) & 15, bits & 7
    assert not np.any((exponent == 15) & (mantissa == 7)), "no NaN"
    normal = (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return sign * np.where(exponent == 0, mantissa / 8 * 2.0**-6, normal)


@pytest.mark.parametrize("use_ue8m0", [False, True])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (3, 128), (5, 130), (130, 257)])
def test_a_token_s_cast_is_close_and_its_scales_are_as_defined(m: int, n: int, use_ue8m0: bool) -> None:
    x = torch.randn(m, n, dtype=torch.bfloat16) * 10
    values, scales = deepgemm.per_token_cast_to_fp8(x, use_ue8m0)
    assert (values.dtype, values.shape, scales.shape) == (FP8, (m, n), (m, -(-n // 128)))
    for block in range(scales.shape[1]):
        part = x[:, block * 128 : (block + 1) * 128].float()
        wanted = part.abs().amax(1).clamp(1e-4) / 448
        if use_ue8m0:
            wanted = torch.exp2(torch.ceil(torch.log2(wanted.double()))).float()
        assert torch.equal(scales[:, block], wanted)
        restored = (
            decoded(values[:, block * 128 : (block + 1) * 128]) * scales[:, block : block + 1].cpu().numpy()
        )
        # Half a step of three mantissa bits, or of the smallest number.
        tolerance = (
            np.maximum(np.abs(part.cpu().numpy()) / 16, scales[:, block : block + 1].cpu().numpy() * 2.0**-10)
            * 1.001
        )
        assert np.all(np.abs(restored - part.cpu().numpy()) <= tolerance)


def test_blocks_and_channels_share_scales_as_named() -> None:
    x = torch.randn(256, 200)
    values, scales = deepgemm.per_block_cast_to_fp8(x, False)
    assert scales.shape == (2, 2)
    assert torch.equal(scales[1, 1], x[128:, 128:].abs().max() / 448)
    assert deepgemm.calc_diff(dequantize(values, scales, gran_m=128), x) < 1e-3
    values, scales = deepgemm.per_channel_cast_to_fp8(x, False)
    assert scales.shape == (2, 200)
    assert torch.equal(scales[1], x[128:].abs().amax(0) / 448)
    by_token = deepgemm.per_token_cast_to_fp8(x.T.contiguous(), False)
    assert torch.equal(values.view(torch.uint8), by_token[0].T.contiguous().view(torch.uint8))
    values, scales = deepgemm.per_custom_dims_cast_to_fp8(x.view(2, 128, 200), (0, 2), False)
    assert torch.equal(scales, x.view(2, 128, 200).abs().amax(1) / 448)


def test_zeros_and_the_largest_numbers_have_finite_casts() -> None:
    values, scales = deepgemm.per_token_cast_to_fp8(torch.zeros(2, 128), False)
    assert torch.equal(values.float(), torch.zeros(2, 128))
    assert torch.equal(scales, torch.full((2, 1), 1e-4) / 448)
    largest = torch.full((1, 128), torch.finfo(torch.float32).max)
    assert torch.isfinite(deepgemm.per_token_cast_to_fp8(largest, False)[0].float()).all()


@settings(max_examples=200, deadline=None)
@given(st.floats(min_value=2.0**-120, max_value=2.0**120, width=32))
def test_ue8m0_rounds_up_to_the_next_power_of_two(number: float) -> None:
    rounded = deepgemm.ceil_to_ue8m0(torch.tensor([number])).item()
    assert rounded / 2 < number <= rounded
    assert np.frexp(rounded)[0] == 0.5


def test_packed_exponents_are_four_bytes_low_first() -> None:
    x = torch.tensor([[1.0, 2.0, 0.5, 2.0**-126]])
    packed = deepgemm.pack_ue8m0_to_int(x)
    assert packed.view(torch.uint8).tolist() == [[127, 128, 126, 1]]
    assert torch.equal(deepgemm.unpack_ue8m0_from_int(packed), x)
    with pytest.raises(BadArgument, match="no powers of two"):
        deepgemm.pack_ue8m0_to_int(torch.full((1, 4), 3.0))
    with pytest.raises(BadArgument, match="multiple of 4"):
        deepgemm.pack_ue8m0_to_int(torch.ones(1, 3))


def test_difference_is_zero_for_equal_tensors_and_grows() -> None:
    x = torch.randn(10)
    assert deepgemm.calc_diff(x, x) < 1e-12
    assert deepgemm.calc_diff(torch.zeros(3), torch.zeros(3)) == 0
    assert deepgemm.calc_diff(x, -x) == pytest.approx(2)


@pytest.mark.parametrize("use_ue8m0", [False, True])
@pytest.mark.parametrize(("m", "n"), [(1, 128), (17, 256), (33, 200)])
def test_the_fused_cast_equals_the_plain_one_and_lays_its_scales_out(m: int, n: int, use_ue8m0: bool) -> None:
    x = torch.randn(m, n, dtype=torch.bfloat16)
    x[0] = 0
    wanted, plain = deepgemm.per_token_cast_to_fp8(x, use_ue8m0)
    for layer in ("reference", "triton"):
        with using_layer(layer):
            values, scales = deepgemm.quantize_activations(x, use_ue8m0=use_ue8m0)
        assert torch.equal(values.view(torch.uint8), wanted.view(torch.uint8)), layer
        assert torch.equal(scales, plain), layer
        assert scales.stride() == (1, -(-m // 4) * 4)
