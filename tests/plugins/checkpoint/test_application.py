"""Models, optimizers, schedulers, loaders and random states resume exactly; nothing is left out silently."""

import random

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

from luciola.errors import InvalidArgument
from luciola.plugins.checkpoint import Checkpoints, RandomState, Reader, latest
from pipeline_ranks import Ranks

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")


class Loader:
    """A loader's state: where it is."""

    def __init__(self, sample=0):
        self.sample = sample

    def state_dict(self):
        return {
            "sample": self.sample,
            "weights": {0: 0.5},
        }  # a key that torch's flattening would turn into text

    def load_state_dict(self, state):
        assert state["weights"] == {0: 0.5}
        self.sample = state["sample"]


class Scaler:
    def __init__(self, scale):
        self.scale = scale

    def state_dict(self):
        return {"scale": self.scale}

    def load_state_dict(self, state):
        self.scale = state["scale"]


class Job:
    """A training whose every step depends on all that it consists of."""

    def __init__(self, seed, optimizer="adam"):
        torch.manual_seed(seed)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3)
        )
        self.unused = self.model.append(torch.nn.Linear(2, 2))[-1]  # a parameter without gradients, ever
        make = {
            "adam": lambda p: torch.optim.AdamW(p, lr=0.1, foreach=False),
            "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5),
            "plain": lambda p: torch.optim.SGD(p, lr=0.1),
        }
        self.optimizer = make[optimizer](self.model.parameters())
        self.scheduler = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, [2, 4], gamma=0.5)
        self.loader = Loader()

    def parts(self):
        return {
            "model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler, "loader": self.loader,
            "per_rank": RandomState(),
        }  # fmt: skip

    def train(self, steps):
        for _ in range(steps):
            self.optimizer.zero_grad()
            batch = torch.randn(4, 5) + random.random() + self.loader.sample + np.random.random()  # noqa: NPY002
            self.model[:3](batch).square().sum().backward()
            self.optimizer.step()
            self.scheduler.step()
            self.loader.sample += 4

    def weights(self):
        return torch.cat([each.flatten() for each in self.model.state_dict().values()])


@pytest.mark.parametrize("optimizer", ["adam", "momentum", "plain"])
@pytest.mark.parametrize("stop", [0, 3])
def test_training_that_is_resumed_equals_one_without_a_stop(tmp_path, optimizer, stop):
    job = Job(1, optimizer)
    job.train(stop)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.async_save(stop, **job.parts())
        job.train(3)
    other = Job(2, optimizer)
    other.train(0 if stop else 1)  # of a fresh one and of one that has moments
    torch.manual_seed(77)
    assert checkpoints.load(**other.parts()) == stop
    assert all(len(entry) for entry in other.optimizer.state.values())
    assert not other.optimizer.state.get(other.unused.weight)
    other.train(3)
    assert torch.equal(other.weights(), job.weights())
    assert other.loader.sample == job.loader.sample
    assert other.scheduler.state_dict() == job.scheduler.state_dict()


def test_save_before_the_first_step_does_not_change_the_optimizer(tmp_path):
    saved, alone = Job(1), Job(1)
    Checkpoints(tmp_path).save(0, **saved.parts())
    assert len(saved.optimizer.state) == 0
    for job in (saved, alone):
        torch.manual_seed(3), random.seed(3), np.random.seed(3)  # noqa: NPY002
        job.train(2)
    assert torch.equal(saved.weights(), alone.weights())


def test_load_that_finds_nothing_or_fails_does_not_change_the_optimizer(tmp_path):
    job = Job(1)
    assert Checkpoints(tmp_path).load(**job.parts()) is None
    trained = Job(2)
    trained.train(1)
    Checkpoints(tmp_path).save(1, model=trained.model, optimizer=trained.optimizer)
    with pytest.raises(CheckpointException, match="Missing key in checkpoint state_dict: scheduler"):
        Checkpoints(tmp_path).load(model=job.model, optimizer=job.optimizer, scheduler=job.scheduler)
    assert len(job.optimizer.state) == 0


