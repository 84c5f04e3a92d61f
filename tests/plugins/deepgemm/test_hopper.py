"""The fast path for Hopper: on a GPU as it is, elsewhere simulated from its source, against the reference."""

from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gluon_simulator import launch_simulated, no_bugs
from luciola.plugins import deepgemm
from luciola.plugins.deepgemm import settings as knobs
from luciola.plugins.kernels.layers import launching_with, using_layer

ON_GPU = torch.cuda.is_available()
POISON = float("nan")


@pytest.fixture(autouse=True)
def _few_programs():
    """So that a program has several tiles, and its slots are used again."""
    before = knobs._settings.num_sms
    deepgemm.set_num_sms(2)
    yield
    knobs._settings.num_sms = before


def both(call, d, *, seed=0, planted=no_bugs):
    """What the fast path and the reference make of copies of d."""
    kernels, results = [], []
    simulated = launch_simulated(seed=seed, planted=planted)

    def launch(kernel, grid, *arguments, **constants):
        kernels.append(kernel.fn.__name__)
        simulated(kernel, grid, *arguments, **constants)

    for layer in ("hopper", "reference"):
        results.append(d.clone())
        with nullcontext() if ON_GPU else launching_with(launch), using_layer(layer):
            call(results[-1])
    fast = {"specialised_gemm_kernel"}, {"specialised_k_grouped_kernel"}
    assert ON_GPU or set(kernels) in fast, "the fast path was taken"
    return results


def tokens(m, k):
    return deepgemm.per_token_cast_to_fp8(torch.randn(m, k), False)


def weights(groups, n, k):
    parts = [deepgemm.per_block_cast_to_fp8(torch.randn(n, k), False) for _ in range(groups)]
    return tuple(torch.stack([each[side] for each in parts]) for side in (0, 1))


def empty(*shape):
    return torch.full(shape, POISON, dtype=torch.bfloat16)


@pytest.mark.parametrize(("m", "n", "k"), [(130, 136, 272), (65, 8, 16), (300, 256, 640)])
def test_dense(m, n, k):
    a, b = tokens(m, k), deepgemm.per_block_cast_to_fp8(torch.randn(n, k), False)
    got, want = both(lambda d: deepgemm.fp8_gemm_nt(a, b, d), empty(m, n), seed=m)
    assert deepgemm.calc_diff(got, want) < 1e-5


def test_dense_with_scales_of_rows_adds_to_what_is_there():
    a, b = tokens(130, 272), tokens(136, 272)
    got, want = both(
        lambda d: deepgemm.fp8_gemm_nt(a, b, d, d, recipe=(1, 1, 128)), torch.randn(130, 136) * 100
    )
    assert deepgemm.calc_diff(got, want) < 1e-9


