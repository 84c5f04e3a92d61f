"""All modes between processes on GPUs; collected by `make gpu` alone (see conftest).

On one GPU processes order their streams by events; on several, kernels raise flags.
"""

import pytest

from expert_inputs import values, varied
from pipeline_ranks import Ranks

TRANSPORTS = {"cuda-ipc", "symmetric-memory"}
CASES = [
    {"tokens": [5, 0, 1, 7], "experts": 16, "topk": 4, "routing": "random", "seed": 1},
    {"tokens": [9, 30], "experts": 8, "topk": 6, "routing": "holes", "seed": 2},
    {"tokens": [3], "experts": 8, "topk": 1, "routing": "nothing", "seed": 4},
]


@pytest.mark.parametrize("size", [2, 4])
def test_processes_on_gpus_get_what_the_reference_computes(experts: Ranks, size) -> None:
    found = values(experts.run("low_latency_calls", size, cases=varied(size), device="cuda", layer="triton"))
    assert set(found) <= TRANSPORTS
    assert len(set(found)) == 1


@pytest.mark.parametrize("size", [2, 4])
def test_normal_mode_and_elastic_buffer_do_too(dispatchers: Ranks, elastics: Ranks, size) -> None:
    for ranks in (dispatchers, elastics):
        found = values(ranks.run("on_gpus", size, cases=CASES))
        assert set(found) <= TRANSPORTS
        assert len(set(found)) == 1
