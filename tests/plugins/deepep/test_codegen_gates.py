"""Every kernel that is launched on Hopper, compiled ahead of time, and gates that bad kernels do not pass.

In processes of their own: here the kernels are interpreted.
"""

from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

import pytest

from machine_code import run_program

NAMES = (
    "signal-next wait-next wait-drop slots layout reduce reduce-named "
    "publish heads place fetch "
    "dispatch-send-bf16 dispatch-send-fp8 dispatch-receive-bf16 "
    "dispatch-receive-ue8m0 combine-send-bf16 combine-send-logfmt combine-receive-bf16 "
    "combine-receive-logfmt"
)


@pytest.fixture(scope="module")
def started(two_at_once: Executor) -> dict[str, Callable]:
    """What each process will report."""
    programs = Path(__file__).with_name("support")
    return {
        name: two_at_once.submit(run_program, programs / name).result
        for name in ("codegen_gates.py", "bad_kernels.py")
    }


@pytest.mark.slow
@pytest.mark.timeout(600)  # nineteen kernels, some seconds each where the machine is busy
def test_every_kernel_passes_its_gates(started):
    reports = {each["name"]: each["failures"] for each in started["codegen_gates.py"]()}
    assert {name: failures for name, failures in reports.items() if failures} == {}
    assert set(reports) == set(NAMES.split())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_gates_stop_kernels_that_order_wrongly(started):
    told = started["bad_kernels.py"]()
    wanted = {
        "relaxed_signal": "no memory barrier at system scope",
        "near_signal": "another scope than the system",
        "late_payload_signal": "a store between the barrier and the exchange",
        "no_barrier_signal": "no barrier of the block",
        "silent_signal": "no exchange that publishes",
        "relaxed_wait": "not an acquire",
        "near_wait": "without system scope",
        "endless_wait": "not bounded",
        "no_wait": "no loop that waits",
        "trapping": "a trap",
        "narrow": "words below 8 bytes",
    }
    assert set(told) == set(wanted)
    for name, part in wanted.items():
        assert any(part in message for message in told[name]), f"{name}: {told[name]}"
