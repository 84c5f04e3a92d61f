"""Listing directories, also while they change."""

import os
from pathlib import Path

import pytest

pytestmark = pytest.mark.mount

COUNT = 3000


def fill(count: int = COUNT) -> set[str]:
    names = {f"file-{number:05d}-with-a-name-of-some-length" for number in range(count)}
    for name in names:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o644))
    return names


def test_big_directory_lists_every_name_once(area):
    names = fill()
    listed = os.listdir()
    assert len(listed) == len(names)
    assert set(listed) == names


def test_listing_tells_types_and_inodes(area):
    Path("file").write_bytes(b"")
    os.mkdir("directory")
    os.symlink("x", "link")
    os.mkfifo("fifo")
    with os.scandir() as entries:
        found = {entry.name: entry for entry in entries}
    assert found["file"].is_file(follow_symlinks=False)
    assert found["directory"].is_dir(follow_symlinks=False)
    assert found["link"].is_symlink()
    assert not found["fifo"].is_file(follow_symlinks=False)
    for name, entry in found.items():
        assert entry.inode() == os.lstat(name).st_ino


def test_removing_what_is_listed_while_listing_misses_nothing(area):
    names = fill()
    seen = set()
    with os.scandir() as entries:
        for entry in entries:
            seen.add(entry.name)
            os.unlink(entry.name)
    assert seen == names
    assert os.listdir() == []


def test_own_changes_are_seen_by_who_has_begun_to_list(area):
    names = sorted(fill(1000))
    changed, gone = names[-20], names[-10]
    with os.scandir() as entries:
        for _ in range(50):  # whoever asks for attributes gets them with the rest
            next(entries).stat()
        os.unlink(gone)
        os.chmod(changed, 0o600)
        rest = {entry.name for entry in entries}
    assert changed in rest
    assert os.stat(changed).st_mode & 0o777 == 0o600
    assert not os.path.exists(gone)


def test_names_that_stay_are_listed_once_while_others_come_and_go(area):
    stay = fill(1000)
    seen: list[str] = []
    with os.scandir() as entries:
        for number, entry in enumerate(entries):
            seen.append(entry.name)
            if number % 3 == 0:
                Path(f"new-{number}").write_bytes(b"")
            if number % 7 == 0 and number:
                os.unlink(f"new-{number // 21 * 21}") if os.path.exists(f"new-{number // 21 * 21}") else None
            if number > 5000:
                break
    counted = [name for name in seen if name in stay]
    assert len(counted) == len(set(counted)) == len(stay)


def test_rewound_listing_shows_the_present(area):
    Path("a").write_bytes(b"")
    descriptor = os.open(".", os.O_RDONLY)
    assert os.listdir(descriptor) == ["a"]
    Path("b").write_bytes(b"")
    os.unlink("a")
    assert os.listdir(descriptor) == ["b"]
    os.close(descriptor)


def test_listing_shows_attributes_as_changed_through_another_name(area):
    Path("a").write_bytes(b"x")
    os.mkdir("sub")
    os.link("a", "sub/b")

    def listed() -> tuple[int, int, int]:
        with os.scandir() as entries:
            (found,) = (entry.stat() for entry in entries if entry.name == "a")
        return found.st_size, found.st_mode & 0o777, found.st_nlink

    assert listed() == (1, 0o644, 2)
    os.chmod("sub/b", 0o600)
    assert listed() == (1, 0o600, 2)
    with open("sub/b", "ab") as file:
        file.write(bytes(9999))
    assert listed() == (10_000, 0o600, 2)
    os.unlink("sub/b")
    assert listed() == (10_000, 0o600, 1)


def test_links_of_a_directory_count_its_children(area):
    before = os.stat(".").st_nlink
    for number in range(5):
        os.mkdir(f"d{number}")
    Path("file").write_bytes(b"")
    assert os.stat(".").st_nlink == before + 5
    os.rmdir("d0")
    assert os.stat(".").st_nlink == before + 4


def test_changes_in_a_directory_show_in_its_times(area):
    os.mkdir("d")
    os.utime("d", ns=(0, 0))
    Path("d/a").write_bytes(b"")
    assert os.stat("d").st_mtime_ns > 0
    os.utime("d", ns=(0, 0))
    os.rename("d/a", "d/b")
    assert os.stat("d").st_mtime_ns > 0
    os.utime("d", ns=(0, 0))
    os.unlink("d/b")
    assert os.stat("d").st_mtime_ns > 0


def test_deep_tree(area):
    depth = 100
    path = "/".join(["d"] * depth)
    os.makedirs(path)
    Path(path, "file").write_bytes(b"deep")
    assert Path(path, "file").read_bytes() == b"deep"
    assert sum(1 for _ in os.walk(".")) == depth + 1
