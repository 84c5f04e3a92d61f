"""`ElasticBuffer`: dispatch, expansion and combine bit by bit, whatever the ranks hold; and its other calls."""

import pytest

from expert_inputs import values
from pipeline_ranks import Ranks

pytestmark = pytest.mark.timeout(300)  # torch takes a minute to import on a very busy machine


CASES = [
    {"tokens": [5, 0, 1, 7], "experts": 16, "topk": 4, "routing": "random", "seed": 1},
    {"tokens": [9, 30], "experts": 8, "topk": 6, "routing": "holes", "seed": 2},
    {"tokens": [0], "experts": 8, "topk": 2, "routing": "random", "seed": 3},
    {"tokens": [3], "experts": 8, "topk": 1, "routing": "nothing", "seed": 4},
    {"tokens": [12, 4], "experts": 64, "topk": 9, "routing": "hot", "seed": 5},
    {"tokens": [6], "experts": 8, "topk": 8, "routing": "random", "seed": 6, "hidden": 384},
    {"tokens": [17, 1], "experts": 32, "topk": 3, "routing": "one sender", "seed": 8},
]


@pytest.mark.parametrize(("size", "cases"), [(1, CASES[1:2]), (2, CASES[1::2]), (4, CASES[::2])])
def test_all_call_patterns(elastics: Ranks, size, cases) -> None:
    assert values(elastics.run("exact", size, cases=cases)) == ["shared-memory"] * size


@pytest.mark.parametrize(
    ("size", "options"),
    [
        (2, {"allow_multiple_reduction": False}),
        (3, {"num_bytes": 20_000}),
    ],
)
def test_all_call_patterns_in_other_ways(elastics: Ranks, size, options) -> None:
    assert values(elastics.run("exact", size, cases=CASES[1:2], **options)) == ["shared-memory"] * size


def test_the_checks_of_the_original_hold(elastics: Ranks) -> None:
    """Against references that use nothing of the plugin."""
    values(elastics.run("original", 2, tokens=20, hidden=256, experts=32, topk=6))


def test_kernels_do_the_same(elastics: Ranks) -> None:
    """In the interpreter: sums in the order of experts, over memory that the other process writes."""
    case = {"tokens": [3, 2], "experts": 8, "topk": 3, "routing": "holes", "seed": 2}
    values(elastics.run("exact", 2, cases=[case], layer="triton", allow_multiple_reduction=False))


def test_bad_arguments_are_refused_with_what_is_allowed(elastics: Ranks) -> None:
    answers = values(elastics.run("refused", 2))
    assert [kind for kind, _ in answers[0]] == [kind for kind, _ in answers[1]] == [
        "BadCall", "BadCall", "BadType", "BadType", "BadArgument", "BadArgument", "BadArgument", "BadArgument",
        "BadArgument", "BadArgument", "BadArgument", "BadArgument", "BadArgument", "BadCall", "BadCall", "BadCall",
        "BadArgument", "BadCall", "BadType", "BadArgument", "BadArgument", "BadArgument", "BadCall", "BadCall",
        "BadCall", "BadArgument", "BadCall", "BadArgument", "BadCall", "BadArgument", "BadType", "BadArgument",
        "BadArgument", "BadArgument", "BadArgument", "BadArgument",
    ]  # fmt: skip
    assert all(len(text) > 20 for _, text in answers[0])


def test_ranks_that_call_differently_get_an_error_and_continue(elastics: Ranks) -> None:
    size = 3
    words = {
        "experts": "num_experts = 24, rank {} has 48",
        "limit": "num_max_tokens_per_rank = 8, rank {} has 9",
        "cached": "call = elastic dispatch, rank {} has elastic cached dispatch",
        "handle": "handle = of dispatch 1, rank {} has of dispatch 2",
        "refused": "x has dtype torch.float32; it must be torch.bfloat16",
    }
    for rank, errors in enumerate(values(elastics.run("differing", size))):
        for about, text in words.items():
            is_odd = about == "refused" and rank == size - 1
            assert errors[about][::3] == (("BadType", -1) if is_odd else ("RanksDisagree", size - 1))
            assert text.format(size - 1) in errors[about][1]


def test_tensors_are_gathered_in_sessions(elastics: Ranks) -> None:
    assert values(elastics.run("gathered", 3)) == ["shared-memory"] * 3


@pytest.mark.parametrize("size", [2, 3])
def test_tensors_go_around_a_ring(elastics: Ranks, size) -> None:
    for errors in values(elastics.run("sent", size)):
        assert errors[0].endswith(": call pp_set_config on all ranks first")
        assert "neighbours of rank" in errors[1]
        assert "1 to 4096 bytes" in errors[2]


def test_entries_are_fetched_by_number(elastics: Ranks) -> None:
    for text in values(elastics.run("fetched", 3)):
        assert "entries are 0 to 59" in text
