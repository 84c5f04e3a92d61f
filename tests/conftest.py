"""Fixtures for all tests."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

# gRPC restarts its poller in a forked child, which aborts when the child closes its descriptors before it executes
# another program (grpc/grpc#43055). gRPC reads this when it is imported. No test forks to use gRPC in the child.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

from cluster import LocalCluster

if TYPE_CHECKING:
    from etcd_members import EtcdMembers
    from luciola.client.fsspec import LuciolaFileSystem


CORE = Path(__file__).parents[1] / "core"

# A shell ignores SIGINT in what it starts in the background, and so do its children: no test of Ctrl-C passes then.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where and how long the tests of tests/posix run."""
    parser.addoption("--posix-dir", default=None, help="run tests/posix on this directory, not on a cluster")
    parser.addoption("--posix-examples", default=30, type=int, help="random histories in tests/posix")


def pytest_configure(config: pytest.Config) -> None:
    """Set no time limit on an example of hypothesis: a busy machine is no failure."""
    if config.pluginmanager.hasplugin("hypothesispytest"):
        from hypothesis import HealthCheck, settings

        settings.register_profile("luciola", deadline=None, suppress_health_check=[HealthCheck.too_slow])
        settings.load_profile("luciola")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Says why a test cannot run here, instead of failing in its middle."""
    for item in items:
        if item.get_closest_marker("mount") and not (os.geteuid() == 0 and Path("/dev/fuse").exists()):
            item.add_marker(pytest.mark.skip(reason="needs root and /dev/fuse"))
        if item.get_closest_marker("root") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Builds what the tests need of the crate: that may take longer than a test may."""
    if session.config.option.collectonly:
        return
    runs = [item for item in session.items if not item.get_closest_marker("skip")]
    needed = {mark.args: None for item in runs for mark in item.iter_markers("crate")}
    for arguments in needed:
        subprocess.run(("cargo", *arguments, "--quiet", "--locked"), cwd=CORE, check=True)


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """One healthy mounted cluster for tests that do not hurt it."""
    root = tmp_path_factory.mktemp("cluster")
    with LocalCluster(root, mount=True) as cluster:
        yield cluster
    shutil.rmtree(root)


@pytest.fixture
def mounted_dir(shared_cluster: LocalCluster, request: pytest.FixtureRequest) -> Iterator[Path]:
    """An empty directory on the shared cluster's mount."""
    assert shared_cluster.mountpoint is not None, "it was started with a mount"
    directory = shared_cluster.mountpoint / request.node.name.replace("/", "_")[:200]
    directory.mkdir()
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def locations(shared_cluster: LocalCluster) -> Iterator[None]:
    """For tests that name files on the cluster by location: this process's connections end with the module."""
    from luciola.client import close_locations

    yield
    close_locations()


@pytest.fixture
def fs(shared_cluster: LocalCluster, locations: None) -> "LuciolaFileSystem":
    """The shared cluster, for fsspec."""
    from luciola.client.fsspec import LuciolaFileSystem

    return LuciolaFileSystem(shared_cluster.data)


@pytest.fixture
def top(fs: "LuciolaFileSystem") -> Iterator[str]:
    """An empty directory of it."""
    path = f"/fsspec-{uuid4().hex}"
    fs.mkdir(path)
    yield path
    fs.rm(path, recursive=True)


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[EtcdMembers]":
    """An etcd of one member, which never elects another: each request is executed once, at the first attempt."""
    from etcd_members import EtcdMembers, require_etcd

    require_etcd()
    with EtcdMembers(tmp_path_factory.mktemp("etcd"), count=1) as members:
        yield members


@pytest.fixture(scope="session")
def shared_etcd_members(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[EtcdMembers]":
    """What `etcd_members` gives to each test."""
    from etcd_members import EtcdMembers, require_etcd

    require_etcd()
    with EtcdMembers(tmp_path_factory.mktemp("etcd-members")) as members:
        yield members


@pytest.fixture
def etcd_members(shared_etcd_members: "EtcdMembers") -> "Iterator[EtcdMembers]":
    """Three members, for a test that kills and pauses them; on a busy machine they elect another leader at any time."""
    yield shared_etcd_members
    shared_etcd_members.heal()
