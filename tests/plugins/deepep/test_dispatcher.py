"""Normal mode with kernels that wait: all ranks in one process, in Triton's interpreter or on one GPU.

One rank after the other takes a step, and pauses where it would wait for the others. On a GPU the calls are captured in
a graph too, and replayed with other inputs.
"""

from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from luciola.plugins.compat.deep_ep.utils.math import per_token_cast_to_fp8
from luciola.plugins.deepep import PeerTimeout, RanksDisagree
from luciola.plugins.deepep.normal import reference
from luciola.plugins.deepep.normal.dispatcher import READY, MappedDispatcher
from luciola.plugins.deepep.normal.tokens import Tokens
from luciola.plugins.deepep.transport.device import DeviceTransport, head_bytes

pytestmark = pytest.mark.usefixtures("kernel_device")
LEAST = 8192


class Member:
    """One rank of a group that has no connection."""

    def __init__(self, rank, size):
        self.rank, self.size = rank, size


class HostReads(TorchDispatchMode):
    """Stops operators by which the host would read a tensor, except the words that it may read."""

    def __init__(self, allowed):
        super().__init__()
        self.allowed = {each.data_ptr() for each in allowed}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        reads = name in {
            "_local_scalar_dense",
            "nonzero",
            "masked_select",
            "is_nonzero",
            "equal",
            "unique_dim",
        }
        if reads and args[0].data_ptr() not in self.allowed:
            raise AssertionError(f"the host waits for {name} of {tuple(args[0].shape)}")
        return func(*args, **(kwargs or {}))


def made(size, device, num_bytes):
    regions = [
        torch.zeros(head_bytes(size) + num_bytes, dtype=torch.uint8, device=device) for _ in range(size)
    ]
    transports = [
        DeviceTransport(Member(rank, size), list(regions), num_bytes=num_bytes, timeout_s=0.2)
        for rank in range(size)
    ]
    modes = [MappedDispatcher(each, num_bytes=num_bytes) for each in transports]
    for each in transports:
        each.addresses = None  # a call that asked for them would copy from the host: no graph can hold that
    return modes


def together(ranks, steps, *, reads=False):
    """All take a step, then all the next one. Unless `reads`, nothing is read by the host meanwhile."""
    results, going = {}, dict(enumerate(steps))
    words = [each.transport._status for each in ranks] + [each._problem for each in ranks]
    with nullcontext() if reads else HostReads(words):
        while going:
            for rank in list(going):
                try:
                    next(going[rank])
                except StopIteration as end:
                    results[rank] = end.value
                    del going[rank]
    return [results[rank] for rank in range(len(ranks))]


