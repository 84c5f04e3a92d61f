"""A cluster that is used with a token in a file: its secret is on no machine but its own."""

import os
from pathlib import Path

import pytest

import luciola
from cluster import LocalCluster
from cluster import luciola as command
from luciola.fuse import is_mounted
from luciola.wire import Cluster, load_cluster
from luciola.wire.cluster import FILE_NAME
from luciola.wire.credentials import mint, save_token


@pytest.fixture
def cluster(shared_cluster: LocalCluster, monkeypatch) -> Cluster:
    """Its addresses. A command that reads the secret of the environment fails."""
    monkeypatch.setenv("LUCIOLA_SECRET_FILE", "/nonexistent")
    return load_cluster(shared_cluster.data / FILE_NAME)


def token(shared_cluster: LocalCluster, path: Path, *options: str) -> str:
    command("token", "create", "--data", str(shared_cluster.data), "--out", str(path), *options)
    return str(path)


def test_mount_of_all_users_needs_no_secret(cluster, shared_cluster, place, tmp_path):
    trusted = token(shared_cluster, tmp_path / "mount.token", "--role", "trusted", "--lifetime", "1h")
    command("mount", cluster.mgmtd_lane, str(place), "--token-file", trusted)
    try:
        made = place / "made-with-a-token"
        made.write_bytes(b"bytes")
        os.chown(made, 1234, 1234)
        assert (made.read_bytes(), made.stat().st_uid) == (b"bytes", 1234)
        made.unlink()
    finally:
        command("umount", str(place))


def test_commands_and_programs_use_a_token_of_a_user(cluster, shared_cluster, tmp_path, monkeypatch):
    own = token(shared_cluster, tmp_path / "user.token", "--uid", "4321")
    address = ("--address", cluster.mgmtd_lane)
    command("ls", *address, "--token-file", own, "/")
    monkeypatch.setenv("LUCIOLA_TOKEN_FILE", own)
    command("ls", *address, "/")
    with luciola.connect(cluster.mgmtd_lane, token_file=own) as fs:
        assert fs.stat("/").st_ino
    refused = command("node", "enable", "--manager", cluster.mgmtd_grpc, "999", check=False)
    assert "not for this token's role" in refused.stderr
    admin = token(shared_cluster, tmp_path / "admin.token", "--role", "admin")
    command("node", "list", "--manager", cluster.mgmtd_grpc, "--token-file", admin)


def test_mount_says_what_to_do_about_a_token_that_is_of_no_use(cluster, place, tmp_path):
    path = tmp_path / "mount.token"
    save_token(path, mint(bytes(32), lifetime_s=-1))
    arguments = ("mount", cluster.mgmtd_lane, str(place), "--token-file", str(path))
    assert "expired at" in command(*arguments, check=False).stderr
    path.chmod(0o644)
    assert f"chmod 600 {path}" in command(*arguments, check=False).stderr
    assert not is_mounted(place)
