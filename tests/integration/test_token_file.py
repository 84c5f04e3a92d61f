"""A cluster that is used with a token in a file: its secret is on no machine but its own."""

import os
from pathlib import Path

import pytest

import luciola
from cluster import LocalCluster, until
from cluster import luciola as command
from luciola.config import ClientConfig
from luciola.errors import NotFound, Unauthenticated
from luciola.fuse import is_mounted
from luciola.plugins.dataset import open_records
from luciola.wire import Cluster, load_cluster
from luciola.wire.cluster import FILE_NAME
from luciola.wire.credentials import load_token, mint, save_token


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


def test_plugins_read_with_a_token_file(cluster, shared_cluster, tmp_path):
    own = token(shared_cluster, tmp_path / "user.token", "--role", "trusted")
    with luciola.connect(shared_cluster.data) as fs, fs.open("/rows.jsonl", "wb") as file:
        file.write(b'{"row": 1}\n')
    where = f"luciola://{cluster.mgmtd_lane}/rows.jsonl"
    assert len(open_records(where, token_file=own)) == 1
    with pytest.raises(NotFound, match="nonexistent"):
        open_records(where)


def test_mount_says_what_to_do_about_a_token_that_is_of_no_use(cluster, place, tmp_path):
    path = tmp_path / "mount.token"
    save_token(path, mint(bytes(32), lifetime_s=-1))
    arguments = ("mount", cluster.mgmtd_lane, str(place), "--token-file", str(path))
    assert "expired at" in command(*arguments, check=False).stderr
    path.chmod(0o644)
    assert f"chmod 600 {path}" in command(*arguments, check=False).stderr
    assert not is_mounted(place)


def test_renewed_token_takes_effect_on_a_mount_and_in_a_program_that_run(
    cluster, shared_cluster, place, tmp_path
):
    path = tmp_path / "mount.token"
    trusted = token(shared_cluster, path, "--role", "trusted", "--lifetime", "1h")
    large = bytes(range(256)) * 1024  # in chunks
    command("mount", cluster.mgmtd_lane, str(place), "--token-file", trusted)
    try:
        with luciola.connect(cluster.mgmtd_lane, token_file=trusted) as fs:
            kept = place / "renewed"
            with kept.open("wb", buffering=0) as file:
                file.write(large)
                os.fsync(file.fileno())
                first = load_token(path).id
                token(shared_cluster, path, "--role", "trusted", "--lifetime", "1h")
                assert load_token(path).id != first
                command("token", "revoke", first, "--data", str(shared_cluster.data))
                for _ in range(20):
                    file.write(large)
                    os.fsync(file.fileno())
                    assert fs.stat("/renewed").st_size == file.tell()
            with fs.open("/renewed", "rb") as file:
                assert file.read() == large * 21
            assert kept.read_bytes() == large * 21
            kept.unlink()
    finally:
        command("umount", str(place))


def test_void_token_is_said_with_its_file_and_a_new_one_there_ends_that(cluster, shared_cluster, tmp_path):
    path = tmp_path / "job.token"
    own = token(shared_cluster, path, "--role", "trusted")
    config = ClientConfig(deadline_ms=60_000, attribute_timeout_ms=0)
    with luciola.connect(cluster.mgmtd_lane, token_file=own, config=config) as fs:
        assert fs.stat("/").st_ino
        command("token", "revoke", own, "--data", str(shared_cluster.data))
        until(lambda: refusal(fs) is not None)
        assert f"the token in {path} is wrong, was revoked" in (refusal(fs) or "")
        token(shared_cluster, path, "--role", "trusted")
        until(lambda: refusal(fs) is None)


def test_token_of_another_user_in_the_file_is_not_used(cluster, shared_cluster, tmp_path, caplog):
    path = tmp_path / "job.token"
    own = token(shared_cluster, path, "--uid", "4321")
    with luciola.connect(cluster.mgmtd_lane, token_file=own) as fs:
        assert fs.stat("/").st_ino
        token(shared_cluster, path, "--role", "trusted", "--uid", "77")
        until(lambda: "the new token is of uid 77 and role trusted" in caplog.text)
        assert "this client's of uid 4321 and role client: connect again" in caplog.text
        assert fs.stat("/").st_ino


def refusal(fs: luciola.FileSystem) -> str | None:
    """What a call says of its token, if that is refused."""
    try:
        fs.stat("/")
    except Unauthenticated as error:
        return str(error)
    return None


def test_mount_made_with_the_secret_outlives_a_revocation_of_all_tokens(shared_cluster, place):
    command("mount", str(shared_cluster.data), str(place))
    try:
        command("token", "revoke", "--all", "--data", str(shared_cluster.data))

        def works() -> bool:
            try:
                return bool((place / "kept").write_bytes(b"bytes"))
            except PermissionError:
                return False

        until(works)
        (place / "kept").unlink()
    finally:
        command("umount", str(place))
