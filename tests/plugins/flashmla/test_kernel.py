"""The Triton kernels, interpreted, against the reference: odd, tiny and empty shapes, poison in every unused place."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mla_cases as cases
from luciola.plugins.flashmla import (
    flash_attn_varlen_func,
    flash_mla_sparse_fwd,
    flash_mla_with_kvcache,
    get_mla_metadata,
    layer_for,
    quantize_model1,
    quantize_v32,
    reference,
    using_layer,
)


def both(run):
    """What the Triton layer and the reference say."""
    with using_layer("triton"):
        got = run()
    with using_layer("reference"):
        want = run()
    cases.assert_close(got[0], want[0])
    for mine, other in zip(got[1:], want[1:], strict=True):
        cases.assert_close_lse(mine, other)
    return got


def run_dense(case, **named):
    return both(lambda: flash_mla_with_kvcache(*case.arguments, 512, get_mla_metadata()[0], **named))


def test_the_interpreter_is_chosen_by_itself():
    assert layer_for(torch.zeros(1)) == "triton"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dense_over_several_blocks_and_splits(dtype):
    case = cases.dense(1, [0, 300, 1, 64, 129], h_q=3, dtype=dtype)
    schedule, _ = get_mla_metadata()
    with using_layer("triton"):
        flash_mla_with_kvcache(*case.arguments, 512, schedule)
    assert (schedule.num_splits.diff() > 1).any(), "the case must be split"
    run_dense(case)


@pytest.mark.parametrize(
    ("s_q", "h_q", "h_kv"), [(1, 1, 1), (2, 9, 1), (3, 6, 2), (4, 5, 1), (2, 17, 1), (1, 66, 1), (3, 9, 3)]
)
def test_dense_heads_and_queries(s_q, h_q, h_kv):
    run_dense(cases.dense(s_q * h_q, [70, 2, 0], s_q=s_q, h_q=h_q, h_kv=h_kv), causal=True)


@pytest.mark.parametrize("page", [1, 16, 24, 128])
def test_dense_other_pages(page):
    run_dense(cases.dense(page, [130, 31], s_q=2, page=page), causal=True)


def test_dense_with_rows_and_pages_far_apart():
    case = cases.dense(3, [70, 5], s_q=2, h_q=4, h_kv=2)
    spread = torch.full((*case.k_cache.shape[:2], 3, 600), cases.NAN, dtype=torch.bfloat16)[:, :, 1:, 8:584]
    spread.copy_(case.k_cache)
    case.k_cache = spread
    case.q = torch.cat((case.q, case.q), dim=3)[..., :576]
    run_dense(case)


def test_no_sequences_at_all():
    run_dense(cases.dense(0, []))


@pytest.mark.parametrize("shape", [(2, 0, 4), (2, 1, 0)])
def test_no_queries_and_no_heads(shape):
    b, s_q, h = shape
    case = cases.dense(1, [70, 3], s_q=s_q, h_q=h)
    run_dense(case, causal=True)
    listed = cases.indices(1, (b, s_q, 5), 0)
    run_sparse(cases.rows(1, b, s_q, h, 576), quantize_v32(cases.rows(2, 0, 16, 1, 576)), listed)


def test_a_schedule_is_of_one_device():
    case = cases.dense(1, [70])
    schedule, _ = get_mla_metadata()
    schedule.tile_scheduler_metadata = torch.zeros((4, 8), dtype=torch.int32, device="meta")
    schedule.num_splits = torch.zeros((2,), dtype=torch.int32, device="meta")
    with using_layer("triton"), pytest.raises(ValueError, match="this schedule is on meta"):
        flash_mla_with_kvcache(*case.arguments, 512, schedule)


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    lengths=st.lists(st.integers(0, 200), min_size=1, max_size=4),
    s_q=st.integers(1, 3),
    group=st.integers(1, 5),
    h_kv=st.integers(1, 2),
    causal=st.booleans(),
)
def test_dense_any_shape(seed, lengths, s_q, group, h_kv, causal):
    run_dense(cases.dense(seed, lengths, s_q=s_q, h_q=group * h_kv, h_kv=h_kv), causal=causal)


def test_dense_over_fp8():
    case = cases.dense(5, [70, 0, 130], s_q=2)
    case.k_cache = quantize_v32(case.k_cache)
    run_dense(case, causal=True, is_fp8_kvcache=True)


def run_sparse(q, cache, listed, **named):
    def run():
        schedule, _ = get_mla_metadata()
        return flash_mla_with_kvcache(
            q, cache, None, None, 512, schedule, is_fp8_kvcache=True, indices=listed, **named
        )

    return both(run)


@pytest.mark.parametrize(
    ("s_q", "h", "topk", "page"), [(1, 2, 64, 64), (2, 17, 130, 5), (1, 64, 320, 2), (3, 1, 7, 64)]
)
def test_sparse_v32(s_q, h, topk, page):
    rows = cases.rows(1, 6, page, 1, 576)
    rows[0] = cases.NAN
    cache = quantize_v32(rows)
    listed = cases.indices(2, (2, s_q, topk), 6 * page)
    listed[listed < page] = -1
    listed[0, 0, :2] = torch.tensor([cases.WILD, 6 * page], dtype=torch.int32)[: min(2, topk)]
    listed[1, -1] = -1
    sink = torch.linspace(-3, 3, h)
    out, lse = run_sparse(cases.rows(3, 2, s_q, h, 576), cache, listed, attn_sink=sink)
    assert (lse[1, :, -1] == math.inf).all()
    assert out[1, -1].abs().max() == 0


@pytest.mark.parametrize("extra_page", [None, 4])
def test_sparse_model1(extra_page):
    b, h, page = 4, 3, 8
    q, cache = cases.rows(1, b, 2, h, 512), quantize_model1(cases.rows(2, 5, page, 1, 512))
    listed = cases.indices(3, (b, 2, 200), 5 * page)
    length = torch.tensor([200, 70, 0, 1], dtype=torch.int32)
    named = {"topk_length": length, "attn_sink": torch.tensor([math.inf, -math.inf, 0.3])}
    if extra_page is not None:
        named["extra_k_cache"] = quantize_model1(cases.rows(4, 3, extra_page, 1, 512))
        named["extra_indices_in_kvcache"] = cases.indices(5, (b, 2, 100), 3 * extra_page)
        named["extra_topk_length"] = torch.tensor([5, 100, 0, 65], dtype=torch.int32)
    out, lse = run_sparse(q, cache, listed, **named)
    assert out[:, :, 0].abs().max() == 0, "a sink of +inf takes everything"
    assert (lse[2] == math.inf).all()


@settings(max_examples=5, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    h=st.integers(1, 20),
    topk=st.integers(1, 150),
    lengths=st.lists(st.integers(0, 150), min_size=3, max_size=3),
)
def test_sparse_any_shape(seed, h, topk, lengths):
    q, cache = cases.rows(seed, 3, 1, h, 512), quantize_model1(cases.rows(seed + 1, 4, 16, 1, 512))
    length = torch.tensor(lengths, dtype=torch.int32).clamp(max=topk)
    run_sparse(q, cache, cases.indices(seed, (3, 1, topk), 64), topk_length=length)


@pytest.mark.parametrize(
    ("s_q", "h", "width", "topk"), [(3, 2, 576, 70), (1, 33, 512, 128), (5, 1, 576, 1), (0, 2, 512, 4)]
)
def test_sparse_prefill(s_q, h, width, topk):
    kv = cases.rows(1, 50, 1, width)
    kv[7] = cases.NAN
    listed = cases.indices(2, (s_q, 1, topk), 60)
    listed[listed == 7] = -1
    length = torch.randint(0, topk + 1, (s_q,), dtype=torch.int32)
    sink = torch.linspace(-1, 1, h)
    both(lambda: flash_mla_sparse_fwd(cases.rows(3, s_q, h, width), kv, listed, 0.3, 512, sink, length))
    both(lambda: flash_mla_sparse_fwd(cases.rows(3, s_q, h, width), kv, listed, 0.3))


@pytest.mark.parametrize(("width", "h", "h_kv", "causal"), [(128, 2, 1, True), (192, 3, 3, False)])
def test_varlen(width, h, h_kv, causal):
    lengths_q, lengths_kv = [17, 0, 1, 30], [33, 5, 0, 20]
    starts_q, starts_kv = (
        torch.tensor([0, *torch.tensor(each).cumsum(0)], dtype=torch.int32)
        for each in (lengths_q, lengths_kv)
    )
    q = cases.rows(1, 48, h, width)
    k, v = cases.rows(2, 58, h_kv, width), cases.rows(3, 58, h_kv, 128)
    both(lambda: flash_attn_varlen_func(q, k, v, starts_q, starts_kv, 30, 33, causal=causal))


@pytest.mark.parametrize(("width", "h", "h_kv", "causal"), [(128, 2, 1, False), (192, 2, 2, True)])
def test_varlen_gradients(width, h, h_kv, causal):
    """Several tiles, an empty side, more queries than tokens, and rows that are in no sequence."""
    starts_q, starts_kv = (
        torch.tensor(each, dtype=torch.int32) for each in ([0, 17, 17, 18, 43], [0, 33, 38, 38, 58])
    )
    given_ = [
        cases.rows(1, 45, h, width), cases.rows(2, 60, h_kv, width), cases.rows(3, 60, h_kv, 128),
    ]  # fmt: skip
    for each in given_:
        each.requires_grad_()
    # Rows 200 numbers apart, as autograd may hand them over.
    grad = cases.rows(4, 45, h, 200)[..., 1:129]
    grads = []
    for layer in ("triton", "reference"):
        with using_layer(layer):
            out, lse = flash_attn_varlen_func(*given_, starts_q, starts_kv, 25, 33, causal=causal)
        assert (out[43:] == 0).all()
        assert (lse[43:] == math.inf).all()
        grads.append(
            torch.autograd.grad(out, given_, grad)
        )  # outside of `using_layer`, as in a thread of autograd
    for mine, want in zip(*grads, strict=True):
        cases.assert_close(mine, want)
    assert (grads[0][0][43:] == 0).all()
    assert (grads[0][1][58:] == 0).all()


def test_varlen_gradients_come_from_the_kernels(monkeypatch):
    """The reference, a loop over sequences and heads, has no part in them."""
    monkeypatch.setattr(reference, "varlen_backward", None)
    starts = torch.tensor([0, 5], dtype=torch.int32)
    q = cases.rows(1, 5, 1, 128).requires_grad_()
    out, _ = flash_attn_varlen_func(q, q, q, starts, starts, 5, 5)
    out.sum().backward()
    assert q.grad is not None
    assert q.grad.isfinite().all()
