"""fsspec's own tests of a file system, on the native client and on a mount."""

import shutil
from collections.abc import Iterator
from uuid import uuid4

import pytest

pytest.importorskip("fsspec", reason="needs the extra `fsspec`")

import fsspec.tests.abstract as suite
from fsspec.implementations.local import LocalFileSystem

from cluster import LocalCluster
from luciola.client.fsspec import LuciolaFileSystem

pytestmark = pytest.mark.usefixtures("locations")


class NativeFixtures(suite.AbstractFixtures):
    """The client, under a directory of its own for each test."""

    @pytest.fixture
    def fs(self, shared_cluster: LocalCluster) -> LuciolaFileSystem:
        return LuciolaFileSystem(shared_cluster.data)

    @pytest.fixture
    def fs_path(self, fs: LuciolaFileSystem) -> Iterator[str]:
        path = f"/fsspec-{uuid4().hex}"
        fs.mkdir(path)
        yield path
        fs.rm(path, recursive=True)


class MountFixtures(suite.AbstractFixtures):
    """fsspec's file system of local files, on a directory of the mount."""

    @pytest.fixture
    def fs(self) -> LocalFileSystem:
        return LocalFileSystem(auto_mkdir=True)

    @pytest.fixture
    def fs_path(self, shared_cluster: LocalCluster) -> Iterator[str]:
        assert shared_cluster.mountpoint is not None, "it was started with a mount"
        path = shared_cluster.mountpoint / f"fsspec-{uuid4().hex}"
        path.mkdir()
        yield str(path)
        shutil.rmtree(path)


class TestCopyNative(suite.AbstractCopyTests, NativeFixtures):
    pass


class TestGetNative(suite.AbstractGetTests, NativeFixtures):
    pass


class TestPutNative(suite.AbstractPutTests, NativeFixtures):
    pass


class TestOpenNative(suite.AbstractOpenTests, NativeFixtures):
    pass


class TestPipeNative(suite.AbstractPipeTests, NativeFixtures):
    pass


@pytest.mark.mount
class TestCopyMount(suite.AbstractCopyTests, MountFixtures):
    pass


@pytest.mark.mount
class TestGetMount(suite.AbstractGetTests, MountFixtures):
    pass


@pytest.mark.mount
class TestPutMount(suite.AbstractPutTests, MountFixtures):
    pass


@pytest.mark.mount
class TestOpenMount(suite.AbstractOpenTests, MountFixtures):
    pass


@pytest.mark.mount
class TestPipeMount(suite.AbstractPipeTests, MountFixtures):
    pass
