"""A storage node that is killed while a job saves and loads: a pause, and every byte is right."""

import threading
from collections.abc import Iterator

import pytest

from cluster import LocalCluster, until
from luciola.client import close_locations
from luciola.plugins.checkpoint import latest, list_checkpoints, verify
from pipeline_ranks import Ranks


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("checkpoint-faults")) as cluster:
        yield cluster


@pytest.mark.slow
def test_a_storage_node_is_killed_while_ranks_save_and_load(checkpoint_ranks: Ranks, cluster, tmp_path):
    root, end = f"luciola://{cluster.data}!/runs", tmp_path / "end"
    answers = []
    arguments = {"root": root, "end": str(end), "seed": 5}
    job = threading.Thread(
        target=lambda: answers.extend(checkpoint_ranks.run("save_and_load_until", 2, **arguments))
    )
    job.start()
    try:
        _resume(root, job)
        cluster.kill("storage")  # at whatever moment of a save or a load it is
        cluster.wait_healthy()
        _resume(root, job)
    finally:
        end.touch()
        job.join()
    assert [(answer.error, answer.message) for answer in answers] == [("", "")] * 2
    rounds = answers[0].value
    assert [saved.step for saved in list_checkpoints(root)] == [rounds - 2, rounds - 1]
    assert verify(latest(root)) == []
    close_locations()


def _resume(root, job):
    """Returns when two more rounds have been made."""
    step = _step(root)
    until(lambda: _step(root) > step + 2 or not job.is_alive(), timeout_s=110, what="two rounds")
    assert job.is_alive(), "the job has ended"


def _step(root):
    try:
        return max((saved.step for saved in list_checkpoints(root)), default=-1)
    except FileNotFoundError:
        return -1
