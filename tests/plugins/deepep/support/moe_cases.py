"""What a rank can do in the tests of the mixture-of-experts layer, beside one process that has all experts."""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import silu

from luciola.plugins.deepep import Buffer
from luciola.plugins.eplb import LoadRecorder
from luciola.plugins.kernels.layers import using_layer

sys.path.insert(0, str(Path(__file__).parents[4] / "examples"))

from moe import ExpertParallel, PhysicalExperts

STORE: list[dist.Store] = []
"""That of this case, without any prefix."""

HIDDEN, WIDTH, EXPERTS, TOPK = 128, 64, 8, 3
CHECKPOINT_NAMES = {
    "gate_proj.weight": ("gate_up", slice(0, WIDTH)),
    "up_proj.weight": ("gate_up", slice(WIDTH, 2 * WIDTH)),
    "down_proj.weight": ("down", slice(0, HIDDEN)),
}
"""In a checkpoint: which weight, and its part."""


def weights(seed: int = 5) -> dict[str, Tensor]:
    """Of all experts: gate_up (E, 2 · width, hidden), down (E, hidden, width)."""
    generator = torch.Generator().manual_seed(seed)
    gate_up = torch.randn(EXPERTS, 2 * WIDTH, HIDDEN, generator=generator) * HIDDEN**-0.5
    return {
        "gate_up": gate_up.to(torch.bfloat16),
        "down": (torch.randn(EXPERTS, HIDDEN, WIDTH, generator=generator) * WIDTH**-0.5).to(torch.bfloat16),
    }


def tokens(rank: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """x, topk_idx and topk_weights of one rank."""
    generator = torch.Generator().manual_seed(100 + rank)
    x = torch.randn(count, HIDDEN, generator=generator).to(torch.bfloat16)
    chosen = torch.rand(count, EXPERTS, generator=generator).topk(TOPK, -1)[1]
    chosen[torch.rand(count, TOPK, generator=generator) < 0.1] = -1
    return x, chosen, torch.rand(count, TOPK, generator=generator)


def plain(x: Tensor, topk_idx: Tensor, topk_weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """The layer in one process, in float32."""
    total = torch.zeros(x.shape)
    for expert in range(EXPERTS):
        token, place = (topk_idx == expert).nonzero(as_tuple=True)
        gate, up = (x[token].float() @ gate_up[expert].float().T).chunk(2, -1)
        answer = (silu(gate) * up) @ down[expert].float().T
        total = total.index_add(0, token, answer * topk_weights[token, place, None])
    return total


def made(size: int, placement: Tensor | None, **options: Any) -> ExpertParallel:
    """The layer with this rank's part of the weights."""
    hint = Buffer.get_low_latency_rdma_size_hint(8, HIDDEN, size, EXPERTS * 2)
    buffer = Buffer(dist.group.WORLD, 1 << 20, hint, low_latency_mode=True, timeout_s=60.0, device="cpu")
    experts = (
        PhysicalExperts.in_order(EXPERTS, ranks=size)
        if placement is None
        else PhysicalExperts(placement, ranks=size)
    )
    layer = ExpertParallel(buffer, experts, hidden=HIDDEN, width=WIDTH, **options)
    own = experts.slots_of(dist.get_rank())
    with torch.no_grad():
        for name, value in weights().items():
            getattr(layer, name).copy_(value[own])
    return layer


def moe_gradients(
    rank: int,
    size: int,
    *,
    counts: tuple[int, ...],
    placement: list[int] | None = None,
    precision: str = "bf16",
) -> dict[str, float]:
    """Forward and backward of the layer; the largest differences to one process, relative to the largest number."""
    with using_layer("reference"):
        where = None if placement is None else torch.tensor(placement)
        layer = made(size, where, precision=precision, dtype=torch.float32)
        x, chosen, weight = tokens(rank, counts[rank])
        x.requires_grad_()
        weight.requires_grad_()
        result = layer(x, chosen, weight)
        goal = torch.randn(counts[rank], HIDDEN, generator=torch.Generator().manual_seed(rank))
        (result.float() * goal).sum().backward()
        layer.sum_replica_gradients()

        everything = {name: value.float().requires_grad_() for name, value in weights().items()}
        expected = {}
        for source, count in enumerate(counts):
            other, routes, shares = tokens(source, count)
            other.requires_grad_()
            shares.requires_grad_()
            answer = plain(other, routes, shares, **everything)
            (
                answer * torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(source))
            ).sum().backward()
            if source == rank:
                expected = {"result": answer.detach(), "x": other.grad, "weights": shares.grad}
        own = layer.experts.slots_of(rank)
        got = {"result": result.detach(), "x": x.grad, "weights": weight.grad}
        for name in ("gate_up", "down"):
            got[name], expected[name] = getattr(layer, name).grad, everything[name].grad[own]
        layer.buffer.transport.barrier()
        layer.buffer.transport.close()
        return {name: distance(value, expected[name]) for name, value in got.items()}


def moe_decoding(rank: int, size: int, *, counts: tuple[int, ...], precision: str) -> dict[str, float]:
    """Low-latency mode gives what normal mode gives; changed weights are noticed."""
    with using_layer("reference"):
        recorder = LoadRecorder(1, EXPERTS)
        layer = made(size, torch.arange(2 * EXPERTS) % EXPERTS, precision=precision, recorder=recorder)
        x, chosen, weight = tokens(rank, counts[rank])
        expected = plain(x, chosen, weight, **weights())
        differences = {"first": distance(layer.decode(x, chosen, weight, max_tokens=8), expected)}
        recorder.step()
        load = recorder.loads().average[0]
        assert torch.equal(load, torch.bincount(chosen[chosen >= 0], minlength=EXPERTS).double())
        with torch.no_grad():
            layer.down *= 2
        differences["doubled"] = distance(layer.decode(x, chosen, weight, max_tokens=8), 2 * expected)
        layer.buffer.transport.barrier()
        layer.buffer.transport.close()
        return differences


def moe_loading(rank: int, size: int, *, location: str, placement: list[int]) -> tuple[int, int]:
    """Weights come from a checkpoint, those of this rank's slots and no others: slots read, bytes read."""
    where = torch.tensor(placement)
    layer = made(size, where)
    with torch.no_grad():
        for each in layer.parameters():
            each.fill_(float("nan"))
    report = layer.load_weights(location, template="layers.{layer}.experts.{expert}.{name}", layer=3)
    own = layer.experts.slots_of(rank)
    for name, value in weights().items():
        assert torch.equal(getattr(layer, name).detach(), value[own])
    layer.buffer.transport.barrier()
    layer.buffer.transport.close()
    return report.read, report.needed_bytes


def distance(got: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest number."""
    if not expected.numel():
        assert got.shape == expected.shape
        return 0.0
    return float((got.float() - expected).abs().max() / expected.abs().max().clamp(1e-6))
