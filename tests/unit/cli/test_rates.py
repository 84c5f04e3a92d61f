"""Rates and latencies between two readings of metrics."""

import pytest

from luciola.cli.rates import quantile, rates
from luciola.metrics import parse_samples

META = """
# TYPE luciola_requests_total counter
luciola_requests_total{{service="Meta",method="Stat",outcome="ok"}} {stats}
luciola_requests_total{{service="Meta",method="Create",outcome="unavailable"}} {failed}
luciola_requests_total{{service="Meta",method="Create",outcome="not_found"}} 7
# TYPE luciola_request_duration_seconds histogram
luciola_request_duration_seconds_bucket{{service="Meta",method="Stat",outcome="ok",le="0.001"}} {fast}
luciola_request_duration_seconds_bucket{{service="Meta",method="Stat",outcome="ok",le="0.01"}} {stats}
luciola_request_duration_seconds_bucket{{service="Meta",method="Stat",outcome="ok",le="+Inf"}} {stats}
luciola_request_duration_seconds_bucket{{service="Meta",method="Watch",outcome="ok",le="0.001"}} 0
luciola_request_duration_seconds_bucket{{service="Meta",method="Watch",outcome="ok",le="+Inf"}} {watches}
"""


def meta(stats: int, failed: int, fast: int, watches: int = 0):
    return parse_samples(META.format(stats=stats, failed=failed, fast=fast, watches=watches))


def test_rates_are_of_what_was_counted_between_the_readings() -> None:
    found = rates("meta", meta(100, 1, 50), meta(300, 5, 150, watches=900), elapsed_s=2.0)
    assert (found["operations_per_s"], found["failed_per_s"]) == (102.0, 2.0)
    assert list(found["operations"].items()) == [("Stat", 100.0), ("Create", 2.0)]
    assert (found["read_bytes_per_s"], found["written_bytes_per_s"]) == (None, None)
    assert found["p50_s"] == pytest.approx(0.001)  # half of the stats were at most so long
    assert found["p99_s"] == pytest.approx(0.001 + 0.98 * 0.009)


def test_process_that_was_restarted_counts_from_zero() -> None:
    found = rates("meta", meta(1000, 0, 1000), meta(10, 0, 10), elapsed_s=1.0)
    assert found["operations"] == {"Stat": 10.0}


def test_nothing_that_happened_has_no_latency() -> None:
    found = rates("meta", meta(10, 0, 10), meta(10, 0, 10), elapsed_s=1.0)
    assert (found["operations_per_s"], found["operations"], found["p50_s"], found["p99_s"]) == (
        0,
        {},
        None,
        None,
    )


def test_bytes_of_a_storage_node() -> None:
    text = """
# TYPE luciola_storage_reads_total counter
luciola_storage_reads_total {0}
# TYPE luciola_storage_read_bytes_total counter
luciola_storage_read_bytes_total {1}
# TYPE luciola_storage_update_bytes_total counter
luciola_storage_update_bytes_total {2}
"""
    found = rates(
        "storage", parse_samples(text.format(0, 0, 0)), parse_samples(text.format(4, 4096, 10)), elapsed_s=2.0
    )
    assert (found["operations"], found["read_bytes_per_s"], found["written_bytes_per_s"]) == (
        {"reads": 2.0},
        2048.0,
        5.0,
    )
    assert found["p50_s"] is None


@pytest.mark.parametrize(("part", "expected"), [(0.25, 0.5), (0.5, 1.0), (0.75, 1.5), (0.99, 2.0)])
def test_quantile_is_linear_within_a_bucket(part: float, expected: float) -> None:
    buckets = {1.0: 2.0, 2.0: 4.0, float("inf"): 4.0} if part < 0.9 else {2.0: 1.0, float("inf"): 4.0}
    assert quantile(buckets, part) == pytest.approx(expected)
