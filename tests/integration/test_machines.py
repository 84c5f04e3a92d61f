"""docs/guides/machines.md, word by word, on machines with networks of their own; and what `init` and `join` refuse."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster import LocalCluster, luciola, until
from etcd_members import require_etcd
from luciola.wire import load_cluster
from machines_world import Machines

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "machines.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
WHERE = re.compile(r"# on ([\d.]+)")
FIRST, SECOND, THIRD, FOURTH = (f"10.0.0.{number}" for number in range(1, 5))
LUCIOLA = [sys.executable, "-m", "luciola"]
RUNS = "the services of this machine run"
AS_USER = ["runuser", "-u", "luciola", "--"]


class Followed:
    """The guide's blocks, carried out in order: each file of a machine is in a directory of its own."""

    def __init__(self, root: Path, machines: Machines) -> None:
        self.root = root
        self.machines = machines
        self.blocks = iter(BLOCK.findall(GUIDE.read_text()))

    def data(self, address: str) -> Path:
        return Path(self.place(address, "/var/lib/luciola"))

    def place(self, address: str, text: str) -> str:
        """Where the machine has what is in these directories."""
        for name in ("/var/lib", "/etc", "/mnt"):
            text = text.replace(name, str(self.root / address) + name)
        return text

    def etcd(self, address: str, text: str) -> None:
        """Start a member with the variables of the block, as /etc/default/etcd of that machine."""
        own = {}
        for name, value in (line.split("=", 1) for line in text.splitlines()):
            own[name] = value if name == "ETCD_INITIAL_CLUSTER" else value.replace(FIRST, address)
        own["ETCD_DATA_DIR"] = str(self.root / address / "etcd")
        self.machines.start(address, ["etcd"], self.root / f"etcd-{address}.log", environment=own)

    def serve(self, address: str) -> None:
        log = self.root / f"serve-{address}.log"
        begun = log.read_text().count(RUNS) if log.exists() else 0
        self.machines.start(address, [*LUCIOLA, "serve", "--data", str(self.data(address))], log)
        until(lambda: log.read_text().count(RUNS) > begun, what=f"services on {address}")

    def next(self, *, expected: int = 0) -> str:
        """Carry out the next block, whose commands end with that exit code; return what they print."""
        _, text = next(self.blocks)
        where = WHERE.match(text)
        assert where is not None, text
        address, printed = where[1], ""
        for line in text.splitlines()[1:]:
            words = shlex.split(self.place(address, line))
            words = words[len(AS_USER) :] if words[: len(AS_USER)] == AS_USER else words
            if words[0] == "systemctl":
                self.serve(address)
                continue
            assert words[0] == "luciola", line
            printed += self.machines.run(address, [*LUCIOLA, *words[1:]], expected=expected)
        return printed

    def copy(self, name: str, address: str) -> None:
        """What `scp` does."""
        shutil.copy(self.place(FIRST, f"/etc/luciola/{name}"), self.place(address, f"/etc/luciola/{name}"))


@pytest.fixture
def machines() -> Iterator[Machines]:
    with Machines([FIRST, SECOND, THIRD, FOURTH]) as machines:
        yield machines


@pytest.mark.mount
@pytest.mark.root
@pytest.mark.timeout(600)
def test_guide_and_loss_of_the_machine_that_made_the_cluster(tmp_path: Path, machines: Machines) -> None:
    require_etcd()
    guide = Followed(tmp_path, machines)
    for address in (FIRST, SECOND, THIRD, FOURTH):
        for name in ("/etc/luciola", "/mnt/luciola", "/var/lib"):
            Path(guide.place(address, name)).mkdir(parents=True)
    assert "by hand" in next(guide.blocks)[1]
    _, variables = next(guide.blocks)
    for address in (FIRST, SECOND, THIRD):
        guide.etcd(address, variables)
    guide.next()  # init
    for address in (SECOND, THIRD, FOURTH):
        guide.copy("invitation", address)
    guide.next()
    guide.next()
    until(lambda: "can be used" in (tmp_path / f"serve-{FIRST}.log").read_text(), what="the chain table")
    assert "2 copies of every chunk" in guide.next()
    guide.copy("mount.token", SECOND)
    mounted = Path(guide.place(SECOND, "/mnt/luciola"))
    guide.next()
    try:
        content = bytes(range(256)) * 40_000
        (mounted / "before").write_bytes(content)
        machines.lose(FIRST)  # a manager, a metadata service, a storage node and a member of etcd
        (mounted / "after").write_bytes(content)
        assert (mounted / "before").read_bytes() == content
        assert (mounted / "after").read_bytes() == content
        assert "node 201" in guide.next(expected=1)
        guide.etcd(FIRST, variables)
        guide.serve(FIRST)
        until(lambda: _complete(guide, SECOND), what="all copies")
        guide.next()
        until(lambda: _replicas(guide, FOURTH)[204] > 0, what="a replica on the fourth machine")
        assert (mounted / "before").read_bytes() == content
        assert (mounted / "after").read_bytes() == content
    finally:
        machines.run(SECOND, [*LUCIOLA, "umount", str(mounted)])


