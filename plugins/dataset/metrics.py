"""Counters of reading and a histogram of its latencies, in memory that all workers of a data set share.

    dataset.metrics.snapshot()                  # sums over this process and its workers
    print(dataset.metrics.exposition())         # the text format of Prometheus
    with dataset.metrics.serve(9400): ...       # http://HOST:9400/metrics

Each process writes rows of its own (WORKERS of them, by worker number), without a lock; readers sum them up. A latency
is that of a batch of reads, from its submission until its last completion is processed: a batch that is read ahead may
be ready while the program computes, and is processed when the program asks for one. Percentiles come from the
histogram, whose buckets are 19 % wide. A batch that needs no read (its blocks are cached) counts its samples only.
"""

import bisect
import json
import threading
import time
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import torch
from torch.utils.data import get_worker_info

from ...closing import Closing

WORKERS: Final = 64  # rows; workers beyond share them, and may lose a count to each other
FIRST_S: Final = 1e-5  # the end of the first bucket
STEPS: Final = 4  # buckets for each doubling
BUCKETS: Final = 96  # to 2**24 × 10 µs = 168 s, then the rest
BOUNDS_S: Final = tuple(FIRST_S * 2 ** (number / STEPS) for number in range(BUCKETS))
COUNTERS: Final = ("samples", "bytes", "reads", "read_ns", "batches", "wait_ns", "skipped")
PERCENTILES: Final = (0.5, 0.9, 0.99, 0.999)
SHOWN: Final = tuple(range(3, BUCKETS, 8))  # buckets that Prometheus sees: a factor of four each
"""A scrape need not carry ninety-six buckets."""


@dataclass(frozen=True)
class Snapshot:
    """Sums since the start, or since the last `reset`. Rates are of the seconds since then.

    `samples`, `bytes`, `reads`: samples made, bytes read and batches of reads, of all workers. `batches`, `wait_s`:
    returned to the consumer by a `Loader`, and how long it waited for them. `skipped`: bad records, each time that one
    was met. `latency_s`: percentiles of batches of reads.
    """

    seconds: float
    samples: int
    bytes: int
    reads: int
    read_s: float
    batches: int
    wait_s: float
    skipped: int
    latency_s: dict[str, float]

    @property
    def samples_per_s(self) -> float:
        return self.samples / self.seconds

    @property
    def bytes_per_s(self) -> float:
        return self.bytes / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dictionary, for JSON."""
        return {**asdict(self), "samples_per_s": self.samples_per_s, "bytes_per_s": self.bytes_per_s}


class Metrics:
    """The metrics of one data set. Goes to workers with it."""

    def __init__(self) -> None:
        table = torch.zeros((WORKERS + 1, len(COUNTERS) + BUCKETS + 1), dtype=torch.int64)
        self._table: torch.Tensor = table.share_memory_()  # type: ignore[no-untyped-call]
        self._rows = self._table.numpy()
        self._since = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        return {"_table": self._table, "_since": self._since}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._rows = self._table.numpy()

    def observe_read(self, samples: int, nbytes: int, seconds: float | None) -> None:
        """Count a batch of samples, and the reads for it; `seconds` is None if there were none."""
        row = self._row()
        row[0] += samples
        if seconds is None:
            return
        row[1] += nbytes
        row[2] += 1
        row[3] += int(seconds * 1e9)
        row[len(COUNTERS) + bisect.bisect_left(BOUNDS_S, seconds)] += 1

    def observe_wait(self, seconds: float) -> None:
        """Count a batch that the consumer has got, and the time that it waited."""
        row = self._row()
        row[4] += 1
        row[5] += int(seconds * 1e9)

    def observe_skip(self) -> None:
        """Count a bad record that was replaced by the next one."""
        self._row()[6] += 1

    def reset(self) -> None:
        """Set all to zero. Not while workers read."""
        self._rows[:] = 0
        self._since = time.monotonic()

    def snapshot(self) -> Snapshot:
        """Sum up all processes."""
        counters, buckets = self._sums()
        return Snapshot(
            seconds=max(time.monotonic() - self._since, 1e-9),
            samples=counters["samples"],
            bytes=counters["bytes"],
            reads=counters["reads"],
            read_s=counters["read_ns"] / 1e9,
            batches=counters["batches"],
            wait_s=counters["wait_ns"] / 1e9,
            skipped=counters["skipped"],
            latency_s={f"p{100 * each:g}": percentile(buckets, each) for each in PERCENTILES},
        )

    def exposition(self, **labels: str) -> str:
        """Format all of it as Prometheus' text, with these labels."""
        counters, buckets = self._sums()
        lines: list[str] = []
        for name, text, value in (
            ("samples_total", "Samples read from files.", counters["samples"]),
            ("bytes_total", "Bytes of samples read from files.", counters["bytes"]),
            ("batches_total", "Batches returned to the consumer.", counters["batches"]),
            ("wait_seconds_total", "Time that the consumer waited for batches.", counters["wait_ns"] / 1e9),
            ("skipped_total", "Bad records that were replaced by another one.", counters["skipped"]),
        ):
            lines += _family(name, "counter", text)
            lines.append(f"luciola_dataset_{name}{_labels(labels)} {value}")
        lines += _family("read_seconds", "histogram", "Latency of a batch of reads.")
        for number in SHOWN:
            bound = {**labels, "le": f"{BOUNDS_S[number]:.6g}"}
            lines.append(f"luciola_dataset_read_seconds_bucket{_labels(bound)} {sum(buckets[: number + 1])}")
        lines.append(f"luciola_dataset_read_seconds_bucket{_labels({**labels, 'le': '+Inf'})} {sum(buckets)}")
        lines.append(f"luciola_dataset_read_seconds_sum{_labels(labels)} {counters['read_ns'] / 1e9}")
        lines.append(f"luciola_dataset_read_seconds_count{_labels(labels)} {sum(buckets)}")
        return "\n".join(lines) + "\n"

    def serve(self, port: int = 0, *, host: str = "127.0.0.1", **labels: str) -> "MetricsServer":
        """Serve /metrics over HTTP until the result is closed; `port` 0 takes a free one."""
        return MetricsServer(self, host, port, labels)

    def _sums(self) -> tuple[dict[str, int], list[int]]:
        """Return counters and the histogram of all processes."""
        sums = [int(value) for value in self._rows.sum(axis=0)]
        return dict(zip(COUNTERS, sums, strict=False)), sums[len(COUNTERS) :]

    def _row(self) -> Any:
        info = get_worker_info()
        return self._rows[0 if info is None else 1 + info.id % WORKERS]


