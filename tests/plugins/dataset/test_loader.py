"""`MapDataset`, `IterableDataset` and `Loader`, in this process and with workers, on local files."""

import gc
import io
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from luciola.errors import CorruptData
from luciola.plugins.dataset import (
    FFRecordWriter,
    Loader,
    MapDataset,
    collate,
    open_records,
)
from number_records import epoch_of, first_numbers

# ---- one process


def test_samples_by_number(numbers: MapDataset) -> None:
    assert len(numbers) == 100
    assert first_numbers(numbers[57].unsqueeze(0)) == [57]
    assert first_numbers(numbers[-1].unsqueeze(0)) == [99]
    samples = numbers.__getitems__([3, 99, 3, 34])
    assert first_numbers(samples.tensor) == [3, 99, 3, 34]
    assert [first_numbers(each.unsqueeze(0))[0] for each in samples] == [3, 99, 3, 34]
    assert numbers.__getitems__([]) == []
    with pytest.raises(IndexError, match="samples are 0 to 99, not 100"):
        numbers[100]
    with pytest.raises(IndexError, match="samples are 0 to 99, not -1"):
        numbers.__getitems__([5, -1])


def test_a_batch_is_one_tensor_over_page_aligned_memory_without_a_copy(numbers: MapDataset) -> None:
    samples = numbers.__getitems__(list(range(50)))
    assert samples.tensor.data_ptr() % 4096 == 0
    assert samples[7].data_ptr() == samples.tensor.data_ptr() + 7 * 64
    assert collate(samples) is samples.tensor
    assert numbers.reader.read([1]).memory.ctypes.data % 4096 == 0


def test_memory_is_reused_only_when_nothing_refers_to_it(numbers: MapDataset) -> None:
    batch = numbers.__getitems__([0, 1])
    one, where = batch[1], batch.tensor.data_ptr()
    del batch
    gc.collect()
    others = [numbers.__getitems__([number, number]) for number in range(2, 6)]
    assert all(other.tensor.data_ptr() != where for other in others)
    assert first_numbers(one.unsqueeze(0)) == [1]
    del one
    gc.collect()
    assert numbers.__getitems__([9]).tensor.data_ptr() == where


def test_records_of_several_lengths_are_a_list(tmp_path) -> None:
    with FFRecordWriter(tmp_path / "a.ffr") as writer:
        for length in (5, 0, 700):
            writer.write(bytes([length % 251]) * length)
    dataset = MapDataset(open_records(tmp_path))
    samples = dataset.__getitems__([2, 1, 0])
    assert samples.tensor is None
    assert [each.tolist() for each in collate(samples)] == [[700 % 251] * 700, [], [5] * 5]
    assert all(each.data_ptr() % 64 == 0 for each in samples)
    assert dataset.__getitems__([1]).tensor.shape == (1, 0)
    dataset.close()


def test_decode_and_collate(numbers: MapDataset) -> None:
    decoded = MapDataset(numbers.parts, decode=lambda record: (record.view(torch.int64)[0], len(record)))
    words, lengths = next(iter(Loader(decoded, global_batch_size=4, shuffle=False)))
    assert words.tolist() == [0, 1, 2, 3]
    assert lengths.tolist() == [64] * 4
    halves = Loader(
        numbers, global_batch_size=4, shuffle=False, collate_fn=lambda samples: samples.tensor[:, :8]
    )
    assert next(iter(halves)).shape == (4, 8)
    decoded.close()


