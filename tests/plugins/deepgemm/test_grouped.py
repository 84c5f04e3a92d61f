"""Grouped products: every form against a loop over groups, with garbage wherever garbage is allowed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luciola.plugins import deepgemm
from luciola.plugins.kernels.errors import BadArgument, BadType
from luciola.plugins.kernels.layers import using_layer
from luciola.plugins.kernels.quantize import dequantize

LAYERS = ("reference", "triton", "hopper") if torch.cuda.is_available() else ("reference", "triton")
POISON = float("nan")


@pytest.fixture(params=LAYERS)
def layer(request):
    with using_layer(request.param):
        yield request.param


def weights(groups: int, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values, scales, and what they stand for."""
    plain = torch.randn(groups, n, k)
    parts = [deepgemm.per_block_cast_to_fp8(each, False) for each in plain]
    values, scales = torch.stack([each[0] for each in parts]), torch.stack([each[1] for each in parts])
    return values, scales, torch.stack([dequantize(v, s, gran_m=128) for v, s in parts])


def tokens(
    counts: list[int], k: int, alignment: int = 128
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of groups, each aligned, NaN between them; the layout by rows; the layout by ends."""
    total = sum(-(-count // alignment) * alignment for count in counts)
    rows, layout = torch.full((total, k), POISON), torch.full((total,), -1, dtype=torch.int32)
    ends, start = [], 0
    for group, count in enumerate(counts):
        rows[start : start + count] = torch.randn(count, k)
        layout[start : start + count] = group
        ends.append(start + count)
        start += -(-count // alignment) * alignment
    return rows, layout, torch.tensor(ends, dtype=torch.int32)


def cast(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """FP8 rows; those that are NaN stay NaN, scales too."""
    if not rows.numel():
        return rows.to(torch.float8_e4m3fn), rows.new_empty((0, rows.shape[1] // 128))
    values, scales = deepgemm.per_token_cast_to_fp8(rows.nan_to_num(), False)
    nan = rows.isnan().any(1)
    values.view(torch.uint8)[nan] = 0x7F
    scales[nan] = POISON
    return values, scales


def expected(rows: torch.Tensor, layout: torch.Tensor, plain: torch.Tensor) -> torch.Tensor:
    result = torch.zeros(rows.shape[0], plain.shape[1])
    for group in range(plain.shape[0]):
        result[layout == group] = rows[layout == group].float() @ plain[group].T
    return result


@pytest.mark.parametrize("counts", [[128], [1, 0, 130], [0, 0], [70, 64, 3]])
def test_fp8_contiguous_by_rows_and_by_ends(layer: str, counts: list[int]) -> None:
    k, n = 256, 136
    rows, layout, ends = tokens(counts, k)
    values, scales, plain = weights(len(counts), n, k)
    qa = cast(rows)
    wanted = expected(dequantize(*qa), layout, plain)
    d = torch.full((rows.shape[0], n), POISON, dtype=torch.bfloat16)
    deepgemm.m_grouped_fp8_gemm_nt_contiguous(qa, (values, scales), d, layout)
    assert deepgemm.calc_diff(d, wanted) < 1e-4
    assert not d[layout < 0].any(), "padding becomes zeros"
    by_ends = torch.full_like(d, 5.0)
    deepgemm.m_grouped_fp8_gemm_nt_contiguous(qa, (values, scales), by_ends, ends, use_psum_layout=True)
    assert torch.equal(by_ends[layout >= 0], d[layout >= 0])
    assert bool((by_ends[layout < 0] == 5.0).all()), "rows between groups are left alone"


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=5), st.sampled_from([16, 32, 64]), st.integers(0, 99)
)
def test_smaller_alignment_than_the_original_s(counts: list[int], alignment: int, seed: int) -> None:
    torch.manual_seed(seed)
    rows, layout, ends = tokens(counts, 128, alignment)
    values, scales, plain = weights(len(counts), 16, 128)
    qa = cast(rows)
    wanted = expected(dequantize(*qa), layout, plain)
    deepgemm.set_mk_alignment_for_contiguous_layout(alignment)
    try:
        for each in LAYERS:
            d = torch.full((rows.shape[0], 16), POISON, dtype=torch.bfloat16)
            by_ends = d.clone()
            with using_layer(each):
                deepgemm.m_grouped_fp8_gemm_nt_contiguous(qa, (values, scales), d, layout)
                deepgemm.m_grouped_fp8_gemm_nt_contiguous(
                    qa, (values, scales), by_ends, ends, use_psum_layout=True, expected_m_for_psum_layout=20
                )
            assert deepgemm.calc_diff(d, wanted) < 1e-4
            real = layout >= 0
            assert deepgemm.calc_diff(by_ends[real], wanted[real]) < 1e-4
    finally:
        deepgemm.set_mk_alignment_for_contiguous_layout(128)


@pytest.mark.parametrize("counts", [[3, 0, 70], [0], [5, 5]])
def test_fp8_masked_reads_counts_on_the_device_and_leaves_the_rest(layer: str, counts: list[int]) -> None:
    groups, max_m, n, k = len(counts), 72, 24, 256
    rows = torch.full((groups, max_m, k), POISON)
    for group, count in enumerate(counts):
        rows[group, :count] = torch.randn(count, k)
    qa = tuple(each.view(groups, max_m, -1) for each in cast(rows.view(-1, k)))
    values, scales, plain = weights(groups, n, k)
    d = torch.full((groups, max_m, n), 5.0, dtype=torch.bfloat16)
    masked_m = torch.tensor(counts, dtype=torch.int32)
    deepgemm.m_grouped_fp8_gemm_nt_masked(qa, (values, scales), d, masked_m, expected_m=20)
    for group, count in enumerate(counts):
        wanted = dequantize(*(each[group, :count] for each in qa)) @ plain[group].T
        assert deepgemm.calc_diff(d[group, :count], wanted) < 1e-4
        assert bool((d[group, count:] == 5.0).all())


@pytest.mark.parametrize("ks", [[128, 0, 256], [0, 0], [384]])
def test_fp8_k_grouped_accumulates_weight_gradients(layer: str, ks: list[int]) -> None:
    m, n = 24, 40
    parts = [(torch.randn(m, k), torch.randn(n, k)) for k in ks]
    a, b = (
        [deepgemm.per_token_cast_to_fp8(pair[side], False) for pair in parts] for side in (0, 1)
    )  # fmt: skip
    flat = [
        (torch.cat([v.reshape(-1) for v, _ in each]), torch.cat([s.T for _, s in each]).T) for each in (a, b)
    ]  # fmt: skip
    c = torch.randn(len(ks), m, n)
    d = torch.full_like(c, POISON)
    deepgemm.k_grouped_fp8_gemm_nt_contiguous(flat[0], flat[1], d, ks, torch.tensor(ks, dtype=torch.int32), c)
    for group in range(len(ks)):
        wanted = c[group] + dequantize(*a[group]) @ dequantize(*b[group]).T
        assert deepgemm.calc_diff(d[group], wanted) < 1e-5


@pytest.mark.parametrize("counts", [[1, 0, 130], [64]])
@pytest.mark.parametrize("k", [64, 72])
def test_bf16_contiguous_in_both_orders(layer: str, counts: list[int], k: int) -> None:
    n = 40
    rows, layout, ends = tokens(counts, k)
    a, b = rows.bfloat16(), torch.randn(len(counts), n, k).bfloat16()
    wanted = expected(a, layout, b.float())
    for gemm, stored in (
        (deepgemm.m_grouped_bf16_gemm_nt_contiguous, b),
        (deepgemm.m_grouped_bf16_gemm_nn_contiguous, b.mT.contiguous()),
    ):
        d = torch.full((rows.shape[0], n), POISON, dtype=torch.bfloat16)
        gemm(a, stored, d, layout)
        assert deepgemm.calc_diff(d, wanted) < 1e-5
        by_ends = torch.full_like(d, POISON)
        gemm(a, stored, by_ends, ends, use_psum_layout=True)
        assert torch.equal(by_ends[layout >= 0], d[layout >= 0])


def test_nan_weights_of_one_group_do_not_reach_another(layer: str) -> None:
    k, n = 72, 16
    rows, layout, _ = tokens([5, 5], k)
    b = torch.randn(2, k, n).bfloat16()
    b[1] = POISON
    d = torch.zeros((rows.shape[0], n), dtype=torch.bfloat16)
    deepgemm.m_grouped_bf16_gemm_nn_contiguous(rows.bfloat16(), b, d, layout)
    assert torch.isfinite(d[layout == 0].float()).all()
    assert torch.isnan(d[layout == 1].float()).all()


def test_bf16_masked(layer: str) -> None:
    a = torch.full((2, 20, 64), POISON, dtype=torch.bfloat16)
    a[0, :3], a[1, :17] = torch.randn(3, 64), torch.randn(17, 64)
    b = torch.randn(2, 24, 64).bfloat16()
    d = torch.full((2, 20, 24), 5.0, dtype=torch.bfloat16)
    deepgemm.m_grouped_bf16_gemm_nt_masked(a, b, d, torch.tensor([3, 17], dtype=torch.int32), 10)
    for group, count in enumerate((3, 17)):
        assert deepgemm.calc_diff(d[group, :count], a[group, :count].float() @ b[group].float().T) < 1e-5
        assert bool((d[group, count:] == 5.0).all())


def test_bf16_k_grouped(layer: str) -> None:
    ks = [40, 0, 24]
    a, b = torch.randn(64, 16).bfloat16(), torch.randn(64, 24).bfloat16()
    c = torch.randn(3, 16, 24)
    d = torch.full_like(c, POISON)
    deepgemm.k_grouped_bf16_gemm_tn_contiguous(a, b, d, ks, torch.tensor(ks, dtype=torch.int32), c)
    start = 0
    for group, k in enumerate(ks):
        part = slice(start, start + k)
        assert deepgemm.calc_diff(d[group], c[group] + a[part].float().T @ b[part].float()) < 1e-5
        start += k


def test_what_is_refused_says_what_to_give() -> None:
    values, scales, _ = weights(2, 16, 128)
    a = cast(torch.randn(128, 128))
    d = torch.empty(128, 16, dtype=torch.bfloat16)
    layout = torch.zeros(128, dtype=torch.int32)
    counts = torch.zeros(2, dtype=torch.int32)
    contiguous, masked = deepgemm.m_grouped_fp8_gemm_nt_contiguous, deepgemm.m_grouped_fp8_gemm_nt_masked
    k_grouped = deepgemm.k_grouped_fp8_gemm_nt_contiguous
    b = (values, scales)
    a3 = tuple(each.view(2, 64, -1) for each in a)
    d3 = d.view(2, 64, 16)
    flat = (values.view(-1)[: 16 * 128], torch.rand(16, 1))
    one = torch.zeros(1, 16, 16)
    layout1 = counts[:1]
    cases = [
        (lambda: contiguous(a, b, d, layout.long()), BadType, "int32"),
        (lambda: contiguous(a, b, d, counts), BadArgument, r"must be \(128,\)"),
        (lambda: contiguous(a, b, d, layout, use_psum_layout=True), BadArgument, r"must be \(2,\)"),
        (lambda: contiguous(a, b, d, layout, recipe=(1, 1, 128)), BadArgument, "grouped products"),
        (lambda: contiguous(a, b, d, layout, expected_m_for_psum_layout=3), BadArgument, "goes with"),
        (lambda: contiguous(a, (values, scales[:1]), d, layout), BadArgument, r"b\[1\]"),
        (lambda: contiguous(a3, b, d, layout), BadArgument, r"a\[0\]\.shape is .*; it must be \(any, any\)"),
        (lambda: masked(a3, b, d3, counts, 0), BadArgument, "must be positive"),
        (lambda: masked(a3, b, d3, layout, 1), BadArgument, r"must be \(2,\)"),
        (
            lambda: masked(a, b, d3, counts, 1),
            BadArgument,
            r"a\[0\]\.shape is .*; it must be \(any, any, any\)",
        ),
        (lambda: k_grouped(flat, flat, one, [128], layout1), BadArgument, "give c"),
        (lambda: k_grouped(flat, flat, one, [], layout1, one), BadArgument, "empty"),
        (lambda: k_grouped(flat, flat, one, [64], layout1, one), BadArgument, "multiple of 128"),
        (lambda: k_grouped(flat, flat, one, [256], layout1, one), BadArgument, "without gaps"),
        (
            lambda: k_grouped(flat, flat, one, [128], layout1, one, (1, 128, 128)),
            BadArgument,
            r"\(1, 1, 128\)",
        ),
        (lambda: deepgemm.m_grouped_fp8_gemm_nn_contiguous(a, b, d, layout), BadArgument, "nt form"),
        (lambda: deepgemm.set_mk_alignment_for_contiguous_layout(100), BadArgument, "16, 32, 64 or 128"),
        (lambda: deepgemm.set_num_sms(3), BadArgument, "even"),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()
