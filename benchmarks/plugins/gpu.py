"""Everything that needs a GPU, on this machine's, step by step, and a report: what `make gpu` runs.

    python benchmarks/plugins/gpu.py [--report gpu-report.md] [--only checks|tests|benchmarks] [--resume]
                                     [--minutes 10] [--limit 120]

Steps are checks (CUDA graphs, staging of KV pages, NCCL, DualPipe: `gpu_steps.py`), the tests of kernels, ranks and
devices, and benchmarks beside torch's own ways. Each is a process of its own. One that hangs is stopped after `--limit`
seconds without a sign of life, one that breaks the device ends alone; a benchmark continues behind the case at which it
ended. So whatever fails, all other results are there. After each step the report is written as a table and, beside it,
as JSON; when `--minutes` are over no further step begins, and `--resume` runs those that have not passed on
this card.

Ends with status 0 if every step passed, 1 if one failed or was not run, 2 without a GPU. A plugin whose steps all
passed is noted as run on this card (`luciola plugins`).
"""

import argparse
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# Those whose tensors are made on the chosen device; others test files, commands and the compiler.
TESTS = (
    "deepgemm/test_quantize.py",
    "deepgemm/test_scales.py",
    "deepgemm/test_dense.py",
    "deepgemm/test_grouped.py",
    "deepgemm/test_einsums.py",
    "deepgemm/test_indexer.py",
    "deepgemm/test_prenorm.py",
    "deepgemm/test_hopper.py",
    "compat/test_deep_gemm_testing.py",
    "deepep/test_layout.py",
    "deepep/test_low_latency_ops.py",
    "deepep/test_device_flags.py",
    "deepep/test_dispatcher.py",
    "deepep/test_gpu_ranks.py",
    "flashmla/test_schedule.py",
    "flashmla/test_layouts.py",
    "flashmla/test_kernel.py",
    "flashmla/test_hopper.py",
    "flashmla/test_hopper_fp8.py",
    "flashmla/test_hopper_prefill.py",
    "weights/test_devices.py",
)
BENCHMARKS = ("deepgemm", "flashmla", "deepep")
RESTARTS_MAX = 200  # more than there are cases: every one of them may break the device


CHECKS = {"graphs": "flashmla", "kv_staging": "flashmla", "nccl": "deepep", "dualpipe": "dualpipe"}


@dataclass(frozen=True)
class Step:
    """A process, or for benchmarks as many as it takes."""

    name: str
    kind: str  # "checks", "tests" or "benchmarks"
    plugin: str
    command: tuple[str, ...]


def steps() -> list[Step]:
    """All of them, in their order."""
    here = Path(__file__).parent
    checks = [
        Step(name, "checks", plugin, (sys.executable, str(here / "gpu_steps.py"), name))
        for name, plugin in CHECKS.items()
    ]
    pytest = (sys.executable, "-m", "pytest", "-q", "--no-header", "-rs")
    tests = [Step(each, "tests", each.split("/")[0], (*pytest, f"tests/plugins/{each}")) for each in TESTS]
    benchmarks = [
        Step(f"benchmark of {each}", "benchmarks", each, (sys.executable, str(here / f"{each}.py")))
        for each in BENCHMARKS
    ]
    return [*checks, *tests, *benchmarks]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--report", type=Path, default=ROOT / "gpu-report.md")
    parser.add_argument("--only", choices=("checks", "tests", "benchmarks"))
    parser.add_argument("--resume", action="store_true", help="steps that passed are not run again")
    parser.add_argument("--minutes", type=float, default=10.0, help="no step begins later")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds without a sign of life")
    options = parser.parse_args()
    about = machine()
    if about is None:
        print(
            "There is no CUDA device here: nothing was tested or measured. The tests of tests/plugins"
            " compile every kernel for Hopper and run it in interpreters."
        )
        sys.exit(2)
    print(about, flush=True)
    chosen = [each for each in steps() if options.only in {None, each.kind}]
    results = passed_before(options.report.with_suffix(".json"), about) if options.resume else {}
    ends = time.monotonic() + 60 * options.minutes
    for step in chosen:
        if step.name not in results:
            in_time = time.monotonic() < ends
            results[step.name] = run(step, options.limit) if in_time else not_run()
            write(options.report, about, results)
    print(f"\nwritten: {options.report} and {options.report.with_suffix('.json').name}")
    passed = {name for name, each in results.items() if each["status"] == 0}
    note_runs({each.plugin for each in steps()} - {e.plugin for e in steps() if e.name not in passed})
    sys.exit(0 if all(each.name in passed for each in chosen) else 1)