@pytest.mark.parametrize("psum", [False, True])
@pytest.mark.parametrize("counts", [[128], [1, 0, 130], [0, 0, 5], [70, 256]])
def test_contiguous(counts, psum):
    n, k, starts = 136, 256, []
    layout = torch.full((sum(-(-count // 128) * 128 for count in counts),), -1, dtype=torch.int32)
    for group, count in enumerate(counts):
        starts.append(sum(-(-each // 128) * 128 for each in counts[:group]))
        layout[starts[-1] : starts[-1] + count] = group
    ends = torch.tensor([a + b for a, b in zip(starts, counts, strict=True)], dtype=torch.int32)
    values, scales = tokens(len(layout), k)
    values.view(torch.uint8)[layout < 0] = 0x7F
    scales[layout < 0] = POISON
    b = weights(len(counts), n, k)
    by = ends if psum else layout
    got, want = both(
        lambda d: deepgemm.m_grouped_fp8_gemm_nt_contiguous((values, scales), b, d, by, use_psum_layout=psum),
        torch.full((len(layout), n), 5.0, dtype=torch.bfloat16),
    )
    assert deepgemm.calc_diff(got, want) < 1e-5
    assert torch.equal(got[layout < 0], want[layout < 0]), "zeros, or with ends of groups what was there"


@settings(max_examples=4, deadline=None)
@given(counts=st.lists(st.integers(0, 200), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_masked(counts, seed):
    torch.manual_seed(seed)
    groups, most, n, k = len(counts), 200, 136, 256
    values, scales = (each.view(groups, most, -1) for each in tokens(groups * most, k))
    for group, count in enumerate(counts):
        values[group, count:].view(torch.uint8).fill_(0x7F)
        scales[group, count:] = POISON
    b, masked_m = weights(groups, n, k), torch.tensor(counts, dtype=torch.int32)
    got, want = both(
        lambda d: deepgemm.m_grouped_fp8_gemm_nt_masked((values, scales), b, d, masked_m, 100),
        torch.full((groups, most, n), 5.0, dtype=torch.bfloat16),
        seed=seed,
    )
    for group, count in enumerate(counts):
        assert deepgemm.calc_diff(got[group, :count], want[group, :count]) < 1e-5
        assert bool((got[group, count:] == 5.0).all())


def k_groups(m, n, ks):
    """FP8 blocks of groups that cut k, flat, and their scales."""
    parts = [(tokens(m, max(k, 128)), tokens(n, max(k, 128)), k) for k in ks]
    return [
        (
            torch.cat([part[side][0][:, :k].reshape(-1) for *part, k in parts]),
            torch.cat([part[side][1][:, : k // 128] for *part, k in parts], dim=1),
        )
        for side in (0, 1)
    ]


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("ks", [[128, 0, 384], [0, 0, 128]])
def test_groups_that_cut_k(ks, in_place):
    m, n = 72, 136
    a, b = k_groups(m, n, ks)
    c, sizes = torch.randn(3, m, n), torch.tensor(ks, dtype=torch.int32)
    got, want = both(
        lambda d: deepgemm.k_grouped_fp8_gemm_nt_contiguous(a, b, d, ks, sizes, d if in_place else c),
        c if in_place else torch.full_like(c, POISON),
        seed=sum(ks),
    )
    assert deepgemm.calc_diff(got, want) < 1e-9


@pytest.mark.parametrize("ks", [[64, 0, 192], [640, 0]])
def test_groups_that_cut_k_in_bfloat16(ks):
    m, n = 136, 72
    a, b = (torch.randn(sum(ks), rows).bfloat16() for rows in (m, n))
    c, sizes = torch.randn(len(ks), m, n), torch.tensor(ks, dtype=torch.int32)
    got, want = both(
        lambda d: deepgemm.k_grouped_bf16_gemm_tn_contiguous(a, b, d, ks, sizes, c),
        torch.full_like(c, POISON),
        seed=len(ks),
    )
    assert deepgemm.calc_diff(got, want) < 1e-9


@pytest.mark.skipif(ON_GPU, reason="bugs are planted in the simulation")
def test_descriptors_that_are_made_too_early_are_found():
    ks = [128, 128, 128]
    a, b = k_groups(72, 136, ks)
    d, sizes = torch.zeros(3, 72, 136), torch.tensor(ks, dtype=torch.int32)
    for seed in range(10):
        try:
            both(
                lambda d: deepgemm.k_grouped_fp8_gemm_nt_contiguous(a, b, d, ks, sizes, d),
                d,
                seed=seed,
                planted=lambda _gl, _barriers: {"_wait_for_loads": lambda *_given: None},
            )
        except AssertionError as error:
            assert "made anew" in str(error)
            return
    pytest.fail("nothing was found in ten runs")


def _does_not_wait(partition):
    def planted(gl, barriers):
        wait = barriers.wait
        barriers.wait = lambda *given: None if gl.partition() == partition else wait(*given)
        return {}

    return planted


@pytest.mark.skipif(ON_GPU, reason="bugs are planted in the simulation")
@pytest.mark.parametrize("partition", [0, 1, 2])
def test_a_side_that_does_not_wait_is_found(partition):
    b = deepgemm.per_block_cast_to_fp8(torch.randn(136, 1024), False)
    a = tokens(130, 1024)
    for seed in range(10):
        try:
            got, want = both(
                lambda d: deepgemm.fp8_gemm_nt(a, b, d),
                empty(130, 136),
                seed=seed,
                planted=_does_not_wait(partition),
            )
            assert deepgemm.calc_diff(got, want) < 1e-5
        except AssertionError:
            return
    pytest.fail("nothing was found in ten runs")