def percentile(buckets: list[int], share: float) -> float:
    """Compute the value that a share of the observations is below, by interpolation in its bucket; 0 for none."""
    total = sum(buckets)
    if not total:
        return 0.0
    wanted, before = share * total, 0
    for number, count in enumerate(buckets):
        if count and before + count >= wanted:
            low = BOUNDS_S[number - 1] if number else 0.0
            high = BOUNDS_S[min(number, BUCKETS - 1)]
            return low + (high - low) * (wanted - before) / count
        before += count
    return BOUNDS_S[-1]


def _family(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP luciola_dataset_{name} {text}", f"# TYPE luciola_dataset_{name} {kind}"]


def _labels(labels: dict[str, str]) -> str:
    # The format escapes backslash, quote and newline, as JSON does.
    texts = [f"{name}={json.dumps(str(value), ensure_ascii=False)}" for name, value in labels.items()]
    return "{" + ",".join(texts) + "}" if texts else ""


class MetricsServer(Closing):
    """/metrics of a data set over HTTP, served by a thread."""

    def __init__(self, metrics: Metrics, host: str, port: int, labels: dict[str, str]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                known = self.path in {"/metrics", "/"}
                body = metrics.exposition(**labels).encode() if known else b"not found: /metrics is here\n"
                self.send_response(200 if known else 404)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 (its name there)
                """Log nothing: scrapes are frequent."""

        self._server = ThreadingHTTPServer((host, port), Handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="luciola-metrics", daemon=True
        )
        self._thread.start()

    @property
    def address(self) -> str:
        """The URL for Prometheus."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}/metrics"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


__all__ = ["Metrics", "MetricsServer", "Snapshot", "percentile"]
