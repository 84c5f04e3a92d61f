"""`make gpu`: what fails, hangs or breaks the device hides no other figure."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Prints as benchmarks do: case 1 breaks its process, 3 the device, 5 hangs; 2 says that its kernel failed.
BENCHMARK = """
import json, os, sys, time
first = int(sys.argv[sys.argv.index("--lines") + 1])
for number in range(first, 7):
    print(json.dumps({"begins": number, "operator": "product", "shape": f"case {number}"}), flush=True)
    print("a warning of some library", flush=True)
    if number == 1:
        os._exit(7)
    if number == 5:
        time.sleep(1000)
    line = {"operator": "product", "shape": f"case {number}", "layer": "triton"}
    if number in (2, 3):
        line["error"] = "RuntimeError: it failed"
    else:
        line |= {"time_us": 10.0, "tflops": 1.0, "gb_s": 2.0, "roofline": 0.5, "torch_way": "matmul",
                 "torch_over_ours": 1.2, "difference": 0.0}
    print(json.dumps({"number": number, "figures": [line]}), flush=True)
    if number == 3:
        sys.exit(3)
"""


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("gpu_report", ROOT / "benchmarks/plugins/gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_other_case_has_its_figures(gpu, tmp_path):
    script = tmp_path / "benchmark.py"
    script.write_text(BENCHMARK)
    figures = list(gpu.lines_of((sys.executable, str(script)), 10))
    assert [each["shape"] for each in figures] == [f"case {number}" for number in range(7)]
    errors = {each["shape"]: each["error"] for each in figures if "error" in each}
    assert errors == {
        "case 1": "its process ended with status 7",
        "case 2": "RuntimeError: it failed",
        "case 3": "RuntimeError: it failed",
        "case 5": "it hung and was stopped",
    }
    text = gpu.report(
        "a card", [{"file": "test_x.py", "status": 1, "last": "1 failed", "failures": ["FAILED x"]}], figures
    )
    assert "| product | case 4 | triton | 10.0 | 1 | 2 | 50% | 1.20 | 0e+00 | matmul |" in text
    assert "| product | case 5 | - |  |  |  |  |  |  | it hung and was stopped |" in text
    assert "| test_x.py | 1 failed |\n| | FAILED x |" in text
    assert all(gpu.described(each) for each in figures)


def test_a_benchmark_that_cannot_begin_is_reported_once(gpu, tmp_path):
    script = tmp_path / "benchmark.py"
    script.write_text("import nothing_of_that_name")
    figures = list(gpu.lines_of((sys.executable, str(script)), 60))
    assert [(each["operator"], each["error"]) for each in figures] == [
        ("benchmark", "its process ended with status 1")
    ]


# A step whose rank outlives it, with the pipe open: the step itself hangs, or ends.
WITH_A_RANK = """
import subprocess, sys, time
rank = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
print(rank.pid, flush=True)
time.sleep(float(sys.argv[1]))
"""


@pytest.mark.parametrize("seconds", [100, 0])
def test_a_step_that_is_stopped_takes_its_ranks_with_it(gpu, tmp_path, seconds):
    script = tmp_path / "step.py"
    script.write_text(WITH_A_RANK)
    began = time.monotonic()
    pid, status = gpu.output((sys.executable, str(script), str(seconds)), 3)
    assert time.monotonic() - began < 60
    assert status is None
    deadline = time.monotonic() + 30  # a killed process that is not our child ends a moment later
    while is_running(int(pid)):
        assert time.monotonic() < deadline, "the rank continues"
        time.sleep(0.01)


def is_running(pid):
    """Whether that process is there and no zombie of a container whose first process reaps nothing."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


CARD = "a card, 132 multiprocessors"


@pytest.fixture
def two_steps(gpu, monkeypatch, tmp_path):
    """One that fails and one that passes; which began is in a file of its name."""

    def step(name, code):
        began = f"open({str(tmp_path / name)!r}, 'a').write('x'); "
        return gpu.Step(name, "checks", "flashmla", (sys.executable, "-c", began + code))

    found = [
        step("fails", "raise SystemExit(3)"),
        step("passes", "print('all is well')"),
    ]
    monkeypatch.setattr(gpu, "steps", lambda: found)
    monkeypatch.setattr(gpu, "machine", lambda: CARD)
    noted = []
    monkeypatch.setattr(gpu, "note_runs", noted.append)
    return lambda name: len((tmp_path / name).read_text()) if (tmp_path / name).exists() else 0, noted


