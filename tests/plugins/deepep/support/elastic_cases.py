"""What a rank does in the tests of `ElasticBuffer`: each case compares with what one process computes."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dispatch_cases import World, error_of, gpu_of, refusals, world
from luciola.plugins import compat
from luciola.plugins.deepep import CommunicationError, ElasticBuffer, EPHandle
from luciola.plugins.deepep.elastic import reference as elastic
from luciola.plugins.deepep.normal import reference
from luciola.plugins.kernels.layers import using_layer
from luciola.plugins.kernels.quantize import align, per_token_cast_to_fp8

STORE: list[dist.Store] = []
"""That of this case, without any prefix."""
MAX_TOKENS = 32


def make(**options: Any) -> ElasticBuffer:
    """A buffer of this case's ranks."""
    usual = {"num_bytes": 1 << 22, "num_max_tokens_per_rank": MAX_TOKENS, "explicitly_destroy": True,
             "device": "cpu", "timeout_s": 200.0}  # fmt: skip
    return ElasticBuffer(dist.group.WORLD, **{**usual, **options})


def exact(
    rank: int, size: int, *, cases: list[dict[str, Any]], layer: str = "reference", **options: Any
) -> str:
    """All call patterns of each case, bit for bit; returns the transport's name."""
    buffer = make(**options)
    with using_layer(layer):
        for number, case in enumerate(cases):
            made = world(size, **case)
            _plain(buffer, made, alignment=(1, 4)[number % 2])
            _expanded(buffer, made, alignment=(4, 1)[number % 2])
    name = buffer.transport.name
    buffer.destroy()
    return name


def on_gpus(rank: int, size: int, *, cases: list[dict[str, Any]]) -> str:
    """As `exact`, with tensors of the host that a buffer on a GPU brings there and back."""
    buffer = make(device=gpu_of(rank))
    for case in cases:
        _plain(buffer, world(size, **case), alignment=4)
        _expanded(buffer, world(size, **case), alignment=4)
    name = buffer.transport.name
    buffer.destroy()
    return name


