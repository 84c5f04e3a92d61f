import json
import stat
from dataclasses import replace

import pytest

from luciola.errors import ConfigError, NotFound
from luciola.wire import Cluster, Metadata, create_secret, load_cluster, save_cluster

CLUSTER = Cluster("test", "127.0.0.1:1", "127.0.0.1:2", "secret")


def test_cluster_file_is_written_and_read_back(tmp_path):
    path = tmp_path / "cluster.json"
    secret = create_secret(tmp_path / "secret")
    save_cluster(path, CLUSTER)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    cluster = load_cluster(path)
    assert cluster.secret_file == str(tmp_path / "secret")
    assert cluster.secret() == secret
    save_cluster(path, cluster)
    assert load_cluster(path) == cluster
    assert [entry.name for entry in sorted(tmp_path.iterdir())] == ["cluster.json", "secret"]


def test_missing_cluster_file_says_so(tmp_path):
    with pytest.raises(NotFound, match="running"):
        load_cluster(tmp_path / "cluster.json")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        pytest.param("[" * 100_000, id="deep"),
        json.dumps({"cluster_id": "x"}),
        json.dumps({"cluster_id": 1, "mgmtd_lane": "a:1", "mgmtd_grpc": "a:1", "secret_file": "s"}),
        json.dumps({"cluster_id": "x", "mgmtd_lane": "a:1,b:1", "mgmtd_grpc": "a:1", "secret_file": "s"}),
        json.dumps({"cluster_id": "x", "mgmtd_lane": "a:1,", "mgmtd_grpc": "a:1,b:1", "secret_file": "s"}),
        json.dumps({"cluster_id": "x", "mgmtd_lane": "nowhere", "mgmtd_grpc": "a:1", "secret_file": "s"}),
    ],
)
def test_other_content_is_refused_with_the_path(tmp_path, text):
    path = tmp_path / "cluster.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"cluster\.json"):
        load_cluster(path)


def test_each_manager_has_an_entry_of_its_own():
    cluster = Cluster("test", "a:1,b:1", "a:2,b:2", "secret")
    assert cluster.manager_addresses(1) == ("a:1", "a:2")
    assert cluster.manager_addresses(2) == ("b:1", "b:2")
    for number in (0, 3):
        with pytest.raises(ConfigError, match="no entry"):
            cluster.manager_addresses(number)


def test_metadata_of_the_cluster_file_gives_options_of_etcd(tmp_path):
    path = tmp_path / "cluster.json"
    (tmp_path / "password").write_text("open\n")
    metadata = Metadata(
        ("http://10.0.0.1:2379", "10.0.0.2:2379"),
        ca_file="ca.pem",
        user="luciola",
        password_file=str(tmp_path / "password"),
    )
    save_cluster(path, replace(CLUSTER, metadata=metadata))
    options = load_cluster(path).metadata_options()
    assert options is not None
    assert options.endpoints == ("10.0.0.1:2379", "10.0.0.2:2379")
    assert (options.ca, options.certificate, options.key) == (tmp_path / "ca.pem", None, None)
    assert (options.user, options.password) == ("luciola", "open")


def test_cluster_file_without_metadata_has_no_options_and_no_entry(tmp_path):
    path = tmp_path / "cluster.json"
    save_cluster(path, CLUSTER)
    assert "metadata" not in json.loads(path.read_text())
    assert load_cluster(path).metadata_options() is None


@pytest.mark.parametrize(
    "metadata",
    [[], {}, {"endpoints": "a:1"}, {"endpoints": ["a:1"], "user": 1}, {"endpoints": ["a:1"], "usr": ""}],
)
def test_metadata_that_cannot_be_read_is_refused_with_the_path(tmp_path, metadata):
    path = tmp_path / "cluster.json"
    save_cluster(path, CLUSTER)
    path.write_text(json.dumps({**json.loads(path.read_text()), "metadata": metadata}))
    with pytest.raises(ConfigError, match=r"cluster\.json: metadata"):
        load_cluster(path)
