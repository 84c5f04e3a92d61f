"""What goes beyond the original: options of the pipelines, and what they do with memory, groups and shared weights."""

import itertools

import pytest
import torch

import pipeline_cases as cases
from luciola.plugins.dualpipe.executor import message_tag
from luciola.plugins.dualpipe.schedule import Exchange, Schedule, dualpipe, dualpipev
from luciola.plugins.dualpipe.session import SPECIAL
from pipeline_ranks import Answer, Ranks


def values(answers: list[Answer]) -> list:
    for rank, answer in enumerate(answers):
        assert answer.error == "", f"rank {rank}: {answer.error}: {answer.message}"
        assert answer.status == 0
    return [answer.value for answer in answers]


def near(ours, theirs) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


def test_mirror_gradients_of_two_steps_are_summed_once(ranks: Ranks) -> None:
    done = values(ranks.run("options", 4, form="dualpipe", kind="split", chunks=8, reduce=True))
    _, _, grads = cases.alone("split", 4, 8)
    for rank in range(4):
        near(done[rank][2], [[2 * each for each in grads[stage]] for stage in (rank, 3 - rank)])
        assert all(map(torch.equal, done[rank][2][0], done[3 - rank][2][1]))


@pytest.mark.parametrize(("scale", "factor", "kind"), [("mean", 1 / 8, "plain"), (0.25, 0.25, "hooked")])
def test_gradients_can_be_scaled_and_losses_are_not(ranks: Ranks, scale, factor, kind) -> None:
    done = values(ranks.run("options", 2, form="dualpipev", kind=kind, chunks=8, gradient_scale=scale))
    losses, _, grads = cases.alone(kind, 4, 8)
    assert torch.equal(done[0][0], losses)
    for rank in range(2):
        near(done[rank][2], [[2 * factor * each for each in grads[stage]] for stage in (rank, 3 - rank)])


def test_shapes_can_be_declared(ranks: Ranks) -> None:
    done = values(ranks.run("options", 3, form="dualpipev", kind="split", chunks=6, declared=True))
    assert torch.equal(done[0][0], cases.alone("split", 6, 6)[0])


@pytest.mark.parametrize(("form", "size"), [("dualpipe", 4), ("dualpipev", 2)])
def test_first_and_last_stage_can_share_a_parameter(ranks: Ranks, form: str, size: int) -> None:
    count = size if form == "dualpipe" else 2 * size
    model = cases.stages("plain", count)
    model[-1].first.weight = model[0].first.weight
    inputs, labels = cases.batch("plain", 8)
    for x, label in zip(inputs[0].split(cases.SAMPLES), labels[0].split(cases.SAMPLES), strict=True):
        cases.criterion(torch.nn.Sequential(*model)(x), label).backward()
    grads = [[parameter.grad for parameter in stage.parameters()] for stage in model]
    done = values(ranks.run("tied", size, form=form, chunks=8))
    for rank in range(size):
        near(done[rank], [grads[rank], grads[count - 1 - rank]])


def test_an_output_goes_soon_after_it_was_sent_though_it_is_a_view(ranks: Ranks) -> None:
    done = values(ranks.run("memory", 2, chunks=8))
    assert done[0][0] <= 2, "one on its way, one to be sent"
    model = [cases.Viewing().double() for _ in range(4)]
    for x in cases.viewing_batch(8).split(cases.SAMPLES):
        torch.nn.Sequential(*model)(x).sum().backward()
    for rank in range(2):
        near(done[rank][1], [model[rank].scale.grad, model[3 - rank].scale.grad])


def test_pipelines_of_separate_groups_run_at_one_time(ranks: Ranks) -> None:
    done = values(ranks.run("groups", 4, chunks=6))
    losses, _, grads = cases.alone("split", 4, 6)
    assert [each[0] for each in done] == [0, 1, 1, 0]
    for rank, loss, mine in done:
        assert torch.equal(loss, losses) if rank == 0 else loss is None
        near(mine, [grads[rank], grads[3 - rank]])


def test_keys_of_old_steps_leave_the_store(ranks: Ranks) -> None:
    """A barrier makes keys of its own, the same number each time."""
    for early, late in values(ranks.run("keys", 2)):
        assert late - early <= 4


def test_ranks_that_compute_for_long_send_heartbeats(ranks: Ranks) -> None:
    done = values(ranks.run("slow_watchdog", 2, seconds=0.7))
    assert torch.equal(done[0], cases.alone("plain", 4, 4)[0])


def test_tags_keep_messages_apart(ranks: Ranks) -> None:
    done = values(ranks.run("crossing", 2))
    assert done[1] == [[1.0] * 3, [2.0] * 3]


@pytest.mark.parametrize("plan", [dualpipe(4, 40), dualpipe(8, 20), dualpipev(3, 30), dualpipev(6, 13)])
def test_messages_that_may_wait_together_have_different_tags(plan: Schedule) -> None:
    """On each link: those of two exchanges after one another, and any two kinds, flows, boundaries or tensors."""
    for actions in plan.actions:
        exchanges = [action.transfers for action in actions if isinstance(action, Exchange)]
        for one, two in itertools.pairwise(exchanges):
            tags = [
                (type(each), each.peer, message_tag(each, index))
                for each in (*one, *two)
                for index in range(3)
            ]
            assert len(tags) == len(set(tags))
            assert all(0 <= tag < SPECIAL for _, _, tag in tags)
