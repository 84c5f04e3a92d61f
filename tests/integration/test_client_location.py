"""Locations on a real cluster: every form leads to the same files, by one connection in each process."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from child_process import Child
from cluster import LocalCluster
from luciola.client import close_locations, open_location, replacing
from luciola.config import ClientConfig
from luciola.wire.cluster import FILE_NAME, load_cluster


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    close_locations()


def test_every_form_leads_to_the_same_file(shared_cluster: LocalCluster, monkeypatch) -> None:
    cluster = load_cluster(shared_cluster.data / FILE_NAME)
    path = "/locations/every form?.txt"
    by_data, there = open_location(f"luciola://{shared_cluster.data}!{path}")
    assert there == path
    with replacing(by_data, path) as file:
        file.write(b"here")
    by_address, there = open_location(
        f"luciola://{cluster.mgmtd_lane}{path}", secret_file=cluster.secret_file
    )
    assert (by_address.read(there), by_address.cluster_id) == (b"here", by_data.cluster_id)
    monkeypatch.setenv("LUCIOLA_DATA", str(shared_cluster.data))
    assert open_location(f"lu:{path}")[0] is by_data
    monkeypatch.delenv("LUCIOLA_DATA")
    monkeypatch.setenv("LUCIOLA_ADDRESS", cluster.mgmtd_lane)
    monkeypatch.setenv("LUCIOLA_SECRET_FILE", str(cluster.secret_file))
    assert open_location(f"lu:{path}")[0] is by_address
    assert shared_cluster.mountpoint is not None
    local, there = open_location(f"{shared_cluster.mountpoint}{path}")
    assert local.read(there) == b"here"
    assert by_data.listdir("/locations") == ["every form?.txt"]
    by_data.rmtree("/locations")


def test_one_connection_until_it_is_closed(shared_cluster: LocalCluster) -> None:
    location = f"luciola://{shared_cluster.data}!/"
    first, _ = open_location(location)
    assert open_location(location)[0] is first
    other, _ = open_location(location, config=ClientConfig(transport="tcp"))
    assert other is not first
    assert open_location(location, config=ClientConfig(transport="tcp"))[0] is other
    first.close()
    second, _ = open_location(location)
    assert second is not first
    assert second.isdir("/")
    close_locations()
    assert open_location(location)[0] is not second


def test_threads_share_one_connection(shared_cluster: LocalCluster) -> None:
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(lambda _: open_location(f"luciola://{shared_cluster.data}!/")[0], range(8)))
    assert len(set(opened)) == 1


def test_a_failed_replacement_leaves_the_old_file(shared_cluster: LocalCluster) -> None:
    fs, path = open_location(f"luciola://{shared_cluster.data}!/replaced/f")
    with replacing(fs, path) as file:
        file.write(b"first")
    with pytest.raises(ZeroDivisionError), replacing(fs, path) as file:
        file.write(b"second")
        _ = 1 / 0
    assert fs.read(path) == b"first"
    assert fs.listdir("/replaced") == ["f"]
    fs.rmtree("/replaced")


def _read(location: str) -> bytes:
    fs, path = open_location(location)
    return fs.read(path)


def test_a_forked_child_opens_locations_of_its_own(shared_cluster: LocalCluster) -> None:
    location = f"luciola://{shared_cluster.data}!/forked"
    fs, path = open_location(location)
    fs.write(path, b"seen")
    with Child(_read, location) as child:
        assert child.result() == b"seen"
    fs.remove(path)
