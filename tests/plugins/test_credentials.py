"""Every plugin that opens a location does so with a token alone: a training job need not hold the cluster's secret."""

import inspect

import pytest
import torch
import torch.distributed.checkpoint as dcp

from cluster import LocalCluster
from luciola.client import close_locations, open_location
from luciola.errors import Unauthenticated
from luciola.plugins import checkpoint, dataset, weights
from luciola.plugins.checkpoint import (
    Checkpoints,
    Keep,
    Reader,
    Writer,
    latest,
    list_checkpoints,
    load_object,
    prune,
    save_object,
    verify,
)
from luciola.plugins.dataset import FFRecordWriter, open_records
from luciola.plugins.flashmla.paged_kv_file import PagedKVFile
from luciola.wire.cluster import FILE_NAME, load_cluster
from luciola.wire.credentials import TRUSTED, mint

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")


@pytest.fixture
def manager(shared_cluster: LocalCluster, monkeypatch):
    """The cluster by its address alone, and what would open it."""
    for name in ("LUCIOLA_DATA", "LUCIOLA_SECRET_FILE", "LUCIOLA_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    found = load_cluster(shared_cluster.data / FILE_NAME)
    monkeypatch.setenv("LUCIOLA_ADDRESS", found.mgmtd_lane)
    yield found
    close_locations()


def token_of(cluster):
    return mint(cluster.secret(), role=TRUSTED).encode()


def use_everything(**credentials):
    """Saves and loads through each plugin below lu:/credentials."""
    state = {"x": torch.ones(5)}
    with Checkpoints("lu:/credentials/runs", keep=Keep(last=1), **credentials) as checkpoints:
        checkpoints.save(1, state)
        assert checkpoints.load(state) == 1
        assert [saved.step for saved in checkpoints.list()] == [1]
    dcp.save(state, storage_writer=Writer("lu:/credentials/runs/b-2", **credentials))
    place = latest("lu:/credentials/runs", **credentials)
    dcp.load(state, storage_reader=Reader(place), no_dist=True)  # a found location has what opened it
    dcp.load(state, storage_reader=Reader("lu:/credentials/runs/b-2", **credentials), no_dist=True)
    assert verify(place) == []
    assert len(list_checkpoints("lu:/credentials/runs", **credentials)) == 2
    assert prune("lu:/credentials/runs", Keep(), **credentials) == []
    save_object(7, "lu:/credentials/o.pt", **credentials)
    assert load_object("lu:/credentials/o.pt", **credentials) == 7
    weights.save(state, "lu:/credentials/w.safetensors", **credentials)
    assert weights.Checkpoint.open("lu:/credentials/w.safetensors", **credentials).tensors.keys() == {"x"}
    opened, _ = open_location("lu:/credentials", **credentials)
    with FFRecordWriter("/credentials/r.ffr", 1, file_system=opened) as writer:
        writer.write(b"record")
    assert len(open_records("lu:/credentials/r.ffr", **credentials)) == 1
    opened.rmtree("/credentials")


def test_a_token_of_the_environment_opens_every_plugin(manager, monkeypatch):
    monkeypatch.setenv("LUCIOLA_TOKEN", token_of(manager))
    use_everything()


def test_a_token_of_a_call_opens_every_plugin(manager):
    use_everything(token=token_of(manager))


def test_a_secret_file_of_a_call_comes_before_the_token_of_the_environment(manager, monkeypatch):
    monkeypatch.setenv("LUCIOLA_TOKEN", "not.a-token")
    with pytest.raises(Unauthenticated):
        Checkpoints("lu:/credentials").list()
    use_everything(secret_file=manager.secret_file)


def test_whatever_takes_a_secret_file_takes_a_token():
    opening = [getattr(module, name) for module in (checkpoint, dataset, weights) for name in module.__all__]
    opening += [weights.Checkpoint.open, PagedKVFile.open, PagedKVFile.create]
    known = [inspect.signature(each).parameters for each in opening if callable(each)]
    having = [parameters for parameters in known if "secret_file" in parameters]
    assert len(having) >= 12
    assert all("token" in parameters for parameters in having)
