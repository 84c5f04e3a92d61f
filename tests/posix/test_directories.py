"""Listing directories, also while they change."""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.mount

COUNT = 3000

libc = ctypes.CDLL(None, use_errno=True)
libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
libc.opendir.argtypes = [ctypes.c_char_p]
libc.telldir.restype = ctypes.c_long
for function in (libc.readdir, libc.telldir, libc.rewinddir, libc.closedir):
    function.argtypes = [ctypes.c_void_p]
libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]


class Stream:
    """A directory stream of the C library (DIR)."""

    def __init__(self, path: str = ".") -> None:
        self.dir = libc.opendir(os.fsencode(path))
        assert self.dir, os.strerror(ctypes.get_errno())

    def read(self) -> str | None:
        """The next name; None at the end."""
        entry = libc.readdir(self.dir)
        return None if entry is None else os.fsdecode(ctypes.string_at(entry + 19))  # d_name of struct dirent

    def tell(self) -> int:
        return int(libc.telldir(self.dir))

    def seek(self, offset: int) -> None:
        libc.seekdir(self.dir, offset)

    def rewind(self) -> None:
        libc.rewinddir(self.dir)

    def rest(self) -> list[str]:
        return list(iter(self.read, None))

    def offsets(self) -> dict[str, int]:
        """The offset after each name, as the directory is now."""
        self.rewind()
        return {name: self.tell() for name in iter(self.read, None)}


@pytest.fixture
def stream(area: Path) -> Iterator[Stream]:
    opened = Stream()
    yield opened
    libc.closedir(opened.dir)


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


def test_listing_has_types_and_inodes(area):
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
        for _ in range(50):  # a request for attributes gets them with the rest
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


def test_offset_leads_to_the_same_name_after_others_are_removed(stream):
    for number in range(600):
        Path(f"f{number:04d}").touch()
    order = stream.offsets()
    names = list(order)
    mark = names.index("f0300")
    expected = names[mark + 1 :]
    for name in [name for name in names[:mark] if name.startswith("f")][:100]:
        os.unlink(name)
    stream.seek(order["f0300"])
    assert stream.rest() == expected
    stream.rewind()
    stream.seek(order["f0300"])
    assert stream.rest() == expected
    other = Stream()
    other.seek(order["f0300"])
    assert other.rest() == expected
    os.unlink("f0300")
    other.seek(order["f0300"])
    assert other.rest() == expected, "after a name that is gone"
    libc.closedir(other.dir)


def test_every_offset_leads_to_the_rest_of_the_listing(stream):
    Path("a").touch()
    os.mkdir("d")
    for number in range(20):
        os.link("a", f"link-{number:02d}")
    os.rename("link-07", "renamed")
    Path("new").touch()
    os.rename("new", "link-03")
    order = stream.offsets()
    assert sorted(order) == sorted([".", "..", *os.listdir()])
    assert all(0 < offset < 1 << 63 for offset in order.values())
    names = list(order)
    for index, name in enumerate(names):
        stream.seek(order[name])
        assert stream.rest() == names[index + 1 :]
    stream.seek(0)
    assert stream.rest() == names


def test_names_stay_where_they_are_when_they_are_given_other_files(stream):
    for number in range(9):
        Path(f"f{number}").touch()
    before = list(stream.offsets())
    os.rename("f7", "f2")  # f2 was there all the while
    assert list(stream.offsets()) == [name for name in before if name != "f7"]
    os.rename("f8", "g")  # in the place of f8: it is not listed twice
    assert list(stream.offsets()) == ["g" if name == "f8" else name for name in before if name != "f7"]


def test_listing_ends_though_a_file_is_made_for_each_that_is_shown(area):
    names = fill(1000)
    seen = set()
    with os.scandir() as entries:
        for entry in entries:
            seen.add(entry.name)
            assert len(seen) < 3000
            Path(f"made-{len(seen)}").touch()
            os.rename(entry.name, f"x{entry.name}")
    assert names <= seen


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
