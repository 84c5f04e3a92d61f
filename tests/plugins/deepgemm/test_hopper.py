"""The fast path for Hopper: on a GPU as it is, elsewhere simulated from its source, against the reference."""

from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gluon_simulator import launch_simulated, no_bugs
from luciola.plugins import deepgemm
from luciola.plugins.deepgemm import settings as knobs
from luciola.plugins.kernels.layers import launching_with, recording, using_layer

BF16_SHAPES = [
    (136, 248, 200, torch.bfloat16),  # in tiles of 128 x 256, added to what is there
    (144, 136, 520, torch.bfloat16),
    (296, 8, 64, torch.float32),
]
ON_GPU = torch.cuda.is_available()
POISON = float("nan")
BF16_DIFF = 1e-5  # results are rounded to 8 bits
# Sums of FP8 products in float32: SM90's tensor cores align what they add to about 14 bits, the reference does not.
FP8_DIFF = 1e-6 if ON_GPU else 1e-9


@pytest.fixture(autouse=True)
def _few_programs():
    """So that a program has several tiles, and its slots are used again."""
    before = knobs._settings.num_sms
    deepgemm.set_num_sms(2)
    yield
    knobs._settings.num_sms = before


def both(call, d, *, seed=0, planted=no_bugs, tile=None, kernel="specialised_gemm_kernel"):
    """What the fast path and the reference make of copies of d; the kernel that was named ran, on a GPU too."""
    results = [d.clone(), d.clone()]
    simulated = launch_simulated(seed=seed, planted=planted)
    with (
        nullcontext() if ON_GPU else launching_with(simulated),
        using_layer("hopper"),
        recording() as launches,
    ):
        call(results[0])
    with using_layer("reference"):
        call(results[1])
    names = [each.kernel for each in launches]
    assert [each for each in names if each != "split_sum_kernel"] == [kernel], "the fast path was taken"
    constants = launches[0].constants
    assert tile in {None, (constants.get("TILE_M"), constants.get("TILE_N"))}
    if kernel == "decode_gemm_kernel":
        assert ("split_sum_kernel" in names) == (constants["SPLITS"] > 1)
    return results


def tokens(m, k):
    return deepgemm.per_token_cast_to_fp8(torch.randn(m, k), False)


def weights(groups, n, k):
    parts = [deepgemm.per_block_cast_to_fp8(torch.randn(n, k), False) for _ in range(groups)]
    return tuple(torch.stack([each[side] for each in parts]) for side in (0, 1))


def empty(*shape):
    return torch.full(shape, POISON, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("m", "n", "k", "tile"),
    [
        (130, 136, 272, (128, 256)),
        (129, 8, 16, (128, 128)),
        (300, 128, 640, (256, 128)),
        (200, 248, 272, (128, 256)),
        (500, 120, 272, (256, 128)),
    ],
)
def test_dense(m, n, k, tile):
    a, b = tokens(m, k), deepgemm.per_block_cast_to_fp8(torch.randn(n, k), False)
    got, want = both(lambda d: deepgemm.fp8_gemm_nt(a, b, d), empty(m, n), seed=m, tile=tile)
    assert deepgemm.calc_diff(got, want) < BF16_DIFF


def test_dense_with_scales_of_rows_adds_to_what_is_there():
    a, b = tokens(130, 272), tokens(136, 272)
    got, want = both(
        lambda d: deepgemm.fp8_gemm_nt(a, b, d, d, recipe=(1, 1, 128)), torch.randn(130, 136) * 100
    )
    assert deepgemm.calc_diff(got, want) < FP8_DIFF


@pytest.mark.parametrize(
    ("form", "m", "n", "k", "dtype"),
    [
        *(("nt", *shape) for shape in BF16_SHAPES),
        *(("tt", *shape) for shape in BF16_SHAPES),
        ("nn", *BF16_SHAPES[0]),
        ("tn", *BF16_SHAPES[1]),
    ],
)
def test_dense_in_bfloat16(form, m, n, k, dtype):
    a, b = torch.randn(m, k).bfloat16(), torch.randn(n, k).bfloat16()
    a = a.T.contiguous() if form[0] == "t" else a
    b = b.T.contiguous() if form[1] == "n" else b
    c = torch.randn(m, n).to(dtype) if k == 200 else None
    product = getattr(deepgemm, f"bf16_gemm_{form}")
    got, want = both(lambda d: product(a, b, d, c), torch.full((m, n), POISON, dtype=dtype), seed=m)
    assert deepgemm.calc_diff(got, want) < BF16_DIFF


