"""Every operator names the argument that it cannot take and says what is allowed, for all that the original asserts."""

import pytest
import torch

from luciola.plugins import deepgemm
from luciola.plugins.kernels.errors import BadArgument, BadType
from luciola.plugins.kernels.layers import recording, using_layer

BF16, FP8, F32, I32 = torch.bfloat16, torch.float8_e4m3fn, torch.float32, torch.int32


def zeros(*shape, dtype=BF16):
    return torch.zeros(shape).to(dtype)


def fp8(*shape, rows=1):
    """Values, and scales of so many rows."""
    *groups, m, k = shape
    return zeros(*shape, dtype=FP8), zeros(*groups, -(-m // rows), -(-k // 128), dtype=F32)


def overlapping(*shape, dtype=BF16):
    return zeros(shape[-1], dtype=dtype).expand(shape)


def shifted():
    """c in d's memory, its rows apart by something else."""
    memory = zeros(16 * 32, dtype=F32)
    return memory.as_strided((16, 16), (16, 1)), memory.as_strided((16, 16), (32, 1))


def calls():
    """Of each operator: arguments that are right. Each case changes some of them."""
    flat = (zeros(16 * 256, dtype=FP8), zeros(16, 2, dtype=F32))
    gradient, sizes = zeros(2, 16, 16, dtype=F32), zeros(2, dtype=I32)
    return {
        "fp8_gemm_nt": {"a": fp8(4, 128), "b": fp8(16, 128, rows=128), "d": zeros(4, 16)},
        "bf16_gemm_nt": {"a": zeros(4, 64), "b": zeros(16, 64), "d": zeros(4, 16)},
        "cublaslt_gemm_nt": {"a": zeros(4, 64), "b": zeros(16, 64), "d": zeros(4, 16)},
        "m_grouped_fp8_gemm_nt_contiguous": {
            "a": fp8(128, 128), "b": fp8(2, 16, 128, rows=128), "d": zeros(128, 16),
            "grouped_layout": zeros(128, dtype=I32),
        },
        "m_grouped_bf16_gemm_nt_contiguous": {
            "a": zeros(128, 64), "b": zeros(2, 16, 64), "d": zeros(128, 16), "grouped_layout": zeros(128, dtype=I32),
        },
        "m_grouped_fp8_gemm_nt_masked": {
            "a": fp8(2, 8, 128), "b": fp8(2, 16, 128, rows=128), "d": zeros(2, 8, 16),
            "masked_m": zeros(2, dtype=I32), "expected_m": 4,
        },
        "m_grouped_bf16_gemm_nt_masked": {
            "a": zeros(2, 8, 64), "b": zeros(2, 16, 64), "d": zeros(2, 8, 16), "masked_m": zeros(2, dtype=I32),
            "expected_m": 4,
        },
        "k_grouped_fp8_gemm_nt_contiguous": {
            "a": flat, "b": flat, "d": gradient, "ks_cpu": [128, 128], "grouped_layout": sizes, "c": gradient,
        },
        "k_grouped_bf16_gemm_tn_contiguous": {
            "a": zeros(64, 16), "b": zeros(64, 16), "d": gradient, "ks_cpu": [32, 32], "grouped_layout": sizes,
            "c": gradient,
        },
        "einsum": {"expr": "bhr,hdr->bhd", "a": zeros(4, 2, 64), "b": zeros(2, 16, 64), "d": zeros(4, 2, 16)},
    }  # fmt: skip


def cases():
    c, d = shifted()
    dense, grouped = "fp8_gemm_nt", "m_grouped_fp8_gemm_nt_contiguous"
    return [
        (dense, {"a": zeros(4, 128, dtype=FP8)}, r"a is Tensor; it must be a pair of tensors"),
        (dense, {"a": (zeros(4, 128, dtype=FP8), None)}, r"a is tuple; it must be a pair"),
        (dense, {"a": fp8(4, 256)}, "a has k = 256 and b has k = 128"),
        (dense, {"a": (overlapping(4, 128, dtype=FP8), zeros(4, 1, dtype=F32))}, r"rows of 128 must not overlap"),
        (dense, {"d": None}, "d is a NoneType; it must be a tensor"),
        (dense, {"d": zeros(4, 16, dtype=F32)}, "d has dtype torch.float32; it must be torch.bfloat16"),
        (dense, {"d": overlapping(4, 16)}, "d is of strides .*; rows of 16 must not overlap"),
        (dense, {"d": zeros(16, 4).T}, "d.stride.*the last dimension must be contiguous"),
        (dense, {"recipe": 128}, "recipe is int; it must be a tuple"),
        (dense, {"recipe": (1, 1, 32)}, "SM90 knows"),
        ("bf16_gemm_nt", {"a": [1.0]}, "a is a list; it must be a tensor"),
        ("bf16_gemm_nt", {"a": zeros(4, 64).half()}, "a has dtype torch.float16; it must be torch.bfloat16"),
        ("bf16_gemm_nt", {"a": zeros(64)}, r"a.shape is \(64,\); it must be \(any, any\)"),
        ("bf16_gemm_nt", {"c": zeros(4, 16, dtype=F32)}, "c has dtype torch.float32; it must be torch.bfloat16"),
        ("bf16_gemm_nt", {"c": zeros(4, 8)}, r"c.shape is \(4, 8\); it must be \(4, 16\)"),
        (
            "bf16_gemm_nt",
            {"a": zeros(16, 64), "c": c, "d": d},
            r"c is of strides \(16, 1\) in d's memory; there it must have d's, \(32, 1\)",
        ),
        ("cublaslt_gemm_nt", {"a": zeros(4, 32)}, "a has k = 32 and b has k = 64"),
        ("cublaslt_gemm_nt", {"a": zeros(2, 4, 64)}, "a must be a matrix"),
        ("cublaslt_gemm_nt", {"d": zeros(4, 4)}, r"it must be \(4, 16\)"),
        (grouped, {"b": fp8(0, 16, 128, rows=128)}, "at least one"),
        (grouped, {"grouped_layout": [0] * 128}, "grouped_layout is a list; it must be a tensor"),
        (grouped, {"grouped_layout": zeros(256, dtype=I32)[::2]}, "grouped_layout.stride.*must be"),
        (grouped, {"expected_m_for_psum_layout": 4}, "goes with use_psum_layout"),
        (
            grouped,
            {"use_psum_layout": True, "grouped_layout": zeros(2, dtype=I32), "expected_m_for_psum_layout": 0},
            "expected_m_for_psum_layout is 0; it must be positive",
        ),
        ("m_grouped_bf16_gemm_nt_contiguous", {"expected_m_for_psum_layout": 4}, "goes with use_psum_layout"),
        ("m_grouped_bf16_gemm_nt_contiguous", {"d": zeros(128, 16, dtype=F32)}, "d has dtype torch.float32"),
        ("m_grouped_fp8_gemm_nt_masked", {"expected_m": 0}, "expected_m is 0; it must be positive"),
        ("m_grouped_fp8_gemm_nt_masked", {"masked_m": zeros(3, dtype=I32)}, r"it must be \(2,\)"),
        ("m_grouped_bf16_gemm_nt_masked", {"a": zeros(3, 8, 64)}, r"it must be \(groups = 2, max_m, k\)"),
        ("k_grouped_fp8_gemm_nt_contiguous", {"ks_cpu": zeros(2, dtype=I32)}, "ks_cpu is Tensor; it must be a list"),
        ("k_grouped_fp8_gemm_nt_contiguous", {"ks_cpu": []}, "ks_cpu is empty"),
        ("k_grouped_fp8_gemm_nt_contiguous", {"ks_cpu": [64, 192]}, "every size must be a multiple of 128"),
        ("k_grouped_fp8_gemm_nt_contiguous", {"c": None}, "give c"),
        ("k_grouped_fp8_gemm_nt_contiguous", {"recipe": (1, 128, 128)}, r"it must be \(1, 1, 128\)"),
        ("k_grouped_fp8_gemm_nt_contiguous", {"use_psum_layout": True}, "SM90 has no such layout"),
        ("k_grouped_bf16_gemm_tn_contiguous", {"ks_cpu": [32, 16]}, r"sum up to the rows of a \(64\)"),
        ("k_grouped_bf16_gemm_tn_contiguous", {"ks_cpu": [96, -32]}, "ks_cpu is"),
        ("k_grouped_bf16_gemm_tn_contiguous", {"c": zeros(2, 16, 16)}, "c has dtype torch.bfloat16"),
        ("einsum", {"a": None}, "a is a NoneType; it must be a tensor"),
        ("einsum", {"expr": "ab,bc->ac"}, "expr is 'ab,bc->ac'; it must be one of"),
        ("einsum", {"d": zeros(4, 2, 8)}, r"it must be \(4, 2, 16\)"),
    ]  # fmt: skip


@pytest.mark.parametrize("operator", calls())
def test_what_is_right_is_computed_by_a_kernel_as_by_the_reference(operator):
    given = calls()[operator]
    results = []
    for layer in ("triton", "reference"):
        poisoned = {**given, "d": torch.full_like(given["d"], float("nan"))}
        with using_layer(layer), recording() as launches:
            getattr(deepgemm, operator)(**poisoned)
        assert bool(launches) == (layer == "triton" and operator != "cublaslt_gemm_nt")
        results.append(poisoned["d"])
    left_alone = "masked" in operator  # no row of a group is real
    for result in results:
        assert bool((result.isnan() if left_alone else result == 0).all())


def test_knobs_act_or_are_refused():
    with pytest.raises(BadArgument, match="leave it off"):
        deepgemm.set_pdl(True)
    with pytest.raises(BadArgument, match="leave it at 100"):
        deepgemm.set_tc_util(90)
    deepgemm.set_pdl(False)
    deepgemm.set_tc_util(100)
    assert (deepgemm.get_pdl(), deepgemm.get_tc_util()) == (False, 100)
    for bad in (0, 3, -2):
        with pytest.raises(BadArgument, match="positive and even"):
            deepgemm.set_num_sms(bad)


@pytest.mark.parametrize("number", range(len(cases())))
def test_what_is_wrong_is_named(number):
    operator, changes, message = cases()[number]
    with pytest.raises((BadArgument, BadType), match=message) as caught:
        getattr(deepgemm, operator)(**{**calls()[operator], **changes})
    assert isinstance(caught.value, RuntimeError), "as callers of the original expect"