def _plain(buffer: ElasticBuffer, made: World, *, alignment: int) -> None:
    rank, member = buffer.rank_idx, made.member
    x, idx, weights = made.x[rank], made.topk_idx[rank], made.topk_weights[rank]
    wanted = reference.dispatched(made.x, member, rank)
    wanted_idx, wanted_weights = reference.received_experts(
        made.topk_idx, made.topk_weights, member, rank, num_experts=made.experts
    )
    got, got_idx, got_weights, handle, event = buffer.dispatch(
        x, idx, weights, num_experts=made.experts, expert_alignment=alignment,
        previous_event=buffer.capture(), allocate_on_comm_stream=True, async_with_compute_stream=True,
    )  # fmt: skip
    event.current_stream_wait()
    _same(got, wanted)
    _same(got_idx, wanted_idx)
    _same(got_weights, wanted_weights)
    rows = len(wanted)
    _handle_is_right(handle, made, rank, alignment)
    assert (handle.num_recv_tokens, handle.num_expanded_tokens) == (rows, 0)
    assert handle.topk_idx.data_ptr() != idx.data_ptr() or not idx.numel()
    ends = torch.tensor(handle.num_recv_tokens_per_expert_list).cumsum(0).int()
    _same(handle.psum_num_recv_tokens_per_expert, ends)

    again, again_idx, none, same, _ = buffer.dispatch(x, handle=handle)
    assert none is None
    assert same is handle
    _same(again, wanted)
    _same(again_idx, wanted_idx)

    values, scales = per_token_cast_to_fp8(x, use_ue8m0=False)
    (got_values, got_scales), _, none, _, _ = buffer.dispatch(
        (values, scales.T.contiguous().T), idx, num_experts=made.experts, do_handle_copy=False,
        use_tma_aligned_col_major_sf=True,
    )  # fmt: skip
    assert none is None
    pairs = [per_token_cast_to_fp8(each, use_ue8m0=False) for each in made.x]
    _same(
        got_values.view(torch.uint8),
        reference.dispatched([a for a, _ in pairs], member, rank).view(torch.uint8),
    )
    _same(got_scales, reference.dispatched([b for _, b in pairs], member, rank))
    if rows:
        assert got_scales.stride() == (1, align(rows, 4))

    stats = torch.ones(made.experts // buffer.num_ranks, dtype=torch.int32)
    worst, worst_idx, _, unsynced, _ = buffer.dispatch(
        x, idx, weights, stats, made.experts, MAX_TOKENS, do_cpu_sync=False, do_handle_copy=False
    )
    _same(stats - 1, handle.num_unaligned_recv_tokens_per_expert)
    assert len(worst) == unsynced.num_recv_tokens == MAX_TOKENS * buffer.num_ranks
    assert unsynced.topk_idx is idx
    assert unsynced.num_recv_tokens_per_expert_list == []
    _same(worst[:rows], wanted)
    _same(worst_idx[:rows], wanted_idx)
    assert bool((worst_idx[rows:] == -1).all())

    y = _answers(made)
    for number, (used, extra) in enumerate(((handle, 0), (unsynced, len(worst) - rows), (handle, 3))):
        bias = _biases(made, rank, number)
        back, back_weights, _ = buffer.combine(
            torch.cat([_reduced_rows(y, made, handle, buffer), torch.full((extra, x.shape[1]), 9.0).bfloat16()]),
            used, topk_weights=torch.cat([got_weights, torch.ones(extra, idx.shape[1])]),
            bias=bias if number != 1 else bias[0], previous_event_before_epilogue=buffer.capture(),
        )  # fmt: skip
        _same(back, elastic.combined(
            y[rank], idx, num_experts=made.experts, ranks=buffer.num_ranks, bias=bias or ()))  # fmt: skip
        _same(back_weights, torch.where(idx >= 0, weights, 0.0))


def _expanded(buffer: ElasticBuffer, made: World, *, alignment: int) -> None:
    rank = buffer.rank_idx
    x, idx, weights = made.x[rank], made.topk_idx[rank], made.topk_weights[rank]
    answers, ends = elastic.expanded(made.topk_idx, rank, num_experts=made.experts, alignment=alignment)
    real = torch.tensor([row for row, each in enumerate(answers) if each is not None], dtype=torch.int64)
    gaps = torch.tensor([row for row, each in enumerate(answers) if each is None], dtype=torch.int64)
    of = [each for each in answers if each is not None]
    wanted = _stack([made.x[source][token] for source, token, _ in of], x)
    wanted_weights = _stack(
        [made.topk_weights[source][token, k] for source, token, k in of], weights.view(-1)
    )
    common = {"num_experts": made.experts, "expert_alignment": alignment, "do_expand": True}
    got, none, got_weights, handle, _ = buffer.dispatch(x, idx, weights, **common, do_zero_padding=True)
    assert none is None
    assert len(got) == handle.num_expanded_tokens == len(answers)
    _same(got[real], wanted)
    _same(got_weights[real], wanted_weights)
    assert not got[gaps].any()
    assert not got_weights[gaps].any()
    _same(handle.psum_num_recv_tokens_per_expert, torch.tensor(ends, dtype=torch.int32))
    _handle_is_right(handle, made, rank, alignment, answers)

    again, _, again_weights, same, _ = buffer.dispatch(x, None, weights, handle=handle, do_expand=True)
    assert same is handle
    _same(again[real], wanted)
    _same(again_weights[real], wanted_weights)

    pairs = [per_token_cast_to_fp8(each, use_ue8m0=False) for each in made.x]
    (values, scales), _, _, _, _ = buffer.dispatch(
        pairs[rank], idx, **common, use_tma_aligned_col_major_sf=True
    )
    wanted_values = _stack([pairs[source][0][token] for source, token, _ in of], pairs[rank][0])
    _same(values.view(torch.uint8)[real], wanted_values.view(torch.uint8))
    _same(scales[real], _stack([pairs[source][1][token] for source, token, _ in of], pairs[rank][1]))

    worst, _, _, unsynced, _ = buffer.dispatch(x, idx, weights, **common, do_cpu_sync=False)
    most = MAX_TOKENS * buffer.num_ranks * min(idx.shape[1], made.experts // buffer.num_ranks)
    local = made.experts // buffer.num_ranks
    assert len(worst) == unsynced.num_expanded_tokens == align(most + (alignment - 1) * local, alignment)
    _same(worst[real], wanted)

    y = _answers(made)
    for number, used in enumerate((handle, unsynced, handle)):
        rows = torch.full((used.num_expanded_tokens, x.shape[1]), float("nan")).bfloat16()
        rows[real] = _stack([y[source][token, k] for source, token, k in of], x)
        weights_too = buffer.allow_multiple_reduction and number != 1
        kept = torch.zeros(used.num_expanded_tokens)
        kept[real] = wanted_weights
        bias = _biases(made, rank, number)
        back, back_weights, _ = buffer.combine(
            rows, used, topk_weights=kept if weights_too else None, bias=bias
        )
        _same(back, elastic.combined(
            y[rank], idx, num_experts=made.experts, ranks=buffer.num_ranks, bias=bias or (),
            reduce_first=buffer.allow_multiple_reduction))  # fmt: skip
        if weights_too:
            _same(back_weights, torch.where(idx >= 0, weights, 0.0))
        else:
            assert back_weights is None


def _handle_is_right(handle: EPHandle, made: World, rank: int, alignment: int, answers: Any = ()) -> None:
    member = made.member
    table = elastic.metadata(
        made.topk_idx, rank, num_experts=made.experts, tokens_max=MAX_TOKENS, rows=answers
    )
    width = made.topk_idx[rank].shape[1] + 2
    _same(handle.recv_src_metadata, torch.tensor(table, dtype=torch.int32).view(-1, width))
    from_each = torch.tensor([int(each[:, rank].sum()) for each in member])
    _same(handle.psum_num_recv_tokens_per_scaleup_rank, from_each.cumsum(0).int())
    counts = reference.expert_counts(made.topk_idx, rank, num_experts=made.experts)
    _same(handle.num_unaligned_recv_tokens_per_expert, torch.tensor(counts, dtype=torch.int32))
    assert handle.num_recv_tokens_per_expert_list == [align(each, alignment) for each in counts]
    local = made.experts // len(member)
    for token, experts in enumerate(made.topk_idx[rank].tolist()):
        for k, expert in enumerate(experts):
            owner = expert // local
            last = expert >= 0 and all(each < 0 or each // local != owner for each in experts[k + 1 :])
            wanted = int(member[rank][:token, owner].sum()) if last else -1
            assert int(handle.dst_buffer_slot_idx[token, k]) == wanted
    assert (handle.expert_alignment, handle.num_max_tokens_per_rank) == (alignment, MAX_TOKENS)


def _answers(made: World) -> list[Tensor]:
    """What the expert of each (token, k) would say."""
    random = torch.Generator().manual_seed(made.experts)
    return [
        torch.randn(len(x), idx.shape[1], x.shape[1], generator=random).bfloat16()
        for x, idx in zip(made.x, made.topk_idx, strict=True)
    ]


def _reduced_rows(y: list[Tensor], made: World, handle: EPHandle, buffer: ElasticBuffer) -> Tensor:
    """What a rank sends back, which has summed its experts itself."""
    local = made.experts // buffer.num_ranks
    rows = []
    for number in handle.recv_src_metadata[:, 0].tolist():
        source, token = divmod(number, MAX_TOKENS)
        experts = made.topk_idx[source][token].tolist()
        rows.append(elastic.reduced(y[source][token], experts, buffer.rank_idx, local))
    return _stack(rows, made.x[0])


def _biases(made: World, rank: int, number: int) -> tuple[Tensor, ...] | None:
    x = made.x[rank]
    return (None, (x * 3,), (x, x.flip(0)))[number]


def _stack(rows: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(rows) if rows else like.new_empty(0, *like.shape[1:])


def _same(got: Tensor, wanted: Tensor) -> None:
    got = got.cpu()
    assert got.dtype == wanted.dtype, (got.dtype, wanted.dtype)
    assert got.shape == wanted.shape, (got.shape, wanted.shape)
    assert torch.equal(got, wanted), f"{int((got != wanted).sum())} of {got.numel()} differ"


def original(rank: int, size: int, *, tokens: int, hidden: int, experts: int, topk: int) -> None:
    """The calls and the checks of the original's test, by its own names, against its references' names."""
    compat.install("deep_ep", replace=True)
    with using_layer("reference"):
        _original(rank, size, tokens=tokens, hidden=hidden, experts=experts, topk=topk)


def _original(rank: int, size: int, *, tokens: int, hidden: int, experts: int, topk: int) -> None:
    import deep_ep
    from deep_ep.utils import refs
    from deep_ep.utils.envs import init_seed
    from deep_ep.utils.math import per_token_cast_back

    init_seed(7)
    torch.manual_seed(rank)
    most, count = tokens, tokens - rank
    assert deep_ep.get_physical_domain_size(dist.group.WORLD) == (1, size)
    assert deep_ep.get_logical_domain_size(dist.group.WORLD) == (1, size)
    weights, idx = torch.rand(count, experts).topk(topk, dim=-1, sorted=False)
    idx = idx.masked_fill(torch.rand(idx.shape) < 0.2, -1).to(deep_ep.topk_idx_t)
    weights = weights.masked_fill(idx < 0, 0)
    for multiple, fp8, biases in ((True, False, 0), (True, True, 1), (False, False, 2)):
        buffer = deep_ep.ElasticBuffer(
            dist.group.WORLD, num_max_tokens_per_rank=most, hidden=hidden, num_topk=topk,
            allow_multiple_reduction=multiple, explicitly_destroy=True, num_gpu_timeout_secs=200,
        )  # fmt: skip
        noise = torch.randn(count, hidden).bfloat16()
        x = per_token_cast_to_fp8(noise, use_ue8m0=False) if fp8 else noise
        bias = (None, noise * 2, (noise, noise * 3))[biases]
        came, came_idx, came_weights, came_from, per_rank = refs.dispatch(x, idx, weights, most, experts)
        y = refs.generate_pre_combine_data(rank * most + torch.arange(count), most, topk, hidden)
        y[idx == -1] = 0
        sizes = buffer.get_logical_domain_size()
        assert sizes == (1, size) == buffer.get_physical_domain_size()
        wanted = refs.combine(y, idx, *sizes, experts, bias, True, False)
        wanted_expanded = refs.combine(y, idx, *sizes, experts, bias, multiple, False)
        sms = buffer.get_theoretical_num_sms(experts, topk)
        usual = {"x": x, "topk_idx": idx, "topk_weights": weights, "num_experts": experts, "expert_alignment": 16,
                 "num_sms": sms, "num_qps": buffer.get_theoretical_num_qps(sms)}  # fmt: skip
        got, got_idx, got_weights, handle, _ = buffer.dispatch(**usual)
        for a, b in zip(got if fp8 else (got,), came if fp8 else (came,), strict=True):
            _same(a.view(torch.uint8), b.view(torch.uint8))
        _same(got_idx, came_idx)
        _same(got_weights, came_weights.masked_fill(came_idx < 0, 0))
        _same(handle.recv_src_metadata[:, 0], came_from)
        _same(handle.psum_num_recv_tokens_per_scaleup_rank, per_rank.cumsum(0).int())
        rows = refs.generate_pre_combine_data(handle.recv_src_metadata[:, 0], most, topk, hidden)
        rows[got_idx == -1] = 0
        back, back_weights, _ = buffer.combine(
            refs.ordered_accumulate(rows), handle, topk_weights=got_weights, bias=bias
        )
        _same(back, wanted)
        _same(back_weights, weights)

        expanded, none, expanded_weights, handle, _ = buffer.dispatch(**usual, do_expand=True)
        assert none is None
        shown = per_token_cast_back(*expanded) if fp8 else expanded
        rows = refs.generate_pre_combine_data(handle.recv_src_metadata[:, 0], most, topk, hidden)
        given = torch.empty(len(shown) + 1, hidden).bfloat16()
        given[handle.recv_src_metadata[:, 2:].flatten().long()] = rows.view(-1, hidden)
        back, back_weights, _ = buffer.combine(
            given[:-1], handle, topk_weights=expanded_weights if multiple else None, bias=bias
        )
        _same(back, wanted_expanded)
        if multiple:
            _same(back_weights, weights)
        buffer.destroy()


def refused(rank: int, size: int) -> list[tuple[str, str]]:
    """What one rank sees by itself."""
    with using_layer("reference"):
        buffer, single = make(), make(allow_multiple_reduction=False)
        made = world(size, tokens=[6], experts=16, topk=4, routing="random", seed=9)
        x, idx, weights = made.x[rank], made.topk_idx[rank], made.topk_weights[rank]
        got, _, _, handle, _ = buffer.dispatch(x, idx, weights, num_experts=16)
        rows, _, row_weights, expanded, _ = single.dispatch(x, idx, weights, num_experts=16, do_expand=True)
        stats = torch.zeros(3, dtype=torch.int32)
        calls = [
            lambda: buffer.dispatch(x, idx),
            lambda: buffer.dispatch(x, num_experts=16),
            lambda: buffer.dispatch(x.float(), idx, num_experts=16),
            lambda: buffer.dispatch(x, idx.float(), num_experts=16),
            lambda: buffer.dispatch(x, idx[:2].contiguous(), num_experts=16),
            lambda: buffer.dispatch(x, idx, weights[:, :2].contiguous(), num_experts=16),
            lambda: buffer.dispatch(x, idx, num_experts=15),
            lambda: buffer.dispatch(x, idx + 16, num_experts=16),
            lambda: buffer.dispatch(x, idx, num_experts=16, num_max_tokens_per_rank=5),
            lambda: buffer.dispatch(x, idx, num_experts=16, expert_alignment=0),
            lambda: buffer.dispatch(x, idx, num_experts=16, num_sms=500),
            lambda: buffer.dispatch(x, idx, num_experts=16, num_qps=500),
            lambda: buffer.dispatch(x, idx, num_experts=16, cumulative_local_expert_recv_stats=stats),
            lambda: buffer.dispatch(x, idx, handle=handle),
            lambda: buffer.dispatch(x, handle=handle, do_cpu_sync=True),
            lambda: buffer.dispatch(x, handle=handle, do_expand=True),
            lambda: buffer.dispatch(x[:1], handle=handle),
            lambda: buffer.dispatch(x, handle=(1, 2)),
            lambda: buffer.combine(got.float(), handle),
            lambda: buffer.combine(got[:-1], handle),
            lambda: buffer.combine(got, handle, topk_weights=torch.ones(len(got))),
            lambda: buffer.combine(got, handle, bias=(x, x, x)),
            lambda: single.combine(rows, expanded, topk_weights=row_weights),
            lambda: buffer.all_gather(x),
            buffer.create_agrs_session,
            lambda: buffer.agrs_set_config(1 << 23, 1),
            lambda: buffer.pp_send(x, 0),
            lambda: buffer.pp_set_config(1 << 22, 1),
            lambda: buffer.engram_fetch(idx.int()),
            lambda: buffer.engram_write(x),
            lambda: buffer.engram_write(x.float()),
            lambda: make(num_bytes=None, num_max_tokens_per_rank=0),
            lambda: buffer.get_theoretical_num_sms(size * 2 + 1, 1),
            lambda: buffer.get_theoretical_num_sms(size * 2, 0, 0, nvlink_gbs=450),
            lambda: buffer.get_theoretical_num_sms(size * 2, size * 2 + 1),
            lambda: ElasticBuffer.get_buffer_size_hint(dist.group.WORLD, 0, 128),
        ]  # fmt: skip
        errors = refusals(calls)
        _same(buffer.dispatch(x, handle=handle)[0], got)
        buffer.destroy()
        single.destroy()
    return errors


def differing(rank: int, size: int, **options: Any) -> dict[str, Any]:
    """The last rank calls with something else; the others get an error, and all continue."""
    with using_layer("reference"):
        buffer = make(**options)
        made = world(size, tokens=[6], experts=24, topk=4, routing="random", seed=9)
        x, idx, odd = made.x[rank], made.topk_idx[rank], rank == size - 1
        got, _, _, handle, _ = buffer.dispatch(x, idx, num_experts=24)
        other = buffer.dispatch(x, idx, num_experts=24)[3]
        calls = {
            "experts": lambda: buffer.dispatch(x, idx, num_experts=48 if odd else 24),
            "limit": lambda: buffer.dispatch(x, idx, num_experts=24, num_max_tokens_per_rank=9 if odd else 8),
            "cached": lambda: buffer.dispatch(
                x, None if odd else idx, num_experts=24, handle=handle if odd else None
            ),
            "handle": lambda: buffer.combine(got, other if odd else handle),
        }
        result = {name: error_of(call) for name, call in calls.items()}
        try:
            buffer.dispatch(x.float() if odd else x, idx, num_experts=24)
        except (CommunicationError, TypeError) as error:
            result["refused"] = (type(error).__name__, str(error), 0, getattr(error, "peer", -1))
        back = buffer.combine(*buffer.dispatch(x, idx, num_experts=24)[::3])[0]
        copies = made.member[rank].sum(1, keepdim=True)
        _same(back, (x.float() * copies).bfloat16())
        buffer.destroy()
    return result


def gathered(rank: int, size: int, **options: Any) -> str:
    """All-gathers in sessions, between dispatches: one tensor and several, in place and not."""
    buffer = make(**options)
    shapes, made = (
        [(3, 8), (2, 16), (64,)],
        world(size, tokens=[6], experts=24, topk=4, routing="random", seed=9),
    )
    needed = ElasticBuffer.get_agrs_num_max_session_bytes(dist.group.WORLD, shapes * 20, torch.float32)
    assert ElasticBuffer.get_agrs_buffer_size_hint(dist.group.WORLD, needed) % (2 << 20) == 0
    buffer.agrs_set_config(needed, 24)

    def filled(source: int, shape: tuple[int, ...], turn: int) -> Tensor:
        return torch.arange(torch.Size(shape).numel()).view(shape).float() + 1000 * source + 100_000 * turn

    for turn in range(2):
        with buffer.agrs_new_session(), buffer.agrs_new_session(enabled=False):
            waits = []
            for number in range(18 if turn == 0 else 3):  # more than may be on their way, once
                if (turn + number) % 2:
                    own = buffer.agrs_get_inplace_tensor(shapes, torch.float32)
                    for each, shape in zip(own, shapes, strict=True):
                        each.copy_(filled(rank, shape, turn + number))
                else:
                    own = [filled(rank, shape, turn + number) for shape in shapes]
                *results, wait = buffer.all_gather(own)
                waits.append((wait, results, turn + number))
            single = buffer.agrs_get_inplace_tensor(shapes[0], torch.float32)
            single.fill_(rank)
            result, wait = buffer.all_gather(single)
            wait()
            assert result.shape == (size, *shapes[0])
            assert [float(each.mean()) for each in result] == list(range(size))
            for wait, results, number in waits:
                wait()
                for shape, each in zip(shapes, results, strict=True):
                    _same(each, torch.stack([filled(source, shape, number) for source in range(size)]))
        got, _, _, handle, _ = buffer.dispatch(made.x[rank], made.topk_idx[rank], num_experts=24)
        _same(got, reference.dispatched(made.x, made.member, rank))
        buffer.combine(got, handle)
    buffer.barrier(with_cpu_sync=True)
    name = buffer.transport.name
    buffer.destroy()
    return name


def sent(rank: int, size: int, **options: Any) -> list[str]:
    """Tensors around the ring in both directions, more than may be on their way, and what is refused."""
    hint = ElasticBuffer.get_pp_buffer_size_hint(4096, 3)
    buffer = make(num_bytes=hint, **options)
    before, after = (rank - 1) % size, (rank + 1) % size
    for _ in range(2):
        buffer.pp_set_config(4096, 3)
        for turn in range(8):
            for target, source in ((after, before), (before, after)):
                buffer.pp_send(torch.full((1 + turn, 7), 10.0 * rank + turn), target)
                came = torch.empty(1 + turn, 7)
                buffer.pp_recv(came, source)
                _same(came, torch.full((1 + turn, 7), 10.0 * source + turn))
        for turn in range(3):
            buffer.pp_send(torch.tensor([rank, turn]), after)
        for turn in range(3):
            came = torch.empty(2, dtype=torch.int64)
            buffer.pp_recv(came, before)
            assert came.tolist() == [before, turn]
        made = world(size, tokens=[6], experts=24, topk=4, routing="random", seed=9)
        got = buffer.dispatch(made.x[rank], made.topk_idx[rank], num_experts=24)[0]
        _same(got, reference.dispatched(made.x, made.member, rank))
    errors = []
    for call in (
        lambda: buffer.pp_send(torch.ones(3), after),
        lambda: buffer.pp_set_config(4096, 3) or buffer.pp_send(torch.ones(3), rank),
        lambda: buffer.pp_send(torch.ones(2000), after),
    ):
        try:
            call()
        except ValueError as error:
            errors.append(str(error))
    buffer.barrier()
    buffer.destroy()
    return errors


def fetched(rank: int, size: int) -> str:
    """Entries of all ranks by number, plain and with scales, written again; and what is refused."""
    random = torch.Generator().manual_seed(3)
    tables = [torch.randn(20, 36, generator=random).bfloat16() for _ in range(size)]
    hint = ElasticBuffer.get_engram_storage_size_hint(20, 36, 8)
    buffer = make(num_bytes=hint[0], num_cpu_bytes=hint[1])
    numbers = torch.randint(0, 20 * size, (7, 3), generator=random, dtype=torch.int32)
    flat = numbers.view(-1).long()
    for turn in range(2):
        buffer.engram_write(tables[rank] * (turn + 1))
        data, scales = buffer.engram_fetch(numbers)()
        _same(data, torch.cat(tables)[flat] * (turn + 1))
        assert scales is None
    assert buffer.engram_fetch(numbers[:0])()[0].shape == (0, 36)
    wide = [torch.randn(20, 128, generator=random).bfloat16() for _ in range(size)]
    values, scales = per_token_cast_to_fp8(torch.cat(wide), use_ue8m0=False)
    other = make(num_cpu_bytes=1 << 20)
    other.engram_write(values[rank * 20 : rank * 20 + 20], scales)
    for column_major in (False, True):
        data, found = other.engram_fetch(numbers, use_tma_aligned_col_major_sf=column_major)()
        _same(data.view(torch.uint8), values.view(torch.uint8)[flat])
        _same(found, scales[flat])
        assert (found.stride() == (1, 24)) == column_major
    try:
        other.engram_fetch(numbers + 20 * size)
    except ValueError as error:
        text = str(error)
    dist.barrier()
    buffer.destroy()
    other.destroy()
    return text
