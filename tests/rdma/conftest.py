"""Tests here need RDMA devices: the laboratory has two (`make test-rdma`), other machines are not asked for them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rdma import cable

DEVICES = Path("/sys/class/infiniband")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    if not DEVICES.is_dir() or not os.listdir(DEVICES):
        return True
    return None


@pytest.fixture
def whole_cable() -> Iterator[None]:
    """Whatever a test does to the cable is undone, and both ports are usable again."""
    yield
    cable.mend()
