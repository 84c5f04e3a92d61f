"""The specification itself: cases worked out by hand, and float64 attention written a second time."""

import math

import pytest
import torch

import mla_cases as cases
from luciola.plugins.flashmla import (
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
    flash_mla_sparse_fwd,
    flash_mla_with_kvcache,
    get_mla_metadata,
    quantize_model1,
    quantize_v32,
    using_layer,
)
from luciola.plugins.flashmla.reference import LATENT, attend, infinite_if_empty
from luciola.plugins.flashmla.schedule import BLOCK_TOKENS


@pytest.fixture(autouse=True)
def _reference():
    with using_layer("reference"):
        yield


def run_dense(case, **named):
    schedule, _ = get_mla_metadata()
    return flash_mla_with_kvcache(*case.arguments, 512, schedule, **named)


def softmax64(q, k, v, scale):
    """One query row, in float64, term by term. An independent copy of `reference.attend`."""
    if len(k) == 0:
        return torch.zeros(v.shape[1], dtype=torch.float64), math.inf, -math.inf
    logits = [float((q.double() * row.double()).sum()) * scale for row in k]
    largest = max(logits)
    terms = [math.exp(each - largest) for each in logits]
    out = sum(term * row.double() for term, row in zip(terms, v, strict=True)) / sum(terms)
    return out, largest + math.log(sum(terms)), largest


