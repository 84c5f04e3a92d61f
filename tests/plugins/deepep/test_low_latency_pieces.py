"""Sending and receiving of low-latency mode without processes: the memories of all ranks are tensors of this one.

The torch code for host memory and the kernels, in Triton's interpreter or on a GPU, against loops over tokens.
"""

import pytest
import torch

from luciola.plugins.compat.deep_ep.utils.math import calc_diff
from luciola.plugins.deepep.low_latency import host, launch, reference
from luciola.plugins.deepep.low_latency.layout import Layout

pytestmark = pytest.mark.usefixtures("kernel_device")


class Ranks:
    """All ranks of a call in one process."""

    def __init__(self, way, layout, device):
        self.way, self.layout, self.device = way, layout, device
        self.memories = [
            torch.full((layout.total_bytes,), 0xFF, dtype=torch.uint8, device=device)
            for _ in range(layout.ranks)
        ]
        table = torch.tensor([each.data_ptr() for each in self.memories], dtype=torch.int64)
        inactive, stopped = torch.zeros(layout.ranks, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
        on_host = host.Places(self.memories, range(layout.ranks))
        self.places = on_host if way == "host" else launch.Places(table, inactive, stopped)

    def call(self, name, rank, half, *inputs, **options):
        module = host if self.way == "host" else launch
        getattr(module, name)(self.layout, self.places, half, *inputs, rank=rank, **options)


def routes(tokens, topk, experts, seed, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(tokens, experts, generator=generator)
    scores[:, 0] += 1 - spread  # one hot expert
    chosen = scores.topk(topk, -1)[1]
    return torch.where(torch.rand(tokens, topk, generator=generator) < 0.1, -1, chosen)


def outputs(layout, *, fp8, use_ue8m0):
    local, rows = layout.local, layout.rows
    dtype = torch.float8_e4m3fn if fp8 else torch.bfloat16
    scales = None
    if fp8:
        width = layout.groups // 4 if use_ue8m0 else layout.groups
        scales = torch.zeros(local, width, rows, dtype=torch.int32 if use_ue8m0 else torch.float32).mT
    return {
        "rows": torch.zeros(local, rows, layout.hidden, dtype=torch.bfloat16).to(dtype),
        "scales": scales,
        "source_tokens": torch.zeros(local, rows, dtype=torch.int32),
        "ranges": torch.zeros(local, layout.ranks, dtype=torch.int64),
        "recv_counts": torch.zeros(local, dtype=torch.int32),
        "stats": torch.full((local,), 5, dtype=torch.int32),
    }


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
    ranks = Ranks(way, layout, kernel_device)
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
    for rank in range(len(sizes)):
        x, chosen = xs[rank].to(kernel_device), topks[rank].to(kernel_device)
        ranks.call("dispatch_send", rank, 1, x, chosen, fp8=fp8, round_scale=round_scale)
    given = []
    for rank, expected in enumerate(wanted):
        got = outputs(layout, fp8=fp8, use_ue8m0=use_ue8m0)
        ranks.call("dispatch_receive", rank, 1, **got)
        assert torch.equal(got["recv_counts"].cpu(), expected.counts)
        assert torch.equal(got["stats"].cpu(), expected.counts + 5)
        assert torch.equal(got["ranges"].cpu(), expected.ranges)
        assert torch.equal(got["source_tokens"].cpu(), expected.source_tokens)
        assert torch.equal(got["rows"].cpu().view(torch.uint8), expected.rows.view(torch.uint8))
        if fp8:
            assert torch.equal(got["scales"].cpu(), expected.scales)
        given.append(got)

    for logfmt in (False, True) if hidden % 128 == 0 else (False,):
        rows = [
            torch.randn(layout.local, layout.rows, hidden, device="cpu").to(torch.bfloat16) for _ in sizes
        ]
        weights = [torch.rand(size, topk, device="cpu") for size in sizes]
        with torch.device("cpu"):
            combined = reference.combine(rows, wanted, topks, weights, logfmt=logfmt)
        for rank, got in enumerate(given):
            handle = {name: got[name] for name in ("ranges", "source_tokens")}
            ranks.call("combine_send", rank, 0, rows[rank].to(kernel_device), **handle, logfmt=logfmt)
        for rank, expected in enumerate(combined):
            out = torch.full((sizes[rank], hidden), float("nan"), dtype=torch.bfloat16)
            inputs = {"topk": topks[rank].to(kernel_device), "weights": weights[rank].to(kernel_device)}
            ranks.call("combine_receive", rank, 0, **inputs, out=out, logfmt=logfmt)
            assert bool(out.isfinite().all())
            assert calc_diff(out.cpu(), expected) < 1e-5
            assert torch.allclose(
                out.cpu().float(), expected.float(), atol=1 / 16 if logfmt else 1 / 64, rtol=1 / 64
            )


def test_after_a_wait_that_ran_out_nothing_is_sent_and_nothing_comes(kernel_device):
    layout = Layout(4, 256, 1, 2)
    ranks, got = Ranks("kernels", layout, kernel_device), outputs(layout, fp8=False, use_ue8m0=False)
    x, topk, weights = torch.ones(2, 256).to(torch.bfloat16), torch.tensor([[0], [1]]), torch.ones(2, 1)
    casts = {"fp8": False, "round_scale": False}
    ranks.call("dispatch_send", 0, 0, x, topk, **casts)
    before = ranks.memories[0].clone()
    ranks.places.stopped.fill_(1)
    ranks.call("dispatch_send", 0, 0, x * 2, topk, **casts)
    ranks.call("dispatch_receive", 0, 0, **got)
    assert got["recv_counts"].tolist() == [0, 0]
    assert not got["rows"].any()
    got["ranges"].fill_(1)
    ranks.call(
        "combine_send",
        0,
        0,
        got["rows"],
        ranges=got["ranges"],
        source_tokens=got["source_tokens"],
        logfmt=False,
    )
    assert torch.equal(ranks.memories[0], before)
    out = torch.empty(2, 256, dtype=torch.bfloat16)
    ranks.call("combine_receive", 0, 0, topk=topk, weights=weights, out=out, logfmt=False)
    assert not out.any()


@pytest.mark.parametrize("way", ["host", "kernels"])
def test_logfmt_tells_of_what_is_not_finite(way, kernel_device):
    if way == "host" and kernel_device != "cpu":
        pytest.skip("host memory is the CPU's")
    layout = Layout(4, 256, 1, 2)
    ranks, got = Ranks(way, layout, kernel_device), outputs(layout, fp8=False, use_ue8m0=False)
    topk, weights = torch.tensor([[0], [1], [-1]]), torch.ones(3, 1)
    ranks.call(
        "dispatch_send", 0, 0, torch.ones(3, 256).to(torch.bfloat16), topk, fp8=False, round_scale=False
    )
    ranks.call("dispatch_receive", 0, 0, **got)
    answers = got["rows"]
    answers[0, 0, 5], answers[0, 0, 6], answers[1, 0, 130] = float("inf"), 0, float("nan")
    handle = {name: got[name] for name in ("ranges", "source_tokens")}
    ranks.call("combine_send", 0, 1, answers, **handle, logfmt=True)
    out = torch.empty(3, 256, dtype=torch.bfloat16)
    ranks.call("combine_receive", 0, 1, topk=topk, weights=weights, out=out, logfmt=True)
    wanted = torch.ones(3, 256)
    wanted[0, :128] = wanted[1, 128:] = float("nan")
    wanted[0, 6] = wanted[2] = 0
    assert torch.equal(out.cpu().float().nan_to_num(7), wanted.nan_to_num(7).cpu())
