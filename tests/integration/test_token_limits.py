"""Tokens with limits, and revoked ones, against a cluster that runs: commands, a program, mounts, the data plane."""

import errno
import json
import time
from pathlib import Path

import pytest

import luciola
from cluster import LocalCluster
from cluster import luciola as command
from luciola.config import ClientConfig
from luciola.errors import PermissionDenied, Unauthenticated
from luciola.wire import Cluster, load_cluster
from luciola.wire.cluster import FILE_NAME

LARGE = bytes(range(256)) * 1024  # in chunks
SOON_S = 20.0


@pytest.fixture
def cluster(shared_cluster: LocalCluster, monkeypatch) -> Cluster:
    """Its addresses. A command that reads the secret of the environment fails."""
    monkeypatch.setenv("LUCIOLA_SECRET_FILE", "/nonexistent")
    return load_cluster(shared_cluster.data / FILE_NAME)


@pytest.fixture
def tree(shared_cluster: LocalCluster, request):
    """A directory of the cluster with a set that tokens open, and something beside it."""
    with luciola.connect(shared_cluster.data) as fs:
        top = f"/{request.node.name}"
        for name in ("set", "other"):
            fs.makedirs(f"{top}/{name}")
            with fs.open(f"{top}/{name}/file", "wb") as file:
                file.write(LARGE)
        yield top
        fs.rmtree(top)


def create(shared_cluster: LocalCluster, path: Path, *options: str) -> str:
    command("token", "create", "--data", str(shared_cluster.data), "--out", str(path), *options)
    return str(path)


def shown(path: str) -> dict[str, object]:
    return json.loads(command("token", "show", "--json", path).stdout)


def test_token_of_a_directory_opens_it_and_not_what_is_beside_it(cluster, shared_cluster, tree, tmp_path):
    own = create(shared_cluster, tmp_path / "set.token", "--role", "trusted", "--path", f"{tree}/set")
    assert shown(own)["path"] == f"{tree}/set"
    with luciola.connect(cluster.mgmtd_lane, token_file=own) as fs:
        assert fs.listdir(f"{tree}/set") == ["file"]
        with fs.open(f"{tree}/set/file", "rb") as file:
            assert file.read() == LARGE
        with fs.open(f"{tree}/set/new", "wb") as file:
            file.write(LARGE)
        assert fs.stat(f"{tree}/set/new").st_size == len(LARGE)
        assert fs.listdir(tree) == ["set"]
        with pytest.raises(FileNotFoundError):
            fs.open(f"{tree}/other/file", "rb")
        with pytest.raises(PermissionError):
            fs.mkdir(f"{tree}/more")
    where = ("--address", cluster.mgmtd_lane, "--token-file", own)
    command("ls", *where, f"{tree}/set")
    assert command("ls", *where, f"{tree}/other", check=False).returncode
    missing = command(
        "token", "create", "--data", str(shared_cluster.data), "--path", f"{tree}/none", check=False
    )
    assert "No such file" in missing.stderr or "no such file" in missing.stderr


def test_mount_of_a_directorys_token_shows_the_way_to_it(cluster, shared_cluster, tree, place, tmp_path):
    own = create(shared_cluster, tmp_path / "set.token", "--role", "trusted", "--path", f"{tree}/set")
    command("mount", cluster.mgmtd_lane, str(place), "--token-file", own)
    try:
        top = place / tree.strip("/")
        assert [each.name for each in place.iterdir()] == [top.name]
        assert [each.name for each in top.iterdir()] == ["set"]
        assert (top / "set" / "file").read_bytes() == LARGE
        (top / "set" / "made").mkdir()
        (top / "set" / "made" / "small").write_bytes(b"bytes")
        (top / "set" / "made" / "small").rename(top / "set" / "moved")
        assert (top / "set" / "moved").read_bytes() == b"bytes"
        with pytest.raises(PermissionError):
            (top / "beside").mkdir()
        with pytest.raises(FileNotFoundError):
            (top / "other" / "file").read_bytes()
    finally:
        command("umount", str(place))


def test_read_only_token_reads_on_a_mount_and_writes_nowhere(cluster, shared_cluster, tree, place, tmp_path):
    own = create(shared_cluster, tmp_path / "ro.token", "--role", "trusted", "--read-only")
    assert shown(own)["read_only"] is True
    command("mount", cluster.mgmtd_lane, str(place), "--token-file", own)
    try:
        file = place / tree.strip("/") / "set" / "file"
        assert file.read_bytes() == LARGE
        for change in (
            lambda: file.write_bytes(b"x"),
            file.unlink,
            lambda: file.chmod(0o600),
            (file.parent / "made").mkdir,
            lambda: (file.parent / "new").write_bytes(b"x"),
            lambda: file.rename(file.parent / "moved"),
        ):
            with pytest.raises(OSError) as caught:
                change()
            assert caught.value.errno == errno.EROFS
        assert file.read_bytes() == LARGE
    finally:
        command("umount", str(place))


def test_revoked_token_is_refused_everywhere_within_seconds(cluster, shared_cluster, tree, tmp_path):
    own = create(shared_cluster, tmp_path / "job.token", "--role", "trusted", "--lifetime", "1h")
    kept = create(shared_cluster, tmp_path / "kept.token", "--role", "trusted", "--lifetime", "1h")
    number = str(shown(own)["id"])
    data = ("--data", str(shared_cluster.data))

    def state(token: str) -> str:
        listed = json.loads(command("token", "list", "--json", *data).stdout)
        return {each["id"]: each["state"] for each in listed["tokens"]}[str(shown(token)["id"])]

    assert state(own) == "valid"
    fs = luciola.connect(cluster.mgmtd_lane, token_file=own, config=ClientConfig(deadline_ms=3000))
    with (
        fs.open(f"{tree}/set/file", "rb") as file,
        luciola.connect(cluster.mgmtd_lane, token_file=kept) as other,
    ):
        assert file.read(10) == LARGE[:10]
        command("token", "revoke", number, *data)
        assert (state(own), state(kept)) == ("revoked", "valid")
        deadline = time.monotonic() + SOON_S
        while True:
            try:
                fs.listdir(tree)
                file.seek(0)
                file.read()
            except OSError:
                break
            assert time.monotonic() < deadline, "it is refused soon"
        with pytest.raises(OSError):  # the storage nodes refuse it, too
            fs.open(f"{tree}/other/file", "rb").read()
        assert other.listdir(tree)
        with other.open(f"{tree}/set/file", "rb") as read:
            assert read.read() == LARGE
        with pytest.raises((Unauthenticated, PermissionDenied)):
            luciola.connect(cluster.mgmtd_lane, token_file=own)
    refused = command("ls", "--address", cluster.mgmtd_lane, "--token-file", own, "/", check=False)
    assert refused.returncode
    with_admin = create(shared_cluster, tmp_path / "admin.token", "--role", "admin")
    where = ("--manager", cluster.mgmtd_grpc, "--token-file", with_admin)
    command("token", "revoke", with_admin, *where)
    assert "revoked" in command("node", "list", *where, check=False).stderr
