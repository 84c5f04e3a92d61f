"""Names of files that are not complete yet."""

import os
from pathlib import Path

import pytest

from luciola.tempname import temp_beside


@pytest.mark.parametrize("name", [b"f", b"x" * 255, "ü".encode() * 127, "日本".encode() * 42, b"\xff" * 255])
def test_a_hidden_name_can_be_given_wherever_the_name_can(tmp_path: Path, name: bytes) -> None:
    path = os.path.join(str(tmp_path), os.fsdecode(name))
    hidden = temp_beside(path)
    Path(hidden).touch()
    os.replace(hidden, path)
    assert os.listdir(os.fsencode(tmp_path)) == [name]


def test_temporary_name_is_in_the_same_directory_and_unique() -> None:
    names = {temp_beside("/deep/f") for _ in range(9)}
    assert len(names) == 9
    assert all(name.startswith("/deep/.f.") for name in names)
