"""What a machine reads that joins a cluster."""

import json
from pathlib import Path

import pytest

from luciola.cli.host import Invitation
from luciola.errors import ConfigError

CLUSTER = {"cluster_id": "c", "mgmtd_lane": "a:1", "mgmtd_grpc": "a:2", "secret_file": ""}
FIELDS = {"cluster": CLUSTER, "secret": "00", "replicas": 2, "holding": "text"}


def test_an_invitation_is_read():
    found = Invitation.parse(Path("file"), json.dumps(FIELDS))
    assert (found.cluster.cluster_id, found.secret, found.replicas, found.holding) == ("c", "00", 2, "text")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        json.dumps({**FIELDS, "replicas": "x"}),
        json.dumps({**FIELDS, "replicas": float("inf")}),
        json.dumps({**FIELDS, "cluster": []}),
        pytest.param("[" * 100_000, id="deep"),
    ],
)
def test_other_content_is_refused_with_the_path(text):
    with pytest.raises(ConfigError, match=r"^file: "):
        Invitation.parse(Path("file"), text)
