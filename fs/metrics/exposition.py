"""The text of all families of a process, from sources that its components give.

X1  it is made at most once a second, however many ask
X2  a source that fails, or does not answer in time, costs its own families and nothing else; it is not asked again
    while it has not answered
X3  other work of the event loop has its turn after about a millisecond
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Final, TypeAlias

from .. import __version__
from ..errors import Error
from .families import Family, Histogram, Kind, by_label

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

log = logging.getLogger(__name__)

FRESH_S: Final = 1.0  # far less than the interval of any scraper
SOURCE_S: Final = 2.0  # scrapers give up after 10 s
SLICE_SAMPLES: Final = 64  # made into text at once; each line takes ten microseconds
SLICE_HISTOGRAMS: Final = 4  # which have 18 lines each
HEADER_LINES: Final = 2  # of a family: its help and its type

Source: TypeAlias = Callable[[], Iterable[Family] | Awaitable[Iterable[Family]]]
"""Gives families as they are now, at once or later."""


class Exposition:
    """What one process shows. `kind`: of service, as `luciola status` calls it."""

    def __init__(self, kind: str, *, clock: Callable[[], float] = monotonic) -> None:
        self._kind = kind
        self._clock = clock
        self._sources: dict[str, Source] = {"process": self._own_families}
        self._asked: dict[str, asyncio.Task[list[Family]]] = {}
        self._failing: set[str] = set()
        self._made: tuple[float, bytes] | None = None
        self._making: asyncio.Task[bytes] | None = None

    def add(self, name: str, source: Source) -> None:
        """Show what `source` gives, until `remove`. `name` is a label of its state."""
        assert name not in self._sources, f"{name} is a source already"
        self._sources[name] = source

    async def text(self) -> bytes:
        """Return the text, of at most a second ago (X1)."""
        if self._making is None:
            if self._made is not None and self._clock() - self._made[0] < FRESH_S:
                return self._made[1]
            self._making = asyncio.create_task(self._make(), name="metrics")
        return await asyncio.shield(self._making)

    async def _make(self) -> bytes:
        try:
            text = await self._render()
            self._made = self._clock(), text
            return text
        finally:
            self._making = None

    async def _render(self) -> bytes:
        from prometheus_client.exposition import generate_latest
        from prometheus_client.process_collector import ProcessCollector

        answers = await asyncio.gather(*(self._ask(name) for name in list(self._sources)))
        parts = [generate_latest(ProcessCollector(registry=None))]
        for family in (family for families in answers for family in families):
            for number, some in enumerate(_slices(family)):
                text = generate_latest(_Collected(some))
                parts.append(text.split(b"\n", HEADER_LINES)[-1] if number else text)
                await asyncio.sleep(0)  # X3
        parts.append(generate_latest(_Collected(self._states())))
        return b"".join(parts)

    async def _ask(self, name: str) -> list[Family]:
        """Return what one source gives; nothing if it fails (X2)."""
        task = self._asked.get(name)
        if task is None:
            task = self._asked[name] = asyncio.create_task(
                _given(self._sources[name]), name=f"metrics {name}"
            )
        await asyncio.wait((task,), timeout=SOURCE_S)
        if not task.done():
            self._note(name, f"no answer within {SOURCE_S:g} s")
            return []
        del self._asked[name]
        try:
            families = task.result()
        except Exception as error:
            self._note(name, error)
            if not isinstance(error, Error):
                log.exception("a source of metrics has a defect")
            return []
        self._failing.discard(name)
        return families

    def _note(self, name: str, reason: object) -> None:
        if name not in self._failing:
            self._failing.add(name)
            log.warning("no metrics of %s: %s", name, reason)

    def _own_families(self) -> list[Family]:
        about = (((self._kind, __version__), 1.0),)
        return [
            Family("luciola_build_info", Kind.GAUGE, "Always 1.", ("kind", "release"), about),
        ]

    def _states(self) -> Family:
        values = {name: float(name not in self._failing) for name in self._sources}
        return by_label(
            Kind.GAUGE,
            "luciola_metrics_source_up",
            "Whether this part of the metrics was read.",
            "source",
            values,
        )

    def close(self) -> None:
        """End what has not answered."""
        for task in (*self._asked.values(), *((self._making,) if self._making else ())):
            task.cancel()


async def _given(source: Source) -> list[Family]:
    families = source()
    return list(await families if isinstance(families, Awaitable) else families)


def _slices(family: Family) -> Iterator[Family]:
    """Give the family in parts of which each is soon made into text."""
    size = SLICE_HISTOGRAMS if family.kind is Kind.HISTOGRAM else SLICE_SAMPLES
    for start in range(0, max(1, len(family.samples)), size):
        yield replace(family, samples=family.samples[start : start + size])


class _Collected:
    """One family, as the library reads a registry."""

    def __init__(self, family: Family) -> None:
        self._family = family

    def collect(self) -> "Iterator[Metric]":
        from prometheus_client.metrics_core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        family = self._family
        match family.kind:
            case Kind.COUNTER:
                counted = CounterMetricFamily(family.name, family.help, labels=family.labels)
                for labels, value in family.samples:
                    assert not isinstance(value, Histogram), f"{family.name}: numbers"
                    counted.add_metric(labels, value)
                yield counted
            case Kind.GAUGE:
                measured = GaugeMetricFamily(family.name, family.help, labels=family.labels)
                for labels, value in family.samples:
                    assert not isinstance(value, Histogram), f"{family.name}: numbers"
                    measured.add_metric(labels, value)
                yield measured
            case Kind.HISTOGRAM:
                observed = HistogramMetricFamily(family.name, family.help, labels=family.labels)
                for labels, value in family.samples:
                    assert isinstance(value, Histogram), f"{family.name}: durations"
                    observed.add_metric(labels, value.buckets(), value.sum_s)
                yield observed


__all__ = ["FRESH_S", "SOURCE_S", "Exposition", "Source"]
