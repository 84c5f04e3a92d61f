"""What goes wrong in normal mode ends with an error that names what and whose."""

import signal

import pytest

from expert_inputs import values
from pipeline_ranks import Ranks

pytestmark = pytest.mark.timeout(300)  # torch takes a minute to import on a very busy machine


@pytest.mark.parametrize(
    ("size", "transport", "call"),
    [(2, "shared-memory", "dispatch"), (4, "shared-memory", "combine"), (3, "collectives", "dispatch")],
)
def test_a_killed_rank_is_blamed_by_all_others(dispatchers: Ranks, size, transport, call) -> None:
    bad = size // 2
    answers = dispatchers.run("killed", size, transport=transport, bad=bad, call=call)
    assert answers.pop(bad).status == signal.SIGKILL
    for kind, text, noticed_by, peer in values(answers):
        assert (kind, peer) == ("PeerLost", bad)
        assert noticed_by != bad
        assert text.startswith(f"rank {noticed_by}, ")
        assert f"rank {bad}" in text
        assert "dispatch" in text or "combine" in text


DISAGREEMENTS = {
    "hidden": "hidden size = 128, rank 3 has 256",
    "experts": "num_experts = 16, rank 3 has 128",
    "top-k": "topk_idx = torch.int64 of shape (tokens, 4), rank 3 has torch.int64 of shape (tokens, 3)",
    "call": "call = dispatch, rank 3 has combine",
    "cached": "call = dispatch, rank 3 has cached dispatch",
    "combine": "hidden size = 128, rank 3 has 256",
}


@pytest.mark.parametrize("transport", ["shared-memory", "collectives"])
def test_ranks_that_call_differently_get_an_error_and_continue(dispatchers: Ranks, transport) -> None:
    errors = values(dispatchers.run("disagreeing", 4, transport=transport))
    for about, words in DISAGREEMENTS.items():
        for answers in errors:
            kind, text, _, peer = answers[about]
            assert (kind, peer) == ("RanksDisagree", 3)
            assert words in text


def test_bad_arguments_are_refused_with_what_is_allowed(dispatchers: Ranks) -> None:
    answers = values(dispatchers.run("refused", 2))
    assert answers[0] == answers[1]
    assert [kind for kind, _ in answers[0]] == [
        "BadArgument", "BadType", "BadArgument", "BadArgument", "BadArgument", "BadArgument", "BadType", "BadArgument",
        "BadArgument", "BadArgument", "AssertionError", "BadCall", "BadArgument", "BadCall", "BadCall", "BadArgument",
        "BadArgument", "BadArgument", "BadType", "AssertionError", "BadType", "BadArgument", "BadArgument",
        "BadArgument", "BadArgument", "AssertionError", "AssertionError",
    ]  # fmt: skip
    assert all(len(text) > 20 for _, text in answers[0])


@pytest.mark.parametrize(("size", "transport"), [(3, "shared-memory"), (2, "collectives")])
def test_arguments_that_one_rank_refuses_end_the_call_of_all(dispatchers: Ranks, size, transport) -> None:
    """At once, with an error that names it; the next call works."""
    for rank, errors in enumerate(values(dispatchers.run("refused_alone", size, transport=transport))):
        assert len(errors) == 3 * size
        for number, (kind, text, peer) in enumerate(errors):
            odd = number // 3
            if rank == odd:
                assert kind == ("BadType" if number % 3 == 0 else "BadArgument")
            else:
                assert (kind, peer) == ("RanksDisagree", odd)
                assert f"rank {odd} has refused its arguments: Bad" in text


def test_a_communicator_of_mpi_is_enough(dispatchers: Ranks) -> None:
    for name, text in values(dispatchers.run("by_communicator", 3)):
        assert name == "shared-memory"
        assert "give a torch.distributed process group" in text


def test_a_rank_that_leaves_a_call_reports_it(dispatchers: Ranks) -> None:
    first, *others = values(dispatchers.run("left", 3))
    assert first[0] == "KeyboardInterrupt"
    for kind, text in others:
        assert kind == "CommunicationError"
        assert "rank 0 has left the call: KeyboardInterrupt" in text


def test_a_result_that_is_too_small_is_one_ranks_error(dispatchers: Ranks) -> None:
    first, *others = values(dispatchers.run("worst_is_too_small", 3))
    assert first == ["num_worst_tokens is 31; 90 tokens arrived at rank 0"]
    assert others == [[], []]
