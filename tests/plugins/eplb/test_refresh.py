"""Placements that follow the loads while a model runs: all ranks change at one step, or none does, and none waits."""

import threading
import weakref

import pytest
import torch
from safetensors.torch import save_file

from luciola.client import LocalFileSystem
from luciola.plugins.eplb import (
    ExpertNames,
    ExpertRefresher,
    LoadRecorder,
    RefreshFailed,
    load_experts,
    moves_between,
    rebalance_experts,
)
from luciola.plugins.weights import Checkpoint

LAYERS, EXPERTS, SLOTS, GPUS = 2, 8, 12, 2
NAMES = ExpertNames("layers.{layer}.{expert}.{name}")
EVERY, LEAD = 5, 2
# A planner may take as long as it likes: a test lets it continue when it has seen what it wants to see.
WAIT_S = 60


def weight_of(layer, expert):
    return torch.full((3,), 100.0 * layer + expert)


class Store(Checkpoint):
    """A checkpoint that remembers the memory it was asked to fill, as long as anybody else does."""

    def read_slices(self, slices, **named):
        self.targets = [weakref.ref(each.target.untyped_storage()) for each in slices]
        return super().read_slices(slices, **named)


@pytest.fixture
def store(tmp_path):
    tensors = {
        f"layers.{layer}.{expert}.w": weight_of(layer, expert)
        for layer in range(LAYERS)
        for expert in range(EXPERTS)
    }
    save_file(tensors, tmp_path / "m.safetensors")
    return lambda: Store(LocalFileSystem(), str(tmp_path / "m.safetensors"))


