"""Every kernel that is launched on Hopper, compiled ahead of time, and gates that bad kernels do not pass.

In processes of their own: here the kernels are interpreted.
"""

from collections.abc import Callable
from concurrent.futures import Executor

import pytest

from machine_code import run_program

# What the gates say of the kernels whose names match, as JSON.
GOOD = """
import dataclasses, json, sys
import mla_kernels as machine
from luciola.plugins.flashmla import hopper, hopper_fp8, launch

reports = machine.reports(sys.argv[1:])
"""
# The same of kernels that are bad in one way each.
BAD = """
good = {case.name: case for case in machine.cases()}

def made_with(name, size, *tile):
    before = launch.DENSE_TILES[size]
    launch.DENSE_TILES[size] = launch.Tile(*tile)
    failures = good[name].failures()
    launch.DENSE_TILES[size] = before
    return failures

def with_few_registers(name):
    hopper.RIGHT_REGISTERS = 120
    hopper_fp8.GATHER_REGISTERS[656] = 96
    return good[name].failures()

def measured_by(name, wanted):
    return dataclasses.replace(good[name], gates=machine.tensor_cores(wanted)).failures()

for_others = measured_by("dense-bf16-64", machine.SPECIALISED)
bad = {
    "spills of a side": with_few_registers("dense-bf16-hopper"),
    "spills in all": with_few_registers("sparse-v32-hopper"),
    "no F2FP.F16.E4M3": measured_by("combine", machine.SPECIALISED_FP8),
    "no HGMMA.64x64x16": for_others, "no UTMALDG.3D": for_others, "no USETMAXREG": for_others,
    "spills between": made_with("dense-bf16-64", 64, 64, 16, 2, 4),
    "bytes of shared memory": made_with("dense-bf16-16", 16, 16, 64, 4, 8),
    "no LDGSTS": made_with("dense-bf16-16", 16, 16, 64, 1, 8),
    "no HGMMA": measured_by("dense-bf16-16", ("HGMMA",)),
    "no HMMA": measured_by("combine", ("HMMA",)),
}
"""


# In two processes, of which the second compiles bad kernels too.
NAMES = {
    "dense-?p* dense-bf* s*[e26]": """
        dense-fp16-64 dense-fp8-16 dense-fp16-hopper dense-fp8-hopper dense-bf16-16 dense-bf16-64 dense-bf16-hopper
        schedule sparse-v32-16 sparse-v32-32 sparse-model1-16
    """,
    "prefill-* s*r [cv]* g*": """
        prefill-576-16 prefill-576-32 prefill-576-64 prefill-576-hopper
        prefill-512-16 prefill-512-32 prefill-512-64 prefill-512-hopper
        sparse-v32-hopper sparse-model1-hopper combine combine-sink varlen-128 varlen-192
        gradients-128-queries gradients-128-tokens gradients-192-queries gradients-192-tokens gradients-sums
    """,
}
"""What patterns choose."""


@pytest.fixture(scope="module")
def started(two_at_once: Executor, warm_python: str) -> dict[str, Callable]:
    """What each process will find in the kernels that its patterns choose, and in bad kernels."""
    first, second = NAMES
    printed = "\nprint(json.dumps([reports, bad]))"
    scripts = {first: f"{GOOD}bad = None{printed}", second: f"{GOOD}{BAD}{printed}"}
    return {
        match: two_at_once.submit(run_program, warm_python, "-c", script, *match.split()).result
        for match, script in scripts.items()
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("match", NAMES)
def test_every_kernel_passes_its_gates(started, match):
    reports, _ = started[match]()
    names = NAMES[match].split()
    assert {report["name"]: report["failures"] for report in reports if report["failures"]} == {}
    assert {report["name"] for report in reports} == set(names)
    older = {name for name in names if name.endswith(("-16", "-32"))} | {
        "schedule",
        "combine",
        "combine-sink",
        "gradients-sums",
    }
    assert {report["name"] for report in reports if not report["warpgroup"]} == older & set(names)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_gates_stop_bad_kernels(started):
    _, failures = started[list(NAMES)[1]]()
    assert len(failures) == 11
    for gate, messages in failures.items():
        assert any(gate.removesuffix(" of a side") in message for message in messages), f"{gate}: {messages}"