@pytest.mark.parametrize(
    ("dtype", "m", "n", "k", "splits"),
    [
        ("fp8", 1, 8, 16, 1),
        ("fp8", 16, 72, 2000, 4),
        ("fp8", 100, 264, 384, 1),
        ("fp8", 128, 8, 1024, 2),
        ("bf16", 5, 136, 640, 2),
        ("bf16", 100, 264, 200, 1),
    ],
)
def test_few_rows_are_cut_along_k(dtype, m, n, k, splits):
    """The scales of each part of k, and tiles of tokens and weights that end inside; every part is added once."""
    deepgemm.set_num_sms(4)
    if dtype == "fp8":
        a, b = tokens(m, k), deepgemm.per_block_cast_to_fp8(torch.randn(n, k), False)
        call = lambda d: deepgemm.fp8_gemm_nt(a, b, d)  # noqa: E731
    else:
        a, b, c = torch.randn(m, k).bfloat16(), torch.randn(n, k).bfloat16(), torch.randn(m, n).bfloat16()
        call = lambda d: deepgemm.bf16_gemm_nt(a, b, d, c)  # noqa: E731
    with recording() as launches:
        got, want = both(call, empty(m, n), seed=m, kernel="decode_gemm_kernel")
    assert launches[0].constants["SPLITS"] == splits
    assert deepgemm.calc_diff(got, want) < BF16_DIFF