class Threads:
    """Ranks that are threads of this process; a rank that does not come breaks the others' barrier."""

    def __init__(self, size):
        self.barrier = threading.Barrier(size, timeout=WAIT_S)
        self.given = [None] * size
        self.rank = threading.local()

    def gather(self, mine):
        self.given[self.rank.value] = mine
        self.barrier.wait()
        everyone = list(self.given)
        self.barrier.wait()
        return everyone

    def add(self, values):
        return torch.stack(self.gather(values)).sum(0)

    def run(self, work):
        """What each rank's work has returned or raised."""
        results = [None] * len(self.given)

        def one(rank):
            self.rank.value = rank
            try:
                results[rank] = work(rank)
            except BaseException as error:  # noqa: BLE001 (looked at by the test)
                results[rank] = error

        threads = [threading.Thread(target=one, args=(rank,), daemon=True) for rank in range(len(self.given))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        assert not any(thread.is_alive() for thread in threads), "a rank hangs"
        return results


class Rank:
    """One GPU: recorder, slots, and a refresher over them."""

    def __init__(self, store, gpu=0, **named):
        self.checkpoint, self.gpu = store(), gpu
        self.recorder = LoadRecorder(LAYERS, EXPERTS, half_life_steps=2)
        first = rebalance_experts(torch.ones(LAYERS, EXPERTS), SLOTS, 1, 1, GPUS)[0]
        self.slots = [{"w": torch.zeros(SLOTS // GPUS, 3)} for _ in range(LAYERS)]
        load_experts(self.checkpoint, self.slots, first, names=NAMES, gpu=gpu, num_gpus=GPUS)
        self.checkpoint.targets = []  # those were the slots
        usual = {"every_steps": EVERY, "lead_steps": LEAD, "names": NAMES, "gpu": gpu, "num_gpus": GPUS}
        self.refresher = ExpertRefresher(self.recorder, self.checkpoint, self.slots, first, **(usual | named))

    def step(self, ids):
        for layer in range(LAYERS):
            self.recorder.record(layer, torch.tensor(ids))
        self.recorder.step()
        return self.refresher.step()

    def require(self, placement):
        size = SLOTS // GPUS
        for layer, row in enumerate(placement[:, self.gpu * size : (self.gpu + 1) * size].tolist()):
            assert torch.equal(self.slots[layer]["w"], torch.stack([weight_of(layer, each) for each in row]))


HEAVY = [7] * 50 + list(range(EXPERTS))


def test_the_slots_change_at_the_agreed_step_and_not_before(store):
    rank = Rank(store)
    first = rank.refresher.placement
    for step in range(1, 2 * EVERY):
        changed = rank.step(HEAVY)
        assert changed == (step == EVERY + LEAD)
        if not changed and step < EVERY + LEAD:
            rank.require(first)
            assert rank.refresher.placement is first
    rank.require(rank.refresher.placement)
    # The loads that were met: expert 7 has 51 of 58 tokens, so it has a replica on each GPU, and all spare slots.
    loads = torch.tensor([[1.0] * 7 + [51.0]] * LAYERS)
    wanted = rebalance_experts(loads, SLOTS, 1, 1, GPUS, policy="optimal")
    assert torch.equal(rank.refresher.placement.sort().values, wanted[0].sort().values)
    assert rank.refresher.report.read == len(
        [each for each in moves_between(first, rank.refresher.placement, GPUS) if each.gpu == 0]
    )
    assert all(each() is None for each in rank.checkpoint.targets), "staged memory is kept"


def test_a_budget_limits_each_change_and_memory_may_be_limited_too(store):
    loads = list(range(EXPERTS)) + [0] * 20 + [1] * 9
    rank = Rank(store, budget=1)
    first = rank.refresher.placement
    assert [rank.step(loads) for _ in range(EVERY + LEAD)][-1]
    assert len(moves_between(first, rank.refresher.placement, GPUS)) <= 1
    rank.require(rank.refresher.placement)
    small = Rank(store, planner=lambda _, current: current.flip(1), staging_bytes_max=12)
    for _ in range(EVERY + LEAD - 1):
        small.step(HEAVY)
    with pytest.raises(
        RefreshFailed, match=r"rank 0: ValueError: \d+ bytes .* more than 12: plan fewer moves"
    ):
        small.step(HEAVY)
    small.require(first)


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt])
def test_a_rank_that_fails_is_named_by_all_and_the_next_round_works(store, kind):
    ranks = Threads(2)
    attempts = [0, 0]

    def work(gpu):
        def planner(loads, current):
            attempts[gpu] += 1
            if gpu == 1 and attempts[gpu] == 1:
                raise kind("out of luck")
            return current.flip(1)

        rank = Rank(store, gpu, planner=planner, ranks=ranks)
        first = rank.refresher.placement
        for _ in range(EVERY + LEAD - 1):
            assert not rank.step(HEAVY)
        with pytest.raises((RefreshFailed, SystemExit, KeyboardInterrupt)) as caught:
            rank.step(HEAVY)
        rank.require(first)
        staged = rank.checkpoint.targets
        assert bool(staged) == (gpu == 0), "the other rank fails before it reads"
        assert all(each() is None for each in staged), "staged memory is kept"
        changes = [rank.step(HEAVY) for _ in range(EVERY)]
        assert changes == [False] * (EVERY - 1) + [True]
        rank.require(first.flip(1))
        return caught.value

    well, failed = ranks.run(work)
    assert isinstance(well, RefreshFailed), well
    assert f"rank 1: {kind.__name__}: out of luck" in str(well)
    assert type(failed) is (RefreshFailed if kind is ValueError else kind), failed
    assert kind is not ValueError or isinstance(failed.__cause__, ValueError)


def test_a_rank_without_loads_keeps_no_other_waiting(store):
    ranks = Threads(2)

    def work(gpu):
        rank = Rank(store, gpu, ranks=ranks)
        for _ in range(EVERY + LEAD - 1):
            rank.step([EXPERTS + 3] if gpu == 0 else HEAVY)
        rank.step(HEAVY)

    for error in ranks.run(work):
        assert isinstance(error, RefreshFailed), error
        assert "rank 0: ValueError: 10 ids were neither -1 nor one of the 8 experts" in str(error)


def test_ranks_with_different_plans_change_nothing(store):
    ranks = Threads(2)

    def work(gpu):
        rank = Rank(store, gpu, planner=lambda _, current: current.roll(gpu, 1), ranks=ranks)
        first = rank.refresher.placement
        try:
            for _ in range(EVERY + LEAD):
                rank.step(HEAVY)
        finally:
            rank.require(first)

    for error in ranks.run(work):
        assert isinstance(error, RefreshFailed), error
        assert "rank 1 has another plan than rank 0" in str(error)


def test_a_model_continues_while_a_plan_is_made_and_close_abandons_it(store):
    resume, begun = threading.Event(), threading.Event()

    def planner(loads, current):
        begun.set()
        assert resume.wait(WAIT_S)
        return current.flip(1)

    rank = Rank(store, planner=planner)
    first = rank.refresher.placement
    for _ in range(EVERY + LEAD - 1):
        assert not rank.step(HEAVY)  # and the thread waits
    assert begun.wait(WAIT_S)
    resume.set()
    rank.refresher.close()
    assert not rank.step(HEAVY)
    rank.require(first)


def test_slots_that_an_error_left_undefined_are_all_read_again(store, monkeypatch):
    rank = Rank(store, planner=lambda _, current: current)
    first = rank.refresher.placement
    with monkeypatch.context() as patch:

        def fail(*_):
            raise OSError("the device is lost")

        patch.setattr("luciola.plugins.eplb.loader._copy", fail)
        for _ in range(EVERY + LEAD - 1):
            rank.step(HEAVY)
        with pytest.raises(OSError, match="the device is lost"):
            rank.step(HEAVY)
    for tensors in rank.slots:
        tensors["w"].fill_(float("nan"))
    assert [rank.step(HEAVY) for _ in range(EVERY)][-1]
    rank.require(first)
    assert rank.refresher.report.kept == 0


def test_numbers_that_do_not_fit(store):
    for lead in (0, EVERY):
        with pytest.raises(ValueError, match=f"lead_steps must be at least 1 and below .*, not {lead}"):
            Rank(store, lead_steps=lead)
    with pytest.raises(ValueError, match="a planner or a budget"):
        Rank(store, planner=lambda _, current: current, budget=3)
