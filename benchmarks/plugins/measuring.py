"""What the benchmarks of kernels share: cases, how a call is timed on a GPU, and figures as lines of JSON.

With `--lines FIRST` a benchmark measures its cases from that number on and prints two lines for each: that it
begins, and its figures or its error. So their reader (`gpu.py`) can stop one that hangs, and start the benchmark
again behind one that broke the device for its process.
"""

import json
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any

import torch
from gpu import cells
from torch import Tensor

from luciola.cli.output import print_table
from luciola.plugins.kernels.layers import recording, using_layer

CALLS = 20  # of a round
ROUNDS = 5
FLUSH_BYTES = 256 << 20  # more than any second-level cache holds


HEADER = ("OPERATOR", "SHAPE", "LAYER", "µs", "TFLOP/s", "GB/s", "ROOFLINE", "TORCH/OURS", "DIFFERENCE", "")


@dataclass(frozen=True)
class Card:
    """What a device can do at best, by its data sheet: bytes/s of memory, dense FP8 and BF16 operations/s."""

    memory: float
    fp8: float
    bf16: float


CARDS = {
    "H200": Card(4.8e12, 1979e12, 989e12),
    "H100": Card(3.35e12, 1979e12, 989e12),
    "H800": Card(3.35e12, 1979e12, 989e12),
}


@dataclass(frozen=True)
class Work:
    """A call on tensors that are there, what it costs at least, and torch's ways to the same result."""

    run: Callable[[], object]
    flops: float
    moved_bytes: float
    result: Tensor | None = None  # where the call writes, if it returns nothing
    fp8: bool = False
    prepare: Callable[[], object] = lambda: None  # before a call whose result counts
    torch_ways: dict[str, Callable[[], object]] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """An operator in a shape; `make` allocates its tensors. `layers`: those that it is measured in."""

    operator: str
    shape: str
    make: Callable[[], Work]
    layers: tuple[str, ...] = ("triton",)


def measure(case: Case) -> Iterator[dict[str, Any]]:
    """Figures of each layer; an error takes their place if there is one."""
    try:
        work = case.make()
    except Exception as error:  # noqa: BLE001 (reported, and the next case runs)
        yield _line(case, "-", error=_reason(error))
        return
    best = _torch_best(work)
    first: Tensor | None = None
    ran: dict[str, set[str]] = {}
    for layer in case.layers:
        try:
            with using_layer(layer):
                work.prepare()
                with recording() as launches:
                    returned = work.run()
                ran[layer] = {each.kernel for each in launches}
                assert layer != "hopper" or ran[layer] != ran.get("triton"), "the Gluon kernel did not run"
                result = _first_tensor(returned if work.result is None else work.result).float().clone()
                seconds = time_s(work.run)
            first = result if first is None else first
            yield _line(case, layer, **_figures(work, seconds, best), difference=_difference(first, result))
        except Exception as error:  # noqa: BLE001
            yield _line(case, layer, error=_reason(error))


def time_s(call: Callable[[], object]) -> float:
    """Seconds of a call with a cold second-level cache: median of rounds; in a CUDA graph where that can be.

    While the cache is overwritten the host launches the call, so that its own time does not count.
    """
    call()
    call = _captured(call)
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    rounds = []
    for _ in range(ROUNDS):
        total = 0.0
        for _ in range(CALLS):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            begin.record()
            call()
            end.record()
            end.synchronize()
            total += begin.elapsed_time(end) / 1e3
        rounds.append(total / CALLS)
    return statistics.median(rounds)


def print_lines(cases: Iterable[Case], first: int) -> None:
    """For `--lines`."""
    for number, case in zip(count(first), islice(cases, first, None)):
        print(json.dumps({"begins": number, "operator": case.operator, "shape": case.shape}), flush=True)
        lines = list(measure(case))
        print(json.dumps({"number": number, "figures": lines}), flush=True)
        torch.cuda.empty_cache()
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            raise SystemExit(
                3
            ) from None  # the device is broken for this process: the next one continues behind


def print_figures(figures: Iterable[dict[str, Any]]) -> None:
    """A table for people."""
    print_table(HEADER, [cells(each) for each in figures], right=range(3, 9))


def _line(case: Case, layer: str, **rest: Any) -> dict[str, Any]:
    return {"operator": case.operator, "shape": case.shape, "layer": layer, **rest}


def _figures(work: Work, seconds: float, best: tuple[str, float] | None) -> dict[str, Any]:
    name = torch.cuda.get_device_name()
    card = next((card for part, card in CARDS.items() if part in name), None)
    limit = None
    if card is not None:
        limit = max(work.moved_bytes / card.memory, work.flops / (card.fp8 if work.fp8 else card.bf16))
    return {
        "time_us": seconds * 1e6,
        "tflops": work.flops / seconds / 1e12,
        "gb_s": work.moved_bytes / seconds / 1e9,
        "roofline": None if limit is None else limit / seconds,
        "torch_way": None if best is None else best[0],
        "torch_over_ours": None if best is None else best[1] / seconds,
    }


def _torch_best(work: Work) -> tuple[str, float] | None:
    """The fastest of torch's ways that run here."""
    times = {}
    for name, way in work.torch_ways.items():
        try:
            times[name] = time_s(way)
        except Exception:  # noqa: BLE001 (not in this build of torch)
            continue
    return min(times.items(), key=lambda each: each[1]) if times else None


def _captured(call: Callable[[], object]) -> Callable[[], object]:
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError:
        torch.cuda.synchronize()
        return call
    return graph.replay


def _first_tensor(value: object) -> Tensor:
    while not isinstance(value, Tensor):
        value = value[0]  # type: ignore[index]
    return value


def _difference(x: Tensor, y: Tensor) -> float:
    """From the first layer's result; 1 - cosine-like, as DeepGEMM measures it."""
    finite = x.isfinite() & y.isfinite()
    x, y = x[finite].double(), y[finite].double()
    scale = float((x * x + y * y).sum())
    return 0.0 if scale == 0 else 1 - 2 * float((x * y).sum()) / scale


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:150]
