"""Sending and receiving of low-latency mode without processes: the memories of all ranks are tensors of this one.

The torch code for host memory and the kernels, in Triton's interpreter or on a GPU, against loops over tokens.
"""

import pytest
import torch

from luciola.plugins.compat.deep_ep.utils.math import calc_diff
from luciola.plugins.deepep.low_latency import reference
from luciola.plugins.deepep.low_latency.host import HostOps
from luciola.plugins.deepep.low_latency.launch import KernelOps
from luciola.plugins.deepep.low_latency.layout import Layout, Received

pytestmark = pytest.mark.usefixtures("kernel_device")


def opened(way, layout, device):
    """Sending and receiving of all ranks in one process, and their memories."""
    memories = [
        torch.full((layout.total_bytes,), 0xFF, dtype=torch.uint8, device=device) for _ in range(layout.ranks)
    ]
    inactive, stopped = torch.zeros(layout.ranks, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    if way == "host":
        return [HostOps(layout, rank, memories, inactive) for rank in range(layout.ranks)], memories
    table = torch.tensor([each.data_ptr() for each in memories], dtype=torch.int64)
    return [KernelOps(layout, rank, table, inactive, stopped) for rank in range(layout.ranks)], memories


def routes(tokens, topk, experts, seed, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(tokens, experts, generator=generator)
    scores[:, 0] += 1 - spread  # one hot expert
    chosen = scores.topk(topk, -1)[1]
    return torch.where(torch.rand(tokens, topk, generator=generator) < 0.1, -1, chosen)


def outputs(layout, **options):
    """Of zeros, and counters at five."""
    made = Received.empty(layout, torch.get_default_device(), **options)
    for each in vars(made).values():
        if each is not None:
            (each.view(torch.uint8) if each.dtype == torch.float8_e4m3fn else each).zero_()
    return made, torch.full((layout.local,), 5, dtype=torch.int32)


CASES = {
    "bf16": ((3, 0, 5), 16, 6, 2, {}),
    "bf16-odd-hidden": ((1, 4), 24, 4, 1, {}),
    "fp8": ((4, 1), 256, 8, 3, {"fp8": True}),
    "fp8-large": ((2, 3), 1152, 2, 1, {"fp8": True}),
    "fp8-packed": ((3, 2), 512, 4, 2, {"fp8": True, "round_scale": True, "use_ue8m0": True}),
    "hot": ((6, 6), 32, 4, 1, {"spread": 0.0}),
}


@pytest.mark.parametrize("way", ["host", "kernels"])
@pytest.mark.parametrize("name", CASES)
def test_both_ways_do_what_the_reference_does(way, name, kernel_device):
    if way == "host" and kernel_device != "cpu":
        pytest.skip("host memory is the CPU's")
    sizes, hidden, experts, topk, options = CASES[name]
    fp8, spread = options.get("fp8", False), options.get("spread", 1.0)
    round_scale, use_ue8m0 = options.get("round_scale", False), options.get("use_ue8m0", False)
    layout = Layout(8, hidden, len(sizes), experts)
    ranks, _ = opened(way, layout, kernel_device)
    xs = [
        torch.randn(size, hidden, device="cpu", generator=torch.Generator().manual_seed(rank)).to(
            torch.bfloat16
        )
        for rank, size in enumerate(sizes)
    ]
    topks = [routes(size, topk, experts, 7 + rank, spread) for rank, size in enumerate(sizes)]
    with torch.device("cpu"):
        wanted = reference.dispatch(
            xs, topks, max_tokens=8, experts=experts, fp8=fp8, round_scale=round_scale, use_ue8m0=use_ue8m0
        )
    for each, x, chosen in zip(ranks, xs, topks, strict=True):
        given = (x.to(kernel_device), chosen.to(kernel_device))
        each.dispatch_send(1, *given, fp8=fp8, round_scale=round_scale)
    given = []
    for each, expected in zip(ranks, wanted, strict=True):
        got, stats = outputs(layout, fp8=fp8, use_ue8m0=use_ue8m0)
        each.dispatch_receive(1, got, stats)
        assert torch.equal(stats.cpu(), expected.counts + 5)
        assert torch.equal(got.counts.cpu(), expected.counts)
        assert torch.equal(got.ranges.cpu(), expected.ranges)
        assert torch.equal(got.source_tokens.cpu(), expected.source_tokens)
        assert torch.equal(got.rows.cpu().view(torch.uint8), expected.rows.view(torch.uint8))
        if fp8:
            assert torch.equal(got.scales.cpu(), expected.scales)
        given.append(got)

    for logfmt in (False, True) if hidden % 128 == 0 else (False,):
        rows = [
            torch.randn(layout.local, layout.rows, hidden, device="cpu").to(torch.bfloat16) for _ in sizes
        ]
        weights = [torch.rand(size, topk, device="cpu") for size in sizes]
        with torch.device("cpu"):
            combined = reference.combine(rows, wanted, topks, weights, logfmt=logfmt)
        for each, got, answers in zip(ranks, given, rows, strict=True):
            handle = {"ranges": got.ranges, "source_tokens": got.source_tokens}
            each.combine_send(0, answers.to(kernel_device), **handle, logfmt=logfmt)
        for rank, expected in enumerate(combined):
            out = torch.full((sizes[rank], hidden), float("nan"), dtype=torch.bfloat16)
            inputs = {"topk": topks[rank].to(kernel_device), "weights": weights[rank].to(kernel_device)}
            ranks[rank].combine_receive(0, **inputs, out=out, logfmt=logfmt)
            assert bool(out.isfinite().all())
            assert calc_diff(out.cpu(), expected) < 1e-5
            assert torch.allclose(
                out.cpu().float(), expected.float(), atol=1 / 16 if logfmt else 1 / 64, rtol=1 / 64
            )


def test_after_a_wait_that_ran_out_nothing_is_sent_and_nothing_arrives(kernel_device):
    layout = Layout(4, 256, 1, 2)
    (rank,), (memory,) = opened("kernels", layout, kernel_device)
    got, stats = outputs(layout, fp8=False)
    x, topk, weights = torch.ones(2, 256).to(torch.bfloat16), torch.tensor([[0], [1]]), torch.ones(2, 1)
    rank.dispatch_send(0, x, topk, fp8=False, round_scale=False)
    before = memory.clone()
    rank.stopped.fill_(1)
    rank.dispatch_send(0, x * 2, topk, fp8=False, round_scale=False)
    rank.dispatch_receive(0, got, stats)
    assert got.counts.tolist() == [0, 0]
    assert not got.rows.any()
    got.ranges.fill_(1)
    rank.combine_send(0, got.rows, ranges=got.ranges, source_tokens=got.source_tokens, logfmt=False)
    assert torch.equal(memory, before)
    out = torch.empty(2, 256, dtype=torch.bfloat16)
    rank.combine_receive(0, topk=topk, weights=weights, out=out, logfmt=False)
    assert not out.any()


@pytest.mark.parametrize("way", ["host", "kernels"])
def test_logfmt_returns_nan_for_what_is_not_finite(way, kernel_device):
    if way == "host" and kernel_device != "cpu":
        pytest.skip("host memory is the CPU's")
    layout = Layout(4, 256, 1, 2)
    (rank,), _ = opened(way, layout, kernel_device)
    got, stats = outputs(layout, fp8=False)
    topk, weights = torch.tensor([[0], [1], [-1]]), torch.ones(3, 1)
    rank.dispatch_send(0, torch.ones(3, 256).to(torch.bfloat16), topk, fp8=False, round_scale=False)
    rank.dispatch_receive(0, got, stats)
    answers = got.rows
    answers[0, 0, 5], answers[0, 0, 6], answers[1, 0, 130] = float("inf"), 0, float("nan")
    rank.combine_send(1, answers, ranges=got.ranges, source_tokens=got.source_tokens, logfmt=True)
    out = torch.empty(3, 256, dtype=torch.bfloat16)
    rank.combine_receive(1, topk=topk, weights=weights, out=out, logfmt=True)
    wanted = torch.ones(3, 256)
    wanted[0, :128] = wanted[1, 128:] = float("nan")
    wanted[0, 6] = wanted[2] = 0
    assert torch.equal(out.cpu().float().nan_to_num(7), wanted.nan_to_num(7).cpu())