def run(step: Step, limit_s: float) -> dict[str, Any]:
    """What came of a step: its status, its last words, failures or figures."""
    began = time.monotonic()
    result = measured(step, limit_s) if step.kind == "benchmarks" else tested(step, limit_s)
    return {**result, "kind": step.kind, "seconds": round(time.monotonic() - began, 1)}


def not_run() -> dict[str, Any]:
    last = "not run: the time was over; --resume continues"
    return {"status": "not run", "last": last, "failures": [], "kind": "tests", "seconds": 0.0}


def passed_before(path: Path, about: str) -> dict[str, Any]:
    """Results of an earlier run on such a machine that need not be had again."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    if found.get("machine") != about:
        return {}
    return {name: each for name, each in found["steps"].items() if each["status"] == 0}


def write(path: Path, about: str, results: dict[str, Any]) -> None:
    tests = [{"file": name, **each} for name, each in results.items() if "figures" not in each]
    figures = [line for each in results.values() for line in each.get("figures", ())]
    path.write_text(report(about, tests, figures))
    path.with_suffix(".json").write_text(json.dumps({"machine": about, "steps": results}, indent=2))


def note_runs(plugins: set[str]) -> None:
    """For `luciola plugins`: all steps of these passed on this card."""
    code = "import sys; from luciola.plugins.kernels.status import record_run; [record_run(p) for p in sys.argv[1:]]"
    for line in output((sys.executable, "-c", code, *sorted(plugins)), 60):
        if isinstance(line, str):
            print(line)


def machine() -> str | None:
    """The card and the software; None without a CUDA device. Asked of another process: this one leaves it alone."""
    code = (
        "import torch, triton\n"
        "assert torch.cuda.is_available()\n"
        "p = torch.cuda.get_device_properties(0)\n"
        "print(f'{p.name}, {p.multi_processor_count} multiprocessors, {p.total_memory >> 30} GiB; '\n"
        "      f'torch {torch.__version__}, CUDA {torch.version.cuda}, Triton {triton.__version__}')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def tested(step: Step, limit_s: float) -> dict[str, Any]:
    """What a check or pytest said last, and its failures."""
    lines = []
    status: int | str | None = 0
    for line in output(step.command, limit_s, LUCIOLA_TEST_DEVICE="cuda", PYTHONUNBUFFERED="1"):
        if isinstance(line, str):
            lines.append(line)
        else:
            status = line
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR", "SKIPPED"))]
    last = next((line for line in reversed(lines) if line.strip()), "no output")
    print(f"{step.name}: {last}", *failures, sep="\n  ", flush=True)
    return {"status": status, "last": last, "failures": failures}


def measured(step: Step, limit_s: float) -> dict[str, Any]:
    """Figures of every case of a benchmark."""
    print(f"\n{step.name}", flush=True)
    figures = []
    for line in lines_of(step.command, limit_s):
        print("  " + described(line), flush=True)
        figures.append(line)
    failed = not figures or any("error" in each for each in figures)
    return {"status": 1 if failed else 0, "last": f"{len(figures)} figures", "figures": figures}


def lines_of(command: Sequence[str], limit_s: float) -> Iterator[dict[str, Any]]:
    """Figures of a benchmark's cases; if its process ends early, an error, and another continues behind it."""
    first = 0
    for _ in range(RESTARTS_MAX):
        begun: dict[str, Any] | None = None
        status: int | None = None
        for line in output((*command, "--lines", str(first)), limit_s):
            if not isinstance(line, str):
                status = line
                continue
            found = parsed(line)
            if "begins" in found:
                begun = found
            elif "figures" in found:
                first, begun = found["number"] + 1, None
                yield from found["figures"]
        if begun is None and status in {0, 3}:
            if status == 0:
                return
            continue
        what = "it hung and was stopped" if status is None else f"its process ended with status {status}"
        case = begun or {"operator": Path(command[-1]).stem, "shape": "-"}
        yield {"operator": case["operator"], "shape": case["shape"], "layer": "-", "error": what}
        if begun is None:
            return  # it fails before its first case, and would again
        first = begun["begins"] + 1


