"""What programs expect of a DataLoader: lengths, epochs, early ends, restarts, parts of data sets, bad records."""

import gc
import itertools
import os
import pickle
import threading
import weakref

import numpy as np
import pytest
import torch

from luciola.errors import CorruptData
from luciola.plugins.dataset import BadRecord, FFRecordWriter, Loader, MapDataset, Order, open_records
from number_records import epoch_of, first_numbers


def numbers_of(loader: Loader) -> list[list[int]]:
    return [first_numbers(batch) for batch in loader]


# ---- epochs


def test_a_program_that_counts_batches_by_len_gets_every_epoch(numbers: MapDataset) -> None:
    loader = Loader(numbers, global_batch_size=16, seed=3)
    for epoch in range(3):
        stream = iter(loader)
        seen = [first_numbers(next(stream)) for _ in range(len(loader))]
        assert seen == epoch_of(numbers, 3, epoch, 16)
        assert loader.left == 0


def test_an_iteration_that_is_left_early_is_over(numbers: MapDataset) -> None:
    ordered = Loader(numbers, global_batch_size=16, shuffle=False)
    for _ in range(3):
        assert first_numbers(next(iter(ordered))) == list(range(16)), "validation sees the same each time"
    shuffled = Loader(numbers, global_batch_size=16, seed=3)
    firsts = [numbers_of(itertools.islice(shuffled, 2)) for _ in range(3)]
    assert firsts == [epoch_of(numbers, 3, epoch, 16)[:2] for epoch in range(3)], (
        "training does not repeat itself"
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_state_resumes_and_one_at_an_end_is_the_start_of_the_next(numbers: MapDataset, workers: int) -> None:
    for stop in (1, 5, 6):
        loader = Loader(numbers, global_batch_size=16, seed=3)
        stream = iter(loader)
        for _ in range(stop):
            next(stream)
        other = Loader(numbers, global_batch_size=16, seed=3, num_workers=workers)
        other.load_state_dict(loader.state_dict())
        other.set_epoch(other.epoch)
        rest = epoch_of(numbers, 3, 0, 16)[stop:] or epoch_of(numbers, 3, 1, 16)
        assert other.epoch == stop // 6
        assert numbers_of(other) == rest


def test_a_place_that_is_changed_ends_iterations_from_before(numbers: MapDataset) -> None:
    loader = Loader(numbers, global_batch_size=16, seed=3)
    stream = iter(loader)
    next(stream)
    loader.seek(0, 32)
    with pytest.raises(RuntimeError, match="the place was changed"):
        next(stream)
    assert numbers_of(loader) == epoch_of(numbers, 3, 0, 16)[2:]


def test_a_place_that_is_changed_before_the_first_batch_is_where_it_begins(numbers: MapDataset) -> None:
    """Lightning sets the epoch between the two, when it resumes after the end of one."""
    loader = Loader(numbers, global_batch_size=16, seed=3)
    stream = iter(loader)
    loader.set_epoch(2)
    loader.seek(2, 32)
    assert [first_numbers(batch) for batch in stream] == epoch_of(numbers, 3, 2, 16)[2:]
    older, _newer = iter(loader), iter(loader)
    loader.seek(0)
    with pytest.raises(RuntimeError, match="the place was changed"):
        next(older)


def test_a_state_of_other_data_of_the_same_size_is_refused(tmp_path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        with FFRecordWriter(tmp_path / name / "x.ffr", 20) as writer:
            for number in range(20):
                writer.write(f"{name}{number:02}".encode())
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "x.ffr").write_bytes((tmp_path / "a" / "x.ffr").read_bytes())
    first, other, copy = (
        Loader(MapDataset(open_records(tmp_path / name)), global_batch_size=5) for name in ("a", "b", "copy")
    )
    next(iter(first))
    with pytest.raises(
        ValueError, match="of another data set, whose files have other names, sizes or indexes"
    ):
        other.load_state_dict(first.state_dict())
    copy.load_state_dict(first.state_dict())
    assert copy.sample == 5
    with pytest.raises(ValueError, match="another data set"):
        Loader(first.dataset.subset(range(19, -1, -1)), global_batch_size=5).load_state_dict(
            first.state_dict()
        )


def test_training_continues_with_more_data_from_the_epoch_that_is_sought(tmp_path) -> None:
    """As the error of a state of other data says."""
    sizes = {"a": 20, "b": 12}
    for name, count in sizes.items():
        with FFRecordWriter(tmp_path / f"{name}.ffr", count) as writer:
            for number in range(count):
                writer.write(f"{name}{number:02}".encode())
    before = Loader(MapDataset(open_records(tmp_path / "a.ffr")), global_batch_size=4)
    next(iter(before))
    state = before.state_dict()
    after = Loader(MapDataset(open_records(tmp_path)), global_batch_size=4)
    with pytest.raises(ValueError, match=r"now \[32\].*begin an epoch with them: seek\(epoch\)"):
        after.load_state_dict(state)
    after.seek(state["epoch"] + 1)
    seen = [bytes(sample.tolist()).decode() for batch in after for sample in batch]
    assert sorted(seen) == sorted(f"{name}{n:02}" for name, count in sizes.items() for n in range(count))
    assert after.epoch == 2


def test_batches_are_of_one_type(tmp_path) -> None:
    with FFRecordWriter(tmp_path / "a.ffr") as writer:
        for length in (5, 5, 5, 5, 5, 6):
            writer.write(bytes(length))
    loader = Loader(MapDataset(open_records(tmp_path)), global_batch_size=2, shuffle=False)
    assert [type(batch) for batch in loader] == [list] * 3
    equal = Loader(MapDataset(open_records(tmp_path)).subset(range(4)), global_batch_size=2)
    assert {type(batch) for batch in equal} == {list}, "as the whole"


def test_options_that_would_do_nothing_are_refused(numbers: MapDataset) -> None:
    with pytest.raises(ValueError, match="timeout= is for workers"):
        Loader(numbers, global_batch_size=4, timeout=5)
    with pytest.raises(TypeError, match="generator: the global order decides"):
        Loader(numbers, global_batch_size=4, generator=torch.Generator())


def test_another_loader_cannot_be_made_of_a_loaders_batches(numbers: MapDataset) -> None:
    loader = Loader(numbers, global_batch_size=4)
    with pytest.raises(RuntimeError, match="this rank's part already"):
        iter(loader.batch_sampler)


# ---- parts


def all_of(dataset: MapDataset) -> list[int]:
    return first_numbers(dataset.__getitems__(range(len(dataset))).tensor)


def test_subsets_and_splits(numbers: MapDataset) -> None:
    assert all_of(numbers.subset(range(90, 100, 3))) == [90, 93, 96, 99]
    assert all_of(numbers.subset(slice(-3, None))) == [97, 98, 99]
    assert all_of(numbers.subset([5, 2, 5]).subset([2, 1])) == [5, 2]
    train, test = numbers.split([0.9, 0.1], seed=1)
    assert (len(train), len(test)) == (90, 10)
    assert sorted(all_of(train) + all_of(test)) == list(range(100))
    assert all_of(train) != sorted(all_of(train))
    assert all_of(numbers.split([0.9, 0.1], seed=1)[1]) == all_of(test)
    assert all_of(numbers.split([0.9, 0.1], seed=2)[1]) != all_of(test)
    seen = sorted(itertools.chain(*numbers_of(Loader(train, global_batch_size=9))))
    assert seen == sorted(all_of(train)), "every sample once an epoch"
    even = numbers.filter(lambda sample: int(sample[0]) % 2 == 0)
    assert all_of(even) == list(range(0, 100, 2))
    both = test.concat(even, numbers)
    assert both.sizes == [10, 50, 100]
    assert all_of(both) == all_of(test) + all_of(even) + list(range(100))
    assert all_of(pickle.loads(pickle.dumps(both.subset([3, 60])))) == [all_of(test)[3], 0]
    for part in (train, test, even, both):
        part.close()


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda data: data.subset([100]), IndexError, "samples are 0 to 99, not 100"),
        (lambda data: data.subset([-1]), IndexError, "not -1"),
        (lambda data: data.subset([]), ValueError, "at least one sample"),
        (lambda data: data.subset([0.5]), TypeError, "by numbers, not by float64"),
        (lambda data: data.split([0.9, 0.2]), ValueError, "at most 1 together"),
        (lambda data: data.split([0.999, 0.001]), ValueError, "leave a part without one"),
        (lambda data: data.filter(lambda _sample: False), ValueError, "at least one sample"),
    ],
)
def test_invalid_parts_are_refused(numbers: MapDataset, make, kind, words: str) -> None:
    with pytest.raises(kind, match=words):
        make(numbers)


