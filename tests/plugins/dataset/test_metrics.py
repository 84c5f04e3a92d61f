"""Metrics: sums over workers, percentiles, and the text for Prometheus."""

import math
import pickle
import random
import urllib.error
import urllib.request

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luciola.plugins.dataset import Metrics
from luciola.plugins.dataset.metrics import BOUNDS_S, BUCKETS, percentile


def samples_of(text: str) -> dict[str, float]:
    """{name with labels: value}, and each family has its type before it."""
    result, types = {}, set()
    for line in text.splitlines():
        if line.startswith("# TYPE"):
            types.add(line.split()[2])
        elif not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            bare = name.partition("{")[0]
            assert any(bare in {kind, f"{kind}_bucket", f"{kind}_sum", f"{kind}_count"} for kind in types)
            result[name] = float(value)
    return result


def test_sums_and_rates() -> None:
    metrics = Metrics()
    metrics.observe_read(10, 1000, 0.002)
    metrics.observe_read(20, 500, 0.004)
    metrics.observe_wait(0.5)
    seen = metrics.snapshot()
    assert (seen.samples, seen.bytes, seen.reads, seen.batches) == (30, 1500, 2, 1)
    assert seen.wait_s == pytest.approx(0.5)
    assert seen.read_s == pytest.approx(0.006)
    assert seen.samples_per_s == pytest.approx(30 / seen.seconds)
    metrics.reset()
    assert metrics.snapshot().samples == 0
    assert metrics.snapshot().latency_s == {"p50": 0, "p90": 0, "p99": 0, "p99.9": 0}


def test_a_pickled_copy_has_the_values() -> None:
    metrics = Metrics()
    metrics.observe_read(5, 50, 0.001)
    copy = pickle.loads(pickle.dumps(metrics))
    assert copy.snapshot().samples == 5


@given(st.lists(st.floats(1e-6, 100), min_size=1, max_size=200), st.floats(0.01, 1))
@settings(deadline=None)
def test_percentiles_are_within_a_bucket(values: list[float], share: float) -> None:
    metrics = Metrics()
    for value in values:
        metrics.observe_read(1, 1, value)
    buckets = [int(each) for each in metrics._rows[0][-BUCKETS - 1 :]]
    found = percentile(buckets, share)
    exact = sorted(values)[max(1, math.ceil(share * len(values))) - 1]
    assert exact / 1.2 - 1.2e-5 <= found <= exact * 1.2 + 1.2e-5


def test_percentiles_of_many() -> None:
    metrics = Metrics()
    source = random.Random(1)
    for _ in range(2000):
        metrics.observe_read(1, 1, source.uniform(0.001, 0.011))
    seen = metrics.snapshot().latency_s
    assert seen["p50"] == pytest.approx(0.006, rel=0.1)
    assert seen["p99"] == pytest.approx(0.0109, rel=0.1)
    assert list(seen.values()) == sorted(seen.values())


def test_text_for_prometheus() -> None:
    metrics = Metrics()
    metrics.observe_read(3, 300, 0.001)
    metrics.observe_read(3, 300, 1000.0)
    metrics.observe_wait(2)
    exposed = samples_of(metrics.exposition(job='a"b'))
    assert exposed['luciola_dataset_samples_total{job="a\\"b"}'] == 6
    assert exposed['luciola_dataset_wait_seconds_total{job="a\\"b"}'] == 2
    buckets = [value for name, value in exposed.items() if "_bucket" in name]
    assert buckets == sorted(buckets)
    assert (buckets[0], buckets[-2], buckets[-1]) == (0, 1, 2)
    assert exposed['luciola_dataset_read_seconds_count{job="a\\"b"}'] == 2
    assert any('le="+Inf"' in name for name in exposed)
    assert BOUNDS_S[-1] > 100


def test_metrics_are_served_over_http() -> None:
    metrics = Metrics()
    metrics.observe_read(7, 70, 0.001)
    with metrics.serve(rank="3") as server:
        with urllib.request.urlopen(server.address, timeout=60) as reply:
            assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            exposed = samples_of(reply.read().decode())
        assert exposed['luciola_dataset_samples_total{rank="3"}'] == 7
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(server.address + "/other", timeout=60)
        assert caught.value.code == 404
        caught.value.close()
