"""A rank that fails: every rank learns of it and why, and those that live can continue.

Pipelines have their default timeout here, 300 s, unless a case says otherwise; the harness kills ranks that have not
ended after 250 s, and their answers are then missing. So each of these tests fails if a rank hangs.
"""

import signal

import pytest
import torch

import pipeline_cases as cases
from pipeline_ranks import Answer, Ranks


def learned(answers: list[Answer], *, without: int | None = None) -> list[tuple[str, str, str]]:
    """What each living rank's step raised: type, text and cause."""
    result = []
    for rank, answer in enumerate(answers):
        if rank == without:
            continue
        assert answer.error == "", f"rank {rank}: {answer.error}: {answer.message}"
        assert answer.status == 0, f"rank {rank}"
        result.append(answer.value)
    return result


@pytest.mark.parametrize(
    ("form", "size", "chunks", "bad", "call"),
    [("dualpipe", 4, 8, 2, 1), ("dualpipe", 4, 8, 3, 4), ("dualpipev", 3, 8, 1, 5)],
)
def test_a_rank_that_is_killed_is_named_everywhere(ranks: Ranks, form, size, chunks, bad, call) -> None:
    answers = ranks.run(
        "fault", size, form=form, kind="split", chunks=chunks, bad=bad, fault="killed", call=call
    )
    assert answers[bad].status == signal.SIGKILL
    for (kind, text, _), _ in learned(answers, without=bad):
        assert kind == "PipelineError"
        assert f"lost pipeline rank {bad}" in text
        assert "process has ended" in text


def test_the_rank_that_hosts_the_store_is_killed(ranks: Ranks) -> None:
    """No rank can report to another then, but each finds out by itself."""
    answers = ranks.run("fault", 4, form="dualpipe", kind="split", chunks=8, bad=0, fault="killed", call=3)
    for (kind, text, _), _ in learned(answers, without=0):
        assert kind == "PipelineError"
        assert "store is lost" in text


def test_a_rank_that_is_stopped_is_noticed_after_the_timeout(ranks: Ranks) -> None:
    answers = ranks.run(
        "fault", 3, form="dualpipev", kind="split", chunks=8, bad=1, fault="stopped", call=3, timeout_s=3.0
    )
    assert answers[1].status == signal.SIGKILL, "by a rank that had learned of it"
    texts = [text for (_, text, _), _ in learned(answers, without=1)]
    assert texts[0] == texts[1]
    assert "pipeline rank 1" in texts[0].split(": ", 1)[1]
    assert "waited 3 s" in texts[0] or "no heartbeat" in texts[0]


@pytest.mark.parametrize(
    ("form", "fault", "words"),
    [
        (
            "dualpipev",
            "raises",
            "Forward of stage 1, micro-batch 2 of flow 0 (F0:2): ArithmeticError: no luck in this stage",
        ),
        (
            "dualpipe",
            "wrong_shape",
            "(F0:2): ValueError: its output is float64[2, 5], but boundary 1 (to stage 2) carries float64[2, 6]",
        ),
        (
            "dualpipe",
            "wrong_dtype",
            "its output is float32[2, 6], but boundary 1 (to stage 2) carries float64[2, 6]",
        ),
        (
            "dualpipev",
            "wrong_count",
            "its output is float64[2, 6], float64[2, 6], but boundary 1 (to stage 2) carries float64[2, 6]",
        ),
        (
            "dualpipe",
            "no_tensor",
            "TypeError: Faulty must return a tensor or a list or tuple of tensors, not str",
        ),
    ],
)
def test_a_stage_that_fails_is_reported_to_all_and_the_next_step_works(
    ranks: Ranks, form, fault, words
) -> None:
    answers = ranks.run("fault", 4, form=form, kind="split", chunks=8, bad=1, fault=fault, call=3)
    results = learned(answers)
    for rank, ((kind, text, cause), _) in enumerate(results):
        assert kind == "PipelineError"
        assert text.startswith("pipeline rank 1, Forward of stage 1")
        assert words in text
        assert rank != 1 or "Error(" in cause, "the failing rank keeps the exception itself"
    losses = [loss for _, loss in results if loss is not None]
    assert torch.equal(torch.cat(losses[::-1]), cases.alone("split", 4 if form == "dualpipe" else 8, 8)[0])


def test_a_rank_that_leaves_in_a_step_is_reported(ranks: Ranks) -> None:
    """SystemExit passes through, and the others learn."""
    answers = ranks.run("fault", 2, form="dualpipev", kind="split", chunks=8, bad=1, fault="exits", call=2)
    assert answers[1].error == "SystemExit"
    (kind, text, _), _ = learned(answers, without=1)[0]
    assert kind == "PipelineError"
    assert "SystemExit: 3" in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("chunks", "num_chunks = "),
        ("inference", "the schedule = "),
        ("shapes", "p2p shapes = "),
        ("scale", "gradient_scale = "),
        ("absent", "waited 3 s for pipeline rank 1 to begin"),
    ],
)
def test_ranks_that_do_not_agree_are_refused(ranks: Ranks, change: str, words: str) -> None:
    answers = learned(ranks.run("disagree", 4, form="dualpipe", chunks=8, change=change))
    for rank, (kind, text, _) in enumerate(answers):
        if change == "absent" and rank == 1:
            continue
        assert kind == "PipelineError"
        assert words in text
        assert text == answers[0][1]


@pytest.mark.parametrize(
    ("form", "change", "kind", "words"),
    [
        (
            "dualpipe",
            "no inputs",
            "ValueError",
            "rank 3 holds the first stage: step needs its share of the batch",
        ),
        (
            "dualpipe",
            "uneven",
            "ValueError",
            "input 0 has 7 samples along dimension 0, which do not make 4 equal",
        ),
        ("dualpipev", "no criterion", "ValueError", "rank 0 holds the last stage: step needs a criterion"),
        ("dualpipe", "labels", "TypeError", "labels must be a list or tuple of tensors, not Tensor"),
        ("dualpipev", "not a tensor", "TypeError", "input 0 must be a tensor or None, not int"),
        (
            "dualpipe",
            "vector loss",
            "PipelineError",
            "the criterion must return a tensor with one element, not [2, 6]",
        ),
        (
            "dualpipev",
            "criterion",
            "PipelineError",
            "AttributeError: 'Tensor' object has no attribute 'no_such_thing'",
        ),
    ],
)
def test_bad_arguments_of_one_rank_end_the_step_of_all(ranks: Ranks, form, change, kind, words) -> None:
    answers = learned(ranks.run("argument", 4, form=form, change=change))
    bad = 3 if form == "dualpipe" else 0
    assert answers[bad][0] == kind
    for rank, (name, text, _) in enumerate(answers):
        assert words in text
        assert rank == bad or (name == "PipelineError" and text.startswith(f"pipeline rank {bad}, "))


def test_copies_of_a_stage_that_differ_are_named(ranks: Ranks) -> None:
    for kind, text, _ in learned(ranks.run("unlike", 2)):
        assert kind == "PipelineError"
        assert (
            "the copies of a stage differ: parameter 0 is ['0.weight', [6, 6]" in text
            or "['first.weight'" in text
        )
