"""`luciola rdma check` with real devices: what it lists, and its test between two processes."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from luciola.cli import cli
from rdma import cable


def check(*arguments: str) -> tuple[int, dict]:
    done = CliRunner().invoke(cli, ["rdma", "check", "--json", *arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, json.loads(done.stdout)


@pytest.fixture(scope="module")
def listener() -> Iterator[int]:
    """The TCP port of another process that offers rxe1."""
    command = [
        sys.executable,
        "-m",
        "luciola",
        "rdma",
        "check",
        "--device",
        "rxe1",
        "--listen",
        "--listen-address",
        "127.0.0.1:0",
    ]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            found = re.search(r"port (\d+)", process.stdout.readline())
            assert found, "it says where it listens"
            yield int(found[1])
        finally:
            process.kill()


def test_both_ports_are_listed_and_usable() -> None:
    status, document = check()
    assert status == 0
    assert [each["port"] for each in document["usable"]] == ["rxe0:1", "rxe1:1"]
    assert {each["gid"][-9:] for each in document["usable"]} == {"0a4d:0001", "0a4d:0002"}
    assert [each["name"] for each in document["devices"]] == ["rxe0", "rxe1"]
    for device in document["devices"]:
        assert device["limits"]["max_qp_wr"] > 0
        (port,) = device["ports"]
        assert (port["state"], port["link"], port["mtu"]) == ("active", "Ethernet", 4096)
        assert {gid["interface"] for gid in port["gids"]} == {cable.INTERFACES[device["name"]]}
    assert [each for each in document["findings"] if each["level"] == "problem"] == []


def test_the_tables_name_what_is_used() -> None:
    done = CliRunner().invoke(cli, ["rdma", "check"])
    assert re.search(r"rxe0:1 +active +Ethernet +4096 +ve0 +1\* +RoCE v2 +10\.77\.0\.1", done.stdout)


def test_bytes_are_compared_between_two_processes(listener: int) -> None:
    arguments = ("--device", "rxe0:1", "--peer", f"127.0.0.1:{listener}", "--rounds", "3", "--pings", "20")
    status, document = check(*arguments)
    assert status == 0, document["findings"]
    assert document["peer"]["bytes"] == 3 * 4 << 20
    assert (document["peer"]["ours"], document["peer"]["theirs"]) == ("rxe0:1", "rxe1:1")
    assert document["peer"]["write_mib_s"] > 0
    assert document["peer"]["read_mib_s"] > 0


def test_garbage_on_tcp_ends_that_test_only(listener: int) -> None:
    for garbage in (
        b"\0" * 100_000,
        b"[]\n",
        b'{"check": 1, "ports": [7]}\n',
        b'{"check": 9, "ports": []}\n',
        b"",
    ):
        with socket.create_connection(("127.0.0.1", listener)) as connection:
            connection.sendall(garbage)
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(cable.PATIENCE_S)
            try:
                while connection.recv(65536):
                    pass
            except ConnectionResetError:
                pass
    arguments = ("--device", "rxe0", "--peer", f"127.0.0.1:{listener}", "--rounds", "1", "--pings", "1")
    assert check(*arguments)[0] == 0


@pytest.mark.slow
def test_lost_packets_are_named(listener: int, whole_cable: None) -> None:
    cable.disturb("ve0", "loss", "100%")
    status, document = check("--device", "rxe0", "--peer", f"127.0.0.1:{listener}")
    assert status == 1
    (problem,) = [each for each in document["findings"] if each["level"] == "problem"]
    assert "no answer over RDMA" in problem["what"]
    assert "4791" in problem["remedy"]


@pytest.mark.slow
def test_a_link_that_is_down_is_named_and_the_other_port_used(whole_cable: None) -> None:
    cable.cut("ve0")
    cable.wait_for("the port went down", lambda: not cable.is_usable("rxe0"))
    status, document = check("--device", "rxe0")
    assert status == 1
    (problem,) = [each for each in document["findings"] if each["level"] == "problem"]
    assert problem["what"] == "it is down"
    assert "up" in problem["remedy"]


def test_a_wrong_gid_index_and_a_wrong_name_are_refused() -> None:
    status, document = check("--gid-index", "200")
    assert status == 1
    assert [each["what"] for each in document["findings"] if each["level"] == "problem"] == [
        "its GID table has nothing at index 200"
    ] * 2
    status, document = check("--device", "mlx5_7")
    assert status == 1
    assert any("there are: rxe0:1, rxe1:1" in each["remedy"] for each in document["findings"])


def test_check_without_a_listener_says_what_to_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    status, document = check("--peer", f"127.0.0.1:{port}")
    assert status == 1
    assert any("--listen" in each["remedy"] for each in document["findings"])