def output(command: Sequence[str], limit_s: float, **environment: str) -> Iterator[str | int | None]:
    """Lines of a process, then its exit status: None if it was stopped because it printed nothing for so long.

    Processes that it has started, such as ranks, are ended with it.
    """
    # From a checkout, installed or not.
    path = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that what it has started can be ended with it
    )
    assert process.stdout is not None
    lines: queue.Queue[str | None] = queue.Queue()

    def read(stream: Any = process.stdout) -> None:
        for line in stream:
            lines.put(line.rstrip("\n"))
        lines.put(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    status = None
    try:
        while (line := lines.get(timeout=limit_s)) is not None:
            yield line
        status = process.wait(limit_s)
    except (queue.Empty, subprocess.TimeoutExpired):
        pass
    finally:  # also of a step that passed: its ranks would hold the GPU and the pipe
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reader.join()
        process.stdout.close()
    yield status


def parsed(line: str) -> dict[str, Any]:
    """A line of JSON; other output, such as warnings, is nothing."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def cells(line: dict[str, Any]) -> tuple[str, ...]:
    """A row of the report."""
    start = (line["operator"], line["shape"], line["layer"])
    if "error" in line:
        return (*start, "", "", "", "", "", "", line["error"])
    share = "" if line["roofline"] is None else f"{line['roofline']:.0%}"
    ratio = "" if line["torch_over_ours"] is None else f"{line['torch_over_ours']:.2f}"
    speed = (f"{line['time_us']:.1f}", f"{line['tflops']:.0f}", f"{line['gb_s']:.0f}")
    return (*start, *speed, share, ratio, f"{line['difference']:.0e}", line["torch_way"] or "")


def described(line: dict[str, Any]) -> str:
    """A row for the terminal."""
    if "error" in line:
        return f"{line['operator']}  {line['shape']}  {line['layer']}: {line['error']}"
    _, _, _, time_us, tflops, gb_s, share, ratio, difference, way = cells(line)
    beside = f", {ratio} of the speed of torch's {way}" if way else ""
    limit = f", {share} of the roofline" if share else ""
    head = f"{line['operator']}  {line['shape']}  {line['layer']}: {time_us} µs"
    return f"{head}, {tflops} TFLOP/s, {gb_s} GB/s{limit}{beside}; differs by {difference}"


def report(about: str, tests: list[dict[str, Any]], figures: list[dict[str, Any]]) -> str:
    """Markdown."""
    text = ["# Kernels on a GPU", "", about, ""]
    if tests:
        text += ["## Tests", "", "| file | result |", "|---|---|"]
        for each in tests:
            stopped = " (it hung and was stopped)" if each["status"] is None else ""
            text.append(f"| {each['file']} | {each['last']}{stopped} |")
            text += [f"| | {failure} |" for failure in each["failures"]]
        text.append("")
    if figures:
        header = ("operator", "shape", "layer", "µs", "TFLOP/s", "GB/s", "of the roofline")
        header += ("torch's time over ours", "difference from the first layer", "torch's way, or the error")
        rows = (header, ("---",) * len(header), *(cells(each) for each in figures))
        text += [
            "## Figures",
            "",
            "Medians of five rounds of 20 calls, cold second-level cache, random inputs.",
            "",
        ]
        text += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    main()
