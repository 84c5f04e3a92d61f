"""The indexer's logits, dense and paged: by hand, both layers against each other, and what must not leak."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gluon_simulator import launch_simulated
from luciola.plugins import deepgemm
from luciola.plugins.kernels.errors import BadArgument, BadType
from luciola.plugins.kernels.layers import launching_with, recording, using_layer
from luciola.plugins.kernels.quantize import FP8

LAYERS = ("reference", "triton", "hopper")
INF = float("inf")
DIFF = 5e-6  # the original's; SM90's tensor cores keep about 14 bits of what they add


@contextmanager
def in_layer(name: str, kernel: str | None = None) -> Iterator[None]:
    """Calls run in that layer, simulated where there is no GPU; its kernel, and no other, was launched."""
    simulated = name == "hopper" and not torch.cuda.is_available()
    with (
        launching_with(launch_simulated(seed=1)) if simulated else nullcontext(),
        using_layer(name),
        recording() as launches,
    ):
        yield
    wanted = {"reference": None, "triton": f"{kernel}_kernel", "hopper": f"{kernel}_ws_kernel"}[name]
    if kernel:
        names = [each.kernel for each in launches if "metadata" not in each.kernel]
        assert names == ([wanted] if wanted else [])


def int32(values: list[int] | list[list[int]]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def expected(q: torch.Tensor, kv: torch.Tensor, sf: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return (torch.einsum("shd,td->sht", q.double(), kv.double()).relu() * weights.double()[:, :, None]).sum(
        1
    ) * sf


@pytest.mark.parametrize("layer", LAYERS)
def test_logits_by_hand(layer: str) -> None:
    """Heads 0 and 1 see 2 · 3 and -1 · 3; relu drops the second; weight 10, scale 0.5."""
    q, kv = torch.zeros(1, 32, 32), torch.zeros(3, 32)
    q[0, 0, 4], q[0, 1, 4], kv[1, 4] = 2.0, -1.0, 3.0
    weights = torch.full((1, 32), 10.0)
    with in_layer(layer, "mqa_logits"):
        logits = deepgemm.fp8_mqa_logits(
            q.to(FP8), (kv.to(FP8), torch.full((3,), 0.5)), weights, int32([0]), int32([2])
        )
    assert logits.tolist() == [[0.0, 30.0, -INF]]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    ("heads", "d", "dtype"), [(32, 32, torch.bfloat16), (64, 128, torch.float32), (64, 64, torch.float32)]
)
def test_logits_of_ragged_queries(heads: int, d: int, dtype: torch.dtype, layer: str) -> None:
    s, tokens = 5, 300
    q, kv, weights = torch.randn(s, heads, d).to(FP8), torch.randn(tokens, d).to(FP8), torch.randn(s, heads)
    sf = torch.rand(tokens)
    starts, ends = int32([0, 10, 130, 299, 7]), int32([300, 10, 260, 300, 500])
    with in_layer(layer, "mqa_logits"):
        logits = deepgemm.fp8_mqa_logits(q, (kv, sf), weights, starts, ends, logits_dtype=dtype)
    assert (logits.dtype, logits.shape) == (dtype, (s, tokens))
    assert logits.stride(0) * dtype.itemsize % 1024 == 0
    place = torch.arange(tokens)
    visible = (place >= starts[:, None]) & (place < ends[:, None])
    assert bool((logits[~visible] == -INF).all())
    wanted = expected(q.float(), kv.float(), sf, weights)
    assert deepgemm.calc_diff(logits[visible], wanted[visible]) < (DIFF if dtype == torch.float32 else 1e-5)


@settings(max_examples=6, deadline=None)
@given(st.integers(1, 4), st.integers(1, 150), st.integers(1, 160), st.data())
def test_compressed_logits_begin_at_the_start(s: int, tokens: int, width: int, data: st.DataObject) -> None:
    starts = data.draw(st.lists(st.integers(0, tokens), min_size=s, max_size=s))
    ends = [data.draw(st.integers(start, tokens)) for start in starts]
    q, kv, weights = torch.randn(s, 32, 32).to(FP8), torch.randn(tokens, 32).to(FP8), torch.randn(s, 32)
    sf = torch.rand(tokens)
    wanted = expected(q.float(), kv.float(), sf, weights)
    for layer in LAYERS:
        with in_layer(layer, "mqa_logits"):
            logits = deepgemm.fp8_mqa_logits(
                q, (kv, sf), weights, int32(starts), int32(ends), clean_logits=False, max_seqlen_k=width
            )
        assert logits.shape == (s, width)
        for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
            length = min(end - start, width)
            assert torch.isfinite(logits[row, :length]).all()
            if length:
                assert deepgemm.calc_diff(logits[row, :length], wanted[row, start : start + length]) < DIFF


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("s", "tokens"), [(0, 5), (2, 0)])
def test_logits_without_queries_or_tokens_start_nothing(s: int, tokens: int, layer: str) -> None:
    q, kv, none = torch.zeros(s, 32, 32).to(FP8), torch.zeros(tokens, 32).to(FP8), int32([0] * s)
    with in_layer(layer), recording() as launches:
        logits = deepgemm.fp8_mqa_logits(
            q, (kv, torch.ones(tokens)), torch.ones(s, 32), none, none, clean_logits=False, max_seqlen_k=4
        )
    assert (logits.shape, launches) == ((s, 4), [])


def paged(lengths: list[int], *, next_n: int, d: int, blocks: int) -> tuple[torch.Tensor, ...]:
    """A cache with NaN everywhere but in the tokens of the requests, whose pages are scattered."""
    pages = [-(-length // 64) for length in lengths]
    order = torch.randperm(blocks)[: sum(pages)].tolist()
    cache = torch.full((blocks, 64 * (d + 4)), 0x7F, dtype=torch.uint8)
    table = torch.full((len(lengths), max([*pages, 1])), -7, dtype=torch.int32)
    kv, sf = [], []
    for request, length in enumerate(lengths):
        values, scales = torch.randn(length, d).to(FP8), torch.rand(length)
        kv.append(values)
        sf.append(scales)
        for page in range(pages[request]):
            block = order.pop()
            table[request, page] = block
            part, part_sf = values[page * 64 : page * 64 + 64], scales[page * 64 : page * 64 + 64]
            cache[block, : part.numel()] = part.view(torch.uint8).flatten()
            cache[block, 64 * d : 64 * d + 4 * len(part_sf)] = part_sf.view(torch.uint8)
    q, weights = torch.randn(len(lengths), next_n, 32, d).to(FP8), torch.randn(len(lengths) * next_n, 32)
    return q, cache.view(blocks, 64, 1, d + 4), weights, table, kv, sf


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    ("lengths", "next_n"), [([1], 1), ([64, 65, 0, 700], 1), ([300, 2, 257], 2), ([0, 0], 1)]
)
@pytest.mark.parametrize("programs", [1, 5])
def test_paged_logits_follow_the_table(lengths: list[int], next_n: int, programs: int, layer: str) -> None:
    q, cache, weights, table, kv, sf = paged(lengths, next_n=next_n, d=64, blocks=20)
    each = int32([[max(0, length - next_n + 1 + token) for token in range(next_n)] for length in lengths])
    with in_layer(layer, "paged_mqa_logits"):
        schedule = deepgemm.get_paged_mqa_logits_metadata(each, 64, programs)
        logits = deepgemm.fp8_paged_mqa_logits(q, cache, weights, each, table, schedule, 720)
    assert logits.shape == (len(lengths) * next_n, 720)
    for request in range(len(lengths)):
        for token in range(next_n):
            row, length = request * next_n + token, int(each[request, token])
            wanted = expected(
                q[request, token : token + 1].float(),
                kv[request].float(),
                sf[request],
                weights[row : row + 1],
            )
            assert torch.isfinite(logits[row, :length]).all()
            if length:
                assert deepgemm.calc_diff(logits[row, :length], wanted[0, :length]) < DIFF


@pytest.mark.parametrize("layer", LAYERS)
def test_paged_logits_are_cleaned_on_demand(layer: str) -> None:
    q, cache, weights, table, _, _ = paged([3, 70], next_n=1, d=32, blocks=5)
    lengths = int32([3, 70])
    with in_layer(layer, "paged_mqa_logits"):
        schedule = deepgemm.get_paged_mqa_logits_metadata(lengths, 64, 4)
        logits = deepgemm.fp8_paged_mqa_logits(
            q, cache, weights, lengths, table, schedule, 100, clean_logits=True
        )
    assert bool((logits[0, 3:] == -INF).all())
    assert bool((logits[1, 70:] == -INF).all())
    assert torch.isfinite(logits[0, :3]).all()
    assert torch.isfinite(logits[1, :70]).all()


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(0, 1500), min_size=1, max_size=9), st.integers(1, 12))
def test_the_schedule_covers_every_piece_once_and_evenly(lengths: list[int], programs: int) -> None:
    pieces = [(row, piece) for row, length in enumerate(lengths) for piece in range(-(-length // 256))]
    schedules = []
    for layer in LAYERS:
        with in_layer(layer):
            schedules.append(deepgemm.get_paged_mqa_logits_metadata(int32(lengths), 64, programs).tolist())
    assert all(each == schedules[0] for each in schedules)
    covered = []
    for start, end in zip(schedules[0], schedules[0][1:], strict=False):
        share = [each for each in pieces if tuple(start) <= each < tuple(end)]
        assert len(share) - len(pieces) // programs in {0, 1}
        covered += share
    assert covered == pieces


def test_what_is_refused_says_what_to_give() -> None:
    q, kv, weights = torch.zeros(2, 32, 32).to(FP8), torch.zeros(4, 32).to(FP8), torch.zeros(2, 32)
    sf, ends = torch.ones(4), int32([4, 4])
    logits = deepgemm.fp8_mqa_logits
    paged_q, cache, paged_weights, table, _, _ = paged([3], next_n=1, d=32, blocks=2)
    schedule = deepgemm.get_paged_mqa_logits_metadata(int32([3]), 64, 2)
    call = deepgemm.fp8_paged_mqa_logits
    cases = [
        (lambda: logits(q.float(), (kv, sf), weights, ends, ends), BadType, "q has dtype torch.float32"),
        (lambda: logits(q[:, :16], (kv, sf), weights, ends, ends), BadArgument, "32 or 64, 32 or 64 or 128"),
        (lambda: logits(q, (kv, sf[:2]), weights, ends, ends), BadArgument, r"kv\[1\]"),
        (lambda: logits(q, (kv, sf), weights, ends.long(), ends), BadType, "int32"),
        (lambda: logits(q, (kv, sf), weights, ends, ends, True, 3), BadArgument, "clean_logits=False"),
        (
            lambda: logits(q, (kv, sf), weights, ends, ends, logits_dtype=torch.int8),
            BadType,
            "float32 or bfloat16",
        ),
        (lambda: deepgemm.fp8_fp4_mqa_logits((q, sf), (kv, sf), weights, ends, ends), BadType, "later GPUs"),
        (lambda: deepgemm.get_paged_mqa_logits_metadata(ends, 32, 2), BadArgument, "must be 64"),
        (lambda: deepgemm.get_paged_mqa_logits_metadata(ends, 64, 0), BadArgument, "positive"),
        (
            lambda: call(paged_q, cache[:, :32], paged_weights, int32([3]), table, schedule, 9),
            BadArgument,
            "kv_cache",
        ),
        (
            lambda: call(paged_q, cache, paged_weights, int32([3, 3]), table, schedule, 9),
            BadArgument,
            "context_lens",
        ),
        (
            lambda: call(paged_q, cache, paged_weights, int32([3]), table, schedule[:, 0], 9),
            BadArgument,
            "schedule_meta",
        ),
    ]
    for each, error, message in cases:
        with pytest.raises(error, match=message):
            each()
    same = deepgemm.fp8_fp4_paged_mqa_logits(
        (paged_q, None), cache, paged_weights, int32([3]), table, schedule, 9
    )
    assert torch.equal(
        same[:, :3], call(paged_q, cache, paged_weights, int32([3]), table, schedule, 9)[:, :3]
    )
