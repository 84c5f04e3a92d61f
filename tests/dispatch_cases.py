"""What a rank does in the tests of normal mode: each case compares with what one process computes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from luciola.plugins.deepep import Buffer, CommunicationError, reference
from luciola.plugins.kernels.layers import using_layer
from luciola.plugins.kernels.quantize import per_token_cast_to_fp8

STORE: list[dist.Store] = []
"""That of this case, without any prefix."""


@dataclass(frozen=True)
class World:
    """The inputs of all ranks, which every rank makes from the same seed."""

    experts: int
    x: list[Tensor]
    topk_idx: list[Tensor]
    topk_weights: list[Tensor]

    @property
    def member(self) -> list[Tensor]:
        return [reference.is_token_in_rank(each, self.experts, len(self.x)) for each in self.topk_idx]


def world(
    size: int, *, tokens: list[int], hidden: int = 128, experts: int, topk: int, routing: str, seed: int
) -> World:
    """Random tokens, routed in some way; there are some more experts if the ranks do not divide them."""
    experts = -(-experts // size) * size
    random = torch.Generator().manual_seed(seed)
    x, idx, weights = [], [], []
    for rank in range(size):
        count = tokens[rank % len(tokens)]
        x.append(torch.randn(count, hidden, generator=random).bfloat16())
        scores = torch.rand(count, experts, generator=random)
        if routing == "hot":
            scores[:, experts - 1] += 1
        elif routing == "first rank":
            scores[:, experts // size :] -= 2
        chosen = scores.topk(min(topk, experts), dim=1).indices
        if routing == "holes":
            chosen[torch.rand(chosen.shape, generator=random) < 0.4] = -1
        elif routing == "nothing" or (routing == "one sender" and rank):
            chosen[:] = -1
        idx.append(chosen)
        weights.append(torch.rand(chosen.shape, generator=random))
    return World(experts, x, idx, weights)


def make(rank: int, size: int, *, nodes: int = 1, num_bytes: int = 1 << 22, **options: Any) -> Buffer:
    """A buffer of this case's ranks."""
    return Buffer(
        dist.group.WORLD, num_bytes, num_bytes if nodes > 1 else 0,
        ranks_per_node=size // nodes, explicitly_destroy=True, device="cpu", **{"timeout_s": 60.0, **options},
    )  # fmt: skip


def exact(
    rank: int,
    size: int,
    *,
    cases: list[dict[str, Any]],
    nodes: int = 1,
    layers: tuple[str, ...] = ("reference",),
    num_bytes: int = 1 << 22,
    transport: str = "auto",
) -> str:
    """Layout, dispatch and combine in all call patterns, for each case; returns the transport's name."""
    buffer = make(rank, size, nodes=nodes, num_bytes=num_bytes, transport=transport)
    with using_layer(layers[rank % len(layers)]):
        for case in cases:
            _round(buffer, world(size, **case), nodes)
    name = buffer.transport.name
    buffer.destroy()
    return name


