"""Every kernel that is launched on Hopper, compiled ahead of time, and gates that bad kernels do not pass.

In a process of their own: here the kernels are interpreted.
"""

from pathlib import Path
from typing import Any

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
def found(warm_python: str) -> list[Any]:
    """What the gates find in every kernel, and in the bad ones."""
    return run_program(warm_python, Path(__file__).with_name("support") / "bad_kernels.py")


@pytest.mark.slow
@pytest.mark.timeout(600)  # nineteen kernels, some seconds each where the machine is busy
def test_every_kernel_passes_its_gates(found):
    reports = {each["name"]: each["failures"] for each in found[0]}
    assert {name: failures for name, failures in reports.items() if failures} == {}
    assert set(reports) == set(NAMES.split())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_gates_stop_kernels_that_order_wrongly(found):
    bad = found[1]
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
    assert set(bad) == set(wanted)
    for name, part in wanted.items():
        assert any(part in message for message in bad[name]), f"{name}: {bad[name]}"
