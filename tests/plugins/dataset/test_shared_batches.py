"""Workers share their batches: nothing is copied, and no memory is reused while it is referred to."""

import os
from collections.abc import Iterator
from itertools import islice
from multiprocessing import resource_sharer
from multiprocessing.reduction import ForkingPickler
from typing import NamedTuple

import luciola_core
import numpy as np
import pytest
import torch

from luciola.plugins.dataset import (
    FFRecordWriter,
    Loader,
    MapDataset,
    Samples,
    TarWriter,
    collate,
    open_records,
    shared_batches,
)
from luciola.plugins.dataset.pool import EXPORTS_MAX, SMALLEST, Pool
from number_records import epoch_of, first_numbers


class Pair(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor


@pytest.fixture(autouse=True)
def nothing_mapped() -> Iterator[None]:
    shared_batches._exporters.clear()
    yield
    resource_sharer.stop()
    shared_batches._exporters.clear()


def sent(value: object) -> object:
    """As a worker's queue sends it."""
    return ForkingPickler.loads(ForkingPickler.dumps(value))


def test_exported_piece_is_reused_after_its_importer_releases_it() -> None:
    pool = Pool()
    piece, array = pool.take(1000)
    export = pool.export(piece, array)
    assert export is not None
    assert (export.serial, export.turn, export.size) == (1, 1, SMALLEST)
    del array
    other, kept = pool.take(1000)
    assert other is not piece
    assert pool.exported == 1
    luciola_core.flag_raise(piece.memory, export.size, export.turn)
    assert pool.exported == 0
    again, array = pool.take(1000)
    assert again is piece
    second = pool.export(again, array)
    assert second is not None
    assert (second.turn, second.descriptor) == (2, None), "it is mapped already"
    assert kept is not array


def test_export_names_the_pieces_that_were_freed() -> None:
    pool = Pool(limit_bytes=2 * SMALLEST)
    pieces = [pool.take(10) for _ in range(4)]
    exports = [pool.export(piece, array) for piece, array in pieces]
    memories = [piece.memory for piece, _ in pieces]
    del pieces
    for memory, export in zip(memories, exports, strict=True):
        luciola_core.flag_raise(memory, export.size, export.turn)
    assert pool.exported == 0
    assert pool.free_bytes == 2 * SMALLEST
    assert len(pool.export(*pool.take(10)).retired) == 2


def test_number_of_exports_is_bounded() -> None:
    pool = Pool()
    assert None not in [pool.export(*pool.take(10)) for _ in range(EXPORTS_MAX)]
    assert pool.export(*pool.take(10)) is None


def test_shared_tensors_arrive_in_the_same_memory(numbers: MapDataset) -> None:
    batch = numbers.reader.read([3, 5])
    matrix = torch.from_numpy(batch.matrix())
    copied = torch.arange(5)
    packed = shared_batches.shared(
        {"rows": [matrix[0], matrix[1]], "pair": Pair(matrix.T, copied), "text": "a", "none": None}, batch
    )
    got = sent(packed)
    assert got["text"] == "a"
    assert got["none"] is None
    assert torch.equal(got["pair"].left, matrix.T)
    assert torch.equal(got["pair"].right, copied)
    got["rows"][0][0] = 77
    assert matrix[0, 0] == 77, "not a copy"
    assert got["pair"].left[0, 0] == 77
    pool = batch.pool
    assert pool.exported == 1
    del got["pair"]
    assert pool.exported == 1, "rows are left"
    del got
    assert pool.exported == 0


def test_samples_are_shared_too(numbers: MapDataset) -> None:
    samples = numbers.__getitems__([3, 5])
    got = sent(shared_batches.shared(samples, samples.batch))
    assert isinstance(got, Samples)
    assert got.batch is None
    assert torch.equal(got.tensor, samples.tensor)
    assert [sample.tolist() for sample in got] == [sample.tolist() for sample in samples]
    assert got.indices.tolist() == [3, 5]


def test_tensors_elsewhere_are_sent_as_torch_does(numbers: MapDataset) -> None:
    batch = numbers.reader.read([3])
    values = [torch.ones(2), torch.empty(0), torch.ones(1, requires_grad=True), np.ones(2), Samples([1])]
    values[-1].indices = np.arange(1)
    assert shared_batches.shared(values, batch) is values
    assert batch.pool.exported == 0


def test_batches_that_are_kept_stay_what_they_are(numbers: MapDataset) -> None:
    loader = Loader(numbers, global_batch_size=4, seed=3, num_workers=1)
    kept = list(loader)
    (exporter,) = shared_batches._exporters.values()
    assert len(exporter.pieces) == len(kept) == 25, "each in its own memory"
    assert [first_numbers(batch) for batch in kept] == epoch_of(numbers, 3, 0, 4)
    assert [first_numbers(batch) for batch in islice(loader, 3)] == epoch_of(numbers, 3, 1, 4)[:3]
    assert exporter not in shared_batches._exporters.values(), "its worker has ended"
    assert [first_numbers(batch) for batch in kept] == epoch_of(numbers, 3, 0, 4)


def test_batches_that_are_dropped_use_little_memory(numbers: MapDataset) -> None:
    loader = Loader(numbers, global_batch_size=2, seed=3, num_workers=1)
    seen = [first_numbers(batch) for batch in loader]
    assert seen == epoch_of(numbers, 3, 0, 2)
    (exporter,) = shared_batches._exporters.values()
    # Two that are asked for, one here, the one that follows, and some on their way: of 50.
    assert len(exporter.pieces) <= 6


def test_parts_of_tars_are_shared(tmp_path) -> None:
    with TarWriter(str(tmp_path / "a.tar")) as writer:
        for index in range(20):
            writer.write({"__key__": f"{index}", "bin": bytes([index]) * (index + 1)})
    loader = Loader(
        MapDataset(open_records(tmp_path)), global_batch_size=5, shuffle=False, num_workers=1, collate_fn=list
    )
    samples = [sample for batch in loader for sample in batch]
    assert [bytes(sample["bin"].numpy()) for sample in samples] == [
        bytes([index]) * (index + 1) for index in range(20)
    ]
    assert sum(len(exporter.pieces) for exporter in shared_batches._exporters.values()) == 4


def test_outside_of_workers_it_is_the_function_itself(numbers: MapDataset) -> None:
    assert torch.equal(shared_batches.SharedCollate(collate)(numbers.__getitems__([1])), numbers[1][None])


def pieces_open() -> set[str]:
    """Descriptors of memory that a ring fills."""
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return {link for link in links if os.path.lexists(link) and "luciola-region" in os.readlink(link)}


def test_the_training_process_keeps_no_descriptor_of_imported_memory(tmp_path) -> None:
    """Batches of many sizes, all of which are kept: each is a piece of its own."""
    with FFRecordWriter(tmp_path / "a.ffr") as writer:
        for number in range(40):
            writer.write(bytes([number]) * (1000 + 30_000 * number))
    dataset = MapDataset(open_records(tmp_path))
    before = pieces_open()
    kept = list(Loader(dataset, global_batch_size=2, num_workers=2))
    assert sum(len(exporter.pieces) for exporter in shared_batches._exporters.values()) >= 10
    assert pieces_open() <= before
    seen = sorted(int(record[0]) for batch in kept for record in batch)
    assert seen == list(range(40))
    assert all((record == record[0]).all() for batch in kept for record in batch)