def dense_decode_in_pieces(q, k_cache, block_table, cache_seqlens, schedule, *, scale):
    """`reference.dense_decode` without causality, piece by piece as the schedule cuts it, and the pieces combined."""
    page, lengths = k_cache.shape[1], cache_seqlens.tolist()
    results = [[] for _ in lengths]
    group = q.shape[2] // k_cache.shape[2]
    for first, last, begin, end, *_ in schedule.tile_scheduler_metadata.tolist():
        for request in range(first, last + 1):
            start = begin * BLOCK_TOKENS if request == first else 0
            stop = min(end * BLOCK_TOKENS, lengths[request]) if request == last else lengths[request]
            slots = torch.arange(start, max(stop, start))
            rows = k_cache[block_table[request, slots // page].long(), slots % page].float()
            heads = [
                attend(q[request, :, head].float(), k, k[:, :LATENT], scale)
                for head in range(q.shape[2])
                for k in (rows[:, head // group],)
            ]
            results[request].append(
                (torch.stack([each[0] for each in heads], 1), torch.stack([each[1] for each in heads]))
            )
    out = torch.stack([combine(*map(torch.stack, zip(*each, strict=True)))[0] for each in results])
    lse = torch.stack([torch.logsumexp(torch.stack([piece[1] for piece in each]), dim=0) for each in results])
    return out.to(q.dtype), infinite_if_empty(lse)


def combine(outs, lses):
    """Pieces put together. Shapes: outs (pieces, s, h, d); lses (pieces, h, s) natural, -inf for an empty piece."""
    lse = torch.logsumexp(lses, dim=0)
    weights = torch.exp(lses - lse.masked_fill(lse == -math.inf, 0.0))
    return (outs * weights.transpose(1, 2).unsqueeze(-1)).sum(dim=0), lse


def test_two_tokens_by_hand():
    # q looks along the first RoPE number; the tokens have 0 and ln 3 there, so their weights are 1/4 and 3/4.
    q = torch.zeros(1, 1, 1, 576, dtype=torch.float16)
    q[..., 512] = 1.0
    cache = torch.zeros(1, 64, 1, 576, dtype=torch.float16)
    cache[0, 1, 0, 512] = math.log(3)
    cache[0, 0, 0, 0], cache[0, 1, 0, 0] = 4.0, 8.0
    table, length = torch.zeros(1, 1, dtype=torch.int32), torch.tensor([2], dtype=torch.int32)
    out, lse = flash_mla_with_kvcache(q, cache, table, length, 512, get_mla_metadata()[0], softmax_scale=1.0)
    assert out[0, 0, 0, 0].item() == pytest.approx(4 / 4 + 8 * 3 / 4, abs=4e-3)
    assert out[0, 0, 0, 1:].abs().max() == 0
    assert lse[0, 0, 0].item() == pytest.approx(math.log(4), abs=1e-3)


def test_scale_is_by_default_the_root_of_the_row():
    case = cases.dense(1, [70])
    explicit = run_dense(case, softmax_scale=576**-0.5)
    assert all(map(torch.equal, run_dense(case), explicit))


def test_nothing_visible_gives_zeros_and_infinity():
    case = cases.dense(2, [0, 3, 1], s_q=3, h_q=2)
    out, lse = run_dense(case, causal=True)
    # Of three queries over one token the last alone sees it.
    unseen = [(0, 0), (0, 1), (0, 2), (2, 0), (2, 1)]
    for request, t in unseen:
        assert out[request, t].abs().max() == 0
        assert (lse[request, :, t] == math.inf).all()
    assert lse.isfinite().sum() == 2 * (9 - len(unseen))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("h_q", "h_kv", "page"), [(1, 1, 64), (6, 3, 64), (4, 2, 16), (3, 1, 7)])
def test_dense_equals_float64_attention(causal, h_q, h_kv, page):
    lengths, s_q = [0, 1, 63, 64, 70], 2
    case = cases.dense(h_q, lengths, s_q=s_q, h_q=h_q, h_kv=h_kv, page=page)
    out, lse = run_dense(case, causal=causal)
    for request, length in enumerate(lengths):
        slots = torch.arange(length)
        rows = case.k_cache[case.block_table[request, slots // page].long(), slots % page]
        for t in range(s_q):
            seen = length - (s_q - 1 - t) if causal else length
            for head in range(h_q):
                k = rows[: max(seen, 0), head // (h_q // h_kv)]
                want, want_lse, _ = softmax64(case.q[request, t, head], k, k[:, :512], 576**-0.5)
                cases.assert_close(out[request, t, head], want.to(out.dtype))
                assert lse[request, head, t].item() == pytest.approx(want_lse, rel=1e-5, abs=1e-5)


def test_queries_may_lie_anywhere():
    case = cases.dense(3, [70, 5], s_q=2, h_q=3)
    scattered = torch.full((3, 2, 2, 700), cases.NAN, dtype=torch.bfloat16).permute(1, 2, 0, 3)[..., 50:626]
    scattered.copy_(case.q)
    want = run_dense(case)
    case.q = scattered
    assert all(map(torch.equal, run_dense(case), want))


def test_pieces_combined_equal_the_whole():
    case = cases.dense(4, [0, 1000, 129, 64], h_q=2)
    schedule, _ = get_mla_metadata()
    out, lse = flash_mla_with_kvcache(*case.arguments, 512, schedule)
    assert (schedule.num_splits.diff() > 1).any(), "the case must be split"
    in_pieces = dense_decode_in_pieces(*case.arguments, schedule, scale=576**-0.5)
    cases.assert_close(in_pieces[0], out)
    cases.assert_close_lse(in_pieces[1], lse)


def test_fp8_dense_equals_dense_over_what_the_cache_holds():
    from luciola.plugins.flashmla import dequantize_v32

    case = cases.dense(5, [70, 0, 130], s_q=2)
    case.k_cache = quantize_v32(case.k_cache)
    got = run_dense(case, causal=True, is_fp8_kvcache=True)
    case.k_cache = dequantize_v32(case.k_cache)
    assert all(map(torch.equal, got, run_dense(case, causal=True)))


@pytest.mark.parametrize("layout", ["v32", "model1"])
def test_sparse_decode_equals_float64_attention(layout):
    b, s_q, h, page = 2, 2, 3, 4
    width = 576 if layout == "v32" else 512
    # Powers of two of few bits: quantisation loses nothing.
    rows = (cases.rows(6, 5, page, 1, width) * 8).round().clamp(-7, 7)
    cache = quantize_v32(rows) if layout == "v32" else quantize_model1(rows)
    listed = cases.indices(7, (b, s_q, 64), 5 * page)
    listed[1, 1] = -1
    sink = torch.tensor([0.5, -math.inf, math.inf])
    q = cases.rows(8, b, s_q, h, width)
    out, lse = flash_mla_with_kvcache(
        q, cache, None, None, 512, get_mla_metadata()[0], is_fp8_kvcache=True, indices=listed, attn_sink=sink
    )
    flat = rows.flatten(0, 2)
    for request in range(b):
        for t in range(s_q):
            named = flat[listed[request, t][listed[request, t] >= 0].long()]
            for head in range(h):
                want, want_lse, _ = softmax64(q[request, t, head], named, named[:, :512], width**-0.5)
                if len(named):
                    want = want * math.exp(want_lse) / (math.exp(want_lse) + math.exp(float(sink[head])))
                cases.assert_close(out[request, t, head], want.to(out.dtype))
                assert lse[request, head, t].item() == pytest.approx(want_lse, rel=1e-5, abs=1e-5)


def test_lengths_and_a_second_cache():
    page, width = 8, 512
    caches = [(cases.rows(seed, 4, page, 1, width) * 8).round().clamp(-7, 7) for seed in (1, 2)]
    lists = [cases.indices(seed, (3, 1, 64), 4 * page) for seed in (3, 4)]
    lengths = [torch.tensor(each, dtype=torch.int32) for each in ([64, 3, 0], [0, 64, 0])]
    for listed, length in zip(lists, lengths, strict=True):
        for request in range(3):
            listed[request, 0, length[request] :] = cases.WILD  # behind the length there may be anything
    q = cases.rows(5, 3, 1, 2, width)
    out, lse = flash_mla_with_kvcache(
        q, quantize_model1(caches[0]), None, None, 512, get_mla_metadata()[0], is_fp8_kvcache=True, indices=lists[0],
        extra_k_cache=quantize_model1(caches[1]), extra_indices_in_kvcache=lists[1],
        topk_length=lengths[0], extra_topk_length=lengths[1],
    )  # fmt: skip
    for request in range(3):
        named = torch.cat(
            [
                cache.flatten(0, 2)[chosen[chosen >= 0].long()]
                for cache, listed, length in zip(caches, lists, lengths, strict=True)
                for chosen in (listed[request, 0, : length[request]],)
            ]
        )
        for head in range(2):
            want, want_lse, _ = softmax64(q[request, 0, head], named, named, width**-0.5)
            cases.assert_close(out[request, 0, head], want.to(out.dtype))
            assert lse[request, head, 0].item() == pytest.approx(want_lse, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("width", [576, 512])
def test_sparse_prefill_equals_float64_attention(width):
    s_q, h, s_kv = 3, 2, 20
    q, kv = cases.rows(1, s_q, h, width), cases.rows(2, s_kv, 1, width)
    kv[0] = cases.NAN
    listed = cases.indices(3, (s_q, 1, 9), s_kv)
    listed[listed == 0] = s_kv  # names nothing, and no list names the poisoned row
    listed[2] = -7
    length = torch.tensor([9, 4, 9], dtype=torch.int32)
    sink = torch.tensor([1.0, 0.0])
    out, max_logits, lse = flash_mla_sparse_fwd(q, kv, listed, 0.7, attn_sink=sink, topk_length=length)
    for t in range(s_q):
        chosen = listed[t, 0, : length[t]]
        named = kv[chosen[(chosen >= 0) & (chosen < s_kv)].long(), 0]
        for head in range(h):
            want, want_lse, largest = softmax64(q[t, head], named, named[:, :512], 0.7)
            if len(named):
                want = want * math.exp(want_lse) / (math.exp(want_lse) + math.exp(float(sink[head])))
            cases.assert_close(out[t, head], want.to(out.dtype))
            assert lse[t, head].item() == pytest.approx(want_lse, rel=1e-5, abs=1e-5)
            assert max_logits[t, head].item() == pytest.approx(largest, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("width", "h_kv"), [(128, 2), (192, 1)])
def test_varlen_equals_float64_attention(causal, width, h_kv):
    h, lengths_q, lengths_kv = 2, [3, 0, 2], [4, 2, 1]
    starts = [
        torch.tensor([0, *torch.tensor(each).cumsum(0)], dtype=torch.int32)
        for each in (lengths_q, lengths_kv)
    ]
    q, k, v = cases.rows(1, 5, h, width), cases.rows(2, 7, h_kv, width), cases.rows(3, 7, h_kv, 128)
    out, lse = flash_attn_varlen_func(q, k, v, *starts, 3, 4, causal=causal)
    assert lse.stride() == (1, 5), "stored head by head"
    for sequence in range(3):
        for t in range(lengths_q[sequence]):
            row = int(starts[0][sequence]) + t
            seen = lengths_kv[sequence] - (lengths_q[sequence] - 1 - t if causal else 0)
            tokens = slice(int(starts[1][sequence]), int(starts[1][sequence]) + max(seen, 0))
            for head in range(h):
                source = head * h_kv // h
                want, want_lse, _ = softmax64(q[row, head], k[tokens, source], v[tokens, source], width**-0.5)
                cases.assert_close(out[row, head], want.to(out.dtype))
                assert lse[row, head].item() == pytest.approx(want_lse, rel=1e-5, abs=1e-5)


def test_packed_forms_are_the_same():
    starts = torch.tensor([0, 3, 5], dtype=torch.int32)
    qkv = cases.rows(1, 5, 2, 192 * 2 + 128)
    q, k, v = qkv[..., :192], qkv[..., 192:384], qkv[..., 384:]
    want = flash_attn_varlen_func(q, k, v, starts, starts, 3, 3, causal=True)
    assert all(map(torch.equal, flash_attn_varlen_qkvpacked_func(qkv, starts, 3, 192, causal=True), want))
    packed = flash_attn_varlen_kvpacked_func(q, qkv[..., 192:], starts, starts, 3, 3, 192, causal=True)
    assert all(map(torch.equal, packed, want))


@pytest.mark.parametrize("causal", [False, True])
def test_varlen_gradients_are_those_of_plain_attention(causal):
    starts_q, starts_kv = (torch.tensor(each, dtype=torch.int32) for each in ([0, 3, 5], [0, 4, 5]))
    given = [cases.rows(seed, rows, heads, width).requires_grad_() for seed, rows, heads, width in
             ((1, 5, 4, 192), (2, 5, 2, 192), (3, 5, 2, 128))]  # fmt: skip
    grad = cases.rows(4, 5, 4, 128)
    out, lse = flash_attn_varlen_func(*given, starts_q, starts_kv, 3, 4, causal=causal)
    assert not lse.requires_grad
    got = torch.autograd.grad(out, given, grad)

    doubles = [each.detach().double().requires_grad_() for each in given]
    pieces = []
    for queries, tokens in ((slice(0, 3), slice(0, 4)), (slice(3, 5), slice(4, 5))):
        q, k, v = doubles[0][queries], doubles[1][tokens], doubles[2][tokens]
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        logits = torch.einsum("qhd,khd->hqk", q, k) * 192**-0.5
        visible = torch.ones(logits.shape[1:], dtype=torch.bool)
        visible = visible.tril(len(k) - len(q)) if causal else visible
        weights = logits.masked_fill(~visible, -math.inf).softmax(-1).nan_to_num()
        pieces.append(torch.einsum("hqk,khd->qhd", weights, v))
    want = torch.autograd.grad(torch.cat(pieces), doubles, grad.double())
    for mine, plain in zip(got, want, strict=True):
        cases.assert_close(mine, plain.to(mine.dtype), absolute=1e-3, cosine=1e-4)
