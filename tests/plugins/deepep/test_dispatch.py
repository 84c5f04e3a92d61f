"""Normal mode: dispatch bit by bit, combine to the bit of its own order of sums, whatever the ranks hold."""

import pytest

from expert_inputs import values
from pipeline_ranks import Ranks

pytestmark = pytest.mark.timeout(300)  # torch takes a minute to import on a very busy machine


CASES = [
    {"tokens": [5, 0, 1, 7], "experts": 16, "topk": 4, "routing": "random", "seed": 1},
    {"tokens": [9, 30], "experts": 64, "topk": 8, "routing": "holes", "seed": 2},
    {"tokens": [0], "experts": 8, "topk": 2, "routing": "random", "seed": 3},
    {"tokens": [3], "experts": 8, "topk": 1, "routing": "nothing", "seed": 4},
    {"tokens": [12, 4], "experts": 512, "topk": 9, "routing": "hot", "seed": 5},
    {"tokens": [6], "experts": 8, "topk": 8, "routing": "random", "seed": 6, "hidden": 384},
    {"tokens": [20], "experts": 16, "topk": 2, "routing": "first rank", "seed": 7, "hidden": 40},
    {"tokens": [17, 1], "experts": 32, "topk": 3, "routing": "one sender", "seed": 8},
]


@pytest.mark.parametrize(("size", "cases"), [(1, CASES[:2]), (2, CASES[::2]), (4, CASES[1::2])])
def test_all_call_patterns_on_one_node(dispatchers: Ranks, size, cases) -> None:
    assert values(dispatchers.run("exact", size, cases=cases)) == ["shared-memory"] * size


@pytest.mark.parametrize("size", [2, 3])
def test_all_call_patterns_between_hosts(dispatchers: Ranks, size) -> None:
    answers = dispatchers.run("exact", size, cases=CASES[size % 2 :: 2], transport="collectives")
    assert values(answers) == ["collectives"] * size


def test_small_buffers_take_many_turns(dispatchers: Ranks) -> None:
    """Some 30 rows of 1.2 kB and of 768 bytes, in a buffer of 11 kB for each rank."""
    cases = [{**each, "hidden": 384} for each in CASES[1::4]]
    values(dispatchers.run("exact", 3, cases=cases, num_bytes=20_000))


def test_the_checks_of_the_original_hold(dispatchers: Ranks) -> None:
    values(dispatchers.run("original", 2, tokens=40, hidden=256, experts=64, topk=8))


def test_kernels_and_the_native_module_write_the_same_memory(dispatchers: Ranks) -> None:
    """Every second rank runs the Triton kernels, in the interpreter."""
    case = {"tokens": [3, 2], "experts": 8, "topk": 3, "routing": "holes", "seed": 1}
    values(dispatchers.run("exact", 2, cases=[case], layers=("triton", "reference")))


def test_kernels_that_wait_do_the_same(dispatchers: Ranks) -> None:
    """As over NVLink, in the interpreter: calls of which the host counts nothing, and in turns those that it counts."""
    case = {"tokens": [3, 2], "experts": 4, "topk": 2, "routing": "holes", "seed": 2}
    answers = dispatchers.run("exact", 2, cases=[case], layers=("triton",), spinning=True, num_bytes=1 << 18)
    assert values(answers) == ["spinning"] * 2
