"""What `deep_gemm.testing` has to measure and compare."""

import json
import os

import pytest
import torch

from luciola.plugins.compat.deep_gemm import testing
from luciola.plugins.kernels.errors import BadCall, BadType

ON_GPU = torch.cuda.is_available()


@pytest.fixture(autouse=True)
def _on_the_chosen_device(kernel_device: str) -> None:
    """Tensors are made there."""


def product():
    x = torch.ones(64, 64)

    def call():
        return (x @ x).relu()

    return call


def test_the_profiler_reports_the_time_of_each_kernel_by_its_name(tmp_path):
    names = ("elementwise", "nothing of that name") if ON_GPU else ("aten::mm", "nothing of that name")
    trace = tmp_path / "trace.json"
    times = testing.bench_kineto(
        product(), names, num_tests=3, trace_path=str(trace), with_multiple_kernels=True
    )
    assert times[0] > 0
    assert times[1] == 0
    assert json.loads(trace.read_text())["traceEvents"]
    assert testing.bench(product(), 1, 2) > 0


@pytest.mark.skipif(ON_GPU, reason="names of operators on the CPU")
def test_a_name_that_fits_several_kernels_is_refused_or_summed(capfd):
    with pytest.raises(BadCall, match=r"fit 'aten::' .*aten::mm"):
        testing.bench_kineto(product(), "aten::", num_tests=2)
    both = testing.bench_kineto(
        product(), "aten::", num_tests=2, with_multiple_kernels=True, suppress_kineto_output=True
    )
    assert both > 0
    assert capfd.readouterr().out == ""
    with pytest.raises(BadType, match="a string or a tuple"):
        testing.bench_kineto(product(), ["aten::mm"])


def test_what_is_printed_while_silenced_is_dropped_and_later_not(capfd):
    def loud():
        os.write(1, b"loud\n")

    testing.bench_kineto(loud, "x", num_tests=1, suppress_kineto_output=True)
    os.write(1, b"after\n")
    assert capfd.readouterr().out == "after\n"


def test_another_profiler_at_work_makes_all_times_one(monkeypatch):
    monkeypatch.setenv("DG_USE_NVIDIA_TOOLS", "1")
    assert testing.bench_kineto(product(), ("a", "b")) == (1, 1)


def test_barriers_are_met_before_every_call():
    calls = []
    testing.bench_kineto(lambda: calls.append("call"), "x", 2, barrier=lambda: calls.append("barrier"))
    assert calls == ["call", "barrier", "call", "barrier", "call"]


def test_bits_are_compared():
    x = torch.tensor([1.0, float("nan"), 0.0])
    testing.assert_bitwise_equal(x, x.clone())
    testing.assert_bitwise_equal(torch.tensor(2), torch.tensor(2))
    for other, message in ((-x, "bytes differ"), (x[:2], "shapes"), (x.double(), "dtypes")):
        with pytest.raises(AssertionError, match=message):
            testing.assert_bitwise_equal(x, other)


def test_filters_run_what_fits_the_machine(capsys, monkeypatch):
    ran = []
    testing.test_filter(lambda: True)(ran.append)(1)

    @testing.test_filter(lambda: False)
    def not_here():
        ran.append(2)

    not_here()
    assert ran == [1]
    assert "not_here: not on this machine" in capsys.readouterr().out
    monkeypatch.setenv("LUCIOLA_IGNORED", "x")
    testing.ignore_env("LUCIOLA_IGNORED", lambda: True)(
        lambda: ran.append(os.environ.get("LUCIOLA_IGNORED"))
    )()
    testing.ignore_env("LUCIOLA_IGNORED", lambda: False)(lambda: ran.append(os.environ["LUCIOLA_IGNORED"]))()
    assert ran[1:] == [None, "x"]
    assert os.environ["LUCIOLA_IGNORED"] == "x"
