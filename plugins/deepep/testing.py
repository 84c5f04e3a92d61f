"""What the original's `deep_ep.utils` offers to its test programs, on GPUs and on CPUs alike."""

import random
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..kernels.errors import BadCall
from ..kernels.quantize import align, ceil_div
from ..kernels.ranks import join

_seed = [0]
_cuda: Any = torch.cuda  # parts of it have no types


def init_dist(
    local_rank: int, num_local_ranks: int, seed: int | None = None
) -> tuple[int, int, dist.ProcessGroup]:
    """Joins the processes of a run: (rank, number of ranks, group of all).

    Where is said as `kernels.ranks.join` reads it; with GPUs, numbers are bfloat16 by default, as the original has it.
    """
    joined = join(local_rank, num_local_ranks)
    if torch.cuda.is_available():
        torch.set_default_dtype(torch.bfloat16)
    if seed is not None:
        init_seed(seed + joined[0])
    return joined


def init_seed(seed: int) -> None:
    """Of all generators."""
    _seed[:] = [seed]
    random.seed(seed)
    torch.manual_seed(seed)


def get_global_seed() -> int:
    """The last one that `init_seed` was given, or 0."""
    return _seed[0]


def dist_print(*values: object, once_in_node: bool = False, **options: Any) -> None:
    """`print`, on one rank of all if `once_in_node`; then all ranks go on together."""
    if not once_in_node or dist.get_rank() == 0:
        print(*values, **{"flush": True, **options})  # noqa: T201 (what it is for)
    dist.barrier()


def inplace_unique(x: Tensor, num_slots: int) -> None:
    """Each row of x (T, K) keeps one of each number below `num_slots`, most frequent first; the rest becomes -1."""
    assert x.dim() == 2, "rows of numbers"
    is_known = (x >= 0) & (x < num_slots)
    counts = torch.zeros(len(x), num_slots + 1, dtype=torch.int64, device=x.device)
    counts.scatter_add_(1, torch.where(is_known, x.long(), num_slots), torch.ones_like(x, dtype=torch.int64))
    found, numbers = counts[:, :num_slots].sort(dim=1, descending=True, stable=True)
    width = min(num_slots, x.shape[1])
    x.fill_(-1)
    x[:, :width] = torch.where(found > 0, numbers, -1)[:, :width].to(x.dtype)


def create_grouped_scores(scores: Tensor, group_idx: Tensor, num_groups: int) -> Tensor:
    """Scores (T, E), zero outside the groups of neighbouring experts that group_idx (T, G) names."""
    tokens, experts = scores.shape
    is_chosen = torch.zeros(tokens, num_groups, dtype=torch.bool, device=scores.device).scatter_(
        1, group_idx, value=True
    )
    grouped = scores.view(tokens, num_groups, experts // num_groups) * is_chosen.unsqueeze(2)
    return grouped.flatten(1)


def hash_tensor(x: Tensor) -> int:
    """A number that differs if a byte differs, most likely."""
    words = x.contiguous().view(torch.uint8).flatten().long()
    return int((words * (torch.arange(len(words), device=x.device) % 65_521 + 1)).sum())


def hash_tensors(*tensors: Tensor) -> int:
    """The same of several."""
    return sum(hash_tensor(each) for each in tensors)


def count_bytes(*values: Tensor | Iterable[Any] | None) -> int:
    """Of all tensors, in tuples and lists too."""
    total = 0
    for value in values:
        if isinstance(value, Tensor):
            total += value.numel() * value.element_size()
        elif value is not None:
            total += count_bytes(*value)
    return total


def safe_div(x: float, y: float) -> float:
    """x / y, or 0 if y is."""
    return 0 if y == 0 else x / y


def get_physical_domain_size(group: dist.ProcessGroup) -> tuple[int, int]:
    """Nodes, and ranks of each: hosts, if they have equally many ranks one after the other. All ranks call it."""
    from .buffer import node_size
    from .transport.members import GroupMembers

    size = node_size(GroupMembers(group))
    return group.size() // size, size


def get_logical_domain_size(
    group: dist.ProcessGroup,
    allow_hybrid_mode: bool = True,  # noqa: FBT001, FBT002, ARG001 (the original's)
) -> tuple[int, int]:
    """As `ElasticBuffer.get_logical_domain_size`."""
    return 1, group.size()


def bench(
    fn: Callable[[], object],
    num_warmups: int = 5,
    num_tests: int = 20,
    post_fn: Callable[[], object] | None = None,
) -> tuple[float, float, float]:
    """Seconds of a call: mean, least, most."""
    for _ in range(num_warmups):
        fn()
    times = []
    for _ in range(num_tests):
        _wait()
        began = time.perf_counter()
        fn()
        _wait()
        times.append(time.perf_counter() - began)
        if post_fn is not None:
            post_fn()
    return sum(times) / len(times), min(times), max(times)


def bench_kineto(
    fn: Callable[[], object], kernel_names: str | tuple[str, ...], num_tests: int = 30, **_unused: object
) -> float | tuple[float, ...]:
    """Seconds that a GPU spends in a call's kernels whose names contain each of `kernel_names`."""
    if not torch.cuda.is_available():
        raise BadCall("bench_kineto measures kernels of a GPU, and there is none: use bench")
    names = (kernel_names,) if isinstance(kernel_names, str) else kernel_names
    fn()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(num_tests):
            fn()
        _wait()
    events: list[Any] = list(profile.key_averages())
    sums = [sum(each.self_device_time_total for each in events if name in each.key) for name in names]
    seconds = tuple(each / num_tests / 1e6 for each in sums)
    return seconds[0] if isinstance(kernel_names, str) else seconds


def _wait() -> None:
    if torch.cuda.is_available():
        _cuda.synchronize()


__all__ = [
    "align",
    "bench",
    "bench_kineto",
    "ceil_div",
    "count_bytes",
    "create_grouped_scores",
    "dist_print",
    "get_global_seed",
    "get_logical_domain_size",
    "get_physical_domain_size",
    "hash_tensor",
    "hash_tensors",
    "init_dist",
    "init_seed",
    "inplace_unique",
    "safe_div",
]