def _complete(guide: Followed, address: str) -> bool:
    command = [*LUCIOLA, "chain", "list", "--json", "--data", str(guide.data(address))]
    chains = json.loads(guide.machines.run(address, command))
    return {chain["state"] for chain in chains} == {"serving"}


def _replicas(guide: Followed, address: str) -> dict[int, int]:
    command = [*LUCIOLA, "node", "list", "--json", "--data", str(guide.data(address))]
    nodes = json.loads(guide.machines.run(address, command))
    return {node["id"]: node["replicas"] for node in nodes}


def refused(*arguments: str) -> str:
    """What a command says that is refused."""
    result = luciola(*arguments, check=False)
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr


def test_cluster_that_cannot_be_formed_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    here = ["init", "--data", str(tmp_path / "first"), "--address"]
    assert "an IP address" in refused(*here, "first.example")
    assert "cannot reach" in refused(*here, "0.0.0.0")
    assert "etcd://" in refused(*here, "127.0.0.1", "--managers", "127.0.0.1,127.0.0.2")
    assert "etcd://" in refused(*here, "127.0.0.1", "--metadata", "etcd")
    assert "the first of --managers" in refused(*here, "127.0.0.1", "--managers", "127.0.0.2")
    assert "storage nodes" in refused(*here, "127.0.0.1", "--storage-nodes", "1")
    assert not (tmp_path / "first").exists()


def test_machine_that_cannot_join_says_why(tmp_path: Path) -> None:
    first, other = tmp_path / "first", tmp_path / "other"
    invitation = tmp_path / "invitation"
    luciola("init", "--data", str(first), "--address", "127.0.0.1")
    assert "belongs to a cluster" in refused("init", "--data", str(first), "--address", "127.0.0.1")
    assert "luciola serve" in refused("up", "--data", str(first))
    luciola("invite", "--data", str(first), "--out", str(invitation))
    assert invitation.stat().st_mode & 0o077 == 0
    join = ["join", "127.0.0.1:1", "--data", str(other), "--address", "127.0.0.2", "--token-file"]
    assert "none of the machines that run mgmtd" in refused(*join, str(invitation), "--roles", "mgmtd")
    assert "runs on one machine" in refused(*join, str(invitation), "--roles", "meta")
    assert "no invitation" in refused(*join, str(tmp_path / "nothing"))
    (tmp_path / "noise").write_text("noise")
    (tmp_path / "noise").chmod(0o600)
    assert "not an invitation" in refused(*join, str(tmp_path / "noise"))
    invitation.chmod(0o644)
    assert "others" in refused(*join, str(invitation))
    assert not other.exists()


def test_invitation_is_of_a_cluster_of_several_machines_alone(
    shared_cluster: LocalCluster, tmp_path: Path
) -> None:
    data = ["--data", str(shared_cluster.data)]
    assert "luciola init" in refused("invite", *data, "--out", str(tmp_path / "invitation"))
    assert "luciola up" in refused("serve", *data)


def test_machine_joins_the_cluster_of_its_invitation_alone(
    shared_cluster: LocalCluster, tmp_path: Path
) -> None:
    invitation = tmp_path / "invitation"
    luciola("init", "--data", str(tmp_path / "first"), "--address", "127.0.0.1")
    luciola("invite", "--data", str(tmp_path / "first"), "--out", str(invitation))
    other = load_cluster(shared_cluster.data / "cluster.json").mgmtd_grpc
    join = ["join", other, "--data", str(tmp_path / "other"), "--address", "127.0.0.2"]
    refused(*join, "--token-file", str(invitation))
    assert not (tmp_path / "other" / "cluster.json").exists()


@contextmanager
def first_machine(root: Path, *options: str, address: str = "127.0.0.1") -> Iterator[Path]:
    """A cluster of one machine that could be of several, with one storage node."""
    data = root / "first"
    alone = ["--storage-nodes", "1", "--replicas", "1"]
    luciola("init", "--data", str(data), "--address", address, *alone, *options)
    log = root / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen([*LUCIOLA, "serve", "--data", str(data)], stdout=output, stderr=output)
    try:
        until(lambda: "can be used" in log.read_text(), what="the chain table")
        yield data
    finally:
        process.terminate()
        process.wait(60)


