"""Batches of sequences of similar length."""

import itertools

import numpy as np
import pytest

from luciola.errors import InvalidArgument
from luciola.plugins.dataset import LengthBuckets, Loader, MapDataset, TokenWriter, open_records

COUNT, BATCH = 1003, 8


def lengths_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 500, COUNT)


@pytest.fixture
def dataset(tmp_path):
    """Sequence n begins with n; its length is random."""
    with TokenWriter(tmp_path / "a", dtype="int32") as writer:
        for number, length in enumerate(lengths_of(1)):
            writer.write(np.full(length, number, np.int32))
    found = MapDataset(open_records(tmp_path))
    yield found
    found.close()


def numbers(samples) -> list[int]:
    return [int(sample[0]) for sample in samples]


def loader(dataset, buckets=None, **options):
    buckets = buckets or LengthBuckets()
    options = {"global_batch_size": BATCH, "seed": 3, "collate_fn": numbers, "tail": "short", **options}
    return Loader(dataset, buckets=buckets, **options)


def test_every_sample_comes_once_in_batches_of_similar_length(dataset) -> None:
    epochs = [list(each) for each in [loader(dataset)] * 2]
    lengths = lengths_of(1)
    plain = list(Loader(dataset, global_batch_size=BATCH, seed=3, collate_fn=numbers, tail="short"))
    for epoch in epochs:
        assert sorted(itertools.chain(*epoch)) == list(range(COUNT))
        assert {len(batch) for batch in epoch[:-1]} == {BATCH}

    def padding(batches) -> float:
        return sum(max(lengths[batch]) * len(batch) for batch in batches) / lengths.sum() - 1

    assert padding(epochs[0]) < 0.05
    assert padding(plain) > 0.5
    assert epochs[0] != epochs[1]
    longest = [int(lengths[batch].max()) for batch in epochs[0]]
    assert longest != sorted(longest), "batches are in a random order"


def test_what_fills_no_batch_is_a_random_part(dataset) -> None:
    left_out = set(range(COUNT)) - set(itertools.chain(*loader(dataset, tail="drop")))
    assert len(left_out) == COUNT % BATCH
    assert lengths_of(1)[list(left_out)].max() < 499 or lengths_of(1)[list(left_out)].min() < 400


@pytest.mark.parametrize("workers", [0, 2])
def test_buckets_resume_exactly_on_other_ranks_and_workers(dataset, workers: int) -> None:
    whole = list(loader(dataset))
    first = loader(dataset)
    begun = [batch for _, batch in zip(range(70), first, strict=False)]
    ranks = [loader(dataset, rank=rank, ranks=2, num_workers=workers) for rank in range(2)]
    for rank in ranks:
        rank.load_state_dict(first.state_dict())
    rest = [one + other for one, other in itertools.zip_longest(*ranks, fillvalue=[])]
    assert begun + rest == whole
    assert list(loader(dataset, seed=4)) != whole


def test_state_of_other_buckets_is_refused(dataset) -> None:
    state = loader(dataset).state_dict()
    for other in (
        loader(dataset, global_batch_size=4),
        loader(dataset, LengthBuckets(pool_batches=3)),
        loader(dataset, LengthBuckets(lengths_of(2))),
    ):
        with pytest.raises(ValueError, match="buckets"):
            other.load_state_dict(state)
    plain = Loader(dataset, global_batch_size=BATCH, seed=3)
    with pytest.raises(ValueError, match="buckets"):
        loader(dataset).load_state_dict(plain.state_dict())
    with pytest.raises(ValueError, match="buckets"):
        plain.load_state_dict(state)


def test_lengths_may_be_given_for_any_format(tmp_path, dataset) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f'"{"x" * length}"\n' for length in lengths_of(1)))
    texts = MapDataset(open_records(tmp_path / "a.jsonl"))
    with pytest.raises(InvalidArgument, match=r"samples of jsonl have no length .*dataset\.measure"):
        loader(texts)
    lengths = texts.measure(len)
    assert lengths.tolist() == lengths_of(1).tolist()
    by_text = loader(
        texts, LengthBuckets(lengths), collate_fn=lambda samples: [len(each) for each in samples]
    )
    assert list(by_text) == [lengths_of(1)[batch].tolist() for batch in loader(dataset)]
    with pytest.raises(InvalidArgument, match="3 numbers for 1003 samples"):
        loader(texts, LengthBuckets([1, 2, 3]))
    with pytest.raises(InvalidArgument, match="an integer for each sample, not float64"):
        LengthBuckets([1.5])
    texts.close()


def test_lengths_of_a_part_are_those_of_its_samples(dataset) -> None:
    part = dataset.subset(range(1000, 0, -10))
    assert part.lengths_of(np.arange(3)).tolist() == lengths_of(1)[[1000, 990, 980]].tolist()
    assert sorted(itertools.chain(*loader(part))) == list(range(10, 1001, 10))


def test_mixtures_may_be_put_into_buckets(dataset) -> None:
    both = dataset.subset(range(500)).concat(dataset.subset(range(500, 1000)))
    plain = Loader(both, global_batch_size=BATCH, seed=3, weights=[1, 3], collate_fn=numbers)
    mixed = loader(both, weights=[1, 3], tail="drop")
    assert sorted(itertools.chain(*plain)) == sorted(itertools.chain(*mixed))


def test_order_of_buckets_is_golden(dataset) -> None:
    order = loader(dataset).batches.order
    assert order.indices(1, np.arange(0, COUNT, 100)).tolist() == GOLDEN
    assert [int(order.indices(1, each)) for each in range(0, COUNT, 100)] == GOLDEN, "at random places too"


GOLDEN = [381, 728, 789, 398, 312, 694, 384, 455, 182, 932, 903]
