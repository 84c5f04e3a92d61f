"""What a rank does in the tests of normal mode: each case compares with what one process computes."""

import itertools
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from luciola.plugins import compat
from luciola.plugins.deepep import Buffer, CommunicationError
from luciola.plugins.deepep.normal import reference
from luciola.plugins.kernels.layers import using_layer
from luciola.plugins.kernels.quantize import per_token_cast_to_fp8
from spinning_transport import SpinningBuffer

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


def refusals(calls: Sequence[Callable[[], Any]]) -> list[tuple[str, str]]:
    """What each call is refused with: the error's type and text."""
    errors = []
    for number, call in enumerate(calls):
        try:
            call()
        except (ValueError, TypeError, AssertionError) as error:
            errors.append((type(error).__name__, str(error)))
        else:
            raise AssertionError(f"call {number} was not refused")
    return errors


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


def make(
    *,
    num_bytes: int = 1 << 22,
    kind: type[Buffer] = Buffer,
    **options: Any,
) -> Buffer:
    """A buffer of this case's ranks."""
    return kind(
        dist.group.WORLD,
        num_bytes,
        explicitly_destroy=True,
        **{"device": "cpu", "timeout_s": 60.0, **options},
    )


def exact(
    rank: int,
    size: int,
    *,
    cases: list[dict[str, Any]],
    layers: tuple[str, ...] = ("reference",),
    num_bytes: int = 1 << 22,
    transport: str = "auto",
    spinning: bool = False,
) -> str:
    """Layout, dispatch and combine in all call patterns, for each case; returns the transport's name."""
    kind = SpinningBuffer if spinning else Buffer
    buffer = make(num_bytes=num_bytes, transport=transport, kind=kind)
    with using_layer(layers[rank % len(layers)]):
        for case in cases:
            _round(buffer, world(size, **case))
    name = buffer.transport.name
    buffer.destroy()
    return name


def _round(buffer: Buffer, made: World) -> None:  # noqa: PLR0915 (one step after another)
    rank, member = buffer.rank, made.member
    x, idx, weights = made.x[rank], made.topk_idx[rank], made.topk_weights[rank]
    layout = buffer.get_dispatch_layout(idx, made.experts)
    per_rank, per_node, per_expert, inside, event = layout
    assert event.event is None
    assert torch.equal(inside, member[rank])
    assert torch.equal(per_rank, member[rank].sum(0).int())
    counts = torch.bincount(idx[idx >= 0].reshape(-1), minlength=made.experts)
    assert torch.equal(per_expert, counts.int())
    assert per_node is None
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
    _check_sources(handle, member, rank)

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
        _same(out, reference.combined(results, member, rank, bias=given))
        assert (out_weights is None) == (not given)
        if given:
            _same(out_weights, torch.where(idx >= 0, weights, 0.0))
    padded = torch.full((worst, x.shape[1]), float("nan")).bfloat16()
    padded[:rows] = results[rank]
    _same(buffer.combine(padded, worst_handle)[0], reference.combined(results, member, rank))


def _check_sources(handle: Any, member: list[Tensor], rank: int) -> None:
    ends = torch.tensor([int(each[:, rank].sum()) for each in member]).cumsum(0).int()
    _same(handle[0][:, rank], ends)
    tokens = [token for _, token in reference.sources(member, rank)]
    _same(handle[3], torch.tensor(tokens, dtype=torch.int32))
    before = torch.nn.functional.pad(ends[:-1], (1, 0))
    assert (handle[2].cpu() <= (ends - before)[:, None]).all()
    _same(handle[1][:, -1], member[rank].sum(0).int())


def gpu_of(rank: int) -> str:
    """Ranks share the GPUs of this machine."""
    device = f"cuda:{rank % torch.cuda.device_count()}"
    torch.cuda.set_device(device)
    return device


def on_gpus(rank: int, size: int, *, cases: list[dict[str, Any]]) -> str:
    """As `exact`, with tensors of the host that a buffer on a GPU brings there and back."""
    buffer = make(device=gpu_of(rank))
    for case in cases:
        _round(buffer, world(size, **case))
    name = buffer.transport.name
    buffer.destroy()
    return name


