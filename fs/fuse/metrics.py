"""Families of a mount: what the kernel has asked for, and what the client behind it has counted."""

from collections.abc import Iterator, Sequence
from typing import Final

import luciola_core

from ..metrics import BOUNDS_S, Family, Histogram, Kind, counter, gauge

PREFIX: Final = "luciola_mount"
# Of the client, with the words of `luciola_core.Client.counters`.
TOTALS: Final = {
    "name_cache_hits": "Look-ups of names that the mount answered from memory.",
    "name_cache_misses": "Look-ups of names for which it asked the metadata service.",
    "attribute_cache_hits": "Times that attributes were known.",
    "attribute_cache_misses": "Times that attributes were not known, or too old.",
    "written_back_bytes": "Bytes of files that storage nodes have acknowledged.",
    "write_back_failures": "Writes to storage nodes that have failed; fsync and close report each.",
}
NOW: Final = {
    "dirty_bytes": "Bytes that wait for their write-back.",
    "open_files": "Files that programs have open.",
}


def mount_families(mount: luciola_core.Mount, client: luciola_core.Client) -> Sequence[Family]:
    """Return the metrics of one mount."""
    counters = client.counters()
    read_bytes, written_bytes = mount.bytes()
    return [
        Family(
            f"{PREFIX}_requests_total",
            Kind.COUNTER,
            "Requests of the kernel that were answered.",
            ("operation", "outcome"),
            tuple(((operation, outcome), float(count)) for operation, outcome, count in mount.requests()),
        ),
        Family(
            f"{PREFIX}_request_duration_seconds",
            Kind.HISTOGRAM,
            "Time from the arrival of a request of the kernel to its answer.",
            ("operation",),
            tuple(_durations(mount)),
        ),
        counter(f"{PREFIX}_read_bytes_total", "Bytes that the kernel has read.", read_bytes),
        counter(f"{PREFIX}_written_bytes_total", "Bytes that the kernel has written.", written_bytes),
        *(counter(f"{PREFIX}_{name}_total", TOTALS[name], counters[name]) for name in TOTALS),
        *(gauge(f"{PREFIX}_{name}", NOW[name], counters[name]) for name in NOW),
        *(
            counter(f"{PREFIX}_{name}_total", "docs/rdma.md.", value)
            for name, value in sorted(client.rdma_counters().items())
        ),
    ]


def _durations(mount: luciola_core.Mount) -> Iterator[tuple[tuple[str], Histogram]]:
    bounds_s, durations = mount.durations()
    assert tuple(bounds_s) == BOUNDS_S, "all histograms have the same bounds"
    for operation, counts, sum_s in durations:
        yield (operation,), Histogram.of(counts, sum_s)


__all__ = ["mount_families"]
