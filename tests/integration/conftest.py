"""Where tests mount the shared cluster once more."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import LocalCluster
from luciola.fuse import is_mounted


@pytest.fixture
def place(shared_cluster: LocalCluster, tmp_path: Path) -> Iterator[Path]:
    """An empty directory to mount on; what is mounted there after the test is taken off."""
    directory = tmp_path / "mnt"
    directory.mkdir()
    yield directory
    if is_mounted(directory):
        subprocess.run(["umount", "-l", str(directory)], check=True)


@pytest.fixture
def data(shared_cluster: LocalCluster) -> str:
    return str(shared_cluster.data)