def _same(got: Tensor, wanted: Tensor) -> None:
    got = got.cpu()
    assert got.dtype == wanted.dtype, (got.dtype, wanted.dtype)
    assert got.shape == wanted.shape, (got.shape, wanted.shape)
    assert torch.equal(got, wanted), f"{int((got != wanted).sum())} of {got.numel()} differ"


def original(rank: int, size: int, **arguments: int) -> None:
    """The calls and the checks of the original's tests of normal mode, by its own names."""
    compat.install("deep_ep", replace=True)
    with using_layer("reference"):
        _original(rank, size, **arguments)


def _original(  # noqa: C901, PLR0915 (one step after another)
    rank: int, size: int, *, tokens: int, hidden: int, experts: int, topk: int
) -> None:
    import deep_ep  # noqa: I001 (`install` has made it)
    from deep_ep.utils.math import (
        calc_diff, create_grouped_scores, inplace_unique, per_token_cast_back, per_token_cast_to_fp8,
    )  # fmt: skip

    buffer = deep_ep.Buffer(dist.group.WORLD, 1 << 21)
    torch.manual_seed(rank)
    x = torch.ones(tokens, hidden).bfloat16() * rank
    noise = torch.randn(tokens, hidden).bfloat16()
    values, scales = per_token_cast_to_fp8(x)
    casts = {"x": (values, scales.T.contiguous().T), "noise": per_token_cast_to_fp8(noise)}
    scores = torch.randn(tokens, experts).abs() + 1
    groups = torch.topk(scores.view(tokens, 2, experts // 2).amax(-1), k=1, dim=-1).indices
    topk_idx = torch.topk(create_grouped_scores(scores, groups, 2), topk, dim=-1, sorted=False)[1]
    topk_idx = topk_idx.to(deep_ep.topk_idx_t)
    weights = {"x": torch.ones(tokens, topk) * rank, "noise": torch.randn(tokens, topk)}

    rank_idx = topk_idx // (experts // size)
    inplace_unique(rank_idx, size)
    per_rank = torch.stack([(rank_idx == each).sum() for each in range(size)]).int()
    per_expert = torch.stack([(topk_idx == each).sum() for each in range(experts)]).int()
    inside = torch.stack([(rank_idx == each).any(1) for each in range(size)], 1).contiguous()
    layout = buffer.get_dispatch_layout(topk_idx, experts)
    for got, wanted in zip(layout, (per_rank, None, per_expert, inside), strict=False):
        assert got is wanted is None or torch.equal(got, wanted)
    totals, expert_totals = per_rank.clone(), per_expert.clone()
    dist.all_reduce(totals)
    dist.all_reduce(expert_totals)
    config = deep_ep.Config(24, 8, 256)
    bias = (torch.ones(tokens, hidden).bfloat16(), torch.randn(tokens, hidden).bfloat16())
    copies = inside.sum(1).unsqueeze(1)

    def check(rows: Tensor, ends: Tensor) -> None:
        assert torch.allclose(rows.amin(1), rows.amax(1))
        start = 0
        for source in range(size):
            end = int(ends[source])
            assert (rows[start:end].int() - source).sum() == 0
            start = end

    steps = ((False, True), (False, True)) if size == 2 else ((True,), (True,))
    for previous, asynchronous, name, fp8, with_topk in itertools.product(
        *steps, ("noise", "x"), (False, True), (False, True)
    ):
        usual = {"config": config, "async_finish": asynchronous}
        before = (lambda: {"previous_event": deep_ep.Buffer.capture()}) if previous else dict
        current = casts[name] if fp8 else {"x": x, "noise": noise}[name]
        experts_too = {"topk_idx": topk_idx, "topk_weights": weights[name]} if with_topk else {}
        rows, idx, row_weights, counts, handle, event = buffer.dispatch(
            x=current, num_tokens_per_rank=per_rank, is_token_in_rank=inside,
            num_tokens_per_expert=per_expert, **usual, **experts_too, **before(),
        )  # fmt: skip
        if asynchronous:
            event.current_stream_wait()
        rows = per_token_cast_back(*rows) if isinstance(rows, tuple) else rows
        ends = handle[0][:, rank]
        assert len(rows) == int(totals[rank])
        assert counts == expert_totals.view(size, -1)[rank].tolist()
        if name == "x":
            check(rows, ends)
        if with_topk:
            assert (idx.eq(-1) | ((idx >= 0) & (idx < experts // size))).all()
            assert [int(idx.eq(each).sum()) for each in range(len(counts))] == counts
            if name == "x":
                filled = row_weights.amax(1, keepdim=True).expand_as(row_weights)
                check(torch.where(idx.eq(-1), filled, row_weights), ends)
        else:
            again, *_, event = buffer.dispatch(x=current, handle=handle, **usual, **before())
            if asynchronous:
                event.current_stream_wait()
            again = per_token_cast_back(*again) if isinstance(again, tuple) else again
            assert torch.equal(again, rows)
        back, back_weights, event = buffer.combine(
            x=rows,
            handle=handle,
            bias=bias,
            topk_weights=row_weights if with_topk else None,
            **usual,
            **before(),
        )
        if asynchronous:
            event.current_stream_wait()
        wanted = {"x": x, "noise": noise}[name]
        restored = (back.float() - bias[0].float() - bias[1].float()) / copies
        assert calc_diff(restored, wanted) < (5e-4 if fp8 else 5e-6)
        if with_topk:
            assert calc_diff(back_weights, weights[name]) < 1e-9


def error_of(call: Callable[[], Any]) -> tuple[str, str, int, int]:
    """The error that a call ends with: class, text, the rank that noticed it, the rank that is to blame."""
    try:
        call()
    except CommunicationError as error:
        return type(error).__name__, str(error), error.rank, error.peer
    raise AssertionError("no error")


def killed(rank: int, size: int, *, transport: str, bad: int, call: str) -> Any:
    """A rank dies while the others continue dispatching and combining; `call` is the one it does not come to."""
    with using_layer("reference"):
        buffer = make(transport=transport)
        made = world(size, tokens=[6], experts=16, topk=4, routing="random", seed=9)
        routing, options = _arguments(buffer, made)
        for _ in range(3):
            got, _, _, _, handle, _ = buffer.dispatch(made.x[rank], **routing, **options)
            buffer.combine(got, handle)
        dist.barrier()
        if rank == bad and call == "dispatch":
            os.kill(os.getpid(), signal.SIGKILL)
        if call == "dispatch":
            result = error_of(lambda: buffer.dispatch(made.x[rank], **routing, **options))
        else:
            got, _, _, _, handle, _ = buffer.dispatch(made.x[rank], **routing, **options)
            dist.barrier()
            if rank == bad:
                os.kill(os.getpid(), signal.SIGKILL)
            result = error_of(lambda: buffer.combine(got, handle))
        assert error_of(lambda: buffer.combine(got, handle))[1] == result[1], (
            "the buffer is of no use any more"
        )
        buffer.destroy()
    return result


def disagreeing(rank: int, size: int, *, transport: str) -> dict[str, Any]:
    """One rank calls with something else than the others; then all continue, to the next such call."""
    with using_layer("reference"):
        buffer = make(transport=transport)
        abouts = ("hidden", "experts", "top-k", "call", "cached", "combine")
        result = {about: _disagree(buffer, about) for about in abouts}
        buffer.destroy()
    return result


def _disagree(buffer: Buffer, about: str) -> Any:
    rank, size = buffer.rank, buffer.group_size
    made = world(size, tokens=[6], experts=16, topk=4, routing="random", seed=9)
    usual = _arguments(buffer, made)
    got, _, _, _, handle, _ = buffer.dispatch(made.x[rank], **usual[0], **usual[1])
    x, (routing, options), is_odd = made.x[rank], usual, rank == size - 1
    if is_odd and about == "hidden":
        x = torch.cat([x, x], 1)
    elif is_odd and about == "experts":
        other = World(32 * size, made.x, made.topk_idx, made.topk_weights)
        routing, options = _arguments(buffer, other)
    elif is_odd and about == "top-k":
        options = {name: each[:, :3].contiguous() for name, each in options.items()}
    if is_odd and about == "call":
        result = error_of(lambda: buffer.combine(got, handle))
    elif is_odd and about == "cached":
        result = error_of(lambda: buffer.dispatch(x, handle=handle))
    elif about == "combine":
        result = error_of(lambda: buffer.combine(torch.cat([got, got], 1) if is_odd else got, handle))
    else:
        result = error_of(lambda: buffer.dispatch(x, **routing, **options))
    again, *_ = buffer.dispatch(made.x[rank], **usual[0], **usual[1])
    _same(again, got)
    return result


def _arguments(buffer: Buffer, made: World) -> tuple[dict[str, Any], dict[str, Any]]:
    idx = made.topk_idx[buffer.rank]
    per_rank, per_node, per_expert, inside, _ = buffer.get_dispatch_layout(idx, made.experts)
    routing = {
        "num_tokens_per_rank": per_rank, "num_tokens_per_rdma_rank": per_node,
        "is_token_in_rank": inside, "num_tokens_per_expert": per_expert,
    }  # fmt: skip
    return routing, {"topk_idx": idx, "topk_weights": made.topk_weights[buffer.rank]}


def left(rank: int, size: int) -> tuple[str, str]:
    """One rank is interrupted in the middle of a call; the others get the reason."""
    with using_layer("reference"):
        buffer = make()
        made = world(size, tokens=[6], experts=16, topk=4, routing="random", seed=9)
        routing, options = _arguments(buffer, made)
        try:
            if rank:
                buffer.dispatch(made.x[rank], **routing, **options)
            else:
                signal.signal(signal.SIGALRM, signal.default_int_handler)
                with buffer._normal._all_or_nothing("dispatch"):
                    signal.setitimer(signal.ITIMER_REAL, 0.2)
                    buffer.transport.wait(1, 7, 1, what="never")
        except (KeyboardInterrupt, CommunicationError) as error:
            return type(error).__name__, str(error)
        finally:
            buffer.destroy()
    raise AssertionError("no error")


def refused(rank: int, size: int) -> list[tuple[str, str]]:
    """What one rank sees by itself, before any other is asked."""
    with using_layer("reference"):
        buffer = make()
        made = world(size, tokens=[6], experts=16, topk=4, routing="random", seed=9)
        x, (routing, options) = made.x[rank], _arguments(buffer, made)
        handle = buffer.dispatch(x, **routing, **options)[4]
        idx = options["topk_idx"]
        calls: list[Callable[[], Any]] = [
            lambda: buffer.get_dispatch_layout(idx, 15),
            lambda: buffer.get_dispatch_layout(idx.float(), 16),
            lambda: buffer.get_dispatch_layout(idx + 16, 16),
            lambda: buffer.get_dispatch_layout(idx - 2 - idx, 16),
            lambda: buffer.dispatch(x, **routing, **{**options, "topk_idx": idx - 2 - idx}),
            lambda: buffer.get_dispatch_layout(idx.T, 16),
            lambda: buffer.dispatch(x.float(), **routing),
            lambda: buffer.dispatch(x[:, :100].contiguous(), **routing),
            lambda: buffer.dispatch(x.T, **routing),
            lambda: buffer.dispatch(x[:3], **routing),
            lambda: buffer.dispatch(x),
            lambda: buffer.dispatch(x, handle=handle, topk_idx=idx),
            lambda: buffer.dispatch(x[:2], handle=handle),
            lambda: buffer.dispatch(x, handle=(1, 2)),
            lambda: buffer.dispatch(x, topk_idx=idx, **routing),
            lambda: buffer.dispatch(x, **{**routing, "num_tokens_per_rank": routing["num_tokens_per_rank"] + 1}),
            lambda: buffer.dispatch(x, **{**routing, "num_tokens_per_expert": torch.zeros(15).int()}),
            lambda: buffer.dispatch(x, **routing, expert_alignment=0),
            lambda: buffer.dispatch((x, x.float()), **routing),
            lambda: buffer.dispatch(x, **routing, allocate_on_comm_stream=True),
            lambda: buffer.combine(x.float(), handle),
            lambda: buffer.combine(x[:0], handle),
            lambda: buffer.combine(torch.cat([x] * 9), handle, bias=(x, x, x)),
            lambda: buffer.combine(torch.cat([x] * 9), handle, bias=x[:2]),
            lambda: buffer.combine(torch.cat([x] * 9), handle, topk_weights=torch.zeros(1, 4)),
            lambda: buffer.get_local_buffer_tensor(torch.int32, torch.Size([1 << 22])),
            lambda: Buffer.set_num_sms(3),
        ]  # fmt: skip
        errors = refusals(calls)
        assert buffer.get_local_buffer_tensor(torch.bfloat16, torch.Size([3, 5]), offset=64).shape == (3, 5)
        assert Buffer.is_sm90_compiled()
        buffer.destroy()
    return errors


def refused_alone(rank: int, size: int, *, transport: str) -> list[Any]:
    """One rank after the other refuses what it is given; then all continue, to the next such call."""
    with using_layer("reference"):
        buffer = make(transport=transport)
        made = world(size, tokens=[6], experts=16, topk=4, routing="random", seed=9)
        x, (routing, options), errors = made.x[rank], _arguments(buffer, made), []
        got, _, _, _, handle, _ = buffer.dispatch(x, **routing, **options)
        for odd in range(size):
            for call in ("dispatch", "cached", "combine"):
                is_odd = rank == odd
                try:
                    if call == "dispatch":
                        buffer.dispatch(x.float() if is_odd else x, **routing, **options)
                    elif call == "cached":
                        buffer.dispatch(x[:1] if is_odd else x, handle=handle)
                    else:
                        buffer.combine(got[:0] if is_odd else got, handle)
                except (CommunicationError, ValueError, TypeError) as error:
                    errors.append((type(error).__name__, str(error), getattr(error, "peer", -1)))
            _same(buffer.dispatch(x, **routing, **options)[0], got)
        buffer.destroy()
    return errors


class Communicator:
    """What is asked of a communicator of mpi4py, over a process group."""

    def Get_rank(self) -> int:  # noqa: N802 (mpi4py's)
        return dist.get_rank()

    def Get_size(self) -> int:  # noqa: N802 (mpi4py's)
        return dist.get_world_size()

    def allgather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(values, value)
        return values


def by_communicator(rank: int, size: int) -> tuple[str, str]:
    """Both modes with `comm` instead of a group; and what collectives say of it."""
    with using_layer("reference"):
        made = world(size, tokens=[9, 30], experts=16, topk=4, routing="holes", seed=2)
        x, idx, weights = made.x[rank], made.topk_idx[rank], made.topk_weights[rank]
        hint = Buffer.get_low_latency_rdma_size_hint(30, 128, size, made.experts)
        buffer = Buffer(
            None, 1 << 20, hint, low_latency_mode=True, explicitly_destroy=True, comm=Communicator(),
            device="cpu", timeout_s=60.0,
        )  # fmt: skip
        routing, options = _arguments(buffer, made)
        got, _, _, _, handle, _ = buffer.dispatch(x, **routing, **options)
        _same(got, reference.dispatched(made.x, made.member, rank))
        rows = [reference.dispatched(made.x, made.member, each) for each in range(size)]
        _same(buffer.combine(got, handle)[0], reference.combined(rows, made.member, rank))
        low, _, low_handle, _, _ = buffer.low_latency_dispatch(x, idx, 30, made.experts, use_fp8=False)
        back, _, _ = buffer.low_latency_combine(low, idx, weights, low_handle)
        shares = torch.where(idx >= 0, weights, 0.0).sum(1, keepdim=True)
        assert torch.allclose(back.float(), x.float() * shares, rtol=1 / 64, atol=1 / 64)
        name = buffer.transport.name
        buffer.destroy()
        try:
            Buffer(None, 1 << 20, comm=Communicator(), transport="collectives", device="cpu")
        except ValueError as error:
            return name, str(error)
    raise AssertionError("all-to-alls need a store")


def worst_is_too_small(rank: int, size: int) -> list[str]:
    """More tokens come to rank 0 than it has allowed; the next call works on all ranks."""
    with using_layer("reference"):
        buffer = make(num_bytes=75_000)
        made = world(size, tokens=[30], experts=16, topk=4, hidden=384, routing="first rank", seed=9)
        routing, options = _arguments(buffer, made)
        errors = []
        try:
            buffer.dispatch(made.x[rank], **routing, **options, num_worst_tokens=31)
        except ValueError as error:
            errors.append(str(error))
        wanted = reference.dispatched(made.x, made.member, rank)
        _same(buffer.dispatch(made.x[rank], **routing, **options)[0], wanted)
        buffer.destroy()
    return errors
