"""`make gpu`: what fails, hangs or breaks the device hides no other figure."""

import importlib.util
import json
import subprocess
import sys
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
    assert all(gpu.told(each) for each in figures)


def test_a_benchmark_that_cannot_begin_is_told_once(gpu, tmp_path):
    script = tmp_path / "benchmark.py"
    script.write_text("import nothing_of_that_name")
    figures = list(gpu.lines_of((sys.executable, str(script)), 60))
    assert [(each["operator"], each["error"]) for each in figures] == [
        ("benchmark", "its process ended with status 1")
    ]


# Of files, commands, arguments and the compiler: nothing in them runs on a GPU.
HOST = {
    "deepgemm": {"arguments", "distributed", "loader", "shim", "warm"},
    "flashmla": {
        "command", "example", "interface", "machine", "page_format", "pages", "pages_on_a_cluster", "prefix",
        "reference", "shim",
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