def test_services_listen_on_ports_that_a_firewall_can_name_over_ipv6(tmp_path: Path) -> None:
    with first_machine(tmp_path, "--base-port", "17410", address="::1") as data:
        expected = [f"[::1]:{port}" for port in range(17410, 17416)]
        cluster = load_cluster(data / "cluster.json")
        assert [cluster.mgmtd_lane, cluster.mgmtd_grpc] == expected[:2]
        nodes = json.loads(luciola("node", "list", "--data", str(data), "--json").stdout)
        assert [node["address"] for node in nodes] == expected[1::2]
        listening = subprocess.run(["ss", "-Htln"], capture_output=True, text=True, check=True).stdout.split()
        assert set(expected) <= set(listening)
        # The next machine takes its ports from the invitation.
        invitation, other = str(tmp_path / "invitation"), tmp_path / "other"
        luciola("invite", "--data", str(data), "--out", invitation)
        luciola("join", "::1", "--data", str(other), "--address", "::1", "--token-file", invitation)
        assert json.loads((other / "cluster.json").read_text())["host"]["base_port"] == 17410
    high = ["init", "--data", str(tmp_path / "high"), "--address", "::1", "--base-port", "65531"]
    assert "65530" in luciola(*high, check=False).stderr


def test_certificates_open_what_they_are_for_and_nothing_else(tmp_path: Path) -> None:
    with first_machine(tmp_path) as data:
        at = load_cluster(data / "cluster.json").mgmtd_grpc
        admin = str(tmp_path / "admin.token")
        luciola("token", "create", "--data", str(data), "--role", "admin", "--out", admin)
        listing = ["node", "list", "--json", "--manager", at, "--token-file"]
        assert json.loads(luciola(*listing, admin).stdout)
        # The token alone: as a program of an earlier release has it, or who has read it from somewhere.
        bare = tmp_path / "bare.token"
        bare.write_text(Path(admin).read_text().splitlines()[0] + "\n")
        bare.chmod(0o600)
        assert "luciola token create" in refused(*listing, str(bare))
        # With the certificates of another cluster.
        luciola("init", "--data", str(tmp_path / "other"), "--address", "127.0.0.1")
        stranger = tmp_path / "stranger.token"
        luciola("token", "create", "--data", str(tmp_path / "other"), "--out", str(stranger))
        lines = stranger.read_text().splitlines()[1:]
        stranger.write_text("\n".join([bare.read_text().strip(), *lines]) + "\n")
        assert "not of this cluster's authority" in refused(*listing, str(stranger))
        shown = json.loads(luciola("certificate", "show", "--data", str(data), "--json").stdout)
        assert shown["roles"] == ["mgmtd", "meta", "storage"]
        assert shown["ends_unix_s"] > time.time() + 80 * 86_400


def test_machine_joins_renews_and_returns_after_its_certificate_is_lost(tmp_path: Path) -> None:
    with first_machine(tmp_path) as data:
        invitation = str(tmp_path / "invitation")
        luciola("invite", "--data", str(data), "--out", invitation)
        other = tmp_path / "other"
        join = ["join", "127.0.0.1", "--data", str(other), "--address", "127.0.0.2"]
        luciola(*join, "--token-file", invitation)
        pem, key = other / "tls" / "node.pem", other / "tls" / "ca.key"
        first = pem.read_text()
        assert pem.stat().st_mode & 0o077 == 0
        assert not key.exists()  # it runs no mgmtd
        assert "where mgmtd runs" in refused("invite", "--data", str(other), "--out", invitation)
        luciola("certificate", "renew", "--data", str(other))
        second = pem.read_text()
        assert first != second
        pem.unlink()
        renew = ["certificate", "renew", "--data", str(other)]
        assert "luciola certificate renew" in refused(*renew)
        luciola(*renew, "--token-file", invitation)
        assert pem.read_text() not in (first, second)
        shown = json.loads(luciola("certificate", "show", "--data", str(other), "--json").stdout)
        assert (shown["roles"], shown["address"]) == (["storage"], "127.0.0.2")
        # A token is made where mgmtd does not run, too.
        token = str(tmp_path / "job.token")
        luciola("token", "create", "--data", str(other), "--role", "admin", "--out", token)
        at = load_cluster(data / "cluster.json").mgmtd_grpc
        assert json.loads(luciola("node", "list", "--json", "--manager", at, "--token-file", token).stdout)
