"""The members of a private etcd: what is run, which are started, what they need."""

import shutil
import stat
from pathlib import Path

import pytest

from luciola.cli import private_etcd
from luciola.errors import InvalidArgument, NotFound

CLIENTS = ["127.0.0.1:21001", "127.0.0.1:21002", "127.0.0.1:21003"]
PEERS = ["127.0.0.1:22001", "127.0.0.1:22002", "127.0.0.1:22003"]


def _options(root: Path, member: int) -> dict[str, str]:
    """The options of a member that have values."""
    service = private_etcd.service(root, member, cluster_id="abc", clients=CLIENTS, peers=PEERS)
    command = service.command[service.command.index("etcd") + 1 :]
    return {
        name: value
        for name, value in zip(command, [*command[1:], ""], strict=True)
        if name.startswith("--") and not value.startswith("--")
    }


def test_members_listen_on_their_own_addresses_only(tmp_path: Path) -> None:
    for member in (1, 2, 3):
        options = _options(tmp_path, member)
        client, peer = f"https://{CLIENTS[member - 1]}", f"https://{PEERS[member - 1]}"
        assert options["--listen-client-urls"] == options["--advertise-client-urls"] == client
        assert options["--listen-peer-urls"] == options["--initial-advertise-peer-urls"] == peer
        assert f"{options['--name']}={peer}" in options["--initial-cluster"].split(",")
    assert len({_options(tmp_path, member)["--data-dir"] for member in (1, 2, 3)}) == 3


def test_clients_and_members_have_to_show_the_certificate(tmp_path: Path) -> None:
    command = private_etcd.service(tmp_path, 1, cluster_id="abc", clients=CLIENTS, peers=PEERS).command
    assert {"--client-cert-auth", "--peer-client-cert-auth"} <= set(command)
    options = _options(tmp_path, 1)
    certificate = str(private_etcd.certificate_file(tmp_path))
    for name in ("--cert-file", "--trusted-ca-file", "--peer-cert-file", "--peer-trusted-ca-file"):
        assert options[name] == certificate


def test_options_in_the_environment_are_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETCD_NAME", "other")
    monkeypatch.setenv("ETCD_UNSUPPORTED_ARCH", "arm64")
    command = private_etcd.service(tmp_path, 1, cluster_id="abc", clients=CLIENTS, peers=PEERS).command
    assert command[:3] == ("env", "--unset=ETCD_NAME", "etcd")
    monkeypatch.delenv("ETCD_NAME")
    command = private_etcd.service(tmp_path, 1, cluster_id="abc", clients=CLIENTS, peers=PEERS).command
    assert command[0] == "etcd"


def test_a_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotFound, match="package etcd-server"):
        private_etcd.require_programs()
    (tmp_path / "etcd").touch(0o755)
    with pytest.raises(NotFound, match="package openssl"):
        private_etcd.require_programs()
    (tmp_path / "openssl").touch(0o755)
    private_etcd.require_programs()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_certificate_is_made_once_and_is_private(tmp_path: Path) -> None:
    private_etcd.certify(tmp_path)
    made = private_etcd.certificate_file(tmp_path).read_bytes(), private_etcd.key_file(tmp_path).read_bytes()
    for path in (private_etcd.certificate_file(tmp_path), private_etcd.key_file(tmp_path)):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    private_etcd.certify(tmp_path)
    again = private_etcd.certificate_file(tmp_path).read_bytes(), private_etcd.key_file(tmp_path).read_bytes()
    assert again == made
    private_etcd.certificate_file(tmp_path).unlink()  # as after a crash before it was complete
    private_etcd.certify(tmp_path)
    assert private_etcd.certificate_file(tmp_path).read_bytes() != made[0]


def test_a_member_without_data_is_left_out_and_a_minority_is_refused(tmp_path: Path) -> None:
    for member in (1, 2, 3):
        (private_etcd.member_directory(tmp_path, member) / "member").mkdir(parents=True)
    assert private_etcd.present_members(tmp_path) == [1, 2, 3]
    shutil.rmtree(private_etcd.member_directory(tmp_path, 2))
    assert private_etcd.present_members(tmp_path) == [1, 3]
    assert "member 2" in private_etcd.describe_lost(tmp_path, 2)
    shutil.rmtree(private_etcd.member_directory(tmp_path, 3) / "member")
    with pytest.raises(InvalidArgument, match="etcd-2, etcd-3"):
        private_etcd.present_members(tmp_path)
