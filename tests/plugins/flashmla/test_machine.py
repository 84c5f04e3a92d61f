"""Every kernel that is launched on Hopper, compiled ahead of time, and gates that bad kernels do not pass.

In processes of their own: here the kernels are interpreted.
"""

import json
import os
import subprocess
import sys

import pytest

ENVIRONMENT = {**os.environ, "TRITON_INTERPRET": "0"}

BAD = """
import dataclasses, json
from luciola.plugins.flashmla import launch, machine

good = {case.name: case for case in machine.cases()}

def made_with(name, size, *tile):
    before = launch.DENSE_TILES[size]
    launch.DENSE_TILES[size] = launch.Tile(*tile)
    report = machine.compile_one(good[name])
    launch.DENSE_TILES[size] = before
    return report.failures()

def measured_by(name, wanted):
    return machine.compile_one(dataclasses.replace(good[name], wanted=wanted)).failures()

print(json.dumps({
    "spills between": made_with("dense-bf16-64", 64, 64, 16, 2, 4),
    "bytes of shared memory": made_with("dense-bf16-16", 16, 16, 64, 4, 8),
    "no LDGSTS": made_with("dense-bf16-16", 16, 16, 64, 1, 8),
    "no HGMMA": measured_by("dense-bf16-16", ("HGMMA",)),
    "no HMMA": measured_by("combine", ("HMMA",)),
}))
"""


def in_a_process(*arguments):
    done = subprocess.run(
        [sys.executable, *arguments], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.mark.slow
def test_every_configuration_passes_its_gates():
    code = "from luciola.plugins.flashmla.command import flashmla; flashmla()"
    status, reports = in_a_process("-c", code, "compile", "--json")
    assert {report["name"]: report["failures"] for report in reports if report["failures"]} == {}
    assert status == 0
    names = {report["name"].rpartition("-")[0] for report in reports}
    kernels = {
        "dense-bf16",
        "dense-fp16",
        "dense-fp8",
        "sparse-v32",
        "sparse-model1",
        "prefill-576",
        "prefill-512",
    }
    assert kernels <= names
    assert {report["name"] for report in reports if report["warpgroup"]} == {
        *("dense-bf16-64", "dense-fp16-64", "varlen-128", "varlen-192"),
    }


@pytest.mark.slow
def test_gates_stop_bad_kernels():
    _, failures = in_a_process("-c", BAD)
    assert len(failures) == 5
    for gate, messages in failures.items():
        assert any(gate in message for message in messages), f"{gate}: {messages}"
