"""The directory under test: `--posix-dir DIR` (any file system), else the mount of a cluster started for the run."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def posix_root(request: pytest.FixtureRequest) -> Path:
    """The root of the file system under test."""
    given = request.config.getoption("--posix-dir")
    if given is not None:
        return Path(given)
    cluster = request.getfixturevalue("shared_cluster")
    mountpoint: Path = cluster.mountpoint
    return mountpoint


@pytest.fixture
def area(posix_root: Path) -> Iterator[Path]:
    """An empty directory on the file system under test, which is also the working directory."""
    directory = Path(tempfile.mkdtemp(prefix="posix-", dir=posix_root))
    directory.chmod(0o755)  # other users appear in some tests
    before = Path.cwd()
    os.chdir(directory)
    yield directory
    os.chdir(before)
    shutil.rmtree(directory)
