"""Services listen for this machine alone, unless they are allowed to send clear text to others."""

import argparse
import logging
import os

import pytest

from luciola.errors import ConfigError, InvalidArgument
from luciola.meta import __main__ as meta
from luciola.mgmtd import __main__ as mgmtd
from luciola.storage import __main__ as storage
from luciola.wire import Cluster, create_secret, save_cluster
from luciola.wire.addresses import is_loopback, parse_address, port_argument, require_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1", "localhost"])
def test_loopback_needs_no_permission(host):
    assert is_loopback(host)
    require_loopback(host, protected=False, insecure=False)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "10.0.0.5", "::", "fe80::1%eth0", "::ffff:10.0.0.5", "node5", ""]
)
def test_other_machines_need_permission(host):
    assert not is_loopback(host)
    with pytest.raises(ConfigError, match="--insecure"):
        require_loopback(host, protected=False, insecure=False)
    require_loopback(host, protected=True, insecure=False)
    require_loopback(host, protected=False, insecure=True)


@pytest.mark.parametrize("text", ["", "-1", "65535", "65536", "7410x", "٣"])
def test_port_without_room_for_the_next_one_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="a port from 1 to 65534"):
        port_argument(text)


@pytest.mark.parametrize(
    "address", ["h", ":1", "h:", "h:65536", "h:-1", "h:٣", pytest.param(f"h:{'9' * 5000}", id="long")]
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(InvalidArgument, match="host:port is expected"):
        parse_address(address)


@pytest.fixture
def cluster(tmp_path):
    """The file of a cluster whose manager listens for other machines."""
    create_secret(tmp_path / "secret")
    path = tmp_path / "cluster.json"
    save_cluster(path, Cluster("1", "0.0.0.0:1", "0.0.0.0:2", "secret"))
    return str(path)


def test_no_service_starts_for_other_machines(cluster, tmp_path, monkeypatch, caplog):
    where = ["--data", str(tmp_path / "data"), "--cluster", cluster]
    starts = {
        "mgmtd": lambda: mgmtd.main(["--create", *where]),
        "storage": lambda: storage.main(["--node-id", "1", "--listen", "0.0.0.0", *where]),
        "meta": meta.main,
    }
    monkeypatch.setattr("sys.argv", ["meta", "--create", "--listen", "0.0.0.0", *where])
    for name, start in starts.items():
        caplog.clear()
        with caplog.at_level(logging.ERROR):
            assert start() == os.EX_CONFIG, name
        assert "--insecure" in caplog.text, name
        assert not (tmp_path / "data").exists(), name
