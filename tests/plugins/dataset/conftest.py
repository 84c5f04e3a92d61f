"""Data sets that tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from luciola.plugins.dataset import FFRecordWriter, MapDataset, open_records


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Workers and tests share two cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_numbers(directory: str | Path, count: int, *, files: int = 3, width: int = 8) -> None:
    """Record i is the number i, `width` times, as int64."""
    for file in range(files):
        mine = range(file * count // files, (file + 1) * count // files)
        with FFRecordWriter(f"{directory}/PART_{file:05}.ffr", len(mine)) as writer:
            for number in mine:
                writer.write(number.to_bytes(8, "little") * width)


@pytest.fixture
def numbers(tmp_path: Path) -> Iterator[MapDataset]:
    """100 numbers in three files."""
    write_numbers(tmp_path, 100)
    dataset = MapDataset(open_records(tmp_path))
    yield dataset
    dataset.close()
