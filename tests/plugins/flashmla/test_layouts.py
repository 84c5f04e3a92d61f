"""FP8 layouts, read back byte by byte by a decoder that shares nothing with the plugin."""

import math
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mla_cases as cases
from luciola.plugins.flashmla import dequantize_model1, dequantize_v32, quantize_model1, quantize_v32


def e4m3(byte):
    sign, exponent, mantissa = -1.0 if byte & 128 else 1.0, byte >> 3 & 15, byte & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    return sign * (mantissa * 2.0**-9 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))


def bf16(two):
    return struct.unpack("<f", b"\0\0" + two)[0]


def decode_v32(token):
    scales = struct.unpack("<4f", token[512:528])
    latent = [e4m3(token[place]) * scales[place // 128] for place in range(512)]
    return latent + [bf16(token[place : place + 2]) for place in range(528, 656, 2)]


def decode_model1(page, tokens, token):
    row, scales = page[576 * token :][:576], page[576 * tokens + 8 * token :][:7]
    latent = [e4m3(row[place]) * 2.0 ** (scales[place // 64] - 127) for place in range(448)]
    return latent + [bf16(row[place : place + 2]) for place in range(448, 576, 2)]


def raw(cache, page, count):
    """The bytes of a page, behind its last token too."""
    return bytes(cache.view(torch.uint8).as_strided((count,), (1,), page * cache.stride(0)).tolist())


def test_v32_bytes():
    rows = cases.rows(1, 2, 3, 1, 576) * torch.tensor([1e-3, 1.0, 1e3]).view(1, 3, 1, 1).bfloat16()
    cache = quantize_v32(rows)
    assert cache.shape == (2, 3, 1, 656)
    held = dequantize_v32(cache)
    for page in range(2):
        memory = raw(cache, page, 3 * 656)
        for token in range(3):
            by_hand = decode_v32(memory[656 * token :][:656])
            assert held[page, token, 0].tolist() == torch.tensor(by_hand).bfloat16().tolist()


@pytest.mark.parametrize(("tokens", "page_bytes"), [(64, 37440), (3, 2304)])
def test_model1_bytes(tokens, page_bytes):
    rows = cases.rows(1, 2, tokens, 1, 512)
    cache = quantize_model1(rows)
    assert cache.shape == (2, tokens, 1, 584)
    assert cache.stride(0) == page_bytes
    assert page_bytes % 576 == 0
    held = dequantize_model1(cache)
    for page in range(2):
        memory = raw(cache, page, page_bytes)
        for token in {0, 1, tokens - 1}:
            by_hand = decode_model1(memory, tokens, token)
            assert held[page, token, 0].tolist() == torch.tensor(by_hand).bfloat16().tolist()


@pytest.mark.parametrize(
    ("largest", "scale"),
    [(448.0, 1.0), (449.0, 2.0), (224.0, 0.5), (0.0, 2.0**-22), (1e-9, 2.0**-22), (3e4, 128.0)],
)
def test_scales_are_powers_of_two_rounded_up(largest, scale):
    rows = torch.zeros(1, 1, 1, 576)
    rows[..., 5] = -largest
    written = quantize_v32(rows).view(torch.uint8)[0, 0, 0, 512:528].view(torch.float32)
    assert written.tolist() == [scale, 2.0**-22, 2.0**-22, 2.0**-22]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(-12, 12))
def test_round_trip_is_within_an_eighth_of_a_step(seed, power):
    rows = torch.randn(1, 2, 1, 576, generator=torch.Generator().manual_seed(seed)) * 2.0**power
    for held, group, width in (
        (dequantize_v32(quantize_v32(rows)), 128, 512),
        (dequantize_model1(quantize_model1(rows[..., :512])), 64, 448),
    ):
        want = rows[..., :width].unflatten(-1, (-1, group))
        got = held[..., :width].float().unflatten(-1, (-1, group))
        # Half a step of e4m3 (2^-4 relative, or 2^-10 of the smallest scale), and the rounding to bfloat16.
        step = want.abs().amax(-1, keepdim=True).clamp(min=1e-4) / 224 * 2.0**-10
        assert ((got - want).abs() <= want.abs() * (2.0**-4 + 2.0**-8) + step).all()


def test_infinities_saturate_and_nan_stays():
    rows = torch.zeros(1, 1, 1, 576)
    rows[..., 0], rows[..., 200] = math.inf, math.nan
    held = dequantize_v32(quantize_v32(rows))[0, 0, 0]
    assert held[0] > 1e38
    assert held[200].isnan()
    assert held[201] == 0


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"rows\.shape is \(1, 2, 1, 512\).*576"):
        quantize_v32(torch.zeros(1, 2, 1, 512))
    with pytest.raises(TypeError, match="int32"):
        quantize_model1(torch.zeros(1, 2, 1, 512, dtype=torch.int32))
    with pytest.raises(TypeError, match="FP8 cache is"):
        dequantize_v32(torch.zeros(1, 2, 1, 656))
    with pytest.raises(ValueError, match="follow one another"):
        dequantize_v32(torch.zeros(1, 4, 1, 656, dtype=torch.uint8)[:, ::2])
