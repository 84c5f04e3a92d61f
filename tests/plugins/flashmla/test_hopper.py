"""The fast path for Hopper: on a GPU as it is, elsewhere simulated from its source, against the reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mla_cases as cases
from luciola.plugins.flashmla import flash_mla_with_kvcache, get_mla_metadata
from mla_fast_path import check, fast, finds

DENSE = "flash_fwd_splitkv_mla_kernel_ws"


def dense(case, **named):
    return lambda: flash_mla_with_kvcache(*case.arguments, 512, get_mla_metadata()[0], **named)


@pytest.mark.parametrize(("seed", "dtype"), [(0, torch.bfloat16), (1, torch.bfloat16), (2, torch.float16)])
def test_dense_over_blocks_pieces_and_ragged_ends(seed, dtype):
    lengths = [0, 300, 1, 64, 129, 0, 640, 128]
    check(dense(cases.dense(seed, lengths, h_q=64, dtype=dtype)), DENSE, seed=seed)


@pytest.mark.parametrize(("s_q", "h_q", "h_kv"), [(1, 33, 1), (2, 40, 1), (4, 66, 2), (1, 105, 3)])
def test_dense_heads_and_queries(s_q, h_q, h_kv):
    case = cases.dense(s_q, [70, 0, 200], s_q=s_q, h_q=h_q, h_kv=h_kv)
    check(dense(case, causal=True, softmax_scale=-0.3 if h_q == 40 else None), DENSE)


def test_dense_with_pages_far_apart_and_heads_that_overlap_no_row():
    case = cases.dense(3, [70, 5], s_q=2, h_q=68, h_kv=2)
    spread = torch.full((*case.k_cache.shape[:2], 3, 600), cases.NAN, dtype=torch.bfloat16)[:, :, 1:, 8:584]
    spread.copy_(case.k_cache)
    case.k_cache = spread
    check(dense(case), DENSE)


@settings(max_examples=4, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    lengths=st.lists(st.integers(0, 400), min_size=1, max_size=4),
    causal=st.booleans(),
)
def test_dense_any_lengths(seed, lengths, causal):
    check(dense(cases.dense(seed, lengths, s_q=2, h_q=32), causal=causal), DENSE, seed=seed)


@pytest.mark.parametrize(("h_q", "page"), [(16, 64), (64, 32)])
def test_calls_that_are_not_for_the_fast_path_take_the_other(h_q, page):
    call = dense(cases.dense(1, [70, 3], h_q=h_q, page=page))
    check(call, "flash_fwd_splitkv_mla_kernel")


def test_a_page_that_is_not_there_is_not_followed():
    case = cases.dense(1, [200, 130], h_q=64)
    want, _ = fast(dense(case))
    case.block_table[0, 1] = cases.WILD
    case.k_cache[int(case.block_table[1, 0])] = 1.0
    got, _ = fast(dense(case))
    assert got[0].isfinite().all()
    assert not torch.equal(got[0][0], want[0][0]), "the page counted before"


def _without_fences(_gl, _barriers):
    return {"fence_async_shared": lambda: None}


def _without_waiting_for_a_free_slot(gl, barriers):
    def fill(tile, place, page, shift, channel, filled, _free, _use, size):
        barriers.expect(filled, size)
        return load(tile, [page, -shift, channel], filled, place)

    load = gl.tma_load
    return {"_fill": fill}


def _tokens_not_moved_down(gl, _barriers):
    return {"_block": lambda pages, n, _length, _count: (gl.load(pages + n // 64), 0)}


def _handed_over_before_it_is_written(_gl, barriers):
    def hand_over(p, place, barrier):
        barriers.arrive(barrier, count=1)
        place.store(p.to(place.dtype))
        place.written.zero_()

    return {"hand_over": hand_over}


def _sides_do_not_meet(_gl, barriers):
    return {"meet": lambda barrier, _meetings: barriers.arrive(barrier, count=1)}


@pytest.mark.skipif(cases.DEVICE == "cuda", reason="bugs are planted in the simulation")
@pytest.mark.parametrize(
    "planted",
    [
        _without_fences,
        _without_waiting_for_a_free_slot,
        _tokens_not_moved_down,
        _handed_over_before_it_is_written,
        _sides_do_not_meet,
    ],
)
def test_planted_bugs_are_found(planted):
    call = dense(cases.dense(1, [300, 70, 200], h_q=64))
    assert finds(call, DENSE, planted), "nothing was found in ten runs"
