"""Low-latency mode between processes on GPUs; collected by `make gpu` alone (see conftest).

On one GPU processes order their streams by events; on several, kernels raise flags.
"""

import pytest

from expert_inputs import values, varied
from pipeline_ranks import Ranks


@pytest.mark.parametrize("size", [2, 4])
def test_processes_on_gpus_get_what_the_reference_says(experts: Ranks, size) -> None:
    found = values(experts.run("low_latency_calls", size, cases=varied(size), device="cuda", layer="triton"))
    assert set(found) <= {"cuda-ipc", "symmetric-memory"}
    assert len(set(found)) == 1