def _round(buffer: Buffer, made: World, nodes: int) -> None:  # noqa: PLR0915 (one step after another)
    rank, member = buffer.rank, made.member
    x, idx, weights = made.x[rank], made.topk_idx[rank], made.topk_weights[rank]
    layout = buffer.get_dispatch_layout(idx, made.experts)
    per_rank, per_node, per_expert, inside, event = layout
    assert event.event is None
    assert torch.equal(inside, member[rank])
    assert torch.equal(per_rank, member[rank].sum(0).int())
    counts = torch.bincount(idx[idx >= 0].reshape(-1), minlength=made.experts)
    assert torch.equal(per_expert, counts.int())
    by_node = member[rank].view(len(x), nodes, len(member) // nodes).any(2)
    assert per_node is None if nodes == 1 else torch.equal(per_node, by_node.sum(0).int())
    routing = {
        "num_tokens_per_rank": per_rank, "num_tokens_per_rdma_rank": per_node,
        "is_token_in_rank": inside, "num_tokens_per_expert": per_expert,
    }  # fmt: skip
    wanted_x = reference.dispatched(made.x, member, rank)
    wanted_idx, wanted_weights = reference.received_experts(
        made.topk_idx, made.topk_weights, member, rank, num_experts=made.experts
    )
    rows = len(wanted_x)

    # bfloat16 with experts
    got, got_idx, got_weights, got_counts, handle, event = buffer.dispatch(
        x,
        topk_idx=idx,
        topk_weights=weights,
        expert_alignment=4,
        config=Buffer.get_dispatch_config(8),
        **routing,
    )
    _same(got, wanted_x)
    _same(got_idx, wanted_idx)
    _same(got_weights, wanted_weights)
    assert got_counts == reference.expert_counts(made.topk_idx, rank, num_experts=made.experts, alignment=4)
    _sources_are_told(handle, member, rank, nodes)

    # without experts, asynchronous, after an event
    plain = buffer.dispatch(
        x, previous_event=Buffer.capture(), async_finish=True, allocate_on_comm_stream=True, **routing
    )
    plain[-1].current_stream_wait()
    _same(plain[0], wanted_x)
    assert plain[1:3] == (None, None)

    # FP8 with scales of any strides, new and cached
    if x.shape[1] % 128 == 0:
        casts = [per_token_cast_to_fp8(each, use_ue8m0=False) for each in made.x]
        values, scales = casts[rank]
        pair = (values, scales.T.contiguous().T)
        for again in (False, True):
            options = {"handle": handle} if again else {**routing, "topk_idx": idx, "topk_weights": weights}
            (got_values, got_scales), *rest = buffer.dispatch(pair, **options)
            _same(
                got_values.view(torch.uint8),
                reference.dispatched([v.view(torch.uint8) for v, _ in casts], member, rank),
            )
            _same(got_scales, reference.dispatched([s for _, s in casts], member, rank))
            assert not again or rest[:4] == [None] * 4

    # cached
    doubled, *nothing, event = buffer.dispatch(x * 2, handle=handle, async_finish=True)
    assert nothing == [None] * 4
    with event:
        pass
    _same(doubled, wanted_x * 2)

    # as many rows as could come at worst
    worst = sum(len(each) for each in made.x) + 3
    got, got_idx, got_weights, got_counts, worst_handle, _ = buffer.dispatch(
        x, topk_idx=idx, topk_weights=weights, num_worst_tokens=worst, **routing
    )
    assert (len(got), len(got_idx), len(got_weights), got_counts) == (worst, worst, worst, [])
    _same(got[:rows], wanted_x)
    _same(got_idx[:rows], wanted_idx)
    assert (got_idx[rows:] == -1).all()
    assert (got_weights[rows:] == 0).all()

    # back
    random = torch.Generator().manual_seed(rows)
    results = [
        torch.randn(
            len(reference.sources(member, peer)), x.shape[1], generator=torch.Generator().manual_seed(peer)
        ).bfloat16()
        for peer in range(len(member))
    ]
    back_weights = [
        reference.received_experts(made.topk_idx, made.topk_weights, member, peer, num_experts=made.experts)[
            1
        ]
        for peer in range(len(member))
    ]
    bias = [torch.randn(x.shape, generator=random).bfloat16() for _ in range(2)]
    for given in ((), tuple(bias[:1]), tuple(bias)):
        out, out_weights, event = buffer.combine(
            results[rank], handle, topk_weights=back_weights[rank] if given else None,
            bias=None if not given else given[0] if len(given) == 1 else given, async_finish=True,
        )  # fmt: skip
        event.current_stream_wait()
        _same(out, reference.combined(results, member, rank, bias=given, nodes=nodes))
        assert (out_weights is None) == (not given)
        if given:
            _same(out_weights, torch.where(idx >= 0, weights, 0.0))
    padded = torch.full((worst, x.shape[1]), float("nan")).bfloat16()
    padded[:rows] = results[rank]
    _same(buffer.combine(padded, worst_handle)[0], reference.combined(results, member, rank, nodes=nodes))


def _sources_are_told(handle: Any, member: list[Tensor], rank: int, nodes: int) -> None:
    ends = torch.tensor([int(each[:, rank].sum()) for each in member]).cumsum(0).int()
    if nodes == 1:
        _same(handle[0][:, rank], ends)
        _same(
            handle[3],
            torch.tensor([token for _, token in reference.sources(member, rank)], dtype=torch.int32),
        )
        before = torch.nn.functional.pad(ends[:-1], (1, 0))
        assert (handle[2] <= (ends - before)[:, None]).all()
        _same(handle[1][:, -1], member[rank].sum(0).int())
    else:
        _same(handle[-4], ends)
        _same(
            handle[7][:, 0],
            torch.tensor([source for source, _ in reference.sources(member, rank)], dtype=torch.int32),
        )


def _same(got: Tensor, wanted: Tensor) -> None:
    assert got.dtype == wanted.dtype, (got.dtype, wanted.dtype)
    assert got.shape == wanted.shape, (got.shape, wanted.shape)
    assert torch.equal(got, wanted), f"{int((got != wanted).sum())} of {got.numel()} differ"


def original(rank: int, size: int, **arguments: int) -> None:
    """The original's test of normal mode: rows that tell their source, and its tolerances."""
    with using_layer("reference"):
        _original(rank, size, **arguments)


def _original(rank: int, size: int, *, nodes: int, tokens: int, hidden: int, experts: int, topk: int) -> None:
    buffer = make(rank, size, nodes=nodes, num_bytes=1 << 21)
    torch.manual_seed(rank)
    x = torch.full((tokens, hidden), float(rank)).bfloat16()
    noise = torch.randn(tokens, hidden).bfloat16()
    topk_idx = torch.rand(tokens, experts).topk(topk, dim=1, sorted=False).indices
    topk_weights = torch.full((tokens, topk), float(rank))
    per_rank, per_node, per_expert, inside, _ = buffer.get_dispatch_layout(topk_idx, experts)
    everywhere = per_rank.clone()
    dist.all_reduce(everywhere)
    expert_totals = per_expert.clone()
    dist.all_reduce(expert_totals)
    for current, fp8 in ((x, False), (noise, False), (x, True), (noise, True)):
        given = per_token_cast_to_fp8(current, use_ue8m0=False) if fp8 else current
        got, got_idx, got_weights, counts, handle, _ = buffer.dispatch(
            given, num_tokens_per_rank=per_rank, num_tokens_per_rdma_rank=per_node, is_token_in_rank=inside,
            num_tokens_per_expert=per_expert, topk_idx=topk_idx, topk_weights=topk_weights,
        )  # fmt: skip
        rows = (
            (got[0].float().view(len(got[0]), -1, 128) * got[1][:, :, None]).flatten(1).bfloat16()
            if fp8
            else got
        )
        assert len(rows) == int(everywhere[rank])
        assert counts == expert_totals.view(size, -1)[rank].tolist()
        ends = handle[0][:, rank] if nodes == 1 else handle[-4]
        if current is x:
            start = 0
            for source, end in enumerate(ends.tolist()):
                assert (rows[start:end] == source).all()
                assert (got_weights[start:end][got_idx[start:end] >= 0] == source).all()
                start = end
        back, back_weights, _ = buffer.combine(rows, handle, topk_weights=got_weights)
        scale = inside.sum(1, keepdim=True)
        assert difference(back.float(), current.float() * scale) < (5e-4 if fp8 else 5e-6)
        sent = (topk_idx >= 0).float() * topk_weights
        assert difference(back_weights, sent) < 1e-9
    buffer.destroy()


def difference(x: Tensor, y: Tensor) -> float:
    """The original's: 1 - cosine similarity of the numbers plus one."""
    x, y = x.double() + 1, y.double() + 1
    return float(1 - 2 * (x * y).sum() / (x * x + y * y).sum())


def learned(call: Callable[[], Any]) -> tuple[str, str, int, int]:
    """The error that a call ends with: class, text, the rank that noticed it, the rank that is to blame."""
    try:
        call()
    except CommunicationError as error:
        return type(error).__name__, str(error), error.rank, error.peer
    raise AssertionError("no error")
