"""Dense products: both layers against the unquantised product and against each other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luciola.plugins import deepgemm
from luciola.plugins.kernels.errors import BadArgument, BadType
from luciola.plugins.kernels.layers import using_layer

LAYERS = ("reference", "triton", "hopper") if torch.cuda.is_available() else ("reference", "triton")
POISON = float("nan")


def operands(m: int, n: int, k: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return torch.randn(m, k).bfloat16(), torch.randn(n, k).bfloat16()


def test_a_product_by_hand() -> None:
    """Two blocks of K with different scales: 2 · 3 · (1 · 1 + 2 · 1) + 5 · 7 · (4 · 1)."""
    a = torch.zeros(1, 256)
    a[0, :2] = torch.tensor([1.0, 2.0])
    a[0, 128] = 4.0
    b = torch.zeros(8, 256)
    b[3, [0, 1, 128]] = 1.0
    for layer in LAYERS:
        d = torch.full((1, 8), POISON, dtype=torch.bfloat16)
        with using_layer(layer):
            deepgemm.fp8_gemm_nt(
                (a.to(torch.float8_e4m3fn), torch.tensor([[2.0, 5.0]])),
                (b.to(torch.float8_e4m3fn), torch.tensor([[3.0, 7.0]])),
                d,
            )
        assert d.tolist() == [[0, 0, 0, 158, 0, 0, 0, 0]]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    ("m", "n", "k"),
    [(1, 8, 16), (1, 136, 640), (64, 24, 400), (65, 128, 128), (130, 264, 384), (128, 520, 128)],
)
def test_fp8_is_near_the_unquantised_product(m: int, n: int, k: int, layer: str) -> None:
    a, b = operands(m, n, k)
    d = torch.full((m, n), POISON, dtype=torch.bfloat16)
    with using_layer(layer):
        deepgemm.fp8_gemm_nt(
            deepgemm.per_token_cast_to_fp8(a, False), deepgemm.per_block_cast_to_fp8(b, True), d
        )
    assert deepgemm.calc_diff(d, a.float() @ b.float().T) < (1e-3 if k >= 128 else 3e-3)


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 140), st.integers(1, 18), st.integers(1, 20), st.booleans(), st.integers(0, 1000))
def test_layers_agree_for_any_size(m: int, n8: int, k16: int, rows: bool, seed: int) -> None:
    a, b = operands(m, 8 * n8, 16 * k16, seed=seed)
    qa = deepgemm.per_token_cast_to_fp8(a, False)
    qb = deepgemm.per_token_cast_to_fp8(b, False) if rows else deepgemm.per_block_cast_to_fp8(b, False)
    start = torch.randn(m, 8 * n8) if rows else None
    results = []
    for layer in LAYERS:
        d = torch.full((m, 8 * n8), POISON, dtype=torch.float32 if rows else torch.bfloat16)
        with using_layer(layer):
            deepgemm.fp8_gemm_nt(qa, qb, d, start, recipe=(1, 1, 128) if rows else None)
        results.append(d)
    for result in results[1:]:
        assert deepgemm.calc_diff(results[0], result) < 2e-5


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("form", ["nt", "nn", "tn", "tt"])
@pytest.mark.parametrize(
    ("dtype", "accumulate"), [(torch.bfloat16, False), (torch.bfloat16, True), (torch.float32, True)]
)
def test_bf16_in_every_order(form: str, dtype: torch.dtype, accumulate: bool, layer: str) -> None:
    m, n, k = 72, 136, 200
    a, b = operands(m, n, k)
    stored_a = a.T.contiguous() if form[0] == "t" else a
    stored_b = b.T.contiguous() if form[1] == "n" else b
    start = torch.randn(m, n).to(dtype) if accumulate else None
    d = torch.full((m, n), POISON, dtype=dtype)
    with using_layer(layer):
        getattr(deepgemm, f"bf16_gemm_{form}")(stored_a, stored_b, d, start)
    wanted = a.float() @ b.float().T + (0 if start is None else start.float())
    assert deepgemm.calc_diff(d, wanted) < 1e-5
    baseline = torch.empty_like(d)
    getattr(deepgemm, f"cublaslt_gemm_{form}")(stored_a, stored_b, baseline, start)
    assert deepgemm.calc_diff(d, baseline) < 1e-5


@pytest.mark.parametrize("layer", LAYERS)
def test_accumulation_in_place_and_from_another_tensor(layer: str) -> None:
    a, b = operands(16, 16, 128)
    qa, qb = (deepgemm.per_token_cast_to_fp8(each, False) for each in (a, b))
    with using_layer(layer):
        once, other, d = torch.zeros(16, 16), torch.full((16, 16), 3.0), torch.full((16, 16), POISON)
        deepgemm.fp8_gemm_nt(qa, qb, once, once, recipe=(1, 1, 128))
        deepgemm.fp8_gemm_nt(qa, qb, d, other, recipe=(1, 1, 128))
        assert torch.allclose(d, once + 3, atol=1e-4)
        assert torch.equal(other, torch.full((16, 16), 3.0))
        deepgemm.fp8_gemm_nt(qa, qb, once, once, recipe_a=(1, 128), recipe_b=(1, 128))
    assert torch.allclose(once, 2 * (d - 3), atol=1e-4)


@pytest.mark.parametrize("layer", LAYERS)
def test_rows_of_d_may_be_apart_and_nothing_else_is_written(layer: str) -> None:
    a, b = operands(5, 16, 128)
    wide = torch.full((7, 40), 9.0, dtype=torch.bfloat16)
    with using_layer(layer):
        deepgemm.bf16_gemm_nt(a, b, wide[1:6, 8:24])
    assert deepgemm.calc_diff(wide[1:6, 8:24], a.float() @ b.float().T) < 1e-5
    wide[1:6, 8:24] = 9.0
    assert torch.equal(wide, torch.full_like(wide, 9.0))


@pytest.mark.parametrize("layer", LAYERS)
def test_heads_with_a_hole_leave_it_alone(layer: str) -> None:
    a, b = operands(9, 48, 128)
    d = torch.full((9, 48 + 2 * 5), 7.0, dtype=torch.bfloat16)
    with using_layer(layer):
        deepgemm.fp8_gemm_nt_skip_head_mid(
            deepgemm.per_token_cast_to_fp8(a, False), deepgemm.per_block_cast_to_fp8(b, False), d, (16, 5, 8)
        )
    wanted = a.float() @ b.float().T
    heads = d.view(9, 2, 29)
    assert torch.equal(heads[:, :, 16:21], torch.full((9, 2, 5), 7.0, dtype=torch.bfloat16))
    joined = torch.cat([heads[:, :, :16], heads[:, :, 21:]], 2).reshape(9, 48)
    assert deepgemm.calc_diff(joined, wanted) < 1e-3


@pytest.mark.parametrize("layer", LAYERS)
def test_empty_products(layer: str) -> None:
    with using_layer(layer):
        deepgemm.bf16_gemm_nt(*operands(0, 16, 64), torch.empty(0, 16))
        d = torch.full((3, 16), POISON)
        deepgemm.bf16_gemm_nt(*operands(3, 16, 0), d)
        assert torch.equal(d, torch.zeros(3, 16))
        deepgemm.bf16_gemm_nt(*operands(3, 16, 0), d, torch.ones(3, 16))
        assert torch.equal(d, torch.ones(3, 16))


def test_strange_strides_of_scales_change_nothing() -> None:
    a, b = operands(20, 16, 256)
    values, scales = deepgemm.per_token_cast_to_fp8(a, False)
    qb = deepgemm.per_block_cast_to_fp8(b, False)
    first, second = (torch.empty(20, 16, dtype=torch.bfloat16) for _ in range(2))
    with using_layer("triton"):
        deepgemm.fp8_gemm_nt((values, scales), qb, first)
        deepgemm.fp8_gemm_nt((values, deepgemm.get_mn_major_tma_aligned_tensor(scales)), qb, second)
    assert torch.equal(first, second)


def quantised(
    m: int, n: int, k: int
) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...], torch.Tensor]:
    a, b = operands(m, n, k)
    d = torch.empty(m, n, dtype=torch.bfloat16)
    return deepgemm.per_token_cast_to_fp8(a, False), deepgemm.per_block_cast_to_fp8(b, False), d


def test_what_is_refused_says_what_to_give() -> None:
    a, b, d = quantised(4, 16, 128)
    gemm = deepgemm.fp8_gemm_nt
    cases = [
        (lambda: gemm(a[0], b, d), BadType, "must be a pair"),
        (lambda: gemm((a[0].float(), a[1]), b, d), BadType, "float8_e4m3fn"),
        (lambda: gemm(a, b, d.float()), BadType, "bfloat16"),
        (lambda: gemm(a, b, d[:, :8]), BadArgument, r"must be \(4, 16\)"),
        (lambda: gemm(a, b, d, d), BadArgument, "does not accumulate"),
        (lambda: gemm(a, b, d, recipe=(1, 1, 128)), BadArgument, r"a\[1\]|b\[1\]|must be \(16, 1\)"),
        (lambda: gemm(a, b, d, recipe=(1, 64, 128)), BadArgument, "SM90 knows"),
        (lambda: gemm(a, b, d, recipe_a=(1, 128)), BadArgument, "go together"),
        (lambda: gemm(a, b, d, compiled_dims="x"), BadArgument, "letters"),
        (lambda: gemm((a[0], a[1].T), b, d), BadArgument, r"a\[1\] is of shape"),
        (lambda: gemm((a[0], a[1].int()), b, d), BadType, "float32 scales"),
        (lambda: gemm(quantised(4, 16, 256)[0], b, d), BadArgument, "k = 256 and b has k = 128"),
        (lambda: gemm(a, quantised(4, 12, 128)[1], d[:, :12]), BadArgument, "multiple of 8"),
        (lambda: gemm(*quantised(4, 16, 120)), BadArgument, "multiples of 16 bytes"),
        (lambda: gemm((a[0].T.contiguous().T, a[1]), b, d), BadArgument, "contiguous"),
        (lambda: deepgemm.fp8_gemm_nn(a, b, d), BadArgument, "call fp8_gemm_nt"),
        (lambda: deepgemm.bf16_gemm_nt(d.float(), d, d), BadType, "bfloat16"),
        (lambda: deepgemm.fp8_gemm_nt_skip_head_mid(a, b, d, (3, 1, 2)), BadArgument, "divide n = 16"),
        (lambda: gemm((a[0].to("meta"), a[1]), b, d), BadArgument, "one device"),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()
        with pytest.raises(RuntimeError):
            call()