def test_several_data_sets_in_sequence_and_as_a_mixture(numbers: MapDataset, tmp_path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with FFRecordWriter(other / "a.ffr", 10) as writer:
        for number in range(1000, 1010):
            writer.write(number.to_bytes(8, "little") * 8)
    both = MapDataset([*numbers.parts, open_records(other)])
    assert first_numbers(both.__getitems__([109, 0, 100]).tensor) == [1009, 0, 1000]
    mixed = Loader(both, global_batch_size=100, weights=[1, 3], samples=10_000)
    seen = [number for batch in mixed for number in first_numbers(batch)]
    assert len(seen) == 10_000
    assert 0.73 < np.mean(np.array(seen) >= 1000) < 0.77
    both.close()


def test_loader_returns_the_global_order_and_continues_with_the_next_epoch(numbers: MapDataset) -> None:
    loader = Loader(numbers, global_batch_size=16, seed=3)
    for epoch in range(2):
        assert loader.epoch == epoch
        assert len(loader) == 6
        assert [first_numbers(batch) for batch in loader] == epoch_of(numbers, 3, epoch, 16)
    loader.set_epoch(1)
    assert [first_numbers(batch) for batch in loader] == epoch_of(numbers, 3, 1, 16)
    assert (loader.epoch, loader.sample) == (2, 0)


@pytest.mark.parametrize("read_ahead", [0, 1, 5, 50])
def test_stop_anywhere_resumes_there(numbers: MapDataset, read_ahead: int) -> None:
    """Also without a state with `resume=True`, and for any number of batches that were read ahead."""
    wanted = epoch_of(numbers, 3, 0, 16)
    for stop in range(len(wanted) + 1):
        loader = Loader(numbers, global_batch_size=16, seed=3, read_ahead=read_ahead, resume=True)
        seen = []
        for batch in loader:
            if len(seen) < stop:
                seen.append(first_numbers(batch))
            if len(seen) == stop:
                break
        if stop == 0:
            loader.seek(0)
        state = pickle.loads(pickle.dumps(loader.state_dict()))
        assert (len(loader), loader.left) == (len(wanted), len(wanted) - stop)
        if stop == len(wanted):
            continue  # the next iteration is of the next epoch: test_contract.py
        rest = [first_numbers(batch) for batch in loader]
        resumed = Loader(numbers, global_batch_size=16, seed=3)
        resumed.load_state_dict(state)
        resumed.set_epoch(0)
        assert seen + rest == wanted
        assert [first_numbers(batch) for batch in resumed] == rest


def test_state_survives_torch_save_and_json(numbers: MapDataset) -> None:
    import json

    loader = Loader(numbers, global_batch_size=16, seed=3)
    next(iter(loader))
    file = io.BytesIO()
    torch.save(loader.state_dict(), file)
    file.seek(0)
    assert (
        torch.load(file, weights_only=True)
        == loader.state_dict()
        == json.loads(json.dumps(loader.state_dict()))
    )


def test_an_older_iteration_does_not_move_the_place(numbers: MapDataset) -> None:
    loader = Loader(numbers, global_batch_size=16, seed=3)
    old = iter(loader)
    next(old)
    new = iter(loader)
    second = next(new)
    next(old)
    assert first_numbers(second) == epoch_of(numbers, 3, 1, 16)[0]
    assert (loader.epoch, loader.sample) == (1, 16)


def test_damage_stops_the_loader_in_front_of_it(tmp_path) -> None:
    with FFRecordWriter(tmp_path / "a.ffr", 40) as writer:
        for number in range(40):
            writer.write(bytes([number]) * 10)
    data = bytearray((tmp_path / "a.ffr").read_bytes())
    data[-75] ^= 1
    (tmp_path / "a.ffr").write_bytes(data)
    loader = Loader(MapDataset(open_records(tmp_path)), global_batch_size=8, shuffle=False)
    stream = iter(loader)
    for _ in range(4):
        next(stream)
    with pytest.raises(CorruptData, match="record 32 does not match") as caught:
        next(stream)
    assert caught.value.filename == str(tmp_path / "a.ffr")
    assert loader.sample == 32
    loader.dataset.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_program_that_ends_in_the_middle_of_an_epoch_ends_silently(numbers: MapDataset, workers: int) -> None:
    program = f"""
from luciola.plugins.dataset import Loader, MapDataset, open_records
loader = Loader(MapDataset(open_records({str(Path(numbers.parts[0].files[0].path).parent)!r})),
                global_batch_size=10, num_workers={workers})
stream = iter(loader)
next(stream)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_metrics_count_what_was_read(numbers: MapDataset) -> None:
    for _ in Loader(numbers, global_batch_size=20):
        pass
    seen = numbers.metrics.snapshot()
    assert (seen.samples, seen.bytes, seen.reads, seen.batches) == (100, 6400, 5, 5)
    assert seen.to_dict()["samples_per_s"] > 0


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"batch_size": 4}, TypeError, "batch_size: the global order decides"),
        ({"shuffle": True, "drop_last": True}, TypeError, "drop_last: the global order"),
        ({"rank": 1}, ValueError, "rank and ranks, or neither"),
        ({"in_order": False}, ValueError, "another order than that of the state"),
        ({"read_ahead": -1}, ValueError, "0 or more batches, not -1"),
        ({"rank": 4, "ranks": 4}, ValueError, "not 4 of 4"),
        ({"weights": [1, 2]}, ValueError, "1 data sets and 2 weights"),
    ],
)
def test_bad_arguments_say_what_is_allowed(numbers: MapDataset, options, kind, words: str) -> None:
    with pytest.raises(kind, match=words):
        Loader(numbers, global_batch_size=4, **options)
    with pytest.raises(TypeError, match="reads a MapDataset, not list"):
        Loader([1, 2], global_batch_size=1)
    with pytest.raises(TypeError, match="what `open_records` gives"):
        MapDataset("data.ffr")
