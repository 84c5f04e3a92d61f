"""The fast path for Hopper over FP8 caches: on a GPU as it is, elsewhere simulated from its source."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mla_cases as cases
from luciola.plugins.flashmla import (
    flash_mla_with_kvcache,
    get_mla_metadata,
    quantize_model1,
    quantize_v32,
)
from luciola.plugins.flashmla.layouts import model1_parts
from mla_fast_path import check, fast, finds

KERNEL = "flash_fwd_splitkv_mla_fp8_sparse_kernel_ws"


def v32(seed, pages, page, listed):
    """A cache of 656 bytes a token whose slots are NaN, scales too, where no list names them."""
    cache = quantize_v32(cases.rows(seed, pages, page, 1, 576))
    cache.view(torch.uint8).view(pages * page, 656)[~named_slots(listed, pages * page)] = 0xFF
    return cache


def model1(seed, pages, page, listed):
    """The same, of 584 bytes."""
    cache = quantize_model1(cases.rows(seed, pages, page, 1, 512))
    unnamed = ~named_slots(listed, pages * page).view(pages, page)
    for part in model1_parts(cache):
        part[unnamed] = 0xFF
    return cache


def named_slots(listed, slots):
    named = torch.zeros(slots, dtype=torch.bool, device=listed.device)
    named[listed[(listed >= 0) & (listed < slots)].long()] = True
    return named


def sparse(q, cache, listed, **named):
    return lambda: flash_mla_with_kvcache(
        q,
        cache,
        None,
        None,
        512,
        get_mla_metadata()[0],
        is_fp8_kvcache=True,
        indices=listed,
        **named,
    )


def check_sparse(call, **named):
    check(call, KERNEL, absolute=1e-3, **named)


def ints(*values):
    return torch.tensor(values, dtype=torch.int32).to(cases.DEVICE)


@pytest.mark.parametrize(
    ("s_q", "h", "topk", "page"), [(1, 64, 330, 64), (2, 33, 70, 5), (1, 130, 64, 2), (1, 40, 1, 64)]
)
def test_sparse_v32_over_pieces_pages_and_heads(s_q, h, topk, page):
    listed = cases.indices(2, (2, s_q, topk), 6 * page)
    listed[0, 0, :2] = ints(cases.WILD, 6 * page)[: min(2, topk)]
    listed[1, -1] = -1
    sink = torch.linspace(-3, 3, h).to(cases.DEVICE)
    check_sparse(sparse(cases.rows(3, 2, s_q, h, 576), v32(1, 6, page, listed), listed, attn_sink=sink))


@pytest.mark.parametrize("extra", [False, True])
def test_sparse_model1_with_lengths_sinks_and_a_second_cache(extra):
    b, h, page = 4, 36, 8
    listed = cases.indices(3, (b, 2, 200), 5 * page)
    sink = torch.linspace(-3, 3, h).to(cases.DEVICE)
    sink[:2] = torch.tensor([math.inf, -math.inf])
    named = {"topk_length": ints(200, 70, 0, 1), "attn_sink": sink}
    if extra:
        more = cases.indices(5, (b, 2, 100), 12)
        named["extra_k_cache"], named["extra_indices_in_kvcache"] = model1(4, 3, 4, more), more
        named["extra_topk_length"] = ints(5, 100, 0, 65)
    call = sparse(cases.rows(1, b, 2, h, 512), model1(2, 5, page, listed), listed, **named)
    check_sparse(call, seed=7)
    (out, lse), _ = fast(call)
    assert out[:, :, 0].abs().max() == 0, "a sink of +inf takes everything"
    assert (lse[2] == math.inf).all()


def test_the_second_list_begins_where_a_piece_begins():
    listed, more = cases.indices(1, (1, 1, 64), 64), cases.indices(2, (1, 1, 64 * 9), 64)
    first, second = model1(3, 1, 64, listed), model1(4, 4, 16, more)
    extra = {"extra_k_cache": second, "extra_indices_in_kvcache": more}
    for length in (0, 30, 64):
        q = cases.rows(length, 1, 1, 40, 512)
        check_sparse(sparse(q, first, listed, topk_length=ints(length), **extra))


@settings(max_examples=3, deadline=None)
@given(
    seed=st.integers(0, 2**31), h=st.integers(33, 70), topk=st.integers(1, 260), length=st.integers(0, 260)
)
def test_sparse_any_shape(seed, h, topk, length):
    listed = cases.indices(seed, (2, 1, topk), 64)
    call = sparse(
        cases.rows(seed, 2, 1, h, 512),
        model1(seed + 1, 4, 16, listed),
        listed,
        topk_length=ints(length, topk),
    )
    check_sparse(call, seed=seed)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("page", [64, 24])
def test_dense_over_fp8(page, causal):
    case = cases.dense(page, [300, 0, 70, 1, 129], s_q=2, h_q=20, page=page)
    case.k_cache = quantize_v32(case.k_cache)
    call = lambda: flash_mla_with_kvcache(  # noqa: E731
        *case.arguments, 512, get_mla_metadata()[0], is_fp8_kvcache=True, causal=causal
    )
    check_sparse(call)


def test_dense_pages_that_are_not_there_are_not_followed():
    case = cases.dense(1, [200], h_q=40)
    case.k_cache = quantize_v32(case.k_cache)
    for wild in (cases.WILD, -1):
        case.block_table[0, 1] = wild
        (out, _), kernels = fast(
            lambda: flash_mla_with_kvcache(*case.arguments, 512, get_mla_metadata()[0], is_fp8_kvcache=True)
        )
        assert KERNEL in kernels
        assert out.isfinite().all()


def unaligned(cache):
    """The same cache, its pages 8 bytes further apart than a multiple of 16."""
    pages, page, _, row = cache.shape
    raw = torch.zeros((pages, page * row + 8), dtype=torch.uint8, device=cache.device)
    raw[:, : page * row] = cache.view(torch.uint8).view(pages, -1)
    return raw.as_strided(cache.shape, (raw.stride(0), row, row, 1)).view(torch.float8_e4m3fn)


@pytest.mark.parametrize(("h", "change"), [(32, lambda cache: cache), (64, unaligned)])
def test_calls_that_are_not_for_the_fast_path_take_the_other(h, change):
    listed = cases.indices(2, (1, 1, 70), 64)
    call = sparse(cases.rows(3, 1, 1, h, 576), change(v32(1, 2, 32, listed)), listed)
    check(call, "flash_fwd_splitkv_mla_fp8_sparse_kernel", absolute=1e-3)


def _without_fences(_gl, _barriers):
    return {"fence_async_shared": lambda: None}


def _filled_again_too_early(_gl, barriers):
    """The gathering side does not wait, and takes what the barrier had to say as said."""
    return {"_given_back": lambda _barrier, _steps: None}


def _rows_that_no_list_names_are_read(gl, _barriers):
    def words(cache, at, known, first, count, _each):
        column = first + gl.arange(0, count)
        return gl.load(cache.to(gl.pointer_type(gl.int32)) + (at.clamp(0, 2000)[:, None] + column))

    return {"_words": words}


def _scales_of_the_neighbour(gl, _barriers):
    def scale(words, chunk, v32):
        chosen = (chunk // 2 + 1) % 4 if v32 else 0
        return gl.cast(words[:, chosen], gl.float32, bitcast=True)[:, None]

    return {"_scale": scale}


def _other_side_is_not_waited_for(_gl, _barriers):
    return {"_taken": lambda _barrier, _steps: None}


def _sides_do_not_meet(_gl, barriers):
    return {"meet": lambda barrier, _meetings: barriers.arrive(barrier, count=1)}


@pytest.mark.skipif(cases.DEVICE == "cuda", reason="bugs are planted in the simulation")
@pytest.mark.parametrize(
    "planted",
    [
        _without_fences,
        _filled_again_too_early,
        _rows_that_no_list_names_are_read,
        _scales_of_the_neighbour,
        _other_side_is_not_waited_for,
        _sides_do_not_meet,
    ],
)
def test_planted_bugs_are_found(planted):
    listed = cases.indices(2, (2, 1, 500), 128)
    # Scales that differ from group to group.
    rows = (
        cases.rows(1, 2, 64, 1, 576)
        * torch.tensor([1.0, 4.0, 1.0, 16.0, 1.0]).to(cases.DEVICE).bfloat16().repeat_interleave(128)[:576]
    )
    call = sparse(cases.rows(3, 2, 1, 64, 576), quantize_v32(rows), listed)
    assert finds(call, KERNEL, planted), "nothing was found in ten runs"
