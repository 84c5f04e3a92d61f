"""Steps of real processes against the same model in one process."""

import pytest
import torch

import pipeline_cases as cases
from pipeline_ranks import Answer, Ranks


def values(answers: list[Answer]) -> list:
    for rank, answer in enumerate(answers):
        assert answer.error == "", f"rank {rank}: {answer.error}: {answer.message}"
        assert answer.status == 0
    return [answer.value for answer in answers]


def assert_near(ours, theirs) -> None:
    """Gradients, by module and parameter."""
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("kind", "size", "chunks"), [("split", 2, 4), ("hooked", 4, 8), ("split", 4, 20), ("hooked", 8, 20)]
)
def test_dualpipe_equals_one_process(ranks: Ranks, size: int, chunks: int, kind: str) -> None:
    done = values(ranks.run("train", size, form="dualpipe", kind=kind, chunks=chunks))
    losses, outputs, grads = cases.alone(kind, size, chunks)
    half, rows = chunks // 2, chunks * cases.SAMPLES // 2
    assert torch.equal(done[0][0], losses[half:])
    assert torch.equal(done[-1][0], losses[:half])
    assert torch.equal(done[0][1], outputs[0][rows:])
    assert torch.equal(done[-1][1], outputs[0][:rows])
    for rank in range(size):
        assert_near(done[rank][2], [grads[rank], grads[size - 1 - rank]])
        mirror = done[size - 1 - rank][2]
        assert all(map(torch.equal, done[rank][2][0], mirror[1])), "both copies have equal bits"
        assert done[rank][3] == size + 1, "peak of live micro-batches"
        assert (done[rank][4] > 0) == (kind == "hooked")
        if 0 < rank < size - 1:
            assert done[rank][:2] == (None, None)


@pytest.mark.parametrize(
    ("kind", "size", "chunks"),
    [("split", 1, 2), ("hooked", 1, 5), ("hooked", 2, 4), ("split", 3, 7), ("hooked", 4, 20)],
)
def test_dualpipev_equals_one_process(ranks: Ranks, size: int, chunks: int, kind: str) -> None:
    done = values(ranks.run("train", size, form="dualpipev", kind=kind, chunks=chunks))
    losses, outputs, grads = cases.alone(kind, 2 * size, chunks)
    assert torch.equal(done[0][0], losses)
    assert torch.equal(done[0][1], outputs[0])
    for rank in range(size):
        assert_near(done[rank][2], [grads[rank], grads[2 * size - 1 - rank]])
        assert (done[rank][4] > 0) == (kind == "hooked")
        if rank:
            assert done[rank][:2] == (None, None)


def test_a_second_step_adds_to_the_gradients(ranks: Ranks) -> None:
    done = values(ranks.run("train", 2, form="dualpipev", kind="plain", chunks=4, steps=2))
    _, _, grads = cases.alone("plain", 4, 4)
    for rank in range(2):
        assert_near(done[rank][2], [[2 * each for each in grads[stage]] for stage in (rank, 3 - rank)])


@pytest.mark.parametrize(("form", "size"), [("dualpipe", 4), ("dualpipev", 2)])
def test_several_tensors_of_other_shapes_cross_each_boundary(ranks: Ranks, form: str, size: int) -> None:
    """Widths differ by boundary, some outputs are not contiguous, whole numbers and None travel without gradients."""
    done = values(ranks.run("train", size, form=form, kind="wide", chunks=8))
    losses, outputs, grads = cases.alone("wide", 4, 8)
    ours = torch.cat([done[-1][0], done[0][0]]) if form == "dualpipe" else done[0][0]
    torch.testing.assert_close(ours, losses, rtol=1e-14, atol=0)
    assert [list(each.shape) for each in done[0][1]] == [
        [each.shape[0] // (2 if form == "dualpipe" else 1), each.shape[1]] for each in outputs
    ]
    for rank in range(size):
        for mine, other in zip(done[rank][2], [grads[rank], grads[3 - rank]], strict=True):
            assert [each is None for each in mine] == [each is None for each in other]
            used = [(one, two) for one, two in zip(mine, other, strict=True) if one is not None]
            assert used
            assert_near([[one for one, _ in used]], [[two for _, two in used]])


@pytest.mark.parametrize(
    ("form", "size", "chunks"), [("dualpipe", 4, 10), ("dualpipev", 3, 7), ("dualpipev", 1, 3)]
)
def test_inference_is_equal_to_the_bit(ranks: Ranks, form: str, size: int, chunks: int) -> None:
    done = values(ranks.run("infer", size, form=form, kind="split", chunks=chunks))
    count = size if form == "dualpipe" else 2 * size
    losses, outputs, _ = cases.alone("split", count, chunks, gradients=False)
    parts = (done[-1], done[0]) if form == "dualpipe" else (done[0],)
    assert torch.equal(torch.cat([each[0] for each in parts]), losses)
    assert torch.equal(torch.cat([each[1] for each in parts]), outputs[0])


@pytest.mark.parametrize(("form", "size", "chunks"), [("dualpipe", 4, 8), ("dualpipev", 3, 7)])
def test_batches_without_tags_do_not_lock_and_arrive_in_order(
    ranks: Ranks, form: str, size: int, chunks: int
) -> None:
    """The way of a GPU, on a process group that matches by order as NCCL does."""
    done = values(ranks.run("train", size, form=form, kind="split", chunks=chunks, group=True))
    count = size if form == "dualpipe" else 2 * size
    losses, _, grads = cases.alone("split", count, chunks)
    ours = torch.cat([done[-1][0], done[0][0]]) if form == "dualpipe" else done[0][0]
    assert torch.equal(ours, losses)
    for rank in range(size):
        assert_near(done[rank][2], [grads[rank], grads[count - 1 - rank]])