def inputs(sizes, hidden, experts, topk, seed, *, fp8):
    found = []
    for rank, size in enumerate(sizes):
        generator = torch.Generator().manual_seed(seed + rank)
        x = torch.randn(size, hidden, generator=generator, device="cpu").to(torch.bfloat16)
        scores = torch.rand(size, experts, generator=generator, device="cpu")
        idx = scores.topk(topk, 1)[1]
        idx = torch.where(torch.rand(idx.shape, generator=generator, device="cpu") < 0.2, -1, idx)
        weights = torch.rand(size, topk, generator=generator, device="cpu")
        values, scales = per_token_cast_to_fp8(x) if fp8 and size else (x, None)
        if fp8 and not size:
            values, scales = x.to(torch.float8_e4m3fn), torch.empty(0, hidden // 128)
        found.append(Tokens(values, scales, idx, weights))
    return found


def members(tokens, experts):
    with torch.device("cpu"):
        return [reference.is_token_in_rank(each.topk_idx, experts, len(tokens)) for each in tokens]


def put(tokens, device):
    return Tokens(*(None if each is None else each.to(device) for each in
                    (tokens.x, tokens.scales, tokens.topk_idx, tokens.topk_weights)))  # fmt: skip


def as_bytes(x):
    return x.cpu().contiguous().view(torch.uint8)


def dispatching(mode, tokens, member, experts, *, rows, channels=1):
    """Steps of a dispatch; without rows, the host reads how many there are."""
    counts = torch.bincount(tokens.topk_idx[tokens.topk_idx >= 0].view(-1), minlength=experts).int()
    return mode.dispatch_steps(
        tokens, member, counts, channels=channels, num_sms=4, rows=rows, reads_counts=rows is None, facts={}
    )


def combining(mode, columns, handle, bias=()):
    return mode.combine_steps(columns, handle, bias, num_sms=4, order=None, rows_max=None, facts={})


CASES = {
    "one rank": ((4,), 16, 4, 3, 1, {}),
    "bf16": ((3, 0, 5), 32, 6, 2, 3, {}),
    "fp8": ((4, 1), 256, 8, 3, 3, {"fp8": True}),
    "nothing comes": ((0, 2), 16, 4, 2, 1, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_dispatch_and_combine_are_the_references(name, kernel_device):
    sizes, hidden, experts, topk, turns, options = CASES[name]
    rows = sum(sizes) + 3
    num_bytes = 1 << 16 if turns == 1 else few_bytes(rows, len(sizes), hidden, experts, turns)
    ranks = made(len(sizes), kernel_device, num_bytes)
    tokens = inputs(sizes, hidden, experts, topk, 5, **{"fp8": False, **options})
    check_all(ranks, tokens, experts, rows, kernel_device)
    if len(ranks) > 1:
        assert int(ranks[0].transport._sent[READY, 1]) > 3 if turns > 1 else 4


def test_the_host_may_count(kernel_device):
    """The same where it reads the counts of all ranks, and results have as many rows as have come."""
    ranks, tokens, experts = made(2, kernel_device, 1 << 16), inputs((5, 3), 32, 6, 2, 8, fp8=False), 6
    check_all(ranks, tokens, experts, None, kernel_device)


def few_bytes(rows, ranks, hidden, experts, turns):
    """Of a region that does not hold all columns of x at once."""
    heads = 64 * -(-4 * (2 + 3 * ranks + experts) // 64) + 64 * -(-4 * rows * ranks // 64)
    return heads + rows * (2 * hidden // turns + 24) + 4 * 64


def check_all(ranks, tokens, experts, rows, device):
    """A dispatch, the same again by its handle, and both kinds of combine."""
    size, member, reads = len(ranks), members(tokens, experts), rows is None
    here, there = [put(each, device) for each in tokens], [each.to(device) for each in member]
    came = together(ranks, [
        dispatching(each, here[rank], there[rank], experts, rows=rows, channels=2) for rank, each in enumerate(ranks)
    ], reads=reads)  # fmt: skip
    if reads:
        for rank, each in enumerate(came):
            assert each.expert_counts == reference.expert_counts(
                [each.topk_idx for each in tokens], rank, num_experts=experts
            )
    again = together(ranks, [
        each.cached_dispatch_steps(Tokens(here[rank].x, here[rank].scales), came[rank].handle, num_sms=4)
        for rank, each in enumerate(ranks)
    ])  # fmt: skip
    for rank in range(size):
        check_rows(came[rank], again[rank], tokens, member, rank, experts, rows)
    lengths, hidden = [len(each.tokens.x) for each in came], here[0].x.shape[1]
    answers = [torch.randn(rows, hidden, device="cpu").to(torch.bfloat16) for rows in lengths]
    weights = [torch.rand(rows, 3, device="cpu") for rows in lengths]
    bias = [[torch.randn(each.x.shape, device="cpu").to(torch.bfloat16)] * (rank % 3)
            for rank, each in enumerate(tokens)]  # fmt: skip
    back = together(ranks, [
        combining(
            each, [answers[rank].to(device), weights[rank].to(device)], came[rank].handle,
            [one.to(device) for one in bias[rank]],
        )
        for rank, each in enumerate(ranks)
    ])  # fmt: skip
    for rank, (sums, weight_sums) in enumerate(back):
        with torch.device("cpu"):
            wanted = reference.combined(answers, member, rank, bias=bias[rank])
            wanted_weights = reference.combined(weights, member, rank)
        assert torch.equal(sums.cpu(), wanted)
        assert torch.allclose(weight_sums.cpu(), wanted_weights)
    for each in ranks:
        each.transport.check()
        each.check()


def check_rows(received, again, tokens, member, rank, experts, rows):
    with torch.device("cpu"):
        x = reference.dispatched([as_bytes(each.x) for each in tokens], member, rank)
        idx, weights = reference.received_experts(
            [each.topk_idx for each in tokens], [each.topk_weights for each in tokens], member, rank,
            num_experts=experts,
        )  # fmt: skip
        count = len(x)
        rows = count if rows is None else rows
        for got in (received.tokens, again):
            assert len(got.x) == rows
            assert torch.equal(as_bytes(got.x)[:count], x)
            if got.scales is not None:
                scales = reference.dispatched([each.scales for each in tokens], member, rank)
                assert torch.equal(got.scales.cpu()[:count], scales)
        got = received.tokens
        assert torch.equal(got.topk_idx.cpu()[:count], idx)
        assert torch.equal(got.topk_weights.cpu()[:count], weights)
        assert bool((got.topk_idx[count:] == -1).all())
        assert bool((got.topk_weights[count:] == 0).all())
        check_handle(received.handle, member, rank, rows)


def check_handle(handle, member, rank, rows):
    """The original's: prefixes by source, channels of each source, source tokens."""
    matrix = torch.stack([each.sum(0) for each in member])
    sources = reference.sources(member, rank)
    assert handle.rows_max >= rows
    assert handle.rank_prefix_matrix.cpu().tolist() == matrix.cumsum(0).tolist()
    assert handle.recv_src_idx.cpu().tolist() == [token for _, token in sources] + [-1] * (
        rows - len(sources)
    )
    own_half = -(-len(member[rank]) // 2)
    for source, each in enumerate(member):
        half = -(-len(each) // 2)
        begins = [0, int(each[:half, rank].sum())]
        assert handle.recv_channel_prefix_matrix[source].tolist() == begins
        sent = [int(member[rank][:own_half, source].sum()), int(member[rank][:, source].sum())]
        assert handle.channel_prefix_matrix[source].tolist() == sent


def test_calls_are_repeated_with_what_their_tensors_hold_then(kernel_device):
    """On a GPU the second time is captured in a graph, and replayed."""
    ranks, hidden, experts, rows = made(2, kernel_device, 1 << 16), 16, 4, 9
    shapes = [put(each, kernel_device) for each in inputs((4, 3), hidden, experts, 2, 0, fp8=False)]
    member = [torch.zeros(len(each.x), 2, dtype=torch.bool) for each in shapes]

    counts = torch.zeros(experts, dtype=torch.int32)  # never read

    def call():
        came = together(ranks, [
            each.dispatch_steps(shapes[rank], member[rank], counts, channels=1, num_sms=4, rows=rows,
                                reads_counts=False, facts={})
            for rank, each in enumerate(ranks)
        ])  # fmt: skip
        back = together(ranks, [
            combining(each, [came[rank].tokens.x * 2], came[rank].handle)
            for rank, each in enumerate(ranks)
        ])  # fmt: skip
        return [each.tokens.x for each in came], [each[0] for each in back]

    for turn in range(4 if kernel_device == "cuda" else 2):
        tokens = inputs((4, 3), hidden, experts, 2, 10 * turn, fp8=False)
        there = members(tokens, experts)
        for rank, each in enumerate(tokens):
            shapes[rank].x.copy_(each.x)
            shapes[rank].topk_idx.copy_(each.topk_idx)
            member[rank].copy_(there[rank])
        if kernel_device == "cuda" and turn == 1:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                results = call()
            graph.replay()
        elif kernel_device == "cuda" and turn > 1:
            graph.replay()
        else:
            results = call()
        for rank in range(2):
            with torch.device("cpu"):
                wanted = reference.dispatched([each.x for each in tokens], there, rank)
                copies = there[rank].sum(1, keepdim=True)
            assert torch.equal(results[0][rank].cpu()[: len(wanted)], wanted)
            assert torch.equal(results[1][rank].cpu(), (tokens[rank].x.float() * 2 * copies).bfloat16())


@pytest.mark.parametrize(
    ("steps_of_the_other", "phase"),
    [(0, "dispatch: tokens"), (1, "combine: memory that is still in use"), (2, "combine: tokens")],
)
def test_a_rank_waits_for_what_the_other_has_not_done(steps_of_the_other, phase, kernel_device):
    """The second rank stops after so many steps of its dispatch; the first continues."""
    first, second = made(2, kernel_device, 1 << 16)
    tokens = put(inputs((2,), 16, 4, 2, 3, fp8=False)[0], kernel_device)
    everywhere = torch.ones(2, 2, dtype=torch.bool)
    ahead, behind = (dispatching(each, tokens, everywhere, 4, rows=4) for each in (first, second))
    next(ahead)
    for _ in range(steps_of_the_other):
        next(behind)

    def alone(steps):
        while True:
            if kernel_device == "cuda":
                torch.cuda.synchronize()
            first.transport.check()
            try:
                next(steps)
            except StopIteration as end:
                return end.value

    def resume():
        answers = [torch.ones(4, 16, dtype=torch.bfloat16)]
        return alone(combining(first, answers, alone(ahead).handle))

    with pytest.raises(PeerTimeout, match=f"rank 0, {phase}: timeout: rank 1 did not come"):
        resume()


def test_nothing_is_computed_from_what_has_not_come(kernel_device):
    """The second rank does nothing. What the first one has launched ends, at once, and touches no memory."""
    first, second = made(2, kernel_device, 1 << 16)
    tokens = put(inputs((2,), 16, 4, 2, 3, fp8=False)[0], kernel_device)
    tokens.x.fill_(7.0)
    handles = together((first, second), [
        dispatching(each, tokens, torch.ones(2, 2, dtype=torch.bool), 4, rows=4) for each in (first, second)
    ])  # fmt: skip
    before = first.transport._regions[0].clone()
    answers = torch.full((4, 16), 3.0, dtype=torch.bfloat16)
    steps = combining(first, [answers], handles[0].handle)
    next(steps)
    assert not torch.equal(first.transport._regions[0], before), "it publishes before it waits"
    published = first.transport._regions[0].clone()
    first.transport.check = lambda: None  # as in a graph that is replayed: the host checks nothing between
    flags = first.transport._flags[1].clone()
    result = finish_alone(steps)
    again = finish_alone(combining(first, [answers * 2], handles[0].handle))
    assert not (result[0] == 3.0).any()
    assert not (result[0] == 6.0).any()
    assert not (again[0] == 6.0).any()
    assert torch.equal(first.transport._regions[0], published), "nothing more is written"
    assert torch.equal(first.transport._flags[1], flags), "no more is signalled"
    del first.transport.check
    with pytest.raises(PeerTimeout, match="rank 0, combine: tokens: timeout: rank 1 did not come"):
        first.check()


def finish_alone(steps):
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def test_more_tokens_than_rows_are_an_error_of_the_next_call(kernel_device):
    ranks = made(2, kernel_device, 1 << 16)
    tokens = inputs((4, 4), 16, 4, 2, 3, fp8=False)
    there = [torch.tensor([[True, False]] * 4), torch.tensor([[True, True]] * 4)]
    together(ranks, [
        dispatching(each, put(tokens[rank], kernel_device), there[rank].to(kernel_device), 4, rows=5)
        for rank, each in enumerate(ranks)
    ])  # fmt: skip
    if kernel_device == "cuda":
        torch.cuda.synchronize()
    with pytest.raises(ValueError, match="8 tokens arrived at rank 0 by a dispatch before this call"):
        ranks[0].check()
    ranks[1].check()
    ranks[0].check()  # it is reported once


def test_ranks_that_dispatch_with_other_sizes_get_an_error_later(kernel_device):
    ranks = made(2, kernel_device, 1 << 16)
    tokens = put(inputs((2,), 16, 4, 2, 3, fp8=False)[0], kernel_device)
    everywhere = torch.ones(2, 2, dtype=torch.bool)
    together(ranks, [
        dispatching(each, tokens, everywhere, 4, rows=4 + rank)
        for rank, each in enumerate(ranks)
    ])  # fmt: skip
    if kernel_device == "cuda":
        torch.cuda.synchronize()
    for rank, each in enumerate(ranks):
        words = f"rank {rank}, dispatch: rank {1 - rank} has called it with other sizes"
        with pytest.raises(RanksDisagree, match=words):
            each.check()


def test_ranks_that_read_counts_get_the_error_at_once_and_continue(kernel_device):
    ranks = made(2, kernel_device, 1 << 16)
    tokens = put(inputs((2,), 16, 8, 2, 3, fp8=False)[0], kernel_device)
    everywhere = torch.ones(2, 2, dtype=torch.bool)
    going = [
        dispatching(each, tokens, everywhere, 8 * (1 + rank), rows=None) for rank, each in enumerate(ranks)
    ]
    for each in going:
        next(each)
    for rank, each in enumerate(going):
        next(each)  # which signals that it has read
        with pytest.raises(
            RanksDisagree, match=f"rank {rank}, dispatch: ranks 0 and 1 have called it with other"
        ):
            next(each)
    came = together(
        ranks, [dispatching(each, tokens, everywhere, 8, rows=None) for each in ranks], reads=True
    )
    assert torch.equal(came[1].tokens.x, tokens.x.repeat(2, 1))


def test_ranks_refuse_what_cannot_be(kernel_device):
    (rank,) = made(1, kernel_device, LEAST)
    tokens = put(inputs((4,), 16, 4, 2, 3, fp8=False)[0], kernel_device)
    everywhere = torch.ones(4, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match="num_worst_tokens is 3, and this rank has 4 tokens"):
        next(dispatching(rank, tokens, everywhere, 4, rows=3))
    with pytest.raises(ValueError, match="the buffer has 8192 bytes; 1024 rows of this call need 45120"):
        next(dispatching(rank, tokens, everywhere, 4, rows=1 << 10))
    many = Tokens(
        torch.zeros(1 << 12, 16, dtype=torch.bfloat16), None, torch.zeros(1 << 12, 1, dtype=torch.int64)
    )
    with pytest.raises(ValueError, match="the buffer has 8192 bytes; routes of 4096 tokens need 16"):
        next(dispatching(rank, many, torch.ones(1 << 12, 1, dtype=torch.bool), 4, rows=None))
