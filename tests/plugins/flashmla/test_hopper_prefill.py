"""The fast path of sparse prefill for Hopper: on a GPU as it is, elsewhere simulated from its source."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mla_cases as cases
from luciola.plugins.flashmla import flash_mla_sparse_fwd
from mla_fast_path import check, fast, finds

KERNEL = "sparse_attn_fwd_ws"


def call(seed, s_q, h, width, topk, *, tokens=90, **named):
    """Rows that no list names are NaN; some places of the lists name nothing, or tokens that are not there."""
    listed = cases.indices(seed, (s_q, 1, topk), tokens)
    listed[:, :, :1] = cases.WILD
    kv = cases.rows(seed + 1, tokens, 1, width)
    unnamed = torch.ones(tokens, dtype=torch.bool)
    unnamed[listed[(listed >= 0) & (listed < tokens)].long().cpu()] = False
    kv[unnamed.to(kv.device)] = cases.NAN
    q = cases.rows(seed + 2, s_q, h, width)
    return lambda: flash_mla_sparse_fwd(q, kv, listed, 0.3, 512, **named)


def ints(*values):
    return torch.tensor(values, dtype=torch.int32).to(cases.DEVICE)


@pytest.mark.parametrize(
    ("s_q", "h", "width", "topk"), [(2, 64, 576, 330), (1, 130, 576, 64), (2, 33, 512, 256), (1, 40, 512, 1)]
)
def test_pairs_heads_and_widths(s_q, h, width, topk):
    check(call(topk, s_q, h, width, topk), KERNEL, seed=topk)


def test_lengths_sinks_and_queries_that_see_nothing():
    h = 34
    sink = torch.linspace(-3, 3, h).to(cases.DEVICE)
    sink[:2] = torch.tensor([math.inf, -math.inf])
    run = call(1, 5, h, 576, 200, topk_length=ints(200, 70, 0, 1, 128), attn_sink=sink)
    check(run, KERNEL, seed=3)
    (out, largest, lse), _ = fast(run)
    assert out[:, 0].abs().max() == 0, "a sink of +inf takes everything"
    assert (out[2:4] == 0).all()
    assert (largest[2:4] == -math.inf).all(), "the only place of the list names nothing"
    assert (lse[2:4] == math.inf).all()


@settings(max_examples=3, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    h=st.integers(33, 70),
    width=st.sampled_from((512, 576)),
    topk=st.integers(1, 300),
    length=st.integers(0, 300),
)
def test_any_shape(seed, h, width, topk, length):
    check(call(seed, 1, h, width, topk, topk_length=ints(length)), KERNEL, seed=seed)


def test_rows_far_apart_and_no_queries():
    kv = torch.full((40, 1, 600), cases.NAN, dtype=torch.bfloat16).to(cases.DEVICE)[:, :, 8:584]
    kv.copy_(cases.rows(1, 40, 1, 576))
    listed = cases.indices(2, (1, 1, 70), 40)
    check(lambda: flash_mla_sparse_fwd(cases.rows(3, 1, 33, 576), kv, listed, 0.1), KERNEL)
    nothing = cases.rows(3, 0, 33, 576)
    assert flash_mla_sparse_fwd(nothing, kv, listed[:0], 0.1)[0].shape == (0, 33, 512)


@pytest.mark.parametrize(("h", "stride"), [(32, 576), (64, 580)])
def test_calls_that_are_not_for_the_fast_path_take_the_other(h, stride):
    kv = torch.zeros((40, 1, stride), dtype=torch.bfloat16).to(cases.DEVICE)[:, :, :576]
    kv.copy_(cases.rows(1, 40, 1, 576))
    listed = cases.indices(2, (1, 1, 70), 40)
    check(lambda: flash_mla_sparse_fwd(cases.rows(3, 1, h, 576), kv, listed, 0.1), "sparse_attn_fwd")


def _without_fences_after_copies(_gl, barriers):
    return {"arrived": lambda filled, use, _copied: barriers.wait(filled, use & 1)}


def _filled_again_too_early(_gl, _barriers):
    return {"_given_back": lambda _free, _pair: None}


def _copies_are_not_waited_for(_gl, barriers):
    return {"ampere.mbarrier_arrive": lambda barrier, increment_count: barriers.arrive(barrier, count=128)}


def _unnamed_rows_are_read(gl, _barriers):
    def copy_rows(place, at, _known, first, width):
        for chunk in range(width // 64):
            column = first + chunk * 64 + gl.arange(0, 64)
            copy(place.slice(chunk * 64, 64, dim=1), at + column[None, :], mask=None)

    copy = gl.copy
    return {"_copy_rows": copy_rows}


def _unnamed_tokens_count(gl, _barriers):
    return {"_masked": lambda s, known, scale: s * scale + 0 * known.load(None)[None, :]}


def _sides_do_not_meet(_gl, barriers):
    return {"meet": lambda barrier, _meetings: barriers.arrive(barrier, count=1)}


@pytest.mark.skipif(cases.DEVICE == "cuda", reason="bugs are planted in the simulation")
@pytest.mark.parametrize(
    "planted",
    [
        _without_fences_after_copies,
        _filled_again_too_early,
        _copies_are_not_waited_for,
        _unnamed_rows_are_read,
        _unnamed_tokens_count,
        _sides_do_not_meet,
    ],
)
def test_planted_bugs_are_found(planted):
    assert finds(call(1, 1, 40, 576, 300), KERNEL, planted), "nothing was found in ten runs"
