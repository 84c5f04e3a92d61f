"""Casts on the way: FP8 as DeepGEMM reads it, packed exponents, LogFMT."""

import pytest
import torch

from luciola.plugins.compat.deep_ep.utils.math import calc_diff
from luciola.plugins.deepep.low_latency.quantize import (
    LOG_RANGE,
    LOG_STEPS,
    cast_from_fp8,
    cast_to_fp8,
    from_logfmt,
    to_logfmt,
)

STEP = 2 ** (LOG_RANGE / LOG_STEPS / 2) - 1  # half a step, as a factor


def values(rows=8, channels=512, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, channels, generator=generator) * scale).to(torch.bfloat16)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 3e4])
def test_fp8_keeps_three_bits_of_every_block(scale):
    x = values(scale=scale).float()
    x[0, :128], x[1, 5] = 0, 1e3 * scale
    restored = cast_from_fp8(*cast_to_fp8(x)).float()
    blocks = x.unflatten(-1, (-1, 128))
    floor = blocks.abs().amax(-1, keepdim=True).clamp(1e-4) / 448 * 2**-9  # half of the least e4m3
    wrong = (restored.unflatten(-1, (-1, 128)) - blocks).abs()
    assert bool((wrong <= blocks.abs() / 14 + 1.01 * floor).all())
    assert not restored[0, :128].any()


def test_rounded_scales_are_powers_of_two_that_hold_every_value():
    x = values()
    _, exact = cast_to_fp8(x)
    codes, rounded = cast_to_fp8(x, round_scale=True)
    assert bool((torch.frexp(rounded)[0] == 0.5).all())
    assert bool(((rounded >= exact) & (rounded < 2 * exact)).all())
    assert bool((codes.float().abs() <= 448).all())
    same, packed = cast_to_fp8(x, round_scale=True, use_ue8m0=True)
    assert torch.equal(same.view(torch.uint8), codes.view(torch.uint8))
    assert packed.shape == (8, 1)
    assert torch.equal(cast_from_fp8(same, packed), cast_from_fp8(codes, rounded))


def test_packed_exponents_need_rounded_scales_and_four_blocks():
    with pytest.raises(ValueError, match="round_scale=True"):
        cast_to_fp8(values(), use_ue8m0=True)
    with pytest.raises(ValueError, match="384; it must be a multiple of 512"):
        cast_to_fp8(values(channels=384), round_scale=True, use_ue8m0=True)
    with pytest.raises(TypeError, match="it must be a float type"):
        cast_to_fp8(torch.zeros(1, 128, dtype=torch.int64))


@pytest.mark.parametrize("scale", [1e-30, 0.1, 1e30])
def test_logfmt_is_wrong_by_half_a_step_at_most(scale):
    x = values(scale=scale).float()
    restored = from_logfmt(*to_logfmt(x))
    near = x.abs() > x.abs().unflatten(-1, (-1, 128)).amax(-1).repeat_interleave(128, -1) * 2**-LOG_RANGE
    assert bool(((restored - x).abs() <= x.abs() * STEP * 1.001)[near].all())
    assert calc_diff(restored, x) < 1e-5 or scale != 0.1


def test_logfmt_keeps_zeros_equal_values_and_signs():
    x = values().float()
    x[0, :128], x[1, ::2], x[2, :128] = 0, 0, -3.0
    x[3, 0], x[3, 1] = 2.0**40, 1.0  # the second is out of the block's range
    packed, ranges = to_logfmt(x)
    assert (packed.shape, packed.dtype, ranges.shape) == ((8, 640), torch.uint8, (8, 4, 2))
    restored = from_logfmt(packed, ranges)
    assert not restored[0, :128].any()
    assert not restored[1, ::2].any()
    assert torch.allclose(restored[2, :128], x[2, :128], rtol=1e-6, atol=0)
    assert restored[3, 1] == 0
    assert torch.equal(restored.sign()[4:], x.sign()[4:])
    assert bool(restored.isfinite().all())