def test_weights_change_between_epochs_and_past_ones_must_agree() -> None:
    sizes, samples = [100_000, 100_000], 65_536
    plain = Order(sizes, weights=[1, 1], samples=samples, seed=5)
    changing = Order(sizes, weights={0: [1, 1], 2: [1, 3]}, samples=samples, seed=5)
    places = np.arange(samples)
    seen = [changing.indices(epoch, places) for epoch in range(4)]
    for epoch in range(2):
        assert (seen[epoch] == plain.indices(epoch, places)).all()
    for epoch, share in ((0, 0.5), (1, 0.5), (2, 0.25), (3, 0.25)):
        assert (seen[epoch] < sizes[0]).sum() == share * samples
    first_pass = np.concatenate([each[each < sizes[0]] for each in seen])[: sizes[0]]
    assert len(np.unique(first_pass)) == len(first_pass), "each data set continues where it was"
    description = plain.description()
    assert changing.agrees(description, 1, 500)
    assert changing.agrees(description, 2, 0)
    assert not changing.agrees(description, 2, 1)
    with pytest.raises(ValueError, match="those of epoch 0 too"):
        Order(sizes, weights={1: [1, 1]})


# ---- random numbers


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_is_the_same_for_any_workers_and_after_a_stop(numbers: MapDataset, workers: int) -> None:
    def augment(sample, key):
        return torch.tensor([int(sample[0]), key.epoch, *key.generator().integers(0, 1 << 60, 2)])

    keyed = MapDataset(numbers.parts, decode=augment, keyed=True)
    whole = torch.cat(list(Loader(keyed, global_batch_size=10, seed=3)))
    assert len(set(whole[:, 2].tolist())) == 100
    loader = Loader(keyed, global_batch_size=25, seed=3, num_workers=workers)
    stream = iter(loader)
    seen = [next(stream)]
    resumed = Loader(keyed, global_batch_size=5, seed=3, num_workers=workers, rank=0, ranks=1)
    resumed.load_state_dict(loader.state_dict())
    assert torch.cat([*seen, *resumed]).equal(whole)
    again = torch.cat(list(resumed))
    assert not set(again[:, 2].tolist()) & set(whole[:, 2].tolist()), "other numbers in the next epoch"
    keyed.close()


