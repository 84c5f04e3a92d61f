"""Rates and latencies of a process between two readings of its metrics. Pure."""

from collections import defaultdict
from collections.abc import Mapping
from math import inf
from typing import Final, TypedDict

from ..metrics import Samples

# Requests that are answered late on purpose: how long they take says nothing.
POLLS: Final = frozenset({"GetRouting", "StreamRouting", "Watch"})
QUANTILES: Final = (0.5, 0.99)

# Of each kind of process: what counts operations, and bytes.
OPERATIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "mgmtd": ("luciola_requests_total",),
    "meta": ("luciola_requests_total",),
    "storage": ("luciola_storage_reads_total", "luciola_storage_updates_total"),
    "mount": ("luciola_mount_requests_total",),
}
READ: Final = {"storage": "luciola_storage_read_bytes_total", "mount": "luciola_mount_read_bytes_total"}
WRITTEN: Final = {
    "storage": "luciola_storage_update_bytes_total",
    "mount": "luciola_mount_written_bytes_total",
}
DURATIONS: Final = {
    "mgmtd": "luciola_request_duration_seconds",
    "meta": "luciola_request_duration_seconds",
    "mount": "luciola_mount_request_duration_seconds",
}
# Outcomes that are no answer to a wrong request.
FAILED: Final = frozenset({"unexpected", "failed", "corrupt_data", "no_space", "unavailable", "timeout"})


class Rates(TypedDict):
    """What one process does, as `luciola top` prints it. None: it does not count that, or nothing happened."""

    operations_per_s: float
    failed_per_s: float
    read_bytes_per_s: float | None
    written_bytes_per_s: float | None
    p50_s: float | None
    p99_s: float | None
    operations: dict[str, float]  # by name, a second; the most frequent first


def rates(kind: str, before: Samples, after: Samples, *, elapsed_s: float) -> Rates:
    """Return what a process of that kind did between two readings that are `elapsed_s` apart."""
    assert elapsed_s > 0, "time passes between two readings"
    grown = _growth(before, after)
    operations: dict[str, float] = defaultdict(float)
    failed = 0.0
    for (name, labels), count in grown.items():
        if name in OPERATIONS[kind]:
            named = dict(labels)
            operations[_operation(name, named)] += count
            failed += count if named.get("outcome") in FAILED else 0
    moved = {key[0]: count for key, count in grown.items()}
    buckets = _buckets(DURATIONS.get(kind, ""), grown)
    p50_s, p99_s = (quantile(buckets, each) for each in QUANTILES)
    return {
        "operations_per_s": sum(operations.values()) / elapsed_s,
        "failed_per_s": failed / elapsed_s,
        "read_bytes_per_s": moved.get(READ[kind], 0) / elapsed_s if kind in READ else None,
        "written_bytes_per_s": moved.get(WRITTEN[kind], 0) / elapsed_s if kind in WRITTEN else None,
        "p50_s": p50_s,
        "p99_s": p99_s,
        "operations": {
            name: count / elapsed_s
            for name, count in sorted(operations.items(), key=lambda each: -each[1])
            if count > 0
        },
    }


def _growth(before: Samples, after: Samples) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return how much each sample has grown; of a process that was started meanwhile, what it counted since."""
    return {
        key: value - before.get(key, 0.0) if value >= before.get(key, 0.0) else value
        for key, value in after.items()
    }


def _operation(name: str, labels: Mapping[str, str]) -> str:
    if "method" in labels:
        return labels["method"]
    if "operation" in labels:
        return labels["operation"]
    return name.removeprefix("luciola_storage_").removesuffix("_total")


def _buckets(name: str, grown: Mapping[tuple[str, frozenset[tuple[str, str]]], float]) -> dict[float, float]:
    """Return how many durations were at most as long as each bound, polls excepted."""
    buckets: dict[float, float] = {}
    for (sample, labels), count in grown.items():
        named = dict(labels)
        if name and sample == f"{name}_bucket" and named.get("method") not in POLLS:
            bound = float(named["le"])
            buckets[bound] = buckets.get(bound, 0.0) + count
    return buckets


def quantile(buckets: Mapping[float, float], part: float) -> float | None:
    """Return the duration that `part` of all did not exceed, linear within a bucket; None if there were none.

    Of those above the last finite bound that bound.
    """
    assert 0 < part < 1, "a part of all"
    bounds = sorted(buckets)
    if not bounds or buckets[bounds[-1]] <= 0:
        return None
    wanted = part * buckets[bounds[-1]]
    below, counted = 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= wanted:
            if bound == inf:
                return below
            return below + (bound - below) * (wanted - counted) / (buckets[bound] - counted)
        below, counted = bound, buckets[bound]
    raise AssertionError("the last bucket has all")


__all__ = ["POLLS", "Rates", "quantile", "rates"]
