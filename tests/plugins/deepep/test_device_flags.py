"""Flags that kernels raise and wait for: all ranks in one process, in Triton's interpreter or on one GPU.

One rank after the other: what is waited for has been signalled before, or never is.
"""

import pytest
import torch

from luciola.plugins.deepep import PeerTimeout
from luciola.plugins.deepep.transport.device import DeviceTransport, head_bytes
from luciola.plugins.deepep.transport.interface import SLOTS

pytestmark = pytest.mark.usefixtures("kernel_device")
NUM_BYTES = 256


class Member:
    """One rank of a group that has no connection."""

    def __init__(self, rank, size):
        self.rank, self.size = rank, size


def transports(size, device, timeout_s=0.2):
    regions = [
        torch.zeros(head_bytes(size) + NUM_BYTES, dtype=torch.uint8, device=device) for _ in range(size)
    ]
    return [
        DeviceTransport(Member(rank, size), list(regions), num_bytes=NUM_BYTES, timeout_s=timeout_s)
        for rank in range(size)
    ]


def settle(device):
    if device == "cuda":
        torch.cuda.synchronize()


def flags(transport, device):
    settle(device)
    return transport._flags[transport.rank].view(transport.size, SLOTS).cpu()


def test_a_signal_raises_one_flag_at_its_peer(kernel_device):
    first, second, third = transports(3, kernel_device)
    first.signal(2, 5, 7)
    raised = flags(third, kernel_device)
    assert raised[0, 5] == 7
    assert raised.sum() == 7
    assert flags(second, kernel_device).sum() == 0
    third.wait(0, 5, 7, what="tokens")
    third.wait(0, 5, 6, what="older tokens")
    settle(kernel_device)
    third.check()


def test_counted_signals_and_waits_agree_in_every_turn(kernel_device):
    """On a GPU the third turn is captured in a graph, and replayed."""
    ranks = transports(3, kernel_device)

    def take_turn():
        for each in ranks:
            each.wait_all(10, "memory", less=1)  # of the turn before
            each.signal_all(8)
        for each in ranks:
            each.wait_all(8, "tokens")
            each.signal_all(10)

    for turn in range(1, 6):
        if turn == 3 and kernel_device == "cuda":
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                take_turn()
            take_turn = graph.replay
        take_turn()
        for rank, each in enumerate(ranks):
            each.check()
            raised = flags(each, kernel_device)[:, [8, 10]]
            assert raised.tolist() == [[0, 0] if source == rank else [turn, turn] for source in range(3)]


def test_a_wait_that_runs_out_names_rank_phase_and_peer(kernel_device):
    ranks = transports(3, kernel_device)
    ranks[0].wait(2, 3, 1, what="dispatch: tokens")
    settle(kernel_device)
    with pytest.raises(
        PeerTimeout, match=r"rank 0, dispatch: tokens: timeout: rank 2 did not come within 0\.2 s"
    ):
        ranks[0].buffer(0)
    with pytest.raises(PeerTimeout):  # it stays so
        ranks[0].signal(1, 0, 1)
    ranks[1].check()


def test_after_a_wait_that_ran_out_nothing_is_signalled_or_waited_for(kernel_device):
    first, second = transports(2, kernel_device)
    first.wait_all(3, "tokens")
    settle(kernel_device)
    assert first.stopped.tolist() == [1]
    first.check = lambda: None  # as of kernels of one graph: the host asks nothing between
    costs = torch.zeros(2, dtype=torch.int64)
    first.signal_all(4)
    first.wait_all(5, "more tokens", costs=costs)
    assert flags(second, kernel_device).sum() == 0
    assert costs.tolist() == [0, 0]
    del first.check
    with pytest.raises(PeerTimeout, match="rank 0, tokens: timeout"):
        first.check()


def test_a_rank_that_may_be_dropped_is_marked_instead(kernel_device):
    ranks = transports(3, kernel_device)
    inactive, costs = torch.zeros(3, dtype=torch.int32), torch.zeros(3, dtype=torch.int64)
    ranks[1].signal_all(8, inactive)
    ranks[0].wait_all(8, "tokens", inactive=inactive, drop=True, costs=costs)
    settle(kernel_device)
    ranks[0].check()
    assert inactive.tolist() == [0, 0, 1]
    assert costs[2] > costs[1]
    ranks[0].signal_all(8, inactive)  # to the others alone
    assert flags(ranks[2], kernel_device)[0, 8] == 0
    assert flags(ranks[1], kernel_device)[0, 8] == 1