def test_entries_that_are_not_asked_for_are_an_error_unless_allowed(tmp_path):
    job = Job(1)
    job.train(1)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"losses": torch.ones(3), "note": "text", "none": torch.ones(0)}, **job.parts())
    state = {"losses": torch.zeros(3)}
    with pytest.raises(
        CheckpointException, match=r"not asked for: loader\.00000, note, optimizer\.param_groups"
    ):
        checkpoints.load(state, model=job.model)
    assert not state["losses"].any(), "the error comes before anything is read"
    allowed = ["optimizer.*", "loader.*", "per_rank.*", "scheduler", "note"]
    assert checkpoints.load(state, model=job.model, allow_unused=allowed) == 1
    assert state["losses"].all()
    assert checkpoints.load(state, allow_unused="*") == 1
    assert "optimizer.state.0.weight.exp_avg" in Reader(latest(tmp_path)).names()


def test_state_beside_the_parts(tmp_path):
    job, scaler = Job(1), Scaler(9)
    state = {"scaler": scaler, "losses": torch.ones(3), "best": 0.5}
    Checkpoints(tmp_path).save(1, state, model=job.model)
    scaler.scale = 0
    state = {"scaler": scaler, "losses": torch.zeros(3), "best": None}
    Checkpoints(tmp_path).load(state, model=job.model)
    assert (scaler.scale, state["losses"].sum(), state["best"]) == (9, 3, 0.5)
    assert state["scaler"] is scaler


def test_invalid_arguments_are_refused(tmp_path):
    job = Job(1)
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(InvalidArgument, match="optimizer= without model="):
        checkpoints.save(1, optimizer=job.optimizer)
    with pytest.raises(InvalidArgument, match=r"state has \['model'\] too"):
        checkpoints.save(1, {"model": 1}, model=job.model)
    for step in (-1, 1.0, "1", True, torch.tensor(1.5)):
        with pytest.raises(ValueError, match="step is a number from 0 on"):
            checkpoints.save(step, {"x": 1})
        with pytest.raises(ValueError, match="step is a number from 0 on"):
            checkpoints.load({"x": 1}, step=step)


def test_every_integer_is_a_step(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (np.int64(7), torch.tensor(8), 9):
        checkpoints.save(step, {"x": 1})
    assert [saved.step for saved in checkpoints.list()] == [7, 8, 9]
    assert checkpoints.load({"x": 0}, step=np.uint8(8)) == 8


def test_two_optimizers_of_one_model(tmp_path):
    def made(seed):
        torch.manual_seed(seed)
        model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
        return model, [
            torch.optim.Adam(layer.parameters(), lr=0.1 * (n + 1)) for n, layer in enumerate(model)
        ]

    def train(model, optimizers):
        for _ in range(2):
            model(torch.ones(2, 3)).sum().backward()
            for each in optimizers:
                each.step()
                each.zero_grad()

    model, optimizers = made(1)
    train(model, optimizers)
    Checkpoints(tmp_path).save(1, model=model, optimizer=optimizers)
    train(model, optimizers)
    other, others = made(2)
    Checkpoints(tmp_path).load(model=other, optimizer=others)
    train(other, others)
    assert torch.equal(other[0].weight, model[0].weight)
    assert torch.equal(other[1].weight, model[1].weight)


# Ranks.


def test_each_rank_loads_its_own_and_other_numbers_of_ranks_only_equal_states(
    checkpoint_ranks: Ranks, tmp_path
):
    def values(case, size, **arguments):
        answers = checkpoint_ranks.run(case, size, root=str(tmp_path), **arguments)
        assert [(answer.error, answer.message) for answer in answers] == [("", "")] * size
        return [answer.value for answer in answers]

    sums = values("save_application", 2)
    assert sums[0] == sums[1]
    assert values("load_application", 2, own=True) == [(4, rank, sums[0]) for rank in range(2)]
    assert values("load_application", 1, own=False) == [(4, None, sums[0])]
    (refused,) = checkpoint_ranks.run("load_application", 1, root=str(tmp_path), own=True)
    assert "per_rank= was saved by 2 ranks with different states, and 1 load" in refused.message
