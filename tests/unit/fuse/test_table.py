"""The table of mounts, and the checks that rest on it."""

from pathlib import Path

import pytest

from luciola.errors import Busy, InvalidArgument, NotADirectory, NotEmpty, NotFound
from luciola.fuse import check_mountpoint, clean_stale_mount, find_mount, is_mounted, stop, table

ROW = "36 35 0:42 / {place} rw,nosuid shared:7 master:1 - {kind} luciola:/data rw,user_id=0\n"


@pytest.fixture
def fake_table(tmp_path, monkeypatch):
    """Replaces the kernel's table by rows of (place, type)."""

    def write(*rows: tuple[str, str]) -> None:
        text = "".join(ROW.format(place=place, kind=kind) for place, kind in rows)
        (tmp_path / "mountinfo").write_text(text)
        monkeypatch.setattr(table, "TABLE", tmp_path / "mountinfo")

    return write


def test_rows_are_read_with_optional_fields_and_escapes(fake_table):
    fake_table(("/mnt/a\\040b", "fuse.luciola"), ("/", "ext4"))
    assert [(str(row.mountpoint), row.type, row.source) for row in table.mounts()] == [
        ("/mnt/a b", "fuse.luciola", "luciola:/data"),
        ("/", "ext4", "luciola:/data"),
    ]
    assert is_mounted(Path("/mnt/a b"))
    assert not is_mounted(Path("/mnt"))
    assert not is_mounted(Path("/"))


def test_the_topmost_mount_counts(fake_table):
    fake_table(("/mnt", "fuse.luciola"), ("/mnt", "tmpfs"))
    assert find_mount(Path("/mnt")).type == "tmpfs"
    assert not is_mounted(Path("/mnt"))


def test_relative_paths_and_links_above_are_resolved(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    assert table.resolve(Path("link/mnt")) == tmp_path / "real" / "mnt"
    assert table.resolve(Path("link")) == tmp_path / "real"
    assert table.resolve(Path("missing")) == tmp_path / "missing"


def test_the_kernels_own_table_is_read():
    assert find_mount(Path("/proc")).type == "proc"


def test_a_live_file_system_is_not_stale(tmp_path):
    assert table.answers(tmp_path)
    assert not clean_stale_mount(tmp_path)
    assert not clean_stale_mount(tmp_path / "missing")


def test_places_that_cannot_be_mounted_on_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    (tmp_path / "empty").mkdir()
    for name, error in (
        ("missing", NotFound),
        ("file", NotADirectory),
        ("full", NotEmpty),
    ):
        with pytest.raises(error) as raised:
            check_mountpoint(tmp_path / name)
        assert raised.value.filename == str(tmp_path / name)
    with pytest.raises(Busy, match="proc is mounted here"):
        check_mountpoint(Path("/proc"))
    assert check_mountpoint(tmp_path / "empty") == tmp_path / "empty"


def test_only_luciola_mounts_are_unmounted(tmp_path):
    for place in (tmp_path, Path("/proc"), tmp_path / "missing"):
        with pytest.raises(InvalidArgument, match="no Luciola mount here"):
            stop(place)
