"""The text that a process shows: from all sources that answer, at most once a second."""

import asyncio
import logging

import pytest
from prometheus_client.parser import text_string_to_metric_families

from luciola.errors import Unavailable
from luciola.metrics import Exposition, Family, Histogram, Kind, counter, gauge, histogram, states
from luciola.metrics import exposition as module
from luciola.metrics.exposition import FRESH_S, SLICE_SAMPLES


class Hand:
    """A clock that is turned by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def parsed(text: bytes) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Values by sample and labels."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def text_of(*sources: object) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    async def run() -> bytes:
        shown = Exposition("meta")
        for number, source in enumerate(sources):
            shown.add(f"s{number}", source)  # type: ignore[arg-type]
        return await shown.text()

    return parsed(asyncio.run(run()))


def test_families_of_each_kind_are_read_back() -> None:
    durations = Histogram()
    for duration_s in (0.00004, 0.3, 100.0):
        durations.observe(duration_s)
    labelled = Family("luciola_l", Kind.GAUGE, "L.", ("a", "b"), ((("1", 'x"\n\\'), 5.0), (("2", ""), 6.0)))

    async def later() -> list[Family]:
        return [
            histogram("luciola_d_seconds", "D.", durations),
            states("luciola_s", "S.", "is", ("a", "b"), "b"),
        ]

    found = text_of(
        lambda: [counter("luciola_c_total", "C.", 3), gauge("luciola_g", "G.", 0.5), labelled], later
    )
    assert found["luciola_c_total"] == {(): 3.0}
    assert found["luciola_g"] == {(): 0.5}
    assert found["luciola_l"] == {(("a", "1"), ("b", 'x"\n\\')): 5.0, (("a", "2"), ("b", "")): 6.0}
    assert found["luciola_s"] == {(("is", "a"),): 0.0, (("is", "b"),): 1.0}
    assert found["luciola_d_seconds_count"] == {(): 3.0}
    assert found["luciola_d_seconds_sum"] == {(): pytest.approx(100.30004)}
    buckets = {labels[0][1]: value for labels, value in found["luciola_d_seconds_bucket"].items()}
    assert buckets["5e-05"] == 1.0
    assert (buckets["0.25"], buckets["1.0"], buckets["30.0"], buckets["+Inf"]) == (1.0, 2.0, 2.0, 3.0)
    assert "process_resident_memory_bytes" in found
    assert set(found["luciola_metrics_source_up"].values()) == {1.0}


@pytest.mark.parametrize("kind", Kind)
def test_family_of_many_samples_is_one_family(kind: Kind) -> None:
    name = "luciola_many_total" if kind is Kind.COUNTER else "luciola_many"
    samples = []
    for number in range(3 * SLICE_SAMPLES):
        durations = Histogram()
        for _ in range(number):
            durations.observe(1.0)
        samples.append(((str(number),), durations if kind is Kind.HISTOGRAM else float(number)))
    family = Family(name, kind, "Many.", ("n",), tuple(samples))

    async def run() -> str:
        shown = Exposition("meta")
        shown.add("many", lambda: [family])
        return (await shown.text()).decode()

    text = asyncio.run(run())
    assert text.count(f"# TYPE {name} ") == text.count(f"# HELP {name} ") == 1
    (found,) = [each for each in text_string_to_metric_families(text) if each.name == "luciola_many"]
    sample = f"{name}_count" if kind is Kind.HISTOGRAM else name
    values = {each.labels["n"]: each.value for each in found.samples if each.name == sample}
    assert values == {str(number): float(number) for number in range(3 * SLICE_SAMPLES)}


def test_text_is_made_once_a_second_for_all_who_ask() -> None:
    clock, asked = Hand(), []

    def source() -> list[Family]:
        asked.append(clock.now_s)
        return []

    async def run() -> None:
        shown = Exposition("meta", clock=clock)
        shown.add("source", source)
        await asyncio.gather(*(shown.text() for _ in range(10)))
        clock.now_s = FRESH_S / 2
        await shown.text()
        clock.now_s = FRESH_S
        await asyncio.gather(*(shown.text() for _ in range(10)))

    asyncio.run(run())
    assert asked == [0.0, FRESH_S]


def test_source_that_fails_costs_only_its_own_families(caplog: pytest.LogCaptureFixture) -> None:
    def fails() -> list[Family]:
        raise Unavailable("no etcd")

    found = text_of(fails, lambda: [gauge("luciola_g", "G.", 1)])
    assert found["luciola_g"] == {(): 1.0}
    up = {labels[0][1]: value for labels, value in found["luciola_metrics_source_up"].items()}
    assert up == {"process": 1.0, "s0": 0.0, "s1": 1.0}
    assert "no metrics of s0: no etcd" in caplog.text


def test_source_that_hangs_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "SOURCE_S", 0.01)
    clock, asked = Hand(), []
    caplog.set_level(logging.WARNING)

    async def run() -> list[dict[str, dict[tuple[tuple[str, str], ...], float]]]:
        go_on = asyncio.Event()

        async def hangs() -> list[Family]:
            asked.append(clock.now_s)
            await go_on.wait()
            return [gauge("luciola_late", "Late.", 1)]

        shown = Exposition("storage", clock=clock)
        shown.add("disk", hangs)
        texts = []
        for _ in range(2):
            texts.append(await shown.text())
            clock.now_s += FRESH_S
        go_on.set()
        texts.append(await shown.text())
        return [parsed(text) for text in texts]

    first, second, last = asyncio.run(run())
    assert asked == [0.0]
    assert first["luciola_metrics_source_up"][("source", "disk"),] == 0.0
    assert "luciola_late" not in second
    assert last["luciola_late"] == {(): 1.0}
    assert last["luciola_metrics_source_up"][("source", "disk"),] == 1.0
    assert caplog.text.count("no metrics of disk") == 1


def test_caller_that_is_gone_does_not_end_the_text_of_others() -> None:
    async def run() -> bytes:
        shown = Exposition("meta")
        gone = asyncio.create_task(shown.text())
        other = asyncio.create_task(shown.text())
        await asyncio.sleep(0)
        gone.cancel()
        return await other

    assert b"luciola_build_info" in asyncio.run(run())
