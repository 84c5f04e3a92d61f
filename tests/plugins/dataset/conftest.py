"""Data sets that tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from luciola.plugins.dataset import MapDataset, open_records
from number_records import write_numbers


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Workers and tests share two cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def numbers(tmp_path: Path) -> Iterator[MapDataset]:
    """100 numbers in three files."""
    write_numbers(tmp_path, 100)
    dataset = MapDataset(open_records(tmp_path))
    yield dataset
    dataset.close()