def run_gpu(gpu, monkeypatch, tmp_path, *arguments):
    report = tmp_path / "report.md"
    command = ["gpu.py", "--report", str(report), "--limit", "60", *arguments]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    return ended.value.code, json.loads(report.with_suffix(".json").read_text()), report.read_text()


def test_a_failed_step_stops_no_other_and_a_resumed_run_repeats_no_passed_one(
    gpu, two_steps, monkeypatch, tmp_path
):
    times, noted = two_steps
    code, found, text = run_gpu(gpu, monkeypatch, tmp_path)
    assert code == 1
    assert {name: each["status"] for name, each in found["steps"].items()} == {
         "fails": 3, "passes": 0,
    }  # fmt: skip
    assert "| passes | all is well |" in text
    assert noted == [set()], "a plugin with a step that failed did not pass on this card"
    run_gpu(gpu, monkeypatch, tmp_path, "--resume")
    assert [times(name) for name in ("fails", "passes")] == [2, 1]
    monkeypatch.setattr(gpu, "machine", lambda: "another card")
    run_gpu(gpu, monkeypatch, tmp_path, "--resume")
    assert times("passes") == 2


def test_no_step_begins_when_the_time_is_over(gpu, two_steps, monkeypatch, tmp_path):
    times, _ = two_steps
    code, found, text = run_gpu(gpu, monkeypatch, tmp_path, "--minutes", "0")
    assert code == 1
    assert {each["status"] for each in found["steps"].values()} == {"not run"}
    assert "--resume continues" in text
    assert times("passes") == 0


def test_without_a_gpu_it_says_so_and_fails(gpu, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "machine", lambda: None)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2
    assert "no CUDA device here: nothing was tested or measured" in capsys.readouterr().out


def test_steps_cover_every_check_test_and_benchmark(gpu):
    found = gpu.steps()
    assert (
        len({each.name for each in found})
        == len(found)
        == len(gpu.CHECKS) + len(gpu.TESTS) + len(gpu.BENCHMARKS)
    )
    for step in found:
        assert any((ROOT / each).is_file() for each in step.command[1:]), step.command


def test_the_check_of_staging_holds_in_host_memory_too(warm_python):
    script = str(ROOT / "benchmarks/plugins/gpu_steps.py")
    command = [warm_python, script, "kv_staging", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.count("every bit") == 4, done.stderr
    assert done.returncode == 0


# Of files, commands, arguments and the compiler: nothing in them runs on a GPU.
HOST = {
    "deepgemm": {"aot_cache", "arguments", "loader", "shim"},
    "flashmla": {
        "capture", "command", "example", "interface", "machine", "page_format", "page_layers", "paged_kv_file",
        "pages_on_a_cluster", "prefix", "reference", "shim",
    },
}  # fmt: skip


@pytest.mark.parametrize("plugin", HOST)
def test_no_test_of_a_kernel_is_left_out(gpu, plugin):
    found = {each.stem.removeprefix("test_") for each in (ROOT / "tests/plugins" / plugin).glob("test_*.py")}
    assert found == HOST[plugin] | {
        Path(each).stem.removeprefix("test_") for each in gpu.TESTS if plugin in each
    }


def test_operators_need_nothing_of_the_file_system_s_native_module():
    """So a machine with a GPU runs the kernels from a checkout."""
    code = (
        "import sys; sys.modules['luciola_core'] = None\n"
        "from luciola.plugins import deepgemm, flashmla\n"
        "deepgemm.fp8_gemm_nt, deepgemm.load_weights, flashmla.flash_mla_with_kvcache, flashmla.quantize_v32"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_test_and_benchmark_that_it_runs_is_there(gpu):
    assert all((ROOT / "tests/plugins" / name).is_file() for name in gpu.TESTS)
    assert all((ROOT / "benchmarks/plugins" / f"{name}.py").is_file() for name in gpu.BENCHMARKS)
    assert json.dumps(gpu.parsed("[1]")) == json.dumps(gpu.parsed("no JSON")) == "{}"
