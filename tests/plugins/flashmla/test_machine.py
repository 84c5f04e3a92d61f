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
from luciola.plugins.flashmla import kernel, launch, machine

def configuration(name):
    return next(each for each in machine.configurations() if each.name == name)

constants = {"FORMAT": kernel.PLAIN_576, "CAUSAL": False}
few_warps = machine._dense("too few warps", launch.Tile(64, 16, 2, 4), constants, "bf16", "bf16")
deep = machine._dense("too many stages", launch.Tile(16, 64, 4, 8), constants, "bf16", "bf16")
shallow = machine._dense("not pipelined", launch.Tile(16, 64, 1, 8), constants, "bf16", "bf16")
cases = {
    "spills": few_warps,
    "shared": deep,
    "HGMMA": dataclasses.replace(configuration("dense-bf16-16"), wgmma=True),
    "HMMA": dataclasses.replace(configuration("combine"), matmul=True, wgmma=False),
    "LDGSTS": dataclasses.replace(shallow, pipelined=True),
}
print(json.dumps({gate: machine.compile_one(case).failures() for gate, case in cases.items()}))
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
    for gate, messages in failures.items():
        assert any(gate in message for message in messages), f"{gate}: {messages}"