def contiguous(counts):
    """The group of each row, -1 between groups, and the ends of groups."""
    starts = []
    layout = torch.full((sum(-(-count // 128) * 128 for count in counts),), -1, dtype=torch.int32)
    for group, count in enumerate(counts):
        starts.append(sum(-(-each // 128) * 128 for each in counts[:group]))
        layout[starts[-1] : starts[-1] + count] = group
    return layout, torch.tensor([a + b for a, b in zip(starts, counts, strict=True)], dtype=torch.int32)


@pytest.mark.parametrize("psum", [False, True])
@pytest.mark.parametrize(
    ("counts", "n", "tile"),
    [
        ([128], 136, (128, 128)),
        ([1, 0, 130], 392, (128, 256)),
        ([0, 0, 5], 136, (128, 128)),
        ([70, 256], 392, (128, 256)),
    ],
)
def test_contiguous(counts, n, tile, psum):
    k = 256
    layout, ends = contiguous(counts)
    values, scales = tokens(len(layout), k)
    values.view(torch.uint8)[layout < 0] = 0x7F
    scales[layout < 0] = POISON
    b = weights(len(counts), n, k)
    by = ends if psum else layout
    got, want = both(
        lambda d: deepgemm.m_grouped_fp8_gemm_nt_contiguous((values, scales), b, d, by, use_psum_layout=psum),
        torch.full((len(layout), n), 5.0, dtype=torch.bfloat16),
        tile=tile,
    )
    assert deepgemm.calc_diff(got, want) < BF16_DIFF
    assert torch.equal(got[layout < 0], want[layout < 0]), "zeros, or with ends of groups what was there"


@pytest.mark.parametrize(("form", "psum"), [("nt", False), ("nn", False), ("nt", True)])
@pytest.mark.parametrize("counts", [[1, 0, 130], [70, 256]])
def test_contiguous_in_bfloat16(counts, form, psum):
    n, k = 264, 192
    layout, ends = contiguous(counts)
    a, b = torch.randn(len(layout), k).bfloat16(), torch.randn(len(counts), n, k).bfloat16()
    a[layout < 0] = POISON
    product = getattr(deepgemm, f"m_grouped_bf16_gemm_{form}_contiguous")
    stored = b.mT.contiguous() if form == "nn" else b
    got, want = both(
        lambda d: product(a, stored, d, ends if psum else layout, use_psum_layout=psum),
        torch.full((len(layout), n), 5.0, dtype=torch.bfloat16),
        seed=len(layout),
    )
    assert deepgemm.calc_diff(got, want) < BF16_DIFF
    assert torch.equal(got[layout < 0], want[layout < 0])


@pytest.mark.parametrize("expected_m", [200, 30])
@settings(max_examples=3, deadline=None)
@given(counts=st.lists(st.integers(0, 200), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_masked(expected_m, counts, seed):
    torch.manual_seed(seed)
    groups, most, n, k = len(counts), 200, 136, 256
    values, scales = (each.view(groups, most, -1) for each in tokens(groups * most, k))
    for group, count in enumerate(counts):
        values[group, count:].view(torch.uint8).fill_(0x7F)
        scales[group, count:] = POISON
    b, masked_m = weights(groups, n, k), torch.tensor(counts, dtype=torch.int32)
    got, want = both(
        lambda d: deepgemm.m_grouped_fp8_gemm_nt_masked((values, scales), b, d, masked_m, expected_m),
        torch.full((groups, most, n), 5.0, dtype=torch.bfloat16),
        seed=seed,
        kernel="specialised_gemm_kernel" if expected_m > 128 else "decode_gemm_kernel",
    )
    for group, count in enumerate(counts):
        assert deepgemm.calc_diff(got[group, :count], want[group, :count]) < BF16_DIFF
        assert bool((got[group, count:] == 5.0).all())


@pytest.mark.parametrize("expected_m", [200, 100])
def test_masked_in_bfloat16_between_other_columns(expected_m):
    """D has columns around it, which TMA must leave alone, and groups end inside tiles and at their ends."""
    counts, most, n, k = [0, 128, 1, 200], 200, 136, 128
    a, b = torch.randn(4, most, k).bfloat16(), torch.randn(4, n, k).bfloat16()
    masked_m = torch.tensor(counts, dtype=torch.int32)
    got, want = both(
        lambda d: deepgemm.m_grouped_bf16_gemm_nt_masked(a, b, d[:, :, 8:-8], masked_m, expected_m),
        torch.full((4, most, n + 16), 5.0, dtype=torch.bfloat16),
        kernel="specialised_gemm_kernel" if expected_m > 128 else "decode_gemm_kernel",
    )
    assert deepgemm.calc_diff(got, want) < BF16_DIFF
    assert torch.equal(got == 5.0, want == 5.0)


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
        kernel="specialised_k_grouped_kernel",
    )
    assert deepgemm.calc_diff(got, want) < FP8_DIFF


@pytest.mark.parametrize("ks", [[64, 0, 192], [640, 0]])
def test_groups_that_cut_k_in_bfloat16(ks):
    m, n = 136, 72
    a, b = (torch.randn(sum(ks), rows).bfloat16() for rows in (m, n))
    c, sizes = torch.randn(len(ks), m, n), torch.tensor(ks, dtype=torch.int32)
    got, want = both(
        lambda d: deepgemm.k_grouped_bf16_gemm_tn_contiguous(a, b, d, ks, sizes, c),
        torch.full_like(c, POISON),
        seed=len(ks),
        kernel="specialised_k_grouped_kernel",
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
                kernel="specialised_k_grouped_kernel",
            )
        except AssertionError as error:
            assert "replaced while" in str(error)
            return
    pytest.fail("nothing was found in ten runs")


@pytest.mark.skipif(ON_GPU, reason="bugs are planted in the simulation")
@pytest.mark.parametrize("left_out", ["store_wait", "fence_async_shared"])
def test_results_that_leave_too_early_are_found(left_out):
    a, b = torch.randn(130, 64).bfloat16(), torch.randn(248, 64).bfloat16()
    for seed in range(10):
        try:
            got, want = both(
                lambda d: deepgemm.bf16_gemm_nt(a, b, d),
                empty(130, 248),
                seed=seed,
                planted=lambda _gl, _barriers: {left_out: lambda *_given: None},
            )
            assert deepgemm.calc_diff(got, want) < BF16_DIFF
        except AssertionError:
            return
    pytest.fail("nothing was found in ten runs")


@pytest.mark.skipif(ON_GPU, reason="bugs are planted in the simulation")
def test_a_slot_that_is_given_back_a_step_too_early_is_found():
    """In bfloat16 the slot of a step is free when the next step's multiplication has begun, and not before."""
    a, b = torch.randn(130, 1024).bfloat16(), torch.randn(136, 1024).bfloat16()

    def planted(_gl, barriers):
        arrive = barriers.arrive
        barriers.arrive = lambda barrier, **named: arrive(barrier, **{**named, "pred": True})
        return {}

    for seed in range(10):
        try:
            got, want = both(
                lambda d: deepgemm.bf16_gemm_nt(a, b, d), empty(130, 136), seed=seed, planted=planted
            )
            assert deepgemm.calc_diff(got, want) < BF16_DIFF
        except AssertionError:
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
            assert deepgemm.calc_diff(got, want) < BF16_DIFF
        except AssertionError:
            return
    pytest.fail("nothing was found in ten runs")
