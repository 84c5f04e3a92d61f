"""A long training in short: memory and descriptors of the process and its workers stay as they are."""

import ctypes
import gc
import itertools
import os
from collections.abc import Callable, Iterator
from multiprocessing import active_children
from pathlib import Path
from statistics import median

import pytest
import torch

from cluster import LocalCluster
from luciola.client import close_locations, open_location
from luciola.plugins.dataset import FFRecordWriter, Loader, MapDataset, open_records

RECORDS, LENGTH, BATCH = 128, 64 << 10, 16  # a batch is 1 MiB, an epoch 8
LONG = 40  # iterations
EARLY, LATE = range(8, 12), range(36, 40)  # those behind which it is measured
KEPT_BYTES_MAX = 12 << 20  # a batch that an iteration leaves behind is 28 MiB between the two
KEPT_FILES_MAX = 4

pytestmark = pytest.mark.slow


@pytest.fixture
def dataset(shared_cluster: LocalCluster) -> Iterator[MapDataset]:
    location = f"luciola://{shared_cluster.data}!/soak"
    fs, path = open_location(location)
    fs.makedirs(path)
    for file in range(4):
        with FFRecordWriter(f"{location}/{file}.ffr", RECORDS // 4) as writer:
            for _ in range(RECORDS // 4):
                writer.write(os.urandom(LENGTH))
    dataset = MapDataset(open_records(location))
    yield dataset
    dataset.close()
    fs.rmtree(path)
    close_locations()


def held() -> tuple[int, int]:
    """(bytes, descriptors) of this process and its children.

    What was freed before is returned to the system first: else it could hide what is kept.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = files = 0
    for process in (os.getpid(), *(child.pid for child in active_children())):
        pages += int(Path(f"/proc/{process}/statm").read_text().split()[1])
        files += len(os.listdir(f"/proc/{process}/fd"))
    return pages * os.sysconf("SC_PAGE_SIZE"), files


@pytest.mark.parametrize("workers", [0, 2])
def test_memory_and_descriptors_are_flat(dataset: MapDataset, workers: int) -> None:
    loader = Loader(dataset, global_batch_size=BATCH, num_workers=workers, persistent_workers=workers > 0)
    assert flat(lambda turn: run(loader, turn))


def run(loader: Loader, turn: int) -> None:
    """An epoch, every third one left early, and a state that is loaded now and then."""
    for batch in itertools.islice(loader, 3 if turn % 3 == 0 else None):
        assert batch.shape == (BATCH, LENGTH)
    if turn % 10 == 0:
        loader.load_state_dict(loader.state_dict())


def flat(work: Callable[[int], None]) -> bool:
    seen = {}
    for turn in range(LONG):
        work(turn)
        if turn in {*EARLY, *LATE}:
            seen[turn] = held()
    early, late = [seen[turn] for turn in EARLY], [seen[turn] for turn in LATE]
    (bytes_before, files_before), (bytes_after, files_after) = (
        [median(each) for each in zip(*part, strict=True)] for part in (early, late)
    )
    growth = f"{(bytes_after - bytes_before) / 2**20:.1f} MiB and {files_after - files_before:.0f} descriptors more"
    print(growth)
    return bytes_after - bytes_before < KEPT_BYTES_MAX and files_after - files_before <= KEPT_FILES_MAX


def test_what_an_iteration_leaves_behind_would_be_noticed() -> None:
    kept: list[torch.Tensor | int] = []
    assert not flat(lambda _: kept.append(torch.ones(1 << 20, dtype=torch.uint8)))
    kept.clear()
    assert not flat(lambda _: kept.append(os.dup(0)))
    for file in kept:
        os.close(int(file))
