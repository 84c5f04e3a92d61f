"""Data sets of numbers, for tests of `luciola.plugins.dataset`: record i of all files is the number i."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from luciola.plugins.dataset import FFRecordWriter, MapDataset, Order


def write_numbers(directory: str | Path, count: int, *, files: int = 3, width: int = 8) -> None:
    """Record i is the number i, `width` times, as int64."""
    for file in range(files):
        mine = range(file * count // files, (file + 1) * count // files)
        with FFRecordWriter(f"{directory}/PART_{file:05}.ffr", len(mine)) as writer:
            for number in mine:
                writer.write(number.to_bytes(8, "little") * width)


def first_numbers(batch: Tensor) -> list[int]:
    """The numbers that the records of a batch are, each compared with itself in all its length."""
    assert batch.dtype == torch.uint8
    words = batch.view(torch.int64)
    assert (words == words[:, :1]).all()
    return words[:, 0].tolist()


def epoch_of(dataset: MapDataset, seed: int, epoch: int, batch: int) -> list[list[int]]:
    """The global batches of an epoch, from the order alone."""
    samples = Order(dataset.sizes, seed=seed).indices(epoch, np.arange(len(dataset))).tolist()
    return [samples[at : at + batch] for at in range(0, len(samples) - batch + 1, batch)]
