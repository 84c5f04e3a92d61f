"""All tests of kernels on this machine's GPU, then all benchmarks, then a report: what `make gpu` runs.

    python benchmarks/plugins/gpu.py [--report gpu-report.md] [--only tests|benchmarks] [--limit 300]

Tests and benchmarks run in processes of their own. One that hangs is stopped after `--limit` seconds without a sign of
life, one that breaks the device ends alone; a benchmark goes on behind the case at which it ended. So whatever fails,
all other results are there. They are printed as they come, and written as a table and, beside it, as JSON. Ends with
status 1 if anything failed, 2 without a GPU.
"""

import argparse
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# Those whose tensors are made on the chosen device; others test files, commands and the compiler.
TESTS = (
    "deepgemm/test_quantize.py",
    "deepgemm/test_scales.py",
    "deepgemm/test_dense.py",
    "deepgemm/test_grouped.py",
    "deepgemm/test_sums.py",
    "deepgemm/test_indexer.py",
    "deepgemm/test_prenorm.py",
    "deepgemm/test_testing.py",
    "deepgemm/test_hopper.py",
    "deepep/test_low_latency_pieces.py",
    "deepep/test_device_flags.py",
    "deepep/test_mode.py",
    "deepep/test_gpu_ranks.py",
    "flashmla/test_schedule.py",
    "flashmla/test_layouts.py",
    "flashmla/test_kernel.py",
    "flashmla/test_hopper.py",
    "flashmla/test_hopper_fp8.py",
    "flashmla/test_hopper_prefill.py",
)
BENCHMARKS = ("deepgemm", "flashmla", "deepep")
RESTARTS_MAX = 200  # more than there are cases: every one of them may break the device


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--report", type=Path, default=ROOT / "gpu-report.md")
    parser.add_argument("--only", choices=("tests", "benchmarks"))
    parser.add_argument("--limit", type=float, default=300.0, help="seconds without a sign of life")
    options = parser.parse_args()
    about = machine()
    if about is None:
        print(
            "There is no CUDA device here: nothing was tested or measured. `luciola flashmla compile` and the tests"
        )
        print("of tests/plugins compile every kernel for Hopper and run it in interpreters.")
        sys.exit(2)
    print(about, flush=True)
    tests = [] if options.only == "benchmarks" else list(tested(options.limit))
    figures = [] if options.only == "tests" else list(measured(options.limit))
    options.report.write_text(report(about, tests, figures))
    options.report.with_suffix(".json").write_text(
        json.dumps({"machine": about, "tests": tests, "figures": figures}, indent=2)
    )
    print(f"\nwritten: {options.report} and {options.report.with_suffix('.json').name}")
    failed = [each for each in tests if each["status"] != 0] + [each for each in figures if "error" in each]
    sys.exit(1 if failed else 0)


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


def tested(limit_s: float) -> Iterator[dict[str, Any]]:
    """One file after the other; what pytest said last of each, and its failures."""
    for name in TESTS:
        command = (sys.executable, "-m", "pytest", "-q", "--no-header", f"tests/plugins/{name}")
        lines = []
        status: int | str = 0
        for line in output(command, limit_s, LUCIOLA_TEST_DEVICE="cuda", PYTHONUNBUFFERED="1"):
            if isinstance(line, str):
                lines.append(line)
            else:
                status = line
        failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        last = next((line for line in reversed(lines) if line.strip()), "no output")
        print(f"{name}: {last}", *failures, sep="\n  ", flush=True)
        yield {"file": name, "status": status, "last": last, "failures": failures}


def measured(limit_s: float) -> Iterator[dict[str, Any]]:
    """Figures of every case of every benchmark."""
    for name in BENCHMARKS:
        print(f"\n{name}", flush=True)
        script = str(Path(__file__).with_name(f"{name}.py"))
        for line in lines_of((sys.executable, script), limit_s):
            print("  " + told(line), flush=True)
            yield line


def lines_of(command: Sequence[str], limit_s: float) -> Iterator[dict[str, Any]]:
    """Figures of a benchmark's cases; where its process ends early, an error, and another goes on behind that case."""
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
    """Lines of a process, then its exit status: None if it was stopped because it said nothing for so long."""
    # From a checkout, installed or not.
    path = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines: queue.Queue[str | None] = queue.Queue()

    def read(stream: Any = process.stdout) -> None:
        for line in stream:
            lines.put(line.rstrip("\n"))
        lines.put(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    stopped = False
    try:
        while (line := lines.get(timeout=limit_s)) is not None:
            yield line
    except queue.Empty:
        stopped = True
    finally:
        if process.poll() is None and stopped:
            process.kill()
        status = process.wait()
        reader.join()
        process.stdout.close()
    yield None if stopped else status


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


def told(line: dict[str, Any]) -> str:
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
