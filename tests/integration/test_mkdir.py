"""`luciola mkdir`: permissions as those of mkdir(1)."""

import os
import stat
from collections.abc import Iterator

import pytest

import luciola
from cluster import LocalCluster
from cluster import luciola as command


class Directory:
    """The directory of a test, through the command and through a client."""

    def __init__(self, fs: luciola.FileSystem, data: str, path: str) -> None:
        self.fs, self._data, self.path = fs, data, path

    def mkdir(self, name: str, *options: str, check: bool = True) -> str:
        return command("mkdir", *options, f"{self.path}/{name}", "--data", self._data, check=check).stderr

    def permissions(self, name: str) -> int:
        return stat.S_IMODE(self.fs.stat(f"{self.path}/{name}").st_mode)


@pytest.fixture
def directory(shared_cluster: LocalCluster, request: pytest.FixtureRequest) -> Iterator[Directory]:
    with luciola.connect(shared_cluster.data) as fs:
        path = f"/{request.node.name}"
        fs.mkdir(path, 0o750)
        old = os.umask(0o027)  # the command inherits it
        yield Directory(fs, str(shared_cluster.data), path)
        os.umask(old)


@pytest.mark.parametrize(("asked", "got"), [(None, 0o750), ("777", 0o777), ("1733", 0o1733), ("0", 0)])
def test_permissions_asked_for_are_exact_and_others_less_the_umask(
    directory: Directory, asked: str | None, got: int
) -> None:
    directory.mkdir("new", *([] if asked is None else ["-m", asked]))
    assert directory.permissions("new") == got


def test_permissions_asked_for_leave_the_group_that_the_parent_hands_on(directory: Directory) -> None:
    directory.fs.chmod(directory.path, 0o2750)
    directory.mkdir("new", "-m", "755")
    assert directory.permissions("new") == 0o2755


def test_permissions_are_not_those_of_parents(directory: Directory) -> None:
    directory.mkdir("a/b/new/", "-p", "-m", "707")
    assert [directory.permissions(name) for name in ("a", "a/b", "a/b/new")] == [0o750, 0o750, 0o707]


def test_directory_that_exists_stays_as_it_is(directory: Directory) -> None:
    directory.fs.mkdir(f"{directory.path}/old", 0o700)
    directory.mkdir("old", "-p", "-m", "777")
    assert directory.permissions("old") == 0o700
    assert "exists" in directory.mkdir("old", "-m", "777", check=False)


def test_file_in_the_way_is_an_error_also_with_parents(directory: Directory) -> None:
    directory.fs.write(f"{directory.path}/file", b"")
    assert "exists" in directory.mkdir("file", "-p", check=False)
