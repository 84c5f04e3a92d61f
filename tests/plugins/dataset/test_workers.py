"""DataLoader workers on a real cluster, by the native client and on the mount: forked, spawned, kept, killed; and
reading continues, with nothing repeated or skipped, while a storage node and the metadata service die."""

import os
import signal
from collections.abc import Iterator
from itertools import islice

import pytest
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from cluster import LocalCluster, until
from luciola.client import close_locations, open_location
from luciola.plugins.dataset import GlobalBatches, IterableDataset, Loader, MapDataset, Order, open_records
from number_records import epoch_of, first_numbers, write_numbers

COUNT, BATCH = 1000, 50


@pytest.fixture(scope="module")
def places(shared_cluster: LocalCluster) -> Iterator[dict[str, str]]:
    """The same data set, by the native client and on the mount. Each record is 4 KiB."""
    location = f"luciola://{shared_cluster.data}!/dataset-workers"
    fs, path = open_location(location)
    fs.makedirs(path, exist_ok=True)
    write_numbers(location, COUNT, width=512)
    yield {"native": location, "mount": f"{shared_cluster.mountpoint}{path}"}
    fs.rmtree(path)
    close_locations()


@pytest.fixture(params=["native", "mount"])
def dataset(places: dict[str, str], request) -> Iterator[MapDataset]:
    made = MapDataset(open_records(places[request.param]))
    yield made
    made.close()


def wanted(dataset: MapDataset, epoch: int = 0) -> list[list[int]]:
    return epoch_of(dataset, 3, epoch, BATCH)


def in_order(dataset: MapDataset, **options) -> GlobalBatches:
    return GlobalBatches(Order(dataset.sizes, seed=3), global_batch_size=BATCH, **options)


def test_batches_of_the_ring_and_of_forked_workers_are_the_same(dataset: MapDataset) -> None:
    """The parent has read before it forks, so the workers inherit a reader that they must not use."""
    for workers in (0, 2):
        loader = Loader(
            dataset,
            global_batch_size=BATCH,
            seed=3,
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,
        )
        assert [first_numbers(batch) for batch in loader] == wanted(dataset)
    seen = dataset.metrics.snapshot()
    assert (seen.samples, seen.batches) == (2 * COUNT, 2 * COUNT // BATCH), "of workers too"
    assert 0 < seen.latency_s["p50"] <= seen.latency_s["p99"]


@pytest.mark.usefixtures("warm_spawn")
def test_spawned_workers_that_are_kept_follow_epochs_and_places(places: dict[str, str]) -> None:
    dataset = MapDataset(open_records(places["native"]))
    loader = Loader(
        dataset, global_batch_size=BATCH, seed=3, num_workers=2, persistent_workers=True,
        prefetch_factor=3, multiprocessing_context="spawn", resume=True,
    )  # fmt: skip
    assert [first_numbers(batch) for batch in loader] == wanted(dataset)
    second = iter(loader)
    seen = [first_numbers(batch) for batch in islice(second, 7)]
    state = loader.state_dict()
    assert (state["epoch"], state["sample"]) == (1, 7 * BATCH)
    seen += [first_numbers(batch) for batch in loader]
    assert seen == wanted(dataset, 1)
    loader.load_state_dict(state)
    assert [first_numbers(batch) for batch in loader] == wanted(dataset, 1)[7:]
    del loader, second


def test_more_ranks_resume_where_one_stopped(dataset: MapDataset) -> None:
    loader = Loader(dataset, global_batch_size=BATCH, seed=3, num_workers=1)
    stream = iter(loader)
    seen = [first_numbers(next(stream)) for _ in range(3)]
    state = loader.state_dict()
    del stream
    ranks = [Loader(dataset, global_batch_size=BATCH, seed=3, rank=rank, ranks=3) for rank in range(3)]
    for rank in ranks:
        rank.load_state_dict(state)
    with pytest.warns(UserWarning, match="their parts differ by one sample"):
        seen += [
            [number for part in parts for number in first_numbers(part)] for parts in zip(*ranks, strict=True)
        ]
    assert seen == wanted(dataset)


def test_killed_worker_is_an_error_and_the_next_iteration_continues(dataset: MapDataset) -> None:
    loader = Loader(
        dataset, global_batch_size=BATCH, seed=3, num_workers=2, persistent_workers=True, resume=True
    )
    stream = iter(loader)
    seen = [first_numbers(next(stream)) for _ in range(5)]
    for worker in loader._iterator._workers:
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
    with pytest.raises(RuntimeError, match=r"worker .* (killed|exited)"):
        seen.extend(first_numbers(batch) for batch in stream)
    assert len(seen) * BATCH == loader.sample
    seen += [first_numbers(batch) for batch in loader]
    assert seen == wanted(dataset)
    del loader, stream


def test_iterable_data_sets_give_the_same_order(dataset: MapDataset) -> None:
    for workers in (0, 2):
        iterable = IterableDataset(dataset, in_order(dataset))
        loader = DataLoader(iterable, batch_size=None, num_workers=workers, persistent_workers=workers > 0)
        assert len(loader) == COUNT // BATCH
        for epoch in range(2):
            assert [first_numbers(batch) for batch in loader] == wanted(dataset, epoch)
        iterable.seek(0, 3 * BATCH)
        assert [first_numbers(batch) for batch in loader] == wanted(dataset)[3:], "live workers move too"
        del loader


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata calls it
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["map", "iterable"])
def test_under_torchdatas_loader_a_state_is_resumed(places: dict[str, str], kind: str, workers: int) -> None:
    def make() -> StatefulDataLoader:
        if kind == "map":
            return StatefulDataLoader(
                dataset,
                batch_sampler=in_order(dataset),
                collate_fn=lambda samples: samples.tensor,
                num_workers=workers,
            )
        return StatefulDataLoader(
            IterableDataset(dataset, in_order(dataset)), batch_size=None, num_workers=workers
        )

    dataset = MapDataset(open_records(places["native"]))
    loader = make()
    stream = iter(loader)
    seen = [first_numbers(next(stream)) for _ in range(5)]
    state = loader.state_dict()
    del loader, stream
    resumed = make()
    resumed.load_state_dict(state)
    seen += [first_numbers(batch) for batch in resumed]
    assert seen == wanted(dataset)
    assert [first_numbers(batch) for batch in resumed] == wanted(dataset, 1), "and the next epoch"
    dataset.close()


def test_reading_continues_while_a_storage_node_and_the_metadata_service_die(
    shared_cluster: LocalCluster, dataset: MapDataset
) -> None:
    loader = Loader(dataset, global_batch_size=BATCH, seed=3, num_workers=1)
    seen, killed = [], {}
    try:
        for batch in loader:
            seen.append(first_numbers(batch))
            if len(seen) in {4, 8}:
                kind = "storage" if len(seen) == 4 else "meta"
                killed[kind] = shared_cluster.kill(kind)["pid"]
        dataset.close()  # files are opened again, which the metadata service has to do
        seen += [first_numbers(batch) for batch in loader]
        assert seen == wanted(dataset) + wanted(dataset, 1)
        for kind, process in killed.items():
            until(
                lambda kind=kind, process=process: (
                    shared_cluster.services(kind)[0]["pid"] not in {None, process}
                )
            )
    finally:
        shared_cluster.wait_healthy()
