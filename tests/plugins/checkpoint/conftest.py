"""The processes that run the ranks of all cases, and where a checkpoint may be."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import LocalCluster
from pipeline_ranks import Ranks


@pytest.fixture(scope="session")
def checkpoint_ranks(ranks: Ranks) -> Ranks:
    """For cases of checkpoints."""
    return ranks.of("checkpoint_cases")


@pytest.fixture(params=["local", "native", "mount"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty directory: of this machine, of a cluster by the native client, of its mount."""
    if request.param == "local":
        yield str(tmp_path / "runs")
        return
    cluster: LocalCluster = request.getfixturevalue("shared_cluster")
    assert cluster.mountpoint is not None, "it was started with a mount"
    name = f"checkpoint-{tmp_path.name}"
    yield f"luciola://{cluster.data}!/{name}" if request.param == "native" else str(cluster.mountpoint / name)
    shutil.rmtree(cluster.mountpoint / name, ignore_errors=True)
