"""Normal mode: dispatch bit by bit, combine to the bit of its own order of sums, whatever the ranks hold."""

from typing import Any

import pytest

from pipeline_ranks import Answer, Ranks

pytestmark = pytest.mark.timeout(300)  # torch takes a minute to import on a very busy machine


def values(answers: list[Answer]) -> list[Any]:
    assert [each.message for each in answers] == [""] * len(answers)
    assert [each.status for each in answers] == [0] * len(answers)
    return [each.value for each in answers]


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


@pytest.mark.parametrize(("size", "cases"), [(1, CASES), (2, CASES), (4, CASES[1::2]), (8, CASES[::2])])
def test_all_call_patterns_on_one_node(dispatchers: Ranks, size, cases) -> None:
    assert values(dispatchers.run("exact", size, cases=cases)) == ["shared-memory"] * size


@pytest.mark.parametrize(("size", "nodes", "cases"), [(4, 2, CASES), (6, 3, CASES[::3]), (8, 2, CASES[1::3])])
def test_all_call_patterns_on_several_nodes(dispatchers: Ranks, size, nodes, cases) -> None:
    assert values(dispatchers.run("exact", size, nodes=nodes, cases=cases)) == ["shared-memory"] * size


@pytest.mark.parametrize(
    ("size", "nodes", "transport"),
    [(3, 1, "messages"), (4, 2, "messages"), (4, 2, "mixed"), (3, 1, "collectives")],
)
def test_all_call_patterns_over_messages(dispatchers: Ranks, size, nodes, transport) -> None:
    answers = dispatchers.run("exact", size, nodes=nodes, cases=CASES[::2], transport=transport)
    assert values(answers) == [transport] * size


@pytest.mark.parametrize(
    ("size", "nodes", "transport", "num_bytes"),
    [(3, 1, "auto", 75_000), (4, 2, "auto", 75_000), (3, 1, "messages", 225_000)],
)
def test_small_buffers_take_many_turns(dispatchers: Ranks, size, nodes, transport, num_bytes) -> None:
    """Some 30 tokens of 3 kB and of 768 bytes, in a buffer of 4 kB for each half of each rank."""
    cases = [{**each, "hidden": 384} for each in CASES[1::4]]
    values(dispatchers.run("exact", size, nodes=nodes, cases=cases, transport=transport, num_bytes=num_bytes))


@pytest.mark.parametrize(("size", "nodes"), [(2, 1), (4, 2), (8, 1)])
def test_the_checks_of_the_original_hold(dispatchers: Ranks, size, nodes) -> None:
    values(dispatchers.run("original", size, nodes=nodes, tokens=40, hidden=256, experts=64, topk=8))


@pytest.mark.parametrize(("size", "nodes"), [(2, 1), (4, 2)])
def test_kernels_and_torch_write_the_same_memory(dispatchers: Ranks, size, nodes) -> None:
    """Every second rank runs the Triton kernels, in the interpreter."""
    values(dispatchers.run("exact", size, nodes=nodes, cases=CASES[:2], layers=("triton", "reference")))


def test_kernels_that_wait_do_the_same(dispatchers: Ranks) -> None:
    """As over NVLink, in the interpreter: calls of which the host counts nothing, and in turns those that it counts."""
    case = {"tokens": [3, 2], "experts": 4, "topk": 2, "routing": "holes", "seed": 2}
    answers = dispatchers.run("exact", 2, cases=[case], layers=("triton",), spinning=True, num_bytes=1 << 18)
    assert values(answers) == ["spinning"] * 2
