"""What a rank can do in the tests of expert parallelism."""

import os
import signal
from typing import Any

import torch
import torch.distributed as dist

from dispatch_cases import error_of
from low_latency_cases import (
    expert_fuzz,
    low_latency_between_hosts,
    low_latency_calls,
    low_latency_described_errors,
    low_latency_disagreeing,
    low_latency_killed,
    low_latency_many_turns,
    low_latency_original,
    low_latency_refused,
    low_latency_shrinking,
    low_latency_two_alive,
)
from luciola.plugins.deepep.transport.bootstrap import GroupBootstrap
from luciola.plugins.deepep.transport.choose import open_transport
from moe_cases import moe_decoding, moe_gradients, moe_loading

STORE: list[dist.Store] = []
"""That of this case, without any prefix."""

CPU = torch.device("cpu")


def transport(name: str, *, num_bytes: int = 4096, timeout_s: float = 60.0) -> Any:
    """One that connects all ranks."""
    return open_transport(
        GroupBootstrap(dist.group.WORLD), num_bytes, device=CPU, name=name, timeout_s=timeout_s
    )


def ring(rank: int, size: int, *, name: str, turns: int) -> list[int]:
    """Each rank writes into its successor's region, turn after turn, in two halves; returns what arrived."""
    made = transport(name)
    after, before = (rank + 1) % size, (rank - 1) % size
    seen = []
    for turn in range(1, turns + 1):
        start = turn % 2 * 2048
        if turn > 2:
            made.wait(after, 1, turn - 2, what="room")
        made.buffer(after)[start : start + 8] = torch.tensor([turn * 100 + rank]).view(torch.uint8)
        made.signal(after, 0, turn)
        made.wait(before, 0, turn, what="word")
        seen.append(int(made.buffer(rank)[start : start + 8].view(torch.int64)))
        made.signal(before, 1, turn)
    made.barrier()
    made.close()
    return seen


def described(rank: int, size: int, *, name: str) -> tuple[str, str]:
    """Which transport it is."""
    made = transport(name)
    result = (made.name, made.why)
    dist.barrier()
    made.close()
    made.close()
    return result


def disagreeing(rank: int, size: int, *, name: str) -> tuple[str, int]:
    """Regions of different size."""
    return error_of(lambda: transport(name, num_bytes=4096 * (1 + (rank == 1))))


def lost(rank: int, size: int, *, name: str, fault: str, bad: int, timeout_s: float = 60.0) -> Any:
    """One rank goes in the middle of a chain of waits: each waits for its successor."""
    made = transport(name, timeout_s=timeout_s)
    dist.barrier()
    if rank == bad:
        if fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif fault == "closed":
            made.close()
            return None
    waits = {
        "shared-memory": lambda: made.wait((rank + 1) % size, 0, 1, what=f"waiting on {rank}"),
        "collectives": lambda: made.all_gather(torch.zeros(1), what=f"waiting on {rank}"),
    }
    result = error_of(waits[name])
    again = error_of(waits[name])
    assert again[:2] == result[:2], (again, result)
    made.close()
    if fault == "stopped":
        STORE[0].set(f"learned/{rank}", "1")
        if rank == (bad + 1) % size:
            STORE[0].wait([f"learned/{each}" for each in range(size) if each != bad])
            os.kill(int(STORE[0].get(f"pid/{bad}")), signal.SIGKILL)
    return result


__all__ = [
    "described",
    "disagreeing",
    "expert_fuzz",
    "lost",
    "low_latency_between_hosts",
    "low_latency_calls",
    "low_latency_described_errors",
    "low_latency_disagreeing",
    "low_latency_killed",
    "low_latency_many_turns",
    "low_latency_original",
    "low_latency_refused",
    "low_latency_shrinking",
    "low_latency_two_alive",
    "moe_decoding",
    "moe_gradients",
    "moe_loading",
    "ring",
]
