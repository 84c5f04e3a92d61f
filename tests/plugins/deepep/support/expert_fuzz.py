"""Random calls of expert parallelism, and checks that are quick enough for ten thousand of them.

What arrives is compared bit for bit; what comes back within the original's tolerance. Experts multiply by numbers of
their own, so that no two answers can stand for each other.
"""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from expert_inputs import Call, inputs
from luciola.plugins.compat.deep_ep.utils.math import calc_diff
from luciola.plugins.deepep import Buffer
from luciola.plugins.deepep.low_latency.quantize import cast_from_fp8, cast_to_fp8

HIDDEN = (128, 128, 128, 256, 256, 384, 512, 1024)
COMBINE_DIFF = {"bf16": 1e-5, "logfmt": 1e-4, "fp8": 9e-4}
"""`calc_diff` of the answer to one that was computed without a cast: the original's, but for LogFMT. There the original
allows 1e-5 for inputs around 0.1, which its measure compares after adding one; these are around 1."""


def random_call(seed: int, ranks: int, *, tokens_max: int = 6) -> Call:
    """Any sizes: 8 to 512 experts, 1 to 9 of them a token, 0 to `tokens_max` tokens."""
    choose = random.Random(seed)
    most = 512 // ranks
    least = max(1, 8 // ranks)
    few = choose.randint(least, min(most, 8))
    local = choose.choice([least, few, few, few, choose.randint(least, most), most])
    experts = local * ranks
    fp8 = choose.random() < 0.5
    round_scale = fp8 and choose.random() < 0.5
    hidden = choose.choice(HIDDEN)
    logfmt = choose.random() < 0.15
    hook = choose.random() < 0.5
    even = choose.random() < 0.3
    tokens = (
        [choose.randint(0, tokens_max)] * ranks
        if even
        else [choose.randint(0, tokens_max) for _ in range(ranks)]
    )
    return Call(
        seed=seed,
        tokens=tuple(tokens),
        hidden=hidden,
        experts=experts,
        topk=choose.randint(1, min(9, experts)),
        fp8=fp8,
        round_scale=round_scale,
        use_ue8m0=round_scale and hidden % 512 == 0 and choose.random() < 0.5,
        logfmt=logfmt,
        hook=hook,
        zero_copy=not logfmt and choose.random() < 0.3,
        async_finish=not hook and choose.random() < 0.5,
        hot=choose.random() < 0.15,
        dropped=choose.choice([0.0, 0.1, 0.5, 1.0]),
        empty_rank=choose.randrange(ranks) if choose.random() < 0.15 else -1,
    )


def factors(experts: Tensor) -> Tensor:
    """What each expert multiplies by, exact in bfloat16."""
    return (1 + experts % 13).float() / 8


def arrivals(topks: Sequence[Tensor], first: int, local: int) -> tuple[Tensor, Tensor, Tensor]:
    """Local expert, source and token of all messages for `local` experts from `first` on, in the order of rows."""
    flat = torch.cat([each.reshape(-1) for each in topks])
    source = torch.cat([torch.full((each.numel(),), rank) for rank, each in enumerate(topks)])
    token = torch.cat([torch.arange(each.numel()) // each.shape[1] for each in topks])
    mine = ((flat >= first) & (flat < first + local)).nonzero().view(-1)
    order = mine[flat[mine].argsort(stable=True)]
    return flat[order] - first, source[order], token[order]


def check_low_latency(buffer: Buffer, call: Call) -> None:
    """One dispatch and one combine in low-latency mode."""
    rank, local = buffer.rank, call.experts // call.ranks
    xs, topks, weights = inputs(call)
    got = buffer.low_latency_dispatch(
        xs[rank], topks[rank], call.max_tokens, call.experts, use_fp8=call.fp8, round_scale=call.round_scale,
        use_ue8m0=call.use_ue8m0, async_finish=call.async_finish, return_recv_hook=call.hook,
    )  # fmt: skip
    if got.hook is not None:
        got.hook()
    rows, scales = got.x if isinstance(got.x, tuple) else (got.x, None)
    expert, source, token = arrivals(topks, rank * local, local)
    counts = torch.bincount(expert, minlength=local)
    assert got.counts.tolist() == counts.tolist()
    per_source = torch.bincount(expert * call.ranks + source, minlength=local * call.ranks).view(local, -1)
    assert torch.equal(got.handle[1] & 0xFFFFFFFF, per_source)
    assert torch.equal(got.handle[1] >> 32, per_source.cumsum(1) - per_source)
    line = torch.arange(len(expert)) - (counts.cumsum(0) - counts)[expert]
    assert torch.equal(got.handle[0][expert, line].long(), token)
    cast = [
        cast_to_fp8(x, round_scale=call.round_scale, use_ue8m0=call.use_ue8m0) if call.fp8 else (x, None)
        for x in xs
    ]
    starts = torch.tensor([0, *call.tokens]).cumsum(0)
    at = starts[source] + token
    values = torch.cat([each[0].view(torch.uint8) for each in cast])[at]
    assert torch.equal(rows[expert, line].view(torch.uint8), values)
    if scales is not None:
        assert torch.equal(scales[expert, line], torch.cat([each[1] for each in cast])[at])
    plain = rows[expert, line]
    if scales is not None:
        plain = cast_from_fp8(plain, scales[expert, line])
    answers = torch.full(rows.shape, float("nan"), dtype=torch.bfloat16)
    answers[expert, line] = (plain.float() * factors(expert + rank * local).unsqueeze(1)).to(torch.bfloat16)
    given = answers
    if call.zero_copy:
        buffer.get_next_low_latency_combine_buffer(got.handle)[:] = answers
        given = torch.full_like(answers, float("nan"))
    combined = buffer.low_latency_combine(
        given, topks[rank], weights[rank], got.handle, use_logfmt=call.logfmt, zero_copy=call.zero_copy,
        async_finish=call.async_finish, return_recv_hook=call.hook,
    )  # fmt: skip
    if combined.hook is not None:
        combined.hook()
    chosen = torch.where(topks[rank] >= 0, factors(topks[rank].clamp(min=0)) * weights[rank], 0.0)
    wanted = xs[rank].float() * chosen.sum(1, keepdim=True)
    assert bool(combined.x.isfinite().all())
    difference = calc_diff(combined.x, wanted) if wanted.numel() else 0.0
    limit = COMBINE_DIFF["fp8" if call.fp8 else "logfmt" if call.logfmt else "bf16"]
    assert difference < limit, f"combine differs by {difference}"


def check_normal(buffer: Buffer, call: Call) -> None:
    """Layout, dispatch, cached dispatch and combine in normal mode."""
    rank, local = buffer.rank, call.experts // call.ranks
    xs, topks, weights = inputs(call)
    cast = [cast_to_fp8(x) if call.fp8 else (x, None) for x in xs]
    given = cast[rank] if call.fp8 else xs[rank]
    per_rank, per_node, per_expert, member, _ = buffer.get_dispatch_layout(topks[rank], call.experts)
    rows, idx, shares, counts, handle, event = buffer.dispatch(
        given, num_tokens_per_rank=per_rank, num_tokens_per_rdma_rank=per_node, is_token_in_rank=member,
        num_tokens_per_expert=per_expert, topk_idx=topks[rank], topk_weights=weights[rank],
        async_finish=call.async_finish,
    )  # fmt: skip
    if call.async_finish:
        event.current_stream_wait()
    reached = [_reached(each, call.ranks, local) for each in topks]
    here = [each[:, rank] for each in reached]
    assert torch.equal(member, reached[rank])
    wanted_idx = torch.cat([each[mine] for each, mine in zip(topks, here, strict=True)])
    is_mine = (wanted_idx >= rank * local) & (wanted_idx < (rank + 1) * local)
    assert torch.equal(idx, torch.where(is_mine, wanted_idx - rank * local, -1))
    wanted_shares = torch.cat([each[mine] for each, mine in zip(weights, here, strict=True)])
    assert torch.equal(shares, torch.where(is_mine, wanted_shares, 0.0))
    assert counts == torch.bincount(idx[idx >= 0], minlength=local).tolist()
    again, *_ = buffer.dispatch(given, handle=handle)
    for got in (rows, again):
        values, scales = got if isinstance(got, tuple) else (got, None)
        wanted = torch.cat([each[0].view(torch.uint8)[mine] for each, mine in zip(cast, here, strict=True)])
        assert torch.equal(values.view(torch.uint8), wanted)
        if scales is not None:
            assert torch.equal(
                scales, torch.cat([each[1][mine] for each, mine in zip(cast, here, strict=True)])
            )
    plain = cast_from_fp8(*rows) if isinstance(rows, tuple) else rows
    answers = (plain.float() * factors(torch.tensor(rank))).to(torch.bfloat16)
    combined, sums, _ = buffer.combine(answers, handle, topk_weights=shares)
    expected = xs[rank].float() * (reached[rank].float() @ factors(torch.arange(call.ranks))).unsqueeze(1)
    difference = calc_diff(combined, expected) if expected.numel() else 0.0
    assert difference < COMBINE_DIFF["fp8" if call.fp8 else "bf16"], f"combine differs by {difference}"
    assert torch.allclose(sums, torch.where(topks[rank] >= 0, weights[rank], 0.0))


def _reached(topk: Tensor, ranks: int, local: int) -> Tensor:
    """Which ranks each token goes to: (T, R)."""
    goes = torch.zeros(topk.shape[0], ranks + 1, dtype=torch.bool)
    goes.scatter_(1, torch.where(topk >= 0, topk // local, ranks), torch.ones_like(topk, dtype=torch.bool))
    return goes[:, :-1].contiguous()
