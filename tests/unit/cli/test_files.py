"""`luciola mkdir`, on this machine's files: permissions as those of mkdir(1)."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from luciola.cli.files import make_directory
from luciola.client import LocalFileSystem

FILES = LocalFileSystem()


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    old = os.umask(0o027)
    yield
    os.umask(old)


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("asked", "got"), [(None, 0o750), (0o777, 0o777), (0o1733, 0o1733), (0, 0)])
def test_permissions_asked_for_are_exact_and_others_less_the_umask(
    tmp_path: Path, asked: int | None, got: int
) -> None:
    make_directory(FILES, f"{tmp_path}/new", asked, parents=False)
    assert permissions(tmp_path / "new") == got


def test_permissions_asked_for_leave_the_group_that_the_parent_hands_on(tmp_path: Path) -> None:
    tmp_path.chmod(0o2750)
    make_directory(FILES, f"{tmp_path}/new", 0o755, parents=False)
    assert permissions(tmp_path / "new") == 0o2755


def test_permissions_are_not_those_of_parents(tmp_path: Path) -> None:
    make_directory(FILES, f"{tmp_path}/a/b/new/", 0o707, parents=True)
    made = [permissions(tmp_path / name) for name in ("a", "a/b", "a/b/new")]
    assert made == [0o750, 0o750, 0o707]


def test_directory_that_exists_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir(0o700)
    make_directory(FILES, f"{tmp_path}/old", 0o777, parents=True)
    assert permissions(tmp_path / "old") == 0o700
    with pytest.raises(FileExistsError):
        make_directory(FILES, f"{tmp_path}/old", 0o777, parents=False)


def test_file_in_the_way_is_an_error_also_with_parents(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        make_directory(FILES, f"{tmp_path}/file", None, parents=True)
