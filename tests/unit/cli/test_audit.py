"""`luciola audit`, and what commands write down themselves."""

import json
import os

import pytest
from click.testing import CliRunner

from luciola.cli import cli
from luciola.cli.datadir import DataDir
from luciola.cli.host import Invitation
from luciola.errors import NotFound
from luciola.wire import Cluster, Token, create_secret
from luciola.wire.audit import AuditLog


def run(*arguments):
    return CliRunner().invoke(cli, [*map(str, arguments)])


@pytest.fixture
def secret(tmp_path):
    return create_secret(tmp_path / "secret")


def test_token_that_was_made_is_shown_with_who_made_it_and_without_its_key(tmp_path, secret, monkeypatch):
    monkeypatch.setenv("SUDO_UID", "1234")
    made = Token.parse(
        run("token", "create", "--data", tmp_path, "--uid", 7, "--role", "admin").output.strip()
    )
    done = run("audit", "--data", tmp_path, "--json")
    (entry,) = json.loads(done.output)
    assert (entry["what"], entry["outcome"], entry["by"]) == ("token create", "done", "luciola")
    assert entry["who"] == {"role": "owner", "uid": os.getuid(), "sudo_uid": "1234"}
    assert (entry["request"]["id"], entry["request"]["uid"], entry["request"]["role"]) == (
        made.id,
        7,
        "admin",
    )
    shown = run("audit", "--data", tmp_path).output
    assert "owner uid 0 by sudo of uid 1234" in shown.replace(f"uid {os.getuid()}", "uid 0")
    for text in (done.output, shown):
        assert made.encode().partition(".")[2] not in text
        assert secret.hex() not in text


def test_changes_and_refusals_are_shown_apart_the_last_ones_of_all_services(tmp_path):
    directory = DataDir(tmp_path).audit
    now = [1.0]
    manager, meta = (AuditLog(directory, name, now_unix_s=lambda: now[0]) for name in ("mgmtd-1", "meta-1"))
    for number in range(1, 7):
        now[0] = number
        (manager if number % 2 else meta).changed(
            f"change {number}", "failed", who=None, request={}, why="so"
        )
    meta.refused("handshake", "a bad \x1b[31mtoken\n", host="10.0.0.9")
    shown = run("audit", "--data", tmp_path, "-n", 4).output.splitlines()
    assert [line.split("change ")[1][0] for line in shown[1:]] == list("3456")
    assert [line.split()[1] for line in shown[1:]] == ["mgmtd-1", "meta-1"] * 2
    assert shown[1].endswith("failed: so")
    refused = run("audit", "--data", tmp_path, "--refused").output
    assert "stranger" in refused
    assert "10.0.0.9" in refused
    assert "\x1b" not in refused
    assert len(refused.splitlines()) == 2


def test_nothing_written_down_is_an_empty_table_and_no_cluster_an_error(tmp_path):
    assert run("audit", "--data", tmp_path).output.startswith("TIME")
    assert json.loads(run("audit", "--data", tmp_path, "--json").output) == []
    assert isinstance(run("audit", "--data", tmp_path / "none").exception, NotFound)


def test_invitation_shows_no_secret_where_it_is_printed(tmp_path):
    cluster = Cluster("00" * 16, "127.0.0.1:1", "127.0.0.1:2", str(tmp_path / "secret"))
    text = repr(Invitation(cluster, "5ec4e7", 2, "-----BEGIN PRIVATE KEY-----"))
    assert "5ec4e7" not in text
    assert "PRIVATE" not in text