# ---- bad records


@pytest.fixture
def damaged(tmp_path):
    """Forty records, of which 3 and 32 are not what they were."""
    with FFRecordWriter(tmp_path / "a.ffr", 40) as writer:
        for number in range(40):
            writer.write(bytes([number]) * 10)
    data = bytearray((tmp_path / "a.ffr").read_bytes())
    data[-75] ^= 1
    data[-365] ^= 1
    (tmp_path / "a.ffr").write_bytes(data)
    return open_records(tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_records_are_skipped_counted_and_named(damaged, workers: int) -> None:
    dataset = MapDataset(damaged, on_error="skip")
    loader = Loader(dataset, global_batch_size=8, shuffle=False, num_workers=workers)
    seen = [batch[:, 5].tolist() for batch in loader]
    wanted = [4 if number == 3 else 33 if number == 32 else number for number in range(40)]
    assert list(itertools.chain(*seen)) == wanted
    assert dataset.metrics.snapshot().skipped == 2
    bad = dataset.bad_records()
    assert [(each.number, each.record) for each in bad] == [(3, "record 3"), (32, "record 32")]
    assert {each.end - each.start for each in bad} == {10}
    assert bad[0].file == damaged.files[0].path
    dataset.close()


def test_too_many_bad_records_are_an_error(damaged) -> None:
    reported: list[BadRecord] = []
    dataset = MapDataset(damaged, on_error=reported.append, bad_records_max=1)
    loader = Loader(dataset, global_batch_size=8, shuffle=False)
    with pytest.raises(
        CorruptData, match="2 bad records are more than bad_records_max=1; the last is record 32"
    ):
        list(loader)
    assert [each.number for each in reported] == [3, 32]
    assert "does not match its checksum" in reported[0].reason
    dataset.close()
    with pytest.raises(CorruptData, match="all 2 records are bad"):
        MapDataset(damaged, decode=lambda _: 1 / 0, on_error="skip").subset([0, 1])[0]


def test_an_error_of_decode_names_the_record(damaged) -> None:
    def decode(sample):
        if sample[0] == 7:
            raise ValueError("not a picture")
        return sample

    dataset = MapDataset(damaged, decode=decode)
    with pytest.raises(ValueError, match="not a picture") as caught:
        dataset[7]
    assert caught.value.__notes__ == [
        f"decode of record 7 of {damaged.files[0].path!r}, bytes 562 to 572 (sample 7)"
    ]
    skipping = MapDataset(damaged, decode=decode, on_error="skip")
    assert skipping.__getitems__([6, 7])[1][0] == 8
    for each in (dataset, skipping):
        each.close()
    with pytest.raises(ValueError, match='"raise", "skip" or a function'):
        MapDataset(damaged, on_error="ignore")


# ---- for days


def test_nothing_grows_with_iterations(numbers: MapDataset) -> None:
    """Left early, resumed, run to their ends: descriptors, threads, open files and pieces of memory do not grow."""

    def held() -> tuple[int, int, int, int]:
        gc.collect()
        reader = numbers.reader
        return (
            len(os.listdir("/proc/self/fd")),
            threading.active_count(),
            len(reader._open),
            reader._pool._made,
        )

    loader = Loader(numbers, global_batch_size=10, seed=3, read_ahead=3)
    list(loader)
    for batch in itertools.islice(loader, 3):
        assert len(batch) == 10
    before = held()
    for turn in range(150):
        assert bool(list(itertools.islice(loader, turn % 12))) is (turn % 12 > 0)
        if turn % 5 == 0:
            loader.load_state_dict(loader.state_dict())
    few = 50  # batches that were left may be in flight still; one of anything for each turn would be 150
    assert all(now <= then + few for now, then in zip(held(), before, strict=True))


def test_an_iteration_that_is_left_does_not_keep_its_reader(numbers: MapDataset) -> None:
    other = MapDataset(numbers.parts)
    stream = iter(Loader(other, global_batch_size=10))
    batch = next(stream)
    reader, dataset = weakref.ref(other.reader), weakref.ref(other)
    del stream, other
    gc.collect()
    assert (reader(), dataset()) == (None, None)
    assert len(batch) == 10
