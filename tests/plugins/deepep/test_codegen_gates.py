"""Every kernel that is launched on Hopper, compiled ahead of time, and gates that bad kernels do not pass.

In processes of their own: here the kernels are interpreted.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

import pytest

ENVIRONMENT = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

NAMES = (
    "signal-next wait-next wait-drop slots layout reduce reduce-named "
    "publish heads place fetch "
    "dispatch-send-bf16 dispatch-send-fp8 dispatch-receive-bf16 "
    "dispatch-receive-ue8m0 combine-send-bf16 combine-send-logfmt combine-receive-bf16 "
    "combine-receive-logfmt"
)


def in_a_process(*arguments):
    done = subprocess.run(
        [sys.executable, *arguments],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def started(two_at_once: Executor) -> dict[str, Callable]:
    """What each process will say."""
    good, bad = (
        str(Path(__file__).with_name("support") / name) for name in ("codegen_gates.py", "bad_kernels.py")
    )
    commands = {"even": (good, "0"), "odd": (good, "1"), "bad": (bad,)}
    return {name: two_at_once.submit(in_a_process, *each).result for name, each in commands.items()}


@pytest.mark.slow
@pytest.mark.timeout(600)  # nineteen kernels, some seconds each where the machine is busy
def test_every_kernel_passes_its_gates(started):
    reports = dict(started["even"]() + started["odd"]())
    assert {name: failures for name, failures in reports.items() if failures} == {}
    assert set(reports) == set(NAMES.split())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_gates_stop_kernels_that_order_wrongly(started):
    told = started["bad"]()
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
