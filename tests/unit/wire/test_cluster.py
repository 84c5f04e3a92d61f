import json
import stat

import pytest

from luciola.errors import ConfigError, NotFound
from luciola.wire import Cluster, create_secret, load_cluster, save_cluster

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
        json.dumps({"cluster_id": "x"}),
        json.dumps({"cluster_id": 1, "mgmtd_lane": "a:1", "mgmtd_grpc": "a:1", "secret_file": "s"}),
        json.dumps({"cluster_id": "x", "mgmtd_lane": "nowhere", "mgmtd_grpc": "a:1", "secret_file": "s"}),
    ],
)
def test_other_content_is_refused_with_the_path(tmp_path, text):
    path = tmp_path / "cluster.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"cluster\.json"):
        load_cluster(path)
