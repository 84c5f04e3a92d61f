"""The fast path for Hopper: on a GPU as it is, elsewhere simulated from its source, against the reference."""

from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mla_cases as cases
from gluon_simulator import Wrong, launch_simulated, no_bugs
from luciola.plugins.flashmla import flash_mla_with_kvcache, get_mla_metadata, using_layer
from luciola.plugins.kernels.layers import launching_with

DENSE = "flash_fwd_splitkv_mla_kernel_ws"


def fast(call, *, seed=0, planted=no_bugs):
    """The result in the fast path, and the Gluon kernels that ran."""
    kernels = []
    simulated = launch_simulated(seed=seed, planted=planted)

    def launch(kernel, grid, *arguments, **constants):
        kernels.append(kernel.fn.__name__)
        simulated(kernel, grid, *arguments, **constants)

    with nullcontext() if cases.DEVICE == "cuda" else launching_with(launch), using_layer("hopper"):
        return call(), kernels


def check(call, kernel=DENSE, **named):
    (out, *others), kernels = fast(call, **named)
    assert cases.DEVICE == "cuda" or kernel in kernels, "the fast path was taken"
    with using_layer("reference"):
        want, *other_wants = call()
    cases.assert_close(out, want)
    for mine, other in zip(others, other_wants, strict=True):
        cases.assert_close_lse(mine, other)


def dense(case, **named):
    return lambda: flash_mla_with_kvcache(*case.arguments, 512, get_mla_metadata()[0], **named)


@pytest.mark.parametrize(("seed", "dtype"), [(0, torch.bfloat16), (1, torch.bfloat16), (2, torch.float16)])
def test_dense_over_blocks_pieces_and_ragged_ends(seed, dtype):
    lengths = [0, 300, 1, 64, 129, 0, 640, 128]
    check(dense(cases.dense(seed, lengths, h_q=64, dtype=dtype)), seed=seed)


@pytest.mark.parametrize(("s_q", "h_q", "h_kv"), [(1, 33, 1), (2, 40, 1), (4, 66, 2), (1, 105, 3)])
def test_dense_heads_and_queries(s_q, h_q, h_kv):
    case = cases.dense(s_q, [70, 0, 200], s_q=s_q, h_q=h_q, h_kv=h_kv)
    check(dense(case, causal=True, softmax_scale=-0.3 if h_q == 40 else None))


def test_dense_with_pages_far_apart_and_heads_that_overlap_no_row():
    case = cases.dense(3, [70, 5], s_q=2, h_q=68, h_kv=2)
    spread = torch.full((*case.k_cache.shape[:2], 3, 600), cases.NAN, dtype=torch.bfloat16)[:, :, 1:, 8:584]
    spread.copy_(case.k_cache)
    case.k_cache = spread
    check(dense(case))


@settings(max_examples=4, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    lengths=st.lists(st.integers(0, 400), min_size=1, max_size=4),
    causal=st.booleans(),
)
def test_dense_any_lengths(seed, lengths, causal):
    check(dense(cases.dense(seed, lengths, s_q=2, h_q=32), causal=causal), seed=seed)


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
        place.reshape(place.shape[1:]).store(p.to(place.dtype))
        place.written.zero_()

    return {"_hand_over": hand_over}


def _sides_do_not_meet(_gl, barriers):
    return {"_meet": lambda barrier, _meetings: barriers.arrive(barrier, count=1)}


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
    for seed in range(10):
        try:
            check(call, seed=seed, planted=planted)
        except (AssertionError, Wrong):
            return
    pytest.fail("nothing was found in ten runs")
